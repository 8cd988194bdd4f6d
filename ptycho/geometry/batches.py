"""Which patterns are trained on, in which order, and where they lie: the plan that every backend follows.

One seeded generator per epoch decides the order, so that two backends see the same patterns in the same
order, and a training that goes on from a checkpoint continues the sequence.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ptycho.geometry.canvas import CANVAS_MULTIPLE_PX, CanvasPlan, group_canvases, nearest_tile, plan_canvas
from ptycho.geometry.grouping import Groups
from ptycho.solver.schedule import PROBE_REFINE_PIXELS

TILE_PIXELS = 2**20
"""Detector pixels in a training tile: 256 patterns of 64 x 64."""
MIN_TILE_PATTERNS = 96
"""A tile must be wide enough for its middle to be seen from all sides."""
CHUNK_PIXELS = 2**20
"""Detector pixels reconstructed at a time: 256 patterns of 64 x 64, fastest on a CPU. It bounds memory."""
KEPT_PIXELS = 2**23
"""Up to so many detector pixels a scan stays in memory between two passes, its probes moved already."""
JUDGING_TILES = 4
"""Most tiles that judge an epoch."""
HELD_OUT_PART = 10
"""At most one pattern in this many judges and is not trained on."""


class TileMembers(NamedTuple):
    """Which patterns of a scan a canvas-wide network trains on.

    Attributes
    ----------
    members : int64 array, shape (T,)
        Patterns trained on, ascending.
    held_out : int64 array, shape (V,), or None
        Patterns that judge the training and are never trained on.
    steps : int
        Tiles in an epoch, so that every pattern is seen about once.
    """

    members: NDArray[np.int64]
    held_out: NDArray[np.int64] | None
    steps: int


def tile_patterns(n_px: int) -> int:
    """Return how many patterns of a size make one training tile.

    Parameters
    ----------
    n_px : int
        Pattern size N [px].

    Returns
    -------
    int
        At least ``MIN_TILE_PATTERNS``.
    """
    return max(MIN_TILE_PATTERNS, TILE_PIXELS // n_px**2)


def tile_members(
    groups: Groups, validation: Groups | None, n_px: int, *, seed: int | None = 0
) -> TileMembers:
    """Part the patterns of the groups into those trained on and those that judge.

    A pattern that judges is never trained on; with overlapping groups it is a member of several.

    Parameters
    ----------
    groups : Groups
        Groups to train on.
    validation : Groups or None
        Groups kept to judge.
    n_px : int
        Pattern size N [px].
    seed : int, optional
        Seed of the choice of patterns that judge.

    Returns
    -------
    TileMembers
        Members, patterns held out, tiles in an epoch.
    """
    members = np.unique(groups.indices)
    held_out = None
    if validation is not None:
        # Drawn from the whole scan: the first ones would all lie at its top.
        candidates = np.random.default_rng(seed).permutation(np.unique(validation.indices))
        held_out = np.sort(candidates[: max(1, len(members) // HELD_OUT_PART)])
        rest = np.setdiff1d(members, held_out)
        members, held_out = (rest, held_out) if len(rest) else (held_out, None)
    return TileMembers(members, held_out, -(-len(members) // tile_patterns(n_px)))


def refined_members(
    positions_yx_px: NDArray[np.float64], members: NDArray[np.int64], n_px: int
) -> NDArray[np.int64]:
    """Choose the patterns a probe is refined on: those around the middle of the scan.

    Parameters
    ----------
    positions_yx_px : float64 array, shape (M, 2)
        Patch centres of the scan [px].
    members : int64 array, shape (T,)
        Patterns that may take part.
    n_px : int
        Pattern size N [px].

    Returns
    -------
    int64 array
        All of them, or as many as ``PROBE_REFINE_PIXELS`` allow.
    """
    positions = positions_yx_px[members]
    middle = (positions.min(axis=0) + positions.max(axis=0)) / 2
    return members[nearest_tile(positions, middle, max(1, PROBE_REFINE_PIXELS // n_px**2))]


def probe_fit_patterns(
    positions_yx_px: NDArray[np.float64], members: NDArray[np.int64], n_px: int
) -> tuple[NDArray[np.int64], CanvasPlan]:
    """Choose the patterns a probe is fitted to, and lay them on a canvas.

    Parameters
    ----------
    positions_yx_px : float64 array, shape (M, 2)
        Patch centres of the scan [px].
    members : int64 array, shape (T,)
        Patterns that may take part.
    n_px : int
        Pattern size N [px].

    Returns
    -------
    indices : int64 array, shape (J,)
        From :func:`refined_members`.
    plan : CanvasPlan
        Their places.
    """
    indices = refined_members(positions_yx_px, members, n_px)
    return indices, plan_canvas(positions_yx_px[indices], n_px, multiple_px=CANVAS_MULTIPLE_PX)


def epoch_generator(seed: int, epoch: int) -> np.random.Generator:
    """Return the source of everything random in an epoch.

    Parameters
    ----------
    seed : int
        Seed of the training, >= 0.
    epoch : int
        Epoch, from 0.

    Returns
    -------
    numpy.random.Generator
        Independent for every pair.
    """
    return np.random.default_rng((seed, epoch))


def tile_centres(count: int, steps: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Choose the members that the tiles of an epoch lie around.

    Parameters
    ----------
    count : int
        Number of members.
    steps : int
        Tiles in an epoch.
    seed, epoch : int
        See :func:`epoch_generator`.

    Returns
    -------
    int64 array, shape (steps,)
        Indices of members; one may come twice.
    """
    return epoch_generator(seed, epoch).integers(count, size=steps)


def judging_centres(count: int, n_px: int, judged: NDArray[np.bool_] | None = None) -> list[int]:
    """Choose evenly spread members for the few tiles that judge every epoch.

    Each tile holds a pattern that judges: one that holds none would be judged on what was trained on.

    Parameters
    ----------
    count : int
        Number of members.
    n_px : int
        Pattern size N [px].
    judged : bool array, shape (count,), optional
        Members that judge; tiles lie around these. By default around any.

    Returns
    -------
    list of int
        At most ``JUDGING_TILES`` indices, the same in every epoch.
    """
    tiles = min(JUDGING_TILES, -(-count // tile_patterns(n_px)))
    around = np.arange(count) if judged is None else np.flatnonzero(judged)
    tiles = min(tiles, len(around))
    return [int(around[int((k + 0.5) * len(around) / tiles)]) for k in range(tiles)]


def batch_rows(
    count: int, batch_size: int, seed: int | None = None, epoch: int = 0
) -> list[NDArray[np.int64]]:
    """Part the rows of an epoch into batches.

    Parameters
    ----------
    count : int
        Number of rows.
    batch_size : int
        Rows in a batch; the last one may be smaller.
    seed : int, optional
        Shuffle with this seed; without it the rows stay in order.
    epoch : int
        Epoch, from 0; each has an order of its own.

    Returns
    -------
    list of int64 array
        Rows of every batch.
    """
    order = np.arange(count) if seed is None else epoch_generator(seed, epoch).permutation(count)
    return [order[start : start + batch_size] for start in range(0, count, batch_size)]


def tile_plan(
    positions_yx_px: NDArray[np.float64], centre: int, n_px: int
) -> tuple[NDArray[np.int64], CanvasPlan]:
    """Lay the tile around a position on a canvas of its own.

    Parameters
    ----------
    positions_yx_px : float64 array, shape (T, 2)
        Patch centres of the members [px].
    centre : int
        Index of the position in the middle.
    n_px : int
        Pattern size N [px].

    Returns
    -------
    indices : int64 array, shape (J,)
        Positions in the tile, ascending.
    plan : CanvasPlan
        Their places, on a canvas that the networks can halve.
    """
    indices = nearest_tile(positions_yx_px, positions_yx_px[centre], tile_patterns(n_px))
    return indices, plan_canvas(positions_yx_px[indices], n_px, multiple_px=CANVAS_MULTIPLE_PX)


def group_plan(
    groups: Groups, rows: NDArray[np.int64] | list[int], n_px: int, *, merge: bool
) -> tuple[NDArray[np.int64], CanvasPlan]:
    """Lay a batch of groups on canvases stacked along y.

    Parameters
    ----------
    groups : Groups
        Which patterns belong together, and how they lie.
    rows : int array or list, length B
        Groups of the batch.
    n_px : int
        Pattern size N [px].
    merge : bool
        One canvas for the C patterns of a group; else each stands alone.

    Returns
    -------
    indices : int64 array, shape (B, C)
        Patterns of the batch.
    plan : CanvasPlan
        B * C places, group after group.
    """
    indices, offsets = groups.indices[rows], groups.offsets_yx_px[rows]
    if not merge:
        offsets = np.zeros((indices.size, 1, 2))
    return indices, group_canvases(offsets, n_px)
