"""The settings of a run as dataclasses: network, training, inference and PyTorch execution.

They are mutable, picklable and unchecked: a client builds them half empty in one process, fills them in
another, and only the ``validate_*`` functions of ``ptycho.config.config`` judge. Lengths are in pixels.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from ptycho.config.choices import (
    Accelerator,
    AmpActivation,
    Backend,
    CentrePatterns,
    CheckpointMode,
    ClipAlgorithm,
    FlipAxes,
    GateMode,
    InputTransform,
    LoggerBackend,
    LossMode,
    MatchLengths,
    MeasurementDomain,
    ModelType,
    Optimizer,
    OutputMode,
    PatchWeighting,
    Precision,
    RefineLikelihood,
    RefineStart,
    Scheduler,
)

DEFAULT_N_GROUPS = 512
"""Groups that a training uses when neither ``n_groups`` nor ``n_images`` is given."""


@dataclass
class ModelConfig:
    """The network and the physics it is built around."""

    N: int = 64  # side of a diffraction pattern [detector pixels]
    gridsize: int = 1  # a group holds gridsize**2 overlapping patterns
    n_filters_scale: int = 2
    model_type: ModelType = "pinn"
    architecture: str = "cnn"  # one of ARCHITECTURES
    fno_modes: int = 12
    fno_width: int = 32
    fno_blocks: int = 4
    fno_cnn_blocks: int = 2
    learned_input_channels: int = 1
    max_hidden_channels: int | None = None
    resnet_width: int | None = None
    fno_input_transform: InputTransform = "none"
    generator_output_mode: OutputMode = "real_imag"
    amp_activation: AmpActivation = "sigmoid"
    object_big: bool = True  # the patches of a group lie on one larger object
    probe_big: bool = True  # the network fills the whole N x N patch, not only its centre
    probe_mask: bool = False
    probe_mask_sigma: float = 1.0  # soft edge of the mask [pixels]
    probe_mask_diameter: float | None = None  # [pixels]
    pad_object: bool = True
    probe_scale: float = 4.0
    gaussian_smoothing_sigma: float = 0.0  # [pixels], 0 = off
    cbam_encoder: bool = False  # attention gates behind the blocks of cnn
    cbam_bottleneck: bool = False
    cbam_decoder: bool = False
    eca_encoder: bool = False
    eca_decoder: bool = False
    spatial_decoder: bool = False
    decoder_spatial_kernel: int = 7  # side of its kernel [pixels of the block]
    unrolled_steps: int = 22  # plain physics steps, then network.LEARNED_STEPS learned ones
    unrolled_width: int = 24  # filters of the finest level
    unrolled_likelihood: RefineLikelihood = "amplitude"  # poisson suits few photons and measures noise


def _adopt_n_images(config: TrainingConfig | InferenceConfig) -> None:
    """Honour the old name of ``n_groups``; the new name wins when both are given."""
    if config.n_images is None:
        return
    kind = type(config).__name__
    # Frames to the caller: this helper, __post_init__, the generated __init__, then the user's line.
    warnings.warn(
        f"{kind}: n_images is deprecated (got {config.n_images}). Pass n_groups instead.",
        DeprecationWarning,
        stacklevel=4,
    )
    if config.n_groups is None:
        config.n_groups = config.n_images


@dataclass
class TrainingConfig:
    """One training run."""

    model: ModelConfig
    train_data_file: Path | None = None
    test_data_file: Path | None = None
    batch_size: int = 16
    nepochs: int = 50
    mae_weight: float = 0.0
    nll_weight: float = 1.0
    realspace_mae_weight: float = 0.0
    realspace_weight: float = 0.0  # factor on tv_weight and realspace_mae_weight
    tv_weight: float = 0.0
    nphotons: float = 1e9  # expected photons per frame
    n_groups: int | None = None  # becomes DEFAULT_N_GROUPS on construction
    n_images: int | None = None  # old name of n_groups
    n_subsample: int | None = None  # patterns drawn from the file before grouping, None = all
    subsample_seed: int | None = None
    neighbor_count: int = 4
    enable_oversampling: bool = False
    neighbor_pool_size: int | None = None
    positions_provided: bool = True
    probe_trainable: bool = False
    intensity_scale_trainable: bool = True
    output_dir: Path = Path("training_outputs")
    sequential_sampling: bool = False
    backend: Backend = "tensorflow"
    torch_loss_mode: LossMode = "poisson"
    torch_mae_pred_l2_match_target: bool = False
    gradient_clip_val: float | None = None
    gradient_clip_algorithm: ClipAlgorithm = "norm"
    optimizer: Optimizer = "adam"
    momentum: float = 0.9
    weight_decay: float = 0.0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    scheduler: Scheduler = "Default"
    lr_warmup_epochs: int = 0
    lr_min_ratio: float = 0.1  # lowest rate / learning_rate
    plateau_factor: float = 0.5
    plateau_patience: int = 2  # [epochs]
    plateau_min_lr: float = 5e-5
    plateau_threshold: float = 0.0
    learning_rate: float = 1e-3
    seed: int = 42
    measurement_domain: MeasurementDomain | None = None  # what the patterns hold; None = decide from the file
    probe_key: str | None = None  # key of the probe in the data file, None = probeGuess
    pattern_axis: int | None = None  # axis that counts the patterns, None = found from the shape
    product_file: Path | None = None  # Ptychodus product of train_data_file, None = found by its name
    photon_energy_eV: float | None = None  # these four win over the data file
    detector_distance_m: float | None = None
    detector_pixel_m: float | None = None
    object_pixel_m: float | None = None
    flip_positions: FlipAxes | None = None  # axes of the positions whose sign is turned
    swap_positions: bool = False  # take x of the positions for y
    match_lengths: MatchLengths = "refuse"  # patterns and positions that differ in number; head = cut both
    centre_patterns: CentrePatterns = "auto"  # move a beam that is certainly not on pixel N // 2 there
    keep_frames: bool = False  # let frames take part that look damaged
    keep_pixels: bool = False  # let pixels take part that look hot, dead or hit by a zinger
    keep_probe_power: bool = False  # the stored probe's power is the photons per frame
    log_patch_stats: bool = False
    patch_stats_limit: int | None = None  # first patterns only

    def __post_init__(self) -> None:
        _adopt_n_images(self)
        if self.n_groups is None:
            self.n_groups = DEFAULT_N_GROUPS


@dataclass
class InferenceConfig:
    """One reconstruction with a trained model."""

    model: ModelConfig
    model_path: Path
    test_data_file: Path
    n_groups: int | None = None
    n_images: int | None = None  # old name of n_groups
    n_subsample: int | None = None  # patterns drawn from the file before grouping, None = all
    subsample_seed: int | None = None
    neighbor_count: int = 4
    enable_oversampling: bool = False
    neighbor_pool_size: int | None = None
    debug: bool = False
    output_dir: Path = Path("inference_outputs")
    backend: Backend = "tensorflow"
    seed: int = 42
    measurement_domain: MeasurementDomain | None = None  # what the patterns hold; None = decide from the file
    probe_key: str | None = None  # key of the probe in the data file, None = probeGuess
    pattern_axis: int | None = None  # axis that counts the patterns, None = found from the shape
    product_file: Path | None = None  # Ptychodus product of test_data_file, None = found by its name
    photon_energy_eV: float | None = None  # these four win over the data file
    detector_distance_m: float | None = None
    detector_pixel_m: float | None = None
    object_pixel_m: float | None = None
    flip_positions: FlipAxes | None = None  # axes of the positions whose sign is turned
    swap_positions: bool = False  # take x of the positions for y
    find_orientation: bool = False  # try the eight ways to take the positions, use what clearly fits best
    match_lengths: MatchLengths = "refuse"  # patterns and positions that differ in number; head = cut both
    centre_patterns: CentrePatterns = "auto"  # move a beam that is certainly not on pixel N // 2 there
    keep_frames: bool = False  # let frames take part that look damaged
    keep_pixels: bool = False  # let pixels take part that look hot, dead or hit by a zinger
    keep_probe_power: bool = False  # the stored probe's power is the photons per frame
    log_patch_stats: bool = False
    patch_stats_limit: int | None = None  # first patterns only
    patch_weighting: PatchWeighting = "probe"  # how the patches of cnn are merged
    varpro_scaling: bool = False  # scale the object to fit the counts best
    phase_vmin: float | None = None  # ends of the phase colours [rad]
    phase_vmax: float | None = None
    fit_probe: bool | None = None  # before the network; None = on any but the training scan
    refine_steps: int = 0  # most refinement steps with the forward model, 0 = off
    refine_probe: bool = False
    refine_positions: bool = False
    refine_frames: bool = False
    refine_likelihood: RefineLikelihood = "amplitude"
    refine_tv: float = 0.0  # [transmission]
    refine_start: RefineStart = "network"
    export: Path | None = None  # Ptychodus product (.h5) or CXI file to write too

    def __post_init__(self) -> None:
        _adopt_n_images(self)


@dataclass
class PyTorchExecutionConfig:
    """How one PyTorch run executes: hardware, precision, logging. It never reaches ``params.cfg``."""

    runtime_only: ClassVar[bool] = True

    accelerator: Accelerator = "auto"
    devices: int | Literal["auto"] = 1
    strategy: str = "auto"
    deterministic: bool | Literal["warn"] = True
    precision: Precision = "32-true"
    gradient_clip_val: float | None = None
    gradient_clip_algorithm: ClipAlgorithm = "norm"
    accum_steps: int = 1
    num_workers: int = 0
    pin_memory: bool = False
    persistent_workers: bool = False
    prefetch_factor: int | None = None
    learning_rate: float = 1e-3
    scheduler: Scheduler = "Default"
    enable_progress_bar: bool = False
    enable_checkpointing: bool = True
    checkpoint_save_top_k: int = 1
    checkpoint_monitor_metric: str = "val_loss"
    checkpoint_mode: CheckpointMode = "min"
    early_stop_patience: int = 100  # [epochs]
    logger_backend: LoggerBackend | None = "csv"
    recon_log_every_n_epochs: int | None = None
    recon_log_num_patches: int = 4
    recon_log_fixed_indices: list[int] | None = None
    recon_log_stitch: bool = False
    recon_log_max_stitch_samples: int | None = None
    ffno_encoder_blocks: int = 24
    ffno_encoder_modes: int = 12
    ffno_encoder_share_weights: bool = True
    ffno_encoder_gate_init: float = 0.1
    ffno_encoder_norm: str = "instance"
    ffno_encoder_mlp_ratio: float = 2.0
    spectral_bottleneck_blocks: int = 6
    spectral_bottleneck_modes: int = 12
    spectral_bottleneck_share_weights: bool = True
    spectral_bottleneck_gate_init: float = 0.1
    spectral_bottleneck_gate_mode: GateMode = "shared"
    inference_batch_size: int | None = None
    middle_trim: int = 0
    pad_eval: bool = False
