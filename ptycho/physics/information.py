r"""What counts tell about an object: the Fisher information, and the smallest error it leaves (eq. 30, 31).

Counts are Poisson numbers, and the unknowns are real and imaginary part of every object pixel; probe,
positions and background are known. The matrix is never built: its product with a change of the object takes
one way to the detector and back. A phase of the whole object is not told by any count, and left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ptycho.physics.detector import FAR_FIELD, Detector
from ptycho.physics.filling import measured
from ptycho.physics.forward import INTENSITY_FLOOR, exit_waves, extract_patches, place_patches
from ptycho.physics.propagation import Complex, Real, propagate, propagate_back

SOLVE_STEPS = 100
"""Most steps of a solution with the Fisher matrix; 30 to 50 are usual."""
SOLVE_TOLERANCE = 1e-3
"""Residual, relative to the start, at which a solution for error bars ends."""
LIT_SHARE = 1e-3
"""Part of the strongest illumination below which a pixel is no unknown; it damps the steps of the others."""
ERROR_SAMPLES = 4
"""Draws of the noise that error bars are made from."""
SMOOTHED_PX = 4.0
"""Standard deviation of the Gaussian over which the variance relative to the simple one is averaged [px]."""
LIMIT_PIXELS, LIMIT_TOLERANCE = 20_000, 1e-2
"""Pixels that a photon limit is the mean over, of several draws of the noise if need be, and its residual."""
MOST_DRAWS = 10
LARGEST_PHASE_SIGMA_RAD = np.pi / np.sqrt(3)
"""That of a phase of which nothing is known."""


def count_score(
    obj: Complex,
    corners_yx: NDArray[np.int64],
    probes: Complex,
    amplitude: Real,
    detector: Detector = FAR_FIELD,
    *,
    change: Complex | None = None,
    noise: Real | None = None,
) -> Complex:
    r"""Return how the Poisson likelihood answers counts that are off, a canvas (H, W) [photons] (eq. 30).

    .. math:: s = J^T\left[\frac{m_j}{I_j}\left(J v + \sqrt{I_j}\,z_j\right)\right], \qquad
        J v = 2 \sum_p \mathrm{Re}\left(\Psi_{j,p}^*\,\mathcal{D}[P_{j,p} v_j]\right)

    With a ``change`` v (H, W) [transmission] of the object alone it is the product with the Fisher matrix,
    F v. With ``noise`` z (J, N, N), standard normal, alone it is a gradient as photon noise makes it, whose
    covariance is F. Of ``amplitude`` only counts what was measured.
    """
    n_px = probes.shape[-1]
    field = propagate(exit_waves(extract_patches(obj, corners_yx, n_px), probes), detector)
    expected = detector.counted((field.real**2 + field.imag**2).sum(axis=1)) + INTENSITY_FLOOR
    off: Any = 0.0
    if change is not None:
        moved = propagate(exit_waves(extract_patches(change, corners_yx, n_px), probes), detector)
        off = 2 * (field.real * moved.real + field.imag * moved.imag).sum(axis=1)
    if noise is not None:
        off = off + np.sqrt(expected) * noise
    missed = np.where(measured(amplitude), 2 * off / expected, 0)
    back = propagate_back(field * missed[:, None], detector)
    return place_patches((np.conj(probes) * back).sum(axis=1), corners_yx, obj.shape[-2:])


def lit_pixels(illumination: Real) -> NDArray[np.bool_]:
    """Return the pixels (H, W) that are unknowns: enough light fell on them."""
    return illumination > LIT_SHARE * illumination.max()


def fisher_solution(
    product: Callable[[Complex], Complex],
    gradient: Complex,
    illumination: Real,
    tolerance: float = SOLVE_TOLERANCE,
) -> Complex:
    """Solve F x = g for the lit pixels of a canvas (H, W), by conjugate gradients over the illumination.

    ``product`` is that with F of a change (H, W) [transmission]; g is a gradient [photons]. The solution ends
    at a residual of ``tolerance``, relative to the start. A direction that g does not have, such as the phase
    of the whole object, x does not have either.
    """
    lit = lit_pixels(illumination)
    # Twice the illumination is the information where every phase at the detector is as likely.
    scale = lit / (2 * (illumination + LIT_SHARE * illumination.max()))
    residual = np.where(lit, gradient, 0).astype(np.complex128)
    found, step = np.zeros_like(residual), scale * residual
    size = start = np.vdot(residual, step).real
    for _ in range(SOLVE_STEPS):
        if not size > tolerance**2 * start:
            break
        back = np.where(lit, product(step), 0)
        length = size / np.vdot(step, back).real
        found, residual = found + length * step, residual - length * back
        before, size = size, np.vdot(residual, scale * residual).real
        step = scale * residual + size / before * step
    return found


def without_phase(change: Complex, obj: Complex, illumination: Real) -> Complex:
    """Return a change (H, W) of an object less what a phase of the whole object makes of it, in least squares
    over the light."""
    along = (illumination * (np.conj(obj) * change).imag).sum()
    return change - 1j * obj * along / max((illumination * np.abs(obj) ** 2).sum(), 1e-30)


class ObjectErrors(NamedTuple):
    """One standard deviation of every object pixel, (H, W); nan where it is no unknown."""

    amplitude_sigma: NDArray[np.float32]  # [transmission]
    phase_sigma_rad: NDArray[np.float32]

    def scaled(self, factor: float) -> ObjectErrors:
        """Return the errors times a factor."""
        phase = np.minimum(self.phase_sigma_rad * factor, LARGEST_PHASE_SIGMA_RAD)
        return ObjectErrors(self.amplitude_sigma * np.float32(factor), phase.astype(np.float32))

    def cut(self, kept: tuple[slice, slice]) -> ObjectErrors:
        """Return the errors of a part of the canvas."""
        return ObjectErrors(self.amplitude_sigma[kept], self.phase_sigma_rad[kept])

    def nrmse(self, obj: Complex, mask: NDArray[np.bool_]) -> float:
        """Return the error of the object inside a mask (H, W), relative to its root mean square."""
        power = np.abs(obj[mask].astype(np.complex128)) ** 2
        variance = self.amplitude_sigma[mask].astype(np.float64) ** 2
        variance = variance + power * self.phase_sigma_rad[mask].astype(np.float64) ** 2
        return float(np.sqrt(np.nansum(variance) / max(power.sum(), 1e-30)))


def object_errors(obj: Complex, illumination: Real, samples: Iterable[Complex]) -> ObjectErrors:
    r"""Return standard deviations from changes (H, W) that photon noise makes of an object (eq. 31).

    .. math:: \sigma_A^2 = \frac{1}{W}\, G * \left\langle W\,
        \mathrm{Re}\left(x O^* / |O|\right)^2\right\rangle

    and :math:`|O|^2 \sigma_\varphi^2` alike with the imaginary part. The variance over the simple one changes
    slowly, so its mean over neighbours takes the place of many samples.
    """
    from scipy.ndimage import gaussian_filter

    lit, size = lit_pixels(illumination), np.maximum(np.abs(obj), 1e-12)
    along, across, count = np.zeros(obj.shape), np.zeros(obj.shape), 0
    for change in samples:
        turned = without_phase(change, obj, illumination) * np.conj(obj) / size
        along, across, count = along + turned.real**2, across + turned.imag**2, count + 1
    weight = gaussian_filter(lit.astype(np.float64), SMOOTHED_PX)

    def smooth(total: Real) -> Real:
        ratio = gaussian_filter(np.where(lit, illumination * total / count, 0.0), SMOOTHED_PX)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(lit, np.sqrt(ratio / weight / illumination), np.nan)

    phase = np.minimum(smooth(across) / size, LARGEST_PHASE_SIGMA_RAD)
    return ObjectErrors(smooth(along).astype(np.float32), phase.astype(np.float32))


def simple_limit(obj: Complex, illumination: Real, mask: NDArray[np.bool_]) -> float:
    r"""Return the error of an object inside a mask (H, W), relative to its root mean square, were all
    information of a far field used and every pixel for itself (eq. 30a).

    .. math:: \sqrt{\langle 1 / W\rangle / \langle |O|^2\rangle}
    """
    power = (np.abs(obj[mask]) ** 2).mean()
    return float(np.sqrt((1 / illumination[mask]).mean() / max(power, 1e-30)))


Score = Callable[[Complex | None, np.random.Generator | None], Complex]
"""The sum of :func:`count_score` over a scan, for a change or for noise from a generator, the other None."""


def noise_changes(
    score: Score, illumination: Real, count: int, tolerance: float = SOLVE_TOLERANCE
) -> Iterator[Complex]:
    """Yield so many changes (H, W) that photon noise makes of the object: of covariance F^-1 (eq. 31)."""
    for number in range(count):
        gradient = score(None, np.random.default_rng(number))
        yield fisher_solution(lambda change: score(change, None), gradient, illumination, tolerance)


class PhotonLimit(NamedTuple):
    """The smallest error of an object that photon noise leaves, relative to its root mean square."""

    nrmse: float  # from the Fisher information (eq. 30)
    simple: float  # every pixel for itself (eq. 30a)
    pixels: int  # over so many

    def line(self) -> str:
        """Say it in one line."""
        return (
            f"photon limit: NRMSE {self.nrmse:.4g} for any unbiased estimate (Cramer-Rao), simple form "
            f"{self.simple:.4g}, over {self.pixels} well-lit pixels"
        )


def photon_limit(obj: Complex, score: Score, illumination: Real, mask: NDArray[np.bool_]) -> PhotonLimit:
    """Return the photon limit of an object (H, W) inside a mask (H, W) of lit pixels."""
    total, count = 0.0, -(-LIMIT_PIXELS // max(int(mask.sum()), LIMIT_PIXELS // MOST_DRAWS))
    for change in noise_changes(score, illumination, count, LIMIT_TOLERANCE):
        error = without_phase(change, obj, illumination)[mask]
        total += np.vdot(error, error).real / count
    power = float((np.abs(obj[mask].astype(np.complex128)) ** 2).sum())
    nrmse = float(np.sqrt(total / max(power, 1e-30)))
    return PhotonLimit(nrmse, simple_limit(obj, illumination, mask), int(mask.sum()))
