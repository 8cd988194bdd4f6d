"""Scan geometry: positions become canvas corners plus sub-pixel shifts, once, for every backend.

A position is the centre of the illuminated patch in object pixels, (y, x), and sits on patch pixel ``(N - 1)
/ 2``. The canvas is the rectangle of object pixels that all patches touch; its pixel (0, 0) has the object
coordinate ``origin_yx_px``. The integer corner says where a patch is cut, the shift moves the probe by the
fraction that is left.

Between pixels a patch of a known object is cut by the Fourier shift that predictions are placed with: a
window wider than the patch is cut, faded out towards its rim, shifted, and cropped. Neither its border nor
that of the object then rings into the patch.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho.errors import ConfigError, DataError
from ptycho.physics import extract_patches, shift_field

CANVAS_BYTES_PER_PX = 40
"""What a reconstruction holds for every canvas pixel: object, last object, step, illumination, gradient."""
UNKNOWN_MEMORY_PX = 2.0**30
"""Largest canvas where the system does not tell its memory [px]."""
LATTICE_CONCENTRATION = 0.999
"""Mean resultant length of the fractional positions above which all are taken to lie on one pixel lattice."""
TIE_PX = 1e-8
"""Positions that lie between two pixels up to so much take the same one, whatever unit they came in."""
CANVAS_MULTIPLE_PX = 8
"""Networks halve a canvas up to three times; canvases for them are planned in multiples of this."""
MARGIN_PX = 4
"""Object pixels beyond the outermost patches, on every side."""
OBJECT_LIMIT_PX = 16384
"""Largest side of an object; a larger one is a mistaken unit."""
FADE_PX = 32
"""Pixels of the window beyond every side of the patch, all of them faded."""
FADE_BETA = 11.0
"""Kaiser parameter: waves to 0.4 per px exact to 1e-5; less rings, more widens the fade beyond Nyquist."""
WINDOW_PIXELS = 2**20
"""Window pixels that are shifted at a time; it bounds memory."""


@dataclass(frozen=True)
class CanvasPlan:
    """Where every patch of a scan lies on the object canvas."""

    shape_yx: tuple[int, int]  # (H, W) [px]
    origin_yx_px: NDArray[np.float64]  # (2,), object coordinate of canvas pixel (0, 0)
    corners_yx: NDArray[np.int64]  # (J, 2), canvas index of patch pixel (0, 0)
    # (J, 2), the rest of the position, in [-0.5, 0.5]; the probe moves by it
    shifts_yx_px: NDArray[np.float64]
    patch_px: int  # N

    @property
    def positions_yx_px(self) -> NDArray[np.float64]:
        """Patch centres in object pixels, shape (J, 2): the positions the plan was made from."""
        return self.origin_yx_px + self.corners_yx + self.shifts_yx_px + (self.patch_px - 1) / 2

    @property
    def is_integer(self) -> bool:
        """True when no position has a sub-pixel part, so that one probe serves all of them."""
        return bool(np.abs(self.shifts_yx_px).max(initial=0.0) < 1e-6)


def check_positions(positions_yx_px: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return positions as float64 (J, 2); ``DataError`` where J is 0, or a number is not finite."""
    positions = np.asarray(positions_yx_px, dtype=np.float64)
    if positions.ndim != 2 or positions.shape[1] != 2 or len(positions) == 0:
        raise DataError(
            f"positions: wrong shape (got {positions.shape}, expected (patterns, 2) with at least one row). "
            "Pass one (y, x) pair per pattern."
        )
    if not np.isfinite(positions).all():
        bad = int(np.flatnonzero(~np.isfinite(positions).all(axis=1))[0])
        raise DataError(
            f"positions: row {bad} is not finite (got {positions[bad].tolist()}, expected object pixels). "
            "Remove or mend that scan point."
        )
    return positions


def _largest_canvas_px() -> float:
    """Return how many canvas pixels the memory of this machine can work on."""
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        memory = 0
    return memory / CANVAS_BYTES_PER_PX if memory > 0 else UNKNOWN_MEMORY_PX


def check_extent(positions_yx_px: NDArray[np.float64], patch_px: int, where: str = "canvas") -> None:
    """Raise ``DataError`` where the memory of this machine does not hold the canvas of the positions."""
    sides = np.ptp(positions_yx_px, axis=0) + patch_px
    limit = _largest_canvas_px()
    if float(np.prod(sides)) <= limit:
        return
    away = np.abs(positions_yx_px - np.median(positions_yx_px, axis=0)).max(axis=1)
    worst = int(np.argmax(away))
    y_px, x_px = positions_yx_px[worst]
    raise DataError(
        f"{where}: the object does not fit in the memory of this machine (got {sides[0]:.4g} x "
        f"{sides[1]:.4g} px; pattern {worst} at y={y_px:.4g}, x={x_px:.4g} px is farthest; expected at most "
        f"{limit:.4g} px in all). Check the unit of the positions: they are object pixels."
    )


def _lattice_fraction(values_px: NDArray[np.float64]) -> float:
    """Return the common fractional part of positions on one lattice, 0 where there is none."""
    resultant = np.exp(2j * np.pi * values_px).mean()
    if abs(resultant) < LATTICE_CONCENTRATION:
        return 0.0
    return float(np.angle(resultant) / (2 * np.pi))


def plan_canvas(
    positions_yx_px: NDArray[np.float64],
    patch_px: int,
    *,
    margin_px: int = 0,
    multiple_px: int = 1,
    centre_yx_px: tuple[float, float] | None = None,
) -> CanvasPlan:
    """Lay all patches of a scan on the smallest canvas that holds every one (specs/physics.md, 3).

    ``margin_px`` is added on every side; height and width become multiples of ``multiple_px``, by room at the
    far sides, or on both where ``centre_yx_px`` states the object coordinate of the middle, ``((H-1)/2,
    (W-1)/2)``. ``DataError`` where positions are not finite (J, 2), or a patch would fall outside.
    """
    positions = check_positions(positions_yx_px)
    check_extent(positions, patch_px)
    corners_px = positions - (patch_px - 1) / 2
    origin = np.zeros(2)
    shape = [0, 0]
    for axis in range(2):
        values = corners_px[:, axis]
        fraction = _lattice_fraction(values)
        low = np.floor(values.min() - fraction + 0.5) + fraction - margin_px
        high = np.ceil(values.max() - fraction - 0.5) + fraction + patch_px + margin_px
        if centre_yx_px is None:
            size = round(high - low)
            size += -size % multiple_px
            origin[axis] = low
        else:
            origin[axis], size = _centred_axis(low, high, centre_yx_px[axis], fraction, multiple_px)
        shape[axis] = size
    return lay_on_canvas(positions, patch_px, shape_yx=(shape[0], shape[1]), origin_yx_px=origin)


def lay_on_canvas(
    positions_yx_px: NDArray[np.float64],
    patch_px: int,
    *,
    shape_yx: tuple[int, ...],
    origin_yx_px: NDArray[np.float64],
    reach_px: float = 0.5,
) -> CanvasPlan:
    """Find the place of patches on a canvas that exists: nearest corners, and what is left of positions.

    A position between two corners takes the larger one. At the rim a patch stays inside, and the rest of its
    position is in the shift: up to ``reach_px``, where half a pixel is a matter of rounding. ``DataError``
    for one further off, for a canvas smaller than a patch, and for positions that are not finite (J, 2).
    """
    height, width = shape_yx
    if min(height, width) < patch_px:
        raise DataError(
            f"canvas: it is smaller than a patch (got {height}x{width} px, expected sides >= {patch_px} px). "
            "Check the pattern size."
        )
    relative = check_positions(positions_yx_px) - (patch_px - 1) / 2 - origin_yx_px
    corners = np.floor(relative + 0.5 + TIE_PX).astype(np.int64)
    corners = np.clip(corners, 0, np.array([height, width]) - patch_px)
    shifts = relative - corners
    if np.abs(shifts).max() > reach_px + 2 * TIE_PX:
        raise DataError(
            f"canvas: a patch lies {np.abs(shifts).max():.3g} px off the {height}x{width} px canvas "
            "(expected every patch inside). Check the position units."
        )
    return CanvasPlan((height, width), np.asarray(origin_yx_px, np.float64), corners, shifts, patch_px)


def moved_plan(plan: CanvasPlan, shifts_yx_px: NDArray[np.floating]) -> CanvasPlan:
    """Lay patches that now lie at ``shifts_yx_px`` (J, 2) from their corners on the same canvas again.

    Each takes the nearest corner; one that left the canvas stays at its rim with a larger shift.
    """
    positions = plan.positions_yx_px - plan.shifts_yx_px + shifts_yx_px
    return lay_on_canvas(
        positions, plan.patch_px, shape_yx=plan.shape_yx, origin_yx_px=plan.origin_yx_px, reach_px=np.inf
    )


def _centred_axis(
    low: float, high: float, centre: float, fraction: float, multiple: int
) -> tuple[float, int]:
    """Return (origin, size) of one axis whose middle has the object coordinate ``centre``."""
    half = max(centre - low, high - 1 - centre)
    size = int(np.ceil(2 * half - 1e-9)) + 1
    size += -size % multiple
    if multiple == 1:
        # An odd and an even size differ by half a pixel of origin: take the one on the lattice of the scan.
        candidates = [size, size + 1]
        offsets = [abs((centre - (n - 1) / 2 - fraction + 0.5) % 1.0 - 0.5) for n in candidates]
        size = candidates[int(np.argmin(offsets))]
    return centre - (size - 1) / 2, size


def nearest_tile(
    positions_yx_px: NDArray[np.float64], centre_yx_px: NDArray[np.float64], n_patterns: int
) -> NDArray[np.int64]:
    """Return the ``n_patterns`` positions nearest to a centre in max(|dy|, |dx|), ascending."""
    if n_patterns >= len(positions_yx_px):
        return np.arange(len(positions_yx_px))
    distance = np.abs(positions_yx_px - centre_yx_px).max(axis=1)
    return np.sort(np.argpartition(distance, n_patterns - 1)[:n_patterns])


def group_canvases(offsets_yx_px: NDArray[np.float64], patch_px: int) -> CanvasPlan:
    """Lay groups of patches, offsets (B, C, 2) from their middles, on canvases stacked along y.

    B * C corners and shifts, group after group, height B * S and width S; the origin is that of the first
    group's frame, and groups never touch each other.
    """
    reach = int(np.ceil(np.abs(offsets_yx_px).max(initial=0.0)))
    size = patch_px + 2 * reach
    whole = np.floor(offsets_yx_px + 0.5)
    corners = (whole + reach).astype(np.int64)
    corners[..., 0] += np.arange(len(offsets_yx_px))[:, None] * size
    origin = np.full(2, -(patch_px - 1) / 2 - reach)
    shifts = (offsets_yx_px - whole).reshape(-1, 2)
    return CanvasPlan((len(offsets_yx_px) * size, size), origin, corners.reshape(-1, 2), shifts, patch_px)


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


def fade(n_px: int) -> NDArray[np.float32]:
    """Return the factor on a window: 1 on the patch in its middle, smoothly to 0 over ``FADE_PX``."""
    weights = np.kaiser(FADE_PX + 1, FADE_BETA)
    rise = np.cumsum(weights)[:-1] / weights.sum()
    axis = np.concatenate([rise, np.ones(n_px), rise[::-1]])
    return np.multiply.outer(axis, axis).astype(np.float32)


def _with_margin(obj: NDArray[Any], corners_yx: NDArray[np.int64], n_px: int) -> tuple[NDArray[Any], Any]:
    """Return the part of an object that windows lie on, continued beyond its border, and its corner."""
    low, high = corners_yx.min(axis=0) - FADE_PX, corners_yx.max(axis=0) + n_px + FADE_PX
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
    side = n_px + 2 * FADE_PX
    chunk, faded, inner = max(1, WINDOW_PIXELS // side**2), fade(n_px), slice(FADE_PX, FADE_PX + n_px)
    for start in range(0, len(between), chunk):
        rows = between[start : start + chunk]
        part, low = _with_margin(np.asarray(obj), corners[rows], n_px)
        windows = extract_patches(part, corners[rows] - low - FADE_PX, side) * faded
        patches[rows] = shift_field(windows[:, None], -shifts[rows])[:, 0, inner, inner]
    return patches
