"""Settings of a run that cannot work, or that nothing would read: refused before a data file is opened."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from ptycho.config.choices import NO_NETWORK
from ptycho.config.config import (
    InferenceConfig,
    PyTorchExecutionConfig,
    TrainingConfig,
    validate_execution_config,
    validate_inference_config,
    validate_training_config,
)
from ptycho.config.effects import validate_effects, validate_inference_effects
from ptycho.data.optics import FileOptions
from ptycho.errors import ConfigError
from ptycho.files.export import check_target
from ptycho.run.engines import ModelNotFoundError, find_model, load_engine
from ptycho.run.job import Engine
from ptycho.run.orientation_search import check_search
from ptycho.run.uncertainty import check_uncertainty
from ptycho.solver.options import RefineOptions, setting_of


def check_training_settings(
    config: TrainingConfig,
    execution: PyTorchExecutionConfig,
    native: Mapping[str, Any] | None = None,
    *,
    any_batch: bool = True,
) -> Engine:
    """Return the engine for training settings; raise ``ConfigError`` at the first that cannot work.
    ``any_batch`` is as for :func:`ptycho.config.validation.validate_training_config`; a package that is not
    installed is a ``MissingPackageError``."""
    validate_training_config(config, any_batch=any_batch)
    validate_execution_config(execution)
    validate_effects(config, execution)
    FileOptions.of(config)  # what contradicts itself is refused here
    check_beginning(config)
    engine = load_engine(config.backend)
    engine.check_settings(config, execution, native or {})
    return engine


def check_beginning(config: TrainingConfig, resume: Path | None = None) -> None:
    """Raise ``ConfigError`` where the network that a training is to begin with is not there, or where the
    checkpoint ``resume`` has one already."""
    asked = config.init_weights
    if asked is None:
        return
    if resume is not None:
        raise ConfigError(
            "--init-weights: a training that goes on has the network of its checkpoint (got "
            f"{asked!r} beside --resume {resume}, expected one of them). Leave one out."
        )
    try:
        if asked != NO_NETWORK:
            find_model(Path(asked), config.backend)
    except ModelNotFoundError:
        raise ConfigError(
            f"--init-weights: there is no trained network (got {asked!r}, expected pretrained, none, a "
            "training folder or a model file). Check the path."
        ) from None


def check_inference_settings(config: InferenceConfig, execution: PyTorchExecutionConfig) -> None:
    """Refuse inference settings that cannot work or that nothing would read (``ConfigError``). No data file
    is opened."""
    options = refinement(config)
    validate_inference_config(config)
    validate_execution_config(execution)
    validate_inference_effects(config, execution)
    FileOptions.of(config)
    if config.export is not None:
        check_target(config.export)
    check_search(config)
    check_uncertainty(config.uncertainty, options)


def refinement(config: InferenceConfig) -> RefineOptions | None:
    """Return the refinement that the ``refine_*`` settings ask for, None where it is no step. Raises
    ``ConfigError`` where a number is out of range, something is to be refined in no steps, or the model
    smooths exit waves."""
    names = [item.name for item in fields(RefineOptions)]
    options = RefineOptions(**{name: getattr(config, setting_of(name)) for name in names})
    if not options.steps:
        return None
    sigma_px = config.model.gaussian_smoothing_sigma
    if sigma_px > 0:
        raise ConfigError(
            "refinement: its forward model smooths no exit wave (got a model with gaussian_smoothing_sigma "
            f"{sigma_px:g} px, expected 0). Leave out --refine, or train without --gaussian_smoothing_sigma."
        )
    return options
