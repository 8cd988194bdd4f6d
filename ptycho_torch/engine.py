"""The PyTorch engine: train, load and reconstruct, as ``ptycho.run.pipeline`` asks for by name."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from torch import Tensor

from ptycho.config.choices import BEST_CHECKPOINT, CHECKPOINT_FOLDER, LAST_CHECKPOINT
from ptycho.config.config import ModelConfig, PyTorchExecutionConfig, TrainingConfig
from ptycho.config.effects import OWNED_BY_TRAINING, with_execution
from ptycho.data.feed import Batch
from ptycho.errors import BundleError, ConfigError
from ptycho.networks.bundle import Bundle, read_bundle
from ptycho.networks.schedule import early_end
from ptycho.physics.losses import loss_terms, monitored_loss
from ptycho.run.feeds import UnseenPixels, never_worse, note_unseen, opened_feeds, shown_gain, unseen_before
from ptycho.run.job import TrainingJob, TrainingResult, check_finite
from ptycho.run.mlflow_store import check_logger
from ptycho.run.mlflow_store import log_artifacts as log_artifacts
from ptycho_torch.config_bridge import from_core
from ptycho_torch.data import loader
from ptycho_torch.effects import check_all
from ptycho_torch.isolation import untouched_torch
from ptycho_torch.model import CONFIG_TYPES, PtychoPINN_Lightning, check_resume, damaged
from ptycho_torch.reconstruct import TorchBackend, resolve_accelerator
from ptycho_torch.reconstruct import reconstruct as reconstruct
from ptycho_torch.trainer import BestEpoch, build_logger, build_trainer, check_precision, run_trainer

to_bundle = PtychoPINN_Lightning.to_bundle
BEST_STEM, LAST_STEM = (Path(names["pytorch"]).stem for names in (BEST_CHECKPOINT, LAST_CHECKPOINT))
"""Lightning adds the suffix of its own."""


class _Report(Callback):
    """Passes losses of every epoch on, and keeps them; ``before`` is what the pixels that no training sees
    said when it began."""

    def __init__(self, job: TrainingJob, model: PtychoPINN_Lightning, before: UnseenPixels | None) -> None:
        self.before = before
        self.names = {"train_loss": model.loss_name, "val_loss": model.val_loss_name}
        self.history: dict[str, list[float]] = {name: [] for name in self.names}
        self.phase = job.progress.phase("training", job.config.nepochs)

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Note the losses; validation has run by now."""
        if trainer.sanity_checking:
            return
        for name, logged in self.names.items():
            if logged in trainer.callback_metrics:
                self.history[name].append(float(trainer.callback_metrics[logged]))
        shown = {name: values[-1] for name, values in self.history.items() if values}
        check_finite(shown, trainer.current_epoch + 1)
        shown |= shown_gain(self.before, shown)
        self.phase.update(trainer.current_epoch + 1, **shown)


def _checkpoints(job: TrainingJob, monitor: str) -> list[Callback]:
    execution = job.execution
    if not execution.enable_checkpointing:
        return []
    top, folder = execution.checkpoint_save_top_k, Path(job.config.output_dir) / CHECKPOINT_FOLDER
    # At the end of an epoch validation and training loss are both known.
    common = {"dirpath": folder, "save_on_train_epoch_end": True, "enable_version_counter": False}
    best = ModelCheckpoint(
        filename=BEST_STEM if top <= 1 else "{epoch:03d}-" + BEST_STEM,
        monitor=monitor,
        mode=execution.checkpoint_mode,
        save_top_k=top,
        auto_insert_metric_name=False,
        **common,
    )
    # The last epoch has a callback of its own: the other one writes only when an epoch is among the best.
    return [best, ModelCheckpoint(filename=LAST_STEM, **common)]


def _new_model(job: TrainingJob) -> PtychoPINN_Lightning:
    native = dict(zip(CONFIG_TYPES, from_core(job.config.model, job.config), strict=False))
    native |= {name: job.native[name] for name in CONFIG_TYPES if name in job.native}
    # The execution settings may have said these, and both forms of the training settings must agree.
    owned = {name: getattr(job.config, name) for name in OWNED_BY_TRAINING}
    native["training_config"] = replace(native["training_config"], **owned)
    module = PtychoPINN_Lightning(**native, seed=job.config.seed)
    module.attach_scan(job.scan.probe, job.scan.record, refined=False)
    module.begin_with(job.initial)
    # Penalties are known to the PyTorch settings alone.
    own = module.model_config
    module.terms = replace(
        loss_terms(job.config),
        amplitude_penalty=(own.amp_loss, own.amp_loss_coeff) if own.amp_loss else None,
        phase_penalty=(own.phase_loss, own.phase_loss_coeff) if own.phase_loss else None,
    )
    return module


def check_settings(
    config: TrainingConfig, execution: PyTorchExecutionConfig, native: Mapping[str, Any]
) -> None:
    """Refuse settings of a training run that this backend does not have by a ``ConfigError``, before any work
    is done. ``native`` holds the PyTorch settings by section, where the caller has them, and ``callbacks`` of
    Lightning, called after ours; its ``inference_config`` goes into the checkpoints."""
    resolved = resolve_accelerator(execution.accelerator)
    if resolved == "cpu" and execution.devices not in (1, "auto"):
        raise ConfigError(
            f"execution: the CPU is one device (got devices={execution.devices!r}, expected 1). Leave it out."
        )
    check_precision(execution.precision, resolved)
    check_logger(execution.logger_backend, "torch")
    monitored_loss(execution.checkpoint_monitor_metric, loss_terms(config).kind)
    check_all(native)


def _tensors(device: torch.device) -> Callable[[Batch], dict[str, Tensor]]:
    """Return what makes tensors of a batch."""
    return lambda batch: {name: torch.from_numpy(values).to(device) for name, values in batch.items()}


@untouched_torch()
def fit(job: TrainingJob) -> TrainingResult:
    """Train a model on the patterns of a scan; the result has the weights of the best epoch. ``ConfigError``
    where a setting does not fit machine or network, ``DataError`` where the training diverges."""
    job = replace(job, config=with_execution(job.config, job.execution))
    check_settings(job.config, job.execution, job.native)
    accelerator = resolve_accelerator(job.execution.accelerator)
    # For callbacks of the caller; what is drawn here comes from generators of its own.
    torch.default_generator.manual_seed(job.config.seed)
    model = _new_model(job)
    if job.resume is not None:
        check_resume(job.resume, model, job.config.nepochs)
    start = time.perf_counter()
    with ExitStack() as stack:
        with torch.no_grad():
            found = opened_feeds(stack, job, model, TorchBackend(model, torch.device(accelerator)))
            tensors = _tensors(torch.device(accelerator))
            before = unseen_before(job, model.to(accelerator), found[1], tensors)
        train, validation = (None if feed is None else loader(feed, job.execution) for feed in found)
        report = _Report(job, model, before)
        logger = build_logger(job)
        mode, wait = job.execution.checkpoint_mode, job.execution.early_stop_patience
        monitor = model.monitored(job.execution.checkpoint_monitor_metric, validated=validation is not None)
        best = BestEpoch(report.names[monitor], monitor, mode, job.resume)
        first = None if before is None else before.candidate(monitor, mode)
        if first is not None:
            best.begin(model, first)
        patience = EarlyStopping(
            best.logged, patience=wait, mode=mode, strict=False, check_on_train_epoch_end=True
        )
        called = [report, best, *_checkpoints(job, best.logged), patience]
        called += job.native.get("callbacks", ())
        trainer = build_trainer(job, accelerator, logger, called)
        with report.phase as phase:
            run_trainer(trainer, model, train, validation, job.resume)
            if 0 < patience.stopped_epoch < job.config.nepochs - 1:
                phase.ended(early_end(patience.stopped_epoch + 1, monitor, mode))
        chosen = best.restore(model)
        with torch.no_grad():
            chosen = never_worse(before, chosen, model.to(accelerator), found[1], tensors, job.progress)
        model.cpu().trained_epoch = chosen
    if model.trained_epoch is not None:
        job.progress.note(model.trained_epoch.best_of(trainer.current_epoch))
        note_unseen(before, model.trained_epoch, job.progress)
    run_id = getattr(logger, "run_id", None) if logger else None
    paths = (callback.best_model_path for callback in trainer.checkpoint_callbacks)
    files = [Path(path) for path in paths if path]
    return TrainingResult(model, report.history, files, time.perf_counter() - start, run_id)


def load(path: Path) -> PtychoPINN_Lightning:
    """Load a trained model from a Lightning checkpoint (``.ckpt``) or a bundle, on the CPU and ready to
    reconstruct; ``BundleError`` if the file is damaged, or does not fit this version."""
    if path.suffix not in (".ckpt", ".pt"):
        return from_bundle(read_bundle(path))
    how = {"map_location": "cpu", "weights_only": True, "strict": True}
    try:
        model = PtychoPINN_Lightning.load_from_checkpoint(path, **how)
    except BundleError:
        raise
    except Exception as error:
        raise damaged(path, error) from error
    return model.eval()


def from_bundle(bundle: Bundle) -> PtychoPINN_Lightning:
    """Build a model from a bundle of any backend, on the CPU and ready to reconstruct; ``BundleError`` if a
    weight is missing, unknown, or of another shape."""
    data, settings, training = from_core(bundle.model)
    model = PtychoPINN_Lightning(settings, data, training)
    model.take(bundle)
    with torch.no_grad():
        model.log_gain.fill_(bundle.log_gain)
    return model.eval()


def core_config(model: PtychoPINN_Lightning) -> ModelConfig:
    """Return the network settings, as every backend reads them, that a model was trained with."""
    return model.core_config
