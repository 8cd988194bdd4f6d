"""Where a training writes its numbers: csv, tensorboard or MLflow, or nowhere."""

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
    """Takes the numbers of every epoch; this base class keeps nothing.

    Attributes
    ----------
    run_id : str or None
        MLflow run.
    """

    run_id: str | None = None

    def log(self, epoch: int, values: Mapping[str, float]) -> None:
        """Take the numbers of an epoch.

        Parameters
        ----------
        epoch : int
            Epoch, from 0.
        values : mapping of str to float
            Losses and learning rate.
        """

    def close(self, *, finished: bool) -> None:
        """End the log.

        Parameters
        ----------
        finished : bool
            False where the training broke off.
        """


class CsvLogger(RunLogger):
    """Writes ``metrics.csv``, one line per epoch, on disk as soon as the epoch ends.

    Parameters
    ----------
    folder : Path
        Output directory.
    resumed : bool
        Go on below the lines that are there.
    """

    def __init__(self, folder: Path, *, resumed: bool) -> None:
        path = folder / "metrics.csv"
        self._headed = resumed and path.is_file()
        self._file = path.open("a" if self._headed else "w", newline="", encoding="utf-8")
        self._writer = csv.writer(self._file)

    def log(self, epoch: int, values: Mapping[str, float]) -> None:
        """Write a line."""
        if not self._headed:
            self._writer.writerow(["epoch", *values])
            self._headed = True
        self._writer.writerow([epoch, *values.values()])
        self._file.flush()

    def close(self, *, finished: bool) -> None:
        """Close the file."""
        self._file.close()


class TensorboardLogger(RunLogger):
    """Writes event files.

    Parameters
    ----------
    folder : Path
        Output directory; the files go to ``tensorboard`` in it.
    """

    def __init__(self, folder: Path) -> None:
        self._writer = tf.summary.create_file_writer(str(folder / "tensorboard"))

    def log(self, epoch: int, values: Mapping[str, float]) -> None:
        """Write scalars."""
        with self._writer.as_default():
            for name, value in values.items():
                tf.summary.scalar(name, value, step=epoch)
        self._writer.flush()

    def close(self, *, finished: bool) -> None:
        """Close the file."""
        self._writer.close()


class MlflowLogger(RunLogger):
    """Writes to an MLflow run.

    Parameters
    ----------
    job : TrainingJob
        Names of scan and output directory.
    """

    def __init__(self, job: TrainingJob) -> None:
        folder = Path(job.config.output_dir)
        self._client, _, _ = open_store(folder)
        experiment = self._client.get_experiment_by_name(EXPERIMENT)
        self.run_id = self._client.create_run(experiment.experiment_id, run_name=folder.name).info.run_id
        for name, value in {"n_patterns": job.scan.n_patterns, "scan": job.scan.name}.items():
            self._client.log_param(self.run_id, name, value)

    def log(self, epoch: int, values: Mapping[str, float]) -> None:
        """Write metrics."""
        for name, value in values.items():
            self._client.log_metric(self.run_id, name, value, step=epoch)

    def close(self, *, finished: bool) -> None:
        """Say how the run ended."""
        self._client.set_terminated(self.run_id, "FINISHED" if finished else "FAILED")


def check_installed(backend: str | None) -> None:
    """Refuse a logger whose package is not installed; nothing is imported.

    Parameters
    ----------
    backend : str or None
        ``execution.logger_backend``.

    Raises
    ------
    MissingPackageError
        If the package of the logger is not installed.
    """
    package = PACKAGES.get(backend) if backend else None
    if package and importlib.util.find_spec(package) is None:
        raise MissingPackageError(
            f"logger: {backend} is not installed (got --logger {backend}, expected an installed package). "
            "Install it with: pip install 'ptychopinn[tensorflow]', or pass --logger csv."
        )


def build_logger(job: TrainingJob) -> RunLogger:
    """Return the logger a job asks for.

    Parameters
    ----------
    job : TrainingJob
        ``execution.logger_backend`` and the output directory.

    Returns
    -------
    RunLogger
        One that keeps nothing where none is asked for; no logging package is imported then.

    Raises
    ------
    MissingPackageError
        If the package of the logger is not installed.
    """
    backend: Any = job.execution.logger_backend
    if backend is None:
        return RunLogger()
    check_installed(backend)
    folder = Path(job.config.output_dir)
    if backend == "csv":
        return CsvLogger(folder, resumed=job.resume is not None)
    return TensorboardLogger(folder) if backend == "tensorboard" else MlflowLogger(job)
