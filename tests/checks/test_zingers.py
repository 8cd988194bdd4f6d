"""Bright pixels of single patterns are marked; strong scatterers and the direct beam are left alone."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from numpy.typing import NDArray
from scan_makers import honest_scan

from ptycho.data.optics import FileOptions
from ptycho.data.prepare import prepare_scan
from ptycho.data.scan import Scan
from ptycho.raw_data import RawData

AMPLITUDE = (3, 7, 11)
"""Seeds of honest scans that hold amplitude."""


def struck(seed: int, share: float = 2e-4) -> tuple[RawData, NDArray[np.bool_]]:
    """Return an honest scan with zingers of 1 to 100 % of the counts of a pattern, and where they are."""
    raw, rng = honest_scan(seed), np.random.default_rng(seed)
    power = 2 if seed in AMPLITUDE else 1
    counts = raw.diff3d.astype(np.float64) ** power
    hit = rng.random(counts.shape) < share
    more = np.rint(counts.sum(axis=(1, 2)).mean() * 10 ** rng.uniform(-2, 0, counts.shape))
    values = np.where(hit, counts + more, counts) ** (1 / power)
    found = copy.copy(raw)
    found.diff3d = values.astype(np.uint32 if power == 1 else np.float32)
    return found, hit


def zinger_lines(scan: Scan) -> list[str]:
    return [item.message for item in scan.findings if item.check == "zingers"]


@pytest.mark.parametrize("seed", [0, 2, 4, 5, 6, 8, 13, 14, 17, 18, *AMPLITUDE])
def test_zingers_are_marked_in_their_pattern_and_nothing_else(seed: int) -> None:
    raw, hit = struck(seed)
    before = raw.diff3d.copy()
    scan = prepare_scan(raw)
    bad = scan.raw.bad_pixels
    assert bad is not None
    assert not (bad & ~hit).any()
    # A hundredth of the counts of a pattern is no zinger in the middle of the beam.
    assert (bad & hit).sum() >= 0.7 * hit.sum()
    (line,) = zinger_lines(scan)
    assert line.startswith(f"{int(bad.sum())} pixels of single patterns")
    assert (scan.raw.diff3d[bad] == 0).all()
    np.testing.assert_array_equal(raw.diff3d, before)
    assert zinger_lines(prepare_scan(raw, options=FileOptions(keep_pixels=True))) == []


def test_a_mask_of_the_file_is_kept() -> None:
    raw, hit = struck(4)
    raw.bad_pixels = np.zeros((raw.N, raw.N), bool)
    raw.bad_pixels[3, 4] = True
    scan = prepare_scan(raw)
    assert scan.raw.bad_pixels is not None
    assert scan.raw.bad_pixels[:, 3, 4].all()
    assert (scan.raw.bad_pixels & hit).any()


def planted(pattern: int | list[int], shape: NDArray[np.float64]) -> RawData:
    """Return a scan of 32 px with further counts of a shape, as many as a pattern has, around (6, 6)."""
    raw = honest_scan(4)
    found = copy.copy(raw)
    found.diff3d = raw.diff3d.astype(np.int64)
    more = raw.diff3d[0].sum() * shape / shape.sum()
    high, wide = shape.shape
    found.diff3d[pattern, 6 : 6 + high, 6 : 6 + wide] += more.astype(np.int64)
    return found


def test_three_that_touch_are_zingers_and_a_spot_of_light_is_not() -> None:
    marked = prepare_scan(planted(9, np.array([[1.0, 0.7], [0.0, 0.4]]))).raw.bad_pixels
    assert marked is not None
    assert np.argwhere(marked).tolist() == [[9, 6, 6], [9, 6, 7], [9, 7, 7]]
    y, x = np.indices((7, 7)) - 3
    assert zinger_lines(prepare_scan(planted(9, np.exp(-(y**2 + x**2) / 2)))) == []


def test_a_pixel_as_bright_in_three_patterns_is_the_light() -> None:
    assert zinger_lines(prepare_scan(planted([3, 12, 30], np.ones((1, 1))))) == []
    assert zinger_lines(prepare_scan(planted([3, 12], np.ones((1, 1))))) != []


@pytest.mark.parametrize("share", [0.02, 0.2, 0.5])
def test_what_a_saturated_detector_leaves_is_no_zinger(share: float) -> None:
    raw = honest_scan(2)
    found = copy.copy(raw)
    found.diff3d = np.minimum(raw.diff3d, int(share * raw.diff3d.max()))
    scan = prepare_scan(found)
    assert scan.raw.bad_pixels is not None
    assert zinger_lines(scan) == []


def test_a_pattern_of_many_is_no_pattern_of_zingers() -> None:
    y, x = np.indices((24, 24))
    comb = ((y % 4 == 0) & (x % 4 == 0)) * (1.0 + 0.01 * x)
    assert zinger_lines(prepare_scan(planted(9, comb))) == []
