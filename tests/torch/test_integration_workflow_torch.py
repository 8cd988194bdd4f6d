"""From file to pictures with PyTorch: quality, units, axes and keys of a file, and what a failure leaves."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ptycho.data.npz import read_npz, write_npz
from ptycho.evaluation.gauge import fit_gauge
from ptycho.evaluation.metrics import complex_nrmse
from ptycho.params import cfg
from ptycho.simulation.simulate import SimulationOptions, expected_counts, make_probe, simulate

Command = Callable[..., Any]
SAME_SCENE = 0.02
"""Largest difference of two objects of one scene at different doses, after the gauge fit."""


def object_and_mask(folder: Path) -> tuple[NDArray[np.complex64], NDArray[np.bool_]]:
    """Return the reconstructed object of an output folder and the pixels that were scanned."""
    stored = read_npz(folder / "reconstruction.npz", ["object", "coverage"])
    return stored["object"], stored["coverage"] > 0.05


def disagreement(first: Path, second: Path) -> float:
    """Return the NRMSE of two reconstructions, after the gauge fit, where both were scanned."""
    (a, seen_a), (b, seen_b) = object_and_mask(first), object_and_mask(second)
    mask = seen_a & seen_b
    return complex_nrmse(fit_gauge(a, b, mask), b, mask)


def variant(scan: Path, path: Path, **changes: NDArray[Any] | None) -> Path:
    """Write a scan with other arrays and without its truth; None takes an array out."""
    arrays = {**read_npz(scan), "object_is_truth": None, "objectGuess": None, **changes}
    write_npz(path, {key: value for key, value in arrays.items() if value is not None})
    return path


def test_three_epochs_reconstruct_the_bundled_scan_sharply(
    demo_run: tuple[Path, Any], demo_scan: Path, infer_command: Command, tmp_path: Path
) -> None:
    done = infer_command(demo_run[0], demo_scan, tmp_path / "out")
    assert done.code == 0, done.err
    for folder in (demo_run[0], tmp_path / "out"):
        scores = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        assert scores["complex_nrmse"] < 0.03
        assert scores["phase_psnr_db"] > 30
        assert scores["phase_ssim"] > 0.9
        obj, mask = object_and_mask(folder)
        assert np.abs(obj[mask]).std() > 0.02
        assert np.angle(obj[mask]).std() > 0.1


def test_train_and_infer_as_two_processes(
    small_scan: Path, tmp_path: Path, run_python: Callable[..., CompletedProcess[str]]
) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    trained = run_python(
        "-m", "ptycho_torch.train", "--train_data_file", str(small_scan), "--output_dir", str(run),
        "--max_epochs", "2", "--n_images", "64", "--gridsize", "1", "--batch_size", "4", "--device", "cpu",
        "--unrolled_steps", "4", "--disable_mlflow",
    )  # fmt: skip
    assert (trained.returncode, trained.stderr) == (0, "")
    assert trained.stdout.startswith("✓ params.cfg populated: N=32, gridsize=1, n_groups=64\n")
    assert "\r" not in trained.stdout
    assert (run / "checkpoints" / "last.ckpt").is_file()
    inferred = run_python(
        "-m", "ptycho_torch.inference", "--model_path", str(run), "--test_data", str(small_scan),
        "--output_dir", str(out), "--n_images", "32", "--device", "cpu",
    )  # fmt: skip
    assert (inferred.returncode, inferred.stderr) == (0, "")
    for name in ("reconstructed_amplitude.png", "reconstructed_phase.png"):
        assert (out / name).stat().st_size > 1000


@pytest.mark.parametrize("architecture", ["cnn", "unrolled"])
def test_the_dose_does_not_change_the_object(
    architecture: str, train_command: Command, tmp_path: Path
) -> None:
    options = SimulationOptions(n_px=32, n_y=8, n_x=8, step_px=3.0, photons=1.0, seed=5)
    arrays = simulate(options)
    positions = np.stack([arrays["ycoords"], arrays["xcoords"]], axis=1)
    counts = expected_counts(arrays["objectGuess"].astype(complex), make_probe(options), positions)
    for dose in (1e4, 1e8):
        changes = {"diff3d": dose * counts, "nphotons": None, "objectGuess": None, "object_is_truth": None}
        scan = {key: value for key, value in {**arrays, **changes}.items() if value is not None}
        write_npz(tmp_path / f"{dose:g}.npz", scan)
        steps = ("--unrolled_steps", 12) if architecture == "unrolled" else ()
        flags = ("--measurement_domain", "counts", "--architecture", architecture, *steps)
        done = train_command(tmp_path / f"{dose:g}.npz", tmp_path / f"{dose:g}", *flags)
        assert done.code == 0, done.err
    assert disagreement(tmp_path / "10000", tmp_path / "1e+08") < SAME_SCENE
    obj, mask = object_and_mask(tmp_path / "1e+08")
    assert 0.3 < np.abs(obj[mask]).mean() < 1.5


def test_amplitude_and_counts_of_one_scan_give_one_object(
    small_scan: Path, small_run: tuple[Path, Any], train_command: Command, tmp_path: Path
) -> None:
    counts = read_npz(small_scan)["diff3d"]
    amplitude = variant(
        small_scan, tmp_path / "amplitude.npz", diff3d=np.sqrt(counts.astype(float)), nphotons=None
    )
    done = train_command(amplitude, tmp_path / "amplitude")
    assert done.code == 0, done.err
    assert "scale: amplitude" in done.out
    assert "scale: counts" in small_run[1].out
    assert disagreement(tmp_path / "amplitude", small_run[0]) < 1e-3
    # Counts taken for amplitude are the mistake that this would miss otherwise.
    mistaken = train_command(small_scan, tmp_path / "mistaken", "--measurement_domain", "amplitude")
    assert mistaken.code == 0, mistaken.err
    assert disagreement(tmp_path / "mistaken", small_run[0]) > 0.05


def test_pattern_axis_last_and_the_older_key_are_read(
    small_scan: Path, small_run: tuple[Path, Any], train_command: Command, tmp_path: Path
) -> None:
    stack = np.moveaxis(read_npz(small_scan)["diff3d"], 0, 2)
    assert stack.shape == (32, 32, 64)
    other = variant(small_scan, tmp_path / "other.npz", diff3d=None, diffraction=stack)
    done = train_command(other, tmp_path / "other")
    assert done.code == 0, done.err
    np.testing.assert_array_equal(object_and_mask(tmp_path / "other")[0], object_and_mask(small_run[0])[0])


def test_a_test_scan_judges_the_training(small_scan: Path, train_command: Command, tmp_path: Path) -> None:
    brighter = variant(
        small_scan, tmp_path / "test.npz", diff3d=read_npz(small_scan)["diff3d"].astype(int) * 4
    )
    losses = []
    for name, test in (("same", small_scan), ("brighter", brighter)):
        done = train_command(small_scan, tmp_path / name, "--test_data_file", test, "--quiet")
        assert done == (0, "", "")
        history = json.loads((tmp_path / name / "history.json").read_text(encoding="utf-8"))
        losses.append(history["val_loss"][0])
    assert losses[0] != losses[1]


def _explode(*_: Any) -> None:
    raise RuntimeError("planted in training")


def test_the_scratch_folder_is_gone_after_success_and_after_an_error(
    small_scan: Path, train_command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    made: list[str] = []
    make = tempfile.TemporaryDirectory.__init__

    def watched(self: Any, *words: Any, **options: Any) -> None:
        make(self, *words, **options)
        made.append(self.name)

    monkeypatch.setattr(tempfile.TemporaryDirectory, "__init__", watched)
    assert train_command(small_scan, tmp_path / "run").code == 0
    assert made
    assert all(Path(name).parent == scratch for name in made)
    assert list(scratch.iterdir()) == []
    count = len(made)
    monkeypatch.setattr("ptycho_torch.model.PtychoPINN_Lightning.training_step", _explode)
    assert train_command(small_scan, tmp_path / "run").code == 1
    assert len(made) > count
    assert list(scratch.iterdir()) == []


def test_a_training_that_dies_leaves_the_earlier_results_as_they_were(
    small_scan: Path, train_command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train_command(small_scan, tmp_path / "run").code == 0
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert tmp_path / "run" / "wts.h5.zip" in before
    monkeypatch.setattr("ptycho_torch.model.PtychoPINN_Lightning.training_step", _explode)
    done = train_command(small_scan, tmp_path / "run", "--seed", 9)
    assert done.code == 1
    assert "planted in training" in done.err
    after = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert after == before


def test_nothing_of_a_run_stays_in_params_cfg_of_the_tests(
    small_run: tuple[Path, Any], run_command: Command, small_scan: Path, tmp_path: Path
) -> None:
    before = dict(cfg)
    words = ("--train_data_file", small_scan, "--output_dir", tmp_path / "out", "--max_epochs", 0)
    assert run_command("train", *words).code == 2
    assert dict(cfg) == before
