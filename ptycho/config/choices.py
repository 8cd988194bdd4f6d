"""Allowed values of the settings that are choices, and the sentence that names the closest one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, get_args

BUNDLE_NAME = "wts.h5.zip"
CHECKPOINT_FOLDER = "checkpoints"
BEST_CHECKPOINT = {"pytorch": "best-checkpoint.ckpt", "tensorflow": "best-checkpoint.h5.zip"}
LAST_CHECKPOINT = {"pytorch": "last.ckpt", "tensorflow": "last.h5.zip"}
"""Backend -> what a training run calls the checkpoint of its best epoch, and of the last finished one."""
CHECKPOINT_NAMES: tuple[str, ...] = (*BEST_CHECKPOINT.values(), *LAST_CHECKPOINT.values())
"""All of them, the best epoch before the last."""
PYTORCH_WEIGHTS = ("wts.pt", "model.pt")
"""Weights that PyTorch programs save."""
PRETRAINED = "pretrained"
"""What ``model_path`` says for the network that comes with the package."""

COMMAND_DEFAULTS: dict[str, Any] = {
    "nepochs": 100,
    "n_groups": 512,
    "gridsize": 2,
    "batch_size": 4,
    "neighbor_count": 6,
    "architecture": "unrolled",
    "torch_loss_mode": "amplitude",
    "intensity_scale_trainable": False,
    "probe_trainable": True,
    "output_dir": None,
    "nphotons": 1e6,
}
"""Defaults of the training commands where those of the dataclasses belong to other callers."""
HIDDEN = "hidden"
"""The loss of pixels that a network is not shown."""
HIDDEN_DEFAULTS: dict[str, Any] = {
    "torch_loss_mode": HIDDEN,
    "nepochs": 12,
    "learning_rate": 2e-4,
    "unrolled_steps": 62,
    "unrolled_likelihood": "poisson",
}
"""Defaults of a training command whose network learns from hidden pixels, as one of the whole canvas does.
The rate is for one that has learned before: a higher one soon unlearns that, unseen by hidden pixels."""
HIDDEN_PATIENCE = 5
"""Epochs without gain after which such a training ends where nobody says otherwise."""
NO_NETWORK = "none"
"""What ``init_weights`` says for weights drawn from the seed."""
OTHER_DEFAULTS: dict[str, tuple[Any, ...]] = {
    "nphotons": (1e5,),
    "lr_warmup_epochs": (5,),
    "logger_backend": (None,),
    "torch_loss_mode": (HIDDEN,),
    "learning_rate": (HIDDEN_DEFAULTS["learning_rate"],),
}
"""Further values that stand for "not chosen": dose and warm-up of ``ptycho_torch``, no log, and what hidden
pixels change."""

ModelType = Literal["pinn", "supervised"]
AmpActivation = Literal["sigmoid", "swish", "softplus", "relu"]
InputTransform = Literal["none", "sqrt", "log1p", "instancenorm"]
OutputMode = Literal["real_imag", "amp_phase_logits", "amp_phase"]
Backend = Literal["tensorflow", "pytorch"]
LossMode = Literal["poisson", "mae", "amplitude", "hidden"]
ClipAlgorithm = Literal["norm", "value", "agc"]
Optimizer = Literal["adam", "adamw", "sgd"]
Scheduler = Literal[
    "Default", "Exponential", "MultiStage", "Adaptive", "Cosine", "WarmupCosine", "ReduceLROnPlateau"
]
PatchWeighting = Literal["probe", "uniform"]
RefineLikelihood = Literal["amplitude", "poisson"]
RefineStart = Literal["network", "flat", "difference-map"]
Uncertainty = Literal["fisher", "bootstrap"]
Select = Literal["auto", "off"]
MeasurementDomain = Literal["counts", "amplitude"]
Propagation = Literal["far", "near"]
FlipAxes = Literal["x", "y", "xy"]
MatchLengths = Literal["refuse", "head"]
CentrePatterns = Literal["auto", "off"]
Accelerator = Literal["auto", "cpu", "gpu", "cuda", "mps"]
Precision = Literal["32-true", "16-mixed", "bf16-mixed"]
LoggerBackend = Literal["csv", "tensorboard", "mlflow"]
GateMode = Literal["shared", "per_block"]
CheckpointMode = Literal["min", "max"]


def allowed(choice: object) -> tuple[str, ...]:
    """Return the values of a ``Literal`` of this module, in declaration order."""
    return get_args(choice)


def closest_hint(name: object, known: Iterable[str]) -> str:
    """Return ``"Did you mean 'x'?"`` for the nearest known name, or a sentence that lists them all."""
    import difflib

    names = sorted(known)
    # Case is the commonest slip, so compare without it and answer with the true spelling.
    spelling = {candidate.lower(): candidate for candidate in names}
    found = difflib.get_close_matches(str(name).lower(), list(spelling), n=1)
    return f"Did you mean {spelling[found[0]]!r}?" if found else f"Use one of: {', '.join(names)}."
