"""Error bars of a reconstruction from the Fisher information of its counts, over arrays of a backend."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ptycho.data.chunks import ScanChunks
from ptycho.physics.information import ERROR_SAMPLES, ObjectErrors, noise_changes, object_errors
from ptycho.process.progress import Progress
from ptycho.solver.primitives import Primitives

Array = Any


class Backend(Protocol):
    """What error bars need of a backend; as ``ptycho.run.reconstruction.Backend``."""

    primitives: Primitives

    def tensor(self, values: NDArray[Any]) -> Array:
        """Return values as an array of the backend."""

    def array(self, tensor: Array) -> NDArray[Any]:
        """Return an array of the backend as NumPy values."""


def fisher_errors(
    backend: Backend,
    obj: Array,
    chunks: ScanChunks,
    illumination: Array,
    photons: float | None,
    progress: Progress,
) -> ObjectErrors:
    """Return one standard deviation of amplitude and phase of every pixel of an object (H, W), for the probe,
    positions, frame factors and background that ``chunks`` hold now (eq. 32).

    ``photons`` are those of one unit of counts, None where nobody knows: then it is taken as one.
    """
    light = backend.array(illumination).astype(np.float64)
    known = backend.array(obj).astype(np.complex128)

    def score(change: NDArray[Any] | None, rng: np.random.Generator | None) -> NDArray[Any]:
        moved = None if change is None else backend.tensor(change.astype(np.complex64))
        total: Array = 0
        for chunk in chunks:
            noise = None
            if rng is not None:
                noise = backend.tensor(rng.standard_normal(tuple(chunk.amplitude.shape), np.float32))
            total = total + backend.primitives.count_score(obj, chunk, change=moved, noise=noise)
        return backend.array(total).astype(np.complex128)

    with progress.phase("error bars", ERROR_SAMPLES) as phase:

        def shown() -> Any:
            for index, change in enumerate(noise_changes(score, light, ERROR_SAMPLES)):
                yield change
                phase.update(index + 1)

        found = object_errors(known, light, shown())
    return found.scaled(1.0 if photons is None else photons**-0.5)
