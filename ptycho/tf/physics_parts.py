"""Parts of detector pixels in TensorFlow: the differentiable twin of ``ptycho.physics.pixel_parts``."""

from __future__ import annotations

from typing import Any

from ptycho.tf.runtime import Tensor, tf


def _ramps(turns: Tensor, dtype: Any) -> Tensor:
    """Return the factors of all parts on a patch, (K, K, M N, M N)."""
    along = tf.reshape(tf.cast(turns, dtype), (-1, turns.shape[1] * turns.shape[2]))
    count = tf.cast(tf.shape(turns)[0], dtype)
    return along[:, None, :, None] * along[:, None, :] / count


def folded(waves: Tensor, windows: int) -> Tensor:
    """As :func:`ptycho.physics.folded`."""
    if windows == 1:
        return waves
    lead, n_px = tf.shape(waves)[:-2], waves.shape[-1] // windows
    apart = tf.reshape(waves, tf.concat([lead, [windows, n_px, windows, n_px]], 0))
    return tf.ensure_shape(tf.reduce_sum(apart, axis=(-4, -2)), (*waves.shape[:-2], n_px, n_px))


def tiled(waves: Tensor, windows: int) -> Tensor:
    """As :func:`ptycho.physics.tiled`."""
    if windows == 1:
        return waves
    rows = tf.concat([waves] * windows, -1)
    return tf.concat([rows] * windows, -2)


def part_modes(modes: Tensor, turns: Tensor | None) -> Tensor:
    """As :func:`ptycho.physics.part_modes`."""
    if turns is None:
        return modes
    parted = modes[..., None, None, :, :] * _ramps(turns, modes.dtype)
    lead, n_px = tf.shape(modes)[:-3], modes.shape[-1]
    return tf.reshape(parted, tf.concat([lead, [-1, n_px, n_px]], 0))


def part_modes_adjoint(parted: Tensor, turns: Tensor | None) -> Tensor:
    """As :func:`ptycho.physics.part_modes_adjoint`."""
    if turns is None:
        return parted
    lead, n_px, count = tf.shape(parted)[:-3], parted.shape[-1], tf.shape(turns)[0]
    apart = tf.reshape(parted, tf.concat([lead, [-1, count, count, n_px, n_px]], 0))
    return tf.reduce_sum(apart * tf.math.conj(_ramps(turns, parted.dtype)), axis=(-4, -3))
