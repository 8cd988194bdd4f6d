"""Forward model: patches of the object, exit waves, expected counts, illumination of the canvas."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho.errors import DataError
from ptycho.physics.detector import FAR_FIELD, Detector
from ptycho.physics.pixel_parts import part_turns
from ptycho.physics.propagation import Complex, Real, far_field, folded, propagate

INTENSITY_FLOOR = 1e-8
"""Photons per pixel added under every square root and logarithm, to keep them finite; far below one count."""


def patch_indices(corners_yx: NDArray[np.int64], n_px: int, shape_yx: tuple[int, int]) -> NDArray[np.int64]:
    """Return the flat canvas index (J, N, N) of every pixel of every patch; nothing is dropped or wrapped.
    ``DataError`` where a patch reaches outside the canvas."""
    height, width = shape_yx
    corners = np.asarray(corners_yx, dtype=np.int64)
    outside = ((corners < 0) | (corners + n_px > shape_yx)).any(axis=1)
    if outside.any():
        first = int(np.flatnonzero(outside)[0])
        raise DataError(
            f"canvas: {int(outside.sum())} of {len(corners)} patches fall outside the {height}x{width} px "
            f"object (got patch {first} at corner y={corners[first, 0]}, x={corners[first, 1]}, expected "
            "every patch inside). Plan the canvas from the same positions."
        )
    rows, columns = corners.T[..., None] + np.arange(n_px)
    return rows[:, :, None] * width + columns[:, None, :]


def extract_patches(obj: Complex, corners_yx: NDArray[np.int64], n_px: int) -> Complex:
    r"""Cut one patch per scan position out of the object (eq. 3).

    .. math:: O_j(i, k) = O(y_j + i, x_j + k)
    """
    return obj.reshape(-1)[patch_indices(corners_yx, n_px, obj.shape[-2:])]


def place_patches(
    patches: NDArray[Any], corners_yx: NDArray[np.int64], shape_yx: tuple[int, int]
) -> NDArray[Any]:
    """Add patches, real or complex, into an empty canvas of their dtype (eq. 3): the adjoint of
    :func:`extract_patches`."""
    index = patch_indices(corners_yx, patches.shape[-1], shape_yx).reshape(-1)
    flat = patches.reshape(-1)
    size = shape_yx[0] * shape_yx[1]
    total = np.bincount(index, weights=flat.real, minlength=size).astype(patches.dtype)
    if np.iscomplexobj(patches):
        total = total + 1j * np.bincount(index, weights=flat.imag, minlength=size)
    return total.reshape(shape_yx).astype(patches.dtype, copy=False)


def exit_waves(patches: Complex, probes: Complex) -> Complex:
    r"""Return the wave behind the sample for every position and probe mode (eq. 1).

    .. math:: \psi_{j,p} = P_p(r - \delta_j)\, O_j

    The probes include the sub-pixel part of their positions. Waves are (J, P, N, N) [sqrt(photons)];
    ``DataError`` where probe and patches differ in N.
    """
    if probes.shape[-2:] != patches.shape[-2:]:
        raise DataError(
            f"forward model: probe and patches differ in size (got {probes.shape[-2:]} and "
            f"{patches.shape[-2:]} px, expected the same). Crop or pad the probe to the pattern size."
        )
    return patches[:, None] * probes


def diffracted_intensity(patches: Complex, probes: Complex, detector: Detector = FAR_FIELD) -> Real:
    r"""Return the expected counts (J, N, N) [photons / pixel] (eq. 5): probe modes add incoherently.

    .. math:: I_j = \sum_p |\mathcal{D}(P_p\,O_j)|^2

    The detector is in the far field, or with a ``transfer`` in the near field (eq. 2, 22); what it counts
    beside the light is added (eq. 25).
    """
    field = propagate(exit_waves(patches, probes), detector)
    return detector.counted((field.real**2 + field.imag**2).sum(axis=1))


def binned_intensity(patches: Complex, probes: Complex, upsampling: int, windows: int = 1) -> Real:
    r"""Return the expected counts (J, N, N) of pixels that add what falls on k x k parts of each (eq. 5b).

    .. math::

        I_j = \frac{1}{k^2} \sum_u \sum_p
        |\mathcal{F}_{\mathrm{ortho}}(e^{-2\pi i u \cdot r / N} P_p\,O_j)|^2

    This is the far field of a window k times as wide, around which nothing is lit. It is that of the modes
    of :func:`ptycho.physics.part_modes`, part by part, which takes less memory. Patches and probes are
    ``windows`` patterns wide, 1 to k.
    """
    if upsampling == 1:
        return diffracted_intensity(patches, probes)
    waves = exit_waves(patches, probes)
    n_px = waves.shape[-1] // windows
    turns = part_turns(n_px, upsampling, windows).reshape(upsampling, -1).astype(waves.dtype)
    total = np.zeros((len(waves), n_px, n_px), waves.real.dtype)
    for along_y in turns:
        for along_x in turns:
            field = far_field(folded(waves * (along_y[:, None] * along_x), windows))
            total += (field.real**2 + field.imag**2).sum(axis=1)
    return total / upsampling**2


def beam_counts(modes: Complex, n_px: int, detector: Detector = FAR_FIELD) -> Real:
    """Return the counts (N, N) [photons / pixel] of a beam (P, M N, M N) with nothing in its way; in the
    far field a detector pixel has as many parts as the patch is patterns wide (eq. 5b)."""
    modes = modes.astype(np.complex128)
    if (windows := modes.shape[-1] // n_px) == 1:
        return (np.abs(propagate(modes[None], detector)) ** 2).sum(axis=(0, 1))
    patches = np.ones((1, *modes.shape[-2:]), modes.dtype)
    return binned_intensity(patches, modes, windows, windows)[0]


def diffracted_amplitude(patches: Complex, probes: Complex, detector: Detector = FAR_FIELD) -> Real:
    r"""Return the expected amplitude, the root of :func:`diffracted_intensity` (eq. 6).

    .. math:: A_j = \sqrt{I_j + \epsilon}
    """
    return np.sqrt(diffracted_intensity(patches, probes, detector) + INTENSITY_FLOOR)


def with_background(amplitude: Real, detector: Detector) -> Real:
    r"""Return the expected amplitude (J, N, N) from that of the light alone, :math:`\sqrt{A^2 + b}` (eq. 25).

    It serves where a gain or a smoothing acts on the light before it is counted.
    """
    return amplitude if detector.background is None else np.sqrt(detector.counted(amplitude**2))


def smoothed_amplitude(amplitude: Real, sigma_px: float) -> Real:
    r"""Return the amplitude (..., N, N) behind an exit wave that is smoothed with a Gaussian (eq. 15).

    .. math:: A'(k) = A(k)\,e^{-2\pi^2\sigma^2 |k|^2}

    The standard deviation of the Gaussian is ``sigma_px`` >= 0 [object px].
    """
    n_px = amplitude.shape[-1]
    waves = (np.arange(n_px) - n_px // 2) / n_px
    line = np.exp(-2 * (np.pi * sigma_px * waves) ** 2).astype(amplitude.dtype)
    return amplitude * line[:, None] * line


def _modes_power(probes: Complex) -> Real:
    """Return the intensity of all modes, (N, N) or (J, N, N) [photons / pixel]."""
    return (probes.real**2 + probes.imag**2).sum(axis=-3)


def illumination(probes: Complex, corners_yx: NDArray[np.int64], shape_yx: tuple[int, int]) -> Real:
    r"""Return how many photons fell on every canvas pixel during the whole scan (eq. 8).

    .. math:: W(r) = \sum_j \sum_p |P_p(r - r_j)|^2
    """
    weight = _modes_power(probes)
    patches = np.broadcast_to(weight, (len(corners_yx), *weight.shape[-2:]))
    return place_patches(patches, corners_yx, shape_yx)


def weighted_patches(
    patches: Complex, corners_yx: NDArray[np.int64], probes: Complex, shape_yx: tuple[int, int]
) -> Complex:
    r"""Add patches into a canvas [photons / pixel], each weighted with the illumination it saw (eq. 12).

    .. math:: S(r) = \sum_j W_j(r - r_j)\,O_j(r - r_j), \quad W_j = \sum_p |P_p|^2

    Divided by :func:`illumination` it is the stitched object.
    """
    return place_patches(patches * _modes_power(probes), corners_yx, shape_yx)
