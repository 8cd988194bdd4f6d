"""Facts about ordered subsets: each covers the field, and many come before few."""

from __future__ import annotations

import numpy as np
import pytest

from ptycho.geometry.batches import most_subsets, subset_order
from ptycho.solver.options import RefineOptions
from ptycho.solver.schedule import (
    BLOCKS,
    CONVERGED_STEPS,
    MIN_ITERATIONS,
    POSITION_REST_STEPS,
    PROBE_REST_STEPS,
    SUBSET_MOMENTUM,
    has_converged,
    needed_iterations,
    nesterov_momentum,
    subset_momentum,
    subset_schedule,
)


def raster(n_y: int, n_x: int, step_px: float = 5.0) -> np.ndarray:
    return np.stack(np.indices((n_y, n_x)), -1).reshape(-1, 2) * step_px


def disc(radius_px: float, n_px: int = 64) -> np.ndarray:
    y, x = np.indices((n_px, n_px)) - n_px / 2
    return (y**2 + x**2 < radius_px**2)[None].astype(np.complex64)


def largest_gap_px(positions: np.ndarray, chosen: np.ndarray) -> float:
    """How far the farthest position is from the nearest chosen one."""
    return float(np.linalg.norm(positions[:, None] - positions[chosen][None], axis=-1).min(axis=1).max())


@pytest.mark.parametrize(
    "positions",
    [
        raster(16, 24),
        raster(25, 17),
        np.random.default_rng(0).uniform(0, 100, (400, 2)),
    ],
)
def test_every_block_is_spread_over_the_scan(positions: np.ndarray) -> None:
    order = subset_order(positions)
    assert sorted(order) == list(range(len(positions)))
    spacing = np.sqrt(np.prod(np.ptp(positions, axis=0)) / len(positions))
    for block in range(BLOCKS):
        assert largest_gap_px(positions, order[block::BLOCKS]) < 5.5 * spacing
    # Rows of the file would leave most of the field dark.
    first = np.lexsort(positions.T[::-1])[: len(positions) // BLOCKS]
    assert largest_gap_px(positions, first) > 8 * spacing


def test_blocks_of_a_raster_whose_rows_are_a_multiple_of_the_blocks_are_no_stripes() -> None:
    positions = raster(24, 24)
    for block in range(BLOCKS):
        chosen = positions[subset_order(positions)[block::BLOCKS]]
        assert min(len(set(chosen[:, axis])) for axis in (0, 1)) >= 6


@pytest.mark.parametrize(("step_px", "expected"), [(3.0, 4), (8.0, 4), (12.0, 2), (16.0, 1)])
def test_denser_scans_are_cut_into_more_subsets(step_px: float, expected: int) -> None:
    assert most_subsets(raster(20, 20, step_px), disc(20.0)) == expected


def test_overlap_is_that_of_the_light_and_not_of_the_patches() -> None:
    positions = raster(20, 20, 8.0)
    assert most_subsets(positions, disc(8.0)) < most_subsets(positions, disc(20.0))
    halo = disc(20.0) + 0.01
    assert most_subsets(positions, halo) == most_subsets(positions, disc(20.0))
    assert most_subsets(positions[:1], disc(20.0)) == 1


def test_many_subsets_come_first_and_the_whole_scan_last() -> None:
    assert list(subset_schedule(10, 8)) == [8, 8, 8, 8, 4, 4, 2, 2, 1, 1]
    assert list(subset_schedule(5, 2)) == [2, 2, 1, 1, 1]
    assert list(subset_schedule(4, 1)) == [1, 1, 1, 1]
    assert list(subset_schedule(1, 8)) == [4]


def test_subsets_need_fewer_passes_for_the_same_work() -> None:
    assert [needed_iterations(60, most) for most in (1, 2, 4, 8)] == [60, 60, 30, MIN_ITERATIONS]
    assert [needed_iterations(count, 8) for count in (0, 5, 20, 100)] == [0, 5, 20, 25]


def test_plain_momentum_starts_at_zero_and_stays_below_one() -> None:
    values = [nesterov_momentum(k) for k in range(200)]
    assert values[0] == 0.0
    assert values[1] == 0.25
    assert values[9] == 0.75
    assert max(values) < 1.0
    assert values == sorted(values)


def test_momentum_is_bounded_where_subsets_are_used() -> None:
    assert [subset_momentum(k, 1) for k in (0, 5, 500)] == [nesterov_momentum(k) for k in (0, 5, 500)]
    assert [subset_momentum(k, 4) for k in (0, 5, 500)] == [0.0, nesterov_momentum(5), SUBSET_MOMENTUM]


def test_what_else_is_refined_needs_whole_passes() -> None:
    assert RefineOptions(10, start="flat").subset_counts(8) == [8, 8, 8, 8, 4, 4, 2, 2, 1, 1]
    assert RefineOptions(10).subset_counts(8) == [2, 2, 2, 2, 1, 1, 1, 1, 1, 1]
    flat = {"start": "flat"}
    probe = RefineOptions(20, probe=True, **flat).subset_counts(8)
    assert probe == [8] * PROBE_REST_STEPS + [1] * (20 - PROBE_REST_STEPS)
    positions = RefineOptions(10, positions=True, **flat).subset_counts(8)
    assert positions[: POSITION_REST_STEPS + 1] == [8] * POSITION_REST_STEPS + [1]
    assert positions == [8, 8, 8, 1, 4, 4, 1, 2, 1, 1]
    assert RefineOptions(20, frames=True, probe=True, **flat).subset_counts(8) == [1] * 20


def test_a_misfit_that_goes_to_and_fro_but_falls_has_not_converged() -> None:
    falling = [0.9**k for k in range(30)]
    swinging = [value * (1 + 0.5 * (k % 3 == 2)) for k, value in enumerate(0.98**k for k in range(30))]
    for misfit in (falling, swinging):
        assert not any(has_converged(misfit[:n]) for n in range(len(misfit) + 1))
    # The last against the one ten before would end it.
    assert any(swinging[n] > swinging[n - CONVERGED_STEPS] for n in range(CONVERGED_STEPS, 30))
    ended = swinging + [swinging[-1]] * CONVERGED_STEPS
    assert has_converged(ended)
    assert not has_converged([1.0] * CONVERGED_STEPS)
    assert has_converged([1.0] * (CONVERGED_STEPS + 1))
