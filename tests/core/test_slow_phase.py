"""Facts about the slow phase of a step (eq. 24): its gain is the closed form, for a spot of a known width."""

from __future__ import annotations

import numpy as np
import pytest
from judges import FLOAT64, assert_twin

from ptycho.physics.slow_phase import (
    MOST_PHASE_GAIN,
    phase_gain,
    phase_scale_px,
    slow_phase_gain,
    slow_turn_rad,
)

SHAPE = (48, 35)


def gaussian(sigma_px: float, n_px: int = 64, middle_px: float = 31.5) -> np.ndarray:
    """A mode whose power has the standard deviation ``sigma_px`` along each axis."""
    line = np.exp(-((np.arange(n_px) - middle_px) ** 2) / (4 * sigma_px**2))
    return (line[:, None] * line * np.exp(0.3j * np.arange(n_px)))[None]


@pytest.mark.parametrize(("scale_px", "most"), [(2.0, 50.0), (1.0, 5.0), (0.1, 300.0)])
def test_the_gain_is_what_the_curvature_lacks(scale_px: float, most: float) -> None:
    found = slow_phase_gain(SHAPE, scale_px, most)
    assert found.shape == SHAPE
    for i, k in ((0, 0), (1, 0), (0, 2), (3, 5), (47, 34), (24, 17)):
        # Frequencies count from either end: row 47 is the wave number -1.
        wave = [2 * np.pi * min(at, side - at) / side for at, side in zip((i, k), SHAPE, strict=True)]
        curvature = (wave[0] ** 2 + wave[1] ** 2) * scale_px**2 + 1 / most
        assert found[i, k] == pytest.approx(max(1 / curvature, 1) - 1, rel=1e-12)
    assert found[0, 0] == found.max() == pytest.approx(most - 1)
    # Even in every frequency, so that a real phase stays real.
    flipped = np.roll(found[::-1, ::-1], 1, axis=(0, 1))
    assert_twin(found, flipped, FLOAT64)


def test_no_gain_is_needed_where_its_most_is_one() -> None:
    assert not slow_phase_gain(SHAPE, 2.0, 1.0).any()
    # A canvas no longer than the wave that a spot tells fully.
    assert not phase_gain((16, 12), gaussian(8.0), 1).any()
    assert not phase_gain(SHAPE, gaussian(2.0), 1000).any()


def test_a_stiff_step_takes_no_wave_further_than_to_nothing() -> None:
    free, stiffness = slow_phase_gain(SHAPE, 2.0, 50.0), 5.0
    found = slow_phase_gain(SHAPE, 2.0, 50.0, stiffness)
    down, right = (2 * np.pi * np.fft.fftfreq(side) for side in SHAPE)
    taken = stiffness * (down[:, None] ** 2 + right**2)
    limited = (taken * (1 + free) > 1) & (taken < 1)
    assert limited.sum() > 5
    assert taken[limited] * (1 + found[limited]) == pytest.approx(1.0)
    assert not found[taken >= 1].any()
    kept = taken * (1 + free) <= 1
    assert kept.sum() > 2
    assert (found[kept] == free[kept]).all()
    assert (slow_phase_gain(SHAPE, 2.0, 50.0, 1e-3) == free).all()


@pytest.mark.parametrize("sigma_px", [2.0, 4.0, 6.0])
def test_the_scale_is_a_share_of_the_rms_radius(sigma_px: float) -> None:
    expected = 0.4 * np.sqrt(2) * sigma_px
    assert phase_scale_px(gaussian(sigma_px)) == pytest.approx(expected, rel=1e-4)
    assert phase_scale_px(7 * gaussian(sigma_px)) == pytest.approx(expected, rel=1e-4)
    away = gaussian(sigma_px, middle_px=27.0).astype(np.complex64)
    assert phase_scale_px(away) == pytest.approx(expected, rel=2e-3)


def test_the_power_of_all_modes_makes_the_scale() -> None:
    narrow, wide = gaussian(2.0), gaussian(4.0)
    both = np.concatenate([narrow / np.linalg.norm(narrow), wide / np.linalg.norm(wide)])
    assert phase_scale_px(both) == pytest.approx(0.4 * np.sqrt(4.0 + 16.0), rel=1e-4)


def test_a_dark_probe_has_a_finite_gain() -> None:
    assert phase_scale_px(np.zeros((1, 8, 8), complex)) == 0.0
    assert np.isfinite(phase_gain(SHAPE, np.zeros((1, 8, 8), complex), 1)).all()


@pytest.mark.parametrize("count", [1, 2, 4])
def test_the_longest_wave_of_the_canvas_sets_the_most_and_subsets_share_it(count: int) -> None:
    scale = 0.4 * np.sqrt(2) * 2.0
    most = (300 / (2 * np.pi * scale)) ** 2
    assert 1 < most < MOST_PHASE_GAIN * 10
    expected = slow_phase_gain((300, 200), scale, min(most, 300.0) / count)
    assert_twin(expected, phase_gain((300, 200), gaussian(2.0), count), 1e-3)
    narrow = phase_gain((90, 120), gaussian(2.0), count)
    assert narrow.max() == pytest.approx((120 / (2 * np.pi * scale)) ** 2 / count - 1, rel=1e-3)


def test_the_largest_turn_of_a_slow_phase_is_found() -> None:
    rng, light = np.random.default_rng(4), np.ones((96, 96))
    before = np.exp(1j * rng.uniform(-3, 3, light.shape))
    down, right = np.indices(light.shape) - 48
    hill = 0.1 * np.exp(-(down**2 + right**2) / (2 * 12.0**2))
    # A Gaussian of 12 px, seen through one of 5: the peak falls by the ratio of their areas.
    expected = 0.1 * 12**2 / (12**2 + 5**2)
    found = slow_turn_rad(before * np.exp(1j * hill), before, light, 5.0, 0.05)
    # What all pixels turn by is no change: the mean of the hill.
    assert found == pytest.approx(expected - hill.mean(), rel=0.01)
    assert slow_turn_rad(before * np.exp(0.7j), before, light, 5.0, 0.05) < 1e-12
    fast = 0.1 * rng.choice([-1, 1], light.shape)
    assert slow_turn_rad(before * np.exp(1j * fast), before, light, 5.0, 0.05) < 0.3 * 0.1


def test_a_turn_in_the_dark_is_none() -> None:
    light, before = np.ones((64, 64)), np.ones((64, 64), complex)
    light[:, 40:] = 1e-3
    turned = before * np.exp(1j * np.where(np.arange(64) > 50, 1.0, 0.0))
    assert slow_turn_rad(turned, before, light, 2.0, 0.05) < 0.01
    assert slow_turn_rad(turned, before, np.ones((64, 64)), 2.0, 0.05) > 0.3
    assert slow_turn_rad(turned, before, np.zeros((64, 64)), 2.0, 0.05) == 0.0
