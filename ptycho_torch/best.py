"""The epoch that a training run hands on: the best by the monitored loss, kept in memory meanwhile."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from ptycho.networks.schedule import BEST_LOST, Patience, TrainedEpoch, best_names

logger = logging.getLogger(__name__)


class BestEpoch(Callback):
    """Keeps the weights whenever an epoch is the best so far, whether checkpoints are written or not. The
    loss is logged as ``logged`` and shown as ``monitor``; beside the checkpoint ``resume`` lies the best
    epoch so far."""

    def __init__(self, logged: str, monitor: str, mode: str, resume: Path | None = None) -> None:
        self.logged, self.monitor, self.resume = logged, monitor, resume
        self.record = Patience(1, mode)
        self.weights: dict[str, Tensor] | None = None
        self._former: tuple[float, int] | None = None

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Look at the epoch; Lightning calls it after the validation and before checkpoints are written."""
        if self.logged not in trainer.callback_metrics:
            return
        value, number = float(trainer.callback_metrics[self.logged]), trainer.current_epoch + 1
        module.trained_epoch = TrainedEpoch(number, self.monitor, value)
        if self.record.improves(value, number):
            self.weights = {name: kept.detach().cpu().clone() for name, kept in module.state_dict().items()}

    def restore(self, module: L.LightningModule) -> TrainedEpoch | None:
        """Give a module, on the CPU afterwards, the weights of the best epoch, and return it; None, and the
        weights as they are, where no epoch was compared."""
        module.cpu()
        if self.weights is None or self.record.best is None or self.record.best_epoch is None:
            return None
        module.load_state_dict(self.weights, strict=True)
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
