"""A scan as chunks of patterns, in subsets that each cover the canvas: what the solver goes through."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho.data.reconstruction import ProbeVariation
from ptycho.data.scan import PatternStore
from ptycho.data.variation import VaryingProbe
from ptycho.geometry.batches import CHUNK_PIXELS, KEPT_PIXELS, lit_area_px, most_subsets, subset_blocks
from ptycho.geometry.canvas import CanvasPlan, moved_plan
from ptycho.geometry.deformation import Deformation
from ptycho.physics.background import background_step
from ptycho.physics.detector import Detector
from ptycho.physics.pixel_parts import turns_of
from ptycho.physics.propagation import near_field_transfer
from ptycho.process.interrupts import step
from ptycho.solver.schedule import BACKGROUND_BLUR_PX, NEAR_POSITION_STEP

Array = Any


def _power(field: NDArray[Any]) -> float:
    return float((field.real**2 + field.imag**2).sum(dtype=np.float64))


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
    # probes (J, P, N, N) from one (P, N, N), variable modes (K, N, N) and weights (J, 1 + K) (eq. 26)
    varied: Callable[[Array, Array, Array], Array]
    # probes (..., P, N, N) in the parts of detector pixels, by their turns (K, M, N) or None (eq. 5b)
    parted: Callable[[Array, Array], Array]
    chunk: Callable[..., Any]  # a chunk of corners, probes, amplitude, shifts, rows, detector and variation

    def __init__(
        self, store: PatternStore, plan: CanvasPlan, indices: NDArray[np.int64], probe: Array
    ) -> None:
        self.store, self.plan, self.indices, self._probe = store, plan, indices, probe
        self.shifts = self.tensor(plan.shifts_yx_px.astype(np.float32))
        known = store.frame_gain
        self.frame_gain = self.tensor(np.ones(len(indices), np.float32) if known is None else known[indices])
        self._fixed, self._even = plan.is_integer and known is None, known is None
        self.background = None if store.background is None else self.tensor(store.background)
        self._laid, self._rest = plan, self.shifts
        upsampling = store.detector_upsampling
        turns = turns_of(store.n_px, upsampling, plan.patch_px)
        self._turns = None if turns is None else self.tensor(turns.astype(np.complex64))
        pixels = (upsampling * plan.patch_px) ** 2  # that the waves of a mode fall on
        self.size = max(1, CHUNK_PIXELS // pixels)
        # Within a block rows ascend, so that reading goes forward through the file.
        self._blocks = subset_blocks(plan.positions_yx_px)
        self.subsets = most_subsets(plan.positions_yx_px, self.array(probe))
        self._keeps = len(indices) * pixels <= KEPT_PIXELS
        self._kept: dict[int, Any] = {}
        self._fields: Deformation | None = None
        self.position_step_px: float | None = None  # rms of how far positions moved last
        self._varying: VaryingProbe | None = None
        self._modes: Array = None
        self._weights: NDArray[np.float32] | None = None  # of mean probe and variable modes, (J, 1 + K)

    @property
    def probe(self) -> Array:
        """Probe modes (P, N, N) [sqrt(photons)]; a new one takes effect when the scan is read again."""
        return self._probe

    @property
    def wave_pixels(self) -> int:
        """Pixels of the exit waves of all patterns and modes."""
        return len(self.indices) * int(np.prod(self._probe.shape)) * self.store.detector_upsampling**2

    @property
    def positions_yx_px(self) -> NDArray[np.float64]:
        """Patch centres as they are now, shape (J, 2) [object px]."""
        return self._laid.positions_yx_px

    def change(
        self,
        *,
        probe: Array = None,
        shifts: Array = None,
        frame_gain: Array = None,
        background: Array = None,
    ) -> None:
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
        if background is not None:
            self.background = background
        probes_change = any(value is not None for value in (probe, shifts, frame_gain))
        for block, chunk in self._kept.items():
            if probes_change:
                self._kept[block] = self._placed(self._blocks[block], chunk.amplitude)
            else:
                detector = chunk.detector._replace(background=self.background)
                self._kept[block] = chunk._replace(detector=detector)

    def next_background(self, sums: dict[str, Array]) -> Array:
        """As ``ptycho.solver.primitives.Patterns.next_background``."""
        excess, weight = self.array(sums["excess"]), self.array(sums["weight"])
        before = 0.0 if self.background is None else self.array(self.background)
        return self.tensor(background_step(before, excess, weight, BACKGROUND_BLUR_PX).astype(np.float32))

    def start_variation(self, count: int, search_steps: int) -> None:
        """As ``ptycho.solver.primitives.Patterns.start_variation``."""
        self._varying = VaryingProbe(len(self.indices), count, self.plan.patch_px, search_steps)
        self._take_varied(self._varying, self.array(self._probe))
        self.change(probe=self._probe)

    def _take_varied(self, varying: VaryingProbe, probe: NDArray[Any]) -> None:
        weights = varying.weights(_power(probe[0])).astype(np.float32)
        self.variation = ProbeVariation(varying.modes.astype(np.complex64), weights)

    def vary(self, sums: dict[str, Array], found: Sequence[Any]) -> dict[str, Array]:
        """As ``ptycho.solver.primitives.Patterns.vary``."""
        rows = np.concatenate([part["rows"] for part in found])
        gradient, power = (self.array(sums[f"variation_{name}"]) for name in ("gradient", "power"))
        equations = (self._told(found, f"variation_{name}") for name in ("normal", "right"))
        self._varying.step(gradient, power, rows, *equations)
        # In single precision: not every device knows double.
        moments = self._varying.moments()
        return {name: self.tensor(value.astype(np.float32)) for name, value in moments.items()}

    def settle(
        self, sums: dict[str, Array], count: Array, probe: Array, before: Array, start: Array
    ) -> tuple[Array, Array]:
        """As ``ptycho.solver.primitives.Patterns.settle``."""
        moments = {name: self.array(value) for name, value in sums.items()}
        new, old = self.array(probe).copy(), self.array(before).copy()
        offset = self._varying.settle(moments, float(count), new)
        new[0] += offset
        old[0] += offset
        factor = np.sqrt(_power(self.array(start)) / _power(new))
        self._varying.scale(factor)
        self._take_varied(self._varying, factor * new)
        return self.tensor((factor * new).astype(np.complex64)), self.tensor(old)

    @property
    def variation(self) -> ProbeVariation | None:
        """How the probe changes from pattern to pattern, where it does; given before the scan is read."""
        return None if self._weights is None else ProbeVariation(self.array(self._modes), self._weights)

    @variation.setter
    def variation(self, found: ProbeVariation | None) -> None:
        if found is not None:
            self._modes, self._weights = self.tensor(found.modes), found.weights

    def _variation(self, rows: NDArray[np.int64]) -> tuple[Array, Array] | None:
        """Return the variable modes and the weights of some patterns, where the probe changes."""
        return None if self._weights is None else (self._modes, self.tensor(self._weights[rows]))

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
            step()
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
                step()
                yield self._read(rows[start : start + self.size])

    def _read(self, rows: NDArray[np.int64]) -> Any:
        return self._placed(rows, self.tensor(self.store.amplitude(self.indices[rows])))

    def _placed(self, rows: NDArray[np.int64], amplitude: Array) -> Any:
        corners, shifts = self.tensor(self._laid.corners_yx[rows]), self.take(self._rest, rows)
        probes, variation = self._probe, self._variation(rows)
        if variation is not None:
            probes = self.varied(probes, *variation)
        if not self._fixed:
            probes = self.shifted(probes, shifts)
        if not self._even:
            probes = self.scaled(probes, self.take(self.frame_gain, rows))
        probes = self.parted(probes, self._turns)
        detector = self._detector(rows)
        return self.chunk(corners, probes, amplitude, shifts, rows, detector, variation=variation)

    def _detector(self, rows: NDArray[np.int64]) -> Detector:
        """Return how the detector saw some patterns (eq. 5b, 22, 25)."""
        if self.store.fresnel_number is None:
            return Detector(None, self.background, self._turns)
        shifts = self._laid.shifts_yx_px[rows].astype(np.float32)
        transfer = near_field_transfer(self.plan.patch_px, self.store.fresnel_number, shifts)
        return Detector(self.tensor(transfer), self.background)
