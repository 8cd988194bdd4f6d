"""Facts about the plug-in ``PtychoPINN`` of Ptychodus 1.7: the client trains, saves, loads and reconstructs.

Every training and every reconstruction runs in a child process that the client starts.
"""

from __future__ import annotations

import logging
import multiprocessing
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from compat import client
from numpy.typing import NDArray
from ptychodus.api.object import Object, ObjectCenter
from ptychodus.api.reconstruct import TrainableReconstructor
from ptychodus.model.processing._subprocess_protocol import ChildError

from ptycho.config.config import ModelConfig
from ptycho.networks.architectures import architecture_table, initial_weights
from ptycho.networks.bundle import Bundle, read_bundle, write_bundle
from ptycho.run.engines import PRETRAINED_FILE

pytestmark = pytest.mark.slow

PLACE_PX = 0.5
"""How far a feature may lie from its place in the world: the contract with the client."""
MARGIN_PX = 12
"""Border that sees little light."""
REACH_PX = 2.0
"""Features this far outside the bounding box of the scan count; farther out the light fades."""
CANCEL_S = 10.0
"""The client kills a child that is still there after so long."""
QUICK = {"model_settings.n_filters_scale": 1, "training_settings.batch_size": 4}
SIDE = 14
SCAN = {"n_px": 32, "n_y": SIDE, "n_x": SIDE, "step_px": 2.0, "photons": 1e6, "seed": 3}
EPOCHS = 20
"""Long enough for patterns this dense in batches this small: over several seeds of the scan features
lie at most 0.3 px off. The number of steps counts: with a quarter of them it was 0.7 px."""


class Trained(NamedTuple):
    """A reconstructor after its training, and the folders it used."""

    chosen: TrainableReconstructor
    inputs: Path
    outputs: Path
    cwd: Path


@pytest.fixture(scope="module")
def experiment() -> client.Experiment:
    return client.simulate_experiment(n_modes=2, **SCAN)


@pytest.fixture(scope="module")
def in_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Work in an empty folder, as a client that was started somewhere."""
    folder = tmp_path_factory.mktemp("cwd")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


def start(name: str, **settings: Any) -> TrainableReconstructor:
    groups = {"gridsize": "model", "amp_activation": "model", "n_samples": "inference"}
    named = {f"{groups.get(key, 'training')}_settings.{key}": value for key, value in settings.items()}
    return client.reconstructor("tensorflow", name, {**QUICK, **named})


def trained(
    chosen: TrainableReconstructor, experiment: client.Experiment, folder: Path, cwd: Path, **data: Any
) -> Trained:
    inputs, outputs = folder / "in", folder / "out"
    for name in ("train_data", "test_data"):
        client.export(chosen, experiment.input(**data), inputs, name)
    client.train(chosen, inputs, outputs)
    return Trained(chosen, inputs, outputs, cwd)


@pytest.fixture(scope="module")
def pinn(experiment: client.Experiment, in_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Train on an unknown dose, two probe modes and a detector with a hole."""
    hole = np.zeros((32, 32), dtype=bool)
    hole[4:6, 20:22] = True
    chosen = start("PINN", nepochs=EPOCHS, nphotons=0.0)
    return trained(chosen, experiment, tmp_path_factory.mktemp("pinn"), in_folder, bad_pixels=hole)


def populated_lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the lines that say that the legacy dictionary was filled."""
    return [line for line in caplog.messages if "params.cfg populated" in line]


def check_object(found: Object, experiment: client.Experiment, rows: NDArray[np.int64] | None = None) -> None:
    """Judge what every reconstruction must be: one complex layer, at its place in the world."""
    assert found.num_layers == 1
    assert np.iscomplexobj(found.get_array())
    assert np.isfinite(found.get_array()).all()
    where = experiment.positions_yx_m if rows is None else experiment.positions_yx_m[rows]
    moved = client.displacement_px(found, experiment.truth, where, reach_px=REACH_PX)
    assert abs(moved).max() < PLACE_PX, f"the features lie {moved} px off their place"


def test_a_training_leaves_the_model_and_nothing_else(pinn: Trained) -> None:
    left = {path: sorted(item.name for item in path.iterdir()) for path in pinn[1:]}
    assert left == {
        pinn.inputs: ["test_data.npz", "train_data.npz"],
        pinn.outputs: ["history.json", "loss.png", "wts.h5.zip"],
        pinn.cwd: [],
    }
    bundle = read_bundle(pinn.outputs / "wts.h5.zip")
    assert (bundle.model.N, bundle.model.model_type, len(bundle.probe)) == (32, "pinn", 2)


def uneven_rows(experiment: client.Experiment) -> NDArray[np.int64]:
    """A scan that is dense in one corner: its mean lies far from the middle of its bounding box."""
    row, column = np.divmod(np.arange(SIDE**2), SIDE)
    dense = (row < SIDE // 2) & (column < SIDE // 2)
    last = (row == SIDE - 1) & (column == SIDE - 1)
    rows = np.flatnonzero(dense | ((row + 2 * column) % 3 == 0) | last)
    positions_px = experiment.positions_yx_m[rows] / np.array([client.PIXEL.height_m, client.PIXEL.width_m])
    middle = (positions_px.min(axis=0) + positions_px.max(axis=0)) / 2
    assert (middle - positions_px.mean(axis=0) > 2 * PLACE_PX).all()
    return rows


def uneven_scan(
    experiment: client.Experiment, extra_yx_px: tuple[int, int], off_middle_px: float
) -> tuple[NDArray[np.int64], Object]:
    """Return the rows of an uneven scan, and an object whose middle may not be that of the scan."""
    rows = uneven_rows(experiment)
    own = experiment.object_for(rows, extra_yx_px)
    middle = own.get_center()
    centre = ObjectCenter(x_m=middle.x_m + off_middle_px * client.PIXEL.width_m, y_m=middle.y_m)
    return rows, Object(own.get_array(), client.PIXEL, centre)


def part_of_scan(experiment: client.Experiment) -> tuple[NDArray[np.int64], Object]:
    """Return the rows of the left part of the scan, and the object of the whole."""
    return np.flatnonzero(np.arange(SIDE**2) % SIDE < 0.7 * SIDE), experiment.truth


@pytest.fixture(scope="module")
def sharp(experiment: client.Experiment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the command line whose steps are physics before any training: it is sharp at once."""
    model = ModelConfig(N=32, architecture="unrolled", unrolled_width=4)
    weights = initial_weights(architecture_table(model), 1)
    bundle = Bundle("pytorch", model, weights, experiment.probe.get_array().astype(np.complex64))
    return write_bundle(tmp_path_factory.mktemp("sharp") / "wts.h5.zip", bundle)


PLACES = {
    "60 x 59": ((0, 0), 0.0),
    "60 x 60": ((0, 1), 0.0),
    "61 x 59": ((1, 0), 0.0),
    "object from another file": ((0, 5), 2.5),
    "part of a scan": None,
}


def test_the_network_of_the_package_reconstructs_without_training(
    experiment: client.Experiment, tmp_path: Path
) -> None:
    """Its file holds no probe and another pattern size; the client offers no place to say so."""
    model = Path(shutil.copy(PRETRAINED_FILE, tmp_path / "wts.h5.zip"))
    rows, obj = uneven_scan(experiment, *PLACES["60 x 59"])
    chosen = start("PINN")
    chosen.load_model_from_file(model)
    found = client.reconstruct(chosen, experiment.input(rows=rows, obj=obj))
    check_object(found, experiment, rows)


@pytest.mark.parametrize("place", PLACES)
def test_features_lie_at_their_place_in_the_world(
    sharp: Path, experiment: client.Experiment, place: str
) -> None:
    """Even and odd sizes, a mean that is not the middle, and an object with another middle than the scan."""
    case = PLACES[place]
    rows, obj = part_of_scan(experiment) if case is None else uneven_scan(experiment, *case)
    chosen = start("PINN")
    chosen.load_model_from_file(sharp)
    found = client.reconstruct(chosen, experiment.input(rows=rows, obj=obj))
    assert found.get_center() == obj.get_center()
    check_object(found, experiment, rows)
    # The places in the world of the two middles differ by whole pixels and a part, so compare the contrast.
    inner = (slice(MARGIN_PX, -MARGIN_PX),) * 2
    ranges = [np.ptp(abs(layer.get_layer(0)[inner])) for layer in (found, experiment.truth)]
    assert ranges[0] > 0.7 * ranges[1]


def test_a_scan_in_steps_of_half_pixels_is_reconstructed(sharp: Path) -> None:
    stepped = client.simulate_experiment(**{**SCAN, "step_px": 2.5, "jitter_px": 0.0})
    assert client.fractions_px(stepped) == {0.0, 0.5}
    chosen = start("PINN")
    chosen.load_model_from_file(sharp)
    check_object(client.reconstruct(chosen, stepped.input()), stepped)


@pytest.mark.parametrize("place", ["60 x 60", "part of a scan"])
def test_so_they_do_where_the_client_trained_the_network(
    pinn: Trained, experiment: client.Experiment, place: str
) -> None:
    case = PLACES[place]
    rows, obj = part_of_scan(experiment) if case is None else uneven_scan(experiment, *case)
    found = client.reconstruct(pinn.chosen, experiment.input(rows=rows, obj=obj))
    check_object(found, experiment, rows)


def test_a_model_saved_under_another_name_gives_the_same_object(
    pinn: Trained, experiment: client.Experiment, tmp_path: Path
) -> None:
    saved = tmp_path / "my model.zip"
    pinn.chosen.save_model(saved)
    outer = Path(shutil.make_archive(str(tmp_path / "outer"), "zip", pinn.outputs))
    folder = tmp_path / "run"
    shutil.copytree(pinn.outputs, folder / "wts")
    deep = Path(shutil.make_archive(str(tmp_path / "deep"), "zip", folder))
    rows = np.arange(0, SIDE**2, 3)
    expected = client.reconstruct(pinn.chosen, experiment.input(rows=rows)).get_array()
    for path in (saved, outer, deep):
        again = start("PINN")
        again.load_model_from_file(path)
        found = client.reconstruct(again, experiment.input(rows=rows)).get_array()
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_a_supervised_training_of_groups_learns_the_object(in_folder: Path, tmp_path: Path) -> None:
    experiment = client.simulate_experiment(dtype=np.int32, **SCAN)
    run = trained(start("Supervised", nepochs=EPOCHS, gridsize=2), experiment, tmp_path, in_folder)
    assert read_bundle(run.outputs / "wts.h5.zip").model.model_type == "supervised"
    check_object(client.reconstruct(run.chosen, experiment.input()), experiment)
    other = start("Supervised", gridsize=1)
    other.load_model_from_file(run.outputs / "wts.h5.zip")
    with pytest.raises(ChildError, match="with gridsize 2") as caught:
        client.reconstruct(other, experiment.input())
    assert type(caught.value.child_exception).__name__ == "DataError"
    assert "\n" not in str(caught.value.child_exception)


def test_groups_of_nine_find_their_neighbours_and_each_run_says_what_it_did_once(
    in_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    experiment = client.simulate_experiment(dtype=np.uint8, **{**SCAN, "photons": 2e3, "n_y": 6, "n_x": 6})
    with caplog.at_level(logging.INFO):
        run = trained(start("PINN", nepochs=1, gridsize=3), experiment, tmp_path, in_folder)
        assert populated_lines(caplog) == ["✓ params.cfg populated: N=32, gridsize=3, n_groups=512"]
        caplog.clear()
        found = client.reconstruct(run.chosen, experiment.input())
    assert populated_lines(caplog) == ["✓ params.cfg populated: N=32, gridsize=3, n_groups=None"]
    assert [line.startswith("verdict: ") for line in caplog.messages].count(True) == 1
    assert "neighbor_count 7 is below the group size, 9 is used" in caplog.text
    assert found.num_layers == 1
    assert np.isfinite(found.get_array()).all()


def test_a_bad_setting_reaches_the_window_in_one_line(
    experiment: client.Experiment, pinn: Trained, tmp_path: Path
) -> None:
    for settings, message in (
        ({"amp_activation": "tanh"}, "model: amp_activation is 'tanh', expected one of sigmoid"),
        ({"nll_weight": 0.0}, "no term of the loss compares with data"),
    ):
        with pytest.raises(ChildError) as caught:
            client.train(start("PINN", **settings), pinn.inputs, tmp_path / "out")
        assert type(caught.value.child_exception).__name__ == "ConfigError"
        assert message in str(caught.value.child_exception)
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


def test_a_cancelled_training_ends_soon_and_leaves_its_last_checkpoint(
    pinn: Trained, experiment: client.Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs, scratch = tmp_path / "in", tmp_path / "scratch"
    shutil.copytree(pinn.inputs, inputs)
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    chosen, raised = start("PINN", nepochs=100_000), []

    def run() -> None:
        try:
            client.train(chosen, inputs, tmp_path / "out")
        except ChildError as error:
            raised.append(error)

    before = set(multiprocessing.active_children())
    thread = threading.Thread(target=run)
    thread.start()
    wait_for(lambda: list(inputs.glob("*/checkpoints/best-checkpoint.h5.zip")), 120)
    (child,) = set(multiprocessing.active_children()) - before
    assert [path.name for path in scratch.iterdir() if path.name.startswith("ptychopinn-")] != []
    told = time.monotonic()
    child.terminate()
    child.join(3 * CANCEL_S)
    took = time.monotonic() - told
    thread.join(60)
    assert took < CANCEL_S
    assert [error.child_exception_type for error in raised] == ["Terminated"]
    assert [path for path in scratch.iterdir() if path.name.startswith("ptychopinn-")] == []
    (kept,) = inputs.glob("*/checkpoints/best-checkpoint.h5.zip")
    assert {path.name for path in kept.parent.iterdir()} <= {
        "best-checkpoint.h5.zip",
        "last.h5.zip",
        "last.state.npz",
    }
    again = start("PINN")
    again.load_model_from_file(kept)
    assert client.reconstruct(again, experiment.input(rows=np.arange(20))).num_layers == 1
