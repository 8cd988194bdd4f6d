"""Patterns beside the far field of their probe are moved there; what refracts or is dim is left alone."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
from scan_makers import honest_scan

from ptycho.data.optics import GUESSED_PROBE, FileOptions
from ptycho.data.prepare import prepare_scan
from ptycho.files.assemble import focus_of
from ptycho.files.reader import open_scan
from ptycho.raw_data import RawData


def offset_by(raw: RawData, offset_yx: tuple[int, int], *, cut: bool = True) -> RawData:
    """Return the data set of a detector that stands beside the beam; what it does not see is lost."""
    found = copy.copy(raw)
    found.diff3d = np.roll(raw.diff3d, offset_yx, axis=(1, 2))
    for axis, shift in enumerate(offset_yx):
        gone = slice(0, shift) if shift > 0 else slice(shift, 0) if shift == 0 else slice(shift, None)
        if cut:
            found.diff3d[(slice(None),) * (1 + axis) + (gone,)] = 0
    return found


def found_by(raw: RawData, options: FileOptions | None = None) -> RawData:
    """Return the data set after the checks, which found nothing but its place."""
    scan = prepare_scan(raw, options=options)
    assert {finding.check for finding in scan.findings} <= {"centre"}, raw.source
    return scan.raw


@pytest.mark.parametrize("offset", [(1, 0), (0, -1), (2, -1), (-3, 4), (5, 5)])
@pytest.mark.parametrize("seed", [0, 1, 5, 7, 10, 14, 18])
def test_a_beam_beside_the_middle_is_moved_there_and_what_was_not_seen_is_bad(
    seed: int, offset: tuple[int, int]
) -> None:
    raw = honest_scan(seed)
    seen = offset_by(offset_by(raw, offset), (-offset[0], -offset[1]))
    found = found_by(offset_by(raw, offset))
    assert found.bad_pixels is not None
    assert found.bad_pixels.sum() == raw.N**2 - (raw.N - abs(offset[0])) * (raw.N - abs(offset[1]))
    np.testing.assert_array_equal(found.diff3d, seen.diff3d)
    assert not found.diff3d[:, found.bad_pixels].any()


@pytest.mark.parametrize("seed", range(20))
def test_a_zero_frequency_in_the_corner_is_moved_to_the_middle(seed: int) -> None:
    raw = honest_scan(seed)
    half = raw.N // 2
    scan = prepare_scan(offset_by(raw, (half, half), cut=False))
    assert [finding.level for finding in scan.findings] == ["repaired"]
    assert "in the corner" in scan.findings[0].message
    np.testing.assert_array_equal(scan.raw.diff3d, raw.diff3d)
    assert scan.raw.bad_pixels is None


@pytest.mark.parametrize("offset", [(3, -2), (32, 32)])
def test_the_place_of_the_beam_is_kept_on_request(offset: tuple[int, int]) -> None:
    raw = offset_by(honest_scan(18), offset, cut=False)
    found = prepare_scan(raw, options=FileOptions(centre_patterns="off"))
    assert found.findings == ()
    np.testing.assert_array_equal(found.raw.diff3d, raw.diff3d)


@pytest.mark.parametrize("offset", [(3, -2), (8, 0)])
def test_a_probe_that_shares_the_offset_explains_it(offset: tuple[int, int]) -> None:
    raw = honest_scan(18)
    along = 2j * np.pi * np.arange(raw.N) / raw.N
    ramp = np.exp(offset[0] * along[:, None] + offset[1] * along)
    shifted = offset_by(raw, offset, cut=False)
    shifted.probeGuess = raw.probe_modes * ramp
    assert prepare_scan(shifted).findings == ()


def test_a_probe_that_is_only_a_guess_moves_nothing(honest_scans: list[RawData]) -> None:
    for raw in honest_scans:
        y, x = np.indices((raw.N, raw.N)) - (raw.N - 1) / 2
        for probe in (np.exp(-(y**2 + x**2) / (0.03 * raw.N**2)), np.hypot(y, x) < raw.N / 5):
            found = copy.copy(raw)
            found.probeGuess = probe.astype(np.complex64)
            assert prepare_scan(found).findings == (), raw.source


def test_a_starting_probe_of_the_mean_pattern_is_made_again_of_what_is_right() -> None:
    raw = honest_scan(18)
    clean, corner = copy.copy(raw), offset_by(raw, (32, 32), cut=False)
    for scan in (clean, corner):
        scan.metadata = {"measurement_domain": "counts", GUESSED_PROBE: True}
        scan.probeGuess = focus_of(np.sqrt(scan.diff3d.mean(axis=0)))
    corner.diff3d = corner.diff3d.astype(np.uint32)
    corner.diff3d[:, 20, 20] = 2**32 - 1
    one, two = prepare_scan(clean).raw, prepare_scan(corner).raw
    assert two.bad_pixels is not None
    assert two.bad_pixels[52, 52]
    np.testing.assert_array_equal(two.diff3d[:, ~two.bad_pixels], one.diff3d[:, ~two.bad_pixels])
    off = np.abs(two.probe_modes - one.probe_modes).max() / np.abs(one.probe_modes).max()
    assert off < 0.02


def test_the_scan_that_comes_with_the_project_is_moved_back(demo_scan: Path) -> None:
    raw = open_scan(demo_scan).raw
    found = found_by(offset_by(raw, (4, -6)))
    np.testing.assert_array_equal(found.diff3d[:, :-4, 6:], raw.diff3d[:, :-4, 6:])
