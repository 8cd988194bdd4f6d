"""What an engine is given and what it gives back; the same for every backend."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ptycho.config.config import PyTorchExecutionConfig, TrainingConfig
from ptycho.data.scan import Scan
from ptycho.geometry.grouping import Groups
from ptycho.geometry.subsets import subset_schedule
from ptycho.networks.architectures import POSITION_REST_STEPS, PROBE_REST_STEPS
from ptycho.process.progress import Progress


@dataclass
class TrainingJob:
    """One training, ready to run.

    Attributes
    ----------
    config : TrainingConfig
        Typed settings; ``params.cfg`` was filled from them.
    execution : PyTorchExecutionConfig
        Hardware, precision, logging.
    scan : Scan
        Patterns to train on.
    groups : Groups
        Groups of patterns to train on.
    validation : Groups or None
        Groups kept from training to judge it; None where another scan or nothing judges.
    test_scan : Scan or None
        Scan that judges the training.
    native : mapping
        The backend's own configuration objects by name, where the caller has them.
    progress : Progress
        Told what goes on.
    resume : Path or None
        Checkpoint to go on from.
    """

    config: TrainingConfig
    execution: PyTorchExecutionConfig
    scan: Scan
    groups: Groups
    validation: Groups | None = None
    test_scan: Scan | None = None
    native: Mapping[str, Any] = field(default_factory=dict)
    progress: Progress = field(default_factory=Progress)
    resume: Path | None = None


@dataclass(frozen=True)
class RefineOptions:
    """How a reconstruction is polished by the forward model alone.

    Attributes
    ----------
    steps : int
        Most steps; fewer where the misfit no longer falls.
    probe : bool
        Refine the probe too, all modes.
    positions : bool
        Refine the scan positions too.
    frames : bool
        Refine one intensity factor per frame too.
    likelihood : {'amplitude', 'poisson'}
        What the steps descend on.
    tv : float
        Strength of total-variation smoothing per step [transmission]; 0 is off.
    start : {'network', 'flat'}
        Object to start from.
    """

    steps: int
    probe: bool = False
    positions: bool = False
    frames: bool = False
    likelihood: str = "amplitude"
    tv: float = 0.0
    start: str = "network"

    def subset_counts(self, most: int) -> list[int]:
        """Return into how many subsets every pass is cut (eq. 19).

        Parameters
        ----------
        most : int
            What the scan allows, from ``ptycho.geometry.subsets.most_subsets``.

        Returns
        -------
        list of int
            One number per pass. An object that is good already gets two subsets at most: more would make it
            noisy. What else is refined needs whole passes from the moment it moves, and frame intensities,
            which trade with the object at once, from the first.
        """
        counts = list(subset_schedule(self.steps, most if self.start == "flat" else min(2, most)))
        rests = {"frames": 0, "probe": PROBE_REST_STEPS, "positions": POSITION_REST_STEPS}
        rest = min([self.steps, *(steps for name, steps in rests.items() if getattr(self, name))])
        return counts[:rest] + [1] * (self.steps - len(counts[:rest]))


@dataclass
class TrainingResult:
    """A trained model and how it got there.

    Attributes
    ----------
    model : object
        The backend's model.
    history : dict of str to list of float
        ``train_loss`` and, where something judged, ``val_loss``, one number per epoch.
    checkpoints : list of Path
        Files written, the best one first.
    seconds : float
        Time of the training alone.
    run_id : str or None
        MLflow run, where one was logged.
    """

    model: Any
    history: dict[str, list[float]]
    checkpoints: list[Path]
    seconds: float
    run_id: str | None = None
