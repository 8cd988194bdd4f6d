"""Lightning's trainer: built from the settings of a run, and kept from ending the process it runs in."""

from __future__ import annotations

import logging
import signal
import threading
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import SIGTERMException

from ptycho.data.npz import atomic_path
from ptycho.errors import ConfigError
from ptycho.process.interrupts import Terminated
from ptycho.run.job import TrainingJob


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
