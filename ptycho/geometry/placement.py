"""The object that a scan asks for."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ptycho.errors import ConfigError

MARGIN_PX = 4
"""Object pixels beyond the outermost patches, on every side."""
OBJECT_LIMIT_PX = 16384
"""Largest side of an object; a larger one is a mistaken unit."""


def centre_on_object(
    positions_yx_px: NDArray[np.float64], n_px: int
) -> tuple[NDArray[np.float64], tuple[int, int]]:
    """Find the smallest object with a margin whose middle is the middle of the scan's bounding box.

    Whole-pixel distances between positions stay on the object's pixels: the first patch then begins on one.

    Parameters
    ----------
    positions_yx_px : float64 array, shape (J, 2)
        Patch centres in any frame [px].
    n_px : int
        Patch size N [px].

    Returns
    -------
    origin_yx_px : float64 array, shape (2,)
        What to add to the positions so that pixel (0, 0) of the object has the coordinate (0, 0) [px].
    shape_yx : tuple of int
        Object shape (H, W) [px].

    Raises
    ------
    ConfigError
        If the object would be larger than any that makes sense.
    """
    low, high = positions_yx_px.min(axis=0), positions_yx_px.max(axis=0)
    shape = np.ceil(high - low).astype(int) + n_px + 2 * MARGIN_PX
    if shape.max() > OBJECT_LIMIT_PX:
        raise ConfigError(
            f"scan: the object would be too large (got {shape[0]}x{shape[1]} px, expected at most "
            f"{OBJECT_LIMIT_PX} px a side). Lower the step or the number of positions."
        )
    return (shape - 1 - low - high) / 2, (int(shape[0]), int(shape[1]))
