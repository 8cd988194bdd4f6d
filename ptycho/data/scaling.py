r"""Every scale factor between a data file and the physics: decided here, recorded, used everywhere.

Symbols: A is the measured amplitude [sqrt(photons)], so that A**2 is a number of photons; P is the probe
[sqrt(photons)]; N is the side of a pattern [pixels]. `mean_counts` is the mean over patterns of
:math:`\sum A^2`, the photons in one pattern.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from ptycho.data.canonical import CHUNK
from ptycho.data.domain_evidence import (
    domain_sample,
    photon_references,
    steps_of,
    totals_of,
    usable_rows,
    without_bad,
)
from ptycho.errors import ConfigError, DataError
from ptycho.physics import far_field

if TYPE_CHECKING:
    from ptycho.data.raw import RawData

logger = logging.getLogger(__name__)

Domain = Literal["counts", "amplitude"]


NOT_MEASURED = -1.0
"""What stands in an amplitude where nothing was measured; only values >= 0 are measured ones."""

DOMAIN_KEY = "measurement_domain"
"""Key of the metadata that says what the patterns hold."""

BY_USER = "chosen by the user"
"""Reason of a domain that a flag or an argument states."""

_INTEGRAL_MAX = 50.0
_GAUGE_LOW, _GAUGE_HIGH = 0.9, 4.0


@dataclass(frozen=True)
class ScaleRecord:
    """What was decided about the scale of one data set; plain values, stored with the run.

    Attributes
    ----------
    domain : {'counts', 'amplitude'}
        What the file holds.
    reason : str
        Why `domain` was chosen.
    mean_counts : float
        Mean photons on the measured pixels of one pattern.
    max_counts : float
        Largest value of any measured pixel [photons].
    probe_gain : float
        Factor on the stored probe amplitude; 1 when its gauge fits the data.
    input_scale : float
        Factor on A that makes the mean of sum((input_scale * A)**2) equal (N / 2)**2.
    intensity_scale : float
        1 / input_scale = sqrt(mean_counts) / (N / 2).
    amplitude_gain : float
        Factor from stored amplitude to sqrt(photons); 1 for counts and for an unknown dose.
    """

    domain: Domain
    reason: str
    mean_counts: float
    max_counts: float
    probe_gain: float
    input_scale: float
    intensity_scale: float
    amplitude_gain: float

    def to_dict(self) -> dict[str, str | float]:
        """Return the record as plain strings and floats."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ScaleRecord:
        """Rebuild a record from :meth:`to_dict`.

        Parameters
        ----------
        values : mapping
            Every field of the record, and no other key.

        Returns
        -------
        ScaleRecord
            The same record.

        Raises
        ------
        DataError
            If a field is missing or unknown.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        if set(values) != names:
            raise DataError(
                f"scale record: fields do not match (got {sorted(values)}, expected "
                f"{sorted(names)}). Use the record written by this version."
            )
        _check_domain(values["domain"], "scale record")
        texts = {"domain", "reason"}
        return cls(**{name: str(values[name]) if name in texts else float(values[name]) for name in names})

    def summary(self) -> str:
        """Return the decision as one line."""
        scaled = f"scaled by {self.probe_gain:.4g}, so the absolute transmission is unknown"
        probe = "kept" if self.probe_gain == 1.0 else scaled
        return (
            f"scale: {self.domain} ({self.reason}); {self.mean_counts:.4g} photons per pattern, at most "
            f"{self.max_counts:.4g} in a pixel; probe {probe}; input x {self.input_scale:.4g}, "
            f"intensity_scale {self.intensity_scale:.4g}"
        )


def decide_domain(
    patterns: NDArray[Any],
    override: Domain | None = None,
    *,
    bad_pixels: NDArray[np.bool_] | None = None,
    left_out: NDArray[np.int64] | None = None,
    references: dict[str, float | None] | None = None,
) -> tuple[Domain, str]:
    """Decide whether patterns hold detector counts or amplitude, their square root.

    Integers are counts. Floats are amplitude, except where single photons leave the steps of counts, where
    all references say counts, and whole numbers above 50: square roots of counts are practically never all
    whole. At most 64 evenly spaced patterns are looked at.

    Parameters
    ----------
    patterns : real array, shape (M, N, N)
        Patterns as stored.
    override : {'counts', 'amplitude'}, optional
        Decision made by the user; it wins.
    bad_pixels : bool array, shape (N, N) or (M, N, N), optional
        True where nothing was measured.
    left_out : int64 array, shape (K,), optional
        Patterns that take no part.
    references : dict of str to float or None, optional
        What is known about it -> photons of an empty beam, see :func:`photon_references`.

    Returns
    -------
    domain : {'counts', 'amplitude'}
        The decision.
    reason : str
        A few words that justify it.

    Raises
    ------
    ConfigError
        If `override` is another word.

    Examples
    --------
    >>> decide_domain(np.ones((1, 4, 4), dtype=np.uint16))
    ('counts', 'integer dtype uint16')
    """
    if override is not None:
        return _check_domain(override, "measurement domain"), BY_USER
    if patterns.dtype.kind in "iub":
        return "counts", f"integer dtype {patterns.dtype}"
    sample = domain_sample(patterns, bad_pixels, left_out)
    told = totals_of(sample, references or {})
    if bool((sample % 1).any()):
        steps = steps_of(sample)
        if steps == "counts":
            return "counts", f"single photons leave steps of 1, 2, 3 in dtype {patterns.dtype}"
        if steps is None and told is not None and told[0] == "counts" and told[1] not in (references or {}):
            return "counts", f"the mean total fits {told[1]}"
        return "amplitude", f"fractional values of dtype {patterns.dtype}"
    largest = float(sample.max())
    if largest > _INTEGRAL_MAX:
        return "counts", f"whole numbers up to {largest:g} of dtype {patterns.dtype}"
    if told is not None and told[0] == "counts":
        return "counts", f"whole numbers, the mean total fits {told[1]}"
    logger.warning(
        "measurement domain: all sampled values are whole numbers of at most %g in dtype %s; they "
        "are taken as amplitude, pass --measurement-domain counts if they are counts",
        largest,
        patterns.dtype,
    )
    return "amplitude", f"dtype {patterns.dtype}, whole numbers up to {largest:g} only"


def make_scale_record(
    raw: RawData,
    *,
    override: Domain | None = None,
    nphotons: float | None = None,
    left_out: NDArray[np.int64] | None = None,
    keep_probe_power: bool = False,
) -> ScaleRecord:
    r"""Decide every scale factor of a data set.

    The stored probe keeps its gauge when :math:`0.9 \le \sum|P|^2 / \mathrm{mean\_counts} \le 4`, that is
    when the object would transmit between 1/4 and 1.1 of the light; otherwise it is scaled once so that
    :math:`\sum|P|^2 = \mathrm{mean\_counts}`. Bad pixels and patterns that are left out decide nothing; for
    the probe and the dose, the photons that bad pixels missed are added as far as they can be told.

    Parameters
    ----------
    raw : RawData
        Patterns, probe, and the dose when the file states it.
    override : {'counts', 'amplitude'}, optional
        Domain chosen by the user.
    nphotons : float, optional
        Mean photons per pattern of an amplitude file, > 0; by default what the file states. Not used for
        counts.
    left_out : int64 array, shape (K,), optional
        Patterns that take no part.
    keep_probe_power : bool
        Keep the gauge of the stored probe whatever the ratio: it was measured without a sample.

    Returns
    -------
    ScaleRecord
        The decision.

    Raises
    ------
    ConfigError
        If `override` or `nphotons` is out of range.
    DataError
        If nothing was measured on good pixels.
    """
    domain, reason = _domain_of(raw, override, left_out)
    dose = raw.nphotons if nphotons is None else nphotons
    if dose is not None and not (np.isfinite(dose) and dose > 0):
        raise ConfigError(
            f"scaling: nphotons out of range (got {dose}, expected photons per pattern > 0). "
            f"Leave it out when the dose is unknown."
        )
    total, largest = _stored_counts(raw, domain, left_out)
    if total == 0:
        raise DataError(
            f"{raw.source}: no photon fell on a good pixel (got 0 counts beside bad_pixels, expected some). "
            "Nonzero marks a bad pixel: invert the mask if it marks the good ones."
        )
    share = _measured_share(raw, domain, left_out)
    gain = float(np.sqrt(share * dose / total)) if domain == "amplitude" and dose is not None else 1.0
    mean_counts, max_counts = total * gain**2, largest * gain**2
    intensity_scale = float(np.sqrt(mean_counts)) / (raw.N / 2)
    return ScaleRecord(
        domain=domain,
        reason=reason,
        mean_counts=mean_counts,
        max_counts=max_counts,
        probe_gain=1.0 if keep_probe_power else _probe_gain(raw, mean_counts, share),
        input_scale=1.0 / intensity_scale,
        intensity_scale=intensity_scale,
        amplitude_gain=gain,
    )


def measured_amplitude(
    patterns: NDArray[Any], record: ScaleRecord, bad_pixels: NDArray[np.bool_] | None = None
) -> NDArray[np.float32]:
    r"""Return the amplitude :math:`A = \sqrt{k}` of counts k, or the rescaled stored amplitude.

    Parameters
    ----------
    patterns : real array, any shape
        Patterns as stored; any integer or float dtype.
    record : ScaleRecord
        Scale of the data set they belong to.
    bad_pixels : bool array, shape of one pattern or of all, optional
        True where nothing was measured; what is stored there does not matter.

    Returns
    -------
    float32 array, same shape
        Amplitude [sqrt(photons)]; ``NOT_MEASURED``, which is negative, at bad pixels (eq. 20).
    """
    stored = np.asarray(patterns)
    if bad_pixels is not None:
        stored = np.where(bad_pixels, stored.dtype.type(0), stored)
    values = stored.astype(np.float32)
    if record.domain == "counts":
        np.sqrt(values, out=values)
    else:
        values *= np.float32(record.amplitude_gain)
    if bad_pixels is not None:
        np.copyto(values, np.float32(NOT_MEASURED), where=bad_pixels)
    return values


def scaled_probe(raw: RawData, record: ScaleRecord) -> NDArray[np.complex64]:
    """Return the probe modes in the gauge of the data.

    Parameters
    ----------
    raw : RawData
        Data set that holds the probe.
    record : ScaleRecord
        Scale of that data set.

    Returns
    -------
    complex64 array, shape (P, N, N)
        Incoherent probe modes [sqrt(photons)]; sum(|P|**2) is the photons per pattern of an empty object.
    """
    return (raw.probe_modes * np.float32(record.probe_gain)).astype(np.complex64)


def _domain_of(
    raw: RawData, override: Domain | None, left_out: NDArray[np.int64] | None
) -> tuple[Domain, str]:
    """What the user says, else what the metadata of the file say, else what the values look like."""
    stated = (raw.metadata or {}).get(DOMAIN_KEY)
    if override is None and stated is not None:
        return _check_domain(stated, f"{raw.source}: _metadata.{DOMAIN_KEY}"), "stated by the file"
    return decide_domain(
        raw.diff3d,
        override,
        bad_pixels=raw.bad_pixels,
        left_out=left_out,
        references=photon_references(raw),
    )


def _check_domain(domain: object, where: str) -> Domain:
    if domain not in ("counts", "amplitude"):
        raise ConfigError(
            f"{where}: unknown domain (got {domain!r}, expected 'counts' or 'amplitude'). "
            f"Choose one of the two."
        )
    return domain  # type: ignore[return-value]


def _chunks(raw: RawData, rows: NDArray[np.int64], domain: Domain) -> Iterator[NDArray[np.float64]]:
    """Counts of some patterns, or the squares of stored amplitude, 0 where nothing was measured."""
    for start in range(0, len(rows), CHUNK):
        stored = without_bad(raw.diff3d, rows[start : start + CHUNK], raw.bad_pixels).astype(np.float64)
        yield stored if domain == "counts" else stored**2


def _stored_counts(raw: RawData, domain: Domain, left_out: NDArray[np.int64] | None) -> tuple[float, float]:
    """Mean pattern total and largest pixel of the stored counts, or of the squared stored amplitude."""
    rows = usable_rows(raw.n_patterns, left_out)
    total, largest = 0.0, 0.0
    for counts in _chunks(raw, rows, domain):
        total += float(counts.sum())
        largest = max(largest, float(counts.max()))
    return total / len(rows), largest


def _measured_share(raw: RawData, domain: Domain, left_out: NDArray[np.int64] | None) -> float:
    """Part of the photons of an average pattern that fell on good pixels, as far as probe and patterns tell.

    Where a pixel is bad in every pattern, the mean pattern is taken to be the far field of the probe, as
    bright as the good pixels show it in least squares: a sample spreads most light where the probe sends it.
    """
    if raw.bad_pixels is None or raw.probeGuess is None:
        return 1.0
    rows = usable_rows(raw.n_patterns, left_out)
    total = sum(counts.sum(axis=0) for counts in _chunks(raw, rows, domain))
    good = ~raw.bad_pixels if raw.bad_pixels.ndim == 2 else (~raw.bad_pixels[rows]).mean(axis=0)
    beam = (np.abs(far_field(raw.probe_modes.astype(np.complex128))) ** 2).sum(axis=0)
    mean, seen = total / np.maximum(good, 1 / len(rows)), good > 0
    bright = (beam * mean)[seen].sum() / max(float((beam[seen] ** 2).sum()), np.finfo(float).tiny)
    return float(total.sum() / np.where(seen, mean, bright * beam).sum())


def _probe_gain(raw: RawData, mean_counts: float, share: float) -> float:
    """Factor that brings the probe amplitude into the gauge of the data; 1 when it is there, or absent."""
    if raw.probeGuess is None:
        return 1.0
    power = float((np.abs(raw.probe_modes).astype(np.float64) ** 2).sum())
    whole = mean_counts / share
    if mean_counts <= power:
        # Behind a stop for the whole beam nothing tells the share; a sample passes on what the probe brings.
        whole = min(whole, power)
    if _GAUGE_LOW <= power / whole <= _GAUGE_HIGH:
        return 1.0
    return float(np.sqrt(whole / power))
