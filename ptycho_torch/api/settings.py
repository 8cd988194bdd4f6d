"""A client's settings brought together: its configuration objects, and what they mean for one data file."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ptycho.config.config import PyTorchExecutionConfig
from ptycho.errors import ConfigError
from ptycho_torch.config_params import (
    SECTIONS,
    DataConfig,
    DatagenConfig,
    InferenceConfig,
    ModelConfig,
    Settings,
    TrainingConfig,
    get_frozen_fields,
    load_json_configs,
    update_existing_config,
)

logger = logging.getLogger(__name__)

TRAINED = tuple(SECTIONS)[:4]
"""Sections that a checkpoint holds."""
ARCHITECTURE = ("data_config", "model_config")
"""Sections with settings that a trained model fixes."""


@dataclass(eq=False)
class ConfigManager:
    """The five configuration objects of a run of ``ptycho_torch.config_params``, not copied, under one name.

    Ptychodus 1.7 builds it in its training process, and gets it from :meth:`from_loaded_model` in its
    reconstruction process.
    """

    data_config: DataConfig | None = None
    model_config: ModelConfig | None = None
    training_config: TrainingConfig | None = None
    inference_config: InferenceConfig | None = None
    datagen_config: DatagenConfig | None = None
    frozen: tuple[str, ...] = field(default=(), init=False)

    def __post_init__(self) -> None:
        for name, kind in SECTIONS.items():
            if getattr(self, name) is None:
                setattr(self, name, kind())

    @classmethod
    def _from_json(cls, path: str | Path) -> ConfigManager:
        """Read the settings from a JSON file with one section each; scripts call it."""
        return cls(*load_json_configs(path))

    @classmethod
    def from_loaded_model(cls, ptycho_model: Any) -> ConfigManager:
        """Take the settings over that ``ptycho_model.model`` was trained with; what the model fixes can no
        longer be changed. Ptychodus 1.7 calls it before a reconstruction."""
        found = cls(*(getattr(ptycho_model.model, name) for name in TRAINED))
        found.frozen = get_frozen_fields(DataConfig) + get_frozen_fields(ModelConfig)
        return found

    def update(self, **sections: Mapping[str, Any]) -> None:
        """Change settings, by section and field name, in place; scripts call it. ``ConfigError`` if a section
        is unknown, or a loaded model fixes one of the settings."""
        for section, values in sections.items():
            if section not in SECTIONS:
                raise ConfigError(
                    f"settings: unknown section (got {section!r}, expected one of {', '.join(SECTIONS)}). "
                    "Correct the name."
                )
            fixed = sorted(set(values).intersection(self.frozen)) if section in ARCHITECTURE else []
            if fixed:
                raise ConfigError(
                    f"settings: the trained model fixes {fixed[0]} (got {values[fixed[0]]!r}, expected "
                    f"{getattr(getattr(self, section), fixed[0])!r}). Leave it out, or train another model."
                )
            update_existing_config(getattr(self, section), values)

    def validate_arch_compatibility(self, ptycho_model: Any) -> None:
        """Refuse settings that the trained network ``ptycho_model.model`` does not fit by a ``ConfigError``
        that lists all of them. Ptychodus 1.7 calls it before a reconstruction."""
        differing = []
        for section in ARCHITECTURE:
            own, trained = getattr(self, section), getattr(ptycho_model.model, section)
            for name in get_frozen_fields(SECTIONS[section]):
                if getattr(own, name) != getattr(trained, name):
                    differing.append(f"{name}={getattr(own, name)!r} instead of {getattr(trained, name)!r}")
        if differing:
            raise ConfigError(
                f"settings: they do not fit the trained model (got {', '.join(differing)}; expected those it "
                "was trained with). Take them over, or train another model."
            )

    def to_tuple(self) -> Settings:
        """Return data, model, training, inference and synthetic-data settings; scripts call it."""
        return tuple(getattr(self, name) for name in SECTIONS)


def adopt_data(manager: ConfigManager, n_px: int, where: str) -> None:
    """Let the data decide what a client's settings say otherwise; every change is logged with the data file
    ``where``. The loader of ``ptycho_torch.api.base_api`` calls it for Ptychodus 1.7. ``ConfigError`` if the
    number of channels is no square."""
    data, changes = manager.data_config, {}
    if n_px != data.N:
        logger.warning("%s: N is %d in the settings and %d in the data; the data count", where, data.N, n_px)
        changes["N"] = n_px
    side = math.isqrt(max(data.C, 0))
    if side < 1 or side**2 != data.C:
        raise ConfigError(
            f"settings: the number of channels is no square (got {data.C}, expected 1, 4, 9, ...: the "
            "patterns of a group). Change num_channels (C)."
        )
    if tuple(data.grid_size) != (side, side):
        text = "settings: grid_size is %s, which does not hold %d channels; %s is used"
        logger.warning(text, tuple(data.grid_size), data.C, (side, side))
        changes["grid_size"] = (side, side)
    if data.C > 1 and data.K < data.C:
        logger.warning("settings: K is %d, too few neighbours for %d channels; it is raised", data.K, data.C)
        changes["K"] = data.C
    if changes:
        manager.data_config = replace(data, **changes)


def execution_of(training: TrainingConfig, orchestration: str = "lightning") -> PyTorchExecutionConfig:
    """Return how a run executes, from a client's settings; ``ptycho_torch.api.base_api`` calls it for
    Ptychodus 1.7. One device in this process: what a client appends to the trainer cannot be sent to another
    one."""
    import torch

    wanted = training.device.partition(":")[0]
    device = {"gpu": "cuda"}.get(wanted, wanted)
    if device == "cuda" and not torch.cuda.is_available():
        logger.warning("training: there is no CUDA device on this machine; the CPU is used")
        device = "cpu"
    if training.n_devices not in (1, "auto"):
        logger.warning("training: %s devices are asked for; one is used", training.n_devices)
    return PyTorchExecutionConfig(
        accelerator=device,
        accum_steps=training.accum_steps,
        num_workers=training.num_workers,
        persistent_workers=training.num_workers > 0,
        logger_backend="mlflow" if orchestration == "mlflow" else "csv",
    )


def write_settings(manager: ConfigManager, folder: Path) -> None:
    """Write the settings of a run as ``data_config.json`` and so on to a folder, made where it is absent; the
    training run of ``ptycho_torch.api.base_api`` calls it for Ptychodus 1.7."""
    from ptycho.run.outputs import write_json
    from ptycho_torch.model import plain

    folder.mkdir(parents=True, exist_ok=True)
    for name in TRAINED:
        write_json(folder / f"{name}.json", plain(getattr(manager, name)))
