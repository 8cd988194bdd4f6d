"""A backend by name, and the trained model that it loads."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from ptycho.config.choices import (
    BEST_CHECKPOINT,
    BUNDLE_NAME,
    CHECKPOINT_FOLDER,
    LAST_CHECKPOINT,
    PRETRAINED,
    PYTORCH_WEIGHTS,
)
from ptycho.config.config import (
    ModelConfig,
    PyTorchExecutionConfig,
    TrainingConfig,
    validate_execution_config,
    validate_training_config,
)
from ptycho.config.effects import changed, validate_effects
from ptycho.config.inference_effects import MASK
from ptycho.data.probe_mask import masked
from ptycho.data.scan import Scan
from ptycho.errors import BundleError, ConfigError, DataError, MissingPackageError
from ptycho.process.progress import Progress

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
    {backend: f"{CHECKPOINT_FOLDER}/{name}" for backend, name in names.items()}
    for names in (BEST_CHECKPOINT, LAST_CHECKPOINT)
)
"""Backend -> where a training run keeps its best epoch, and its last finished one."""
MODEL_SEARCH = {
    "pytorch": (BUNDLE_NAME, BEST["pytorch"], BEST["tensorflow"], LAST["pytorch"], *PYTORCH_WEIGHTS),
    "tensorflow": (BUNDLE_NAME, BEST["tensorflow"], LAST["tensorflow"]),
}
"""Backend -> where a training folder keeps its model; the first one found is taken, the best epoch before the
last. Either reads a bundle."""
PRETRAINED_FILE = Path(__file__).parents[1] / "weights" / "unrolled_poisson.h5.zip"
"""Network trained on simulated scans (``python -m ptycho_torch.pretrain``)."""


def require_backend(backend: str) -> None:
    """Refuse a backend whose packages are not installed; imports none of them.

    Parameters
    ----------
    backend : {'pytorch', 'tensorflow'}
        Name of the backend.

    Raises
    ------
    ConfigError
        If there is no such backend.
    MissingPackageError
        If a package is missing; the message names the install command.
    """
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


def load_engine(backend: str) -> ModuleType:
    """Import the engine of a backend.

    Parameters
    ----------
    backend : {'pytorch', 'tensorflow'}
        Name of the backend.

    Returns
    -------
    module
        With ``check_settings``, ``fit``, ``load``, ``to_bundle``, ``reconstruct``.

    Raises
    ------
    ConfigError
        If there is no such backend.
    MissingPackageError
        If a package is missing.
    """
    require_backend(backend)
    return importlib.import_module(ENGINES[backend][0])


def pytorch_calls(name: str) -> ModuleType:
    """Import a module of ``PYTORCH_CALLS``.

    Parameters
    ----------
    name : str
        Its key.

    Returns
    -------
    module
        The module.
    """
    return importlib.import_module(PYTORCH_CALLS[name])


def check_training_settings(
    config: TrainingConfig, execution: PyTorchExecutionConfig, native: Mapping[str, Any] | None = None
) -> ModuleType:
    """Refuse settings of a training that cannot work, or that nothing would read; no file is opened.

    Parameters
    ----------
    config : TrainingConfig
        Settings.
    execution : PyTorchExecutionConfig
        Hardware, precision, logging.
    native : mapping, optional
        The backend's own configuration objects by name.

    Returns
    -------
    module
        The engine of the backend.

    Raises
    ------
    ConfigError
        At the first one.
    MissingPackageError
        If a package is missing.
    """
    validate_training_config(config, any_batch=True)
    validate_execution_config(execution)
    validate_effects(config, execution)
    engine = load_engine(config.backend)
    engine.check_settings(config, execution, native or {})
    return engine


def resume_advice(config: TrainingConfig, *, checkpoints: bool, resumed: Path | None, since_s: float) -> str:
    """Return how a training run that was interrupted can be continued.

    Parameters
    ----------
    config : TrainingConfig
        ``backend`` and ``output_dir``.
    checkpoints : bool
        Whether the run writes checkpoints.
    resumed : Path or None
        Checkpoint that the run itself continued.
    since_s : float
        When it began [s since the epoch]; an older checkpoint is not its own.

    Returns
    -------
    str
        One line.
    """
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
    """Put the model of a former training run aside where the new one ends too early to write its own.

    The folder would answer with the former model, although its checkpoints are those of the new run.

    Parameters
    ----------
    config : TrainingConfig
        ``backend`` and ``output_dir``.
    since_s : float
        When the run began [s since the epoch].

    Yields
    ------
    None
        The block trains.
    """
    try:
        yield
    except BaseException:
        bundle = Path(config.output_dir) / BUNDLE_NAME
        last = Path(config.output_dir) / LAST[config.backend]
        if bundle.is_file() and last.is_file() and last.stat().st_mtime >= since_s:
            bundle.replace(bundle.with_name(FORMER_BUNDLE))
        raise


def choose_device(engine: ModuleType, execution: PyTorchExecutionConfig, progress: Progress) -> str:
    """Return the device of a run, and say where a GPU would stand idle.

    Parameters
    ----------
    engine : module
        The backend.
    execution : PyTorchExecutionConfig
        ``accelerator``.
    progress : Progress
        Told the line.

    Returns
    -------
    str
        What the machine has.

    Raises
    ------
    ConfigError
        If the machine does not have what is asked for.
    """
    found: str = engine.resolve_accelerator(execution.accelerator)
    if found == "cpu" and engine.resolve_accelerator("auto") != "cpu":
        progress.note("a GPU is present and not used: the CPU computes; pass --device cuda to use the GPU")
    return found


def find_model(path: Path, backend: str = "pytorch") -> Path:
    """Find the trained model in a training folder, or take a file that is named directly.

    Parameters
    ----------
    path : Path
        Folder of a training, a ``.ckpt``, ``.pt`` or bundle file, or ``pretrained`` for the network that
        comes with the package.
    backend : {'pytorch', 'tensorflow'}
        Backend that shall load it.

    Returns
    -------
    Path
        The file to load.

    Raises
    ------
    BundleError
        If nothing is there; the message lists where it was looked for. It is a FileNotFoundError as well.
    """
    if str(path) == PRETRAINED and not path.exists():
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
        "Pass --model_path with the --output_dir of a training."
    )


class ModelNotFoundError(BundleError, FileNotFoundError):
    """There is no trained model where one was looked for."""


def check_size(scan: Scan, trained_px: int, where: str) -> None:
    """Refuse patterns of another size than a model was trained on.

    Parameters
    ----------
    scan : Scan
        Patterns to reconstruct.
    trained_px : int
        Pattern size of the model [px].
    where : str
        What they have to fit, for the message.

    Raises
    ------
    DataError
        If the sizes differ.
    """
    if scan.n_px != trained_px:
        raise DataError(
            f"{scan.name}: the patterns do not fit {where} (got N={scan.n_px}, expected N={trained_px}). "
            "Crop or pad the patterns, or train on patterns of this size."
        )


def fitted_model(engine: ModuleType, model: Any, scan: Scan, where: str) -> Any:
    """Return a model for the pattern size of a scan; ``unrolled`` that was trained without a probe takes any.

    Parameters
    ----------
    engine : module
        The backend.
    model : object
        The backend's model.
    scan : Scan
        Patterns to reconstruct.
    where : str
        What they have to fit, for the message.

    Returns
    -------
    object
        The model itself, or the same network for the other size.

    Raises
    ------
    DataError
        If the model is for another size.
    """
    bundle = engine.to_bundle(model)
    if bundle.model.architecture != "unrolled" or bundle.probe.any():
        check_size(scan, bundle.model.N, where)
    if scan.n_px == bundle.model.N:
        return model
    return engine.from_bundle(replace(bundle, model=replace(bundle.model, N=scan.n_px), probe=0 * scan.probe))


def masked_model(engine: ModuleType, model: Any, asked: ModelConfig, stated: Collection[str] = ()) -> Any:
    """Return a model with the probe mask that an inference asks for.

    Parameters
    ----------
    engine : module
        The backend.
    model : object
        The backend's model.
    asked : ModelConfig
        ``probe_mask`` and its two numbers.
    stated : collection of str
        Settings that a flag or a file names, even where they equal the default.

    Returns
    -------
    object
        The model itself where no other mask is asked for.
    """
    if not {*changed(asked, MASK), *stated}.intersection(MASK):
        return model
    bundle = engine.to_bundle(model)
    settings = replace(bundle.model, **{name: getattr(asked, name) for name in MASK})
    if settings == bundle.model:
        return model
    start = None if bundle.probe_start is None else masked(bundle.probe_start, settings)
    probe = masked(bundle.probe, settings)
    return engine.from_bundle(replace(bundle, model=settings, probe=probe, probe_start=start))
