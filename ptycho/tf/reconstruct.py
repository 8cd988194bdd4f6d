"""Reconstruct a scan with a trained TensorFlow model."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho.config.config import PyTorchExecutionConfig
from ptycho.data.reconstruction import Reconstruction
from ptycho.data.scan import Scan
from ptycho.physics import Detector
from ptycho.process.interrupts import heard_at_steps
from ptycho.process.isolation import untouched_process
from ptycho.process.progress import Progress
from ptycho.run.reconstruction import reconstruct as reconstruct_with
from ptycho.tf import physics
from ptycho.tf.data import ScanChunks
from ptycho.tf.model import PtychoPINN
from ptycho.tf.runtime import Tensor, as_complex, device_name, tf
from ptycho.tf.solver import PRIMITIVES, Chunk, compiled, scan_illumination


def _predicted(
    obj: Tensor,
    corners: Tensor,
    probes: Tensor,
    amplitude: Tensor,
    detector: Detector,
    sigma_px: float,
) -> Tensor:
    """Return the expected amplitude of one chunk."""
    patches = physics.extract_patches(obj, corners, probes.shape[-1])
    predicted = physics.diffracted_amplitude(patches, probes, detector._replace(background=None))
    return physics.with_background(physics.smoothed_amplitude(predicted, sigma_px), detector)


class TensorflowBackend:
    """``ptycho.run.backend.Backend`` for one model; what each method does is written there."""

    primitives, chunks = PRIMITIVES, ScanChunks

    def __init__(self, model: PtychoPINN) -> None:
        self.model = model
        self.core_config, self.trained_probe = model.core_config, model.trained_probe
        self.whole_canvas = model.whole_canvas
        self.generator = model.generator

    def tensor(self, values: NDArray[Any]) -> Tensor:
        return tf.constant(values)

    def array(self, tensor: Tensor) -> NDArray[Any]:
        return tensor.numpy()

    def illumination(self, chunks: ScanChunks) -> Tensor:
        return scan_illumination(chunks, chunks.plan.shape_yx)

    def predicted(self, obj: Tensor, chunk: Chunk, sigma_px: float) -> Tensor:
        function = compiled(_predicted, chunk)
        return function(obj, chunk.corners_yx, chunk.probes, chunk.amplitude, chunk.detector, sigma_px)

    def patch_sums(
        self,
        amplitude: NDArray[np.float32],
        input_scale: float,
        window: NDArray[np.complex64],
        corners_yx: NDArray[np.int64],
        shifts_yx_px: NDArray[np.float64],
        shape_yx: tuple[int, int],
    ) -> tuple[Tensor, Tensor]:
        patches = self.model.network_patches(tf.constant(amplitude), input_scale)[:, 0]
        shifts = tf.constant(shifts_yx_px, tf.float32)
        corners = tf.constant(corners_yx)
        moved = physics.shift_field(patches[:, None], shifts)[:, 0]
        windows = physics.shift_field(tf.constant(window), shifts)
        total = physics.weighted_patches(moved, corners, windows, shape_yx)
        return total, physics.illumination(windows, corners, shape_yx)

    def quotient(self, total: Tensor, weight: Tensor) -> Tensor:
        floor = 1e-9 * tf.reduce_max(weight)
        return tf.where(weight > floor, total / as_complex(weight + floor), tf.ones_like(total))

    def gain(self) -> float:
        return float(self.model.gain)


@untouched_process()
def reconstruct(
    model: PtychoPINN,
    scan: Scan,
    indices: NDArray[np.int64],
    *,
    execution: PyTorchExecutionConfig,
    progress: Progress,
    **options: Any,
) -> Reconstruction:
    """Reconstruct as :func:`ptycho.run.reconstruction.reconstruct`, whose ``options`` it takes; ``execution``
    decides accelerator and batch size."""
    used, size = TensorflowBackend(model), execution.inference_batch_size
    with tf.device(device_name(execution.accelerator)), heard_at_steps():
        return reconstruct_with(used, scan, indices, progress=progress, batch_size=size, **options)
