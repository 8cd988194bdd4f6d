"""The one bridge from typed configuration to the legacy dictionary ``ptycho.params.cfg``."""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import fields, is_dataclass
from pathlib import PurePath
from typing import Any

from ptycho.errors import ConfigError

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
    """Return a configuration as a flat dictionary under legacy names.

    The nested ``model`` is flattened into the result and paths become strings. ``None`` is kept, so the
    result has one entry for every field.

    Parameters
    ----------
    obj : ModelConfig, TrainingConfig or InferenceConfig
        The configuration; it is not changed.

    Returns
    -------
    dict
        Values by legacy key.

    Raises
    ------
    ConfigError
        If ``obj`` is not such a dataclass. Execution settings must not reach the dictionary: a model saved
        with them would carry the hardware of one run into another.
    """
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
            flat[key] = str(value) if isinstance(value, PurePath) else value
    return flat


def update_legacy_dict(cfg: MutableMapping[str, Any], config: Any) -> None:
    """Write a configuration into the legacy dictionary in place; ``None`` never erases a value.

    It must run before anything that reads the dictionary: grouping, model building, loading.

    Parameters
    ----------
    cfg : mutable mapping
        ``ptycho.params.cfg`` or a dictionary like it. Keys that it lacks are added.
    config : ModelConfig, TrainingConfig or InferenceConfig
        Source of the values.

    Raises
    ------
    ConfigError
        If ``config`` is not one of these.
    """
    # One update call: a sealed dictionary then warns once and names every key.
    cfg.update({key: value for key, value in dataclass_to_legacy_dict(config).items() if value is not None})
