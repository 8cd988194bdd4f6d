"""What a long call tells the outside while it runs; the commands draw it, a library call stays silent."""

from __future__ import annotations

import logging
from typing import Any

logger = logging.getLogger(__name__)

PROBE_PHASE = "fitting probe"
"""Name of the phase that fits the probe before a training run or a reconstruction."""


class Phase:
    """One phase of a run: reading, grouping, training, reconstructing, writing. This class shows nothing."""

    def update(self, done: int, **values: Any) -> None:
        """Report the units done so far, of the total given to :meth:`Progress.phase`, and numbers shown
        beside."""

    def ended(self, why: str) -> None:
        """Report in a few words why the phase is over before its total is reached."""

    def __enter__(self) -> Phase:
        return self

    def __exit__(self, *exc_info: object) -> None:
        return None


class Progress:
    """Opens phases and passes on notes. This base class shows nothing."""

    def phase(self, name: str, total: int) -> Phase:
        """Open a phase, a context manager, of so many units."""
        return Phase()

    def note(self, text: str) -> None:
        """Pass on one line of information."""

    def conclude(self, text: str, *, good: bool) -> None:
        """Pass on in one line what the result is worth; where nobody listens the log holds it, as a warning
        if not good."""
        logger.log(logging.INFO if good else logging.WARNING, "%s", text)


class _LoggedPhase(Phase):
    """Logs every epoch: a program that runs this in a child process shows its log."""

    def __init__(self, name: str, total: int) -> None:
        self.name, self.total = name, total

    def update(self, done: int, **values: Any) -> None:
        shown = "".join(f", {key} {value:.4g}" for key, value in values.items())
        logger.info("%s: %d/%d%s", self.name, done, self.total, shown)

    def ended(self, why: str) -> None:
        logger.info("%s: %s", self.name, why)


class LoggedProgress(Progress):
    """Logs epochs and notes: what a program shows that trains in a child process."""

    def phase(self, name: str, total: int) -> Phase:
        """Open a phase; only the training is logged."""
        return _LoggedPhase(name, total) if name == "training" else Phase()

    def note(self, text: str) -> None:
        logger.info("%s", text)
