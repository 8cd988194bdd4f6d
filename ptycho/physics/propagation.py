"""Waves from the sample to the detector and back, and fields moved by fractions of a pixel."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Complex = NDArray[np.complexfloating[Any, Any]]
Real = NDArray[np.floating[Any]]


def centring_phase(n_px: int, dtype: Any = np.complex128) -> Complex:
    r"""Return the phase that moves the zero frequency of a following FFT to index ``N // 2`` (eq. 2).

    .. math:: c(y, x) = \exp\left(2\pi i \lfloor N/2\rfloor (y + x) / N\right)

    Multiplying the small probe once replaces an ``fftshift`` of every pattern. For even N it is a
    chequerboard of exact +1 and -1. The phase is (N, N), of a complex ``dtype``.
    """
    index = np.arange(n_px)
    if n_px % 2 == 0:
        axis = (1.0 - 2.0 * (index % 2)).astype(np.complex128)
    else:
        axis = np.exp(2j * np.pi * (n_px // 2) * index / n_px)
    return np.multiply.outer(axis, axis).astype(dtype)


def far_field(exit_wave: Complex) -> Complex:
    r"""Propagate exit waves (..., N, N) [sqrt(photons)] to the detector (eq. 2).

    .. math:: \Psi = \mathcal{F}_{\mathrm{ortho}}(c\,\psi)

    The transform is unitary: the sum of squares stays. The zero frequency is at ``N // 2``.
    """
    phase = centring_phase(exit_wave.shape[-1], exit_wave.dtype)
    return np.fft.fft2(exit_wave * phase, norm="ortho").astype(exit_wave.dtype, copy=False)


def far_field_adjoint(field: Complex) -> Complex:
    """Propagate detector waves back to the sample: adjoint and inverse of :func:`far_field` (eq. 2)."""
    phase = centring_phase(field.shape[-1], field.dtype)
    return (np.fft.ifft2(field, norm="ortho") * np.conj(phase)).astype(field.dtype, copy=False)


def shift_field(field: Complex, shifts_yx_px: Real) -> Complex:
    r"""Return a copy of fields for every shift (J, 2) [px], whose content moved to +y, +x (eq. 4).

    .. math:: f(r - \delta) = \mathcal{F}^{-1}\left[e^{-2\pi i\,k\cdot\delta}\,\mathcal{F}f\right]

    The Nyquist frequency of an even-sized axis is multiplied by the unit phase as well, so that a shift by
    :math:`-\delta` is the exact inverse and the exact adjoint.

    A field (N, N) or stack (P, N, N) is copied whole, of (J, P, N, N) the entry j moves by shift j; the
    result is (J, ..., N, N). The boundary is periodic, so a field must vanish towards it.
    """
    n_y, n_x = field.shape[-2:]
    shifts = np.asarray(shifts_yx_px)
    phase_y = np.exp(-2j * np.pi * np.multiply.outer(shifts[:, 0], np.fft.fftfreq(n_y)))
    phase_x = np.exp(-2j * np.pi * np.multiply.outer(shifts[:, 1], np.fft.fftfreq(n_x)))
    phase = (phase_y[:, :, None] * phase_x[:, None, :]).astype(field.dtype)
    inner = field.ndim - 2 - (1 if field.ndim == 4 else 0)
    phase = phase.reshape(phase.shape[:1] + (1,) * inner + phase.shape[1:])
    return np.fft.ifft2(np.fft.fft2(field) * phase).astype(field.dtype, copy=False)


def focus_of(amplitude: Real) -> NDArray[np.complex64]:
    """Return the one mode (1, N, N), in the middle of the patch, whose far field has an amplitude (N, N)."""
    focus = far_field_adjoint(amplitude.astype(np.complex128))
    middle = (len(amplitude) - 1) / 2
    return shift_field(focus, np.array([[middle, middle]])).astype(np.complex64)
