"""Attention gates of ``cnn`` in TensorFlow; images are (batch, y, x, channel)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ptycho.tf.runtime import Tensor, tf

Convolution = Callable[[Tensor, str], Tensor]


def _gate(values: Tensor) -> Tensor:
    """Return a factor between 0 and 2 that is 1 for 0."""
    return 2.0 * tf.sigmoid(values)


def _spatial_gate(x: Tensor, name: str, convolved: Convolution) -> Tensor:
    """Return one factor for every pixel, from mean and maximum of its channels."""
    seen = [tf.reduce_mean(x, axis=-1, keepdims=True), tf.reduce_max(x, axis=-1, keepdims=True)]
    return _gate(convolved(tf.concat(seen, -1), name))


def attended(x: Tensor, place: str, weights: Mapping[str, tf.Variable], convolved: Convolution) -> Tensor:
    """As :func:`ptycho_torch.generators.attended`, of an image (B, H, W, C)."""
    if f"{place}_eca" in weights:
        kernel = tf.cast(weights[f"{place}_eca"], x.dtype)[:, None, None]
        pooled = tf.reduce_mean(x, axis=(1, 2))[..., None]
        x = x * _gate(tf.nn.conv1d(pooled, kernel, 1, "SAME"))[:, None, None, :, 0]
    if f"{place}_cbam_reduce/kernel" in weights:
        pooled = (tf.reduce_mean(x, axis=(1, 2), keepdims=True), tf.reduce_max(x, axis=(1, 2), keepdims=True))
        squeezed = (tf.nn.relu(convolved(part, f"{place}_cbam_reduce")) for part in pooled)
        x = x * _gate(tf.add_n([convolved(part, f"{place}_cbam_expand") for part in squeezed]))
        x = x * _spatial_gate(x, f"{place}_cbam_spatial", convolved)
    if f"{place}_spatial/kernel" in weights:
        x = x * _spatial_gate(x, f"{place}_spatial", convolved)
    return x
