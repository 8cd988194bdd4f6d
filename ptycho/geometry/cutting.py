"""Patches of a known object between its pixels, cut by the Fourier shift that predictions are placed with.

A window wider than the patch is cut, faded out towards its rim, shifted, and cropped: neither the border of
the window nor that of the object then rings into the patch.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho.geometry.canvas import CanvasPlan
from ptycho.physics import extract_patches, shift_field

MARGIN_PX = 32
"""Pixels of the window beyond every side of the patch, all of them faded."""
FADE_BETA = 11.0
"""Kaiser parameter: waves to 0.4 per px exact to 1e-5; less rings, more widens the fade beyond Nyquist."""
WINDOW_PIXELS = 2**20
"""Window pixels that are shifted at a time; it bounds memory."""


def fade(n_px: int) -> NDArray[np.float32]:
    """Return the factor on a window: 1 on the patch in its middle, smoothly to 0 over ``MARGIN_PX``."""
    weights = np.kaiser(MARGIN_PX + 1, FADE_BETA)
    rise = np.cumsum(weights)[:-1] / weights.sum()
    axis = np.concatenate([rise, np.ones(n_px), rise[::-1]])
    return np.multiply.outer(axis, axis).astype(np.float32)


def _with_margin(obj: NDArray[Any], corners_yx: NDArray[np.int64], n_px: int) -> tuple[NDArray[Any], Any]:
    """Return the part of an object that windows lie on, continued beyond its border, and its corner."""
    low, high = corners_yx.min(axis=0) - MARGIN_PX, corners_yx.max(axis=0) + n_px + MARGIN_PX
    start, stop = np.maximum(low, 0), np.minimum(high, obj.shape)
    part = obj[start[0] : stop[0], start[1] : stop[1]].astype(np.complex64)
    room = list(zip(start - low, high - stop, strict=True))
    # A point reflection goes on in value and slope: a jump or a kink at the border would ring into the patch.
    return np.pad(part, room, mode="reflect", reflect_type="odd"), low


def cut_patches(obj: NDArray[Any], plan: CanvasPlan) -> NDArray[np.complex64]:
    r"""Cut the patch of every position out of an object on the canvas (H, W), by Fourier shift (eq. 4).

    .. math:: O_j(r) = O(r + r_j + \delta_j)

    Patches (J, N, N) on whole pixels are the pixels themselves. Elsewhere a wave of up to 0.4 cycles per
    pixel is exact to 1e-5 of its amplitude, except near the border of the object: nothing is known beyond.
    """
    n_px, corners, shifts = plan.patch_px, plan.corners_yx, plan.shifts_yx_px
    patches = extract_patches(np.asarray(obj), corners, n_px).astype(np.complex64)
    between = np.flatnonzero(shifts.any(axis=1))
    side = n_px + 2 * MARGIN_PX
    chunk, faded, inner = max(1, WINDOW_PIXELS // side**2), fade(n_px), slice(MARGIN_PX, MARGIN_PX + n_px)
    for start in range(0, len(between), chunk):
        rows = between[start : start + chunk]
        part, low = _with_margin(np.asarray(obj), corners[rows], n_px)
        windows = extract_patches(part, corners[rows] - low - MARGIN_PX, side) * faded
        patches[rows] = shift_field(windows[:, None], -shifts[rows])[:, 0, inner, inner]
    return patches
