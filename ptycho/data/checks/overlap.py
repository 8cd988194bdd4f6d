"""Overlap: whether the spots of a scan share enough of the object to be put together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ptycho.data.checks.findings import Finding
from ptycho.data.checks.spots import Coverage, coverage, lit_pixels, spot_px, step_px
from ptycho.data.optics import GUESSED_PROBE

if TYPE_CHECKING:
    from ptycho.data.optics import FileOptions
    from ptycho.data.scan import Scan

LEAST_SHARED = 0.5
"""Share of a spot that other spots light too; below it the error of simulated scans exceeds 0.12."""
ENOUGH = 0.5
"""Steps up to this share of the spot overlap enough, also at the ends of a short row."""
LEAST_PER_UNKNOWN = 2.0
"""Measured numbers for each real unknown of the object."""


def check_overlap(scan: Scan, options: FileOptions) -> Finding | None:
    """Warn where neighbouring spots share too little."""
    positions = scan.positions_yx_px[scan.usable]
    if len(positions) == 1:
        return Finding(
            "overlap", "only one pattern takes part, so nothing tells object and probe apart; scan the sample"
        )
    step, spot = step_px(positions), spot_px(scan)
    if (scan.raw.metadata or {}).get(GUESSED_PROBE):
        return Finding("overlap", _no_overlap(step, spot)) if step > spot else None
    covered = coverage(positions, lit_pixels(scan.probe))
    if step == 0.0 or covered is None:
        return None
    return _judged(scan, covered, step, spot)


def _judged(scan: Scan, covered: Coverage, step: float, spot: float) -> Finding | None:
    """Return the finding on a scan whose probe is known."""
    bad = scan.raw.bad_pixels
    good = scan.n_px**2 if bad is None else float((~bad).sum(axis=(-2, -1)).mean())
    per_unknown = good * len(scan.usable) / (2 * covered.lit_px)
    if covered.shared < 0.05:
        return Finding("overlap", _no_overlap(step, spot))
    if covered.parts > 1 and covered.shared >= LEAST_SHARED:
        return Finding(
            "overlap",
            f"the scan falls into {covered.parts} parts that share no illumination, with "
            f"{covered.largest_part:.0%} of the places in the largest; phase and brightness of one part say "
            "nothing about the others: reconstruct them one by one",
        )
    if covered.shared < LEAST_SHARED and step > ENOUGH * spot:
        return Finding(
            "overlap",
            f"neighbouring spots share little illumination (steps of {step:.3g} px, spots {spot:.3g} px "
            f"wide, {covered.shared:.0%} of a spot seen twice, expected at least {LEAST_SHARED:.0%}); the "
            "object may be wrong where the patterns fit: scan in smaller steps, or check the unit of the "
            "positions",
        )
    if per_unknown < LEAST_PER_UNKNOWN:
        return Finding(
            "overlap",
            f"the patterns hold {per_unknown:.2g} measured numbers for each unknown of the object, expected "
            f"at least {LEAST_PER_UNKNOWN:g}; the object may be wrong where the patterns fit: scan in "
            "smaller steps, or with a smaller beam",
        )
    return None


def _no_overlap(step: float, spot: float) -> str:
    return (
        f"neighbouring spots share no illumination (steps of {step:.3g} px, spots {spot:.3g} px wide), so "
        "phase and brightness differ from spot to spot at random, however well the patterns fit: scan in "
        "smaller steps, or check the unit of the positions"
    )
