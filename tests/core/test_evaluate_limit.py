"""An evaluation against a truth says how far above the photon limit the error is (eq. 30)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ptycho.evaluation.limit as home
from ptycho.data.npz import write_npz
from ptycho.data.reconstruction import PlacedReconstruction, Reconstruction, StoredFacts
from ptycho.evaluation.limit import limit_scores
from ptycho.files.reader import open_scan
from ptycho.physics import illumination
from ptycho.process.progress import Progress
from ptycho.run.evaluate import Request, evaluate
from ptycho.run.outputs import write_reconstruction
from ptycho.simulation.limit import simulated_limit
from ptycho.simulation.simulate import SimulationOptions, simulate

OPTIONS = SimulationOptions(n_px=24, n_y=7, n_x=8, step_px=3.0, photons=1e5, probe_diameter_px=10, seed=3)
OPTIONS = replace(OPTIONS, defocus_waves=0.5)


class Notes(Progress):
    """Keeps what is said."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)


def true_object(folder: Path, **changes: Any) -> PlacedReconstruction:
    """Return the truth of a scan as its reconstruction, the data file changed before."""
    arrays = simulate(OPTIONS) | changes
    write_npz(folder / "scan.npz", arrays)
    scan = open_scan(folder / "scan.npz")
    corners = np.floor(scan.positions_yx_px - (scan.n_px - 1) / 2 + 0.5).astype(int)
    light = illumination(scan.probe, corners, arrays["objectGuess"].shape)
    found = Reconstruction(
        obj=arrays["objectGuess"],
        coverage=(light / light.max()).astype(np.float32),
        origin_yx_px=np.zeros(2),
        probe=scan.probe,
        indices=np.arange(scan.n_patterns),
        seconds=0.0,
    )
    return found.in_scan(scan)


def scores_of(placed: PlacedReconstruction, nrmse: float = 0.1) -> dict[str, float]:
    return limit_scores(placed, placed.found.scanned, nrmse, Progress())


def test_the_limit_of_a_reconstruction_is_that_of_the_simulation(tmp_path: Path) -> None:
    found = scores_of(true_object(tmp_path))
    expected = simulated_limit(OPTIONS, simulate(OPTIONS))
    assert found["photon_limit_nrmse"] == pytest.approx(expected.nrmse, rel=0.02)
    assert found["simple_photon_limit_nrmse"] == pytest.approx(expected.simple, rel=0.02)
    assert found["error_over_photon_limit"] == 0.1 / found["photon_limit_nrmse"]


def test_the_unit_of_the_counts_does_not_matter_and_bad_pixels_cost_information(tmp_path: Path) -> None:
    arrays, plain = simulate(OPTIONS), scores_of(true_object(tmp_path))["photon_limit_nrmse"]
    scaled = true_object(tmp_path, diff3d=7 * arrays["diff3d"].astype(np.float32))
    # The scale of the data goes into the probe; what it does not take in is the object's.
    power = (np.abs(arrays["probeGuess"]) ** 2).sum() / (np.abs(scaled.found.probe) ** 2).sum()
    scaled = replace(scaled, found=replace(scaled.found, obj=scaled.found.obj * np.sqrt(7 * power)))
    assert scores_of(scaled)["photon_limit_nrmse"] == pytest.approx(plain, rel=0.01)
    bad = np.zeros((24, 24), bool)
    bad[8:16, 8:16] = True
    stored = StoredFacts(scaled.scan.record, bad)
    blind = replace(scaled, found=replace(scaled.found, stored=stored))
    assert scores_of(blind)["photon_limit_nrmse"] > 1.08 * plain


def test_no_limit_is_told_where_nobody_knows_what_a_photon_is(tmp_path: Path) -> None:
    counts = simulate(OPTIONS)["diff3d"] * np.random.default_rng(0).uniform(0.9, 1.1, (56, 24, 24))
    assert scores_of(true_object(tmp_path, diff3d=counts)) == {}


def test_a_large_scan_has_the_simple_form_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    placed = true_object(tmp_path)
    exact = scores_of(placed)
    monkeypatch.setattr(home, "LIMIT_WAVE_PIXELS", 56 * 24**2 - 1)
    simple = scores_of(placed)
    assert simple["photon_limit_nrmse"] == simple["simple_photon_limit_nrmse"] < exact["photon_limit_nrmse"]


def test_an_evaluation_with_truth_and_patterns_says_so(tmp_path: Path) -> None:
    placed, notes = true_object(tmp_path), Notes()
    rng = np.random.default_rng(1)
    noise = rng.standard_normal((2, *placed.found.obj.shape)) * 0.05
    noisy = (placed.found.obj + noise[0] + 1j * noise[1]).astype(np.complex64)
    write_reconstruction(tmp_path, replace(placed, found=replace(placed.found, obj=noisy)), None)
    asked = Request(tmp_path, truth=tmp_path / "scan.npz")
    alone = evaluate(asked, tmp_path / "alone").scores
    found = evaluate(replace(asked, test_data=tmp_path / "scan.npz"), tmp_path / "out", notes).scores
    assert not any("limit" in name for name in alone)
    ratio = found["truth_complex_nrmse"] / found["truth_photon_limit_nrmse"]
    assert found["truth_error_over_photon_limit"] == pytest.approx(ratio)
    (line,) = (line for line in notes.lines if "photon limit" in line)
    assert line.startswith(f"noise is {ratio:.3g}x the photon limit: NRMSE ")
