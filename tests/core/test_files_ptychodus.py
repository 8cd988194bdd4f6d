"""Scans from files of Ptychodus 1.7, written with plain h5py and NumPy after its layout."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from file_makers import (
    Instrument,
    counts,
    diffraction_tree,
    from_first,
    gaussian_probe,
    product_tree,
    write_tree,
)

from ptycho.data.optics import FileOptions, Optics
from ptycho.errors import ConfigError, DataError
from ptycho.files.reader import open_scan
from ptycho.raw_data import RawData, peek_pattern_size

EXACT_PX = 1e-6
"""Positions go through metres and back: rounding of a float64 in units of 1e-8 m."""
INSTRUMENT = Instrument()
POINTS = np.array([[0.0, 0.0], [3.5, 1.0], [7.0, -2.25], [1.0, 9.0], [12.0, 4.0], [-6.0, 2.0]])
"""Scan points, (y, x) object pixels in any frame: no symmetry, mean and middle differ."""
CENTRE_YX_M = (-3e-6, 5e-6)
OBJECT = (np.arange(41 * 36).reshape(41, 36) % 7 * 1j).astype(np.complex64)


def write_pair(
    folder: Path,
    changes: dict[str, Any] | None = None,
    indexes: Any = None,
    frames: Any = None,
    suffix: str = ".h5",
) -> Path:
    """Write a diffraction file and its product; the positions are POINTS about the middle of the object."""
    middle = (np.array(OBJECT.shape) - 1) / 2
    metres = np.array(CENTRE_YX_M) + (POINTS + 14 - middle) * INSTRUMENT.object_pixel_yx_m
    product = product_tree(INSTRUMENT, metres, np.arange(6) * 2, OBJECT, CENTRE_YX_M, gaussian_probe(16, 2))
    product |= changes or {}
    write_tree(
        folder / f"product{suffix}", {key: value for key, value in product.items() if value is not None}
    )
    frames = counts(6, 16) if frames is None else frames
    indexes = np.arange(6) * 2 if indexes is None else np.asarray(indexes)
    return write_tree(
        folder / f"diffraction{suffix}", diffraction_tree(frames, indexes, INSTRUMENT.pixel_yx_m)
    )


def test_a_diffraction_file_is_read_with_its_product(tmp_path: Path) -> None:
    raw = RawData.from_file(write_pair(tmp_path))
    np.testing.assert_allclose(raw.positions_yx_px, POINTS + 14, atol=EXACT_PX)
    np.testing.assert_array_equal(raw.objectGuess, OBJECT)
    np.testing.assert_array_equal(raw.probe_modes, gaussian_probe(16, 2))
    assert raw.metadata["pattern_indexes"] == [0, 2, 4, 6, 8, 10]
    optics = Optics.from_metadata(raw.metadata, "test")
    middle_m = optics.to_metres((np.array(OBJECT.shape) - 1) / 2)
    np.testing.assert_allclose(middle_m, CENTRE_YX_M, atol=1e-15)


def test_x_and_y_of_a_product_are_not_mixed_up(tmp_path: Path) -> None:
    raw = RawData.from_file(write_pair(tmp_path))
    assert np.abs(raw.positions_yx_px[:, ::-1] - POINTS - 14).max() > 1
    turned = RawData.from_file(tmp_path / "diffraction.h5", options=FileOptions(flip_positions="y"))
    middle = (np.array(OBJECT.shape) - 1) / 2
    np.testing.assert_allclose(
        turned.positions_yx_px, (POINTS + 14 - middle) * (-1, 1) + middle, atol=EXACT_PX
    )


def test_patterns_and_positions_meet_by_their_index(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Index 1 lies between positions, 12 beyond them, -1 was never measured; 4 comes before 2."""
    path = write_pair(tmp_path, indexes=[0, 1, -1, 4, 12, 2])
    with caplog.at_level(logging.WARNING):
        raw = RawData.from_file(path)
    expected = np.stack([POINTS[0], (POINTS[0] + POINTS[1]) / 2, POINTS[2], POINTS[1]]) + 14
    np.testing.assert_allclose(raw.positions_yx_px, expected, atol=EXACT_PX)
    np.testing.assert_array_equal(raw.diff3d, counts(6, 16)[[0, 1, 3, 5]])
    assert "2 of 6 patterns have no position" in caplog.text
    assert "1 get one between" in caplog.text


def test_positions_of_one_index_are_averaged(tmp_path: Path) -> None:
    path = write_pair(
        tmp_path,
        {"probe_position_indexes": np.array([0, 0, 1, 1, 2, 3])},
        indexes=np.arange(4),
        frames=counts(4, 16),
    )
    expected = np.stack([POINTS[:2].mean(axis=0), POINTS[2:4].mean(axis=0), POINTS[4], POINTS[5]]) + 14
    np.testing.assert_allclose(RawData.from_file(path).positions_yx_px, expected, atol=EXACT_PX)


def test_the_product_is_found_by_its_name_or_named(tmp_path: Path) -> None:
    path = write_pair(tmp_path)
    (tmp_path / "product.h5").rename(tmp_path / "fly007_product.h5")
    path = path.rename(tmp_path / "fly007_diffraction.h5")
    assert RawData.from_file(path).n_patterns == 6
    (tmp_path / "fly007_product.h5").rename(tmp_path / "other.h5")
    with pytest.raises(DataError, match="Pass --product"):
        RawData.from_file(path)
    assert RawData.from_file(path, options=FileOptions(product_file=tmp_path / "other.h5")).n_patterns == 6
    with pytest.raises(DataError, match="no such file"):
        RawData.from_file(path, options=FileOptions(product_file=tmp_path / "none.h5"))


def test_a_product_without_an_object_gets_a_frame_of_its_own(tmp_path: Path) -> None:
    raw = RawData.from_file(write_pair(tmp_path, {"object": np.zeros((1, 0, 0), dtype=complex)}))
    assert raw.objectGuess is None
    np.testing.assert_allclose(from_first(raw.positions_yx_px), from_first(POINTS), atol=EXACT_PX)


def test_an_older_name_of_the_energy_is_read_and_another_pixel_is_reported(tmp_path: Path) -> None:
    path = write_pair(tmp_path, {"@photon_energy_eV": None, "@probe_energy_eV": 4000.0})
    scan = open_scan(path)
    assert scan.raw.metadata["geometry"]["photon_energy_eV"] == 4000.0
    (line,) = [finding.message for finding in scan.findings if finding.check == "units"]
    assert "which is taken" in line
    assert not [finding for finding in open_scan(write_pair(tmp_path)).findings if finding.check == "units"]


def test_bad_pixels_of_a_diffraction_file_are_marked(tmp_path: Path) -> None:
    path = write_pair(tmp_path)
    bad = np.zeros((16, 16), dtype=bool)
    bad[8, 8] = True
    with h5py.File(path, "r+") as file:
        file["bad_pixels"][...] = bad
        file["patterns"][:, 8, 8] = 60000
    raw = RawData.from_file(path)
    np.testing.assert_array_equal(raw.bad_pixels, bad)
    assert open_scan(path).record.max_counts < 5000


def test_npz_files_of_ptychodus_are_a_pair_too(tmp_path: Path) -> None:
    raw = RawData.from_file(write_pair(tmp_path))
    product = h5py.File(tmp_path / "product.h5")
    names = {key: product[key][()] for key in product if key != "object_layer_spacing_m"}
    for key, name in (
        ("pixel_height_m", "object_pixel_height_m"),
        ("pixel_width_m", "object_pixel_width_m"),
        ("center_x_m", "object_center_x_m"),
        ("center_y_m", "object_center_y_m"),
    ):
        names[name] = product["object"].attrs[key]
    names |= {
        key: product.attrs[key] for key in ("photon_energy_eV", "detector_object_distance_m", "far_field")
    }
    np.savez(tmp_path / "product.npz", **names)
    bad = np.zeros((16, 16), dtype=bool)
    bad[8, 8] = True
    arrays = {"patterns": counts(6, 16), "indexes": np.arange(6) * 2, "bad_pixels": bad}
    np.savez(tmp_path / "diffraction.npz", **arrays)
    product.close()
    (tmp_path / "product.h5").unlink()
    other = RawData.from_file(tmp_path / "diffraction.npz")
    np.testing.assert_array_equal(other.positions_yx_px, raw.positions_yx_px)
    np.testing.assert_array_equal(other.diff3d, raw.diff3d)
    np.testing.assert_array_equal(other.bad_pixels, bad)
    assert peek_pattern_size(tmp_path / "diffraction.npz") == 16


def test_training_data_of_ptychodus_are_read(tmp_path: Path) -> None:
    path = write_tree(
        tmp_path / "training.h5",
        {
            "patterns": counts(6, 16),
            "bad_pixels": np.zeros((16, 16), dtype=bool),
            "probe": gaussian_probe(16, 2),
            "object": OBJECT,
            "probe_position_x_px": POINTS[:, 1] + 14,
            "probe_position_y_px": POINTS[:, 0] + 14,
            "object_pixel_width_m": INSTRUMENT.object_pixel_yx_m[1],
            "object_pixel_height_m": INSTRUMENT.object_pixel_yx_m[0],
            "detector_object_distance_m": 2.0,
            "photon_energy_eV": 8000.0,
        },
    )
    raw = RawData.from_file(path)
    np.testing.assert_array_equal(raw.positions_yx_px, POINTS + 14)
    np.testing.assert_array_equal(raw.objectGuess, OBJECT)
    assert raw.metadata["geometry"]["detector_pixel_yx_m"] == pytest.approx(INSTRUMENT.pixel_yx_m)
    with pytest.raises(ConfigError, match="--swap-positions"):
        RawData.from_file(path, options=FileOptions(swap_positions=True))
