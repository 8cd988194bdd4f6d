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
    """Return the smallest object with a margin around a scan: its origin (2,) and shape (H, W) [px].

    Added to the positions, the origin puts object pixel (0, 0) at (0, 0) and centres the scan's bounding box.
    Whole-pixel distances between positions stay on the object's pixels: the first patch then begins on one.
    ``ConfigError`` where a side exceeds ``OBJECT_LIMIT_PX``.
    """
    low, high = positions_yx_px.min(axis=0), positions_yx_px.max(axis=0)
    shape = np.ceil(high - low).astype(int) + n_px + 2 * MARGIN_PX
    if shape.max() > OBJECT_LIMIT_PX:
        raise ConfigError(
            f"scan: the object would be too large (got {shape[0]}x{shape[1]} px, expected at most "
            f"{OBJECT_LIMIT_PX} px a side). Lower the step or the number of positions."
        )
    return (shape - 1 - low - high) / 2, (int(shape[0]), int(shape[1]))
