"""The slow part of the phase, which patterns hardly tell: by how much a step falls short of it (eq. 24)."""

from __future__ import annotations

import numpy as np

from ptycho.physics.propagation import Complex, Real

MOST_PHASE_GAIN = 300.0
"""Most that the slowest phase of a step is amplified."""
SLOW_PHASE_SCALE = 0.4
"""Length below which the misfit feels a phase fully, in units of the rms radius of the probe."""


def slow_phase_gain(
    shape_yx: tuple[int, int], scale_px: float, most: float, stiffness_px2: float = 0.0
) -> Real:
    r"""Return by how much the slow phase of a step falls short, less one, at every frequency (H, W) (eq. 24).

    .. math:: G(k) = \max\left(1, \left[(k a)^2 + 1/g\right]^{-1}\right) - 1

    The wave number k is that of the FFT [rad / px], a is ``scale_px``, and g is ``most``; 0 everywhere where
    that is 1. A step that takes the share ``stiffness_px2`` k^2 of a wave by itself goes no further than to
    take all of it.
    """
    down, right = (2 * np.pi * np.fft.fftfreq(n) for n in shape_yx)
    squared = down[:, None] ** 2 + right**2
    gain = np.maximum(1.0, 1 / (squared * scale_px**2 + 1 / most)) - 1.0
    if not stiffness_px2:
        return gain
    return np.clip(1 / np.maximum(stiffness_px2 * squared, 1e-12) - 1, 0.0, gain)


def phase_scale_px(probes: Complex) -> float:
    """Return the length a of eq. 24 of probe modes (P, N, N) [px]: 0.4 of the rms radius of their power."""
    power = (probes.real.astype(np.float64) ** 2 + probes.imag.astype(np.float64) ** 2).sum(axis=0)
    total = max(float(power.sum()), np.finfo(np.float64).tiny)
    variance = 0.0
    for axis in (0, 1):
        line, index = power.sum(axis=1 - axis), np.arange(power.shape[axis])
        middle = (line * index).sum() / total
        variance += float((line * (index - middle) ** 2).sum()) / total
    return SLOW_PHASE_SCALE * float(np.sqrt(variance))


def phase_gain(
    shape_yx: tuple[int, int], probes: Complex, count: int, least: float = 1.0, stiffness_px2: float = 0.0
) -> Real:
    r"""Return the gain (H, W) for a canvas, probe modes (P, N, N), and steps with one of ``count`` subsets.

    The slowest wave of the canvas is L px long, so no phase needs more than :math:`(L / 2 \pi a)^2`; a subset
    tells slow phases worse, by its number. A canvas that needs less than ``least`` gets none;
    ``stiffness_px2`` as in :func:`slow_phase_gain`.
    """
    scale = phase_scale_px(probes)
    most = (max(shape_yx) / max(2 * np.pi * scale, 1e-6)) ** 2
    most = max(1.0, min(most, MOST_PHASE_GAIN) / count) if most >= least else 1.0
    return slow_phase_gain(shape_yx, scale, most, stiffness_px2)


def slow_turn_rad(
    obj: Complex, previous: Complex, illumination: Real, scale_px: float, lit_share: float
) -> float:
    r"""Return the most that the slow phase of an object (H, W) turned since its previous iterate [rad], over
    pixels with at least ``lit_share`` of the strongest illumination (H, W), beside a turn of all of them.

    It is the angle of :math:`O\,\overline{O'}` after a Gaussian of a standard deviation of ``scale_px``, the
    length a of eq. 24; dim pixels weigh less in it.
    """
    from scipy.ndimage import gaussian_filter

    light = illumination / max(float(illumination.max()), np.finfo(np.float32).tiny)
    turn = obj * previous.conj() * np.minimum(light / lit_share, 1.0)
    slow = gaussian_filter(turn.real, scale_px) + 1j * gaussian_filter(turn.imag, scale_px)
    angle = np.abs(np.angle(slow * slow.sum().conj()))[light >= lit_share]
    return float(angle.max(initial=0.0))
