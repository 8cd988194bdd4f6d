"""Find out which of the eight ways to take the positions of a scan fits its patterns.

A scan turned the wrong way fits most of the energy of every pattern, but not what changes between them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from ptycho.config.config import InferenceConfig
from ptycho.data.optics import ORIENTATIONS, FileOptions, Orientation, turned_data
from ptycho.data.reconstruction import Reconstruction
from ptycho.data.scan import Scan
from ptycho.errors import ConfigError
from ptycho.process.progress import Progress
from ptycho.solver.options import RefineOptions

TRIAL_PATTERNS = 100
"""Patterns of a trial, around the middle of the scan."""
TRIAL = RefineOptions(30, probe=True, start="flat")
"""Refinement of a trial; a stored probe is often off by more than a wrong axis costs."""
CLEAR_MARGIN = 1.1
"""Clear margin; 3e2 photons reach 1.01, 3e3 1.14, 1e4 1.45, a measured star with its starting probe 1.5."""

Trial = Callable[..., Reconstruction]
"""Of a scan, pattern indices, and ``refine``."""


@dataclass(frozen=True)
class Search:
    """What eight trials found."""

    best: Orientation  # of the smallest misfit
    second: Orientation  # of the next
    margin: float  # misfit of the second over that of the best

    @property
    def clear(self) -> bool:
        """Whether one way fits clearly better than all others."""
        return self.margin >= CLEAR_MARGIN

    def line(self) -> str:
        """Return what was found in one line."""
        margin = f"{self.margin:.3g}x better than {self.second.flags()}"
        if not self.clear:
            return (
                f"orientation: not clear ({self.best.flags()} fits best, but only {margin}); the positions "
                "are left as they are"
            )
        used = "" if self.best == Orientation() else "; used"
        return f"orientation: {self.best.flags()} fits best, {margin}{used}"


def turned_scan(scan: Scan, orientation: Orientation) -> Scan:
    """Return the same patterns, probe and scale with turned positions."""
    raw = turned_data(scan.raw, orientation)
    return replace(scan, raw=raw, positions_yx_px=raw.positions_yx_px)


def check_search(config: InferenceConfig) -> None:
    """Refuse a search beside the flips that it is to find (``ConfigError``)."""
    if config.find_orientation and (config.flip_positions or config.swap_positions):
        given = FileOptions.of(config).orientation.flags()
        raise ConfigError(
            f"--find-orientation: it tries every orientation (got {given} too, expected one of them). "
            "Leave the other out."
        )


def find_orientation(scan: Scan, reconstruct: Trial, progress: Progress) -> Search:
    """Try the eight orientations of the positions on the patterns around the middle of a scan. Positions that
    are turned by 180 degrees fit as well with the conjugate probe turned likewise; the probe of the file
    decides between the two."""
    positions = scan.positions_yx_px[scan.usable]
    distance = np.linalg.norm(positions - np.median(positions, axis=0), axis=1)
    chosen = np.sort(scan.usable[np.argsort(distance, kind="stable")[:TRIAL_PATTERNS]])
    misfit = []
    with progress.phase("orientation", len(ORIENTATIONS)) as phase:
        for orientation in ORIENTATIONS:
            found = reconstruct(turned_scan(scan, orientation), chosen, refine=TRIAL)
            misfit.append(found.misfit[-1])
            phase.update(len(misfit), misfit=misfit[-1])
    first, second = np.argsort(misfit, kind="stable")[:2]
    margin = misfit[second] / max(misfit[first], 1e-30)
    return Search(ORIENTATIONS[first], ORIENTATIONS[second], float(margin))
