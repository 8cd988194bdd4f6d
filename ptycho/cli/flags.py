"""The flags of training and inference, the same for every backend and every entry point.

A flag that is not given leaves no trace in the parsed values, so that a settings file and the defaults can
speak. Flag names here have dashes; users may type underscores.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from ptycho.cli.console import Parser
from ptycho.config import choices
from ptycho.config.architectures import ARCHITECTURES

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


class Files(argparse.Action):
    """Keeps one file as it is, several as a list."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option: str | None = None
    ) -> None:
        """Take the words of the flag."""
        setattr(namespace, self.dest, values[0] if len(values) == 1 else values)


class Flags:
    """Adds flags to a parser, or to a new group of it; what a flag says is kept under its first name."""

    def __init__(self, parser: Any, title: str | None = None) -> None:
        self.group = parser if title is None else parser.add_argument_group(title)

    def __call__(
        self, names: str, kind: Callable[[str], Any], metavar: str | None, text: str, **more: Any
    ) -> None:
        """Add a flag that takes a value; ``names`` are its spellings, ``more`` is for argparse."""
        # Without a type a word stays as it is.
        more |= {} if kind is str else {"type": kind}
        flags = [f"--{name}" for name in names.split()]
        self.group.add_argument(*flags, metavar=metavar, help=text, **more)

    def choice(self, names: str, choice: object, text: str, **more: Any) -> None:
        """Add a flag that takes one of the values of a ``Literal``."""
        values = choices.allowed(choice)
        self(names, type(values[0]), None, text, choices=values, **more)

    def mark(self, name: str, text: str, action: str = "store_true", **more: Any) -> None:
        """Add a flag that takes no value."""
        self.group.add_argument(f"--{name}", action=action, help=text, **more)

    def switch(self, name: str, text: str, dest: str | None = None) -> None:
        """Add ``--name``, ``--name true|false`` and ``--no-name``."""
        dest = dest or name.replace("-", "_")
        self(name, _yes_no, "true|false", text, dest=dest, nargs="?", const=True)
        self.mark(f"no-{name}", argparse.SUPPRESS, "store_false", dest=dest)


def accelerator_text(default: str) -> str:
    """Return the help on an accelerator."""
    return f"auto (the GPU when there is one, else the CPU), cpu, gpu, cuda or mps (default {default})"


def _common(parser: argparse.ArgumentParser, device: str) -> None:
    """Add what both commands have."""
    add = Flags(parser, "machine")
    add("accelerator torch-accelerator", str, "NAME", accelerator_text(device))
    add("device", str, "NAME", "older name of --accelerator: cpu or cuda")
    add("num-workers torch-num-workers", int, "K", "processes that prepare batches (default 0)")
    add = Flags(parser, "what the patterns hold")
    text = "counts or amplitude; by default decided from the file and printed"
    add("measurement-domain", str, "NAME", text)
    add("scale-contract-version", str, "NAME", "ci_intensity_v2 (counts) or legacy_v1 (amplitude)")
    add("probe-key", str, "KEY", "key of the file that holds the probe (default probeGuess)")
    add_pattern_axis(add)
    add("n-subsample", int, "M", "use M randomly chosen patterns of the file")
    add("subsample-seed", int, "S", "seed of that choice")
    add_file_flags(parser)
    add = Flags(parser, "probe mask")
    add.switch("probe-mask", "multiply the probe with a soft disc (default no)")
    add("probe-mask-sigma", float, "PX", "softness of its edge (default 1)")
    add("probe-mask-diameter", float, "PX", "its diameter (default N / 2)")
    add = Flags(parser, "output")
    add.switch(
        "unwrap", "show the phase without jumps of a full turn, inside the scanned region (default no)"
    )
    text = "show the phase without its plane, which a probe off the centre leaves free (default no)"
    add.switch("remove-ramp", text)
    add.mark("log-patch-stats", "write patch_stats.csv, one line per pattern")
    add("patch-stats-limit", int, "K", "only for the first K patterns")
    add.mark("strict", "end with status 3 where the verdict is failed (files are kept)")
    add.mark("quiet", "print only errors, and a verdict that is not good")
    add.mark("debug", "show tracebacks and debug messages")
    add = Flags(parser)
    add("backend", str, "NAME", "pytorch or tensorflow (default: that of the command)")
    add("seed", int, "S", "seed of everything random (default 42)")


def add_pattern_axis(add: Flags) -> None:
    """Add the flag that names the axis of the patterns."""
    text = "axis that counts the patterns; by default found from the shape"
    add.choice("pattern-axis", Literal[0, 1, 2], text)


def add_file_flags(parser: argparse.ArgumentParser) -> None:
    """Add what the user can say about a data file in metres; the names are those of ``FileOptions``."""
    add = Flags(parser, "metres and pixels of Ptychodus, CXI and NeXus files (flags win)")
    text = "Ptychodus product of the diffraction file (default: product.h5 beside diffraction.h5)"
    add("product", Path, "FILE", text, dest="product_file")
    add("photon-energy", float, "EV", "photon energy in eV", dest="photon_energy_eV")
    add("detector-distance", float, "M", "distance from sample to detector in m", dest="detector_distance_m")
    add("detector-pixel", float, "M", "side of a detector pixel in m", dest="detector_pixel_m")
    text = "side of an object pixel in m (default: from the three above)"
    add("object-pixel", float, "M", text, dest="object_pixel_m")
    text = "far or near: where the detector is (default: as the file says, else far)"
    add.choice("propagation", choices.Propagation, text)
    text = "near field: distance from focus to sample in m (default: a parallel beam)"
    add("focus-distance", float, "M", text, dest="focus_distance_m")
    text = "near field: Fresnel number of an object pixel (default: from the distances)"
    add("fresnel-number", float, "F", text)
    add.choice("flip-positions", choices.FlipAxes, "turn the sign of x, y or both")
    add.switch("swap-positions", "take x for y, before any flip (default no)")
    add = Flags(parser, "data that look damaged")
    text = "patterns and positions that differ in number: refuse (default) or head (the first of both)"
    add.choice("match-lengths", choices.MatchLengths, text)
    text = "move a beam that is certainly not on pixel N // 2 there: auto (default) or off"
    add.choice("centre-patterns", choices.CentrePatterns, text)
    text = (
        "bad pixels, nonzero is bad, beside those of the file: .npy or .npz, (N, N) or one for each pattern"
    )
    add("mask", Path, "FILE", text, dest="mask_file")
    add("saturation", float, "COUNTS", "stored values from here on are no measurement (default: found)")
    text = "parts of a detector pixel along each axis that it adds (default: as the file says, else 1)"
    add("detector-upsampling", int, "K", text)
    text = "side of the window of the probe, in patterns, at most K (default: that of its array)"
    add("probe-window", int, "M", text)
    add.switch("keep-frames", "use dark, saturated and broken frames too (default no)")
    add.switch("keep-pixels", "use pixels that look hot, dead or struck too (default no)")
    text = "take the power of the stored probe as photons per frame, as of an empty beam (default no)"
    add.switch("keep-probe-power", text)


def training_parser(prog: str, device: str = "auto") -> argparse.ArgumentParser:
    """Build the parser of the training command; ``dest`` names are those of the settings."""
    parser = Parser(
        prog,
        "Train on a scan (NPZ, Ptychodus HDF5, CXI or NeXus), reconstruct it, and write model, pictures and "
        "data.",
        epilog=EPILOG,
    )
    add = Flags(parser, "files")
    text = "scan to train on (required); several, each of its own object, train one network"
    add("train-data-file", Path, "FILE", text, nargs="+", action=Files)
    add("test-data-file", Path, "FILE", "scan that validates the training")
    add("output-dir", Path, "DIR", "where everything is written (required)")
    add("config", Path, "FILE", "settings in YAML; flags win over them")
    add("resume", Path, "CKPT", "go on from this checkpoint")
    add("ptycho-dir", Path, "DIR", "legacy: folder of NPZ files, with --config JSON")
    _training_run(Flags(parser, "training"))
    _training_network(Flags(parser, "network"))
    _training_loss(Flags(parser, "loss"))
    _training_torch(Flags(parser, "optimiser, checkpoints, logging"))
    _common(parser, device)
    return parser


def _training_run(add: Flags) -> None:
    text = "epochs (default 12 with hidden pixels, else 100)"
    add("max-epochs nepochs", int, "E", text, dest="nepochs")
    text = "groups of gridsize^2 patterns to train on (default 512; all with hidden pixels)"
    add("n-images n-groups", int, "B", text, dest="n_groups")
    add("gridsize", int, "G", "a group holds G x G patterns (default 2)")
    add("batch-size", int, "B", "groups in a batch of cnn (default 4)")
    add("neighbor-count K", int, "K", "nearest neighbours a group draws from")
    add.switch("enable-oversampling", "allow more groups than scan points")
    add("neighbor-pool-size", int, "K", "neighbours that oversampling draws from")
    add.switch("sequential-sampling", "take the first scan points, not random ones")
    add("nphotons", float, "N", "photons per frame (for params.cfg only)")
    add.switch("probe-trainable", "fit the probe to the scan before training (default yes)")
    add.switch("intensity-scale-trainable", "train one factor on all amplitudes")


def _training_network(add: Flags) -> None:
    names = " or ".join(ARCHITECTURES)
    text = f"{names} (default unrolled: physics steps with learned corrections, much sharper)"
    add("architecture", str, "NAME", text)
    add("unrolled-steps", int, "K", "steps of unrolled (default 62 with hidden pixels, else 22)")
    add("unrolled-width", int, "W", "filters of unrolled (default 24)")
    text = (
        "amplitude, or poisson, which suits few photons: what the steps of unrolled descend on (default "
        "poisson with hidden pixels, else amplitude)"
    )
    add("unrolled-likelihood", str, "NAME", text)
    text = (
        "network that the training begins with: a training folder or model file, pretrained, or none for "
        "weights drawn from the seed (default pretrained with hidden pixels, where it fits, else none)"
    )
    add("init-weights", str, "PATH", text)
    add("n-filters-scale", int, "S", "factor on the filters of cnn (default 2)")
    add("amp-activation", str, "NAME", "sigmoid, swish, softplus or relu (cnn)")
    add.switch("object-big", "merge the patches of a group (cnn, default yes)")
    add.switch("probe-big", "let cnn fill the whole patch (default yes)")
    add.switch("pad-object", "confine cnn to the middle of the patch (default yes)")
    for place in ("encoder", "bottleneck", "decoder"):
        add.switch(f"cbam-{place}", f"channel and spatial attention in the {place} of cnn")
    for place in ("encoder", "decoder"):
        add.switch(f"eca-{place}", f"light channel attention in the {place} of cnn")
    add.switch("spatial-decoder", "spatial attention in the decoder of cnn")
    add("decoder-spatial-kernel", int, "K", "side of its kernel (default 7)")
    add("gaussian-smoothing-sigma", float, "PX", "smooth the exit wave that cnn predicts (default 0: not)")
    text = "pinn: learn from the patterns (default); supervised: learn from Y, label or objectGuess (cnn)"
    add.choice("model-type", choices.ModelType, text)
    add.choice("profile", Literal["ci"], "ci: counts, Poisson loss")


def _training_loss(add: Flags) -> None:
    text = (
        "main term; hidden: pixels that the network is not shown judge it (default hidden for unrolled, else "
        "amplitude)"
    )
    add.choice("torch-loss-mode", choices.LossMode, text)
    add("nll-weight", float, "W", "its weight, 0 to 1 (default 1; not of mae)")
    add("mae-weight", float, "W", "weight of the mean absolute amplitude error (default 0)")
    add("realspace-weight", float, "W", "factor on the two terms below (default 0: none)")
    add("tv-weight", float, "W", "weight of the total variation of the object")
    add("realspace-mae-weight", float, "W", "weight of the difference from Y, label or objectGuess")


def _training_torch(add: Flags) -> None:
    add("learning-rate torch-learning-rate", float, "R", "default 2e-4 for hidden from a network, else 1e-3")
    text = "Default (constant), Exponential, Cosine, WarmupCosine, Adaptive or ReduceLROnPlateau"
    add("scheduler torch-scheduler", str, "NAME", text)
    text = "batches in an optimiser step (default 1)"
    add("accumulate-grad-batches torch-accumulate-grad-batches", int, "K", text)
    add("gradient-clip-val", float, "X", "clip gradients to this norm")
    add.switch("deterministic", "same numbers on every run (default yes)")
    add.switch("torch-deterministic", argparse.SUPPRESS, "deterministic")
    text = f"{', '.join(LOGGERS)} (default mlflow where it is installed, else csv)"
    add("logger torch-logger", str, "NAME", text)
    add.mark("disable-mlflow", "same as --logger none")
    add.switch("enable-checkpointing", "write checkpoints (default yes)")
    add.mark("disable-checkpointing", "write none", "store_false", dest="enable_checkpointing")
    add("checkpoint-save-top-k torch-checkpoint-save-top-k", int, "K", "best checkpoints to keep (default 1)")
    text = "what decides the best: val_loss (default) or train_loss"
    add("checkpoint-monitor", str, "NAME", text, dest="checkpoint_monitor_metric")
    add("checkpoint-mode", str, "min|max", "which end is best (default min)")
    add("early-stop-patience", int, "E", "epochs without gain (default 5 with hidden pixels, else 100)")


def inference_parser(prog: str, device: str = "auto") -> argparse.ArgumentParser:
    """Build the parser of the inference command, as :func:`training_parser`."""
    parser = Parser(
        prog,
        "Reconstruct a scan (NPZ, Ptychodus HDF5, CXI or NeXus) with a trained model: amplitude and phase "
        "pictures, and the object.",
        epilog=EPILOG,
    )
    add = Flags(parser, "files")
    text = "output folder of a training run, a model file, or pretrained: the network of the package"
    add("model-path", Path, "PATH", text)
    text = "scan to reconstruct; several of one sample become one object, in the frame of the first"
    add("test-data", Path, "FILE", text, dest="test_data_file", nargs="+", action=Files)
    add("output-dir", Path, "DIR", "where everything is written")
    add("export", Path, "FILE", "also write a Ptychodus product (.h5, .hdf5) or a CXI file (.cxi)")
    add("config", Path, "FILE", "settings in YAML; flags win over them")
    _reconstruction(Flags(parser, "reconstruction"))
    _refinement(Flags(parser, "refinement by the forward model"))
    add = Flags(parser, "legacy: a model from an MLflow run")
    add("run-id", str, "ID", "MLflow run of a training run")
    add("infer-dir", Path, "DIR", "folder of NPZ files to reconstruct")
    add("file-index", int, "K", "which of its files (default 0)")
    add("mlruns", Path, "DIR", "local MLflow store (default ./mlruns)")
    _common(parser, device)
    return parser


def _reconstruction(add: Flags) -> None:
    add("n-images n-groups", int, "K", "use K random patterns (default: all)", dest="n_groups")
    add("inference-batch-size torch-inference-batch-size", int, "B", "groups given to cnn at a time")
    add.choice("patch-weighting", choices.PatchWeighting, "how cnn patches are merged (default probe)")
    add.switch("varpro-scaling", "scale the object so that it fits the counts best (default no)")
    text = (
        "fit the probe of the file to the scan before the network sees it (default: a probe is fitted on any "
        "scan but that of the training)"
    )
    add.switch("fit-probe", text)
    text = (
        "find offset and intensity of every further scan from what it shares with another one; false: as the "
        "files say (default yes)"
    )
    add.switch("align-scans", text)
    text = (
        "try the eight orientations of the positions on a part of the scan, say which fits and by how much, "
        "and use it where that is clear (default no)"
    )
    add.switch("find-orientation", text)
    text = (
        "one sigma of amplitude and phase of every pixel, from the Fisher information of the photon counts, "
        "or from counts that are drawn and refined again: bootstrap (default: none)"
    )
    add.choice("uncertainty", choices.Uncertainty, text, nargs="?", const="fisher")
    add("phase-vmin", float, "RAD", "lower end of the phase colours")
    add("phase-vmax", float, "RAD", "upper end of the phase colours")


def _refinement(add: Flags) -> None:
    text = (
        "let pixels that take no part choose probe, network or plain iterations and their smoothing, "
        "where no refinement is asked for (default auto)"
    )
    add.choice("select", choices.Select, text)
    text = "refine the object with at most K steps (default 0: none); stops when converged"
    add("refine", int, "K", text, dest="refine_steps")
    add.switch("refine-probe", "refine the probe too, all modes (default no)")
    add.switch("refine-positions", "refine the scan positions too (default no)")
    text = "refine scale, rotation and shear of the whole raster, not each position (default no)"
    add.switch("refine-affine", text)
    add.switch("refine-frames", "refine one intensity factor per frame too (default no)")
    text = "refine what the detector counts beside the light too, smooth over it (default no)"
    add.switch("refine-background", text)
    text = (
        "with --refine-probe: refine P incoherent modes of the probe, as for a stage that moves during the "
        "exposure (default: as many as the file has)"
    )
    add("probe-modes", int, "P", text)
    text = (
        "with --refine-probe: modes by which the probe changes from pattern to pattern, as one that drifts "
        "or jumps (default 0)"
    )
    add("probe-variation", int, "K", text)
    text = "what the steps descend on (default amplitude)"
    add.choice("refine-likelihood", choices.RefineLikelihood, text)
    text = (
        "total-variation smoothing per step, such as 0.01 with the Poisson likelihood at low dose (default "
        "0: none)"
    )
    add("refine-tv", float, "T", text)
    text = "object to start the refinement from; difference-map also leaves a wrong minimum (default network)"
    add.choice("init start", choices.RefineStart, text, dest="refine_start")
