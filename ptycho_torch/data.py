"""Patterns on their way into PyTorch: loaders of batches, and the chunks of a scan."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ptycho.config.config import PyTorchExecutionConfig
from ptycho.data import chunks
from ptycho.data.feed import Source
from ptycho.run.feeds import Feed
from ptycho_torch import physics
from ptycho_torch.solver import Chunk

Batch = dict[str, Tensor]


class FeedDataset(Dataset[Batch]):
    """Batches of a source of ``ptycho.data.feed`` as tensors."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, item: Any) -> Batch:
        return {name: torch.from_numpy(values) for name, values in self.source[item].items()}


class _EpochOrder(Sampler[Any]):
    """What to load in an epoch: drawn anew for each, from the plan that every backend follows."""

    def __init__(self, draw: Callable[[int], Sequence[Any]]) -> None:
        self.draw, self.epoch = draw, 0

    def set_epoch(self, epoch: int) -> None:
        """Take the epoch from the trainer, which after a resume does not begin at 0."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.draw(self.epoch))

    def __iter__(self) -> Iterator[Any]:
        order = self.draw(self.epoch)
        self.epoch += 1
        yield from order


def loader(feed: Feed, execution: PyTorchExecutionConfig) -> DataLoader[Batch]:
    """Return the batches of every epoch, one at a time."""
    workers = execution.num_workers
    return DataLoader(
        FeedDataset(feed.source),
        batch_size=None,
        sampler=_EpochOrder(feed.order),
        num_workers=workers,
        persistent_workers=execution.persistent_workers,
        prefetch_factor=execution.prefetch_factor,
        pin_memory=execution.pin_memory,
        # Copies of this process: one that a client spawned would spawn them too, and import frameworks anew.
        multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
        # Without one, a loader draws from the generator of the host program.
        generator=torch.Generator(),
    )


class ScanChunks(chunks.ScanChunks):
    """A scan as chunks on the device of its probe, as ``ptycho.data.chunks.ScanChunks``."""

    chunk = Chunk
    shifted = staticmethod(physics.shift_field)
    varied = staticmethod(physics.varied_probes)
    parted = staticmethod(physics.part_modes)

    def tensor(self, values: NDArray[Any]) -> Tensor:
        return torch.from_numpy(values).to(self._probe.device)

    def array(self, tensor: Tensor) -> NDArray[Any]:
        return tensor.detach().cpu().numpy()

    def take(self, tensor: Tensor, rows: NDArray[np.int64]) -> Tensor:
        return tensor[self.tensor(rows)]

    def scaled(self, probes: Tensor, gain: Tensor) -> Tensor:
        return probes * gain[:, None, None, None]
