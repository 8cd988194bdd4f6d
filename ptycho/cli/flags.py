"""The flags of training and inference, the same for every backend and every entry point.

A flag that is not given leaves no trace in the parsed values, so that a settings file and the defaults can
speak. Flag names here have dashes; users may type underscores.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ptycho.cli.console import Parser
from ptycho.config.architectures import ARCHITECTURES
from ptycho.config.choices import (
    CentrePatterns,
    FlipAxes,
    LossMode,
    MatchLengths,
    ModelType,
    PatchWeighting,
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
SWITCHES = dict.fromkeys(("true", "yes", "1", "on"), True) | dict.fromkeys(("false", "no", "0", "off"), False)
"""Words of a switch."""


def _yes_no(text: str) -> bool:
    if text.lower() not in SWITCHES:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected true or false")
    return SWITCHES[text.lower()]


def add_value(
    group: Any, names: str, kind: Callable[[str], Any], metavar: str | None, text: str, **more: Any
) -> None:
    """Add a flag that takes a value; ``names`` are its spellings, ``more`` is for argparse."""
    flags = [f"--{name}" for name in names.split()]
    # Without a type a word stays as it is.
    more |= {} if kind is str else {"type": kind}
    group.add_argument(*flags, metavar=metavar, help=text, **more)


def _choice(group: Any, name: str, values: tuple[Any, ...], text: str, **more: Any) -> None:
    add_value(group, name, type(values[0]), None, text, choices=values, **more)


def _switch(group: Any, name: str, text: str, dest: str | None = None) -> None:
    """Add ``--name``, ``--name true|false`` and ``--no-name``."""
    dest = dest or name.replace("-", "_")
    add_value(group, name, _yes_no, "true|false", text, dest=dest, nargs="?", const=True)
    group.add_argument(f"--no-{name}", dest=dest, action="store_false", help=argparse.SUPPRESS)


def _common(parser: argparse.ArgumentParser, device: str) -> None:
    """Add what both commands have."""
    machine = parser.add_argument_group("machine")
    text = f"auto (the GPU when there is one, else the CPU), cpu, gpu, cuda or mps (default {device})"
    add_value(machine, "accelerator torch-accelerator", str, "NAME", text)
    add_value(machine, "device", str, "NAME", "older name of --accelerator: cpu or cuda")
    text = "processes that prepare batches (default 0)"
    add_value(machine, "num-workers torch-num-workers", int, "K", text)
    data = parser.add_argument_group("what the patterns hold")
    text = "counts or amplitude; by default decided from the file and printed"
    add_value(data, "measurement-domain", str, "NAME", text)
    text = "ci_intensity_v2 (counts) or legacy_v1 (amplitude)"
    add_value(data, "scale-contract-version", str, "NAME", text)
    text = "key of the file that holds the probe (default probeGuess)"
    add_value(data, "probe-key", str, "KEY", text)
    add_pattern_axis(data)
    add_value(data, "n-subsample", int, "M", "use M randomly chosen patterns of the file")
    add_value(data, "subsample-seed", int, "S", "seed of that choice")
    add_file_flags(parser)
    mask = parser.add_argument_group("probe mask")
    _switch(mask, "probe-mask", "multiply the probe with a soft disc (default no)")
    add_value(mask, "probe-mask-sigma", float, "PX", "softness of its edge (default 1)")
    add_value(mask, "probe-mask-diameter", float, "PX", "its diameter (default N / 2)")
    output = parser.add_argument_group("output")
    text = "write patch_stats.csv, one line per pattern"
    output.add_argument("--log-patch-stats", action="store_true", help=text)
    add_value(output, "patch-stats-limit", int, "K", "only for the first K patterns")
    text = "end with status 3 where the verdict is failed (files are kept)"
    output.add_argument("--strict", action="store_true", help=text)
    text = "print only errors, and a verdict that is not good"
    output.add_argument("--quiet", action="store_true", help=text)
    output.add_argument("--debug", action="store_true", help="show tracebacks and debug messages")
    add_value(parser, "backend", str, "NAME", "pytorch or tensorflow (default: that of the command)")
    add_value(parser, "seed", int, "S", "seed of everything random (default 42)")


def add_pattern_axis(group: Any) -> None:
    """Add the flag that names the axis of the patterns."""
    text = "axis that counts the patterns; by default found from the shape"
    _choice(group, "pattern-axis", (0, 1, 2), text)


def add_file_flags(parser: argparse.ArgumentParser) -> None:
    """Add what the user can say about a data file in metres; the names are those of ``FileOptions``."""
    group = parser.add_argument_group("metres and pixels of Ptychodus, CXI and NeXus files (flags win)")
    text = "Ptychodus product of the diffraction file (default: product.h5 beside diffraction.h5)"
    add_value(group, "product", Path, "FILE", text, dest="product_file")
    add_value(group, "photon-energy", float, "EV", "photon energy in eV", dest="photon_energy_eV")
    text = "distance from sample to detector in m"
    add_value(group, "detector-distance", float, "M", text, dest="detector_distance_m")
    text = "side of a detector pixel in m"
    add_value(group, "detector-pixel", float, "M", text, dest="detector_pixel_m")
    text = "side of an object pixel in m (default: from the three above)"
    add_value(group, "object-pixel", float, "M", text, dest="object_pixel_m")
    _choice(group, "flip-positions", allowed(FlipAxes), "turn the sign of x, y or both")
    _switch(group, "swap-positions", "take x for y, before any flip (default no)")
    faults = parser.add_argument_group("data that look damaged")
    text = "patterns and positions that differ in number: refuse (default) or head (the first of both)"
    _choice(faults, "match-lengths", allowed(MatchLengths), text)
    text = "move a beam that is certainly not on pixel N // 2 there: auto (default) or off"
    _choice(faults, "centre-patterns", allowed(CentrePatterns), text)
    _switch(faults, "keep-frames", "use dark, saturated and broken frames too (default no)")
    _switch(faults, "keep-pixels", "use pixels that look hot, dead or struck too (default no)")
    text = "take the power of the stored probe as photons per frame, as of an empty beam (default no)"
    _switch(faults, "keep-probe-power", text)


def training_parser(prog: str, device: str = "auto") -> argparse.ArgumentParser:
    """Build the parser of the training command; ``dest`` names are those of the settings."""
    parser = Parser(
        prog,
        "Train on a scan (NPZ, Ptychodus HDF5, CXI or NeXus), reconstruct it, and write model, pictures and "
        "data.",
        epilog=EPILOG,
    )
    files = parser.add_argument_group("files")
    add_value(files, "train-data-file", Path, "FILE", "scan to train on (required)")
    add_value(files, "test-data-file", Path, "FILE", "scan that validates the training")
    add_value(files, "output-dir", Path, "DIR", "where everything is written (required)")
    _settings_file(files)
    add_value(files, "resume", Path, "CKPT", "go on from this checkpoint")
    add_value(files, "ptycho-dir", Path, "DIR", "legacy: folder of NPZ files, with --config JSON")
    _training_run(parser.add_argument_group("training"))
    _training_network(parser.add_argument_group("network"))
    _training_loss(parser.add_argument_group("loss"))
    _training_torch(parser.add_argument_group("optimiser, checkpoints, logging"))
    _common(parser, device)
    return parser


def _settings_file(files: Any) -> None:
    add_value(files, "config", Path, "FILE", "settings in YAML; flags win over them")


def _number_of_groups(group: Any, metavar: str, text: str) -> None:
    add_value(group, "n-images n-groups", int, metavar, text, dest="n_groups")


def _training_run(group: Any) -> None:
    add_value(group, "max-epochs nepochs", int, "E", "epochs (default 100)", dest="nepochs")
    _number_of_groups(group, "B", "groups of gridsize^2 patterns to train on (default 512)")
    add_value(group, "gridsize", int, "G", "a group holds G x G patterns (default 2)")
    add_value(group, "batch-size", int, "B", "groups in a batch of cnn (default 4)")
    add_value(group, "neighbor-count K", int, "K", "nearest neighbours a group draws from")
    _switch(group, "enable-oversampling", "allow more groups than scan points")
    add_value(group, "neighbor-pool-size", int, "K", "neighbours that oversampling draws from")
    _switch(group, "sequential-sampling", "take the first scan points, not random ones")
    add_value(group, "nphotons", float, "N", "photons per frame (for params.cfg only)")
    _switch(group, "probe-trainable", "fit the probe to the scan before training (default yes)")
    _switch(group, "intensity-scale-trainable", "train one factor on all amplitudes")


def _training_network(group: Any) -> None:
    names = " or ".join(ARCHITECTURES)
    text = f"{names} (default unrolled: physics steps with learned corrections, much sharper)"
    add_value(group, "architecture", str, "NAME", text)
    add_value(group, "unrolled-steps", int, "K", "steps of unrolled (default 22)")
    add_value(group, "unrolled-width", int, "W", "filters of unrolled (default 24)")
    text = "amplitude (default), or poisson, which suits few photons: what the steps of unrolled descend on"
    add_value(group, "unrolled-likelihood", str, "NAME", text)
    add_value(group, "n-filters-scale", int, "S", "factor on the filters of cnn (default 2)")
    add_value(group, "amp-activation", str, "NAME", "sigmoid, swish, softplus or relu (cnn)")
    _switch(group, "object-big", "merge the patches of a group (cnn, default yes)")
    _switch(group, "probe-big", "let cnn fill the whole patch (default yes)")
    _switch(group, "pad-object", "confine cnn to the middle of the patch (default yes)")
    for place in ("encoder", "bottleneck", "decoder"):
        _switch(group, f"cbam-{place}", f"channel and spatial attention in the {place} of cnn")
    for place in ("encoder", "decoder"):
        _switch(group, f"eca-{place}", f"light channel attention in the {place} of cnn")
    _switch(group, "spatial-decoder", "spatial attention in the decoder of cnn")
    add_value(group, "decoder-spatial-kernel", int, "K", "side of its kernel (default 7)")
    text = "smooth the exit wave that cnn predicts (default 0: not)"
    add_value(group, "gaussian-smoothing-sigma", float, "PX", text)
    text = "pinn: learn from the patterns (default); supervised: learn from Y, label or objectGuess (cnn)"
    _choice(group, "model-type", allowed(ModelType), text)
    _choice(group, "profile", ("ci",), "ci: counts, Poisson loss")


def _training_loss(group: Any) -> None:
    _choice(group, "torch-loss-mode", allowed(LossMode), "main term (default amplitude)")
    add_value(group, "nll-weight", float, "W", "its weight, 0 to 1 (default 1; not of mae)")
    add_value(group, "mae-weight", float, "W", "weight of the mean absolute amplitude error (default 0)")
    add_value(group, "realspace-weight", float, "W", "factor on the two terms below (default 0: none)")
    add_value(group, "tv-weight", float, "W", "weight of the total variation of the object")
    text = "weight of the difference from Y, label or objectGuess"
    add_value(group, "realspace-mae-weight", float, "W", text)


def _training_torch(group: Any) -> None:
    add_value(group, "learning-rate torch-learning-rate", float, "R", "default 1e-3")
    text = "Default (constant), Exponential, Cosine, WarmupCosine, Adaptive or ReduceLROnPlateau"
    add_value(group, "scheduler torch-scheduler", str, "NAME", text)
    text = "batches in an optimiser step (default 1)"
    add_value(group, "accumulate-grad-batches torch-accumulate-grad-batches", int, "K", text)
    add_value(group, "gradient-clip-val", float, "X", "clip gradients to this norm")
    _switch(group, "deterministic", "same numbers on every run (default yes)")
    _switch(group, "torch-deterministic", argparse.SUPPRESS, "deterministic")
    text = f"{', '.join(LOGGERS)} (default mlflow where it is installed, else csv)"
    add_value(group, "logger torch-logger", str, "NAME", text)
    group.add_argument("--disable-mlflow", action="store_true", help="same as --logger none")
    _switch(group, "enable-checkpointing", "write checkpoints (default yes)")
    group.add_argument(
        "--disable-checkpointing", dest="enable_checkpointing", action="store_false", help="write none"
    )
    text = "best checkpoints to keep (default 1)"
    add_value(group, "checkpoint-save-top-k torch-checkpoint-save-top-k", int, "K", text)
    text = "what decides the best: val_loss (default) or train_loss"
    add_value(group, "checkpoint-monitor", str, "NAME", text, dest="checkpoint_monitor_metric")
    add_value(group, "checkpoint-mode", str, "min|max", "which end is best (default min)")
    add_value(group, "early-stop-patience", int, "E", "epochs without gain (default 100)")


def inference_parser(prog: str, device: str = "auto") -> argparse.ArgumentParser:
    """Build the parser of the inference command, as :func:`training_parser`."""
    parser = Parser(
        prog,
        "Reconstruct a scan (NPZ, Ptychodus HDF5, CXI or NeXus) with a trained model: amplitude and phase "
        "pictures, and the object.",
        epilog=EPILOG,
    )
    files = parser.add_argument_group("files")
    text = "output folder of a training, a model file, or pretrained: the network that comes with the package"
    add_value(files, "model-path", Path, "PATH", text)
    add_value(files, "test-data", Path, "FILE", "scan to reconstruct", dest="test_data_file")
    add_value(files, "output-dir", Path, "DIR", "where everything is written")
    text = "also write a Ptychodus product (.h5, .hdf5) or a CXI file (.cxi)"
    add_value(files, "export", Path, "FILE", text)
    _settings_file(files)
    _reconstruction(parser.add_argument_group("reconstruction"))
    _refinement(parser.add_argument_group("refinement by the forward model"))
    legacy = parser.add_argument_group("legacy: a model from an MLflow run")
    add_value(legacy, "run-id", str, "ID", "MLflow run of a training")
    add_value(legacy, "infer-dir", Path, "DIR", "folder of NPZ files to reconstruct")
    add_value(legacy, "file-index", int, "K", "which of its files (default 0)")
    add_value(legacy, "mlruns", Path, "DIR", "local MLflow store (default ./mlruns)")
    _common(parser, device)
    return parser


def _reconstruction(group: Any) -> None:
    _number_of_groups(group, "K", "use K random patterns (default: all)")
    text = "groups given to cnn at a time"
    add_value(group, "inference-batch-size torch-inference-batch-size", int, "B", text)
    text = "how cnn patches are merged (default probe)"
    _choice(group, "patch-weighting", allowed(PatchWeighting), text)
    _switch(group, "varpro-scaling", "scale the object so that it fits the counts best (default no)")
    text = (
        "fit the probe of the file to the scan before the network sees it (default: a probe is fitted on any "
        "scan but that of the training)"
    )
    _switch(group, "fit-probe", text)
    text = (
        "try the eight orientations of the positions on a part of the scan, say which fits and by how much, "
        "and use it where that is clear (default no)"
    )
    _switch(group, "find-orientation", text)
    add_value(group, "phase-vmin", float, "RAD", "lower end of the phase colours")
    add_value(group, "phase-vmax", float, "RAD", "upper end of the phase colours")


def _refinement(group: Any) -> None:
    text = "refine the object with at most K steps (default 0: none); stops when converged"
    add_value(group, "refine", int, "K", text, dest="refine_steps")
    _switch(group, "refine-probe", "refine the probe too, all modes (default no)")
    _switch(group, "refine-positions", "refine the scan positions too (default no)")
    _switch(group, "refine-frames", "refine one intensity factor per frame too (default no)")
    text = "what the steps descend on (default amplitude)"
    _choice(group, "refine-likelihood", allowed(RefineLikelihood), text)
    text = (
        "total-variation smoothing per step, such as 0.01 with the Poisson likelihood at low dose (default "
        "0: none)"
    )
    add_value(group, "refine-tv", float, "T", text)
    text = "object to start the refinement from (default network)"
    _choice(group, "init", allowed(RefineStart), text, dest="refine_start")
