"""--saturation: stored values from a number on are no measurement, in the pattern where they are."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from scan_makers import honest_scan

from ptycho.data.checks.mask import MOST_SATURATED
from ptycho.data.optics import FileOptions
from ptycho.data.prepare import prepare_scan
from ptycho.data.scan import Scan
from ptycho.errors import ConfigError
from ptycho.raw_data import RawData

COUNTS, AMPLITUDE = 9, 11
"""Seeds of an honest scan of counts and of one of amplitude."""


def limit_of(raw: RawData, share: float) -> float:
    """Return the stored value that a share of all values reaches."""
    return float(np.sort(raw.diff3d, axis=None)[-int(share * raw.diff3d.size)])


def saturated(raw: RawData, limit: float) -> Scan:
    return prepare_scan(raw, options=FileOptions(saturation=limit, keep_pixels=True))


def said(scan: Scan) -> list[tuple[str, str]]:
    return [(item.check, item.level) for item in scan.findings]


@pytest.mark.parametrize("seed", [COUNTS, AMPLITUDE])
def test_values_from_the_limit_on_are_marked_where_they_are_and_nothing_else(seed: int) -> None:
    raw = honest_scan(seed)
    before, limit = raw.diff3d.copy(), limit_of(raw, 2e-4)
    scan = saturated(raw, limit)
    over = before >= np.asarray(limit, before.dtype)
    assert 0 < over.sum() < 1e-3 * over.size
    assert scan.raw.bad_pixels is not None
    np.testing.assert_array_equal(scan.raw.bad_pixels, over)
    np.testing.assert_array_equal(raw.diff3d, before)
    assert f"{over.sum()} values of" in scan.findings[0].message
    assert f"reach --saturation {limit:g}" in scan.findings[0].message
    # One value more or less in the stored precision decides.
    above = float(np.nextafter(np.float32(limit), np.float32(np.inf))) if seed == AMPLITUDE else limit + 1
    np.testing.assert_array_equal(
        saturated(raw, above).raw.bad_pixels, before > np.asarray(limit, before.dtype)
    )


def test_a_limit_that_nothing_reaches_changes_nothing() -> None:
    raw = honest_scan(COUNTS)
    scan, plain = saturated(raw, float(raw.diff3d.max()) + 1), prepare_scan(raw)
    assert scan.raw.bad_pixels is None
    assert scan.record == plain.record
    assert scan.findings == plain.findings == ()


@pytest.mark.parametrize("seed", [COUNTS, AMPLITUDE])
def test_a_limit_that_takes_much_of_the_counts_is_doubted_aloud(seed: int) -> None:
    raw = honest_scan(seed)
    power = 2 if seed == AMPLITUDE else 1
    for share in (1e-3, 0.02, 0.1):
        limit = limit_of(raw, share)
        stored = raw.diff3d.astype(np.float64) ** power
        clipped = np.minimum(stored, limit**power)
        taken = clipped[stored >= limit**power].sum() / clipped.sum()
        doubts = [item.message for item in saturated(raw, limit).findings if item.level == "warning"]
        found = [text for text in doubts if text.startswith("--saturation")]
        assert bool(found) == (taken > MOST_SATURATED), (share, taken)
        if found:
            assert f"takes {taken:.2g} of the counts" in found[0]


def test_a_gap_full_of_the_largest_number_is_no_saturated_light() -> None:
    raw = copy.copy(honest_scan(COUNTS))
    limit, gap = limit_of(raw, 2e-4), np.zeros((raw.N, raw.N), bool)
    gap[:, 3:7] = True
    raw.diff3d = np.where(gap, 2**32 - 1, raw.diff3d.astype(np.uint32)).astype(np.uint32)
    scan = saturated(raw, limit)
    assert said(scan) == [("saturation", "repaired")]
    np.testing.assert_array_equal(scan.raw.bad_pixels, raw.diff3d >= limit)


def test_pixels_that_are_saturated_in_all_patterns_are_marked_once() -> None:
    raw = copy.copy(honest_scan(COUNTS))
    patterns = raw.diff3d.astype(np.uint32)
    patterns[:, 20, 20] = 10**6
    raw.diff3d = patterns
    scan = saturated(raw, 10**6)
    assert scan.raw.bad_pixels is not None
    assert scan.raw.bad_pixels.shape == (raw.N, raw.N)
    assert np.argwhere(scan.raw.bad_pixels).tolist() == [[20, 20]]


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf])
def test_a_limit_has_to_be_a_number_above_0(value: float) -> None:
    with pytest.raises(ConfigError, match="--saturation: out of range"):
        FileOptions(saturation=value)
