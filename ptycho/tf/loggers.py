"""Where a training run writes its numbers: csv, tensorboard or MLflow, or nowhere."""

from __future__ import annotations

import csv
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ptycho.errors import MissingPackageError
from ptycho.run.job import TrainingJob
from ptycho.run.mlflow_store import EXPERIMENT, open_store
from ptycho.tf.runtime import tf

PACKAGES = {"mlflow": "mlflow", "tensorboard": "tensorboard"}


class RunLogger:
    """Takes the numbers of every epoch; this base class keeps nothing."""

    run_id: str | None = None  # of MLflow

    def log(self, epoch: int, values: Mapping[str, float]) -> None:
        """Take losses and learning rate of an epoch, from 0."""

    def close(self, *, finished: bool) -> None:
        """End the log; not ``finished`` where the training run broke off."""


class CsvLogger(RunLogger):
    """Writes ``metrics.csv``, one line per epoch, on disk as soon as the epoch ends; below the lines that are
    there where it is ``resumed``."""

    def __init__(self, folder: Path, *, resumed: bool) -> None:
        path = folder / "metrics.csv"
        self._headed = resumed and path.is_file()
        self._file = path.open("a" if self._headed else "w", newline="", encoding="utf-8")
        self._writer = csv.writer(self._file)

    def log(self, epoch: int, values: Mapping[str, float]) -> None:
        if not self._headed:
            self._writer.writerow(["epoch", *values])
            self._headed = True
        self._writer.writerow([epoch, *values.values()])
        self._file.flush()

    def close(self, *, finished: bool) -> None:
        self._file.close()


class TensorboardLogger(RunLogger):
    """Writes event files to ``tensorboard`` in a folder."""

    def __init__(self, folder: Path) -> None:
        self._writer = tf.summary.create_file_writer(str(folder / "tensorboard"))

    def log(self, epoch: int, values: Mapping[str, float]) -> None:
        with self._writer.as_default():
            for name, value in values.items():
                tf.summary.scalar(name, value, step=epoch)
        self._writer.flush()

    def close(self, *, finished: bool) -> None:
        self._writer.close()


class MlflowLogger(RunLogger):
    """Writes to a new MLflow run, named after the output directory."""

    def __init__(self, job: TrainingJob) -> None:
        folder = Path(job.config.output_dir)
        self._client, _, _ = open_store(folder)
        experiment = self._client.get_experiment_by_name(EXPERIMENT)
        self.run_id = self._client.create_run(experiment.experiment_id, run_name=folder.name).info.run_id
        for name, value in {"n_patterns": job.scan.n_patterns, "scan": job.scan.name}.items():
            self._client.log_param(self.run_id, name, value)

    def log(self, epoch: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._client.log_metric(self.run_id, name, value, step=epoch)

    def close(self, *, finished: bool) -> None:
        self._client.set_terminated(self.run_id, "FINISHED" if finished else "FAILED")


def check_installed(backend: str | None) -> None:
    """Refuse a logger (``execution.logger_backend``) whose package is not installed by a
    ``MissingPackageError``; nothing is imported."""
    package = PACKAGES.get(backend) if backend else None
    if package and importlib.util.find_spec(package) is None:
        raise MissingPackageError(
            f"logger: {backend} is not installed (got --logger {backend}, expected an installed package). "
            "Install it with: pip install 'ptychopinn[tensorflow]', or pass --logger csv."
        )


def build_logger(job: TrainingJob) -> RunLogger:
    """Return the logger a job asks for; one that keeps nothing, without importing a logging package, where
    none is. ``MissingPackageError`` as :func:`check_installed`."""
    backend: Any = job.execution.logger_backend
    if backend is None:
        return RunLogger()
    check_installed(backend)
    folder = Path(job.config.output_dir)
    if backend == "csv":
        return CsvLogger(folder, resumed=job.resume is not None)
    return TensorboardLogger(folder) if backend == "tensorboard" else MlflowLogger(job)
