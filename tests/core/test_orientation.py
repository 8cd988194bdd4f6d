"""The eight ways to take positions: what each does, and that a search reports what it found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ptycho.config.config import InferenceConfig, ModelConfig
from ptycho.data.optics import ORIENTATIONS, Orientation
from ptycho.data.reconstruction import Reconstruction
from ptycho.errors import ConfigError
from ptycho.files.reader import open_scan
from ptycho.process.progress import Progress
from ptycho.run.orientation_search import TRIAL_PATTERNS, Search, check_search, find_orientation

POINTS = np.array([[1.0, 10.0], [2.0, 20.0], [4.0, 50.0]])


def test_the_eight_orientations_differ_and_keep_all_distances() -> None:
    turned = [orientation.turn(POINTS) for orientation in ORIENTATIONS]
    assert len({array.tobytes() for array in turned}) == 8
    spans = [np.linalg.norm(array[1:] - array[:-1], axis=1) for array in turned]
    np.testing.assert_allclose(spans, np.tile(spans[0], (8, 1)))
    np.testing.assert_array_equal(Orientation("x", True).turn(POINTS), POINTS[:, ::-1] * (1, -1))


@pytest.mark.parametrize("planted", [0, 1, 6, 7])
def test_the_smallest_misfit_decides_and_the_margin_is_told(planted: int, small_scan: Path) -> None:
    scan, tried = open_scan(small_scan), []

    def reconstruct(turned: Any, members: Any, refine: Any) -> Reconstruction:
        tried.append(turned.positions_yx_px[members])
        misfit = 0.1 if len(tried) - 1 == planted else 0.2
        empty = np.ones((1, 1), np.complex64)
        return Reconstruction(
            empty, empty.real, np.zeros(2), empty[None], members, 0.0, (1.0,) * refine.steps + (misfit,)
        )

    found = find_orientation(scan, reconstruct, Progress())
    assert (found.best, found.margin, found.clear) == (ORIENTATIONS[planted], pytest.approx(2.0), True)
    assert all(len(positions) == min(TRIAL_PATTERNS, scan.n_patterns) for positions in tried)
    for orientation, positions in zip(ORIENTATIONS, tried, strict=True):
        np.testing.assert_array_equal(positions, orientation.turn(scan.positions_yx_px))


def test_a_search_says_what_fits_and_which_flags_ask_for_it() -> None:
    straight, other = Orientation(), Orientation("xy", True)
    assert Search(other, straight, 24.3).line() == (
        "orientation: --flip-positions xy --swap-positions fits best, 24.3x better than positions as in the "
        "file; used"
    )
    assert Search(straight, other, 1.5).line() == (
        "orientation: positions as in the file fits best, 1.5x better than --flip-positions xy "
        "--swap-positions"
    )
    assert not Search(other, straight, 1.02).clear
    assert "not clear" in Search(other, straight, 1.02).line()
    assert "left as they are" in Search(other, straight, 1.02).line()


def test_a_search_beside_what_it_is_to_find_is_refused() -> None:
    config = InferenceConfig(ModelConfig(), Path("m"), Path("d"), find_orientation=True)
    check_search(config)
    for name, value in (("flip_positions", "x"), ("swap_positions", True)):
        other = InferenceConfig(ModelConfig(), Path("m"), Path("d"), **{name: value})
        check_search(other)
        other.find_orientation = True
        with pytest.raises(ConfigError, match="--find-orientation: it tries every orientation"):
            check_search(other)
