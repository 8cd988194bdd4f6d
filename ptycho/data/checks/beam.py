r"""Beam that changes during a scan: counts that jump or drift with time, and not with the place.

The logarithm y of the counts of a pattern is the sum of a random field of the place r, which the beam makes
smooth over its diameter, of noise, and of a change b with time:

.. math:: y_j = m + f(r_j) + b\,u_j + \varepsilon_j, \quad
          \langle f(r) f(r') \rangle = a^2 e^{-|r - r'|^2 / 2 l^2}

u is a step at some pattern, or rises evenly from first to last. The likelihoods with b and without are
compared, each with its own best a, l and noise: what the sample explains as well is no change of the beam.

Samples are not made by chance alone: they have edges and slopes. A step therefore has to explain more than
any straight edge along the rows of the path does, smeared as the probe smears it, and a drift what a slope of
the sample leaves. Where the beam jumps from one row to the next and the rows hardly overlap, nothing tells
which it was, and nothing is said. The logarithm makes dark parts of a sample louder than bright ones: a step
has to be as sure in log(counts + median of the counts), which does not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho.data.canonical import blocks
from ptycho.data.checks.findings import FOLLOW_BEAM
from ptycho.data.checks.overlap import spot_px
from ptycho.data.optics import GUESSED_PROBE
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
SMEAR = 0.15
"""Width over which a guessed probe smears an edge of the sample, in units of the diameter of the spot."""
EDGE_DISTANCE = 0.4
"""Distance between edges that are tried, in units of that width."""
MOST_EDGES = 400
"""Edges of one direction that are tried at most."""
GAIN = 18.5
"""Gain in log-likelihood that a change of the beam has to bring; ``benchmarks/beam.py`` counts alarms."""
GAIN_OVER_EDGE = 6.0
"""What a step has to explain better than an edge; it is none where one explains it nearly as well."""


@dataclass(frozen=True)
class BeamChange:
    """The likeliest change of the beam."""

    kind: str  # step, or drift: even from first to last
    factor: float  # counts after in units of those before
    pattern: int  # first pattern after a step
    gain: float  # logarithm of the likelihood ratio
    over_edge: float  # the same against an edge or a slope of the sample


def check_beam(scan: Scan) -> str | None:
    """Warn where the beam changed during the scan: when, by how much, and the flags that follow it."""
    change = beam_change(scan)
    if change is None or not is_change(change):
        return None
    what = (
        f"jump by {change.factor - 1:+.0%} at pattern {change.pattern}"
        if change.kind == "step"
        else f"drift by {change.factor - 1:+.0%} from first to last"
    )
    cure = f"where the beam changed, {FOLLOW_BEAM} follow it"
    return f"the counts {what}, wherever the beam is on the sample; {cure}"


def is_change(change: BeamChange) -> bool:
    """Tell whether a change is sure enough, and large enough for a word."""
    sure = change.gain >= GAIN and change.over_edge >= GAIN_OVER_EDGE
    return sure and abs(np.log(change.factor)) >= np.log1p(SMALLEST)


def beam_change(scan: Scan) -> BeamChange | None:
    """Find the likeliest change of the beam, whether it is likely or not; None in too few patterns."""
    rows = scan.usable
    if len(rows) < FEWEST_PATTERNS:
        return None
    counts = _counts(scan, rows)
    rows, counts = rows[counts > 0], counts[counts > 0]
    if len(rows) < FEWEST_PATTERNS:
        return None
    spot = spot_px(scan)
    guessed = (scan.raw.metadata or {}).get(GUESSED_PROBE)
    smear = SMEAR * spot if guessed else smear_px(scan.probe)
    return likeliest_change(counts, scan.positions_yx_px[rows], rows, spot, smear)


def smear_px(probe: NDArray[np.complexfloating[Any, Any]]) -> float:
    """Return the width over which a probe (P, N, N) smears a straight edge [px].

    Half the way from 16 to 84 % of its light, along the axis where that is shorter; at least half a pixel.
    """
    light = (np.abs(probe).astype(np.float64) ** 2).sum(axis=0)
    ways = []
    for axis in (0, 1):
        passed = np.cumsum(light.sum(axis=axis)) / max(float(light.sum()), 1e-300)
        low, high = np.interp([0.16, 0.84], passed, np.arange(len(passed)))
        ways.append((high - low) / 2)
    return float(max(min(ways), 0.5))


def likeliest_change(
    counts: NDArray[np.float64],
    positions_yx_px: NDArray[np.float64],
    rows: NDArray[np.int64],
    spot: float,
    smear: float,
) -> BeamChange:
    """Return the likeliest change in the counts (M,) of patterns ``rows`` (M,), all above 0.

    The spot is as wide as :func:`spot_px`, and smears an edge over ``smear`` [px].
    """
    share = -(-len(rows) // MOST_PATTERNS)
    groups = np.array_split(np.arange(len(rows)), len(rows) // share)
    logs = np.array([np.log(counts[group]).mean() for group in groups])
    places = np.array([positions_yx_px[group].mean(axis=0) for group in groups])
    first = np.array([rows[group[0]] for group in groups])
    found = [_best_change(logs[part], places[part], first[part], spot, smear) for part in _windows(len(logs))]
    return max(found, key=lambda change: (is_change(change), change.gain))


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
    logs: NDArray[np.float64],
    places: NDArray[np.float64],
    first: NDArray[np.int64],
    spot: float,
    smear: float,
) -> BeamChange:
    """Return the likeliest step or drift within one window."""
    count = len(logs)
    time = np.arange(count)
    steps = (time[:, None] >= np.arange(EDGE, count - EDGE)).astype(float)
    drift = (time - time.mean())[:, None] / (count - 1)
    samples = _Samples(logs, [np.linalg.eigh(_correlation(places, length * spot)) for length in LENGTHS])
    scores, sizes = samples.with_change(np.concatenate([steps, drift], axis=1))
    index = int(np.argmax(scores))
    is_step, size = index < steps.shape[1], float(sizes[index])
    gain = over_edge = float(scores[index]) - samples.without()
    if gain >= GAIN and is_step:
        counts = np.exp(logs)
        soft = replace(samples, logs=np.log(counts + np.median(counts)))
        step = steps[:, [index]]
        edges = _edges(places, step[:, 0], smear)
        both = np.array([sample.step_gains(step, edges) for sample in (samples, soft)])
        gain, over_edge = both.min(axis=0).tolist()
    elif gain >= GAIN:
        slope = (places - places.mean(axis=0)) / spot
        beside, sizes = samples.with_change(drift, slope)
        size, over_edge = float(sizes[0]), float(beside[0]) - samples.without(slope)
        gain = min(gain, over_edge)
    pattern = int(first[EDGE + index] if is_step else first[0])
    factor = float(np.exp(np.clip(size, -10.0, 10.0)))
    return BeamChange("step" if is_step else "drift", factor, pattern, gain, over_edge)


def _correlation(places: NDArray[np.float64], length_px: float) -> NDArray[np.float64]:
    """Return the correlation (M, M) of a smooth field at places (M, 2)."""
    distance = ((places[:, None] - places) ** 2).sum(axis=-1)
    return np.exp(-0.5 * distance / length_px**2)


def _edges(places: NDArray[np.float64], step: NDArray[np.float64], smear: float) -> NDArray[np.float64]:
    """Return straight edges of a sample (M, C) as the counts show them, along the rows of a path and along
    the line that parts the places (M, 2) before a step (M,) from those behind it."""
    from scipy.special import erf

    moves = np.diff(places, axis=0)
    moves /= np.maximum(np.linalg.norm(moves, axis=1, keepdims=True), 1e-9)
    centred = places - places.mean(axis=0)
    parting = np.linalg.lstsq(centred, step - step.mean(), rcond=None)[0]
    edges = []
    for normal in (np.linalg.eigh(moves.T @ moves)[1][:, 0], parting / max(np.linalg.norm(parting), 1e-9)):
        across = centred @ normal
        number = int(min(np.ptp(across) / (EDGE_DISTANCE * smear), MOST_EDGES)) + 2
        start = np.linspace(across.min(), across.max(), number)
        edges.append(erf((across[:, None] - start) / (np.sqrt(2) * smear)))
    return np.concatenate(edges, axis=1)


@dataclass(frozen=True)
class _Samples:
    """Models of the sample, from its correlations and noise; the likeliest of them counts."""

    logs: NDArray[np.float64]  # (M,)
    spectra: list[Any]  # eigenvalues (M,) and vectors (M, M) of every correlation

    def step_gains(self, step: NDArray[np.float64], edges: NDArray[np.float64]) -> tuple[float, float]:
        """Return what a step (M, 1) gains over nothing, and over the best edge (M, C)."""
        score, edge = float(self.with_change(step)[0][0]), float(self.with_change(edges)[0].max())
        alone = self.without()
        return score - alone, score - max(alone, edge)

    def without(self, beside: NDArray[np.float64] | None = None) -> float:
        """Return the log-likelihood of no change, beside free functions (M, B)."""
        count = len(self.logs)
        fits = self._fits(beside)
        return max(fit.common - 0.5 * count * np.log(max(fit.power, 1e-300)) for fit in fits)

    def with_change(
        self, changes: NDArray[np.float64], beside: NDArray[np.float64] | None = None
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return log-likelihood and size of each change (M, C) alone, beside free functions (M, B)."""
        best, size = np.full(changes.shape[1], -np.inf), np.zeros(changes.shape[1])
        turned = None
        for fit in self._fits(beside):
            if turned is None or turned[0] is not fit.vectors:
                turned = (fit.vectors, fit.vectors.T @ changes)
            u = turned[1]
            free = u - fit.base @ (fit.project @ u)
            weighted = free / fit.scale
            along, norm = fit.rest @ weighted, (free * weighted).sum(axis=0)
            # What is known already is no change, whatever rounding leaves of it.
            slope = along / np.where(norm > 1e-6 * (u * u / fit.scale).sum(axis=0), norm, np.inf)
            left = np.maximum(fit.power - along * slope, 1e-12 * fit.power + 1e-300)
            score = fit.common - 0.5 * len(self.logs) * np.log(left)
            size = np.where(score > best, slope, size)
            best = np.maximum(best, score)
        return best, size

    def _fits(self, beside: NDArray[np.float64] | None) -> Iterator[_Fit]:
        ones = np.ones((len(self.logs), 1))
        known = ones if beside is None else np.concatenate([ones, beside], axis=1)
        for values, vectors in self.spectra:
            y, base = vectors.T @ self.logs, vectors.T @ known
            for noise in NOISE:
                scale = (values.clip(0.0) + noise)[:, None]
                # The places may lie on a line, where a slope across it is nothing.
                project = np.linalg.pinv(base.T @ (base / scale)) @ (base / scale).T
                rest = y - base @ (project @ y)
                power = float((rest**2 / scale[:, 0]).sum())
                yield _Fit(vectors, scale, base, project, rest, power, float(-0.5 * np.log(scale).sum()))


@dataclass(frozen=True)
class _Fit:
    """Logarithms of the counts less free functions, in the eigenvectors of a correlation."""

    vectors: NDArray[np.float64]  # (M, M)
    scale: NDArray[np.float64]  # (M, 1), variance of every part
    base: NDArray[np.float64]  # (M, 1 + B), free functions
    project: NDArray[np.float64]  # (1 + B, M), their best sizes
    rest: NDArray[np.float64]  # (M,)
    power: float  # of the rest, weighted
    common: float  # part of the log-likelihood that the scale alone decides
