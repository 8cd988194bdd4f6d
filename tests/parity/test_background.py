"""Scans with counts that no sample scattered, through both backends: given, found, trained on, judged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from judges import random_complex
from runs import CPU, error, reconstructed

from ptycho.config.config import ModelConfig, TrainingConfig
from ptycho.data.npz import read_npz, write_npz
from ptycho.data.prepare import prepare_scan
from ptycho.evaluation.background import background_line
from ptycho.evaluation.comparison import read_reconstruction, stored_fit
from ptycho.evaluation.drift import beam_drift
from ptycho.evaluation.verdict import judge
from ptycho.files.reader import open_scan
from ptycho.physics import diffracted_intensity
from ptycho.physics.detector import Detector
from ptycho.run.engines import find_model, load_engine
from ptycho.run.outputs import write_reconstruction
from ptycho.run.pipeline import train
from ptycho.simulation.simulate import SimulationOptions, simulate
from ptycho.solver.options import RefineOptions

OPTIONS = SimulationOptions(n_px=32, n_y=9, n_x=9, step_px=3.0, photons=1e5, seed=5)
BACKENDS = ["pytorch", "tensorflow"]
ALIKE = 1e-4
"""Two frameworks in single precision after 14 joint steps, relative to the largest value."""
FLAT = RefineOptions(40, start="flat")
FOUND = RefineOptions(40, start="flat", background=True)


def background() -> Any:
    """A quarter of the counts: 2 in every pixel, and a halo of 10 px rms."""
    y, x = np.indices((32, 32)) - 16
    return 2 + 40 * np.exp(-(y**2 + x**2) / 200)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The clean scan, one with a background, and one that gives it too."""
    folder, arrays = tmp_path_factory.mktemp("background"), simulate(OPTIONS)
    counts = arrays["diff3d"].astype(np.uint32)
    more = np.random.default_rng(1).poisson(background(), counts.shape).astype(np.uint32)
    scans = {"clean": {}, "untold": {"diff3d": counts + more}}
    scans["told"] = {**scans["untold"], "background": background()}
    for name, changes in scans.items():
        write_npz(folder / f"{name}.npz", {**arrays, **changes})
    return {name: folder / f"{name}.npz" for name in scans}


@pytest.fixture(scope="module")
def blind(files: dict[str, Path]) -> float:
    """Error where nothing is said about the background."""
    return error(files["untold"], reconstructed(open_scan(files["untold"]), "pytorch", FLAT))


@pytest.mark.parametrize("backend", BACKENDS)
def test_given_or_found_it_costs_little(backend: str, files: dict[str, Path], blind: float) -> None:
    known, unknown = open_scan(files["told"]), open_scan(files["untold"])
    given = reconstructed(known, backend, FLAT)
    found = reconstructed(unknown, backend, FOUND)
    errors = [error(files["untold"], one) for one in (given, found)]
    assert max(errors) < 0.4 * blind
    assert errors[1] < 1.1 * errors[0]
    np.testing.assert_array_equal(given.background, known.background)
    missed = found.background - background()
    assert np.sqrt((missed**2).mean()) < 0.05 * background().max()
    assert abs(missed.mean()) < 0.02 * background().mean()
    for one, scan in ((given, known), (found, unknown)):
        verdict = judge(one.in_scan(scan))
        assert verdict.word == "good"
        assert verdict.numbers["background_mean"] == pytest.approx(background().mean(), rel=0.02)
        assert verdict.numbers["noise_ratio"] == pytest.approx(1.0, abs=0.1)
        drift = beam_drift(one.in_scan(scan))
        assert drift is not None
        assert drift.errors < 4
    assert background_line(given.in_scan(known)).endswith("as given")
    assert background_line(found.in_scan(unknown)).endswith("as found")


@pytest.mark.parametrize("likelihood", ["amplitude", "poisson"])
def test_a_scan_without_a_background_gets_none(likelihood: str, files: dict[str, Path]) -> None:
    scan = open_scan(files["clean"])
    without, found = (
        reconstructed(scan, "pytorch", RefineOptions(40, start="flat", likelihood=likelihood, background=on))
        for on in (False, True)
    )
    assert error(files["clean"], found) < 1.02 * error(files["clean"], without)
    assert found.background.mean() < 0.05
    assert without.background is None


@pytest.mark.parametrize("likelihood", ["amplitude", "poisson"])
def test_both_backends_find_the_same_beside_everything_that_moves(
    likelihood: str, files: dict[str, Path], tmp_path: Path
) -> None:
    bad = np.random.default_rng(4).random((32, 32)) < 0.05
    write_npz(tmp_path / "bad.npz", read_npz(files["told"]) | {"bad_pixels": bad})
    scan = open_scan(tmp_path / "bad.npz")
    moving = RefineOptions(
        14, probe=True, positions=True, frames=True, background=True, likelihood=likelihood, start="flat"
    )
    one, two = (reconstructed(scan, backend, moving) for backend in BACKENDS)
    for name in ("obj", "probe", "positions_yx_px", "frame_gain", "background"):
        values = [np.asarray(getattr(found, name)) for found in (one, two)]
        assert np.abs(values[0] - values[1]).max() < ALIKE * np.abs(values[0]).max(), name
    assert np.isfinite(one.background).all()


def test_frames_of_another_dose_have_one_background(tmp_path: Path) -> None:
    arrays, rng = simulate(OPTIONS), np.random.default_rng(2)
    dose = rng.uniform(0.4, 1.0, len(arrays["diff3d"]))
    thinned = rng.binomial(arrays["diff3d"].astype(np.int64), dose[:, None, None])
    more = rng.poisson(background(), thinned.shape)
    counts = (thinned + more).astype(np.uint32)
    write_npz(tmp_path / "scan.npz", {**arrays, "diff3d": counts, "background": background()})
    scan = open_scan(tmp_path / "scan.npz")
    found = reconstructed(scan, "pytorch", RefineOptions(60, start="flat", frames=True))
    expected = np.sqrt(dose) / np.sqrt(dose).mean()
    # Noise of 4e4 to 1e5 photons moves a factor by 0.3 %, the overlap with its neighbours by as much.
    assert np.std(found.frame_gain / expected) < 0.015
    scan.raw.background = None
    blind = reconstructed(scan, "pytorch", RefineOptions(60, start="flat", frames=True))
    assert np.std(blind.frame_gain / expected) > 0.03


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_network_of_the_package_takes_it_into_account(
    backend: str, files: dict[str, Path], blind: float
) -> None:
    one, two = (reconstructed(open_scan(files[name]), backend) for name in ("told", "untold"))
    assert error(files["told"], one) < 0.6 * error(files["untold"], two)
    assert error(files["told"], one) < 0.6 * blind


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("gain", [1.0, 0.8])
def test_a_gain_of_the_model_acts_on_the_light_alone(backend: str, gain: float) -> None:
    model = load_engine(backend).load(find_model(Path("pretrained"), backend))
    rng = np.random.default_rng(0)
    patches = random_complex(rng, 2, 8, 8).astype(np.complex64)
    probes = random_complex(rng, 2, 1, 8, 8).astype(np.complex64)
    beside = rng.uniform(0, 3, (8, 8)).astype(np.float32)
    if backend == "pytorch":
        model.log_gain.data.fill_(np.log(gain))
    else:
        model.log_gain.assign(np.log(gain))
    detector = Detector(None, model._array(beside) if backend == "pytorch" else beside)
    found = model._numpy(model._expected(model._array(patches), model._array(probes), detector))
    expected = np.sqrt(gain**2 * diffracted_intensity(patches, probes) + beside)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("architecture", ["unrolled", "cnn"])
def test_training_sees_the_background(
    backend: str, architecture: str, files: dict[str, Path], tmp_path: Path
) -> None:
    own = {"n_filters_scale": 1} if architecture == "cnn" else {"unrolled_steps": 3, "unrolled_width": 4}
    losses = {}
    for name in ("told", "untold"):
        config = TrainingConfig(
            ModelConfig(N=32, architecture=architecture, **own), train_data_file=files[name],
            output_dir=tmp_path / name, nepochs=3, n_groups=81, torch_loss_mode="amplitude", backend=backend,
            seed=1,
        )  # fmt: skip
        losses[name] = train(config, CPU).result.history["train_loss"]
    assert losses["told"][-1] < losses["told"][0]
    assert losses["told"][-1] < 0.9 * losses["untold"][-1]


def test_what_was_found_is_stored_and_evaluated(files: dict[str, Path], tmp_path: Path) -> None:
    scan = open_scan(files["untold"])
    found = reconstructed(scan, "pytorch", FOUND)
    write_reconstruction(tmp_path, found.in_scan(scan), files["untold"])
    stored = read_reconstruction(tmp_path / "reconstruction.npz")
    np.testing.assert_array_equal(stored.background, found.background)
    assert (tmp_path / "background.png").stat().st_size > 1000
    placed = stored.in_scan(scan)
    assert stored_fit(placed).relative == pytest.approx(found.fit.relative, rel=1e-4)
    lost = read_npz(tmp_path / "reconstruction.npz")
    del lost["background"]
    write_npz(tmp_path / "old.npz", lost)
    older = read_reconstruction(tmp_path / "old.npz")
    assert older.background is None
    assert stored_fit(older.in_scan(scan)).relative > 1.5 * found.fit.relative
    known = prepare_scan(scan.raw).with_background(found.background)
    np.testing.assert_allclose(known.background, found.background, rtol=1e-6)
