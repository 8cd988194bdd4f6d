"""Settings of the PyTorch form that nothing reads: refused by name when a training run starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from ptycho.config.architectures import WHOLE_CANVAS
from ptycho.config.effects import Idle, refuse
from ptycho.errors import ConfigError
from ptycho_torch.config_params import (
    DEFAULT_CHANNELS,
    DataConfig,
    DatagenConfig,
    InferenceConfig,
    ModelConfig,
    TrainingConfig,
    marked_fields,
)

DATA, MODEL, TRAINING, INFERENCE = (
    marked_fields(kind, "refused") for kind in (DataConfig, ModelConfig, TrainingConfig, InferenceConfig)
)
ALSO_SENT: dict[str, tuple[str, ...]] = {
    "strategy": ("auto", "ddp_spawn"),
    "orchestrator": ("Mlflow", "Lightning"),
}
"""Setting of a training run -> what clients send who never chose; one process trains on one device."""
PENALTIES: tuple[str, ...] = ("amp_loss", "phase_loss")
OR_CNN = " or use architecture 'cnn'"
EVERYTHING = (0.0, 1.0)
"""Bounds that leave no scan point out."""
UNREAD = "is not implemented"


def _refused(what: str, got: Any, expected: str, cure: str = "Leave it out.") -> ConfigError:
    return ConfigError(f"{what} (got {got}, expected {expected}). {cure}")


def _check_mask(model: ModelConfig) -> None:
    """Refuse a mask that is not the round one."""
    for name in ("probe_mask", "probe_mask_tensor"):
        shape = tuple(getattr(getattr(model, name), "shape", ()))
        if shape:
            what, expected = (
                f"training: {name} is not implemented as an array",
                "True or False for the round mask",
            )
            cure = "Pass True with probe_mask_diameter and probe_mask_sigma."
            raise _refused(what, f"shape {shape}", expected, cure)


def _check_bounds(data: DataConfig, architecture: str) -> None:
    """Refuse bounds that are no part of a range, and those that a network for whole scans does not have."""
    for name in ("x_bounds", "y_bounds"):
        bounds = tuple(getattr(data, name))
        if len(bounds) != 2 or not 0.0 <= bounds[0] < bounds[1] <= 1.0:
            expected = "two numbers from 0 to 1, the lower one first"
            raise _refused(f"training: {name} is no part of a range", bounds, expected, "Correct the bounds.")
        if architecture in WHOLE_CANVAS and bounds != EVERYTHING:
            refuse([Idle(data, (name,), architecture, action=OR_CNN)])


def _check_sent(training: TrainingConfig) -> None:
    """Refuse what clients send along, where somebody chose something else."""
    refuse([Idle(training, ("training_directories",), "training", UNREAD)])
    for name, values in ALSO_SENT.items():
        value = getattr(training, name)
        if value not in values:
            raise _refused(f"training: {name} {UNREAD}", repr(value), " or ".join(values))


def _check_channels(data: DataConfig, model: ModelConfig) -> None:
    """Refuse numbers of patterns per group that disagree; ``C`` of the data counts."""
    also = {"decoder_last_amp_channels": ModelConfig.decoder_last_amp_channels}
    for name in ("C_model", "C_forward", "decoder_last_amp_channels"):
        value = getattr(model, name)
        if value not in (data.C, DEFAULT_CHANNELS, also.get(name)):
            raise _refused(f"training: {name} is not C of the data", repr(value), str(data.C))


def _check_penalties(model: ModelConfig) -> None:
    """Refuse penalties of a network that has none, and coefficients of those that are not set."""
    if model.architecture in WHOLE_CANVAS:
        refuse([Idle(model, PENALTIES, model.architecture, action=OR_CNN)])
    for name in PENALTIES:
        if getattr(model, name) is None:
            refuse([Idle(model, (f"{name}_coeff",), f"model without {name}", action=f" or set {name}")])
        elif model.mode == "Supervised":
            cure = "Leave it out or use mode 'Unsupervised'."
            raise _refused(f"supervised: {name} has no effect", repr(getattr(model, name)), "None", cure)
    refuse([Idle(model, ("amplitude_variance_coeff",), "model without amplitude_variance_loss")])


def check_inference(
    inference: InferenceConfig, architecture: str, datagen: DatagenConfig | None = None
) -> None:
    """Refuse settings that would change nothing in a reconstruction by a ``ConfigError`` with the name of the
    first."""
    idle = [Idle(inference, INFERENCE, "reconstruction", UNREAD)]
    if architecture in WHOLE_CANVAS:
        idle.append(Idle(inference, ("batch_size", "patch_weighting"), architecture, action=OR_CNN))
    if datagen is not None:
        names, action = tuple(item.name for item in fields(datagen)), "; ptycho_simulate makes scans"
        idle.append(Idle(datagen, names, "synthetic data", UNREAD, action))
    refuse(idle)


def check_all(native: Mapping[str, Any]) -> None:
    """Refuse settings (``native``, by section) that would change nothing in a training run or after it, as
    :func:`check_native`; without ``data_config`` nothing is looked at."""
    if "data_config" in native:
        model = native["model_config"]
        check_native(native["data_config"], model, native["training_config"])
        inference = native.get("inference_config") or InferenceConfig()
        check_inference(inference, model.architecture, native.get("datagen_config"))


def check_native(data: DataConfig, model: ModelConfig, training: TrainingConfig) -> None:
    """Refuse settings that would change nothing in a training run by a ``ConfigError`` with the name of the
    first."""
    for config, names in ((data, DATA), (model, MODEL), (training, TRAINING)):
        refuse([Idle(config, names, "training", UNREAD)])
    mode = training.torch_loss_mode
    if model.loss_function == "MAE" and mode not in ("mae", TrainingConfig.torch_loss_mode):
        what = "training: loss_function has no effect beside torch_loss_mode"
        raise _refused(what, f"'MAE' and {mode!r}", "one loss", "Leave loss_function out.")
    _check_sent(training)
    _check_channels(data, model)
    _check_mask(model)
    _check_bounds(data, model.architecture)
    _check_penalties(model)
