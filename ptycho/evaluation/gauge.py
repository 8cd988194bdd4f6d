"""The gauge of ptychography: what the data leave free, fitted to a known object and removed.

A diffraction pattern fixes the object only up to a complex scale, a phase ramp (a probe that drifts in
reciprocal space) and a shift (a probe that sits off centre). Axes: (y, x); ramps in radians per pixel,
shifts in pixels.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ptycho.errors import DataError

FloatArray = NDArray[np.float64]
ComplexArray = NDArray[np.complexfloating[Any, Any]]
BoolArray = NDArray[np.bool_]
Mask = NDArray[Any] | None  # (H, W), the region that is compared; None is everything

SHIFT_UPSAMPLING = 50
EDGE_PAD_PX = 32
MAX_REFINEMENTS = 30


class GaugeFit(NamedTuple):
    """An object without its gauge, and the gauge that was removed."""

    obj: ComplexArray  # (H, W), aligned
    scale: complex  # factor that was applied
    ramp_yx_rad_per_px: FloatArray  # (2,), phase ramp that was taken out
    shift_yx_px: FloatArray  # (2,), displacement that was applied to the content

    def removed(self) -> dict[str, float]:
        """Return what was taken out before the scores, as numbers by name.

        ``gauge_scale`` is the factor on the modulus: 1 where the transmission is right as it is, below 1
        where the object was too bright.
        """
        return {
            "gauge_scale": abs(self.scale),
            "gauge_shift_y_px": float(self.shift_yx_px[0]),
            "gauge_shift_x_px": float(self.shift_yx_px[1]),
            "gauge_ramp_y_rad_per_px": float(self.ramp_yx_rad_per_px[0]),
            "gauge_ramp_x_rad_per_px": float(self.ramp_yx_rad_per_px[1]),
        }


class _Gauge(NamedTuple):
    """Ramp [rad/px] and shift [px] to remove; ``pad`` 0 shifts periodically, > 0 over a mirrored edge."""

    ramp_yx: FloatArray
    shift_yx: FloatArray
    pad: int


class _Fit(NamedTuple):
    """A gauge, the image after it, the scale that suits it best, and the squared error left."""

    image: NDArray[np.complex128]
    error: float
    scale: complex
    gauge: _Gauge


def checked_mask(where: str, obj: NDArray[Any], truth: NDArray[Any], mask: Mask) -> BoolArray:
    """Return the mask (H, W) as bool, all True for None, once it is known that images and mask fit together.

    ``where`` is the first word of a message. ``DataError`` where shapes differ, the mask is empty, or a
    pixel inside it is not finite.
    """
    if obj.ndim != 2 or obj.shape != truth.shape:
        raise DataError(
            f"{where}: the two images do not match (got shapes {obj.shape} and {truth.shape}, "
            "expected the same (H, W)). Crop both to the same region."
        )
    if mask is None:
        mask = np.ones(obj.shape, dtype=bool)
    if mask.shape != obj.shape:
        raise DataError(
            f"{where}: the mask does not match (got shape {mask.shape}, expected {obj.shape}). "
            "Crop the mask like the images."
        )
    mask = mask.astype(bool)
    if not mask.any():
        raise _empty(where, mask)
    for name, image in (("estimate", obj), ("truth", truth)):
        bad = int(np.count_nonzero(~np.isfinite(image[mask])))
        if bad:
            raise DataError(
                f"{where}: the {name} is not finite inside the mask (got {bad} such pixels, "
                "expected 0). Shrink the mask or repair the image."
            )
    return mask


def _empty(where: str, mask: NDArray[Any]) -> DataError:
    return DataError(
        f"{where}: the mask selects nothing (got 0 of {mask.size} pixels, expected >= 1). "
        "Pass the scanned region."
    )


def gauge_fit_region(mask: NDArray[Any]) -> tuple[slice, slice]:
    """Return the row and column slices of the bounding box of a mask (H, W); ``DataError`` where it is empty.

    >>> gauge_fit_region(np.eye(4, dtype=bool)[:, :3])
    (slice(0, 3, None), slice(0, 3, None))
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if rows.size == 0:
        raise _empty("gauge", mask)
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def _apply(obj: NDArray[Any], gauge: _Gauge) -> NDArray[np.complex128]:
    """Remove the ramp, then move the content by ``shift_yx``."""
    height, width = obj.shape
    ramp = [np.exp(-1j * k * (np.arange(n) - n // 2)) for k, n in zip(gauge.ramp_yx, obj.shape, strict=True)]
    flat = obj * ramp[0][:, None] * ramp[1]
    if not gauge.shift_yx.any():
        return flat
    mean = flat.mean()
    work = np.pad(flat - mean, gauge.pad, mode="symmetric")
    if gauge.pad:  # fades to zero, so that opposite edges meet without a step and nothing rings
        fade = np.sin(0.5 * np.pi * (np.arange(gauge.pad) + 0.5) / gauge.pad) ** 2
        work *= np.concatenate([fade, np.ones(height), fade[::-1]])[:, None]
        work *= np.concatenate([fade, np.ones(width), fade[::-1]])
    move = [
        np.exp(-2j * np.pi * np.fft.fftfreq(n) * s) for n, s in zip(work.shape, gauge.shift_yx, strict=True)
    ]
    moved = np.fft.ifft2(np.fft.fft2(work) * move[0][:, None] * move[1])
    return moved[gauge.pad : gauge.pad + height, gauge.pad : gauge.pad + width] + mean


def _scaled(obj: NDArray[Any], truth: NDArray[Any], mask: BoolArray, gauge: _Gauge) -> _Fit:
    """Apply a gauge and the complex scale that suits it best."""
    moved = _apply(obj, gauge)
    a, t = moved[mask], truth[mask]
    energy = float(np.vdot(a, a).real)
    scale = complex(np.vdot(a, t)) / energy if energy > 0 else 1.0 + 0j
    return _Fit(moved * scale, float(np.sum(np.abs(a * scale - t) ** 2)), scale, gauge)


def _shift_candidates(obj: NDArray[Any], truth: NDArray[Any], mask: BoolArray) -> list[FloatArray]:
    """Guess the shift from neighbour products o(r+1) o*(r), which a phase ramp only multiplies."""
    from skimage.registration import phase_cross_correlation

    region, guesses = gauge_fit_region(mask), [np.zeros(2)]
    for axis in (0, 1):
        maps = []
        for image in (truth[region], obj[region]):
            after, before = np.moveaxis(image, axis, 0)[1:], np.moveaxis(image, axis, 0)[:-1]
            both = np.moveaxis(mask[region], axis, 0)[1:] & np.moveaxis(mask[region], axis, 0)[:-1]
            product = after * before.conj()
            centred = np.where(both, product - product[both].mean(), 0) if both.any() else product * 0
            maps.append(np.moveaxis(centred, 0, axis))
        if all(np.abs(m).max(initial=0) > 0 for m in maps):
            guess, _, _ = phase_cross_correlation(*maps, upsample_factor=SHIFT_UPSAMPLING, normalization=None)
            guesses.append(np.asarray(guess, dtype=np.float64))
    return guesses


def _peak_ramp(obj: NDArray[Any], truth: NDArray[Any], mask: BoolArray) -> FloatArray:
    """Return the ramp [rad/px] at the Fourier peak of obj truth*, sampled twice as finely as the mask."""
    region = gauge_fit_region(mask)
    product = np.where(mask, obj * truth.conj(), 0)[region]
    shape = tuple(2 * n for n in product.shape)
    peak = np.unravel_index(int(np.argmax(np.abs(np.fft.fft2(product, shape)))), shape)
    return np.array([2 * np.pi * np.fft.fftfreq(n)[i] for n, i in zip(shape, peak, strict=True)])


def _newton_step(
    image: NDArray[Any], truth: NDArray[Any], mask: BoolArray, *, ramp: bool, shift: bool
) -> tuple[FloatArray, FloatArray]:
    """Return the least-squares change of (ramp, shift) when the error is linearised around ``image``."""
    a = image[mask]
    columns = [a, 1j * a]
    half = np.maximum(np.array(image.shape) / 2, 1)
    if ramp:
        columns += [
            -1j * a * (i - n // 2) / h for i, n, h in zip(np.nonzero(mask), image.shape, half, strict=True)
        ]
    if shift:
        columns += [-np.gradient(image, axis=axis)[mask] for axis in (0, 1)]
    basis = np.stack(columns)
    normal = (basis.conj() @ basis.T).real
    found = np.linalg.lstsq(normal, (basis.conj() @ (truth[mask] - a)).real, rcond=1e-12)[0][2:]
    d_ramp = found[:2] / half if ramp else np.zeros(2)
    return d_ramp, found[-2:] if shift else np.zeros(2)


def _refine(
    obj: NDArray[Any], truth: NDArray[Any], mask: BoolArray, gauge: _Gauge, *, ramp: bool, shift: bool
) -> _Fit:
    """Descend by damped Gauss-Newton steps; a step that does not lower the error is halved, then refused."""
    best = _scaled(obj, truth, mask, gauge)
    for _ in range(MAX_REFINEMENTS):
        d_ramp, d_shift = _newton_step(best.image, truth, mask, ramp=ramp, shift=shift)
        for fraction in (1.0, 0.5, 0.25, 0.125):
            step = best.gauge._replace(
                ramp_yx=best.gauge.ramp_yx + fraction * d_ramp,
                shift_yx=best.gauge.shift_yx + fraction * d_shift,
            )
            trial = _scaled(obj, truth, mask, step)
            if trial.error < best.error:
                break
        else:
            break
        gain, best = best.error - trial.error, trial
        if gain <= 1e-7 * best.error:
            break
    return best


def fit_gauge(
    obj: ComplexArray, truth: ComplexArray, mask: Mask = None, *, ramp: bool = True, shift: bool = True
) -> ComplexArray:
    """Return the object of :func:`solve_gauge` alone."""
    return solve_gauge(obj, truth, mask, ramp=ramp, shift=shift).obj


def solve_gauge(
    obj: ComplexArray, truth: ComplexArray, mask: Mask = None, *, ramp: bool = True, shift: bool = True
) -> GaugeFit:
    r"""Fit the ambiguities of ptychography to the truth (H, W), inside the mask, and remove them.

    .. math:: \min_{c, k, s} \sum_{r \in mask} |c\,S_s[e^{-i k \cdot r} O](r) - T(r)|^2

    where :math:`S_s` moves the content by a fraction of a pixel in Fourier space; without ``ramp`` k is 0,
    without ``shift`` s. The better of a periodic and a mirrored edge is kept; only pixels close to the
    array's edge know the difference. The shift brings pixels from outside the mask to its rim: leave the rim
    out where they are not object.

    The aligned object has the precision of ``obj``. Pixels that are not finite (outside the mask) come back
    as the mean of the region. ``DataError`` as :func:`checked_mask`.
    """
    mask = checked_mask("gauge", obj, truth, mask)
    o, t = (
        np.where(np.isfinite(image), image, image[mask].mean()).astype(np.complex128)
        for image in (obj, truth)
    )
    shift = shift and min(obj.shape) > 1
    trials = []
    for guess in _shift_candidates(o, t, mask) if shift else [np.zeros(2)]:
        moved = _apply(o, _Gauge(np.zeros(2), guess, 0))
        gauge = _Gauge(_peak_ramp(moved, t, mask) if ramp else np.zeros(2), guess, 0)
        trials.append(_scaled(o, t, mask, gauge))
    start = min(trials, key=lambda trial: trial.error).gauge
    pads = {0, min(EDGE_PAD_PX, *obj.shape)} if shift else {0}
    fits = [_refine(o, t, mask, start._replace(pad=pad), ramp=ramp, shift=shift) for pad in sorted(pads)]
    best = min(fits, key=lambda fit: fit.error)
    image = best.image.astype(np.result_type(obj.dtype, np.complex64))
    return GaugeFit(image, best.scale, best.gauge.ramp_yx, best.gauge.shift_yx)
