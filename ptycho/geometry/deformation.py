r"""A smooth deformation of a whole scan: positions and object move together (eq. 23).

A stage that is off in scale, rotation or shear, or that drifts, moves neighbouring positions alike. A single
pattern hardly feels that: the object, which is made from its neighbours, has moved along. What is left is the
strain of the object under its own spot. It is fitted here for all patterns at once, with a field u(r) of few
coefficients,

.. math:: u_b(r) = \sum_k c_{b,k} \phi_k(r), \quad s_j \to s_j + u(s_j), \quad O'(r) = O(r - u(r))

where the functions are one slope along each axis and, where the field is several spots wide, products of
cosines over the canvas. All fields are in pixels, all places are indices (y, x) on the canvas.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Real = NDArray[np.float64]

MOST_WAVES = 6
"""Most half waves of a field along an axis: 58 coefficients."""
SPOTS_PER_WAVE = 1.5
"""Diameters of the spot in the shortest half wave: a finer field is told by the positions one by one."""
FEWEST_PATTERNS = 8
"""Patterns for each coefficient."""
RIDGE = 1e-4
"""Share of the mean curvature of the coefficients added to that of each: one that nothing tells stays 0."""
LONGEST_PX = 0.5
"""Most that one step moves the rim of a spot against its middle; farther the slopes do not reach."""


@dataclass(frozen=True)
class Deformation:
    """The fields that a scan may be deformed with."""

    shape_yx: tuple[int, int]  # (H, W) of the canvas
    waves: tuple[tuple[int, int], ...] = ()  # half waves of every product of cosines along y and x
    radius_px: float = 1.0  # of the spot

    @classmethod
    def of_scan(
        cls, places_yx_px: Real, shape_yx: tuple[int, int], radius_px: float, *, affine: bool
    ) -> Deformation:
        """Return the fields that suit a scan with patterns at ``places_yx_px`` (J, 2) and a spot of a radius;
        ``affine`` leaves scale, rotation and shear alone."""
        widths = np.ptp(places_yx_px, axis=0) / max(2 * radius_px * SPOTS_PER_WAVE, 1e-9)
        most = 0 if affine else min(MOST_WAVES, int(widths.min()))
        while 2 * (2 + (most + 1) * (most + 2) // 2 - 1) * FEWEST_PATTERNS > len(places_yx_px) and most:
            most -= 1
        waves = tuple((i, k) for i in range(most + 1) for k in range(most + 1 - i) if i + k)
        return cls(shape_yx, waves, radius_px)

    @cached_property
    def _frequencies(self) -> Real:
        """Wave number of every product along y and x, shape (n, 2) [rad / px]."""
        sides = np.array(self.shape_yx, float)
        return np.pi * np.array(self.waves, float).reshape(-1, 2) / sides

    def field(self, coefficients: Real, places_yx_px: Real) -> Real:
        """Return u (..., 2) [px] at places (..., 2), from coefficients (n + 2, 2)."""
        middle = (np.array(self.shape_yx) - 1) / 2
        slopes = (places_yx_px - middle) / np.maximum(middle, 1.0)
        found = slopes @ coefficients[:2]
        for (down, right), pair in zip(self._frequencies, coefficients[2:], strict=True):
            wave = np.cos(down * places_yx_px[..., 0]) * np.cos(right * places_yx_px[..., 1])
            found += wave[..., None] * pair
        return found

    def gradients(self, places_yx_px: Real) -> Real:
        """Return the derivative along y and x of every function, shape (J, 2, n + 2) [1 / px]."""
        y_px, x_px = places_yx_px[:, 0, None], places_yx_px[:, 1, None]
        down, right = self._frequencies.T
        found = np.zeros((len(places_yx_px), 2, 2 + len(self.waves)))
        found[:, (0, 1), (0, 1)] = 2 / np.maximum(np.array(self.shape_yx) - 1.0, 2.0)
        found[:, 0, 2:] = -down * np.sin(down * y_px) * np.cos(right * x_px)
        found[:, 1, 2:] = -right * np.cos(down * y_px) * np.sin(right * x_px)
        return found

    def sums(self, places_yx_px: Real, normal: Real, right: Real) -> tuple[Real, Real]:
        """Return the normal matrix (2 (n + 2), same) and right side of all coefficients.

        ``normal`` (J, 6, 6) and ``right`` (J, 6) are those of ``ptycho.physics.motion_equations`` with
        strains. Every pattern is free to move by itself, so only what that leaves counts.
        """
        own = normal[:, :2, :2]
        own = own + 1e-6 * np.trace(own, axis1=1, axis2=2).mean() * np.eye(2)
        mixed = np.linalg.solve(own, normal[:, :2, 2:])
        left = normal[:, 2:, 2:] - normal[:, 2:, :2] @ mixed
        side = right[:, 2:] - (right[:, None, :2] @ mixed)[:, 0]
        # The object under a spot moves against it by minus the strain times the distance from its middle.
        slope = -self.gradients(places_yx_px)
        count = slope.shape[2]
        square = np.einsum("jam,jabcd,jcn->mbnd", slope, left.reshape(-1, 2, 2, 2, 2), slope, optimize=True)
        line = np.einsum("jam,jab->mb", slope, side.reshape(-1, 2, 2))
        return square.reshape(2 * count, 2 * count), line.reshape(-1)

    def solve(self, normal: Real, right: Real) -> Real:
        """Return the coefficients (n + 2, 2) [px] that the sums of all patterns ask for, within bounds."""
        ridged = normal + RIDGE * np.trace(normal) / len(normal) * np.eye(len(normal))
        found = np.linalg.lstsq(ridged, right, rcond=None)[0].reshape(-1, 2)
        height, width = self.shape_yx
        grid = np.stack(np.meshgrid(np.linspace(0, height - 1, 17), np.linspace(0, width - 1, 17)), -1)
        strain = np.abs(self.gradients(grid.reshape(-1, 2)) @ found).max() * self.radius_px
        return found * min(1.0, LONGEST_PX / max(float(strain), 1e-12))

    def warped(self, obj: NDArray[Any], coefficients: Real, offset_yx_px: Real) -> NDArray[Any]:
        """Return the object (H, W) moved along, less an offset (2,) of all, by cubic interpolation."""
        from scipy.ndimage import map_coordinates

        places = np.stack(np.mgrid[: obj.shape[0], : obj.shape[1]], -1).astype(np.float64)
        source = np.moveaxis(places - self.field(coefficients, places) + offset_yx_px, -1, 0)
        return map_coordinates(obj, source, order=3, mode="nearest").astype(obj.dtype)
