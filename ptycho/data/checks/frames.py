"""Patterns that tell nothing about the sample: dark, constant, repeated, or of absurd intensity."""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray

from ptycho.data.canonical import probe_power
from ptycho.data.checks.findings import FOLLOW_BEAM, Draft, count_blocks, holds_counts, named
from ptycho.data.optics import FileOptions
from ptycho.data.raw import RawData
from ptycho.errors import DataError

DARK_SHARE = 1e-3
"""Counts of a pattern, in units of the median pattern, below which it tells nothing."""
NEIGHBOURS = 8
"""Patterns around one that its counts are compared with; overlapping ones see much the same sample."""
FEWEST_PATTERNS = 12
"""In fewer patterns none is called unusual."""
FAR_OFF = 4.0
"""Factor between a pattern and its neighbours from which on it is unusual ..."""
FAR_OFF_SIGMAS = 10.0
"""... and its distance, in units of the spread of all of them ..."""
FAR_OFF_TAIL = 6.0
"""... and of what 19 of 20 patterns keep within: a patchy sample makes some of them bright or dark."""
RIM = 0.3
"""Shift of the middle of the neighbours, in units of their distance, from which on a point is at the rim."""
MOST_TRANSMITTED = 2.0
"""Counts in units of the power of the probe that no sample lets through, where the probe is in photons."""
REPEATED_COUNTS = 100.0
"""Counts from which on two patterns of photons are never the same in every pixel."""


def check_frames(draft: Draft, options: FileOptions) -> Draft:
    """Leave out patterns that tell nothing about the sample; ``DataError`` where none is left."""
    if options.keep_frames:
        return draft
    raw = draft.raw
    totals, constant, checksums = _measured(raw)
    usable = draft.usable
    median = float(np.median(totals[usable][totals[usable] > 0])) if (totals[usable] > 0).any() else 0.0
    dark = usable[(totals[usable] <= DARK_SHARE * median) | constant[usable]]
    if len(dark) == len(usable):
        raise DataError(
            f"{raw.source}: no pattern holds information (got {len(dark)} dark or constant patterns of "
            f"{raw.n_patterns}, expected photons that vary over the detector). Check the export."
        )
    usable = np.setdiff1d(usable, dark)
    repeated = usable[_repeated(checksums[usable], totals[usable])] if holds_counts(raw) else usable[:0]
    usable = np.setdiff1d(usable, repeated)
    # Where the probe does not tell the counts of an empty beam, none is brighter.
    told = raw.probeGuess is not None and holds_counts(raw)
    power = probe_power(raw.probe_modes) if told else np.inf
    unusual, certain = _unusual(totals[usable], raw.positions_yx_px[usable], power)
    absurd, doubted = usable[certain], usable[unusual & ~certain]
    kinds = (
        (dark, "hold no information, they are dark or constant"),
        (repeated, "repeat an earlier pattern count by count"),
        (absurd, f"hold absurd counts ({_range(totals, absurd, median)})"),
    )
    for rows, text in kinds:
        if len(rows):
            draft = draft.repaired(
                "frames",
                f"{len(rows)} of {raw.n_patterns} patterns {text}, and are left out: {named(rows)}; "
                "--keep-frames keeps them",
                left_out=rows,
            )
    if len(doubted):
        draft = draft.found(
            "frames",
            f"{len(doubted)} of {raw.n_patterns} patterns do not fit their neighbours' counts "
            f"({_range(totals, doubted, median)}): {named(doubted)}; where the beam changed, "
            f"{FOLLOW_BEAM} follow it",
        )
    return draft


def _measured(raw: RawData) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.int64]]:
    """Return counts, constancy and a checksum of every pattern, over its measured pixels."""
    totals = np.empty(raw.n_patterns)
    constant = np.empty(raw.n_patterns, dtype=bool)
    checksums = np.empty(raw.n_patterns, dtype=np.int64)
    for rows, counts in count_blocks(raw):
        totals[rows] = counts.sum(axis=(1, 2))
        # Bad pixels are 0: the extremes of the others decide.
        seen = counts > 0
        low = np.where(seen, counts, np.inf).min(axis=(1, 2))
        constant[rows] = (counts.max(axis=(1, 2)) == low) & (seen.mean(axis=(1, 2)) > 0.5)
        checksums[rows] = [zlib.crc32(np.ascontiguousarray(pattern)) for pattern in counts]
    return totals, constant, checksums


def _repeated(checksums: NDArray[np.int64], totals: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which patterns of photons are the copy of an earlier one."""
    copies = totals >= REPEATED_COUNTS
    copies[np.unique(checksums, return_index=True)[1]] = False
    return copies


def _unusual(
    totals: NDArray[np.float64], positions_yx_px: NDArray[np.float64], power: float
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which patterns are far brighter or darker than those around; which of them certainly by a fault."""
    none = np.zeros(len(totals), dtype=bool)
    if len(totals) < FEWEST_PATTERNS:
        return none, none
    from scipy.spatial import cKDTree

    away, near = (found[:, 1:] for found in cKDTree(positions_yx_px).query(positions_yx_px, k=NEIGHBOURS + 1))
    logs = np.log(totals)
    off = logs - np.median(logs[near], axis=1)
    spread = 1.4826 * np.median(np.abs(off - np.median(off)))
    tail = np.quantile(np.abs(off), 0.95)
    far = np.abs(off) > np.log(FAR_OFF)
    unusual = far & (np.abs(off) > max(FAR_OFF_SIGMAS * spread, FAR_OFF_TAIL * tail))
    # One of the closest four may be at fault too.
    closest = np.sort(logs[near[:, :4]], axis=1)
    apart = np.where(off > 0, logs - closest[:, 2], closest[:, 1] - logs) > np.log(FAR_OFF)
    # A hole in an opaque sample is bright, and at the rim of the scan nothing tells a fault from a grain:
    # only one between neighbours that are all alike, or brighter than the empty beam, is certainly no sample.
    lean = positions_yx_px[near].mean(axis=1) - positions_yx_px
    inside = np.hypot(*lean.T) < RIM * away.mean(axis=1)
    gauged = np.median(totals) <= 1.1 * power <= 4.4 * np.median(totals)
    impossible = far & gauged & (totals > MOST_TRANSMITTED * power)
    return unusual | impossible, (unusual & apart & inside) | impossible


def _range(totals: NDArray[np.float64], rows: NDArray[np.int64], median: float) -> str:
    """Say how bright patterns are, in units of the median."""
    if not len(rows):
        return ""
    low, high = (float(value) / median for value in (totals[rows].min(), totals[rows].max()))
    span = f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"
    return f"{span} times the median"
