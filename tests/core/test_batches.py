"""Facts about the order of training: every backend follows one seeded plan, and no pattern is lost."""

from __future__ import annotations

import numpy as np
import pytest

from ptycho.geometry.batches import (
    MIN_TILE_PATTERNS,
    batch_rows,
    group_plan,
    middle_patterns,
    split_patterns,
    tile_centres,
    tile_patterns,
    tile_plan,
    validation_centres,
)
from ptycho.geometry.grouping import Groups, make_groups
from ptycho.solver.schedule import PROBE_REFINE_PIXELS


def raster(side: int, step_px: float = 5.0) -> np.ndarray:
    axis = step_px * np.arange(side)
    return np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)


def part(groups: Groups, rows: slice | np.ndarray) -> Groups:
    return Groups(groups.indices[rows], groups.centres_yx_px[rows], groups.offsets_yx_px[rows])


@pytest.mark.parametrize(("n_px", "expected"), [(64, 256), (128, 96), (32, 1024), (256, MIN_TILE_PATTERNS)])
def test_a_tile_holds_a_megapixel_but_never_too_few_patterns(n_px: int, expected: int) -> None:
    assert tile_patterns(n_px) == expected


def test_batches_of_an_epoch_hold_every_row_once() -> None:
    batches = batch_rows(23, 4, seed=1, epoch=2)
    assert [len(rows) for rows in batches] == [4] * 5 + [3]
    np.testing.assert_array_equal(np.sort(np.concatenate(batches)), np.arange(23))


def test_rows_without_a_seed_stay_in_order() -> None:
    np.testing.assert_array_equal(np.concatenate(batch_rows(9, 4)), np.arange(9))


def test_seed_and_epoch_alone_decide_the_order() -> None:
    first = np.concatenate(batch_rows(50, 8, seed=3, epoch=1))
    np.testing.assert_array_equal(first, np.concatenate(batch_rows(50, 8, seed=3, epoch=1)))
    np.testing.assert_array_equal(tile_centres(50, 9, 3, 1), tile_centres(50, 9, 3, 1))
    for seed, epoch in ((3, 2), (4, 1)):
        assert (first != np.concatenate(batch_rows(50, 8, seed=seed, epoch=epoch))).any()
        assert (tile_centres(50, 9, 3, 1) != tile_centres(50, 9, seed, epoch)).any()


def test_patterns_that_judge_are_never_trained_on() -> None:
    groups = make_groups(raster(12), gridsize=2, n_groups=140, neighbor_count=6, seed=0)
    split = split_patterns(part(groups, slice(20, None)), part(groups, slice(20)), 64)
    assert split.held_out is not None
    assert len(split.held_out) > 0
    assert not np.isin(split.held_out, split.indices).any()
    everything = np.unique(groups.indices[20:])
    assert len(split.held_out) <= len(everything) // 10
    assert np.isin(everything, np.union1d(split.indices, split.held_out)).all()


@pytest.mark.parametrize("seed", range(5))
def test_patterns_that_judge_come_from_the_whole_scan_and_every_judging_tile_has_some(seed: int) -> None:
    positions = raster(40)
    groups = make_groups(positions, gridsize=1, seed=0)
    order = np.random.default_rng(seed).permutation(len(positions))
    split = split_patterns(part(groups, order[1000:]), part(groups, order[:1000]), 64, seed=seed)
    assert split.held_out is not None
    quarters = np.bincount(split.held_out // 400, minlength=4) / len(split.held_out)
    assert quarters.min() > 0.1
    again = split_patterns(part(groups, order[1000:]), part(groups, order[:1000]), 64, seed=seed)
    np.testing.assert_array_equal(again.held_out, split.held_out)
    both = np.union1d(split.indices, split.held_out[:6])
    validated = np.isin(both, split.held_out[:6])
    for centre in validation_centres(len(both), 64, validated):
        assert validated[tile_plan(positions[both], centre, 64)[0]].any()


def test_a_training_with_nothing_left_trains_on_what_was_held_out() -> None:
    groups = make_groups(raster(1), gridsize=1, seed=0)
    split = split_patterns(groups, groups, 64)
    np.testing.assert_array_equal(split.indices, [0])
    assert split.held_out is None
    assert split.steps == 1


def test_steps_show_every_pattern_about_once() -> None:
    groups = make_groups(raster(20), gridsize=1, seed=0)
    assert split_patterns(groups, None, 64).steps == 2
    assert split_patterns(groups, None, 32).steps == 1


@pytest.mark.parametrize("count", [1, 255, 257, 5000])
def test_judging_tiles_are_few_and_spread_evenly(count: int) -> None:
    centres = validation_centres(count, 64)
    assert len(centres) == min(4, -(-count // 256))
    assert 0 <= min(centres) <= max(centres) < count
    assert np.ptp(np.diff(centres)) <= 1 if len(centres) > 2 else True


def test_a_tile_lies_around_its_centre_on_a_canvas_the_network_can_halve_three_times() -> None:
    positions = raster(30) + 0.3
    indices, plan = tile_plan(positions, 200, 64)
    assert len(indices) == 256
    assert 200 in indices
    np.testing.assert_allclose(plan.positions_yx_px, positions[indices])
    assert [size % 8 for size in plan.shape_yx] == [0, 0]


@pytest.mark.parametrize("merge", [False, True])
def test_groups_of_a_batch_never_touch_each_other(merge: bool) -> None:
    groups = make_groups(raster(6), gridsize=2, n_groups=10, neighbor_count=6, seed=0)
    indices, plan = group_plan(groups, [4, 1], 16, merge=merge)
    np.testing.assert_array_equal(indices, groups.indices[[4, 1]])
    own_canvases = 2 if merge else 8
    height = plan.shape_yx[0] // own_canvases
    assert plan.shape_yx == (own_canvases * height, height)
    owners = np.repeat(range(own_canvases), 8 // own_canvases)
    np.testing.assert_array_equal(plan.corners_yx[:, 0] // height, owners)
    assert ((plan.corners_yx[:, 0] % height) + 16 <= height).all()
    offsets = plan.positions_yx_px[:4] - plan.positions_yx_px[:4].mean(axis=0)
    true = groups.offsets_yx_px[4] - groups.offsets_yx_px[4].mean(axis=0)
    assert np.allclose(offsets, true) == merge


def test_a_probe_is_refined_on_the_middle_of_the_scan() -> None:
    positions = raster(60)
    members = np.arange(0, 3600, 2)
    np.testing.assert_array_equal(middle_patterns(positions, members, 64), members)
    chosen = middle_patterns(positions, members, 256)
    assert len(chosen) == PROBE_REFINE_PIXELS // 256**2
    middle = positions[members].mean(axis=0)
    rest = np.setdiff1d(members, chosen)
    reach = np.abs(positions - middle).max(axis=1)
    assert reach[chosen].max() <= reach[rest].min()
