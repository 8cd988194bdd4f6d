"""Points of a scan: rasters and spirals, (J, 2) float64, (y, x) [object px]."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

GOLDEN_ANGLE_RAD = np.pi * (3.0 - np.sqrt(5.0))


def raster_points(n_y: int, n_x: int, step_px: float) -> NDArray[np.float64]:
    """Return the points of a raster, x running fastest, from (0, 0)."""
    rows, columns = np.divmod(np.arange(n_y * n_x), n_x)
    return step_px * np.stack([rows, columns], axis=1).astype(np.float64)


def spiral_points(n_positions: int, step_px: float) -> NDArray[np.float64]:
    r"""Return the points of a Fermat spiral around (0, 0) with one point per square step s.

    .. math:: r_k = s\sqrt{k/\pi}, \quad \varphi_k = k\,\pi(3 - \sqrt5)
    """
    index = np.arange(n_positions)
    radius = step_px * np.sqrt(index / np.pi)
    angle = index * GOLDEN_ANGLE_RAD
    return np.stack([radius * np.sin(angle), radius * np.cos(angle)], axis=1)
