"""Facts about ptycho.geometry.grouping, judged by brute force."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ptycho.errors import ConfigError, DataError
from ptycho.geometry.grouping import Groups, covering_groups, make_groups

ROUND_OFF_PX = 1e-9  # float64 sums of positions of order 1e3 px


def scan(n_points: int, seed: int = 0) -> NDArray[np.float64]:
    return np.random.default_rng(seed).uniform(-50, 300, (n_points, 2))


def check_groups(positions: NDArray[np.float64], groups: Groups, size: int, neighbor_count: int) -> None:
    """Judge: shapes, no repeated point or group, partners among the nearest, mean and offsets right."""
    indices = groups.indices
    assert indices.dtype == np.int64
    assert indices.shape[1] == size
    assert all(len(set(row)) == size for row in indices.tolist()), "a point repeats in a group"
    assert len({frozenset(row) for row in indices.tolist()}) == len(indices), "a group repeats"
    for row in indices:
        distance = np.linalg.norm(positions - positions[row[0]], axis=1)
        bound = np.sort(distance)[min(neighbor_count, len(positions) - 1)]
        assert (distance[row[1:]] <= bound + ROUND_OFF_PX).all(), "a partner is too far"
    np.testing.assert_allclose(groups.centres_yx_px, [positions[row].mean(axis=0) for row in indices])
    rebuilt = groups.centres_yx_px[:, None] + groups.offsets_yx_px
    np.testing.assert_allclose(rebuilt, positions[indices], atol=ROUND_OFF_PX)


@settings(max_examples=40, deadline=None)
@given(
    n_points=st.integers(9, 60),
    gridsize=st.sampled_from([1, 2, 3]),
    extra=st.integers(0, 6),
    fraction=st.floats(0.05, 1.0),
    seed=st.integers(0, 99),
    sequential=st.booleans(),
)
def test_groups_obey_their_rules(
    n_points: int, gridsize: int, extra: int, fraction: float, seed: int, sequential: bool
) -> None:
    positions = scan(n_points, seed)
    size = gridsize**2
    wanted = max(1, int(fraction * n_points))
    groups = make_groups(
        positions,
        gridsize=gridsize,
        n_groups=wanted,
        neighbor_count=size + extra,
        seed=seed,
        sequential=sequential,
    )
    check_groups(positions, groups, size, size + extra)
    assert len(groups.indices) <= wanted


def plant(indices: NDArray[np.int64], kind: str, far: int) -> NDArray[np.int64]:
    broken = indices.copy()
    if kind == "a point repeats":
        broken[3, 2] = broken[3, 0]
    elif kind == "a group repeats":
        broken[5] = broken[3][::-1]
    else:
        broken[3, 1] = far
    return broken


@pytest.mark.parametrize("kind", ["a point repeats", "a group repeats", "a partner is too far"])
def test_the_judge_catches_planted_defects(kind: str) -> None:
    positions = scan(50)
    groups = make_groups(positions, gridsize=2, neighbor_count=6, seed=1)
    far = int(np.argmax(np.linalg.norm(positions - positions[groups.indices[3, 0]], axis=1)))
    broken = Groups(plant(groups.indices, kind, far), groups.centres_yx_px, groups.offsets_yx_px)
    with pytest.raises(AssertionError, match=kind):
        check_groups(positions, broken, 4, 6)


def test_the_judge_catches_a_mirrored_offset() -> None:
    positions = scan(50)
    groups = make_groups(positions, gridsize=2, neighbor_count=6, seed=1)
    with pytest.raises(AssertionError):
        check_groups(positions, Groups(groups.indices, groups.centres_yx_px, -groups.offsets_yx_px), 4, 6)


def test_the_wanted_number_of_groups_comes_out() -> None:
    positions = scan(400)
    assert make_groups(positions, gridsize=2, n_groups=100, seed=0).indices.shape == (100, 4)
    assert make_groups(positions, gridsize=2, neighbor_count=7, seed=0).indices.shape == (400, 4)
    assert make_groups(positions, gridsize=1, n_groups=100, seed=0).indices.shape == (100, 1)


def test_by_default_every_point_seeds_one_group() -> None:
    groups = make_groups(scan(200), gridsize=2, neighbor_count=7, seed=3)
    np.testing.assert_array_equal(groups.indices[:, 0], np.arange(200))


def test_a_seed_makes_the_draw_repeatable_and_another_one_changes_it() -> None:
    positions = scan(100)
    draws = [
        make_groups(positions, gridsize=2, n_groups=50, neighbor_count=7, seed=seed).indices
        for seed in (5, 5, 6)
    ]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert not np.array_equal(draws[0], draws[2])


def test_sequential_takes_the_first_points() -> None:
    for gridsize in (1, 2):
        groups = make_groups(scan(60), gridsize=gridsize, n_groups=20, neighbor_count=7, sequential=True)
        np.testing.assert_array_equal(groups.indices[:, 0], np.arange(20))


def test_every_choice_of_partners_is_equally_likely() -> None:
    positions = np.concatenate([[[0.0, 0.0]], [[np.cos(a), np.sin(a)] for a in np.arange(6)]])
    counts = np.zeros(7)
    for seed in range(600):
        drawn = make_groups(positions, gridsize=2, n_groups=1, neighbor_count=6, seed=seed, sequential=True)
        counts[drawn.indices[0, 1:]] += 1
    # 600 draws of 3 in 6: mean 300, standard deviation 12; five of them.
    assert counts[0] == 0
    assert np.abs(counts[1:] - 300).max() < 61


def test_points_at_the_same_place_still_make_whole_groups() -> None:
    positions = np.zeros((12, 2))
    groups = make_groups(positions, gridsize=2, neighbor_count=5, seed=0)
    check_groups(positions, groups, 4, 5)


def test_more_groups_than_points_need_oversampling() -> None:
    positions = scan(30)
    with pytest.raises(ConfigError, match="n_groups=90 for 30"):
        make_groups(positions, gridsize=2, n_groups=90, neighbor_count=8)
    with pytest.raises(ConfigError, match="got 3, expected >= 4"):
        make_groups(positions, gridsize=2, n_groups=90, enable_oversampling=True, neighbor_pool_size=3)
    groups = make_groups(
        positions, gridsize=2, n_groups=90, seed=0, enable_oversampling=True, neighbor_pool_size=8
    )
    assert groups.indices.shape == (90, 4)
    check_groups(positions, groups, 4, 8)
    np.testing.assert_array_equal(np.bincount(groups.indices[:, 0]), np.full(30, 3))


def test_when_distinct_groups_run_out_the_rest_is_left_out_and_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        groups = make_groups(scan(4), gridsize=2, seed=0)
    assert groups.indices.shape == (1, 4)
    assert "3 of the 4" in caplog.text


def test_single_patterns_never_exceed_the_scan(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        groups = make_groups(scan(7), gridsize=1, n_groups=50, enable_oversampling=True)
    np.testing.assert_array_equal(groups.indices[:, 0], np.arange(7))
    assert "all 7 are used" in caplog.text


def test_a_small_neighbor_count_is_raised_and_said(caplog: pytest.LogCaptureFixture) -> None:
    positions = scan(60)
    with caplog.at_level(logging.WARNING):
        groups = make_groups(positions, gridsize=3, neighbor_count=7, n_groups=20, seed=0)
    check_groups(positions, groups, 9, 9)
    assert "neighbor_count 7" in caplog.text


@pytest.mark.parametrize("gridsize", [1, 2, 3])
def test_covering_groups_hold_every_point_in_column_zero(gridsize: int) -> None:
    positions = scan(80)
    groups = covering_groups(positions, gridsize=gridsize)
    assert groups.indices.shape == (80, gridsize**2)
    np.testing.assert_array_equal(groups.indices[:, 0], np.arange(80))
    assert all(len(set(row)) == gridsize**2 for row in groups.indices.tolist())


def test_covering_groups_take_the_nearest_points() -> None:
    positions = scan(80)
    groups = covering_groups(positions, gridsize=2)
    distance = np.linalg.norm(positions[:, None] - positions[None], axis=-1)
    np.testing.assert_array_equal(groups.indices, np.argsort(distance, axis=1)[:, :4])


def test_bad_input_is_refused_with_its_value() -> None:
    for call in (make_groups, covering_groups):
        with pytest.raises(DataError, match="got 3, expected at least 4"):
            call(scan(3), gridsize=2)
        with pytest.raises(DataError, match=r"got \(5, 3\)"):
            call(np.zeros((5, 3)), gridsize=1)
        with pytest.raises(DataError, match=r"got \[nan, 0.0\] at row 2"):
            call(np.array([[0, 0], [1, 1], [np.nan, 0]]), gridsize=1)
        with pytest.raises(ConfigError, match="got 0"):
            call(scan(3), gridsize=0)
    with pytest.raises(ConfigError, match="got -1"):
        make_groups(scan(9), gridsize=1, n_groups=-1)
