"""What the flags of several commands say, as settings: domain, accelerator, logger, settings file, execution.

The functions take their flags out of the parsed values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptycho.cli.flags import CONTRACTS, DOMAINS, LOGGERS
from ptycho.errors import ConfigError

if TYPE_CHECKING:
    from ptycho.config.config import PyTorchExecutionConfig

DEFAULT_BACKEND = "pytorch"


def settle_domain(values: dict[str, Any]) -> None:
    """Put ``counts`` or ``amplitude`` in the place of the flags that say it, if any; raise ``ConfigError``
    for an unknown value or two that contradict each other."""
    found = set()
    for name, known in (("measurement_domain", DOMAINS), ("scale_contract_version", CONTRACTS)):
        value = values.pop(name, None)
        if value is None:
            continue
        if value not in known:
            raise ConfigError(
                f"--{name.replace('_', '-')}: unknown value (got {value!r}, expected one of "
                f"{', '.join(known)}). Choose one of them."
            )
        found.add(known[value])
    if len(found) > 1:
        raise ConfigError(
            "--measurement-domain and --scale-contract-version contradict each other (got counts and "
            "amplitude, expected the same). Leave one of them out."
        )
    if found:
        values["measurement_domain"] = found.pop()


def chosen_accelerator(values: dict[str, Any]) -> str | None:
    """Return the accelerator, None where no flag says it; raise ``ConfigError`` where the older and the newer
    flag contradict each other."""
    device, accelerator = values.pop("device", None), values.pop("accelerator", None)
    if device is None or accelerator in (None, "auto"):
        return device or accelerator
    if accelerator != device and {accelerator, device} != {"gpu", "cuda"}:
        raise ConfigError(
            f"--device and --accelerator contradict each other (got {device!r} and {accelerator!r}, "
            "expected the same). Leave --device out."
        )
    return accelerator


def chosen_logger(values: dict[str, Any], *, training: bool) -> str:
    """Return one of ``LOGGERS``, by default that of a training run or none; raise ``ConfigError`` for an
    unknown name, or where MLflow is asked for and disabled."""
    disabled, asked = values.pop("disable_mlflow", False), values.pop("logger", None)
    if asked is not None and asked not in LOGGERS:
        raise ConfigError(
            f"--logger: unknown name (got {asked!r}, expected one of {', '.join(LOGGERS)}). Choose one of "
            "them."
        )
    if disabled and asked == "mlflow":
        raise ConfigError(
            "--logger and --disable-mlflow contradict each other (got mlflow and disabled, expected one of "
            "them). Leave --disable-mlflow out, or pass --logger csv."
        )
    if asked is not None:
        return asked
    from ptycho.run.mlflow_store import default_logger

    return default_logger() if training and not disabled else "none"


def settings_path(values: dict[str, Any]) -> Path | None:
    """Return the settings file, None where no flag names one; raise ``ConfigError`` where it does not
    exist."""
    path = values.pop("config", None)
    if path is not None and not path.is_file():
        raise ConfigError(
            f"--config: no such file (got {str(path)!r}, expected a settings file). Check the path."
        )
    return path


def stated_settings(values: Mapping[str, Any], settings_file: Path | None) -> Mapping[str, Any]:
    """Return what flags and the settings file say, unchecked; a flag wins."""
    if settings_file is None:
        return values
    from ptycho.config.config import flat_settings, load_yaml_config

    return {**flat_settings(load_yaml_config(settings_file)), **values}


def read_settings(
    config_class: type,
    values: Mapping[str, Any],
    settings_file: Path | None,
    defaults: Mapping[str, Any],
    required: Mapping[str, str],
    usage: str,
) -> tuple[Any, set[str]]:
    """Return settings, unchecked, and the names that the settings file gives: flag before settings file
    before default, where ``defaults`` go before those of the class. Raise ``ConfigError`` where a name is
    unknown, or one of ``required`` (setting -> flag) is missing; it shows the ``usage``."""
    from ptycho.config.config import (
        build_config,
        default_settings,
        flat_settings,
        load_yaml_config,
        merge_settings,
    )

    from_file = load_yaml_config(settings_file) if settings_file is not None else {}
    merged = merge_settings({**default_settings(config_class), **defaults}, from_file, values)
    for name, flag in required.items():
        if merged[name] is None:
            raise ConfigError(f"--{flag} is missing (got nothing, expected a path). {usage}")
    return build_config(config_class, merged), set(flat_settings(from_file))


def execution_settings(
    values: dict[str, Any], *, training: bool, device: str = "auto"
) -> PyTorchExecutionConfig:
    """Return the execution settings, unchecked; ``device`` is the accelerator where no flag names one."""
    from ptycho.config.config import PyTorchExecutionConfig
    from ptycho.config.effects import OWNED_BY_TRAINING

    values["accelerator"] = chosen_accelerator(values) or device
    logger = chosen_logger(values, training=training)
    own = {item.name for item in fields(PyTorchExecutionConfig)}.difference(OWNED_BY_TRAINING)
    chosen = {name: values.pop(name) for name in own & values.keys()}
    steps = values.pop("accumulate_grad_batches", None)
    if steps is not None:
        chosen["accum_steps"] = steps
    # Processes that prepare batches stay for the whole training run.
    chosen["persistent_workers"] = chosen.get("num_workers", 0) > 0
    return PyTorchExecutionConfig(logger_backend=None if logger == "none" else logger, **chosen)
