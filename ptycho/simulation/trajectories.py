"""Scan patterns: where the beam is meant to go, and how large an object that takes.

Positions are (y, x) object pixels of the patch centre, which is patch pixel ``(N - 1) / 2``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

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
