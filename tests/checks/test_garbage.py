"""Values under a mask cannot matter: no check, no scale and no amplitude depends on them by a bit."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scan_makers import honest_scan

from ptycho.data.optics import FileOptions
from ptycho.data.prepare import prepare_scan
from ptycho.data.scan import Scan
from ptycho.raw_data import RawData

Floats = NDArray[np.float64]
KINDS = ("zeros", "65535", "nan", "minus", "codes", "steady", "bright", "infinite")


def garbage(kind: str, clean: Floats) -> Floats:
    """Return what a detector may leave where it measured nothing, in the shape of the patterns."""
    rng = np.random.default_rng(5)
    return {
        "zeros": np.zeros_like(clean),
        "65535": np.full_like(clean, 65535),
        "nan": np.full_like(clean, np.nan),
        "minus": np.full_like(clean, -1),
        "codes": rng.choice([-5.0, -4, -3, -2, -1], clean.shape),
        "steady": np.broadcast_to(rng.integers(1, 9, clean.shape[1:]).astype(float), clean.shape),
        "bright": np.broadcast_to(4e9 - rng.integers(1, 99, (len(clean), 1, 1)), clean.shape),
        "infinite": np.full_like(clean, np.inf),
    }[kind]


def faulty(raw: RawData) -> Floats:
    """Return patterns with faults of their own: codes, one saturated value, a stuck pixel, a dead frame."""
    values = raw.diff3d.astype(np.float64)
    values[:, 5, 5] = 7
    values[:, 9, 11] = -1
    values[::7, 13, 14] = 4095
    values[3::9, 6, 2] = -2
    values[4] = 3
    return values


def bad_of(raw: RawData, *, per_pattern: bool) -> NDArray[np.bool_]:
    rng = np.random.default_rng(1)
    bad = rng.random((raw.N, raw.N)) < 0.06
    bad[raw.N // 2 + 4 : raw.N // 2 + 6] = True
    return bad & (rng.random(raw.diff3d.shape) < 0.6) if per_pattern else bad


def prepared(
    raw: RawData, values: Floats, bad: NDArray[np.bool_], place: str, folder: Path, kind: str
) -> Scan:
    """Prepare the data set with a mask of its own, or with one from a file."""
    found, options = (
        copy.copy(raw),
        FileOptions(saturation=4095.0) if place == "saturation" else FileOptions(),
    )
    found.diff3d = np.where(bad, garbage(kind, values), values)
    if place == "file":
        np.save(folder / "m.npy", bad)
        options = FileOptions(mask_file=folder / "m.npy")
    else:
        found.bad_pixels = bad
    return prepare_scan(found, options=options)


@pytest.mark.parametrize("place", ["scan", "file", "saturation"])
@pytest.mark.parametrize("per_pattern", [False, True])
@pytest.mark.parametrize("faults", [False, True])
def test_no_bit_of_a_prepared_scan_depends_on_what_stands_under_a_mask(
    faults: bool, per_pattern: bool, place: str, tmp_path: Path
) -> None:
    raw = honest_scan(6)
    values = faulty(raw) if faults else raw.diff3d.astype(np.float64)
    bad = bad_of(raw, per_pattern=per_pattern)
    scans = {kind: prepared(raw, values, bad, place, tmp_path, kind) for kind in KINDS}
    first = scans["zeros"]
    rows = np.arange(raw.n_patterns)
    amplitude = first.amplitude(rows)
    assert (amplitude[np.broadcast_to(bad, amplitude.shape)] < 0).all()
    assert not faults or len(first.findings) > 1
    for kind, scan in scans.items():
        # A mask that hides bright light is worth a word, and only its words may differ.
        said = [item for item in scan.findings if item.check != "mask"]
        assert said == [item for item in first.findings if item.check != "mask"], kind
        assert scan.record == first.record, kind
        np.testing.assert_array_equal(scan.left_out, first.left_out, err_msg=kind)
        np.testing.assert_array_equal(scan.probe, first.probe, err_msg=kind)
        np.testing.assert_array_equal(scan.raw.bad_pixels, first.raw.bad_pixels, err_msg=kind)
        np.testing.assert_array_equal(scan.amplitude(rows), amplitude, err_msg=kind)
