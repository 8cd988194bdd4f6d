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
    """What a check found out about a scan.

    Attributes
    ----------
    check : str
        Name of the check.
    message : str
        One line: what was found, with its value, and the cure.
    level : {'repaired', 'warning'}
        ``repaired``: certain, and mended; ``warning``: likely, left as it is, and repeated in the verdict.
    """

    check: str
    message: str
    level: Level = "warning"


FOLLOW_BEAM = "--init flat --refine 60 --refine-frames"
"""The flags that follow a beam that changed; an object that starts from a network has taken the change in."""


@dataclass(frozen=True)
class Draft:
    """A data set on its way through the checks that come before its scale is decided.

    Attributes
    ----------
    raw : RawData
        Patterns, positions and probe; ``raw.bad_pixels`` marks what was not measured.
    left_out : int64 array, shape (K,)
        Patterns that take no part, ascending.
    findings : tuple of Finding
        What was found so far.
    """

    raw: RawData
    left_out: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    findings: tuple[Finding, ...] = ()

    def found(
        self,
        finding: Finding,
        *,
        raw: RawData | None = None,
        left_out: NDArray[np.int64] | None = None,
    ) -> Draft:
        """Return the draft after a check found something.

        Parameters
        ----------
        finding : Finding
            What was found.
        raw : RawData, optional
            The mended data set.
        left_out : int64 array, optional
            Further patterns that take no part.

        Returns
        -------
        Draft
            With the finding at the end.
        """
        more = self.left_out if left_out is None else np.union1d(self.left_out, left_out).astype(np.int64)
        return replace(self, raw=raw or self.raw, left_out=more, findings=(*self.findings, finding))
