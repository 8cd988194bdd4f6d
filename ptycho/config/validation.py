"""The rules that settings obey before a run; commands call them, constructors never do."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields
from numbers import Real
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from ptycho.config import choices
from ptycho.config.architectures import architecture_of
from ptycho.errors import ConfigError

if TYPE_CHECKING:
    from ptycho.config.classes import InferenceConfig, ModelConfig, PyTorchExecutionConfig, TrainingConfig

MODEL_FILES: tuple[str, ...] = (
    choices.BUNDLE_NAME,
    "manifest.json",
    *(f"{choices.CHECKPOINT_FOLDER}/{name}" for name in choices.CHECKPOINT_NAMES),
    *choices.PYTORCH_WEIGHTS,
)
"""What makes a directory a trained model: a bundle, packed or not, checkpoints, PyTorch weights."""

Rule = tuple[str, Callable[[Any], bool]]


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_real(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


COUNT: Rule = ("an integer >= 1", lambda v: _is_int(v) and v >= 1)
COUNT_OR_ZERO: Rule = ("an integer >= 0", lambda v: _is_int(v) and v >= 0)
SEED: Rule = ("an integer >= 0 and < 2**63", lambda v: _is_int(v) and 0 <= v < 2**63)
POWER_OF_TWO: Rule = ("a power of two: 1, 2, 4, 8, ...", lambda v: _is_int(v) and v >= 1 and v & (v - 1) == 0)
POSITIVE: Rule = ("a finite number > 0", lambda v: _is_real(v) and v > 0)
NOT_NEGATIVE: Rule = ("a finite number >= 0", lambda v: _is_real(v) and v >= 0)
FRACTION: Rule = ("a number from 0 to 1", lambda v: _is_real(v) and 0 <= v <= 1)
BELOW_ONE: Rule = ("a number >= 0 and < 1", lambda v: _is_real(v) and 0 <= v < 1)
WIDTH_OF_FOUR: Rule = ("an integer >= 4 divisible by 4", lambda v: _is_int(v) and v >= 4 and v % 4 == 0)
COUNT_OR_AUTO: Rule = ("an integer >= 1 or 'auto'", lambda v: v == "auto" or COUNT[1](v))
ODD: Rule = ("an odd integer >= 1", lambda v: _is_int(v) and v >= 1 and v % 2 == 1)
BOOL: Rule = ("True or False", lambda v: isinstance(v, bool))
REAL: Rule = ("a finite number", _is_real)
AXIS: Rule = ("0, 1 or 2", lambda v: _is_int(v) and 0 <= v <= 2)
TEXT: Rule = ("a word", lambda v: isinstance(v, str) and bool(v))
PATH: Rule = ("a path", lambda v: isinstance(v, str | PurePath))
INDICES: Rule = (
    "a list of integers >= 0",
    lambda v: isinstance(v, list | tuple) and all(_is_int(item) and item >= 0 for item in v),
)
BOOL_OR_WARN: Rule = ("True, False or 'warn'", lambda v: isinstance(v, bool) or v == "warn")


def _optional(rule: Rule) -> Rule:
    return f"{rule[0]}, or None", lambda v: v is None or rule[1](v)


def _one_of(choice: object) -> Rule:
    values = choices.allowed(choice)
    return f"one of {', '.join(values)}", lambda v: v in values


MODEL_RULES: dict[str, Rule] = {
    "N": COUNT,
    "gridsize": COUNT,
    "n_filters_scale": COUNT,
    "model_type": _one_of(choices.ModelType),
    "fno_modes": COUNT,
    "fno_width": COUNT,
    "fno_blocks": COUNT,
    "fno_cnn_blocks": COUNT_OR_ZERO,
    "learned_input_channels": COUNT,
    "max_hidden_channels": _optional(COUNT),
    "resnet_width": _optional(WIDTH_OF_FOUR),
    "fno_input_transform": _one_of(choices.InputTransform),
    "generator_output_mode": _one_of(choices.OutputMode),
    "amp_activation": _one_of(choices.AmpActivation),
    "probe_mask_sigma": NOT_NEGATIVE,
    "probe_mask_diameter": _optional(POSITIVE),
    "probe_scale": POSITIVE,
    "gaussian_smoothing_sigma": NOT_NEGATIVE,
    "decoder_spatial_kernel": ODD,
    "unrolled_steps": COUNT,
    "unrolled_width": COUNT,
    "unrolled_likelihood": _one_of(choices.RefineLikelihood),
}
SELECTION_RULES: dict[str, Rule] = {
    "n_groups": _optional(COUNT),
    "n_images": _optional(COUNT),
    "n_subsample": _optional(COUNT),
    "neighbor_count": COUNT,
    "neighbor_pool_size": _optional(COUNT),
    "backend": _one_of(choices.Backend),
    "seed": SEED,
    "subsample_seed": _optional(SEED),
    "measurement_domain": _optional(_one_of(choices.MeasurementDomain)),
    "output_dir": PATH,
    "test_data_file": _optional(PATH),
    "probe_key": _optional(TEXT),
    "pattern_axis": _optional(AXIS),
    "product_file": _optional(PATH),
    "photon_energy_eV": _optional(POSITIVE),
    "detector_distance_m": _optional(POSITIVE),
    "detector_pixel_m": _optional(POSITIVE),
    "object_pixel_m": _optional(POSITIVE),
    "flip_positions": _optional(_one_of(choices.FlipAxes)),
    "match_lengths": _one_of(choices.MatchLengths),
    "centre_patterns": _one_of(choices.CentrePatterns),
    "patch_stats_limit": _optional(COUNT),
}
INFERENCE_RULES: dict[str, Rule] = {
    **SELECTION_RULES,
    "model_path": PATH,
    "test_data_file": PATH,
    "patch_weighting": _one_of(choices.PatchWeighting),
    "phase_vmin": _optional(REAL),
    "phase_vmax": _optional(REAL),
    "fit_probe": _optional(BOOL),
    "refine_steps": COUNT_OR_ZERO,
    "refine_likelihood": _one_of(choices.RefineLikelihood),
    "refine_tv": BELOW_ONE,
    "refine_start": _one_of(choices.RefineStart),
    "export": _optional(PATH),
}
TRAINING_RULES: dict[str, Rule] = {
    **SELECTION_RULES,
    "train_data_file": _optional(PATH),
    "batch_size": POWER_OF_TWO,
    "nepochs": COUNT,
    "mae_weight": FRACTION,
    "nll_weight": FRACTION,
    "realspace_mae_weight": NOT_NEGATIVE,
    "realspace_weight": NOT_NEGATIVE,
    "tv_weight": NOT_NEGATIVE,
    "nphotons": POSITIVE,
    "torch_loss_mode": _one_of(choices.LossMode),
    "gradient_clip_val": _optional(NOT_NEGATIVE),
    "gradient_clip_algorithm": _one_of(choices.ClipAlgorithm),
    "optimizer": _one_of(choices.Optimizer),
    "momentum": BELOW_ONE,
    "weight_decay": NOT_NEGATIVE,
    "adam_beta1": BELOW_ONE,
    "adam_beta2": BELOW_ONE,
    "scheduler": _one_of(choices.Scheduler),
    "lr_warmup_epochs": COUNT_OR_ZERO,
    "lr_min_ratio": FRACTION,
    "plateau_factor": BELOW_ONE,
    "plateau_patience": COUNT_OR_ZERO,
    "plateau_min_lr": NOT_NEGATIVE,
    "plateau_threshold": NOT_NEGATIVE,
    "learning_rate": POSITIVE,
}
EXECUTION_RULES: dict[str, Rule] = {
    "accelerator": _one_of(choices.Accelerator),
    "devices": COUNT_OR_AUTO,
    "deterministic": BOOL_OR_WARN,
    "precision": _one_of(choices.Precision),
    "gradient_clip_val": _optional(NOT_NEGATIVE),
    "gradient_clip_algorithm": _one_of(choices.ClipAlgorithm),
    "accum_steps": COUNT,
    "strategy": TEXT,
    "checkpoint_monitor_metric": TEXT,
    "num_workers": COUNT_OR_ZERO,
    "prefetch_factor": _optional(COUNT),
    "learning_rate": POSITIVE,
    "scheduler": _one_of(choices.Scheduler),
    "checkpoint_save_top_k": COUNT_OR_ZERO,
    "checkpoint_mode": _one_of(choices.CheckpointMode),
    "early_stop_patience": COUNT,
    "logger_backend": _optional(_one_of(choices.LoggerBackend)),
    "recon_log_every_n_epochs": _optional(COUNT),
    "recon_log_num_patches": COUNT,
    "recon_log_fixed_indices": _optional(INDICES),
    "ffno_encoder_blocks": COUNT,
    "ffno_encoder_modes": COUNT,
    "ffno_encoder_gate_init": REAL,
    "ffno_encoder_norm": TEXT,
    "ffno_encoder_mlp_ratio": POSITIVE,
    "spectral_bottleneck_blocks": COUNT,
    "spectral_bottleneck_modes": COUNT,
    "spectral_bottleneck_gate_init": REAL,
    "recon_log_max_stitch_samples": _optional(COUNT),
    "spectral_bottleneck_gate_mode": _one_of(choices.GateMode),
    "inference_batch_size": _optional(COUNT),
    "middle_trim": COUNT_OR_ZERO,
}


def _check(where: str, config: Any, rules: dict[str, Rule]) -> None:
    # A string such as 'False' is true, so every switch must be a real bool.
    switches = {item.name: BOOL for item in fields(config) if isinstance(item.default, bool)}
    for name, (rule, holds) in {**switches, **rules}.items():
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
