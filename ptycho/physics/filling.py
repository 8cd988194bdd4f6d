"""Pixels that were not measured: told by a negative amplitude, left out of sums, filled for a network."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ptycho.physics.propagation import Real

FEWEST_WEIGHT = 1e-6
"""Smallest sum of weights that is divided by; a good pixel anywhere in a pattern of 1000 px gives more."""


def measured(amplitude: Real) -> NDArray[np.bool_]:
    """Return which pixels were measured (eq. 20); the others, below 0, take no part in anything."""
    return amplitude >= 0


def measured_energy(amplitude: Real) -> Real:
    r"""Return the photons on measured pixels, :math:`\sum m\,(A^{\mathrm{meas}})^2` (eq. 20)."""
    return (np.maximum(amplitude, 0) ** 2).sum()


@lru_cache(maxsize=8)
def fill_spectrum(n_px: int) -> NDArray[np.float64]:
    """Return the ``rfft2`` (N, N // 2 + 1) of the weights of eq. 20, for every backend.

    Close pixels count most, and however wide a gap is, something reaches its middle. The pattern is taken as
    periodic: far from the beam all of its edges are alike.
    """
    away = np.fft.fftfreq(n_px, 1 / n_px)
    squared = away[:, None] ** 2 + away**2
    squared[0, 0] = np.inf
    return np.fft.rfft2(squared**-2.0).real


def filled_amplitude(amplitude: Real) -> Real:
    r"""Return patterns whose unmeasured pixels continue their surroundings, for a network (eq. 20).

    .. math:: A(k) = \sum_{k'} m(k')\,A(k')\,|k - k'|^{-4} / \sum_{k'} m(k')\,|k - k'|^{-4}

    Patterns are (..., N, N), the result is >= 0; a pattern without any measured pixel is 0.
    """
    kept, n_px = measured(amplitude), amplitude.shape[-1]
    if kept.all():
        return amplitude
    spectrum = fill_spectrum(n_px)

    def spread(values: Real) -> Real:
        return np.fft.irfft2(np.fft.rfft2(values) * spectrum, s=(n_px, n_px))

    near = spread(np.maximum(amplitude, 0)) / np.maximum(spread(kept.astype(float)), FEWEST_WEIGHT)
    return np.where(kept, amplitude, np.maximum(near, 0)).astype(amplitude.dtype, copy=False)
