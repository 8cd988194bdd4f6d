"""The loss of a training run in TensorFlow; its real-space terms are twins of ``ptycho.physics.losses``."""

from __future__ import annotations

from ptycho.config.choices import HIDDEN
from ptycho.physics.losses import UNIT_FLOOR
from ptycho.tf import physics
from ptycho.tf.runtime import Tensor, as_complex, tf

MAIN_TERMS = {
    "amplitude": physics.amplitude_loss,
    "mae": physics.mean_absolute_loss,
    "poisson": physics.poisson_loss,
    HIDDEN: physics.poisson_loss,
}


def unit(values: Tensor) -> Tensor:
    """Return complex numbers on the unit circle (eq. 7f); dark ones fall to 0."""
    return values / as_complex(tf.sqrt(tf.math.real(values) ** 2 + tf.math.imag(values) ** 2 + UNIT_FLOOR))


def total_variation(image: Tensor, illumination: Tensor) -> Tensor:
    """As :func:`ptycho.physics.losses.total_variation`."""
    down, right = (
        tf.minimum(illumination[1:], illumination[:-1]),
        tf.minimum(illumination[:, 1:], illumination[:, :-1]),
    )
    count = tf.cast(tf.reduce_prod(tf.shape(image)[:-2]), illumination.dtype)
    total = tf.reduce_sum(down * tf.abs(image[..., 1:, :] - image[..., :-1, :]))
    total += tf.reduce_sum(right * tf.abs(image[..., 1:] - image[..., :-1]))
    return total / (count * (tf.reduce_sum(down) + tf.reduce_sum(right)))


def label_error(patches: Tensor, labels: Tensor, illumination: Tensor) -> Tensor:
    """As :func:`ptycho.physics.losses.label_error`."""
    return _mean(tf.abs(patches - labels), illumination)


def supervised_loss(patches: Tensor, labels: Tensor, illumination: Tensor) -> Tensor:
    """As :func:`ptycho.physics.losses.supervised_loss`."""
    difference = tf.abs(tf.abs(patches) - tf.abs(labels)) + tf.abs(unit(patches) - unit(labels))
    return _mean(difference, illumination)


def _mean(values: Tensor, illumination: Tensor) -> Tensor:
    """Return the mean of maps, shape (J, N, N), weighted with the illumination on each."""
    count = tf.cast(tf.shape(values)[0], illumination.dtype)
    return tf.reduce_sum(illumination * values) / (count * tf.reduce_sum(illumination))
