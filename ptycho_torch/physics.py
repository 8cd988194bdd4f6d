"""Forward model in PyTorch: the differentiable twin of ``ptycho.physics``.

Every public function is that of the reference with the same name: the same arguments in the same order, the
same shapes and units; arrays are tensors, corners and indices are int64 tensors, dtype and device follow the
input.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ptycho.errors import DataError
from ptycho.physics import FAR_FIELD, INTENSITY_FLOOR, SOFTENING, Detector
from ptycho.physics import centring_phase as _reference_phase
from ptycho.physics.background import ROOT_BIAS
from ptycho.physics.filling import FEWEST_WEIGHT, fill_spectrum


def centring_phase(
    n_px: int, dtype: torch.dtype = torch.complex128, device: torch.device | str = "cpu"
) -> Tensor:
    """As :func:`ptycho.physics.centring_phase`. ``dtype`` and ``device`` are those of the result."""
    return torch.from_numpy(_reference_phase(n_px)).to(dtype).to(device)


def far_field(exit_wave: Tensor) -> Tensor:
    phase = centring_phase(exit_wave.shape[-1], exit_wave.dtype, exit_wave.device)
    return torch.fft.fft2(exit_wave * phase, norm="ortho")


def far_field_adjoint(field: Tensor) -> Tensor:
    phase = centring_phase(field.shape[-1], field.dtype, field.device)
    return torch.fft.ifft2(field, norm="ortho") * phase.conj()


def near_field(exit_wave: Tensor, transfer: Tensor) -> Tensor:
    turned = (transfer[:, 0, :, None] * transfer[:, 1, None, :])[:, None]
    return torch.fft.ifft2(torch.fft.fft2(exit_wave) * turned)


def near_field_adjoint(field: Tensor, transfer: Tensor) -> Tensor:
    return near_field(field, transfer.conj())


def folded(waves: Tensor, windows: int) -> Tensor:
    if windows == 1:
        return waves
    n_px = waves.shape[-1] // windows
    return waves.unflatten(-1, (windows, n_px)).unflatten(-3, (windows, n_px)).sum(dim=(-4, -2))


def tiled(waves: Tensor, windows: int) -> Tensor:
    return waves if windows == 1 else waves.tile(windows, windows)


def propagate(exit_wave: Tensor, detector: Detector = FAR_FIELD) -> Tensor:
    if detector.transfer is not None:
        return near_field(exit_wave, detector.transfer)
    return far_field(folded(exit_wave, detector.windows))


def propagate_back(field: Tensor, detector: Detector = FAR_FIELD) -> Tensor:
    if detector.transfer is not None:
        return near_field_adjoint(field, detector.transfer)
    return tiled(far_field_adjoint(field), detector.windows)


def shift_field(field: Tensor, shifts_yx_px: Tensor) -> Tensor:
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
    """As :func:`ptycho.physics.patch_indices`. A compiled function trusts its plan."""
    height, width = shape_yx
    if not torch.compiler.is_compiling():
        low, high = corners_yx.amin(), (corners_yx.amax(0) + n_px).tolist()
        if low < 0 or high[0] > height or high[1] > width:
            raise DataError(
                f"canvas: patches fall outside the {height}x{width} px object (got corners from {int(low)} "
                f"and ends up to {high}, expected every patch inside). Plan the canvas from the same "
                "positions."
            )
    span = torch.arange(n_px, device=corners_yx.device)
    rows = corners_yx[:, 0, None] + span
    columns = corners_yx[:, 1, None] + span
    return rows[:, :, None] * width + columns[:, None, :]


def extract_patches(obj: Tensor, corners_yx: Tensor, n_px: int) -> Tensor:
    index = patch_indices(corners_yx, n_px, (obj.shape[-2], obj.shape[-1]))
    return torch.gather(obj.reshape(-1), 0, index.reshape(-1)).reshape(index.shape)


def place_patches(patches: Tensor, corners_yx: Tensor, shape_yx: tuple[int, int]) -> Tensor:
    index = patch_indices(corners_yx, patches.shape[-1], shape_yx)
    canvas = torch.zeros(shape_yx[0] * shape_yx[1], dtype=patches.dtype, device=patches.device)
    return canvas.scatter_add(0, index.reshape(-1), patches.reshape(-1)).reshape(shape_yx)


def _ramps(turns: Tensor) -> Tensor:
    """Return the factors of all parts on a patch, (K, K, M N, M N)."""
    along = turns.flatten(1)
    return along[:, None, :, None] * along[:, None, :] / len(turns)


def part_modes(modes: Tensor, turns: Tensor | None) -> Tensor:
    if turns is None:
        return modes
    return (modes[..., None, None, :, :] * _ramps(turns).to(modes)).flatten(-5, -3)


def part_modes_adjoint(parted: Tensor, turns: Tensor | None) -> Tensor:
    if turns is None:
        return parted
    count = len(turns)
    ramps = _ramps(turns).conj().to(parted)
    return (parted.unflatten(-3, (-1, count, count)) * ramps).sum(dim=(-4, -3))


def exit_waves(patches: Tensor, probes: Tensor) -> Tensor:
    if probes.shape[-2:] != patches.shape[-2:]:
        raise DataError(
            f"forward model: probe and patches differ in size (got {tuple(probes.shape[-2:])} and "
            f"{tuple(patches.shape[-2:])} px, expected the same). Crop or pad the probe to the pattern size."
        )
    return patches[:, None] * probes


def _mode_power(field: Tensor) -> Tensor:
    """Return the power (..., N, N) of all modes of a field (..., P, N, N)."""
    return (field.real**2 + field.imag**2).sum(dim=-3)


def diffracted_intensity(patches: Tensor, probes: Tensor, detector: Detector = FAR_FIELD) -> Tensor:
    return detector.counted(_mode_power(propagate(exit_waves(patches, probes), detector)))


def diffracted_amplitude(patches: Tensor, probes: Tensor, detector: Detector = FAR_FIELD) -> Tensor:
    return torch.sqrt(diffracted_intensity(patches, probes, detector) + INTENSITY_FLOOR)


def with_background(amplitude: Tensor, detector: Detector) -> Tensor:
    return amplitude if detector.background is None else torch.sqrt(detector.counted(amplitude**2))


def measured(amplitude: Tensor) -> Tensor:
    return amplitude >= 0


def measured_energy(amplitude: Tensor) -> Tensor:
    return amplitude.clamp(min=0).square().sum()


def filled_amplitude(amplitude: Tensor) -> Tensor:
    kept, n_px = measured(amplitude), amplitude.shape[-1]
    if bool(kept.all()):
        return amplitude
    spectrum = torch.from_numpy(fill_spectrum(n_px)).to(amplitude)

    def spread(values: Tensor) -> Tensor:
        return torch.fft.irfft2(torch.fft.rfft2(values) * spectrum, s=(n_px, n_px))

    near = spread(amplitude.clamp(min=0)) / spread(kept.to(amplitude.dtype)).clamp(min=FEWEST_WEIGHT)
    return torch.where(kept, amplitude, near.clamp(min=0))


def smoothed_amplitude(amplitude: Tensor, sigma_px: float) -> Tensor:
    n_px = amplitude.shape[-1]
    waves = (torch.arange(n_px, dtype=amplitude.dtype, device=amplitude.device) - n_px // 2) / n_px
    line = torch.exp(-2 * (torch.pi * sigma_px * waves) ** 2)
    return amplitude * line[:, None] * line


def illumination(probes: Tensor, corners_yx: Tensor, shape_yx: tuple[int, int]) -> Tensor:
    weight = _mode_power(probes)
    return place_patches(weight.expand(len(corners_yx), *weight.shape[-2:]), corners_yx, shape_yx)


def wave_residual(
    obj: Tensor, corners_yx: Tensor, probes: Tensor, amplitude: Tensor, detector: Detector = FAR_FIELD
) -> Tensor:
    patches = extract_patches(obj, corners_yx, probes.shape[-1])
    return unmatched_waves(exit_waves(patches, probes), amplitude, detector)


def unmatched_waves(waves: Tensor, amplitude: Tensor, detector: Detector = FAR_FIELD) -> Tensor:
    field = propagate(waves, detector)
    predicted = softened_amplitude(detector.counted(_mode_power(field)), amplitude)
    missed = torch.where(measured(amplitude), 1.0 - amplitude / predicted, 0.0)
    return propagate_back(field * missed[:, None], detector)


def mapped_waves(
    waves: Tensor | None, fitting: Tensor, amplitude: Tensor, detector: Detector = FAR_FIELD
) -> tuple[Tensor, Tensor]:
    missed = unmatched_waves(fitting if waves is None else 2 * fitting - waves, amplitude, detector)
    missed = missed / detector.windows**2
    return fitting - missed, missed


def softened_amplitude(intensity: Tensor, amplitude: Tensor) -> Tensor:
    return torch.sqrt((intensity + INTENSITY_FLOOR + SOFTENING**2 * amplitude**2) / (1 + SOFTENING**2))


def object_gradient(
    obj: Tensor, corners_yx: Tensor, probes: Tensor, amplitude: Tensor, detector: Detector = FAR_FIELD
) -> Tensor:
    residual = wave_residual(obj, corners_yx, probes, amplitude, detector)
    return place_patches((probes.conj() * residual).sum(dim=1), corners_yx, (obj.shape[-2], obj.shape[-1]))


def probe_gradient(patches: Tensor, residual: Tensor, shifts_yx_px: Tensor) -> Tensor:
    return shift_field(patches.conj()[:, None] * residual, -shifts_yx_px).sum(dim=0)


def varied_probes(probe: Tensor, modes: Tensor, weights: Tensor) -> Tensor:
    first = torch.einsum("jk,kyx->jyx", weights.to(modes.dtype), torch.cat([probe[:1], modes]))
    return torch.cat([first[:, None], probe[1:].expand(len(first), *probe[1:].shape)], dim=1)


def variation_gradient(
    patches: Tensor, residual: Tensor, shifts_yx_px: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor]:
    own = shift_field(patches.conj()[:, None] * residual[:, :1], -shifts_yx_px)[:, 0]
    power = patches.real**2 + patches.imag**2
    gradient = torch.einsum("jk,jyx->kyx", weights[:, 1:].to(own.dtype), own)
    return gradient, torch.einsum("jk,jyx->kyx", weights[:, 1:] ** 2, power)


def variation_equations(
    patches: Tensor,
    probes: Tensor,
    amplitude: Tensor,
    modes: Tensor,
    shifts_yx_px: Tensor,
    detector: Detector = FAR_FIELD,
) -> tuple[Tensor, Tensor]:
    field = propagate(exit_waves(patches, probes), detector)
    root, missed = root_residual(detector.counted(_mode_power(field)), amplitude)
    changes = part_modes(shift_field(modes, shifts_yx_px), detector.part_turns)
    moved = propagate(exit_waves(patches, changes), detector).unflatten(1, (len(modes), -1))
    first = field[:, None, : moved.shape[2]]
    along = (first.real * moved.real + first.imag * moved.imag).sum(dim=2) / root[:, None]
    basis = torch.where(measured(amplitude)[:, None], along, 0.0).flatten(2)
    return basis @ basis.transpose(1, 2), (basis @ missed.flatten(1)[:, :, None])[:, :, 0]


def amplitude_loss(predicted: Tensor, amplitude: Tensor) -> Tensor:
    missed = torch.where(measured(amplitude), predicted - amplitude, 0.0)
    return _per(missed**2, measured_energy(amplitude))


def mean_absolute_loss(predicted: Tensor, amplitude: Tensor) -> Tensor:
    missed = torch.where(measured(amplitude), predicted - amplitude, 0.0)
    return _per(missed.abs(), amplitude.clamp(min=0).sum())


def poisson_loss(predicted: Tensor, amplitude: Tensor) -> Tensor:
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
    return place_patches(patches * _mode_power(probes), corners_yx, shape_yx)


def count_quantum(amplitude: Tensor) -> Tensor:
    kept, counts = measured(amplitude), amplitude.clamp(min=0) ** 2
    mean = counts.sum(dim=(1, 2), keepdim=True) / kept.sum(dim=(1, 2), keepdim=True).clamp(min=1)
    return mean.clamp(min=INTENSITY_FLOOR, max=1.0)


def root_residual(intensity: Tensor, amplitude: Tensor) -> tuple[Tensor, Tensor]:
    kept, counts, unit = measured(amplitude), amplitude.clamp(min=0) ** 2, count_quantum(amplitude)
    root = torch.sqrt(intensity + unit / 4)
    return root, torch.where(kept, (torch.sqrt(counts) + torch.sqrt(counts + unit)) / 2 - root, 0.0)


def background_sums(
    intensity: Tensor, amplitude: Tensor, detector: Detector = FAR_FIELD, likelihood: str = "amplitude"
) -> tuple[Tensor, Tensor]:
    unit, expected = count_quantum(amplitude), detector.counted(intensity)
    weight = torch.where(measured(amplitude), 1 / (expected + unit), 0.0)
    excess = amplitude**2 - expected
    if likelihood == "amplitude":
        excess = excess - ROOT_BIAS * unit * intensity / (expected + INTENSITY_FLOOR)
    return (weight * excess).sum(dim=0), weight.sum(dim=0)


def frame_fits(intensity: Tensor, amplitude: Tensor, detector: Detector = FAR_FIELD) -> Tensor:
    kept, background = measured(amplitude), detector.background
    light = torch.where(kept, intensity + INTENSITY_FLOOR, 0.0)
    if background is None:
        seen, power = (torch.sqrt(light) * amplitude).sum(dim=(1, 2)), light.sum(dim=(1, 2))
    else:
        share = light / (light + background + INTENSITY_FLOOR)
        seen = (share * (amplitude**2 - background)).sum(dim=(1, 2)).clamp(min=0)
        power = (share * light).sum(dim=(1, 2))
    fit = seen / torch.where(power > 0, power, 1.0)
    return torch.where(power > 0, fit if background is None else torch.sqrt(fit), 1.0)


def object_slope(obj: Tensor, axis: int) -> Tensor:
    def ahead(by: int) -> Tensor:
        return torch.roll(obj, -by, dims=axis)

    return (8 * (ahead(1) - ahead(-1)) - (ahead(2) - ahead(-2))) / 12


def motion_equations(
    obj: Tensor,
    corners_yx: Tensor,
    probes: Tensor,
    amplitude: Tensor,
    detector: Detector = FAR_FIELD,
    *,
    strains: bool = False,
) -> tuple[Tensor, Tensor]:
    n_px, kept = probes.shape[-1], measured(amplitude)
    field = propagate(exit_waves(extract_patches(obj, corners_yx, n_px), probes), detector)
    root, missed = root_residual(detector.counted(_mode_power(field)), amplitude)
    slopes = [extract_patches(object_slope(obj, axis), corners_yx, n_px) for axis in (0, 1)]
    if strains:
        away = torch.arange(n_px, dtype=amplitude.dtype, device=amplitude.device) - (n_px - 1) / 2
        slopes += [along * slope for along in (away[:, None], away) for slope in slopes[:2]]
    parts = []
    for slope in slopes:
        moved = propagate(exit_waves(slope, probes), detector)
        along = (field.real * moved.real + field.imag * moved.imag).sum(dim=1) / root
        parts.append(torch.where(kept, along, 0.0).flatten(1))
    basis = torch.stack(parts, dim=1)
    return basis @ basis.transpose(1, 2), (basis @ missed.flatten(1)[:, :, None])[:, :, 0]
