"""Scores of a reconstruction against a known object; only ``score`` fits the gauge, before it scores.

Every other function compares what it is given, as it is. Axes: (y, x); phase in radians, lengths in pixels.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ptycho.errors import DataError
from ptycho.evaluation.gauge import Mask, checked_mask, fit_gauge, gauge_fit_region

FloatArray = NDArray[np.float64]
ComplexArray = NDArray[np.complexfloating[Any, Any]]

SSIM_WINDOW_PX = 7
ROUNDING = 1e-6  # of the amplitude, or in rad: a truth that varies less is constant in single precision
# Below this ratio of standard deviation to rms an image is rounding noise on a constant; and an image
# whose contrast is this small a fraction of its partner's has collapsed. Neither has rings to correlate.
FLAT_CONTRAST = 1e-3
COLLAPSED_CONTRAST_RATIO = 1e-2
HALF_BIT_SNR = np.sqrt(2) - 1  # log2(1 + s) = 1/2


class FRC(NamedTuple):
    """Fourier ring correlation of two images, one entry per ring (R,) from ring 1 to Nyquist."""

    frequency_cycles_per_px: FloatArray  # ring radius, at most 0.5
    correlation: FloatArray  # real part of the normalised correlation, in [-1, 1]
    half_bit: FloatArray  # threshold, for two noisy images or for one beside a known truth

    @property
    def resolution_px(self) -> float | None:
        """Full period [px] at the first crossing of the half-bit curve; None if it never crosses."""
        excess = self.correlation - self.half_bit
        below = np.flatnonzero(excess < 0)
        if below.size == 0:
            return None
        i, f = int(below[0]), self.frequency_cycles_per_px
        if i == 0:
            return float(1 / f[0])
        return float(1 / (f[i - 1] + (f[i] - f[i - 1]) * excess[i - 1] / (excess[i - 1] - excess[i])))


def _inside(
    where: str, obj: NDArray[Any], truth: NDArray[Any], mask: Mask
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the pixels of both images inside the mask, in double precision."""
    obj, truth = np.asarray(obj), np.asarray(truth)
    mask = checked_mask(where, obj, truth, mask)
    return obj[mask] * np.float64(1), truth[mask] * np.float64(1)


def _wrapped(phase_rad: NDArray[Any]) -> FloatArray:
    """Return the phase in [-pi, pi)."""
    return np.mod(phase_rad + np.pi, 2 * np.pi) - np.pi


def complex_nrmse(obj: NDArray[Any], truth: NDArray[Any], mask: Mask = None) -> float:
    r"""Return :math:`\|O - T\|_2 / \|T\|_2` inside the mask: 0 when perfect, 1 for an object of zeros.

    Both are complex (H, W) [transmission], in one gauge; without a mask (H, W) everything is compared.
    ``DataError`` where the arrays do not fit together, or the truth is zero inside the mask.
    """
    o, t = _inside("NRMSE", obj, truth, mask)
    norm = float(np.linalg.norm(t))
    if norm == 0:
        raise DataError(
            "NRMSE: the truth is zero inside the mask (got norm 0, expected > 0). "
            "Check the truth and the mask."
        )
    return float(np.linalg.norm(o - t)) / norm


def amplitude_mae(obj: NDArray[Any], truth: NDArray[Any], mask: Mask = None) -> float:
    """Return the mean absolute difference of the two amplitudes; arguments as in ``complex_nrmse``."""
    o, t = _inside("amplitude MAE", obj, truth, mask)
    return float(np.mean(np.abs(np.abs(o) - np.abs(t))))


def phase_mae(obj: NDArray[Any], truth: NDArray[Any], mask: Mask = None) -> float:
    """Return the mean absolute wrapped phase difference [rad]; arguments as in ``complex_nrmse``.

    A pixel that is 0 has phase 0, so that an object of zeros does not pass for a perfect phase.
    """
    o, t = _inside("phase MAE", obj, truth, mask)
    return float(np.mean(np.abs(_wrapped(np.angle(o) - np.angle(t)))))


def psnr(estimate: NDArray[Any], truth: NDArray[Any], mask: Mask = None) -> tuple[float, float]:
    r"""Return :math:`10 \log_{10}(R^2 / MSE)` [dB] of two real images (H, W), and the range R it used.

    R is the truth's max - min inside the mask. inf dB when the images are equal, nan dB when the truth is
    constant (R = 0). ``DataError`` where the arrays do not fit together.
    """
    e, t = _inside("PSNR", estimate, truth, mask)
    peak = float(np.ptp(t))
    mse = float(np.mean((e - t) ** 2))
    if peak == 0:
        return float("nan"), 0.0
    return (float("inf") if mse == 0 else 10 * float(np.log10(peak**2 / mse))), peak


def ssim(estimate: NDArray[Any], truth: NDArray[Any], mask: Mask = None) -> float:
    """Return the structural similarity, averaged over the 7 px windows that lie wholly inside the mask.

    At most 1; nan when the truth is constant. Arguments as :func:`psnr`; ``DataError`` where no window fits
    inside the mask.
    """
    from scipy.ndimage import binary_erosion
    from skimage.metrics import structural_similarity

    estimate, truth = np.asarray(estimate), np.asarray(truth)
    mask = checked_mask("SSIM", estimate, truth, mask)
    centres = binary_erosion(mask, np.ones((SSIM_WINDOW_PX, SSIM_WINDOW_PX)))
    if not centres.any():
        raise DataError(
            f"SSIM: no {SSIM_WINDOW_PX} x {SSIM_WINDOW_PX} px window fits inside the mask "
            f"(got {int(mask.sum())} pixels). Pass a larger region."
        )
    peak = float(np.ptp(truth[mask]))
    if peak == 0:
        return float("nan")
    e, t = (np.where(mask, image, 0).astype(np.float64) for image in (estimate, truth))
    _, similarity = structural_similarity(t, e, win_size=SSIM_WINDOW_PX, data_range=peak, full=True)
    return float(similarity[centres].mean())


def fourier_ring_correlation(a: NDArray[Any], b: NDArray[Any], *, known_truth: bool = False) -> FRC:
    r"""Return the Fourier ring correlation of two aligned images (H, W) under a Hann window.

    .. math:: FRC(q) = \frac{Re \sum A B^*}{\sqrt{\sum |A|^2 \sum |B|^2}}, \qquad
        T_{1/2}(q) = \frac{0.2071 + 1.9102 / \sqrt{n}}{1.2071 + 0.9102 / \sqrt{n}}

    over the n Fourier pixels of a ring one pixel wide. Both means are removed first: a shared constant is
    not agreement. The correlation is 0 in all rings when an image is nearly constant, or has less than 1 %
    of the other's contrast: the noise left in a collapsed image can correlate by accident.

    With ``known_truth``, ``b`` is free of noise. Half a bit per pixel is a signal-to-noise ratio of :math:`s
    = \sqrt 2 - 1` of the whole image. Each of two halves has s / 2, and they correlate by :math:`T_{1/2}`;
    the whole image and the truth correlate by :math:`T_1(q) = (\sqrt s + 1 / \sqrt n) / \sqrt{s + 1 + 2
    \sqrt{s / n}}`, which is 0.54 and not 0.17 in a large ring. Source: van Heel and Schatz, J. Struct. Biol.
    151, 250 (2005).

    ``DataError`` where shapes differ, a side is shorter than 8 px, or a pixel is not finite.
    """
    a, b = np.asarray(a), np.asarray(b)
    checked_mask("FRC", a, b, None)
    n = min(a.shape)
    if n < 8:
        raise DataError(
            f"FRC: the images are too small (got {a.shape}, expected sides >= 8 px). Pass a larger region."
        )
    tiny = np.finfo(float).tiny
    contrast = [float(image.std() / max(np.sqrt(np.mean(np.abs(image) ** 2)), tiny)) for image in (a, b)]
    window = np.hanning(a.shape[0] + 2)[1:-1, None] * np.hanning(a.shape[1] + 2)[1:-1]
    fa, fb = (np.fft.fft2((image - image.mean()) * window) for image in (a, b))
    radius = np.hypot(np.fft.fftfreq(a.shape[0])[:, None], np.fft.fftfreq(a.shape[1]))
    ring = np.rint(radius * n).astype(np.int64).ravel()

    def ring_sum(values: NDArray[Any]) -> FloatArray:
        return np.bincount(ring, values.ravel(), n // 2 + 1)[1 : n // 2 + 1]

    cross, power = ring_sum((fa * fb.conj()).real), ring_sum(np.abs(fa) ** 2) * ring_sum(np.abs(fb) ** 2)
    correlation = np.divide(cross, np.sqrt(power), out=np.zeros_like(cross), where=power > 0)
    if min(contrast) < max(FLAT_CONTRAST, COLLAPSED_CONTRAST_RATIO * max(contrast)):
        correlation = np.zeros_like(cross)
    root = np.sqrt(ring_sum(np.ones(ring.size)))
    half_bit = (0.2071 + 1.9102 / root) / (1.2071 + 0.9102 / root)
    if known_truth:
        snr = HALF_BIT_SNR
        half_bit = (np.sqrt(snr) + 1 / root) / np.sqrt(snr + 1 + 2 * np.sqrt(snr) / root)
    return FRC(np.arange(1, n // 2 + 1) / n, correlation, half_bit)


def _levelled(values: FloatArray, mask: NDArray[np.bool_], scale: float) -> FloatArray:
    """Return the map, exactly constant where it varies by rounding only: its range then is 0, not noise."""
    constant = np.ptp(values[mask]) <= ROUNDING * scale
    return np.full_like(values, values[mask].mean()) if constant else values


def score(obj: ComplexArray, truth: ComplexArray, mask: Mask = None) -> dict[str, float]:
    """Fit the gauge, then return the metrics of :func:`score_aligned`."""
    mask = checked_mask("score", obj, truth, mask)
    return score_aligned(fit_gauge(obj, truth, mask), truth, mask)


def score_aligned(
    aligned: ComplexArray, truth: ComplexArray, mask: Mask = None, *, known_truth: bool = True
) -> dict[str, float]:
    """Return every metric inside the mask for an object whose gauge is fitted already.

    Both objects are turned by the truth's mean phase, and the phase of the reconstruction is taken on the
    truth's branch (truth + wrapped difference), so that PSNR and SSIM of the phase see no wrap that only one
    of the two maps has.

    ``aligned`` (H, W) [transmission] is in the gauge of the known object ``truth``; without a mask (H, W) of
    the scanned region everything counts. ``known_truth`` is False for another reconstruction, as noisy as the
    first. The names are ``complex_nrmse``, ``amplitude_mae``, ``phase_mae_rad``, ``amplitude_psnr_db`` with
    ``amplitude_range``, ``phase_psnr_db`` with ``phase_range_rad``, ``amplitude_ssim``, ``phase_ssim``
    (ranges: the truth's, inside the mask) and ``frc_resolution_px``, the full period at the half-bit
    crossing, 2.0 (Nyquist) when the curves do not cross. PSNR is inf for equal images; PSNR and SSIM are nan
    where the truth is constant.
    """
    mask = checked_mask("score", aligned, truth, mask)
    aligned = aligned.astype(np.complex128)
    known = np.where(mask, truth, truth[mask].mean()).astype(np.complex128)
    aligned = np.where(mask, aligned, aligned[mask].mean())
    turn = np.exp(-1j * np.angle(known[mask].sum()))
    known, aligned = known * turn, aligned * turn
    amplitude = _levelled(np.abs(known), mask, float(np.abs(known).max()))
    phase = _levelled(np.angle(known), mask, 1.0)
    phase_estimate = phase + _wrapped(np.angle(aligned) - phase)
    amplitude_db, amplitude_range = psnr(np.abs(aligned), amplitude, mask)
    phase_db, phase_range = psnr(phase_estimate, phase, mask)
    region = gauge_fit_region(mask)
    rings = fourier_ring_correlation(aligned[region], known[region], known_truth=known_truth)
    resolution = rings.resolution_px
    return {
        "complex_nrmse": complex_nrmse(aligned, known, mask),
        "amplitude_mae": amplitude_mae(aligned, known, mask),
        "phase_mae_rad": phase_mae(aligned, known, mask),
        "amplitude_psnr_db": amplitude_db,
        "amplitude_range": amplitude_range,
        "phase_psnr_db": phase_db,
        "phase_range_rad": phase_range,
        "amplitude_ssim": ssim(np.abs(aligned), amplitude, mask),
        "phase_ssim": ssim(phase_estimate, phase, mask),
        "frc_resolution_px": 2.0 if resolution is None else resolution,
    }
