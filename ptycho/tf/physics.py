"""Forward model in TensorFlow: the differentiable twin of ``ptycho.physics``.

Same names, same argument order, same shapes and units as the reference; arrays are tensors, dtype follows the
input. Every function works eagerly and inside ``tf.function``, which may not know the canvas size beforehand.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ptycho.errors import DataError
from ptycho.physics import FAR_FIELD, INTENSITY_FLOOR, SOFTENING, Detector
from ptycho.physics import centring_phase as _reference_phase
from ptycho.physics.background import ROOT_BIAS
from ptycho.physics.filling import FEWEST_WEIGHT, fill_spectrum
from ptycho.tf.physics_parts import folded, part_modes, tiled
from ptycho.tf.physics_parts import part_modes_adjoint as part_modes_adjoint
from ptycho.tf.runtime import Tensor, as_complex, tf

Shape = tuple[int, int] | Tensor
"""(H, W) of a canvas."""


def centring_phase(n_px: int, dtype: tf.DType = tf.complex128) -> Tensor:
    """As :func:`ptycho.physics.centring_phase`. ``dtype`` is a complex ``tf.DType``."""
    return tf.constant(_reference_phase(n_px, tf.as_dtype(dtype).as_numpy_dtype))


def far_field(exit_wave: Tensor) -> Tensor:
    """As :func:`ptycho.physics.far_field`."""
    n_px = exit_wave.shape[-1]
    # The factor of the unitary transform rides on the small phase array.
    phase = centring_phase(n_px, exit_wave.dtype) / n_px
    return tf.signal.fft2d(exit_wave * phase)


def far_field_adjoint(field: Tensor) -> Tensor:
    """As :func:`ptycho.physics.far_field_adjoint`."""
    n_px = field.shape[-1]
    return tf.signal.ifft2d(field) * (tf.math.conj(centring_phase(n_px, field.dtype)) * n_px)


def near_field(exit_wave: Tensor, transfer: Tensor) -> Tensor:
    """As :func:`ptycho.physics.near_field`."""
    turned = (transfer[:, 0, :, None] * transfer[:, 1, None, :])[:, None]
    return tf.signal.ifft2d(tf.signal.fft2d(exit_wave) * turned)


def near_field_adjoint(field: Tensor, transfer: Tensor) -> Tensor:
    """As :func:`ptycho.physics.near_field_adjoint`."""
    return near_field(field, tf.math.conj(transfer))


def propagate(exit_wave: Tensor, detector: Detector = FAR_FIELD) -> Tensor:
    """As :func:`ptycho.physics.propagate`."""
    if detector.transfer is not None:
        return near_field(exit_wave, detector.transfer)
    return far_field(folded(exit_wave, detector.windows))


def propagate_back(field: Tensor, detector: Detector = FAR_FIELD) -> Tensor:
    """As :func:`ptycho.physics.propagate_back`."""
    if detector.transfer is not None:
        return near_field_adjoint(field, detector.transfer)
    return tiled(far_field_adjoint(field), detector.windows)


def shift_field(field: Tensor, shifts_yx_px: Tensor) -> Tensor:
    """As :func:`ptycho.physics.shift_field`."""
    n_y, n_x = field.shape[-2:]
    shifts = tf.cast(shifts_yx_px, field.dtype.real_dtype)
    turns = shifts[:, 0, None, None] * _frequencies(n_y, shifts.dtype)[:, None]
    turns += shifts[:, 1, None, None] * _frequencies(n_x, shifts.dtype)
    angle = -2 * math.pi * turns
    phase = tf.complex(tf.cos(angle), tf.sin(angle))
    inner = len(field.shape) - 2 - (1 if len(field.shape) == 4 else 0)
    phase = tf.reshape(phase, (-1, *(1,) * inner, n_y, n_x))
    return tf.signal.ifft2d(tf.signal.fft2d(field) * phase)


def _frequencies(n_px: int, dtype: tf.DType) -> Tensor:
    """Return the FFT frequencies of an axis [cycles / px]."""
    index = [(k if k < (n_px + 1) // 2 else k - n_px) / n_px for k in range(n_px)]
    return tf.constant(index, dtype)


def patch_indices(corners_yx: Tensor, n_px: int, shape_yx: Shape) -> Tensor:
    """As :func:`ptycho.physics.patch_indices`. A compiled function trusts its plan."""
    return tf.cast(_indices(corners_yx, n_px, shape_yx), tf.int64)


def _indices(corners_yx: Tensor, n_px: int, shape_yx: Shape) -> Tensor:
    """Return the indices as int32, which gathers twice as fast; no canvas has 2^31 pixels."""
    if tf.executing_eagerly():
        height, width = (int(size) for size in shape_yx)
        stored = np.asarray(corners_yx)
        low, high = int(stored.min()), (stored.max(axis=0) + n_px).tolist()
        if low < 0 or high[0] > height or high[1] > width:
            raise DataError(
                f"canvas: patches fall outside the {height}x{width} px object (got corners from {low} and "
                f"ends up to {high}, expected every patch inside). Plan the canvas from the same positions."
            )
    corners = tf.cast(corners_yx, tf.int32)
    rows, columns = (corners[:, axis, None] + tf.range(n_px, dtype=tf.int32) for axis in (0, 1))
    return rows[:, :, None] * tf.cast(shape_yx[1], tf.int32) + columns[:, None, :]


@tf.custom_gradient
def _gathered(flat: Tensor, index: Tensor) -> tuple[Tensor, Callable[..., Any]]:
    """Read pixels; the gradient adds them back densely, without the sparse form that TensorFlow makes."""
    size = tf.size(flat)
    return tf.gather(flat, index), lambda upstream: (_added(upstream, index, size), None)


@tf.custom_gradient
def _added(values: Tensor, index: Tensor, size: Tensor) -> tuple[Tensor, Callable[..., Any]]:
    """Add pixels into zeros; the gradient reads them again."""
    total = tf.math.unsorted_segment_sum(values, index, size)
    return total, lambda upstream: (_gathered(upstream, index), None, None)


def extract_patches(obj: Tensor, corners_yx: Tensor, n_px: int) -> Tensor:
    """As :func:`ptycho.physics.extract_patches`."""
    return _gathered(tf.reshape(obj, [-1]), _indices(corners_yx, n_px, tf.shape(obj)[-2:]))


def place_patches(patches: Tensor, corners_yx: Tensor, shape_yx: Shape) -> Tensor:
    """As :func:`ptycho.physics.place_patches`."""
    index = _indices(corners_yx, patches.shape[-1], shape_yx)
    shape = tf.cast(tf.stack([shape_yx[0], shape_yx[1]]), tf.int32)
    return tf.reshape(_added(patches, index, shape[0] * shape[1]), shape)


def exit_waves(patches: Tensor, probes: Tensor) -> Tensor:
    """As :func:`ptycho.physics.exit_waves`. A leading axis of 1 serves every position."""
    if probes.shape[-2:] != patches.shape[-2:]:
        raise DataError(
            f"forward model: probe and patches differ in size (got {tuple(probes.shape[-2:])} and "
            f"{tuple(patches.shape[-2:])} px, expected the same). Crop or pad the probe to the pattern size."
        )
    return patches[:, None] * probes


def _intensity(field: Tensor) -> Tensor:
    """Return the squared modulus."""
    return tf.math.real(field) ** 2 + tf.math.imag(field) ** 2


def diffracted_intensity(patches: Tensor, probes: Tensor, detector: Detector = FAR_FIELD) -> Tensor:
    """As :func:`ptycho.physics.diffracted_intensity`."""
    field = propagate(exit_waves(patches, probes), detector)
    return detector.counted(tf.reduce_sum(_intensity(field), axis=1))


def diffracted_amplitude(patches: Tensor, probes: Tensor, detector: Detector = FAR_FIELD) -> Tensor:
    """As :func:`ptycho.physics.diffracted_amplitude`."""
    return tf.sqrt(diffracted_intensity(patches, probes, detector) + INTENSITY_FLOOR)


def with_background(amplitude: Tensor, detector: Detector) -> Tensor:
    """As :func:`ptycho.physics.with_background`."""
    return amplitude if detector.background is None else tf.sqrt(detector.counted(amplitude**2))


def measured(amplitude: Tensor) -> Tensor:
    """As :func:`ptycho.physics.measured`."""
    return amplitude >= 0


def measured_energy(amplitude: Tensor) -> Tensor:
    """As :func:`ptycho.physics.measured_energy`."""
    return tf.reduce_sum(tf.nn.relu(amplitude) ** 2)


def filled_amplitude(amplitude: Tensor) -> Tensor:
    """As :func:`ptycho.physics.filled_amplitude`."""
    kept = measured(amplitude)
    return tf.cond(tf.reduce_all(kept), lambda: amplitude, lambda: _filled(amplitude, kept))


def _filled(amplitude: Tensor, kept: Tensor) -> Tensor:
    n_px = amplitude.shape[-1]
    spectrum = as_complex(tf.constant(fill_spectrum(n_px), amplitude.dtype))

    def spread(values: Tensor) -> Tensor:
        return tf.signal.irfft2d(tf.signal.rfft2d(values) * spectrum, [n_px, n_px])

    weight = tf.maximum(spread(tf.cast(kept, amplitude.dtype)), FEWEST_WEIGHT)
    return tf.where(kept, amplitude, tf.nn.relu(spread(tf.nn.relu(amplitude)) / weight))


def smoothed_amplitude(amplitude: Tensor, sigma_px: float) -> Tensor:
    """As :func:`ptycho.physics.smoothed_amplitude`."""
    n_px = amplitude.shape[-1]
    waves = tf.constant((np.arange(n_px) - n_px // 2) / n_px, amplitude.dtype)
    line = tf.exp(-2 * (math.pi * sigma_px * waves) ** 2)
    return amplitude * line[:, None] * line


def illumination(probes: Tensor, corners_yx: Tensor, shape_yx: Shape) -> Tensor:
    """As :func:`ptycho.physics.illumination`."""
    weight = tf.reduce_sum(_intensity(probes), axis=-3)
    patches = tf.broadcast_to(weight, (tf.shape(corners_yx)[0], *weight.shape[-2:]))
    return place_patches(patches, corners_yx, shape_yx)


def wave_residual(
    obj: Tensor, corners_yx: Tensor, probes: Tensor, amplitude: Tensor, detector: Detector = FAR_FIELD
) -> Tensor:
    """As :func:`ptycho.physics.wave_residual`."""
    patches = extract_patches(obj, corners_yx, probes.shape[-1])
    return unmatched_waves(exit_waves(patches, probes), amplitude, detector)


def unmatched_waves(waves: Tensor, amplitude: Tensor, detector: Detector = FAR_FIELD) -> Tensor:
    """As :func:`ptycho.physics.unmatched_waves`."""
    field = propagate(waves, detector)
    predicted = softened_amplitude(detector.counted(tf.reduce_sum(_intensity(field), axis=1)), amplitude)
    missed = tf.where(measured(amplitude), 1.0 - amplitude / predicted, 0.0)
    return propagate_back(field * as_complex(missed)[:, None], detector)


def mapped_waves(
    waves: Tensor | None, fitting: Tensor, amplitude: Tensor, detector: Detector = FAR_FIELD
) -> tuple[Tensor, Tensor]:
    """As :func:`ptycho.physics.mapped_waves`."""
    missed = unmatched_waves(fitting if waves is None else 2 * fitting - waves, amplitude, detector)
    missed /= detector.windows**2
    return fitting - missed, missed


def softened_amplitude(intensity: Tensor, amplitude: Tensor) -> Tensor:
    """As :func:`ptycho.physics.softened_amplitude`."""
    return tf.sqrt((intensity + INTENSITY_FLOOR + SOFTENING**2 * amplitude**2) / (1 + SOFTENING**2))


def object_gradient(
    obj: Tensor, corners_yx: Tensor, probes: Tensor, amplitude: Tensor, detector: Detector = FAR_FIELD
) -> Tensor:
    """As :func:`ptycho.physics.object_gradient`."""
    residual = wave_residual(obj, corners_yx, probes, amplitude, detector)
    back = tf.reduce_sum(tf.math.conj(probes) * residual, axis=1)
    return place_patches(back, corners_yx, tf.shape(obj)[-2:])


def probe_gradient(patches: Tensor, residual: Tensor, shifts_yx_px: Tensor) -> Tensor:
    """As :func:`ptycho.physics.probe_gradient`."""
    return tf.reduce_sum(shift_field(tf.math.conj(patches)[:, None] * residual, -shifts_yx_px), axis=0)


def varied_probes(probe: Tensor, modes: Tensor, weights: Tensor) -> Tensor:
    """As :func:`ptycho.physics.varied_probes`."""
    first = tf.einsum("jk,kyx->jyx", as_complex(weights), tf.concat([probe[:1], modes], 0))
    rest = tf.repeat(probe[None, 1:], tf.shape(first)[0], axis=0)
    return tf.concat([first[:, None], rest], 1)


def variation_gradient(
    patches: Tensor, residual: Tensor, shifts_yx_px: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """As :func:`ptycho.physics.variation_gradient`."""
    own = shift_field(tf.math.conj(patches)[:, None] * residual[:, :1], -shifts_yx_px)[:, 0]
    gradient = tf.einsum("jk,jyx->kyx", as_complex(weights[:, 1:]), own)
    return gradient, tf.einsum("jk,jyx->kyx", weights[:, 1:] ** 2, _intensity(patches))


def variation_equations(
    patches: Tensor,
    probes: Tensor,
    amplitude: Tensor,
    modes: Tensor,
    shifts_yx_px: Tensor,
    detector: Detector = FAR_FIELD,
) -> tuple[Tensor, Tensor]:
    """As :func:`ptycho.physics.variation_equations`."""
    field = propagate(exit_waves(patches, probes), detector)
    root, missed = root_residual(detector.counted(tf.reduce_sum(_intensity(field), axis=1)), amplitude)
    changes = part_modes(shift_field(modes, shifts_yx_px), detector.part_turns)
    moved = propagate(exit_waves(patches, changes), detector)
    apart = tf.concat([tf.shape(moved)[:1], tf.shape(modes)[:1], [-1], tf.shape(moved)[2:]], 0)
    moved = tf.reshape(moved, apart)
    first = field[:, None, : tf.shape(moved)[2]]
    along = tf.reduce_sum(tf.math.real(tf.math.conj(first) * moved), axis=2) / root[:, None]
    along = tf.where(measured(amplitude)[:, None], along, 0.0)
    basis = tf.reshape(along, (tf.shape(along)[0], tf.shape(along)[1], amplitude.shape[-1] ** 2))
    flat = tf.reshape(missed, (tf.shape(missed)[0], amplitude.shape[-1] ** 2, 1))
    return tf.matmul(basis, basis, transpose_b=True), tf.matmul(basis, flat)[:, :, 0]


def amplitude_loss(predicted: Tensor, amplitude: Tensor) -> Tensor:
    """As :func:`ptycho.physics.amplitude_loss`."""
    missed = tf.where(measured(amplitude), predicted - amplitude, 0.0)
    return _per(missed**2, measured_energy(amplitude))


def mean_absolute_loss(predicted: Tensor, amplitude: Tensor) -> Tensor:
    """As :func:`ptycho.physics.mean_absolute_loss`."""
    missed = tf.where(measured(amplitude), predicted - amplitude, 0.0)
    return _per(tf.abs(missed), tf.reduce_sum(tf.nn.relu(amplitude)))


def poisson_loss(predicted: Tensor, amplitude: Tensor) -> Tensor:
    """As :func:`ptycho.physics.poisson_loss`."""
    expected = predicted**2 + INTENSITY_FLOOR
    counts = amplitude**2
    ratio = tf.math.log((counts + INTENSITY_FLOOR) / expected)
    deviance = tf.where(measured(amplitude), expected - counts + counts * ratio, 0.0)
    return _per(deviance, measured_energy(amplitude))


def _per(values: Tensor, total: Tensor) -> Tensor:
    """Return a sum per measured total; 0 where no photon was measured, which says nothing."""
    return tf.math.divide_no_nan(tf.reduce_sum(values), total)


def weighted_patches(patches: Tensor, corners_yx: Tensor, probes: Tensor, shape_yx: Shape) -> Tensor:
    """As :func:`ptycho.physics.weighted_patches`."""
    weight = as_complex(tf.reduce_sum(_intensity(probes), axis=-3))
    return place_patches(patches * weight, corners_yx, shape_yx)


def count_quantum(amplitude: Tensor) -> Tensor:
    """As :func:`ptycho.physics.count_quantum`."""
    kept, counts = measured(amplitude), tf.nn.relu(amplitude) ** 2
    seen = tf.reduce_sum(tf.cast(kept, counts.dtype), axis=(1, 2), keepdims=True)
    mean = tf.reduce_sum(counts, axis=(1, 2), keepdims=True) / tf.maximum(seen, 1.0)
    return tf.clip_by_value(mean, INTENSITY_FLOOR, 1.0)


def root_residual(intensity: Tensor, amplitude: Tensor) -> tuple[Tensor, Tensor]:
    """As :func:`ptycho.physics.root_residual`."""
    kept, counts, unit = measured(amplitude), tf.nn.relu(amplitude) ** 2, count_quantum(amplitude)
    root = tf.sqrt(intensity + unit / 4)
    return root, tf.where(kept, (tf.sqrt(counts) + tf.sqrt(counts + unit)) / 2 - root, 0.0)


def background_sums(
    intensity: Tensor, amplitude: Tensor, detector: Detector = FAR_FIELD, likelihood: str = "amplitude"
) -> tuple[Tensor, Tensor]:
    """As :func:`ptycho.physics.background_sums`."""
    unit, expected = count_quantum(amplitude), detector.counted(intensity)
    weight = tf.where(measured(amplitude), 1 / (expected + unit), 0.0)
    excess = amplitude**2 - expected
    if likelihood == "amplitude":
        excess -= ROOT_BIAS * unit * intensity / (expected + INTENSITY_FLOOR)
    return tf.reduce_sum(weight * excess, axis=0), tf.reduce_sum(weight, axis=0)


def frame_fits(intensity: Tensor, amplitude: Tensor, detector: Detector = FAR_FIELD) -> Tensor:
    """As :func:`ptycho.physics.frame_fits`."""
    kept, background = measured(amplitude), detector.background
    light = tf.where(kept, intensity + INTENSITY_FLOOR, 0.0)
    if background is None:
        seen, power = tf.reduce_sum(tf.sqrt(light) * amplitude, (1, 2)), tf.reduce_sum(light, (1, 2))
    else:
        share = light / (light + background + INTENSITY_FLOOR)
        seen = tf.nn.relu(tf.reduce_sum(share * (amplitude**2 - background), (1, 2)))
        power = tf.reduce_sum(share * light, (1, 2))
    fit = tf.math.divide_no_nan(seen, power)
    return tf.where(power > 0, fit if background is None else tf.sqrt(fit), 1.0)


def object_slope(obj: Tensor, axis: int) -> Tensor:
    """As :func:`ptycho.physics.object_slope`."""

    def ahead(by: int) -> Tensor:
        return tf.roll(obj, -by, axis)

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
    """As :func:`ptycho.physics.motion_equations`."""
    n_px, kept = probes.shape[-1], measured(amplitude)
    field = propagate(exit_waves(extract_patches(obj, corners_yx, n_px), probes), detector)
    root, missed = root_residual(detector.counted(tf.reduce_sum(_intensity(field), axis=1)), amplitude)
    slopes = [extract_patches(object_slope(obj, axis), corners_yx, n_px) for axis in (0, 1)]
    if strains:
        away = as_complex(tf.range(n_px, dtype=amplitude.dtype) - (n_px - 1) / 2)
        slopes += [along * slope for along in (away[:, None], away) for slope in slopes[:2]]
    flat, parts = (tf.shape(amplitude)[0], amplitude.shape[-1] ** 2), []
    for slope in slopes:
        moved = propagate(exit_waves(slope, probes), detector)
        along = tf.reduce_sum(tf.math.real(tf.math.conj(field) * moved), axis=1) / root
        parts.append(tf.reshape(tf.where(kept, along, 0.0), flat))
    basis = tf.stack(parts, axis=1)
    right = tf.matmul(basis, tf.reshape(missed, flat)[:, :, None])[:, :, 0]
    return tf.matmul(basis, basis, transpose_b=True), right
