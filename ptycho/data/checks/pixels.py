"""Hot and dead detector pixels and zingers that nobody marked, found by what the light of a probe cannot do.

The far field of a probe that fits its window has no feature as small as a pixel, except where the direct beam
hits the detector and around it. A dark region fades out; the edge of a dead one is as bright as the rest.

A zinger is a pixel of one pattern that a cosmic ray or a glitch of the detector made bright: far above what
it shows in other patterns, and far above its neighbours in the same one. A grain that scatters strongly is
the former only, the direct beam the latter only.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from ptycho.data.checks.findings import Draft, count_blocks, counts_of, holds_counts, named, with_bad_pixels
from ptycho.data.optics import FileOptions
from ptycho.data.raw import RawData

FEWEST_PATTERNS = 16
"""In fewer patterns chance is no stranger than a fault, and nothing tells what a pixel usually shows."""
HOT_FACTOR = 4.0
"""Counts of a hot pixel in units of those of its neighbours."""
SIGMAS = 6.0
"""How far beyond that factor, in standard errors of the mean, 3.1 is the most in 500 simulated scans; beyond
the factor of a zinger, in standard deviations of the counts."""
RANKS = ((4, 1.5, 0.0), (10, 0.0, 0.15))
"""Rank of the neighbour, of 24, that a pixel is compared with, and how far from the beam [px, N]: 3
faulty ones may touch anywhere but in it, 9 where no structure is as sharp as near it, nor a streak."""
STREAK_PX, STREAK_SHARE = 17, 0.25
"""Length over which a streak goes on [px], and how far from the row and the column of the beam it may lie
[N]: a window that cuts a probe off draws it."""
LIT_AROUND = 10
"""So many lit neighbours are enough to compare with."""
DEAD_PATTERNS = 24.0
"""Patterns in which both ends of a dead line of pixels have counts (13 in 500 simulated scans) ..."""
DEAD_LIT = 0.5
"""... or this share of the patterns, where they are few."""
DEAD_LONGEST = 0.25
"""Longest dead line in units of N; a longer one is where no light goes."""
MIDDLE = 0.15
"""Within this radius of the direct beam, in units of N, a probe that fills its window has dark rings ..."""
DARK_RING = 2000.0
"""... whose counts, in all patterns, are more than one for so many beside them."""
RING_WIDTH = 3
"""A dead line this long is no such ring."""
MOST_IN_ROW = 3
"""Brightest pixels of a row that do not count, since they may be hot."""
BAND_COUNTS = 100.0
"""Counts of the row on either side of dark ones, in all patterns, from which on these are a gap."""
MOST_HOT, MOST_DEAD = 0.03, 0.3
"""Share of the detector from which on so many faults are more likely the light."""
SAMPLE = 256
"""Patterns that tell what a pixel usually shows, evenly over the scan."""
STRIP = 1 << 24
"""Numbers of that sample that are held at a time."""
USUAL_RANK = 3
"""Rank of the counts of a pixel, from the brightest of the sample: two zingers may be among them."""
FACTOR = 10.0
"""Counts of a zinger over those of that rank, and over its neighbours of rank :data:`NEIGHBOUR` of 8."""
NEIGHBOUR = 4
"""Three faulty pixels may touch."""
HARM = 1e-4
"""Share of the counts of a pattern that does harm: one part in a hundred of its amplitude."""
MOST_IN_PATTERN = 0.01
"""Share of the pixels of a pattern from which on so many are more likely the light."""


def check_pixels(draft: Draft, options: FileOptions) -> Draft:
    """Mark hot and dead pixels, where what was not measured is marked and damaged patterns are left out."""
    raw = draft.raw
    used = draft.usable
    count = len(used)
    if options.keep_pixels or count < FEWEST_PATTERNS:
        return draft
    mean, error, lit, good = _measured(raw, used)
    beam = _beam_distance(mean, good)
    dead = _dead(mean * count, lit * count, good, beam, count)
    hot = _hot(mean, error, good & ~dead, beam)
    for pixels, kind, most in (
        (hot, "hot, far brighter than all around them", MOST_HOT),
        (dead, "dead, dark amid light", MOST_DEAD),
    ):
        if not pixels.any():
            continue
        places = ", ".join(f"({y}, {x})" for y, x in np.argwhere(pixels)[:4])
        more = ", ..." if pixels.sum() > 4 else ""
        where = f"{int(pixels.sum())} pixels are {kind}: row, column {places}{more}"
        if pixels.mean() > most:
            draft = draft.found("pixels", f"{where}; mark them in bad_pixels if they are")
        else:
            text = f"{where}; they take no part, --keep-pixels keeps them"
            draft = draft.repaired("pixels", text, with_bad_pixels(draft.raw, pixels))
    return draft


def _measured(
    raw: RawData, used: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """Return mean counts of every pixel, their standard error, how often there are any, and what is good."""
    total, squares, lit = (np.zeros((raw.N, raw.N)) for _ in range(3))
    for chosen in counts_of(raw, used):
        total += chosen.sum(axis=0)
        squares += (chosen**2).sum(axis=0)
        lit += (chosen > 0).sum(axis=0)
    mean = total / len(used)
    error = np.sqrt(np.maximum(squares / len(used) - mean**2, 0.0) / len(used))
    bad = raw.bad_pixels
    if bad is None:
        return mean, error, lit / len(used), np.ones((raw.N, raw.N), dtype=bool)
    lost = bad.astype(float) if bad.ndim == 2 else bad[used].mean(axis=0)
    share = np.maximum(1.0 - lost, 1.0 / len(used))
    return mean / share, error / share, lit / len(used) / share, lost < 0.5


def _ranked(values: NDArray[np.float64], good: NDArray[np.bool_], rank: int) -> NDArray[np.float64]:
    """Return the value of that rank, of 24, among the good neighbours of every pixel."""
    padded = np.pad(np.where(good, values, -1.0), 2, mode="reflect")
    around = np.lib.stride_tricks.sliding_window_view(padded, (5, 5)).reshape(*values.shape, 25)
    around = -np.sort(-np.delete(around, 12, axis=-1), axis=-1)
    # Dark pixels among lit ones may be dead.
    lit = (around > 0).sum(axis=-1)
    counted = np.where(lit >= LIT_AROUND, lit, (around >= 0).sum(axis=-1))
    place = np.clip(np.ceil(rank / 24 * counted).astype(np.int64) - 1, 0, 23)
    found = np.take_along_axis(around, place[..., None], axis=-1)[..., 0]
    # Too few neighbours tell nothing: nothing is brighter than infinity.
    return np.where(counted >= rank, found, np.inf)


def _beam_distance(mean: NDArray[np.float64], good: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the smaller distance of every pixel, from the middle or the brightest spot [px]."""
    from scipy.ndimage import uniform_filter

    n_px = len(mean)
    calm = np.where(good, np.minimum(mean, HOT_FACTOR * _ranked(mean, good, 4)), 0.0)
    spot = np.unravel_index(np.argmax(uniform_filter(calm, 5, mode="wrap")), mean.shape)
    y, x = np.indices(mean.shape)
    middle = np.hypot(y - n_px // 2, x - n_px // 2)
    if np.hypot(*(np.array(spot) - n_px // 2)) < MIDDLE * n_px:
        return middle
    away = [
        (np.abs(axis - place) + n_px // 2) % n_px - n_px // 2 for axis, place in ((y, spot[0]), (x, spot[1]))
    ]
    return np.minimum(middle, np.hypot(*away))


def _hot(
    mean: NDArray[np.float64], error: NDArray[np.float64], good: NDArray[np.bool_], beam: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Which pixels are far brighter than their neighbours."""
    from scipy.ndimage import uniform_filter

    hot = np.zeros(mean.shape, dtype=bool)
    streak = _streaks(mean)
    # Where neighbours are unknown, they may be the bright ones.
    factor = HOT_FACTOR * (
        1 + 0.5 * np.rint(25 * uniform_filter((~good).astype(np.float64), 5, mode="reflect"))
    )
    for rank, least_px, least_share in RANKS:
        around = _ranked(mean, good, rank)
        known = np.isfinite(around)
        other = np.where(known, _ranked(error, good, rank), 0.0)
        excess = mean - factor * np.where(known, around, 0.0)
        noise = np.hypot(error, factor * other)
        bright = known & (excess > SIGMAS * noise) & (excess > 0)
        hot |= bright & (beam > max(least_px, least_share * len(mean))) & ~(streak & (least_share > 0))
    return hot & good


def _streaks(mean: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which pixels are hardly brighter than those along their row or column, close to that of the beam."""
    from scipy.ndimage import median_filter

    near = np.abs(np.arange(len(mean)) - len(mean) // 2) < STREAK_SHARE * len(mean)
    along_x, along_y = (median_filter(mean, size) for size in ((1, STREAK_PX), (STREAK_PX, 1)))
    return (near[:, None] & (mean < HOT_FACTOR * along_x)) | (near & (mean < HOT_FACTOR * along_y))


def _dead(
    total: NDArray[np.float64],
    lit: NDArray[np.float64],
    good: NDArray[np.bool_],
    beam: NDArray[np.float64],
    count: int,
) -> NDArray[np.bool_]:
    """Which pixels are dark in all patterns, on a line along a row or a column whose ends are lit in most."""
    found = np.zeros(total.shape, dtype=bool)
    for turned in (False, True):
        arrays = [array.T if turned else array for array in (total, lit, good, beam)]
        along = found.T if turned else found
        counts = np.sort(np.where(arrays[2], arrays[0], 0.0), axis=1)
        sums = counts[:, :-MOST_IN_ROW].sum(axis=1)
        bright = np.flatnonzero(counts.sum(axis=1) > 0)
        for low, high in pairwise(bright):
            # A gap between two modules, as narrow as that: rows without a count between rows with many.
            narrow = 1 < high - low <= 1 + DEAD_LONGEST * len(sums)
            along[low + 1 : high] |= narrow and min(sums[low], sums[high]) >= BAND_COUNTS
        for line, (counts, often, known, away) in enumerate(zip(*arrays, strict=True)):
            dark = (counts == 0) | ~known
            ends = np.flatnonzero(~dark)
            for low, high in pairwise(ends):
                run = np.arange(low + 1, high)
                if not run.size or run.size > DEAD_LONGEST * len(counts) or not known[run].any():
                    continue
                in_middle = away[run].min() < MIDDLE * len(counts) and run.size < RING_WIDTH
                enough = min(often[low], often[high]) >= min(DEAD_PATTERNS, DEAD_LIT * count)
                if enough and (not in_middle or min(counts[low], counts[high]) >= DARK_RING):
                    along[line, run] = True
    return found & good


def check_zingers(draft: Draft, options: FileOptions) -> Draft:
    """Mark single pixels of single patterns that are far too bright, where hot ones are marked already."""
    raw = draft.raw
    used = draft.usable
    if options.keep_pixels or len(used) < FEWEST_PATTERNS:
        return draft
    places = _zingers(raw, _usual(raw, used), used)
    if not len(places):
        return draft
    bad = np.zeros(raw.diff3d.shape, bool)
    bad[tuple(places.T)] = True
    return draft.repaired(
        "zingers",
        f"{len(places)} pixels of single patterns are far brighter than all around them and than in other "
        f"patterns: patterns {named(np.unique(places[:, 0]))}; they take no part, --keep-pixels keeps them",
        with_bad_pixels(raw, bad),
    )


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
