"""Bad input: one line on stderr that names file, key, value and mend, status 2, and nothing half-written."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ptycho.config.config import ModelConfig, TrainingConfig
from ptycho.data.npz import read_npz, write_npz
from ptycho.process.interrupts import Terminated
from ptycho.run.engines import LAST, resume_advice
from ptycho.run.job import TrainingJob

Command = Callable[..., Any]
Arrays = dict[str, np.ndarray]
PER_PATTERN = ("diff3d", "xcoords", "ycoords", "xcoords_start", "ycoords_start", "scan_index")


def faults(done: Any, folder: Path, *words: str) -> list[str]:
    """Return what is wrong with the answer to bad input: nothing where it is as it should be."""
    lines = done.err.splitlines()
    found = []
    if done.code != 2:
        found.append(f"exit status {done.code}")
    if len(lines) != 1 or not lines[0].startswith("error: "):
        found.append(f"{len(lines)} lines on stderr: {done.err[:300]}")
    if "Traceback" in done.out + done.err:
        found.append("a traceback")
    found += [f"no {word!r} in {done.err}" for word in words if word not in done.err]
    if not done.err.rstrip().endswith((".", "?")):
        found.append("no sentence at the end that says what to do")
    left = [path.name for path in folder.rglob("*") if path.is_file()] if folder.is_dir() else []
    if left:
        found.append(f"files left behind: {left}")
    return found


def test_the_judge_of_answers_sees_every_planted_fault(tmp_path: Path, run_command: Command) -> None:
    done = run_command("train", "--train_data_file", tmp_path / "no.npz", "--output_dir", tmp_path / "out")
    assert faults(done, tmp_path / "out", "no.npz") == []
    assert faults(done, tmp_path / "out", "other.npz")
    assert faults(done._replace(code=0), tmp_path / "out")
    assert faults(done._replace(err=""), tmp_path / "out")
    assert faults(done._replace(err="Traceback (most recent call last):\n" + done.err), tmp_path / "out")
    assert faults(done._replace(err="error: bad"), tmp_path / "out")
    (tmp_path / "half.npz").touch()
    assert faults(done, tmp_path)


def _nan(arrays: Arrays) -> None:
    arrays["diff3d"] = np.full(arrays["diff3d"].shape, np.nan, dtype=np.float32)


def _negative(arrays: Arrays) -> None:
    arrays["diff3d"] = np.full(arrays["diff3d"].shape, -7, dtype=np.int32)


def _flat(arrays: Arrays) -> None:
    arrays["diff3d"] = arrays["diff3d"][0]


def _no_probe(arrays: Arrays) -> None:
    arrays["probe"] = arrays.pop("probeGuess")


def _no_positions(arrays: Arrays) -> None:
    del arrays["xcoords"]


def _few_positions(arrays: Arrays) -> None:
    arrays["ycoords"] = arrays["ycoords"][:-1]


def _small_probe(arrays: Arrays) -> None:
    arrays["probeGuess"] = arrays["probeGuess"][:16, :16]


def _few(arrays: Arrays) -> None:
    arrays.update({key: arrays[key][:3] for key in PER_PATTERN})


def _dark(arrays: Arrays) -> None:
    arrays["diff3d"] = np.zeros_like(arrays["diff3d"])


def _wild(arrays: Arrays) -> None:
    arrays["ycoords"] = np.full_like(arrays["ycoords"], np.inf)


@pytest.mark.parametrize(
    ("damage", "flags", "words"),
    [
        (_nan, (), ("bad.npz", "diff3d", "nan", "expected photons", "Check the export")),
        (_negative, (), ("bad.npz", "diff3d", "-7", "expected photons", "Check the export")),
        (_flat, (), ("bad.npz", "diff3d", "(32, 32)", "(patterns, N, N)")),
        (_no_probe, (), ("bad.npz", "'probeGuess' is missing", "--probe-key probe")),
        (_no_positions, (), ("bad.npz", "'xcoords' is missing", "found: ")),
        (_few_positions, (), ("bad.npz", "ycoords 63", "64 patterns", "--match-lengths head")),
        (_small_probe, (), ("bad.npz", "probeGuess", "(16, 16)", "(32, 32)")),
        (_few, ("--gridsize", 2), ("bad.npz", "too few patterns for gridsize 2", "got 3", "at least 4")),
        (_dark, (), ("bad.npz", "diff3d")),
        (_wild, (), ("bad.npz", "ycoords", "inf", "row 0")),
    ],
)
def test_a_scan_that_breaks_the_data_contract_is_refused(
    damage: Callable[[Arrays], None],
    flags: tuple[object, ...],
    words: tuple[str, ...],
    small_scan: Path,
    train_command: Command,
    tmp_path: Path,
) -> None:
    arrays = read_npz(small_scan)
    damage(arrays)
    write_npz(tmp_path / "bad.npz", arrays)
    done = train_command(tmp_path / "bad.npz", tmp_path / "out", *flags)
    assert faults(done, tmp_path / "out", *words) == []


@pytest.mark.parametrize("command", ["train", "infer"])
def test_a_refused_scan_leaves_no_folder_that_was_not_there(
    command: str, small_scan: Path, train_command: Command, infer_command: Command, tmp_path: Path
) -> None:
    arrays = read_npz(small_scan)
    _no_positions(arrays)
    write_npz(tmp_path / "bad.npz", arrays)
    (tmp_path / "old").mkdir()
    for folder in (tmp_path / "new" / "below", tmp_path / "old" / "below", tmp_path / "old"):
        if command == "train":
            done = train_command(tmp_path / "bad.npz", folder)
        else:
            done = infer_command(Path("pretrained"), tmp_path / "bad.npz", folder)
        assert faults(done, folder, "bad.npz", "'xcoords' is missing") == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.npz", "old"]
    assert list((tmp_path / "old").iterdir()) == []


def test_a_file_that_is_no_archive_or_a_cut_one_is_refused(
    small_scan: Path, train_command: Command, tmp_path: Path
) -> None:
    content = small_scan.read_bytes()
    cases = {
        "text.npz": (b"these are my patterns", "not an NPZ archive"),
        "cut.npz": (content[: len(content) // 2], "cut short"),
        "empty.npz": (b"", "an empty file"),
        "damaged.npz": (content[:2000] + b"\xff" * 40 + content[2040:], "damaged"),
    }
    for name, (written, words) in cases.items():
        (tmp_path / name).write_bytes(written)
        done = train_command(tmp_path / name, tmp_path / "out")
        assert faults(done, tmp_path / "out", name, words) == []


def test_pickled_patterns_are_refused_and_never_run(train_command: Command, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "sprung",))

    trap = np.array([Trap()], dtype=object)
    np.savez(tmp_path / "bad.npz", diff3d=trap, xcoords=trap, ycoords=trap, probeGuess=trap)
    done = train_command(tmp_path / "bad.npz", tmp_path / "out")
    assert faults(done, tmp_path / "out", "bad.npz") == []
    assert not (tmp_path / "sprung").exists()


def test_a_missing_file_suggests_its_neighbour(
    small_scan: Path, train_command: Command, tmp_path: Path
) -> None:
    done = train_command(small_scan.with_name("smal.npz"), tmp_path / "out")
    assert faults(done, tmp_path / "out", "smal.npz", "no such file", "Did you mean small.npz?") == []


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--architecture", "unroled"), ("architecture", "'unroled'", "cnn, unrolled", "'unrolled'?")),
        (("--scheduler", "cosin"), ("scheduler", "'cosin'", "Cosine")),
        (("--logger", "wandb"), ("--logger", "'wandb'", "csv, none, tensorboard, mlflow")),
        (("--logger", "mlflow", "--disable_mlflow"), ("--logger", "--disable-mlflow", "contradict")),
        (("--accelerator", "tpu"), ("contradict", "'tpu'", "--device")),
        (("--accelerator", "cuda"), ("--accelerator", "'cuda'", "'cpu'", "contradict")),
        (
            ("--measurement_domain", "counts", "--scale_contract_version", "legacy_v1"),
            ("--measurement-domain", "--scale-contract-version", "contradict"),
        ),
        (("--measurement_domain", "photons"), ("--measurement-domain", "'photons'", "counts, amplitude")),
        (("--gridsize", "0"), ("gridsize", "0", "an integer >= 1")),
        (("--gridsize", "two"), ("--gridsize", "'two'")),
        (("--batch_size", "3"), ("batch_size", "3", "a power of two")),
        (("--max_epochs", "0"), ("nepochs", "0", "an integer >= 1")),
        (("--learning_rate", "-1"), ("learning_rate", "-1.0", "> 0")),
        (("--n_images", "-5"), ("n_groups", "-5", ">= 1")),
        (("--checkpoint_mode", "avg"), ("checkpoint_mode", "'avg'", "min, max")),
        (("--checkpoint_monitor", "ssim"), ("checkpoint_monitor", "'ssim'", "val_loss or train_loss")),
        (("--probe_mask", "maybe"), ("--probe-mask", "'maybe'", "true or false")),
        (("--config", "no.yaml"), ("--config", "'no.yaml'", "Check the path")),
        (("--resume", "no.ckpt"), ("--resume", "'no.ckpt'", "Check the path")),
        (("--max_epoch", "3"), ("'--max-epoch'", "Did you mean --max-epochs?")),
        (("--ptycho_dir", "folder"), ("--ptycho_dir", "cannot be combined", "--train_data_file")),
    ],
)
def test_a_flag_that_cannot_work_is_refused(
    flags: tuple[str, ...], words: tuple[str, ...], small_scan: Path, train_command: Command, tmp_path: Path
) -> None:
    done = train_command(small_scan, tmp_path / "out", *flags)
    assert faults(done, tmp_path / "out", *words) == []
    assert done.out == "" or "--checkpoint_monitor" in flags


def test_a_settings_file_with_an_unknown_name_is_refused(
    small_scan: Path, train_command: Command, tmp_path: Path
) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text("gridsiz: 2\n", encoding="utf-8")
    done = train_command(small_scan, tmp_path / "out", "--config", path)
    assert faults(done, tmp_path / "out", "'gridsiz'", "Did you mean 'gridsize'?") == []
    path.write_text("gridsize: [1,\n", encoding="utf-8")
    done = train_command(small_scan, tmp_path / "out", "--config", path)
    assert faults(done, tmp_path / "out", "settings.yaml", "not valid YAML") == []


def test_an_output_folder_that_cannot_be_written_is_refused(
    small_scan: Path,
    small_run: tuple[Path, Any],
    train_command: Command,
    infer_command: Command,
    tmp_path: Path,
) -> None:
    blocked = tmp_path / "file" / "out"
    blocked.parent.write_text("a file, not a folder", encoding="utf-8")
    for done in (
        train_command(small_scan, blocked),
        infer_command(small_run[0], small_scan, blocked),
    ):
        assert faults(done, blocked, str(blocked), "cannot be written to", "--output_dir") == []


def test_a_test_scan_of_another_pattern_size_is_refused(
    small_scan: Path, demo_scan: Path, train_command: Command, tmp_path: Path
) -> None:
    done = train_command(small_scan, tmp_path / "out", "--test_data_file", demo_scan)
    assert faults(done, tmp_path / "out", "demo_64.npz", "small.npz", "N=64", "N=32") == []


def test_a_checkpoint_to_resume_from_is_looked_at_first(
    small_scan: Path, small_run: tuple[Path, Any], train_command: Command, tmp_path: Path
) -> None:
    last = small_run[0] / "checkpoints" / "last.ckpt"
    cut = tmp_path / "cut.ckpt"
    cut.write_bytes(last.read_bytes()[:4000])
    for flags, words in (
        (("--resume", cut, "--max_epochs", 2), ("cut.ckpt", "damaged")),
        (("--resume", small_scan, "--max_epochs", 2), ("small.npz", "not a checkpoint")),
        (("--resume", last, "--max_epochs", 1), ("last.ckpt", "1 epochs", "Raise --max_epochs")),
        (("--resume", last, "--max_epochs", 2, "--architecture", "cnn"), ("last.ckpt", "another network")),
        (
            ("--resume", last, "--max_epochs", 2, "--torch-loss-mode", "amplitude"),
            ("last.ckpt", "another loss", "Pass --torch-loss-mode hidden"),
        ),
        (
            ("--resume", last, "--max_epochs", 2, "--init-weights", "pretrained"),
            ("last.ckpt", "--init-weights", "--resume"),
        ),
    ):
        done = train_command(small_scan, tmp_path / "out", *flags)
        assert faults(done, tmp_path / "out", *words) == []


def test_a_network_to_begin_with_that_is_not_there_or_does_not_fit_is_refused(
    small_scan: Path, small_run: tuple[Path, Any], train_command: Command, tmp_path: Path
) -> None:
    for words, told in (
        (("--init-weights", tmp_path / "nowhere"), ("nowhere", "no trained network")),
        (("--init-weights", "word"), ("'word'", "pretrained, none")),
        (
            ("--init-weights", "pretrained", "--unrolled-likelihood", "amplitude"),
            ("unrolled_likelihood poisson", "expected amplitude"),
        ),
        (("--init-weights", "pretrained", "--architecture", "cnn"), ("architecture unrolled", "cnn")),
        (("--init-weights", small_run[0], "--unrolled_width", 4), ("unrolled_width 24", "expected 4")),
    ):
        done = train_command(small_scan, tmp_path / "out", *words)
        assert faults(done, tmp_path / "out", "--init-weights", *told) == []


def _damaged_models(run: Path, folder: Path) -> dict[str, tuple[str, ...]]:
    """Write models that must not load; return what is said about each."""
    last, bundle = run / "checkpoints" / "last.ckpt", run / "wts.h5.zip"
    content = bytearray(bundle.read_bytes())
    (folder / "cut.ckpt").write_bytes(last.read_bytes()[:5000])
    (folder / "noise.ckpt").write_bytes(b"noise" * 100)
    content[len(content) // 2] ^= 1
    (folder / "flipped.zip").write_bytes(content)
    with zipfile.ZipFile(bundle) as archive:
        manifest, weights = json.loads(archive.read("manifest.json")), bytearray(archive.read("weights.npz"))
    weights[len(weights) // 2] ^= 1
    for name, text, payload in (
        ("forged.zip", manifest, bytes(weights)),
        ("newer.zip", {**manifest, "format_version": 99}, None),
    ):
        with zipfile.ZipFile(bundle) as archive, zipfile.ZipFile(folder / name, "w") as out:
            out.writestr("manifest.json", json.dumps(text))
            out.writestr("weights.npz", payload or archive.read("weights.npz"))
    return {
        "cut.ckpt": ("damaged", "train again"),
        "noise.ckpt": ("damaged", "train again"),
        "flipped.zip": ("damaged",),
        "forged.zip": ("SHA-256", "Copy the file again"),
        "newer.zip": ("version 99", "expected 1"),
        "nothing.ckpt": ("no such file", "wts.h5.zip, checkpoints/best-checkpoint.ckpt"),
        "": ("no model in this folder", "wts.h5.zip, checkpoints/best-checkpoint.ckpt"),
    }


def test_a_damaged_or_foreign_model_is_refused(
    small_scan: Path, small_run: tuple[Path, Any], infer_command: Command, tmp_path: Path
) -> None:
    models = tmp_path / "models"
    models.mkdir()
    for name, words in _damaged_models(small_run[0], models).items():
        done = infer_command(models / name, small_scan, tmp_path / "out")
        assert faults(done, tmp_path / "out", name, *words) == [], name
    done = infer_command(small_scan, small_scan, tmp_path / "out")
    assert faults(done, tmp_path / "out", "small.npz", "not a model bundle") == []


def test_a_model_of_another_pattern_size_is_refused(
    demo_scan: Path, small_run: tuple[Path, Any], infer_command: Command, tmp_path: Path
) -> None:
    done = infer_command(small_run[0], demo_scan, tmp_path / "out")
    assert faults(done, tmp_path / "out", "demo_64.npz", "wts.h5.zip", "N=64", "N=32") == []


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--n_images", "0"), ("n_groups", "0", ">= 1")),
        (("--n_images", "-4"), ("n_groups", "-4", ">= 1")),
        (("--patch_weighting", "best"), ("--patch-weighting", "'best'", "'probe'")),
        (("--backend", "jax"), ("'jax'", "pytorch, tensorflow")),
        (("--run_id", "abc"), ("--infer_dir is missing",)),
    ],
)
def test_a_flag_of_inference_that_cannot_work_is_refused(
    flags: tuple[str, ...],
    words: tuple[str, ...],
    small_scan: Path,
    small_run: tuple[Path, Any],
    infer_command: Command,
    tmp_path: Path,
) -> None:
    done = infer_command(small_run[0], small_scan, tmp_path / "out", *flags)
    assert faults(done, tmp_path / "out", *words) == []


def test_debug_shows_the_traceback(tmp_path: Path, run_command: Command) -> None:
    words = ("--train_data_file", tmp_path / "no.npz", "--output_dir", tmp_path / "out", "--debug")
    with pytest.raises(ValueError, match=r"no\.npz: no such file"):
        run_command("train", *words)


def test_our_own_fault_is_status_1_in_one_line(
    small_scan: Path, train_command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(job: object) -> None:
        raise ZeroDivisionError("planted")

    monkeypatch.setattr("ptycho_torch.engine.fit", broken)
    done = train_command(small_scan, tmp_path / "out")
    assert done.code == 1
    (line,) = done.err.splitlines()
    assert line.startswith("internal error: ZeroDivisionError: planted.")
    assert "--debug" in line


@pytest.mark.parametrize(("stop", "code"), [(KeyboardInterrupt, 130), (Terminated, 143)])
@pytest.mark.parametrize(
    ("epochs", "flags", "said"),
    [
        (0, (), "no epoch was finished, so there is nothing to resume"),
        (1, (), "the last finished epoch is in {last}; --resume {last} continues it"),
        (1, ("--disable_checkpointing",), "this run writes no checkpoint, so there is nothing to resume"),
    ],
)
def test_an_interrupted_training_says_what_is_true_at_that_moment(
    stop: type[BaseException],
    code: int,
    epochs: int,
    flags: tuple[str, ...],
    said: str,
    small_scan: Path,
    train_command: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    last = tmp_path / "out" / "checkpoints" / "last.ckpt"

    def interrupted(job: TrainingJob) -> None:
        if epochs and job.execution.enable_checkpointing:
            last.parent.mkdir()
            last.write_bytes(b"an epoch")
        raise stop

    monkeypatch.setattr("ptycho_torch.engine.fit", interrupted)
    done = train_command(small_scan, tmp_path / "out", *flags)
    assert (done.code, done.err) == (code, f"interrupted: {said.format(last=last)}\n")


def test_an_older_checkpoint_is_not_that_of_an_interrupted_run(tmp_path: Path) -> None:
    for backend, name in LAST.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"an epoch")
        config = TrainingConfig(ModelConfig(), output_dir=tmp_path, backend=backend)
        began = path.stat().st_mtime
        own = resume_advice(config, checkpoints=True, resumed=None, since_s=began - 1)
        assert own == f"the last finished epoch is in {path}; --resume {path} continues it"
        assert "nothing to resume" in resume_advice(config, checkpoints=True, resumed=None, since_s=began + 1)
        again = resume_advice(config, checkpoints=True, resumed=path, since_s=began + 1)
        assert again.startswith(f"no further epoch was finished; --resume {path}")


def test_an_interrupted_inference_speaks_of_no_checkpoint(
    small_scan: Path, infer_command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ptycho_torch.engine.reconstruct", interrupted)
    done = infer_command("pretrained", small_scan, tmp_path / "out")
    assert (done.code, done.err) == (130, "interrupted: no file was left half-written\n")
