"""Error bars of a reconstruction, from the information of its counts or from counts drawn again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho.data.chunks import ScanChunks
from ptycho.data.reconstruction import SCANNED_SHARE
from ptycho.data.scan import PatternStore
from ptycho.errors import ConfigError
from ptycho.evaluation.gauge import solve_gauge
from ptycho.physics.information import ERROR_SAMPLES, ObjectErrors, noise_changes, object_errors
from ptycho.process.progress import Progress
from ptycho.run.backend import Backend
from ptycho.solver.options import RefineOptions
from ptycho.solver.refinement import refine_shown

Array = Any
REPEATS = 5
"""Times that counts are drawn and the object is refined again."""


def check_uncertainty(kind: str | None, refined: RefineOptions | None) -> None:
    """Raise ``ConfigError`` where counts are to be drawn again and nothing is refined."""
    if kind == "bootstrap" and refined is None:
        raise ConfigError(
            "uncertainty: bootstrap refines the object again (got --uncertainty bootstrap with --refine 0, "
            "expected steps). Pass --refine 100, or --uncertainty fisher."
        )


def errors_of(
    kind: str | None,
    backend: Backend,
    obj: Array,
    chunks: ScanChunks,
    photons: float | None,
    refined: RefineOptions | None,
    progress: Progress,
) -> ObjectErrors | None:
    """Return one standard deviation of amplitude and phase of every pixel of an object (H, W) (eq. 31).

    ``kind`` is ``fisher``, for the probe, positions, frame factors and background that ``chunks`` hold now;
    ``bootstrap``, with all that was ``refined``; or None. ``photons`` are those of one unit of counts, None
    where nobody knows: then it is taken as one.
    """
    if kind is None:
        return None
    light = backend.array(backend.illumination(chunks)).astype(np.float64)
    known = backend.array(obj).astype(np.complex128)
    if kind == "fisher":
        changes = _shown(_noise(backend, obj, chunks, light), progress)
        return object_errors(known, light, changes).scaled(1.0 if photons is None else photons**-0.5)
    found = np.stack(list(_redone(backend, obj, chunks, light, photons or 1.0, refined, progress)))
    # About their mean, whose own error that leaves out.
    return object_errors(known, light, (found - found.mean(axis=0)) * np.sqrt(REPEATS / (REPEATS - 1)))


def _noise(
    backend: Backend, obj: Array, chunks: ScanChunks, light: NDArray[np.float64]
) -> Iterator[NDArray[np.complex128]]:
    """Yield changes of the object that photon noise makes, were a unit of counts one photon."""

    def score(change: NDArray[Any] | None, rng: np.random.Generator | None) -> NDArray[Any]:
        moved = None if change is None else backend.tensor(change.astype(np.complex64))
        total: Array = 0
        for chunk in chunks:
            noise = None
            if rng is not None:
                noise = backend.tensor(rng.standard_normal(tuple(chunk.amplitude.shape), np.float32))
            total = total + backend.primitives.count_score(obj, chunk, change=moved, noise=noise)
        return backend.array(total).astype(np.complex128)

    return noise_changes(score, light, ERROR_SAMPLES)


def _shown(changes: Iterator[Any], progress: Progress) -> Iterator[Any]:
    """Yield changes, and show how many there are."""
    with progress.phase("error bars", ERROR_SAMPLES) as phase:
        for index, change in enumerate(changes):
            yield change
            phase.update(index + 1)


class RedrawnStore:
    """The patterns of a store with counts drawn again, from Poisson laws whose means are the measured ones.

    The same patterns, asked for together, are the same again.
    """

    def __init__(self, store: PatternStore, photons: float, seed: int) -> None:
        self.store, self.photons, self.seed = store, photons, seed

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)

    def amplitude(self, indices: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return amplitudes as ``PatternStore.amplitude``."""
        measured = self.store.amplitude(indices)
        rng = np.random.default_rng([self.seed, *np.ravel(indices)[:1]])
        counts = rng.poisson(np.maximum(measured, 0).astype(np.float64) ** 2 * self.photons)
        return np.where(measured < 0, measured, np.sqrt(counts / self.photons)).astype(np.float32)


def _redone(
    backend: Backend,
    obj: Array,
    chunks: ScanChunks,
    light: NDArray[np.float64],
    photons: float,
    refined: RefineOptions | None,
    progress: Progress,
) -> Iterator[NDArray[np.complex128]]:
    """Yield by how much the object changes where it is refined again from other counts.

    Where probe or positions are refined too, object and probe may shift, tilt and scale together, which is
    taken out.
    """
    check_uncertainty("bootstrap", refined)
    options = replace(refined, start="network", probe_variation=0)
    known = backend.array(obj).astype(np.complex128)
    for number in range(REPEATS):
        store = RedrawnStore(chunks.store, photons, number)
        drawn = backend.chunks(store, chunks.plan, chunks.indices, chunks.probe)
        drawn.variation = chunks.variation
        drawn.change(
            shifts=chunks.shifts if options.moves_positions else None,
            frame_gain=chunks.frame_gain if options.frames else None,
            background=chunks.background,
        )
        name = f"refining again, {number + 1} of {REPEATS}"
        found = refine_shown(backend.primitives, drawn, obj, options, progress, name, subsets=1)
        again = backend.array(found.obj).astype(np.complex128)
        if options.probe or options.moves_positions:
            again = solve_gauge(again, known, light >= SCANNED_SHARE * light.max()).obj
        yield again - known
