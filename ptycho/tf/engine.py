# ruff: noqa: F401
"""The TensorFlow engine: train, load and reconstruct, as ``ptycho.run.pipeline`` asks for by name."""

from __future__ import annotations

from ptycho.config.config import ModelConfig
from ptycho.run.mlflow_store import log_artifacts
from ptycho.tf.checkpoints import from_bundle, load
from ptycho.tf.model import PtychoPINN
from ptycho.tf.reconstruct import reconstruct
from ptycho.tf.runtime import resolve_accelerator
from ptycho.tf.training import check_settings, fit

to_bundle = PtychoPINN.to_bundle


def core_config(model: PtychoPINN) -> ModelConfig:
    """Return the network settings, as every backend reads them, that a model was trained with."""
    return model.core_config
