"""Measured amplitudes of a scan in a memory-mapped file, so that memory does not grow with the scan."""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho.data.canonical import CHUNK
from ptycho.data.scaling import measured_amplitude
from ptycho.data.scan import Scan
from ptycho.process.progress import Progress


class PatternStore:
    """The amplitudes (M, N, N) of a scan [sqrt(photons)], float32; negative where nothing was measured.

    Use it as a context manager; its scratch folder is removed at the end, also after an error.
    """

    def __init__(self, scan: Scan, progress: Progress) -> None:
        self._scratch = tempfile.TemporaryDirectory(prefix="ptychopinn-", ignore_cleanup_errors=True)
        self.folder = Path(self._scratch.name)
        count, n_px = scan.n_patterns, scan.n_px
        shape, path = (count, n_px, n_px), self.folder / "amplitude.memmap"
        self.patterns: Any = np.memmap(path, dtype=np.float32, mode="w+", shape=shape)
        with progress.phase("reading", count) as phase:
            for start in range(0, count, CHUNK):
                rows = slice(start, start + CHUNK)
                block = measured_amplitude(scan.raw.diff3d[rows], scan.record, scan.raw.bad_pixels_of(rows))
                self.patterns[rows] = block
                phase.update(min(start + CHUNK, count))

    def amplitude(self, indices: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the amplitudes (\\*S, N, N) of patterns, indices of any shape S, in memory."""
        return np.asarray(self.patterns[indices])

    def close(self) -> None:
        """Remove the scratch folder."""
        self.patterns = None
        self._scratch.cleanup()

    def __enter__(self) -> PatternStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
