"""Reconstructions for other programs, read back with plain h5py after the layout of each format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from file_makers import CHARGE_C, counts, gaussian_probe
from numpy.typing import NDArray

from ptycho.data.optics import FileOptions, Optics
from ptycho.data.prepare import prepare_scan
from ptycho.data.reconstruction import Reconstruction
from ptycho.data.scan import Scan
from ptycho.errors import ConfigError, DataError
from ptycho.evaluation.comparison import read_reconstruction
from ptycho.files.export import Export, check_target, collect, export_optics, write_export
from ptycho.physics.information import ObjectErrors
from ptycho.raw_data import RawData

OPTICS = Optics(8000.0, 2.0, (75e-6, 60e-6), (12e-9, 10e-9), (-3e-6, 5e-6))
POSITIONS = np.array([[20.0, 15.5], [24.0, 15.25], [20.5, 22.0], [27.0, 26.0], [31.0, 18.0]])
ORIGIN_YX_PX = (2.0, -1.5)
MARK_YX = (17, 6)
"""Canvas pixel of the one bright spot of the object."""
SAME_M = 1e-15
"""Rounding of a float64 in units of 1e-6 m."""


def a_scan(metadata: dict[str, Any] | None) -> Scan:
    return prepare_scan(
        RawData(POSITIONS[:, 1], POSITIONS[:, 0], None, None, counts(5, 16), gaussian_probe(16, 2), None,
                metadata=metadata, source="runs/scan_7.cxi"),
        name="scan_7.cxi",
    )  # fmt: skip


def found(**changes: Any) -> Reconstruction:
    """Return a reconstruction of patterns 1, 2 and 4 with one bright spot."""
    obj = np.ones((40, 33), dtype=np.complex64)
    obj[MARK_YX] = 3 - 2j
    values = {"obj": obj, "coverage": np.ones((40, 33), np.float32), "origin_yx_px": np.array(ORIGIN_YX_PX),
              "probe": gaussian_probe(16, 2), "indices": np.array([1, 2, 4]), "seconds": 1.0}  # fmt: skip
    return Reconstruction(**(values | changes))


def content(metadata: dict[str, Any] | None = None, **changes: Any) -> Export:
    stored = {"geometry": OPTICS.to_dict()} | (metadata or {})
    scan = a_scan(stored)
    return collect(found(**changes).in_scan(scan), export_optics(scan, FileOptions()))


def world(array_yx: Any, shape: Any, centre_yx_m: Any, pixel_yx_m: Any) -> NDArray[np.float64]:
    """Return where a pixel of an array lies, by the rule of Ptychodus."""
    return np.array(centre_yx_m) + (np.array(array_yx) - (np.array(shape) - 1) / 2) * np.array(pixel_yx_m)


TRUE_MARK_M = (np.array(MARK_YX) + ORIGIN_YX_PX) * OPTICS.object_pixel_yx_m + np.array(OPTICS.origin_yx_m)
TRUE_POSITIONS_M = POSITIONS * OPTICS.object_pixel_yx_m + np.array(OPTICS.origin_yx_m)


def test_a_product_says_where_everything_is(tmp_path: Path) -> None:
    path = write_export(tmp_path / "new" / "product.h5", content())
    with h5py.File(path) as file:
        obj, probe = file["object"], file["probe"]
        np.testing.assert_array_equal(obj[()], found().obj[None])
        np.testing.assert_array_equal(probe[()], gaussian_probe(16, 2)[None])
        for item in (obj, probe):
            assert (item.attrs["pixel_height_m"], item.attrs["pixel_width_m"]) == (12e-9, 10e-9)
        centre = (obj.attrs["center_y_m"], obj.attrs["center_x_m"])
        np.testing.assert_allclose(world(MARK_YX, (40, 33), centre, (12e-9, 10e-9)), TRUE_MARK_M, atol=SAME_M)
        np.testing.assert_allclose(file["probe_position_y_m"], TRUE_POSITIONS_M[[1, 2, 4], 0], atol=SAME_M)
        np.testing.assert_allclose(file["probe_position_x_m"], TRUE_POSITIONS_M[[1, 2, 4], 1], atol=SAME_M)
        np.testing.assert_array_equal(file["probe_position_indexes"], [1, 2, 4])
        assert file.attrs["photon_energy_eV"] == 8000.0
        assert file.attrs["detector_object_distance_m"] == 2.0
        assert file.attrs["name"] == "scan_7"
        assert file.attrs["probe_photon_count"] == pytest.approx((np.abs(gaussian_probe(16, 2)) ** 2).sum())
        assert (
            len(file["loss_values"]) == len(file["loss_epochs"]) == len(file["object_layer_spacing_m"]) == 0
        )


def test_a_cxi_file_says_the_same(tmp_path: Path) -> None:
    with h5py.File(write_export(tmp_path / "result.cxi", content())) as file:
        assert file["cxi_version"][()] == 160
        entry = file["entry_1"]
        translation = entry["data_1/translation"][()]
        np.testing.assert_allclose(translation[:, :2], TRUE_POSITIONS_M[[1, 2, 4], ::-1], atol=SAME_M)
        assert not translation[:, 2].any()
        image = entry["image_2"]
        np.testing.assert_array_equal(image["data"], found().obj)
        assert (image["data"].attrs["axes"], image["data_space"][()]) == ("y:x", b"real")
        np.testing.assert_allclose(image["image_size"], (33 * 10e-9, 40 * 12e-9, 0), atol=SAME_M)
        centre = image["image_center"][()][1::-1]
        np.testing.assert_allclose(world(MARK_YX, (40, 33), centre, (12e-9, 10e-9)), TRUE_MARK_M, atol=SAME_M)
        np.testing.assert_array_equal(
            entry["instrument_1/source_1/illumination"], gaussian_probe(16, 2)[None]
        )
        assert entry["instrument_1/source_1/energy"][()] == pytest.approx(8000 * CHARGE_C)
        detector = entry["instrument_1/detector_1"]
        assert detector["distance"][()] == 2.0
        assert (detector["y_pixel_size"][()], detector["x_pixel_size"][()]) == (75e-6, 60e-6)


def test_numbers_of_patterns_and_moved_positions_and_the_misfit_are_kept(tmp_path: Path) -> None:
    moved = POSITIONS[[1, 2, 4]] + 0.25
    export = content({"pattern_indexes": [3, 5, 8, 9, 20]}, positions_yx_px=moved, misfit=(0.5, 0.25))
    with h5py.File(write_export(tmp_path / "product.hdf5", export)) as file:
        np.testing.assert_array_equal(file["probe_position_indexes"], [5, 8, 20])
        expected = moved[:, 1] * 10e-9 + 5e-6
        np.testing.assert_allclose(file["probe_position_x_m"], expected, atol=SAME_M)
        np.testing.assert_array_equal(file["loss_epochs"], [0, 1])
        np.testing.assert_array_equal(file["loss_values"], [0.5, 0.25])


@pytest.mark.parametrize("name", ["product.h5", "result.cxi"])
def test_error_bars_are_exported_and_read_back(name: str, tmp_path: Path) -> None:
    sigmas = np.random.default_rng(0).uniform(0, 1, (2, 40, 33)).astype(np.float32)
    sigmas[:, 0] = np.nan
    path = write_export(tmp_path / name, content(errors=ObjectErrors(*sigmas)))
    with h5py.File(path) as file:
        place = file if name.endswith("h5") else file["entry_1/ptychodus"]
        np.testing.assert_array_equal(place["object_amplitude_sigma"], sigmas[0])
        np.testing.assert_array_equal(place["object_phase_sigma_rad"], sigmas[1])
    np.testing.assert_array_equal(np.stack(read_reconstruction(path).errors), sigmas)
    plain = write_export(tmp_path / f"plain_{name}", content())
    assert read_reconstruction(plain).errors is None
    with h5py.File(plain) as file:
        names: list[str] = []
        file.visit(names.append)
    assert not any("sigma" in item for item in names)


def test_what_is_not_known_is_zero_or_left_out_and_said(tmp_path: Path) -> None:
    scan = a_scan(None)
    export = collect(found().in_scan(scan), export_optics(scan, FileOptions(object_pixel_m=1e-8)))
    with h5py.File(write_export(tmp_path / "a.h5", export)) as file:
        assert file.attrs["photon_energy_eV"] == file.attrs["detector_object_distance_m"] == 0
        assert "not known: photon energy, detector distance" in file.attrs["comments"]
        np.testing.assert_allclose(file["probe_position_y_m"], POSITIONS[[1, 2, 4], 0] * 1e-8, atol=SAME_M)
    with h5py.File(write_export(tmp_path / "a.cxi", export)) as file:
        assert "energy" not in file["entry_1/instrument_1/source_1"]
        assert "detector_1" not in file["entry_1/instrument_1"]


def test_an_unknown_object_pixel_is_asked_for() -> None:
    for options in (FileOptions(), FileOptions(photon_energy_eV=8000, detector_distance_m=2)):
        with pytest.raises(DataError, match=r"scan_7\.cxi: .*--object-pixel"):
            export_optics(a_scan(None), options)
    known = FileOptions(photon_energy_eV=8000, detector_distance_m=2, detector_pixel_m=75e-6)
    # 1.5498 angstrom x 2 m / (16 x 75 um)
    assert export_optics(a_scan(None), known).object_pixel_yx_m == pytest.approx((258.3e-9,) * 2, rel=1e-3)


@pytest.mark.parametrize("name", ["product", "product.npz", "product.h5.txt"])
def test_an_unknown_ending_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--export: .*\.h5, \.hdf5, \.cxi"):
        check_target(tmp_path / name)


@pytest.mark.parametrize("name", ["a.h5", "a.cxi"])
def test_a_file_appears_whole_or_not_at_all(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).write_bytes(b"older")

    def fail(*_: object) -> str:
        raise RuntimeError("the disk is full")

    monkeypatch.setattr("ptycho.files.export._comment", fail)
    with pytest.raises(RuntimeError, match="disk is full"):
        write_export(tmp_path / name, content())
    assert [(item.name, item.read_bytes()) for item in tmp_path.iterdir()] == [(name, b"older")]
