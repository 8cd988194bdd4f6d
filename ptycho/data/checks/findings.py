"""What checks share: what one found out, in one line, the scan on its way through them, and its counts."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ptycho.data.canonical import blocks
from ptycho.data.domain import DOMAIN_KEY, domain_sample, steps_of
from ptycho.data.raw import RawData

FROM_FLAT = "--init flat --refine 60"
"""The flags of a refinement that owes nothing to what was found before."""
FOLLOW_BEAM = f"{FROM_FLAT} --refine-frames"
"""The flags that follow a beam that changed; an object from a network has taken the change in."""
SHOWN = 8
"""Most pattern numbers that a line names."""


@dataclass(frozen=True)
class Finding:
    """What a check found out about a scan."""

    check: str  # name of the check
    message: str  # one line: what was found, with its value, and the cure
    # repaired: certain, and mended; warning: likely, left as it is, repeated in the verdict
    level: Literal["repaired", "warning"] = "warning"


@dataclass(frozen=True)
class Draft:
    """A data set on its way through the checks that come before its scale is decided."""

    raw: RawData  # ``bad_pixels`` marks what was not measured
    # (K,), take no part, ascending
    left_out: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    findings: tuple[Finding, ...] = ()

    @property
    def usable(self) -> NDArray[np.int64]:
        """Patterns that take part, ascending."""
        return np.setdiff1d(np.arange(self.raw.n_patterns), self.left_out)

    def found(self, check: str, message: str) -> Draft:
        """Return the draft with a warning at the end of its findings."""
        return replace(self, findings=(*self.findings, Finding(check, message)))

    def repaired(
        self, check: str, message: str, raw: RawData | None = None, left_out: NDArray[np.int64] | None = None
    ) -> Draft:
        """Return the draft with a repair at the end of them: mended data, further patterns left out."""
        more = self.left_out if left_out is None else np.union1d(self.left_out, left_out).astype(np.int64)
        findings = (*self.findings, Finding(check, message, "repaired"))
        return Draft(raw or self.raw, more, findings)


def holds_counts(raw: RawData) -> bool:
    """Tell whether patterns hold counts, as far as the file shows; else they are taken for amplitude.

    They do for what the file calls counts, for whole numbers, and where single photons show.
    """
    stated = (raw.metadata or {}).get(DOMAIN_KEY)
    if stated is not None:
        return bool(stated == "counts")
    if raw.diff3d.dtype.kind in "iub":
        return True
    sample = domain_sample(raw, np.arange(raw.n_patterns))
    return not bool((sample % 1).any()) or steps_of(sample) == "counts"


def count_blocks(raw: RawData) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    """Yield rows and counts (K, N, N) of block after block, squares of amplitude, 0 where not measured."""
    power = 1 if holds_counts(raw) else 2
    for rows in blocks(raw.n_patterns):
        yield rows, raw.good_values(rows).astype(np.float64) ** power


def counts_of(raw: RawData, used: NDArray[np.int64]) -> Iterator[NDArray[np.float64]]:
    """Yield the counts of the patterns that are used, as :func:`count_blocks`."""
    for rows, counts in count_blocks(raw):
        yield counts[np.isin(np.arange(rows.start, rows.stop), used)]


def with_bad_pixels(raw: RawData, bad: NDArray[np.bool_]) -> RawData:
    """Return a data set in which further pixels, (N, N) or (M, N, N), are bad too, and 0."""
    marked = copy.copy(raw)
    marked.diff3d = raw.diff3d.copy()
    np.copyto(marked.diff3d, 0, where=bad)
    marked.bad_pixels = bad if raw.bad_pixels is None else raw.bad_pixels | bad
    return marked


def named(rows: NDArray[Any]) -> str:
    """Return the first few pattern numbers as text."""
    shown = ", ".join(str(int(row)) for row in rows[:SHOWN])
    return shown if len(rows) <= SHOWN else f"{shown}, ..."
