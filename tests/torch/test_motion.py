"""Facts about what the solver finds: wrong positions, a stage that is off, a phase slower than the spot."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from judges import FLOAT64, assert_twin, plain_advance, random_complex
from numpy.typing import NDArray

from ptycho.data.prepare import prepare_scan
from ptycho.data.scan import PatternStore, Scan
from ptycho.evaluation.metrics import score
from ptycho.geometry.canvas import CANVAS_MULTIPLE_PX, CanvasPlan, plan_canvas
from ptycho.process.progress import Progress
from ptycho.raw_data import RawData
from ptycho.simulation.simulate import SimulationOptions, expected_counts, simulate
from ptycho.solver.options import RefineOptions
from ptycho.solver.schedule import STEP_DAMPING
from ptycho_torch import solver
from ptycho_torch.data import ScanChunks

Array = NDArray[Any]

KEYS = ("xcoords", "ycoords", "diff3d", "probeGuess", "scan_index", "objectGuess")
ITERATIONS = 25
LEFT_PX = 0.06
"""What the photons of this scan leave of positions that move one by one."""
DRIFT_PX = np.array([0.4, -0.3])


@pytest.fixture(scope="module")
def arrays() -> dict[str, Array]:
    """14 x 14 patterns of 32 x 32 px."""
    return simulate(SimulationOptions(n_px=32, n_y=14, n_x=14, step_px=3.0, seed=4, photons=1e6))


def positions(arrays: dict[str, Array]) -> Array:
    return np.stack([arrays["ycoords"], arrays["xcoords"]], axis=1)


def prepared(arrays: dict[str, Array], places_yx_px: Array) -> tuple[Scan, CanvasPlan]:
    known = arrays | {"ycoords": places_yx_px[:, 0], "xcoords": places_yx_px[:, 1]}
    scan = prepare_scan(RawData.from_coords_without_pc(**{key: known[key] for key in KEYS}))
    return scan, plan_canvas(scan.positions_yx_px, scan.n_px, multiple_px=CANVAS_MULTIPLE_PX)


class Found(NamedTuple):
    """What a refinement from flat made of a scan."""

    places_yx_px: Array
    obj: Array
    plan: CanvasPlan


def found_from(arrays: dict[str, Array], places_yx_px: Array, options: RefineOptions) -> Found:
    scan, plan = prepared(arrays, places_yx_px)
    with PatternStore(scan, Progress()) as store:
        chunks = ScanChunks(store, plan, np.arange(scan.n_patterns), torch.from_numpy(scan.probe))
        obj = solver.refine(chunks, torch.ones(plan.shape_yx, dtype=torch.complex64), options).obj
        moved = chunks.shifts.numpy() - plan.shifts_yx_px
    return Found(places_yx_px + moved, obj.numpy(), plan)


def rms_px(errors: Array) -> float:
    """Size of errors along one axis, but for what all have in common."""
    return float(np.sqrt(((errors - errors.mean(axis=0)) ** 2).mean()))


def test_random_errors_of_positions_are_mended(arrays: dict[str, Array]) -> None:
    true = positions(arrays)
    wrong = true + np.random.default_rng(0).normal(0, 0.7, true.shape)
    assert rms_px(wrong - true) > 0.65
    options = RefineOptions(ITERATIONS, positions=True, start="flat")
    assert rms_px(found_from(arrays, wrong, options).places_yx_px - true) < LEFT_PX


@pytest.mark.parametrize("kind", ["positions", "affine"])
@pytest.mark.parametrize(("scale", "angle_deg"), [(1.02, 0.0), (1.0, 1.0)])
def test_a_raster_of_another_scale_or_angle_comes_back(
    kind: str, scale: float, angle_deg: float, arrays: dict[str, Array]
) -> None:
    true, angle = positions(arrays), np.deg2rad(angle_deg)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    wrong = true.mean(axis=0) + scale * (true - true.mean(axis=0)) @ turn.T
    options = RefineOptions(ITERATIONS, start="flat", **{kind: True})
    left = rms_px(found_from(arrays, wrong, options).places_yx_px - true)
    assert left < rms_px(wrong - true) / 5
    if kind == "affine":
        assert left < rms_px(wrong - true) / 15


@pytest.mark.parametrize("kind", ["positions", "affine"])
def test_a_drift_of_all_positions_stays(kind: str, arrays: dict[str, Array]) -> None:
    true = positions(arrays)
    places = true + DRIFT_PX + 0.01 * (true - true.mean(axis=0))
    found = found_from(arrays, places, RefineOptions(ITERATIONS, start="flat", **{kind: True}))
    assert rms_px(found.places_yx_px - places) > 0.05
    np.testing.assert_allclose((found.places_yx_px - true).mean(axis=0), DRIFT_PX, atol=1e-5)


def test_a_phase_slower_than_the_spot_arrives_early(monkeypatch: pytest.MonkeyPatch) -> None:
    made = simulate(SimulationOptions(n_px=32, n_y=24, n_x=24, step_px=5.0, seed=4, photons=1e5))
    y, x = np.indices(made["objectGuess"].shape)
    height, width = made["objectGuess"].shape
    slow = 1.2 * np.sin(2 * np.pi * y / height) * np.cos(2 * np.pi * x / width)
    truth = 0.95 * np.exp(1j * (slow + 0.15 * np.sin(y / 2.5) * np.sin(x / 3)))
    mean = expected_counts(truth, made["probeGuess"][None].astype(complex), positions(made))
    made |= {"objectGuess": truth.astype(np.complex64), "diff3d": np.random.default_rng(0).poisson(mean)}

    def error() -> float:
        found = found_from(made, positions(made), RefineOptions(15, start="flat"))
        top, left = np.round(found.plan.origin_yx_px).astype(int)
        known = truth[top : top + found.obj.shape[0], left : left + found.obj.shape[1]]
        inside = np.zeros(known.shape, dtype=bool)
        inside[16:-24, 16:-24] = True
        return float(score(found.obj[: known.shape[0], : known.shape[1]], known, inside)["complex_nrmse"])

    assert error() < 0.02
    gain = solver.phase_gain
    monkeypatch.setattr(solver, "phase_gain", lambda *words: 0 * gain(*words))
    assert error() > 0.15


@pytest.mark.parametrize("size", [0.01, 3.0])
def test_a_step_goes_further_as_written_out_and_turns_no_dark_pixel(size: float) -> None:
    rng, shape = np.random.default_rng(5), (20, 26)
    leading, step = 1 + 0.3 * random_complex(rng, *shape), size * random_complex(rng, *shape)
    leading[3:6, 4:8] *= 1e-3  # hardly a phase
    light = np.exp(-np.linspace(0, 9, shape[0])[:, None] + 0 * leading.real)
    light[-4:] = 0
    gain = rng.uniform(0, 9, shape)
    gain += np.roll(gain[::-1, ::-1], 1, axis=(0, 1))
    expected = plain_advance(leading, step, light, gain, STEP_DAMPING)
    arguments = [torch.from_numpy(array) for array in (leading, step, light, gain)]
    found, _ = solver.PRIMITIVES.advanced(*arguments, None)
    assert_twin(expected, found, FLOAT64)
    turn = np.angle(expected / (leading - step))
    assert np.abs(turn).max() == pytest.approx(0.5) if size > 1 else 0.01 < np.abs(turn).max() < 0.5
    np.testing.assert_allclose(found.numpy()[-4:], (leading - step)[-4:], rtol=1e-12)


@pytest.mark.parametrize(
    ("factor", "kept"), [(1.0, 1.0), (-0.7, 1.0), (-0.9, 0.75), (-1.1, 0.5), (-3.0, 0.5)]
)
def test_a_gain_that_turns_a_step_back_is_halved(factor: float, kept: float) -> None:
    rng, shape = np.random.default_rng(6), (16, 18)
    leading = torch.from_numpy(1 + 0.2 * random_complex(rng, *shape))
    step, light = torch.from_numpy(1e-3 * random_complex(rng, *shape)), torch.ones(shape, dtype=torch.float64)
    gain = torch.full(shape, 4.0, dtype=torch.float64)
    plain, slow = solver.PRIMITIVES.advanced(leading, step, light, gain, None)
    found, slow = solver.PRIMITIVES.advanced(leading, factor * step, light, gain, slow)
    assert float(slow[1]) == pytest.approx(kept)
    turn = (found / (leading - factor * step)).angle()
    first = (plain / (leading - step)).angle()
    assert_twin((factor * kept * first).numpy(), turn, FLOAT64 * 1e3)


def test_a_way_along_the_gradient_is_uphill() -> None:
    old, step = (torch.from_numpy(random_complex(np.random.default_rng(k), 8, 9)) for k in (0, 1))
    # The loop subtracts the step: a way along it goes back.
    assert solver.PRIMITIVES.uphill(step, old + step, old) == 1
    assert solver.PRIMITIVES.uphill(step, old - step, old) == 0
    assert solver.PRIMITIVES.uphill(step, old + (0.05 + 1j) * step, old) == pytest.approx(0.5, abs=0.01)
