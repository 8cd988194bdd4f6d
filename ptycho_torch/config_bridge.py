"""Translate the PyTorch settings into the typed configuration that the rest of the package reads.

Every function is pure: the inputs stay as they are, nothing global is read or written, and the overrides win
last. The result still has to pass ``update_legacy_dict`` before anything reads ``params.cfg``.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from ptycho.config import config as core
from ptycho.config.architectures import KNOWN
from ptycho.config.choices import LossMode, allowed, closest_hint
from ptycho.errors import ConfigError
from ptycho_torch.config_params import DataConfig, InferenceConfig, ModelConfig, TrainingConfig

Target = TypeVar("Target")

MODEL_TYPES: dict[str, str] = {"Unsupervised": "pinn", "Supervised": "supervised"}
AMP_ACTIVATIONS = {"silu": "swish", "SiLU": "swish"}
AMP_ACTIVATIONS |= {name: name for name in ("sigmoid", "swish", "softplus", "relu")}
# 'count_intensity' is also the default of a client that never chose, so the file decides there.
MEASUREMENT_DOMAINS: dict[str, str | None] = {"count_intensity": None, "normalized_amplitude": "amplitude"}


def _shared(core_type: type, torch_type: type, *apart: str) -> tuple[str, ...]:
    """Return the settings that both forms know by one name, but those that differ in meaning."""
    known = {item.name for item in fields(torch_type)}
    return tuple(item.name for item in fields(core_type) if item.name in known.difference(apart))


SAME_NAME_MODEL = _shared(core.ModelConfig, ModelConfig, "amp_activation", "probe_mask")
SAME_NAME_TRAINING = _shared(core.TrainingConfig, TrainingConfig, "torch_loss_mode")
PATH_FIELDS = ("train_data_file", "test_data_file", "output_dir", "model_path")


def _translate(where: str, value: Any, table: Mapping[str, Any]) -> Any:
    if not isinstance(value, str) or value not in table:
        raise ConfigError(
            f"config bridge: {where} is {value!r}, expected one of {', '.join(table)}. "
            f"{closest_hint(value, table)}"
        )
    return table[value]


def _same(source: Any, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: getattr(source, name) for name in names}


def _gridsize(grid_size: Any) -> int:
    """Side of the square group; (gy, gx) with gy != gx has no counterpart."""
    pair = tuple(grid_size) if isinstance(grid_size, (tuple, list)) else (grid_size,)
    if len(pair) != 2 or pair[0] != pair[1]:
        raise ConfigError(
            f"config bridge: data grid_size is not square (got {grid_size!r}, expected (g, g)). "
            "Use the same number of patterns along y and x."
        )
    return int(pair[0])


def _masks_probe(model: ModelConfig) -> bool:
    """Whether the probe is masked; a mask array of any library counts as yes."""
    if getattr(model.probe_mask_tensor, "shape", None) is not None:
        return True
    mask = model.probe_mask
    if mask is None or isinstance(mask, bool):
        return bool(mask)
    shape = getattr(mask, "shape", None)
    if shape is None:
        raise ConfigError(
            f"config bridge: model probe_mask is {mask!r}, expected a bool, None or a mask array. "
            "Pass True for the round mask."
        )
    # A NumPy bool has an empty shape.
    return True if len(shape) else bool(mask)


def _finish(
    target: type[Target], values: dict[str, Any], overrides: Mapping[str, Any], required: tuple[str, ...] = ()
) -> Target:
    """Build the result; overrides are already part of ``values`` and are only checked here."""
    for name in required:
        if values.get(name) is None:
            raise ConfigError(
                f"config bridge: {target.__name__} needs {name} (got None, expected a value). "
                f"Pass it as an override: overrides={{'{name}': ...}}."
            )
    known = {item.name for item in fields(target)}  # type: ignore[arg-type]
    for name in overrides:
        if name not in known:
            raise ConfigError(
                f"config bridge: override {name!r} is no field of {target.__name__} "
                f"(got value {overrides[name]!r}, expected a known name). {closest_hint(name, known)}"
            )
    paths = {name: Path(values[name]) for name in PATH_FIELDS if isinstance(values.get(name), str)}
    return target(**{**values, **paths})


def to_model_config(
    data: DataConfig, model: ModelConfig, overrides: Mapping[str, Any] | None = None
) -> core.ModelConfig:
    """Translate the network settings; ``data`` gives N, grid_size and probe_scale, and ``overrides`` (by
    field name of the result) win. ``ConfigError`` where the grid is not square, or mode, activation, mask or
    an override is unknown."""
    overrides = dict(overrides or {})
    values: dict[str, Any] = {
        **_same(model, SAME_NAME_MODEL),
        "N": data.N,
        "gridsize": _gridsize(data.grid_size),
        "model_type": _translate("model mode", model.mode, MODEL_TYPES),
        "amp_activation": _translate("model amp_activation", model.amp_activation, AMP_ACTIVATIONS),
        "probe_mask": _masks_probe(model),
        "probe_scale": data.probe_scale,
    }
    if data.C == 1:
        # A group of one pattern has nothing to merge, and clients say so here.
        values["object_big"] = core.ModelConfig.object_big
    # What only another network reads keeps the core default where this form was left at its own.
    own, result = ModelConfig(), core.ModelConfig()
    others = (other for other in KNOWN.values() if other.name != model.architecture)
    for name in (name for other in others for name in other.settings if hasattr(own, name)):
        if getattr(model, name) == getattr(own, name):
            values[name] = getattr(result, name)
    return _finish(core.ModelConfig, {**values, **overrides}, overrides)


def _domain(data: DataConfig) -> str | None:
    return _translate("data measurement_domain", data.measurement_domain, MEASUREMENT_DOMAINS)


def loss_mode(model: ModelConfig, training: TrainingConfig) -> str:
    """Return the loss (``ptycho.config.choices.LossMode``) of a run; ``loss_function`` and ``nll``, older
    names of the choice, count while ``torch_loss_mode`` holds its default. ``ConfigError`` for an unknown
    name."""
    mode = training.torch_loss_mode
    if (model.loss_function == "MAE" or not training.nll) and mode == TrainingConfig().torch_loss_mode:
        mode = "mae"
    return _translate("training torch_loss_mode", mode, {name: name for name in allowed(LossMode)})


def from_core(
    model: core.ModelConfig, training: core.TrainingConfig | None = None
) -> tuple[DataConfig, ModelConfig, TrainingConfig]:
    """Translate the typed configuration back into new PyTorch settings, the inverse of the other
    functions."""
    channels = model.gridsize**2
    data = DataConfig(
        N=model.N,
        C=channels,
        grid_size=(model.gridsize,) * 2,
        probe_scale=model.probe_scale,
        x_bounds=(0.0, 1.0),
        y_bounds=(0.0, 1.0),
    )
    torch_model = ModelConfig(
        mode=next(name for name, kind in MODEL_TYPES.items() if kind == model.model_type),
        amp_activation=model.amp_activation,
        probe_mask=model.probe_mask,
        C_model=channels,
        C_forward=channels,
        **_same(model, SAME_NAME_MODEL),
    )
    if training is None:
        return data, torch_model, TrainingConfig()
    data.K, data.nphotons = training.neighbor_count, training.nphotons
    data.subsample_seed = training.subsample_seed
    torch_model.intensity_scale_trainable = training.intensity_scale_trainable
    torch_training = TrainingConfig(
        epochs=training.nepochs,
        warmup_epochs=training.lr_warmup_epochs,
        min_lr_ratio=training.lr_min_ratio,
        nll=training.nll_weight > 0,
        torch_loss_mode=training.torch_loss_mode,
        **_same(training, SAME_NAME_TRAINING),
    )
    for name in PATH_FIELDS[:3]:
        value = getattr(torch_training, name)
        setattr(torch_training, name, None if value is None else str(value))
    return data, torch_model, torch_training


def through_torch(config: core.TrainingConfig) -> tuple[core.TrainingConfig, dict[str, Any]]:
    """Express a training run in PyTorch settings and bridge it back, so that both forms say the same; return
    the bridged settings, equal to the given ones, and the PyTorch ones by section name."""
    data, model, training = from_core(config.model, config)
    core_model = to_model_config(data, model)
    names = (item.name for item in fields(config) if item.name not in ("model", "n_images"))
    rest = {**_same(config, tuple(names)), "backend": "pytorch"}
    bridged = bridged_training(core_model, data, model, training, rest)
    return bridged, {"data_config": data, "model_config": model, "training_config": training}


def to_training_config(
    tf_model: core.ModelConfig,
    data: DataConfig,
    pt_model: ModelConfig,
    training: TrainingConfig,
    overrides: Mapping[str, Any] | None = None,
) -> core.TrainingConfig:
    """Translate the settings of a training run as :func:`bridged_training`, and warn where no file validates
    it."""
    found = bridged_training(tf_model, data, pt_model, training, overrides or {})
    if found.test_data_file is None:
        warnings.warn(
            "config bridge: TrainingConfig has no test_data_file (got None), so there is no separate "
            "validation data. Pass it as an override: overrides={'test_data_file': ...}.",
            UserWarning,
            stacklevel=2,
        )
    return found


def bridged_training(
    tf_model: core.ModelConfig,
    data: DataConfig,
    pt_model: ModelConfig,
    training: TrainingConfig,
    overrides: Mapping[str, Any],
) -> core.TrainingConfig:
    """Translate the settings of a training run; ``tf_model``, from :func:`to_model_config`, becomes ``model``
    of the result, not a copy, ``K`` of the data ``neighbor_count``, and ``overrides`` (by field name of the
    result) win. ``ConfigError`` if n_groups or train_data_file is missing, if nphotons was left at the
    default of ``DataConfig`` (the two worlds differ there by a factor of 10 000), or if an override is
    unknown."""
    if "nphotons" not in overrides and data.nphotons == DataConfig().nphotons:
        raise ConfigError(
            f"config bridge: nphotons was left at the default of DataConfig (got {data.nphotons:.0e} photons "
            f"per frame, expected a chosen dose; TrainingConfig assumes {core.TrainingConfig.nphotons:.0e}). "
            "Pass it as an override: overrides={'nphotons': ...}."
        )
    values: dict[str, Any] = {
        **_same(training, SAME_NAME_TRAINING),
        "model": tf_model,
        "nepochs": training.epochs,
        "lr_warmup_epochs": training.warmup_epochs,
        "lr_min_ratio": training.min_lr_ratio,
        "nll_weight": 1.0 if training.nll else 0.0,
        "torch_loss_mode": loss_mode(pt_model, training),
        "neighbor_count": data.K,
        "nphotons": data.nphotons,
        "subsample_seed": data.subsample_seed,
        "measurement_domain": _domain(data),
        "intensity_scale_trainable": pt_model.intensity_scale_trainable,
        **dict.fromkeys(("mae_weight", "realspace_mae_weight", "realspace_weight"), 0.0),
        "positions_provided": True,
        "probe_trainable": False,
        "sequential_sampling": False,
        "backend": "pytorch",
        **overrides,
    }
    if values["n_groups"] is None:
        values["n_groups"] = values.get("n_images")
    return _finish(core.TrainingConfig, values, overrides, ("n_groups", "train_data_file"))


def to_inference_config(
    tf_model: core.ModelConfig,
    data: DataConfig,
    inference: InferenceConfig,
    overrides: Mapping[str, Any] | None = None,
) -> core.InferenceConfig:
    """Translate the settings of a reconstruction, as :func:`to_training_config`; no field of ``inference``
    has a counterpart. ``ConfigError`` where the overrides lack model_path or test_data_file, or name an
    unknown field."""
    del inference
    overrides = dict(overrides or {})
    values: dict[str, Any] = {
        "model": tf_model,
        "neighbor_count": data.K,
        "subsample_seed": data.subsample_seed,
        "measurement_domain": _domain(data),
        "backend": "pytorch",
        **overrides,
    }
    return _finish(core.InferenceConfig, values, overrides, ("model_path", "test_data_file"))
