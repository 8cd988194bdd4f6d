"""Which patterns of a scan take part, and in which groups they are trained on."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ptycho.config.choices import HIDDEN
from ptycho.config.config import DEFAULT_N_GROUPS, TrainingConfig
from ptycho.data.scan import Scan
from ptycho.errors import DataError
from ptycho.geometry.grouping import Groups, covering_groups, make_groups

VALIDATION_SHARE = 0.05
"""Part of the groups that is kept from training where no test file is given."""
MIN_VALIDATED = 8
"""Fewer groups than this are all trained on."""
Bounds = tuple[float, float]


def _rows(groups: Groups, rows: NDArray[np.int64]) -> Groups:
    return Groups(groups.indices[rows], groups.centres_yx_px[rows], groups.offsets_yx_px[rows])


def training_groups(
    scan: Scan, config: TrainingConfig, *, validate: bool, bounds_yx: tuple[Bounds, Bounds] | None = None
) -> tuple[Groups, Groups | None]:
    """Draw the groups to train on, and part a few off to validate, where asked and enough are there.

    ``bounds_yx``: only around points within these parts, from 0 to 1, of the scan's range along y and x;
    partners may lie outside. ``DataError`` for fewer patterns than a group needs, or none within the bounds.
    """
    chosen = subsample(scan, config.n_subsample, config.subsample_seed)
    needed = config.model.gridsize**2
    if len(chosen) < needed:
        raise DataError(
            f"{scan.name}: too few patterns for gridsize {config.model.gridsize} (got {len(chosen)}, "
            f"expected at least {needed}). Pass a smaller --gridsize or more patterns."
        )
    wanted = config.n_groups
    if config.torch_loss_mode == HIDDEN:
        # Pixels validate, not patterns; and every pattern that is left out leaves a hole in the object.
        validate = False
        wanted = len(chosen) if wanted == DEFAULT_N_GROUPS else wanted
    if bounds_yx is not None:
        wanted = None
    elif not config.enable_oversampling and wanted is not None:
        wanted = min(wanted, len(chosen))
    groups = make_groups(
        scan.positions_yx_px[chosen],
        gridsize=config.model.gridsize,
        n_groups=wanted,
        neighbor_count=max(config.neighbor_count, needed),
        seed=config.seed,
        sequential=config.sequential_sampling,
        enable_oversampling=config.enable_oversampling,
        neighbor_pool_size=config.neighbor_pool_size,
    )
    groups = Groups(chosen[groups.indices], groups.centres_yx_px, groups.offsets_yx_px)
    if bounds_yx is not None:
        groups = _within(groups, scan, bounds_yx, config)
    count = len(groups.indices)
    if not validate or count < MIN_VALIDATED:
        return groups, None
    order = np.random.default_rng(config.seed).permutation(count)
    kept = max(1, round(VALIDATION_SHARE * count))
    return _rows(groups, np.sort(order[kept:])), _rows(groups, np.sort(order[:kept]))


def validation_groups(scan: Scan, gridsize: int) -> Groups:
    """Build one group around every usable pattern of a scan, to validate on; indices of the scan."""
    usable = scan.usable
    groups = covering_groups(scan.positions_yx_px[usable], gridsize=gridsize)
    return Groups(usable[groups.indices], groups.centres_yx_px, groups.offsets_yx_px)


def _within(groups: Groups, scan: Scan, bounds_yx: tuple[Bounds, Bounds], config: TrainingConfig) -> Groups:
    """Return the groups around points within the bounds, at most ``config.n_groups`` of them."""
    low, high = scan.positions_yx_px.min(axis=0), scan.positions_yx_px.max(axis=0)
    flat = high == low
    part = (scan.positions_yx_px - low) / np.where(flat, 1.0, high - low)
    bounds = np.array(bounds_yx, dtype=np.float64)
    # A line of points has no border across it.
    inside = (((part >= bounds[:, 0]) & (part <= bounds[:, 1])) | flat).all(axis=1)
    rows = np.flatnonzero(inside[groups.indices[:, 0]])
    if not rows.size:
        y_bounds, x_bounds = bounds.tolist()
        raise DataError(
            f"{scan.name}: no scan point lies within the bounds (got y_bounds {y_bounds} and x_bounds "
            f"{x_bounds} for {len(part)} points, expected at least one). Widen the bounds, up to 0 and 1."
        )
    if config.n_groups is not None and config.n_groups < len(rows):
        rows = np.sort(np.random.default_rng(config.seed).permutation(rows)[: config.n_groups])
    return _rows(groups, rows)


def subsample(scan: Scan, n_subsample: int | None, seed: int | None) -> NDArray[np.int64]:
    """Return some pattern indices of a scan, ascending, none of those left out; all by default."""
    usable = scan.usable
    if n_subsample is None or n_subsample >= len(usable):
        return usable
    return np.sort(np.random.default_rng(seed).choice(usable, n_subsample, replace=False))
