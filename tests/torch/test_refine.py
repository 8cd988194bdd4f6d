"""Facts about the joint refinement of object and probe."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ptycho.data import chunks as data
from ptycho.data.prepare import prepare_scan
from ptycho.data.scan import PatternStore, Scan
from ptycho.evaluation.metrics import score
from ptycho.files.reader import open_scan
from ptycho.geometry.canvas import CANVAS_MULTIPLE_PX, plan_canvas
from ptycho.physics import slow_phase
from ptycho.process.progress import Progress
from ptycho.raw_data import RawData
from ptycho.simulation.simulate import SimulationOptions, simulate, write_scan
from ptycho.solver.options import RefineOptions
from ptycho_torch.data import ScanChunks
from ptycho_torch.solver import accelerated_steps, refine, scan_illumination
from tests.runs import error, reconstructed

KEYS = ("xcoords", "ycoords", "diff3d", "probeGuess", "scan_index", "objectGuess")
WRONG_BY_WAVES = 0.3
SAME_PX = 2e-4
"""Single precision over a dozen steps."""


def made(**options: float) -> tuple[Scan, dict[str, np.ndarray]]:
    arrays = simulate(SimulationOptions(n_y=9, n_x=8, seed=4, **options))
    return prepare_scan(RawData.from_coords_without_pc(**{key: arrays[key] for key in KEYS})), arrays


def refined(scan: Scan, n_steps: int) -> tuple[torch.Tensor, torch.Tensor, list[float], np.ndarray]:
    plan = plan_canvas(scan.positions_yx_px, scan.n_px, multiple_px=CANVAS_MULTIPLE_PX)
    with PatternStore(scan, Progress()) as store:
        members = np.arange(scan.n_patterns)
        chunks = ScanChunks(store, plan, members, torch.from_numpy(scan.probe))
        found = refine(
            chunks, torch.ones(plan.shape_yx, dtype=torch.complex64), RefineOptions(n_steps, probe=True)
        )
    return found.obj, chunks.probe, found.misfit, plan.origin_yx_px


def object_error(obj: torch.Tensor, arrays: dict[str, np.ndarray], origin: np.ndarray) -> float:
    height, width = obj.shape
    y, x = np.round(origin).astype(int)
    truth = arrays["objectGuess"][max(y, 0) : y + height, max(x, 0) : x + width]
    part = obj.numpy()[: truth.shape[0], : truth.shape[1]]
    middle = np.zeros(truth.shape, dtype=bool)
    middle[32:-32, 32:-32] = True
    return score(part, truth, middle)["complex_nrmse"]


def test_a_probe_off_by_defocus_is_mended_and_keeps_its_power() -> None:
    scan, arrays = made(probe_error_waves=WRONG_BY_WAVES)
    obj, probe, misfit, origin = refined(scan, 40)
    plan = plan_canvas(scan.positions_yx_px, scan.n_px, multiple_px=CANVAS_MULTIPLE_PX)
    with PatternStore(scan, Progress()) as store:
        chunks = ScanChunks(store, plan, np.arange(scan.n_patterns), torch.from_numpy(scan.probe))
        weight = scan_illumination(chunks, plan.shape_yx)
        fixed, _ = accelerated_steps(torch.ones(plan.shape_yx, dtype=torch.complex64), chunks, weight, 40)
    assert object_error(obj, arrays, origin) < 0.5 * object_error(fixed, arrays, origin)
    assert misfit[-1] < 0.1 * misfit[0]
    assert np.isclose(float(probe.abs().square().sum()), (np.abs(scan.probe) ** 2).sum(), rtol=1e-4)


def test_refining_a_true_probe_does_no_harm() -> None:
    scan, arrays = made()
    obj, probe, _, origin = refined(scan, 40)
    assert object_error(obj, arrays, origin) < 0.03
    overlap = np.vdot(probe.numpy(), scan.probe) / np.linalg.norm(probe.numpy()) / np.linalg.norm(scan.probe)
    assert abs(overlap) > 0.999


@pytest.mark.parametrize("seed", [4, 5])
def test_more_iterations_make_no_object_worse(seed: int, tmp_path: Path) -> None:
    """A disc lights few patterns alike, so that subsets disagree on slow phases: iterations that take these
    further in every subset end at an error of 0.16 and 0.1."""
    path, scene = tmp_path / "scan.npz", {4: "dead_leaves", 5: "lines"}[seed]
    few = {"n_px": 32, "n_y": 9, "n_x": 9, "step_px": 4.0, "probe": "disc", "photons": 1e6}
    write_scan(path, SimulationOptions(seed=seed, scene=scene, **few))
    for steps in (60, 120, 240):
        how = RefineOptions(steps, start="flat", likelihood="poisson")
        assert error(path, reconstructed(open_scan(path), "pytorch", how, fit_probe=False)) < 0.014


def test_wrong_positions_are_found_again() -> None:
    arrays = simulate(SimulationOptions(n_y=9, n_x=8, seed=4))
    rng = np.random.default_rng(0)
    errors = rng.uniform(-0.6, 0.6, (2, len(arrays["xcoords"])))
    errors -= errors.mean(axis=1, keepdims=True)
    wrong = arrays | {"ycoords": arrays["ycoords"] + errors[0], "xcoords": arrays["xcoords"] + errors[1]}
    scan = prepare_scan(RawData.from_coords_without_pc(**{key: wrong[key] for key in KEYS}))
    plan = plan_canvas(scan.positions_yx_px, scan.n_px, multiple_px=CANVAS_MULTIPLE_PX)
    with PatternStore(scan, Progress()) as store:
        chunks = ScanChunks(store, plan, np.arange(scan.n_patterns), torch.from_numpy(scan.probe))
        refine(chunks, torch.ones(plan.shape_yx, dtype=torch.complex64), RefineOptions(100, positions=True))
        found = chunks.shifts.numpy() - plan.shifts_yx_px
    left = found.T + errors
    assert np.sqrt((left**2).mean()) < 0.35 * np.sqrt((errors**2).mean())


def test_frame_intensities_are_found_again() -> None:
    arrays = simulate(SimulationOptions(n_y=9, n_x=8, seed=4))
    gain = np.random.default_rng(0).uniform(0.8, 1.2, len(arrays["xcoords"]))
    uneven = arrays | {
        "diff3d": np.random.default_rng(1).poisson(arrays["diff3d"] * gain[:, None, None] ** 2)
    }
    scan = prepare_scan(RawData.from_coords_without_pc(**{key: uneven[key] for key in KEYS}))
    plan = plan_canvas(scan.positions_yx_px, scan.n_px, multiple_px=CANVAS_MULTIPLE_PX)
    with PatternStore(scan, Progress()) as store:
        chunks = ScanChunks(store, plan, np.arange(scan.n_patterns), torch.from_numpy(scan.probe))
        refine(chunks, torch.ones(plan.shape_yx, dtype=torch.complex64), RefineOptions(60, frames=True))
        found = chunks.frame_gain.numpy()
    assert np.corrcoef(found, gain)[0, 1] > 0.98
    assert np.abs(found / found.mean() - gain / gain.mean()).max() < 0.05


def test_poisson_and_total_variation_help_at_low_dose() -> None:
    scan, arrays = made(photons=5e3)
    plan = plan_canvas(scan.positions_yx_px, scan.n_px, multiple_px=CANVAS_MULTIPLE_PX)
    errors = {}
    with PatternStore(scan, Progress()) as store:
        for name, options in {
            "plain": RefineOptions(40),
            "poisson": RefineOptions(40, likelihood="poisson"),
            "smooth": RefineOptions(60, likelihood="poisson", tv=1e-2),
        }.items():
            chunks = ScanChunks(store, plan, np.arange(scan.n_patterns), torch.from_numpy(scan.probe))
            found = refine(chunks, torch.ones(plan.shape_yx, dtype=torch.complex64), options)
            errors[name] = object_error(found.obj, arrays, plan.origin_yx_px)
    assert errors["poisson"] < errors["plain"]
    assert errors["smooth"] < 0.75 * errors["plain"]


def test_smoothing_leaves_slow_phases_where_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "scan.npz"
    options = {"n_px": 64, "n_y": 13, "n_x": 13, "step_px": 5.0, "photons": 1e5, "seed": 2}
    write_scan(path, SimulationOptions(scene="siemens_star", defocus_waves=1.5, **options))
    smooth = RefineOptions(60, likelihood="poisson", tv=0.005, start="flat")
    plain = RefineOptions(60, likelihood="poisson", start="flat")
    errors = [error(path, reconstructed(open_scan(path), "pytorch", how)) for how in (plain, smooth)]
    assert errors[1] < 0.85 * errors[0]
    # Where smoothing and patterns are level does not depend on how far a step takes slow phases.
    monkeypatch.setattr(slow_phase, "MOST_PHASE_GAIN", 1.0)
    assert errors[1] < 1.05 * error(path, reconstructed(open_scan(path), "pytorch", smooth))


@pytest.mark.parametrize("patterns_per_chunk", [1, 4])
def test_positions_do_not_depend_on_how_the_scan_is_cut(
    patterns_per_chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays = simulate(SimulationOptions(n_px=32, n_y=7, n_x=7, step_px=3.0, seed=4))
    # The lower rows lie behind an absorber: chunks there have small normal matrices of their own.
    dim = (arrays["ycoords"] > np.median(arrays["ycoords"]))[:, None, None]
    errors = np.random.default_rng(0).uniform(-0.5, 0.5, (2, len(arrays["xcoords"])))
    wrong = arrays | {
        "diff3d": np.where(dim, arrays["diff3d"] // 400, arrays["diff3d"]),
        "ycoords": arrays["ycoords"] + errors[0],
        "xcoords": arrays["xcoords"] + errors[1],
    }
    scan = prepare_scan(RawData.from_coords_without_pc(**{key: wrong[key] for key in KEYS}))
    plan = plan_canvas(scan.positions_yx_px, scan.n_px, multiple_px=CANVAS_MULTIPLE_PX)
    found = []
    for pixels in (2**20, patterns_per_chunk * 32**2):
        monkeypatch.setattr(data, "KEPT_PIXELS", 0)
        monkeypatch.setattr(data, "CHUNK_PIXELS", pixels)
        with PatternStore(scan, Progress()) as store:
            chunks = ScanChunks(store, plan, np.arange(scan.n_patterns), torch.from_numpy(scan.probe))
            refine(
                chunks, torch.ones(plan.shape_yx, dtype=torch.complex64), RefineOptions(12, positions=True)
            )
            found.append(chunks.shifts.numpy().copy())
    assert np.abs(found[0] - plan.shifts_yx_px).max() > 0.1
    np.testing.assert_allclose(found[1], found[0], atol=SAME_PX)
