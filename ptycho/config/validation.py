"""The rules that settings obey before a run; commands call them, constructors never do."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import fields
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptycho.config import choices
from ptycho.errors import ConfigError

if TYPE_CHECKING:
    from ptycho.config.config import InferenceConfig, ModelConfig, PyTorchExecutionConfig, TrainingConfig

MODEL_FILES: tuple[str, ...] = (
    choices.BUNDLE_NAME,
    "manifest.json",
    "checkpoints/last.ckpt",
    "wts.pt",
    "model.pt",
    "checkpoints/best-checkpoint.h5.zip",
)
"""What makes a directory a trained model: a bundle, the content of an unpacked one, PyTorch weights, or the
bundle that an unfinished training left."""

Rule = tuple[str, Callable[[Any], bool]]


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_real(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


COUNT: Rule = ("an integer >= 1", lambda v: _is_int(v) and v >= 1)
COUNT_OR_ZERO: Rule = ("an integer >= 0", lambda v: _is_int(v) and v >= 0)
POWER_OF_TWO: Rule = ("a power of two: 1, 2, 4, 8, ...", lambda v: _is_int(v) and v >= 1 and v & (v - 1) == 0)
POSITIVE: Rule = ("a finite number > 0", lambda v: _is_real(v) and v > 0)
NOT_NEGATIVE: Rule = ("a finite number >= 0", lambda v: _is_real(v) and v >= 0)
FRACTION: Rule = ("a number from 0 to 1", lambda v: _is_real(v) and 0 <= v <= 1)
BELOW_ONE: Rule = ("a number >= 0 and < 1", lambda v: _is_real(v) and 0 <= v < 1)
WIDTH_OF_FOUR: Rule = ("an integer >= 4 divisible by 4", lambda v: _is_int(v) and v >= 4 and v % 4 == 0)
COUNT_OR_AUTO: Rule = ("an integer >= 1 or 'auto'", lambda v: v == "auto" or COUNT[1](v))
ODD: Rule = ("an odd integer >= 1", lambda v: _is_int(v) and v >= 1 and v % 2 == 1)
BOOL: Rule = ("True or False", lambda v: isinstance(v, bool))
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
CNN_ONLY: tuple[str, ...] = (
    "model_type",
    "n_filters_scale",
    "amp_activation",
    "object_big",
    "probe_big",
    "pad_object",
    "gaussian_smoothing_sigma",
    "cbam_encoder",
    "cbam_bottleneck",
    "cbam_decoder",
    "eca_encoder",
    "eca_decoder",
    "spatial_decoder",
    "decoder_spatial_kernel",
)
UNROLLED_ONLY: tuple[str, ...] = ("unrolled_steps", "unrolled_width", "unrolled_likelihood")
PHYSICS_ONLY: tuple[str, ...] = (
    "nll_weight",
    "mae_weight",
    "realspace_weight",
    "tv_weight",
    "realspace_mae_weight",
)
"""Weights of losses that a supervised training does not have."""
NEEDED: dict[str, str] = {
    "decoder_spatial_kernel": "spatial_decoder",
    "probe_mask_sigma": "probe_mask",
    "probe_mask_diameter": "probe_mask",
}
"""Setting -> switch without which it does nothing."""
NOT_IMPLEMENTED: tuple[str, ...] = (
    "fno_modes",
    "fno_width",
    "fno_blocks",
    "fno_cnn_blocks",
    "learned_input_channels",
    "max_hidden_channels",
    "resnet_width",
    "fno_input_transform",
    "generator_output_mode",
    "positions_provided",
    "torch_mae_pred_l2_match_target",
    "recon_log_every_n_epochs",
    "recon_log_num_patches",
    "recon_log_fixed_indices",
    "recon_log_stitch",
    "recon_log_max_stitch_samples",
    "ffno_encoder_blocks",
    "ffno_encoder_modes",
    "ffno_encoder_share_weights",
    "ffno_encoder_gate_init",
    "ffno_encoder_norm",
    "ffno_encoder_mlp_ratio",
    "spectral_bottleneck_blocks",
    "spectral_bottleneck_modes",
    "spectral_bottleneck_share_weights",
    "spectral_bottleneck_gate_init",
    "spectral_bottleneck_gate_mode",
)
"""Settings that other programs know and that nothing here reads."""
SELECTION_RULES: dict[str, Rule] = {
    "n_groups": _optional(COUNT),
    "n_subsample": _optional(COUNT),
    "neighbor_count": COUNT,
    "neighbor_pool_size": _optional(COUNT),
    "backend": _one_of(choices.Backend),
    "seed": COUNT_OR_ZERO,
    "subsample_seed": _optional(COUNT_OR_ZERO),
    "measurement_domain": _optional(_one_of(choices.MeasurementDomain)),
}
TRAINING_RULES: dict[str, Rule] = {
    **SELECTION_RULES,
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


def _check_realspace(config: TrainingConfig) -> None:
    for name in ("realspace_mae_weight", "tv_weight"):
        value = getattr(config, name)
        if value > 0 and config.realspace_weight == 0:
            raise ConfigError(
                f"training: realspace_weight is 0 while {name} is {value}, expected > 0. "
                f"Set realspace_weight, or set {name} to 0."
            )


def validate_model_config(config: ModelConfig) -> None:
    """Check the network settings.

    Parameters
    ----------
    config : ModelConfig
        Settings to judge.

    Raises
    ------
    ConfigError
        At the first setting out of range; an unknown architecture is answered with the closest known one.
    """
    if config.architecture not in choices.ARCHITECTURES:
        raise ConfigError(
            f"model: architecture is {config.architecture!r}, expected one of "
            f"{', '.join(choices.ARCHITECTURES)}. "
            f"{choices.closest_hint(config.architecture, choices.ARCHITECTURES)}"
        )
    _check("model", config, MODEL_RULES)


def validate_training_config(config: TrainingConfig) -> None:
    """Check the settings of a training run and its network.

    Parameters
    ----------
    config : TrainingConfig
        Settings to judge; files are not opened.

    Raises
    ------
    ConfigError
        At the first setting out of range, or if two settings contradict each other.
    """
    validate_model_config(config.model)
    _check("training", config, TRAINING_RULES)
    _check_realspace(config)


def refuse_changed(config: Any, names: Iterable[str], where: str, why: str, action: str) -> None:
    """Refuse settings that differ from their defaults, where changing them would do nothing.

    Parameters
    ----------
    config : dataclass
        Settings to judge; names it does not have are passed over.
    names : iterable of str
        Settings to look at.
    where, why, action : str
        Parts of the message: what is concerned, what is wrong, what to do beside leaving the setting out.

    Raises
    ------
    ConfigError
        At the first one.
    """
    defaults = {item.name: item.default for item in fields(config)}
    for name in names:
        if name in defaults and getattr(config, name) != defaults[name]:
            raise ConfigError(
                f"{where}: {name} {why} (got {getattr(config, name)!r}, expected its default "
                f"{defaults[name]!r}). Leave it out{action}."
            )


def validate_effects(config: TrainingConfig, execution: PyTorchExecutionConfig | None = None) -> None:
    """Refuse settings that would change nothing in a training, by name.

    Parameters
    ----------
    config : TrainingConfig
        Settings to judge.
    execution : PyTorchExecutionConfig, optional
        Execution settings to judge.

    Raises
    ------
    ConfigError
        At the first setting that was changed and has no effect with the others.
    """
    model, none = config.model, "has no effect"
    _check_realspace(config)
    for part in (model, config, execution):
        if part is not None:
            refuse_changed(part, NOT_IMPLEMENTED, "training", "is not implemented", "")
    if model.architecture == "unrolled":
        refuse_changed(model, CNN_ONLY, "unrolled", none, " or pass --architecture cnn")
    if model.architecture == "cnn":
        refuse_changed(model, UNROLLED_ONLY, "cnn", none, " or pass --architecture unrolled")
    for name, switch in NEEDED.items():
        if not getattr(model, switch):
            refuse_changed(model, (name,), f"model without {switch}", none, f" or set {switch}")
    if model.model_type == "supervised":
        action = " or pass --model-type pinn"
        refuse_changed(config, PHYSICS_ONLY, "supervised", none, action)
        refuse_changed(model, ("gaussian_smoothing_sigma",), "supervised", none, action)


def validate_inference_config(config: InferenceConfig) -> None:
    """Check the settings of a reconstruction and that its model is there.

    Parameters
    ----------
    config : InferenceConfig
        Settings to judge. ``model_path`` is a directory that holds one of :data:`MODEL_FILES`, a file, a
        file name without its ``.zip``, or ``pretrained``.

    Raises
    ------
    ConfigError
        At the first setting out of range, or if no model is found.
    """
    validate_model_config(config.model)
    _check("inference", config, SELECTION_RULES)
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
    """Check the PyTorch execution settings; ``'auto'`` is left for the engine to resolve.

    Parameters
    ----------
    config : PyTorchExecutionConfig
        Settings to judge; no hardware is asked.

    Raises
    ------
    ConfigError
        At the first setting out of range, or if worker options are set without workers.
    """
    _check("execution", config, EXECUTION_RULES)
    if config.num_workers == 0:
        for name, unset in (("prefetch_factor", None), ("persistent_workers", False)):
            value = getattr(config, name)
            if value != unset:
                raise ConfigError(
                    f"execution: {name} is {value!r} while num_workers is 0, expected {unset!r}. "
                    f"Set num_workers to 1 or more, or leave {name} out."
                )
