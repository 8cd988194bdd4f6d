"""Misfit of expected and measured amplitude (J, N, N) [sqrt(photons)]: 0 for a perfect fit, no unit."""

from __future__ import annotations

import numpy as np

from ptycho.physics.filling import measured, measured_energy
from ptycho.physics.forward import INTENSITY_FLOOR
from ptycho.physics.propagation import Real


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


def poisson_loss(predicted: Real, amplitude: Real) -> Real:
    r"""Return the Poisson deviance per measured photon (eq. 7c).

    .. math:: L_P = \sum \left[I - k + k \ln(k / I)\right] / \sum k, \quad k = (A^{\mathrm{meas}})^2

    It is the negative log-likelihood less its value for a perfect fit, so it has the gradient of the
    likelihood and is 0 where the model explains every count.
    """
    expected = predicted**2 + INTENSITY_FLOOR
    counts = amplitude**2
    ratio = np.log((counts + INTENSITY_FLOOR) / expected)
    deviance = np.where(measured(amplitude), expected - counts + counts * ratio, 0)
    return _per(deviance, measured_energy(amplitude))


def _per(values: Real, total: Real) -> Real:
    """Return a sum per measured total; 0 where no photon was measured, which says nothing."""
    return values.sum() / total if total > 0 else 0 * total
