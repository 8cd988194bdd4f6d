r"""Beam that changes during a scan: counts that jump or drift with time, and not with the place.

The logarithm y of the counts of a pattern is the sum of a random field of the place r, which the beam makes
smooth over its diameter, of noise, and of a change b with time:

.. math:: y_j = m + f(r_j) + b\,u_j + \varepsilon_j, \quad
          \langle f(r) f(r') \rangle = a^2 e^{-|r - r'|^2 / 2 l^2}

u is a step at some pattern, or rises evenly from first to last. The likelihoods with b and without are
compared, each with its own best a, l and noise: what the sample explains as well is no change of the beam.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ptycho.data.canonical import blocks
from ptycho.data.checks.findings import FOLLOW_BEAM
from ptycho.data.checks.overlap import spot_px
from ptycho.data.scaling import measured_amplitude
from ptycho.data.scan import Scan

FEWEST_PATTERNS = 25
"""Fewer say nothing."""
WINDOW = 300
"""Patterns that are looked at together; the next window begins half of one later."""
MOST_PATTERNS = 1500
"""Longer scans are averaged over neighbours in time."""
LENGTHS = (0.15, 0.3, 0.6, 1.2)
"""Correlation lengths l of the sample, in units of the diameter of the spot."""
NOISE = tuple(float(value) for value in 10.0 ** np.arange(-4, 2.01, 0.5))
"""Variance of the noise in units of that of the sample."""
SMALLEST = 0.05
"""Change of the counts that is worth a word."""
EDGE = 3
"""A step is not looked for in the first and last few patterns."""
GAIN = 15.0
"""Gain in log-likelihood that a change of the beam has to bring: at most 13.5 in 240 honest scans."""


@dataclass(frozen=True)
class BeamChange:
    """The likeliest change of the beam."""

    kind: str  # step, or drift: even from first to last
    factor: float  # counts after in units of those before
    pattern: int  # first pattern after a step
    gain: float  # logarithm of the likelihood ratio


def check_beam(scan: Scan) -> str | None:
    """Warn where the beam changed during the scan: when, by how much, and the flags that follow it."""
    change = beam_change(scan)
    if change is None or change.gain < GAIN or abs(np.log(change.factor)) < np.log1p(SMALLEST):
        return None
    what = (
        f"jump by {change.factor - 1:+.0%} at pattern {change.pattern}"
        if change.kind == "step"
        else f"drift by {change.factor - 1:+.0%} from first to last"
    )
    cure = f"where the beam changed, {FOLLOW_BEAM} follow it"
    return f"the counts {what}, wherever the beam is on the sample; {cure}"


def beam_change(scan: Scan) -> BeamChange | None:
    """Find the likeliest change of the beam, whether it is likely or not; None in too few patterns."""
    rows = scan.usable
    if len(rows) < FEWEST_PATTERNS:
        return None
    counts = _counts(scan, rows)
    rows, counts = rows[counts > 0], counts[counts > 0]
    if len(rows) < FEWEST_PATTERNS:
        return None
    share = -(-len(rows) // MOST_PATTERNS)
    groups = np.array_split(np.arange(len(rows)), len(rows) // share)
    logs = np.array([np.log(counts[group]).mean() for group in groups])
    places = np.array([scan.positions_yx_px[rows[group]].mean(axis=0) for group in groups])
    first = np.array([rows[group[0]] for group in groups])
    spot = spot_px(scan)
    found = [_best_change(logs[part], places[part], first[part], spot) for part in _windows(len(logs))]
    return max(found, key=lambda change: change.gain)


def _windows(count: int) -> Iterator[slice]:
    start = 0
    while True:
        yield slice(start, min(start + WINDOW, count))
        if start + WINDOW >= count:
            return
        start = min(start + WINDOW // 2, count - WINDOW)


def _counts(scan: Scan, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the counts of patterns over the pixels that are good in all of them."""
    good = scan.raw.good_share(np.arange(scan.n_patterns)) == 1
    counts = np.empty(len(rows))
    for block in blocks(len(rows)):
        amplitude = measured_amplitude(np.where(good, scan.raw.diff3d[rows[block]], 0), scan.record)
        counts[block] = (amplitude.astype(np.float64) ** 2).sum(axis=(1, 2))
    return counts


def _best_change(
    logs: NDArray[np.float64], places: NDArray[np.float64], first: NDArray[np.int64], spot: float
) -> BeamChange:
    """Return the likeliest step or drift within one window."""
    count = len(logs)
    steps = np.arange(EDGE, count - EDGE)
    time = np.arange(count)
    changes = np.concatenate(
        [(time[:, None] >= steps).astype(float), ((time - time.mean()) / (count - 1))[:, None]], axis=1
    )
    best_without, best_with = -np.inf, np.full(changes.shape[1], -np.inf)
    size = np.zeros(changes.shape[1])
    distance = ((places[:, None] - places) ** 2).sum(axis=-1)
    for length in LENGTHS:
        values, vectors = np.linalg.eigh(np.exp(-0.5 * distance / (length * spot) ** 2))
        y, ones, u = (vectors.T @ item for item in (logs, np.ones(count), changes))
        for noise in NOISE:
            scale = values.clip(0.0) + noise
            weight = 1.0 / scale
            base = (weight * ones**2).sum()
            rest = y - ones * (weight * ones * y).sum() / base
            free = u - ones[:, None] * (weight * ones) @ u / base
            power = (weight * rest**2).sum()
            along, norm = (weight * rest) @ free, (weight[:, None] * free**2).sum(axis=0)
            left = np.maximum(power - along**2 / norm, 1e-12 * power + 1e-300)
            common = -0.5 * np.log(scale).sum()
            best_without = max(best_without, common - 0.5 * count * np.log(max(power, 1e-300)))
            score = common - 0.5 * count * np.log(left)
            better = score > best_with
            best_with = np.where(better, score, best_with)
            size = np.where(better, along / norm, size)
    index = int(np.argmax(best_with))
    kind = "drift" if index == len(steps) else "step"
    pattern = int(first[0] if kind == "drift" else first[steps[index]])
    return BeamChange(kind, float(np.exp(size[index])), pattern, float(best_with[index] - best_without))
