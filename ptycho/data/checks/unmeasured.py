"""Values that are no measurement: gaps and dead pixels marked by a number, saturation, noise below zero.

Detectors and their converters mark a pixel without a measurement with not-a-number, a negative number, or the
largest number of some integer type, which may have been cast since. So no number is taken for granted:
photons never give the same one in every pattern, and the largest one is never the most frequent of its size.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho.data.canonical import blocks
from ptycho.data.checks.findings import Draft, named
from ptycho.data.optics import FileOptions
from ptycho.data.raw import RawData
from ptycho.errors import DataError

CHANCE = 1e-6
"""Chance that any pixel of a stack of photons holds one number in all patterns, below which it is none."""
FEWEST_ALIKE = 3
"""Times that the largest number has to occur before it is the limit of a detector."""
FEWEST_COUNTS = 16
"""Smallest number that may be such a limit."""
NEAR_LIMIT = 0.8
"""Numbers from here to the limit, in units of it, are fewer than those at it where the detector saturates."""
LIMITS = tuple(
    sorted(float(2**bits - last) for bits in (8, 12, 14, 15, 16, 20, 31, 32, 63, 64) for last in (1, 2))
)
"""Numbers that a single value is called unmeasured for ..."""
FAR_ABOVE = 4.0
"""... where it is so many times larger than any other, or as frequent as any number near it."""
LOWEST_LIMIT = 4000.0
"""Smallest number that is looked for below the largest one; smaller ones are common counts."""
MOST_OF_FRAME = 0.5
"""Share of the pixels of a pattern without a measurement, from which on the pattern is left out."""
CODES = 3
"""Up to so many different whole numbers below 0 may be marks of the detector; more of them are noise."""
BRIGHT = 8.0
"""Mean counts of the pixels around one from which on noise makes no number below 0 of it."""


@dataclass
class _Marks:
    """Values found to be no measurement: pixels of all patterns, and single values (pattern, y, x)."""

    always: NDArray[np.bool_]
    single: list[NDArray[np.int64]] = field(default_factory=list)
    numbers: list[float] = field(default_factory=list)

    @property
    def singles(self) -> NDArray[np.int64]:
        """Return the single values outside of the pixels of all patterns, shape (K, 3)."""
        if not self.single:
            return np.empty((0, 3), np.int64)
        found = np.unique(np.concatenate(self.single), axis=0)
        return found[~self.always[found[:, 1], found[:, 2]]]


def check_unmeasured(draft: Draft, options: FileOptions) -> Draft:
    """Mark what was not measured as bad pixels, and set noise below zero to 0; ``DataError`` if all is."""
    raw = draft.raw
    live = _live(raw)
    # What is known to be bad may hold anything, and is no news.
    known = np.zeros((raw.N, raw.N), dtype=bool) if raw.bad_pixels is None else raw.bad_pixels
    everywhere = known if known.ndim == 2 else known.all(axis=0)
    marks = _Marks(_always(raw, live) | everywhere)
    always = marks.always & ~everywhere
    _find_limits(raw, live, marks)
    if always.any():
        marks.numbers += np.unique(raw.diff3d[live[0]][always].astype(np.float64)).tolist()[:CODES]
    noise, lowest = _find_negative(raw, marks)
    singles = marks.singles
    if not always.any() and not len(singles) and not noise:
        return draft
    if marks.always.all():
        raise DataError(
            f"{raw.source}: no pixel of diff3d was measured (got {_numbers(marks)} in all of them, expected "
            "counts). Check the export."
        )
    draft = replace(draft, raw=_mended(raw, always, singles, below=bool(noise)))
    if noise:
        share = noise / raw.diff3d.size
        text = f"{noise} values below 0 ({share:.2g} of all, the lowest {lowest:.4g}) are noise, and set to 0"
        draft = draft.repaired("unmeasured", text)
    if always.any() or len(singles):
        draft = draft.repaired("unmeasured", _message(always, singles, marks))
    return draft if options.keep_frames else _without_empty(draft, marks.always, singles)


def _live(raw: RawData) -> NDArray[np.int64]:
    """Patterns whose values differ from pixel to pixel; others are at fault as a whole."""
    live = np.empty(raw.n_patterns, dtype=bool)
    for rows in blocks(raw.n_patterns):
        chunk, bad = raw.diff3d[rows].reshape(-1, raw.N**2), raw.bad_pixels_of(rows)
        good = np.broadcast_to(True if bad is None else ~bad, (len(chunk), raw.N, raw.N)).reshape(chunk.shape)
        first = np.take_along_axis(chunk, good.argmax(axis=1)[:, None], axis=1)
        live[rows] = ((first != chunk) & good).any(1) & (np.isfinite(chunk) & good).any(1)
    found = np.flatnonzero(live)
    return found if found.size else np.arange(raw.n_patterns)


def _blocks(raw: RawData, rows: NDArray[np.int64]) -> Iterator[NDArray[Any]]:
    """Some patterns, a few at a time, 0 where they are known to be bad."""
    return (raw.good_values(rows[block]) for block in blocks(len(rows)))


def _line(raw: RawData, y: int) -> NDArray[Any]:
    """Return one row of the detector in all patterns (M, N), 0 where it is known to be bad."""
    values, bad = raw.diff3d[:, y], raw.bad_pixels
    return values if bad is None else np.where(bad[..., y, :], values.dtype.type(0), values)


def _always(raw: RawData, live: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Pixels that measured nothing in any pattern: never a number, or one number too steady for photons."""
    first = raw.good_values(live[:1])[0]
    steady, lost = np.ones(first.shape, dtype=bool), np.ones(first.shape, dtype=bool)
    for chunk in _blocks(raw, live):
        steady &= (chunk == first).all(axis=0)
        lost &= ~np.isfinite(chunk).any(axis=0)
    value = np.abs(np.where(lost, 0, first).astype(np.float64))
    if not (first == np.floor(first))[np.isfinite(first)].all():
        value = value**2
    # The most frequent number of a Poisson law of mean v has about the chance 1 / sqrt(2 pi v).
    chance = np.minimum(np.log(0.37), -0.5 * np.log(2 * np.pi * np.maximum(value, 1.0)))
    unlikely = len(live) * chance + np.log(first.size) < np.log(CHANCE)
    limit = np.isin(value, LIMITS) & (value > np.median(value))
    stuck = steady & (first != 0) & ((unlikely & (len(live) > 1)) | limit)
    # Between -1 and 0 it may be what is left of no counts where the dark level was taken off.
    stuck &= ~((first > -1) & (first < 0))
    if stuck.mean() > 0.5 and not limit[stuck].all():
        stuck[:] = False
    return stuck | lost


def _find_limits(raw: RawData, live: NDArray[np.int64], marks: _Marks) -> None:
    """Add single values that are not finite, or at the limit of the detector."""
    if raw.diff3d.dtype.kind == "f":
        marks.single += _places(raw, np.arange(raw.n_patterns), lambda chunk: ~np.isfinite(chunk))
    for _ in range(CODES):
        top, at_top, near, alike, below = _largest(raw, live, marks)
        limit = at_top >= FEWEST_ALIKE and top >= FEWEST_COUNTS and at_top > near
        limit |= at_top >= 2 * FEWEST_ALIKE and top >= FEWEST_COUNTS and at_top > FAR_ABOVE * alike
        limit |= top in LIMITS and below > 0 and top > FAR_ABOVE * below
        if not limit:
            break
        marks.single += _places(raw, live, lambda chunk, top=top: chunk == top)
        marks.numbers.append(top)
    for number in _frequent(raw, live, marks):
        marks.single += _places(raw, live, lambda chunk, number=number: chunk == number)
        marks.numbers.append(number)


def _places(raw: RawData, rows: NDArray[np.int64], wrong: Any) -> list[NDArray[np.int64]]:
    """Where single values are wrong, shape (K, 3)."""
    found = []
    for block in blocks(len(rows)):
        chosen = rows[block]
        places = np.argwhere(wrong(raw.good_values(chosen)))
        places[:, 0] = chosen[places[:, 0]]
        found.append(places)
    return found


def _frequencies(
    raw: RawData, live: NDArray[np.int64], marks: _Marks, lowest: float | None = None
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the values from the lowest, else the upper end of every block, and how often each occurs."""
    values, times = [np.empty(0)], [np.empty(0, np.int64)]
    for block in _blocks(raw, live):
        chunk = block[:, ~marks.always]
        chunk = chunk[np.isfinite(chunk) if lowest is None else chunk >= lowest]
        if marks.numbers:
            chunk = chunk[~np.isin(chunk, marks.numbers)]
        if chunk.size:
            # Only the upper end of every block matters.
            least = NEAR_LIMIT * chunk.max() / FAR_ABOVE if lowest is None else lowest
            found, count = np.unique(chunk[chunk >= least], return_counts=True)
            values.append(found.astype(np.float64))
            times.append(count)
    merged, inverse = np.unique(np.concatenate(values), return_inverse=True)
    return merged, np.bincount(inverse, np.concatenate(times), len(merged)).astype(np.int64)


def _largest(raw: RawData, live: NDArray[np.int64], marks: _Marks) -> tuple[float, int, int, int, float]:
    """Return the largest value, its frequency, that of all near it, the highest of these, the next value."""
    values, times = _frequencies(raw, live, marks)
    if not len(values):
        return 0.0, 0, 0, 0, 0.0
    near = times[(values >= NEAR_LIMIT * values[-1]) & (values < values[-1])]
    below = float(values[-2]) if len(values) > 1 else float(values[-1]) / (2 * FAR_ABOVE)
    return float(values[-1]), int(times[-1]), int(near.sum()), int(near.max(initial=0)), below


def _frequent(raw: RawData, live: NDArray[np.int64], marks: _Marks) -> list[float]:
    """Return the limits of some integer type that occur far more often than any number near them."""
    values, times = _frequencies(raw, live, marks, NEAR_LIMIT * LOWEST_LIMIT)
    numbers = []
    for limit in LIMITS:
        count, share = int(times[values == limit].sum()), values / limit
        near = times[(values != limit) & (share > NEAR_LIMIT) & (share < 1 / NEAR_LIMIT)]
        if count > FEWEST_ALIKE and count > FAR_ABOVE * near.max(initial=0):
            numbers.append(limit)
    return numbers


def _find_negative(raw: RawData, marks: _Marks) -> tuple[int, float]:
    """Add negative values that no noise explains; return how many others there are, and the lowest."""
    if raw.diff3d.dtype.kind == "u":
        return 0, 0.0
    lines = np.flatnonzero(
        np.any([(raw.good_values(rows) < 0).any(axis=(0, 2)) for rows in blocks(raw.n_patterns)], axis=0)
    )
    if not lines.size:
        return 0, 0.0
    found = np.unique(np.concatenate([_negative(_line(raw, y)) for y in lines]))
    whole = len(found) <= CODES and bool((found == np.floor(found)).all())
    codes = whole and _regardless_of_light(raw, marks.always)
    noise, lowest = 0, 0.0
    for y in lines:
        values = _line(raw, y).astype(np.float64)
        values[:, marks.always[y]] = 0
        below = values < 0
        if not below.any():
            continue
        positive = np.where(np.isfinite(values), values, 0.0)
        typical = np.median(positive, axis=0)
        spread = 1.4826 * np.median(np.abs(positive - typical), axis=0)
        scale = np.maximum(np.maximum(spread, np.sqrt(np.maximum(typical, 0))), 1.0)
        wrong = below & (codes | (typical - values > 10.0 * scale)) & (values <= -1)
        places = np.argwhere(wrong)
        marks.single.append(np.insert(places, 1, y, axis=1))
        marks.numbers += [float(value) for value in np.unique(values[wrong])[:CODES]]
        rest = below & ~wrong
        if rest.any():
            noise += int(rest.sum())
            lowest = min(lowest, float(values[rest].min()))
    return noise, lowest


def _negative(values: NDArray[Any]) -> NDArray[Any]:
    return np.unique(values[values < 0])


def _regardless_of_light(raw: RawData, always: NDArray[np.bool_]) -> bool:
    """Tell whether values below 0 are as likely between bright pixels as between dark ones."""
    from scipy.ndimage import uniform_filter

    seen, below = np.zeros(2), np.zeros(2)
    for block in _blocks(raw, np.arange(raw.n_patterns)):
        chunk = block.astype(np.float64)
        negative = (chunk < 0) & ~always
        light = np.where(np.isfinite(chunk) & (chunk > 0) & ~always, chunk, 0.0)
        bright = uniform_filter(light, size=(1, 3, 3), mode="nearest") >= BRIGHT
        for kind, chosen in enumerate((~bright & ~always, bright & ~always)):
            seen[kind] += chosen.sum()
            below[kind] += (negative & chosen).sum()
    dark_share, bright_share = below / np.maximum(seen, 1)
    return bool(below[1] >= FEWEST_ALIKE and bright_share > 0.2 * dark_share)


def _mended(raw: RawData, always: NDArray[np.bool_], singles: NDArray[np.int64], *, below: bool) -> RawData:
    """Return a data set with these values marked bad and set to 0."""
    mended = copy.copy(raw)
    mended.diff3d = raw.diff3d.copy()
    mended.diff3d[:, always] = 0
    mended.diff3d[tuple(singles.T)] = 0
    if below:
        np.maximum(mended.diff3d, 0, out=mended.diff3d)
    bad = always if raw.bad_pixels is None else raw.bad_pixels | always
    if len(singles):
        bad = np.array(np.broadcast_to(bad, raw.diff3d.shape))
        bad[tuple(singles.T)] = True
    mended.bad_pixels = bad if bad.any() else None
    return mended


def _without_empty(draft: Draft, always: NDArray[np.bool_], singles: NDArray[np.int64]) -> Draft:
    """Leave out patterns in which most pixels measured nothing."""
    raw = draft.raw
    lost = np.bincount(singles[:, 0], minlength=raw.n_patterns)
    rows = np.flatnonzero(lost > MOST_OF_FRAME * (~always).sum())
    if not rows.size:
        return draft
    return draft.repaired(
        "unmeasured",
        f"{len(rows)} of {raw.n_patterns} patterns measured nothing in most pixels, and are left out: "
        f"{named(rows)}; --keep-frames keeps them",
        left_out=rows,
    )


def _message(always: NDArray[np.bool_], singles: NDArray[np.int64], marks: _Marks) -> str:
    parts = []
    if always.any():
        parts.append(f"{int(always.sum())} pixels of all patterns")
    if len(singles):
        parts.append(f"{len(singles)} single values in {len(np.unique(singles[:, 0]))} patterns")
    return f"{' and '.join(parts)} hold no measurement ({_numbers(marks)}), and take no part"


def _numbers(marks: _Marks) -> str:
    """Name the numbers that stand for no measurement."""
    found = sorted({number for number in marks.numbers if np.isfinite(number)})
    shown = ", ".join(f"{number:.10g}" for number in found[:CODES])
    return f"{shown}{', ...' if len(found) > CODES else ''}" if found else "not a number"
