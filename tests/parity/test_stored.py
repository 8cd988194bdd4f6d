"""What a run stores explains what it measured: read back, it finds the misfit of its run."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ptycho import params
from ptycho.config.config import PyTorchExecutionConfig
from ptycho.data.npz import read_npz, write_npz
from ptycho.data.optics import FileOptions
from ptycho.data.prepare import prepare_scan
from ptycho.data.reconstruction import Reconstruction
from ptycho.data.scan import Scan
from ptycho.errors import DataError
from ptycho.evaluation.comparison import read_reconstruction, stored_fit
from ptycho.files.export import collect, export_optics, write_export
from ptycho.files.reader import open_scan
from ptycho.process.progress import Progress
from ptycho.raw_data import RawData
from ptycho.run.engines import find_model, fitted_model, load_engine
from ptycho.run.evaluate import Request, evaluate
from ptycho.run.outputs import write_patch_stats, write_reconstruction
from ptycho.simulation.simulate import SimulationOptions, simulate
from ptycho.solver import schedule
from ptycho.solver.options import RefineOptions

SAME = 1e-4
"""Relative: single precision in the run, other chunks and other sums in the evaluation."""
STEPS = 8
BACKENDS = ("pytorch", "tensorflow")


@pytest.fixture(autouse=True)
def _own_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the settings of the process; let positions move early, on to other pixels."""
    monkeypatch.setattr(params, "cfg", dict(params.cfg))
    monkeypatch.setitem(schedule.REST_STEPS, "positions", 1)


def write(path: Path, *, modes: int, **changes: Any) -> Path:
    """Write a scan whose positions are a little wrong and whose frames are uneven."""
    arrays = simulate(SimulationOptions(n_px=32, n_y=7, n_x=7, step_px=3.0, n_modes=modes, seed=8))
    rng = np.random.default_rng(2)
    count = len(arrays["xcoords"])
    gain = rng.uniform(0.7, 1.3, count)[:, None, None] ** 2
    arrays["diff3d"] = rng.poisson(arrays["diff3d"] * gain).astype(np.uint32)
    arrays["ycoords"] = arrays["ycoords"] + rng.uniform(-0.9, 0.9, count)
    arrays["xcoords"] = arrays["xcoords"] + rng.uniform(-0.9, 0.9, count)
    if "bad_pixels" in changes:
        arrays["diff3d"] = np.where(changes["bad_pixels"], 777, arrays["diff3d"]).astype(np.uint32)
    write_npz(path, {**arrays, **changes})
    return path


def bad_pixels(masked: str) -> dict[str, Any]:
    """Return the mask of a detector: none, one for all patterns, or one each."""
    marked = np.random.default_rng(5).random((49, 32, 32)) < 0.03
    return {"none": {}, "common": {"bad_pixels": marked[0]}, "own": {"bad_pixels": marked}}[masked]


@functools.cache
def engine_and_model(backend: str) -> tuple[Any, Any]:
    engine = load_engine(backend)
    return engine, engine.load(find_model(Path("pretrained"), backend))


def run(scan: Scan, backend: str, **options: bool) -> Reconstruction:
    engine, model = engine_and_model(backend)
    return engine.reconstruct(
        fitted_model(engine, model, scan, "the model"),
        scan,
        scan.usable,
        execution=PyTorchExecutionConfig(accelerator="cpu", logger_backend=None),
        progress=Progress(),
        refine=RefineOptions(STEPS, start="flat", **options),
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("masked", ["none", "common", "own"])
@pytest.mark.parametrize("positions", [False, True])
@pytest.mark.parametrize("frames", [False, True])
@pytest.mark.parametrize("modes", [1, 2])
def test_a_stored_reconstruction_finds_the_misfit_of_its_run(
    modes: int, frames: bool, positions: bool, masked: str, backend: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "scan.npz", modes=modes, **bad_pixels(masked))
    scan = open_scan(path)
    found = run(scan, backend, frames=frames, positions=positions, probe=True)
    write_reconstruction(tmp_path, found.in_scan(scan), None)
    read = read_reconstruction(tmp_path)
    assert read.misfit == pytest.approx(found.misfit)
    assert stored_fit(read.in_scan(open_scan(path))).relative == pytest.approx(found.misfit[-1], rel=SAME)
    # Each of what was refined takes part, or nothing would have been asked.
    if frames:
        assert np.ptp(read.frame_gain) > 0.05
        even = replace(read, frame_gain=None)
        assert stored_fit(even.in_scan(scan)).relative > 1.05 * found.misfit[-1]
    if positions:
        moved = np.abs(read.positions_yx_px - scan.positions_yx_px)
        assert moved.max() > 0.3
    # A copy of the file that lost its mask.
    arrays = read_npz(path)
    arrays.pop("bad_pixels", None)
    write_npz(tmp_path / "copy.npz", arrays)
    assert stored_fit(read.in_scan(open_scan(tmp_path / "copy.npz"))).relative == pytest.approx(
        found.misfit[-1], rel=SAME
    )
    optics = export_optics(scan, FileOptions(object_pixel_m=1.3e-8))
    for name in ("answer.h5", "answer.cxi"):
        answer = read_reconstruction(write_export(tmp_path / name, collect(found.in_scan(scan), optics)))
        assert answer.misfit == pytest.approx(found.misfit)
        assert stored_fit(answer.in_scan(scan)).relative == pytest.approx(found.misfit[-1], rel=SAME)


@pytest.mark.parametrize("n_px", [31, 32])
@pytest.mark.parametrize("start_px", [0.0, 0.5, 0.2])
def test_a_scan_in_steps_of_half_pixels_is_explained_to_its_rim(
    n_px: int, start_px: float, tmp_path: Path
) -> None:
    arrays = simulate(SimulationOptions(n_px=32, n_y=7, n_x=7, step_px=2.5, seed=8))
    arrays = {key: arrays[key] for key in ("diff3d", "probeGuess", "xcoords", "ycoords")}
    if n_px == 31:
        arrays["probeGuess"] = arrays["probeGuess"][..., 1:, 1:]
        arrays["diff3d"] = arrays["diff3d"][:, 1:, 1:]
    axis = 40 + start_px + 2.5 * np.arange(7)
    arrays["ycoords"], arrays["xcoords"] = (grid.ravel() for grid in np.meshgrid(axis, axis, indexing="ij"))
    write_npz(tmp_path / "scan.npz", arrays)
    scan = open_scan(tmp_path / "scan.npz")
    found = run(scan, "pytorch")
    write_reconstruction(tmp_path, found.in_scan(scan), None)
    read = read_reconstruction(tmp_path)
    assert stored_fit(read.in_scan(scan)).relative == pytest.approx(found.misfit[-1], rel=SAME)
    table = np.loadtxt(write_patch_stats(tmp_path, found.in_scan(scan), None), delimiter=",", skiprows=1)
    assert len(table) == 49
    optics = export_optics(scan, FileOptions(object_pixel_m=1.3e-8))
    answer = read_reconstruction(write_export(tmp_path / "answer.h5", collect(found.in_scan(scan), optics)))
    assert stored_fit(answer.in_scan(scan)).relative == pytest.approx(found.misfit[-1], rel=SAME)


def test_a_table_of_patches_says_where_the_refinement_put_them(tmp_path: Path) -> None:
    scan = open_scan(write(tmp_path / "scan.npz", modes=1))
    found = run(scan, "pytorch", positions=True)
    table = np.loadtxt(write_patch_stats(tmp_path, found.in_scan(scan), 20), delimiter=",", skiprows=1)
    assert np.abs(table[:, 1:3] - scan.positions_yx_px[:20]).max() > 0.2
    np.testing.assert_allclose(table[:, 1:3], found.positions_yx_px[:20], rtol=1e-5)
    # What lies there is what the table says, with whole pixels moved by hand; not at the rim, where it ends.
    window = (np.abs(found.probe) ** 2).sum(axis=0)
    low = np.rint(found.positions_yx_px[16] - (scan.n_px - 1) / 2 - found.origin_yx_px).astype(int)
    patch = np.abs(found.obj[low[0] : low[0] + scan.n_px, low[1] : low[1] + scan.n_px])
    assert table[16, 3] == pytest.approx((patch * window).sum() / window.sum(), rel=1e-4)


def test_a_part_of_a_scan_is_judged_by_the_whole_file_and_by_another_part(tmp_path: Path) -> None:
    path = write(tmp_path / "scan.npz", modes=1)
    whole = RawData.from_file(path)
    part = prepare_scan(whole.subset(np.arange(20, 45)), name="part.npz")
    found = run(part, "pytorch", frames=True)
    write_reconstruction(tmp_path, found.in_scan(part), None)
    assert read_npz(tmp_path / "reconstruction.npz")["pattern_index"].tolist() == list(range(20, 45))
    read = read_reconstruction(tmp_path)
    larger = prepare_scan(whole.subset(np.arange(48, 9, -1)), name="larger.npz")
    for scan in (open_scan(path), part, larger):
        assert stored_fit(read.in_scan(scan)).relative == pytest.approx(found.misfit[-1], rel=SAME)
    table = np.loadtxt(write_patch_stats(tmp_path, found.in_scan(part), 3), delimiter=",", skiprows=1)
    np.testing.assert_array_equal(table[:, 0], [20, 21, 22])
    other = prepare_scan(whole.subset(np.r_[0:22, 23:49]), name="other.npz")
    with pytest.raises(DataError, match=r"other\.npz: the patterns do not fit .*number 22"):
        stored_fit(read.in_scan(other))
    optics = export_optics(part, FileOptions(object_pixel_m=1.3e-8))
    answer = read_reconstruction(write_export(tmp_path / "part.h5", collect(found.in_scan(part), optics)))
    assert stored_fit(answer.in_scan(open_scan(path))).relative == pytest.approx(found.misfit[-1], rel=SAME)


def test_an_evaluation_knows_what_the_run_was_told_about_the_file(tmp_path: Path) -> None:
    arrays = read_npz(write(tmp_path / "scan.npz", modes=1))
    # Two frames look damaged, and the user keeps them.
    arrays["diff3d"][[5, 30]] = 0
    write_npz(tmp_path / "scan.npz", arrays)
    options = FileOptions(keep_frames=True, object_pixel_m=2e-8)
    scan = open_scan(tmp_path / "scan.npz", options=options)
    assert len(scan.usable) == 49
    found = run(scan, "pytorch")
    write_reconstruction(tmp_path, found.in_scan(scan), None)
    assert read_reconstruction(tmp_path).stored.options == {"keep_frames": True, "object_pixel_m": 2e-8}
    request = Request(tmp_path, test_data=tmp_path / "scan.npz")
    evaluation = evaluate(request, tmp_path / "scores", Progress())
    table = np.loadtxt(tmp_path / "scores" / "residuals.csv", delimiter=",", skiprows=1)
    assert len(table) == 49
    assert evaluation.verdict.numbers["misfit"] == pytest.approx(found.misfit[-1], rel=SAME)
