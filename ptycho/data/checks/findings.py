"""What a check found out, in one line, and the scan on its way through the checks."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from ptycho.data.raw import RawData

Level = Literal["repaired", "warning"]


@dataclass(frozen=True)
class Finding:
    """What a check found out about a scan."""

    check: str  # name of the check
    message: str  # one line: what was found, with its value, and the cure
    # repaired: certain, and mended; warning: likely, left as it is, repeated in the verdict
    level: Level = "warning"


FOLLOW_BEAM = "--init flat --refine 60 --refine-frames"
"""The flags that follow a beam that changed; an object from a network has taken the change in."""


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

    def found(
        self,
        finding: Finding,
        *,
        raw: RawData | None = None,
        left_out: NDArray[np.int64] | None = None,
    ) -> Draft:
        """Return the draft with a finding at its end, mended data, and further patterns that take no part."""
        more = self.left_out if left_out is None else np.union1d(self.left_out, left_out).astype(np.int64)
        return replace(self, raw=raw or self.raw, left_out=more, findings=(*self.findings, finding))
