"""Reconstruct a scan with a trained PyTorch model."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ptycho.config.config import PyTorchExecutionConfig
from ptycho.data.reconstruction import Reconstruction
from ptycho.data.scan import Scan
from ptycho.process.progress import Progress
from ptycho.run.job import chosen_device
from ptycho.run.reconstruction import reconstruct as reconstruct_with
from ptycho_torch import physics
from ptycho_torch.data import ScanChunks
from ptycho_torch.isolation import untouched_torch
from ptycho_torch.model import PtychoPINN_Lightning
from ptycho_torch.solver import PRIMITIVES, Chunk, scan_illumination


def resolve_accelerator(requested: str) -> str:
    """Return ``cpu``, ``cuda`` or ``mps`` for the requested accelerator (also ``gpu``; ``auto`` takes CUDA
    where there is one, else the CPU); ``ConfigError`` if the machine does not have it."""
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    return chosen_device(requested, there, "PyTorch")


class TorchBackend:
    """``ptycho.run.backend.Backend`` for one model on one device; each method is described there."""

    primitives, chunks = PRIMITIVES, ScanChunks

    def __init__(self, model: PtychoPINN_Lightning, device: torch.device) -> None:
        self.model, self.device = model, device
        self.core_config, self.trained_probe = model.core_config, model.trained_probe
        self.whole_canvas = model.whole_canvas
        self.generator = model.generator

    def tensor(self, values: NDArray[Any]) -> Tensor:
        return torch.from_numpy(values).to(self.device)

    def array(self, tensor: Tensor) -> NDArray[Any]:
        return tensor.cpu().numpy()

    def illumination(self, chunks: ScanChunks) -> Tensor:
        return scan_illumination(chunks, chunks.plan.shape_yx)

    def predicted(self, obj: Tensor, chunk: Chunk, sigma_px: float) -> Tensor:
        patches = physics.extract_patches(obj, chunk.corners_yx, chunk.probes.shape[-1])
        light = chunk.detector._replace(background=None)
        predicted = physics.diffracted_amplitude(patches, chunk.probes, light)
        return physics.with_background(physics.smoothed_amplitude(predicted, sigma_px), chunk.detector)

    def patch_sums(
        self,
        amplitude: NDArray[np.float32],
        input_scale: float,
        window: NDArray[np.complex64],
        corners_yx: NDArray[np.int64],
        shifts_yx_px: NDArray[np.float64],
        shape_yx: tuple[int, int],
    ) -> tuple[Tensor, Tensor]:
        scale = torch.tensor(input_scale, dtype=torch.float32, device=self.device)
        patches = self.model.network_patches(self.tensor(amplitude), scale)[:, 0]
        # In single precision before it moves: MPS has no other.
        shifts = self.tensor(shifts_yx_px.astype(np.float32))
        corners = self.tensor(corners_yx)
        windows = physics.shift_field(self.tensor(window), shifts)
        return self.model.sums(patches, corners, shifts, windows, shape_yx)

    def quotient(self, total: Tensor, weight: Tensor) -> Tensor:
        floor = 1e-9 * weight.max()
        return torch.where(weight > floor, total / (weight + floor), torch.ones_like(total))

    def gain(self) -> float:
        return float(self.model.gain)


@untouched_torch()
@torch.inference_mode()
def reconstruct(
    model: PtychoPINN_Lightning,
    scan: Scan,
    indices: NDArray[np.int64],
    *,
    execution: PyTorchExecutionConfig,
    progress: Progress,
    **options: Any,
) -> Reconstruction:
    """Reconstruct as :func:`ptycho.run.reconstruction.reconstruct`, whose ``options`` it takes; ``execution``
    decides accelerator and batch size."""
    device = torch.device(resolve_accelerator(execution.accelerator))
    used, size = TorchBackend(model.to(device).eval(), device), execution.inference_batch_size
    return reconstruct_with(used, scan, indices, progress=progress, batch_size=size, **options)
