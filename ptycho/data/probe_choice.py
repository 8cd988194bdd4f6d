"""Whose probe a trained model reconstructs a scan with, and why: decided here, for every caller and backend.

Symbols: P is a probe of P modes [sqrt(photons)]; its power, sum(|P|**2), is the photons per pattern of an
empty object. Axes: (mode, y, x).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho.data.canonical import probe_power
from ptycho.data.scaling import ScaleRecord
from ptycho.data.scan import Scan

AGREEMENT = 0.99
"""Overlap from which two probes count as one."""
SAME_COUNTS = 1e-6
"""Relative difference up to which two scans have the same mean counts; photon noise alone makes more."""


@dataclass(frozen=True)
class TrainedProbe:
    """What a trained model knows about the beam; probes (P, N, N) [sqrt(photons)]."""

    probe: NDArray[np.complex64]  # of the training run; all zero where it saw no scan
    start: NDArray[np.complex64] | None = None  # that it started from; None in files that do not hold it
    refined: bool = False  # the training run changed the probe
    record: ScaleRecord | None = None  # scale of the training scan

    @property
    def first(self) -> NDArray[np.complex64]:
        """Probe to compare with: the one of the start, else the probe itself."""
        return self.probe if self.start is None else self.start


@dataclass(frozen=True)
class ProbeChoice:
    """The probe to reconstruct with."""

    probe: NDArray[np.complex64]  # (P, N, N) in the gauge of the scan [sqrt(photons)]
    fit: bool  # fit it to the scan first
    summary: str  # whose probe it is and why, one line
    asked: bool = False  # to fit it is the user's word


def probe_overlap(one: NDArray[Any], other: NDArray[Any]) -> float:
    r"""Return how much two probes (P, N, N) agree, 0 to 1; phase, scale and mixing of modes do not count.

    .. math:: \sqrt{\mathrm{tr}(J_1 J_2)} / (\mathrm{tr}(J_1^2)\,\mathrm{tr}(J_2^2))^{1/4},
        \quad J = \sum_p P_p P_p^\dagger

    :math:`|\langle a, b\rangle| / (\|a\|\,\|b\|)` for one mode each, 0 where one is zero.
    """
    a, b = (np.asarray(probe, np.complex128).reshape(len(probe), -1) for probe in (one, other))
    mixed, own, others = (float((np.abs(x.conj() @ y.T) ** 2).sum()) for x, y in ((a, b), (a, a), (b, b)))
    return float((mixed**2 / (own * others)) ** 0.25) if own > 0 and others > 0 else 0.0


def is_training_scan(scan: Scan, trained: TrainedProbe) -> bool:
    """Return whether a scan holds all patterns of the training run, by mean and largest counts."""
    if trained.record is None:
        return False
    counts = [(record.mean_counts, record.max_counts) for record in (scan.record, trained.record)]
    return bool(np.allclose(*counts, rtol=SAME_COUNTS, atol=0.0))


def in_gauge_of(scan: Scan, trained: TrainedProbe) -> NDArray[np.complex64]:
    """Return the probe of a training run for the beam of a scan, whose own probe says how strong it is."""
    ratio = probe_power(scan.probe) / probe_power(trained.first)
    return (trained.probe * np.float32(ratio**0.5)).astype(np.complex64)


def choose_probe(
    scan: Scan,
    trained: TrainedProbe,
    *,
    fit_probe: bool | None = None,
    uses_probe: bool = True,
    given: NDArray[np.complex64] | None = None,
) -> ProbeChoice:
    """Decide whose probe a scan is reconstructed with.

    The probe of the training run serves the training scan, and a scan whose own probe agrees with the one
    that it started from. Every other scan is reconstructed with its own. On any but the training scan the
    probe is fitted first, since equal probes in two files do not make equal beams; ``fit_probe`` is the
    user's word on that, ``uses_probe`` whether the reconstruction looks at the probe before it refines
    anything, ``given`` a probe to use as it is.
    """
    own = scan.probe
    if given is not None:
        return ProbeChoice(given, False, "probe: the one of the stored reconstruction, as it is")
    if fit_probe:
        return ProbeChoice(own, True, "probe: the scan's own, fitted to it first, as asked for", asked=True)
    fits = uses_probe and fit_probe is None
    first = ", fitted to it first" if fits else ", as it is"
    if not trained.probe.any():
        return ProbeChoice(own, fits, f"probe: the scan's own{first} (the network was trained without one)")
    if trained.probe.shape != own.shape:
        has = f"{len(own)} modes, the training had {len(trained.probe)}"
        if len(own) == len(trained.probe):
            has = f"{own.shape[-1]} px, the training had {trained.probe.shape[-1]}"
        return ProbeChoice(own, fits, f"probe: the scan's own{first} (it has {has})")
    if is_training_scan(scan, trained):
        if trained.refined:
            used, whose = in_gauge_of(scan, trained), "the training's, refined there"
        else:
            used, whose = own, "the scan's own, as in the training"
        return ProbeChoice(used, False, f"probe: {whose} (the model was trained on this scan)")
    overlap = probe_overlap(own, trained.first)
    if overlap < AGREEMENT:
        why = f"the training had another one: overlap {overlap:.3f}, expected >= {AGREEMENT}"
        return ProbeChoice(own, fits, f"probe: the scan's own{first} ({why})")
    whose = "the one that the training started from" if trained.start is not None else "it"
    why = f"the scan's own agrees with {whose}: overlap {overlap:.4f}"
    first = ", fitted to this scan first" if fits else ", as it is"
    return ProbeChoice(in_gauge_of(scan, trained), fits, f"probe: the training's{first} ({why})")


def network_gain(scan: Scan, trained: TrainedProbe) -> float:
    r"""Return the factor on the object of a network that sees normalised patterns and no probe.

    It returns objects as dark as those of its training scan. The beam says how dark this one is; 1 where
    nothing is known:

    .. math:: \sqrt{\frac{\bar k / \sum|P|^2}{\bar k_0 / \sum|P_0|^2}}
    """
    if trained.record is None or not trained.probe.any():
        return 1.0
    beside = 0.0 if scan.background is None else float(scan.background.sum())
    light = max(scan.record.mean_counts - beside, 0.0)
    through = light / probe_power(scan.probe)
    through_training = trained.record.mean_counts / probe_power(trained.first)
    return float((through / through_training) ** 0.5)
