"""The process-global parameter dictionary that old callers read, with its defaults and derived sizes.

New code passes typed configuration (``ptycho.config.config``); ``update_legacy_dict`` copies it into
:data:`cfg` before anything that still reads the dictionary runs. Lengths are in object pixels.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, TextIO

from ptycho.errors import ConfigError

DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {
        "N": 128,
        "offset": 4,
        "gridsize": 2,
        "outer_offset_train": None,
        "outer_offset_test": None,
        "batch_size": 16,
        "nepochs": 60,
        "n_filters_scale": 2,
        "output_prefix": "outputs",
        "big_gridsize": 10,
        "max_position_jitter": 10,
        "sim_jitter_scale": 0.0,
        "default_probe_scale": 0.7,
        "mae_weight": 0.0,
        "nll_weight": 1.0,
        "tv_weight": 0.0,
        "realspace_mae_weight": 0.0,
        "realspace_weight": 0.0,
        "data_source": "generic",
        "positions.provided": False,
        "object.big": True,
        "probe.big": False,
        "probe_scale": 10.0,
        "set_phi": False,
        "probe.mask": True,
        "pad_object": True,
        "model_type": "pinn",
        "label": "",
        "size": 392,
        "amp_activation": "sigmoid",
        "h5_path": "wts.h5",
        "npseed": 42,
        "debug": True,
        "gaussian_smoothing_sigma": 0.0,
        "use_xla_translate": True,
        "nphotons": 1e9,
        "nimgs_train": 9,
        "nimgs_test": 3,
        "probe.trainable": False,
        "intensity_scale.trainable": False,
    }
)
"""Values at import. ``intensity_scale``, ``probe`` and the data file paths are absent until set."""

DATA_SOURCES: tuple[str, ...] = (
    "lines", "grf", "experimental", "points", "testimg", "diagonals", "xpp", "V", "generic",
)  # fmt: skip
WRITABLE_WHEN_SEALED: frozenset[str] = frozenset({"intensity_scale", "probe", "timestamp"})

_MISSING: Any = object()


class LegacyParameterError(ConfigError, AssertionError):
    """A legacy parameter is out of range; old callers catch it as ``AssertionError``."""


class _Parameters(dict[str, Any]):
    """A dict that warns about writes while sealed; the writes still happen."""

    sealed: bool = False

    def _note(self, keys: Iterable[str]) -> None:
        late = sorted({str(key) for key in keys} - WRITABLE_WHEN_SEALED)
        if self.sealed and late:
            warnings.warn(
                f"params.cfg: {', '.join(late)} written after seal() (expected only "
                f"{', '.join(sorted(WRITABLE_WHEN_SEALED))}). Change settings before the run starts, "
                "or call params.unseal() first.",
                UserWarning,
                stacklevel=3,
            )

    def __setitem__(self, key: str, value: Any) -> None:
        self._note([key])
        super().__setitem__(key, value)

    def __delitem__(self, key: str) -> None:
        self._note([key])
        super().__delitem__(key)

    def __ior__(self, other: Any) -> _Parameters:  # type: ignore[misc,override]
        fresh = dict(other)
        self._note(fresh)
        super().update(fresh)
        return self

    def update(self, *args: Any, **kwargs: Any) -> None:
        fresh = dict(*args, **kwargs)
        self._note(fresh)
        super().update(fresh)

    def setdefault(self, key: str, default: Any = None) -> Any:
        if key not in self:
            self._note([key])
        return super().setdefault(key, default)

    def pop(self, key: str, *default: Any) -> Any:
        if key in self:
            self._note([key])
        return super().pop(key, *default)

    def popitem(self) -> tuple[str, Any]:
        self._note(list(self)[-1:])
        return super().popitem()

    def clear(self) -> None:
        self._note(self)
        super().clear()


cfg: dict[str, Any] = _Parameters(DEFAULTS)


def get(key: str, default: Any = _MISSING) -> Any:
    """Return one parameter itself, or ``default``; ``'bigN'`` is computed. Raise ``KeyError`` where it is
    absent and no default is given."""
    if key == "bigN":
        return get_bigN()
    if key in cfg:
        return cfg[key]
    if default is not _MISSING:
        return default
    raise KeyError(
        f"params: {key!r} is not set (got {len(cfg)} other keys, expected a known one). "
        "Run update_legacy_dict or load a trained model first."
    )


def set(key: str, value: Any) -> None:  # noqa: A001 - the name old callers use
    """Assign one parameter, known or new, then :func:`validate` the whole dictionary."""
    cfg[key] = value
    validate()


def params() -> dict[str, Any]:
    """Return a plain copy of the dictionary plus the computed ``bigN``; the values are shared."""
    return {**cfg, "bigN": get_bigN()}


def validate() -> None:
    """Check the rules that tie legacy parameters together; absent keys are passed over. Raise
    :class:`LegacyParameterError` where ``data_source`` is unknown, or ``realspace_mae_weight`` is used
    without ``realspace_weight``."""
    source = cfg.get("data_source", "generic")
    if source not in DATA_SOURCES:
        raise LegacyParameterError(
            f"params: data_source is unknown (got {source!r}, expected one of {', '.join(DATA_SOURCES)}). "
            "Use 'generic' for data read from a file."
        )
    mae_weight, weight = cfg.get("realspace_mae_weight", 0.0), cfg.get("realspace_weight", 0.0)
    if mae_weight > 0 and not weight > 0:
        raise LegacyParameterError(
            f"params: realspace_mae_weight {mae_weight} needs a real-space loss "
            f"(got realspace_weight {weight}, expected > 0). Set realspace_weight first."
        )


def ensure_defaults() -> None:
    """Add the default keys that are missing and keep every present value."""
    cfg.update({key: value for key, value in DEFAULTS.items() if key not in cfg})


def get_bigN() -> int:
    """Return the side of the region that one group of patterns covers [object pixels]."""
    return get("N") + (get("gridsize") - 1) * get("offset")


def get_padding_size() -> int:
    """Return the margin that a group needs around one patch, both sides together [object pixels]."""
    return (get("gridsize") - 1) * get("offset") + get("max_position_jitter")


def get_padded_size() -> int:
    """Return the side of the padded object patch [object pixels]."""
    return get_bigN() + get("max_position_jitter")


def _summary(value: Any) -> str:
    """One line for a value; arrays of any library are shown by shape and dtype."""
    shape = getattr(value, "shape", None)
    if shape:
        return f"{type(value).__name__} shape={tuple(shape)} dtype={getattr(value, 'dtype', '?')}"
    return repr(value)


def print_params(stream: TextIO | None = None) -> None:
    """Write every parameter on its own line, sorted by name, to a text stream, by default standard output."""
    values = params()
    width = max(len(key) for key in values)
    lines = [f"{key:<{width}}  {_summary(values[key])}\n" for key in sorted(values)]
    (sys.stdout if stream is None else stream).writelines(lines)


def seal() -> None:
    """Make later writes warn, except the keys in :data:`WRITABLE_WHEN_SEALED`."""
    cfg.sealed = True  # type: ignore[attr-defined]


def unseal() -> None:
    """Allow writes without a warning again."""
    cfg.sealed = False  # type: ignore[attr-defined]
