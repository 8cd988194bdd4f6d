"""What an engine is given and what it gives back; the same for every backend."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ptycho.config.config import PyTorchExecutionConfig, TrainingConfig
from ptycho.data.scan import Scan
from ptycho.geometry.grouping import Groups
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
