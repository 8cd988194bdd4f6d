"""The rules that settings obey before a run; commands call them, constructors never do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ptycho.config import choices
from ptycho.config.architectures import architecture_of
from ptycho.config.classes import InferenceConfig, ModelConfig, PyTorchExecutionConfig, TrainingConfig
from ptycho.config.rules import COUNT, NOT_NEGATIVE, Rule, rules_of
from ptycho.errors import ConfigError

MODEL_FILES: tuple[str, ...] = (
    choices.BUNDLE_NAME,
    "manifest.json",
    *(f"{choices.CHECKPOINT_FOLDER}/{name}" for name in choices.CHECKPOINT_NAMES),
    *choices.PYTORCH_WEIGHTS,
)
"""What makes a directory a trained model: a bundle, packed or not, checkpoints, PyTorch weights."""

MODEL_RULES, TRAINING_RULES = rules_of(ModelConfig), rules_of(TrainingConfig)
INFERENCE_RULES, EXECUTION_RULES = rules_of(InferenceConfig), rules_of(PyTorchExecutionConfig)


def _check(where: str, config: Any, rules: dict[str, Rule]) -> None:
    for name, (rule, holds) in rules.items():
        value = getattr(config, name)
        if not holds(value):
            raise ConfigError(f"{where}: {name} is {value!r}, expected {rule}. Change {name}.")


def _check_old_name(where: str, config: TrainingConfig | InferenceConfig) -> None:
    """Refuse two names of the same number that disagree."""
    if config.n_images is not None and config.n_images != config.n_groups:
        raise ConfigError(
            f"{where}: n_images is the old name of n_groups and says another number (got {config.n_images} "
            f"and {config.n_groups}, expected the same). Leave n_images out."
        )


def check_realspace(config: TrainingConfig) -> None:
    """Raise ``ConfigError`` where a term of the loss is weighted and the common factor ``realspace_weight``
    is 0."""
    for name in ("realspace_mae_weight", "tv_weight"):
        value = getattr(config, name)
        if value > 0 and config.realspace_weight == 0:
            raise ConfigError(
                f"training: realspace_weight is 0 while {name} is {value}, expected > 0. "
                f"Set realspace_weight, or set {name} to 0."
            )


def validate_model_config(config: ModelConfig) -> None:
    """Raise ``ConfigError`` at the first network setting out of range; an unknown architecture is answered
    with the closest known one."""
    architecture_of(config)
    _check("model", config, MODEL_RULES)


def validate_training_config(config: TrainingConfig, *, any_batch: bool = False) -> None:
    """Raise ``ConfigError`` at the first training or network setting out of range; no file is opened.
    ``any_batch`` takes any batch size >= 1, and 0 photons for a dose that is not known, as clients send
    them."""
    validate_model_config(config.model)
    rules = {**TRAINING_RULES, "batch_size": COUNT, "nphotons": NOT_NEGATIVE} if any_batch else TRAINING_RULES
    _check("training", config, rules)
    _check_old_name("training", config)
    check_realspace(config)


def validate_inference_config(config: InferenceConfig) -> None:
    """Raise ``ConfigError`` at the first setting out of range, or where ``model_path`` holds no model. That
    is a directory with one of :data:`MODEL_FILES`, a file, its name without ``.zip``, or ``pretrained``."""
    validate_model_config(config.model)
    _check("inference", config, INFERENCE_RULES)
    _check_old_name("inference", config)
    path = Path(config.model_path)
    if str(path) == choices.PRETRAINED:
        return
    if path.is_dir():
        if not any((path / name).exists() for name in MODEL_FILES):
            found = ", ".join(sorted(entry.name for entry in path.iterdir())[:8]) or "nothing"
            raise ConfigError(
                f"inference: model_path {path} holds no trained model (got {found}, expected one of "
                f"{', '.join(MODEL_FILES)}). Pass the output directory of a training run."
            )
    elif not path.exists() and not Path(f"{path}.zip").exists():
        raise ConfigError(
            f"inference: model_path does not exist (got {path}, expected a directory with "
            f"{choices.BUNDLE_NAME}, or a model file). Pass the output directory of a training run."
        )


def validate_execution_config(config: PyTorchExecutionConfig) -> None:
    """Raise ``ConfigError`` at the first execution setting out of range, or for worker options without
    workers. No hardware is asked; ``'auto'`` is left for the engine to resolve."""
    _check("execution", config, EXECUTION_RULES)
    if config.num_workers == 0:
        for name, unset in (("prefetch_factor", None), ("persistent_workers", False)):
            value = getattr(config, name)
            if value != unset:
                raise ConfigError(
                    f"execution: {name} is {value!r} while num_workers is 0, expected {unset!r}. "
                    f"Set num_workers to 1 or more, or leave {name} out."
                )
