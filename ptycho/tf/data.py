"""Patterns on their way into TensorFlow: streams of batches, and the chunks of a scan."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho.data import chunks
from ptycho.data.feed import Batch, Signature, Source
from ptycho.process.interrupts import step
from ptycho.tf import physics
from ptycho.tf.runtime import Tensor, as_complex, tf
from ptycho.tf.solver import Chunk


def specs(signature: Signature) -> dict[str, tf.TensorSpec]:
    """Return what a source announces as TensorFlow wants it."""
    return {name: tf.TensorSpec(shape, dtype) for name, (shape, dtype) in signature.items()}


def tensors(batch: Batch) -> dict[str, Tensor]:
    """Return a batch as tensors."""
    return {name: tf.constant(values) for name, values in batch.items()}


def stream(source: Source, order: Sequence[Any]) -> Iterator[dict[str, Tensor]]:
    """Yield the batches of an epoch, in this order; the next one is prepared while one is computed."""

    def batch(item: Any) -> dict[str, Tensor]:
        return {name: tf.constant(values, source.signature[name][1]) for name, values in source[item].items()}

    with ThreadPoolExecutor(1) as worker:
        coming = [worker.submit(batch, item) for item in order[:1]]
        for item in order[1:]:
            step()
            coming.append(worker.submit(batch, item))
            yield coming.pop(0).result()
        yield from (last.result() for last in coming)


class ScanChunks(chunks.ScanChunks):
    """A scan as chunks of tensors, as ``ptycho.data.chunks.ScanChunks``."""

    chunk = Chunk
    shifted = staticmethod(physics.shift_field)
    varied = staticmethod(physics.varied_probes)
    parted = staticmethod(physics.part_modes)

    def tensor(self, values: NDArray[Any]) -> Tensor:
        return tf.constant(values)

    def array(self, tensor: Tensor) -> NDArray[Any]:
        return tensor.numpy()

    def take(self, tensor: Tensor, rows: NDArray[np.int64]) -> Tensor:
        return tf.gather(tensor, rows)

    def scaled(self, probes: Tensor, gain: Tensor) -> Tensor:
        return probes * as_complex(gain)[:, None, None, None]
