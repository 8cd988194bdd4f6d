"""Train with PyTorch Lightning: ``python -m ptycho_torch.train``, and the calls of older programs.

Importing this module loads no framework. Without Lightning the import fails at once with the install command,
but ``python -m ptycho_torch.train --help`` still works.
"""

from __future__ import annotations

import importlib.util
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptycho.errors import ConfigError, DataError, MissingPackageError

if TYPE_CHECKING:
    from ptycho.config.config import PyTorchExecutionConfig
    from ptycho.pipeline import TrainingOutcome
    from ptycho.progress import Progress

if __name__ != "__main__" and importlib.util.find_spec("lightning") is None:
    from ptycho.models import LIGHTNING_MISSING

    raise MissingPackageError(LIGHTNING_MISSING)

TRAIN_NAME, TEST_NAME = "train_data.npz", "test_data.npz"


def scans_in(folder: Path) -> tuple[Path, Path | None]:
    """Return the scan to train on and the one to judge by, of a folder.

    Parameters
    ----------
    folder : Path
        Holds ``train_data.npz`` and perhaps ``test_data.npz``, or exactly one NPZ file; or is that file.

    Returns
    -------
    train, test : Path, Path or None
        Files.

    Raises
    ------
    DataError
        If the folder does not say which file to train on.
    """
    if Path(folder).is_file():
        return Path(folder), None
    files = sorted(Path(folder).glob("*.npz"))
    train, test = Path(folder) / TRAIN_NAME, Path(folder) / TEST_NAME
    if train in files:
        return train, test if test in files else None
    if len(files) == 1:
        return files[0], None
    names = ", ".join(path.name for path in files) or "nothing"
    raise DataError(
        f"{folder}: it is not clear what to train on (found {names}, expected {TRAIN_NAME} or exactly one "
        f"NPZ file). Name one of them {TRAIN_NAME}, or pass --train_data_file."
    )


def train_folder(
    folder: Path,
    *,
    config_path: Path | None = None,
    existing_config: Sequence[Any] | None = None,
    output_dir: Path | None = None,
    execution_config: PyTorchExecutionConfig | None = None,
    progress: Progress | None = None,
    callbacks: Sequence[Any] = (),
) -> TrainingOutcome:
    """Train on a folder of NPZ files with settings in the PyTorch form.

    Parameters
    ----------
    folder : Path
        See :func:`scans_in`.
    config_path : Path, optional
        JSON with the sections ``data_config``, ``model_config``, ``training_config``, ``inference_config``.
    existing_config : sequence, optional
        The configuration objects themselves, in that order; they win over the file.
    output_dir : Path, optional
        Where everything is written; the ``output_dir`` of the training settings by default.
    execution_config : PyTorchExecutionConfig, optional
        Hardware, precision, logging.
    progress : Progress, optional
        Told what goes on.
    callbacks : sequence of lightning.pytorch.callbacks.Callback
        Called by Lightning's trainer after our own.

    Returns
    -------
    TrainingOutcome
        Model, object, files and scores.

    Raises
    ------
    PtychoError
        If a setting or a file is wrong.
    """
    from dataclasses import replace

    from ptycho.overwrites import check_training
    from ptycho.pipeline import train
    from ptycho.raw_data import peek_pattern_size
    from ptycho_torch.config_bridge import to_model_config, to_training_config
    from ptycho_torch.config_params import (
        DataConfig,
        InferenceConfig,
        ModelConfig,
        TrainingConfig,
        load_json_configs,
    )

    given = existing_config or (load_json_configs(config_path) if config_path is not None else ())
    missing = (DataConfig(), ModelConfig(), TrainingConfig(), InferenceConfig())[len(given) :]
    data, model, training, inference = (*given, *missing)[:4]
    train_file, test_file = scans_in(folder)
    data = replace(data, N=peek_pattern_size(train_file))
    chosen = {
        "train_data_file": train_file,
        "test_data_file": test_file,
        "output_dir": Path(output_dir or training.output_dir),
        "nphotons": data.nphotons,
        # Old settings speak of groups per scan point; every point is trained on.
        "n_groups": training.n_groups or sys.maxsize,
    }
    core_model = to_model_config(data, model)
    with warnings.catch_warnings():
        # A run without a test file is judged by groups kept from its own scan.
        warnings.simplefilter("ignore", UserWarning)
        config = to_training_config(core_model, data, model, training, chosen)
    check_training(config, {"--config": config_path})
    native = {"data_config": data, "model_config": model, "training_config": training}
    native |= {"inference_config": inference, "callbacks": tuple(callbacks)}
    # A network for whole scans has no groups, and so no bounds.
    bounds = None if model.architecture == "unrolled" else (tuple(data.y_bounds), tuple(data.x_bounds))
    return train(config, execution_config, native=native, bounds_yx=bounds, progress=progress)


def main(
    ptycho_dir: str | Path,
    config_path: str | Path | None = None,
    existing_config: Sequence[Any] | None = None,
    disable_mlflow: bool = False,
    output_dir: str | Path | None = None,
    execution_config: PyTorchExecutionConfig | None = None,
) -> TrainingOutcome:
    """Train on a folder (or one file): the call of older programs.

    Parameters
    ----------
    ptycho_dir : path-like
        Folder of NPZ files, or one NPZ file.
    config_path : path-like, optional
        JSON settings.
    existing_config : sequence, optional
        ``(data, model, training, inference, ...)`` configuration objects.
    disable_mlflow : bool
        Log nowhere and never import MLflow; without it MLflow logs where it is installed.
    output_dir : path-like, optional
        Where everything is written.
    execution_config : PyTorchExecutionConfig, optional
        Hardware, precision, logging; its logger wins over the default.

    Returns
    -------
    TrainingOutcome
        Model, object, files and scores.

    Raises
    ------
    PtychoError
        If a setting or a file is wrong.
    """
    from dataclasses import replace

    from ptycho.cli.train_command import default_logger
    from ptycho.config.config import PyTorchExecutionConfig

    if config_path is not None and existing_config is not None:
        raise ConfigError(
            f"training: settings are given twice (got config_path={str(config_path)!r} and existing_config, "
            "expected one). Leave one of them out."
        )
    execution = execution_config or PyTorchExecutionConfig(logger_backend=default_logger())
    if disable_mlflow:
        execution = replace(execution, logger_backend=None)
    return train_folder(
        Path(ptycho_dir),
        config_path=None if config_path is None else Path(config_path),
        existing_config=existing_config,
        output_dir=None if output_dir is None else Path(output_dir),
        execution_config=execution,
    )


def cli_main(argv: Sequence[str] | None = None) -> int:
    """Run the training command with this backend.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments; those of the process where none are given.

    Returns
    -------
    int
        Exit status.
    """
    from ptycho.cli import train_command

    return train_command.main(argv, backend="pytorch", prog="python -m ptycho_torch.train", device="cpu")


if __name__ == "__main__":
    sys.exit(cli_main())
