"""The focus that belongs to a far field."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ptycho.physics.propagation import far_field_adjoint, shift_field


def focus_of(amplitude: NDArray[np.float64]) -> NDArray[np.complex64]:
    """Return the one mode (1, N, N), in the middle of the patch, whose far field has an amplitude (N, N)."""
    focus = far_field_adjoint(amplitude.astype(np.complex128))
    middle = (len(amplitude) - 1) / 2
    return shift_field(focus, np.array([[middle, middle]])).astype(np.complex64)
