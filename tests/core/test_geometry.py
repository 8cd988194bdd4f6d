"""Facts about scan geometry: positions survive the plan, no patch is lost, tiles and groups keep theirs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from judges import assert_twin
from numpy.typing import NDArray

from ptycho import physics
from ptycho.errors import DataError
from ptycho.geometry.canvas import (
    TIE_PX,
    CanvasPlan,
    check_positions,
    group_canvases,
    lay_on_canvas,
    moved_plan,
    nearest_tile,
    plan_canvas,
)

EXACT_PX = 1e-9  # float64 rounding of coordinates up to 1e5 px, with a margin of 100

Array = NDArray[Any]


def assert_all_inside(plan: CanvasPlan) -> None:
    """Judge: every patch is on the canvas and no shift is larger than half a pixel."""
    assert (plan.corners_yx >= 0).all()
    assert (plan.corners_yx + plan.patch_px <= plan.shape_yx).all()
    assert np.abs(plan.shifts_yx_px).max() <= 0.5 + TIE_PX + EXACT_PX


def scattered(n_positions: int = 40, seed: int = 0) -> Array:
    return np.random.default_rng(seed).uniform(-30.0, 50.0, (n_positions, 2)) * [1.0, 1.7]


def lattice(fraction: tuple[float, float] = (0.0, 0.0)) -> Array:
    return np.random.default_rng(1).integers(-20, 40, (30, 2)) + np.array(fraction)


def test_the_judge_catches_a_patch_one_pixel_off_the_canvas() -> None:
    plan = plan_canvas(scattered(), 16)
    short = CanvasPlan(
        (plan.shape_yx[0], plan.shape_yx[1] - 1), plan.origin_yx_px, plan.corners_yx, plan.shifts_yx_px, 16
    )
    with pytest.raises(AssertionError):
        assert_all_inside(short)


@pytest.mark.parametrize("patch_px", [16, 17])
@pytest.mark.parametrize("offset", [0.0, -1e4, 1e5])
@pytest.mark.parametrize("centre", [None, (3.25, -8.6)])
def test_positions_are_recovered_from_the_plan(
    patch_px: int, offset: float, centre: tuple[float, float] | None
) -> None:
    positions = scattered() + offset
    middle = None if centre is None else (centre[0] + offset, centre[1] + offset)
    plan = plan_canvas(positions, patch_px, margin_px=3, multiple_px=8, centre_yx_px=middle)
    np.testing.assert_allclose(plan.positions_yx_px, positions, rtol=0, atol=EXACT_PX)
    assert_all_inside(plan)


@settings(max_examples=150, deadline=None)
@given(
    positions=arrays(np.float64, st.tuples(st.integers(1, 12), st.just(2)), elements=st.floats(-2000, 2000)),
    patch_px=st.integers(2, 33),
    margin_px=st.integers(0, 5),
    multiple_px=st.sampled_from([1, 2, 3, 8]),
    centre=st.none() | st.tuples(st.floats(-500, 500), st.floats(-500, 500)),
)
def test_no_patch_is_ever_outside(
    positions: Array, patch_px: int, margin_px: int, multiple_px: int, centre: tuple[float, float] | None
) -> None:
    plan = plan_canvas(positions, patch_px, margin_px=margin_px, multiple_px=multiple_px, centre_yx_px=centre)
    assert_all_inside(plan)
    assert all(size % multiple_px == 0 for size in plan.shape_yx)
    np.testing.assert_allclose(plan.positions_yx_px, positions, rtol=0, atol=EXACT_PX)
    if centre is not None:
        middle = plan.origin_yx_px + (np.array(plan.shape_yx) - 1) / 2
        np.testing.assert_allclose(middle, centre, rtol=0, atol=EXACT_PX)


@pytest.mark.parametrize("patch_px", [16, 17])
@pytest.mark.parametrize("fraction", [(0.0, 0.0), (0.5, 0.5), (0.25, -0.4)])
def test_positions_on_one_pixel_lattice_need_no_shift(patch_px: int, fraction: tuple[float, float]) -> None:
    assert plan_canvas(lattice(fraction), patch_px).is_integer
    assert not plan_canvas(scattered(), patch_px).is_integer


def test_one_position_of_any_fraction_needs_no_shift() -> None:
    plan = plan_canvas(np.array([[3.217, -4.9]]), 8)
    assert plan.is_integer
    assert plan.shape_yx == (8, 8)


@pytest.mark.parametrize("patch_px", [16, 17])
@pytest.mark.parametrize("centre", [(7.0, 3.0), (7.5, 3.5), (7.0, 3.5)])
def test_a_centre_on_the_lattice_or_between_keeps_the_scan_integer(
    patch_px: int, centre: tuple[float, float]
) -> None:
    plan = plan_canvas(lattice(), patch_px, centre_yx_px=centre)
    middle = plan.origin_yx_px + (np.array(plan.shape_yx) - 1) / 2
    np.testing.assert_array_equal(middle, centre)
    assert plan.is_integer
    assert_all_inside(plan)


@pytest.mark.parametrize("patch_px", [16, 17])
def test_without_a_margin_patches_touch_all_four_edges(patch_px: int) -> None:
    plan = plan_canvas(scattered(), patch_px)
    assert (plan.corners_yx.min(axis=0) == 0).all()
    assert (plan.corners_yx.max(axis=0) + patch_px == plan.shape_yx).all()


def test_a_margin_adds_as_many_pixels_on_every_side() -> None:
    tight, wide = plan_canvas(scattered(), 16), plan_canvas(scattered(), 16, margin_px=5)
    assert wide.shape_yx == (tight.shape_yx[0] + 10, tight.shape_yx[1] + 10)
    np.testing.assert_array_equal(wide.corners_yx, tight.corners_yx + 5)


@pytest.mark.parametrize("multiple_px", [8, 7])
def test_the_canvas_grows_to_a_multiple_at_the_far_side(multiple_px: int) -> None:
    tight, grown = plan_canvas(scattered(), 16), plan_canvas(scattered(), 16, multiple_px=multiple_px)
    extra = np.subtract(grown.shape_yx, tight.shape_yx)
    assert all(size % multiple_px == 0 for size in grown.shape_yx)
    assert ((extra >= 0) & (extra < multiple_px)).all()
    np.testing.assert_array_equal(grown.corners_yx, tight.corners_yx)


def test_one_pixel_in_x_moves_the_patch_by_one_column() -> None:
    positions = np.array([[20.0, 20.0], [20.0, 21.0], [21.0, 20.0]])
    plan = plan_canvas(positions, 8)
    rows, columns = np.mgrid[0 : plan.shape_yx[0], 0 : plan.shape_yx[1]]
    patches = physics.extract_patches(rows + 1j * columns, plan.corners_yx, 8)
    assert_twin(patches[0] + 1j, patches[1], 1e-15)
    assert_twin(patches[0] + 1, patches[2], 1e-15)


@pytest.mark.parametrize("patch_px", [8, 9])
def test_the_middle_of_the_patch_shows_the_object_at_the_position(patch_px: int) -> None:
    plan = plan_canvas(scattered(), patch_px)
    rows, columns = np.mgrid[0 : plan.shape_yx[0], 0 : plan.shape_yx[1]].astype(np.float64)
    coordinates = (plan.origin_yx_px[0] + rows) + 1j * (plan.origin_yx_px[1] + columns)
    # The mean of a linear picture over a patch is its value at the patch middle, (N - 1) / 2.
    middle = physics.extract_patches(coordinates, plan.corners_yx, patch_px).mean(axis=(1, 2))
    middle = middle + plan.shifts_yx_px @ np.array([1, 1j])
    assert_twin(scattered() @ np.array([1, 1j]), middle, 1e-12)


@pytest.mark.parametrize("wrong", [np.zeros((0, 2)), np.zeros((3, 3)), np.zeros(4), np.zeros((2, 2, 2))])
def test_positions_of_another_shape_are_refused(wrong: Array) -> None:
    with pytest.raises(DataError, match=r"wrong shape \(got \("):
        check_positions(wrong)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_position_that_is_not_finite_is_named(value: float) -> None:
    positions = scattered()
    positions[5, 1] = value
    with pytest.raises(DataError, match="row 5 is not finite"):
        plan_canvas(positions, 16)


# --- tiles ---


@pytest.mark.parametrize("n_patterns", [1, 7, 39, 40, 100])
def test_the_nearest_tile_matches_a_full_sort(n_patterns: int) -> None:
    positions, centre = scattered(), np.array([4.0, 20.0])
    distance = np.maximum(np.abs(positions[:, 0] - centre[0]), np.abs(positions[:, 1] - centre[1]))
    brute = np.sort(np.argsort(distance)[:n_patterns])
    np.testing.assert_array_equal(nearest_tile(positions, centre, n_patterns), brute)


def test_a_tile_of_a_square_scan_is_square() -> None:
    grid = np.stack(np.mgrid[0:9, 0:9], axis=-1).reshape(-1, 2).astype(np.float64)
    tile = grid[nearest_tile(grid, np.array([4.0, 4.0]), 9)]
    np.testing.assert_array_equal(tile, [[y, x] for y in (3, 4, 5) for x in (3, 4, 5)])


# --- groups ---


@pytest.mark.parametrize("patch_px", [8, 9])
def test_groups_never_touch_each_other(patch_px: int) -> None:
    offsets = np.random.default_rng(2).uniform(-6.5, 6.5, (5, 4, 2))
    plan = group_canvases(offsets, patch_px)
    assert_all_inside(plan)
    index = physics.patch_indices(plan.corners_yx, patch_px, plan.shape_yx).reshape(5, -1)
    owners = [set(pixels.tolist()) for pixels in index]
    assert len(set.union(*owners)) == sum(len(pixels) for pixels in owners)


@pytest.mark.parametrize("patch_px", [8, 9])
def test_a_group_keeps_its_offsets(patch_px: int) -> None:
    offsets = np.random.default_rng(3).uniform(-6.5, 6.5, (5, 4, 2))
    plan = group_canvases(offsets, patch_px)
    frames = np.arange(5)[:, None, None] * np.array([plan.shape_yx[0] // 5, 0])
    found = plan.positions_yx_px.reshape(5, 4, 2) - frames
    np.testing.assert_allclose(found, offsets, rtol=0, atol=EXACT_PX)


def test_a_group_of_one_is_a_canvas_of_one_patch() -> None:
    plan = group_canvases(np.zeros((3, 1, 2)), 8)
    assert plan.shape_yx == (24, 8)
    assert plan.is_integer
    np.testing.assert_array_equal(plan.corners_yx, [[0, 0], [8, 0], [16, 0]])


@settings(max_examples=60, deadline=None)
@given(
    offsets=arrays(
        np.float64, st.tuples(st.integers(1, 4), st.integers(1, 4), st.just(2)), elements=st.floats(-20, 20)
    ),
    patch_px=st.integers(2, 17),
)
def test_groups_of_any_offsets_stay_inside_their_own_frame(offsets: Array, patch_px: int) -> None:
    plan = group_canvases(offsets, patch_px)
    assert_all_inside(plan)
    size = plan.shape_yx[0] // len(offsets)
    rows = plan.corners_yx[:, 0].reshape(len(offsets), -1) - np.arange(len(offsets))[:, None] * size
    assert (rows >= 0).all()
    assert (rows + patch_px <= size).all()


@pytest.mark.parametrize("patch_px", [15, 16])
@pytest.mark.parametrize("start_px", [0.0, 0.3, 0.5, -7.25])
@pytest.mark.parametrize("multiple_px", [1, 8])
def test_patches_find_their_place_on_the_canvas_again(
    patch_px: int, start_px: float, multiple_px: int
) -> None:
    axis = start_px + 2.5 * np.arange(6)
    positions = np.stack(np.meshgrid(axis, axis[:4], indexing="ij"), -1).reshape(-1, 2)
    plan = plan_canvas(positions, patch_px, multiple_px=multiple_px)
    for unit in (1.0, 1.3e-8):
        # In another unit positions between two pixels are no longer exactly there.
        again = lay_on_canvas(
            positions * unit / unit, patch_px, shape_yx=plan.shape_yx, origin_yx_px=plan.origin_yx_px
        )
        np.testing.assert_array_equal(again.corners_yx, plan.corners_yx)
        np.testing.assert_allclose(again.shifts_yx_px, plan.shifts_yx_px, atol=EXACT_PX)
        physics.extract_patches(np.ones(plan.shape_yx), again.corners_yx, patch_px)


def test_a_position_that_moved_takes_the_pixel_it_is_nearest_to_and_stays_on_the_canvas() -> None:
    plan = plan_canvas(np.array([[20.0, 20.0], [26.0, 23.0]]), 8)
    moved = moved_plan(plan, plan.shifts_yx_px + np.array([[1.7, -0.9], [2.2, -1.4]]))
    np.testing.assert_array_equal(moved.corners_yx - plan.corners_yx, [[2, 0], [0, -1]])
    np.testing.assert_allclose(moved.shifts_yx_px, [[-0.3, -0.9], [2.2, -0.4]], atol=EXACT_PX)
    assert moved.shape_yx == plan.shape_yx


def test_a_patch_beside_a_canvas_that_exists_is_refused() -> None:
    place = {"shape_yx": (20, 30), "origin_yx_px": np.array([2.0, 0.5])}
    with pytest.raises(DataError, match=r"canvas: a patch lies 1\.5 px off the 20x30 px canvas"):
        lay_on_canvas(np.array([[0.5 + 3.5, 20.0]]), 8, **place)
    with pytest.raises(DataError, match=r"smaller than a patch \(got 20x30 px, expected sides >= 24 px\)"):
        lay_on_canvas(np.array([[12.0, 12.0]]), 24, **place)
