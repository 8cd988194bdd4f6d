"""Holes in HDF5 files: what nobody wrote is no measurement, and no position."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from file_makers import Instrument, counts, cxi_tree, write_tree

from ptycho.data.optics import FileOptions
from ptycho.data.prepare import prepare_scan
from ptycho.errors import DataError
from ptycho.raw_data import RawData

INSTRUMENT = Instrument()
COUNT, WRITTEN = 25, 15
STEPS = (
    np.stack([*np.divmod(np.arange(COUNT), 5), np.zeros(COUNT)], axis=1) * 3 * INSTRUMENT.object_pixel_yx_m[0]
)
FRAMES = "entry_1/instrument_1/detector_1/data"
PLACE = "entry_1/sample_1/geometry_1/translation"


def patterns() -> Any:
    return counts(COUNT, INSTRUMENT.n_px) + 1


def aborted(group: h5py.Group, values: Any) -> None:
    """Write the first chunks only."""
    dataset = group.create_dataset(
        "data", values.shape, values.dtype, chunks=(1, *values.shape[1:]), compression=1
    )
    dataset[:WRITTEN] = values[:WRITTEN]


def never(group: h5py.Group, values: Any) -> None:
    """Write nothing."""
    group.create_dataset("data", values.shape, values.dtype)


def virtual(group: h5py.Group, values: Any, held: int = COUNT, mapped: int = COUNT) -> None:
    """Map two files, of which the second is short, or mapped to a part."""
    folder, layout = Path(group.file.filename).parent, h5py.VirtualLayout(values.shape, values.dtype)
    for name, first, last in (("one.h5", 0, 10), ("two.h5", 10, COUNT)):
        kept = values[first : min(last, held)]
        with h5py.File(folder / name, "a") as file:
            key = group.name.strip("/").replace("/", "_")
            file[key] = kept
        end = min(last, mapped)
        source = h5py.VirtualSource(name, key, (last - first, *values.shape[1:]))
        layout[first:end] = source[: end - first]
    group.create_virtual_dataset("data", layout)


def short(group: h5py.Group, values: Any) -> None:
    virtual(group, values, held=WRITTEN)


def partly(group: h5py.Group, values: Any) -> None:
    virtual(group, values, mapped=WRITTEN)


def nested(group: h5py.Group, values: Any) -> None:
    """Map all of a virtual dataset that has a hole itself."""
    folder = Path(group.file.filename).parent
    with h5py.File(folder / "middle.h5", "a") as file:
        inner = file.require_group(group.name.strip("/").replace("/", "_"))
        partly(inner, values)
        key = f"{inner.name}/data"
    layout = h5py.VirtualLayout(values.shape, values.dtype)
    layout[:] = h5py.VirtualSource("middle.h5", key, values.shape)
    group.create_virtual_dataset("data", layout)


def compressed(group: h5py.Group, values: Any) -> None:
    group.create_dataset("data", data=values, chunks=(2, *values.shape[1:]), compression=1)


def scan_file(folder: Path, key: str, write: Callable[[h5py.Group, Any], None]) -> Path:
    """Write a scan, one dataset of it in another way."""
    tree = cxi_tree(INSTRUMENT, patterns(), STEPS)
    path = write_tree(folder / "scan.cxi", tree)
    with h5py.File(path, "r+") as file:
        values = file[key][()]
        del file[key]
        parent, _, name = key.rpartition("/")
        holder = file.create_group(f"{parent}/kept")
        write(holder, values)
        file[parent].move(f"kept/{'data'}", name)
    return path


@pytest.mark.parametrize("way", [aborted, partly, nested])
def test_patterns_that_nobody_wrote_are_named_and_left_out(
    way: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = scan_file(tmp_path, FRAMES, way)
    with caplog.at_level(logging.WARNING):
        scan = prepare_scan(RawData.from_file(path))
    assert [line for line in caplog.messages if "has holes (" in line]
    np.testing.assert_array_equal(scan.left_out, np.arange(WRITTEN, COUNT))


@pytest.mark.parametrize("key", [FRAMES, PLACE])
def test_a_source_that_is_shorter_than_what_is_read_of_it_is_refused(key: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"reads more of 'two\.h5' than there is"):
        RawData.from_file(scan_file(tmp_path, key, short))


@pytest.mark.parametrize("way", [aborted, partly, nested, never])
def test_positions_that_nobody_wrote_are_refused(way: Any, tmp_path: Path) -> None:
    path = scan_file(tmp_path, PLACE, way)
    with pytest.raises(DataError, match="has holes") as error:
        RawData.from_file(path)
    assert "\n" not in str(error.value)


def test_patterns_of_which_none_was_written_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        prepare_scan(RawData.from_file(scan_file(tmp_path, FRAMES, never)))


@pytest.mark.parametrize("key", [FRAMES, PLACE])
@pytest.mark.parametrize("way", [virtual, compressed])
def test_whole_datasets_in_several_files_or_chunks_raise_no_word(
    way: Any, key: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        raw = RawData.from_file(scan_file(tmp_path, key, way), options=FileOptions())
    np.testing.assert_array_equal(raw.diff3d, patterns())
    assert not [line for line in caplog.messages if "holes" in line]
