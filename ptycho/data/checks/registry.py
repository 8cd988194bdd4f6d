"""The one list of checks, in the order in which they run.

A check of patterns takes and returns a :class:`Draft`, before the scale is decided; a check of a scan sees it
ready for an engine and returns a finding or None. Either raises ``DataError`` where the data cannot be right.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from ptycho.data.checks.beam import check_beam
from ptycho.data.checks.centre import check_centre
from ptycho.data.checks.contents import check_contents
from ptycho.data.checks.domain import check_domain
from ptycho.data.checks.findings import Draft, Finding
from ptycho.data.checks.frames import check_frames
from ptycho.data.checks.mask import check_mask
from ptycho.data.checks.near_field import check_near_field
from ptycho.data.checks.overlap import check_overlap
from ptycho.data.checks.pixels import check_pixels
from ptycho.data.checks.units import check_optics, check_positions
from ptycho.data.checks.unmeasured import check_unmeasured
from ptycho.data.checks.zingers import check_zingers

if TYPE_CHECKING:
    from ptycho.data.optics import FileOptions
    from ptycho.data.scan import Scan

logger = logging.getLogger(__name__)

PatternCheck = Callable[[Draft, "FileOptions"], Draft]
ScanCheck = Callable[["Scan", "FileOptions"], Finding | None]

PATTERN_CHECKS: tuple[PatternCheck, ...] = (
    check_mask,
    check_unmeasured,
    check_frames,
    check_centre,
    check_pixels,
    check_zingers,
)
"""Run before the scale is decided; each may mend the data set, leave patterns out, or refuse it."""
SCAN_CHECKS: tuple[ScanCheck, ...] = (
    check_positions,
    check_near_field,
    check_optics,
    check_overlap,
    check_domain,
    check_beam,
    check_contents,
)
"""Run on the scan that an engine will see; each may warn or refuse."""


def check_patterns(draft: Draft, options: FileOptions) -> Draft:
    """Run every check that comes before the scale."""
    for check in PATTERN_CHECKS:
        draft = check(draft, options)
    return draft


def check_scan(scan: Scan, options: FileOptions) -> tuple[Finding, ...]:
    """Run every check of a scan that is ready for an engine."""
    found = (check(scan, options) for check in SCAN_CHECKS)
    return tuple(finding for finding in found if finding is not None)


def report(findings: tuple[Finding, ...], name: str) -> None:
    """Log every finding in one line."""
    for finding in findings:
        logger.warning("%s: %s", name, finding.message)
