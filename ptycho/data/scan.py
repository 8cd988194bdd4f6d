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
    """Patterns with everything the forward model needs.

    Attributes
    ----------
    raw : RawData
        Patterns as stored and the optional arrays of the file.
    record : ScaleRecord
        Decisions about domain and scale.
    probe : complex64 array, shape (P, N, N)
        Probe modes [sqrt(photons)].
    positions_yx_px : float64 array, shape (M, 2)
        Patch centres [object px].
    name : str
        File name, for messages.
    left_out : int64 array, shape (K,)
        Patterns that take no part in anything, ascending.
    findings : tuple of Finding
        What the checks found: mended faults and warnings.
    options : FileOptions
        What the user said about the file.
    """

    raw: RawData
    record: ScaleRecord
    probe: NDArray[np.complex64]
    positions_yx_px: NDArray[np.float64]
    name: str
    left_out: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    findings: tuple[Finding, ...] = ()
    options: FileOptions = field(default_factory=FileOptions)

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
