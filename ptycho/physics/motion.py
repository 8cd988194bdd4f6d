"""How patterns tell that positions are wrong: least-squares equations of their motion (eq. 16, 23)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ptycho.physics.detector import FAR_FIELD, Detector
from ptycho.physics.filling import measured
from ptycho.physics.forward import INTENSITY_FLOOR, exit_waves, extract_patches
from ptycho.physics.propagation import Complex, Real, propagate


def count_quantum(amplitude: Real) -> Real:
    """Return what one photon is in the unit of every pattern, (J, 1, 1): 1, or its mean count where that is
    less, since patterns may come in units of less than a photon."""
    kept, counts = measured(amplitude), np.maximum(amplitude, 0) ** 2
    mean = counts.sum(axis=(1, 2), keepdims=True) / np.maximum(kept.sum(axis=(1, 2), keepdims=True), 1)
    return np.clip(mean, INTENSITY_FLOOR, 1.0)


def root_residual(intensity: Real, amplitude: Real) -> tuple[Real, Real]:
    r"""Return the root of the expected counts and what the measured ones exceed it by, (J, N, N).

    .. math:: \tilde A = \sqrt{I + u/4}, \quad
        e = m \left[(\sqrt{k} + \sqrt{k + u}) / 2 - \tilde A\right], \quad u = \min(1, \bar k)

    The plain root of a Poisson count is too small on average where hardly a photon falls, and a strain of the
    object can take that in. This one (Freeman and Tukey, Ann. Math. Stat. 21, 607 (1950)) is so by less than
    half: from one count on, its mean is above -0.05 and its variance about 1/4. ``intensity`` is
    [photons / pixel].
    """
    kept, counts, unit = measured(amplitude), np.maximum(amplitude, 0) ** 2, count_quantum(amplitude)
    root = np.sqrt(intensity + unit / 4)
    return root, np.where(kept, (np.sqrt(counts) + np.sqrt(counts + unit)) / 2 - root, 0)


def object_slope(obj: Complex, axis: int) -> Complex:
    """Return the derivative of an object (H, W) along an axis [transmission / px], by differences of fourth
    order; beyond its border the object goes on from the other side, where no light falls."""

    def ahead(by: int) -> Complex:
        return np.roll(obj, -by, axis=axis)

    return (8 * (ahead(1) - ahead(-1)) - (ahead(2) - ahead(-2))) / 12


def motion_equations(
    obj: Complex,
    corners_yx: NDArray[np.int64],
    probes: Complex,
    amplitude: Real,
    detector: Detector = FAR_FIELD,
    *,
    strains: bool = False,
) -> tuple[Real, Real]:
    r"""Return normal matrices (J, K, K) and right sides (J, K) of the motion of every pattern.

    .. math:: V_{j,a} = \sum_p \Re\left(\Psi_{j,p}^* F[P_{j,p}\,g_a]\right) / \tilde A_j, \quad
        N_{ab} = \sum m V_a V_b, \quad R_a = \sum e V_a

    With g the slopes of the object along y and x, :math:`N^{-1} R` is how far position j has to move [px].
    With ``strains`` four more follow: x_a d_b O in the order yy, yx, xy, xx, with the distance x [px] from
    the middle of the patch; K is then 6.
    """
    n_px, kept = probes.shape[-1], measured(amplitude)
    field = propagate(exit_waves(extract_patches(obj, corners_yx, n_px), probes), detector)
    root, missed = root_residual(detector.counted((field.real**2 + field.imag**2).sum(axis=1)), amplitude)
    slopes = [extract_patches(object_slope(obj, axis), corners_yx, n_px) for axis in (0, 1)]
    if strains:
        away = np.arange(n_px) - (n_px - 1) / 2
        slopes += [along * slope for along in (away[:, None], away) for slope in slopes[:2]]
    parts = []
    for slope in slopes:
        moved = propagate(exit_waves(slope, probes), detector)
        along = (field.real * moved.real + field.imag * moved.imag).sum(axis=1) / root
        parts.append(np.where(kept, along, 0).reshape(len(along), -1))
    basis = np.stack(parts, axis=1)
    right = (basis * missed.reshape(len(missed), 1, -1)).sum(axis=2)
    return basis @ basis.transpose(0, 2, 1), right
