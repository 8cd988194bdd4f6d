"""Train with PyTorch Lightning: ``python -m ptycho_torch.train``, and the calls of older programs.

Importing this module loads no framework. Without Lightning the import fails at once with the install command,
but ``python -m ptycho_torch.train --help`` still works.
"""

from __future__ import annotations

import importlib.util
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptycho.errors import ConfigError, DataError, MissingPackageError

if TYPE_CHECKING:
    from ptycho.config.config import PyTorchExecutionConfig
    from ptycho.process.progress import Progress
    from ptycho.run.pipeline import TrainingOutcome

if __name__ != "__main__" and importlib.util.find_spec("lightning") is None:
    from ptycho.run.engines import LIGHTNING_MISSING

    raise MissingPackageError(LIGHTNING_MISSING)

logger = logging.getLogger(__name__)

TRAIN_NAME, TEST_NAME = "train_data.npz", "test_data.npz"


def scans_in(folder: Path) -> tuple[Path, Path | None]:
    """Return the scan to train on and the one to validate with, if any: ``train_data.npz`` and
    ``test_data.npz`` of a folder, its only NPZ file, or the file that ``folder`` is. ``DataError`` where that
    is not clear."""
    if folder.is_file():
        return folder, None
    files = sorted(folder.glob("*.npz"))
    train, test = folder / TRAIN_NAME, folder / TEST_NAME
    if train in files:
        return train, test if test in files else None
    if len(files) == 1:
        return files[0], None
    names = ", ".join(path.name for path in files) or "nothing"
    raise DataError(
        f"{folder}: it is not clear what to train on (found {names}, expected {TRAIN_NAME} or exactly one "
        f"NPZ file). Name one of them {TRAIN_NAME}, or pass --train_data_file."
    )


def _settings(config_path: str | Path | None, existing_config: Sequence[Any] | None) -> tuple[Any, ...]:
    """Return data, model, training, inference and synthetic-data settings; defaults where none are given."""
    from ptycho_torch import config_params as params

    given = existing_config or (() if config_path is None else params.load_json_configs(config_path))
    kinds = tuple(params.SECTIONS.values())
    return (*given, *(kind() for kind in kinds[len(given) :]))[: len(kinds)]


def _scans_of(folder: Path, training: Any) -> tuple[Path, Path | None]:
    """Return the scans of a folder, and the one to validate with that only the settings name."""
    train_file, test_file = scans_in(folder)
    found = {"train_data_file": train_file, "test_data_file": test_file}
    for name, path in found.items():
        asked = getattr(training, name)
        if asked is not None and path is not None and Path(asked) != path:
            raise ConfigError(
                f"training: {name} is not that of the folder (got {asked}, expected {path}). Leave it out."
            )
    asked = training.test_data_file
    return train_file, Path(asked) if test_file is None and asked is not None else test_file


def _execution(training: Any) -> PyTorchExecutionConfig:
    """Return how a run executes that only the settings in the PyTorch form describe."""
    from ptycho.config.config import PyTorchExecutionConfig

    default = type(training)()
    device = training.device.partition(":")[0]
    workers = training.num_workers if training.num_workers != default.num_workers else 0
    return PyTorchExecutionConfig(
        # The default asks for CUDA where there is one.
        accelerator="auto" if training.device == default.device else device,
        accum_steps=training.accum_steps,
        devices=training.n_devices,
        num_workers=workers,
        persistent_workers=workers > 0,
    )


def train_folder(
    folder: Path,
    *,
    config_path: str | Path | None = None,
    existing_config: Sequence[Any] | None = None,
    output_dir: str | Path | None = None,
    execution_config: PyTorchExecutionConfig | None = None,
    progress: Progress | None = None,
    callbacks: Sequence[Any] = (),
) -> TrainingOutcome:
    """Train on a folder of NPZ files, see :func:`scans_in`, with settings in the PyTorch form: those of a
    JSON file, or, which win, configuration objects (data, model, training, inference). ``output_dir`` is by
    default that of the training settings; Lightning's trainer calls ``callbacks`` after our own.
    ``PtychoError`` if a setting is wrong."""
    from dataclasses import replace

    from ptycho.config.architectures import architecture_of
    from ptycho.files.overwrites import check_training
    from ptycho.files.reader import pattern_size
    from ptycho.run.pipeline import train
    from ptycho_torch.config_bridge import bridged_training, to_model_config
    from ptycho_torch.config_params import SECTIONS, DataConfig

    data, model, training, *rest = _settings(config_path, existing_config)
    train_file, test_file = _scans_of(folder, training)
    n_px = pattern_size(train_file)
    if data.N not in (n_px, DataConfig.N):
        text = "%s: N is %d in the settings and %d in the data; the data count"
        logger.warning(text, train_file, data.N, n_px)
    data = replace(data, N=n_px)
    if execution_config is None:
        execution_config = _execution(training)
    elif execution_config.accum_steps == 1:
        execution_config = replace(execution_config, accum_steps=training.accum_steps)
    chosen = {
        "train_data_file": train_file,
        "test_data_file": test_file,
        "output_dir": Path(output_dir or training.output_dir),
        "nphotons": data.nphotons,
        # Old settings speak of groups per scan point; every point is trained on.
        "n_groups": training.n_groups or sys.maxsize,
    }
    core_model = to_model_config(data, model)
    config = bridged_training(core_model, data, model, training, chosen)
    check_training(config, {"--config": None if config_path is None else Path(config_path)})
    native = dict(zip(SECTIONS, (data, model, training, *rest), strict=True), callbacks=tuple(callbacks))
    # A network for whole scans has no groups, and so no bounds.
    grouped = not architecture_of(core_model).whole_canvas
    bounds = (tuple(data.y_bounds), tuple(data.x_bounds)) if grouped else None
    return train(config, execution_config, native=native, bounds_yx=bounds, progress=progress)


def main(
    ptycho_dir: str | Path,
    config_path: str | Path | None = None,
    existing_config: Sequence[Any] | None = None,
    disable_mlflow: bool = False,
    output_dir: str | Path | None = None,
    execution_config: PyTorchExecutionConfig | None = None,
) -> TrainingOutcome:
    """Train as :func:`train_folder`: the call of older programs. ``ConfigError`` if settings are given twice.
    MLflow logs where it is installed and no ``execution_config`` is given; with ``disable_mlflow`` nothing
    logs, and MLflow is never imported."""
    from dataclasses import replace

    from ptycho.run.mlflow_store import default_logger

    if config_path is not None and existing_config is not None:
        raise ConfigError(
            f"training: settings are given twice (got config_path={str(config_path)!r} and existing_config, "
            "expected one). Leave one of them out."
        )
    settings = _settings(config_path, existing_config)
    execution = execution_config or replace(_execution(settings[2]), logger_backend=default_logger())
    if disable_mlflow:
        execution = replace(execution, logger_backend=None)
    return train_folder(
        Path(ptycho_dir),
        config_path=config_path,
        existing_config=settings,
        output_dir=output_dir,
        execution_config=execution,
    )


def cli_main(argv: Sequence[str] | None = None) -> int:
    """Run the training command with this backend, by default with the arguments of the process; return its
    exit status."""
    from ptycho.cli import train_command

    return train_command.main(argv, backend="pytorch", prog="python -m ptycho_torch.train", device="cpu")


if __name__ == "__main__":
    sys.exit(cli_main())
