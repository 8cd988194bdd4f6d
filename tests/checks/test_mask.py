"""A mask of good pixels is turned; one that leaves little is named."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from numpy.typing import NDArray
from scan_makers import honest_scan

from ptycho.data.prepare import prepare_scan
from ptycho.raw_data import RawData


def masked(raw: RawData, bad: NDArray[np.bool_]) -> RawData:
    """Return the data set with a mask."""
    found = copy.copy(raw)
    found.bad_pixels = bad
    return found


def gap_of(n_px: int) -> NDArray[np.bool_]:
    """Return a gap of two columns and a corner without a detector."""
    gap = np.zeros((n_px, n_px), dtype=bool)
    gap[:, n_px // 2 + 4 : n_px // 2 + 6] = True
    gap[: n_px // 4, : n_px // 4] = True
    return gap


def with_gap(raw: RawData) -> tuple[RawData, NDArray[np.bool_]]:
    """Return the data set without counts in its gap, and the gap."""
    gap, found = gap_of(raw.N), copy.copy(raw)
    found.diff3d = np.where(gap, 0, raw.diff3d)
    return found, gap


@pytest.mark.parametrize("seed", range(0, 20, 3))
def test_a_mask_of_good_pixels_is_turned_and_the_right_one_is_kept(seed: int) -> None:
    raw, gap = with_gap(honest_scan(seed))
    turned = prepare_scan(masked(raw, ~gap))
    assert [(finding.check, finding.level) for finding in turned.findings] == [("mask", "repaired")]
    kept = prepare_scan(masked(raw, gap))
    assert kept.findings == ()
    for scan in (turned, kept):
        assert scan.raw.bad_pixels is not None
        np.testing.assert_array_equal(scan.raw.bad_pixels, gap)


def test_a_mask_for_every_pattern_is_turned_too() -> None:
    raw, gap = with_gap(honest_scan(9))
    gap = np.broadcast_to(gap, raw.diff3d.shape).copy()
    gap[3, 5:9, 5:9] = True
    scan = prepare_scan(masked(raw, ~gap))
    assert scan.raw.bad_pixels is not None
    np.testing.assert_array_equal(scan.raw.bad_pixels, gap)


def test_a_mask_that_calls_every_pixel_good_in_its_own_way_marks_none() -> None:
    raw = honest_scan(9)
    scan = prepare_scan(masked(raw, np.ones((raw.N, raw.N), dtype=bool)))
    assert scan.raw.bad_pixels is None
    assert "hold 1 of the counts: it marks the good pixels" in scan.findings[0].message


def test_a_gap_of_the_largest_number_does_not_hide_which_pixels_hold_the_counts() -> None:
    raw = honest_scan(5)
    gap, found = gap_of(raw.N), masked(raw, ~gap_of(raw.N))
    found.diff3d = raw.diff3d.astype(np.uint32)
    found.diff3d[:, gap] = 2**32 - 1
    scan = prepare_scan(found)
    assert scan.raw.bad_pixels is not None
    np.testing.assert_array_equal(scan.raw.bad_pixels, gap)


def test_a_mask_that_leaves_little_is_named() -> None:
    raw = honest_scan(18)
    n_px = raw.N
    few = np.ones((n_px, n_px), dtype=bool)
    few[n_px // 2 - 6 : n_px // 2 + 6, n_px // 2 - 6 : n_px // 2 + 6] = False
    mean = raw.diff3d.mean(axis=0)
    brightest = np.sort(mean, axis=None)[::-1]
    beam = mean >= brightest[np.searchsorted(np.cumsum(brightest), 0.93 * brightest.sum())]
    assert beam.mean() < 0.5
    for bad in (few, beam):
        scan = prepare_scan(masked(raw, bad))
        assert ("mask", "warning") in [(finding.check, finding.level) for finding in scan.findings]
        assert scan.raw.bad_pixels is not None
        np.testing.assert_array_equal(scan.raw.bad_pixels, bad)
