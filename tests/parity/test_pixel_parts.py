"""Scans whose detector pixels add what falls on parts of each, through both backends (eq. 5b)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from runs import CPU, error, reconstructed, small_chunks

from ptycho.config.config import ModelConfig, TrainingConfig
from ptycho.data.npz import read_npz, write_npz
from ptycho.data.optics import FileOptions
from ptycho.evaluation.comparison import read_reconstruction, stored_fit
from ptycho.evaluation.drift import beam_drift
from ptycho.evaluation.verdict import judge
from ptycho.files.reader import open_scan
from ptycho.run.outputs import write_reconstruction
from ptycho.run.pipeline import train
from ptycho.run.shared_field import _expected
from ptycho.simulation.simulate import SimulationOptions, simulate
from ptycho.solver.options import RefineOptions

OPTIONS = SimulationOptions(
    n_px=32, n_y=9, n_x=9, step_px=4.0, photons=1e6, seed=5, probe_diameter_px=22.0, defocus_waves=1.5,
    detector_upsampling=2,
)  # fmt: skip
"""The probe lights most of its window, so that speckles are hardly larger than pixels."""
BACKENDS = ["pytorch", "tensorflow"]
ALIKE = 1e-4
"""Two frameworks in single precision after 14 joint steps, relative to the largest value."""
FLAT = RefineOptions(60, start="flat")
POINTS = FileOptions(detector_upsampling=1)
"""Pixels that see the middle of their area alone."""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    written = tmp_path_factory.mktemp("parts") / "scan.npz"
    write_npz(written, simulate(OPTIONS))
    return written


@pytest.mark.parametrize("backend", BACKENDS)
def test_where_it_is_known_only_noise_is_left(backend: str, path: Path) -> None:
    known, blind = open_scan(path), open_scan(path, options=POINTS)
    found, other = (reconstructed(scan, backend, FLAT) for scan in (known, blind))
    assert error(path, found) < 0.45 * error(path, other)
    placed = found.in_scan(known)
    verdict = judge(placed)
    assert verdict.word == "good"
    assert verdict.numbers["noise_ratio"] == pytest.approx(1.0, abs=0.1)
    assert judge(other.in_scan(blind)).numbers["noise_ratio"] > 2
    assert stored_fit(placed).relative == pytest.approx(found.fit.relative, rel=1e-4)
    drift = beam_drift(placed)
    assert drift is not None
    assert drift.errors < 4
    # What is stored is the probe, not its parts.
    assert found.probe.shape == (1, 32, 32)


@pytest.mark.parametrize("likelihood", ["amplitude", "poisson"])
def test_both_backends_find_the_same_of_everything_that_moves(
    likelihood: str, path: Path, tmp_path: Path
) -> None:
    bad = np.random.default_rng(4).random((32, 32)) < 0.05
    write_npz(tmp_path / "bad.npz", read_npz(path) | {"bad_pixels": bad, "background": np.array(0.5)})
    scan = open_scan(tmp_path / "bad.npz")
    moving = RefineOptions(
        14, probe=True, positions=True, frames=True, background=True, likelihood=likelihood, start="flat",
        probe_modes=2,
    )  # fmt: skip
    one, two = (reconstructed(scan, backend, moving) for backend in BACKENDS)
    for name in ("obj", "probe", "positions_yx_px", "frame_gain", "background"):
        values = [np.asarray(getattr(found, name)) for found in (one, two)]
        assert np.abs(values[0] - values[1]).max() < ALIKE * np.abs(values[0]).max(), name
    assert one.probe.shape == (2, 32, 32)


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_probe_that_is_off_is_fitted(backend: str, tmp_path: Path) -> None:
    file = tmp_path / "off.npz"
    write_npz(file, simulate(replace(OPTIONS, probe_error_waves=0.1)))
    scan = open_scan(file)
    found = reconstructed(scan, backend, RefineOptions(100, probe=True, start="flat"))
    assert judge(found.in_scan(scan)).numbers["noise_ratio"] == pytest.approx(1.0, abs=0.15)


@pytest.mark.slow
def test_a_probe_that_changes_is_followed(tmp_path: Path) -> None:
    file = tmp_path / "drifting.npz"
    write_npz(file, simulate(replace(OPTIONS, probe_drift_waves=1.0)))
    scan = open_scan(file)
    options = RefineOptions(40, probe=True, probe_variation=2, start="flat")
    one, two = (reconstructed(scan, backend, options) for backend in BACKENDS)
    steady = reconstructed(scan, "pytorch", replace(options, probe_variation=0))
    assert one.fit.relative < 0.7 * steady.fit.relative
    assert np.abs(one.obj - two.obj).max() < ALIKE * np.abs(one.obj).max()
    assert stored_fit(one.in_scan(scan)).relative == pytest.approx(one.fit.relative, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_positions_that_are_off_go_back(backend: str, path: Path, tmp_path: Path) -> None:
    arrays = read_npz(path)
    off = np.random.default_rng(7).uniform(-1, 1, (2, len(arrays["xcoords"])))
    moved = {"xcoords": arrays["xcoords"] + off[0], "ycoords": arrays["ycoords"] + off[1]}
    write_npz(tmp_path / "off.npz", arrays | moved)
    found = reconstructed(
        open_scan(tmp_path / "off.npz"), backend, RefineOptions(60, positions=True, start="flat")
    )
    missed = found.positions_yx_px - np.stack([arrays["ycoords"], arrays["xcoords"]], axis=1)
    missed -= missed.mean(axis=0)
    assert np.sqrt((missed**2).sum(axis=1).mean()) < 0.05


@pytest.mark.slow
def test_the_network_of_the_package_and_the_difference_map_know_it(path: Path) -> None:
    known, blind = open_scan(path), open_scan(path, options=POINTS)
    for refine in (None, RefineOptions(10, start="difference-map")):
        one, two = (reconstructed(known, backend, refine) for backend in BACKENDS)
        assert np.abs(one.obj - two.obj).max() < ALIKE * np.abs(one.obj).max()
        assert error(path, one) < 0.7 * error(path, reconstructed(blind, "pytorch", refine))


def test_a_scan_that_is_read_anew_in_every_pass_gives_the_same(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan, options = open_scan(path), RefineOptions(5, start="flat")
    kept = reconstructed(scan, "pytorch", options)
    # It would be kept if a pixel had one part, and a chunk would hold sixteen patterns.
    sizes = small_chunks(monkeypatch, scan.n_patterns, 32)
    again = reconstructed(scan, "pytorch", options)
    assert max(sizes) == 4
    assert np.abs(again.obj - kept.obj).max() < ALIKE * np.abs(kept.obj).max()


def test_an_evaluation_repeats_what_the_run_was_told(path: Path, tmp_path: Path) -> None:
    untold = read_npz(path)
    del untold["detector_upsampling"]
    write_npz(tmp_path / "untold.npz", untold)
    scan = open_scan(tmp_path / "untold.npz", options=FileOptions(detector_upsampling=2))
    found = reconstructed(scan, "pytorch", FLAT)
    write_reconstruction(tmp_path, found.in_scan(scan), tmp_path / "untold.npz")
    stored = read_reconstruction(tmp_path / "reconstruction.npz")
    assert stored.stored.options["detector_upsampling"] == 2
    told = open_scan(tmp_path / "untold.npz", options=FileOptions(**stored.stored.options))
    assert stored_fit(stored.in_scan(told)).relative == pytest.approx(found.fit.relative, rel=1e-4)
    blind = stored.in_scan(open_scan(tmp_path / "untold.npz"))
    assert stored_fit(blind).relative > 2 * found.fit.relative


def test_patterns_of_another_scan_are_predicted_with_their_parts(path: Path) -> None:
    scan = open_scan(path)
    found = reconstructed(scan, "pytorch", FLAT)
    rows, measured = scan.usable[:20], scan.amplitude(scan.usable[:20])
    missed = [
        ((_expected(one, found, rows, np.zeros(2)) - measured) ** 2).sum()
        for one in (scan, replace(scan, options=POINTS))
    ]
    assert missed[0] < 0.5 * missed[1]


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("architecture", ["unrolled", "cnn"])
def test_training_sees_the_parts(backend: str, architecture: str, path: Path, tmp_path: Path) -> None:
    own = {"n_filters_scale": 1} if architecture == "cnn" else {"unrolled_steps": 3, "unrolled_width": 4}
    losses = {}
    for asked in (2, 1):
        config = TrainingConfig(
            ModelConfig(N=32, architecture=architecture, **own), train_data_file=path,
            output_dir=tmp_path / str(asked), nepochs=3, n_groups=81, torch_loss_mode="amplitude",
            backend=backend, seed=1, detector_upsampling=asked,
        )  # fmt: skip
        losses[asked] = train(config, CPU).result.history["train_loss"]
    assert losses[2][-1] < losses[2][0]
    assert losses[2][-1] != losses[1][-1]
    if architecture == "unrolled":
        assert losses[2][-1] < 0.9 * losses[1][-1]
