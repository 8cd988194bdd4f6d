"""What an engine is given and what it gives back; the same for every backend."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ptycho.config.config import ModelConfig, PyTorchExecutionConfig, TrainingConfig
from ptycho.data.feed import GroupSource, JoinedSource, Source, TileSource, wanted_labels
from ptycho.data.reconstruction import Reconstruction
from ptycho.data.scan import PatternStore, Scan
from ptycho.data.selection import validation_groups
from ptycho.errors import ConfigError, DataError
from ptycho.geometry.batches import batch_order, batch_rows, split_patterns, tile_centres, validation_centres
from ptycho.geometry.grouping import Groups
from ptycho.networks.bundle import Bundle
from ptycho.networks.model import PatternModel
from ptycho.process.progress import Progress
from ptycho.run.reconstruction import Backend, fitted_probe


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


class Feed(NamedTuple):
    """A source of batches, and which of them an epoch asks for, in this order."""

    source: Source
    order: Callable[[int], Sequence[Any]]


def opened_feeds(
    stack: ExitStack, job: TrainingJob, model: PatternModel, backend: Backend
) -> tuple[Feed, Feed | None]:
    """Return what a model is trained on, and what validates it: another scan, what was held out, or None. The
    patterns stay open until ``stack`` closes; first the probe is fitted to them where the job says so. Of
    several scans each brings its own probe and scale.

    Raises ``DataError`` where labels are needed and a scan has none.
    """
    needs, several = model.terms.needs_labels, bool(job.further)
    labels = [wanted_labels(needs, part.scan) for part in job.parts]
    other = wanted_labels(needs, job.test_scan)
    modes, found = max(len(part.scan.probe) for part in job.parts), []
    for number, (part, known) in enumerate(zip(job.parts, labels, strict=True)):
        scan, store = part.scan, stack.enter_context(PatternStore(part.scan, job.progress))
        if job.config.probe_trainable and (several or job.resume is None):
            probe = fitted_probe(backend, store, scan, np.unique(part.groups.indices), job.progress)
            if number == 0 and job.resume is None:
                model.attach_scan(probe, scan.record, refined=True, start=scan.probe)
            scan = replace(scan, probe=probe)
        # Batches are all alike: a probe of fewer modes gets dark ones.
        room = ((0, modes - len(scan.probe)), (0, 0), (0, 0))
        part = part._replace(scan=replace(scan, probe=np.pad(scan.probe, room)))
        feeds = _tile_feeds if model.whole_canvas else _group_feeds
        found.append(feeds(job.config, part, store, known, several))
    train = _joined([feed for feed, _ in found], job.config.seed)
    if job.test_scan is not None:
        test_store = stack.enter_context(PatternStore(job.test_scan, Progress()))
        check = _tile_check if model.whole_canvas else _group_check
        return train, check(job.config, job.test_scan, test_store, other)
    checks = [feed for _, feed in found if feed is not None]
    return train, _joined(checks) if checks else None


def _joined(feeds: Sequence[Feed], seed: int | None = None) -> Feed:
    """Return the feeds of several scans as one; with a seed, their batches are mixed."""
    if len(feeds) == 1:
        return feeds[0]
    source = JoinedSource([feed.source for feed in feeds])

    def order(epoch: int) -> list[Any]:
        items = [
            item + source.start(number) for number, feed in enumerate(feeds) for item in feed.order(epoch)
        ]
        if seed is None:
            return items
        return [items[place] for place in batch_order(len(items), seed, epoch)]

    return Feed(source, order)


def _tile_feeds(
    config: TrainingConfig, part: TrainingPart, store: PatternStore, known: Any, own: bool
) -> tuple[Feed, Feed | None]:
    scan, patch_px, beam = part.scan, part.scan.patch_px, {"own_probe": own, "own_scale": own}
    trained, held_out, steps = split_patterns(part.groups, part.validation, patch_px, seed=config.seed)
    source = TileSource(store, scan, trained, labels=known, **beam)
    train = Feed(source, lambda epoch: tile_centres(len(source), steps, config.seed, epoch).tolist())
    if held_out is None:
        return train, None
    both = np.union1d(trained, held_out)
    check = TileSource(store, scan, both, held_out=held_out, labels=known, **beam)
    return train, Feed(check, lambda _: validation_centres(len(check), patch_px, check.validated))


def _tile_check(config: TrainingConfig, scan: Scan, store: PatternStore, known: Any) -> Feed:
    del config
    check = TileSource(store, scan, scan.usable, own_probe=True, labels=known)
    return Feed(check, lambda _: validation_centres(len(check), scan.patch_px, check.validated))


def _group_feeds(
    config: TrainingConfig, part: TrainingPart, store: PatternStore, known: Any, own: bool
) -> tuple[Feed, Feed | None]:
    size, how = config.batch_size, {"merge": _merges(config), "own_probe": own, "own_scale": own}
    source = GroupSource(store, part.scan, part.groups, labels=known, **how)
    train = Feed(source, lambda epoch: batch_rows(len(source), size, config.seed, epoch))
    if part.validation is None:
        return train, None
    check = GroupSource(store, part.scan, part.validation, labels=known, **how)
    return train, Feed(check, lambda _: batch_rows(len(check), size))


def _group_check(config: TrainingConfig, scan: Scan, store: PatternStore, known: Any) -> Feed:
    groups = validation_groups(scan, config.model.gridsize)
    check = GroupSource(store, scan, groups, merge=_merges(config), own_probe=True, labels=known)
    return Feed(check, lambda _: batch_rows(len(check), config.batch_size))


def _merges(config: TrainingConfig) -> bool:
    return config.model.object_big and config.model.gridsize > 1


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
