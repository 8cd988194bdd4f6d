"""A backend by name, and the trained model that it loads."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from ptycho.config import choices
from ptycho.config.architectures import architecture_of
from ptycho.config.config import ModelConfig, PyTorchExecutionConfig, TrainingConfig
from ptycho.config.effects import MASK, changed
from ptycho.data.prepare import masked
from ptycho.data.scan import Scan
from ptycho.errors import BundleError, ConfigError, DataError, MissingPackageError
from ptycho.networks.architectures import architecture_table, weight_shapes
from ptycho.networks.bundle import Bundle
from ptycho.process.progress import Progress
from ptycho.run.job import Engine

ENGINES = {
    "pytorch": ("ptycho_torch.engine", ("torch", "lightning", "tensordict"), "torch"),
    "tensorflow": ("ptycho.tf.engine", ("tensorflow",), "tensorflow"),
}
"""Backend name -> engine module, packages it needs, and the extra that installs them."""
PYTORCH_CALLS = {name: f"ptycho_torch.{name}" for name in ("config_bridge", "train", "inference")}
"""Modules with the calls that only PyTorch has: its own settings, folders of scans, models of MLflow runs."""
LIGHTNING_MISSING = (
    "PyTorch backend requires Lightning. Install with: pip install -e .[torch] "
    "(without a checkout: pip install 'ptychopinn[torch]')"
)
"""The sentence that clients look for when the PyTorch extra is not installed."""
FORMER_BUNDLE = "wts-former.h5.zip"
"""What the bundle of a former training run is called once a later one in the same folder was cut short."""
BEST, LAST = (
    {backend: f"{choices.CHECKPOINT_FOLDER}/{name}" for backend, name in names.items()}
    for names in (choices.BEST_CHECKPOINT, choices.LAST_CHECKPOINT)
)
"""Backend -> where a training run keeps its best epoch, and its last finished one."""
MODEL_SEARCH = {
    "pytorch": (choices.BUNDLE_NAME, *BEST.values(), LAST["pytorch"], *choices.PYTORCH_WEIGHTS),
    "tensorflow": (choices.BUNDLE_NAME, BEST["tensorflow"], LAST["tensorflow"]),
}
"""Backend -> where a training folder keeps its model, the best epoch first. Either reads a bundle."""
OF_WEIGHTS = ("architecture", "unrolled_width", "unrolled_likelihood")
"""Settings that weights belong to, beside those that their shapes tell."""
PRETRAINED_FILE = Path(__file__).parents[1] / "weights" / "unrolled_poisson.h5.zip"
"""Network trained on simulated scans (``python -m ptycho_torch.pretrain``)."""


def require_backend(backend: str) -> None:
    """Raise ``ConfigError`` for an unknown backend, ``MissingPackageError`` with the install command for one
    whose packages are not installed; imports none of them."""
    if backend not in ENGINES:
        raise ConfigError(
            f"backend: unknown name (got {backend!r}, expected one of {', '.join(ENGINES)}). Choose one."
        )
    module, packages, extra = ENGINES[backend]
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if backend == "pytorch" and missing:
        raise MissingPackageError(LIGHTNING_MISSING)
    if missing or importlib.util.find_spec(module) is None:
        raise MissingPackageError(
            f"backend {backend}: not installed (missing {', '.join(missing) or module}). "
            f"Install with: pip install -e .[{extra}] (without a checkout: pip install 'ptychopinn[{extra}]')"
        )


def load_engine(backend: str) -> Engine:
    """Import the engine of a backend; errors as :func:`require_backend`."""
    require_backend(backend)
    engine: Any = importlib.import_module(ENGINES[backend][0])
    return engine


def pytorch_calls(name: str) -> ModuleType:
    """Import a module of ``PYTORCH_CALLS`` by its key."""
    return importlib.import_module(PYTORCH_CALLS[name])


def resume_advice(config: TrainingConfig, *, checkpoints: bool, resumed: Path | None, since_s: float) -> str:
    """Return one line on how an interrupted training run can be continued; a checkpoint older than
    ``since_s`` [s since the epoch] is not its own, ``resumed`` is the one that it continued."""
    last = Path(config.output_dir) / LAST[config.backend]
    if checkpoints and last.is_file() and last.stat().st_mtime >= since_s:
        return f"the last finished epoch is in {last}; --resume {last} continues it"
    if not checkpoints:
        return "this run writes no checkpoint, so there is nothing to resume"
    if resumed is not None:
        return f"no further epoch was finished; --resume {resumed} starts from the same checkpoint again"
    return "no epoch was finished, so there is nothing to resume"


@contextmanager
def replacing_model(config: TrainingConfig, since_s: float) -> Iterator[None]:
    """Put a former model aside where the run that began at ``since_s`` [s since the epoch] ends without its
    own. The folder would answer with the former model, although its checkpoints are those of the new run."""
    try:
        yield
    except BaseException:
        bundle = Path(config.output_dir) / choices.BUNDLE_NAME
        last = Path(config.output_dir) / LAST[config.backend]
        if bundle.is_file() and last.is_file() and last.stat().st_mtime >= since_s:
            bundle.replace(bundle.with_name(FORMER_BUNDLE))
        raise


def initial_network(engine: Engine, config: TrainingConfig, progress: Progress) -> Bundle | None:
    """Return the network that a training begins with; None where its weights are drawn from the seed. Raise
    ``BundleError`` or ``ConfigError`` where one was asked for that does not fit, and say so where nobody
    asked."""
    asked, hidden = config.init_weights, config.torch_loss_mode == choices.HIDDEN
    if asked == choices.NO_NETWORK or (asked is None and not hidden):
        return None
    path = find_model(Path(asked or choices.PRETRAINED), config.backend)
    bundle = engine.to_bundle(engine.load(path))
    own, found = config.model, bundle.model
    name = next((name for name in OF_WEIGHTS if getattr(found, name) != getattr(own, name)), None)
    same = weight_shapes(architecture_table(found)) == weight_shapes(architecture_table(own))
    if name is None and same:
        return bundle
    other = f"{name} {getattr(found, name)}" if name else "layers of other sizes"
    if asked is None:
        progress.note(f"the training begins with weights from the seed: the pre-trained network has {other}")
        return None
    raise ConfigError(
        f"--init-weights: the network of {path} does not fit (got {other}, expected "
        f"{getattr(own, name) if name else 'the sizes of the settings'}). Train with its settings, or leave "
        "the flag out."
    )


def choose_device(engine: Engine, execution: PyTorchExecutionConfig, progress: Progress) -> None:
    """Raise ``ConfigError`` for a device that the machine does not have; say where a GPU stands idle."""
    found = engine.resolve_accelerator(execution.accelerator)
    if found == "cpu" and engine.resolve_accelerator("auto") != "cpu":
        progress.note("a GPU is present and not used: the CPU computes; pass --device cuda to use the GPU")


def find_model(path: Path, backend: str = "pytorch") -> Path:
    """Return the file of a trained model: of a training folder, named directly, or ``pretrained``. Raise
    :class:`ModelNotFoundError`, which lists where it was looked for."""
    if str(path) == choices.PRETRAINED and not path.exists():
        return PRETRAINED_FILE
    if path.is_file():
        return path
    for name in MODEL_SEARCH[backend]:
        if (path / name).is_file():
            return path / name
    if (path / "manifest.json").is_file():
        return path
    looked = ", ".join(MODEL_SEARCH[backend])
    problem = "no model in this folder" if path.is_dir() else "no such file or folder"
    named = "a .ckpt file" if backend == "pytorch" else "a bundle"
    raise ModelNotFoundError(
        f"{path}: {problem} (expected one of {looked}, or {named} named directly). "
        "Pass --model_path with the --output_dir of a training run."
    )


class ModelNotFoundError(BundleError, FileNotFoundError):
    """There is no trained model where one was looked for."""


def check_size(scan: Scan, trained_px: int, where: str) -> None:
    """Raise ``DataError`` where patterns are not ``trained_px`` pixels wide; ``where`` names what they have
    to fit."""
    if scan.n_px != trained_px:
        raise DataError(
            f"{scan.name}: the patterns do not fit {where} (got N={scan.n_px}, expected N={trained_px}). "
            "Crop or pad the patterns, or train on patterns of this size."
        )


def check_near_field(scan: Scan, model: ModelConfig) -> None:
    """Raise ``ConfigError`` where a network smooths exit waves (eq. 15), which only a far field allows."""
    if scan.fresnel_number is not None and model.gaussian_smoothing_sigma > 0:
        raise ConfigError(
            f"{scan.name}: exit waves of a near field are not smoothed (got gaussian_smoothing_sigma "
            f"{model.gaussian_smoothing_sigma:g} px, expected 0). Leave out --gaussian-smoothing-sigma."
        )


def fitted_model(engine: Engine, model: Any, scan: Scan, where: str) -> Any:
    """Return a model for the pattern size of a scan: ``unrolled`` that was trained without a probe takes any,
    others raise as :func:`check_size`, or :func:`check_near_field`."""
    bundle = engine.to_bundle(model)
    check_near_field(scan, bundle.model)
    if not architecture_of(bundle.model).whole_canvas or bundle.probe.any():
        check_size(scan, bundle.model.N, where)
    if scan.n_px == bundle.model.N:
        return model
    return engine.from_bundle(replace(bundle, model=replace(bundle.model, N=scan.n_px), probe=0 * scan.probe))


def masked_model(engine: Engine, model: Any, asked: ModelConfig, stated: Collection[str] = ()) -> Any:
    """Return a model with the probe mask that an inference asks for, by a value or a name in ``stated``."""
    if not {*changed(asked, MASK), *stated}.intersection(MASK):
        return model
    bundle = engine.to_bundle(model)
    settings = replace(bundle.model, **{name: getattr(asked, name) for name in MASK})
    if settings == bundle.model:
        return model
    start = None if bundle.probe_start is None else masked(bundle.probe_start, settings)
    probe = masked(bundle.probe, settings)
    return engine.from_bundle(replace(bundle, model=settings, probe=probe, probe_start=start))
