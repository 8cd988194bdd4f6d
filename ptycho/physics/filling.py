"""The weights with which the surroundings of an unmeasured pixel stand in for it, for every backend."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

FEWEST_WEIGHT = 1e-6
"""Smallest sum of weights that is divided by; a good pixel anywhere in a pattern of 1000 px gives more."""


@lru_cache(maxsize=8)
def fill_spectrum(n_px: int) -> NDArray[np.float64]:
    """Return the Fourier transform of the weights, the inverse fourth power of the distance.

    Close pixels count most, and however wide a gap is, something reaches its middle. The pattern is taken as
    periodic: far from the beam all of its edges are alike.

    Parameters
    ----------
    n_px : int
        Pattern size N [px].

    Returns
    -------
    float64 array, shape (N, N // 2 + 1)
        For the transform of real numbers, ``rfft2``.
    """
    away = np.fft.fftfreq(n_px, 1 / n_px)
    squared = away[:, None] ** 2 + away**2
    squared[0, 0] = np.inf
    return np.fft.rfft2(squared**-2.0).real
