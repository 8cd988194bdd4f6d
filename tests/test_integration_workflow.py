"""The TensorFlow commands from a file to pictures: ``ptycho.train``, then ``ptycho.inference``."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ptycho.data.npz import read_npz
from ptycho.networks.bundle import read_bundle

PICTURE_BYTES = 1000
"""A PNG of one flat colour is smaller."""
CHECKPOINTS = ("checkpoints/best-checkpoint.h5.zip", "checkpoints/last.h5.zip")
PICTURES = ("reconstructed_amplitude.png", "reconstructed_phase.png")
ALWAYS = ("reconstruction.npz", "config.json", "metrics.json", *PICTURES)
OF_TRAINING = ("wts.h5.zip", "history.json", "loss.png", "metrics.csv", *CHECKPOINTS)

pytestmark = [pytest.mark.slow, pytest.mark.pictures]


def run(entry_point: str, *words: object) -> tuple[int, str, str]:
    """Run an entry point's ``cli_main`` in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = importlib.import_module(f"ptycho.{entry_point}").cli_main([str(word) for word in words])
    return code, out.getvalue(), err.getvalue()


@pytest.fixture(scope="module", params=["unrolled", "cnn"])
def trained(
    request: pytest.FixtureRequest,
    small_scan: Path,
    require: Callable[[str], None],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, str]:
    """Train two epochs; return the folder and what was printed."""
    require("tensorflow")
    folder = tmp_path_factory.mktemp(request.param) / "run"
    size = {"unrolled": ("--unrolled_steps", 6), "cnn": ("--n_filters_scale", 1)}[request.param]
    code, out, err = run(
        "train",
        "--train_data_file",
        small_scan,
        "--output_dir",
        folder,
        "--max_epochs",
        2,
        "--gridsize",
        2,
        "--n_images",
        32,
        "--architecture",
        request.param,
        *size,
        "--logger",
        "csv",
        "--accelerator",
        "cpu",
    )
    assert (code, err) == (0, "")
    return folder, out


def test_training_writes_everything_and_prints_where(trained: tuple[Path, str]) -> None:
    folder, out = trained
    for name in (*ALWAYS, *OF_TRAINING):
        assert (folder / name).is_file(), name
    for name in (*PICTURES, "loss.png"):
        assert (folder / name).stat().st_size > PICTURE_BYTES
        assert str(folder / name) in out
    assert "✓ params.cfg populated: N=32, gridsize=2, n_groups=32" in out.splitlines()
    assert json.loads((folder / "config.json").read_text())["config"]["backend"] == "tensorflow"
    assert read_bundle(folder / "wts.h5.zip").backend == "tensorflow"
    history = json.loads((folder / "history.json").read_text())
    assert [len(values) for values in history.values()] == [2, 2]


def test_inference_repeats_the_object_of_the_training(
    trained: tuple[Path, str], small_scan: Path, tmp_path: Path
) -> None:
    folder, _ = trained
    code, out, err = run(
        "inference",
        "--model_path",
        folder,
        "--test_data",
        small_scan,
        "--output_dir",
        tmp_path,
        "--select",
        "off",
        "--accelerator",
        "cpu",
    )
    assert (code, err) == (0, "")
    for name in ALWAYS:
        assert (tmp_path / name).is_file(), name
    assert (tmp_path / "reconstructed_phase.png").stat().st_size > PICTURE_BYTES
    assert "✓ params.cfg populated: N=32, gridsize=2, n_groups=None" in out.splitlines()
    first, second = (read_npz(path / "reconstruction.npz")["object"] for path in (folder, tmp_path))
    np.testing.assert_allclose(second, first, atol=1e-5 * np.abs(first).max())


def test_a_broken_off_training_can_be_used_through_its_checkpoint(
    trained: tuple[Path, str], small_scan: Path, tmp_path: Path
) -> None:
    folder, _ = trained
    left = tmp_path / "left"
    (left / "checkpoints").mkdir(parents=True)
    (left / CHECKPOINTS[0]).write_bytes((folder / CHECKPOINTS[0]).read_bytes())
    words = ["--test_data", small_scan, "--output_dir", tmp_path / "out", "--quiet", "--accelerator", "cpu"]
    assert run("inference", "--model_path", left, *words) == (0, "", "")
    (left / CHECKPOINTS[0]).unlink()
    code, _, err = run("inference", "--model_path", left, *words)
    assert code == 2
    expected = f"error: {left}: no model in this folder (expected one of wts.h5.zip, {CHECKPOINTS[0]}, "
    assert err.startswith(expected)
    assert err.count("\n") == 1


def test_refinement_lowers_the_misfit(trained: tuple[Path, str], small_scan: Path, tmp_path: Path) -> None:
    folder, _ = trained
    code, out, err = run(
        "inference",
        "--model_path",
        folder,
        "--test_data",
        small_scan,
        "--output_dir",
        tmp_path,
        "--accelerator",
        "cpu",
        "--refine",
        15,
    )
    assert (code, err) == (0, "")
    line = next(line for line in out.splitlines() if line.startswith("refined in"))
    before, after = (float(word) for word in line.replace(",", "").split() if "." in word)
    noise = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))["misfit_expected"]
    assert after - noise < 0.5 * (before - noise)


def test_the_entry_points_load_no_framework(run_python: Callable[..., object]) -> None:
    code = (
        "import sys, ptycho.train, ptycho.inference, ptycho.tf\n"
        "print([name for name in ('tensorflow', 'keras', 'torch', 'numpy') if name in sys.modules])"
    )
    done = run_python("-c", code)
    assert (done.stdout, done.stderr) == ("[]\n", "")


@pytest.mark.parametrize("entry_point", ["train", "inference"])
def test_an_entry_point_answers_bad_input_with_one_line(
    entry_point: str, run_python: Callable[..., object]
) -> None:
    done = run_python("-m", f"ptycho.{entry_point}", "--output_dir", "nowhere")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: --")
    assert done.stderr.count("\n") == 1
