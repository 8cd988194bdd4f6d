"""What an engine is given and what it gives back; the same for every backend."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ptycho.config.config import ModelConfig, PyTorchExecutionConfig, TrainingConfig
from ptycho.data.feed import GroupSource, TileSource, wanted_labels
from ptycho.data.reconstruction import Reconstruction
from ptycho.data.scan import PatternStore, Scan
from ptycho.data.selection import validation_groups
from ptycho.errors import ConfigError, DataError
from ptycho.geometry.batches import batch_rows, split_patterns, tile_centres, validation_centres
from ptycho.geometry.grouping import Groups
from ptycho.networks.bundle import Bundle
from ptycho.networks.model import PatternModel
from ptycho.process.progress import Progress
from ptycho.run.reconstruction import Backend, fitted_probe


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


class Feed(NamedTuple):
    """A source of batches, and which of them an epoch asks for, in this order."""

    source: TileSource | GroupSource
    order: Callable[[int], Sequence[Any]]


def opened_feeds(
    stack: ExitStack, job: TrainingJob, model: PatternModel, backend: Backend
) -> tuple[Feed, Feed | None]:
    """Return what a model is trained on, and what validates it: another scan, what was held out, or None. The
    patterns stay open until ``stack`` closes; first the probe is fitted to them where the job says so.

    Raises ``DataError`` where labels are needed and a scan has none.
    """
    labels = [wanted_labels(model.terms.needs_labels, scan) for scan in (job.scan, job.test_scan)]
    store = stack.enter_context(PatternStore(job.scan, job.progress))
    test_store = stack.enter_context(PatternStore(job.test_scan, Progress())) if job.test_scan else None
    if job.config.probe_trainable and job.resume is None:
        trained = np.unique(job.groups.indices)
        probe = fitted_probe(backend, store, job.scan, trained, job.progress)
        model.attach_scan(probe, job.scan.record, refined=True, start=job.scan.probe)
    return (_tile_feeds if model.whole_canvas else _group_feeds)(job, store, test_store, *labels)


def _tile_feeds(
    job: TrainingJob, store: PatternStore, test_store: PatternStore | None, known: Any, other: Any
) -> tuple[Feed, Feed | None]:
    seed, n_px, scan = job.config.seed, job.scan.n_px, job.test_scan
    trained, held_out, steps = split_patterns(job.groups, job.validation, n_px, seed=seed)
    source = TileSource(store, job.scan, trained, labels=known)
    train = Feed(source, lambda epoch: tile_centres(len(source), steps, seed, epoch).tolist())
    if test_store is not None and scan is not None:
        check = TileSource(test_store, scan, scan.usable, own_probe=True, labels=other)
    elif held_out is not None:
        check = TileSource(store, job.scan, np.union1d(trained, held_out), held_out=held_out, labels=known)
    else:
        return train, None
    return train, Feed(check, lambda _: validation_centres(len(check), n_px, check.validated))


def _group_feeds(
    job: TrainingJob, store: PatternStore, test_store: PatternStore | None, known: Any, other: Any
) -> tuple[Feed, Feed | None]:
    config, size, scan = job.config, job.config.batch_size, job.test_scan
    merge = config.model.object_big and config.model.gridsize > 1
    source = GroupSource(store, job.scan, job.groups, merge=merge, labels=known)
    train = Feed(source, lambda epoch: batch_rows(len(source), size, config.seed, epoch))
    if test_store is not None and scan is not None:
        groups = validation_groups(scan, config.model.gridsize)
        check = GroupSource(test_store, scan, groups, merge=merge, own_probe=True, labels=other)
    elif job.validation is not None:
        check = GroupSource(store, job.scan, job.validation, merge=merge, labels=known)
    else:
        return train, None
    return train, Feed(check, lambda _: batch_rows(len(check), size))


def check_left(path: Path, trained: int, wanted: int) -> None:
    """Refuse a checkpoint that has all ``wanted`` epochs already by a ``ConfigError``."""
    if trained >= wanted:
        raise ConfigError(
            f"{path}: nothing is left to train (got a checkpoint of {trained} epochs and {wanted} in all, "
            "expected more in all). Raise --max_epochs."
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
