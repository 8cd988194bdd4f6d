r"""How far a reconstruction is from the measured patterns, beside what photon noise alone would leave.

Symbols: A is the expected amplitude, k the counts, :math:`\lambda = A^2` [photons]. A count drawn from
Poisson of mean lambda is off by :math:`V(\lambda) = E[(\sqrt k - \sqrt\lambda)^2]`: 2 lambda where hardly any
photon falls, 1/4 where many do. Sums of it over pixels are what a perfect reconstruction leaves.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ptycho.data.reconstruction import SCANNED_SHARE, Fit

if TYPE_CHECKING:
    from ptycho.data.scan import Scan

SERIES_END = 8.0
"""Amplitude from which the expansion in 1 / lambda is used; below, a table of the sum [sqrt(photons)]."""
TABLE_STEP = 1 / 64
TRAPPED_NUMBERS = 4.0
"""Measured pixels per real unknown of the object below which a refinement may end in a wrong minimum."""
TRAPPED_NOISE, TRAPPED_MISFIT = 2.0, 1e-8
"""Multiple of the photon noise, and share of the energy, above which a misfit tells of one."""
UNIT_PATTERNS = 16
"""Patterns that are looked at to find out what one photon is."""
UNIT_VALUES = 1000.0
"""Largest multiple of a quantum that float32 amplitudes still tell from its neighbours."""
UNIT_TOLERANCE = 0.02
"""Largest distance from a whole number of photons that rounding of a stored amplitude leaves."""


@lru_cache(maxsize=1)
def _noise_table() -> NDArray[np.float32]:
    """Return V / lambda at amplitudes from 0 to ``SERIES_END``, from the sum over counts."""
    amplitude = np.arange(0, SERIES_END + 2.5 * TABLE_STEP, TABLE_STEP)
    rate = amplitude**2
    # Recurrence of the Poisson weights; 200 counts are 17 standard deviations beyond the largest rate.
    weight, root = np.exp(-rate), np.zeros_like(rate)
    for count in range(1, 200):
        weight = weight * rate / count
        root += weight * np.sqrt(count)
    mean_root = np.divide(root, amplitude, out=np.zeros_like(root), where=amplitude > 0)
    return (2 - 2 * mean_root).astype(np.float32)


def noise_energy(amplitude: NDArray[np.floating]) -> NDArray[np.float32]:
    r"""Return :math:`E[(\sqrt k - A)^2]` [photons] for counts k of Poisson of mean A**2, in float32.

    A >= 0 is the expected amplitude [sqrt(photons)], of any shape.
    """
    amplitude = np.asarray(amplitude, dtype=np.float32)
    rate = amplitude * amplitude
    place = np.minimum(amplitude, np.float32(SERIES_END)) * np.float32(1 / TABLE_STEP)
    index = place.astype(np.int32)
    table, place = _noise_table(), place - index
    low = rate * (table[index] * (1 - place) + table[index + 1] * place)
    bright = np.maximum(rate, np.float32(SERIES_END**2))
    high = 0.25 + (7 / 64 + (75 / 512) / bright) / bright
    return np.where(amplitude < SERIES_END, low, high).astype(np.float32)


class FitTally:
    """Adds up a :class:`Fit` over the chunks of a scan of ``count`` patterns, in any order.

    ``photons`` per unit of counts is None where it is unknown; ``background`` (N, N) is the part of the
    predicted counts that is no light.
    """

    def __init__(
        self, count: int, n_px: int, photons: float | None, background: NDArray[np.float32] | None = None
    ) -> None:
        self.photons = photons
        self._background = background
        self._rows = np.zeros((6, count))
        self._pixels = np.zeros((8, n_px, n_px))
        self._pairs = np.zeros((2, 2, n_px, n_px))

    def add(
        self, rows: NDArray[np.int64], predicted: NDArray[np.float32], measured: NDArray[np.float32]
    ) -> None:
        """Add the patterns ``rows`` (B,): predicted and measured amplitude (B, N, N) [sqrt(photons)].

        The measured one is negative where a pixel was not measured.
        """
        good = measured >= 0
        measured = np.where(good, measured, 0).astype(np.float32, copy=False)
        predicted = np.where(good, predicted, 0).astype(np.float32, copy=False)
        unit = np.float32(self.photons or 1.0)
        noise = noise_energy(predicted * np.sqrt(unit)) / unit
        missed = predicted - measured
        misfit, energy = missed * missed, measured * measured
        power = predicted * predicted
        light = predicted if self._background is None else self._light(predicted, power)
        parts = (misfit, noise, energy, power, light * light, light * missed)
        self._rows[:, rows] = [part.sum(axis=(1, 2), dtype=np.float64) for part in parts]
        parts = (misfit, noise, energy, measured, missed, good, power, predicted)
        self._pixels += [part.sum(axis=0, dtype=np.float64) for part in parts]
        for kind, values in enumerate((missed, measured)):
            self._pairs[kind, 0, 1:] += np.einsum("jyx,jyx->yx", values[:, 1:], values[:, :-1])
            self._pairs[kind, 1, :, 1:] += np.einsum("jyx,jyx->yx", values[:, :, 1:], values[:, :, :-1])

    def _light(self, predicted: NDArray[np.float32], power: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return by how much amplitude (B, N, N) changes per change of the amplitude of the light."""
        # Rounding of a dark pixel, and one that was not measured, would be a negative light.
        light = np.maximum(power - self._background, 0)
        return np.divide(light, predicted, out=np.zeros_like(light), where=predicted > 0)

    def _paired(self, kind: int, total: NDArray[np.float64], number: NDArray[np.float64]) -> float:
        """Return the covariance of neighbours, summed over both axes."""
        mean = total / number
        common = mean[1:] * mean[:-1] * np.minimum(number[1:], number[:-1])
        aside = mean[:, 1:] * mean[:, :-1] * np.minimum(number[:, 1:], number[:, :-1])
        return float(self._pairs[kind].sum() - common.sum() - aside.sum())

    def result(self) -> Fit:
        """Return what all patterns together say."""
        misfit, expected, energy, power, light_power, light_missed = self._rows
        pixel_misfit, pixel_expected, counts, amplitude, missed, good, *predicted = self._pixels
        number = np.maximum(good, 1.0)
        mean = np.sqrt(counts / number)
        unit = self.photons or 1.0
        return Fit(
            misfit=misfit,
            expected=expected,
            energy=energy,
            power=power,
            light_power=light_power,
            gain=1.0 - light_missed / np.maximum(light_power, 1e-30),
            pixel_misfit=pixel_misfit,
            pixel_expected=pixel_expected,
            pixel_energy=counts,
            pixel_power=predicted[0],
            pixel_amplitude=predicted[1],
            pixel_common=missed**2 / number,
            pixel_varying=2 * counts - 2 * mean * amplitude,
            pixel_varying_expected=good * noise_energy(mean * np.sqrt(unit)) / unit,
            pixel_count=good,
            paired_misfit=self._paired(0, missed, number),
            paired_varying=self._paired(1, amplitude, number),
            photons=self.photons,
        )


def tells_few(n_patterns: int, n_px: int, illumination: NDArray[np.floating]) -> bool:
    """Tell whether so few pixels are measured for each unknown that a refinement may end in a wrong minimum;
    ``illumination`` is (H, W), in any unit."""
    scanned = int((illumination >= SCANNED_SHARE * illumination.max()).sum())
    return n_patterns * n_px**2 < TRAPPED_NUMBERS * 2 * scanned


def noise_misfit(fit: Fit) -> float:
    """Return what photon noise leaves of the energy where the object is known; 0 where it is unknown."""
    return 0.0 if fit.photons is None else float(fit.expected.sum() / max(fit.energy.sum(), 1e-30))


def stands_far_above_noise(fit: Fit) -> bool:
    """Tell whether a misfit stands so far above the photon noise that another object may fit better; where
    the noise is unknown its size alone tells."""
    return fit.relative > max(TRAPPED_NOISE * noise_misfit(fit), TRAPPED_MISFIT)


def photon_unit(scan: Scan) -> float | None:
    """Find out how many photons one unit of ``scan.amplitude(...)**2`` is.

    Photons come in whole numbers, so counts that are all multiples of one number tell what a photon is,
    whatever they were multiplied with. None where they are multiples of nothing and no dose is stated.
    """
    chosen = scan.usable
    rows = chosen[np.linspace(0, len(chosen) - 1, min(len(chosen), UNIT_PATTERNS)).astype(np.int64)]
    amplitude = scan.amplitude(rows).astype(np.float64)
    counts = amplitude[amplitude > 0] ** 2
    stated = scan.record.domain == "amplitude" and scan.raw.nphotons is not None
    if not len(counts):
        return None
    whole = _divisor(counts)
    if whole is not None:
        return 1.0 / whole
    smallest = float(counts.min())
    divisor = _divisor(counts / smallest)
    if divisor is not None:
        return 1.0 / (smallest * divisor)
    return 1.0 if stated else None


def _divisor(values: NDArray[np.float64]) -> float | None:
    """Return the greatest common divisor of values that are all whole numbers, else None."""
    values = values[values < UNIT_VALUES]
    if not len(values):
        return None
    nearest = np.rint(values)
    if np.abs(values - nearest).max() > UNIT_TOLERANCE or nearest.min() < 1:
        return None
    return float(np.gcd.reduce(nearest.astype(np.int64)))
