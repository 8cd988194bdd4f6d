"""Files that version 0.1.0 wrote: each still loads, and gives what that version made of it.

``tests/data/v0_1_0/README.md`` says how they were made. They are never written again: a change that cannot
read them breaks the files of users, and needs a way to read both.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from old_bundle import write_cnn_bundle

from ptycho.config.config import (
    InferenceConfig,
    ModelConfig,
    PyTorchExecutionConfig,
    TrainingConfig,
    build_config,
    flat_settings,
)
from ptycho.data.npz import read_npz
from ptycho.errors import ConfigError
from ptycho.evaluation.comparison import read_reconstruction, stored_domain
from ptycho.files.overwrites import holds_training
from ptycho.networks.architectures import CORRECTION_FACTOR
from ptycho.networks.bundle import read_bundle
from ptycho.physics import slow_phase
from ptycho.process.progress import Progress
from ptycho.run import pipeline
from ptycho.run.engines import find_model, initial_network, load_engine
from ptycho.run.evaluate import Request, evaluate

DATA = Path(__file__).resolve().parents[1] / "data" / "v0_1_0"
SCAN = DATA / "scan.npz"
RUNS = ("pytorch", "tensorflow")
"""Folder of a training run -> the backend that trained, of the same name."""
LAST = {"pytorch": "checkpoints/last.ckpt", "tensorflow": "checkpoints/last.h5.zip"}
CPU = PyTorchExecutionConfig(accelerator="cpu", logger_backend=None)
SAME_OBJECT = 1e-4
"""Of the largest modulus: complex64 sums in another order, on another machine."""
SAME_LOSS = 1e-4
SAME_SCORE = 1e-3


def stored(path: Path) -> Any:
    """Return what a JSON file of that version holds."""
    return json.loads(path.read_text(encoding="utf-8"))


def inference(model: Path, backend: str, folder: Path) -> InferenceConfig:
    """Return the settings of a reconstruction of the scan as the stored one was made."""
    files = {"model_path": model, "test_data_file": SCAN, "output_dir": folder}
    return InferenceConfig(ModelConfig(), backend=backend, **files)


def reconstructed(model: Path, backend: str, folder: Path) -> dict[str, np.ndarray]:
    """Reconstruct the scan with a stored model; return the arrays of the reconstruction.npz."""
    pipeline.infer(inference(model, backend, folder), CPU)
    return read_npz(folder / "reconstruction.npz")


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """Two reconstruction.npz hold one object in one place, seen by one probe."""
    for key in ("object", "probe", "coverage"):
        largest = np.abs(expected[key]).max()
        np.testing.assert_allclose(found[key], expected[key], rtol=0, atol=SAME_OBJECT * largest, err_msg=key)
    for key in ("origin_yx_px", "positions_yx_px", "pattern_index"):
        np.testing.assert_array_equal(found[key], expected[key], err_msg=key)
    assert json.loads(str(found["scale_record"])) == json.loads(str(expected["scale_record"]))
    # A flat object would agree with many a broken network.
    assert np.abs(expected["object"]).std() > 0.03


@pytest.mark.parametrize("backend", RUNS)
@pytest.mark.parametrize("run", RUNS)
def test_a_bundle_reconstructs_the_stored_object_in_both_backends(
    run: str, backend: str, tmp_path: Path
) -> None:
    bundle = read_bundle(DATA / run)
    assert bundle.backend == run
    assert bundle.probe_refined
    assert bundle.probe_start is not None
    record = stored(DATA / run / "config.json")
    assert bundle.scale_record is not None
    assert bundle.scale_record.to_dict() == record["scale_record"]
    assert bundle.model == build_config(type(bundle.model), record["config"]["model"])
    losses = stored(DATA / run / "history.json")["val_loss"]
    epoch = bundle.trained_epoch
    assert epoch is not None
    assert (epoch.number, epoch.monitor) == (int(np.argmin(losses)) + 1, "val_loss")
    assert epoch.loss == pytest.approx(min(losses))
    assert find_model(DATA / run, backend) == DATA / run / "wts.h5.zip"
    found = reconstructed(DATA / run, backend, tmp_path / "out")
    assert_same(found, read_npz(DATA / run / "reconstruction.npz"))


@pytest.mark.parametrize("backend", RUNS)
def test_a_bundle_of_cnn_reconstructs_the_stored_object_in_both_backends(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The settings are those of its record: a few steps of the forward model with a factor on every frame.
    That version took the slow phase of a step no further than the rest (eq. 24)."""
    monkeypatch.setattr(slow_phase, "MOST_PHASE_GAIN", 1.0)
    asked = stored(DATA / "cnn" / "config.json")["config"]
    config = build_config(InferenceConfig, flat_settings(asked, "config.json"))
    assert (config.refine_steps, config.refine_frames, config.keep_frames) == (4, True, True)
    config.backend, config.test_data_file, config.output_dir = backend, SCAN, tmp_path / "out"
    config.model_path = write_cnn_bundle(DATA / "cnn", tmp_path / "wts.h5.zip")
    assert read_bundle(config.model_path).model.architecture == "cnn"
    pipeline.infer(config, CPU)
    found, expected = (read_npz(path / "reconstruction.npz") for path in (config.output_dir, DATA / "cnn"))
    assert_same(found, expected)
    for key in ("frame_gain", "misfit"):
        np.testing.assert_allclose(found[key], expected[key], rtol=SAME_SCORE, err_msg=key)
    assert str(found["file_options"]) == str(expected["file_options"])


def test_a_reconstruction_tells_factors_misfits_and_what_its_user_said() -> None:
    read = read_reconstruction(DATA / "cnn")
    assert read.frame_gain is not None
    assert np.ptp(read.frame_gain) > 0.02
    assert len(read.misfit) == 5
    assert read.stored is not None
    assert read.stored.options == {"keep_frames": True}


@pytest.mark.parametrize("run", RUNS)
def test_a_checkpoint_is_a_model(run: str, tmp_path: Path) -> None:
    found = reconstructed(DATA / run / LAST[run], run, tmp_path / "out")
    # The last epoch was the best one.
    assert_same(found, read_npz(DATA / run / "reconstruction.npz"))
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    shutil.copyfile(DATA / run / LAST[run], tmp_path / "run" / LAST[run])
    assert find_model(tmp_path / "run", run) == tmp_path / "run" / LAST[run]


@pytest.mark.parametrize("run", RUNS)
def test_a_training_goes_on_from_a_checkpoint_with_the_settings_of_its_record(
    run: str, tmp_path: Path
) -> None:
    record, expected = stored(DATA / run / "config.json"), stored(DATA / run / "resumed.json")
    assert record["seed"] == record["config"]["seed"] == 42
    assert record["versions"]["ptychopinn"] == "0.1.0"
    losses = stored(DATA / run / "history.json")["val_loss"]
    assert record["config"]["nepochs"] == len(losses) == 3
    config = build_config(TrainingConfig, flat_settings(record["config"], "config.json"))
    again = json.loads(json.dumps(dataclasses.asdict(config), default=str))
    # What a later version adds has its default.
    assert {name: again[name] for name in record["config"] if name != "model"} | {
        "model": {name: again["model"][name] for name in record["config"]["model"]}
    } == record["config"]
    config.nepochs, config.train_data_file, config.output_dir = 5, SCAN, tmp_path / "more"
    for file in (DATA / run / "checkpoints").iterdir():
        shutil.copyfile(file, tmp_path / file.name)
    outcome = pipeline.train(
        config,
        PyTorchExecutionConfig(**record["execution"]),
        resume=tmp_path / Path(LAST[run]).name,
    )
    assert outcome.result.history.keys() == expected.keys() == {"train_loss", "val_loss"}
    for name, losses in expected.items():
        assert len(losses) == 2
        np.testing.assert_allclose(outcome.result.history[name], losses, rtol=SAME_LOSS, err_msg=name)


@pytest.mark.parametrize("backend", RUNS)
@pytest.mark.parametrize("run", RUNS)
def test_a_training_may_begin_with_a_network_whose_corrections_have_full_size(run: str, backend: str) -> None:
    model = read_bundle(DATA / run).model
    files = [DATA / run, *([DATA / run / LAST[run]] if run == backend else [])]
    for file in files:
        config = TrainingConfig(model, backend=backend, init_weights=str(file))
        begun = initial_network(load_engine(backend), config, Progress())
        assert begun is not None
        np.testing.assert_array_equal(begun.weights[CORRECTION_FACTOR], [1, 1])
        # The last epoch was the best one.
        expected = read_bundle(DATA / run).weights
        assert begun.weights.keys() == expected.keys()
        for name, weight in expected.items():
            np.testing.assert_array_equal(begun.weights[name], weight, err_msg=name)


@pytest.mark.parametrize("run", RUNS)
def test_a_reconstruction_gets_the_scores_it_got(run: str, tmp_path: Path) -> None:
    expected = stored(DATA / run / "scores.json")
    path = DATA / run / "reconstruction.npz"
    assert stored_domain(path) == "counts"
    read = read_reconstruction(path).stored
    assert read.record is not None
    assert read.record.to_dict() == stored(DATA / run / "config.json")["scale_record"]
    assert read.options == {}
    other = DATA / {"pytorch": "tensorflow", "tensorflow": "pytorch"}[run]
    done = evaluate(Request(DATA / run, truth=SCAN, test_data=SCAN, reference=other), tmp_path / "scores")
    found = {**stored(tmp_path / "scores" / "metrics.json"), **done.scores}
    for name, value in expected.items():
        if isinstance(value, float):
            assert found[name] == pytest.approx(value, rel=SAME_SCORE, abs=SAME_SCORE), name
    assert (found["verdict"], found["bad_patterns"]) == (expected["verdict"], expected["bad_patterns"])
    assert found["residual_worst_pattern"] == expected["residual_worst_pattern"]
    # The other backend found the same object.
    assert found["reference_complex_nrmse"] < SAME_OBJECT


@pytest.mark.parametrize("run", RUNS)
def test_the_record_of_a_training_keeps_an_inference_out_of_its_folder(run: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    shutil.copyfile(DATA / run / "config.json", folder / "config.json")
    assert holds_training(folder)
    with pytest.raises(ConfigError, match="this is the folder of a training run"):
        pipeline.infer(inference(DATA / run, run, folder), CPU)
    assert [file.name for file in folder.iterdir()] == ["config.json"]


def test_the_record_of_an_inference_keeps_an_evaluation_out_but_no_inference(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    shutil.copyfile(DATA / "cnn" / "config.json", folder / "config.json")
    with pytest.raises(ConfigError, match="this is the folder of a run"):
        evaluate(Request(DATA / "pytorch", truth=SCAN), folder)
    assert not holds_training(folder)
    reconstructed(DATA / "pytorch", "pytorch", folder)
