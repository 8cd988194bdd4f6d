"""The focus that belongs to a far field."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ptycho.physics.forward import far_field_adjoint, shift_field


def focus_of(amplitude: NDArray[np.float64]) -> NDArray[np.complex64]:
    """Return the focus whose far field has an amplitude.

    Parameters
    ----------
    amplitude : float64 array, shape (N, N)
        Amplitude, zero frequency at N // 2 [sqrt(photons)].

    Returns
    -------
    complex64 array, shape (1, N, N)
        One mode, in the middle of the patch [sqrt(photons)].
    """
    focus = far_field_adjoint(amplitude.astype(np.complex128))
    middle = (len(amplitude) - 1) / 2
    return shift_field(focus, np.array([[middle, middle]])).astype(np.complex64)
