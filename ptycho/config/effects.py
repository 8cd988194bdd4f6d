"""Settings of a run that would change nothing beside the others: refused by name, never passed over.

A setting is idle where nothing reads it, or where another setting takes its ground away. What was left at a
default is never idle; the defaults of the commands count as defaults too.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, dataclass, fields
from typing import TYPE_CHECKING, Any

from ptycho.config.architectures import KNOWN, Architecture, architecture_of
from ptycho.config.choices import COMMAND_DEFAULTS, HIDDEN, OTHER_DEFAULTS
from ptycho.config.validation import check_realspace
from ptycho.errors import ConfigError

if TYPE_CHECKING:
    from ptycho.config.classes import InferenceConfig, ModelConfig, PyTorchExecutionConfig, TrainingConfig

PHYSICS_ONLY: tuple[str, ...] = (
    "nll_weight", "mae_weight", "realspace_weight", "tv_weight", "realspace_mae_weight",
)  # fmt: skip
"""Weights of losses that a supervised training run does not have."""
NEEDED: dict[str, str] = {
    "decoder_spatial_kernel": "spatial_decoder",
    "probe_mask_sigma": "probe_mask",
    "probe_mask_diameter": "probe_mask",
    "subsample_seed": "n_subsample",
    "neighbor_pool_size": "enable_oversampling",
    "patch_stats_limit": "log_patch_stats",
    "gradient_clip_algorithm": "gradient_clip_val",
    "align_scans": "further_scans",
}
"""Setting -> the one without which it does nothing."""
NEEDED_CHOICES: dict[str, tuple[str, tuple[str, ...]]] = {
    "momentum": ("optimizer", ("sgd",)),
    **dict.fromkeys(("adam_beta1", "adam_beta2"), ("optimizer", ("adam", "adamw"))),
    **dict.fromkeys(("lr_warmup_epochs", "lr_min_ratio"), ("scheduler", ("Cosine", "WarmupCosine"))),
    **dict.fromkeys(
        ("plateau_factor", "plateau_patience", "plateau_min_lr", "plateau_threshold"),
        ("scheduler", ("ReduceLROnPlateau", "Adaptive")),
    ),
}
"""Setting -> the choice it belongs to, and the values of it that read the setting."""
GROUPS_ONLY: tuple[str, ...] = ("object_big", "neighbor_count", "enable_oversampling", "neighbor_pool_size")
"""What groups of one pattern do not have."""
WITH_GROUPS = f" or pass --architecture {next(item.name for item in KNOWN.values() if not item.whole_canvas)}"
"""How to ask for a network that sees groups of patterns."""
NOT_IMPLEMENTED: tuple[str, ...] = (
    "fno_modes", "fno_width", "fno_blocks", "fno_cnn_blocks", "learned_input_channels", "max_hidden_channels",
    "resnet_width", "fno_input_transform", "generator_output_mode", "probe_scale", "positions_provided",
    "torch_mae_pred_l2_match_target", "recon_log_every_n_epochs", "recon_log_num_patches",
    "recon_log_fixed_indices", "recon_log_stitch", "recon_log_max_stitch_samples", "ffno_encoder_blocks",
    "ffno_encoder_modes", "ffno_encoder_share_weights", "ffno_encoder_gate_init", "ffno_encoder_norm",
    "ffno_encoder_mlp_ratio", "spectral_bottleneck_blocks", "spectral_bottleneck_modes",
    "spectral_bottleneck_share_weights", "spectral_bottleneck_gate_init", "spectral_bottleneck_gate_mode",
    "middle_trim", "pad_eval",
)  # fmt: skip
"""Settings that other programs know and that nothing here reads."""
CLIPPING: tuple[str, ...] = ("norm", "value")
LIGHTNING_ONLY: tuple[str, ...] = (
    "strategy", "deterministic", "num_workers", "pin_memory", "persistent_workers", "prefetch_factor",
    "enable_progress_bar",
)  # fmt: skip
"""How PyTorch Lightning executes a training run; TensorFlow has none of these."""
OWNED_BY_TRAINING: tuple[str, ...] = (
    "learning_rate", "scheduler", "gradient_clip_val", "gradient_clip_algorithm",
)  # fmt: skip
"""What execution settings and training settings both hold; the training settings own it."""
EXECUTION_OF_INFERENCE: tuple[str, ...] = ("accelerator", "inference_batch_size")
TRAINING_LEFTOVERS: tuple[str, ...] = (
    "neighbor_count", "enable_oversampling", "neighbor_pool_size", "debug",
)  # fmt: skip
"""Fields of an inference that only training, or the command itself, could use."""
MASK: tuple[str, ...] = ("probe_mask", "probe_mask_sigma", "probe_mask_diameter")
"""Network settings that an inference may change: they belong to the probe."""


@dataclass(frozen=True)
class Idle:
    """Settings that do nothing beside the others; the texts are those of :func:`refuse_changed`."""

    part: Any  # configuration they belong to
    names: Iterable[str]
    where: str
    why: str = "has no effect"
    action: str = ""


def defaults_of(config: Any) -> dict[str, Any]:
    """Return the default of every field of a dataclass, type or instance; ``MISSING`` where it has none."""
    return {
        item.name: item.default_factory() if item.default_factory is not MISSING else item.default
        for item in fields(config)
    }


def refuse_changed(config: Any, names: Iterable[str], where: str, why: str, action: str) -> None:
    """Raise ``ConfigError`` at the first setting that differs from its defaults, where changing it would do
    nothing. Names that ``config`` does not have are passed over. ``where``, ``why`` and ``action`` are parts
    of the message: what is concerned, what is wrong, what to do beside leaving the setting out."""
    for name in changed(config, names):
        raise ConfigError(
            f"{where}: {name} {why} (got {getattr(config, name)!r}, expected its default "
            f"{defaults_of(config)[name]!r}). Leave it out{action}."
        )


def changed(config: Any, names: Iterable[str]) -> list[str]:
    """Return which settings differ from every default they have; names that ``config`` does not have are
    passed over."""
    defaults = defaults_of(config)

    def accepted(name: str) -> list[Any]:
        return [defaults[name], COMMAND_DEFAULTS.get(name, defaults[name]), *OTHER_DEFAULTS.get(name, ())]

    return [name for name in names if name in defaults and getattr(config, name) not in accepted(name)]


def idle_settings(config: TrainingConfig, execution: PyTorchExecutionConfig | None = None) -> Iterator[Idle]:
    """Yield what cannot have an effect in a training run, changed or not."""
    model = config.model
    for part in (model, config, execution):
        if part is not None:
            yield Idle(part, NOT_IMPLEMENTED, "training", "is not implemented")
    own = architecture_of(config.model)
    yield from _idle_by_network(config, own)
    for part in (model, config):
        yield from idle_without(part)
    for name, (choice, values) in NEEDED_CHOICES.items():
        if getattr(config, choice) not in values:
            where = f"training with {choice} {getattr(config, choice)}"
            yield Idle(config, (name,), where, action=f" or set {choice} to {' or '.join(values)}")
    if config.tv_weight == 0 and config.realspace_mae_weight == 0:
        action = " or set tv_weight or realspace_mae_weight"
        yield Idle(config, ("realspace_weight",), "training", "has nothing to multiply", action)
    if config.torch_loss_mode == "mae" and config.nll_weight != 0:
        yield Idle(config, ("nll_weight",), "training with torch_loss_mode mae")
    yield Idle(config, ("nphotons",), "training", action=" and store nphotons in the data file")
    if execution is not None:
        yield from _idle_execution(config, execution, own)


def _idle_by_network(config: TrainingConfig, own: Architecture) -> Iterator[Idle]:
    model = config.model
    for other in KNOWN.values():
        if other is not own:
            yield Idle(model, other.settings, own.name, action=f" or pass --architecture {other.name}")
    if own.whole_canvas:
        yield Idle(config, ("batch_size",), own.name, action=WITH_GROUPS)
    if model.gridsize == 1:
        for part in (model, config):
            yield Idle(part, GROUPS_ONLY, "groups of one pattern", action=" or raise gridsize")
    if model.model_type == "supervised":
        action = " or pass --model-type pinn"
        yield Idle(config, PHYSICS_ONLY, "supervised", action=action)
        yield Idle(model, ("gaussian_smoothing_sigma", "object_big"), "supervised", action=action)
        yield Idle(config, ("torch_loss_mode",), "supervised", action=action)


def idle_without(part: Any) -> Iterator[Idle]:
    """Yield the settings whose partner is off or not given."""
    for name, partner in NEEDED.items():
        if hasattr(part, partner) and not getattr(part, partner):
            kind = type(part).__name__.removesuffix("Config").lower()
            yield Idle(part, (name,), f"{kind} without {partner}", action=f" or set {partner}")


def _idle_execution(
    config: TrainingConfig, execution: PyTorchExecutionConfig, own: Architecture
) -> Iterator[Idle]:
    if execution.devices == 1:
        yield Idle(execution, ("strategy",), "training on one device")
    if not execution.enable_checkpointing:
        yield Idle(execution, ("checkpoint_save_top_k",), "training without checkpoints")
    if own.whole_canvas:
        yield Idle(execution, ("inference_batch_size",), own.name, action=WITH_GROUPS)
    if config.backend == "tensorflow":
        yield Idle(execution, LIGHTNING_ONLY, "TensorFlow", action=" or pass --backend pytorch")


def refuse(idle: Iterable[Idle]) -> None:
    """Raise ``ConfigError`` at the first setting that was changed among those that do nothing."""
    for item in idle:
        refuse_changed(item.part, item.names, item.where, item.why, item.action)


def validate_effects(config: TrainingConfig, execution: PyTorchExecutionConfig | None = None) -> None:
    """Raise ``ConfigError`` at the first changed setting that would change nothing in a training run."""
    check_realspace(config)
    if config.gradient_clip_val and config.gradient_clip_algorithm not in CLIPPING:
        raise ConfigError(
            "training: this gradient_clip_algorithm is not implemented (got "
            f"{config.gradient_clip_algorithm!r}, expected {' or '.join(CLIPPING)}). Choose one of them."
        )
    if config.torch_loss_mode == HIDDEN and not architecture_of(config.model).whole_canvas:
        raise ConfigError(
            "training: a network that sees groups cannot learn from hidden pixels (got torch_loss_mode "
            f"{HIDDEN!r}, expected amplitude, poisson or mae). Choose one of them, or pass --architecture "
            "unrolled."
        )
    # Values that would do what the default does; the stages of the first are no settings here.
    if config.scheduler == "MultiStage":
        raise ConfigError(
            "training: this scheduler is not implemented (got 'MultiStage', expected another one). "
            "Choose another scheduler, or leave it out."
        )
    if config.optimizer == "adamw" and config.weight_decay == 0:
        raise ConfigError(
            "training: optimizer adamw without weight_decay is adam (got weight_decay "
            f"{config.weight_decay!r}, expected > 0). Set weight_decay, or leave optimizer out."
        )
    refuse(idle_settings(config, execution))


def with_execution(config: TrainingConfig, execution: PyTorchExecutionConfig) -> TrainingConfig:
    """Return the training settings with what only the execution settings say of ``OWNED_BY_TRAINING``. It is
    the same object where they add nothing; ``ConfigError`` where both were changed and disagree."""
    found = config
    for name in changed(execution, OWNED_BY_TRAINING):
        wanted, own = getattr(execution, name), getattr(found, name)
        if own == wanted:
            continue
        if changed(found, (name,)):
            raise ConfigError(
                f"execution: {name} contradicts the training settings (got {wanted!r} and {own!r}, expected "
                "the same). Leave it out of the execution settings."
            )
        found = copy.copy(found)
        setattr(found, name, wanted)
    return found


def validate_inference_effects(config: InferenceConfig, execution: PyTorchExecutionConfig) -> None:
    """Raise ``ConfigError`` at the first changed setting that would change nothing in a reconstruction."""
    if config.n_groups is not None and config.n_subsample is not None:
        raise ConfigError(
            f"inference: n_groups and n_subsample both choose patterns (got {config.n_groups} and "
            f"{config.n_subsample}, expected one of them). Leave n_subsample out."
        )
    refuse(_idle_inference(config, execution))


def _idle_inference(config: InferenceConfig, execution: PyTorchExecutionConfig) -> Iterator[Idle]:
    yield Idle(config, TRAINING_LEFTOVERS, "inference")
    others = [item.name for item in fields(execution) if item.name not in EXECUTION_OF_INFERENCE]
    yield Idle(execution, others, "inference")
    if config.n_groups is None and config.n_subsample is None:
        action = " or set n_groups"
        yield Idle(config, ("subsample_seed", "seed"), "inference of all patterns", action=action)
    elif config.subsample_seed is not None:
        yield Idle(config, ("seed",), "inference with subsample_seed, which draws the patterns")
    yield from (item for item in idle_without(config) if set(item.names) != {"subsample_seed"})
    yield from idle_without(config.model)
    if config.refine_steps == 0:
        action = " or pass --refine 50"
        yield Idle(config, ("refine_likelihood", "refine_tv"), "inference without refinement", action=action)
    else:
        yield Idle(config, ("select",), "refinement that is asked for", action=" or leave out --refine")
        yield Idle(config, ("varpro_scaling",), "refinement, which fits the scale anyway")
        if config.refine_start != "network":
            names, action = ("patch_weighting",), f" or leave out --init {config.refine_start}"
            yield Idle(config, names, "refinement from a flat object", action=action)


def refuse_other_network(
    config: InferenceConfig,
    execution: PyTorchExecutionConfig,
    trained: ModelConfig,
    stated: Iterable[str] = (),
) -> None:
    """Raise ``ConfigError`` at the first setting that does not fit the ``trained`` network. ``stated`` names
    settings that count even where they equal the default; the mask of the probe may differ."""
    asked = config.model
    # The commands put no defaults of their own in here, so only those of the class mean "not chosen".
    defaults = defaults_of(asked)
    names = {*(name for name, value in defaults.items() if getattr(asked, name) != value), *stated}
    for item in fields(asked):
        wanted, own = getattr(asked, item.name), getattr(trained, item.name)
        if item.name in names and item.name not in MASK and wanted != own:
            raise ConfigError(
                f"inference: {item.name} belongs to the trained model (got {wanted!r}, expected {own!r}). "
                "Leave it out, or train a model with it."
            )
    if (network := architecture_of(trained)).whole_canvas:
        where = f"inference with an {network.name} model"
        refuse([Idle(config, ("patch_weighting",), where), Idle(execution, ("inference_batch_size",), where)])
