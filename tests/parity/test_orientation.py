"""A scan whose positions run another way is found out, and reconstructed as if they ran the right way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ptycho.config.config import InferenceConfig, ModelConfig, PyTorchExecutionConfig
from ptycho.npz import read_npz, write_npz
from ptycho.orientation import Orientation
from ptycho.pipeline import infer
from ptycho.progress import Progress
from ptycho.simulate import SimulationOptions, simulate

PLANTED = [Orientation("x"), Orientation("y", True), Orientation("", True), Orientation("xy")]
SAME = 1e-3
"""The canvas of a turned scan begins elsewhere by a fraction of a pixel."""


class Told(Progress):
    """Keeps every line."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture(scope="module")
def arrays() -> dict[str, Any]:
    """A scan of a probe without symmetry: whole positions, so that a turned canvas is the same canvas."""
    options = SimulationOptions(
        n_px=32, n_y=9, n_x=10, step_px=3.0, photons=1e6, n_modes=2, integer_positions=True, seed=8
    )
    found = simulate(options)
    found.pop("object_is_truth", None)
    return found


def reconstructed(scan: Path, folder: Path, backend: str, **settings: Any) -> tuple[Path, list[str]]:
    config = InferenceConfig(
        ModelConfig(), Path("pretrained"), scan, output_dir=folder, backend=backend, refine_steps=20,
        refine_start="flat", **settings,
    )  # fmt: skip
    told = Told()
    infer(config, PyTorchExecutionConfig(accelerator="cpu"), progress=told)
    return folder / "reconstruction.npz", told.lines


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["pytorch", "tensorflow"])
def test_the_planted_orientation_is_found_and_used(
    backend: str, arrays: dict[str, Any], tmp_path: Path, require: Callable[[str], None]
) -> None:
    del require
    write_npz(tmp_path / "right.npz", arrays)
    right = read_npz(reconstructed(tmp_path / "right.npz", tmp_path / "right", backend)[0])
    stored = np.stack([arrays["ycoords"], arrays["xcoords"]], axis=1)
    for number, way in enumerate(PLANTED):
        # What is stored is the inverse of what has to be done to it.
        inverse = np.linalg.inv(way.turn(np.eye(2)))
        y, x = (stored @ inverse).T
        path = tmp_path / f"{number}.npz"
        write_npz(path, {**arrays, "ycoords": y, "xcoords": x})
        found, lines = reconstructed(path, tmp_path / str(number), backend, find_orientation=True)
        line = next(line for line in lines if line.startswith("orientation: "))
        assert f"{way.flags()} fits best" in line
        assert line.endswith("; used")
        obj = read_npz(found)["object"]
        assert obj.shape == right["object"].shape
        assert np.abs(obj - right["object"]).max() < SAME * np.abs(right["object"]).max()
