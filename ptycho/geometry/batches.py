"""Which patterns are trained on, in which order, and where they lie: the plan that every backend follows.

One seeded generator per epoch decides the order, so that two backends see the same patterns in the same
order, and a training run that goes on from a resume checkpoint continues the sequence.

Ordered subsets are parts of a scan that each cover the field, as many as its overlap allows (eq. 19); when
they are used is written in ``ptycho.solver.schedule``.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ptycho.geometry.canvas import CANVAS_MULTIPLE_PX, CanvasPlan, group_canvases, nearest_tile, plan_canvas
from ptycho.geometry.grouping import Groups
from ptycho.solver.schedule import BLOCKS, MOST_SUBSETS, PROBE_REFINE_PIXELS

TILE_PIXELS = 2**20
"""Detector pixels in a training tile: 256 patterns of 64 x 64."""
MIN_TILE_PATTERNS = 96
"""A tile must be wide enough for its middle to be seen from all sides."""
CHUNK_PIXELS = 2**20
"""Detector pixels reconstructed at a time: 256 patterns of 64 x 64, fastest on a CPU. It bounds memory."""
KEPT_PIXELS = 2**23
"""Up to so many detector pixels a scan stays in memory between two iterations, its probes moved already."""
VALIDATION_TILES = 4
"""Most tiles that validate an epoch."""
HELD_OUT_PART = 10
"""At most one pattern in this many validates and is not trained on."""
MIN_OVERLAP = 3.0
"""Patterns of a subset that must see a pixel on average."""
_BITS = 16


class SplitPatterns(NamedTuple):
    """Which patterns of a scan a canvas-wide network trains on."""

    indices: NDArray[np.int64]  # (T,), trained on, ascending
    held_out: NDArray[np.int64] | None  # (V,), validate, never trained on
    steps: int  # tiles in an epoch, so that every pattern is seen about once


def tile_patterns(n_px: int) -> int:
    """Return how many patterns of a size make one training tile, at least ``MIN_TILE_PATTERNS``."""
    return max(MIN_TILE_PATTERNS, TILE_PIXELS // n_px**2)


def split_patterns(
    groups: Groups, validation: Groups | None, n_px: int, *, seed: int | None = 0
) -> SplitPatterns:
    """Part the patterns of the groups into those trained on and those that validate.

    A pattern that validates is never trained on, though overlapping groups of both kinds may hold it.
    """
    indices = np.unique(groups.indices)
    held_out = None
    if validation is not None:
        # Drawn from the whole scan: the first ones would all lie at its top.
        candidates = np.random.default_rng(seed).permutation(np.unique(validation.indices))
        held_out = np.sort(candidates[: max(1, len(indices) // HELD_OUT_PART)])
        rest = np.setdiff1d(indices, held_out)
        indices, held_out = (rest, held_out) if len(rest) else (held_out, None)
    return SplitPatterns(indices, held_out, -(-len(indices) // tile_patterns(n_px)))


def middle_patterns(
    positions_yx_px: NDArray[np.float64],
    indices: NDArray[np.int64],
    n_px: int,
    n_pixels: int = PROBE_REFINE_PIXELS,
) -> NDArray[np.int64]:
    """Return those of some pattern indices that lie around the middle of the scan: no more than have so many
    detector pixels together, by default as many as a probe is refined on."""
    positions = positions_yx_px[indices]
    middle = (positions.min(axis=0) + positions.max(axis=0)) / 2
    return indices[nearest_tile(positions, middle, max(1, n_pixels // n_px**2))]


def probe_fit_patterns(
    positions_yx_px: NDArray[np.float64], indices: NDArray[np.int64], n_px: int
) -> tuple[NDArray[np.int64], CanvasPlan]:
    """Return the indices (J,) of the patterns that a probe is fitted to, among those given, and their places:
    those around the middle, see :func:`middle_patterns`."""
    indices = middle_patterns(positions_yx_px, indices, n_px)
    return indices, plan_canvas(positions_yx_px[indices], n_px, multiple_px=CANVAS_MULTIPLE_PX)


def epoch_generator(seed: int, epoch: int) -> np.random.Generator:
    """Return the source of everything random in an epoch (from 0), independent for every pair."""
    return np.random.default_rng((seed, epoch))


def tile_centres(count: int, steps: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return the indices, of ``count``, that the tiles of an epoch lie around; one may come twice."""
    return epoch_generator(seed, epoch).integers(count, size=steps)


def validation_centres(count: int, n_px: int, validated: NDArray[np.bool_] | None = None) -> list[int]:
    """Return at most ``VALIDATION_TILES`` evenly spread indices, of ``count``, for tiles to validate on.

    Each tile lies around a pattern that validates, ``validated`` (count,), where any is named: one that holds
    none would be validated on what was trained on.
    """
    tiles = min(VALIDATION_TILES, -(-count // tile_patterns(n_px)))
    around = np.arange(count) if validated is None else np.flatnonzero(validated)
    tiles = min(tiles, len(around))
    return [int(around[int((k + 0.5) * len(around) / tiles)]) for k in range(tiles)]


def batch_rows(
    count: int, batch_size: int, seed: int | None = None, epoch: int = 0
) -> list[NDArray[np.int64]]:
    """Part the rows of an epoch into batches, in order without a seed; the last one may be smaller."""
    order = np.arange(count) if seed is None else epoch_generator(seed, epoch).permutation(count)
    return [order[start : start + batch_size] for start in range(0, count, batch_size)]


def batch_order(count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return the order of the batches of an epoch that come from several scans."""
    return np.random.default_rng((seed, epoch, count)).permutation(count)


def tile_plan(
    positions_yx_px: NDArray[np.float64], centre: int, n_px: int
) -> tuple[NDArray[np.int64], CanvasPlan]:
    """Return the indices (J,), ascending, of the tile around a position, and its canvas for networks."""
    indices = nearest_tile(positions_yx_px, positions_yx_px[centre], tile_patterns(n_px))
    return indices, plan_canvas(positions_yx_px[indices], n_px, multiple_px=CANVAS_MULTIPLE_PX)


def tile_part(plan: CanvasPlan, centre: int) -> tuple[NDArray[np.int64], CanvasPlan, tuple[int, int]]:
    """Return the tile around a pattern of a plan, as :func:`tile_plan`, as a part of its canvas: the rows
    (J,), their places on the part, and the index of its pixel (0, 0)."""
    rows = nearest_tile(plan.positions_yx_px, plan.positions_yx_px[centre], tile_patterns(plan.patch_px))
    corners = plan.corners_yx[rows]
    low = corners.min(axis=0)
    shape = corners.max(axis=0) + plan.patch_px - low
    shape += -shape % CANVAS_MULTIPLE_PX
    # The canvas has whole multiples too, so that a part of it never leaves it.
    low = np.minimum(low, np.array(plan.shape_yx) - shape)
    part = CanvasPlan(
        (int(shape[0]), int(shape[1])),
        plan.origin_yx_px + low,
        corners - low,
        plan.shifts_yx_px[rows],
        plan.patch_px,
    )
    return rows, part, (int(low[0]), int(low[1]))


def group_plan(
    groups: Groups, rows: NDArray[np.int64] | list[int], n_px: int, *, merge: bool
) -> tuple[NDArray[np.int64], CanvasPlan]:
    """Lay a batch of B groups on canvases stacked along y: pattern indices (B, C) and B * C places.

    ``merge``: one canvas for the C patterns of a group; else each stands alone.
    """
    indices, offsets = groups.indices[rows], groups.offsets_yx_px[rows]
    if not merge:
        offsets = np.zeros((indices.size, 1, 2))
    return indices, group_canvases(offsets, n_px)


def subset_order(positions_yx_px: NDArray[np.float64]) -> NDArray[np.int64]:
    """Order positions (J, 2) [px] along a Z curve: every ``BLOCKS``-th is spread evenly over the scan."""
    low = positions_yx_px.min(axis=0)
    extent = max(float((positions_yx_px - low).max()), 1e-9)
    cells = ((positions_yx_px - low) / extent * (2**_BITS - 1)).astype(np.int64)
    code = np.zeros(len(cells), dtype=np.int64)
    for bit in range(_BITS):
        for axis in (0, 1):
            code |= ((cells[:, axis] >> bit) & 1) << (2 * bit + axis)
    return np.argsort(code, kind="stable")


def subset_blocks(positions_yx_px: NDArray[np.float64]) -> list[NDArray[np.int64]]:
    """Return the rows, ascending, of each of the ``BLOCKS`` parts of a scan that subsets are made of."""
    order = subset_order(positions_yx_px)
    return [np.sort(order[block::BLOCKS]) for block in range(BLOCKS)]


def lit_area_px(probe: NDArray[np.complexfloating]) -> float:
    """Return the participation area [px^2] of a probe (P, N, N): exact for a disc of even intensity, little
    moved by a faint halo."""
    intensity = (np.abs(probe.astype(np.complex128)) ** 2).sum(axis=0)
    return float(intensity.sum() ** 2 / max(float((intensity**2).sum()), 1e-300))


def most_subsets(positions_yx_px: NDArray[np.float64], probe: NDArray[np.complexfloating]) -> int:
    """Return into how many subsets, 1 to ``MOST_SUBSETS``, a scan can be cut that each still see every pixel
    several times; positions (J, 2) [px], probe (P, N, N)."""
    area_px = lit_area_px(probe)
    field_px = float(np.prod(np.ptp(positions_yx_px, axis=0) + np.sqrt(area_px)))
    overlap = len(positions_yx_px) * area_px / field_px
    count = 1
    while count < MOST_SUBSETS and overlap >= 2 * count * MIN_OVERLAP:
        count *= 2
    return count
