"""The settings of a run as dataclasses: network, training, inference and PyTorch execution.

They are mutable, picklable and unchecked: a client builds them half empty in one process, fills them in
another, and only the ``validate_*`` functions of ``ptycho.config.config`` check. The type of a field is its
rule, see ``ptycho.config.rules``. Lengths are in pixels.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from ptycho.config import choices, rules

DEFAULT_N_GROUPS = 512
"""Groups that a training run uses when neither ``n_groups`` nor ``n_images`` is given."""


@dataclass
class ModelConfig:
    """The network and the physics it is built around."""

    N: rules.Count = 64  # side of a diffraction pattern [detector pixels]
    gridsize: rules.Count = 1  # a group holds gridsize**2 overlapping patterns
    n_filters_scale: rules.Count = 2
    model_type: choices.ModelType = "pinn"
    architecture: str = "cnn"  # one of ARCHITECTURES
    fno_modes: rules.Count = 12
    fno_width: rules.Count = 32
    fno_blocks: rules.Count = 4
    fno_cnn_blocks: rules.CountOrZero = 2
    learned_input_channels: rules.Count = 1
    max_hidden_channels: rules.Count | None = None
    resnet_width: rules.WidthOfFour | None = None
    fno_input_transform: choices.InputTransform = "none"
    generator_output_mode: choices.OutputMode = "real_imag"
    amp_activation: choices.AmpActivation = "sigmoid"
    object_big: bool = True  # the patches of a group lie on one larger object
    probe_big: bool = True  # the network fills the whole N x N patch, not only its centre
    probe_mask: bool = False
    probe_mask_sigma: rules.NotNegative = 1.0  # soft edge of the mask [pixels]
    probe_mask_diameter: rules.Positive | None = None  # [pixels]
    pad_object: bool = True
    probe_scale: rules.Positive = 4.0
    gaussian_smoothing_sigma: rules.NotNegative = 0.0  # [pixels], 0 = off
    cbam_encoder: bool = False  # attention gates behind the blocks of cnn
    cbam_bottleneck: bool = False
    cbam_decoder: bool = False
    eca_encoder: bool = False
    eca_decoder: bool = False
    spatial_decoder: bool = False
    decoder_spatial_kernel: rules.Odd = 7  # side of its kernel [pixels of the block]
    unrolled_steps: rules.Count = 22  # plain physics steps, then network.LEARNED_STEPS learned ones
    unrolled_width: rules.Count = 24  # filters of the finest level
    unrolled_likelihood: choices.RefineLikelihood = "amplitude"  # poisson suits few photons, measures noise


@dataclass(kw_only=True)
class ScanConfig:
    """What a training run and an inference are both told: the scan, how it is read, what takes part."""

    default_n_groups: ClassVar[int | None] = None
    scan_field: ClassVar[str]  # setting that names the scan

    model: ModelConfig = field(kw_only=False)
    n_groups: rules.Count | None = None  # None = all; of training: DEFAULT_N_GROUPS, on construction
    n_images: rules.Count | None = None  # old name of n_groups
    n_subsample: rules.Count | None = None  # patterns drawn from the file before grouping, None = all
    subsample_seed: rules.Seed | None = None
    neighbor_count: rules.Count = 4
    enable_oversampling: bool = False
    neighbor_pool_size: rules.Count | None = None
    backend: choices.Backend = "tensorflow"
    seed: rules.Seed = 42
    measurement_domain: choices.MeasurementDomain | None = None  # of the patterns, None = found from the file
    probe_key: rules.Word | None = None  # key of the probe in the data file, None = probeGuess
    pattern_axis: rules.Axis | None = None  # axis that counts the patterns, None = found from the shape
    further_scans: rules.Paths = ()  # files beside that of the scan: of its object, or to train on too
    product_file: Path | None = None  # Ptychodus product of the scan, None = found by its name
    photon_energy_eV: rules.Positive | None = None  # these four win over the data file
    detector_distance_m: rules.Positive | None = None
    detector_pixel_m: rules.Positive | None = None
    object_pixel_m: rules.Positive | None = None
    propagation: choices.Propagation | None = None  # to the detector, None = as the file says, else far
    focus_distance_m: rules.Positive | None = None  # near field: from focus to sample, None = parallel beam
    fresnel_number: rules.Positive | None = None  # near field: of an object pixel, None = from the distances
    flip_positions: choices.FlipAxes | None = None  # axes of the positions whose sign is turned
    swap_positions: bool = False  # take x of the positions for y
    match_lengths: choices.MatchLengths = "refuse"  # patterns and positions differ in number: head = cut both
    centre_patterns: choices.CentrePatterns = "auto"  # move a beam that is surely not on pixel N // 2 there
    mask_file: Path | None = None  # bad pixels beside those of the file, NPY or NPZ, nonzero is bad
    saturation: rules.Positive | None = (
        None  # stored values from here on are no measurement [unit of the file]
    )
    # Parts of a detector pixel along each axis, whose counts it adds, None = as the file says, else 1
    detector_upsampling: rules.Upsampling | None = None
    # Side of the window of the probe, in patterns, a smaller probe in its middle, None = as the probe is
    probe_window: rules.Upsampling | None = None
    keep_frames: bool = False  # let frames take part that look damaged
    keep_pixels: bool = False  # let pixels take part that look hot, dead or hit by a zinger
    keep_probe_power: bool = False  # the stored probe's power is the photons per frame
    unwrap: bool = False  # phase pictures without jumps of a full turn
    remove_ramp: bool = False  # phase pictures without their plane
    log_patch_stats: bool = False
    patch_stats_limit: rules.Count | None = None  # first patterns only

    def __post_init__(self) -> None:
        """Honour the old name of ``n_groups``, the new one wins where both are given; part several scans."""
        if isinstance(scans := getattr(self, self.scan_field), list | tuple):
            first, *others = scans or (None,)
            setattr(self, self.scan_field, Path(first) if isinstance(first, str) else first)
            self.further_scans = (*others, *self.further_scans)
        if isinstance(self.further_scans, list | tuple):
            found = (Path(item) if isinstance(item, str) else item for item in self.further_scans)
            self.further_scans = tuple(found)
        if self.n_images is not None:
            # Frames to the caller: this function, the generated __init__, then the user's line.
            warnings.warn(
                f"{type(self).__name__}: n_images is deprecated (got {self.n_images}). "
                "Pass n_groups instead.",
                DeprecationWarning,
                stacklevel=3,
            )
        if self.n_groups is None:
            self.n_groups = self.default_n_groups if self.n_images is None else self.n_images


@dataclass
class TrainingConfig(ScanConfig):
    """One training run."""

    default_n_groups: ClassVar[int | None] = DEFAULT_N_GROUPS
    scan_field: ClassVar[str] = "train_data_file"

    train_data_file: Path | None = None
    test_data_file: Path | None = None
    batch_size: rules.PowerOfTwo = 16
    nepochs: rules.Count = 50
    mae_weight: rules.Fraction = 0.0
    nll_weight: rules.Fraction = 1.0
    realspace_mae_weight: rules.NotNegative = 0.0
    realspace_weight: rules.NotNegative = 0.0  # factor on tv_weight and realspace_mae_weight
    tv_weight: rules.NotNegative = 0.0
    nphotons: rules.Positive = 1e9  # expected photons per frame
    positions_provided: bool = True
    probe_trainable: bool = False
    intensity_scale_trainable: bool = True
    output_dir: Path = Path("training_outputs")
    sequential_sampling: bool = False
    torch_loss_mode: choices.LossMode = "poisson"
    torch_mae_pred_l2_match_target: bool = False
    gradient_clip_val: rules.NotNegative | None = None
    gradient_clip_algorithm: choices.ClipAlgorithm = "norm"
    optimizer: choices.Optimizer = "adam"
    momentum: rules.BelowOne = 0.9
    weight_decay: rules.NotNegative = 0.0
    adam_beta1: rules.BelowOne = 0.9
    adam_beta2: rules.BelowOne = 0.999
    scheduler: choices.Scheduler = "Default"
    lr_warmup_epochs: rules.CountOrZero = 0
    lr_min_ratio: rules.Fraction = 0.1  # lowest rate / learning_rate
    plateau_factor: rules.BelowOne = 0.5
    plateau_patience: rules.CountOrZero = 2  # [epochs]
    plateau_min_lr: rules.NotNegative = 5e-5
    plateau_threshold: rules.NotNegative = 0.0
    learning_rate: rules.Positive = 1e-3
    # Network to begin with: a model, pretrained, or none; None = pretrained for hidden pixels, where it fits
    init_weights: rules.Word | None = None


@dataclass
class InferenceConfig(ScanConfig):
    """One reconstruction with a trained model."""

    scan_field: ClassVar[str] = "test_data_file"

    model_path: Path
    test_data_file: Path
    debug: bool = False
    output_dir: Path = Path("inference_outputs")
    align_scans: bool = True  # find how further_scans lie to the scan, else as their files say
    find_orientation: bool = False  # try the eight ways to take the positions, use what clearly fits best
    patch_weighting: choices.PatchWeighting = "probe"  # how the patches of cnn are merged
    varpro_scaling: bool = False  # scale the object to fit the counts best
    phase_vmin: rules.Real | None = None  # ends of the phase colours [rad]
    phase_vmax: rules.Real | None = None
    fit_probe: bool | None = None  # before the network; None = on any but the training scan
    # Whether hidden pixels choose probe and refinement where no refinement is asked for; commands: auto
    select: choices.Select = "off"
    refine_steps: rules.CountOrZero = 0  # most refinement steps with the forward model, 0 = off
    refine_probe: bool = False
    refine_positions: bool = False
    refine_affine: bool = False
    refine_frames: bool = False
    refine_background: bool = False
    refine_likelihood: choices.RefineLikelihood = "amplitude"
    refine_tv: rules.BelowOne = 0.0  # [transmission]
    refine_start: choices.RefineStart = "network"
    probe_modes: rules.CountOrZero = 0  # incoherent modes that are refined, 0 = as many as there are
    probe_variation: rules.CountOrZero = 0  # modes by which the probe changes from pattern to pattern
    uncertainty: choices.Uncertainty | None = None  # error bars of every pixel
    export: Path | None = None  # Ptychodus product (.h5) or CXI file to write too


@dataclass
class PyTorchExecutionConfig:
    """How one PyTorch run executes: hardware, precision, logging. It never reaches ``params.cfg``."""

    runtime_only: ClassVar[bool] = True

    accelerator: choices.Accelerator = "auto"
    devices: rules.CountOrAuto = 1
    strategy: rules.Word = "auto"
    deterministic: rules.BoolOrWarn = True
    precision: choices.Precision = "32-true"
    gradient_clip_val: rules.NotNegative | None = None
    gradient_clip_algorithm: choices.ClipAlgorithm = "norm"
    accum_steps: rules.Count = 1
    num_workers: rules.CountOrZero = 0
    pin_memory: bool = False
    persistent_workers: bool = False
    prefetch_factor: rules.Count | None = None
    learning_rate: rules.Positive = 1e-3
    scheduler: choices.Scheduler = "Default"
    enable_progress_bar: bool = False
    enable_checkpointing: bool = True
    checkpoint_save_top_k: rules.CountOrZero = 1
    checkpoint_monitor_metric: rules.Word = "val_loss"
    checkpoint_mode: choices.CheckpointMode = "min"
    early_stop_patience: rules.Count = 100  # [epochs]
    logger_backend: choices.LoggerBackend | None = "csv"
    recon_log_every_n_epochs: rules.Count | None = None
    recon_log_num_patches: rules.Count = 4
    recon_log_fixed_indices: rules.Indices | None = None
    recon_log_stitch: bool = False
    recon_log_max_stitch_samples: rules.Count | None = None
    ffno_encoder_blocks: rules.Count = 24
    ffno_encoder_modes: rules.Count = 12
    ffno_encoder_share_weights: bool = True
    ffno_encoder_gate_init: rules.Real = 0.1
    ffno_encoder_norm: rules.Word = "instance"
    ffno_encoder_mlp_ratio: rules.Positive = 2.0
    spectral_bottleneck_blocks: rules.Count = 6
    spectral_bottleneck_modes: rules.Count = 12
    spectral_bottleneck_share_weights: bool = True
    spectral_bottleneck_gate_init: rules.Real = 0.1
    spectral_bottleneck_gate_mode: choices.GateMode = "shared"
    inference_batch_size: rules.Count | None = None
    middle_trim: rules.CountOrZero = 0
    pad_eval: bool = False
