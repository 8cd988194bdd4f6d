"""The primitives of the solver on TensorFlow tensors, and the pieces of a learned step.

What is computed, and why, is written at ``ptycho.solver.primitives.Primitives``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ptycho.networks.architectures import NOISE_FLOOR
from ptycho.physics import FAR_FIELD, INTENSITY_FLOOR, Detector
from ptycho.physics.slow_phase import phase_gain
from ptycho.solver import refinement
from ptycho.solver.primitives import PER_PATTERN, Wanted
from ptycho.solver.schedule import (
    FULLY_TURNED,
    PHASE_FLOOR,
    PHASE_SHRINK,
    PHASE_STEP_RAD,
    POISSON_FLOOR,
    STEP_DAMPING,
    TURNED,
    TV_SMOOTHING,
    UPHILL,
)
from ptycho.tf import physics
from ptycho.tf.information import count_score
from ptycho.tf.runtime import Tensor, as_complex, tf

XLA_PIXELS = 2**17
"""Detector pixels of a chunk, 32 patterns of 64 x 64, from which it is compiled with XLA."""


class Chunk(NamedTuple):
    """Some patterns of a scan with their places on the canvas."""

    corners_yx: Tensor  # (J, 2), int, canvas index of patch pixel (0, 0)
    # Probe modes (P, N, N), (1, P, N, N) or (J, P, N, N) [sqrt(photons)], moved by the sub-pixel parts
    probes: Tensor
    amplitude: Tensor  # (J, N, N), measured [sqrt(photons)]; negative where nothing was measured (eq. 20)
    shifts_yx_px: Tensor | None = None  # (J, 2), sub-pixel parts, where the probe is to be refined [px]
    rows: NDArray[np.int64] | None = None  # (J,), which patterns of a ``ScanChunks`` these are
    detector: Detector = FAR_FIELD  # how far away it is, and what it counts beside the light
    # Variable modes (K, N, N) of the probe, and the weights (J, 1 + K) of all, where it changes (eq. 26)
    variation: tuple[Tensor, Tensor] | None = None


def compiled(function: Callable[..., Any], chunk: Chunk) -> Callable[..., Any]:
    """Return a function of tensors, compiled for chunks like this one.

    XLA makes the gradient of a chunk a third faster and takes 0.1 to 0.2 s for every new shape. It pays for a
    reconstruction, whose chunks come in a few shapes. Small chunks, and the tiles of a training run, which
    come in many, use one graph for all shapes (``benchmarks/xla.py``).
    """
    count, n_px = chunk.amplitude.shape[0], chunk.amplitude.shape[-1]
    large = tf.executing_eagerly() and count * n_px**2 >= XLA_PIXELS
    return _compiled(function, n_px, tuple(chunk.probes.shape[-2:]), len(chunk.probes.shape), large)


@lru_cache(maxsize=64)
def _compiled(
    function: Callable[..., Any], n_px: int, patch_yx_px: tuple[int, int], probe_axes: int, xla: bool
) -> Callable[..., Any]:
    """Keep one function for each size of patterns and patches and number of probe axes, which a graph must
    know."""
    del n_px, patch_yx_px, probe_axes
    return tf.function(function, reduce_retracing=not xla, jit_compile=xla)


def scan_illumination(chunks: Iterable[Chunk], shape_yx: physics.Shape) -> Tensor:
    """Return the photons per canvas pixel of all chunks, shape (H, W) (eq. 8)."""
    return sum(physics.illumination(c.probes, c.corners_yx, shape_yx) for c in chunks)


def poisson_residual(
    patches: Tensor, probes: Tensor, amplitude: Tensor, detector: Detector = FAR_FIELD
) -> Tensor:
    """As :func:`ptycho_torch.solver.poisson_residual`."""
    field = physics.propagate(physics.exit_waves(patches, probes), detector)
    expected = detector.counted(_power(field, axis=1))
    kept, counts = physics.measured(amplitude), tf.nn.relu(amplitude) ** 2
    floor = POISSON_FLOOR * physics.count_quantum(amplitude)
    missed = tf.where(kept, 0.5 * (1.0 - (counts + floor) / (expected + floor)), 0.0)
    return physics.propagate_back(field * as_complex(missed)[:, None], detector)


def _power(field: Tensor, axis: int | None = None) -> Tensor:
    """Return the sum of squares."""
    return tf.reduce_sum(tf.math.real(field) ** 2 + tf.math.imag(field) ** 2, axis=axis)


def _found(
    wanted: Wanted,
    obj: Tensor,
    corners: Tensor,
    probes: Tensor,
    amplitude: Tensor,
    detector: Detector = FAR_FIELD,
    shifts: Tensor | None = None,
    modes: Tensor | None = None,
    weights: Tensor | None = None,
) -> dict[str, Tensor]:
    """Return all that a chunk tells but its illumination: sums, and arrays over its patterns."""
    found, poisson = {}, wanted.likelihood == "poisson"
    # Without a background the residual itself tells the misfit.
    watched = wanted.misfit and detector.background is not None
    if wanted.probe or wanted.frames or wanted.background or watched or poisson:
        patches = physics.extract_patches(obj, corners, probes.shape[-1])
    if wanted.frames or wanted.background or watched:
        light = physics.diffracted_intensity(patches, probes, detector._replace(background=None))
    if wanted.misfit or not poisson:
        residual = physics.wave_residual(obj, corners, probes, amplitude, detector)
    if wanted.misfit:
        missed = _power(residual) / detector.windows**2
        found["error"] = _error(detector.counted(light), amplitude) if watched else missed
        found["energy"] = physics.measured_energy(amplitude)
    if wanted.positions:
        told = physics.motion_equations(obj, corners, probes, amplitude, detector, strains=wanted.strains)
        found["normal"], found["right"] = told
        found["curvature"] = tf.reduce_sum(tf.linalg.diag_part(found["normal"])[:, :2]) / 2
    if wanted.frames:
        found["fit"] = physics.frame_fits(light, amplitude, detector)
    if wanted.background:
        told = physics.background_sums(light, amplitude, detector, wanted.likelihood)
        found["excess"], found["weight"] = told
    if poisson:
        residual = poisson_residual(patches, probes, amplitude, detector)
    back = tf.reduce_sum(tf.math.conj(probes) * residual, axis=1)
    found["gradient"] = physics.place_patches(back, corners, tf.shape(obj))
    if wanted.probe:
        residual = physics.part_modes_adjoint(residual, detector.part_turns)
        found["probe_gradient"] = physics.probe_gradient(patches, residual, shifts)
        found["object_power"] = _power(patches, axis=0)
    if wanted.variation:
        told = physics.variation_gradient(patches, residual, shifts, weights)
        found["variation_gradient"], found["variation_power"] = told
        told = physics.variation_equations(patches, probes, amplitude, modes, shifts, detector)
        found["variation_normal"], found["variation_right"] = told
    return found


def _mapped(
    obj: Tensor,
    corners: Tensor,
    probes: Tensor,
    amplitude: Tensor,
    detector: Detector,
    waves: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Return gradient and waves of a step of the difference map."""
    fitting = physics.exit_waves(physics.extract_patches(obj, corners, probes.shape[-1]), probes)
    waves, missed = physics.mapped_waves(waves, fitting, amplitude, detector)
    back = tf.reduce_sum(tf.math.conj(probes) * missed, axis=1)
    return physics.place_patches(back, corners, tf.shape(obj)), waves


@lru_cache(maxsize=32)
def _finding(wanted: Wanted) -> Callable[..., dict[str, Tensor]]:
    """Return a function of tensors alone: those of :func:`_found`, which TensorFlow calls faster."""
    return partial(_found, wanted)


def _error(expected: Tensor, amplitude: Tensor) -> Tensor:
    """Return the squared amplitude misfit of expected counts [photons]."""
    missed = tf.where(physics.measured(amplitude), tf.sqrt(expected + INTENSITY_FLOOR) - amplitude, 0.0)
    return tf.reduce_sum(missed**2)


def _in_order(found: Sequence[dict[str, Any]], name: str) -> Tensor:
    """Return an array over all patterns of the chunks, in the order of the scan."""
    order = np.argsort(np.concatenate([part["rows"] for part in found]))
    return tf.gather(tf.concat([part[name] for part in found], 0), order)


def _phase_gain(
    shape_yx: NDArray[np.int32], probes: NDArray[Any], *, count: int, least: float, stiffness_px2: float
) -> NDArray[np.float64]:
    return phase_gain((int(shape_yx[0]), int(shape_yx[1])), probes, count, least, stiffness_px2)


@tf.function(reduce_retracing=True)
def _advanced(
    leading: Tensor, step: Tensor, illumination: Tensor, gain: Tensor, slow: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    power = tf.maximum(tf.math.real(leading) ** 2 + tf.math.imag(leading) ** 2, PHASE_FLOOR)
    lit = illumination / (STEP_DAMPING * tf.reduce_max(illumination))
    phase = tf.where(lit > 1, -tf.math.imag(step * tf.math.conj(leading)) / power, 0.0)
    further = tf.math.real(tf.signal.ifft2d(tf.signal.fft2d(as_complex(phase)) * gain))
    last, trust = (further, tf.ones((), further.dtype)) if slow is None else slow
    back = -tf.math.divide_no_nan(tf.reduce_sum(further * last), tf.reduce_sum(last**2))
    turned = tf.clip_by_value((back - TURNED) / (FULLY_TURNED - TURNED), 0.0, 1.0)
    trust *= 1 - (1 - PHASE_SHRINK) * turned
    turn = tf.clip_by_value(trust * further, -PHASE_STEP_RAD, PHASE_STEP_RAD)
    turn *= tf.minimum(lit, 1.0)
    return (leading - step) * tf.complex(tf.cos(turn), tf.sin(turn)), (further, trust)


class TensorFlowPrimitives:
    """``ptycho.solver.primitives.Primitives`` on tensors; what each method does is written there."""

    def constant(self, array: Tensor) -> Tensor:
        return tf.stop_gradient(array)

    def chunk_sums(
        self, obj: Tensor, chunk: Chunk, wanted: Wanted
    ) -> tuple[dict[str, Tensor | int], dict[str, Any]]:
        # A tape records what it can reach: cutting the inputs off keeps these steps out of its memory.
        probes, corners = tf.stop_gradient(chunk.probes), chunk.corners_yx
        shifts = (chunk.shifts_yx_px,) if wanted.probe else ()
        shifts += chunk.variation if wanted.variation else ()
        finding = compiled(_finding(wanted._replace(illumination=False)), chunk)
        found = finding(obj, corners, probes, chunk.amplitude, chunk.detector, *shifts)
        own = {name: found.pop(name) for name in PER_PATTERN if name in found}
        if own:
            found["patterns"] = len(chunk.amplitude)
        if wanted.illumination:
            found["illumination"] = physics.illumination(probes, corners, obj.shape)
        return found, own | {"rows": chunk.rows}

    def mapped(
        self, obj: Tensor, chunk: Chunk, waves: Tensor | None, *, illumination: bool
    ) -> tuple[dict[str, Tensor], Tensor]:
        probes, corners = chunk.probes, chunk.corners_yx
        mapping = compiled(_mapped, chunk)
        gradient, waves = mapping(obj, corners, probes, chunk.amplitude, chunk.detector, waves)
        sums = {"gradient": gradient}
        if illumination:
            sums["illumination"] = physics.illumination(probes, corners, obj.shape)
        return sums, waves

    def count_score(
        self, obj: Tensor, chunk: Chunk, *, change: Tensor | None = None, noise: Tensor | None = None
    ) -> Tensor:
        corners, probes, amplitude = chunk[:3]
        answer = compiled(count_score, chunk)
        return answer(obj, corners, probes, amplitude, chunk.detector, change=change, noise=noise)

    def preconditioned(self, gradient: Tensor, illumination: Tensor) -> Tensor:
        return gradient / as_complex(illumination + STEP_DAMPING * tf.reduce_max(illumination))

    def phase_gain(
        self, obj: Tensor, chunk: Chunk, count: int, least: float, stiffness_px2: float = 0.0
    ) -> Tensor:
        probe = chunk.probes[0] if len(chunk.probes.shape) == 4 else chunk.probes
        # A graph knows neither canvas nor probe when it is made, so NumPy is called when it runs.
        gain = tf.numpy_function(
            partial(_phase_gain, count=count, least=least, stiffness_px2=stiffness_px2),
            (tf.shape(obj), tf.stop_gradient(probe)),
            tf.float64,
        )
        gain = tf.cast(tf.ensure_shape(gain, obj.shape), obj.dtype.real_dtype)
        return as_complex(tf.stop_gradient(gain))

    def advanced(
        self, leading: Tensor, step: Tensor, illumination: Tensor, gain: Tensor, slow: Any
    ) -> tuple[Tensor, Any]:
        return _advanced(leading, step, illumination, gain, slow)

    def uphill(self, step: Tensor, new: Tensor, old: Tensor) -> float | Tensor:
        way = new - old
        along = tf.reduce_sum(tf.math.real(tf.math.conj(step) * way))
        cosine = tf.math.divide_no_nan(along, tf.sqrt(_power(step) * _power(way)))
        share = tf.clip_by_value(cosine / UPHILL, 0.0, 1.0)
        return float(share) if tf.executing_eagerly() else as_complex(share)

    def total_variation_gradient(self, obj: Tensor) -> Tensor:
        down = tf.concat([obj[1:], obj[-1:]], 0) - obj
        right = tf.concat([obj[:, 1:], obj[:, -1:]], 1) - obj
        length = as_complex(tf.sqrt(tf.abs(down) ** 2 + tf.abs(right) ** 2 + TV_SMOOTHING**2))
        down, right = down / length, right / length
        above = tf.concat([tf.zeros_like(down[:1]), down[:-1]], 0)
        before = tf.concat([tf.zeros_like(right[:, :1]), right[:, :-1]], 1)
        return -(down - above + right - before)

    def probe_step(self, gradient: Tensor, object_power: Tensor) -> Tensor:
        return gradient / as_complex(tf.reduce_max(object_power))

    def same_power(self, probe: Tensor, reference: Tensor) -> Tensor:
        return probe * as_complex(tf.sqrt(_power(reference) / _power(probe)))

    def frame_factors(
        self, found: Sequence[dict[str, Any]], gain: Tensor, previous: Tensor, momentum: float
    ) -> Tensor:
        trend = tf.where(previous > 0, tf.math.divide_no_nan(gain, previous), 1.0)
        return gain * _in_order(found, "fit") * trend**momentum

    def pattern_sum(self, values: Tensor) -> Tensor:
        return tf.reduce_sum(values, axis=0)


PRIMITIVES = TensorFlowPrimitives()
accelerated_steps = partial(refinement.accelerated_steps, PRIMITIVES)
refine = partial(refinement.refine, PRIMITIVES)


def chunk_gradient(obj: Tensor, chunk: Chunk, likelihood: str = "amplitude") -> Tensor:
    """Return the object gradient of one chunk, shape (H, W) [photons] (eq. 9, or 17 for ``poisson``)."""
    finding = compiled(_finding(Wanted(likelihood)), chunk)
    return finding(obj, chunk.corners_yx, chunk.probes, chunk.amplitude, chunk.detector)["gradient"]


def preconditioned_step(
    obj: Tensor, chunks: Iterable[Chunk], weight: Tensor, likelihood: str = "amplitude"
) -> Tensor:
    """As :func:`ptycho_torch.solver.preconditioned_step`."""
    return -PRIMITIVES.preconditioned(sum(chunk_gradient(obj, c, likelihood) for c in chunks), weight)


def _missed_power(
    obj: Tensor, corners: Tensor, probes: Tensor, amplitude: Tensor, detector: Detector
) -> tuple[Tensor, Tensor]:
    """Return the squared amplitude that an object leaves unexplained [photons], and on how many pixels."""
    patches = physics.extract_patches(obj, corners, probes.shape[-1])
    kept = physics.measured(amplitude)
    missed = tf.where(kept, amplitude - physics.diffracted_amplitude(patches, probes, detector), 0.0)
    return tf.reduce_sum(missed**2), tf.reduce_sum(tf.cast(kept, amplitude.dtype))


def noise_level(obj: Tensor, chunks: Iterable[Chunk], weight: Tensor) -> Tensor:
    """As :func:`ptycho_torch.solver.noise_level`."""
    obj, energy, count = tf.stop_gradient(obj), 0.0, 0.0
    for chunk in chunks:
        probes, missed = tf.stop_gradient(chunk.probes), compiled(_missed_power, chunk)
        power, pixels = missed(obj, chunk.corners_yx, probes, chunk.amplitude, chunk.detector)
        energy, count = energy + power, count + pixels
    level = tf.sqrt(energy / tf.maximum(count, 1.0) / (weight + STEP_DAMPING * tf.reduce_max(weight)))
    return tf.stop_gradient(level + NOISE_FLOOR)
