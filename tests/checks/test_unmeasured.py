"""What was not measured is found by what photons cannot do, whatever number a detector writes there."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scan_makers import honest_scan

from ptycho.data.prepare import prepare_scan
from ptycho.errors import DataError
from ptycho.raw_data import RawData

SENTINELS = [
    (np.uint32, 2**32 - 1),
    (np.uint32, 2**32 - 2),
    (np.uint16, 65535),
    (np.int64, 65535),
    (np.int32, 2**31 - 1),
    (np.int32, -1),
    (np.int16, -2),
    (np.float32, np.nan),
    (np.float64, np.inf),
    (np.float64, -1.0),
    (np.float32, 2.0**32),
    (np.float32, 1e9),
    (np.int64, 1048575),
    (np.int64, 47),
]


def with_patterns(raw: RawData, patterns: NDArray[Any], domain: str = "counts") -> RawData:
    """Return the data set with other patterns."""
    found = copy.copy(raw)
    found.diff3d, found.metadata = patterns, {"measurement_domain": domain}
    return found


def gap_of(n_px: int) -> NDArray[np.bool_]:
    """Return a gap of two columns and some dead pixels."""
    gap = np.zeros((n_px, n_px), dtype=bool)
    gap[:, n_px // 2 + 3 : n_px // 2 + 5] = True
    gap[[1, 7, 9], [2, 5, n_px - 2]] = True
    return gap


@pytest.mark.parametrize(("dtype", "number"), SENTINELS)
@pytest.mark.parametrize("seed", [1, 9, 12, 14])
def test_pixels_that_hold_one_number_are_marked_and_nothing_else(
    seed: int, dtype: Any, number: float
) -> None:
    raw = honest_scan(seed)
    gap, patterns = gap_of(raw.N), raw.diff3d.astype(dtype)
    patterns[:, gap] = number
    scan = prepare_scan(with_patterns(raw, patterns))
    assert scan.raw.bad_pixels is not None
    np.testing.assert_array_equal(scan.raw.bad_pixels, gap)
    assert not scan.raw.diff3d[:, gap].any()
    assert [(finding.check, finding.level) for finding in scan.findings] == [("unmeasured", "repaired")]
    assert f"{gap.sum()} pixels of all patterns" in scan.findings[0].message
    assert scan.record.max_counts == raw.diff3d[:, ~gap].max()


@pytest.mark.parametrize("number", [2.0**32, np.nan, 65535.0])
def test_the_square_roots_of_counts_show_them_too(number: float) -> None:
    raw = honest_scan(3)
    gap, patterns = gap_of(raw.N), raw.diff3d.copy()
    patterns[:, gap] = np.sqrt(number)
    scan = prepare_scan(with_patterns(raw, patterns, "amplitude"))
    assert scan.raw.bad_pixels is not None
    np.testing.assert_array_equal(scan.raw.bad_pixels, gap)


@pytest.mark.parametrize(
    ("dtype", "number"),
    [(np.uint32, 2**32 - 1), (np.uint16, 65535), (np.float32, np.nan), (np.float32, np.inf)],
)
def test_single_values_are_marked_where_they_are(dtype: Any, number: float) -> None:
    raw = honest_scan(6)
    places = np.random.default_rng(1).random(raw.diff3d.shape) < 2e-4
    patterns = raw.diff3d.astype(dtype)
    patterns[places] = number
    scan = prepare_scan(with_patterns(raw, patterns))
    assert scan.raw.bad_pixels is not None
    np.testing.assert_array_equal(scan.raw.bad_pixels, places)


def test_marks_below_zero_are_told_from_noise_by_where_they_are() -> None:
    raw = honest_scan(2)
    places = np.random.default_rng(1).random(raw.diff3d.shape) < 1e-3
    marked, noisy = raw.diff3d.astype(np.int32), raw.diff3d.astype(np.int32)
    marked[places] = -1
    scan = prepare_scan(with_patterns(raw, marked))
    assert scan.raw.bad_pixels is not None
    np.testing.assert_array_equal(scan.raw.bad_pixels, places)
    noisy += np.rint(np.random.default_rng(2).normal(0, 0.4, noisy.shape)).astype(np.int32)
    scan = prepare_scan(with_patterns(raw, noisy))
    assert scan.raw.bad_pixels is None
    assert scan.raw.diff3d.min() == 0


@pytest.mark.parametrize("offset", ["constant", "noise"])
def test_values_below_zero_left_by_a_dark_level_become_zero(offset: str) -> None:
    raw = honest_scan(12)
    rng = np.random.default_rng(5)
    level = 0.3 if offset == "constant" else rng.normal(0, 2, raw.diff3d.shape)
    scan = prepare_scan(with_patterns(raw, (raw.diff3d - level).astype(np.float32)))
    assert scan.raw.bad_pixels is None
    assert scan.raw.diff3d.min() == 0
    assert [finding.level for finding in scan.findings] == ["repaired"]
    assert "are noise, and set to 0" in scan.findings[0].message


def test_a_saturated_middle_is_marked_where_it_is() -> None:
    raw = honest_scan(18)
    limit = int(np.quantile(raw.diff3d, 0.999))
    clipped = np.minimum(raw.diff3d, limit)
    scan = prepare_scan(with_patterns(raw, clipped))
    assert scan.raw.bad_pixels is not None
    np.testing.assert_array_equal(scan.raw.bad_pixels, raw.diff3d >= limit)


@pytest.mark.parametrize("seed", [9, 14, 18])
def test_saturation_is_marked_also_beside_pixels_that_are_saturated_in_every_pattern(seed: int) -> None:
    raw = honest_scan(seed)
    limit = int(raw.diff3d.min(axis=0).max())
    saturated = raw.diff3d >= limit
    assert saturated.all(axis=0).any()
    scan = prepare_scan(with_patterns(raw, np.minimum(raw.diff3d, limit)))
    assert scan.raw.bad_pixels is not None
    np.testing.assert_array_equal(scan.raw.bad_pixels, saturated)


@pytest.mark.parametrize("number", [np.nan, -5.0])
def test_a_pattern_that_measured_nothing_is_left_out(number: float) -> None:
    raw = honest_scan(13)
    patterns = raw.diff3d.astype(np.float32)
    patterns[[3, 50]] = number
    scan = prepare_scan(with_patterns(raw, patterns))
    assert scan.left_out.tolist() == [3, 50]
    assert np.isfinite(scan.record.mean_counts)


def test_the_array_of_the_caller_stays_as_it_is() -> None:
    raw = honest_scan(6)
    patterns = raw.diff3d.astype(np.float32)
    patterns[:, 3, 3] = np.nan
    before = patterns.copy()
    prepare_scan(with_patterns(raw, patterns))
    np.testing.assert_array_equal(patterns, before)


def test_a_stack_without_any_measurement_is_refused() -> None:
    raw = honest_scan(6)
    with pytest.raises(DataError, match="expected photons"):
        RawData(raw.xcoords, raw.ycoords, None, None, np.full(raw.diff3d.shape, np.nan), raw.probeGuess, None)
