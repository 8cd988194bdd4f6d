"""Settings of the PyTorch backend, under the names that clients pass by keyword.

The dataclasses are mutable, picklable and unchecked, and importing them loads no framework: a graphical
client builds them in one process and a spawned child receives them. A frozen field is fixed by a trained
model; a refused one must keep its default. Positions and sizes are in pixels; pairs are (y, x).
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ptycho.config.choices import ClipAlgorithm, LossMode, Optimizer, closest_hint
from ptycho.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "DataConfig",
    "DatagenConfig",
    "InferenceConfig",
    "ModelConfig",
    "TrainingConfig",
    "get_frozen_fields",
    "load_json_configs",
    "update_existing_config",
]

logger = logging.getLogger(__name__)

DEFAULT_CHANNELS = 4
"""Patterns per group: the product of the default ``grid_size``."""


def _frozen(default: Any, *, refused: bool = False) -> Any:
    """Return a field that a trained model fixes."""
    return field(default=default, metadata={"frozen": True, "refused": refused})


def _refused(default: Any) -> Any:
    """Return a field that clients may send at its default only; ``ptycho_torch.effects`` refuses others."""
    return field(default=default, metadata={"refused": True})


@dataclass
class DataConfig:
    """What the data hold and how patterns are grouped."""

    nphotons: float = 1e5  # expected photons per frame
    scale_contract_version: Literal["ci_intensity_v2", "legacy_v1"] = _refused("ci_intensity_v2")
    measurement_domain: Literal["count_intensity", "normalized_amplitude"] = "count_intensity"
    N: int = _frozen(64)  # side of a diffraction pattern [detector pixels]
    C: int = _frozen(DEFAULT_CHANNELS)  # patterns per group
    K: int = 6  # neighbours looked up per position
    K_quadrant: int = _refused(30)
    n_subsample: int = _refused(7)  # groups drawn per scan position
    subsample_seed: int | None = None
    grid_size: tuple[int, int] = _frozen((2, 2))
    neighbor_function: Literal["Nearest", "Min_dist", "4_quadrant"] = _frozen("Nearest", refused=True)
    min_neighbor_distance: float = _refused(0.0)
    max_neighbor_distance: float = _refused(3.0)
    scan_pattern: Literal["Isotropic", "Rectangular"] = _frozen("Isotropic", refused=True)
    normalize: Literal["Batch", "Group"] | None = _refused("Batch")
    probe_scale: float = 4.0
    probe_normalize: bool = _refused(True)
    probe_ramp_removal: bool = _refused(False)  # take the linear phase out of the probe
    data_scaling: Literal["Parseval", "Max"] = _refused("Parseval")
    phase_subtraction: bool = _refused(True)  # labels only
    x_bounds: tuple[float, float] = (0.1, 0.9)  # part of the scan's range kept as group centres
    y_bounds: tuple[float, float] = (0.1, 0.9)


@dataclass
class ModelConfig:
    """The network, its forward model and its loss."""

    mode: Literal["Unsupervised", "Supervised"] = _frozen("Unsupervised")
    architecture: str = "cnn"
    fno_modes: int = 12
    fno_width: int = 32
    fno_blocks: int = 4
    fno_cnn_blocks: int = 2
    learned_input_channels: int = 1
    fno_input_transform: Literal["none", "sqrt", "log1p", "instancenorm"] = "none"
    max_hidden_channels: int | None = None
    resnet_width: int | None = None
    spectral_bottleneck_blocks: int = _refused(6)
    spectral_bottleneck_modes: int = _refused(12)
    spectral_bottleneck_share_weights: bool = _refused(True)
    spectral_bottleneck_gate_init: float = _refused(0.1)
    spectral_bottleneck_gate_mode: Literal["shared", "per_block"] = _refused("shared")
    generator_output_mode: Literal["real_imag", "amp_phase_logits", "amp_phase"] = "real_imag"
    cnn_output_mode: str = _refused("amp_phase")
    unrolled_steps: int = 22  # plain physics steps, then network.LEARNED_STEPS learned ones
    unrolled_width: int = 24  # filters of the finest level
    unrolled_likelihood: Literal["amplitude", "poisson"] = "amplitude"
    intensity_scale_trainable: bool = False
    intensity_scale: float = _refused(10000.0)  # first guess
    max_position_jitter: int = _refused(10)
    num_datasets: int = _refused(1)  # scale factors, one per experiment
    C_model: int = _frozen(DEFAULT_CHANNELS)  # input channels
    C_forward: int = _frozen(DEFAULT_CHANNELS)  # patches merged by the forward model
    object_big: bool = _frozen(True)
    probe_big: bool = _frozen(True)
    offset: int = _refused(6)
    n_filters_scale: int = _frozen(2)
    amp_activation: Literal["silu", "sigmoid", "swish", "softplus", "relu"] = "silu"
    batch_norm: bool = _refused(False)
    probe_mask: Tensor | bool | None = False
    probe_mask_tensor: Tensor | None = None
    probe_mask_sigma: float = 1.0
    probe_mask_diameter: float | None = None
    edge_pad: int = _refused(10)
    decoder_last_c_outer_fraction: float = _refused(0.125)  # last channels that feed the outer branch
    decoder_last_amp_channels: int = _frozen(1)
    use_legacy_decoder_channel_override: bool = _refused(False)
    use_shared_decoder: bool = _frozen(False, refused=True)
    eca_encoder: bool = _frozen(False)
    eca_decoder: bool = _frozen(False)
    cbam_encoder: bool = _frozen(True)
    cbam_bottleneck: bool = _frozen(False)
    cbam_decoder: bool = _frozen(False)
    spatial_decoder: bool = _frozen(False)
    decoder_spatial_kernel: int = 7
    loss_function: Literal["Poisson", "MAE"] = "Poisson"
    amp_loss: Literal["Total_Variation", "Mean_Deviation"] | None = None
    phase_loss: Literal["Total_Variation", "Mean_Deviation"] | None = None
    amp_loss_coeff: float = 1.0
    phase_loss_coeff: float = 1.0
    probe_reference_coeff: float = _refused(0.0)
    amplitude_variance_loss: bool = _refused(False)
    amplitude_variance_coeff: float = 0.01
    training_patch_weighting: Literal["central_mask", "probe", "uniform"] = _refused("central_mask")
    physics_forward_mode: Literal["amplitude", "rectangular_scaled"] = _refused("amplitude")
    rect_s1s2_trainable: bool = _refused(True)
    rect_s1s2_init: str = _refused("ones")
    amplitude_physics_gain: float = _refused(1.0)
    pad_object: bool = True
    gaussian_smoothing_sigma: float = 0.0

    def __post_init__(self) -> None:
        # A CUDA tensor would drag a device context through pickle into the child process.
        for name in ("probe_mask", "probe_mask_tensor"):
            mask = getattr(self, name)
            if hasattr(mask, "shape") and hasattr(mask, "cpu"):
                setattr(self, name, mask.detach().cpu())


@dataclass
class TrainingConfig:
    """One training run. The ``finetune_*_lr_*`` numbers multiply ``learning_rate``."""

    training_directories: list[str] = field(default_factory=list)
    epochs: int = 50
    batch_size: int = 16
    learning_rate: float = 1e-3
    num_workers: int = 4
    accum_steps: int = 1
    n_devices: int | Literal["auto"] = 1
    epochs_fine_tune: int = _refused(0)
    fine_tune_gamma: float = _refused(0.1)
    gradient_clip_val: float | None = None
    gradient_clip_algorithm: ClipAlgorithm = "norm"
    nll: bool = True
    device: str = "cuda"  # the engine falls back to the CPU where there is no CUDA
    strategy: str = "auto"
    framework: str = _refused("Lightning")
    orchestrator: str = "Mlflow"
    optimizer: Optimizer = "adam"
    momentum: float = 0.9
    weight_decay: float = 0.0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    scheduler: str = "Default"
    warmup_epochs: int = 5
    min_lr_ratio: float = 0.1
    plateau_factor: float = 0.5
    plateau_patience: int = 2
    plateau_min_lr: float = 5e-5
    plateau_threshold: float = 0.0
    log_grad_norm: bool = _refused(False)
    grad_norm_log_freq: int = _refused(1)  # [steps]
    stage_1_epochs: int = _refused(0)
    stage_2_epochs: int = _refused(0)
    stage_3_epochs: int = _refused(0)
    physics_weight_schedule: str = _refused("cosine")
    stage_3_lr_factor: float = _refused(0.1)
    torch_loss_mode: LossMode = "poisson"
    torch_mae_pred_l2_match_target: bool = False
    enable_staged_finetuning: bool = _refused(False)
    finetune_stage1_epochs: int = _refused(7)
    finetune_stage2_epochs: int = _refused(7)
    finetune_stage3_epochs: int = _refused(5)
    finetune_stage1_lr_decoder: float = _refused(0.1)
    finetune_stage2_lr_encoder_top: float = _refused(0.01)
    finetune_stage2_lr_decoder: float = _refused(0.05)
    finetune_stage2_lr_phase_head: float = _refused(0.1)
    finetune_stage3_lr_encoder_bottom: float = _refused(0.005)
    finetune_stage3_lr_encoder_top: float = _refused(0.01)
    finetune_stage3_lr_decoder: float = _refused(0.02)
    finetune_stage3_lr_phase_head: float = _refused(0.05)
    finetune_skip_stage3: bool = _refused(True)
    finetune_early_stop_patience: int = _refused(3)
    finetune_val_split: float = _refused(0.05)
    experiment_name: str = "Synthetic_Runs"
    notes: str = ""
    model_name: str = "PtychoPINNv2"
    output_dir: str = "training_outputs"
    train_data_file: str | None = None
    test_data_file: str | None = None
    n_groups: int | None = None


@dataclass
class InferenceConfig:
    """One reconstruction with a trained model."""

    middle_trim: int = _refused(32)
    batch_size: int = 1000
    experiment_number: int = _refused(0)
    pad_eval: bool = _refused(True)
    window: int = _refused(20)
    patch_weighting: Literal["probe", "uniform"] = "probe"
    varpro_scaling: bool = True
    log_patch_stats: bool = _refused(False)
    patch_stats_limit: int | None = _refused(None)


@dataclass
class DatagenConfig:
    """Synthetic training data."""

    objects_per_probe: int = 4
    diff_per_object: int = 7000
    object_class: str = "dead_leaves"
    image_size: tuple[int, int] = (250, 250)
    probe_paths: list[str] = field(default_factory=list)
    beamstop_diameter: int = 4
    reim_mode: str = "histogram"
    histogram_threshold: float = 0.05


Settings = tuple[DataConfig, ModelConfig, TrainingConfig, InferenceConfig, DatagenConfig]
SECTIONS: dict[str, type] = {
    "data_config": DataConfig,
    "model_config": ModelConfig,
    "training_config": TrainingConfig,
    "inference_config": InferenceConfig,
    "datagen_config": DatagenConfig,
}


def get_frozen_fields(config: Any) -> tuple[str, ...]:
    """Return the names of the fields that a trained model fixes, in declaration order."""
    return marked_fields(config, "frozen")


def marked_fields(config: Any, mark: str) -> tuple[str, ...]:
    """Return the names of the fields that are ``frozen`` or ``refused``, in declaration order."""
    return tuple(item.name for item in fields(config) if item.metadata.get(mark, False))


def update_existing_config(config: Any, updates: Mapping[str, Any], verbose: bool = False) -> tuple[str, ...]:
    """Set known fields of a configuration in place from values by name; return the names that it does not
    have, each of which is logged as a warning. ``verbose`` also logs each field that is set."""
    kind = type(config).__name__
    known = {item.name for item in fields(config)}
    for name, value in updates.items():
        if name not in known:
            hint = closest_hint(name, known)
            logger.warning("%s: setting %r is unknown and was left out. %s", kind, name, hint)
            continue
        if verbose:
            logger.info("%s: %s = %r", kind, name, value)
        setattr(config, name, value)
    return tuple(name for name in updates if name not in known)


def load_json_configs(path: str | os.PathLike[str]) -> Settings:
    """Read a JSON settings file with the sections of ``SECTIONS``, a missing one giving defaults, and return
    data, model, training, inference and synthetic-data settings. The network then follows the data:
    ``C_model`` and ``C_forward`` become ``C``, ``object_big`` ``C > 1``. ``ConfigError`` if the file is not
    JSON, or a section is not a mapping."""
    try:
        content = json.loads(Path(path).read_bytes())
    except ValueError as error:
        raise ConfigError(f"{path}: this is not valid JSON (got {error}). Correct that line.") from error
    configs = DataConfig(), ModelConfig(), TrainingConfig(), InferenceConfig(), DatagenConfig()
    for name, config in zip(SECTIONS, configs, strict=True):
        section = content.get(name, {}) if isinstance(content, dict) else content
        if not isinstance(section, dict):
            raise ConfigError(
                f"{path}: {name} is not a section (got {type(section).__name__}, expected an object with "
                "'name: value' pairs). Put the settings in braces."
            )
        # JSON has no tuples, and every pair among these settings is one.
        pairs = {item.name for item in fields(config) if isinstance(item.default, tuple)}
        for key in pairs & set(section):
            if not isinstance(section[key], list) or len(section[key]) != 2:
                raise ConfigError(
                    f"{path}: {name} {key} is not a pair (got {section[key]!r}, expected two numbers). "
                    "Write it as [a, b]."
                )
        update_existing_config(config, {k: tuple(v) if k in pairs else v for k, v in section.items()})
    data, model, *_ = configs
    model.C_model = model.C_forward = data.C
    model.object_big = data.C > 1
    return configs
