"""Facts about the deformation of a scan (eq. 23): its field, its slopes, and what patterns ask for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from judges import FLOAT64, assert_twin
from numpy.typing import NDArray

from ptycho.geometry.deformation import FEWEST_PATTERNS, LONGEST_PX, MOST_WAVES, Deformation

Array = NDArray[Any]

SHAPE = (120, 90)
WAVES = ((0, 1), (1, 0), (1, 1), (2, 0))
FIELDS = Deformation(SHAPE, WAVES, radius_px=6.0)
RIDGED = 2e-2
"""What the ridge of the coefficients takes of them, relative to the largest."""


def places(count: int = 200) -> Array:
    return np.random.default_rng(0).uniform(0, 1, (count, 2)) * (np.array(SHAPE) - 1)


def coefficients(size_px: float) -> Array:
    return size_px * np.random.default_rng(1).standard_normal((2 + len(WAVES), 2))


def test_the_field_is_slopes_and_products_of_cosines() -> None:
    pairs = coefficients(1.0)
    for y, x in places(5):
        values = [2 * y / 119 - 1, 2 * x / 89 - 1]
        values += [np.cos(np.pi * i * y / 120) * np.cos(np.pi * k * x / 90) for i, k in WAVES]
        expected = sum(value * pair for value, pair in zip(values, pairs, strict=True))
        np.testing.assert_allclose(FIELDS.field(pairs, np.array([y, x])), expected, atol=1e-12)
    grid = np.stack(np.indices((3, 4)), -1).astype(float)
    assert FIELDS.field(pairs, grid).shape == (3, 4, 2)


def test_gradients_are_the_slopes_of_every_function() -> None:
    where, step = places(20), 1e-4
    found = FIELDS.gradients(where)
    assert found.shape == (20, 2, 6)
    for function in range(6):
        one = np.zeros((6, 2))
        one[function] = 1, -2
        for axis in (0, 1):
            ahead, behind = (FIELDS.field(one, where + sign * step * np.eye(2)[axis]) for sign in (1, -1))
            slope = (ahead - behind) / (2 * step)
            np.testing.assert_allclose(np.outer(found[:, axis, function], [1, -2]), slope, atol=1e-9)


def equations(fields: Deformation, pairs: Array, where: Array) -> tuple[Array, Array]:
    """Normal matrices and right sides of patterns that a field strained and that moved by themselves too."""
    rng = np.random.default_rng(2)
    slopes = rng.standard_normal((len(where), 40, 6)) * [1, 1, 3, 3, 3, 3]
    normal = slopes.transpose(0, 2, 1) @ slopes
    alone = rng.normal(0, 0.5, (len(where), 2))
    # The object under the spot moves against it: minus the derivative along a of the field along b.
    strain = -np.einsum("jak,kb->jab", fields.gradients(where), pairs).reshape(-1, 4)
    asked = np.concatenate([alone, strain], axis=1)
    return normal, (normal @ asked[:, :, None])[:, :, 0]


@pytest.mark.parametrize("affine", [False, True])
def test_a_planted_field_is_found_beside_free_positions(affine: bool) -> None:
    fields = Deformation(SHAPE, () if affine else WAVES, radius_px=6.0)
    pairs, where = coefficients(0.3)[: 2 if affine else 6], places()
    normal, right = equations(fields, pairs, where)
    sums = fields.sums(where, normal, right)
    assert sums[0].shape == (2 * len(pairs), 2 * len(pairs))
    assert_twin(sums[0], sums[0].T, FLOAT64)
    assert_twin(pairs, fields.solve(*sums), RIDGED)
    # Sums of parts of the scan add up.
    halves = [fields.sums(where[part], normal[part], right[part]) for part in (slice(100), slice(100, None))]
    for whole, first, second in zip(sums, *halves, strict=True):
        assert_twin(whole, first + second, 1e-4)
    with pytest.raises(AssertionError):
        assert_twin(pairs, fields.solve(*fields.sums(where, normal, -right)), 0.5)
    if not affine:
        with pytest.raises(AssertionError):
            assert_twin(pairs, fields.solve(*fields.sums(where[:, ::-1], normal, right)), 0.1)


def test_what_nothing_tells_stays_zero() -> None:
    fields, where = FIELDS, places()
    where[:, 1] = 0  # along a line, where no product of cosines changes along x
    normal, right = equations(fields, coefficients(0.3), where)
    normal[:, 4:], normal[:, :, 4:], right[:, 4:] = 0, 0, 0  # and nothing feels a change along x
    found = fields.solve(*fields.sums(where, normal, right))
    assert np.abs(found[1]).max() < 1e-6
    assert np.isfinite(found).all()


@pytest.mark.parametrize("size_px", [3.0, 30.0])
def test_one_step_moves_the_rim_of_a_spot_by_a_bounded_length(size_px: float) -> None:
    pairs, where = coefficients(size_px), places()
    found = FIELDS.solve(*FIELDS.sums(where, *equations(FIELDS, pairs, where)))
    grid = np.stack(np.indices(SHAPE), -1).reshape(-1, 2)[::7].astype(float)
    strain = np.abs(np.einsum("jak,kb->jab", FIELDS.gradients(grid), found)).max()
    assert strain * FIELDS.radius_px == pytest.approx(LONGEST_PX, rel=0.02)
    # Shorter, but along the same way.
    cosine = (found * pairs).sum() / np.linalg.norm(found) / np.linalg.norm(pairs)
    assert cosine > 0.999


def test_an_object_moves_along_less_the_offset_of_all() -> None:
    y, x = np.indices(SHAPE).astype(float)

    def obj_at(y_px: Array, x_px: Array) -> Array:
        return 1 + 0.3 * np.exp(1j * (0.15 * y_px - 0.1 * x_px)) + 0.2j * np.cos(0.08 * y_px + 0.12 * x_px)

    pairs, offset = coefficients(0.8), np.array([0.4, -0.3])
    moved = FIELDS.field(pairs, np.stack([y, x], -1)) - offset
    expected = obj_at(y - moved[..., 0], x - moved[..., 1])
    found = FIELDS.warped(obj_at(y, x).astype(np.complex64), pairs, offset)
    assert found.dtype == np.complex64
    inside = np.s_[8:-8, 8:-8]
    assert np.abs(found - expected)[inside].max() < 2e-3
    assert np.abs(obj_at(y, x) - expected)[inside].max() > 0.05
    np.testing.assert_allclose(FIELDS.warped(obj_at(y, x), 0 * pairs, np.zeros(2)), obj_at(y, x), atol=1e-12)


def test_more_patterns_over_more_spots_have_more_coefficients() -> None:
    def fields(count: int, width_px: float, *, affine: bool = False) -> Deformation:
        raster = np.stack(np.indices((count, count)), -1).reshape(-1, 2) * width_px / (count - 1)
        return Deformation.of_scan(raster, SHAPE, 10.0, affine=affine)

    def most(found: Deformation) -> int:
        return max((i + k for i, k in found.waves), default=0)

    # A half wave is at least three radii long.
    assert [most(fields(60, width)) for width in (29, 31, 61, 200, 900)] == [0, 1, 2, MOST_WAVES, MOST_WAVES]
    assert len(fields(60, 900).waves) + 2 == 29
    assert (0, 0) not in fields(60, 900).waves
    for count in (3, 6, 8, 12, 20):
        found = fields(count, 900)
        assert most(found) == 0 or 2 * (2 + len(found.waves)) * FEWEST_PATTERNS <= count**2
    assert [most(fields(count, 900)) for count in (3, 8, 12, 20)] == [0, 1, 2, 5]
    assert fields(60, 900, affine=True).waves == ()
    assert fields(60, 900).radius_px == 10.0
