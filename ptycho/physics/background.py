"""Counts that no wave explains: what patterns tell of them, and of the light beside them (eq. 25)."""

from __future__ import annotations

import numpy as np

from ptycho.physics.detector import FAR_FIELD, Detector
from ptycho.physics.filling import measured
from ptycho.physics.forward import INTENSITY_FLOOR
from ptycho.physics.motion import count_quantum
from ptycho.physics.propagation import Real

ROOT_BIAS = 0.25
"""By how many photons light that fits the roots of counts falls short of them: the variance of a root."""


def background_sums(
    intensity: Real, amplitude: Real, detector: Detector = FAR_FIELD, likelihood: str = "amplitude"
) -> tuple[Real, Real]:
    r"""Return what counts exceed the expected ones by, and its weight, over patterns, both (N, N) (eq. 25).

    .. math:: E = \sum_j m_j\,\frac{k_j - I_j - b - q_j I_j / (I_j + b)}{I_j + b + u_j}, \quad
        F = \sum_j \frac{m_j}{I_j + b + u_j}

    ``intensity`` is that of the light alone [photons / pixel], and u one photon. An object that fits the
    amplitude explains q = u/4 less than the counts of its light; one of the ``likelihood`` poisson, q = 0.
    """
    unit, expected = count_quantum(amplitude), detector.counted(intensity)
    weight = np.where(measured(amplitude), 1 / (expected + unit), 0)
    excess = amplitude**2 - expected
    if likelihood == "amplitude":
        excess = excess - ROOT_BIAS * unit * intensity / (expected + INTENSITY_FLOOR)
    return (weight * excess).sum(axis=0), weight.sum(axis=0)


def frame_fits(intensity: Real, amplitude: Real, detector: Detector = FAR_FIELD) -> Real:
    r"""Return the factor on the amplitude of every frame that fits its pixels best, (J,) (eq. 21, 25).

    .. math:: \sum m\,A\,A^{\mathrm{meas}} / \sum m\,A^2, \quad \text{with a background}\quad
        \left[\sum m\,\frac{I\,(k - b)}{I + b} \Big/ \sum m\,\frac{I^2}{I + b}\right]^{1/2}

    ``intensity`` is that of the light alone [photons / pixel]. The factor is 1 where none is expected.
    """
    light = np.where(measured(amplitude), intensity + INTENSITY_FLOOR, 0)
    if detector.background is None:
        seen, power = (np.sqrt(light) * amplitude).sum(axis=(1, 2)), light.sum(axis=(1, 2))
    else:
        seen, power = light_sums(light, amplitude, detector.background)
    fit = np.maximum(seen, 0) / np.where(power > 0, power, 1)
    return np.where(power > 0, fit if detector.background is None else np.sqrt(fit), 1)


def light_sums(light: Real, amplitude: Real, background: Real) -> tuple[Real, Real]:
    """Return numerator and denominator of what is to be multiplied with the expected light (J, N, N) of every
    pattern, both (J,) [photons] (eq. 25); ``light`` is 0 where nothing was measured."""
    share = light / (light + background + INTENSITY_FLOOR)
    return (share * (amplitude**2 - background)).sum(axis=(1, 2)), (share * light).sum(axis=(1, 2))


def background_step(background: Real, excess: Real, weight: Real, blur_px: float) -> Real:
    r"""Return the next background (N, N) [photons / pixel], at least 0 (eq. 25).

    .. math:: b \leftarrow \max(0,\ b + G * E / G * F)

    ``excess`` and ``weight`` are the sums of :func:`background_sums`; G is a Gaussian of ``blur_px`` rms.
    Pixels that measured nothing follow their surroundings.
    """
    from scipy.ndimage import gaussian_filter

    smooth = gaussian_filter(np.stack([excess, weight]).astype(np.float64), (0, blur_px, blur_px))
    tiny = np.finfo(np.float64).tiny
    return np.maximum(background + smooth[0] / np.maximum(smooth[1], tiny), 0)
