r"""Drift of the beam that a reconstruction gives away: counts that rise or fall evenly with time.

Symbols: pattern j is taken at time t_j, from -1/2 to 1/2, and at place r_j; its amplitude A_j is the modulus
of Psi_j, the field of P O_j at the detector, with the probe P and O_j(s) = O(r_j + s). A drift by exp(2 b)
multiplies it by exp(b t_j).

An object takes in a drift that is a function of the place, and a probe its slope: where t is linear in r, as
on a raster without jitter, no pattern tells them apart. What is left is the part of the time that neither can
follow: u_j, t_j without its best plane in r_j, less its mean T over the patterns that light a point of the
object, less its mean S over the patterns at a point of the probe. The residual is projected on it:

.. math:: V_j = D[P O_j (u_j - T(r_j + s) - S(s))], \quad D_j = \Re(\bar\Psi_j V_j) / A_j, \quad
          b = \sum (m_j - A_j) D_j / \sum D_j^2

In the wave field errors of object and probe are orthogonal to V_j; of the amplitude, which is all that is
measured, most of them cancels, so neither has to have converged.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ptycho.data.reconstruction import PlacedReconstruction, Reconstruction
from ptycho.geometry.canvas import CanvasPlan
from ptycho.physics import extract_patches, propagate

FEWEST_PATTERNS = 25
"""Fewer say nothing."""
MOST_PATTERNS = 600
"""Patterns whose field is computed; of more, as many spread over the time."""
CHUNK = 64
"""Patterns that are computed at once."""
LEAST_SPREAD = 1e-4
"""Standard deviation of u below which the place tells the time: jitter by 1 % of a step in 60 rows."""
DARK = 1e-6
"""Illumination of a point of the object, relative to the brightest, below which it counts as dark."""


class BeamDrift(NamedTuple):
    """A drift of the beam, as far as the patterns tell."""

    log_factor: float  # logarithm of the counts of the last pattern over those of the first, same place
    error: float  # its standard error, from the scatter of the patterns

    @property
    def errors(self) -> float:
        """Size of the drift in standard errors."""
        return abs(self.log_factor) / max(self.error, 1e-30)


def beam_drift(placed: PlacedReconstruction) -> BeamDrift | None:
    """Measure the drift of the beam that a reconstruction, with the factors of its frames, does not explain.

    None where there are too few patterns, or where the place tells the time.
    """
    found, scan, plan = placed.found, placed.scan, placed.plan
    time = _unfollowed_time(placed.numbers, placed.positions_yx_px)
    if time is None or time.std() < LEAST_SPREAD:
        return None
    count = len(time)
    rows = np.unique(np.linspace(0, count - 1, min(count, MOST_PATTERNS)).astype(np.int64))
    mean = _mean_over_illumination(found, plan, time)
    weight, total = np.zeros((2, plan.patch_px, plan.patch_px))
    size = max(1, CHUNK // (scan.detector_upsampling * plan.patch_px // scan.n_px) ** 2)
    for chosen in _chunks(rows, size):
        power = np.abs(extract_patches(found.obj, plan.corners_yx[chosen], plan.patch_px)) ** 2
        weight += power.sum(axis=0)
        total += (power * _local(time, mean, plan, chosen)).sum(axis=0)
    of_probe = total / np.maximum(weight, 1e-30)
    parts = []
    for chosen in _chunks(rows, size):
        local = (_local(time, mean, plan, chosen) - of_probe).astype(np.float32)
        parts.append(_projected(placed, chosen, local))
    along, norm = np.concatenate(parts, axis=1, dtype=np.float64)
    power = norm.sum()
    if power <= 0:
        return None
    slope = along.sum() / power
    error = np.sqrt(((along - slope * norm) ** 2).sum()) / power
    return BeamDrift(float(2 * slope), float(2 * error))


def _chunks(rows: NDArray[np.int64], size: int) -> Iterator[NDArray[np.int64]]:
    return (rows[start : start + size] for start in range(0, len(rows), size))


def _unfollowed_time(
    numbers: NDArray[np.int64], positions_yx_px: NDArray[np.float64]
) -> NDArray[np.float64] | None:
    """Return time without its best plane in the place, shape (J,); the whole time is 1 long."""
    if len(numbers) < FEWEST_PATTERNS:
        return None
    time = (numbers - numbers.mean()) / max(float(np.ptp(numbers)), 1.0)
    plane = np.column_stack([np.ones(len(time)), positions_yx_px - positions_yx_px.mean(axis=0)])
    return time - plane @ np.linalg.lstsq(plane, time, rcond=None)[0]


def _mean_over_illumination(
    found: Reconstruction, plan: CanvasPlan, time: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the mean time of the illumination of every object pixel, to whole pixels, shape (H, W)."""
    from scipy.signal import fftconvolve

    intensity = (np.abs(found.probe).astype(np.float64) ** 2).sum(axis=0)
    shape = tuple(size - len(intensity) + 1 for size in found.obj.shape)
    index = np.ravel_multi_index(tuple(plan.corners_yx.T), shape)
    places = [
        np.bincount(index, weights=values, minlength=shape[0] * shape[1]).reshape(shape)
        for values in (time, np.ones(len(time)))
    ]
    summed, total = (fftconvolve(place, intensity) for place in places)
    return np.where(total > DARK * total.max(), summed / np.maximum(total, DARK * total.max()), 0.0)


def _local(
    time: NDArray[np.float64], mean: NDArray[np.float64], plan: CanvasPlan, rows: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return u - T on the patches of some patterns, shape (B, N, N)."""
    return time[rows, None, None] - extract_patches(mean, plan.corners_yx[rows], plan.patch_px)


def _projected(
    placed: PlacedReconstruction, rows: NDArray[np.int64], local: NDArray[np.float32]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the residual along the drift, and the power of the drift, of some patterns."""
    found, plan = placed.found, placed.plan
    waves = placed.probes(rows) * extract_patches(found.obj, plan.corners_yx[rows], plan.patch_px)[:, None]
    detector = placed.detector(rows)
    field, change = propagate(waves, detector), propagate(waves * local[:, None], detector)
    predicted = np.sqrt(detector.counted((field.real**2 + field.imag**2).sum(axis=1)))
    measured = placed.measured_amplitude(rows)
    slope = (field.real * change.real + field.imag * change.imag).sum(axis=1)
    slope = np.where(measured >= 0, slope / np.maximum(predicted, 1e-6), 0.0)
    return ((measured - predicted) * slope).sum(axis=(1, 2)), (slope**2).sum(axis=(1, 2))
