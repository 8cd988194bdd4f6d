"""Far-field forward model in PyTorch: the differentiable twin of ``ptycho.physics``.

Same names, same argument order, same shapes and units as the reference; arrays are tensors, corners and
indices are int64 tensors, dtype and device follow the input.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ptycho.errors import DataError
from ptycho.physics import INTENSITY_FLOOR, SOFTENING
from ptycho.physics import centring_phase as _reference_phase
from ptycho.physics.filling import FEWEST_WEIGHT, fill_spectrum


def centring_phase(
    n_px: int, dtype: torch.dtype = torch.complex128, device: torch.device | str = "cpu"
) -> Tensor:
    """Return the phase that moves the zero frequency of a following FFT to index ``N // 2`` (eq. 2).

    Parameters
    ----------
    n_px : int
        Pattern size N [px].
    dtype : torch.dtype
        Complex dtype of the result.
    device : torch.device or str
        Device of the result.

    Returns
    -------
    complex tensor, shape (N, N)
        Unit modulus.
    """
    return torch.from_numpy(_reference_phase(n_px)).to(dtype).to(device)


def far_field(exit_wave: Tensor) -> Tensor:
    """Propagate exit waves to the detector (eq. 2).

    Parameters
    ----------
    exit_wave : complex tensor, shape (..., N, N)
        Exit waves [sqrt(photons)].

    Returns
    -------
    complex tensor, shape (..., N, N)
        Far field [sqrt(photons)], zero frequency at ``N // 2``.
    """
    phase = centring_phase(exit_wave.shape[-1], exit_wave.dtype, exit_wave.device)
    return torch.fft.fft2(exit_wave * phase, norm="ortho")


def far_field_adjoint(field: Tensor) -> Tensor:
    """Propagate detector waves back to the sample: adjoint and inverse of :func:`far_field` (eq. 2).

    Parameters
    ----------
    field : complex tensor, shape (..., N, N)
        Far field [sqrt(photons)].

    Returns
    -------
    complex tensor, shape (..., N, N)
        Exit waves [sqrt(photons)].
    """
    phase = centring_phase(field.shape[-1], field.dtype, field.device)
    return torch.fft.ifft2(field, norm="ortho") * phase.conj()


def shift_field(field: Tensor, shifts_yx_px: Tensor) -> Tensor:
    """Move fields by fractions of a pixel with the Fourier shift theorem (eq. 4).

    Parameters
    ----------
    field : complex tensor, shape (N, N), (P, N, N) or (J, P, N, N)
        Fields that vanish towards the edge.
    shifts_yx_px : real tensor, shape (J, 2)
        Shift of each copy [px], towards +y, +x.

    Returns
    -------
    complex tensor, shape (J, ..., N, N)
        One shifted copy for each shift.
    """
    n_y, n_x = field.shape[-2:]
    shifts = shifts_yx_px.to(dtype=field.real.dtype, device=field.device)
    ky = torch.fft.fftfreq(n_y, dtype=shifts.dtype, device=field.device)
    kx = torch.fft.fftfreq(n_x, dtype=shifts.dtype, device=field.device)
    turns = shifts[:, 0, None, None] * ky[:, None] + shifts[:, 1, None, None] * kx
    phase = torch.polar(torch.ones_like(turns), -2 * torch.pi * turns)
    inner = field.ndim - 2 - (1 if field.ndim == 4 else 0)
    phase = phase.reshape(phase.shape[:1] + (1,) * inner + phase.shape[1:])
    return torch.fft.ifft2(torch.fft.fft2(field) * phase)


def patch_indices(corners_yx: Tensor, n_px: int, shape_yx: tuple[int, int]) -> Tensor:
    """Return the flat canvas index of every pixel of every patch (eq. 3).

    Parameters
    ----------
    corners_yx : int64 tensor, shape (J, 2)
        Canvas index of patch pixel (0, 0).
    n_px : int
        Patch size N [px].
    shape_yx : tuple of int
        Canvas shape (H, W) [px].

    Returns
    -------
    int64 tensor, shape (J, N, N)
        Index into the flattened canvas.

    Raises
    ------
    DataError
        If a patch reaches outside the canvas.
    """
    height, width = shape_yx
    if not torch.compiler.is_compiling():
        low, high = corners_yx.amin(), (corners_yx.amax(0) + n_px).tolist()
        if low < 0 or high[0] > height or high[1] > width:
            raise DataError(
                f"canvas: patches fall outside the {height}x{width} px object (got corners from {int(low)} "
                "and ends "
                f"up to {high}, expected every patch inside). Plan the canvas from the same positions."
            )
    span = torch.arange(n_px, device=corners_yx.device)
    rows = corners_yx[:, 0, None] + span
    columns = corners_yx[:, 1, None] + span
    return rows[:, :, None] * width + columns[:, None, :]


def extract_patches(obj: Tensor, corners_yx: Tensor, n_px: int) -> Tensor:
    """Cut one patch per scan position out of the object (eq. 3).

    Parameters
    ----------
    obj : complex tensor, shape (H, W)
        Object canvas.
    corners_yx : int64 tensor, shape (J, 2)
        Canvas index of patch pixel (0, 0).
    n_px : int
        Patch size N [px].

    Returns
    -------
    complex tensor, shape (J, N, N)
        Patches.
    """
    index = patch_indices(corners_yx, n_px, (obj.shape[-2], obj.shape[-1]))
    return torch.gather(obj.reshape(-1), 0, index.reshape(-1)).reshape(index.shape)


def place_patches(patches: Tensor, corners_yx: Tensor, shape_yx: tuple[int, int]) -> Tensor:
    """Add patches into an empty canvas: the adjoint of :func:`extract_patches` (eq. 3).

    Parameters
    ----------
    patches : tensor, shape (J, N, N)
        Patches, real or complex.
    corners_yx : int64 tensor, shape (J, 2)
        Canvas index of patch pixel (0, 0).
    shape_yx : tuple of int
        Canvas shape (H, W) [px].

    Returns
    -------
    tensor, shape (H, W)
        Sum of all patches at their places.
    """
    index = patch_indices(corners_yx, patches.shape[-1], shape_yx)
    canvas = torch.zeros(shape_yx[0] * shape_yx[1], dtype=patches.dtype, device=patches.device)
    return canvas.scatter_add(0, index.reshape(-1), patches.reshape(-1)).reshape(shape_yx)


def exit_waves(patches: Tensor, probes: Tensor) -> Tensor:
    """Return the wave behind the sample for every position and probe mode (eq. 1).

    Parameters
    ----------
    patches : complex tensor, shape (J, N, N)
        Object patches [transmission].
    probes : complex tensor, shape (P, N, N) or (J, P, N, N)
        Probe modes [sqrt(photons)].

    Returns
    -------
    complex tensor, shape (J, P, N, N)
        Exit waves [sqrt(photons)].

    Raises
    ------
    DataError
        If probe and patches differ in N.
    """
    if probes.shape[-2:] != patches.shape[-2:]:
        raise DataError(
            f"forward model: probe and patches differ in size (got {tuple(probes.shape[-2:])} and "
            f"{tuple(patches.shape[-2:])} px, expected the same). Crop or pad the probe to the pattern size."
        )
    return patches[:, None] * probes


def diffracted_intensity(patches: Tensor, probes: Tensor) -> Tensor:
    """Return the expected counts; probe modes add incoherently (eq. 5).

    Parameters
    ----------
    patches : complex tensor, shape (J, N, N)
        Object patches [transmission].
    probes : complex tensor, shape (P, N, N) or (J, P, N, N)
        Probe modes [sqrt(photons)].

    Returns
    -------
    real tensor, shape (J, N, N)
        Expected counts [photons / pixel], zero frequency at ``N // 2``.
    """
    field = far_field(exit_waves(patches, probes))
    return (field.real**2 + field.imag**2).sum(dim=1)


def diffracted_amplitude(patches: Tensor, probes: Tensor) -> Tensor:
    """Return the expected amplitude, the square root of the expected counts (eq. 6).

    Parameters
    ----------
    patches : complex tensor, shape (J, N, N)
        Object patches [transmission].
    probes : complex tensor, shape (P, N, N) or (J, P, N, N)
        Probe modes [sqrt(photons)].

    Returns
    -------
    real tensor, shape (J, N, N)
        Amplitude [sqrt(photons)], zero frequency at ``N // 2``.
    """
    return torch.sqrt(diffracted_intensity(patches, probes) + INTENSITY_FLOOR)


def measured(amplitude: Tensor) -> Tensor:
    """Return which pixels were measured; the others hold a negative amplitude and take no part (eq. 20).

    Parameters
    ----------
    amplitude : real tensor, any shape
        Measured amplitude [sqrt(photons)].

    Returns
    -------
    bool tensor, same shape
        False where nothing was measured.
    """
    return amplitude >= 0


def measured_energy(amplitude: Tensor) -> Tensor:
    """Return the photons on measured pixels (eq. 20).

    Parameters
    ----------
    amplitude : real tensor, any shape
        Measured amplitude [sqrt(photons)]; negative where nothing was measured.

    Returns
    -------
    real scalar tensor
        Photons.
    """
    return amplitude.clamp(min=0).square().sum()


def filled_amplitude(amplitude: Tensor) -> Tensor:
    """Return patterns whose unmeasured pixels continue their surroundings, for a network to look at (eq. 20).

    Parameters
    ----------
    amplitude : real tensor, shape (..., N, N)
        Measured amplitude [sqrt(photons)]; negative where nothing was measured.

    Returns
    -------
    real tensor, shape (..., N, N)
        The same, and >= 0; a pattern without any measured pixel is 0.
    """
    kept, n_px = measured(amplitude), amplitude.shape[-1]
    if bool(kept.all()):
        return amplitude
    spectrum = torch.from_numpy(fill_spectrum(n_px)).to(amplitude)

    def spread(values: Tensor) -> Tensor:
        return torch.fft.irfft2(torch.fft.rfft2(values) * spectrum, s=(n_px, n_px))

    near = spread(amplitude.clamp(min=0)) / spread(kept.to(amplitude.dtype)).clamp(min=FEWEST_WEIGHT)
    return torch.where(kept, amplitude, near.clamp(min=0))


def smoothed_amplitude(amplitude: Tensor, sigma_px: float) -> Tensor:
    """Return the amplitude behind an exit wave that is smoothed with a Gaussian (eq. 15).

    Parameters
    ----------
    amplitude : real tensor, shape (..., N, N)
        Amplitude without smoothing [sqrt(photons)], zero frequency at ``N // 2``.
    sigma_px : float
        Standard deviation of the Gaussian, >= 0 [object px].

    Returns
    -------
    real tensor, shape (..., N, N)
        Amplitude [sqrt(photons)].
    """
    n_px = amplitude.shape[-1]
    waves = (torch.arange(n_px, dtype=amplitude.dtype, device=amplitude.device) - n_px // 2) / n_px
    line = torch.exp(-2 * (torch.pi * sigma_px * waves) ** 2)
    return amplitude * line[:, None] * line


def illumination(probes: Tensor, corners_yx: Tensor, shape_yx: tuple[int, int]) -> Tensor:
    """Return how many photons per pixel fell on every canvas pixel during the whole scan (eq. 8).

    Parameters
    ----------
    probes : complex tensor, shape (P, N, N) or (J, P, N, N)
        Probe modes [sqrt(photons)].
    corners_yx : int64 tensor, shape (J, 2)
        Canvas index of patch pixel (0, 0).
    shape_yx : tuple of int
        Canvas shape (H, W) [px].

    Returns
    -------
    real tensor, shape (H, W)
        Photons per pixel.
    """
    weight = (probes.real**2 + probes.imag**2).sum(dim=-3)
    return place_patches(weight.expand(len(corners_yx), *weight.shape[-2:]), corners_yx, shape_yx)


def wave_residual(obj: Tensor, corners_yx: Tensor, probes: Tensor, amplitude: Tensor) -> Tensor:
    """Return by how much the exit waves miss the measured amplitude (eq. 9).

    Parameters
    ----------
    obj : complex tensor, shape (H, W)
        Object canvas [transmission].
    corners_yx : int64 tensor, shape (J, 2)
        Canvas index of patch pixel (0, 0).
    probes : complex tensor, shape (P, N, N) or (J, P, N, N)
        Probe modes [sqrt(photons)].
    amplitude : real tensor, shape (J, N, N)
        Measured amplitude [sqrt(photons)]; negative where nothing was measured.

    Returns
    -------
    complex tensor, shape (J, P, N, N)
        Residual of the exit waves [sqrt(photons)].
    """
    patches = extract_patches(obj, corners_yx, amplitude.shape[-1])
    field = far_field(exit_waves(patches, probes))
    predicted = softened_amplitude((field.real**2 + field.imag**2).sum(dim=1), amplitude)
    missed = torch.where(measured(amplitude), 1.0 - amplitude / predicted, 0.0)
    return far_field_adjoint(field * missed[:, None])


def softened_amplitude(intensity: Tensor, amplitude: Tensor) -> Tensor:
    """Return the expected amplitude, kept away from zero where light was measured (eq. 9).

    Parameters
    ----------
    intensity : real tensor, shape (J, N, N)
        Expected counts [photons / pixel].
    amplitude : real tensor, shape (J, N, N)
        Measured amplitude [sqrt(photons)].

    Returns
    -------
    real tensor, shape (J, N, N)
        Amplitude [sqrt(photons)]; equal to the measured one where the expected one is.
    """
    return torch.sqrt((intensity + INTENSITY_FLOOR + SOFTENING**2 * amplitude**2) / (1 + SOFTENING**2))


def object_gradient(obj: Tensor, corners_yx: Tensor, probes: Tensor, amplitude: Tensor) -> Tensor:
    """Return the Wirtinger gradient of the amplitude least squares with respect to the object (eq. 9).

    Parameters
    ----------
    obj : complex tensor, shape (H, W)
        Object canvas [transmission].
    corners_yx : int64 tensor, shape (J, 2)
        Canvas index of patch pixel (0, 0).
    probes : complex tensor, shape (P, N, N) or (J, P, N, N)
        Probe modes [sqrt(photons)].
    amplitude : real tensor, shape (J, N, N)
        Measured amplitude [sqrt(photons)].

    Returns
    -------
    complex tensor, shape (H, W)
        Gradient [photons].
    """
    residual = wave_residual(obj, corners_yx, probes, amplitude)
    return place_patches((probes.conj() * residual).sum(dim=1), corners_yx, (obj.shape[-2], obj.shape[-1]))


def probe_gradient(patches: Tensor, residual: Tensor, shifts_yx_px: Tensor) -> Tensor:
    """Return the Wirtinger gradient of the amplitude least squares with respect to the probe (eq. 13).

    Parameters
    ----------
    patches : complex tensor, shape (J, N, N)
        Object patches [transmission].
    residual : complex tensor, shape (J, P, N, N)
        Residual of the exit waves, from :func:`wave_residual` [sqrt(photons)].
    shifts_yx_px : real tensor, shape (J, 2)
        Sub-pixel shift that the probe of each position was moved by [px].

    Returns
    -------
    complex tensor, shape (P, N, N)
        Gradient [sqrt(photons)].
    """
    return shift_field(patches.conj()[:, None] * residual, -shifts_yx_px).sum(dim=0)


def amplitude_loss(predicted: Tensor, amplitude: Tensor) -> Tensor:
    """Return the amplitude misfit relative to the measured energy (eq. 7a).

    Parameters
    ----------
    predicted, amplitude : real tensor, shape (J, N, N)
        Expected and measured amplitude [sqrt(photons)].

    Returns
    -------
    real scalar tensor
        Dimensionless.
    """
    missed = torch.where(measured(amplitude), predicted - amplitude, 0.0)
    return _per(missed**2, measured_energy(amplitude))


def mean_absolute_loss(predicted: Tensor, amplitude: Tensor) -> Tensor:
    """Return the mean absolute amplitude error relative to the mean amplitude (eq. 7b).

    Parameters
    ----------
    predicted, amplitude : real tensor, shape (J, N, N)
        Expected and measured amplitude [sqrt(photons)].

    Returns
    -------
    real scalar tensor
        Dimensionless.
    """
    missed = torch.where(measured(amplitude), predicted - amplitude, 0.0)
    return _per(missed.abs(), amplitude.clamp(min=0).sum())


def poisson_loss(predicted: Tensor, amplitude: Tensor) -> Tensor:
    """Return the Poisson deviance per measured photon (eq. 7c).

    Parameters
    ----------
    predicted, amplitude : real tensor, shape (J, N, N)
        Expected and measured amplitude [sqrt(photons)].

    Returns
    -------
    real scalar tensor
        Dimensionless, >= 0.
    """
    expected = predicted**2 + INTENSITY_FLOOR
    counts = amplitude**2
    ratio = torch.log((counts + INTENSITY_FLOOR) / expected)
    deviance = torch.where(measured(amplitude), expected - counts + counts * ratio, 0.0)
    return _per(deviance, measured_energy(amplitude))


def _per(values: Tensor, total: Tensor) -> Tensor:
    """Return a sum per measured total; 0 where no photon was measured, which says nothing."""
    return values.sum() * (total > 0) / total.clamp(min=torch.finfo(total.dtype).tiny)


def weighted_patches(
    patches: Tensor, corners_yx: Tensor, probes: Tensor, shape_yx: tuple[int, int]
) -> Tensor:
    """Add patches into a canvas, each weighted with the light it saw (eq. 12).

    Parameters
    ----------
    patches : complex tensor, shape (J, N, N)
        Object patches on the canvas grid [transmission].
    corners_yx : int64 tensor, shape (J, 2)
        Canvas index of patch pixel (0, 0).
    probes : complex tensor, shape (P, N, N) or (J, P, N, N)
        Probe modes [sqrt(photons)].
    shape_yx : tuple of int
        Canvas shape (H, W) [px].

    Returns
    -------
    complex tensor, shape (H, W)
        Weighted sum [photons / pixel].
    """
    weight = (probes.real**2 + probes.imag**2).sum(dim=-3)
    return place_patches(patches * weight, corners_yx, shape_yx)
