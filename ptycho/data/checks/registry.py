"""The one list of checks, in the order in which they run.

A check of patterns takes and returns a :class:`Draft`, before the scale is decided; a check of a scan sees it
ready for an engine and returns a warning or None. Either raises ``DataError`` where the data cannot be right.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from ptycho.data.checks.beam import check_beam
from ptycho.data.checks.centre import check_centre
from ptycho.data.checks.findings import Draft, Finding
from ptycho.data.checks.frames import check_frames
from ptycho.data.checks.mask import check_mask, check_saturation
from ptycho.data.checks.near_field import check_near_field
from ptycho.data.checks.overlap import check_overlap
from ptycho.data.checks.pixels import check_pixels, check_zingers
from ptycho.data.checks.statements import check_contents, check_domain, check_optics, check_positions
from ptycho.data.checks.unmeasured import check_unmeasured
from ptycho.data.optics import FileOptions
from ptycho.data.scan import Scan

logger = logging.getLogger(__name__)

PATTERN_CHECKS: tuple[Callable[[Draft, FileOptions], Draft], ...] = (
    check_mask,
    check_saturation,
    check_unmeasured,
    check_frames,
    check_centre,
    check_pixels,
    check_zingers,
)
"""Run before the scale is decided; each may mend the data set, leave patterns out, or refuse it."""
SCAN_CHECKS: tuple[tuple[str, Callable[[Scan], str | None]], ...] = (
    ("units", check_positions),
    ("near_field", check_near_field),
    ("units", check_optics),
    ("overlap", check_overlap),
    ("domain", check_domain),
    ("beam", check_beam),
    ("contents", check_contents),
)
"""Run on the scan that an engine will see; each may warn, in its name, or refuse."""


def check_patterns(draft: Draft, options: FileOptions) -> Draft:
    """Run every check that comes before the scale."""
    for check in PATTERN_CHECKS:
        draft = check(draft, options)
    return draft


def check_scan(scan: Scan) -> tuple[Finding, ...]:
    """Run every check of a scan that is ready for an engine."""
    found = ((name, check(scan)) for name, check in SCAN_CHECKS)
    return tuple(Finding(name, message) for name, message in found if message is not None)


def report(findings: tuple[Finding, ...], name: str) -> None:
    """Log every finding in one line."""
    for finding in findings:
        logger.warning("%s: %s", name, finding.message)
