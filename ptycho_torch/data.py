"""Patterns on their way into PyTorch: a memory-mapped store, and the batches each architecture trains on.

This is the only module that turns stored patterns into tensors. A store lives in a scratch directory that
goes away with it, so the memory a run needs does not grow with the scan.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tensordict import MemoryMappedTensor, TensorDict
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ptycho.config.config import PyTorchExecutionConfig
from ptycho.data.canonical import CHUNK
from ptycho.data.labels import Labels
from ptycho.data.scaling import measured_amplitude
from ptycho.data.scan import Scan
from ptycho.geometry.batches import (
    CHUNK_PIXELS,
    KEPT_PIXELS,
    batch_rows,
    group_plan,
    judging_centres,
    tile_centres,
    tile_plan,
)
from ptycho.geometry.batches import MIN_TILE_PATTERNS as MIN_TILE_PATTERNS
from ptycho.geometry.batches import TILE_PIXELS as TILE_PIXELS
from ptycho.geometry.batches import tile_patterns as tile_patterns
from ptycho.geometry.canvas import CanvasPlan, moved_plan
from ptycho.geometry.grouping import Groups
from ptycho.geometry.subsets import most_subsets, subset_order
from ptycho.process.progress import Progress
from ptycho.solver.schedule import BLOCKS
from ptycho_torch import physics
from ptycho_torch.solver import Chunk

Batch = dict[str, Tensor]


class PatternStore:
    """Measured amplitudes of a scan in a memory-mapped ``TensorDict``.

    Parameters
    ----------
    scan : Scan
        Patterns and their scale.
    progress : Progress
        Told how many patterns are written.

    Notes
    -----
    Use it as a context manager; the scratch directory is removed at the end, also after an error.
    """

    def __init__(self, scan: Scan, progress: Progress) -> None:
        self._scratch = tempfile.TemporaryDirectory(prefix="ptychopinn-", ignore_cleanup_errors=True)
        self.folder = Path(self._scratch.name)
        count, n_px = scan.n_patterns, scan.n_px
        amplitude = MemoryMappedTensor.empty(
            (count, n_px, n_px), dtype=torch.float32, filename=str(self.folder / "amplitude.memmap")
        )
        self.patterns = TensorDict({"amplitude": amplitude}, batch_size=[count])
        with progress.phase("reading", count) as phase:
            for start in range(0, count, CHUNK):
                rows = slice(start, start + CHUNK)
                block = measured_amplitude(scan.raw.diff3d[rows], scan.record, scan.raw.bad_pixels_of(rows))
                amplitude[rows] = torch.from_numpy(block)
                phase.update(min(start + CHUNK, count))

    def amplitude(self, indices: NDArray[np.int64]) -> Tensor:
        """Return measured amplitudes.

        Parameters
        ----------
        indices : int array, any shape S
            Which patterns.

        Returns
        -------
        float32 tensor, shape (*S, N, N)
            Amplitude [sqrt(photons)]; negative where nothing was measured.
        """
        return torch.as_tensor(self.patterns["amplitude"])[torch.from_numpy(np.ascontiguousarray(indices))]

    def close(self) -> None:
        """Remove the scratch directory."""
        self.patterns = TensorDict({}, batch_size=[0])
        self._scratch.cleanup()

    def __enter__(self) -> PatternStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _placed(plan: CanvasPlan) -> Batch:
    return {
        "corners": torch.from_numpy(plan.corners_yx),
        "shifts": torch.from_numpy(plan.shifts_yx_px.astype(np.float32)),
        "shape": torch.tensor(plan.shape_yx),
    }


class TileDataset(Dataset[Batch]):
    """Square tiles of a scan, one around each member: what ``unrolled`` trains on.

    Parameters
    ----------
    store : PatternStore
        Measured amplitudes.
    scan : Scan
        Positions and probe.
    members : int array, shape (T,)
        Patterns that may take part.
    held_out : int array, shape (V,), optional
        Members the network does not see and is judged on; without it, it is judged on what it sees.
    own_probe : bool
        Send the probe of the scan along, for a scan that is not the one the model was made for.
    labels : Labels, optional
        Send known patches along.
    """

    def __init__(
        self,
        store: PatternStore,
        scan: Scan,
        members: NDArray[np.int64],
        *,
        held_out: NDArray[np.int64] | None = None,
        own_probe: bool = False,
        labels: Labels | None = None,
    ) -> None:
        self.store, self.members = store, np.sort(members)
        self.positions = scan.positions_yx_px[self.members]
        self.n_px = scan.n_px
        self.judged = np.isin(self.members, held_out) if held_out is not None else None
        self.labels = labels
        self.probe = torch.from_numpy(scan.probe) if own_probe else None

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, centre: int) -> Batch:
        """Return the tile around member ``centre``."""
        local, plan = tile_plan(self.positions, centre, self.n_px)
        batch = _placed(plan) | {"amplitude": self.store.amplitude(self.members[local])}
        judged = None if self.judged is None else self.judged[local]
        if judged is not None and judged.any() and not judged.all():
            batch["judged"] = torch.from_numpy(judged)
        if self.probe is not None:
            batch["probe"] = self.probe
        if self.labels is not None:
            batch["labels"] = torch.from_numpy(self.labels.of(self.members[local]))
        return batch


class GroupDataset(Dataset[Batch]):
    """Batches of overlapping groups of patterns: what ``cnn`` trains on.

    Parameters
    ----------
    store : PatternStore
        Measured amplitudes.
    scan : Scan
        Probe.
    groups : Groups
        Which patterns belong together, and how they lie.
    merge : bool
        Merge the patches of a group on one canvas (``object_big``); else each stands alone.
    own_probe : bool
        Send the probe of the scan along.
    labels : Labels, optional
        Send known patches along.
    """

    def __init__(
        self,
        store: PatternStore,
        scan: Scan,
        groups: Groups,
        *,
        merge: bool,
        own_probe: bool = False,
        labels: Labels | None = None,
    ) -> None:
        self.store, self.groups, self.merge = store, groups, merge
        self.n_px, self.labels = scan.n_px, labels
        self.probe = torch.from_numpy(scan.probe) if own_probe else None

    def __len__(self) -> int:
        return len(self.groups.indices)

    def __getitem__(self, rows: list[int]) -> Batch:
        """Return the groups of a batch."""
        indices, plan = group_plan(self.groups, rows, self.n_px, merge=self.merge)
        batch = _placed(plan) | {"amplitude": self.store.amplitude(indices)}
        if self.probe is not None:
            batch["probe"] = self.probe
        if self.labels is not None:
            batch["labels"] = torch.from_numpy(self.labels.of(indices))
        return batch


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


def _processes(execution: PyTorchExecutionConfig) -> dict[str, Any]:
    """Return how a loader starts its processes: on Linux as copies of this one.

    A process that a client spawned would spawn them too, and each would import the frameworks anew.
    """
    workers = execution.num_workers
    return {
        "num_workers": workers,
        "persistent_workers": execution.persistent_workers,
        "prefetch_factor": execution.prefetch_factor,
        "pin_memory": execution.pin_memory,
        "multiprocessing_context": "fork" if workers and sys.platform == "linux" else None,
        # Without one, a loader draws from the generator of the host program.
        "generator": torch.Generator(),
    }


def tile_loader(
    dataset: TileDataset, *, seed: int, steps: int | None, execution: PyTorchExecutionConfig
) -> DataLoader[Batch]:
    """Return tiles: around random members to train, around evenly spread ones to validate.

    Parameters
    ----------
    dataset : TileDataset
        Source.
    seed : int
        Seed of the random centres.
    steps : int, optional
        Tiles in an epoch; None means the few fixed tiles of a validation.
    execution : PyTorchExecutionConfig
        Processes that prepare batches, and how.

    Returns
    -------
    DataLoader
        One tile at a time.
    """
    if steps is None:
        sampler: Sampler[Any] = _EpochOrder(
            lambda _: judging_centres(len(dataset), dataset.n_px, dataset.judged)
        )
    else:
        sampler = _EpochOrder(lambda epoch: tile_centres(len(dataset), steps, seed, epoch).tolist())
    return DataLoader(dataset, batch_size=None, sampler=sampler, **_processes(execution))


def group_loader(
    dataset: GroupDataset, batch_size: int, *, seed: int, shuffle: bool, execution: PyTorchExecutionConfig
) -> DataLoader[Batch]:
    """Return batches of groups.

    Parameters
    ----------
    dataset : GroupDataset
        Source.
    batch_size : int
        Groups in a batch.
    seed : int
        Seed of the order.
    shuffle : bool
        Draw a new order in every epoch.
    execution : PyTorchExecutionConfig
        Processes that prepare batches, and how.

    Returns
    -------
    DataLoader
        One batch at a time.
    """
    chosen = seed if shuffle else None
    sampler = _EpochOrder(
        lambda epoch: [rows.tolist() for rows in batch_rows(len(dataset), batch_size, chosen, epoch)]
    )
    return DataLoader(dataset, batch_size=None, sampler=sampler, **_processes(execution))


class ScanChunks:
    """A scan as chunks on a device, read anew on every pass.

    Parameters
    ----------
    store : PatternStore
        Measured amplitudes.
    plan : CanvasPlan
        Canvas of the members.
    members : int array, shape (J,)
        Patterns in the order of the plan. They are handed out in ``BLOCKS`` parts, each spread over the
        canvas.
    probe : complex tensor, shape (P, N, N)
        Probe modes on the device of the computation [sqrt(photons)].

    Attributes
    ----------
    subsets : int
        Most subsets that a pass may be cut into.
    """

    def __init__(
        self, store: PatternStore, plan: CanvasPlan, members: NDArray[np.int64], probe: Tensor
    ) -> None:
        self.store, self.plan, self.members, self._probe = store, plan, members, probe
        self.size = max(1, CHUNK_PIXELS // plan.patch_px**2)
        self.shifts = torch.from_numpy(plan.shifts_yx_px.astype(np.float32)).to(probe.device)
        self.frame_gain = torch.ones(len(members), device=probe.device)
        self._fixed = plan.is_integer
        self._laid, self._rest = plan, self.shifts
        order = subset_order(plan.positions_yx_px)
        # Within a block rows ascend, so that reading goes forward through the file.
        self._blocks = [np.sort(order[block::BLOCKS]) for block in range(BLOCKS)]
        self.subsets = most_subsets(plan.positions_yx_px, probe.detach().cpu().numpy())
        self._keeps = len(members) * plan.patch_px**2 <= KEPT_PIXELS
        self._kept: dict[int, Chunk] = {}

    @property
    def probe(self) -> Tensor:
        """Probe modes, shape (P, N, N) [sqrt(photons)]; a new one takes effect on the next pass."""
        return self._probe

    def change(
        self, *, probe: Tensor | None = None, shifts: Tensor | None = None, frame_gain: Tensor | None = None
    ) -> None:
        """Take refined values over; they take effect on the next pass.

        Parameters
        ----------
        probe : complex tensor, shape (P, N, N), optional
            Probe modes [sqrt(photons)].
        shifts : real tensor, shape (J, 2), optional
            Offset of the position from the corner of the plan, sub-pixel part and refinement [px].
        frame_gain : real tensor, shape (J,), optional
            Factor on the amplitude of every frame.
        """
        if probe is not None:
            self._probe = probe
        if shifts is not None:
            self.shifts, self._fixed = shifts, False
            self._laid = moved_plan(self.plan, shifts.cpu().numpy())
            self._rest = torch.from_numpy(self._laid.shifts_yx_px.astype(np.float32)).to(shifts.device)
        if frame_gain is not None:
            self.frame_gain, self._fixed = frame_gain, False
        for block, chunk in self._kept.items():
            self._kept[block] = self._placed(self._blocks[block], chunk.amplitude)

    @property
    def positions_yx_px(self) -> NDArray[np.float64]:
        """Patch centres as they are now, shape (J, 2) [object px]."""
        return self._laid.positions_yx_px

    def _moved(self, rows: Tensor) -> Tensor:
        if self._fixed:
            return self._probe
        gain = self.frame_gain[rows]
        moved = physics.shift_field(self._probe, self._rest[rows])
        return moved if bool((gain == 1).all()) else moved * gain[:, None, None, None]

    def __iter__(self) -> Iterator[Chunk]:
        return self.part(0, 1)

    def part(self, index: int, count: int) -> Iterator[Chunk]:
        """Yield the chunks of subset ``index`` of ``count``, 1 to ``BLOCKS``; each covers the canvas."""
        for block in range(index, BLOCKS, count):
            rows = self._blocks[block]
            if not len(rows):
                # A scan of fewer patterns than blocks; the FFT takes no empty batch.
                continue
            if self._keeps:
                # A small scan is read and shifted once, not once a step.
                if block not in self._kept:
                    self._kept[block] = self._chunk(rows)
                yield self._kept[block]
                continue
            for start in range(0, len(rows), self.size):
                yield self._chunk(rows[start : start + self.size])

    def _chunk(self, rows: NDArray[np.int64]) -> Chunk:
        return self._placed(rows, self.store.amplitude(self.members[rows]).to(self._probe.device))

    def _placed(self, rows: NDArray[np.int64], amplitude: Tensor) -> Chunk:
        device, at = self._probe.device, torch.from_numpy(rows).to(self._probe.device)
        corners = torch.from_numpy(self._laid.corners_yx[rows]).to(device)
        return Chunk(corners, self._moved(at), amplitude, self._rest[at], rows)
