"""Settings of the PyTorch form that nothing reads: refused by name when a training run starts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

from ptycho.config.architectures import WHOLE_CANVAS
from ptycho.config.effects import refuse_changed
from ptycho.errors import ConfigError
from ptycho_torch.config_params import (
    DEFAULT_CHANNELS,
    DataConfig,
    DatagenConfig,
    InferenceConfig,
    ModelConfig,
    TrainingConfig,
    refused_fields,
)

DATA, MODEL = refused_fields(DataConfig), refused_fields(ModelConfig)
TRAINING, INFERENCE = refused_fields(TrainingConfig), refused_fields(InferenceConfig)
ALSO_SENT: dict[str, tuple[str, ...]] = {
    "strategy": ("auto", "ddp_spawn"),
    "orchestrator": ("Mlflow", "Lightning"),
}
"""Setting of a training run -> what clients send who never chose; one process trains on one device."""

PENALTIES: tuple[str, ...] = ("amp_loss", "phase_loss")
BOUNDS: tuple[str, ...] = ("x_bounds", "y_bounds")
OR_CNN = " or use architecture 'cnn'"
EVERYTHING = (0.0, 1.0)
"""Bounds that leave no scan point out."""


def _check_mask(model: ModelConfig) -> None:
    """Refuse a mask that is not the round one."""
    for name in ("probe_mask", "probe_mask_tensor"):
        shape = tuple(getattr(getattr(model, name), "shape", ()))
        if shape:
            raise ConfigError(
                f"training: {name} is not implemented as an array (got shape {shape}, expected True or False "
                "for the round mask). Pass True with probe_mask_diameter and probe_mask_sigma."
            )


def _check_bounds(data: DataConfig, name: str, architecture: str) -> None:
    """Refuse bounds that are no part of a range, and those that a network for whole scans does not have."""
    bounds = tuple(getattr(data, name))
    if len(bounds) != 2 or not 0.0 <= bounds[0] < bounds[1] <= 1.0:
        raise ConfigError(
            f"training: {name} is no part of a range (got {bounds}, expected two numbers from 0 to 1, the "
            "lower one first). Correct the bounds."
        )
    if architecture in WHOLE_CANVAS and bounds != EVERYTHING:
        refuse_changed(data, (name,), architecture, "has no effect", OR_CNN)


def _check_sent(training: TrainingConfig) -> None:
    """Refuse what clients send along, where somebody chose something else."""
    refuse_changed(training, ("training_directories",), "training", "is not implemented", "")
    for name, values in ALSO_SENT.items():
        value = getattr(training, name)
        if value not in values:
            raise ConfigError(
                f"training: {name} is not implemented (got {value!r}, expected {' or '.join(values)}). "
                "Leave it out."
            )


def _check_channels(data: DataConfig, model: ModelConfig) -> None:
    """Refuse numbers of patterns per group that disagree; ``C`` of the data counts."""
    also = {"decoder_last_amp_channels": ModelConfig.decoder_last_amp_channels}
    for name in ("C_model", "C_forward", "decoder_last_amp_channels"):
        value = getattr(model, name)
        if value not in (data.C, DEFAULT_CHANNELS, also.get(name)):
            raise ConfigError(
                f"training: {name} is not C of the data (got {value!r}, expected {data.C}). Leave it out."
            )


def check_inference(
    inference: InferenceConfig, architecture: str, datagen: DatagenConfig | None = None
) -> None:
    """Refuse settings that would change nothing in a reconstruction by a ``ConfigError`` with the name of the
    first."""
    refuse_changed(inference, INFERENCE, "reconstruction", "is not implemented", "")
    if architecture in WHOLE_CANVAS:
        names = ("batch_size", "patch_weighting")
        refuse_changed(inference, names, architecture, "has no effect", OR_CNN)
    if datagen is not None:
        names, action = tuple(item.name for item in fields(datagen)), "; ptycho_simulate makes scans"
        refuse_changed(datagen, names, "synthetic data", "is not implemented", action)


def check_all(native: Mapping[str, Any]) -> None:
    """Refuse settings (``native``, by section) that would change nothing in a training run or after it, as
    :func:`check_native`; without ``data_config`` nothing is looked at."""
    if "data_config" not in native:
        return
    model = native["model_config"]
    check_native(native["data_config"], model, native["training_config"])
    inference = native.get("inference_config") or InferenceConfig()
    check_inference(inference, model.architecture, native.get("datagen_config"))


def check_native(data: DataConfig, model: ModelConfig, training: TrainingConfig) -> None:
    """Refuse settings that would change nothing in a training run by a ``ConfigError`` with the name of the
    first."""
    settings: tuple[tuple[Any, Iterable[str]], ...] = ((data, DATA), (model, MODEL), (training, TRAINING))
    for config, names in settings:
        refuse_changed(config, names, "training", "is not implemented", "")
    mode = training.torch_loss_mode
    if model.loss_function == "MAE" and mode not in ("mae", TrainingConfig.torch_loss_mode):
        raise ConfigError(
            "training: loss_function has no effect beside torch_loss_mode (got 'MAE' and "
            f"{mode!r}, expected one loss). Leave loss_function out."
        )
    _check_sent(training)
    _check_channels(data, model)
    _check_mask(model)
    for name in BOUNDS:
        _check_bounds(data, name, model.architecture)
    if model.architecture in WHOLE_CANVAS:
        refuse_changed(model, PENALTIES, model.architecture, "has no effect", OR_CNN)
    for name in PENALTIES:
        coefficient = f"{name}_coeff"
        if getattr(model, name) is None:
            refuse_changed(model, (coefficient,), f"model without {name}", "has no effect", f" or set {name}")
        elif model.mode == "Supervised":
            raise ConfigError(
                f"supervised: {name} has no effect (got {getattr(model, name)!r}, expected None). "
                "Leave it out or use mode 'Unsupervised'."
            )
    if not model.amplitude_variance_loss:
        where = "model without amplitude_variance_loss"
        refuse_changed(model, ("amplitude_variance_coeff",), where, "has no effect", "")
