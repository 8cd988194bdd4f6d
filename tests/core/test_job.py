"""Jobs: which patterns are trained on, which judge, and which are left out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ptycho.config.config import ModelConfig, TrainingConfig
from ptycho.data.prepare import prepare_scan
from ptycho.data.reconstruction import Reconstruction
from ptycho.data.scan import Scan
from ptycho.data.selection import MIN_VALIDATED, VALIDATION_SHARE, subsample, training_groups
from ptycho.errors import DataError
from ptycho.files.reader import open_scan


@pytest.fixture
def scan(small_scan: Path) -> Scan:
    """Return 64 patterns."""
    return open_scan(small_scan)


def settings(gridsize: int = 2, **values: object) -> TrainingConfig:
    """Return settings of a training run."""
    return TrainingConfig(model=ModelConfig(N=32, gridsize=gridsize), **values)


def test_a_subsample_is_sorted_distinct_and_seeded(scan: Scan) -> None:
    chosen = subsample(scan, 20, 4)
    assert len(np.unique(chosen)) == 20
    assert (np.diff(chosen) > 0).all()
    np.testing.assert_array_equal(chosen, subsample(scan, 20, 4))
    assert not np.array_equal(chosen, subsample(scan, 20, 5))
    for everything in (None, 64, 1000):
        np.testing.assert_array_equal(subsample(scan, everything, 0), np.arange(64))


@pytest.mark.parametrize("gridsize", [1, 2, 3])
def test_training_and_judging_groups_share_out_what_was_asked_for(gridsize: int, scan: Scan) -> None:
    config = settings(gridsize, n_groups=40, neighbor_count=12)
    training, judging = training_groups(scan, config, validate=True)
    assert judging is not None
    kept = round(VALIDATION_SHARE * 40)
    assert (len(training.indices), len(judging.indices)) == (40 - kept, kept)
    both = {tuple(sorted(row)) for groups in (training, judging) for row in groups.indices.tolist()}
    assert len(both) == 40
    for groups in (training, judging):
        assert groups.indices.shape[1] == gridsize**2
        positions = scan.positions_yx_px[groups.indices]
        np.testing.assert_allclose(groups.centres_yx_px[:, None] + groups.offsets_yx_px, positions, atol=1e-9)
        assert all(len(set(row)) == gridsize**2 for row in groups.indices.tolist())


@pytest.mark.parametrize("gridsize", [1, 2])
def test_groups_are_built_around_the_points_within_the_bounds(gridsize: int, scan: Scan) -> None:
    bounds_yx = ((0.25, 0.9), (0.0, 0.6))
    config = settings(gridsize, n_groups=512, neighbor_count=6)
    groups, _ = training_groups(scan, config, validate=False, bounds_yx=bounds_yx)
    positions = scan.positions_yx_px
    inside = np.ones(len(positions), dtype=bool)
    for axis, (low, high) in enumerate(bounds_yx):
        ends = np.quantile(positions[:, axis], (0.0, 1.0)) @ [[1 - low, 1 - high], [low, high]]
        inside &= (positions[:, axis] >= ends[0]) & (positions[:, axis] <= ends[1])
    assert 10 < inside.sum() < 40
    np.testing.assert_array_equal(np.sort(groups.indices[:, 0]), np.flatnonzero(inside))
    # Partners may lie outside.
    assert (set(groups.indices.ravel()) > set(np.flatnonzero(inside))) == (gridsize == 2)
    fewer = settings(gridsize, n_groups=9, neighbor_count=6)
    training, judging = training_groups(scan, fewer, validate=True, bounds_yx=bounds_yx)
    assert judging is not None
    kept = np.concatenate([training.indices[:, 0], judging.indices[:, 0]])
    assert len(set(kept)) == 9
    assert inside[kept].all()


def test_the_widest_bounds_hold_every_point_and_empty_ones_are_refused(scan: Scan) -> None:
    config = settings(1, n_groups=512)
    everywhere, _ = training_groups(scan, config, validate=False, bounds_yx=((0.0, 1.0), (0.0, 1.0)))
    assert set(everywhere.indices[:, 0]) == set(range(64))
    with pytest.raises(
        DataError, match=r"no scan point lies within the bounds \(got y_bounds \[0.5, 0.5001\]"
    ):
        training_groups(scan, config, validate=False, bounds_yx=((0.5, 0.5001), (0.0, 0.001)))
    line = replace(scan, positions_yx_px=scan.positions_yx_px * [1.0, 0.0])
    groups, _ = training_groups(line, config, validate=False, bounds_yx=((0.0, 0.5), (0.1, 0.9)))
    assert 20 < len(groups.indices) < 44


def test_no_group_is_kept_where_another_scan_judges_or_there_are_few(scan: Scan) -> None:
    training, judging = training_groups(scan, settings(n_groups=40), validate=False)
    assert judging is None
    assert len(training.indices) == 40
    training, judging = training_groups(scan, settings(n_groups=MIN_VALIDATED - 1), validate=True)
    assert judging is None
    assert len(training.indices) == MIN_VALIDATED - 1
    assert training_groups(scan, settings(n_groups=MIN_VALIDATED), validate=True)[1] is not None


def test_more_groups_than_points_are_cut_to_the_points_unless_oversampling_is_allowed(scan: Scan) -> None:
    training, _ = training_groups(scan, settings(n_groups=512), validate=False)
    assert len(training.indices) == 64
    config = settings(n_groups=200, enable_oversampling=True, neighbor_pool_size=12)
    training, _ = training_groups(scan, config, validate=False)
    assert len(training.indices) == 200


def test_groups_come_from_the_subsample_alone(scan: Scan) -> None:
    config = settings(n_groups=20, n_subsample=30, subsample_seed=2)
    training, judging = training_groups(scan, config, validate=True)
    assert judging is not None
    members = subsample(scan, 30, 2)
    used = np.union1d(training.indices, judging.indices)
    assert set(used) <= set(members)
    positions = scan.positions_yx_px[training.indices]
    np.testing.assert_allclose(training.centres_yx_px, positions.mean(axis=1), atol=1e-9)


def test_equal_seeds_give_equal_groups_and_other_seeds_others(scan: Scan) -> None:
    first, second, third = (
        training_groups(scan, settings(n_groups=30, seed=seed), validate=True)[0].indices
        for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, third)


def test_too_few_patterns_for_the_gridsize_are_refused(scan: Scan) -> None:
    few = prepare_scan(scan.raw.subset(np.arange(8)), name="few.npz")
    with pytest.raises(
        DataError, match=r"few\.npz: too few patterns for gridsize 3 \(got 8, expected at least 9\)"
    ):
        training_groups(few, settings(3, n_groups=4), validate=True)
    with pytest.raises(DataError, match=r"got 3, expected at least 4"):
        training_groups(scan, settings(2, n_groups=4, n_subsample=3), validate=True)
    assert len(training_groups(few, settings(2, n_groups=4), validate=True)[0].indices) == 4


def test_scanned_pixels_saw_a_twentieth_of_the_strongest_light() -> None:
    coverage = np.array([[0.0, 0.049, 0.05], [0.051, 0.5, 1.0]], dtype=np.float32)
    found = Reconstruction(
        obj=np.ones((2, 3), np.complex64), coverage=coverage, origin_yx_px=np.zeros(2),
        probe=np.ones((1, 2, 2), np.complex64), indices=np.arange(1), seconds=0.0,
    )  # fmt: skip
    np.testing.assert_array_equal(found.scanned, [[False, False, True], [True, True, True]])
