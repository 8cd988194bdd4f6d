"""Evidence of what patterns hold: counts, or amplitude, their square root.

Single photons leave steps in the values: q, 2 q, 3 q for counts, also after a division by a flat field; q,
1.41 q, 1.73 q for amplitude. The power of the probe and a stated dose are the mean sum of counts, or of
squared amplitude.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from ptycho.data.raw import RawData

Kind = Literal["counts", "amplitude"]

SAMPLE = 64
"""Most patterns that are looked at."""
SEEN_PHOTONS = 4.5
"""Values are looked at up to this many photons: above, the steps of amplitude are too close."""
MOST_VALUES = 2**21
"""Values that are looked at."""
FEWEST = 200
"""Values above one photon that the steps are told from."""
BASE = 1.25
"""Values within this factor of the smallest are one photon."""
CLEAR = 0.14
"""Mean cosine of the distance from whole photons: 0.2 with a flat field of 10 %, 0 where no photon is."""
APART = 0.1
"""By how much the score of the other kind has to be smaller."""
TRANSMITTED = (0.25, 1.12)
"""Photons of a pattern in units of the empty beam, for all but very thick samples."""


def usable_rows(count: int, left_out: NDArray[np.int64] | None) -> NDArray[np.int64]:
    """Return the numbers of the patterns that take part.

    Parameters
    ----------
    count : int
        Number of patterns M.
    left_out : int64 array, shape (K,), or None
        Patterns that take no part.

    Returns
    -------
    int64 array, shape (M - K,)
        The others, ascending.
    """
    return np.arange(count) if left_out is None else np.setdiff1d(np.arange(count), left_out)


def without_bad(
    patterns: NDArray[Any], rows: NDArray[np.int64], bad_pixels: NDArray[np.bool_] | None
) -> NDArray[Any]:
    """Return some patterns as stored, 0 where nothing was measured.

    Parameters
    ----------
    patterns : real array, shape (M, N, N)
        Patterns as stored.
    rows : int64 array, shape (K,)
        Which of them.
    bad_pixels : bool array, shape (N, N) or (M, N, N), or None
        True where nothing was measured.

    Returns
    -------
    real array, shape (K, N, N)
        In the dtype of the patterns.
    """
    values = patterns[rows]
    if bad_pixels is None:
        return values
    return np.where(bad_pixels if bad_pixels.ndim == 2 else bad_pixels[rows], values.dtype.type(0), values)


def photon_references(raw: RawData) -> dict[str, float | None]:
    """Return what is known about the photons of an empty beam.

    Parameters
    ----------
    raw : RawData
        Data set.

    Returns
    -------
    dict of str to float or None
        In words -> photons per pattern; None where it is not known.
    """
    power = None
    if raw.probeGuess is not None:
        power = float((np.abs(raw.probe_modes).astype(np.float64) ** 2).sum())
    return {"the power of the probe": power, "the stated dose": raw.nphotons}


def domain_sample(
    patterns: NDArray[Any], bad_pixels: NDArray[np.bool_] | None, left_out: NDArray[np.int64] | None
) -> NDArray[Any]:
    """Return the patterns that the domain is told from.

    Parameters
    ----------
    patterns : real array, shape (M, N, N)
        Patterns as stored.
    bad_pixels : bool array, shape (N, N) or (M, N, N), or None
        True where nothing was measured.
    left_out : int64 array, shape (K,), or None
        Patterns that take no part.

    Returns
    -------
    real array, shape (at most 64, N, N)
        Evenly spaced ones, 0 where nothing was measured.
    """
    usable = usable_rows(len(patterns), left_out)
    rows = usable[np.linspace(0, len(usable) - 1, min(len(usable), SAMPLE)).astype(np.int64)]
    return without_bad(patterns, rows, bad_pixels)


def steps_of(patterns: NDArray[Any]) -> Kind | None:
    """Tell counts from amplitude by the steps that single photons leave.

    Parameters
    ----------
    patterns : real array, shape (K, N, N)
        Values as stored, 0 where nothing was measured.

    Returns
    -------
    'counts', 'amplitude' or None
        None where the values are too large for single photons, or have no steps.
    """
    scores: dict[Kind, list[float]] = {"counts": [], "amplitude": []}
    for pattern in patterns[:: max(1, patterns.size // MOST_VALUES)]:
        values = pattern[pattern > 0].astype(np.float64)
        if not values.size:
            continue
        low = np.quantile(values, 0.005)
        # A gain may change from pattern to pattern, so each has its own photon.
        one = float(np.median(values[values <= BASE * low]))
        above = values[values > BASE * one] / one
        for kind, power in (("counts", 1), ("amplitude", 2)):
            photons = above**power
            scores[kind].extend(np.cos(2 * np.pi * photons[photons < SEEN_PHOTONS]))
    found = {kind: float(np.mean(items)) if len(items) >= FEWEST else 0.0 for kind, items in scores.items()}
    # Squares of whole numbers are whole numbers too: where both fit, they are counts.
    if found["counts"] > CLEAR and found["counts"] > found["amplitude"] - APART:
        return "counts"
    return "amplitude" if found["amplitude"] > max(CLEAR, found["counts"] + APART) else None


def totals_of(patterns: NDArray[Any], references: dict[str, float | None]) -> tuple[Kind, str] | None:
    """Tell counts from amplitude by what the photons of a pattern have to be.

    Parameters
    ----------
    patterns : real array, shape (K, N, N)
        Values as stored, 0 where nothing was measured.
    references : dict of str to float or None
        What is known about it, in words -> photons of an empty beam.

    Returns
    -------
    tuple of kind and names of the references that tell, or None
        None where no reference tells, or they contradict each other.
    """
    values = patterns.astype(np.float64)
    means = {"counts": values.sum() / len(values), "amplitude": (values**2).sum() / len(values)}
    votes: dict[str, list[str]] = {"counts": [], "amplitude": []}
    for name, photons in references.items():
        if photons is None:
            continue
        fits = [kind for kind, mean in means.items() if TRANSMITTED[0] <= mean / photons <= TRANSMITTED[1]]
        if len(fits) == 1:
            votes[fits[0]].append(name)
    for kind, other in (("counts", "amplitude"), ("amplitude", "counts")):
        if votes[kind] and not votes[other]:
            return kind, " and ".join(votes[kind])  # type: ignore[return-value]
    return None
