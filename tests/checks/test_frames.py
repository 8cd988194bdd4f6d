"""Patterns that tell nothing about the sample are left out, named, and kept on request."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scan_makers import honest_scan

from ptycho.data.optics import FileOptions
from ptycho.data.prepare import prepare_scan
from ptycho.data.selection import subsample, validation_groups
from ptycho.errors import DataError
from ptycho.raw_data import RawData

Spoil = Callable[[NDArray[np.float64]], NDArray[np.float64]]
FAULTS: dict[str, Spoil] = {
    "dark": lambda pattern: 0 * pattern,
    "constant": lambda pattern: 0 * pattern + 7,
    "saturated": lambda pattern: 0 * pattern + 65535,
    "ten times as bright": lambda pattern: 10 * pattern,
    "a twentieth as bright": lambda pattern: pattern // 20,
}


def spoiled(raw: RawData, rows: tuple[int, ...], fault: Spoil) -> RawData:
    """Return a copy with a fault in some patterns."""
    found = copy.copy(raw)
    found.diff3d = raw.diff3d.astype(np.float64)
    for row in rows:
        found.diff3d[row] = fault(found.diff3d[row])
    if raw.diff3d.dtype.kind in "iu":
        found.diff3d = found.diff3d.astype(np.uint32)
    return found


def inner(raw: RawData) -> tuple[int, ...]:
    """Return two patterns away from the rim of the scan, ascending."""
    away = np.hypot(*(raw.positions_yx_px - raw.positions_yx_px.mean(axis=0)).T)
    return tuple(sorted(np.argsort(away)[[0, 5]].tolist()))


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("seed", [0, 2, 4, 5, 13, 18])
def test_a_damaged_pattern_is_left_out_and_named(fault: str, seed: int) -> None:
    rows = inner(honest_scan(seed))
    raw = spoiled(honest_scan(seed), rows, FAULTS[fault])
    scan = prepare_scan(raw)
    assert scan.left_out.tolist() == list(rows)
    assert [finding.level for finding in scan.findings] == ["repaired"]
    assert "2 of 64 patterns" in scan.findings[0].message
    assert f"{rows[0]}, {rows[1]}; --keep-frames" in scan.findings[0].message
    kept = prepare_scan(raw, options=FileOptions(keep_frames=True))
    assert kept.usable.size == 64
    assert not [finding for finding in kept.findings if finding.check == "frames"]


def test_a_repeated_pattern_is_left_out_where_photons_were_counted() -> None:
    raw = honest_scan(0)
    found = copy.copy(raw)
    found.diff3d = raw.diff3d.copy()
    found.diff3d[40:44] = found.diff3d[39]
    scan = prepare_scan(found)
    assert scan.left_out.tolist() == [40, 41, 42, 43]


def test_every_seventh_pattern_dark_leaves_the_dose_as_it_was() -> None:
    raw = honest_scan(2)
    dark = tuple(range(0, 64, 7))
    scan, clean = prepare_scan(spoiled(raw, dark, FAULTS["dark"])), prepare_scan(raw)
    assert scan.left_out.tolist() == list(dark)
    assert scan.record.mean_counts == pytest.approx(clean.record.mean_counts, rel=0.1)


def test_one_saturated_pattern_leaves_the_dose_as_it_was() -> None:
    raw = honest_scan(4)
    scan, clean = prepare_scan(spoiled(raw, (30,), FAULTS["saturated"])), prepare_scan(raw)
    assert scan.record.mean_counts == pytest.approx(clean.record.mean_counts, rel=0.03)
    assert scan.record.max_counts < 65535


def test_patterns_left_out_take_no_part_in_a_training_or_a_judgement() -> None:
    rows = inner(honest_scan(5))
    scan = prepare_scan(spoiled(honest_scan(5), rows, FAULTS["dark"]))
    assert not np.isin(subsample(scan, None, None), rows).any()
    assert not np.isin(validation_groups(scan, 2).indices, rows).any()
    assert len(validation_groups(scan, 2).indices) == 62


def test_a_scan_of_nothing_but_dark_and_constant_patterns_is_refused() -> None:
    raw = spoiled(honest_scan(5), tuple(range(64)), FAULTS["constant"])
    with pytest.raises(DataError, match="no pattern holds information"):
        prepare_scan(raw)


def test_a_grain_that_darkens_part_of_a_scan_is_no_fault() -> None:
    raw = honest_scan(18)
    found = copy.copy(raw)
    away = np.hypot(*(raw.positions_yx_px - raw.positions_yx_px.mean(axis=0)).T)
    rng = np.random.default_rng(4)
    # A smooth dip of the transmission down to a tenth in the middle of the field.
    share = 1 - 0.9 * np.exp(-((away / (0.4 * away.max())) ** 2))
    found.diff3d = rng.binomial(raw.diff3d.astype(np.int64), share[:, None, None])
    scan = prepare_scan(found)
    assert not [finding for finding in scan.findings if finding.check == "frames"]
    assert scan.usable.size == 64
