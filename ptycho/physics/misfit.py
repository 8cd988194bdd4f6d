"""Misfit of expected and measured amplitude, and its Wirtinger gradients by object and probe.

A misfit is 0 for a perfect fit and has no unit. The gradients are those of the amplitude least squares.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ptycho.physics.detector import FAR_FIELD, Detector
from ptycho.physics.filling import measured, measured_energy
from ptycho.physics.forward import INTENSITY_FLOOR, exit_waves, extract_patches, place_patches
from ptycho.physics.propagation import Complex, Real, propagate, propagate_back, shift_field

SOFTENING = 0.03
"""Where the expected amplitude falls below this part of the measured one, the misfit is rounded off: there
the phase of the wave is rounding, and a gradient that follows it differs from one machine to the next."""


def softened_amplitude(intensity: Real, amplitude: Real) -> Real:
    r"""Return the expected amplitude, kept away from zero where light was measured (eq. 9).

    .. math:: \tilde A^2 = (I + \epsilon + \sigma^2 (A^{\mathrm{meas}})^2) / (1 + \sigma^2)

    It equals the measured one where that of the expected counts, ``intensity`` [photons / pixel], does.
    """
    return np.sqrt((intensity + INTENSITY_FLOOR + SOFTENING**2 * amplitude**2) / (1 + SOFTENING**2))


def wave_residual(
    obj: Complex,
    corners_yx: NDArray[np.int64],
    probes: Complex,
    amplitude: Real,
    detector: Detector = FAR_FIELD,
) -> Complex:
    r"""Return by how much the exit waves (J, P, N, N) [sqrt(photons)] miss the measured amplitude (eq. 9).

    .. math:: \chi_{j,p} = \mathcal{D}^\dagger
        \left[m_j\,(1 - A_j^{\mathrm{meas}} / \tilde A_j)\,\Psi_{j,p}\right]

    Its energy is the squared amplitude misfit, except where hardly any light was expected; with a background,
    that share of it which the light has in the expected counts. On patches M patterns wide it is M^2 times
    as much (eq. 5b).
    """
    patches = extract_patches(obj, corners_yx, probes.shape[-1])
    return unmatched_waves(exit_waves(patches, probes), amplitude, detector)


def unmatched_waves(waves: Complex, amplitude: Real, detector: Detector = FAR_FIELD) -> Complex:
    r"""Return what exit waves (J, P, N, N) [sqrt(photons)] have to lose to match the measured amplitude
    (eq. 9).

    :math:`\psi - \chi(\psi) / M^2` is the nearest set of waves with this amplitude, unmeasured pixels as they
    are; M = 1 unless patches are larger than patterns (eq. 5b).
    """
    field = propagate(waves, detector)
    predicted = softened_amplitude(detector.counted((field.real**2 + field.imag**2).sum(axis=1)), amplitude)
    missed = np.where(measured(amplitude), 1 - amplitude / predicted, 0)
    return propagate_back(field * missed[:, None], detector)


def mapped_waves(
    waves: Complex | None, fitting: Complex, amplitude: Real, detector: Detector = FAR_FIELD
) -> tuple[Complex, Complex]:
    r"""Take one step of the difference map (eq. 27): return the next waves, and by how much they fall short
    of the ``fitting`` ones P O, all (J, P, N, N) [sqrt(photons)].

    .. math:: \psi' = P O - \chi(2 P O - \psi) / M^2

    ``waves`` are those of the last step, None before the first.
    """
    missed = unmatched_waves(fitting if waves is None else 2 * fitting - waves, amplitude, detector)
    missed = missed / detector.windows**2
    return fitting - missed, missed


def object_gradient(
    obj: Complex,
    corners_yx: NDArray[np.int64],
    probes: Complex,
    amplitude: Real,
    detector: Detector = FAR_FIELD,
) -> Complex:
    r"""Return the gradient with respect to the object (H, W) [photons] (eq. 9).

    .. math:: g(r) = \sum_j \sum_p P_p^*(r - r_j)\,\chi_{j,p}

    Divided by the illumination (eq. 8) it is a step in units of the object.
    """
    residual = wave_residual(obj, corners_yx, probes, amplitude, detector)
    return place_patches((np.conj(probes) * residual).sum(axis=1), corners_yx, obj.shape[-2:])


def probe_gradient(patches: Complex, residual: Complex, shifts_yx_px: Real) -> Complex:
    r"""Return the gradient with respect to the probe (P, N, N) [sqrt(photons)] (eq. 13).

    .. math:: h_p(r) = \sum_j \left(O_j^*\,\chi_{j,p}\right)(r + \delta_j)

    ``residual`` is from :func:`wave_residual`; the probe of each position was moved by its sub-pixel shift.
    """
    return shift_field(np.conj(patches)[:, None] * residual, -np.asarray(shifts_yx_px)).sum(axis=0)


def amplitude_loss(predicted: Real, amplitude: Real) -> Real:
    r"""Return the amplitude misfit relative to the measured energy, free of any scale (eq. 7a).

    .. math:: L_A = \sum (A - A^{\mathrm{meas}})^2 / \sum (A^{\mathrm{meas}})^2
    """
    missed = np.where(measured(amplitude), predicted - amplitude, 0)
    return _per(missed**2, measured_energy(amplitude))


def mean_absolute_loss(predicted: Real, amplitude: Real) -> Real:
    r"""Return the mean absolute amplitude error relative to the mean measured amplitude (eq. 7b).

    .. math:: L_1 = \sum |A - A^{\mathrm{meas}}| / \sum A^{\mathrm{meas}}
    """
    missed = np.where(measured(amplitude), predicted - amplitude, 0)
    return _per(abs(missed), np.maximum(amplitude, 0).sum())


def poisson_deviance(predicted: Real, amplitude: Real) -> Real:
    r"""Return the Poisson deviance of every pixel, I - k + k ln(k / I) of eq. 7c; 0 where nothing was
    measured."""
    expected = predicted**2 + INTENSITY_FLOOR
    counts = amplitude**2
    ratio = np.log((counts + INTENSITY_FLOOR) / expected)
    return np.where(measured(amplitude), expected - counts + counts * ratio, 0)


def poisson_loss(predicted: Real, amplitude: Real) -> Real:
    r"""Return the Poisson deviance per measured photon (eq. 7c).

    .. math:: L_P = \sum \left[I - k + k \ln(k / I)\right] / \sum k, \quad k = (A^{\mathrm{meas}})^2

    It is the negative log-likelihood less its value for a perfect fit, so it has the gradient of the
    likelihood and is 0 where the model explains every count.
    """
    return _per(poisson_deviance(predicted, amplitude), measured_energy(amplitude))


def _per(values: Real, total: Real) -> Real:
    """Return a sum per measured total; 0 where no photon was measured, which says nothing."""
    return values.sum() / total if total > 0 else 0 * total
