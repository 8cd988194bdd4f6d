"""What lies between exit waves and counts: the way to the detector, and what it counts beside the light.

One value for every backend, whose arrays it holds.
"""

from __future__ import annotations

from typing import Any, NamedTuple

Array = Any


class Detector(NamedTuple):
    """The detector of some patterns."""

    transfer: Array | None = None  # (J or 1, 2, N), of a near field (eq. 22); None: far field
    background: Array | None = None  # (N, N), counts of every pattern that no wave explains (eq. 25)
    # (K, M, N), of the K x K parts of a pixel, whose modes the probes hold (eq. 5b); None: a pixel has one
    part_turns: Array | None = None

    @property
    def windows(self) -> int:
        """Patterns M that a patch is as wide as (eq. 5b)."""
        return 1 if self.part_turns is None else int(self.part_turns.shape[1])

    def of(self, rows: Array) -> Detector:
        """Return the detector of some of the patterns, by any index that their arrays take."""
        return self if self.transfer is None else self._replace(transfer=self.transfer[rows])

    def counted(self, intensity: Array) -> Array:
        """Return the expected counts (J, N, N) of an intensity of waves [photons / pixel] (eq. 25)."""
        return intensity if self.background is None else intensity + self.background


FAR_FIELD = Detector()
"""A detector in the far field that counts nothing beside the light."""
