"""Batches of a training run as NumPy arrays, the same for every backend.

Every batch holds ``amplitude`` (..., N, N) [sqrt(photons)], the ``corners`` (J, 2) and ``shifts`` (J, 2) [px]
of its patches on a canvas of ``shape`` (2,); in the near field the ``transfer`` (J, 2, N) (eq. 22); where
a detector pixel has K x K parts, their ``part_turns`` (K, M, N) (eq. 5b); where the scan has one, the
``background`` (N, N) (eq. 25); on request the ``probe`` (P, N, N) [sqrt(photons)] and
the ``input_scale`` () of its scan, the known patches ``labels`` (J, N, N), stored one by one, or cut from a
known object when they are asked for, and which patterns are ``seen`` by the network and which ``validated``
on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho.data.scan import PatternStore, Scan
from ptycho.errors import DataError
from ptycho.geometry.batches import group_plan, tile_plan
from ptycho.geometry.canvas import CanvasPlan
from ptycho.geometry.grouping import Groups, check_inside, object_patches
from ptycho.physics.pixel_parts import turns_of
from ptycho.physics.propagation import near_field_transfer

Batch = dict[str, NDArray[Any]]
Signature = dict[str, tuple[tuple[int | None, ...], type]]
"""Name -> shape, None where it differs from batch to batch, and dtype."""


@dataclass(frozen=True)
class Labels:
    """The known patch of every pattern, in the frame of its own position."""

    stored: NDArray[Any] | None  # (M, N, N), of the data file
    obj: NDArray[Any] | None  # (H, W), that patches are cut from where none are stored
    positions_yx_px: NDArray[np.float64]  # (M, 2), patch centres [object px]
    n_px: int  # their size [px]

    def of(self, indices: NDArray[np.int64]) -> NDArray[np.complex64]:
        """Return the known patches (J, N, N) [transmission] of J pattern indices of any shape."""
        rows = np.asarray(indices).reshape(-1)
        if self.stored is not None:
            return np.ascontiguousarray(self.stored[rows], dtype=np.complex64)
        return object_patches(np.asarray(self.obj), self.positions_yx_px[rows], self.n_px)


def wanted_labels(wanted: bool, scan: Scan | None) -> Labels | None:
    """Return the labels of a scan, where they are wanted and there is a scan."""
    return scan_labels(scan) if wanted and scan is not None else None


def scan_labels(scan: Scan) -> Labels:
    """Find the known patches: ``Y``, else ``label``, else cut from ``objectGuess``; else ``DataError``."""
    raw = scan.raw
    stored = raw.Y if raw.Y is not None else raw.label
    if scan.patch_px != scan.n_px:
        stored = None  # patches of another size
    if stored is not None:
        return Labels(stored.reshape(raw.diff3d.shape), None, scan.positions_yx_px, scan.n_px)
    if raw.objectGuess is None:
        raise DataError(
            f"{scan.name}: there are no labels to compare with (got neither Y, label nor objectGuess, "
            "expected one of them). Add one to the file, or set --model-type pinn and "
            "--realspace-mae-weight 0."
        )
    check_inside(raw.objectGuess.shape, scan.positions_yx_px, scan.patch_px, scan.name)
    return Labels(None, raw.objectGuess, scan.positions_yx_px, scan.patch_px)


class _Source:
    """What both kinds of batches have; ``signature`` announces names, shapes and dtypes of every batch."""

    def __init__(
        self,
        store: PatternStore,
        scan: Scan,
        lead: tuple[int | None, ...],
        own_probe: bool,
        own_scale: bool,
        labels: Labels | None,
    ) -> None:
        self.store, self.patch_px, self.labels = store, scan.patch_px, labels
        self.probe = scan.probe if own_probe else None
        self.input_scale = np.array(scan.record.input_scale, np.float32) if own_scale else None
        self.fresnel_number, self.background = scan.fresnel_number, scan.background
        turns = turns_of(scan.n_px, scan.detector_upsampling, scan.patch_px)
        self.turns = None if turns is None else turns.astype(np.complex64)
        self.signature: Signature = {
            "corners": ((None, 2), np.int64),
            "shifts": ((None, 2), np.float32),
            "shape": ((2,), np.int32),
            "amplitude": ((*lead, scan.n_px, scan.n_px), np.float32),
        }
        if self.fresnel_number is not None:
            self.signature["transfer"] = ((None, 2, scan.n_px), np.complex64)
        if self.turns is not None:
            self.signature["part_turns"] = (self.turns.shape, np.complex64)
        if self.background is not None:
            self.announce_background(self.background)
        if own_probe:
            self.signature["probe"] = (scan.probe.shape, np.complex64)
        if own_scale:
            self.signature["input_scale"] = ((), np.float32)
        if labels is not None:
            self.signature["labels"] = ((None, scan.patch_px, scan.patch_px), np.complex64)

    def announce_background(self, background: NDArray[np.float32]) -> None:
        """Put a background (N, N) [photons / pixel] into every batch."""
        self.background = background
        self.signature["background"] = (background.shape, np.float32)

    def _batch(self, indices: NDArray[np.int64], plan: CanvasPlan) -> Batch:
        """Return the patterns at their places, and what is asked for beside them."""
        batch: Batch = {
            "corners": plan.corners_yx,
            "shifts": plan.shifts_yx_px.astype(np.float32),
            "shape": np.array(plan.shape_yx, np.int32),
            "amplitude": self.store.amplitude(indices),
        }
        if self.fresnel_number is not None:
            batch["transfer"] = near_field_transfer(self.patch_px, self.fresnel_number, batch["shifts"])
        if self.turns is not None:
            batch["part_turns"] = self.turns
        if self.background is not None:
            batch["background"] = self.background
        if self.probe is not None:
            batch["probe"] = self.probe
        if self.input_scale is not None:
            batch["input_scale"] = self.input_scale
        if self.labels is not None:
            batch["labels"] = self.labels.of(indices)
        return batch


class TileSource(_Source):
    """Square tiles of a scan, one around each of the patterns ``indices`` (T,): for a network of the canvas.

    Patterns ``held_out`` validate and are not seen by the network; without any, it validates on what it sees.
    ``own_probe`` sends the probe of the scan along, where the model was made for another scan, ``own_scale``
    the scale of its patterns, where several are trained on.
    """

    def __init__(
        self,
        store: PatternStore,
        scan: Scan,
        indices: NDArray[np.int64],
        *,
        held_out: NDArray[np.int64] | None = None,
        own_probe: bool = False,
        own_scale: bool = False,
        labels: Labels | None = None,
    ) -> None:
        super().__init__(store, scan, (None,), own_probe, own_scale, labels)
        self.indices = np.sort(indices)
        self.positions = scan.positions_yx_px[self.indices]
        self.validated = np.isin(self.indices, held_out) if held_out is not None else None
        if held_out is not None:
            self.signature |= {"validated": ((None,), bool), "seen": ((None,), bool)}

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, centre: int) -> Batch:
        """Return the tile around pattern ``indices[centre]``."""
        local, plan = tile_plan(self.positions, centre, self.patch_px)
        batch = self._batch(self.indices[local], plan)
        if self.validated is not None:
            validated = self.validated[local]
            if validated.all() or not validated.any():
                batch["validated"] = batch["seen"] = np.ones(len(local), bool)
            else:
                batch |= {"validated": validated, "seen": ~validated}
        return batch


class GroupSource(_Source):
    """Batches of overlapping groups of patterns, for networks that see a group at a time.

    ``merge`` lays the patches of a group on one canvas (``object_big``); else each stands alone.
    """

    def __init__(
        self,
        store: PatternStore,
        scan: Scan,
        groups: Groups,
        *,
        merge: bool,
        own_probe: bool = False,
        own_scale: bool = False,
        labels: Labels | None = None,
    ) -> None:
        super().__init__(store, scan, (None, groups.indices.shape[1]), own_probe, own_scale, labels)
        self.groups, self.merge = groups, merge

    def __len__(self) -> int:
        return len(self.groups.indices)

    def __getitem__(self, rows: list[int] | NDArray[np.int64]) -> Batch:
        """Return the groups of a batch."""
        indices, plan = group_plan(self.groups, rows, self.patch_px, merge=self.merge)
        return self._batch(indices, plan)


class JoinedSource:
    """Batches of several sources, one for each scan; the items of one follow those of the one before."""

    def __init__(self, sources: Sequence[TileSource | GroupSource]) -> None:
        known = [source.background for source in sources if source.background is not None]
        for source in sources:
            # Batches of one run hold the same: a scan without a background counts none.
            if known and source.background is None:
                source.announce_background(np.zeros_like(known[0]))
        self.sources, self.signature = tuple(sources), sources[0].signature
        self.ends = np.cumsum([len(source) for source in sources])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def start(self, number: int) -> int:
        """Return the item that is the first one of a source."""
        return int(self.ends[number]) - len(self.sources[number])

    def __getitem__(self, item: Any) -> Batch:
        """Return the batch of an item, or of the items of one source."""
        number = int(np.searchsorted(self.ends, np.min(item), side="right"))
        return self.sources[number][np.asarray(item) - self.start(number)]


Source = TileSource | GroupSource | JoinedSource
