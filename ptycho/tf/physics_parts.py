"""Parts of detector pixels in TensorFlow: the differentiable twin of ``ptycho.physics.pixel_parts``."""

from __future__ import annotations

from typing import Any

from ptycho.tf.runtime import Tensor, tf


def _ramps(turns: Tensor, dtype: Any) -> Tensor:
    """Return the factors (K, K, N, N) of eq. 5b."""
    turns = tf.cast(turns, dtype)
    count = tf.cast(tf.shape(turns)[0], dtype)
    return turns[:, None, :, None] * turns[:, None, :] / count


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
