"""Counts, or amplitude, their square root: the evidence of what patterns hold, and the decision.

Single photons leave steps in the values: q, 2 q, 3 q for counts, also after a division by a flat field; q,
1.41 q, 1.73 q for amplitude. The power of the probe and a stated dose are the mean sum of counts, or of
squared amplitude.
"""

from __future__ import annotations

import logging
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ptycho.data.canonical import probe_power
from ptycho.data.raw import RawData
from ptycho.errors import ConfigError

logger = logging.getLogger(__name__)

Domain = Literal["counts", "amplitude"]
DOMAIN_KEY = "measurement_domain"
"""Key of the metadata that says what the patterns hold."""
BY_USER = "chosen by the user"
"""Reason of a domain that a flag or an argument states."""
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
_INTEGRAL_MAX = 50.0


def photon_references(raw: RawData) -> dict[str, float | None]:
    """Return the photons per pattern of an empty beam by what says so, in words; None where unknown."""
    power = None if raw.probeGuess is None else probe_power(raw.probe_modes)
    return {"the power of the probe": power, "the stated dose": raw.nphotons}


def domain_sample(raw: RawData, rows: NDArray[np.int64]) -> NDArray[Any]:
    """Return up to ``SAMPLE`` evenly spaced ones of some patterns as stored, 0 where nothing was measured."""
    return raw.good_values(rows[np.linspace(0, len(rows) - 1, min(len(rows), SAMPLE)).astype(np.int64)])


def steps_of(patterns: NDArray[Any]) -> Domain | None:
    """Tell the domain of good values (K, N, N) by the steps of single photons; None where there are none."""
    scores: dict[Domain, list[float]] = {"counts": [], "amplitude": []}
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


def totals_of(patterns: NDArray[Any], references: dict[str, float | None]) -> tuple[Domain, str] | None:
    """Tell the domain of good values (K, N, N) by their sums, and the names of the references that say so.

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


def decide_domain(
    sample: NDArray[Any], override: Domain | None = None, references: dict[str, float | None] | None = None
) -> tuple[Domain, str]:
    """Decide what good values (K, N, N) are, and say why in a few words; the user's ``override`` wins.

    Integers are counts. Floats are amplitude, except where single photons leave the steps of counts, where
    all references say counts, and whole numbers above 50: square roots of counts are practically never all
    whole.
    """
    if override is not None:
        return checked_domain(override, "measurement domain"), BY_USER
    if sample.dtype.kind in "iub":
        return "counts", f"integer dtype {sample.dtype}"
    references = references or {}
    told = totals_of(sample, references)
    if bool((sample % 1).any()):
        steps = steps_of(sample)
        if steps == "counts":
            return "counts", f"single photons leave steps of 1, 2, 3 in dtype {sample.dtype}"
        if steps is None and told is not None and told[0] == "counts" and told[1] not in references:
            return "counts", f"the mean total fits {told[1]}"
        return "amplitude", f"fractional values of dtype {sample.dtype}"
    largest = float(sample.max())
    if largest > _INTEGRAL_MAX:
        return "counts", f"whole numbers up to {largest:g} of dtype {sample.dtype}"
    if told is not None and told[0] == "counts":
        return "counts", f"whole numbers, the mean total fits {told[1]}"
    logger.warning(
        "measurement domain: all sampled values are whole numbers of at most %g in dtype %s; they "
        "are taken as amplitude, pass --measurement-domain counts if they are counts",
        largest,
        sample.dtype,
    )
    return "amplitude", f"dtype {sample.dtype}, whole numbers up to {largest:g} only"


def domain_of(raw: RawData, override: Domain | None, rows: NDArray[np.int64]) -> tuple[Domain, str]:
    """Return what the user says, else the metadata of the file, else what the values of rows look like."""
    stated = (raw.metadata or {}).get(DOMAIN_KEY)
    if override is None and stated is not None:
        return checked_domain(stated, f"{raw.source}: _metadata.{DOMAIN_KEY}"), "stated by the file"
    return decide_domain(domain_sample(raw, rows), override, photon_references(raw))


def checked_domain(domain: object, where: str) -> Domain:
    """Return a domain; raise ``ConfigError`` for another word."""
    if domain not in ("counts", "amplitude"):
        raise ConfigError(
            f"{where}: unknown domain (got {domain!r}, expected 'counts' or 'amplitude'). "
            f"Choose one of the two."
        )
    return domain  # type: ignore[return-value]
