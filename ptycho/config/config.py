"""Typed settings under the path that clients import, and their bridge to ``ptycho.params.cfg``.

The other modules of ``ptycho.config`` own the classes, the rules and the YAML reading.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import fields, is_dataclass
from pathlib import PurePath
from typing import Any

from ptycho.config.architectures import ARCHITECTURES
from ptycho.config.classes import (
    DEFAULT_N_GROUPS,
    InferenceConfig,
    ModelConfig,
    PyTorchExecutionConfig,
    TrainingConfig,
)
from ptycho.config.effects import validate_effects
from ptycho.config.settings import (
    build_config,
    default_settings,
    flat_settings,
    load_yaml_config,
    merge_settings,
)
from ptycho.config.validation import (
    validate_execution_config,
    validate_inference_config,
    validate_model_config,
    validate_training_config,
)
from ptycho.errors import ConfigError

__all__ = [
    "ARCHITECTURES", "DEFAULT_N_GROUPS", "KEY_MAPPINGS", "InferenceConfig", "ModelConfig",
    "PyTorchExecutionConfig", "TrainingConfig", "build_config", "dataclass_to_legacy_dict",
    "default_settings", "flat_settings", "load_yaml_config", "merge_settings", "update_legacy_dict",
    "validate_effects", "validate_execution_config", "validate_inference_config", "validate_model_config",
    "validate_training_config",
]  # fmt: skip

KEY_MAPPINGS: dict[str, str] = {
    "object_big": "object.big",
    "probe_big": "probe.big",
    "probe_mask": "probe.mask",
    "probe_trainable": "probe.trainable",
    "intensity_scale_trainable": "intensity_scale.trainable",
    "positions_provided": "positions.provided",
    "output_dir": "output_prefix",
    "train_data_file": "train_data_file_path",
    "test_data_file": "test_data_file_path",
}
"""Legacy key of each renamed field; every other field keeps its name."""


def dataclass_to_legacy_dict(obj: Any) -> dict[str, Any]:
    """Return a configuration as a flat dictionary under legacy names, one entry for every field. The nested
    ``model`` is flattened, paths become strings, ``None`` is kept. Raise ``ConfigError`` for execution
    settings, which would carry the hardware of one run into another, and for any other object."""
    kind = obj.__name__ if isinstance(obj, type) else type(obj).__name__
    if isinstance(obj, type) or not is_dataclass(obj) or getattr(obj, "runtime_only", False):
        raise ConfigError(
            f"legacy bridge: this object does not belong in params.cfg (got {kind}, expected an instance of "
            "ModelConfig, TrainingConfig or InferenceConfig). Pass the training or inference configuration."
        )
    flat: dict[str, Any] = {}
    for item in fields(obj):
        value = getattr(obj, item.name)
        if is_dataclass(value) and not isinstance(value, type):
            flat.update(dataclass_to_legacy_dict(value))
        else:
            key = KEY_MAPPINGS.get(item.name, item.name)
            paths = isinstance(value, tuple) and all(isinstance(part, PurePath) for part in value)
            flat[key] = (
                str(value) if isinstance(value, PurePath) else tuple(map(str, value)) if paths else value
            )
    return flat


def update_legacy_dict(cfg: MutableMapping[str, Any], config: Any) -> None:
    """Write a configuration into ``cfg`` in place, before anything reads it; ``None`` never erases a value.
    Keys that it lacks are added. Errors as :func:`dataclass_to_legacy_dict`."""
    # One update call: a sealed dictionary then warns once and names every key.
    cfg.update({key: value for key, value in dataclass_to_legacy_dict(config).items() if value is not None})
