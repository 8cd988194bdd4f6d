"""The MLflow store of a training run: where it is, what goes in and out; MLflow loads on first use only."""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ptycho.config.choices import CHECKPOINT_FOLDER, CHECKPOINT_NAMES
from ptycho.errors import DataError, MissingPackageError

EXPERIMENT = "ptychopinn"
STORE_FOLDER = "mlruns"
STORE_FILE = "mlflow.db"


def check_logger(name: str | None, extra: str) -> None:
    """Refuse a logger (``execution.logger_backend``) whose package is not installed by a
    ``MissingPackageError``, which names the ``extra`` that has it; nothing is imported."""
    if name in ("mlflow", "tensorboard") and importlib.util.find_spec(name) is None:
        raise MissingPackageError(
            f"logger: {name} is not installed (got --logger {name}, expected an installed package). "
            f"Install it with: pip install 'ptychopinn[{extra}]', or pass --logger csv."
        )


def default_logger() -> str:
    """Return ``mlflow`` where it is installed, else ``csv``; imports neither."""
    return "mlflow" if importlib.util.find_spec("mlflow") else "csv"


def store_uri(folder: Path) -> str:
    """Return the SQLite address of a local MLflow store, which is made when it is opened."""
    return f"sqlite:///{folder.resolve() / STORE_FILE}"


def quiet_client(uri: str) -> Any:
    """Return an ``mlflow.MlflowClient`` that keeps quiet, on the console and towards the outside."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    from mlflow import MlflowClient

    # MLflow sets its own log level when it is imported.
    for name in ("mlflow", "alembic", "sqlalchemy"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return MlflowClient(uri)


def open_store(folder: Path) -> tuple[Any, str, str | None]:
    """Return client, tracking address and artifact address of a run's store, with the experiment in it.
    ``MLFLOW_TRACKING_URI`` wins over the store in ``folder``; its server decides where artifacts go
    (None)."""
    uri, artifacts = os.environ.get("MLFLOW_TRACKING_URI"), None
    if not uri:
        store = folder / STORE_FOLDER
        store.mkdir(parents=True, exist_ok=True)
        uri, artifacts = store_uri(store), (store / "artifacts").resolve().as_uri()
    client = quiet_client(uri)
    if client.get_experiment_by_name(EXPERIMENT) is None:
        client.create_experiment(EXPERIMENT, artifact_location=artifacts)
    return client, uri, artifacts


def log_artifacts(run_id: str, folder: Path, files: Sequence[Path]) -> None:
    """Store files with an MLflow run, checkpoints under ``checkpoints``, the rest at its root; the store is
    as for :func:`open_store`."""
    client = quiet_client(os.environ.get("MLFLOW_TRACKING_URI") or store_uri(folder / STORE_FOLDER))
    for path in files:
        client.log_artifact(
            run_id, str(path), CHECKPOINT_FOLDER if path.parent.name == CHECKPOINT_FOLDER else None
        )


def fetch_checkpoint(run_id: str, store: Path, target: Path) -> Path:
    """Copy the first of ``CHECKPOINT_NAMES`` that an MLflow run holds into ``target``.
    ``MLFLOW_TRACKING_URI`` wins over ``store``. Raise ``DataError`` where there is no store, run or
    checkpoint."""
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if not uri and not (store / STORE_FILE).is_file():
        # Opening a store that is not there would make an empty one.
        raise DataError(
            f"{store}: no MLflow store (got no {STORE_FILE} in it, expected the {STORE_FOLDER} folder of a "
            f"training). Pass --mlruns <output_dir>/{STORE_FOLDER}."
        )
    client = quiet_client(uri or store_uri(store))
    from mlflow.exceptions import MlflowException

    try:
        held = {Path(item.path).name for item in client.list_artifacts(run_id, CHECKPOINT_FOLDER)}
    except MlflowException as error:
        raise DataError(
            f"{uri or store}: no such MLflow run (got {run_id!r}, expected the name that the training "
            "printed). Pass another --run_id or --mlruns."
        ) from error
    for name in CHECKPOINT_NAMES:
        if name in held:
            return Path(client.download_artifacts(run_id, f"{CHECKPOINT_FOLDER}/{name}", str(target)))
    found = ", ".join(sorted(held)) or "nothing"
    raise DataError(
        f"MLflow run {run_id}: no checkpoint is stored with it (got {found}, expected one of "
        f"{', '.join(CHECKPOINT_NAMES)}). Pass the run of a training run that wrote checkpoints."
    )
