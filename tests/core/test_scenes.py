"""Scenes: finite, inside their ranges, decided by the seed, and drawn the right way round."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ptycho.errors import ConfigError, DataError
from ptycho.simulation.objects import AMPLITUDE_RANGE, PHASE_RANGE_RAD, SCENES, make_scene, picture

SHAPE = (96, 130)
NYQUIST_POWER = 2e-3
"""A Gaussian of 0.7 px passes exp(-(2 pi 0.7 0.45)^2) = 2 % of the little power that edges have there."""


def power_beyond_the_band(obj: np.ndarray) -> float:
    """Return the share of the contrast beyond 0.45 cycles per px."""
    window = np.outer(np.hanning(len(obj)), np.hanning(len(obj)))
    power = np.abs(np.fft.fft2((obj - obj.mean()) * window)) ** 2
    frequency = np.fft.fftfreq(len(obj))
    radius = np.hypot(frequency[:, None], frequency[None, :])
    return float(power[radius > 0.45].sum() / power.sum())


@pytest.mark.parametrize("name", sorted(SCENES))
def test_scene_has_the_shape_and_stays_in_its_ranges(name: str) -> None:
    obj = make_scene(name, SHAPE, 3)
    assert obj.shape == SHAPE
    assert obj.dtype == np.complex128
    assert np.isfinite(obj).all()
    low, high = AMPLITUDE_RANGE
    assert np.abs(obj).min() >= low - 1e-12
    assert np.abs(obj).max() <= high + 1e-12
    assert np.abs(np.angle(obj)).max() <= PHASE_RANGE_RAD / 2 + 1e-12
    assert np.ptp(np.abs(obj)) > 0.15
    assert np.ptp(np.angle(obj)) > 0.5


@pytest.mark.parametrize("name", sorted(SCENES))
def test_seed_decides_the_scene(name: str) -> None:
    assert np.array_equal(make_scene(name, SHAPE, 5), make_scene(name, SHAPE, 5))
    assert np.abs(make_scene(name, SHAPE, 5) - make_scene(name, SHAPE, 6)).max() > 0.05


@pytest.mark.parametrize("name", sorted(SCENES))
def test_scene_is_band_limited(name: str) -> None:
    assert power_beyond_the_band(make_scene(name, (128, 128), 2)) < NYQUIST_POWER


def test_hard_edges_are_not_band_limited() -> None:
    obj = make_scene("dead_leaves", (128, 128), 2)
    assert power_beyond_the_band(np.exp(1j * (np.angle(obj) > 0.0))) > 2 * NYQUIST_POWER


def test_collage_has_no_mirror_symmetry() -> None:
    phase = np.angle(make_scene("collage", (160, 160), 1))
    centred = phase - phase.mean()
    twins = [phase.T, phase[::-1], phase[:, ::-1], phase[::-1, ::-1], np.rot90(phase), np.rot90(phase, 3)]
    for twin in twins:
        correlation = (centred * (twin - twin.mean())).mean() / centred.var()
        assert abs(correlation) < 0.5


def test_phase_range_scales_the_phase() -> None:
    narrow = np.angle(make_scene("dead_leaves", SHAPE, 4, phase_range_rad=0.5))
    wide = np.angle(make_scene("dead_leaves", SHAPE, 4, phase_range_rad=2.0))
    np.testing.assert_allclose(wide, 4.0 * narrow, atol=1e-12)


def test_the_blur_of_edges_is_the_gaussian_that_is_asked_for() -> None:
    sharp, blurred = (
        np.log(np.abs(np.fft.fft2(np.angle(make_scene("power_law", (64, 64), 4, edge_blur_px=blur)))))
        for blur in (0.0, 0.6)
    )
    frequency = np.fft.fftfreq(64)
    radius = np.hypot(frequency[:, None], frequency[None, :])
    middle = (radius > 0.1) & (radius < 0.35)
    # A Gaussian of sigma s passes exp(-2 (pi s f)^2); the ends of the field are not periodic.
    expected = -2 * (np.pi * 0.6 * radius) ** 2
    assert np.median((blurred - sharp - expected)[middle]) == pytest.approx(0.0, abs=0.05)


def test_power_laws_are_of_every_slope() -> None:
    frequency = np.fft.fftfreq(96)
    radius = np.hypot(frequency[:, None], frequency[None, :])
    middle = (radius > 0.03) & (radius < 0.3)
    slopes = []
    for seed in range(12):
        field = np.angle(make_scene("power_law", (96, 96), seed, edge_blur_px=0.0))
        window = np.outer(np.hanning(96), np.hanning(96))
        power = np.abs(np.fft.fft2((field - field.mean()) * window)) ** 2
        slopes.append(-np.polyfit(np.log(radius[middle]), np.log(power[middle]), 1)[0])
    assert min(slopes) < 1.8 < 3.0 < max(slopes)


def test_scene_names_accept_dashes_and_suggest_the_nearest() -> None:
    assert np.array_equal(make_scene("dead-leaves", SHAPE, 1), make_scene("dead_leaves", SHAPE, 1))
    with pytest.raises(ConfigError, match=r"got 'siemens_stars'.*Use 'siemens_star'"):
        make_scene("siemens_stars", SHAPE, 1)


def _save(path: Path, values: np.ndarray) -> Path:
    from PIL import Image

    Image.fromarray(values).save(path)
    return path


def test_picture_keeps_rows_and_columns(tmp_path: Path) -> None:
    grey = np.zeros((40, 60), dtype=np.uint8)
    grey[5:10, 40:55] = 255
    obj = picture(_save(tmp_path / "a.png", grey), (40, 60))
    bright = np.abs(obj) > 0.8
    rows, columns = np.nonzero(bright)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (5, 9, 40, 54)


def test_second_picture_makes_the_phase_only(tmp_path: Path) -> None:
    ramp = np.tile(np.arange(64, dtype=np.uint8) * 4, (64, 1))
    first, second = _save(tmp_path / "a.png", ramp), _save(tmp_path / "b.png", ramp.T.copy())
    obj = picture(first, (64, 64), phase_path=second)
    inner = obj[8:-8, 8:-8]
    assert np.ptp(np.abs(inner), axis=0).max() < 1e-6
    assert np.ptp(np.angle(inner), axis=1).max() < 1e-6
    assert np.ptp(np.angle(inner)) > 0.7


def test_bad_pictures_are_named(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(DataError, match=r"text\.png"):
        picture(tmp_path / "text.png", SHAPE)
    with pytest.raises(DataError, match=r"none\.png"):
        picture(tmp_path / "none.png", SHAPE)
    flat = _save(tmp_path / "flat.png", np.full((20, 20), 7, dtype=np.uint8))
    with pytest.raises(DataError, match="contrast"):
        picture(flat, SHAPE)
