"""Loggers: MLflow by default and never where it is not wanted, csv, tensorboard, and what the store holds."""

from __future__ import annotations

import csv
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from ptycho.errors import MissingPackageError
from ptycho.run.mlflow_store import (
    EXPERIMENT,
    check_logger,
    default_logger,
    open_store,
    quiet_client,
    store_uri,
)

Command = Callable[..., Any]
PICTURES = ("reconstructed_amplitude.png", "reconstructed_phase.png")


def test_mlflow_is_the_default_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    assert default_logger() == "mlflow"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert default_logger() == "csv"


def test_mlflow_and_tensorflow_stay_out_where_they_are_not_asked_for(
    small_scan: Path, tmp_path: Path, run_python: Callable[..., CompletedProcess[str]]
) -> None:
    code = (
        "import sys\n"
        "from ptycho_torch.train import cli_main\n"
        f"scan, out = {str(small_scan)!r}, {str(tmp_path)!r}\n"
        "words = ['--train_data_file', scan, '--max_epochs', '1', '--unrolled_steps', '14']\n"
        "words += ['--gridsize', '1', '--device', 'cpu', '--quiet', '--output_dir']\n"
        "for name in ('--disable_mlflow', '--logger=none', '--logger=csv', '--logger=tensorboard'):\n"
        "    assert cli_main([*words, f'{out}/{name[2:]}', name]) == 0\n"
        "print(sorted({'mlflow', 'tensorflow'} & set(sys.modules)), 'torch' in sys.modules)\n"
    )
    done = run_python("-c", code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[] True\n", "")
    assert not list(tmp_path.rglob("mlruns"))


def test_csv_has_one_row_of_losses_for_each_epoch(
    small_scan: Path, train_command: Command, tmp_path: Path
) -> None:
    assert train_command(small_scan, tmp_path / "run", "--logger", "csv", "--max_epochs", 2).code == 0
    folder = tmp_path / "run" / "lightning_logs" / "version_0"
    with (folder / "metrics.csv").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    history = json.loads((tmp_path / "run" / "history.json").read_text(encoding="utf-8"))
    for column, name in (("hidden_train_loss", "train_loss"), ("hidden_val_loss", "val_loss")):
        logged = {int(row["epoch"]): float(row[column]) for row in rows if row[column]}
        assert sorted(logged) == [0, 1]
        assert list(logged.values()) == pytest.approx(history[name], rel=1e-5)
    assert "learning_rate: 0.0002" in (folder / "hparams.yaml").read_text(encoding="utf-8")


def test_tensorboard_events_hold_the_losses(small_scan: Path, train_command: Command, tmp_path: Path) -> None:
    if importlib.util.find_spec("tensorboard") is None:
        pytest.skip("tensorboard is not installed; it belongs to the torch extra")
    assert train_command(small_scan, tmp_path / "run", "--logger", "tensorboard").code == 0
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "run" / "tensorboard" / "version_0")).Reload()
    history = json.loads((tmp_path / "run" / "history.json").read_text(encoding="utf-8"))
    (event,) = events.Scalars("hidden_train_loss")
    assert event.value == pytest.approx(history["train_loss"][0], rel=1e-5)


def test_the_store_holds_metrics_settings_checkpoints_and_pictures(mlflow_run: tuple[Path, str]) -> None:
    folder, run_id = mlflow_run
    client = quiet_client(store_uri(folder / "mlruns"))
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert client.get_experiment(run.info.experiment_id).name == EXPERIMENT
    history = json.loads((folder / "history.json").read_text(encoding="utf-8"))
    for metric, name in (("amplitude_train_loss", "train_loss"), ("amplitude_val_loss", "val_loss")):
        logged = [item.value for item in client.get_metric_history(run_id, metric)]
        assert logged == pytest.approx(history[name], rel=1e-5)
        assert len(logged) == 2
    settings = run.data.params
    assert settings["n_patterns"] == "64"
    assert settings["data_config/N"] == "32"
    assert settings["model_config/architecture"] == "unrolled"
    assert settings["training_config/epochs"] == "2"
    stored = {item.path for item in client.list_artifacts(run_id)}
    assert {*PICTURES, "checkpoints", "wts.h5.zip", "loss.png"} <= stored
    checkpoints = {item.path for item in client.list_artifacts(run_id, "checkpoints")}
    assert checkpoints == {"checkpoints/best-checkpoint.ckpt", "checkpoints/last.ckpt"}


def test_the_store_lies_in_the_output_folder_and_a_tracking_server_wins(
    mlflow_run: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = mlflow_run
    assert (folder / "mlruns" / "mlflow.db").is_file()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store_uri(folder / "mlruns"))
    _, uri, artifacts = open_store(tmp_path / "elsewhere")
    assert (uri, artifacts) == (store_uri(folder / "mlruns"), None)
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("backend", ["mlflow", "tensorboard"])
def test_a_logger_that_is_not_installed_names_the_install_command(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=rf"{backend} is not installed .*or pass --logger csv"):
        check_logger(backend, "torch")
