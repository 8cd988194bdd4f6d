"""What a file offers is read, or named with what would use it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from file_makers import (
    Instrument,
    counts,
    cxi_tree,
    diffraction_tree,
    gaussian_probe,
    product_tree,
    write_tree,
)

from ptycho.data.npz import read_npz, write_npz
from ptycho.data.optics import FileOptions
from ptycho.files.reader import open_scan
from ptycho.raw_data import RawData


def lines(path: Path, **options: Any) -> list[str]:
    return [item.message for item in open_scan(path, **options).findings if item.check == "contents"]


@pytest.mark.parametrize(
    ("key", "shape", "words"),
    [
        ("probeModes", (4, 32, 32), "probeModes (4, 32, 32): --probe-key probeModes uses it"),
        ("illumination", (32, 32), "--probe-key illumination"),
        ("intensity", (64, 32, 32), "store it as diff3d to use it"),
        ("flatfield", (32, 32), "flatfield (32, 32): the patterns are taken as corrected by it"),
        ("detector_mask", (32, 32), "store it as mask or bad_pixels to use it"),
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


STAGE_M = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0]]) * 1e-6
SOURCE, DETECTOR = "entry_1/instrument_1/source_1", "entry_1/instrument_1/detector_1"


@pytest.mark.parametrize(
    ("key", "shape", "words"),
    [
        (f"{DETECTOR}/probe", (16, 16), "--probe-key {key} uses it"),
        (f"{DETECTOR}/data_software_mask", (16, 16), f"store it as {DETECTOR}/mask to use it"),
        (f"{DETECTOR}/data_dark", (16, 16), "the patterns are taken as corrected by it"),
        ("entry_2/data_1/data", (4, 16, 16), "store it as entry_1/data_1/data to use it"),
        ("entry_1/instrument_1/detector_2/data", (4, 16, 16), "store it as entry_1/data_1/data to use it"),
    ],
)
def test_a_dataset_that_nobody_reads_is_named_with_its_cure(
    key: str, shape: tuple[int, ...], words: str, tmp_path: Path
) -> None:
    tree = cxi_tree(Instrument(), counts(4, 16), STAGE_M) | {f"{SOURCE}/illumination": gaussian_probe(16)}
    tree |= {f"{DETECTOR}/mask": np.zeros((16, 16), np.uint32), f"{DETECTOR}/data_error": counts(4, 16)}
    assert lines(write_tree(tmp_path / "plain.cxi", tree)) == []
    (line,) = lines(write_tree(tmp_path / "more.cxi", tree | {key: np.ones(shape)}))
    assert f"{key} {shape}: {words.format(key=key)}" in line


@pytest.mark.parametrize("suffix", [".h5", ".npz"])
def test_what_diffraction_data_offer_beside_their_patterns_is_named(suffix: str, tmp_path: Path) -> None:
    instrument, steps_m = Instrument(), STAGE_M[:, 1::-1]
    obj = np.ones((64, 64), np.complex64)
    product = product_tree(instrument, steps_m, np.arange(4), obj, (0.0, 0.0), gaussian_probe(16))
    named = FileOptions(product_file=write_tree(tmp_path / "product.h5", product))
    tree = diffraction_tree(counts(4, 16), np.arange(4), instrument.pixel_yx_m)
    more = tree | {"dark_frame": np.ones((16, 16)), "valid": np.ones((16, 16), bool)}
    for name, found in (("plain", tree), ("more", more)):
        path = tmp_path / f"{name}{suffix}"
        if suffix == ".h5":
            write_tree(path, found)
        else:
            write_npz(path, {key: value for key, value in found.items() if "@" not in key})
        told = lines(path, options=named)
        assert len(told) == (name == "more")
    assert "valid (16, 16): store it as bad_pixels to use it" in told[0]
    assert "dark_frame (16, 16): the patterns are taken as corrected by it" in told[0]


def test_a_link_to_what_is_read_and_the_probes_beside_a_named_one_are_silent(tmp_path: Path) -> None:
    tree = cxi_tree(Instrument(), counts(4, 16), STAGE_M) | {f"{SOURCE}/illumination": gaussian_probe(16)}
    path = write_tree(tmp_path / "linked.cxi", tree | {f"{DETECTOR}/probe": gaussian_probe(16)})
    with h5py.File(path, "r+") as file:
        file["entry_1/data_1/frames"] = h5py.SoftLink("/entry_1/data_1/data")
        file["entry_1/data_1/counts"] = file["entry_1/data_1/data"]
    (line,) = lines(path)
    assert "counts" not in line
    assert "frames" not in line
    assert lines(path, probe_key=f"{DETECTOR}/probe") == []


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
    tree = cxi_tree(instrument, counts(4, 16), STAGE_M)
    tree["entry_1/instrument_1/source_1/illumination"] = pairs_of(gaussian_probe(16), "real imag")
    path = write_tree(tmp_path / "pairs.cxi", tree)
    with h5py.File(path) as file:
        assert file["entry_1/instrument_1/source_1/illumination"].dtype.names == ("real", "imag")
    np.testing.assert_allclose(RawData.from_file(path).probe_modes, gaussian_probe(16), rtol=1e-6)
