"""A scan ready for an engine: patterns, positions, probe, and the one record of every scale factor."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ptycho.data.checks.findings import Finding
from ptycho.data.optics import FileOptions
from ptycho.data.raw import RawData
from ptycho.data.scaling import ScaleRecord


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

    @property
    def n_px(self) -> int:
        """Pattern size N [px]."""
        return self.raw.N

    @property
    def n_patterns(self) -> int:
        """Number of patterns M, those left out among them."""
        return self.raw.n_patterns

    @property
    def pattern_numbers(self) -> NDArray[np.int64]:
        """Number of each pattern in its file, shape (M,)."""
        return self.raw.pattern_numbers

    @property
    def usable(self) -> NDArray[np.int64]:
        """Patterns that take part, ascending."""
        return np.setdiff1d(np.arange(self.n_patterns), self.left_out)
