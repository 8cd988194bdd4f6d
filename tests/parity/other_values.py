"""Another valid value of every setting, derived from its type, its rule and its default."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from ptycho.config import config as c
from ptycho.config import validation as v
from ptycho.config.effects import changed
from ptycho.data.optics import FileOptions
from ptycho.errors import PtychoError
from ptycho.solver.options import RefineOptions, setting_of
from ptycho_torch import config_params as native

RULES: dict[type, dict[str, v.Rule]] = {
    c.ModelConfig: v.MODEL_RULES,
    c.TrainingConfig: v.TRAINING_RULES,
    c.InferenceConfig: v.INFERENCE_RULES,
    c.PyTorchExecutionConfig: v.EXECUTION_RULES,
    FileOptions: v.TRAINING_RULES,
    native.TrainingConfig: v.TRAINING_RULES,
    RefineOptions: {field.name: v.INFERENCE_RULES[setting_of(field.name)] for field in fields(RefineOptions)},
}
WORDS: dict[str, tuple[str, ...]] = {
    "architecture": c.ARCHITECTURES,
    "strategy": ("ddp",),
    "checkpoint_monitor_metric": ("train_loss",),
    "ffno_encoder_norm": ("batch",),
    "probe_key": ("other_probe",),
    "cnn_output_mode": ("real_imag",),
    "rect_s1s2_init": ("random",),
    "physics_weight_schedule": ("linear",),
    "framework": ("Default",),
    "orchestrator": ("none",),
    **dict.fromkeys(("notes", "model_name", "experiment_name"), ("something",)),
    "object_class": ("lines",),
    "reim_mode": ("range",),
}
"""Words of the settings that are neither a choice nor a path."""
BETTER: dict[str, Any] = {
    "n_subsample": 24,
    "n_groups": 24,
    "n_images": 24,
    "gradient_clip_val": 1e-3,
    "realspace_weight": 0.25,
    "plateau_min_lr": 8e-4,
    "plateau_threshold": 0.9,
    "probe_mask_diameter": 12.0,
    "lr_warmup_epochs": 2,
    "early_stop_patience": 1,
    "neighbor_count": 7,
    "neighbor_pool_size": 12,
    "patch_stats_limit": 3,
    "inference_batch_size": 5,
    "refine_tv": 0.01,
    "select": "auto",
    "phase_vmin": -1.0,
    "phase_vmax": 1.0,
    "probe_diameter_px": 16.0,
    "photon_energy_eV": 7000.0,
    "detector_distance_m": 2.5,
    "detector_pixel_m": 6e-5,
    "object_pixel_m": 7e-8,
    "focus_distance_m": 3.6e-3,
    "fresnel_number": 0.15,
    "saturation": 500.0,
    "detector_upsampling": 2,
    "probe_window": 2,
    "probe_modes": 2,
}
"""Values that a small scan and a short run notice, where the nearest ones would be too small or too large."""
ALWAYS = (("torch_loss_mode", "hidden"),)
"""Settings and values that count although the commands have them as a default."""
SYNONYMS = {
    ("accelerator", "'auto'"): "the CPU where there is no GPU",
    ("deterministic", "'warn'"): "the CPU computes the same; tests of the trainer look at it",
    ("fit_probe", "False"): "what the training scan gets by itself",
    ("logger_backend", "'mlflow'"): "tests of MLflow look at it",
}
"""Setting and value -> what makes it mean the same as the plain run on a machine without a GPU."""


def others(config: Any, name: str, paths: dict[str, Path]) -> list[Any]:
    """Return other valid values of a setting: every one of a choice, else the nearest.

    Raises ``LookupError`` where none can be derived, so that a new field is never passed over.
    """
    kind = type(config)
    hint = get_type_hints(kind, localns={"Tensor": object})[name]
    parts = () if get_origin(hint) in (Literal, tuple, list) else get_args(hint)
    kinds = parts or (hint,)
    own = getattr(config, name)
    if name in paths:
        return [paths[name]]
    if Path in kinds:
        raise LookupError(f"{kind.__name__}.{name}: no other path is known; add one to the walk")
    rule, holds = _rule(config, name)
    candidates = [BETTER[name]] if name in BETTER else _candidates(kinds, name, own, rule)
    found = [value for value in candidates if value != own and holds(value)]
    # A value that is the default of some other caller always passes; where there is another, it is better.
    named = [value for value in found if (name, value) in ALWAYS or name == "architecture"]
    found = [value for value in found if value in named or _is_new(config, name, value)] or found
    found = [value for value in found if (name, repr(value)) not in SYNONYMS]
    if not found:
        raise LookupError(f"{kind.__name__}.{name}: no other valid value is known; give it a rule or a word")
    several = all(isinstance(value, str) for value in found)
    return found if several else found[:1]


def _rule(config: Any, name: str) -> v.Rule:
    for kind in type(config).__mro__:
        if name in RULES.get(kind, {}):
            return RULES[kind][name]
    return "anything", lambda value: True


def _is_new(config: Any, name: str, value: Any) -> bool:
    """Tell whether a value is none of the defaults, which always pass."""
    try:
        return bool(changed(replace(config, **{name: value}), [name]))
    except PtychoError:
        return False


def _choices(rule: str) -> list[str]:
    """Return the words that a rule allows."""
    _, named, words = rule.removesuffix(", or None").partition("one of ")
    return words.split(", ") if named else []


def _candidates(kinds: tuple[Any, ...], name: str, own: Any, rule: str) -> list[Any]:
    found: list[Any] = []
    for kind in kinds:
        if get_origin(kind) is Literal:
            found += get_args(kind)
        elif kind is bool:
            found += [True, False]
        elif kind is int:
            base = own if isinstance(own, int) and not isinstance(own, bool) else 0
            found += [base + 1, base * 2, base + 2, base + 4, 1, 2, 3, 4, 8]
        elif kind is float:
            base = own if isinstance(own, float) else 0.0
            found += [base / 2, base * 2, 0.5, 0.1, 2.0]
        elif kind is str:
            found += WORDS.get(name, ()) or _choices(rule)
        elif get_origin(kind) is list:
            found += [[0]] if get_args(kind) == (int,) else [["one"]]
        elif get_origin(kind) is tuple and isinstance(own, tuple):
            found += [tuple(part + (1 if isinstance(part, int) else 0.05) for part in own)]
    return found
