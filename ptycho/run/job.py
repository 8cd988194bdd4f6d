"""What an engine is given and what it gives back; the same for every backend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ptycho.config.choices import HIDDEN
from ptycho.config.config import ModelConfig, PyTorchExecutionConfig, TrainingConfig
from ptycho.data.reconstruction import Reconstruction
from ptycho.data.scan import Scan
from ptycho.errors import ConfigError, DataError
from ptycho.geometry.grouping import Groups
from ptycho.networks.bundle import Bundle
from ptycho.process.progress import Progress


class TrainingPart(NamedTuple):
    """One scan of a training run."""

    scan: Scan
    groups: Groups  # what is trained on
    validation: Groups | None = None  # kept from training; None where another scan or nothing validates


@dataclass
class TrainingJob:
    """One training run, ready to start."""

    config: TrainingConfig  # ``params.cfg`` was filled from it
    execution: PyTorchExecutionConfig  # hardware, precision, logging
    scan: Scan
    groups: Groups  # what is trained on
    validation: Groups | None = None  # kept from training; None where another scan or nothing validates
    test_scan: Scan | None = None  # validates
    # the backend's own settings, where the caller has them
    native: Mapping[str, Any] = field(default_factory=dict)
    progress: Progress = field(default_factory=Progress)
    resume: Path | None = None  # checkpoint to go on from
    further: tuple[TrainingPart, ...] = ()  # scans that are trained on too, each with an object of its own
    initial: Bundle | None = None  # network that the training begins with; None draws one from the seed

    @property
    def parts(self) -> tuple[TrainingPart, ...]:
        """All scans that are trained on; the probe and the scale of the model are those of the first."""
        return TrainingPart(self.scan, self.groups, self.validation), *self.further


@dataclass
class TrainingResult:
    """A trained model and how it got there."""

    model: Any  # of the backend
    # ``train_loss`` and, where something validated, ``val_loss`` of every epoch
    history: dict[str, list[float]]
    checkpoints: list[Path]  # written, the best one first
    seconds: float  # of the training alone
    run_id: str | None = None  # of MLflow, where one was logged


class Engine(Protocol):
    """What a backend offers to a run: the module that ``ptycho.run.engines.load_engine`` imports by name.

    ``model`` is the backend's own object; only an engine looks inside.
    """

    def check_settings(
        self, config: TrainingConfig, execution: PyTorchExecutionConfig, native: Mapping[str, Any]
    ) -> None:
        """Raise ``ConfigError`` at the first setting of a training run that this backend does not have."""

    def resolve_accelerator(self, requested: str) -> str:
        """Return the accelerator that this machine has; ``ConfigError`` where it is not there."""

    def fit(self, job: TrainingJob) -> TrainingResult:
        """Train, and return the model of the best epoch."""

    def load(self, path: Path) -> Any:
        """Return the model of a bundle or a checkpoint; ``BundleError`` where it cannot be read."""

    def to_bundle(self, model: Any) -> Bundle:
        """Return a model in the form that every backend reads."""

    def from_bundle(self, bundle: Bundle) -> Any:
        """Return the model of a bundle."""

    def core_config(self, model: Any) -> ModelConfig:
        """Return the network settings of a model."""

    def reconstruct(
        self,
        model: Any,
        scan: Scan,
        indices: NDArray[np.int64],
        *,
        execution: PyTorchExecutionConfig,
        progress: Progress,
        **options: Any,
    ) -> Reconstruction:
        """Reconstruct patterns of a scan; options are those of ``ptycho.run.reconstruction.reconstruct``."""

    def log_artifacts(self, run_id: str, folder: Path, files: Sequence[Path]) -> None:
        """Add files to a run of the MLflow store in a folder."""


def check_left(path: Path, trained: int, wanted: int) -> None:
    """Refuse a checkpoint that has all ``wanted`` epochs already by a ``ConfigError``."""
    if trained >= wanted:
        raise ConfigError(
            f"{path}: nothing is left to train (got a checkpoint of {trained} epochs and {wanted} in all, "
            "expected more in all). Raise --max_epochs."
        )


def check_same_loss(path: Path, loss: str, wanted: str) -> None:
    """Refuse a checkpoint of a training with ``loss`` by a ``ConfigError``, where the one that goes on with
    the ``wanted`` one learns other weights: hidden pixels find a factor on corrections too."""
    if (loss == HIDDEN) != (wanted == HIDDEN):
        raise ConfigError(
            f"{path}: the checkpoint is of a training with another loss (got torch_loss_mode {loss!r}, "
            f"expected {wanted!r}). Pass --torch-loss-mode {loss}."
        )


def check_finite(losses: Mapping[str, float], epoch: int) -> None:
    """End a training run that diverged by a ``DataError``; ``epoch`` counts from 1."""
    wrong = [value for value in losses.values() if not np.isfinite(value)]
    if wrong:
        raise DataError(
            f"training: the loss is not finite in epoch {epoch} (got {wrong[0]}, expected a number). Lower "
            "--learning-rate."
        )


def chosen_device(requested: str, there: Mapping[str, bool], framework: str) -> str:
    """Return which device of a framework, name -> whether it is there, a user asks for; gpu and cuda are one
    word, auto takes it before the CPU. ``ConfigError`` where it is not there."""
    if requested == "auto":
        return next(name for name in ("cuda", "gpu", "cpu") if there.get(name))
    name = requested if requested in there else {"gpu": "cuda", "cuda": "gpu"}.get(requested, requested)
    if not there.get(name, False):
        usable = ", ".join(["auto", *(key for key, value in there.items() if value)])
        raise ConfigError(
            f"accelerator: this machine has no {requested} device for {framework} (got {requested!r}, "
            f"expected one of {usable}). Pass --accelerator auto."
        )
    return name
