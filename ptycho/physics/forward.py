"""Far-field forward model in NumPy: the reference that every backend is tested against.

Axes: patches and patterns are ``(..., N, N)``, the last two axes are (y, x). Probe modes are ``(P, N, N)``,
or ``(J, P, N, N)`` when every scan position has its own. Units: positions in object pixels, phase in radians,
probe in sqrt(photons), intensity in photons per pixel. Symbols and equation numbers follow
``specs/physics.md``. The dtype follows the input: complex128 in, float64 out.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho.errors import DataError
from ptycho.physics.filling import FEWEST_WEIGHT, fill_spectrum

Complex = NDArray[np.complexfloating[Any, Any]]
Real = NDArray[np.floating[Any]]

INTENSITY_FLOOR = 1e-8
"""Photons per pixel added under every square root and logarithm, to keep them finite; far below one count."""

SOFTENING = 0.03
"""Where the expected amplitude falls below this part of the measured one, the misfit is rounded off: there
the phase of the wave is rounding, and a gradient that follows it differs from one machine to the next."""


def centring_phase(n_px: int, dtype: Any = np.complex128) -> Complex:
    r"""Return the phase that moves the zero frequency of a following FFT to index ``N // 2``.

    .. math:: c(y, x) = \exp\left(2\pi i \lfloor N/2\rfloor (y + x) / N\right)

    Multiplying the small probe once replaces an ``fftshift`` of every pattern. For even N it is a
    chequerboard of exact +1 and -1.

    Parameters
    ----------
    n_px : int
        Pattern size N [px].
    dtype : complex dtype
        dtype of the result.

    Returns
    -------
    complex array, shape (N, N)
        Unit modulus.

    References
    ----------
    specs/physics.md, eq. 2.
    """
    index = np.arange(n_px)
    if n_px % 2 == 0:
        axis = (1.0 - 2.0 * (index % 2)).astype(np.complex128)
    else:
        axis = np.exp(2j * np.pi * (n_px // 2) * index / n_px)
    return np.multiply.outer(axis, axis).astype(dtype)


def far_field(exit_wave: Complex) -> Complex:
    r"""Propagate exit waves to the detector: the unitary Fourier transform, zero frequency at ``N // 2``.

    .. math:: \Psi = \mathcal{F}_{\mathrm{ortho}}(c\,\psi)

    Parameters
    ----------
    exit_wave : complex array, shape (..., N, N)
        Exit waves [sqrt(photons)].

    Returns
    -------
    complex array, shape (..., N, N)
        Far field [sqrt(photons)]; its sum of squares equals that of the input.

    References
    ----------
    specs/physics.md, eq. 2.
    """
    phase = centring_phase(exit_wave.shape[-1], exit_wave.dtype)
    return np.fft.fft2(exit_wave * phase, norm="ortho").astype(exit_wave.dtype, copy=False)


def far_field_adjoint(field: Complex) -> Complex:
    """Propagate detector waves back to the sample: the adjoint, and the inverse, of :func:`far_field`.

    Parameters
    ----------
    field : complex array, shape (..., N, N)
        Far field [sqrt(photons)], zero frequency at ``N // 2``.

    Returns
    -------
    complex array, shape (..., N, N)
        Exit waves [sqrt(photons)].

    References
    ----------
    specs/physics.md, eq. 2.
    """
    phase = centring_phase(field.shape[-1], field.dtype)
    return (np.fft.ifft2(field, norm="ortho") * np.conj(phase)).astype(field.dtype, copy=False)


def shift_field(field: Complex, shifts_yx_px: Real) -> Complex:
    r"""Move fields by fractions of a pixel with the Fourier shift theorem; content moves towards +y, +x.

    .. math:: f(r - \delta) = \mathcal{F}^{-1}\left[e^{-2\pi i\,k\cdot\delta}\,\mathcal{F}f\right]

    The Nyquist frequency of an even-sized axis is multiplied by the unit phase as well, so that a shift by
    :math:`-\delta` is the exact inverse and the exact adjoint.

    Parameters
    ----------
    field : complex array, shape (N, N), (P, N, N) or (J, P, N, N)
        Fields; the boundary is periodic, so they must vanish towards the edge.
    shifts_yx_px : real array, shape (J, 2)
        Shift of each copy [px].

    Returns
    -------
    complex array, shape (J, ..., N, N)
        One shifted copy (of the whole stack, or of entry j) for each shift.

    References
    ----------
    specs/physics.md, eq. 4.
    """
    n_y, n_x = field.shape[-2:]
    shifts = np.asarray(shifts_yx_px)
    phase_y = np.exp(-2j * np.pi * np.multiply.outer(shifts[:, 0], np.fft.fftfreq(n_y)))
    phase_x = np.exp(-2j * np.pi * np.multiply.outer(shifts[:, 1], np.fft.fftfreq(n_x)))
    phase = (phase_y[:, :, None] * phase_x[:, None, :]).astype(field.dtype)
    inner = field.ndim - 2 - (1 if field.ndim == 4 else 0)
    phase = phase.reshape(phase.shape[:1] + (1,) * inner + phase.shape[1:])
    return np.fft.ifft2(np.fft.fft2(field) * phase).astype(field.dtype, copy=False)


def patch_indices(corners_yx: NDArray[np.int64], n_px: int, shape_yx: tuple[int, int]) -> NDArray[np.int64]:
    """Return the flat canvas index of every pixel of every patch.

    Parameters
    ----------
    corners_yx : int array, shape (J, 2)
        Canvas index of patch pixel (0, 0).
    n_px : int
        Patch size N [px].
    shape_yx : tuple of int
        Canvas shape (H, W) [px].

    Returns
    -------
    int64 array, shape (J, N, N)
        Index into the flattened canvas.

    Raises
    ------
    DataError
        If a patch reaches outside the canvas: nothing is ever dropped or wrapped.
    """
    height, width = shape_yx
    corners = np.asarray(corners_yx, dtype=np.int64)
    outside = (corners < 0).any(axis=1) | (corners[:, 0] + n_px > height) | (corners[:, 1] + n_px > width)
    if outside.any():
        first = int(np.flatnonzero(outside)[0])
        raise DataError(
            f"canvas: {int(outside.sum())} of {len(corners)} patches fall outside the {height}x{width} px "
            "object "
            f"(got patch {first} at corner y={corners[first, 0]}, x={corners[first, 1]}, expected every "
            "patch inside). Plan the canvas from the same positions."
        )
    span = np.arange(n_px)
    rows = corners[:, 0, None] + span
    columns = corners[:, 1, None] + span
    return rows[:, :, None] * width + columns[:, None, :]


def extract_patches(obj: Complex, corners_yx: NDArray[np.int64], n_px: int) -> Complex:
    r"""Cut one patch per scan position out of the object.

    .. math:: O_j(i, k) = O(y_j + i, x_j + k)

    Parameters
    ----------
    obj : complex array, shape (H, W)
        Object canvas.
    corners_yx : int array, shape (J, 2)
        Canvas index of patch pixel (0, 0).
    n_px : int
        Patch size N [px].

    Returns
    -------
    complex array, shape (J, N, N)
        Patches.

    Raises
    ------
    DataError
        If a patch reaches outside the canvas.

    References
    ----------
    specs/physics.md, eq. 3.
    """
    return obj.reshape(-1)[patch_indices(corners_yx, n_px, obj.shape[-2:])]


def place_patches(
    patches: NDArray[Any], corners_yx: NDArray[np.int64], shape_yx: tuple[int, int]
) -> NDArray[Any]:
    """Add patches into an empty canvas: the adjoint of :func:`extract_patches`.

    Parameters
    ----------
    patches : array, shape (J, N, N)
        Patches, real or complex.
    corners_yx : int array, shape (J, 2)
        Canvas index of patch pixel (0, 0).
    shape_yx : tuple of int
        Canvas shape (H, W) [px].

    Returns
    -------
    array, shape (H, W)
        Sum of all patches at their places, in the dtype of the patches.

    Raises
    ------
    DataError
        If a patch reaches outside the canvas.

    References
    ----------
    specs/physics.md, eq. 3.
    """
    index = patch_indices(corners_yx, patches.shape[-1], shape_yx).reshape(-1)
    flat = patches.reshape(-1)
    size = shape_yx[0] * shape_yx[1]
    total = np.bincount(index, weights=flat.real, minlength=size).astype(patches.dtype)
    if np.iscomplexobj(patches):
        total = total + 1j * np.bincount(index, weights=flat.imag, minlength=size)
    return total.reshape(shape_yx).astype(patches.dtype, copy=False)


def exit_waves(patches: Complex, probes: Complex) -> Complex:
    r"""Return the wave behind the sample for every position and probe mode.

    .. math:: \psi_{j,p} = P_p(r - \delta_j)\, O_j

    Parameters
    ----------
    patches : complex array, shape (J, N, N)
        Object patches [transmission].
    probes : complex array, shape (P, N, N) or (J, P, N, N)
        Probe modes [sqrt(photons)], sub-pixel part of the position included.

    Returns
    -------
    complex array, shape (J, P, N, N)
        Exit waves [sqrt(photons)].

    Raises
    ------
    DataError
        If probe and patches differ in N.

    References
    ----------
    specs/physics.md, eq. 1.
    """
    if probes.shape[-2:] != patches.shape[-2:]:
        raise DataError(
            f"forward model: probe and patches differ in size (got {probes.shape[-2:]} and "
            f"{patches.shape[-2:]} px, expected the same). Crop or pad the probe to the pattern size."
        )
    return patches[:, None] * probes


def diffracted_intensity(patches: Complex, probes: Complex) -> Real:
    r"""Return the expected counts: probe modes add incoherently.

    .. math:: I_j = \sum_p |\mathcal{F}_{\mathrm{ortho}}(P_p\,O_j)|^2

    Parameters
    ----------
    patches : complex array, shape (J, N, N)
        Object patches [transmission].
    probes : complex array, shape (P, N, N) or (J, P, N, N)
        Probe modes [sqrt(photons)].

    Returns
    -------
    real array, shape (J, N, N)
        Expected counts [photons / pixel], zero frequency at ``N // 2``.

    Raises
    ------
    DataError
        If probe and patches differ in N.

    References
    ----------
    specs/physics.md, eq. 5.
    """
    field = far_field(exit_waves(patches, probes))
    return (field.real**2 + field.imag**2).sum(axis=1)


def diffracted_amplitude(patches: Complex, probes: Complex) -> Real:
    r"""Return the expected amplitude, the square root of the expected counts.

    .. math:: A_j = \sqrt{I_j + \epsilon}

    Parameters
    ----------
    patches : complex array, shape (J, N, N)
        Object patches [transmission].
    probes : complex array, shape (P, N, N) or (J, P, N, N)
        Probe modes [sqrt(photons)].

    Returns
    -------
    real array, shape (J, N, N)
        Amplitude [sqrt(photons)], zero frequency at ``N // 2``.

    Raises
    ------
    DataError
        If probe and patches differ in N.

    References
    ----------
    specs/physics.md, eq. 6.
    """
    return np.sqrt(diffracted_intensity(patches, probes) + INTENSITY_FLOOR)


def measured(amplitude: Real) -> NDArray[np.bool_]:
    """Return which pixels were measured; the others hold a negative amplitude and take no part in anything.

    Parameters
    ----------
    amplitude : real array, any shape
        Measured amplitude [sqrt(photons)].

    Returns
    -------
    bool array, same shape
        False where nothing was measured.

    References
    ----------
    specs/physics.md, eq. 20.
    """
    return amplitude >= 0


def measured_energy(amplitude: Real) -> Real:
    r"""Return the photons on measured pixels.

    .. math:: \sum m\,(A^{\mathrm{meas}})^2

    Parameters
    ----------
    amplitude : real array, any shape
        Measured amplitude [sqrt(photons)]; negative where nothing was measured.

    Returns
    -------
    real scalar
        Photons.

    References
    ----------
    specs/physics.md, eq. 20.
    """
    return (np.maximum(amplitude, 0) ** 2).sum()


def filled_amplitude(amplitude: Real) -> Real:
    r"""Return patterns whose unmeasured pixels continue their surroundings, for a network to look at.

    .. math:: A(k) = \sum_{k'} m(k')\,A(k')\,|k - k'|^{-4} / \sum_{k'} m(k')\,|k - k'|^{-4}

    Parameters
    ----------
    amplitude : real array, shape (..., N, N)
        Measured amplitude [sqrt(photons)]; negative where nothing was measured.

    Returns
    -------
    real array, shape (..., N, N)
        The same, and >= 0; a pattern without any measured pixel is 0.

    References
    ----------
    specs/physics.md, eq. 20.
    """
    kept, n_px = measured(amplitude), amplitude.shape[-1]
    if kept.all():
        return amplitude
    spectrum = fill_spectrum(n_px)

    def spread(values: Real) -> Real:
        return np.fft.irfft2(np.fft.rfft2(values) * spectrum, s=(n_px, n_px))

    near = spread(np.maximum(amplitude, 0)) / np.maximum(spread(kept.astype(float)), FEWEST_WEIGHT)
    return np.where(kept, amplitude, np.maximum(near, 0)).astype(amplitude.dtype, copy=False)


def smoothed_amplitude(amplitude: Real, sigma_px: float) -> Real:
    r"""Return the amplitude behind an exit wave that is smoothed with a Gaussian.

    .. math:: A'(k) = A(k)\,e^{-2\pi^2\sigma^2 |k|^2}

    Parameters
    ----------
    amplitude : real array, shape (..., N, N)
        Amplitude without smoothing [sqrt(photons)], zero frequency at ``N // 2``.
    sigma_px : float
        Standard deviation of the Gaussian, >= 0 [object px].

    Returns
    -------
    real array, shape (..., N, N)
        Amplitude [sqrt(photons)].

    References
    ----------
    specs/physics.md, eq. 15.
    """
    n_px = amplitude.shape[-1]
    waves = (np.arange(n_px) - n_px // 2) / n_px
    line = np.exp(-2 * (np.pi * sigma_px * waves) ** 2).astype(amplitude.dtype)
    return amplitude * line[:, None] * line


def illumination(probes: Complex, corners_yx: NDArray[np.int64], shape_yx: tuple[int, int]) -> Real:
    r"""Return how many photons per pixel fell on every canvas pixel during the whole scan.

    .. math:: W(r) = \sum_j \sum_p |P_p(r - r_j)|^2

    Parameters
    ----------
    probes : complex array, shape (P, N, N) or (J, P, N, N)
        Probe modes [sqrt(photons)].
    corners_yx : int array, shape (J, 2)
        Canvas index of patch pixel (0, 0).
    shape_yx : tuple of int
        Canvas shape (H, W) [px].

    Returns
    -------
    real array, shape (H, W)
        Photons per pixel.

    References
    ----------
    specs/physics.md, eq. 8.
    """
    weight = (probes.real**2 + probes.imag**2).sum(axis=-3)
    patches = np.broadcast_to(weight, (len(corners_yx), *weight.shape[-2:]))
    return place_patches(patches, corners_yx, shape_yx)


def wave_residual(obj: Complex, corners_yx: NDArray[np.int64], probes: Complex, amplitude: Real) -> Complex:
    r"""Return by how much the exit waves miss the measured amplitude.

    .. math:: \chi_{j,p} = \mathcal{F}^\dagger
        \left[m_j\,(1 - A_j^{\mathrm{meas}} / \tilde A_j)\,\Psi_{j,p}\right]

    Parameters
    ----------
    obj : complex array, shape (H, W)
        Object canvas [transmission].
    corners_yx : int array, shape (J, 2)
        Canvas index of patch pixel (0, 0).
    probes : complex array, shape (P, N, N) or (J, P, N, N)
        Probe modes [sqrt(photons)].
    amplitude : real array, shape (J, N, N)
        Measured amplitude [sqrt(photons)], zero frequency at ``N // 2``; negative where nothing was measured.

    Returns
    -------
    complex array, shape (J, P, N, N)
        Residual of the exit waves [sqrt(photons)]; its energy is the squared amplitude misfit,
        except where hardly any light was expected.

    References
    ----------
    specs/physics.md, eq. 9.
    """
    patches = extract_patches(obj, corners_yx, amplitude.shape[-1])
    field = far_field(exit_waves(patches, probes))
    predicted = softened_amplitude((field.real**2 + field.imag**2).sum(axis=1), amplitude)
    missed = np.where(measured(amplitude), 1 - amplitude / predicted, 0)
    return far_field_adjoint(field * missed[:, None])


def softened_amplitude(intensity: Real, amplitude: Real) -> Real:
    r"""Return the expected amplitude, kept away from zero where light was measured.

    .. math:: \tilde A^2 = (I + \epsilon + \sigma^2 (A^{\mathrm{meas}})^2) / (1 + \sigma^2)

    Parameters
    ----------
    intensity : real array, shape (J, N, N)
        Expected counts [photons / pixel].
    amplitude : real array, shape (J, N, N)
        Measured amplitude [sqrt(photons)].

    Returns
    -------
    real array, shape (J, N, N)
        Amplitude [sqrt(photons)]; equal to the measured one where the expected one is.

    References
    ----------
    specs/physics.md, eq. 9.
    """
    return np.sqrt((intensity + INTENSITY_FLOOR + SOFTENING**2 * amplitude**2) / (1 + SOFTENING**2))


def object_gradient(obj: Complex, corners_yx: NDArray[np.int64], probes: Complex, amplitude: Real) -> Complex:
    r"""Return the Wirtinger gradient of the amplitude least squares with respect to the object.

    .. math:: g(r) = \sum_j \sum_p P_p^*(r - r_j)\,\chi_{j,p}

    Parameters
    ----------
    obj : complex array, shape (H, W)
        Object canvas [transmission].
    corners_yx : int array, shape (J, 2)
        Canvas index of patch pixel (0, 0).
    probes : complex array, shape (P, N, N) or (J, P, N, N)
        Probe modes [sqrt(photons)].
    amplitude : real array, shape (J, N, N)
        Measured amplitude [sqrt(photons)], zero frequency at ``N // 2``.

    Returns
    -------
    complex array, shape (H, W)
        Gradient [photons]; divided by :func:`illumination` it is a step in units of the object.

    References
    ----------
    specs/physics.md, eq. 9.
    """
    residual = wave_residual(obj, corners_yx, probes, amplitude)
    return place_patches((np.conj(probes) * residual).sum(axis=1), corners_yx, obj.shape[-2:])


def probe_gradient(patches: Complex, residual: Complex, shifts_yx_px: Real) -> Complex:
    r"""Return the Wirtinger gradient of the amplitude least squares with respect to the probe.

    .. math:: h_p(r) = \sum_j \left(O_j^*\,\chi_{j,p}\right)(r + \delta_j)

    Parameters
    ----------
    patches : complex array, shape (J, N, N)
        Object patches [transmission].
    residual : complex array, shape (J, P, N, N)
        Residual of the exit waves, from :func:`wave_residual` [sqrt(photons)].
    shifts_yx_px : real array, shape (J, 2)
        Sub-pixel shift that the probe of each position was moved by [px].

    Returns
    -------
    complex array, shape (P, N, N)
        Gradient [sqrt(photons)].

    References
    ----------
    specs/physics.md, eq. 13.
    """
    return shift_field(np.conj(patches)[:, None] * residual, -np.asarray(shifts_yx_px)).sum(axis=0)


def amplitude_loss(predicted: Real, amplitude: Real) -> Real:
    r"""Return the amplitude misfit relative to the measured energy, free of any scale.

    .. math:: L_A = \sum (A - A^{\mathrm{meas}})^2 / \sum (A^{\mathrm{meas}})^2

    Parameters
    ----------
    predicted, amplitude : real array, shape (J, N, N)
        Expected and measured amplitude [sqrt(photons)].

    Returns
    -------
    real scalar
        Dimensionless, 0 for a perfect fit.

    References
    ----------
    specs/physics.md, eq. 7a.
    """
    missed = np.where(measured(amplitude), predicted - amplitude, 0)
    return _per(missed**2, measured_energy(amplitude))


def mean_absolute_loss(predicted: Real, amplitude: Real) -> Real:
    r"""Return the mean absolute amplitude error relative to the mean measured amplitude.

    .. math:: L_1 = \sum |A - A^{\mathrm{meas}}| / \sum A^{\mathrm{meas}}

    Parameters
    ----------
    predicted, amplitude : real array, shape (J, N, N)
        Expected and measured amplitude [sqrt(photons)].

    Returns
    -------
    real scalar
        Dimensionless.

    References
    ----------
    specs/physics.md, eq. 7b.
    """
    missed = np.where(measured(amplitude), predicted - amplitude, 0)
    return _per(abs(missed), np.maximum(amplitude, 0).sum())


def poisson_loss(predicted: Real, amplitude: Real) -> Real:
    r"""Return the Poisson deviance per measured photon.

    .. math:: L_P = \sum \left[I - k + k \ln(k / I)\right] / \sum k, \quad k = (A^{\mathrm{meas}})^2

    It is the negative log-likelihood less its value for a perfect fit, so it has the gradient of the
    likelihood and is 0 where the model explains every count.

    Parameters
    ----------
    predicted, amplitude : real array, shape (J, N, N)
        Expected and measured amplitude [sqrt(photons)].

    Returns
    -------
    real scalar
        Dimensionless, >= 0.

    References
    ----------
    specs/physics.md, eq. 7c.
    """
    expected = predicted**2 + INTENSITY_FLOOR
    counts = amplitude**2
    ratio = np.log((counts + INTENSITY_FLOOR) / expected)
    deviance = np.where(measured(amplitude), expected - counts + counts * ratio, 0)
    return _per(deviance, measured_energy(amplitude))


def _per(values: Real, total: Real) -> Real:
    """Return a sum per measured total; 0 where no photon was measured, which says nothing."""
    return values.sum() / total if total > 0 else 0 * total


def weighted_patches(
    patches: Complex, corners_yx: NDArray[np.int64], probes: Complex, shape_yx: tuple[int, int]
) -> Complex:
    r"""Add patches into a canvas, each weighted with the light it saw.

    .. math:: S(r) = \sum_j W_j(r - r_j)\,O_j(r - r_j), \quad W_j = \sum_p |P_p|^2

    Divided by :func:`illumination` it is the stitched object.

    Parameters
    ----------
    patches : complex array, shape (J, N, N)
        Object patches on the canvas grid [transmission].
    corners_yx : int array, shape (J, 2)
        Canvas index of patch pixel (0, 0).
    probes : complex array, shape (P, N, N) or (J, P, N, N)
        Probe modes [sqrt(photons)].
    shape_yx : tuple of int
        Canvas shape (H, W) [px].

    Returns
    -------
    complex array, shape (H, W)
        Weighted sum [photons / pixel].

    References
    ----------
    specs/physics.md, eq. 12.
    """
    weight = (probes.real**2 + probes.imag**2).sum(axis=-3)
    return place_patches(patches * weight, corners_yx, shape_yx)
