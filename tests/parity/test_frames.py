"""A beam that changes during a scan is followed: its factors come out, and the object is right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ptycho.config.config import PyTorchExecutionConfig
from ptycho.data.npz import write_npz
from ptycho.data.reconstruction import Reconstruction
from ptycho.evaluation.metrics import score
from ptycho.evaluation.verdict import Verdict, judge
from ptycho.files.reader import open_scan
from ptycho.process.progress import Progress
from ptycho.run.engines import find_model, load_engine
from ptycho.run.outputs import truth_on_canvas
from ptycho.simulation.simulate import SimulationOptions, simulate
from ptycho.solver import schedule
from ptycho.solver.options import RefineOptions

COUNT = 81
CHANGES = {
    "jump": 1 + 0.3 * (np.arange(COUNT) > 40),
    "drift": np.linspace(1.0, 0.7, COUNT),
    "chance": np.random.default_rng(4).uniform(0.7, 1.3, COUNT),
}
"""Intensity of the beam in every pattern."""


def refined(
    path: Path, backend: str, steps: int = 60, **options: Any
) -> tuple[Reconstruction, float, Verdict]:
    """Return what a refinement from flat finds, its error, and the verdict."""
    engine, scan = load_engine(backend), open_scan(path)
    found = engine.reconstruct(
        engine.load(find_model(Path("pretrained"), backend)),
        scan,
        scan.usable,
        execution=PyTorchExecutionConfig(accelerator="cpu"),
        progress=Progress(),
        refine=RefineOptions(steps, start="flat", **options),
    )
    truth, mask = truth_on_canvas(path, found) or (None, None)
    return found, score(found.obj, truth, mask)["complex_nrmse"], judge(found.in_scan(scan))


def written(path: Path, intensity: NDArray[np.float64], scan: str, seed: int) -> Path:
    options = SimulationOptions(
        n_px=32,
        n_y=9,
        n_x=9,
        step_px=3.0,
        photons=1e6,
        scan=scan,
        seed=seed,  # type: ignore[arg-type]
    )
    arrays = simulate(options)
    rng = np.random.default_rng(seed)
    arrays["diff3d"] = rng.poisson(arrays["diff3d"] * intensity[:, None, None]).astype(np.uint32)
    write_npz(path, arrays)
    return path


@pytest.mark.parametrize("backend", ["pytorch", "tensorflow"])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(("scan", "seed"), [("raster", 7), ("spiral", 8)])
def test_the_factors_of_a_beam_that_changed_are_found(
    backend: str, change: str, scan: str, seed: int, tmp_path: Path
) -> None:
    path = written(tmp_path / "scan.npz", CHANGES[change], scan, seed)
    _, without, doubt = refined(path, backend)
    found, error, verdict = refined(path, backend, frames=True)
    true = np.sqrt(CHANGES[change])
    assert found.frame_gain is not None
    np.testing.assert_allclose(found.frame_gain, true / true.mean(), atol=0.03)
    assert error < min(0.02, 0.4 * without)
    assert (doubt.word, verdict.word) == ("doubtful", "good")


def test_a_steady_beam_has_factors_of_one_however_long_it_is_refined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without momentum they leave it as soon as nothing else changes."""
    monkeypatch.setattr(schedule, "has_converged", lambda misfit: False)
    path = written(tmp_path / "scan.npz", np.ones(COUNT), "raster", 9)
    found, error, _ = refined(path, "pytorch", 200, frames=True)
    np.testing.assert_allclose(found.frame_gain, 1.0, atol=0.03)
    assert error < 0.02
    monkeypatch.setattr(schedule, "FRAME_MOMENTUM", 0.0)
    assert refined(path, "pytorch", 200, frames=True)[1] > 0.1
