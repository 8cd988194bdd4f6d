"""Facts about ptycho.data.npz: what is read back, what is refused, and what is left behind."""

from __future__ import annotations

import logging
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from ptycho.data.npz import atomic_path, missing_key, npz_headers, read_npz, write_npz
from ptycho.errors import DataError

ARRAYS = {
    "diff3d": np.arange(24, dtype=np.uint16).reshape(2, 3, 4),
    "probeGuess": np.array([[1 + 2j, 3], [4, 5j]], dtype=np.complex64),
    "file": np.array(3.5),
    "text": np.array("counts"),
}


def assert_one_line(error: pytest.ExceptionInfo[DataError], *parts: str) -> None:
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


@pytest.mark.parametrize("compressed", [False, True])
def test_arrays_come_back_with_shape_dtype_and_value(tmp_path: Path, compressed: bool) -> None:
    write_npz(tmp_path / "a.npz", ARRAYS, compressed=compressed)
    found = read_npz(tmp_path / "a.npz")
    assert list(found) == list(ARRAYS)
    for key, array in ARRAYS.items():
        assert found[key].dtype == array.dtype
        np.testing.assert_array_equal(found[key], array)


def test_numpy_itself_reads_what_is_written(tmp_path: Path) -> None:
    write_npz(tmp_path / "a.npz", ARRAYS)
    with np.load(tmp_path / "a.npz") as archive:
        np.testing.assert_array_equal(archive["diff3d"], ARRAYS["diff3d"])


def test_headers_agree_with_the_arrays(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", diff3d=ARRAYS["diff3d"], f=np.asfortranarray(np.zeros((5, 2))))
    assert npz_headers(tmp_path / "a.npz") == {
        "diff3d": ((2, 3, 4), np.dtype(np.uint16)),
        "f": ((5, 2), np.dtype(float)),
    }


def test_object_arrays_are_skipped_with_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    np.savez(tmp_path / "a.npz", x=np.ones(2), _metadata=np.array({"a": 1}, dtype=object))
    with caplog.at_level(logging.WARNING):
        assert list(read_npz(tmp_path / "a.npz")) == ["x"]
    assert len(caplog.records) == 1
    assert "_metadata" in caplog.text
    with pytest.raises(DataError) as error:
        read_npz(tmp_path / "a.npz", ["_metadata"])
    assert_one_line(error, "_metadata", "a.npz")


def test_a_requested_key_that_is_absent_is_named_with_the_closest(tmp_path: Path) -> None:
    write_npz(tmp_path / "a.npz", {"probe": np.ones(2), "xcoords": np.ones(2)})
    with pytest.raises(DataError, match=r"missing \(found: probe, xcoords\).*--probe-key probe"):
        read_npz(tmp_path / "a.npz", ["probeGuess"])


@pytest.mark.parametrize(
    ("found", "proposed"),
    [
        (["object", "probe", "Guess"], "probe"),
        (["Probe_guess", "x"], "Probe_guess"),
        (["data", "x"], None),
    ],
)
def test_the_closest_key_is_proposed(found: list[str], proposed: str | None) -> None:
    message = str(missing_key("a.npz", "probeGuess", found))
    assert message.endswith(f"--probe-key {proposed}." if proposed else "'probeGuess' in it.")


def test_keys_with_a_meaning_are_not_proposed() -> None:
    assert "Rename" not in str(missing_key("a.npz", "xcoords", ["ycoords", "w"], in_use=["ycoords"]))


def test_a_missing_file_suggests_its_neighbour(tmp_path: Path) -> None:
    write_npz(tmp_path / "scan_01.npz", ARRAYS)
    with pytest.raises(DataError) as error:
        read_npz(tmp_path / "scan_1.npz")
    assert_one_line(error, "scan_1.npz", "Did you mean scan_01.npz?")
    with pytest.raises(DataError, match="Check the path"):
        read_npz(tmp_path / "no" / "scan.npz")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "an empty file"),
        (b"hello world", "not an NPZ archive"),
        (b"\x93NUMPY\x01\x00", "a single .npy array"),
        (b"PK\x05\x06" + bytes(18), "holds no arrays"),
    ],
)
def test_other_files_are_refused_by_kind(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(DataError) as error:
        read_npz(tmp_path / "a.npz")
    assert_one_line(error, "a.npz", words)


def test_a_folder_is_refused(tmp_path: Path) -> None:
    for call in (read_npz, npz_headers, lambda p: write_npz(p, ARRAYS)):
        with pytest.raises(DataError, match="got a folder"):
            call(tmp_path)


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.97])
def test_a_cut_file_is_refused(tmp_path: Path, fraction: float) -> None:
    whole = tmp_path / "whole.npz"
    write_npz(whole, {"x": np.arange(1000.0)})
    content = whole.read_bytes()
    (tmp_path / "cut.npz").write_bytes(content[: int(fraction * len(content))])
    with pytest.raises(DataError) as error:
        read_npz(tmp_path / "cut.npz")
    assert_one_line(error, "cut.npz", "cut short")


@pytest.mark.parametrize("compressed", [False, True])
def test_one_flipped_bit_in_the_data_is_refused(tmp_path: Path, compressed: bool) -> None:
    path = tmp_path / "a.npz"
    write_npz(path, {"x": np.random.default_rng(1).standard_normal(1000)}, compressed=compressed)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError) as error:
        read_npz(path)
    assert_one_line(error, "a.npz", "damaged")


def test_members_that_are_not_arrays_are_left_alone(tmp_path: Path) -> None:
    write_npz(tmp_path / "a.npz", {"x": np.ones(2)})
    with zipfile.ZipFile(tmp_path / "a.npz", "a") as archive:
        archive.writestr("readme.txt", "hello")
    assert list(read_npz(tmp_path / "a.npz")) == ["x"]


def test_object_arrays_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="dtype object"):
        write_npz(tmp_path / "a.npz", {"bad": np.array([{}], dtype=object)})
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError("planted")

    with pytest.raises(RuntimeError, match="planted"):
        fail()
    assert path.read_text() == "old"
    assert [item.name for item in tmp_path.iterdir()] == ["a.txt"]


def test_the_temporary_file_keeps_the_suffix_and_the_folder(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "new" / "figure.png") as temporary:
        assert temporary.suffix == ".png"
        assert temporary.parent == tmp_path / "new"
        temporary.write_bytes(b"x")
    assert (tmp_path / "new" / "figure.png").read_bytes() == b"x"


def test_a_writer_that_dies_leaves_the_old_file_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    write_npz(path, {"x": np.ones(3)})
    code = (
        "import os, sys\nfrom ptycho.data.npz import atomic_path\n"
        "with atomic_path(sys.argv[1]) as t:\n    t.write_bytes(b'half')\n    os._exit(9)\n"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)], check=False).returncode == 9
    np.testing.assert_array_equal(read_npz(path)["x"], np.ones(3))
