"""What a file offers is read, or named with what would use it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from file_makers import Instrument, counts, cxi_tree, gaussian_probe, write_tree

from ptycho.npz import read_npz, write_npz
from ptycho.raw_data import RawData
from ptycho.scan import open_scan


def lines(path: Path, **options: Any) -> list[str]:
    return [item.message for item in open_scan(path, **options).findings if item.check == "contents"]


@pytest.mark.parametrize(
    ("key", "shape", "words"),
    [
        ("probeModes", (4, 32, 32), "probeModes (4, 32, 32): --probe-key probeModes uses it"),
        ("illumination", (32, 32), "--probe-key illumination"),
        ("intensity", (64, 32, 32), "rename it to diff3d"),
        ("detector_mask", (32, 32), "rename it to mask or bad_pixels"),
    ],
)
def test_an_array_that_nobody_reads_is_named_with_its_cure(
    key: str, shape: tuple[int, ...], words: str, small_scan: Path, tmp_path: Path
) -> None:
    assert lines(small_scan) == []
    path = tmp_path / "more.npz"
    write_npz(path, {**read_npz(small_scan), key: np.ones(shape, complex if "robe" in key else np.int32)})
    (line,) = lines(path)
    assert words in line


def test_the_flag_that_is_named_takes_the_array(small_scan: Path, tmp_path: Path) -> None:
    arrays = read_npz(small_scan)
    modes = np.stack([arrays["probeGuess"], 0.3 * arrays["probeGuess"].T])
    write_npz(tmp_path / "more.npz", {**arrays, "probeModes": modes})
    scan = open_scan(tmp_path / "more.npz", probe_key="probeModes")
    assert len(scan.probe) == 2


def test_bookkeeping_of_other_writers_is_silent(small_scan: Path, tmp_path: Path) -> None:
    more = {"probe_name": np.array("zone plate"), "mask_version": np.array(3), "comment": np.zeros((5, 5))}
    write_npz(
        tmp_path / "more.npz", {**read_npz(small_scan), **more, "probe_true": np.ones((32, 32), complex)}
    )
    assert lines(tmp_path / "more.npz") == []


def pairs_of(values: np.ndarray, form: str) -> np.ndarray:
    if form == "axis":
        return np.stack([values.real, values.imag], axis=-1)
    names = form.split()
    records = np.empty(values.shape, dtype=[(name, np.float32) for name in names])
    records[names[0]], records[names[1]] = values.real, values.imag
    return records


@pytest.mark.parametrize("form", ["axis", "real imag", "re im", "r i"])
@pytest.mark.parametrize("modes", [1, 3])
def test_pairs_of_real_and_imaginary_part_are_complex(
    form: str, modes: int, small_scan: Path, tmp_path: Path
) -> None:
    arrays = read_npz(small_scan)
    probe = np.stack([arrays["probeGuess"] * 0.5**k for k in range(modes)])
    probe = probe[0] if modes == 1 else probe
    stored = {"probeGuess": pairs_of(probe, form), "objectGuess": pairs_of(arrays["objectGuess"], form)}
    write_npz(tmp_path / "pairs.npz", {**arrays, **stored})
    raw = RawData.from_file(tmp_path / "pairs.npz")
    np.testing.assert_allclose(raw.probe_modes, np.reshape(probe, (modes, 32, 32)), rtol=1e-6)
    np.testing.assert_allclose(raw.objectGuess, arrays["objectGuess"], rtol=1e-6)


def test_a_probe_of_records_in_a_cxi_file_is_complex(tmp_path: Path) -> None:
    instrument = Instrument()
    tree = cxi_tree(instrument, counts(4, 16), np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0]]) * 1e-6)
    tree["entry_1/instrument_1/source_1/illumination"] = pairs_of(gaussian_probe(16), "real imag")
    path = write_tree(tmp_path / "pairs.cxi", tree)
    with h5py.File(path) as file:
        assert file["entry_1/instrument_1/source_1/illumination"].dtype.names == ("real", "imag")
    np.testing.assert_allclose(RawData.from_file(path).probe_modes, gaussian_probe(16), rtol=1e-6)
