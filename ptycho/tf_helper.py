"""Stitching of patches, as older programs call it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ptycho.errors import DataError
from ptycho.geometry.batches import CHUNK_PIXELS
from ptycho.geometry.canvas import plan_canvas
from ptycho.physics import illumination, shift_field, weighted_patches
from ptycho.probe import probe_window

__all__ = ["reassemble_position"]

WEIGHT_FLOOR = 1e-4
"""Share of the strongest illumination below which a pixel counts as never seen; merged patches fade there."""


def reassemble_position(
    obj_tensor: ArrayLike, global_offsets: ArrayLike, M: int = 10
) -> NDArray[np.complex64]:
    """Stitch one patch of every group into one object (H, W, 1), 1 where no light fell; Ptychodus calls this
    last.

    The middle of the result, index ((H - 1) / 2, (W - 1) / 2), is the middle of the object that
    ``global_offsets`` belongs to, see :class:`ptycho.loader.ScanOffsets`. Of a plain array it is the middle
    between the smallest and the largest offset.

    Overlapping patches are weighted with the light that falls on them, where a probe of their size was set by
    :func:`ptycho.probe.set_probe_guess`: then they count as a whole, and no scan is too coarse for them.

    ``obj_tensor`` holds patches (B, N, N, 1), each centred on its offset [transmission], ``global_offsets``
    their centres (B, 1, 2, 1), (x, y) along axis 2 [object pixels]. ``M`` >= 1 is the side of the middle of a
    patch that counts where no probe was set [px]. Raise ``DataError`` where the shapes do not belong
    together, or an offset is not finite.
    """
    patches, positions_yx_px = _checked(obj_tensor, global_offsets)
    n_px = patches.shape[-1]
    window = probe_window(n_px)
    side = n_px if window is not None else n_px - 2 * max(0, (n_px - max(1, int(M))) // 2)
    centre = getattr(global_offsets, "centre_yx_px", None)
    if centre is None:
        centre = tuple((positions_yx_px.min(axis=0) + positions_yx_px.max(axis=0)) / 2)
    plan = plan_canvas(positions_yx_px, side, centre_yx_px=centre)
    cut = slice((n_px - side) // 2, (n_px + side) // 2)
    total = np.zeros(plan.shape_yx, np.complex64)
    weight = np.zeros(plan.shape_yx, np.float32)
    size = max(1, CHUNK_PIXELS // (4 * n_px**2))
    for start in range(0, len(patches), size):
        rows = slice(start, start + size)
        shifts, corners = plan.shifts_yx_px[rows], plan.corners_yx[rows]
        moved = shift_field(patches[rows, None], shifts)[:, 0, cut, cut]
        probes = np.ones((1, side, side), np.complex64) if window is None else shift_field(window, shifts)
        total += weighted_patches(moved, corners, probes, plan.shape_yx)
        weight += illumination(probes, corners, plan.shape_yx)
    seen = weight > WEIGHT_FLOOR * weight.max()
    return np.where(seen, total / np.where(seen, weight, 1.0), 1.0).astype(np.complex64)[..., None]


def _checked(obj_tensor: Any, global_offsets: Any) -> tuple[NDArray[np.complex64], NDArray[np.float64]]:
    """Return patches (B, N, N) and their centres (y, x)."""
    patches, offsets = np.asarray(obj_tensor), np.asarray(global_offsets, dtype=np.float64)
    square = patches.ndim == 4 and patches.shape[3] == 1 and patches.shape[1] == patches.shape[2]
    if not square or offsets.shape != (len(patches), 1, 2, 1):
        raise DataError(
            f"reassemble_position: the shapes do not belong together (got patches {patches.shape} and "
            f"offsets {offsets.shape}, expected (B, N, N, 1) and (B, 1, 2, 1)). Pass what predict returned "
            "and global_offsets of the same container."
        )
    return patches[..., 0].astype(np.complex64), offsets[:, 0, ::-1, 0]
