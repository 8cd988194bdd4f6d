"""A scan as chunks of patterns, in subsets that each cover the canvas: what the solver goes through."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho.data.scan import PatternStore
from ptycho.geometry.batches import CHUNK_PIXELS, KEPT_PIXELS, lit_area_px, most_subsets, subset_blocks
from ptycho.geometry.canvas import CanvasPlan, moved_plan
from ptycho.geometry.deformation import Deformation
from ptycho.physics.propagation import near_field_transfer
from ptycho.solver.schedule import NEAR_POSITION_STEP

Array = Any


class ScanChunks:
    """The patterns ``indices`` (J,) of a scan on a canvas, as ``ptycho.solver.primitives.Patterns``.

    A small scan is read, and its probe shifted, once; a large one anew in every iteration.
    """

    # What a backend supplies:
    tensor: Callable[[NDArray[Any]], Array]  # values as an array of the backend, where the probe is
    array: Callable[[Array], NDArray[Any]]  # an array of the backend as NumPy values
    take: Callable[[Array, NDArray[np.int64]], Array]  # some rows
    shifted: Callable[[Array, Array], Array]  # a probe (J, P, N, N) moved by each of the shifts (J, 2) [px]
    scaled: Callable[[Array, Array], Array]  # probes (J, P, N, N) times the factors (J,)
    chunk: Callable[..., Any]  # a chunk of corners, probes, amplitude, shifts, rows and transfer

    def __init__(
        self, store: PatternStore, plan: CanvasPlan, indices: NDArray[np.int64], probe: Array
    ) -> None:
        self.store, self.plan, self.indices, self._probe = store, plan, indices, probe
        self.shifts = self.tensor(plan.shifts_yx_px.astype(np.float32))
        self.frame_gain = self.tensor(np.ones(len(indices), np.float32))
        self._fixed, self._even = plan.is_integer, True
        self._laid, self._rest = plan, self.shifts
        self.size = max(1, CHUNK_PIXELS // plan.patch_px**2)
        # Within a block rows ascend, so that reading goes forward through the file.
        self._blocks = subset_blocks(plan.positions_yx_px)
        self.subsets = most_subsets(plan.positions_yx_px, self.array(probe))
        self._keeps = len(indices) * plan.patch_px**2 <= KEPT_PIXELS
        self._kept: dict[int, Any] = {}
        self._fields: Deformation | None = None
        self.position_step_px: float | None = None  # rms of how far positions moved last

    @property
    def probe(self) -> Array:
        """Probe modes (P, N, N) [sqrt(photons)]; a new one takes effect when the scan is read again."""
        return self._probe

    @property
    def wave_pixels(self) -> int:
        """Pixels of the exit waves of all patterns and modes."""
        return len(self.indices) * int(np.prod(self._probe.shape))

    @property
    def positions_yx_px(self) -> NDArray[np.float64]:
        """Patch centres as they are now, shape (J, 2) [object px]."""
        return self._laid.positions_yx_px

    def change(self, *, probe: Array = None, shifts: Array = None, frame_gain: Array = None) -> None:
        """Take refined values over, as ``ptycho.solver.primitives.Patterns.change``."""
        if probe is not None:
            self._probe = probe
        if shifts is not None:
            moved = self.array(shifts) - self.array(self.shifts)
            self.position_step_px = float(np.sqrt((moved**2).sum(axis=1).mean()))
            self.shifts, self._fixed = shifts, False
            self._laid = moved_plan(self.plan, self.array(shifts))
            self._rest = self.tensor(self._laid.shifts_yx_px.astype(np.float32))
        if frame_gain is not None:
            self.frame_gain, self._fixed, self._even = frame_gain, False, False
        for block, chunk in self._kept.items():
            self._kept[block] = self._placed(self._blocks[block], chunk.amplitude)

    def _told(self, found: Sequence[Any], name: str) -> NDArray[np.float64]:
        return np.concatenate([self.array(part[name]) for part in found]).astype(np.float64)

    @property
    def _places_yx_px(self) -> NDArray[np.float64]:
        """Patch centres as indices on the canvas, shape (J, 2)."""
        return self._laid.positions_yx_px - self.plan.origin_yx_px

    def position_steps(
        self, found: Sequence[Any], ridge: Array, limit_px: float, deformation: Any = None
    ) -> Array:
        """Return how far positions move, as ``ptycho.solver.primitives.Patterns.position_steps``."""
        rows = np.concatenate([part["rows"] for part in found])
        normal, right = self._told(found, "normal"), self._told(found, "right")
        if deformation is not None:
            fields, coefficients = deformation
            strain = fields.gradients(self._places_yx_px[rows]) @ coefficients
            right = right + (normal[:, :, 2:] @ strain.reshape(-1, 4, 1))[:, :, 0]
        ridged = normal[:, :2, :2] + float(ridge) * np.eye(2)
        steps = np.zeros((len(self.indices), 2), np.float32)
        length = 1.0 if self.store.fresnel_number is None else NEAR_POSITION_STEP
        found_px = length * np.linalg.solve(ridged, right[:, :2, None])[:, :, 0]
        steps[rows] = found_px.clip(-limit_px, limit_px)
        return self.tensor(steps)

    def deformation_sums(self, found: Sequence[Any], *, affine: bool) -> dict[str, Array]:
        """As ``ptycho.solver.primitives.Patterns.deformation_sums``."""
        if self._fields is None:
            radius_px = float(np.sqrt(lit_area_px(self.array(self._probe)) / np.pi))
            places, shape = self._places_yx_px, self.plan.shape_yx
            self._fields = Deformation.of_scan(places, shape, radius_px, affine=affine)
        places, total = self._places_yx_px, 0.0
        for part in found:
            own = self._told([part], "normal"), self._told([part], "right")
            normal, right = self._fields.sums(places[part["rows"]], *own)
            total = total + np.column_stack([normal, right])
        return {"deformation": self.tensor(np.asarray(total, np.float32))}

    def deformation(self, sums: dict[str, Array]) -> tuple[Any, Array]:
        """As ``ptycho.solver.primitives.Patterns.deformation``."""
        total = self.array(sums["deformation"]).astype(np.float64)
        coefficients = self._fields.solve(total[:, :-1], total[:, -1])
        moved = self._fields.field(coefficients, self._places_yx_px)
        return (self._fields, coefficients), self.tensor(moved.astype(np.float32))

    def deformed(self, obj: Array, deformation: Any, offset_yx_px: Array) -> Array:
        """As ``ptycho.solver.primitives.Patterns.deformed``."""
        fields, coefficients = deformation
        offset = self.array(offset_yx_px).astype(np.float64)
        return self.tensor(fields.warped(self.array(obj), coefficients, offset))

    def __iter__(self) -> Iterator[Any]:
        return self.part(0, 1)

    def part(self, index: int, count: int) -> Iterator[Any]:
        """Yield the chunks of subset ``index`` of ``count``; each subset covers the canvas."""
        for block in range(index, len(self._blocks), count):
            rows = self._blocks[block]
            if not len(rows):
                # A scan of fewer patterns than blocks; the FFT takes no empty batch.
                continue
            if self._keeps:
                if block not in self._kept:
                    self._kept[block] = self._read(rows)
                yield self._kept[block]
                continue
            for start in range(0, len(rows), self.size):
                yield self._read(rows[start : start + self.size])

    def _read(self, rows: NDArray[np.int64]) -> Any:
        return self._placed(rows, self.tensor(self.store.amplitude(self.indices[rows])))

    def _placed(self, rows: NDArray[np.int64], amplitude: Array) -> Any:
        corners, shifts = self.tensor(self._laid.corners_yx[rows]), self.take(self._rest, rows)
        probes = self._probe
        if not self._fixed:
            probes = self.shifted(self._probe, shifts)
        if not self._even:
            probes = self.scaled(probes, self.take(self.frame_gain, rows))
        return self.chunk(corners, probes, amplitude, shifts, rows, self._transfer(rows))

    def _transfer(self, rows: NDArray[np.int64]) -> Array | None:
        """Return the transfer (J, 2, N) of some patterns where the detector is in the near field (eq. 22)."""
        if self.store.fresnel_number is None:
            return None
        shifts = self._laid.shifts_yx_px[rows].astype(np.float32)
        return self.tensor(near_field_transfer(self.plan.patch_px, self.store.fresnel_number, shifts))
