"""How two pictures of one sample, of fields that overlap in part, lie to each other (specs/physics.md, 28).

Each is complex with a weight, 0 where nothing is known, on a canvas of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

CLEAR = 1.5
"""Evidence of the best place over that of the next from which it counts; two of noise differ by 1.2."""
CERTAIN = 0.99
"""Square of a correlation from which more of it is no further evidence for one place against another."""
LEAST_OVERLAP = 2.0
"""Spots that two pictures must share."""
STEPS = 12
"""Most Gauss-Newton steps to a fraction of a pixel."""


@dataclass(frozen=True)
class Picture:
    """A part of a sample."""

    obj: NDArray[np.complex64]  # (H, W) [transmission]
    weight: NDArray[np.floating]  # (H, W), 0 to 1
    origin_yx_px: NDArray[np.float64]  # (2,), object coordinate of pixel (0, 0)


@dataclass(frozen=True)
class Match:
    """How a picture lies to another one."""

    offset_yx_px: NDArray[np.float64]  # (2,), added to its coordinates they are those of the other [px]
    factor: float  # its amplitude over that of the other where both overlap
    correlation: float  # of their detail there, 0 to 1
    evidence: float  # of this place, :math:`-n\\,\\ln(1 - C^2)` (eq. 28)
    margin: float  # over the next best place

    @property
    def clear(self) -> bool:
        """Whether no other place is nearly as likely."""
        return self.margin >= CLEAR


def match(reference: Picture, other: Picture, spot_px: float) -> Match | None:
    """Find out how a picture lies to another; None where no place shares ``LEAST_OVERLAP`` spots.

    ``spot_px`` is the radius of the spot [px]: detail of its size and finer decides.
    """
    details = [_detail(picture, spot_px) for picture in (reference, other)]
    least = LEAST_OVERLAP * np.pi * spot_px**2
    weights = reference.weight.astype(np.float64), other.weight.astype(np.float64)
    evidence, correlation = _evidence(*details, *weights, least)
    if not evidence.any():
        return None
    peak = np.unravel_index(int(np.argmax(evidence)), evidence.shape)
    lag = np.array(peak) - np.array(other.obj.shape) + 1
    distance = np.hypot(*np.ogrid[tuple(slice(-p, n - p) for p, n in zip(peak, evidence.shape, strict=True))])
    # Two places that both fit to the last digit are not told apart by that digit.
    limited = evidence * np.minimum(1.0, np.log(1 - CERTAIN) / np.log1p(-(correlation**2).clip(CERTAIN)))
    second = float(limited[distance > max(spot_px, 2.0)].max(initial=0.0))
    found = float(limited[peak])
    exact = _exact_lag(*details, *weights, lag.astype(np.float64))
    return Match(
        offset_yx_px=np.asarray(reference.origin_yx_px, np.float64) - other.origin_yx_px + exact,
        factor=_factor(reference, other, exact),
        correlation=float(correlation[peak]),
        evidence=found,
        margin=found / max(second, 1e-30),
    )


def _detail(picture: Picture, spot_px: float) -> NDArray[np.complex128]:
    """Return a picture without what changes over more than a spot: a reconstruction learns that late."""
    from scipy.ndimage import gaussian_filter

    weight = picture.weight.astype(np.float64)
    obj, lit = np.where(weight > 0, picture.obj, 0).astype(np.complex128), weight > 0
    share = gaussian_filter(weight, spot_px, mode="constant")
    total = [gaussian_filter(part * weight, spot_px, mode="constant") for part in (obj.real, obj.imag)]
    slow = (total[0] + 1j * total[1]) / np.maximum(share, 1e-9)
    return np.where(lit, obj - slow, 0)


def _evidence(
    a: NDArray[Any], b: NDArray[Any], wa: NDArray[Any], wb: NDArray[Any], least: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return evidence and correlation of every lag of b against a; index 0 is minus the size of b, plus 1."""
    from scipy.fft import fft2, ifft2, next_fast_len

    shape = [x + y - 1 for x, y in zip(a.shape, b.shape, strict=True)]
    size = [next_fast_len(side) for side in shape]

    def correlate(x: NDArray[Any], y: NDArray[Any]) -> NDArray[Any]:
        # Sum over i of conj(x(i + lag)) y(i), as a product of transforms of the turned second picture.
        found = ifft2(fft2(np.conj(x), size) * fft2(y[::-1, ::-1], size))
        return found[: shape[0], : shape[1]]

    common = correlate(wa, wb).real
    mixed = np.abs(correlate(wa * a, wb * b)) ** 2
    own = correlate(wa * np.abs(a) ** 2, wb).real * correlate(wa, wb * np.abs(b) ** 2).real
    floor = 1e-9 * float(own.max(initial=0.0))
    square = np.where((common >= least) & (own > floor), mixed / np.maximum(own, max(floor, 1e-300)), 0.0)
    square = square.clip(0.0, 1.0 - 1e-9)
    return -common * np.log1p(-square), np.sqrt(square)


def _exact_lag(
    a: NDArray[Any], b: NDArray[Any], wa: NDArray[Any], wb: NDArray[Any], lag: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the lag (2,) [px] of the least squares of b(i) - c a(i + lag), with a factor c, near a lag."""
    from scipy.ndimage import map_coordinates, spline_filter

    rows = np.stack(np.nonzero(wb > 0))
    planes = [spline_filter(part, order=3) for part in (a.real, a.imag)]
    measured, own, start = b[tuple(rows)], wb[tuple(rows)], lag.copy()

    def at(place: NDArray[np.float64]) -> NDArray[np.complex128]:
        real, imag = (map_coordinates(plane, place, order=3, prefilter=False) for plane in planes)
        return real + 1j * imag

    for _ in range(STEPS):
        place = rows + lag[:, None]
        weight = own * map_coordinates(wa, place, order=1)
        value = at(place)
        factor = np.vdot(value * weight, measured) / max(float((weight * np.abs(value) ** 2).sum()), 1e-30)
        slopes = [factor * (at(place + step) - at(place - step)) for step in np.eye(2)[:, :, None] / 2]
        columns = np.stack([*slopes, factor * value, 1j * factor * value])
        normal = ((columns.conj() * weight) @ columns.T).real
        right = ((columns.conj() * weight) @ (measured - factor * value)).real
        step = np.linalg.lstsq(normal, right, rcond=None)[0][:2].clip(-0.5, 0.5)
        lag = lag + step
        if np.abs(step).max() < 1e-4 or np.abs(lag - start).max() > 2:
            break
    return lag if np.abs(lag - start).max() <= 2 else start


def _factor(reference: Picture, other: Picture, lag: NDArray[np.float64]) -> float:
    """Return the amplitude of a picture over that of the other, of rms values where they overlap."""
    whole = np.rint(lag).astype(int)
    start = np.maximum(0, -whole)
    stop = np.minimum(other.obj.shape, np.array(reference.obj.shape) - whole)
    mine = tuple(slice(int(low), int(high)) for low, high in zip(start, stop, strict=True))
    theirs = tuple(
        slice(int(low + move), int(high + move)) for low, high, move in zip(start, stop, whole, strict=True)
    )
    weight = reference.weight[theirs] * other.weight[mine]
    power = [float((weight * np.abs(obj) ** 2).sum()) for obj in (reference.obj[theirs], other.obj[mine])]
    return float(np.sqrt(power[1] / max(power[0], 1e-30)))
