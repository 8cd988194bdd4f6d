r"""Patterns whose zero frequency is not where the forward model has it, on pixel N // 2.

The mean pattern is about the far field of the probe, blurred by the sample: where a probe is known, the two
lie on each other. Patterns that lie s pixels beside it end in an object with a phase of
:math:`2 \pi s \cdot r / N`: stripes, or a chequerboard where the zero frequency is in the corner. The misfit
is perfect in either case.
"""

from __future__ import annotations

import copy

import numpy as np
from numpy.typing import NDArray

from ptycho.data.checks.findings import Draft, counts_of
from ptycho.data.optics import GUESSED_PROBE, FileOptions, near_field_of
from ptycho.data.raw import RawData
from ptycho.physics.filling import FEWEST_WEIGHT, fill_spectrum

ALIKE = 0.7
"""Correlation with the far field of the probe from which on it is that beam; 300 simulated scans: >= 0.75."""
BETTER = 0.9
"""What the shift leaves of the difference between the two, at most."""
AGREED_PX, AGREED_SHARE = 1.0, 0.1
"""How far that shift may be from the one of the centres of mass [px, share]; refraction: 0.8 px."""
SHARED_PX = 2.0
"""An offset of half the window, to within this, is that of a transform that was not shifted [px]."""
REACH_PX = 3
"""How far the borders of the window may lead the correlation astray [px]."""
IN_CORNERS, IN_MIDDLE = 0.9, 0.05
"""Shares of the counts in the corners and the middle where, without a probe, zero is in a corner."""
DOUBTED_SHARE = 0.08
"""Offset that is worth a word where it is not certain, in units of N."""


def check_centre(draft: Draft, options: FileOptions) -> Draft:
    """Move patterns by whole pixels where their zero frequency certainly is not on pixel N // 2.

    Pixels without a pattern are bad. A starting probe of the mean pattern is made anew.
    """
    raw = draft.raw
    # A near field has no zero frequency: its pixels lie on those of the probe.
    if raw.probeGuess is None or options.centre_patterns == "off" or near_field_of(raw) is not None:
        return draft
    made = bool((raw.metadata or {}).get(GUESSED_PROBE))
    mean = _mean_pattern(raw, draft.usable)
    offset, certain = _offset_alone(mean) if made else _offset_from(mean, _far_field(raw))
    if certain and offset.any():
        moved = _moved(raw, offset)
        if made:
            from ptycho.physics.propagation import focus_of

            moved.probeGuess = focus_of(np.sqrt(np.roll(mean, tuple(-offset), axis=(0, 1))))
        return draft.repaired("centre", _said(offset, raw.N), moved)
    if np.abs(offset).max() >= DOUBTED_SHARE * raw.N:
        return draft.found(
            "centre",
            f"the beam seems to lie {_pair(offset)} px beside where the probe has it (row, column), "
            "which makes stripes of phase; move it there",
        )
    return draft


def _mean_pattern(raw: RawData, used: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the mean counts of every pixel, bad ones filled from their surroundings."""
    total = sum(counts.sum(axis=0) for counts in counts_of(raw, used))
    if raw.bad_pixels is None:
        return total / len(used)
    good = raw.good_share(used)
    known = good > 0
    mean = np.where(known, total / (len(used) * np.where(known, good, 1.0)), 0.0)
    spectrum = fill_spectrum(raw.N)
    mixed, weight = (
        np.fft.irfft2(np.fft.rfft2(values) * spectrum, s=values.shape)
        for values in (mean, known.astype(float))
    )
    around = np.maximum(mixed, 0) / np.maximum(weight, FEWEST_WEIGHT)
    return np.where(known, mean, around)


def _far_field(raw: RawData) -> NDArray[np.float64]:
    """Return the counts of the probe alone, shape (N, N)."""
    from ptycho.physics.forward import beam_counts

    return beam_counts(raw.probe_modes, raw.N)


def _offset_from(mean: NDArray[np.float64], beam: NDArray[np.float64]) -> tuple[NDArray[np.int64], bool]:
    """Return how far the mean pattern lies from the beam of the probe (y, x) [px], and if that is certain."""
    one, two = np.sqrt(mean), np.sqrt(beam)
    product = np.fft.fft2(one) * np.fft.fft2(two).conj()
    alike = np.fft.ifft2(product).real / np.sqrt((one**2).sum() * (two**2).sum())
    found = np.unravel_index(np.argmax(alike), alike.shape)
    offset = _nearest(np.array(found), len(mean)).astype(np.int64)
    apart = _nearest(_middle(mean) - _middle(beam), len(mean))
    room = AGREED_PX + AGREED_SHARE * np.abs(offset)
    agreed = bool((np.abs(_nearest(apart - offset, len(mean))) <= room).all())
    better = (1 - alike[found]) <= BETTER * (1 - alike[0, 0])
    if agreed:
        certain = bool(better and alike[found] >= ALIKE)
        return (_without_borders(one, two, offset) if offset.any() and certain else offset), certain
    # Two measures that disagree tell nothing.
    return np.zeros(2, np.int64), False


def _without_borders(
    one: NDArray[np.float64], two: NDArray[np.float64], offset: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return the offset near a given one with the largest correlation of what both windows hold."""
    best, found = -1.0, offset
    bordered = np.abs(offset) < len(one) / 2 - SHARED_PX
    for step in np.ndindex(2 * REACH_PX + 1, 2 * REACH_PX + 1):
        tried = offset + bordered * (np.array(step) - REACH_PX)
        back = np.roll(one, tuple(-tried), axis=(0, 1))
        kept = ~_lost(tried, len(one))
        alike = (back * two)[kept].sum() / np.sqrt((back**2)[kept].sum() * (two**2)[kept].sum())
        if alike > best:
            best, found = float(alike), tried
    return found


def _lost(offset: NDArray[np.int64], n_px: int) -> NDArray[np.bool_]:
    """Which pixels have no pattern after it was moved back; none where the window has no borders."""
    lost = np.zeros((n_px, n_px), dtype=bool)
    for axis, shift in enumerate(offset.tolist()):
        if shift == 0 or abs(shift) >= n_px / 2 - SHARED_PX:
            continue
        line = np.arange(n_px) >= n_px - shift if shift > 0 else np.arange(n_px) < -shift
        lost |= line[:, None] if axis == 0 else line
    return lost


def _offset_alone(mean: NDArray[np.float64]) -> tuple[NDArray[np.int64], bool]:
    """Return half the window where the zero frequency is in the corner; a probe made of it takes the rest."""
    n_px = len(mean)
    away = np.abs(np.arange(n_px) - n_px // 2) >= n_px / 4
    total = mean.sum()
    corners = mean[np.ix_(away, away)].sum() / total
    middle = mean[np.ix_(~away, ~away)].sum() / total
    certain = bool(corners > IN_CORNERS and middle < IN_MIDDLE)
    return np.full(2, -(n_px // 2) if certain else 0), certain


def _middle(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the centre of mass (y, x) on a window without borders [px]."""
    n_px = len(counts)
    turn = np.exp(2j * np.pi * np.arange(n_px) / n_px)
    sums = np.array([counts.sum(axis=1 - axis) @ turn for axis in (0, 1)])
    return np.angle(sums) * n_px / (2 * np.pi)


def _nearest(offset: NDArray[np.floating] | NDArray[np.int64], n_px: int) -> NDArray[np.float64]:
    """Return the shortest way to the same place on a window without borders [px]."""
    return (np.asarray(offset, np.float64) + n_px / 2) % n_px - n_px / 2


def _moved(raw: RawData, offset: NDArray[np.int64]) -> RawData:
    """Return the data set with its patterns moved back; what comes in from the other side is bad."""
    moved = copy.copy(raw)
    moved.diff3d = np.roll(raw.diff3d, tuple(-offset), axis=(1, 2))
    bad = _lost(offset, raw.N)
    if raw.bad_pixels is not None:
        bad = bad | np.roll(raw.bad_pixels, tuple(-offset), axis=(-2, -1))
    moved.bad_pixels = bad if bad.any() else None
    np.copyto(moved.diff3d, 0, where=bad)
    if raw.background is not None:
        moved.background = np.roll(raw.background, tuple(-offset), axis=(0, 1))
    return moved


def _said(offset: NDArray[np.int64], n_px: int) -> str:
    if (np.abs(offset) >= n_px / 2 - SHARED_PX).all():
        return (
            "the zero frequency lies in the corner of the patterns, not on pixel N // 2, and is moved there; "
            "--centre-patterns off keeps it"
        )
    return (
        f"the beam lies {_pair(offset)} px beside where the probe has it (row, column), and is moved there; "
        "pixels without a pattern take no part; --centre-patterns off keeps it"
    )


def _pair(offset: NDArray[np.int64]) -> str:
    return f"({offset[0]:+d}, {offset[1]:+d})"
