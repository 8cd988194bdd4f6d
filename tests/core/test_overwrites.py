"""An output never replaces an input: files are compared, whatever they are called."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from ptycho.cli.simulate_command import main as simulate_command
from ptycho.config.config import InferenceConfig, ModelConfig, TrainingConfig
from ptycho.errors import ConfigError
from ptycho.files.overwrites import (
    EVALUATION_FILES,
    RECONSTRUCTION_FILES,
    TRAINING_FILES,
    check_outputs,
    holds_training,
)
from ptycho.run.evaluate import Request, evaluate
from ptycho.run.pipeline import infer, train

BACKENDS = ("pytorch", "tensorflow")


def content(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder."""
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", ["symbolic", "hard", "relative"])
def test_a_link_to_an_input_is_that_input(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = tmp_path / "scan.npz", tmp_path / "other.npz"
    source.write_bytes(b"scan")
    if kind == "symbolic":
        target.symlink_to(source)
    elif kind == "hard":
        os.link(source, target)
    else:
        (tmp_path / "sub").mkdir()
        monkeypatch.chdir(tmp_path / "sub")
        target = Path("../sub/../scan.npz")
    with pytest.raises(ConfigError, match=r"--output: it would replace .*--picture"):
        check_outputs({"--picture": source}, [("--output", target)])
    check_outputs({"--picture": source}, [("--output", tmp_path / "new.npz")])
    (tmp_path / "same_content.npz").write_bytes(b"scan")
    check_outputs({"--picture": source}, [("--output", tmp_path / "same_content.npz")])


def test_files_that_are_read_with_an_input_are_inputs(tmp_path: Path) -> None:
    frames, master, linked = tmp_path / "frames.h5", tmp_path / "diffraction.h5", tmp_path / "linked.h5"
    product = tmp_path / "product.h5"
    for path in (frames, product):
        with h5py.File(path, "w") as file:
            file["data"] = np.zeros((2, 4, 4))
    layout = h5py.VirtualLayout((2, 4, 4), float)
    layout[:] = h5py.VirtualSource("frames.h5", "data", (2, 4, 4))
    with h5py.File(master, "w") as file:
        file.create_virtual_dataset("entry/data", layout)
    with h5py.File(linked, "w") as file:
        file["patterns"] = h5py.ExternalLink("diffraction.h5", "entry/data")
    for source, outputs in ((master, (frames, product, master)), (linked, (master, frames))):
        for path in outputs:
            with pytest.raises(ConfigError, match="would replace"):
                check_outputs({"--test_data": source}, [("--export", path)])
    check_outputs({"--test_data": linked}, [("--export", product)])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["reconstruction.npz", "wts.h5.zip", "metrics.csv"])
def test_a_training_does_not_replace_its_scan(
    backend: str, name: str, small_scan: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    scan = folder / name
    scan.write_bytes(small_scan.read_bytes())
    before = content(tmp_path)
    config = TrainingConfig(ModelConfig(N=32), scan, output_dir=folder, backend=backend)
    with pytest.raises(ConfigError, match="--train_data_file"):
        train(config)
    config = TrainingConfig(ModelConfig(N=32), small_scan, scan, output_dir=folder, backend=backend)
    with pytest.raises(ConfigError, match="--test_data_file"):
        train(config)
    assert content(tmp_path) == before


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_inference_replaces_neither_its_scan_nor_a_training(
    backend: str, small_scan: Path, tmp_path: Path
) -> None:
    scan = tmp_path / "scan.npz"
    scan.write_bytes(small_scan.read_bytes())
    trained, earlier = tmp_path / "trained", tmp_path / "earlier"
    for folder, settings in ((trained, {"nepochs": 3}), (earlier, {"model_path": "x"})):
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({"config": settings}))
        (folder / "wts.h5.zip").write_bytes(b"model")
    (tmp_path / "link.h5").symlink_to(scan)
    before = content(tmp_path)

    def refused(words: str, **settings: Any) -> None:
        config = InferenceConfig(
            ModelConfig(), Path("pretrained"), backend=backend, **{"test_data_file": scan, **settings}
        )
        with pytest.raises(ConfigError, match=words):
            infer(config)

    refused("folder of a training run", output_dir=trained)
    refused("would replace", output_dir=tmp_path / "new", export=tmp_path / "link.h5")
    with (tmp_path / "no_scan.npz").open("wb"):
        pass
    # Before the scan is read: this one cannot be.
    refused("folder of a training run", output_dir=trained, test_data_file=tmp_path / "no_scan.npz")
    (tmp_path / "no_scan.npz").unlink()
    assert content(tmp_path) == before
    assert not holds_training(earlier)


def test_a_folder_is_that_of_a_training_by_its_record_or_its_model(tmp_path: Path) -> None:
    assert not holds_training(tmp_path / "absent")
    assert not holds_training(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    assert holds_training(tmp_path)
    (tmp_path / "config.json").write_text('{"config": {"model_path": "pretrained"}}')
    assert not holds_training(tmp_path)
    (tmp_path / "config.json").write_text("damaged")
    assert holds_training(tmp_path)


@pytest.mark.parametrize("settings", [{"nepochs": 3}, {"model_path": "x"}])
def test_an_evaluation_does_not_replace_the_scores_of_a_run(
    settings: dict[str, Any], small_scan: Path, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"config": settings}))
    (tmp_path / "metrics.json").write_text("{}")
    with pytest.raises(ConfigError, match="folder of a run"):
        evaluate(Request(tmp_path, truth=small_scan), tmp_path)
    assert (tmp_path / "metrics.json").read_text() == "{}"


def test_every_file_that_a_run_writes_is_known(
    small_run: tuple[Path, Any], small_scan: Path, infer_command: Callable[..., Any], tmp_path: Path
) -> None:
    def plain(folder: Path) -> set[str]:
        return {path.name for path in folder.iterdir() if path.is_file()}

    assert plain(small_run[0]) <= set(TRAINING_FILES)
    pictures = tmp_path / "pictures"
    flags = ("--log_patch_stats",)
    assert infer_command(small_run[0], small_scan, pictures, *flags).code == 0
    assert plain(pictures) <= set(RECONSTRUCTION_FILES)
    # A second inference may follow in the same folder.
    assert infer_command(small_run[0], small_scan, pictures).code == 0
    request = Request(pictures, truth=small_scan, reference=small_run[0], test_data=small_scan)
    evaluate(request, tmp_path / "scores")
    assert plain(tmp_path / "scores") <= set(EVALUATION_FILES)


def test_commands_refuse_it_before_any_work(
    small_scan: Path,
    run_command: Callable[..., Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, picture = tmp_path / "run", tmp_path / "picture.png"
    folder.mkdir()
    settings = folder / "config.json"
    settings.write_text('{"seed": 3}')
    picture.write_bytes(b"picture")
    before = content(tmp_path)
    end = ("--output_dir", folder, "--config", settings)
    for words in (
        ("train", "--train_data_file", small_scan),
        ("inference", "--model_path", "pretrained", "--test_data", small_scan),
    ):
        done = run_command(*words, *end)
        assert (done.code, len(done.err.splitlines())) == (2, 1), done.err
        assert "--output_dir: it would replace a file that this run reads" in done.err
        assert "--config" in done.err
    settings.write_text("{}")
    done = run_command("train", "--ptycho_dir", small_scan, *end)
    assert (done.code, "which is --config" in done.err) == (2, True), done.err
    settings.write_text('{"seed": 3}')
    words = ("--output", tmp_path / "scan.npz", "--preview", picture, "--picture", picture)
    assert simulate_command([str(word) for word in words]) == 2
    assert "--preview: it would replace a file that this run reads" in capsys.readouterr().err
    assert content(tmp_path) == before
