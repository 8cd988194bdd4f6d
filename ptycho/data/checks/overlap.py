"""What a scan lights: its spots, how they cover the object, and whether they share enough of it.

Symbols: M patterns of N x N pixels; a spot is the part of the object that one pattern lights, the smallest
set of pixels with 95 % of the power of the probe; its diameter is that of a disc of the same area.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho.data.optics import GUESSED_PROBE
from ptycho.data.scan import Scan

LIT_POWER = 0.95
"""Share of the power of the probe inside a spot; the faint rings of a lens are left out."""
SAME_PLACE = 0.1
"""Positions this close, in units of the diameter, are one place: repeated exposures share no further part."""
CELLS_ACROSS = 24
"""Cells of the map across a spot: its area is right to some percent."""
MOST_CELLS = 2**24
"""Largest map; a scan that needs more has lost its unit."""
LEAST_SHARED = 0.5
"""Share of a spot that other spots light too; below it the error of simulated scans exceeds 0.12."""
ENOUGH = 0.5
"""Steps up to this share of the spot overlap enough, also at the ends of a short row."""
LEAST_PER_UNKNOWN = 2.0
"""Measured numbers for each real unknown of the object."""


def lit_pixels(probe: NDArray[np.complexfloating[Any, Any]]) -> NDArray[np.bool_]:
    """Return the pixels (N, N) inside the spot of a probe (P, N, N)."""
    intensity = (np.abs(probe).astype(np.float64) ** 2).sum(axis=0)
    falling = np.sort(intensity, axis=None)[::-1]
    inside = np.searchsorted(np.cumsum(falling), LIT_POWER * falling.sum())
    return intensity >= falling[min(int(inside), falling.size - 1)]


def diameter_px(lit: NDArray[np.bool_]) -> float:
    """Return the diameter of a disc with the area of a spot [px]."""
    return float(2 * np.sqrt(lit.sum() / np.pi))


def spot_px(scan: Scan) -> float:
    """Return the diameter of the spot of a scan [px]; without a probe the largest of a far field, N / 2, and
    in the near field that of the mean pattern."""
    if (scan.raw.metadata or {}).get(GUESSED_PROBE) and scan.fresnel_number is None:
        return scan.n_px / 2
    return diameter_px(lit_pixels(scan.probe))


def step_px(positions_yx_px: NDArray[np.float64]) -> float:
    """Return the median distance from a place to the nearest other one [px]; 0 where all are at one place."""
    from scipy.spatial import cKDTree

    places = np.unique(positions_yx_px, axis=0)
    if len(places) < 2:
        return 0.0
    return float(np.median(cKDTree(places).query(places, k=2)[0][:, 1]))


@dataclass(frozen=True)
class Coverage:
    """How the spots of a scan cover the object."""

    shared: float  # share of a spot that another place of the scan lights too; the median over all places
    lit_px: float  # object pixels that any pattern lights
    parts: int  # areas without a lit bridge between them
    largest_part: float  # share of the places in the largest of these areas


def coverage(positions_yx_px: NDArray[np.float64], lit: NDArray[np.bool_]) -> Coverage | None:
    """Map the spots (N, N) of a scan around its positions (M, 2) [px]; None for too large a map."""
    from scipy.ndimage import label
    from scipy.signal import fftconvolve

    diameter = diameter_px(lit)
    places = np.unique(np.rint(positions_yx_px / (SAME_PLACE * diameter)), axis=0) * SAME_PLACE * diameter
    cell = max(1.0, diameter / CELLS_ACROSS)
    kernel = _in_cells(lit, cell)
    reach = len(kernel) // 2
    corner = np.rint((places - places.min(axis=0)) / cell).astype(np.int64)
    shape = corner.max(axis=0) + 1 + 2 * reach
    if float(shape[0]) * float(shape[1]) > MOST_CELLS:
        return None
    points = np.zeros(shape)
    np.add.at(points, tuple((corner + reach).T), 1.0)
    count = np.rint(fftconvolve(points, kernel, mode="same"))
    again = fftconvolve((count >= 2).astype(float), kernel[::-1, ::-1], mode="same")
    at = tuple((corner + reach).T)
    whole, anchor = _without_gaps(kernel)
    areas, _ = label(np.rint(fftconvolve(points, whole, mode="same")) >= 1)
    sizes = np.bincount(areas[tuple((corner + anchor).T)], minlength=1)
    return Coverage(
        shared=float(np.median(again[at]) / kernel.sum()),
        lit_px=float((count >= 1).sum()) * cell**2,
        parts=int((sizes[1:] > 0).sum()),
        largest_part=float(sizes[1:].max(initial=0)) / len(places),
    )


def _without_gaps(kernel: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Close the gaps of a spot, which the rings of a lens leave, and return a cell in the middle of it."""
    from scipy.ndimage import binary_closing, binary_fill_holes, label

    room = max(1, len(kernel) // 12)
    closed = binary_fill_holes(binary_closing(np.pad(kernel > 0, room), iterations=room))
    closed = closed[room:-room, room:-room]
    areas, _ = label(closed)
    largest = areas == 1 + np.argmax(np.bincount(areas.ravel())[1:])
    cells = np.argwhere(largest)
    anchor = cells[np.argmin(((cells - cells.mean(axis=0)) ** 2).sum(axis=1))]
    return closed.astype(float), anchor


def _in_cells(lit: NDArray[np.bool_], cell_px: float) -> NDArray[np.float64]:
    """Sample a spot on cells, the middle of the patch in the middle, without empty borders."""
    n_px = len(lit)
    half = int(n_px / 2 / cell_px) + 1
    index = np.floor(np.arange(-half, half + 1) * cell_px + n_px / 2).astype(np.int64)
    padded = np.pad(lit, 1)[np.clip(index + 1, 0, n_px + 1)][:, np.clip(index + 1, 0, n_px + 1)]
    reach = int(np.abs(np.argwhere(padded) - half).max())
    inner = slice(half - reach, half + reach + 1)
    return padded[inner, inner].astype(float)


def check_overlap(scan: Scan) -> str | None:
    """Warn where neighbouring spots share too little."""
    positions = scan.positions_yx_px[scan.usable]
    if len(positions) == 1:
        return "only one pattern takes part, so nothing tells object and probe apart; scan the sample"
    step, spot = step_px(positions), spot_px(scan)
    if (scan.raw.metadata or {}).get(GUESSED_PROBE):
        return _no_overlap(step, spot) if step > spot else None
    covered = coverage(positions, lit_pixels(scan.probe))
    if step == 0.0 or covered is None:
        return None
    bad = scan.raw.bad_pixels
    good = scan.n_px**2 if bad is None else float((~bad).sum(axis=(-2, -1)).mean())
    per_unknown = good * len(scan.usable) / (2 * covered.lit_px)
    if covered.shared < 0.05:
        return _no_overlap(step, spot)
    if covered.parts > 1 and covered.shared >= LEAST_SHARED:
        return (
            f"the scan falls into {covered.parts} parts that share no illumination, with "
            f"{covered.largest_part:.0%} of the places in the largest; phase and brightness of one part say "
            "nothing about the others: reconstruct them one by one"
        )
    if covered.shared < LEAST_SHARED and step > ENOUGH * spot:
        return (
            f"neighbouring spots share little illumination (steps of {step:.3g} px, spots {spot:.3g} px "
            f"wide, {covered.shared:.0%} of a spot seen twice, expected at least {LEAST_SHARED:.0%}); the "
            "object may be wrong where the patterns fit: scan in smaller steps, or check the unit of the "
            "positions"
        )
    if per_unknown < LEAST_PER_UNKNOWN:
        return (
            f"the patterns hold {per_unknown:.2g} measured numbers for each unknown of the object, expected "
            f"at least {LEAST_PER_UNKNOWN:g}; the object may be wrong where the patterns fit: scan in "
            "smaller steps, or with a smaller beam"
        )
    return None


def _no_overlap(step: float, spot: float) -> str:
    return (
        f"neighbouring spots share no illumination (steps of {step:.3g} px, spots {spot:.3g} px wide), so "
        "phase and brightness differ from spot to spot at random, however well the patterns fit: scan in "
        "smaller steps, or check the unit of the positions"
    )
