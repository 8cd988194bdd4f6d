"""Patterns on their way into TensorFlow: streams of batches, and the chunks of a scan."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho.data import chunks
from ptycho.data.feed import GroupSource, Signature, TileSource
from ptycho.tf import physics
from ptycho.tf.runtime import Tensor, as_complex, tf
from ptycho.tf.solver import Chunk


def specs(signature: Signature) -> dict[str, tf.TensorSpec]:
    """Return what a source announces as TensorFlow wants it."""
    return {name: tf.TensorSpec(shape, dtype) for name, (shape, dtype) in signature.items()}


def stream(source: TileSource | GroupSource, order: Sequence[Any]) -> tf.data.Dataset:
    """Return the batches of an epoch, in this order; the next one is prepared while one is computed."""
    made = tf.data.Dataset.from_generator(
        lambda: (source[item] for item in order), output_signature=specs(source.signature)
    )
    return made.prefetch(1)


class ScanChunks(chunks.ScanChunks):
    """A scan as chunks of tensors, as ``ptycho.data.chunks.ScanChunks``."""

    chunk = Chunk
    shifted = staticmethod(physics.shift_field)

    def tensor(self, values: NDArray[Any]) -> Tensor:
        return tf.constant(values)

    def array(self, tensor: Tensor) -> NDArray[Any]:
        return tensor.numpy()

    def take(self, tensor: Tensor, rows: NDArray[np.int64]) -> Tensor:
        return tf.gather(tensor, rows)

    def scaled(self, probes: Tensor, gain: Tensor) -> Tensor:
        return probes * as_complex(gain)[:, None, None, None]
