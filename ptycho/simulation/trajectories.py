"""Scan patterns: where the beam is meant to go, and how large an object that takes.

Positions are (y, x) object pixels of the patch centre, which is patch pixel ``(N - 1) / 2``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ptycho.errors import ConfigError

MARGIN_PX = 4
"""Object pixels beyond the outermost patches, on every side."""
OBJECT_LIMIT_PX = 16384
"""Largest side of an object; a larger one is a mistaken unit."""
GOLDEN_ANGLE_RAD = np.pi * (3.0 - np.sqrt(5.0))


def raster_points(n_y: int, n_x: int, step_px: float) -> NDArray[np.float64]:
    """Return the points of a raster, x running fastest, from (0, 0).

    Parameters
    ----------
    n_y, n_x : int
        Rows and columns.
    step_px : float
        Distance between neighbours [px].

    Returns
    -------
    float64 array, shape (n_y * n_x, 2)
        Positions (y, x) [px].
    """
    rows, columns = np.divmod(np.arange(n_y * n_x), n_x)
    return step_px * np.stack([rows, columns], axis=1).astype(np.float64)


def spiral_points(n_positions: int, step_px: float) -> NDArray[np.float64]:
    r"""Return the points of a Fermat spiral with one point per square step.

    .. math:: r_k = s\sqrt{k/\pi}, \quad \varphi_k = k\,\pi(3 - \sqrt5)

    Parameters
    ----------
    n_positions : int
        Number of points J.
    step_px : float
        Side s of the area per point [px].

    Returns
    -------
    float64 array, shape (J, 2)
        Positions (y, x) around (0, 0) [px].
    """
    index = np.arange(n_positions)
    radius = step_px * np.sqrt(index / np.pi)
    angle = index * GOLDEN_ANGLE_RAD
    return np.stack([radius * np.sin(angle), radius * np.cos(angle)], axis=1)


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
