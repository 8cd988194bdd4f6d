"""The TensorFlow engine: train, load and reconstruct, as ``ptycho.run.pipeline`` asks for by name."""

from __future__ import annotations

from ptycho.config.config import ModelConfig
from ptycho.run.mlflow_store import log_artifacts
from ptycho.tf.checkpoints import from_bundle, load
from ptycho.tf.device import resolve_accelerator
from ptycho.tf.model import PtychoPINN
from ptycho.tf.reconstruct import reconstruct
from ptycho.tf.training import check_settings, fit

__all__ = [
    "check_settings",
    "core_config",
    "fit",
    "from_bundle",
    "load",
    "log_artifacts",
    "reconstruct",
    "resolve_accelerator",
    "to_bundle",
]

to_bundle = PtychoPINN.to_bundle


def core_config(model: PtychoPINN) -> ModelConfig:
    """Return the network settings, as every backend reads them, that a model was trained with."""
    return model.core_config
