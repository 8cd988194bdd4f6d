"""The training loop in TensorFlow: one compiled step, the shared order of batches, the end of an epoch."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from ptycho.config.choices import CHECKPOINT_FOLDER, COMMAND_DEFAULTS
from ptycho.config.config import PyTorchExecutionConfig, TrainingConfig
from ptycho.config.effects import with_execution
from ptycho.errors import ConfigError
from ptycho.networks.architectures import check_weights
from ptycho.networks.bundle import Bundle
from ptycho.networks.schedule import (
    BEST_LOST,
    Patience,
    Plateau,
    TrainedEpoch,
    base_rate,
    early_end,
    rate_factor,
)
from ptycho.physics.losses import loss_terms, monitored_loss
from ptycho.process.interrupts import heard_at_steps
from ptycho.process.isolation import untouched_process
from ptycho.run.feeds import Feed, never_worse, note_unseen, opened_feeds, shown_gain, unseen_before
from ptycho.run.job import TrainingJob, TrainingResult, check_finite, check_left, check_same_loss
from ptycho.run.mlflow_store import check_logger
from ptycho.tf.checkpoints import Checkpoints, State, best_files, fill, load_bundle, read_state
from ptycho.tf.data import specs, stream, tensors
from ptycho.tf.loggers import RunLogger, build_logger
from ptycho.tf.model import PtychoPINN
from ptycho.tf.optimizer import Optimizer, check_clipping, clipped
from ptycho.tf.reconstruct import TensorflowBackend
from ptycho.tf.runtime import Tensor, device_name, resolve_accelerator, tf

logger = logging.getLogger(__name__)

PRECISIONS: dict[str, tf.DType | None] = {"32-true": None, "bf16-mixed": tf.bfloat16}
"""What the convolutions compute in. 16-mixed needs a scaled loss, and on a CPU seven times the time of
32-true."""


def _new_model(job: TrainingJob) -> PtychoPINN:
    config = job.config
    gain = config.intensity_scale_trainable
    model = PtychoPINN(config.model, config.seed, terms=loss_terms(config), gain_trainable=gain)
    model.generator.mixed_dtype = PRECISIONS[job.execution.precision]
    model.attach_scan(job.scan.probe, job.scan.record, refined=False)
    model.begin_with(job.initial)
    return model


def check_settings(
    config: TrainingConfig, execution: PyTorchExecutionConfig, native: Mapping[str, Any]
) -> None:
    """Refuse settings of a training run that only PyTorch has by a ``ConfigError``, before any work is done;
    this backend has none of its own (``native``)."""
    del native
    for name, known in (("precision", tuple(PRECISIONS)), ("devices", (1, "auto"))):
        value = getattr(execution, name)
        if value not in known:
            expected = " or ".join(map(repr, known))
            raise ConfigError(
                f"execution: TensorFlow cannot train with {name}={value} (got {value!r}, expected "
                f"{expected}). Leave it out, or pass --backend pytorch."
            )
    resolve_accelerator(execution.accelerator)
    check_clipping(config.gradient_clip_val, config.gradient_clip_algorithm)
    check_logger(execution.logger_backend, "tensorflow")
    monitored_loss(execution.checkpoint_monitor_metric, loss_terms(config).kind)


def _checkpoint(job: TrainingJob, model: PtychoPINN) -> tuple[Bundle, State | None]:
    """Read what a training run goes on from; refuse it before any work is done where that is impossible."""
    path = Path(str(job.resume))
    bundle, state = load_bundle(path), read_state(path)
    check_weights(bundle.weights, model.generator.table, bundle.where)
    trained, wanted = (state[0]["epoch"] + 1 if state is not None else 0), job.config.nepochs
    check_left(path, trained, wanted)
    if state is not None:
        # A former version had no hidden pixels, and did not write which loss it had.
        check_same_loss(path, state[0].get("loss", COMMAND_DEFAULTS["torch_loss_mode"]), model.terms.kind)
    return bundle, state


class _Training:
    """One training run while it runs."""

    def __init__(self, job: TrainingJob, model: PtychoPINN, train: Feed, validation: Feed | None) -> None:
        self.job, self.model, self.train, self.validation = job, model, train, validation
        config, execution = job.config, job.execution
        self.variables = model.trainable()
        self.optimizer = Optimizer(config, self.variables)
        self.rate, self.first_epoch = base_rate(config.learning_rate, config.model), 0
        self.plateau = Plateau(
            config.plateau_factor, config.plateau_patience, config.plateau_min_lr, config.plateau_threshold
        )
        self.patience = Patience(execution.early_stop_patience, execution.checkpoint_mode)
        self.best = model.snapshot()
        self.history: dict[str, list[float]] = {"train_loss": [], "val_loss": []}
        asked = execution.checkpoint_monitor_metric
        self.monitor = model.monitored(asked, validated=validation is not None)
        folder = Path(config.output_dir) / CHECKPOINT_FOLDER
        self.checkpoints = Checkpoints(folder, execution.checkpoint_save_top_k, execution.checkpoint_mode)
        self._step = tf.function(self._gradients, input_signature=[specs(train.source.signature)])
        if validation is not None:
            signature = [specs(validation.source.signature)]
            self._validated = tf.function(model.loss, input_signature=signature)
        self.before = unseen_before(job, model, validation, tensors)
        first = (
            None if self.before is None else self.before.candidate(self.monitor, execution.checkpoint_mode)
        )
        if first is not None:
            self.patience.improves(first, 0)

    def _gradients(self, batch: dict[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
        with tf.GradientTape() as tape:
            loss = self.model.loss(batch)
        trained, unseen = list(self.variables.values()), tf.UnconnectedGradients.ZERO
        return loss, tape.gradient(loss, trained, unconnected_gradients=unseen)

    def _train_epoch(self, epoch: int) -> float:
        """Take the steps of an epoch and return its mean loss."""
        config, share, order = self.job.config, self.job.execution.accum_steps, self.train.order(epoch)
        losses, gathered = [], None
        for index, batch in enumerate(stream(self.train.source, order)):
            loss, found = self._step(batch)
            losses.append(float(loss))
            if share > 1:
                found = [gradient / share for gradient in found]
            gathered = found if gathered is None else [a + b for a, b in zip(gathered, found, strict=True)]
            if (index + 1) % share == 0 or index + 1 == len(order):
                limited = clipped(gathered, config.gradient_clip_val, config.gradient_clip_algorithm)
                self.optimizer.apply(limited, self.rate)
                gathered = None
        return float(np.mean(losses))

    def _validation_loss(self, epoch: int) -> float | None:
        """Return the mean validation loss."""
        if self.validation is None:
            return None
        batches = stream(self.validation.source, self.validation.order(epoch))
        return float(np.mean([float(self._validated(batch)) for batch in batches]))

    def _set_rate(self, epoch: int) -> None:
        config = self.job.config
        if config.scheduler in ("Adaptive", "ReduceLROnPlateau"):
            return
        self.rate = base_rate(config.learning_rate, config.model) * rate_factor(
            config.scheduler,
            epoch,
            epochs=config.nepochs,
            warmup_epochs=config.lr_warmup_epochs,
            min_ratio=config.lr_min_ratio,
        )

    def run(self, log: RunLogger) -> None:
        """Train until the epochs are over or patience is."""
        config, execution = self.job.config, self.job.execution
        with self.job.progress.phase("training", config.nepochs) as phase:
            for epoch in range(self.first_epoch, config.nepochs):
                self._set_rate(epoch)
                rate = self.rate
                losses = {"train_loss": self._train_epoch(epoch), "val_loss": self._validation_loss(epoch)}
                shown = {name: value for name, value in losses.items() if value is not None}
                check_finite(shown, epoch + 1)
                for name, value in shown.items():
                    self.history[name].append(value)
                named = {f"{self.model.terms.kind}_{name}": value for name, value in shown.items()}
                log.log(epoch, {**named, "learning_rate": rate})
                if config.scheduler in ("Adaptive", "ReduceLROnPlateau"):
                    self.rate = self.plateau.lowered(shown["train_loss"], rate)
                value = shown[self.monitor]
                self.model.trained_epoch = TrainedEpoch(epoch + 1, self.monitor, value)
                if self.patience.improves(value, epoch + 1):
                    self.best = self.model.snapshot()
                if execution.enable_checkpointing:
                    self.checkpoints.save(self.model, epoch, value, self._state(epoch))
                phase.update(epoch + 1, **shown, **shown_gain(self.before, shown))
                if self.patience.exhausted and epoch + 1 < config.nepochs:
                    phase.ended(early_end(epoch + 1, self.monitor, execution.checkpoint_mode))
                    break
        self._take_best(epoch + 1)

    def _take_best(self, trained: int) -> None:
        """Give the model the weights of its best epoch."""
        self.model.restore(self.best)
        best, number = self.patience.best, self.patience.best_epoch
        if best is None or number is None:
            self.model.trained_epoch = None
            return
        epoch, progress = TrainedEpoch(number, self.monitor, best), self.job.progress
        chosen = never_worse(self.before, epoch, self.model, self.validation, tensors, progress)
        self.model.trained_epoch = chosen
        if chosen is not None:
            progress.note(chosen.best_of(trained))
            note_unseen(self.before, chosen, progress)

    def _state(self, epoch: int) -> State:
        memories = {type(memory).__name__: asdict(memory) for memory in (self.plateau, self.patience)}
        return {
            "epoch": epoch,
            "rate": self.rate,
            "loss": self.model.terms.kind,
            **memories,
        }, self.optimizer.state()

    def resume(self, path: Path, bundle: Bundle, found: State | None) -> None:
        """Go on from a checkpoint: exactly where its state lies beside it, else from its weights."""
        fill(self.model, bundle)
        self.best = self.model.snapshot()
        if found is None or found[1].keys() != self.optimizer.state().keys():
            logger.warning("%s: no state of this optimiser beside it; training begins with its weights", path)
            return
        progress, state = found
        self.optimizer.load_state(state)
        self.first_epoch, self.rate = progress["epoch"] + 1, progress["rate"]
        for memory in (self.plateau, self.patience):
            vars(memory).update(progress[type(memory).__name__])
        self._find_best(path)

    def _find_best(self, path: Path) -> None:
        """Take up the best epoch so far, in the checkpoint or beside it; if it is lost, count from here."""
        number = self.patience.best_epoch
        for beside in best_files(path, number):
            found = load_bundle(beside)
            if found.trained_epoch is not None and found.trained_epoch.number == number:
                last = self.best
                fill(self.model, found)
                self.best = self.model.snapshot()
                self.model.restore(last)
                same = beside.parent.resolve() == self.checkpoints.folder.resolve()
                if same and self.checkpoints.keep == 1:
                    self.checkpoints.kept = [(found.trained_epoch.loss, beside)]
                return
        if number != self.first_epoch:
            if number is not None:
                logger.warning("%s: %s", path, BEST_LOST.format(number))
            self.patience.best = self.patience.best_epoch = None


@untouched_process()
def fit(job: TrainingJob) -> TrainingResult:
    """Train as :func:`ptycho_torch.engine.fit`; ``BundleError`` if the checkpoint to go on from cannot be
    read. The same seed gives the same numbers on a CPU; on a GPU, overlapping patches are added in no fixed
    order."""
    job = replace(job, config=with_execution(job.config, job.execution))
    check_settings(job.config, job.execution, job.native)
    start = time.perf_counter()
    with ExitStack() as stack:
        stack.enter_context(tf.device(device_name(job.execution.accelerator)))
        stack.enter_context(heard_at_steps())
        model = _new_model(job)
        checkpoint = _checkpoint(job, model) if job.resume is not None else None
        found = opened_feeds(stack, job, model, TensorflowBackend(model))
        training = _Training(job, model, *found)
        if job.resume is not None and checkpoint is not None:
            training.resume(job.resume, *checkpoint)
        log = build_logger(job)
        finished = False
        try:
            training.run(log)
            finished = True
        finally:
            log.close(finished=finished)
    model.generator.mixed_dtype = None
    history = {name: values for name, values in training.history.items() if values}
    files = training.checkpoints.files() if job.execution.enable_checkpointing else []
    return TrainingResult(model, history, files, time.perf_counter() - start, log.run_id)
