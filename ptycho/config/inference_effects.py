"""Settings of an inference that would change nothing: refused by name before the scan is read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import fields
from typing import TYPE_CHECKING

from ptycho.config.architectures import architecture_of
from ptycho.config.effects import Idle, defaults_of, idle_without, refuse
from ptycho.errors import ConfigError

if TYPE_CHECKING:
    from ptycho.config.classes import InferenceConfig, ModelConfig, PyTorchExecutionConfig

EXECUTION_OF_INFERENCE: tuple[str, ...] = ("accelerator", "inference_batch_size")
TRAINING_LEFTOVERS: tuple[str, ...] = (
    "neighbor_count", "enable_oversampling", "neighbor_pool_size", "debug",
)  # fmt: skip
"""Fields of an inference that only training, or the command itself, could use."""
MASK: tuple[str, ...] = ("probe_mask", "probe_mask_sigma", "probe_mask_diameter")
"""Network settings that an inference may change: they belong to the probe."""


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
        yield Idle(config, ("varpro_scaling",), "refinement, which fits the scale anyway")
        if config.refine_start == "flat":
            names = ("patch_weighting",)
            yield Idle(config, names, "refinement from a flat object", action=" or leave out --init flat")


def _idle_of_model(
    config: InferenceConfig, execution: PyTorchExecutionConfig, trained: ModelConfig
) -> Iterator[Idle]:
    if (own := architecture_of(trained)).whole_canvas:
        where = f"inference with an {own.name} model"
        yield Idle(config, ("patch_weighting",), where)
        yield Idle(execution, ("inference_batch_size",), where)


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
    refuse(_idle_of_model(config, execution, trained))
