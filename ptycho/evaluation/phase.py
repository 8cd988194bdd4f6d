"""How a phase is shown: about its median, on request unwrapped, and without the ramp that data leave free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

ComplexArray = NDArray[np.complexfloating[Any, Any]]
FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

RAMP_FITS = 3
"""Times that the ramp is fitted: what wrapped in the first fit does not in the next."""


@dataclass(frozen=True)
class PhaseView:
    """What the picture of a phase shows; the object itself stays as it is."""

    limits_rad: tuple[float | None, float | None] = (None, None)  # ends of the colours; None: as the picture
    unwrap: bool = False  # without jumps of a full turn, inside what was scanned
    remove_ramp: bool = False  # without its plane

    def title(self, text: str) -> str:
        """Return a title that says how the phase is shown."""
        return text + ", unwrapped" * self.unwrap + ", without its ramp" * self.remove_ramp


def phase_ramp(obj: ComplexArray, weight: NDArray[Any]) -> FloatArray:
    r"""Return the ramp (y, x) [rad/px] of the phase of an object (H, W), whatever wraps there are.

    .. math:: \min_k \sum_r w(r) |\arg[O(r+e) O^*(r)] - k \cdot e|^2

    along each axis e, where w is the smaller ``weight`` (H, W) of two neighbours; 0 where there are none.
    Structure that ends inside the weighted region has no ramp.
    """
    found = np.zeros(2)
    for axis in (0, 1):
        values, weights = (np.moveaxis(np.asarray(array), axis, 0) for array in (obj, weight))
        pair = np.minimum(weights[1:], weights[:-1]).astype(np.float64)
        product = np.where(pair > 0, values[1:] * values[:-1].conj(), 0)
        total = pair.sum()
        if total == 0:
            continue
        slope = float(np.angle((pair * product).sum()))
        for _ in range(RAMP_FITS):
            slope += float((pair * np.angle(product * np.exp(-1j * slope))).sum() / total)
        found[axis] = slope
    return found


def without_ramp(obj: ComplexArray, ramp_yx: FloatArray) -> ComplexArray:
    """Return an object (H, W) without a phase ramp (y, x) [rad/px] about its middle."""
    turns = [
        np.exp(-1j * slope * (np.arange(n) - (n - 1) / 2))
        for slope, n in zip(ramp_yx, obj.shape, strict=True)
    ]
    return obj * turns[0][:, None] * turns[1]


def unwrapped(phase_rad: FloatArray, valid: BoolArray) -> FloatArray:
    """Return a phase (H, W) without jumps of a full turn between ``valid`` pixels; others are 0.

    Parts that do not touch may differ by full turns.
    """
    if min(phase_rad.shape) == 1:
        return np.where(valid, np.unwrap(phase_rad.ravel()).reshape(phase_rad.shape), 0.0)
    from skimage.restoration import unwrap_phase

    masked = np.ma.MaskedArray(np.where(valid, phase_rad, 0.0), ~valid)
    return np.asarray(np.ma.filled(unwrap_phase(masked, rng=0), 0.0), dtype=np.float64)


def shown_phase(
    obj: ComplexArray, valid: BoolArray, inside: BoolArray, weight: NDArray[Any], view: PhaseView
) -> FloatArray:
    """Return the phase [rad] of an object (H, W), centred on 0.

    ``valid`` pixels are shown, those ``inside`` decide what is 0, and with ``weight`` what is the ramp.
    """
    if view.remove_ramp:
        obj = without_ramp(obj, phase_ramp(obj, np.where(inside, weight, 0.0)))
    turned = obj * np.exp(-1j * np.angle(obj[inside].sum()))
    turned = turned * np.exp(-1j * np.median(np.angle(turned[inside])))
    if not view.unwrap:
        return np.angle(turned)
    phase = unwrapped(np.angle(turned), valid)
    return phase - np.median(phase[inside])
