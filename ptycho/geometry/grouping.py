"""Scan points gathered into groups of overlapping neighbours, and the arrays of such groups.

A group holds C = gridsize**2 scan points. Positions are (y, x) float64 object pixels; indices are int64
rows of the position table.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho.errors import ConfigError, DataError
from ptycho.geometry.canvas import cut_patches, lay_on_canvas

logger = logging.getLogger(__name__)

_REDRAWS = 30
_EDGE_PX = 1e-6


@dataclass(frozen=True)
class Groups:
    """Groups of scan points."""

    # (B, C) rows of the position table; column 0 is the point the group was built around
    indices: NDArray[np.int64]
    centres_yx_px: NDArray[np.float64]  # (B, 2), mean position [object px]
    offsets_yx_px: NDArray[np.float64]  # (B, C, 2), position minus centre [object px]


def make_groups(
    positions_yx_px: NDArray[np.float64],
    *,
    gridsize: int,
    n_groups: int | None = None,
    neighbor_count: int = 4,
    seed: int | None = None,
    sequential: bool = False,
    enable_oversampling: bool = False,
    neighbor_pool_size: int | None = None,
) -> Groups:
    """Draw groups of one scan point and C - 1 of its nearest neighbours, C = gridsize**2.

    No group holds a point twice, no two groups hold the same points; where too few distinct groups exist, the
    repeats are left out with a warning. ``ConfigError`` for numbers out of range, ``DataError`` for fewer
    than C positions or one that is not finite.

    One group per scan point where ``n_groups`` is None; ``sequential`` takes the first points, not random
    ones. Partners come from ``neighbor_count`` nearest neighbours, at least C (raised, with a warning) and at
    most M - 1, or from ``neighbor_pool_size``; more than M groups need ``enable_oversampling`` when C > 1.
    """
    positions = _checked(positions_yx_px, gridsize)
    n_points, size = len(positions), gridsize**2
    wanted = _wanted(n_groups, n_points, size, enable_oversampling)
    rng = np.random.default_rng(seed)
    if size == 1:
        return located(positions, _seed_points(n_points, wanted, sequential, rng)[:, None])
    pool = _pool_size(neighbor_count, neighbor_pool_size, size, oversampled=wanted > n_points)
    neighbours = _neighbours(positions, min(pool, n_points - 1))
    return located(positions, _distinct_groups(neighbours, wanted, size, sequential, rng))


def covering_groups(positions_yx_px: NDArray[np.float64], *, gridsize: int) -> Groups:
    """Build one group of every scan point, in order, and its C - 1 nearest; errors as :func:`make_groups`."""
    positions = _checked(positions_yx_px, gridsize)
    own = np.arange(len(positions), dtype=np.int64)[:, None]
    if gridsize == 1:
        return located(positions, own)
    return located(positions, np.concatenate([own, _neighbours(positions, gridsize**2 - 1)], axis=1))


def check_inside(
    shape_yx: tuple[int, ...], positions_yx_px: NDArray[np.float64], N: int, source: str
) -> None:
    """Raise ``DataError`` where an N x N patch around a position (M, 2) [px] leaves the object (H, W)."""
    corners = np.asarray(positions_yx_px, dtype=np.float64) - (N - 1) / 2
    room = np.array(shape_yx) - N
    outside = np.flatnonzero(((corners < -_EDGE_PX) | (corners > room + _EDGE_PX)).any(axis=1))
    if outside.size:
        y, x = positions_yx_px[outside[0]]
        raise DataError(
            f"{source}: {outside.size} of {len(corners)} patches leave the object (got centre y={y:g}, "
            f"x={x:g} px for patch {outside[0]}, expected {N} px patches inside {shape_yx}). "
            f"Check the position units."
        )


def object_patches(
    object_yx: NDArray[Any], positions_yx_px: NDArray[np.float64], N: int, source: str = "object"
) -> NDArray[np.complex64]:
    """Cut N x N patches out of an object (H, W), by Fourier shift between pixels, complex64 (M, N, N).

    patch[i, j] = object[y - (N - 1) / 2 + i, x - (N - 1) / 2 + j]; ``DataError`` as :func:`check_inside`.
    """
    check_inside(object_yx.shape, positions_yx_px, N, source)
    plan = lay_on_canvas(positions_yx_px, N, shape_yx=object_yx.shape, origin_yx_px=np.zeros(2))
    return cut_patches(object_yx, plan)


def _checked(positions_yx_px: NDArray[np.float64], gridsize: int) -> NDArray[np.float64]:
    positions = np.asarray(positions_yx_px, dtype=np.float64)
    if positions.ndim != 2 or positions.shape[1] != 2:
        raise DataError(
            f"grouping: positions have the wrong shape (got {positions.shape}, expected "
            f"(patterns, 2)). Pass one (y, x) row per pattern."
        )
    bad = np.flatnonzero(~np.isfinite(positions).all(axis=1))
    if bad.size:
        raise DataError(
            f"grouping: {bad.size} positions are not finite (got {positions[bad[0]].tolist()} at "
            f"row {bad[0]}, expected pixels). Remove these patterns."
        )
    if gridsize < 1:
        raise ConfigError(f"grouping: gridsize is too small (got {gridsize}, expected >= 1). Use 1 or 2.")
    if len(positions) < gridsize**2:
        raise DataError(
            f"grouping: too few points for gridsize {gridsize} (got {len(positions)}, expected "
            f"at least {gridsize**2}). Lower gridsize."
        )
    return positions


def _wanted(n_groups: int | None, n_points: int, size: int, enable_oversampling: bool) -> int:
    """Number of groups to draw."""
    if n_groups is None:
        return n_points
    if n_groups < 1:
        raise ConfigError(f"grouping: n_groups is too small (got {n_groups}, expected >= 1). Raise it.")
    if n_groups <= n_points:
        return n_groups
    if size == 1:
        logger.warning("grouping: %d single patterns asked for, all %d are used", n_groups, n_points)
        return n_points
    if not enable_oversampling:
        raise ConfigError(
            f"grouping: more groups than scan points (got n_groups={n_groups} for {n_points}, "
            f"expected at most {n_points} when gridsize > 1). Lower n_groups or set "
            f"enable_oversampling=True."
        )
    return n_groups


def _pool_size(neighbor_count: int, neighbor_pool_size: int | None, size: int, *, oversampled: bool) -> int:
    """Neighbours to draw from; below the group size there is too little choice for distinct groups."""
    name = "neighbor_count" if neighbor_pool_size is None else "neighbor_pool_size"
    pool = neighbor_count if neighbor_pool_size is None else neighbor_pool_size
    if pool >= size:
        return pool
    if oversampled or neighbor_pool_size is not None:
        raise ConfigError(
            f"grouping: {name} is below the group size (got {pool}, expected >= {size}). Raise {name}."
        )
    logger.warning("grouping: neighbor_count %d is below the group size, %d is used", neighbor_count, size)
    return size


def _seed_points(n_points: int, wanted: int, sequential: bool, rng: np.random.Generator) -> NDArray[np.int64]:
    """Points to build groups around: each one as often as any other, give or take one."""
    rounds, rest = divmod(wanted, n_points)
    every = np.tile(np.arange(n_points, dtype=np.int64), rounds)
    chosen = np.arange(rest) if sequential else np.sort(rng.choice(n_points, rest, replace=False))
    return np.concatenate([every, chosen.astype(np.int64)])


def _neighbours(positions: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Nearest neighbours of every point, shape (M, count), nearest first, never the point itself."""
    from scipy.spatial import cKDTree

    found = cKDTree(positions).query(positions, k=count + 1)[1].astype(np.int64)
    is_self = found == np.arange(len(positions))[:, None]
    # Where many points coincide a point may be missing from its own list: its farthest entry goes instead.
    is_self[~is_self.any(axis=1), -1] = True
    return found[~is_self].reshape(len(positions), count)


def _distinct_groups(
    neighbours: NDArray[np.int64], wanted: int, size: int, sequential: bool, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Draw groups, and draw again those whose set of points was already there."""
    seeds = _seed_points(len(neighbours), wanted, sequential, rng)
    groups = np.empty((wanted, size), dtype=np.int64)
    todo = np.arange(wanted)
    for _ in range(_REDRAWS):
        near = neighbours[seeds[todo]]
        # The point and size - 1 of its neighbours, all equally likely.
        order = np.argsort(rng.random(near.shape), axis=1)[:, : size - 1]
        groups[todo] = np.concatenate([seeds[todo, None], np.take_along_axis(near, order, axis=1)], axis=1)
        first = np.unique(np.sort(groups, axis=1), axis=0, return_index=True)[1]
        todo = np.setdiff1d(np.arange(wanted), first)
        if todo.size == 0:
            return groups
    logger.warning(
        "grouping: %d of the %d groups asked for repeat another one and are left out; raise "
        "neighbor_count for more distinct groups",
        todo.size,
        wanted,
    )
    return np.delete(groups, todo, axis=0)


def located(positions: NDArray[np.float64], indices: NDArray[np.int64]) -> Groups:
    places = positions[indices]
    centres = places.mean(axis=1)
    return Groups(indices, centres, places - centres[:, None])
