"""Facts about the object that Ptychodus 1.7 gets of either plug-in: the network's, refined, at its place.

Every training and every reconstruction runs in a child process that the client starts.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from compat import client
from numpy.typing import NDArray

from ptycho.run.client import REFINE_VARIABLE

pytestmark = pytest.mark.slow

METHODS = {
    "PINN": "tensorflow",
    "Supervised": "tensorflow",
    "Unsupervised": "torch",
    "Supervised-Torch": "torch",
}
QUICK = {
    "tensorflow": {"training_settings.nepochs": 2, "model_settings.n_filters_scale": 1},
    "torch": {
        "training_settings.epochs": 2,
        "model_settings.num_filters_scale": 1,
        "data_settings.num_channels": 1,
        "training_settings.num_dataloader_workers": 0,
    },
}
SIDE = 9
PLACE_PX = 0.5
"""How far a feature may lie from its place in the world: the contract with the client."""
REACH_PX = 2.0
SHARP = 0.02
"""NRMSE that two epochs of ``cnn`` are far above."""


def error_of(found: NDArray[np.complex128], expected: NDArray[np.complex128]) -> float:
    """Return the NRMSE after the one complex factor that no pattern tells."""
    factor = np.vdot(found, expected) / np.vdot(found, found)
    return float(np.linalg.norm(factor * found - expected) / np.linalg.norm(expected))


@pytest.fixture(scope="module")
def square() -> client.Experiment:
    """An empty object with a square, far from the middle of the scan."""
    options = {"n_px": 32, "n_y": SIDE, "n_x": SIDE, "step_px": 3.0, "photons": 1e6, "seed": 3}
    return client.with_square(
        client.simulate_experiment(integer_positions=True, **options), offset_yx_px=(-8, 3)
    )


def lopsided_rows() -> NDArray[np.int64]:
    """A scan that is dense in the corner of its first rows and columns."""
    row, column = np.divmod(np.arange(SIDE**2), SIDE)
    return np.flatnonzero(
        (row + column < SIDE) | ((row + 2 * column) % 3 == 0) | (row + column == 2 * SIDE - 2)
    )


@pytest.mark.parametrize("method", METHODS)
def test_a_square_is_sharp_and_at_its_place_in_a_lopsided_scan(
    square: client.Experiment, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The switch is tried too: the network alone is blurred after so few epochs."""
    monkeypatch.chdir(tmp_path)
    rows = lopsided_rows()
    where = square.positions_yx_m[rows]
    pixel_m = [client.PIXEL.height_m, client.PIXEL.width_m]
    middle = (where.min(axis=0) + where.max(axis=0)) / 2
    assert ((middle - where.mean(axis=0)) / pixel_m > PLACE_PX).all(), "the scan is even"
    plugin = METHODS[method]
    chosen = client.reconstructor(plugin, method.partition("-")[0], QUICK[plugin])
    for name in ("train_data", "test_data"):
        client.export(chosen, square.input(), tmp_path / "in", name)
    client.train(chosen, tmp_path / "in", tmp_path / "out")
    obj = square.object_for(rows, (0, 1))
    errors = {}
    for switch in ("on", "off"):
        monkeypatch.setenv(REFINE_VARIABLE, switch)
        found = client.reconstruct(chosen, square.input(rows=rows, obj=obj))
        assert found.get_center() == obj.get_center()
        errors[switch] = error_of(*client.at_true_pixels(found, square.truth, where, reach_px=REACH_PX))
        if switch == "on":
            moved = client.displacement_px(found, square.truth, where, reach_px=REACH_PX)
    assert abs(moved).max() < PLACE_PX, f"the square lies {moved} px off its place"
    assert errors["on"] < SHARP < errors["off"] / 2, errors
