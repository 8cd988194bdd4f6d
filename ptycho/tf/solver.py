"""The accelerated physics steps that the unrolled network starts from, in TensorFlow.

A scan arrives as chunks, so that memory is bounded by one chunk however long the scan is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any, NamedTuple

from ptycho.batches import CHUNK_PIXELS
from ptycho.network import STEP_DAMPING, nesterov_momentum
from ptycho.tf import physics
from ptycho.tf.runtime import as_complex, tf


class Chunk(NamedTuple):
    """Some patterns of a scan with their places on the canvas.

    Attributes
    ----------
    corners_yx : int tensor, shape (J, 2)
        Canvas index of patch pixel (0, 0).
    probes : complex tensor, shape (P, N, N), (1, P, N, N) or (J, P, N, N)
        Probe modes [sqrt(photons)], moved by the sub-pixel part of the position.
    amplitude : real tensor, shape (J, N, N)
        Measured amplitude [sqrt(photons)].
    shifts_yx_px : real tensor, shape (J, 2), or None
        Sub-pixel shift of the probe of each position, where the probe itself is to be refined [px].
    """

    corners_yx: tf.Tensor
    probes: tf.Tensor
    amplitude: tf.Tensor
    shifts_yx_px: tf.Tensor | None = None


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

    XLA makes the passes of :func:`chunk_gradient` a third faster and takes 0.2 s for every new shape. It pays
    for the full chunks of a long scan; the last chunk, and the tiles of a training, which come in many shapes,
    use one graph for all shapes (``benchmarks/xla.py``).

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
    full = tf.executing_eagerly() and count == max(1, CHUNK_PIXELS // n_px**2)
    return _compiled(function, n_px, len(chunk.probes.shape), full)


@lru_cache(maxsize=16)
def _compiled(function: Callable[..., Any], n_px: int, probe_axes: int, xla: bool) -> Callable[..., Any]:
    """Keep one function for each pattern size and number of probe axes, which a graph must know."""
    del n_px, probe_axes
    return tf.function(function, reduce_retracing=not xla, jit_compile=xla)


def chunk_gradient(obj: tf.Tensor, chunk: Chunk) -> tf.Tensor:
    """Return the object gradient of one chunk (eq. 9).

    Parameters
    ----------
    obj : complex tensor, shape (H, W)
        Object canvas [transmission].
    chunk : Chunk
        Some patterns.

    Returns
    -------
    complex tensor, shape (H, W)
        Gradient [photons].
    """
    gradient = compiled(physics.object_gradient, chunk)
    return gradient(obj, chunk.corners_yx, chunk.probes, chunk.amplitude)


def preconditioned_step(obj: tf.Tensor, chunks: Iterable[Chunk], weight: tf.Tensor) -> tf.Tensor:
    """Return the data-consistency step: minus the gradient over the damped illumination (eq. 10).

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
    complex tensor, shape (H, W)
        Step [transmission].
    """
    gradient = sum(chunk_gradient(obj, chunk) for chunk in chunks)
    return -gradient / as_complex(weight + STEP_DAMPING * tf.reduce_max(weight))


def accelerated_steps(
    obj: tf.Tensor,
    chunks: Iterable[Chunk],
    weight: tf.Tensor,
    n_steps: int,
    on_step: Callable[[int], None] | None = None,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Run preconditioned Nesterov steps on all positions (eq. 11); nothing of them is differentiated.

    Parameters
    ----------
    obj : complex tensor, shape (H, W)
        Object to start from [transmission].
    chunks : iterable of Chunk
        The scan; read once for every step.
    weight : real tensor, shape (H, W)
        Illumination [photons / pixel].
    n_steps : int
        Number of steps.
    on_step : callable, optional
        Called with the index of each finished step.

    Returns
    -------
    obj, previous : complex tensor, shape (H, W)
        The last two iterates, so that momentum can go on.
    """
    obj, weight = tf.stop_gradient(obj), tf.stop_gradient(weight)
    previous = obj
    for index in range(n_steps):
        leading = obj + nesterov_momentum(index) * (obj - previous)
        # A tape records what it can reach: cutting the inputs off keeps these steps out of its memory.
        constant = (chunk._replace(probes=tf.stop_gradient(chunk.probes)) for chunk in chunks)
        previous, obj = obj, leading + preconditioned_step(leading, constant, weight)
        if on_step is not None:
            on_step(index)
    return obj, previous
