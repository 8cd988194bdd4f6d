"""Patterns on their way into TensorFlow: a memory-mapped store, and the batches each architecture trains on.

A store lives in a scratch directory that goes away with it, so that memory does not grow with the scan.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ptycho.data.canonical import CHUNK
from ptycho.data.labels import Labels
from ptycho.data.scaling import measured_amplitude
from ptycho.data.scan import Scan
from ptycho.geometry.batches import CHUNK_PIXELS, KEPT_PIXELS, group_plan, tile_plan
from ptycho.geometry.canvas import CanvasPlan, moved_plan
from ptycho.geometry.grouping import Groups
from ptycho.geometry.subsets import most_subsets, subset_order
from ptycho.process.progress import Progress
from ptycho.solver.schedule import BLOCKS
from ptycho.tf import physics
from ptycho.tf.runtime import as_complex, tf
from ptycho.tf.solver import Chunk


class PatternStore:
    """Measured amplitudes of a scan in a memory-mapped file.

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
        shape, path = (count, n_px, n_px), self.folder / "amplitude.memmap"
        self._patterns: Any = np.memmap(path, dtype=np.float32, mode="w+", shape=shape)
        with progress.phase("reading", count) as phase:
            for start in range(0, count, CHUNK):
                rows = slice(start, start + CHUNK)
                block = measured_amplitude(scan.raw.diff3d[rows], scan.record, scan.raw.bad_pixels_of(rows))
                self._patterns[rows] = block
                phase.update(min(start + CHUNK, count))

    def amplitude(self, indices: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return measured amplitudes.

        Parameters
        ----------
        indices : int array, any shape S
            Which patterns.

        Returns
        -------
        float32 array, shape (*S, N, N)
            Amplitude [sqrt(photons)], in memory; negative where nothing was measured.
        """
        return np.asarray(self._patterns[indices])

    def close(self) -> None:
        """Remove the scratch directory."""
        self._patterns = None
        self._scratch.cleanup()

    def __enter__(self) -> PatternStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class BatchSource(Protocol):
    """Something that makes the batch of an item, and knows the shape of what it makes."""

    signature: dict[str, Any]

    def __getitem__(self, item: Any) -> dict[str, NDArray[Any]]:
        """Return a batch."""


def _signature(
    scan: Scan, *amplitude_axes: int | None, own_probe: bool, labels: Labels | None
) -> dict[str, Any]:
    """Return the shapes and dtypes that every batch has."""
    found = {
        "corners": tf.TensorSpec([None, 2], tf.int64),
        "shifts": tf.TensorSpec([None, 2], tf.float32),
        "shape": tf.TensorSpec([2], tf.int32),
        "amplitude": tf.TensorSpec([*amplitude_axes, scan.n_px, scan.n_px], tf.float32),
    }
    if own_probe:
        found["probe"] = tf.TensorSpec(scan.probe.shape, tf.complex64)
    if labels is not None:
        found["labels"] = tf.TensorSpec([None, scan.n_px, scan.n_px], tf.complex64)
    return found


def _placed(plan: CanvasPlan) -> dict[str, NDArray[Any]]:
    return {
        "corners": plan.corners_yx,
        "shifts": plan.shifts_yx_px.astype(np.float32),
        "shape": np.array(plan.shape_yx, np.int32),
    }


class TileSource:
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
        self.probe, self.labels = scan.probe if own_probe else None, labels
        self.signature = _signature(scan, None, own_probe=own_probe, labels=labels)
        if held_out is not None:
            self.signature |= {name: tf.TensorSpec([None], tf.bool) for name in ("judged", "seen")}

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, centre: int) -> dict[str, NDArray[Any]]:
        """Return the tile around member ``centre``."""
        local, plan = tile_plan(self.positions, centre, self.n_px)
        batch = _placed(plan) | {"amplitude": self.store.amplitude(self.members[local])}
        if self.judged is not None:
            judged = self.judged[local]
            parted = judged.any() and not judged.all()
            every = np.ones(len(local), bool)
            batch |= {"judged": judged, "seen": ~judged} if parted else {"judged": every, "seen": every}
        if self.probe is not None:
            batch["probe"] = self.probe
        if self.labels is not None:
            batch["labels"] = self.labels.of(self.members[local])
        return batch


class GroupSource:
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
        self.n_px = scan.n_px
        self.probe, self.labels = scan.probe if own_probe else None, labels
        size = groups.indices.shape[1]
        self.signature = _signature(scan, None, size, own_probe=own_probe, labels=labels)

    def __len__(self) -> int:
        return len(self.groups.indices)

    def __getitem__(self, rows: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """Return the groups of a batch."""
        indices, plan = group_plan(self.groups, rows, self.n_px, merge=self.merge)
        batch = _placed(plan) | {"amplitude": self.store.amplitude(indices)}
        if self.probe is not None:
            batch["probe"] = self.probe
        if self.labels is not None:
            batch["labels"] = self.labels.of(indices)
        return batch


def stream(source: BatchSource, order: Sequence[Any]) -> tf.data.Dataset:
    """Return the batches of an epoch; the next one is prepared while one is computed.

    Parameters
    ----------
    source : TileSource or GroupSource
        Makes the batches.
    order : sequence
        What to ask the source for, in this order.

    Returns
    -------
    tf.data.Dataset
        Dictionaries of tensors, one for each item.
    """
    made = tf.data.Dataset.from_generator(
        lambda: (source[item] for item in order), output_signature=source.signature
    )
    return made.prefetch(1)


class ScanChunks:
    """A scan as chunks, read anew on every pass.

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
        Probe modes [sqrt(photons)].

    Attributes
    ----------
    subsets : int
        Most subsets that a pass may be cut into.
    """

    def __init__(
        self, store: PatternStore, plan: CanvasPlan, members: NDArray[np.int64], probe: tf.Tensor
    ) -> None:
        self.store, self.plan, self.members, self._probe = store, plan, members, probe
        self.shifts = tf.constant(plan.shifts_yx_px, tf.float32)
        self.frame_gain = tf.ones(len(members))
        self._fixed, self._even = plan.is_integer, True
        self._laid, self._rest = plan, self.shifts
        self.size = max(1, CHUNK_PIXELS // plan.patch_px**2)
        order = subset_order(plan.positions_yx_px)
        # Within a block rows ascend, so that reading goes forward through the file.
        self._blocks = [np.sort(order[block::BLOCKS]) for block in range(BLOCKS)]
        self.subsets = most_subsets(plan.positions_yx_px, probe.numpy())
        self._keeps = len(members) * plan.patch_px**2 <= KEPT_PIXELS
        self._kept: dict[int, Chunk] = {}

    @property
    def probe(self) -> tf.Tensor:
        """Probe modes, shape (P, N, N) [sqrt(photons)]."""
        return self._probe

    def change(
        self,
        *,
        probe: tf.Tensor | None = None,
        shifts: tf.Tensor | None = None,
        frame_gain: tf.Tensor | None = None,
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
            self._laid = moved_plan(self.plan, shifts.numpy())
            self._rest = tf.constant(self._laid.shifts_yx_px, tf.float32)
        if frame_gain is not None:
            self.frame_gain, self._fixed, self._even = frame_gain, False, False
        for block, chunk in self._kept.items():
            self._kept[block] = self._placed(self._blocks[block], chunk.amplitude)

    @property
    def positions_yx_px(self) -> NDArray[np.float64]:
        """Patch centres as they are now, shape (J, 2) [object px]."""
        return self._laid.positions_yx_px

    def _moved(self, rows: NDArray[np.int64]) -> tf.Tensor:
        if self._fixed:
            return self._probe
        moved = physics.shift_field(self._probe, tf.gather(self._rest, rows))
        return (
            moved if self._even else moved * as_complex(tf.gather(self.frame_gain, rows))[:, None, None, None]
        )

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
        return self._placed(rows, tf.constant(self.store.amplitude(self.members[rows])))

    def _placed(self, rows: NDArray[np.int64], amplitude: tf.Tensor) -> Chunk:
        corners = tf.constant(self._laid.corners_yx[rows])
        return Chunk(corners, self._moved(rows), amplitude, tf.gather(self._rest, rows), rows)
