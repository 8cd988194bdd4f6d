"""Lightning's trainer and what works beside it: its logger, and the best epoch, which a run hands on."""

from __future__ import annotations

import logging
import signal
import sys
import threading
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor

from ptycho.data.npz import atomic_path
from ptycho.errors import ConfigError
from ptycho.networks.schedule import BEST_LOST, Patience, TrainedEpoch, best_names
from ptycho.process.interrupts import Terminated
from ptycho.run.job import TrainingJob
from ptycho.run.mlflow_store import EXPERIMENT, open_store

logger = logging.getLogger(__name__)


class WholeCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint in its own folder and renames it.

    Lightning writes it to the folder of temporary files; where that is another file system, it copies it to
    its place, and a run that is killed then leaves half a file.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write the file, whose folder is made where it is absent; Lightning calls it."""
        del storage_options
        with atomic_path(path) as temporary:
            torch.save(checkpoint, temporary)


def check_precision(precision: str, accelerator: str) -> None:
    """Refuse 16-mixed, half precision with five exponent bits, on a CPU, which has no fast form of it, by a
    ``ConfigError``. Only the convolutions of a training run are concerned; the physics is in single
    precision."""
    if precision == "16-mixed" and accelerator == "cpu":
        raise ConfigError(
            "execution: precision 16-mixed needs a GPU (got the CPU, expected 32-true or bf16-mixed there). "
            "Choose one of them."
        )


def build_trainer(job: TrainingJob, accelerator: str, logger: Any, callbacks: list[Callback]) -> L.Trainer:
    """Return the trainer of a job; the callbacks are called in this order, those that write checkpoints
    last."""
    execution, training = job.execution, job.config
    # Lightning's own hints (workers, log intervals) are for developers; the run reports through job.progress.
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="lightning")
    warnings.filterwarnings("ignore", module="tensordict")
    # Nothing in here reads memory before it is written; filling it takes a tenth of a training on a CPU.
    torch.utils.deterministic.fill_uninitialized_memory = False
    return L.Trainer(
        max_epochs=training.nepochs,
        accelerator=accelerator,
        devices=execution.devices,
        strategy=execution.strategy if execution.devices != 1 else "auto",
        precision=execution.precision,
        # Some CUDA scatters have no deterministic form; they warn instead of ending the night's run.
        deterministic="warn" if execution.deterministic else False,
        accumulate_grad_batches=execution.accum_steps,
        gradient_clip_val=training.gradient_clip_val,
        gradient_clip_algorithm=training.gradient_clip_algorithm,
        callbacks=callbacks,
        logger=logger,
        plugins=[WholeCheckpoints()],
        default_root_dir=training.output_dir,
        enable_progress_bar=execution.enable_progress_bar,
        enable_model_summary=False,
        enable_checkpointing=execution.enable_checkpointing,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
    )


def run_trainer(
    trainer: L.Trainer, model: L.LightningModule, train: Any, validation: Any, resume: Path | None = None
) -> None:
    """Train ``model`` in place; what interrupts it (``KeyboardInterrupt``, ``Terminated`` after SIGTERM)
    comes through as it is, where Lightning would end the process."""
    former = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(model, train, validation, ckpt_path=str(resume) if resume else None, weights_only=True)
    except SIGTERMException as stop:
        raise Terminated from stop
    except SystemExit as stop:
        raise KeyboardInterrupt from stop
    finally:
        # After Ctrl-C Lightning leaves the whole process deaf to it.
        if threading.current_thread() is threading.main_thread() and former is not None:
            signal.signal(signal.SIGINT, former)
    if trainer.interrupted:
        raise KeyboardInterrupt


def build_logger(job: TrainingJob) -> Any:
    """Return the Lightning logger a job asks for; False, without importing a package, where there is none."""
    backend = job.execution.logger_backend
    if backend is None:
        return False
    folder = Path(job.config.output_dir)
    if backend == "csv":
        from lightning.pytorch.loggers import CSVLogger

        return CSVLogger(folder, name="lightning_logs")
    if backend == "tensorboard":
        from lightning.pytorch.loggers import TensorBoardLogger

        # TensorBoard takes an installed TensorFlow in, for seconds; with this name it takes its own stub.
        sys.modules.setdefault("tensorboard.compat.notf", ModuleType("tensorboard.compat.notf"))
        return TensorBoardLogger(folder, name="tensorboard", default_hp_metric=False)
    from lightning.pytorch.loggers import MLFlowLogger

    _, uri, artifacts = open_store(folder)
    store = MLFlowLogger(EXPERIMENT, run_name=folder.name, tracking_uri=uri, artifact_location=artifacts)
    store.log_hyperparams({"n_patterns": job.scan.n_patterns, "scan": job.scan.name})
    return store


class BestEpoch(Callback):
    """Keeps the weights whenever an epoch is the best so far, whether checkpoints are written or not. The
    loss is logged as ``logged`` and shown as ``monitor``; beside the checkpoint ``resume`` lies the best
    epoch so far."""

    def __init__(self, logged: str, monitor: str, mode: str, resume: Path | None = None) -> None:
        self.logged, self.monitor, self.resume = logged, monitor, resume
        self.record = Patience(1, mode)
        self.weights: dict[str, Tensor] | None = None
        self._former: tuple[float, int] | None = None

    def begin(self, module: L.LightningModule, value: float) -> None:
        """Take the network that a training begins with for its epoch 0, with its value of the loss."""
        self._look(module, value, 0)

    def _look(self, module: L.LightningModule, value: float, number: int) -> None:
        if self.record.improves(value, number):
            self.weights = module.snapshot()

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Look at the epoch; Lightning calls it after the validation and before checkpoints are written."""
        if self.logged not in trainer.callback_metrics:
            return
        value, number = float(trainer.callback_metrics[self.logged]), trainer.current_epoch + 1
        module.trained_epoch = TrainedEpoch(number, self.monitor, value)
        self._look(module, value, number)

    def restore(self, module: L.LightningModule) -> TrainedEpoch | None:
        """Give a module, on the CPU afterwards, the weights of the best epoch, and return it; None, and the
        weights as they are, where no epoch was compared."""
        module.cpu()
        if self.weights is None or self.record.best is None or self.record.best_epoch is None:
            return None
        module.restore(self.weights)
        return TrainedEpoch(self.record.best_epoch, self.monitor, self.record.best)

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint holds of it: plain numbers."""
        return {"best": self.record.best, "best_epoch": self.record.best_epoch, "monitor": self.monitor}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Note which epoch was the best so far; its weights are looked for when the training run begins."""
        if state["monitor"] == self.monitor and state["best_epoch"] is not None:
            self._former = float(state["best"]), int(state["best_epoch"])

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Take up the best epoch so far: in the checkpoint, beside it, or where its run wrote it."""
        del module
        if self._former is None or self.resume is None:
            return
        value, number = self._former
        names = (self.resume.name, *best_names("pytorch", number))
        written = [Path(found.best_model_path) for found in trainer.checkpoint_callbacks]
        for path in filter(Path.is_file, [*map(self.resume.with_name, names), *written]):
            content = torch.load(path, map_location="cpu", weights_only=True)
            if int(content["epoch"]) + 1 == number:
                self.weights, self.record.best, self.record.best_epoch = content["state_dict"], value, number
                return
        logger.warning("%s: %s", self.resume, BEST_LOST.format(number))
