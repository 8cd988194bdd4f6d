"""Facts about training with TensorFlow: what it writes, what it keeps, how it goes on, what it refuses."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ptycho.config.config import ModelConfig, PyTorchExecutionConfig, TrainingConfig
from ptycho.data.reconstruction import Reconstruction
from ptycho.data.scan import Scan
from ptycho.data.selection import training_groups
from ptycho.errors import BundleError, ConfigError, DataError
from ptycho.files.reader import open_scan
from ptycho.networks.architectures import architecture_table, initial_weights
from ptycho.networks.bundle import Bundle, read_bundle, write_bundle
from ptycho.process.progress import Phase, Progress
from ptycho.run.job import TrainingJob, TrainingResult
from ptycho.tf import engine
from ptycho.tf.checkpoints import Checkpoints, read_state
from ptycho.tf.model import PtychoPINN

pytestmark = pytest.mark.slow

CPU = PyTorchExecutionConfig(accelerator="cpu", logger_backend=None)
UNROLLED = ModelConfig(N=32, architecture="unrolled", unrolled_steps=3, unrolled_width=4)
CNN = ModelConfig(N=32, architecture="cnn", n_filters_scale=1, gridsize=2)


@pytest.fixture(scope="module")
def scan(small_scan: Path) -> Scan:
    return open_scan(small_scan)


def job(scan: Scan, folder: Path, *, model: ModelConfig = UNROLLED, **options: Any) -> TrainingJob:
    """A short training; options are settings of any of the three kinds."""
    execution = {key: options.pop(key) for key in list(options) if hasattr(CPU, key) and key not in SHARED}
    around = {key: options.pop(key) for key in ("resume", "progress", "test_scan") if key in options}
    settings = {"nepochs": 2, "torch_loss_mode": "amplitude", "intensity_scale_trainable": False, **options}
    config = TrainingConfig(model, output_dir=folder, neighbor_count=6, **settings)
    groups, validation = training_groups(scan, config, validate="test_scan" not in around)
    return TrainingJob(config, replace(CPU, **execution), scan, groups, validation, **around)


SHARED = ("learning_rate", "scheduler")


def fit(scan: Scan, folder: Path, **options: Any) -> TrainingResult:
    return engine.fit(job(scan, folder, **options))


def reconstruct(model: PtychoPINN, scan: Scan, **options: Any) -> Reconstruction:
    members = np.arange(scan.n_patterns)
    return engine.reconstruct(model, scan, members, execution=CPU, progress=Progress(), **options)


# --- training ---


@pytest.mark.parametrize("model", [UNROLLED, CNN])
def test_a_training_lowers_the_loss_and_keeps_its_best_epoch(
    scan: Scan, tmp_path: Path, model: ModelConfig
) -> None:
    result = fit(scan, tmp_path, model=model, nepochs=30, n_groups=32)
    history = result.history
    assert history["train_loss"][-1] < history["train_loss"][0]
    assert [path.name for path in result.checkpoints] == ["best-checkpoint.h5.zip", "last.h5.zip"]
    best, last = map(read_bundle, result.checkpoints)
    kept = engine.to_bundle(result.model).weights
    equal = [all((kept[name] == held.weights[name]).all() for name in kept) for held in (best, last)]
    assert equal == [True, int(np.argmin(history["val_loss"])) == 29]
    assert result.model.probe_refined == best.probe_refined


@pytest.mark.parametrize("model", [UNROLLED, CNN])
def test_mixed_precision_trains_like_single_precision_and_leaves_a_model_in_single_precision(
    scan: Scan, tmp_path: Path, model: ModelConfig
) -> None:
    single, mixed = (
        fit(scan, tmp_path / name, model=model, nepochs=3, n_groups=32, precision=name)
        for name in ("32-true", "bf16-mixed")
    )
    expected, got = (np.array(result.history["train_loss"]) for result in (single, mixed))
    assert not np.array_equal(expected, got)
    np.testing.assert_allclose(got, expected, rtol=0.05)
    weights = engine.to_bundle(mixed.model).weights
    assert all(array.dtype == np.float32 for array in weights.values())
    again = PtychoPINN(model)
    again.attach_scan(scan.probe, scan.record, refined=False)
    again.generator.import_weights(
        {k: v for k, v in weights.items() if k in again.generator.weights}, "mixed"
    )
    again.log_gain.assign(mixed.model.log_gain)
    np.testing.assert_array_equal(reconstruct(again, scan).obj, reconstruct(mixed.model, scan).obj)


def test_a_rate_that_is_too_high_keeps_an_earlier_epoch(scan: Scan, tmp_path: Path) -> None:
    result = fit(scan, tmp_path, learning_rate=0.3, nepochs=3)
    judged = result.history["val_loss"]
    assert int(np.argmin(judged)) < 2
    best, last = map(read_bundle, result.checkpoints)
    assert any((best.weights[name] != last.weights[name]).any() for name in best.weights)
    kept = engine.to_bundle(result.model)
    assert all((best.weights[name] == kept.weights[name]).all() for name in best.weights)


def test_the_same_seed_gives_the_same_training(scan: Scan, tmp_path: Path) -> None:
    first, second = (fit(scan, tmp_path / name).history for name in "ab")
    assert first == second
    assert fit(scan, tmp_path / "c", seed=1).history != first


def test_a_resumed_training_ends_where_an_unbroken_one_does(scan: Scan, tmp_path: Path) -> None:
    options: dict[str, Any] = {"model": CNN, "n_groups": 32, "scheduler": "Adaptive", "plateau_patience": 0}
    whole = fit(scan, tmp_path / "whole", nepochs=4, **options)
    fit(scan, tmp_path / "parts", nepochs=2, **options)
    last = tmp_path / "parts/checkpoints/last.h5.zip"
    rest = fit(scan, tmp_path / "parts", nepochs=4, resume=last, **options)
    assert rest.history["train_loss"] == whole.history["train_loss"][2:]
    for name, weights in engine.to_bundle(whole.model).weights.items():
        np.testing.assert_array_equal(weights, engine.to_bundle(rest.model).weights[name])
    with pytest.raises(ConfigError, match="nothing is left to train"):
        fit(scan, tmp_path / "parts", nepochs=4, resume=last, **options)


def test_a_bundle_without_its_state_gives_only_its_weights(
    scan: Scan, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fit(scan, tmp_path)
    best, last = (tmp_path / "checkpoints" / name for name in ("best-checkpoint.h5.zip", "last.h5.zip"))
    assert read_state(best) is None
    assert read_state(last) is not None
    write_bundle(last, replace(read_bundle(last), log_gain=1.0))
    assert read_state(last) is None, "a state of another epoch was taken"
    fit(scan, tmp_path / "next", resume=best)
    assert "no state of this optimiser" in caplog.text


def test_early_stopping_ends_a_training_that_no_longer_gains(scan: Scan, tmp_path: Path) -> None:
    result = fit(scan, tmp_path, learning_rate=0.3, nepochs=30, early_stop_patience=2)
    judged = result.history["val_loss"]
    assert len(judged) == int(np.argmin(judged)) + 3 < 30


def test_several_best_epochs_are_kept_when_asked_for(tmp_path: Path) -> None:
    model, checkpoints = PtychoPINN(UNROLLED), Checkpoints(tmp_path, keep=2)
    for epoch, value in enumerate((0.5, 0.3, 0.4, 0.2, 0.9)):
        checkpoints.save(model, epoch, value, ({}, {}))
    names = sorted(path.name for path in tmp_path.glob("*best*"))
    assert names == ["001-best-checkpoint.h5.zip", "003-best-checkpoint.h5.zip"]
    assert [path.name for path in checkpoints.files()] == ["003-best-checkpoint.h5.zip", "last.h5.zip"]


def test_another_scan_can_judge(scan: Scan, tmp_path: Path) -> None:
    brighter = replace(scan, probe=scan.probe * np.complex64(1.5))
    alike, unlike = (fit(scan, tmp_path, nepochs=1, test_scan=other) for other in (scan, brighter))
    assert alike.history["train_loss"] == unlike.history["train_loss"]
    assert unlike.history["val_loss"][0] > 2 * alike.history["val_loss"][0]


def test_metrics_are_written_epoch_by_epoch(scan: Scan, tmp_path: Path) -> None:
    result = fit(scan, tmp_path, logger_backend="csv", torch_loss_mode="poisson", scheduler="Exponential")
    with (tmp_path / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["poisson_train_loss"]) for row in rows] == result.history["train_loss"]
    assert [float(row["poisson_val_loss"]) for row in rows] == result.history["val_loss"]
    assert [float(row["learning_rate"]) for row in rows] == pytest.approx([1e-3, 0.95e-3])


@pytest.mark.parametrize("kind", ["tensorboard", "mlflow"])
def test_numbers_reach_the_other_loggers(scan: Scan, tmp_path: Path, kind: str) -> None:
    pytest.importorskip(kind)
    result = fit(scan, tmp_path, logger_backend=kind, nepochs=1)
    if kind == "tensorboard":
        assert list((tmp_path / "tensorboard").glob("events.*"))
        return
    from ptycho.run.mlflow_store import quiet_client, store_uri

    assert result.run_id is not None
    run = quiet_client(store_uri(tmp_path / "mlruns")).get_run(result.run_id)
    assert run.data.metrics["amplitude_train_loss"] == pytest.approx(result.history["train_loss"][0])
    assert run.info.status == "FINISHED"


class Told(Progress):
    """Keeps what a training run says; breaks it off when told to."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.said: list[tuple[str, int, dict[str, Any]]] = []
        self.stop_after = stop_after

    def phase(self, name: str, total: int) -> Phase:
        outer = self

        class Keeping(Phase):
            def update(self, done: int, **values: Any) -> None:
                outer.said.append((name, done, values))
                if name == "training" and done == outer.stop_after:
                    raise KeyboardInterrupt

        return Keeping()


def test_an_interrupted_training_leaves_the_last_whole_epoch(scan: Scan, tmp_path: Path) -> None:
    told = Told(stop_after=2)
    with pytest.raises(KeyboardInterrupt):
        fit(scan, tmp_path, nepochs=5, progress=told)
    done = [step for name, step, values in told.said if name == "training" and values["train_loss"] > 0]
    assert done == [1, 2]
    found = read_state(tmp_path / "checkpoints/last.h5.zip")
    assert found is not None
    assert found[0]["epoch"] == 1


# --- bundles and reconstruction ---


@pytest.mark.parametrize("model", [UNROLLED, CNN])
def test_a_model_survives_its_bundle(scan: Scan, tmp_path: Path, model: ModelConfig) -> None:
    trained = PtychoPINN(model, 5)
    trained.attach_scan(scan.probe, scan.record, refined=False)
    trained.log_gain.assign(0.125)
    path = write_bundle(tmp_path / "wts.h5.zip", engine.to_bundle(trained))
    loaded = engine.load(path)
    assert engine.core_config(loaded) == model
    first, second = reconstruct(trained, scan), reconstruct(loaded, scan)
    np.testing.assert_array_equal(first.obj, second.obj)
    trained.log_gain.assign(0.0)
    np.testing.assert_allclose(reconstruct(trained, scan).obj * np.exp(0.125), first.obj, rtol=1e-5)


def test_a_torch_checkpoint_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"last\.ckpt: this is a checkpoint of the PyTorch backend"):
        engine.load(tmp_path / "last.ckpt")


def test_a_bundle_of_another_network_is_refused(scan: Scan, tmp_path: Path) -> None:
    weights = initial_weights(architecture_table(CNN), 0)
    path = write_bundle(tmp_path / "cnn.h5.zip", Bundle("numpy", CNN, weights, scan.probe))
    with pytest.raises(BundleError, match="weights do not fit the architecture"):
        fit(scan, tmp_path, resume=path)


def test_an_untrained_network_reconstructs_the_scan_in_any_weighting(scan: Scan) -> None:
    model = PtychoPINN(replace(UNROLLED, unrolled_steps=22))
    model.attach_scan(scan.probe, scan.record, refined=False)
    found = reconstruct(model, scan, fit_scale=True)
    assert found.obj.dtype == np.complex64
    assert np.abs(np.abs(found.obj[found.scanned]).mean() - 0.9) < 0.15
    assert found.coverage.max() == 1.0
    stitched = PtychoPINN(CNN)
    stitched.attach_scan(scan.probe, scan.record, refined=False)
    probe, uniform = (reconstruct(stitched, scan, patch_weighting=name).obj for name in ("probe", "uniform"))
    assert probe.shape == uniform.shape == found.obj.shape
    assert np.abs(probe - uniform)[found.scanned].max() > 1e-3


# --- what is refused ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accelerator": "mps"}, "this machine has no mps device for TensorFlow"),
        ({"precision": "16-mixed"}, "TensorFlow cannot train with precision=16-mixed .*'bf16-mixed'"),
        ({"devices": 2}, "TensorFlow cannot train with devices=2"),
        ({"gradient_clip_val": 1.0, "gradient_clip_algorithm": "agc"}, "cannot clip this way"),
        ({"checkpoint_monitor_metric": "fun"}, "checkpoint_monitor_metric is unknown"),
    ],
)
def test_what_only_lightning_does_is_refused(
    scan: Scan, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        fit(scan, tmp_path, **options)
    assert not (tmp_path / "checkpoints").exists()


def test_a_training_that_diverges_says_so(scan: Scan, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"the loss is not finite in epoch \d"):
        fit(scan, tmp_path, learning_rate=1e30, optimizer="sgd", nepochs=5)
