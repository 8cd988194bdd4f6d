"""Optimisers and learning-rate schedules by the names that clients and command lines use."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ptycho.errors import ConfigError
from ptycho.networks import schedule
from ptycho.networks.schedule import base_rate
from ptycho_torch.config_params import TrainingConfig


def _optimizer(weights: list[nn.Parameter], training: TrainingConfig, rate: float) -> torch.optim.Optimizer:
    common = {"lr": rate, "weight_decay": training.weight_decay}
    betas = (training.adam_beta1, training.adam_beta2)
    if training.optimizer in ("adam", "adamw"):
        kind = torch.optim.Adam if training.optimizer == "adam" else torch.optim.AdamW
        return kind(weights, betas=betas, **common)
    if training.optimizer == "sgd":
        return torch.optim.SGD(weights, momentum=training.momentum, **common)
    raise ConfigError(
        f"training: unknown optimizer (got {training.optimizer!r}, expected adam, adamw or sgd). Choose one "
        "of them."
    )


def rate_factor(training: TrainingConfig, epoch: int) -> float:
    """Return the learning rate of an epoch (from 0) relative to the setting, in (0, 1]; ``ConfigError`` for
    an unknown schedule."""
    last_stage = (training.stage_1_epochs + training.stage_2_epochs, training.stage_3_lr_factor)
    return schedule.rate_factor(
        training.scheduler,
        epoch,
        epochs=training.epochs,
        warmup_epochs=training.warmup_epochs,
        min_ratio=training.min_lr_ratio,
        last_stage=last_stage if training.stage_3_epochs else None,
    )


def build_optimizer(module: nn.Module, training: TrainingConfig) -> Any:
    """Return what Lightning's ``configure_optimizers`` does: an optimizer, or a dict with ``lr_scheduler``,
    one step per epoch. ``ConfigError`` if the optimiser or the schedule is unknown."""
    rate_factor(training, 0)
    rate = base_rate(training.learning_rate, module.core_config)
    optimizer = _optimizer([value for value in module.parameters() if value.requires_grad], training, rate)
    if training.scheduler == "Default":
        return optimizer
    if training.scheduler in ("ReduceLROnPlateau", "Adaptive"):
        scheduler: Any = torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer,
            factor=training.plateau_factor,
            patience=training.plateau_patience,
            min_lr=training.plateau_min_lr,
            threshold=training.plateau_threshold,
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": module.loss_name}}
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: rate_factor(training, epoch))
    return {"optimizer": optimizer, "lr_scheduler": scheduler}
