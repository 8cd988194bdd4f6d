"""Where a training run writes its numbers: csv, tensorboard or MLflow, or nowhere."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from ptycho.errors import MissingPackageError
from ptycho.run.job import TrainingJob
from ptycho.run.mlflow_store import EXPERIMENT, fetch_checkpoint, log_artifacts, open_store, store_uri

__all__ = ["EXPERIMENT", "build_logger", "fetch_checkpoint", "log_artifacts", "store_uri"]

PACKAGES = {"mlflow": "mlflow", "tensorboard": "tensorboard"}


def check_installed(backend: str | None) -> None:
    """As :func:`ptycho.tf.loggers.check_installed`."""
    package = PACKAGES.get(backend) if backend else None
    if package and importlib.util.find_spec(package) is None:
        raise MissingPackageError(
            f"logger: {backend} is not installed (got --logger {backend}, expected an installed package). "
            "Install it with: pip install 'ptychopinn[torch]', or pass --logger csv."
        )


def build_logger(job: TrainingJob) -> Any:
    """Return the Lightning logger a job asks for; False, without importing a logging package, where none is.
    ``MissingPackageError`` as :func:`check_installed`."""
    backend = job.execution.logger_backend
    if backend is None:
        return False
    check_installed(backend)
    folder = Path(job.config.output_dir)
    if backend == "csv":
        from lightning.pytorch.loggers import CSVLogger

        return CSVLogger(folder, name="lightning_logs")
    if backend == "tensorboard":
        from lightning.pytorch.loggers import TensorBoardLogger

        # TensorBoard takes an installed TensorFlow in, for seconds; with this name it takes its own stub.
        sys.modules.setdefault("tensorboard.compat.notf", ModuleType("tensorboard.compat.notf"))
        return TensorBoardLogger(folder, name="tensorboard", default_hp_metric=False)
    return _mlflow_logger(job, folder)


def _mlflow_logger(job: TrainingJob, folder: Path) -> Any:
    from lightning.pytorch.loggers import MLFlowLogger

    _, uri, artifacts = open_store(folder)
    logger = MLFlowLogger(EXPERIMENT, run_name=folder.name, tracking_uri=uri, artifact_location=artifacts)
    logger.log_hyperparams({"n_patterns": job.scan.n_patterns, "scan": job.scan.name})
    return logger
