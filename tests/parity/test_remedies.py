"""What is left of a scan looks like the fault that was planted, and the verdict names its flags."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs import reconstructed
from scan_makers import scan_of

from ptycho.data.reconstruction import PlacedReconstruction
from ptycho.evaluation.remedies import CURES, _Chunk, _gain, named_faults
from ptycho.evaluation.verdict import judge
from ptycho.simulation.simulate import SimulationOptions, simulate
from ptycho.solver.options import RefineOptions

BASE: dict[str, Any] = {"n_px": 32, "n_y": 12, "n_x": 12, "step_px": 3.0, "photons": 1e6, "seed": 10}
FLAT = RefineOptions(40, start="flat")
Arrays = dict[str, Any]


def refined(
    folder: Path, backend: str = "pytorch", spoil: Any = None, refine: RefineOptions = FLAT, **options: Any
) -> PlacedReconstruction:
    """Return a scan reconstructed from flat, after a fault was planted that the file does not tell."""
    arrays = simulate(SimulationOptions(**{**BASE, **options}))
    arrays.pop("detector_upsampling", None)
    scan = scan_of(arrays if spoil is None else spoil(arrays), folder)
    return reconstructed(scan, backend, refine, fit_probe=False).in_scan(scan)


def cures(placed: PlacedReconstruction) -> set[str]:
    """Return which flags the verdict names."""
    line = judge(placed).line()
    return {
        flags for _, flags in CURES.values() if line.split("; ").count(f"try --init flat --refine 60 {flags}")
    }


def shaken(arrays: Arrays) -> Arrays:
    moves = np.random.default_rng(0).normal(0, 0.7, (2, 144))
    return {**arrays, "xcoords": arrays["xcoords"] + moves[0], "ycoords": arrays["ycoords"] + moves[1]}


def stretched(arrays: Arrays) -> Arrays:
    return {**arrays, **{name: 1.05 * arrays[name] for name in ("xcoords", "ycoords")}}


def mirrored(arrays: Arrays) -> Arrays:
    return {**arrays, "xcoords": -arrays["xcoords"]}


FAULTS: dict[str, tuple[dict[str, Any], Any, set[str]]] = {
    "none": ({}, None, set()),
    "positions": ({}, shaken, {"--refine-positions"}),
    "stretched": (
        {"n_px": 48, "n_y": 14, "n_x": 11, "step_px": 4.0, "photons": 3e6, "seed": 77},
        stretched,
        {"--refine-positions"},
    ),
    "probe": ({"probe_error_waves": 0.3}, None, {"--refine-probe"}),
    "parts": ({"detector_upsampling": 2}, None, {"--detector-upsampling 2"}),
    "fly": ({"fly_scan_px": 3.0}, None, {"--refine-probe --probe-modes 3"}),
    "mirrored": ({}, mirrored, set()),
    "drift": ({"probe_drift_waves": 1.0}, None, set()),
    "background": ({"background_counts": 5.0}, None, set()),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_verdict_names_the_flags_of_the_fault_that_was_planted(fault: str, tmp_path: Path) -> None:
    options, spoil, wanted = FAULTS[fault]
    assert cures(refined(tmp_path, spoil=spoil, **options)) == wanted


@pytest.mark.parametrize("fault", ["positions", "parts"])
def test_objects_of_tensorflow_look_like_the_same_fault(fault: str, tmp_path: Path) -> None:
    options, spoil, wanted = FAULTS[fault]
    placed = refined(tmp_path, "tensorflow", spoil, **options)
    assert cures(placed) == wanted
    assert judge(placed).numbers["looks_like"] == fault


def test_positions_that_were_refined_are_not_asked_for_again(tmp_path: Path) -> None:
    followed = RefineOptions(40, start="flat", positions=True)
    placed = refined(tmp_path, spoil=shaken, refine=followed)
    assert cures(placed) == set()
    assert judge(placed).word == "good"


def test_wrong_positions_keep_the_beam_out_of_the_verdict(tmp_path: Path) -> None:
    """Patterns that are compared at wrong places differ in brightness too."""
    placed = refined(tmp_path, spoil=shaken)
    assert not any("beam" in text for text in judge(placed).reasons)


def test_a_fault_takes_away_what_its_best_size_does_and_no_size_is_negative() -> None:
    rng = np.random.default_rng(1)
    basis, missed = rng.normal(size=(2, 50)), rng.normal(size=50)
    for signs in ((1, 1), (1, -1), (-1, -1)):
        missed_by = missed + 3 * signs[0] * basis[0] + 2 * signs[1] * basis[1]
        kept = basis[[sign > 0 for sign in signs]]
        size = np.linalg.lstsq(kept.T, missed_by, rcond=None)[0] if len(kept) else np.zeros(0)
        left = missed_by - size @ kept
        told = [
            (part @ part.T, part @ e)
            for part, e in ((basis[:, :20], missed_by[:20]), (basis[:, 20:], missed_by[20:]))
        ]
        assert _gain(told) == pytest.approx(missed_by @ missed_by - left @ left, rel=1e-3, abs=1e-9)


def test_half_the_curvature_of_the_counts_is_that_of_a_short_motion(tmp_path: Path) -> None:
    """A motion of length L along an axis adds L^2 / 12 times it to the counts."""
    placed = refined(tmp_path, fly_scan_px=1.0)
    still = refined(tmp_path)
    chunk = _Chunk(placed, np.arange(100))
    found = _gain([chunk.along([chunk.of_motion()[1]])])
    normal, right = chunk.along(chunk.of_motion())
    along_y, along_x = np.linalg.solve(normal, right)
    assert found > 0
    assert along_x == pytest.approx(1 / 12, rel=0.4)
    assert abs(along_y) < 0.02
    assert _Chunk(still, np.arange(100)).along(chunk.of_motion())[1] @ np.ones(2) < right[1] / 5


def test_little_that_is_left_looks_like_nothing(tmp_path: Path) -> None:
    placed = refined(tmp_path, spoil=shaken)
    fit = placed.found.fit
    assert fit is not None
    assert "positions" in named_faults(placed, fit, 0.0)
    assert named_faults(placed, fit, float(fit.misfit.sum()) / 1.1) == {}
