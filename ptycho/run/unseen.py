"""What pixels that took no part say of a reconstruction (eq. 29), and the probe that they choose."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho.data.chunks import ScanChunks
from ptycho.data.hidden import UNSEEN, HidingStore, pixel_sets
from ptycho.data.scan import PatternStore, Scan
from ptycho.geometry.canvas import CANVAS_MULTIPLE_PX, plan_canvas
from ptycho.physics import measured_energy, poisson_loss
from ptycho.process.progress import Progress
from ptycho.run.reconstruction import Backend, fitted_probe

Array = Any


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

    def start(self, number: int) -> NDArray[np.complex64]:
        """Return the last two iterates (2, H, W) of plain iterations without one set of pixels."""
        if number not in self._starts:
            chunks = self._chunks(HidingStore(self.store, self.seed, number))
            if self._weight is None:
                self._weight = self.backend.illumination(chunks)
            last = self.backend.generator.plain_iterations(chunks, self._weight, subsets=chunks.subsets)
            self._starts[number] = np.stack([self.backend.array(obj) for obj in last])
        return self._starts[number]

    def unseen_deviance(self, obj: NDArray[np.complex64]) -> float:
        """Return the deviance per photon of the pixels that no training sees, for an object (H, W)."""
        missed = photons = 0.0
        known = self.backend.tensor(obj)
        for chunk in self._chunks(self.store):
            sets = pixel_sets(self.seed, self.indices[chunk.rows], self.store.n_px)
            unseen = np.where(sets == UNSEEN, self.backend.array(chunk.amplitude), -1).astype(np.float64)
            predicted = self.backend.array(self.backend.predicted(known, chunk, 0.0))
            energy = float(measured_energy(unseen))
            missed += float(poisson_loss(predicted.astype(np.float64), unseen)) * energy
            photons += energy
        return missed / photons if photons > 0 else 0.0

    def with_probe(self, probe: NDArray[np.complex64]) -> HiddenScan:
        """Return the same patterns under another probe (P, N, N) [sqrt(photons)]."""
        scan = replace(self.scan, probe=probe)
        return HiddenScan(self.backend, self.store, scan, self.indices, self.seed)


def better_probe(hidden: HiddenScan, progress: Progress) -> HiddenScan:
    """Return the patterns under a probe that was fitted to them where unseen pixels say that it is better
    than their own, else as they are; and say which.

    A fit follows the noise of few photons, and a probe that was right gets worse by it.
    """
    hiding = HidingStore(hidden.store, hidden.seed, UNSEEN)
    probe = fitted_probe(hidden.backend, hiding, hidden.scan, hidden.indices, progress)
    fitted = hidden.with_probe(probe)
    with progress.phase("comparing probes", 2) as phase:
        deviance = []
        for number, item in enumerate((hidden, fitted)):
            deviance.append(item.unseen_deviance(item.start(UNSEEN)[0]))
            phase.update(number + 1)
    own, other = deviance
    gain = 1 - other / own if own > 0 else 0.0
    share = f"unseen photons {abs(100 * gain):.2g} %"
    if gain > 0:
        progress.note(f"probe: fitted, which explains {share} better than that of the file")
        return fitted
    progress.note(f"probe: that of the file; a fitted one explains {share} worse")
    return hidden
