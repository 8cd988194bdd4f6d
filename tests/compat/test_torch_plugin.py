"""Facts about the plug-in ``PtychoPINN-Torch`` of Ptychodus 1.7: the client trains, saves and reconstructs.

Every training and every reconstruction runs in a child process that the client starts.
"""

from __future__ import annotations

import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import pytest
from compat import client
from numpy.typing import NDArray
from ptychodus.api.object import Object
from ptychodus.api.reconstruct import TrainableReconstructor, TrainOutput
from ptychodus.model.processing._subprocess_protocol import ChildError

from ptycho_torch.config_params import DataConfig, ModelConfig, TrainingConfig
from ptycho_torch.lightning_utils import find_best_checkpoint
from ptycho_torch.train import train_folder

pytestmark = pytest.mark.slow

PLACE_PX = 0.5
"""How far a feature may lie from its place in the world: the contract with the client."""
MARGIN_PX = 12
"""Border that sees little light."""
REACH_PX = 2.0
"""Features this far outside the bounding box of the scan count; farther out the light fades."""
CANCEL_S = 10.0
"""The client kills a child that is still there after so long."""
EPOCHS, SUPERVISED_EPOCHS = 8, 60
SCAN = {"n_px": 32, "n_y": 7, "n_x": 7, "step_px": 3.0, "photons": 1e6, "seed": 3}
QUICK = {"model_settings.num_filters_scale": 1, "data_settings.num_channels": 1}


class Trained(NamedTuple):
    """A reconstructor after its training, what the training told, and the folders it used."""

    chosen: TrainableReconstructor
    told: TrainOutput
    inputs: Path
    outputs: Path

    @property
    def run(self) -> Path:
        """The one folder of the run."""
        (folder,) = self.outputs.iterdir()
        return folder


def start(name: str, **settings: Any) -> TrainableReconstructor:
    named = {f"training_settings.{key}": value for key, value in settings.items()}
    return client.reconstructor("torch", name, {**QUICK, **named})


@pytest.fixture(scope="module")
def experiment() -> client.Experiment:
    return client.simulate_experiment(n_modes=2, **SCAN)


@pytest.fixture(scope="module")
def cwd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Work in an empty folder, as a client that was started somewhere."""
    folder = tmp_path_factory.mktemp("cwd")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("TMPDIR", str(tmp_path_factory.mktemp("scratch")))
        yield folder


@pytest.fixture(scope="module")
def unsupervised(
    experiment: client.Experiment, cwd: Path, tmp_path_factory: pytest.TempPathFactory
) -> Trained:
    """Train with the client's defaults; only the epochs are fewer. The detector has a hole."""
    hole = np.zeros((32, 32), dtype=bool)
    hole[4:6, 20:22] = True
    chosen = client.reconstructor("torch", "Unsupervised", {"training_settings.epochs": EPOCHS})
    folder = tmp_path_factory.mktemp("unsupervised")
    client.export(chosen, experiment.input(bad_pixels=hole), folder / "in")
    return Trained(chosen, client.train(chosen, folder / "in", folder / "out"), folder / "in", folder / "out")


def test_the_defaults_of_the_client_train_and_deliver_both_loss_curves(unsupervised: Trained) -> None:
    training, validation = unsupervised.told.training_loss, unsupervised.told.validation_loss
    assert [loss.epoch for loss in training] == [loss.epoch for loss in validation] == list(range(EPOCHS))
    assert training[-1].value < 0.7 * training[0].value
    assert validation[-1].value < validation[0].value
    assert unsupervised.told.progress == EPOCHS


def test_a_training_leaves_its_checkpoints_in_a_folder_of_its_own_and_nothing_elsewhere(
    unsupervised: Trained, cwd: Path
) -> None:
    assert unsupervised.run.name.startswith("run_")
    assert find_best_checkpoint(unsupervised.run) == unsupervised.run / "checkpoints/best-checkpoint.ckpt"
    assert sorted(path.stem for path in (unsupervised.run / "configs").iterdir()) == [
        "data_config",
        "inference_config",
        "model_config",
        "training_config",
    ]
    assert sorted(path.name for path in unsupervised.inputs.iterdir()) == ["train_data.npz"]
    assert list(cwd.iterdir()) == []
    assert scratch_folders() == []


def scratch_folders() -> list[Path]:
    """Return the scratch folders of the toolkit that lie about."""
    return list(Path(os.environ["TMPDIR"]).glob("ptychopinn-*"))


def test_a_checkpoint_saved_alone_under_another_name_gives_the_same_object(
    unsupervised: Trained, experiment: client.Experiment, tmp_path: Path
) -> None:
    saved = tmp_path / "my model.ckpt"
    unsupervised.chosen.save_model(saved)
    again = start("Unsupervised")
    again.load_model_from_file(saved)
    found = client.reconstruct(again, experiment.input())
    expected = client.reconstruct(unsupervised.chosen, experiment.input())
    assert found.num_layers == 1
    assert np.iscomplexobj(found.get_array())
    np.testing.assert_allclose(found.get_array(), expected.get_array(), rtol=1e-5, atol=1e-6)
    # Every position takes part, those at the border too.
    sized = experiment.object_for(np.arange(len(experiment.patterns)))
    assert abs(found.height_px - sized.height_px) <= 1
    assert abs(found.width_px - sized.width_px) <= 1
    assert 0.7 < transmission_ratio(found, experiment.truth) < 1.3


def transmission_ratio(found: Object, truth: Object) -> float:
    """Return how the mean transmission compares; a network of a few epochs gets that right."""
    inner = (slice(MARGIN_PX, -MARGIN_PX),) * 2
    return float(np.abs(found.get_layer(0)[inner]).mean() / np.abs(truth.get_layer(0)[inner]).mean())


def uneven_rows() -> NDArray[np.int64]:
    """A scan that is dense at one end: its mean is far from the middle of its bounding box."""
    return np.concatenate([np.arange(21), np.arange(21, 49, 2)])


@pytest.mark.parametrize("extra_yx_px", [(0, 0), (1, 1)])
def test_features_lie_at_their_place_in_the_world(
    experiment: client.Experiment, unsupervised: Trained, whole_scan: Path, extra_yx_px: tuple[int, int]
) -> None:
    """Even and odd sizes, by a network that is sharp at once: its steps are physics before any training."""
    rows = uneven_rows()
    positions_px = experiment.positions_yx_m[rows] / np.array([client.PIXEL.height_m, client.PIXEL.width_m])
    middle = (positions_px.min(axis=0) + positions_px.max(axis=0)) / 2
    assert middle[0] - positions_px.mean(axis=0)[0] > 2 * PLACE_PX
    chosen = start("Unsupervised")
    chosen.load_model_from_file(whole_scan)
    data = experiment.input(rows=rows, obj=experiment.object_for(rows, extra_yx_px))
    found = client.reconstruct(chosen, data)
    where = experiment.positions_yx_m[rows]
    moved = client.displacement_px(found, experiment.truth, where, reach_px=REACH_PX)
    assert abs(moved).max() < PLACE_PX, f"the features lie {moved} px off their place"


def test_a_scan_in_steps_of_half_pixels_is_reconstructed(whole_scan: Path) -> None:
    stepped = client.simulate_experiment(**{**SCAN, "step_px": 2.5, "jitter_px": 0.0})
    assert client.fractions_px(stepped) == {0.0, 0.5}
    chosen = start("Unsupervised")
    chosen.load_model_from_file(whole_scan)
    found = client.reconstruct(chosen, stepped.input())
    moved = client.displacement_px(found, stepped.truth, stepped.positions_yx_m, reach_px=REACH_PX)
    assert abs(moved).max() < PLACE_PX, f"the features lie {moved} px off their place"


@pytest.fixture(scope="module")
def whole_scan(unsupervised: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train the network for whole scans as a command line does; return its checkpoint."""
    folder = tmp_path_factory.mktemp("whole")
    settings = (
        DataConfig(C=1, grid_size=(1, 1)),
        ModelConfig(architecture="unrolled", unrolled_steps=8, unrolled_width=4, C_model=1, C_forward=1),
        TrainingConfig(epochs=1, device="cpu", torch_loss_mode="amplitude"),
    )
    train_folder(unsupervised.inputs, existing_config=settings, output_dir=folder)
    return folder / "checkpoints/best-checkpoint.ckpt"


def test_a_supervised_training_learns_the_object_of_the_product(
    cwd: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Labels are cut from the object; the counts have another type, and a second scan judges."""
    experiment = client.simulate_experiment(dtype=np.int32, **SCAN)
    chosen = start("Supervised", epochs=SUPERVISED_EPOCHS, batch_size=8, num_dataloader_workers=0)
    for name in ("train_data", "test_data"):
        client.export(chosen, experiment.input(), tmp_path / "in", name)
    with caplog.at_level(logging.INFO):
        told = client.train(chosen, tmp_path / "in", tmp_path / "out")
    for epoch in range(1, SUPERVISED_EPOCHS + 1):
        assert f"training: {epoch}/{SUPERVISED_EPOCHS}, train_loss" in caplog.text
    assert len(told.training_loss) == len(told.validation_loss) == SUPERVISED_EPOCHS
    assert told.training_loss[-1].value < 0.75 * told.training_loss[0].value
    found = client.reconstruct(chosen, experiment.input())
    assert np.isfinite(found.get_array()).all()
    assert 0.7 < transmission_ratio(found, experiment.truth) < 1.3


def test_what_is_wrong_reaches_the_window_in_one_line(
    unsupervised: Trained, experiment: client.Experiment, tmp_path: Path
) -> None:
    chosen = client.reconstructor("torch", "Unsupervised", {"data_settings.num_channels": 3})
    with pytest.raises(ChildError) as caught:
        client.train(chosen, unsupervised.inputs, tmp_path / "out")
    assert type(caught.value.child_exception).__name__ == "ConfigError"
    assert "the number of channels is no square (got 3" in str(caught.value.child_exception)
    assert "\n" not in str(caught.value.child_exception)
    assert not (tmp_path / "out").exists()


def wait_for(found: Callable[[], Any], seconds: float) -> Any:
    """Return what is found as soon as it is there."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := found():
            return value
        time.sleep(0.05)
    raise AssertionError("it did not come")


def test_a_cancelled_training_ends_soon_with_its_workers_and_leaves_its_last_checkpoint(
    unsupervised: Trained, experiment: client.Experiment, tmp_path: Path
) -> None:
    inputs = tmp_path / "in"
    shutil.copytree(unsupervised.inputs, inputs)
    chosen, raised = start("Unsupervised", epochs=100_000, num_dataloader_workers=2), []

    def run() -> None:
        try:
            client.train(chosen, inputs, tmp_path / "out")
        except ChildError as error:
            raised.append(error)

    before = set(psutil.Process().children())
    thread = threading.Thread(target=run)
    thread.start()
    wait_for(lambda: list(tmp_path.glob("out/*/checkpoints/last.ckpt")), 120)
    started = set(psutil.Process().children()) - before
    (child,) = [process for process in started if "spawn_main" in " ".join(process.cmdline())]
    workers = wait_for(child.children, 60)
    assert len(scratch_folders()) == 1
    told = time.monotonic()
    child.terminate()
    _, alive = psutil.wait_procs([child, *workers], timeout=3 * CANCEL_S)
    took = time.monotonic() - told
    thread.join(60)
    assert not alive
    assert took < CANCEL_S
    assert [error.child_exception_type for error in raised] == ["Terminated"]
    assert scratch_folders() == []
    kept = find_best_checkpoint(next((tmp_path / "out").iterdir()))
    assert kept is not None
    assert {path.name for path in kept.parent.iterdir()} == {"best-checkpoint.ckpt", "last.ckpt"}
    again = start("Unsupervised")
    again.load_model_from_file(kept)
    assert client.reconstruct(again, experiment.input()).num_layers == 1
