"""Fisher information in TensorFlow: the twin of ``ptycho.physics.information``."""

from __future__ import annotations

from ptycho.physics import FAR_FIELD, INTENSITY_FLOOR, Detector
from ptycho.tf.physics import exit_waves, extract_patches, measured, place_patches, propagate, propagate_back
from ptycho.tf.runtime import Tensor, as_complex, tf


def count_score(
    obj: Tensor,
    corners_yx: Tensor,
    probes: Tensor,
    amplitude: Tensor,
    detector: Detector = FAR_FIELD,
    *,
    change: Tensor | None = None,
    noise: Tensor | None = None,
) -> Tensor:
    """As :func:`ptycho.physics.information.count_score`."""
    n_px = probes.shape[-1]
    field = propagate(exit_waves(extract_patches(obj, corners_yx, n_px), probes), detector)
    power = tf.math.real(field) ** 2 + tf.math.imag(field) ** 2
    expected = detector.counted(tf.reduce_sum(power, axis=1)) + INTENSITY_FLOOR
    off = tf.zeros_like(expected)
    if change is not None:
        moved = propagate(exit_waves(extract_patches(change, corners_yx, n_px), probes), detector)
        off = 2 * tf.reduce_sum(tf.math.real(tf.math.conj(field) * moved), axis=1)
    if noise is not None:
        off += tf.sqrt(expected) * noise
    missed = tf.where(measured(amplitude), 2 * off / expected, 0.0)
    back = propagate_back(field * as_complex(missed)[:, None], detector)
    return place_patches(tf.reduce_sum(tf.math.conj(probes) * back, axis=1), corners_yx, tf.shape(obj)[-2:])
