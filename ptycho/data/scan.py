"""A scan ready for an engine: patterns, positions, probe, and the one record of every scale factor.

Its amplitudes are in a memory-mapped file, so that memory does not grow with the scan.
"""

from __future__ import annotations

import copy
import tempfile
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho.data.canonical import blocks
from ptycho.data.checks.findings import Finding
from ptycho.data.optics import FileOptions, near_field_of, upsampling_of
from ptycho.data.raw import RawData
from ptycho.data.scaling import ScaleRecord, measured_amplitude, scaled_background
from ptycho.process.progress import Progress


@dataclass(frozen=True)
class ScanParts:
    """Of which of several scans, joined by ``ptycho.data.joined``, the patterns of one are; S were joined."""

    names: tuple[str, ...]  # of their files, (S,)
    index: NDArray[np.int64]  # (M,), scan of every pattern, from 0
    first_number: NDArray[np.int64]  # (S,), number of pattern 0 of the file among those of all
    offsets_yx_px: NDArray[np.float64]  # (S, 2), added to the positions of the file [object px]
    gain: NDArray[np.float64]  # (S,), factor on the amplitude of the beam, 1 on average over the patterns


@dataclass(frozen=True)
class Scan:
    """Patterns with everything the forward model needs."""

    raw: RawData  # patterns as stored and the optional arrays of the file
    record: ScaleRecord
    probe: NDArray[np.complex64]  # (P, N, N) [sqrt(photons)]
    positions_yx_px: NDArray[np.float64]  # (M, 2), patch centres [object px]
    name: str  # file name, for messages
    # (K,), take no part in anything, ascending
    left_out: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    findings: tuple[Finding, ...] = ()  # mended faults and warnings of the checks
    options: FileOptions = field(default_factory=FileOptions)  # what the user said about the file
    parts: ScanParts | None = None  # where several scans were joined

    @property
    def n_px(self) -> int:
        """Pattern size N [px]."""
        return self.raw.N

    @property
    def patch_px(self) -> int:
        """Size of the probe, and of the patches of the object that it lights, a whole multiple of N [px]."""
        return int(self.probe.shape[-1])

    @property
    def n_patterns(self) -> int:
        """Number of patterns M, those left out among them."""
        return self.raw.n_patterns

    @property
    def fresnel_number(self) -> float | None:
        """Fresnel number of an object pixel where the detector is in the near field (eq. 22), else None."""
        return near_field_of(self.raw)

    @property
    def detector_upsampling(self) -> int:
        """Parts K of a detector pixel along each axis, whose counts it adds (eq. 5b): as the user says, else
        as the file says, else 1."""
        return upsampling_of(self.raw, self.options)

    @property
    def background(self) -> NDArray[np.float32] | None:
        """What every pattern counts beside the light, (N, N) [photons / pixel] (eq. 25); None: nothing."""
        return scaled_background(self.raw, self.record)

    def with_background(self, background: NDArray[np.float32] | None) -> Scan:
        """Return the scan with another background (N, N) [photons / pixel]; None: its own."""
        if background is None:
            return self
        raw = copy.copy(self.raw)
        raw.background = background.astype(np.float64) / self.record.amplitude_gain**2
        return replace(self, raw=raw)

    @property
    def pattern_numbers(self) -> NDArray[np.int64]:
        """Number of each pattern in its file, shape (M,)."""
        return self.raw.pattern_numbers

    @property
    def usable(self) -> NDArray[np.int64]:
        """Patterns that take part, ascending."""
        return np.setdiff1d(np.arange(self.n_patterns), self.left_out)

    @property
    def frame_gain(self) -> NDArray[np.float32] | None:
        """Known factor (M,) on the amplitude of the beam in every pattern; None where it is one beam."""
        if self.parts is None or bool((self.parts.gain == 1).all()):
            return None
        return self.parts.gain[self.parts.index].astype(np.float32)

    def amplitude(self, rows: Any) -> NDArray[np.float32]:
        """Return what was measured in some patterns [sqrt(photons)], negative where nothing was."""
        return measured_amplitude(self.raw.diff3d[rows], self.record, self.raw.bad_pixels_of(rows))


class PatternStore(AbstractContextManager["PatternStore"]):
    """The amplitudes (M, N, N) of a scan [sqrt(photons)], float32; negative where nothing was measured.

    Use it as a context manager; its scratch folder is removed at the end, also after an error.
    """

    def __init__(self, scan: Scan, progress: Progress) -> None:
        self._scratch = tempfile.TemporaryDirectory(prefix="ptychopinn-", ignore_cleanup_errors=True)
        self.folder, self.fresnel_number = Path(self._scratch.name), scan.fresnel_number
        self.background, self.detector_upsampling = scan.background, scan.detector_upsampling
        self.frame_gain = scan.frame_gain  # (M,), known factor on the amplitude of the beam, or None
        count, n_px = scan.n_patterns, scan.n_px
        shape, path = (count, n_px, n_px), self.folder / "amplitude.memmap"
        self.patterns: Any = np.memmap(path, dtype=np.float32, mode="w+", shape=shape)
        with progress.phase("reading", count) as phase:
            for rows in blocks(count):
                self.patterns[rows] = scan.amplitude(rows)
                phase.update(rows.stop)

    @property
    def n_px(self) -> int:
        """Pattern size N [px]."""
        return int(self.patterns.shape[-1])

    def amplitude(self, indices: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the amplitudes (\\*S, N, N) of patterns, indices of any shape S, in memory."""
        return np.asarray(self.patterns[indices])

    def __exit__(self, *error: object) -> None:
        self.patterns = None
        self._scratch.cleanup()
