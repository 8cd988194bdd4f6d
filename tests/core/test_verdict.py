"""The verdict: true objects are good at every dose, and every planted fault is named."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scan_makers import BASE, scan_of, true_object

from ptycho.data.checks.findings import Finding
from ptycho.data.reconstruction import Reconstruction
from ptycho.data.scan import Scan
from ptycho.evaluation.verdict import WRONG, Verdict, announce, judge
from ptycho.process.progress import Progress
from ptycho.simulation.simulate import SimulationOptions, simulate

Arrays = dict[str, Any]


def verdict_on(options: dict[str, Any], folder: Path, spoil: Any = None) -> Verdict:
    """Return the verdict on the true object of a scan, after a fault was planted in either."""
    arrays = simulate(SimulationOptions(**{**BASE, "photons": 1e6, "seed": 5, **options}))
    scan = scan_of(arrays, folder)
    found = true_object(arrays, scan)
    if spoil is not None:
        found, scan = spoil(found, scan)
    return judge(found.in_scan(scan))


@pytest.mark.parametrize("photons", [3e2, 1e3, 1e4, 1e5, 1e6, 1e7])
@pytest.mark.parametrize("n_modes", [1, 2])
def test_the_true_object_is_good_at_every_dose(photons: float, n_modes: int, tmp_path: Path) -> None:
    found = verdict_on({"photons": photons, "n_modes": n_modes}, tmp_path)
    assert (found.word, found.reasons) == ("good", ())
    # The unknowns of a fit are taken off, and nothing was fitted here: 2 to 5 % of the noise.
    assert 0.95 < found.numbers["noise_ratio"] < 1.1
    assert found.numbers["misfit"] == pytest.approx(found.numbers["misfit_expected"], rel=0.1)
    assert found.line().startswith("verdict: good: misfit ")


def flat(found: Reconstruction, scan: Scan) -> tuple[Reconstruction, Scan]:
    return replace(found, obj=np.full_like(found.obj, 0.8)), scan


def mirrored(found: Reconstruction, scan: Scan) -> tuple[Reconstruction, Scan]:
    return replace(found, obj=found.obj[:, ::-1]), scan


def not_finite(found: Reconstruction, scan: Scan) -> tuple[Reconstruction, Scan]:
    obj = found.obj.copy()
    obj[20, 20] = np.nan
    return replace(found, obj=obj), scan


def other_probe(found: Reconstruction, scan: Scan) -> tuple[Reconstruction, Scan]:
    return replace(found, probe=found.probe.conj()), scan


def shaken(found: Reconstruction, scan: Scan) -> tuple[Reconstruction, Scan]:
    rms_px = 1.0 / np.sqrt(2)
    moves = np.random.default_rng(2).normal(0, rms_px, (len(found.indices), 2))
    return replace(found, positions_yx_px=scan.positions_yx_px + moves), scan


def hot(found: Reconstruction, scan: Scan) -> tuple[Reconstruction, Scan]:
    patterns = scan.raw.diff3d.astype(np.uint32)
    patterns[:, 7, 9] = patterns[:, 21, 4] = 20_000
    scan.raw.diff3d = patterns
    return found, scan


def brighter(found: Reconstruction, scan: Scan) -> tuple[Reconstruction, Scan]:
    rng, patterns = np.random.default_rng(3), scan.raw.diff3d
    scan.raw.diff3d = (patterns + rng.poisson(0.3 * patterns) * (np.arange(81) > 40)[:, None, None]).astype(
        np.uint32
    )
    return found, scan


def some_wrong(found: Reconstruction, scan: Scan) -> tuple[Reconstruction, Scan]:
    scan.raw.diff3d = scan.raw.diff3d.copy()
    scan.raw.diff3d[30:36] = scan.raw.diff3d[30:36, ::-1, ::-1]
    return found, scan


def warned(found: Reconstruction, scan: Scan) -> tuple[Reconstruction, Scan]:
    mended, likely = Finding("a", "was mended", "repaired"), Finding("b", "looks odd", "warning")
    return found, replace(scan, findings=(mended, likely))


@pytest.mark.parametrize(
    ("spoil", "word", "reason"),
    [
        (flat, "failed", "the object is flat (contrast "),
        (mirrored, "failed", "the mean pattern explains the patterns better than the object does"),
        (not_finite, "failed", "values that are no numbers"),
        (other_probe, "failed", WRONG),
        (shaken, "doubtful", "% of what changes from pattern to pattern is not explained"),
        (hot, "doubtful", "of the misfit lies in 4 detector pixels"),
        (brighter, "doubtful", "from frame to frame; try --init flat --refine 60 --refine-frames"),
        (some_wrong, "doubtful", "6 of 81 patterns fit far worse than the others (together in time, "),
        (warned, "doubtful", "looks odd"),
    ],
)  # fmt: skip
def test_every_planted_fault_is_named(spoil: Any, word: str, reason: str, tmp_path: Path) -> None:
    found = verdict_on({}, tmp_path, spoil)
    assert found.word == word
    assert any(reason in text for text in found.reasons), found.reasons
    assert "was mended" not in " ".join(found.reasons)
    assert found.line().startswith(f"verdict: {word.upper()}: ")
    assert found.to_dict()["verdict"] == word
    assert found.to_dict()["reasons"] == list(found.reasons)


def test_spots_that_share_no_light_have_failed_however_well_they_fit(tmp_path: Path) -> None:
    found = verdict_on({"step_px": 20.0, "n_y": 5, "n_x": 5, "jitter_px": 0.0}, tmp_path)
    assert found.word == "failed"
    assert any("share no light" in text for text in found.reasons)


def test_an_object_of_few_measured_numbers_is_doubtful(tmp_path: Path) -> None:
    found = verdict_on({"step_px": 31.0, "n_y": 5, "n_x": 5, "probe_diameter_px": 22.0}, tmp_path)
    assert any("measured numbers per unknown of the object" in text for text in found.reasons)


@pytest.mark.parametrize("photons", [1e3, 3e3, 1e4, 1e5])
@pytest.mark.parametrize("uneven", [0.0, 0.05])
def test_positions_off_by_a_pixel_are_doubtful_at_every_dose_with_and_without_a_unit(
    photons: float, uneven: float, tmp_path: Path
) -> None:
    arrays = simulate(SimulationOptions(**BASE, photons=photons, seed=5))
    rng = np.random.default_rng(1)
    arrays["diff3d"] = arrays["diff3d"] * (1 + uneven * rng.normal(size=(32, 32)))
    scan = scan_of(arrays, tmp_path)
    true = true_object(arrays, scan)
    assert judge(true.in_scan(scan)).word == "good"
    moved = replace(true, positions_yx_px=scan.positions_yx_px + rng.normal(0, 1, (81, 2)))
    assert judge(moved.in_scan(scan)).word != "good"
    assert judge(replace(true, obj=true.obj[:, ::-1]).in_scan(scan)).word == "failed"


def test_blurred_patterns_of_unknown_noise_are_doubtful(tmp_path: Path) -> None:
    from scipy.ndimage import gaussian_filter

    arrays = simulate(SimulationOptions(**BASE, photons=1e6, seed=5))
    arrays["diff3d"] = gaussian_filter(arrays["diff3d"].astype(float), (0, 1.5, 1.5))
    scan = scan_of(arrays, tmp_path)
    found = judge(true_object(arrays, scan).in_scan(scan))
    assert not found.numbers["noise_known"]
    assert found.word != "good"


def test_an_object_drawn_into_patterns_of_nothing_but_noise_has_failed(tmp_path: Path) -> None:
    arrays = simulate(SimulationOptions(**BASE, photons=1e6, seed=5))
    arrays["diff3d"] = np.random.default_rng(1).poisson(200, arrays["diff3d"].shape).astype(np.uint16)
    scan = scan_of(arrays, tmp_path)
    assert judge(true_object(arrays, scan).in_scan(scan)).word == "failed"


def test_a_scan_too_dim_to_show_a_fault_says_so(tmp_path: Path) -> None:
    found = verdict_on({"photons": 3e2}, tmp_path)
    assert found.numbers["noise_dominates"]
    assert "a wrong scan would hardly show" in found.line()
    assert "a wrong scan would hardly show" not in verdict_on({}, tmp_path).line()


def test_a_single_pattern_has_a_verdict(tmp_path: Path) -> None:
    arrays = simulate(SimulationOptions(**BASE, seed=5))
    scan = scan_of(arrays, tmp_path)
    found = judge(true_object(arrays, scan, 1).in_scan(scan))
    assert found.numbers["overlap"] is None


def test_where_no_unit_is_known_the_noise_is_not_judged(tmp_path: Path) -> None:
    arrays = simulate(SimulationOptions(**BASE, photons=1e6, seed=5))
    counts = arrays["diff3d"]
    uneven = 3.7 * counts * (1 + 0.01 * np.random.default_rng(1).normal(size=counts.shape))
    del arrays["nphotons"]
    scan = scan_of({**arrays, "diff3d": np.sqrt(uneven).astype(np.float32)}, tmp_path)
    true = replace(true_object(arrays, scan), probe=np.sqrt(3.7) * arrays["probeGuess"][None])
    found = judge(true.in_scan(scan))
    assert not found.numbers["noise_known"]
    assert found.numbers["misfit_expected"] is None
    assert found.word == "good"
    assert found.line().endswith("noise level unknown")


def test_a_silent_caller_finds_the_verdict_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    numbers = {"misfit": 0.01, "noise_known": False, "noise_dominates": False}
    with caplog.at_level(logging.INFO):
        announce(Verdict("good", (), numbers), Progress())
        announce(Verdict("failed", ("it is flat",), numbers), Progress())
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("INFO", "verdict: good: misfit 0.01, noise level unknown"),
        ("WARNING", "verdict: FAILED: it is flat"),
    ]
