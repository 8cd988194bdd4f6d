"""A probe that drifts, and one that is smeared, through both backends and from file to file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ptychodus.api.geometry import PixelGeometry
from ptychodus.api.probe import ProbeSequence

from ptycho.config.config import PyTorchExecutionConfig
from ptycho.data.optics import FileOptions
from ptycho.evaluation.comparison import read_reconstruction, stored_fit
from ptycho.evaluation.metrics import score
from ptycho.files.export import collect, export_optics, write_export
from ptycho.files.hdf5 import opened
from ptycho.files.reader import open_scan
from ptycho.physics import shift_field
from ptycho.process.progress import Progress
from ptycho.run.engines import find_model, fitted_model, load_engine
from ptycho.run.evaluate import Request, split_halves
from ptycho.run.outputs import truth_on_canvas, write_reconstruction
from ptycho.simulation.simulate import SimulationOptions, write_scan
from ptycho.solver.options import RefineOptions

CPU = PyTorchExecutionConfig(accelerator="cpu")
BACKENDS = ("pytorch", "tensorflow")
SIZE: dict[str, Any] = {
    "n_px": 32, "n_y": 10, "n_x": 10, "step_px": 2.5, "photons": 1e5, "probe_diameter_px": 14.4, "seed": 4
}  # fmt: skip
SAME = 1e-3
"""Of a misfit by two ways through single precision."""


def written(path: Path, **options: float) -> Path:
    write_scan(path, SimulationOptions(**SIZE, **options))
    return path


def run(
    path: Path, backend: str, steps: int, notes: list[str] | None = None, **options: Any
) -> tuple[Any, float]:
    """Return what a refinement of the probe from flat finds, and its error."""
    engine, scan = load_engine(backend), open_scan(path)
    progress = Progress()
    progress.note = ([] if notes is None else notes).append  # type: ignore[method-assign]
    found = engine.reconstruct(
        fitted_model(engine, engine.load(find_model(Path("pretrained"), backend)), scan, "the model"),
        scan,
        scan.usable,
        execution=CPU,
        progress=progress,
        refine=RefineOptions(steps, start="flat", probe=True, **options),
    )
    truth, mask = truth_on_canvas(path, found) or (None, None)
    return found, score(found.obj, truth, mask)["complex_nrmse"]


@pytest.mark.parametrize("backend", ["pytorch", pytest.param("tensorflow", marks=pytest.mark.slow)])
def test_a_probe_that_drifts_is_followed(backend: str, tmp_path: Path) -> None:
    path, notes = written(tmp_path / "scan.npz", probe_drift_waves=0.8), []
    _, blurred = run(path, backend, 40)
    found, error = run(path, backend, 40, notes, probe_variation=2)
    assert error < 0.6 * blurred
    assert found.varying_share > 0.02
    assert "2 variable modes with" in notes[-1]
    # The strongest mode follows the time.
    time = np.arange(len(found.indices))
    assert abs(np.corrcoef(time, found.variation.weights[:, 1])[0, 1]) > 0.95


def test_a_steady_probe_is_left_alone(tmp_path: Path) -> None:
    path = written(tmp_path / "scan.npz")
    _, error = run(path, "pytorch", 40)
    found, same = run(path, "pytorch", 40, probe_variation=2)
    assert found.varying_share < 2e-3
    assert same < 1.1 * error


def test_both_backends_find_the_same_variation(tmp_path: Path) -> None:
    path = written(tmp_path / "scan.npz", probe_drift_waves=0.8)
    one, two = (run(path, backend, 10, probe_variation=1, probe_modes=2)[0] for backend in BACKENDS)
    for first, second in (
        (one.obj, two.obj),
        (one.probe, two.probe),
        (one.variation.modes, two.variation.modes),
    ):
        np.testing.assert_allclose(first, second, atol=1e-3 * np.abs(first).max())
    np.testing.assert_allclose(one.variation.weights, two.variation.weights, atol=1e-3)
    assert len(one.probe) == 2


def test_more_incoherent_modes_explain_a_sample_that_moves_during_the_exposure(tmp_path: Path) -> None:
    path = written(tmp_path / "scan.npz", fly_scan_px=2.5)
    one, _ = run(path, "pytorch", 40)
    three, _ = run(path, "pytorch", 40, probe_modes=3)
    excess = [found.fit.misfit.sum() / found.fit.expected.sum() - 1 for found in (one, three)]
    assert three.probe.shape == (3, 32, 32)
    assert excess[1] < 0.6 * excess[0]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_stored_reconstruction_predicts_each_pattern_with_its_own_probe(
    backend: str, tmp_path: Path
) -> None:
    path = written(tmp_path / "scan.npz", probe_drift_waves=0.8)
    found, _ = run(path, backend, 16, probe_variation=2, frames=True)
    scan = open_scan(path)
    write_reconstruction(tmp_path, found.in_scan(scan), None)
    read = read_reconstruction(tmp_path)
    assert read.variation.modes.shape == (2, 32, 32)
    assert stored_fit(read.in_scan(scan)).relative == pytest.approx(found.misfit[-1], rel=SAME)
    assert stored_fit(replace(read, variation=None).in_scan(scan)).relative > 1.05 * found.misfit[-1]
    # So does a product of Ptychodus.
    optics = export_optics(scan, FileOptions(object_pixel_m=1.3e-8))
    product = write_export(tmp_path / "product.h5", collect(found.in_scan(scan), optics))
    answer = read_reconstruction(product)
    assert stored_fit(answer.in_scan(scan)).relative == pytest.approx(found.misfit[-1], rel=SAME)
    placed = found.in_scan(scan)
    own = placed.probes(np.array([5]))[0, 0] / found.frame_gain[5]
    with opened(product) as file:
        probes = ProbeSequence(file["probe"][()], file["opr_weights"][()], PixelGeometry(1.3e-8, 1.3e-8))
    theirs = shift_field(probes[5].get_array(), placed.plan.shifts_yx_px[5:6])[0, 0]
    np.testing.assert_allclose(theirs, own, atol=1e-4 * np.abs(own).max())


def test_half_scans_have_the_probe_of_each_pattern(tmp_path: Path) -> None:
    path = written(tmp_path / "scan.npz", probe_drift_waves=0.8)
    found, _ = run(path, "pytorch", 16, probe_variation=2)
    request = Request(tmp_path, backend="pytorch", execution=CPU, refine=RefineOptions(10, start="flat"))
    halves = split_halves(Path("pretrained"), open_scan(path), request, Progress(), found=found)
    plain = split_halves(
        Path("pretrained"), open_scan(path), request, Progress(), found=replace(found, variation=None)
    )
    assert all(half.misfit[-1] < 0.9 * other.misfit[-1] for half, other in zip(halves, plain, strict=True))
