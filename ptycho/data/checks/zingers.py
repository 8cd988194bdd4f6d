"""Zingers: single pixels of single patterns that a cosmic ray or a glitch of the detector made bright.

A zinger is far above what its pixel shows in other patterns, and far above its neighbours in the same one. A
grain that scatters strongly is the former only, the direct beam the latter only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ptycho.data.checks.findings import Draft, Finding
from ptycho.data.checks.measures import count_blocks, holds_counts, named, with_bad_pixels

if TYPE_CHECKING:
    from ptycho.data.optics import FileOptions
    from ptycho.data.raw import RawData

FEWEST_PATTERNS = 16
"""In fewer patterns nothing tells what a pixel usually shows."""
SAMPLE = 256
"""Patterns that tell it, evenly over the scan."""
STRIP = 1 << 24
"""Numbers of that sample that are held at a time."""
USUAL_RANK = 3
"""Rank of the counts of a pixel, from the brightest of the sample: two zingers may be among them."""
FACTOR = 10.0
"""Counts of a zinger over those, and over its neighbours of rank :data:`NEIGHBOUR` of 8."""
NEIGHBOUR = 4
"""Three faulty pixels may touch."""
SIGMAS = 6.0
"""How far beyond the factor, in standard deviations of the counts."""
HARM = 1e-4
"""Share of the counts of a pattern that does harm: one part in a hundred of its amplitude."""
MOST_IN_PATTERN = 0.01
"""Share of the pixels of a pattern from which on so many are more likely the light."""


def check_zingers(draft: Draft, options: FileOptions) -> Draft:
    """Mark single pixels of single patterns that are far too bright, where hot ones are marked already."""
    raw = draft.raw
    used = draft.usable
    if options.keep_pixels or len(used) < FEWEST_PATTERNS:
        return draft
    places = _zingers(raw, _usual(raw, used), used)
    if not len(places):
        return draft
    patterns = np.unique(places[:, 0])
    finding = Finding(
        "zingers",
        f"{len(places)} pixels of single patterns are far brighter than all around them and than in other "
        f"patterns: patterns {named(patterns)}; they take no part, --keep-pixels keeps them",
        "repaired",
    )
    bad = np.zeros(raw.diff3d.shape, bool)
    bad[tuple(places.T)] = True
    return draft.found(finding, raw=with_bad_pixels(raw, bad))


def _usual(raw: RawData, used: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the most counts that every pixel shows in all but a few patterns, shape (N, N)."""
    rows = used[np.unique(np.linspace(0, len(used) - 1, min(SAMPLE, len(used))).astype(np.int64))]
    usual = np.empty((raw.N, raw.N))
    height = max(1, STRIP // (len(rows) * raw.N))
    for start in range(0, raw.N, height):
        strip = slice(start, start + height)
        values = raw.diff3d[rows, strip].astype(np.float64)
        if raw.bad_pixels is not None:
            bad = raw.bad_pixels[rows, strip] if raw.bad_pixels.ndim == 3 else raw.bad_pixels[strip]
            # What is bad because it was too bright must not make the rest look so.
            values = np.where(bad, np.inf, values)
        usual[strip] = -np.partition(-values, USUAL_RANK - 1, axis=0)[USUAL_RANK - 1]
    return usual if holds_counts(raw) else usual**2


def _zingers(raw: RawData, usual: NDArray[np.float64], used: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return (pattern, row, column) of every zinger, shape (K, 3)."""
    taken = np.isin(np.arange(raw.n_patterns), used)
    found = [np.empty((0, 3), np.int64)]
    for rows, counts in count_blocks(raw):
        least = HARM * counts.sum(axis=(1, 2))[:, None, None]
        excess = counts - FACTOR * usual
        bright = (excess > np.maximum(least, SIGMAS * np.sqrt(counts))) & taken[rows][:, None, None]
        place = np.argwhere(bright)
        if not len(place):
            continue
        bad = raw.bad_pixels_of(rows)
        good = np.broadcast_to(True if bad is None else ~bad, counts.shape)
        around = _neighbour(counts, good, place)
        place = place[counts[tuple(place.T)] > FACTOR * around]
        crowd = np.bincount(place[:, 0], minlength=len(counts))
        place = place[crowd[place[:, 0]] <= max(1.0, MOST_IN_PATTERN * raw.N**2)]
        place[:, 0] += rows.start
        found.append(place)
    return np.concatenate(found)


def _neighbour(
    counts: NDArray[np.float64], good: NDArray[np.bool_], place: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return the counts of the neighbour of that rank of some pixels; a bad one may be infinitely bright."""
    n_px = counts.shape[-1]
    steps = np.array([(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0)])
    spots = place[:, None, 1:] + steps
    inside = ((spots >= 0) & (spots < n_px)).all(axis=-1)
    y, x = np.moveaxis(spots.clip(0, n_px - 1), -1, 0)
    pattern = place[:, :1]
    values = np.where(good[pattern, y, x], counts[pattern, y, x], np.inf)
    ordered = -np.sort(-np.where(inside, values, -1.0), axis=1)
    return ordered[:, NEIGHBOUR - 1]
