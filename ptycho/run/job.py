"""What an engine is given and what it gives back; the same for every backend."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ptycho.config.config import PyTorchExecutionConfig, TrainingConfig
from ptycho.data.feed import GroupSource, TileSource
from ptycho.data.labels import wanted_labels
from ptycho.data.scan import Scan
from ptycho.data.selection import judging_groups
from ptycho.data.store import PatternStore
from ptycho.geometry.batches import batch_rows, judging_centres, tile_centres, tile_members
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


class Feed(NamedTuple):
    """A source of batches, and which of them an epoch asks for, in this order."""

    source: TileSource | GroupSource
    order: Callable[[int], Sequence[Any]]


def feeds(
    job: TrainingJob,
    store: PatternStore,
    test_store: PatternStore | None,
    *,
    whole_canvas: bool,
    needs_labels: bool,
) -> tuple[Feed, Feed | None]:
    """Return what a network is trained on, and what validates it: another scan, what was held out, or None.

    Raises ``DataError`` where labels are needed and a scan has none.
    """
    labels = [wanted_labels(needs_labels, scan) for scan in (job.scan, job.test_scan)]
    return (_tile_feeds if whole_canvas else _group_feeds)(job, store, test_store, *labels)


def _tile_feeds(
    job: TrainingJob, store: PatternStore, test_store: PatternStore | None, known: Any, other: Any
) -> tuple[Feed, Feed | None]:
    seed, n_px, scan = job.config.seed, job.scan.n_px, job.test_scan
    trained, held_out, steps = tile_members(job.groups, job.validation, n_px, seed=seed)
    source = TileSource(store, job.scan, trained, labels=known)
    train = Feed(source, lambda epoch: tile_centres(len(source), steps, seed, epoch).tolist())
    if test_store is not None and scan is not None:
        check = TileSource(test_store, scan, scan.usable, own_probe=True, labels=other)
    elif held_out is not None:
        check = TileSource(store, job.scan, np.union1d(trained, held_out), held_out=held_out, labels=known)
    else:
        return train, None
    return train, Feed(check, lambda _: judging_centres(len(check), n_px, check.judged))


def _group_feeds(
    job: TrainingJob, store: PatternStore, test_store: PatternStore | None, known: Any, other: Any
) -> tuple[Feed, Feed | None]:
    config, size, scan = job.config, job.config.batch_size, job.test_scan
    merge = config.model.object_big and config.model.gridsize > 1
    source = GroupSource(store, job.scan, job.groups, merge=merge, labels=known)
    train = Feed(source, lambda epoch: batch_rows(len(source), size, config.seed, epoch))
    if test_store is not None and scan is not None:
        groups = judging_groups(scan, config.model.gridsize)
        check = GroupSource(test_store, scan, groups, merge=merge, own_probe=True, labels=other)
    elif job.validation is not None:
        check = GroupSource(store, job.scan, job.validation, merge=merge, labels=known)
    else:
        return train, None
    return train, Feed(check, lambda _: batch_rows(len(check), size))
