"""Where settings come from: defaults, a YAML file, and flags, in rising order of precedence."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

from ptycho.config.choices import closest_hint
from ptycho.errors import ConfigError

Config = TypeVar("Config")


def load_yaml_config(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a settings file as written: flat keys, or network keys under ``model:``; an empty one is ``{}``.
    Raise ``OSError`` where it cannot be read, ``ConfigError`` where it is no mapping, or not YAML at all (a
    ``yaml.YAMLError`` too)."""
    import yaml

    class YamlFileError(ConfigError, yaml.YAMLError):  # type: ignore[misc,name-defined]
        """A settings file breaks the YAML grammar."""

    raw = Path(path).read_bytes()
    try:
        content = yaml.safe_load(raw)
    except yaml.YAMLError as error:
        detail = " ".join(str(error).split())
        raise YamlFileError(f"{path}: this is not valid YAML (got {detail}). Correct that line.") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(
            f"{path}: the top level is not a mapping (got {type(content).__name__}, "
            "expected 'name: value' lines). Write one setting per line."
        )
    return content


OLD_NAMES = {"n_images": "n_groups"}
"""Setting -> what it is called today."""


def flat_settings(settings: Mapping[str, Any], source: str = "YAML settings") -> dict[str, Any]:
    """Lift the keys under ``model``, which may be empty, to the top; give every setting its present name.
    Raise ``ConfigError``, which calls them ``source``, where ``model`` is no section or a setting is given
    twice."""
    flat = {key: value for key, value in settings.items() if key != "model"}
    nested = {} if settings.get("model") is None else settings["model"]
    if not isinstance(nested, Mapping):
        raise ConfigError(
            f"{source}: 'model' is not a section (got {nested!r}, expected a mapping of network settings). "
            "Indent the network settings below 'model:'."
        )
    for key, value in nested.items():
        if key in flat:
            raise ConfigError(
                f"{source}: {key!r} is given twice (got {flat[key]!r} at the top "
                f"and {value!r} under 'model', expected once). Remove one."
            )
        flat[key] = value
    for old, new in OLD_NAMES.items():
        if flat.get(old) is None:
            continue
        if flat.get(new) not in (None, flat[old]):
            raise ConfigError(
                f"{source}: {old} is the old name of {new} and says another number (got {flat[old]!r} and "
                f"{flat[new]!r}, expected one of them). Leave {old} out."
            )
        flat[new] = flat.pop(old)
    return flat


def _require_known(source: str, given: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    for key in given:
        if key not in known:
            raise ConfigError(
                f"{source}: setting {key!r} is unknown (got value {given[key]!r}, expected a known name). "
                f"{closest_hint(key, known)}"
            )


def merge_settings(
    defaults: Mapping[str, Any], yaml: Mapping[str, Any] | None, flags: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Combine settings for every key of ``defaults``: a given flag beats the YAML file, which beats the
    default. A null in the file is a value, ``None`` a flag that was not given. Raise ``ConfigError`` for an
    unknown name, with the closest known one."""
    known = flat_settings(defaults, "defaults")
    from_file = flat_settings(yaml or {})
    given = {key: value for key, value in (flags or {}).items() if value is not None}
    _require_known("YAML settings", from_file, known)
    _require_known("flags", given, known)
    return {**known, **from_file, **given}


def _nested_model(config_class: type) -> type | None:
    """Class of the ``model`` field, if the configuration has one."""
    kind = get_type_hints(config_class).get("model")
    return kind if isinstance(kind, type) and is_dataclass(kind) else None


def default_settings(config_class: type) -> dict[str, Any]:
    """Return the flat defaults of a configuration class, network settings included; ``None`` for a required
    field."""
    flat: dict[str, Any] = {}
    model_class = _nested_model(config_class)
    for item in fields(config_class):  # type: ignore[arg-type]
        if item.name == "model" and model_class is not None:
            flat.update(default_settings(model_class))
        elif item.default_factory is not MISSING:
            flat[item.name] = item.default_factory()
        else:
            flat[item.name] = None if item.default is MISSING else item.default
    return flat


def _convert(name: str, value: Any, hint: Any) -> Any:
    """Give a string from YAML or a flag the type of its field, where that type is a path or a float."""
    kinds = get_args(hint) or (hint,)
    if not isinstance(value, str) or str in kinds:
        return value
    if Path in kinds:
        return Path(value)
    if float in kinds:
        # YAML 1.1 reads 1e9 as a string: it wants 1.0e+9.
        try:
            return float(value)
        except ValueError:
            raise ConfigError(
                f"settings: {name} is not a number (got {value!r}, expected a float such as 1e9). "
                "Correct the value."
            ) from None
    return value


def build_config(config_class: type[Config], settings: Mapping[str, Any]) -> Config:
    """Make a configuration, its nested model included, from flat settings; it is not validated. Strings
    become paths or floats where the field wants one. Raise ``ConfigError`` where a name is unknown or a float
    cannot be read."""
    _require_known(config_class.__name__, settings, default_settings(config_class))
    hints = get_type_hints(config_class)
    model_class = _nested_model(config_class)
    own = {item.name for item in fields(config_class)} - {"model"}  # type: ignore[arg-type]
    values: dict[str, Any] = {
        name: _convert(name, value, hints[name]) for name, value in settings.items() if name in own
    }
    if model_class is not None:
        values["model"] = build_config(model_class, {k: v for k, v in settings.items() if k not in own})
    return config_class(**values)
