"""What pixels that took no part say of a reconstruction (eq. 29), and the probe that they choose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho.data.chunks import ScanChunks
from ptycho.data.hidden import UNSEEN, HidingStore, pixel_sets, well_covered
from ptycho.data.scan import PatternStore, Scan
from ptycho.geometry.canvas import CANVAS_MULTIPLE_PX, plan_canvas
from ptycho.physics import measured_energy
from ptycho.physics.misfit import poisson_deviance
from ptycho.process.progress import Progress
from ptycho.run.backend import Backend
from ptycho.run.network_object import plain_iterates
from ptycho.run.reconstruction import fitted_probe

Array = Any


CHANCE = 1.5
"""Standard errors by which what is new has to beat what stands. One is what chance does to a single trial;
the best of several is favoured by chance."""


def standard_error(gains: NDArray[np.float64]) -> float:
    """Return the standard error of the sum of differences (M,) between what two objects leave unexplained of
    M patterns: sqrt(M) std(d), since photons of different patterns are independent (eq. 29a)."""
    return float(np.sqrt(len(gains)) * gains.std(ddof=1)) if len(gains) > 1 else float("inf")


def beyond_chance(gains: NDArray[np.float64], errors: float = CHANCE) -> bool:
    """Return whether more photons are explained than chance alone would let be: by so many standard
    errors."""
    return bool(gains.sum() > errors * standard_error(gains))


def percent(before: NDArray[np.float64], after: NDArray[np.float64]) -> str:
    """Return by how many per cent the deviance of patterns (M,) differs from one before, in words."""
    gain = 1 - after.sum() / before.sum() if before.sum() > 0 else 0.0
    return f"{abs(100 * gain):.2g} %"


def not_better(before: NDArray[np.float64], after: NDArray[np.float64]) -> str:
    """Return in words by how much what gains no more than chance explains patterns (M,) worse or better."""
    told = "worse" if after.sum() > before.sum() else "better, which is chance"
    return f"{percent(before, after)} {told}"


class HiddenScan:
    """The patterns ``indices`` (T,), ascending, of a scan, one set of whose pixels is hidden at a time."""

    def __init__(
        self, backend: Backend, store: PatternStore, scan: Scan, indices: NDArray[np.int64], seed: int
    ) -> None:
        self.backend, self.store, self.scan = backend, store, scan
        self.indices, self.seed = indices, seed
        positions = scan.positions_yx_px[indices]
        self.plan = plan_canvas(positions, scan.patch_px, multiple_px=CANVAS_MULTIPLE_PX)
        self._starts: dict[int, NDArray[np.complex64]] = {}
        self._weight: Array = None

    def _chunks(self, store: Any) -> ScanChunks:
        return self.backend.chunks(store, self.plan, self.indices, self.backend.tensor(self.scan.probe))

    def hiding(self, number: int) -> ScanChunks:
        """Return the patterns without one set of pixels."""
        return self._chunks(HidingStore(self.store, self.seed, number))

    def start(self, number: int) -> NDArray[np.complex64]:
        """Return the last two iterates (2, H, W) of plain iterations without one set of pixels."""
        if number not in self._starts:
            chunks = self.hiding(number)
            if self._weight is None:
                self._weight = self.backend.illumination(chunks)
            last = plain_iterates(self.backend, chunks, self._weight)
            self._starts[number] = np.stack([self.backend.array(obj) for obj in last])
        return self._starts[number]

    def well_covered(self) -> NDArray[np.bool_]:
        """Tell which patterns (T,) are none of the rim."""
        return well_covered(self.plan.corners_yx, self.scan.probe)

    def deviance(
        self, obj: Array, judges: Sequence[int] = (UNSEEN,), among: NDArray[np.bool_] | None = None
    ) -> NDArray[np.float64]:
        """Return what an object (H, W) leaves unexplained of some sets of pixels, by default those that no
        training sees: the deviance of every pattern (T,), or of those ``among`` them, whose sum is that per
        photon."""
        among = np.ones(len(self.indices), bool) if among is None else among
        missed, photons = np.zeros(len(self.indices)), 0.0
        for chunk in self._chunks(self.store):
            sets = pixel_sets(self.seed, self.indices[chunk.rows], self.store.n_px)
            judged = np.isin(sets, judges) & among[chunk.rows, None, None]
            measured = self.backend.array(chunk.amplitude)
            unseen = np.where(judged, measured, -1).astype(np.float64)
            predicted = self.backend.array(self.backend.predicted(obj, chunk, 0.0))
            missed[chunk.rows] = poisson_deviance(predicted.astype(np.float64), unseen).sum(axis=(1, 2))
            photons += float(measured_energy(unseen))
        return missed[among] / photons if photons > 0 else missed[among]

    def fitted(self, number: int, progress: Progress) -> HiddenScan:
        """Return the same patterns under a probe that is fitted to them without one set of pixels."""
        hiding = HidingStore(self.store, self.seed, number)
        probe = fitted_probe(self.backend, hiding, self.scan, self.indices, progress)
        scan = replace(self.scan, probe=probe)
        return HiddenScan(self.backend, self.store, scan, self.indices, self.seed)


def better_probe(hidden: HiddenScan, progress: Progress) -> HiddenScan:
    """Return the patterns under a probe that was fitted to them where unseen pixels say that it is better
    than their own, else as they are; and say which.

    A fit follows the noise of few photons, and a probe that was right gets worse by it.
    """
    fitted = hidden.fitted(UNSEEN, progress)
    with progress.phase("comparing probes", 2) as phase:
        deviance = []
        for number, item in enumerate((hidden, fitted)):
            deviance.append(item.deviance(item.backend.tensor(item.start(UNSEEN)[0])))
            phase.update(number + 1)
    own, other = deviance
    if beyond_chance(own - other):
        share = percent(own, other)
        progress.note(f"probe: fitted, which explains unseen photons {share} better than that of the file")
        return fitted
    told = not_better(own, other)
    progress.note(f"probe: that of the file; a fitted one explains unseen photons {told}")
    return hidden
