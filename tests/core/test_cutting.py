"""Known patches between pixels, against sums of plane waves, whose values everywhere are known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from ptycho.geometry.canvas import FADE_PX
from ptycho.geometry.grouping import object_patches

EXACT = 1e-5  # rounding of complex64 transforms and the rest of the fade, relative to waves of modulus <= 1
HEIGHT, WIDTH = 150, 171
HIGHEST = 0.38  # cycles per pixel
PAD = np.pad


class Waves:
    """A sum of eight plane waves whose amplitudes add to 1."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.factors = np.exp(2j * np.pi * rng.random(8)) / 8
        self.waves = rng.uniform(-HIGHEST, HIGHEST, (8, 2))

    def at(self, y: NDArray[Any], x: NDArray[Any]) -> NDArray[np.complex128]:
        turns = np.multiply.outer(y, self.waves[:, 0]) + np.multiply.outer(x, self.waves[:, 1])
        return np.exp(2j * np.pi * turns) @ self.factors

    def picture(self) -> NDArray[np.complex128]:
        return self.at(*np.mgrid[:HEIGHT, :WIDTH].astype(float))

    def patches(self, positions: NDArray[np.float64], n_px: int) -> NDArray[np.complex128]:
        steps = np.arange(n_px) - (n_px - 1) / 2
        y, x = (positions[:, axis, None] + steps for axis in (0, 1))
        return self.at(*np.broadcast_arrays(y[:, :, None], x[:, None, :]))


def positions_inside(n_px: int, room_px: float, count: int = 12) -> NDArray[np.float64]:
    half = (n_px - 1) / 2 + room_px
    rng = np.random.default_rng(5)
    return rng.uniform((half, half), (HEIGHT - 1 - half, WIDTH - 1 - half), (count, 2))


@pytest.mark.parametrize("n_px", [32, 33, 64])
def test_patches_between_pixels_are_the_exact_values_of_plane_waves(n_px: int) -> None:
    waves, positions = Waves(n_px), positions_inside(n_px, FADE_PX)
    expected = waves.patches(positions, n_px)
    assert np.abs(object_patches(waves.picture(), positions, n_px) - expected).max() < EXACT
    assert np.abs(object_patches(waves.picture(), positions + 0.01, n_px) - expected).max() > EXACT


def test_interpolation_between_neighbours_misses_the_bar_by_far() -> None:
    waves, positions = Waves(1), positions_inside(32, FADE_PX)
    steps, picture = np.arange(32) - 15.5, waves.picture()
    for position, expected in zip(positions, waves.patches(positions, 32), strict=True):
        at = np.meshgrid(*(value + steps for value in position), indexing="ij")
        found = map_coordinates(picture.real, at, order=1) + 1j * map_coordinates(picture.imag, at, order=1)
        assert np.abs(found - expected).max() > 1000 * EXACT


def border_error(waves: Waves) -> NDArray[np.float64]:
    """Largest error of patches at the upper border of an object, by the distance from it [px]."""
    rng = np.random.default_rng(2)
    positions = np.stack([rng.uniform(15.6, 16.4, 12), rng.uniform(70, 100, 12)], axis=1)
    found = object_patches(waves.picture(), positions, 32)
    return np.abs(found - waves.patches(positions, 32)).max(axis=(0, 2))


def test_the_border_of_an_object_does_not_ring_into_its_patches(monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(4):
        error = border_error(Waves(seed))
        assert error[0] < 0.3
        assert error[4:].max() < 0.03
        assert error[16:].max() < 3e-3
    monkeypatch.setattr(np, "pad", lambda part, room, **_: PAD(part, room))
    assert min(border_error(Waves(seed))[16:].max() for seed in range(4)) > 3e-3


def test_a_patch_does_not_depend_on_those_cut_beside_it() -> None:
    rng = np.random.default_rng(3)
    picture = rng.uniform(0.5, 1, (90, 75)) * np.exp(1j * rng.uniform(-1, 1, (90, 75)))
    half = 15.5
    positions = rng.uniform((half, half), (89 - half, 74 - half), (9, 2))
    together = object_patches(picture, positions, 32)
    alone = np.concatenate([object_patches(picture, position[None], 32) for position in positions])
    np.testing.assert_allclose(together, alone, atol=2e-6)


def test_an_object_of_one_patch_and_a_real_one_are_cut() -> None:
    picture = np.random.default_rng(4).uniform(0.5, 1, (32, 33))
    found = object_patches(picture, np.array([[15.5, 15.5], [15.5, 16.2]]), 32)
    np.testing.assert_array_equal(found[0], picture[:, :32].astype(np.complex64))
    assert np.isfinite(found).all()
    flat = object_patches(np.full((40, 40), 0.7 - 0.2j), np.array([[17.3, 21.9]]), 32)
    np.testing.assert_allclose(flat, 0.7 - 0.2j, atol=2e-6)
