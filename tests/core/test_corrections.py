"""Facts about corrected positions: how far they moved, what that says about the stage, when it is doubted."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ptycho.evaluation.corrections import (
    FAR,
    PositionCorrection,
    position_correction,
    save_position_correction_png,
)

PLACES = np.stack(np.meshgrid(5.0 * np.arange(9), 7.0 * np.arange(8), indexing="ij"), -1).reshape(-1, 2)
NO_DOUBT = 0.01


def correction(moved: Any, last_step_px: float | None = NO_DOUBT) -> PositionCorrection:
    return PositionCorrection(np.asarray(moved, float), 20.0, last_step_px)


def placed(moved: Any, refined: bool = True, near: bool = False, probe_gain: float = 1.0) -> Any:
    """Return what ``position_correction`` looks at of a reconstruction, with a disc of 20 px as its probe."""
    away = np.arange(64) - 31.5
    probe = (np.hypot(away[:, None], away) < 10).astype(np.complex64)[None]
    positions = PLACES + moved
    found = SimpleNamespace(
        positions_yx_px=positions if refined else None, probe=probe * probe_gain, position_step_px=NO_DOUBT
    )
    scan = SimpleNamespace(
        positions_yx_px=np.concatenate([[[-99.0, -99.0]], PLACES]),
        probe=probe,
        fresnel_number=1e-3 if near else None,
    )
    rows = np.arange(1, len(PLACES) + 1)
    return SimpleNamespace(found=found, scan=scan, rows=rows, positions_yx_px=positions)


def test_distances_are_those_of_the_arrows() -> None:
    found = correction([[3, 4], [0, 0], [0, -1], [0, 0]])
    assert found.rms_px == pytest.approx(np.sqrt(26 / 4))
    assert found.largest_px == 5


def test_what_all_positions_share_is_no_correction() -> None:
    rng = np.random.default_rng(0)
    moved = rng.normal(0, 1, PLACES.shape)
    found = position_correction(placed(moved + np.array([30, -40])))
    assert found is not None
    np.testing.assert_allclose(found.moved_yx_px, moved - moved.mean(axis=0), atol=1e-9)
    assert found.spot_px == pytest.approx(20, rel=0.02)
    assert found.last_step_px == NO_DOUBT
    assert position_correction(placed(np.zeros(2) + 5.0)) is None
    assert position_correction(placed(moved, refined=False)) is None


def test_positions_and_probe_refined_together_in_the_near_field_leave_the_aspect_open() -> None:
    moved = np.random.default_rng(0).normal(0, 1, PLACES.shape)
    both = position_correction(placed(moved, near=True, probe_gain=1.1))
    assert both is not None
    assert both.numbers()["aspect_is_free"]
    assert "sizes along y and x may be off by a few per cent" in (both.caution() or "")
    for alone in (placed(moved, near=True), placed(moved, probe_gain=1.1)):
        found = position_correction(alone)
        assert found is not None
        assert found.caution() is None
        assert not found.numbers()["aspect_is_free"]


def test_scale_rotation_and_shear_of_the_stage_are_told() -> None:
    angle, stretch = np.deg2rad(0.5), np.array([[1.02, 0], [0, 0.97]])
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    centred = PLACES - PLACES.mean(axis=0)
    line = correction(centred @ (stretch @ turn) - centred).line(PLACES)
    assert "scale of y 1.0200, of x 0.9700, rotation +0.50 deg" in line
    assert "rotation -0.50 deg" in correction(centred @ (stretch @ turn.T) - centred).line(PLACES)
    assert "shear +1.00 deg" in correction(centred @ [[0, np.deg2rad(1)], [0, 0]]).line(PLACES)


@pytest.mark.parametrize(("step", "doubted"), [(None, False), (0.09, False), (0.12, True), (0.3, True)])
def test_positions_that_still_move_are_doubted(step: float | None, doubted: bool) -> None:
    found = correction(np.full(PLACES.shape, 0.5), step)
    assert any("still move" in doubt for doubt in found.doubts()) is doubted


def test_a_large_correction_may_end_with_larger_steps() -> None:
    assert list(correction(np.full(PLACES.shape, 4.0), 0.4).doubts()) == []
    assert list(correction(np.full(PLACES.shape, 4.0), 0.7).doubts()) != []


@pytest.mark.parametrize(("count", "doubted"), [(1, False), (4, True)])
def test_positions_that_left_their_spot_are_doubted(count: int, doubted: bool) -> None:
    moved = np.zeros(PLACES.shape)
    moved[:count, 0] = 20.0 * FAR + 0.1
    doubts = list(correction(moved).doubts())
    assert bool(doubts) is doubted
    moved[:count, 0] = 20.0 * FAR - 0.1
    assert list(correction(moved).doubts()) == []
    assert not doubted or doubts[0].startswith(
        f"{count} positions were moved by more than half a spot (10 px)"
    )


@pytest.mark.pictures
def test_every_correction_is_an_arrow(tmp_path: Path) -> None:
    from PIL import Image

    moved = np.random.default_rng(1).normal(0, 1, PLACES.shape)
    path = save_position_correction_png(PLACES + moved, moved, tmp_path / "arrows.png", "corrected")
    drawn = np.asarray(Image.open(path).convert("RGB"), float)
    still = save_position_correction_png(PLACES, 1e-9 * moved, tmp_path / "still.png", "corrected")
    assert path.exists()
    assert still.exists()
    # Colour, which only arrows and their scale have, is spread over the picture.
    coloured = np.ptp(drawn, axis=2) > 60
    inside = coloured[:, : int(0.8 * coloured.shape[1])]
    assert inside.mean() > 0.005
    assert min(inside[: len(inside) // 2].sum(), inside[len(inside) // 2 :].sum()) > 0.2 * inside.sum()
