"""Training by hidden pixels in both backends: what it starts from, what it chooses, and that it pays."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ptycho.config.choices import HIDDEN_DEFAULTS
from ptycho.config.config import ModelConfig, PyTorchExecutionConfig, TrainingConfig
from ptycho.data.hidden import TURNS, UNSEEN, pixel_sets
from ptycho.data.npz import read_npz
from ptycho.errors import ConfigError
from ptycho.files.reader import open_scan
from ptycho.networks.bundle import read_bundle
from ptycho.run import pipeline
from ptycho.run.engines import PRETRAINED_FILE
from ptycho.simulation.simulate import SimulationOptions, write_scan
from ptycho.solver.options import RefineOptions
from tests.runs import Told, error, reconstructed

pytestmark = pytest.mark.slow
BACKENDS = ("pytorch", "tensorflow")
QUIET = PyTorchExecutionConfig(accelerator="cpu", logger_backend=None, enable_checkpointing=False)
NETWORK = ModelConfig(N=32, architecture="unrolled", unrolled_steps=62, unrolled_likelihood="poisson")
HIDDEN = {name: HIDDEN_DEFAULTS[name] for name in ("torch_loss_mode", "learning_rate")}
DIM = SimulationOptions(
    n_px=32, n_y=10, n_x=10, step_px=4.0, photons=3e3, seed=3, scene="collage", probe="zone-plate"
)
"""So few photons in a disc of flat phase tell slow phases so badly that chance decides over the error."""
SAME_LOSS = 2e-3
"""Losses of two backends after some epochs, relative: single precision through steps of Adam."""


def train(backend: str, scan: Path, folder: Path, **changes: Any) -> tuple[Any, Told]:
    """Train by hidden pixels; return the outcome and what was told."""
    told = Told()
    given = {"model": NETWORK, "nepochs": 4, "n_groups": 512, **HIDDEN, **changes}
    config = TrainingConfig(backend=backend, train_data_file=scan, output_dir=folder, **given)
    return pipeline.train(config, QUIET, progress=told), told


@pytest.fixture(scope="module")
def dim_scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("dim") / "scan.npz"
    write_scan(path, DIM)
    return path


@pytest.fixture(scope="module")
def runs(dim_scan: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, Told]]:
    folder = tmp_path_factory.mktemp("runs")
    return {backend: train(backend, dim_scan, folder / backend) for backend in BACKENDS}


def test_both_backends_learn_the_same(runs: dict[str, tuple[Any, Told]]) -> None:
    torch, tensorflow = (runs[backend][0].result.history for backend in BACKENDS)
    for name in ("train_loss", "val_loss"):
        assert len(torch[name]) == 4
        np.testing.assert_allclose(torch[name], tensorflow[name], rtol=SAME_LOSS)


@pytest.mark.parametrize("backend", BACKENDS)
def test_training_beats_plain_iterations_and_the_network_it_began_with(
    backend: str, runs: dict[str, tuple[Any, Told]], dim_scan: Path
) -> None:
    outcome, told = runs[backend]
    scan, plain = open_scan(dim_scan), RefineOptions(60, likelihood="poisson", start="flat")
    others = [reconstructed(scan, backend, how, fit_probe=False) for how in (None, plain)]
    trained = error(dim_scan, outcome.reconstruction)
    assert trained < 0.97 * min(error(dim_scan, found) for found in others)
    (line,) = [text for text in told.lines if text.startswith("hidden pixels: ")]
    assert line.count("% better than") == 2


def test_the_pixels_that_validate_change_nothing_but_the_validation(
    dim_scan: Path, tmp_path: Path, runs: dict[str, tuple[Any, Told]]
) -> None:
    arrays = read_npz(dim_scan)
    sets = pixel_sets(42, np.arange(len(arrays["diff3d"])), 32)
    # Counts of lit pixels stay counts of lit pixels, so that no check takes them for damage.
    moved = np.where(sets == UNSEEN, np.roll(arrays["diff3d"], 1, axis=0), arrays["diff3d"])
    assert (moved != arrays["diff3d"]).any()
    np.savez(tmp_path / "moved.npz", **{**arrays, "diff3d": moved})
    found, _ = train("pytorch", tmp_path / "moved.npz", tmp_path / "run")
    before = runs["pytorch"][0].result.history
    np.testing.assert_allclose(found.result.history["train_loss"], before["train_loss"], rtol=1e-6)
    assert not np.allclose(found.result.history["val_loss"], before["val_loss"], rtol=1e-3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_training_begins_with_the_network_that_is_asked_for(
    backend: str, dim_scan: Path, tmp_path: Path
) -> None:
    frozen = {"nepochs": 1, "learning_rate": 1e-12, "model": replace(NETWORK, unrolled_steps=8)}
    shipped, _ = train(backend, dim_scan, tmp_path / "shipped", **frozen)
    known = read_bundle(PRETRAINED_FILE).weights
    found = shipped.result.model.generator.export_weights()
    assert all(np.allclose(found[name], known[name], atol=1e-6) for name in known)
    drawn, _ = train(backend, dim_scan, tmp_path / "drawn", init_weights="none", **frozen)
    assert not drawn.result.model.generator.export_weights()["unet0_out/kernel"].any()
    # A folder of a training, whose weights another training goes on from.
    again, _ = train(backend, dim_scan, tmp_path / "again", init_weights=str(tmp_path / "drawn"), **frozen)
    assert not again.result.model.generator.export_weights()["unet0_out/kernel"].any()


def test_a_network_of_another_width_is_drawn_from_the_seed(dim_scan: Path, tmp_path: Path) -> None:
    narrow = replace(NETWORK, unrolled_width=4, unrolled_steps=4)
    _, told = train("pytorch", dim_scan, tmp_path, model=narrow, nepochs=1)
    assert (
        "the training begins with weights from the seed: the pre-trained network has unrolled_width 24"
        in (told.lines)
    )
    with pytest.raises(ConfigError, match=r"--init-weights: .* \(got unrolled_width 24, expected 4\)"):
        train("pytorch", dim_scan, tmp_path / "other", model=narrow, init_weights="pretrained")


def test_hidden_pixels_choose_the_probe(dim_scan: Path, tmp_path: Path) -> None:
    frozen = {"nepochs": 1, "probe_trainable": True, "model": replace(NETWORK, unrolled_steps=22)}
    right, told = train("pytorch", dim_scan, tmp_path / "right", **frozen)
    assert any(
        line.startswith("probe: that of the file; a fitted one explains unseen") for line in told.lines
    )
    assert not right.result.model.probe_refined
    write_scan(tmp_path / "wrong.npz", replace(DIM, photons=1e5, probe_error_waves=0.5))
    wrong, told = train("pytorch", tmp_path / "wrong.npz", tmp_path / "wrong", **frozen)
    assert any(line.startswith("probe: fitted, which explains unseen photons") for line in told.lines)
    assert wrong.result.model.probe_refined


def test_a_network_of_groups_has_no_hidden_pixels(dim_scan: Path, tmp_path: Path) -> None:
    model = ModelConfig(N=32, architecture="cnn", gridsize=1)
    with pytest.raises(ConfigError, match="a network that sees groups cannot learn from hidden pixels"):
        train("pytorch", dim_scan, tmp_path, model=model)


@pytest.mark.parametrize("backend", BACKENDS)
def test_several_scans_and_one_that_validates(backend: str, dim_scan: Path, tmp_path: Path) -> None:
    write_scan(tmp_path / "other.npz", replace(DIM, seed=5, n_y=8))
    changes = {
        "train_data_file": [dim_scan, tmp_path / "other.npz"],
        "test_data_file": tmp_path / "other.npz",
    }
    told = Told()
    config = TrainingConfig(
        replace(NETWORK, unrolled_steps=12), backend=backend, nepochs=5, output_dir=tmp_path / "run",
        **HIDDEN, **changes,
    )  # fmt: skip
    outcome = pipeline.train(config, QUIET, progress=told)
    history = outcome.result.history
    assert len(history["val_loss"]) == 5
    (line,) = [text for text in told.lines if text.startswith("hidden pixels: ")]
    # What is learned on both helps the one that validates.
    assert line.count("% better than") == 2


def test_networks_see_an_image_turned_and_what_they_answer_is_turned_back() -> None:
    from ptycho.tf import generators as tensorflow
    from ptycho.tf.runtime import tf
    from ptycho_torch import generators as torch_side

    images = np.random.default_rng(0).normal(size=(2, 3, 4, 6)).astype(np.float32)
    rotated = {3: np.rot90(images, 2, (2, 3)), 6: np.rot90(images, 1, (2, 3)), 4: images.swapaxes(2, 3)}
    seen = set()
    for turn in range(TURNS):
        found = torch_side.turned(torch.from_numpy(images), torch.tensor(turn))
        seen.add(found.numpy().tobytes())
        if turn in rotated:
            np.testing.assert_array_equal(found, rotated[turn])
        np.testing.assert_array_equal(torch_side.turned_back(found, torch.tensor(turn)), images)
        last = tf.constant(images.transpose(0, 2, 3, 1))
        other = tensorflow.turned(last, tf.constant(turn))
        np.testing.assert_array_equal(other.numpy().transpose(0, 3, 1, 2), found)
        np.testing.assert_array_equal(tensorflow.turned_back(other, tf.constant(turn)), last)
    assert len(seen) == TURNS


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_training_that_only_harms_hands_on_what_it_began_with(
    backend: str, dim_scan: Path, tmp_path: Path
) -> None:
    outcome, told = train(backend, dim_scan, tmp_path, nepochs=2, learning_rate=0.03)
    known, found = read_bundle(PRETRAINED_FILE).weights, outcome.result.model.generator.export_weights()
    assert all(np.array_equal(found[name], known[name]) for name in known)
    assert outcome.result.model.trained_epoch.number == 0
    assert any("and 0 % better than the network it began with" in line for line in told.lines)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_gain_that_may_be_chance_hands_on_what_it_began_with(
    backend: str, dim_scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ptycho.run.feeds.beyond_chance", lambda gains: gains.sum() < 0)
    outcome, told = train(backend, dim_scan, tmp_path, nepochs=2)
    assert min(outcome.result.history["val_loss"]) < outcome.result.model.trained_epoch.loss
    assert outcome.result.model.trained_epoch.number == 0
    known = read_bundle(PRETRAINED_FILE).weights
    for model in (read_bundle(tmp_path / "wts.h5.zip"), outcome.result.model.to_bundle()):
        assert all(np.array_equal(model.weights[name], known[name]) for name in known)
    assert any("which is chance; the network it began with stays" in line for line in told.lines)
