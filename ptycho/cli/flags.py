"""The flags of training and inference, the same for every backend and every door.

A flag that is not given leaves no trace in the parsed values, so that a settings file and the defaults can
speak. Flag names here have dashes; users may type underscores.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ptycho.cli.console import Parser
from ptycho.config.choices import (
    ARCHITECTURES,
    CentrePatterns,
    FlipAxes,
    LossMode,
    MatchLengths,
    ModelType,
    RefineLikelihood,
    RefineStart,
    allowed,
)

DOMAINS = {
    "counts": "counts",
    "amplitude": "amplitude",
    "count-intensity": "counts",
    "count_intensity": "counts",
    "normalized-amplitude": "amplitude",
    "normalized_amplitude": "amplitude",
}
CONTRACTS = {"ci_intensity_v2": "counts", "legacy_v1": "amplitude"}
LOGGERS = ("csv", "none", "tensorboard", "mlflow")
EPILOG = (
    "Flags may be typed with dashes or underscores: --train_data_file and --train-data-file are the same."
)


def _yes_no(text: str) -> bool:
    """Read a switch given as a word."""
    words = {
        "true": True,
        "yes": True,
        "1": True,
        "on": True,
        "false": False,
        "no": False,
        "0": False,
        "off": False,
    }
    if text.lower() not in words:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected true or false")
    return words[text.lower()]


def _switch(group: Any, name: str, dest: str, text: str) -> None:
    """Add ``--name``, ``--name true|false`` and ``--no-name``."""
    group.add_argument(
        f"--{name}", dest=dest, nargs="?", const=True, type=_yes_no, metavar="true|false", help=text
    )
    group.add_argument(f"--no-{name}", dest=dest, action="store_false", help=argparse.SUPPRESS)


def _common(parser: argparse.ArgumentParser, device: str) -> None:
    """Add what both commands have."""
    machine = parser.add_argument_group("machine")
    machine.add_argument(
        "--accelerator",
        "--torch-accelerator",
        metavar="NAME",
        help=f"auto (the GPU when there is one, else the CPU), cpu, gpu, cuda or mps (default {device})",
    )
    machine.add_argument("--device", metavar="NAME", help="older name of --accelerator: cpu or cuda")
    machine.add_argument(
        "--num-workers",
        "--torch-num-workers",
        type=int,
        metavar="K",
        help="processes that prepare batches (default 0)",
    )
    data = parser.add_argument_group("what the patterns hold")
    data.add_argument(
        "--measurement-domain",
        metavar="NAME",
        help="counts or amplitude; by default decided from the file and printed",
    )
    data.add_argument(
        "--scale-contract-version", metavar="NAME", help="ci_intensity_v2 (counts) or legacy_v1 (amplitude)"
    )
    data.add_argument(
        "--probe-key", metavar="KEY", help="key of the file that holds the probe (default probeGuess)"
    )
    data.add_argument(
        "--pattern-axis",
        type=int,
        choices=(0, 1, 2),
        help="axis that counts the patterns; by default found from the shape",
    )
    data.add_argument(
        "--n-subsample", type=int, metavar="M", help="use M randomly chosen patterns of the file"
    )
    data.add_argument("--subsample-seed", type=int, metavar="S", help="seed of that choice")
    add_file_flags(parser)
    mask = parser.add_argument_group("probe mask")
    _switch(mask, "probe-mask", "probe_mask", "multiply the probe with a soft disc (default no)")
    mask.add_argument("--probe-mask-sigma", type=float, metavar="PX", help="softness of its edge (default 1)")
    mask.add_argument("--probe-mask-diameter", type=float, metavar="PX", help="its diameter (default N / 2)")
    output = parser.add_argument_group("output")
    output.add_argument(
        "--log-patch-stats", action="store_true", help="write patch_stats.csv, one line per pattern"
    )
    output.add_argument("--patch-stats-limit", type=int, metavar="K", help="only for the first K patterns")
    output.add_argument(
        "--strict", action="store_true", help="end with status 3 where the verdict is failed (files are kept)"
    )
    output.add_argument(
        "--quiet", action="store_true", help="print only errors, and a verdict that is not good"
    )
    output.add_argument("--debug", action="store_true", help="show tracebacks and debug messages")
    parser.add_argument(
        "--backend", metavar="NAME", help="pytorch or tensorflow (default: that of the command)"
    )
    parser.add_argument("--seed", type=int, metavar="S", help="seed of everything random (default 42)")


def add_file_flags(parser: argparse.ArgumentParser) -> None:
    """Add what the user can say about a data file in metres; the names are those of ``FileOptions``.

    Parameters
    ----------
    parser : argparse.ArgumentParser
        Changed in place.
    """
    group = parser.add_argument_group("metres and pixels of Ptychodus, CXI and NeXus files (flags win)")
    group.add_argument(
        "--product",
        dest="product_file",
        type=Path,
        metavar="FILE",
        help="Ptychodus product of the diffraction file (default: product.h5 beside diffraction.h5)",
    )
    group.add_argument(
        "--photon-energy", dest="photon_energy_eV", type=float, metavar="EV", help="photon energy in eV"
    )
    group.add_argument(
        "--detector-distance",
        dest="detector_distance_m",
        type=float,
        metavar="M",
        help="distance from sample to detector in m",
    )
    group.add_argument(
        "--detector-pixel",
        dest="detector_pixel_m",
        type=float,
        metavar="M",
        help="side of a detector pixel in m",
    )
    group.add_argument(
        "--object-pixel",
        dest="object_pixel_m",
        type=float,
        metavar="M",
        help="side of an object pixel in m (default: from the three above)",
    )
    group.add_argument("--flip-positions", choices=allowed(FlipAxes), help="turn the sign of x, y or both")
    _switch(group, "swap-positions", "swap_positions", "take x for y, before any flip (default no)")
    faults = parser.add_argument_group("data that look damaged")
    faults.add_argument(
        "--match-lengths",
        choices=allowed(MatchLengths),
        help="patterns and positions that differ in number: refuse (default) or head (the first of both)",
    )
    faults.add_argument(
        "--centre-patterns",
        choices=allowed(CentrePatterns),
        help="move a beam that is certainly not on pixel N // 2 there: auto (default) or off",
    )
    _switch(faults, "keep-frames", "keep_frames", "use dark, saturated and broken frames too (default no)")
    _switch(
        faults,
        "keep-pixels",
        "keep_pixels",
        "use pixels that look hot, dead or struck too (default no)",
    )
    _switch(
        faults,
        "keep-probe-power",
        "keep_probe_power",
        "take the power of the stored probe as photons per frame, as of an empty beam (default no)",
    )


def training_parser(prog: str, device: str = "auto") -> argparse.ArgumentParser:
    """Build the parser of the training command.

    Parameters
    ----------
    prog : str
        Name shown in the help.
    device : {'auto', 'cpu'}
        Accelerator where no flag names one.

    Returns
    -------
    argparse.ArgumentParser
        Parsed values hold only what was given; ``dest`` names are those of the settings.
    """
    parser = Parser(
        prog=prog,
        description="Train on a scan (NPZ, Ptychodus HDF5, CXI or NeXus), reconstruct it, and write model, "
        "pictures and data.",
        epilog=EPILOG,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    files = parser.add_argument_group("files")
    files.add_argument("--train-data-file", type=Path, metavar="FILE", help="scan to train on (required)")
    files.add_argument("--test-data-file", type=Path, metavar="FILE", help="scan that judges the training")
    files.add_argument(
        "--output-dir", type=Path, metavar="DIR", help="where everything is written (required)"
    )
    files.add_argument("--config", type=Path, metavar="FILE", help="settings in YAML; flags win over them")
    files.add_argument("--resume", type=Path, metavar="CKPT", help="go on from this checkpoint")
    files.add_argument(
        "--ptycho-dir", type=Path, metavar="DIR", help="legacy: folder of NPZ files, with --config JSON"
    )
    _training_run(parser)
    _training_network(parser)
    _training_loss(parser)
    _training_torch(parser)
    _common(parser, device)
    return parser


def _training_run(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("training")
    group.add_argument(
        "--max-epochs", "--nepochs", dest="nepochs", type=int, metavar="E", help="epochs (default 100)"
    )
    group.add_argument(
        "--n-images",
        "--n-groups",
        dest="n_groups",
        type=int,
        metavar="B",
        help="groups of gridsize^2 patterns to train on (default 512)",
    )
    group.add_argument("--gridsize", type=int, metavar="G", help="a group holds G x G patterns (default 2)")
    group.add_argument("--batch-size", type=int, metavar="B", help="groups in a batch of cnn (default 4)")
    group.add_argument(
        "--neighbor-count", "--K", type=int, metavar="K", help="nearest neighbours a group draws from"
    )
    _switch(group, "enable-oversampling", "enable_oversampling", "allow more groups than scan points")
    group.add_argument(
        "--neighbor-pool-size", type=int, metavar="K", help="neighbours that oversampling draws from"
    )
    _switch(
        group, "sequential-sampling", "sequential_sampling", "take the first scan points, not random ones"
    )
    group.add_argument("--nphotons", type=float, metavar="N", help="photons per frame (for params.cfg only)")
    _switch(
        group, "probe-trainable", "probe_trainable", "fit the probe to the scan before training (default yes)"
    )
    _switch(
        group, "intensity-scale-trainable", "intensity_scale_trainable", "train one factor on all amplitudes"
    )


def _training_network(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("network")
    group.add_argument(
        "--architecture",
        metavar="NAME",
        help=f"{' or '.join(ARCHITECTURES)} (default unrolled: physics steps with learned corrections, much "
        "sharper)",
    )
    group.add_argument("--unrolled-steps", type=int, metavar="K", help="steps of unrolled (default 22)")
    group.add_argument("--unrolled-width", type=int, metavar="W", help="filters of unrolled (default 24)")
    group.add_argument(
        "--unrolled-likelihood",
        metavar="NAME",
        help="amplitude (default), or poisson, which suits few photons: what the steps of unrolled descend "
        "on",
    )
    group.add_argument(
        "--n-filters-scale", type=int, metavar="S", help="factor on the filters of cnn (default 2)"
    )
    group.add_argument("--amp-activation", metavar="NAME", help="sigmoid, swish, softplus or relu (cnn)")
    _switch(group, "object-big", "object_big", "merge the patches of a group (cnn, default yes)")
    _switch(group, "probe-big", "probe_big", "let cnn fill the whole patch (default yes)")
    _switch(group, "pad-object", "pad_object", "confine cnn to the middle of the patch (default yes)")
    for place in ("encoder", "bottleneck", "decoder"):
        _switch(
            group, f"cbam-{place}", f"cbam_{place}", f"channel and spatial attention in the {place} of cnn"
        )
    for place in ("encoder", "decoder"):
        _switch(group, f"eca-{place}", f"eca_{place}", f"light channel attention in the {place} of cnn")
    _switch(group, "spatial-decoder", "spatial_decoder", "spatial attention in the decoder of cnn")
    group.add_argument(
        "--decoder-spatial-kernel", type=int, metavar="K", help="side of its kernel (default 7)"
    )
    group.add_argument(
        "--gaussian-smoothing-sigma",
        type=float,
        metavar="PX",
        help="smooth the exit wave that cnn predicts (default 0: not)",
    )
    group.add_argument(
        "--model-type",
        choices=allowed(ModelType),
        help="pinn: learn from the patterns (default); supervised: learn from Y, label or objectGuess (cnn)",
    )
    group.add_argument("--profile", choices=["ci"], help="ci: counts, Poisson loss")


def _training_loss(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("loss")
    group.add_argument("--torch-loss-mode", choices=allowed(LossMode), help="main term (default amplitude)")
    group.add_argument(
        "--nll-weight", type=float, metavar="W", help="its weight, 0 to 1 (default 1; not of mae)"
    )
    group.add_argument(
        "--mae-weight",
        type=float,
        metavar="W",
        help="weight of the mean absolute amplitude error (default 0)",
    )
    group.add_argument(
        "--realspace-weight", type=float, metavar="W", help="factor on the two terms below (default 0: none)"
    )
    group.add_argument(
        "--tv-weight", type=float, metavar="W", help="weight of the total variation of the object"
    )
    group.add_argument(
        "--realspace-mae-weight",
        type=float,
        metavar="W",
        help="weight of the difference from Y, label or objectGuess",
    )


def _training_torch(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("optimiser, checkpoints, logging")
    group.add_argument(
        "--learning-rate", "--torch-learning-rate", type=float, metavar="R", help="default 1e-3"
    )
    group.add_argument(
        "--scheduler",
        "--torch-scheduler",
        metavar="NAME",
        help="Default (constant), Exponential, Cosine, WarmupCosine, Adaptive or ReduceLROnPlateau",
    )
    group.add_argument(
        "--accumulate-grad-batches",
        "--torch-accumulate-grad-batches",
        type=int,
        metavar="K",
        help="batches in an optimiser step (default 1)",
    )
    group.add_argument("--gradient-clip-val", type=float, metavar="X", help="clip gradients to this norm")
    _switch(group, "deterministic", "deterministic", "same numbers on every run (default yes)")
    _switch(group, "torch-deterministic", "deterministic", argparse.SUPPRESS)
    group.add_argument(
        "--logger",
        "--torch-logger",
        metavar="NAME",
        help=f"{', '.join(LOGGERS)} (default mlflow where it is installed, else csv)",
    )
    group.add_argument("--disable-mlflow", action="store_true", help="same as --logger none")
    _switch(group, "enable-checkpointing", "enable_checkpointing", "write checkpoints (default yes)")
    group.add_argument(
        "--disable-checkpointing", dest="enable_checkpointing", action="store_false", help="write none"
    )
    group.add_argument(
        "--checkpoint-save-top-k",
        "--torch-checkpoint-save-top-k",
        type=int,
        metavar="K",
        help="best checkpoints to keep (default 1)",
    )
    group.add_argument(
        "--checkpoint-monitor",
        dest="checkpoint_monitor_metric",
        metavar="NAME",
        help="what decides the best: val_loss (default) or train_loss",
    )
    group.add_argument("--checkpoint-mode", metavar="min|max", help="which end is best (default min)")
    group.add_argument(
        "--early-stop-patience", type=int, metavar="E", help="epochs without gain (default 100)"
    )


def inference_parser(prog: str, device: str = "auto") -> argparse.ArgumentParser:
    """Build the parser of the inference command.

    Parameters
    ----------
    prog : str
        Name shown in the help.
    device : {'auto', 'cpu'}
        Accelerator where no flag names one.

    Returns
    -------
    argparse.ArgumentParser
        Parsed values hold only what was given; ``dest`` names are those of the settings.
    """
    parser = Parser(
        prog=prog,
        description="Reconstruct a scan (NPZ, Ptychodus HDF5, CXI or NeXus) with a trained model: amplitude "
        "and phase pictures, and the object.",
        epilog=EPILOG,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    files = parser.add_argument_group("files")
    files.add_argument(
        "--model-path",
        type=Path,
        metavar="PATH",
        help="output folder of a training, a model file, or pretrained: the network that comes with the "
        "package",
    )
    files.add_argument(
        "--test-data", dest="test_data_file", type=Path, metavar="FILE", help="scan to reconstruct"
    )
    files.add_argument("--output-dir", type=Path, metavar="DIR", help="where everything is written")
    files.add_argument(
        "--export",
        type=Path,
        metavar="FILE",
        help="also write a Ptychodus product (.h5, .hdf5) or a CXI file (.cxi)",
    )
    files.add_argument("--config", type=Path, metavar="FILE", help="settings in YAML; flags win over them")
    run = parser.add_argument_group("reconstruction")
    run.add_argument(
        "--n-images",
        "--n-groups",
        dest="n_groups",
        type=int,
        metavar="K",
        help="use K random patterns (default: all)",
    )
    run.add_argument(
        "--inference-batch-size",
        "--torch-inference-batch-size",
        type=int,
        metavar="B",
        help="groups given to cnn at a time",
    )
    run.add_argument(
        "--patch-weighting", choices=["probe", "uniform"], help="how cnn patches are merged (default probe)"
    )
    _switch(
        run,
        "varpro-scaling",
        "varpro_scaling",
        "scale the object so that it fits the counts best (default no)",
    )
    _switch(
        run,
        "fit-probe",
        "fit_probe",
        "fit the probe of the file to the scan before the network sees it (default: a probe is fitted on any "
        "scan but that of the training)",
    )
    _switch(
        run,
        "find-orientation",
        "find_orientation",
        "try the eight orientations of the positions on a part of the scan, say which fits and by how much, "
        "and use it where that is clear (default no)",
    )
    run.add_argument("--phase-vmin", type=float, metavar="RAD", help="lower end of the phase colours")
    run.add_argument("--phase-vmax", type=float, metavar="RAD", help="upper end of the phase colours")
    refinement = parser.add_argument_group("refinement by the forward model")
    refinement.add_argument(
        "--refine",
        dest="refine_steps",
        type=int,
        metavar="K",
        help="refine the object with at most K steps (default 0: none); stops when converged",
    )
    _switch(refinement, "refine-probe", "refine_probe", "refine the probe too, all modes (default no)")
    _switch(refinement, "refine-positions", "refine_positions", "refine the scan positions too (default no)")
    _switch(
        refinement, "refine-frames", "refine_frames", "refine one intensity factor per frame too (default no)"
    )
    refinement.add_argument(
        "--refine-likelihood",
        choices=allowed(RefineLikelihood),
        help="what the steps descend on (default amplitude)",
    )
    refinement.add_argument(
        "--refine-tv",
        type=float,
        metavar="T",
        help="total-variation smoothing per step, such as 0.01 with the Poisson likelihood at low dose "
        "(default 0: none)",
    )
    refinement.add_argument(
        "--init",
        dest="refine_start",
        choices=allowed(RefineStart),
        help="object to start the refinement from (default network)",
    )
    legacy = parser.add_argument_group("legacy: a model from an MLflow run")
    legacy.add_argument("--run-id", metavar="ID", help="MLflow run of a training")
    legacy.add_argument("--infer-dir", type=Path, metavar="DIR", help="folder of NPZ files to reconstruct")
    legacy.add_argument("--file-index", type=int, metavar="K", help="which of its files (default 0)")
    legacy.add_argument("--mlruns", type=Path, metavar="DIR", help="local MLflow store (default ./mlruns)")
    _common(parser, device)
    return parser
