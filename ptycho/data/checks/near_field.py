"""Near-field patterns: images of the sample that move with it, in a beam wider than a far field can hold.

A lens out of focus also throws a shadow image of the sample that moves, by :math:`m` detector pixels per
object pixel. The lit part of the detector, of width c, then shows a part of the sample that is :math:`c / m`
wide. In the far field this is the diameter of the probe, which fits the window of N object pixels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ptycho.data.scan import Scan
from ptycho.errors import DataError

PATTERNS = 48
"""Patterns whose shift against some neighbours is measured."""
NEIGHBOURS = (1, 6, 12)
"""Which neighbours: the nearest, and farther ones, which have moved more."""
FEWEST_PATTERNS = 16
"""Fewer say nothing."""
FEWEST_PX = 3.0
"""Median shift that can be told from a pattern that stays where it is [detector px]."""
CLOSE_PX = 1.5
"""A shift this close to the common law follows it [detector px] ..."""
CLOSE = 0.15
"""... or this close, in units of the shift."""
FOLLOW = 0.7
"""Share of the pairs that have to follow it."""
UNEQUAL = 2.0
"""Largest ratio of the two magnifications of one law."""
TOO_WIDE = 1.5
"""Width of the beam, in units of the window, that no far field holds."""
LIT = 0.1
"""Intensity, in units of the brightest part of the mean pattern, that counts as lit."""


def check_near_field(scan: Scan) -> None:
    """Refuse near-field patterns: images of a sample that moves, in a beam wider than the window."""
    if scan.fresnel_number is not None:
        return
    width = beam_width_px(scan)
    if width is not None and width > TOO_WIDE * scan.n_px:
        raise DataError(
            f"{scan.name}: near-field patterns (got images that move with the sample, in a beam about "
            f"{width:.0f} object px wide, expected a far field, whose beam fits {scan.n_px} px). Pass "
            "--propagation near, with --focus-distance M where a focus lies M metres before "
            "the sample; if these are far fields, correct the unit of the positions."
        )


def beam_width_px(scan: Scan) -> float | None:
    """Return the width of what a pattern is an image of [object px]; None where it does not move along."""
    from scipy.spatial import cKDTree

    rows = scan.usable
    positions = scan.positions_yx_px[rows]
    if len(rows) < FEWEST_PATTERNS:
        return None
    first = np.unique(np.linspace(0, len(rows) - 1, PATTERNS).astype(np.int64))
    near = cKDTree(positions).query(positions[first], k=NEIGHBOURS[-1] + 1)[1][:, list(NEIGHBOURS)]
    mean = sum(scan.amplitude(rows[place]).astype(np.float64).clip(0.0) for place in first) / len(first)
    lit = mean**2 > LIT * np.quantile(mean**2, 0.99)
    steps, shifts = [], []
    for place, others in zip(first, near, strict=True):
        relief = _relief(scan, rows[place], mean, lit)
        for other in others:
            steps.append(positions[other] - positions[place])
            shifts.append(_shift(relief, _relief(scan, rows[other], mean, lit)))
    law = _common_law(np.array(steps), np.array(shifts))
    return None if law is None else float(2 * np.sqrt(lit.sum() / np.pi)) / law


def _relief(scan: Scan, row: int, mean: NDArray[np.float64], lit: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return how a pattern differs from the mean one, in units of it, inside the lit part."""
    amplitude = scan.amplitude(row).astype(np.float64)
    good = lit & (amplitude >= 0)
    relief = np.where(good, amplitude / np.maximum(mean, 1e-12) - 1.0, 0.0)
    return np.where(good, relief - relief.sum() / max(int(good.sum()), 1), 0.0)


def _shift(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return by how much the second picture is moved against the first, (y, x) [px]."""
    spectrum = np.fft.fft2(first).conj() * np.fft.fft2(second)
    size = np.abs(spectrum)
    # Halfway to the phase correlation: the smooth parts of two pictures do not hide the rest.
    correlation = np.fft.ifft2(spectrum / np.sqrt(np.maximum(size, 1e-12 * size.max() + 1e-300))).real
    peak = np.array(np.unravel_index(np.argmax(correlation), correlation.shape), dtype=float)
    side = len(first)
    return (peak + side / 2) % side - side / 2


def _common_law(steps: NDArray[np.float64], shifts: NDArray[np.float64]) -> float | None:
    """Return the shift of a pattern for a step of one object pixel; None where the pairs follow no law."""
    follow = np.ones(len(steps), dtype=bool)
    for _ in range(5):
        law = np.linalg.lstsq(steps[follow], shifts[follow], rcond=None)[0]
        expected = steps @ law
        off = np.hypot(*(expected - shifts).T)
        follow = off <= max(CLOSE_PX, float(np.median(off)))
    size = np.hypot(*expected.T)
    if np.median(size) < FEWEST_PX or (off <= np.maximum(CLOSE_PX, CLOSE * size)).mean() < FOLLOW:
        return None
    larger, smaller = np.linalg.svd(law, compute_uv=False)
    return float(np.sqrt(larger * smaller)) if larger <= UNEQUAL * smaller else None
