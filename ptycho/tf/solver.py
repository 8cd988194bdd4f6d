"""The accelerated physics steps that the unrolled network starts from, in TensorFlow.

A scan arrives as chunks, so that memory is bounded by one chunk however long the scan is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ptycho.geometry.subsets import subset_momentum, subset_schedule
from ptycho.networks.architectures import NOISE_FLOOR, POISSON_FLOOR, STEP_DAMPING
from ptycho.physics import INTENSITY_FLOOR
from ptycho.tf import physics
from ptycho.tf.runtime import as_complex, tf

XLA_PIXELS = 2**17
"""Detector pixels of a chunk, 32 patterns of 64 x 64, from which it is compiled with XLA."""


class Chunk(NamedTuple):
    """Some patterns of a scan with their places on the canvas.

    Attributes
    ----------
    corners_yx : int tensor, shape (J, 2)
        Canvas index of patch pixel (0, 0).
    probes : complex tensor, shape (P, N, N), (1, P, N, N) or (J, P, N, N)
        Probe modes [sqrt(photons)], moved by the sub-pixel part of the position.
    amplitude : real tensor, shape (J, N, N)
        Measured amplitude [sqrt(photons)]; negative where nothing was measured (eq. 20).
    shifts_yx_px : real tensor, shape (J, 2), or None
        Sub-pixel shift of the probe of each position, where the probe itself is to be refined [px].
    rows : int array, shape (J,), or None
        Which members of a ``ScanChunks`` these are.
    """

    corners_yx: tf.Tensor
    probes: tf.Tensor
    amplitude: tf.Tensor
    shifts_yx_px: tf.Tensor | None = None
    rows: NDArray[np.int64] | None = None


def scan_illumination(chunks: Iterable[Chunk], shape_yx: tuple[int, int] | tf.Tensor) -> tf.Tensor:
    """Return the photons per canvas pixel of all chunks (eq. 8).

    Parameters
    ----------
    chunks : iterable of Chunk
        The scan.
    shape_yx : tuple of int, or int tensor of shape (2,)
        Canvas shape (H, W) [px].

    Returns
    -------
    real tensor, shape (H, W)
        Photons per pixel.
    """
    return sum(physics.illumination(c.probes, c.corners_yx, shape_yx) for c in chunks)


def compiled(function: Callable[..., Any], chunk: Chunk) -> Callable[..., Any]:
    """Return a function compiled for chunks like this one.

    XLA makes the passes of :func:`chunk_gradient` a third faster and takes 0.1 to 0.2 s for every new shape.
    It pays for a reconstruction, whose chunks come in a few shapes. Small chunks, and the tiles of a
    training, which come in many, use one graph for all shapes (``benchmarks/xla.py``).

    Parameters
    ----------
    function : callable
        Tensors to tensors.
    chunk : Chunk
        Some patterns.

    Returns
    -------
    callable
        The same function, about twice as fast or more.
    """
    count, n_px = chunk.amplitude.shape[0], chunk.amplitude.shape[-1]
    large = tf.executing_eagerly() and count * n_px**2 >= XLA_PIXELS
    return _compiled(function, n_px, len(chunk.probes.shape), large)


@lru_cache(maxsize=16)
def _compiled(function: Callable[..., Any], n_px: int, probe_axes: int, xla: bool) -> Callable[..., Any]:
    """Keep one function for each pattern size and number of probe axes, which a graph must know."""
    del n_px, probe_axes
    return tf.function(function, reduce_retracing=not xla, jit_compile=xla)


def poisson_residual(patches: tf.Tensor, probes: tf.Tensor, amplitude: tf.Tensor) -> tf.Tensor:
    """Return half the Poisson residual; its curvature is that of the amplitude misfit (eq. 17).

    Parameters
    ----------
    patches : complex tensor, shape (J, N, N)
        Object patches [transmission].
    probes : complex tensor, shape (P, N, N) or (J, P, N, N)
        Probe modes [sqrt(photons)].
    amplitude : real tensor, shape (J, N, N)
        Measured amplitude [sqrt(photons)].

    Returns
    -------
    complex tensor, shape (J, P, N, N)
        What the exit waves miss [sqrt(photons)].
    """
    field = physics.far_field(physics.exit_waves(patches, probes))
    expected = tf.reduce_sum(tf.math.real(field) ** 2 + tf.math.imag(field) ** 2, axis=1)
    kept, counts = physics.measured(amplitude), tf.nn.relu(amplitude) ** 2
    seen = tf.reduce_sum(tf.cast(kept, counts.dtype), axis=(1, 2), keepdims=True)
    mean = tf.reduce_sum(counts, axis=(1, 2), keepdims=True) / tf.maximum(seen, 1.0)
    # Patterns in units of less than a photon per pixel keep their shape: the floor shrinks with them.
    floor = POISSON_FLOOR * tf.clip_by_value(mean, INTENSITY_FLOOR, 1.0)
    missed = tf.where(kept, 0.5 * (1.0 - (counts + floor) / (expected + floor)), 0.0)
    return physics.far_field_adjoint(field * as_complex(missed)[:, None])


def _poisson_gradient(
    obj: tf.Tensor, corners: tf.Tensor, probes: tf.Tensor, amplitude: tf.Tensor
) -> tf.Tensor:
    """Return half the gradient of the Poisson likelihood by the object, shape (H, W) (eq. 17)."""
    residual = poisson_residual(physics.extract_patches(obj, corners, amplitude.shape[-1]), probes, amplitude)
    back = tf.reduce_sum(tf.math.conj(probes) * residual, axis=1)
    return physics.place_patches(back, corners, tf.shape(obj))


def _missed_power(
    obj: tf.Tensor, corners: tf.Tensor, probes: tf.Tensor, amplitude: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the squared amplitude that an object leaves unexplained [photons], and on how many pixels."""
    patches = physics.extract_patches(obj, corners, amplitude.shape[-1])
    kept = physics.measured(amplitude)
    missed = tf.where(kept, amplitude - physics.diffracted_amplitude(patches, probes), 0.0)
    return tf.reduce_sum(missed**2), tf.reduce_sum(tf.cast(kept, amplitude.dtype))


def chunk_gradient(obj: tf.Tensor, chunk: Chunk, likelihood: str = "amplitude") -> tf.Tensor:
    """Return the object gradient of one chunk (eq. 9, or 17 for ``poisson``).

    Parameters
    ----------
    obj : complex tensor, shape (H, W)
        Object canvas [transmission].
    chunk : Chunk
        Some patterns.
    likelihood : {'amplitude', 'poisson'}
        What the step descends on.

    Returns
    -------
    complex tensor, shape (H, W)
        Gradient [photons].
    """
    gradient = compiled(_poisson_gradient if likelihood == "poisson" else physics.object_gradient, chunk)
    return gradient(obj, chunk.corners_yx, chunk.probes, chunk.amplitude)


def preconditioned_step(
    obj: tf.Tensor, chunks: Iterable[Chunk], weight: tf.Tensor, likelihood: str = "amplitude"
) -> tf.Tensor:
    """Return the data-consistency step: minus the gradient over the damped illumination (eq. 10).

    Parameters
    ----------
    obj : complex tensor, shape (H, W)
        Object canvas [transmission].
    chunks : iterable of Chunk
        The scan.
    weight : real tensor, shape (H, W)
        Illumination [photons / pixel].
    likelihood : {'amplitude', 'poisson'}
        What the step descends on.

    Returns
    -------
    complex tensor, shape (H, W)
        Step [transmission].
    """
    gradient = sum(chunk_gradient(obj, chunk, likelihood) for chunk in chunks)
    return -gradient / as_complex(weight + STEP_DAMPING * tf.reduce_max(weight))


def noise_level(obj: tf.Tensor, chunks: Iterable[Chunk], weight: tf.Tensor) -> tf.Tensor:
    """Return the noise of every object pixel, from what the object leaves unexplained (eq. 18).

    It needs no unit of the counts: patterns and probe times a factor give the same level. Nothing is
    differentiated.

    Parameters
    ----------
    obj : complex tensor, shape (H, W)
        Object canvas [transmission].
    chunks : iterable of Chunk
        The scan.
    weight : real tensor, shape (H, W)
        Illumination [photons / pixel].

    Returns
    -------
    real tensor, shape (H, W)
        Noise [transmission].
    """
    obj, energy, count = tf.stop_gradient(obj), 0.0, 0.0
    for chunk in chunks:
        probes = tf.stop_gradient(chunk.probes)
        power, pixels = compiled(_missed_power, chunk)(obj, chunk.corners_yx, probes, chunk.amplitude)
        energy, count = energy + power, count + pixels
    level = tf.sqrt(energy / tf.maximum(count, 1.0) / (weight + STEP_DAMPING * tf.reduce_max(weight)))
    return tf.stop_gradient(level + NOISE_FLOOR)


class SubsetWeights:
    """The illumination of every subset, computed when it is first asked for.

    Parameters
    ----------
    chunks : iterable of Chunk
        The scan; cut into subsets it has a method ``part``.
    weight : real tensor, shape (H, W)
        Illumination of the whole scan [photons / pixel].
    """

    def __init__(self, chunks: Iterable[Chunk], weight: tf.Tensor) -> None:
        self.chunks, self.weight = chunks, weight
        self._known: dict[tuple[int, int], tf.Tensor] = {}

    def of(self, index: int, count: int) -> tf.Tensor:
        """Return the illumination of subset ``index`` of ``count``, shape (H, W) [photons / pixel]."""
        if count == 1:
            return self.weight
        if (index, count) not in self._known:
            part = self.chunks.part(index, count)
            self._known[index, count] = scan_illumination(part, self.weight.shape)
        return self._known[index, count]


def accelerated_steps(
    obj: tf.Tensor,
    chunks: Iterable[Chunk],
    weight: tf.Tensor,
    n_steps: int,
    on_step: Callable[[int], None] | None = None,
    *,
    likelihood: str = "amplitude",
    subsets: int = 1,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Run preconditioned Nesterov steps on all positions (eq. 11), at first on subsets of them (eq. 19).

    Nothing of them is differentiated.

    Parameters
    ----------
    obj : complex tensor, shape (H, W)
        Object to start from [transmission].
    chunks : iterable of Chunk
        The scan; read once for every step. More than one subset needs a ``ScanChunks``.
    weight : real tensor, shape (H, W)
        Illumination [photons / pixel].
    n_steps : int
        Number of passes through the scan.
    on_step : callable, optional
        Called with the index of each finished pass.
    likelihood : {'amplitude', 'poisson'}
        What the steps descend on.
    subsets : int
        Most subsets of a pass, from ``ptycho.geometry.subsets.most_subsets``.

    Returns
    -------
    obj, previous : complex tensor, shape (H, W)
        The last two iterates, so that momentum can go on.
    """
    obj, weight = tf.stop_gradient(obj), tf.stop_gradient(weight)
    previous, update, weights = obj, 0, SubsetWeights(chunks, weight)
    for index, count in enumerate(subset_schedule(n_steps, subsets)):
        for part in range(count):
            leading = obj + subset_momentum(update, subsets) * (obj - previous)
            seen = chunks if count == 1 else chunks.part(part, count)
            # A tape records what it can reach: cutting the inputs off keeps these steps out of its memory.
            constant = (chunk._replace(probes=tf.stop_gradient(chunk.probes)) for chunk in seen)
            step = preconditioned_step(leading, constant, weights.of(part, count), likelihood)
            previous, obj, update = obj, leading + step, update + 1
        if on_step is not None:
            on_step(index)
    return obj, previous
