r"""Every scale factor between a data file and the physics: decided here, recorded, used everywhere.

Symbols: A is the measured amplitude [sqrt(photons)], so that A**2 is a number of photons; P is the probe
[sqrt(photons)]; N is the side of a pattern [pixels]. `mean_counts` is the mean over patterns of
:math:`\sum A^2`, the photons in one pattern.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho.data.canonical import blocks, probe_power
from ptycho.data.domain import Domain, checked_domain, domain_of
from ptycho.data.optics import near_field_of
from ptycho.data.raw import RawData
from ptycho.errors import DataError
from ptycho.physics.detector import Detector
from ptycho.physics.forward import beam_counts
from ptycho.physics.propagation import near_field_transfer

NOT_MEASURED = -1.0
"""What stands in an amplitude where nothing was measured; only values >= 0 are measured ones."""
_GAUGE_LOW, _GAUGE_HIGH = 0.9, 4.0


@dataclass(frozen=True)
class ScaleRecord:
    """What was decided about the scale of one data set; plain values, stored with the run."""

    domain: Domain  # what the file holds
    reason: str  # why
    mean_counts: float  # mean photons on the measured pixels of one pattern
    max_counts: float  # largest value of any measured pixel [photons]
    probe_gain: float  # on the stored probe amplitude; 1 when its gauge fits the data
    input_scale: float  # on A, so that the mean of sum((input_scale * A)**2) is (N / 2)**2
    intensity_scale: float  # 1 / input_scale = sqrt(mean_counts) / (N / 2)
    amplitude_gain: float  # from stored amplitude to sqrt(photons); 1 for counts and for an unknown dose

    def to_dict(self) -> dict[str, str | float]:
        """Return the record as plain strings and floats."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ScaleRecord:
        """Rebuild a record from :meth:`to_dict`; ``DataError`` where a field is missing or unknown."""
        names = {field.name for field in dataclasses.fields(cls)}
        if set(values) != names:
            raise DataError(
                f"scale record: fields do not match (got {sorted(values)}, expected "
                f"{sorted(names)}). Use the record written by this version."
            )
        checked_domain(values["domain"], "scale record")
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


def make_scale_record(
    raw: RawData,
    *,
    override: Domain | None = None,
    left_out: NDArray[np.int64] | None = None,
    keep_probe_power: bool = False,
) -> ScaleRecord:
    r"""Decide every scale factor of a data set; ``DataError`` where good pixels measured nothing.

    The stored probe keeps its gauge when :math:`0.9 \le \sum|P|^2 / \mathrm{mean\_counts} \le 4`, that is
    when the object would transmit between 1/4 and 1.1 of the light, and always where ``keep_probe_power``
    says that it was measured without a sample; otherwise it is scaled once so that :math:`\sum|P|^2 =
    \mathrm{mean\_counts}`. Bad pixels and patterns ``left_out`` decide nothing; for the probe and the dose,
    the photons that bad pixels missed are added as far as they can be told. The dose that a file
    states, the mean photons per pattern, is that of its amplitude; for counts it is not used.
    """
    rows = np.setdiff1d(np.arange(raw.n_patterns), [] if left_out is None else left_out)
    domain, reason = domain_of(raw, override, rows)
    total, largest = _stored_counts(raw, domain, rows)
    if total == 0:
        raise DataError(
            f"{raw.source}: no photon fell on a good pixel (got 0 counts beside bad_pixels, expected some). "
            "Nonzero marks a bad pixel: invert the mask if it marks the good ones."
        )
    share = _measured_share(raw, domain, rows)
    gain = 1.0
    if domain == "amplitude" and raw.nphotons is not None:
        gain = float(np.sqrt(share * raw.nphotons / total))
    mean_counts, max_counts = total * gain**2, largest * gain**2
    intensity_scale = float(np.sqrt(mean_counts)) / (raw.N / 2)
    return ScaleRecord(
        domain=domain,
        reason=reason,
        mean_counts=mean_counts,
        max_counts=max_counts,
        probe_gain=1.0 if keep_probe_power else _probe_gain(raw, _light(raw, rows, total, gain), share),
        input_scale=1.0 / intensity_scale,
        intensity_scale=intensity_scale,
        amplitude_gain=gain,
    )


def measured_amplitude(
    patterns: NDArray[Any], record: ScaleRecord, bad_pixels: NDArray[np.bool_] | None = None
) -> NDArray[np.float32]:
    r"""Return :math:`A = \sqrt{k}` of stored counts k, or the rescaled stored amplitude [sqrt(photons)].

    Any shape and dtype; ``bad_pixels`` of one pattern or of all become ``NOT_MEASURED`` (eq. 20).
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
    """Return the modes (P, N, N) in the gauge of the data: sum(|P|**2) is the photons of an empty object."""
    return (raw.probe_modes * np.float32(record.probe_gain)).astype(np.complex64)


def scaled_background(raw: RawData, record: ScaleRecord) -> NDArray[np.float32] | None:
    """Return the background (N, N) of a file as photons of its patterns (eq. 25); None where it has none."""
    if raw.background is None:
        return None
    return (raw.background * record.amplitude_gain**2).astype(np.float32)


def _chunks(raw: RawData, rows: NDArray[np.int64], domain: Domain) -> Iterator[NDArray[np.float64]]:
    """Counts of some patterns, or the squares of stored amplitude, 0 where nothing was measured."""
    for block in blocks(len(rows)):
        stored = raw.good_values(rows[block]).astype(np.float64)
        yield stored if domain == "counts" else stored**2


def _stored_counts(raw: RawData, domain: Domain, rows: NDArray[np.int64]) -> tuple[float, float]:
    """Mean pattern total and largest pixel of the stored counts, or of the squared stored amplitude."""
    total, largest = 0.0, 0.0
    for counts in _chunks(raw, rows, domain):
        total += float(counts.sum())
        largest = max(largest, float(counts.max()))
    return total / len(rows), largest


def _measured_share(raw: RawData, domain: Domain, rows: NDArray[np.int64]) -> float:
    """Part of the photons of a pattern that fell on good pixels, as far as probe and patterns tell."""
    if raw.bad_pixels is None or raw.probeGuess is None:
        return 1.0
    total = sum(counts.sum(axis=0) for counts in _chunks(raw, rows, domain))
    good = raw.good_share(rows)
    if raw.background is not None:
        total = np.maximum(total - raw.background * good * len(rows), 0)
    number = near_field_of(raw)
    transfer = None if number is None else near_field_transfer(raw.N, number, np.zeros((1, 2)))
    beam = beam_counts(raw.probe_modes, raw.N, Detector(transfer))
    mean, seen = total / np.maximum(good, 1 / len(rows)), good > 0
    bright = (beam * mean)[seen].sum() / max(float((beam[seen] ** 2).sum()), np.finfo(float).tiny)
    return float(total.sum() / np.where(seen, mean, bright * beam).sum())


def _light(raw: RawData, rows: NDArray[np.int64], total: float, gain: float) -> float:
    """Mean photons on the measured pixels of one pattern, less its background."""
    beside = 0.0 if raw.background is None else float((raw.background * raw.good_share(rows)).sum())
    return max(total - beside, 0.0) * gain**2


def _probe_gain(raw: RawData, mean_counts: float, share: float) -> float:
    """Factor that brings the probe amplitude into the gauge of the data; 1 when it is there, or absent."""
    if raw.probeGuess is None:
        return 1.0
    power = probe_power(raw.probe_modes)
    whole = mean_counts / share
    if mean_counts <= power:
        # Behind a stop for the whole beam nothing tells the share; a sample passes on what the probe brings.
        whole = min(whole, power)
    if _GAUGE_LOW <= power / whole <= _GAUGE_HIGH:
        return 1.0
    return float(np.sqrt(whole / power))
