"""Near-field patterns are refused; far fields with a shadow image of the sample are not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scan_makers import honest_scan
from scipy.ndimage import gaussian_filter

from ptycho.data.checks.near_field import beam_width_px
from ptycho.data.prepare import prepare_scan
from ptycho.data.scan import Scan
from ptycho.errors import DataError
from ptycho.raw_data import RawData


def projections(n_px: int, magnification: float, seed: int, step_px: float = 12.0) -> Scan:
    """Return images of a sample that moves through a wide beam, with positions as for a far field."""
    rng = np.random.default_rng(seed)
    y, x = np.indices((n_px, n_px)) - n_px / 2
    beam = 200.0 * np.exp(-(((y**2 + x**2) / (0.4 * n_px) ** 2) ** 2))
    points = step_px * np.stack(np.divmod(np.arange(49), 7), axis=1) + rng.uniform(-1, 1, (49, 2))
    size = int(n_px + magnification * step_px * 8) + 4
    picture = 1.0 + 0.5 * gaussian_filter(rng.standard_normal((size, size)), 2.0) * 7
    frames = []
    for point in points:
        row, column = np.rint(magnification * (point + step_px)).astype(int)
        frames.append(rng.poisson(beam * picture[row : row + n_px, column : column + n_px].clip(0.1)))
    axis = np.arange(n_px) - (n_px - 1) / 2
    probe = np.exp(-(np.hypot(axis[:, None], axis) ** 2) / (0.02 * n_px**2)) * 1e3
    raw = RawData.from_coords_without_pc(
        points[:, 1], points[:, 0], np.array(frames, np.uint16), probe.astype(complex), None
    )
    return prepare_scan(raw, name="images.npz")


@pytest.mark.parametrize(("n_px", "magnification", "seed"), [(64, 0.3, 1), (48, 0.25, 2), (96, 0.4, 3)])
def test_images_that_move_with_the_sample_are_refused(n_px: int, magnification: float, seed: int) -> None:
    with pytest.raises(DataError, match="near-field patterns"):
        projections(n_px, magnification, seed)


def test_a_shadow_image_of_a_lens_out_of_focus_is_no_near_field() -> None:
    """A beam that fits the window: the same images, moved as a far field moves them."""
    scan = projections(64, 1.6, 1, step_px=4.0)
    width = beam_width_px(scan)
    assert width is not None
    assert width < 64


def test_random_far_fields_are_far_fields() -> None:
    for seed in range(20, 40):
        scan = prepare_scan(honest_scan(seed))
        width = beam_width_px(scan)
        assert width is None or width <= scan.n_px, seed


def test_the_real_near_field_scan_is_refused_by_the_command(
    near_field_scan: Path, infer_command: Callable[..., Any], tmp_path: Path
) -> None:
    done = infer_command("pretrained", near_field_scan, tmp_path / "out")
    assert done.code == 2
    last = done.err.strip().splitlines()[-1]
    assert "near-field patterns" in last
    assert "Pass --propagation near, with --focus-distance M" in last
