"""Waves from the sample to the detector and back, and fields moved by fractions of a pixel.

A ``transfer`` (J or 1, 2, N), one row along y and one along x for every pattern, says that the detector is in
the near field, and how far; None is the far field.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho.physics.detector import FAR_FIELD, Detector

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


def near_field_transfer(n_px: int, fresnel_number: float, shifts_yx_px: Real) -> Complex:
    r"""Return what the near field multiplies every frequency along y and x with, complex (J, 2, N) (eq. 22).

    .. math:: t_{j,a}(k) = \exp\left(-i\pi k^2 / F + 2\pi i\,k\,\delta_{j,a}\right), \quad a = y, x

    ``fresnel_number`` is that of one object pixel, ``shifts_yx_px`` (J, 2) the sub-pixel parts [px] that the
    probe is moved by: the second factor takes them back, as the detector stays with the beam. The dtype is
    complex64 where the shifts are float32, else complex128.
    """
    shifts = np.asarray(shifts_yx_px)
    waves = np.fft.fftfreq(n_px)
    turns = shifts[..., None] * waves - waves**2 / (2 * fresnel_number)
    return np.exp(2j * np.pi * turns).astype(np.result_type(shifts.dtype, np.complex64))


def _of_all_frequencies(transfer: Complex) -> Complex:
    """Return the transfer (J, 1, N, N) of every mode of waves (J, P, N, N)."""
    return (transfer[:, 0, :, None] * transfer[:, 1, None, :])[:, None]


def near_field(exit_wave: Complex, transfer: Complex) -> Complex:
    r"""Propagate exit waves (J, P, N, N) [sqrt(photons)] to a detector in the near field (eq. 22).

    .. math:: \Psi_j = \mathcal{F}^{-1}\left[t_{j,y}\,t_{j,x}\,\mathcal{F}\psi_j\right]

    ``transfer`` (J or 1, 2, N) is from :func:`near_field_transfer`. The map is unitary, and detector pixels
    lie on those of the patch. The boundary is periodic, as that of :func:`shift_field`.
    """
    spectrum = np.fft.fft2(exit_wave) * _of_all_frequencies(transfer)
    return np.fft.ifft2(spectrum).astype(exit_wave.dtype, copy=False)


def near_field_adjoint(field: Complex, transfer: Complex) -> Complex:
    """Propagate detector waves back to the sample: adjoint and inverse of :func:`near_field` (eq. 22)."""
    return near_field(field, np.conj(transfer))


def folded(waves: Complex, windows: int) -> Complex:
    r"""Return the sum (..., N, N) of the M x M parts of N x N px of waves (..., M N, M N) (eq. 5b).

    .. math:: (\mathcal{S}\psi)(r) = \sum_{m_y, m_x = 0}^{M - 1} \psi(r + N m)

    Its far field is that of the wave at every M-th frequency, times M. ``windows`` is M.
    """
    if windows == 1:
        return waves
    n_px = waves.shape[-1] // windows
    return waves.reshape(*waves.shape[:-2], windows, n_px, windows, n_px).sum(axis=(-4, -2))


def tiled(waves: Complex, windows: int) -> Complex:
    """Return waves (..., N, N) repeated M times along both axes: the adjoint of :func:`folded` (eq. 5b)."""
    return waves if windows == 1 else np.tile(waves, (windows, windows))


def propagate(exit_wave: Complex, detector: Detector = FAR_FIELD) -> Complex:
    """Propagate exit waves (..., M N, M N) to a detector of N x N pixels, in the near field where it has a
    transfer, else in the far field."""
    if detector.transfer is not None:
        return near_field(exit_wave, detector.transfer)
    return far_field(folded(exit_wave, detector.windows))


def propagate_back(field: Complex, detector: Detector = FAR_FIELD) -> Complex:
    """Propagate detector waves back to the sample: the adjoint of :func:`propagate`, and M^2 times its
    inverse on what it returns."""
    if detector.transfer is not None:
        return near_field_adjoint(field, detector.transfer)
    return tiled(far_field_adjoint(field), detector.windows)


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


def focus_of(amplitude: Real, fresnel_number: float | None = None) -> NDArray[np.complex64]:
    """Return the one mode (1, N, N) whose near field is an amplitude (N, N), or, in the middle of the patch,
    the one whose far field is, where no Fresnel number is given."""
    if fresnel_number is not None:
        transfer = near_field_transfer(len(amplitude), fresnel_number, np.zeros((1, 2)))
        return near_field_adjoint(amplitude[None, None].astype(np.complex128), transfer)[0].astype(
            np.complex64
        )
    focus = far_field_adjoint(amplitude.astype(np.complex128))
    middle = (len(amplitude) - 1) / 2
    return shift_field(focus, np.array([[middle, middle]])).astype(np.complex64)
