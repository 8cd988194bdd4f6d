"""How a phase is shown: unwrapped, without its ramp; and what a wrap does to scores: nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread
from numpy.typing import NDArray

from ptycho.evaluation import figures
from ptycho.evaluation.gauge import solve_gauge
from ptycho.evaluation.metrics import score_aligned
from ptycho.evaluation.phase import PhaseView, phase_ramp, shown_phase, unwrapped, without_ramp
from ptycho.simulation.objects import make_scene

SHAPE = (61, 80)
EXACT_RAD = 1e-9
"""A phase of 10 rad in double precision, added up over a hundred pixels."""
RANGE_RAD = 10.0


def blob(shape: tuple[int, int] = SHAPE) -> NDArray[np.float64]:
    """Return a smooth phase of 10 rad that ends inside the field, off its middle, broader along x."""
    y, x = np.indices(shape)
    away = np.hypot((y - 0.45 * shape[0]) / (0.35 * shape[0]), (x - 0.6 * shape[1]) / (0.3 * shape[1]))
    return RANGE_RAD * np.cos(0.5 * np.pi * np.minimum(away, 1.0)) ** 2


def thick(phase_rad: NDArray[Any], seed: int = 0) -> NDArray[np.complex128]:
    """Return an object of that phase whose amplitude varies."""
    amplitude = np.random.default_rng(seed).uniform(0.5, 1.0, phase_rad.shape)
    return amplitude * np.exp(1j * phase_rad)


def everywhere(shape: tuple[int, int]) -> NDArray[np.bool_]:
    return np.ones(shape, dtype=bool)


# --- ramp ---


@pytest.mark.parametrize("ramp", [(0.0, 0.0), (0.3, -0.2), (-1.1, 2.0), (2.4, 1.9)])
def test_the_ramp_beneath_a_body_is_found_whatever_wraps_there_are(ramp: tuple[float, float]) -> None:
    plane = sum(slope * axis for slope, axis in zip(ramp, np.indices(SHAPE), strict=True))
    assert np.ptp(plane + blob()) > 2 * np.pi
    found = phase_ramp(thick(plane + blob()), np.ones(SHAPE))
    np.testing.assert_allclose(found, ramp, atol=EXACT_RAD)


def test_a_ramp_counts_where_light_fell_and_nowhere_else() -> None:
    y, x = np.indices(SHAPE)
    coverage = np.where(x < 50, 0.5 + 0.4 * np.sin(y / 9) ** 2, 0.0)
    phase = 0.4 * y - 0.7 * x + np.where(x < 50, 0.0, 3.0 * y + 1e3 * np.sin(x))
    np.testing.assert_allclose(phase_ramp(np.exp(1j * phase), coverage), (0.4, -0.7), atol=EXACT_RAD)
    assert np.abs(phase_ramp(np.exp(1j * phase), np.ones(SHAPE)) - (0.4, -0.7)).max() > 0.05


def test_where_no_two_neighbours_were_seen_there_is_no_ramp() -> None:
    coverage = np.zeros(SHAPE)
    coverage[::2, ::2] = 1
    np.testing.assert_array_equal(phase_ramp(np.exp(0.3j * np.indices(SHAPE)[0]), coverage), (0, 0))


def test_a_ramp_is_taken_out_about_the_middle() -> None:
    obj = thick(blob())
    flat = without_ramp(
        obj * np.exp(1j * (0.2 * np.indices(SHAPE)[0] - 0.5 * np.indices(SHAPE)[1])), (0.2, -0.5)
    )
    turn = flat / obj
    np.testing.assert_allclose(turn, turn[0, 0], atol=EXACT_RAD)


# --- unwrapping ---


def test_a_phase_of_ten_radians_is_unwrapped_around_holes() -> None:
    phase, valid = blob(), everywhere(SHAPE)
    valid[20:24, 30:50], valid[:, 77:] = False, False
    wrapped = np.where(valid, np.angle(np.exp(1j * phase)), np.nan)
    assert np.nanmax(wrapped) - np.nanmin(wrapped) < 2 * np.pi < np.ptp(phase[valid])
    found = unwrapped(wrapped, valid)
    turns = (found - phase)[valid] / (2 * np.pi)
    np.testing.assert_allclose(turns, turns[0], atol=EXACT_RAD)
    assert turns[0] == pytest.approx(round(turns[0]), abs=EXACT_RAD)
    np.testing.assert_array_equal(found, unwrapped(wrapped, valid))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("shape", [(1, 1), (1, 60), (60, 1), (2, 60)])
def test_narrow_fields_are_unwrapped_too(shape: tuple[int, int]) -> None:
    phase = (
        np.linspace(0, RANGE_RAD, max(shape)).reshape(-1, 1)
        if shape[0] > 2
        else np.linspace(0, RANGE_RAD, max(shape)) + np.zeros((shape[0], 1))
    )
    found = unwrapped(np.angle(np.exp(1j * phase)), everywhere(phase.shape))
    np.testing.assert_allclose(found - found.flat[0], phase - phase.flat[0], atol=EXACT_RAD)


@pytest.mark.parametrize("remove_ramp", [False, True])
@pytest.mark.parametrize("unwrap", [False, True])
def test_what_is_shown_is_the_phase_about_its_median(unwrap: bool, remove_ramp: bool) -> None:
    plane = 0.15 * np.indices(SHAPE)[0] - 0.1 * np.indices(SHAPE)[1] if remove_ramp else 0.0
    obj = thick(blob() + plane + 2.0)
    view = PhaseView(unwrap=unwrap, remove_ramp=remove_ramp)
    shown = shown_phase(obj, everywhere(SHAPE), everywhere(SHAPE), np.ones(SHAPE), view)
    expected = blob() - np.median(blob())
    if unwrap:
        np.testing.assert_allclose(shown, expected, atol=1e-6)
    else:
        np.testing.assert_allclose(
            np.exp(1j * (shown - expected)),
            (shown * 0 + 1) * np.exp(1j * (shown - expected)[0, 0]),
            atol=1e-6,
        )
        assert np.abs(shown).max() <= np.pi


# --- pictures ---


def _panel(path: Path, shape: tuple[int, int]) -> NDArray[Any]:
    """Return the brightness of each object pixel of a map picture, in from the frame."""
    zoom = 720 // max(shape)
    block = imread(path)[68 : 68 + zoom * shape[0], 120 : 120 + zoom * shape[1], :3]
    return block[zoom // 2 :: zoom, zoom // 2 :: zoom].sum(axis=-1)[1:-1, 1:-1]


@pytest.mark.pictures
def test_an_unwrapped_picture_rises_with_the_phase_and_a_wrapped_one_does_not(tmp_path: Path) -> None:
    obj = thick(blob())
    plain = figures.save_reconstruction_pngs(obj, tmp_path / "plain")
    view = figures.save_reconstruction_pngs(obj, tmp_path / "view", view=PhaseView(unwrap=True))
    true = blob()[1:-1, 1:-1].ravel()
    corrs = [np.corrcoef(_panel(paths[1], SHAPE).ravel(), true)[0, 1] for paths in (plain, view)]
    assert corrs[0] < 0.7
    assert corrs[1] > 0.97
    # Only the phase is shown another way.
    np.testing.assert_array_equal(imread(plain[0]), imread(view[0]))


@pytest.mark.pictures
def test_a_ramp_leaves_the_picture_and_limits_still_count(tmp_path: Path) -> None:
    tilted = thick(blob() + 0.3 * np.indices(SHAPE)[1])
    upright, both = PhaseView(unwrap=True), PhaseView(unwrap=True, remove_ramp=True)
    flat = figures.save_reconstruction_pngs(thick(blob()), tmp_path / "flat", view=upright)[1]
    found = figures.save_reconstruction_pngs(tilted, tmp_path / "found", view=both)[1]
    left = figures.save_reconstruction_pngs(tilted, tmp_path / "left", view=upright)[1]
    assert np.abs(_panel(flat, SHAPE) - _panel(found, SHAPE)).max() < 0.05
    assert np.abs(_panel(flat, SHAPE) - _panel(left, SHAPE)).max() > 0.5
    low = PhaseView((-100.0, 100.0), unwrap=True)
    even = figures.save_reconstruction_pngs(thick(blob()), tmp_path / "even", view=low)[1]
    assert np.ptp(_panel(even, SHAPE)) < 0.2 * np.ptp(_panel(flat, SHAPE))


@pytest.mark.pictures
def test_a_comparison_is_unwrapped_on_the_branch_of_the_truth(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: dict[str, NDArray[Any]] = {}
    monkeypatch.setattr(
        figures, "_panel", lambda axes, values, *_: drawn.__setitem__(_[4], np.asarray(values))
    )
    truth = thick(blob())
    obj = truth * np.exp(0.05j * np.cos(np.indices(SHAPE)[1] / 5))
    figures.save_comparison_png(obj, truth, tmp_path / "a.png", unwrap=True)
    known, found = drawn["phase: truth"], drawn["phase: reconstruction"]
    np.testing.assert_allclose(known - known[0, 0], blob() - blob()[0, 0], atol=1e-6)
    assert np.abs(found - known).max() == pytest.approx(0.05, rel=0.01)
    figures.save_comparison_png(obj, truth, tmp_path / "b.png")
    assert np.ptp(drawn["phase: truth"]) < 2 * np.pi


# --- scores ---


def test_a_wrap_is_no_error_of_the_phase() -> None:
    """Ten radians, a gauge and an error of 0.02 rad: the scores tell the error, and nothing of the turns."""
    truth = make_scene("lens", (120, 110), 2, phase_range_rad=RANGE_RAD)
    y, x = np.indices(truth.shape)
    error = 0.02 * np.sin(x / 3.0) * np.cos(y / 4.0)
    obj = 1.3 * np.exp(2.9j) * np.exp(1j * (0.05 * y - 0.03 * x)) * truth * np.exp(1j * error)
    fit = solve_gauge(obj, truth)
    scores = score_aligned(fit.obj, truth)
    np.testing.assert_allclose(fit.ramp_yx_rad_per_px, (0.05, -0.03), atol=1e-4)
    assert abs(fit.scale) == pytest.approx(1 / 1.3, rel=1e-3)
    assert scores["phase_mae_rad"] == pytest.approx(np.abs(error).mean(), rel=0.02)
    assert scores["complex_nrmse"] == pytest.approx(np.sqrt((error**2).mean()), rel=0.02)
    rms = scores["phase_range_rad"] * 10 ** (-scores["phase_psnr_db"] / 20)
    assert rms == pytest.approx(np.sqrt((error**2).mean()), rel=0.02)
