"""Wirtinger gradients of the amplitude least squares, with respect to object and probe."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ptycho.physics.filling import measured
from ptycho.physics.forward import INTENSITY_FLOOR, exit_waves, extract_patches, place_patches
from ptycho.physics.propagation import Complex, Real, far_field, far_field_adjoint, shift_field

SOFTENING = 0.03
"""Where the expected amplitude falls below this part of the measured one, the misfit is rounded off: there
the phase of the wave is rounding, and a gradient that follows it differs from one machine to the next."""


def softened_amplitude(intensity: Real, amplitude: Real) -> Real:
    r"""Return the expected amplitude, kept away from zero where light was measured (eq. 9).

    .. math:: \tilde A^2 = (I + \epsilon + \sigma^2 (A^{\mathrm{meas}})^2) / (1 + \sigma^2)

    Parameters
    ----------
    intensity : real (J, N, N)
        Expected counts [photons / pixel].
    amplitude : real (J, N, N)
        Measured [sqrt(photons)].

    Returns
    -------
    real (J, N, N) [sqrt(photons)]; equal to the measured one where the expected one is
    """
    return np.sqrt((intensity + INTENSITY_FLOOR + SOFTENING**2 * amplitude**2) / (1 + SOFTENING**2))


def wave_residual(obj: Complex, corners_yx: NDArray[np.int64], probes: Complex, amplitude: Real) -> Complex:
    r"""Return by how much the exit waves miss the measured amplitude (eq. 9).

    .. math:: \chi_{j,p} = \mathcal{F}^\dagger
        \left[m_j\,(1 - A_j^{\mathrm{meas}} / \tilde A_j)\,\Psi_{j,p}\right]

    Parameters
    ----------
    obj : complex (H, W)
        Object [transmission].
    corners_yx : int (J, 2)
        Canvas index of patch pixel (0, 0).
    probes : complex (P, N, N) or (J, P, N, N)
        Modes [sqrt(photons)].
    amplitude : real (J, N, N)
        Measured [sqrt(photons)], zero frequency at ``N // 2``; negative where not measured.

    Returns
    -------
    complex (J, P, N, N) [sqrt(photons)]; its energy is the squared amplitude misfit, except where hardly any
    light was expected
    """
    patches = extract_patches(obj, corners_yx, amplitude.shape[-1])
    field = far_field(exit_waves(patches, probes))
    predicted = softened_amplitude((field.real**2 + field.imag**2).sum(axis=1), amplitude)
    missed = np.where(measured(amplitude), 1 - amplitude / predicted, 0)
    return far_field_adjoint(field * missed[:, None])


def object_gradient(obj: Complex, corners_yx: NDArray[np.int64], probes: Complex, amplitude: Real) -> Complex:
    r"""Return the gradient with respect to the object (eq. 9); arguments as in :func:`wave_residual`.

    .. math:: g(r) = \sum_j \sum_p P_p^*(r - r_j)\,\chi_{j,p}

    Returns
    -------
    complex (H, W) [photons]; divided by the illumination (eq. 8) it is a step in units of the object
    """
    residual = wave_residual(obj, corners_yx, probes, amplitude)
    return place_patches((np.conj(probes) * residual).sum(axis=1), corners_yx, obj.shape[-2:])


def probe_gradient(patches: Complex, residual: Complex, shifts_yx_px: Real) -> Complex:
    r"""Return the gradient with respect to the probe (eq. 13).

    .. math:: h_p(r) = \sum_j \left(O_j^*\,\chi_{j,p}\right)(r + \delta_j)

    Parameters
    ----------
    patches : complex (J, N, N)
        Object [transmission].
    residual : complex (J, P, N, N)
        From :func:`wave_residual` [sqrt(photons)].
    shifts_yx_px : real (J, 2)
        Sub-pixel shift that the probe of each position was moved by [px].

    Returns
    -------
    complex (P, N, N) [sqrt(photons)]
    """
    return shift_field(np.conj(patches)[:, None] * residual, -np.asarray(shifts_yx_px)).sum(axis=0)
