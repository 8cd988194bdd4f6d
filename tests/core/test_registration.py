"""Two pictures of one sample find each other, to a fraction of a pixel, and say when they do not."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from ptycho.geometry.registration import Picture, match

SPOT_PX = 5.0
SIDE = 96


def sample(seed: int = 0) -> NDArray[np.complex128]:
    """Return a periodic, band-limited object (96, 96)."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(SIDE), np.fft.fftfreq(SIDE)))
    shape = np.exp(-((frequency / 0.12) ** 2))
    noise = np.fft.ifft2(np.fft.fft2(rng.standard_normal((2, SIDE, SIDE))) * shape).real
    noise /= noise.std()
    return (1 + 0.05 * noise[0]) * np.exp(0.3j * noise[1])


def moved(obj: NDArray[np.complex128], offset_yx: tuple[float, float]) -> NDArray[np.complex128]:
    """Return the object as seen from coordinates that lack an offset: O(r + offset)."""
    ky, kx = np.meshgrid(np.fft.fftfreq(SIDE), np.fft.fftfreq(SIDE), indexing="ij")
    return np.fft.ifft2(np.fft.fft2(obj) * np.exp(2j * np.pi * (ky * offset_yx[0] + kx * offset_yx[1])))


def picture(obj: NDArray[np.complex128], rows: slice, columns: slice) -> Picture:
    """Return a window of an object, faded towards its rim."""
    part = obj[rows, columns]
    edge = [np.minimum(1, (0.5 + np.minimum(np.arange(n), n - 1 - np.arange(n))) / 4) for n in part.shape]
    origin = np.array([rows.start, columns.start], float)
    return Picture(part.astype(np.complex64), np.multiply.outer(*edge), origin)


@pytest.mark.parametrize("offset", [(0.0, 0.0), (7.3, -4.6), (-12.45, 20.2), (0.5, 0.5)])
def test_a_known_offset_is_found_between_fields_that_overlap_in_part(offset: tuple[float, float]) -> None:
    obj = sample()
    reference = picture(obj, slice(4, 70), slice(10, 80))
    # In its own coordinates the second field begins elsewhere by what its positions are off.
    other = picture(1.3 * np.exp(0.7j) * moved(obj, offset), slice(16, 84), slice(20, 76))
    found = match(reference, other, SPOT_PX)
    assert found is not None
    assert found.clear
    np.testing.assert_allclose(found.offset_yx_px, offset, atol=0.05)
    assert found.factor == pytest.approx(1.3, rel=0.02)
    assert found.correlation > 0.9


def test_slow_phases_and_noise_that_only_one_picture_has_do_not_matter() -> None:
    obj, rng = sample(), np.random.default_rng(1)
    slow = np.exp(1j * np.linspace(0, 2, SIDE)[:, None] * np.linspace(0, 1, SIDE))
    noise = 0.05 * (rng.standard_normal((2, SIDE, SIDE)) * [[[1]], [[1j]]]).sum(axis=0)
    other = picture(moved(obj, (7.3, -4.6)) * slow + noise, slice(16, 84), slice(20, 76))
    found = match(picture(obj, slice(4, 70), slice(10, 80)), other, SPOT_PX)
    assert found is not None
    assert found.clear
    np.testing.assert_allclose(found.offset_yx_px, (7.3, -4.6), atol=0.1)


@pytest.mark.parametrize("seed", range(1, 6))
def test_two_samples_are_not_found_in_each_other(seed: int) -> None:
    first, other = (picture(sample(number), slice(4, 70), slice(10, 80)) for number in (0, seed))
    found = match(first, other, SPOT_PX)
    assert found is not None
    assert not found.clear


def test_a_pattern_that_repeats_fits_in_several_places() -> None:
    y, x = np.mgrid[:SIDE, :SIDE]
    lattice = np.exp(0.5j * (np.cos(2 * np.pi * y / 12) + np.cos(2 * np.pi * x / 12)))
    window = picture(lattice, slice(4, 70), slice(10, 80))
    found = match(window, window, SPOT_PX)
    assert found is not None
    assert not found.clear


def test_pictures_without_room_for_two_spots_match_nowhere() -> None:
    obj = sample()
    first, other = picture(obj, slice(0, 9), slice(0, 9)), picture(obj, slice(0, 9), slice(0, 9))
    assert match(first, other, SPOT_PX) is None
