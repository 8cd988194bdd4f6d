"""A probe that changes during the scan is told from other faults, by both backends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs import reconstructed
from scan_makers import scan_of

from ptycho.data.reconstruction import PlacedReconstruction
from ptycho.evaluation.probe_change import WAVES, wave_powers
from ptycho.evaluation.verdict import judge
from ptycho.simulation.simulate import SimulationOptions, simulate
from ptycho.solver.options import RefineOptions

CURE = "try --refine-probe --probe-variation 2"
BASE: dict[str, Any] = {"n_px": 32, "n_y": 10, "n_x": 10, "step_px": 3.0, "photons": 1e5, "seed": 10}
ONE_PROBE = RefineOptions(50, start="flat", probe=True)
Arrays = dict[str, Any]


def refined(
    folder: Path,
    backend: str = "pytorch",
    spoil: Any = None,
    refine: RefineOptions = ONE_PROBE,
    **options: Any,
) -> PlacedReconstruction:
    """Return a scan reconstructed from flat, after a fault was planted."""
    arrays = simulate(SimulationOptions(**{**BASE, **options}))
    scan = scan_of(arrays if spoil is None else spoil(arrays), folder)
    found = reconstructed(scan, backend, refine, fit_probe=False)
    return found.in_scan(scan)


def told(placed: PlacedReconstruction) -> bool:
    return any(text.endswith(CURE) for text in judge(placed).reasons)


@pytest.mark.parametrize("backend", ["pytorch", "tensorflow"])
def test_a_probe_that_drifts_is_told_with_its_flag_until_it_is_followed(backend: str, tmp_path: Path) -> None:
    placed = refined(tmp_path, backend, probe_drift_waves=1.0)
    powers = wave_powers(placed)
    assert powers is not None
    assert told(placed)
    assert powers[0] == pytest.approx(3.6, abs=0.4)
    followed = RefineOptions(50, start="flat", probe=True, probe_variation=2)
    assert judge(refined(tmp_path, backend, refine=followed, probe_drift_waves=1.0)).reasons == ()


def test_a_drift_is_told_in_any_order_of_places(tmp_path: Path) -> None:
    """On a spiral time and place go apart."""
    assert told(refined(tmp_path, probe_drift_waves=1.0, scan="spiral"))


def shaken(arrays: Arrays) -> Arrays:
    moves = np.random.default_rng(0).normal(0, 0.7, (2, 100))
    return {**arrays, "xcoords": arrays["xcoords"] + moves[0], "ycoords": arrays["ycoords"] + moves[1]}


def wandering(arrays: Arrays) -> Arrays:
    moves = np.cumsum(np.random.default_rng(0).normal(0, 0.15, (2, 100)), axis=1)
    return {**arrays, "xcoords": arrays["xcoords"] + moves[0], "ycoords": arrays["ycoords"] + moves[1]}


def mirrored(arrays: Arrays) -> Arrays:
    return {**arrays, "xcoords": -arrays["xcoords"]}


@pytest.mark.parametrize("spoil", [shaken, wandering, mirrored])
@pytest.mark.parametrize("photons", [1e5, 1e6])
def test_wrong_positions_are_no_changing_probe(spoil: Any, photons: float, tmp_path: Path) -> None:
    placed = refined(tmp_path, spoil=spoil, photons=photons)
    assert judge(placed).word != "good"
    assert not told(placed)


def test_what_is_left_of_a_steady_scan_comes_in_no_order(tmp_path: Path) -> None:
    powers = wave_powers(refined(tmp_path))
    assert powers is not None
    assert powers.shape == (WAVES,)
    np.testing.assert_allclose(powers, 1.0, atol=0.15)
