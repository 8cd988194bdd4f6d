"""What a training run is fed with: batches of its scans, and what validates; the same for every backend."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ptycho.config.config import TrainingConfig
from ptycho.data.feed import Batch, GroupSource, JoinedSource, Source, TileSource, wanted_labels
from ptycho.data.hidden import UNSEEN, HiddenTileSource
from ptycho.data.scan import PatternStore, Scan
from ptycho.data.selection import validation_groups
from ptycho.geometry.batches import batch_order, batch_rows, split_patterns, tile_centres, validation_centres
from ptycho.networks.model import PatternModel
from ptycho.networks.schedule import TrainedEpoch
from ptycho.physics import measured_energy
from ptycho.physics.misfit import poisson_deviance
from ptycho.process.progress import Progress
from ptycho.run.backend import Backend
from ptycho.run.job import TrainingJob, TrainingPart
from ptycho.run.reconstruction import fitted_probe
from ptycho.run.unseen import HiddenScan, better_probe, beyond_chance, standard_error

MIN_STEPS = 8
"""Fewest tiles in an epoch of a training by hidden pixels: those of a small scan cost little, and an epoch in
which hardly anything is learned tells nothing."""


class Feed(NamedTuple):
    """A source of batches, and which of them an epoch asks for, in this order."""

    source: Source
    order: Callable[[int], Sequence[Any]]


class UnseenPixels(NamedTuple):
    """What the pixels that no training sees said before one began: the loss of theirs (eq. 29)."""

    plain: float  # for the object of the plain iterations
    network: float | None  # for that of the network; None where a training goes on
    shares: dict[int, float]  # of every pattern in the latter, by a number that names the pattern
    weights: Any  # a snapshot of the network

    def candidate(self, monitor: str, mode: str) -> float | None:
        """Return the loss of the network before its training where that is one of those that decide which
        epoch is the best."""
        return self.network if (monitor, mode) == ("val_loss", "min") else None

    def line(self, trained: float) -> str:
        """Return what the trained network has gained, in words; ``trained`` is its deviance."""
        told = []
        for name, value in (("plain iterations", self.plain), ("the network it began with", self.network)):
            if value is not None:
                gain = 1 - trained / value if value > 0 else 0.0
                told.append(f"{abs(100 * gain):.2g} % {'better' if gain >= 0 else 'worse'} than {name}")
        return f"hidden pixels: the training explains unseen photons {', and '.join(told)}"


def unseen_before(
    job: TrainingJob,
    model: PatternModel,
    validation: Feed | None,
    tensors: Callable[[Batch], dict[str, Any]],
) -> UnseenPixels | None:
    """Return what unseen pixels say of a network before its training, None where it does not learn from
    hidden ones; ``tensors`` makes arrays of the backend of a batch."""
    if validation is None or not model.terms.hidden:
        return None
    batches = [tensors(validation.source[item]) for item in validation.order(0)]
    plain = float(np.mean([float(model.plain_loss(batch)) for batch in batches]))
    if job.resume is not None:
        return UnseenPixels(plain, None, {}, None)
    network = float(np.mean([float(model.loss(batch)) for batch in batches]))
    return UnseenPixels(plain, network, _unseen_shares(model, validation, tensors), model.snapshot())


def _unseen_shares(
    model: PatternModel, validation: Feed, tensors: Callable[[Batch], dict[str, Any]]
) -> dict[int, float]:
    """Return what every pattern contributes to the deviance of the unseen pixels (eq. 29), averaged over
    tiles. A pattern that lies in several tiles is one: its noise is the same in all of them."""
    shares: dict[int, float] = defaultdict(float)
    order = validation.order(0)
    for item in order:
        predicted, measured = model.compared(tensors(validation.source[item]))
        missed = poisson_deviance(predicted.astype(np.float64), measured.astype(np.float64)).sum((1, 2))
        photons = max(float(measured_energy(measured)), np.finfo(np.float32).tiny)
        judges = (measured >= 0).any(axis=(1, 2))
        for pattern, value in zip(measured[judges], missed[judges] / photons / len(order), strict=True):
            shares[hash(pattern.tobytes())] += float(value)
    return dict(shares)


def never_worse(
    before: UnseenPixels | None,
    best: TrainedEpoch | None,
    model: PatternModel,
    validation: Feed | None,
    tensors: Callable[[Batch], dict[str, Any]],
    progress: Progress,
) -> TrainedEpoch | None:
    """Return the best epoch, whose weights ``model`` has, unless chance alone would let it explain unseen
    photons as much better than the network it began with: then the model gets that one back, and it is said.
    """
    if before is None or before.network is None or validation is None:
        return best
    if best is None or best.number == 0 or best.monitor != "val_loss":
        return best
    after = _unseen_shares(model, validation, tensors)
    gains = np.array([before.shares[pattern] - value for pattern, value in after.items()])
    if beyond_chance(gains):
        return best
    model.restore(before.weights)
    gain, error = 100 * gains.sum() / before.network, 100 * standard_error(gains) / before.network
    share = f"{gain:.2g} +- {error:.2g} %"
    told = f"epoch {best.number} explains {share} more of the unseen photons, which is chance"
    progress.note(f"hidden pixels: {told}; the network it began with stays")
    return TrainedEpoch(0, best.monitor, before.network)


def shown_gain(before: UnseenPixels | None, shown: Mapping[str, float]) -> dict[str, float]:
    """Return by how many per cent plain iterations are surpassed, to be shown with the losses of an epoch."""
    if before is None or "val_loss" not in shown or not before.plain > 0:
        return {}
    return {"gain_percent": 100 * (1 - shown["val_loss"] / before.plain)}


def note_unseen(before: UnseenPixels | None, best: TrainedEpoch, progress: Progress) -> None:
    """Say what a training by hidden pixels gained, where its best epoch is known by them."""
    if before is not None and best.monitor == "val_loss":
        progress.note(before.line(best.loss))


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
    # What plain iterations make without hidden pixels is made anew when a training goes on, and its probe.
    begins = job.resume is None or model.terms.hidden
    for number, (part, known) in enumerate(zip(job.parts, labels, strict=True)):
        scan, store = part.scan, stack.enter_context(PatternStore(part.scan, job.progress))
        if job.config.probe_trainable and (several or begins):
            probe = _trained_probe(job, part, store, model, backend)
            if number == 0 and begins and probe is not scan.probe:
                model.attach_scan(probe, scan.record, refined=True, start=scan.probe)
            scan = replace(scan, probe=probe)
        # Batches are all alike: a probe of fewer modes gets dark ones.
        room = ((0, modes - len(scan.probe)), (0, 0), (0, 0))
        part = part._replace(scan=replace(scan, probe=np.pad(scan.probe, room)))
        if model.terms.hidden:
            found.append(_hidden_feeds(job, part, store, known, several, backend))
            continue
        feeds = _tile_feeds if model.whole_canvas else _group_feeds
        found.append(feeds(job.config, part, store, known, several))
    train = _joined([feed for feed, _ in found], job.config.seed)
    if job.test_scan is not None:
        test_store = stack.enter_context(PatternStore(job.test_scan, Progress()))
        if model.terms.hidden:
            test = TrainingPart(job.test_scan, validation_groups(job.test_scan, 1))
            return train, _hidden_feeds(job, test, test_store, other, True, backend)[1]
        check = _tile_check if model.whole_canvas else _group_check
        return train, check(job.config, job.test_scan, test_store, other)
    checks = [feed for _, feed in found if feed is not None]
    return train, _joined(checks) if checks else None


def _trained_probe(
    job: TrainingJob, part: TrainingPart, store: PatternStore, model: PatternModel, backend: Backend
) -> NDArray[np.complex64]:
    """Return the probe that a scan is trained with: fitted, unless hidden pixels say that its own is
    better."""
    indices = np.unique(part.groups.indices)
    if not model.terms.hidden:
        return fitted_probe(backend, store, part.scan, indices, job.progress)
    own = HiddenScan(backend, store, part.scan, indices, job.config.seed)
    return better_probe(own, job.progress).scan.probe


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


def _hidden_feeds(
    job: TrainingJob, part: TrainingPart, store: PatternStore, known: Any, own: bool, backend: Backend
) -> tuple[Feed, Feed]:
    """Return tiles with one set of pixels hidden at a time, and those that are compared with the pixels that
    no training sees."""
    scan, seed = part.scan, job.config.seed
    indices, _, tiles = split_patterns(part.groups, None, scan.patch_px)
    hidden, starts = HiddenScan(backend, store, scan, indices, seed), []
    with job.progress.phase("plain iterations", UNSEEN + 1) as phase:
        for number in range(UNSEEN + 1):
            starts.append(hidden.start(number))
            phase.update(number + 1)
    beam = {"own_probe": own, "own_scale": own}
    source = HiddenTileSource(store, scan, indices, seed, hidden.plan, np.stack(starts), labels=known, **beam)
    first, count = UNSEEN * len(indices), len(indices)
    centres = [first + centre for centre in validation_centres(count, scan.patch_px)]
    steps = max(MIN_STEPS, tiles)
    train = Feed(source, lambda epoch: tile_centres(first, steps, seed, epoch).tolist())
    return train, Feed(source, lambda _: centres)


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
