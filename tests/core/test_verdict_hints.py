"""The verdict names the flag that mends a background, and follows the beam where frames were not refined."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scan_makers import BASE, scan_of, true_object

from ptycho.data.checks.findings import Finding
from ptycho.data.reconstruction import Fit, Reconstruction
from ptycho.data.scan import Scan, ScanParts
from ptycho.evaluation.background import MOST_DARKENING, dark_excess
from ptycho.evaluation.misfit import FitTally, noise_energy
from ptycho.evaluation.verdict import LIMITS, _is_background, judge
from ptycho.physics import diffracted_amplitude, extract_patches
from ptycho.simulation.simulate import SimulationOptions, simulate

COUNTED = "photons in every pattern where"


def simulated(folder: Path, **options: Any) -> tuple[Reconstruction, Scan]:
    arrays = simulate(SimulationOptions(**{**BASE, "photons": 1e5, "seed": 5, **options}))
    scan = scan_of(arrays, folder)
    return true_object(arrays, scan), scan


def tallied(amplitude: np.ndarray, counts: np.ndarray, photons: float | None = 1.0, **more: Any) -> Fit:
    tally = FitTally(len(counts), counts.shape[-1], photons, **more)
    tally.add(np.arange(len(counts)), amplitude.astype(np.float32), np.sqrt(counts).astype(np.float32))
    return tally.result()


@pytest.mark.parametrize("photons", [1e3, 1e4, 1e5])
def test_a_background_that_nobody_told_is_named_with_its_flag_and_a_known_one_is_not(
    photons: float, tmp_path: Path
) -> None:
    found, scan = simulated(tmp_path, background_counts=1.0, photons=photons)
    verdict = judge(found.in_scan(scan))
    (reason,) = [text for text in verdict.reasons if COUNTED in text]
    assert verdict.word != "good"
    assert reason.endswith("as with a background; try --refine-background")
    assert verdict.numbers["dark_measured"] - verdict.numbers["dark_predicted"] == pytest.approx(1, rel=0.03)
    flat = np.ones((scan.n_px, scan.n_px), np.float32)
    known = judge(replace(found, background=flat).in_scan(scan))
    assert (known.word, known.reasons) == ("good", ())
    given = judge(found.in_scan(scan.with_background(flat)))
    assert (given.word, given.reasons) == ("good", ())


@pytest.mark.parametrize("photons", [1e5, 1e6, 1e7])
def test_light_that_wrong_positions_have_lost_is_no_background(photons: float, tmp_path: Path) -> None:
    found, scan = simulated(tmp_path, photons=photons)
    moves = np.random.default_rng(2).normal(0, 0.7, (len(found.indices), 2))
    blurred = replace(found, positions_yx_px=scan.positions_yx_px + moves, obj=0.9 * found.obj)
    verdict = judge(blurred.in_scan(scan))
    assert verdict.word != "good"
    assert not any("--refine-background" in text for text in verdict.reasons)


@pytest.mark.parametrize("mean", [1.0, 3.0, 30.0])
def test_speckle_that_is_missed_as_a_whole_is_no_background(mean: float) -> None:
    rng = np.random.default_rng(7)
    light, nothing = mean * rng.exponential(size=(80, 24, 24)), np.full((80, 24, 24), 0.1)
    lost, steady = (dark_excess(tallied(nothing, rng.poisson(rate))) for rate in (light, 0 * light + mean))
    assert lost is not None
    assert steady is not None
    assert lost.errors > 20
    assert lost.changing > LIMITS.dark_changing > 5 * abs(steady.changing)
    assert not _is_background(lost)
    assert _is_background(steady)


def test_a_fit_that_follows_the_roots_of_faint_counts_is_not_taken_for_a_background() -> None:
    """Half as dark as the mean root of the counts would be is granted; a background is not."""
    rng = np.random.default_rng(3)
    for rate in (0.02, 0.3, 1.0, 4.0):
        counts = rng.poisson(rate, (60, 16, 16)).astype(float)
        root = np.sqrt(counts).mean()
        half = np.full(counts.shape, np.sqrt((rate + root**2) / 2))
        granted, untold = dark_excess(tallied(half, counts)), dark_excess(tallied(0.1 * half, counts + 1))
        assert granted is not None
        assert untold is not None
        assert granted.errors < 3, rate
        assert untold.errors > 20, rate


def test_no_mean_root_is_darker_than_the_table_of_the_noise_says() -> None:
    rate = np.linspace(0.01, 30, 3000)
    mean_root = (2 * rate - noise_energy(np.sqrt(rate))) / (2 * np.sqrt(rate))
    darkening = rate - mean_root**2
    assert darkening.max() == pytest.approx(MOST_DARKENING, abs=1e-3)
    assert (darkening <= np.minimum(mean_root, 1.01 * MOST_DARKENING)).all()


def test_the_unit_of_the_counts_does_not_matter_and_where_none_is_known_nothing_is_said() -> None:
    counts = np.random.default_rng(4).poisson(3.0, (30, 16, 16)).astype(float)
    dark = np.full(counts.shape, 0.2)
    photons = dark_excess(tallied(dark, counts))
    scaled = dark_excess(tallied(np.sqrt(7) * dark, 7 * counts, photons=1 / 7))
    np.testing.assert_allclose(scaled, photons, rtol=1e-4)
    assert dark_excess(tallied(dark, counts, photons=None)) is None


def test_the_factor_of_a_frame_is_that_of_its_light_beside_a_background() -> None:
    light = np.random.default_rng(6).uniform(1, 2, (5, 8, 8)) ** 2
    background = np.full((8, 8), 3.0, np.float32)
    factor = np.array([1.0, 1.01, 0.99, 1.0, 1.02])
    counts = factor[:, None, None] ** 2 * light + background
    amplitude = np.sqrt(light + background)
    np.testing.assert_allclose(tallied(amplitude, counts, background=background).gain, factor, atol=2e-4)
    # Of the whole amplitude it would be less than half as far from one.
    assert abs(tallied(amplitude, counts).gain[4] - 1) < 0.009


def test_pixels_that_were_not_measured_tell_no_factor_beside_a_background() -> None:
    light, background = np.full((3, 8, 8), 4.0), np.full((8, 8), 3.0, np.float32)
    tally = FitTally(3, 8, 1.0, background)
    measured = np.sqrt(light + background).astype(np.float32)
    predicted, measured[:, 2:5] = measured.copy(), -1.0
    tally.add(np.arange(3), predicted, measured)
    np.testing.assert_allclose(tally.result().gain, 1.0)


def jumping(found: Reconstruction, scan: Scan, gain: Any = None, told: Any = None) -> tuple[str, ...]:
    """Return the reasons where a beam jumps in one of two scans of other exposure."""
    exposure = np.array([0.9, 1.1])
    parts = ScanParts(
        ("a", "b"), np.arange(scan.n_patterns) // 41, np.zeros(2, int), np.zeros((2, 2)), exposure
    )
    warned = replace(scan, findings=(Finding("beam", "the beam jumps", "warning"),), parts=told or parts)
    frames = exposure[warned.parts.index].astype(np.float32) if gain is None else gain
    return judge(replace(found, frame_gain=frames).in_scan(warned)).reasons


def test_a_beam_that_jumps_is_told_unless_the_frames_were_refined(tmp_path: Path) -> None:
    found, scan = simulated(tmp_path)
    assert "the beam jumps" in jumping(found, scan)
    refined = np.linspace(0.9, 1.1, scan.n_patterns).astype(np.float32)
    assert "the beam jumps" not in jumping(found, scan, refined)
    # A file holds ones where the frames were not refined.
    warned = replace(scan, findings=(Finding("beam", "the beam jumps", "warning"),))
    ones = replace(found, frame_gain=np.ones(scan.n_patterns, np.float32))
    assert "the beam jumps" in judge(ones.in_scan(warned)).reasons
    assert "the beam jumps" not in judge(replace(found, frame_gain=refined).in_scan(warned)).reasons


def test_the_predicted_power_is_summed_by_detector_pixel(tmp_path: Path) -> None:
    found, scan = simulated(tmp_path)
    placed = found.in_scan(scan)
    rows = np.arange(scan.n_patterns)
    patches = extract_patches(found.obj, placed.plan.corners_yx, scan.n_px)
    amplitude = diffracted_amplitude(patches, placed.probes(rows), placed.detector(rows))
    fit = tallied(amplitude, scan.raw.diff3d.astype(float))
    np.testing.assert_allclose(fit.pixel_power, (amplitude.astype(float) ** 2).sum(axis=0), rtol=1e-4)
    np.testing.assert_allclose(fit.pixel_amplitude, amplitude.astype(float).sum(axis=0), rtol=1e-4)
    assert fit.pixel_power.sum() == pytest.approx(fit.power.sum(), rel=1e-5)
