"""A drift of the beam is measured from a reconstruction, whatever of it object and probe took in."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scan_makers import honest_options

from ptycho.data.prepare import prepare_scan
from ptycho.data.reconstruction import Reconstruction
from ptycho.data.scan import Scan
from ptycho.evaluation.drift import BeamDrift, beam_drift
from ptycho.evaluation.verdict import judge
from ptycho.geometry.canvas import plan_canvas
from ptycho.physics import illumination
from ptycho.raw_data import RawData
from ptycho.simulation.simulate import SimulationOptions, simulate

BASE = SimulationOptions(n_px=32, n_y=10, n_x=12, step_px=3.0, jitter_px=0.9, photons=1e6, seed=3)
SERPENTINE = np.concatenate([np.arange(12 * y, 12 * y + 12)[:: 1 - 2 * (y % 2)] for y in range(10)])
EVEN = 0.03
"""What an even rise by 30 % differs from the best exponential, and the scale of the stored probe [log]."""
SURE = 4.0
"""Standard errors within which a measured drift is right."""


def drifting(
    options: SimulationOptions, drift: float = 0.0, order: NDArray[np.int64] | None = None
) -> tuple[Reconstruction, Scan]:
    """Return the true object and a scan in whose course the counts change by a factor, evenly."""
    arrays: dict[str, Any] = dict(simulate(options))
    order = np.arange(options.count) if order is None else order
    counts, x, y = (arrays[name][order] for name in ("diff3d", "xcoords", "ycoords"))
    if drift:
        factor = 1 + drift * np.linspace(0, 1, options.count)[:, None, None]
        counts = np.random.default_rng(options.seed).poisson(counts * factor).astype(np.uint32)
    scan = prepare_scan(RawData.from_coords_without_pc(x, y, counts, arrays["probeGuess"], None))
    plan = plan_canvas(scan.positions_yx_px, scan.n_px)
    top, left = np.round(plan.origin_yx_px).astype(int)
    obj = arrays["objectGuess"][top : top + plan.shape_yx[0], left : left + plan.shape_yx[1]]
    light = illumination(scan.probe.astype(complex), plan.corners_yx, obj.shape)
    origin = np.array([top, left], float)
    coverage = (light / light.max()).astype(np.float32)
    return Reconstruction(obj, coverage, origin, scan.probe, np.arange(scan.n_patterns), 0.0), scan


def followed(found: Reconstruction, drift: float) -> Reconstruction:
    """Let object and probe take in a drift as a reconstruction does: over 10 rows it is one of the place."""
    slope = 0.5 * np.log1p(drift) / 30
    obj_y, probe_y = (np.arange(size)[:, None] - size / 2 for size in (len(found.obj), found.probe.shape[-1]))
    probe = (found.probe * np.exp(-slope * probe_y)).astype(np.complex64)
    return replace(found, obj=found.obj * np.sqrt(1 + drift / 2) * np.exp(slope * obj_y), probe=probe)


def measured(found: Reconstruction, scan: Scan) -> BeamDrift:
    drift = beam_drift(found.in_scan(scan))
    assert drift is not None
    return drift


def reasons(found: Reconstruction, scan: Scan) -> list[str]:
    verdict = judge(found.in_scan(replace(scan, findings=())))
    return [reason for reason in verdict.reasons if "the beam seems to drift by" in reason]


CASES = {
    "raster": (BASE, None),
    "serpentine": (replace(BASE, jitter_px=0.0), SERPENTINE),
    "spiral": (replace(BASE, scan="spiral"), None),
    "modes": (replace(BASE, n_modes=3, seed=4), SERPENTINE),
}


@pytest.mark.parametrize("drift", [0.3, -0.25])
@pytest.mark.parametrize("case", CASES)
def test_a_drift_is_measured_and_named_on_every_path(case: str, drift: float) -> None:
    options, order = CASES[case]
    found, scan = drifting(options, drift, order)
    if case != "spiral":
        taken = followed(found, drift)
        assert (
            judge(taken.in_scan(scan)).numbers["misfit"] < 0.7 * judge(found.in_scan(scan)).numbers["misfit"]
        )
        found = taken
    change = measured(found, scan)
    assert change.log_factor == pytest.approx(np.log1p(drift), abs=SURE * change.error + EVEN)
    assert change.error < 0.07
    (reason,) = reasons(found, scan)
    assert f"drift by {np.expm1(change.log_factor):+.0%} (+-" in reason


@pytest.mark.parametrize("case", ["raster", "serpentine"])
def test_an_object_that_rises_along_the_scan_is_no_drift(case: str) -> None:
    options, order = CASES[case]
    found, scan = drifting(options, 0.0, order)
    steep = followed(found, 0.3)
    assert judge(steep.in_scan(scan)).numbers["misfit"] > 2 * judge(found.in_scan(scan)).numbers["misfit"]
    assert measured(steep, scan).errors < SURE
    assert reasons(steep, scan) == []


@pytest.mark.parametrize(("part", "rise", "at_px"), [("obj", 0.05, 17.0), ("probe", 0.3, 7.0)])
def test_an_error_of_object_or_probe_that_looks_like_time_is_no_drift(
    part: str, rise: float, at_px: float
) -> None:
    """On a spiral time is the square of the distance from the middle."""
    found, scan = drifting(CASES["spiral"][0])
    y, x = (np.arange(n) - n / 2 for n in getattr(found, part).shape[-2:])
    radius = y[:, None] ** 2 + x**2
    values = getattr(found, part) * np.exp(rise * radius / at_px**2)
    spoiled = replace(found, **{part: values.astype(np.complex64)})
    # Unless T and S are taken off it is 0.12 and 0.06.
    assert abs(measured(spoiled, scan).log_factor) < 0.05


def test_a_raster_without_jitter_tells_no_time() -> None:
    found, scan = drifting(replace(BASE, jitter_px=0.0), 0.3)
    assert beam_drift(found.in_scan(scan)) is None
    numbers = judge(found.in_scan(scan)).numbers
    assert numbers["beam_drift"] is None
    assert numbers["beam_drift_error"] is None


def test_factors_of_the_frames_follow_a_drift() -> None:
    found, scan = drifting(*CASES["serpentine"][:1], 0.3, SERPENTINE)
    gain = np.sqrt(1 + 0.3 * np.linspace(0, 1, scan.n_patterns)).astype(np.float32)
    assert abs(measured(replace(found, frame_gain=gain), scan).log_factor) < EVEN


def test_bad_pixels_and_patterns_left_out_of_a_run_take_no_part() -> None:
    found, scan = drifting(BASE, 0.3)
    rows = np.arange(0, 120, 2)
    spoiled = scan.raw.diff3d.copy()
    spoiled[1::2] = 7
    spoiled[:, 10:22, 10:16] = 60_000
    bad = np.zeros((32, 32), bool)
    bad[10:22, 10:16] = True
    scan.raw.diff3d, scan.raw.bad_pixels = spoiled, bad
    part = measured(replace(followed(found, 0.3), indices=rows), scan)
    assert part.log_factor == pytest.approx(np.log(1.3), abs=SURE * part.error)
    assert part.error < 0.1


def test_long_scans_are_measured_on_some_of_their_patterns(monkeypatch: pytest.MonkeyPatch) -> None:
    found, scan = drifting(BASE, 0.3)
    found = followed(found, 0.3)
    whole = measured(found, scan)
    monkeypatch.setattr("ptycho.evaluation.drift.MOST_PATTERNS", 60)
    some = measured(found, scan)
    assert some.error == pytest.approx(np.sqrt(2) * whole.error, rel=0.4)
    assert some.log_factor == pytest.approx(np.log(1.3), abs=SURE * some.error)


@pytest.mark.parametrize("seed", range(20))
def test_honest_scans_do_not_drift(seed: int) -> None:
    found, scan = drifting(honest_options(seed))
    assert reasons(found, scan) == []
    drift = beam_drift(found.in_scan(scan))
    assert drift is None or drift.errors < SURE


def test_a_handful_of_patterns_tells_nothing() -> None:
    found, scan = drifting(replace(BASE, n_y=4, n_x=5))
    assert beam_drift(found.in_scan(scan)) is None
