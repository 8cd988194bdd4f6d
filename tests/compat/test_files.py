"""Files that Ptychodus 1.7 itself writes are read, and files written for it are opened by it."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from compat import client
from numpy.typing import NDArray
from ptychodus.api.assemble import AssembledDiffractionData
from ptychodus.api.diffraction import (
    DiffractionDatasetLayoutNode,
    DiffractionMetadata,
    SimpleDiffractionArray,
    SimpleDiffractionDataset,
)
from ptychodus.api.geometry import ImageExtent, PixelGeometry
from ptychodus.api.io import (
    load_product,
    save_diffraction_data,
    save_product,
    save_ptychopinn_training_data,
    save_training_data,
)
from ptychodus.api.product import Product
from ptychodus.api.reconstruct import ReconstructInput, prepare_reconstruct_input
from ptychodus.plugins.cxi_file import CXIDiffractionFileWriter, CXIProductFileIO
from ptychodus.plugins.npz_product_file import NPZProductFileIO

from ptycho.data.optics import FileOptions, Optics
from ptycho.data.prepare import prepare_scan
from ptycho.data.reconstruction import Reconstruction
from ptycho.data.scan import Scan
from ptycho.errors import DataError
from ptycho.files.export import collect, export_optics, write_export
from ptycho.files.reader import open_scan
from ptycho.raw_data import RawData

EXACT_PX = 1e-6
"""Positions go through metres and back: rounding of a float64 in units of 1e-8 m."""
SCAN = {"n_px": 32, "n_y": 5, "n_x": 6, "step_px": 3.0, "photons": 1e6, "seed": 3}


@pytest.fixture(scope="module")
def experiment() -> client.Experiment:
    return client.simulate_experiment(n_modes=2, **SCAN)


def positions_px(data: ReconstructInput) -> NDArray[np.float64]:
    """Return the positions (y, x) in the pixels of the object, by the client's own conversion."""
    geometry, points = data.product.object_.get_geometry(), data.product.probe_positions
    rows = geometry.map_probe_positions_to_object_y_px(points)
    return np.stack([rows, geometry.map_probe_positions_to_object_x_px(points)], axis=1)


def assert_same(raw: RawData, data: ReconstructInput) -> None:
    """Fail unless a scan holds what the client hands to a plug-in."""
    np.testing.assert_array_equal(raw.diff3d, data.diffraction_patterns)
    assert raw.diff3d.dtype == data.diffraction_patterns.dtype
    np.testing.assert_allclose(raw.positions_yx_px, positions_px(data), atol=EXACT_PX)
    np.testing.assert_array_equal(raw.objectGuess, data.product.object_.get_layer(0))
    np.testing.assert_allclose(raw.probe_modes, data.product.probes.get_array()[0], rtol=1e-6)


def write_pair(folder: Path, data: ReconstructInput, indexes: NDArray[np.int64] | None = None) -> Path:
    """Let the client write its diffraction file and its product."""
    count = len(data.diffraction_patterns)
    assembled = AssembledDiffractionData(
        np.arange(count) if indexes is None else indexes,
        data.diffraction_patterns,
        PixelGeometry(width_m=75e-6, height_m=75e-6),
        data.bad_pixels,
    )
    save_diffraction_data(folder / "diffraction.h5", assembled)
    save_product(folder / "product.h5", data.product)
    return folder / "diffraction.h5"


def test_the_pair_that_the_client_writes_is_what_it_hands_to_a_plug_in(
    experiment: client.Experiment, tmp_path: Path
) -> None:
    data = experiment.input()
    raw = RawData.from_file(write_pair(tmp_path, data))
    assert_same(raw, data)
    assert raw.metadata["geometry"]["photon_energy_eV"] == 8000.0
    (tmp_path / "product.h5").unlink()
    NPZProductFileIO().write(tmp_path / "product.npz", data.product)
    assert_same(RawData.from_file(tmp_path / "diffraction.h5"), data)


def test_patterns_and_positions_are_paired_as_the_client_pairs_them(
    experiment: client.Experiment, tmp_path: Path
) -> None:
    """Some indexes of patterns fall between those of the positions, and some outside."""
    data = experiment.input()
    indexes = np.arange(len(data.diffraction_patterns)) + 4
    indexes[::5] += 1
    path = write_pair(tmp_path, data, indexes)
    assembled = AssembledDiffractionData(
        indexes, data.diffraction_patterns, PixelGeometry(75e-6, 75e-6), data.bad_pixels
    )
    expected = prepare_reconstruct_input(assembled, data.product)
    assert len(expected.diffraction_patterns) < len(indexes)
    assert_same(RawData.from_file(path), expected)


def test_both_training_files_of_the_client_hold_the_same_scan(
    experiment: client.Experiment, tmp_path: Path
) -> None:
    data = experiment.input()
    save_ptychopinn_training_data(tmp_path / "train.npz", data)
    save_training_data(tmp_path / "train.h5", data)
    assert_same(RawData.from_file(tmp_path / "train.npz"), data)
    assert_same(RawData.from_file(tmp_path / "train.h5"), data)


@pytest.mark.parametrize("plugin", ["tensorflow", "torch"])
def test_what_the_client_filled_in_takes_no_part_in_a_training(
    plugin: str, experiment: client.Experiment, tmp_path: Path
) -> None:
    """The client exports filled patterns and says which pixels they are."""
    hole = np.zeros((32, 32), dtype=bool)
    hole[15:18, 17:19] = True
    chosen = client.reconstructor(plugin, {"tensorflow": "PINN", "torch": "Unsupervised"}[plugin])
    client.export(chosen, experiment.input(bad_pixels=hole), tmp_path)
    scan = open_scan(tmp_path / "train_data.npz")
    np.testing.assert_array_equal(scan.raw.bad_pixels, hole)
    assert (scan.raw.diff3d[:, hole] != experiment.patterns[:, hole]).any()
    assert (scan.amplitude(np.arange(scan.n_patterns))[:, hole] < 0).all()


def test_to_reconstruct_the_client_hands_over_filled_patterns_without_their_mask(
    experiment: client.Experiment,
) -> None:
    """Here as in the pages; a client that names its bad pixels has a place for them."""
    from ptychodus.model.ptychopinn._subprocess import _create_raw_data

    hole = np.zeros((32, 32), dtype=bool)
    hole[15:18, 17:19] = True
    data = experiment.input(bad_pixels=hole)
    raw = _create_raw_data(data)
    assert raw.bad_pixels is None
    assert (raw.diff3d[:, hole] != data.diffraction_patterns[:, hole]).any()
    named = RawData.from_coords_without_pc(
        raw.xcoords, raw.ycoords, raw.diff3d, raw.probeGuess, None, bad_pixels=hole
    )
    np.testing.assert_array_equal(named.bad_pixels, hole)


def write_cxi_pair(folder: Path, data: ReconstructInput, bad_pixels: NDArray[np.bool_] | None = None) -> Path:
    """Let the client write both files as CXI; its diffraction file holds no positions."""
    count, height, width = data.diffraction_patterns.shape
    patterns = SimpleDiffractionArray("scan", np.arange(count), data.diffraction_patterns)
    metadata = DiffractionMetadata(
        num_patterns_per_array=[count], pattern_dtype=data.diffraction_patterns.dtype,
        detector_distance_m=2.0, detector_extent=ImageExtent(width, height),
        detector_pixel_geometry=PixelGeometry(75e-6, 75e-6), photon_energy_eV=8000.0,
    )  # fmt: skip
    tree = DiffractionDatasetLayoutNode.create_root()
    dataset = SimpleDiffractionDataset(metadata, tree, [patterns], bad_pixels)
    CXIDiffractionFileWriter().write(folder / "scan_diffraction.cxi", dataset)
    CXIProductFileIO().write(folder / "scan_product.cxi", data.product)
    return folder / "scan_diffraction.cxi"


def test_the_cxi_pair_of_the_client_is_read(experiment: client.Experiment, tmp_path: Path) -> None:
    data = experiment.input()
    path = write_cxi_pair(tmp_path, data)
    assert_same(RawData.from_file(path), data)
    named = (tmp_path / "scan_product.cxi").rename(tmp_path / "other.cxi")
    assert_same(RawData.from_file(path, options=FileOptions(product_file=named)), data)
    with pytest.raises(DataError, match=r"list of positions is missing .*'entry_1/data_1/translation'"):
        RawData.from_file(path)


def an_answer(scan: Scan, size_yx: tuple[int, int], members: NDArray[np.int64]) -> Reconstruction:
    """Return the true object on a canvas of another size and place, as an engine would give it."""
    origin = np.array([-3.0, 2.0])
    obj = np.ones(size_yx, dtype=np.complex64)
    truth = scan.raw.objectGuess
    rows, columns = np.arange(size_yx[0]) + int(origin[0]), np.arange(size_yx[1]) + int(origin[1])
    inside = np.ix_((rows >= 0) & (rows < truth.shape[0]), (columns >= 0) & (columns < truth.shape[1]))
    obj[inside] = truth[np.ix_(rows[inside[0][:, 0]], columns[inside[1][0]])]
    return Reconstruction(obj, np.ones(size_yx, np.float32), origin, scan.probe, members, 1.0)


def opened(path: Path) -> Product:
    """Let the client open a file."""
    return load_product(path) if path.suffix == ".h5" else CXIProductFileIO().read(path)


def misplaced(product: Product, experiment: client.Experiment) -> float:
    """Return the largest difference of the objects at the positions of the scan, found through the world."""
    geometry, truth = product.object_.get_geometry(), experiment.truth.get_geometry()
    points = product.probe_positions
    found = [
        geometry.map_probe_positions_to_object_y_px(points),
        geometry.map_probe_positions_to_object_x_px(points),
    ]
    wanted = [
        truth.map_probe_positions_to_object_y_px(points),
        truth.map_probe_positions_to_object_x_px(points),
    ]
    offset = np.array(wanted) - np.array(found)
    # The two arrays lie in the world a whole number of pixels apart.
    assert np.abs(offset - np.round(offset)).max() < EXACT_PX
    worst = 0.0
    for point in range(len(points)):
        row, column = (round(float(axis[point])) for axis in found)
        dy, dx = np.round(offset[:, point]).astype(int)
        here = product.object_.get_layer(0)[row - 5 : row + 5, column - 5 : column + 5]
        there = experiment.truth.get_layer(0)[row + dy - 5 : row + dy + 5, column + dx - 5 : column + dx + 5]
        worst = max(worst, float(np.abs(here - there).max()))
    return worst


@pytest.mark.parametrize(("suffix", "size_yx"), [*itertools.product((".h5", ".cxi"), ((60, 61), (61, 58)))])
def test_the_client_opens_what_is_exported_with_everything_in_its_place(
    suffix: str, size_yx: tuple[int, int], experiment: client.Experiment, tmp_path: Path
) -> None:
    data = experiment.input()
    scan = open_scan(write_pair(tmp_path, data))
    members = np.arange(3, 28, 2)
    answer = an_answer(scan, size_yx, members)
    path = write_export(
        tmp_path / f"answer{suffix}", collect(answer.in_scan(scan), export_optics(scan, FileOptions()))
    )
    product = opened(path)
    np.testing.assert_array_equal(product.probe_positions.get_indexes(), members)
    for found, wanted in (
        (product.probe_positions.get_coordinates_x_m(), experiment.positions_yx_m[members, 1]),
        (product.probe_positions.get_coordinates_y_m(), experiment.positions_yx_m[members, 0]),
    ):
        np.testing.assert_allclose(found, wanted, atol=EXACT_PX * 1e-8)
    assert product.object_.get_pixel_geometry() == client.PIXEL
    assert product.probes.get_pixel_geometry() == client.PIXEL
    assert product.metadata.photon_energy_eV == pytest.approx(8000.0)
    assert product.metadata.detector_distance_m == 2.0
    np.testing.assert_allclose(product.probes.get_array()[0], scan.probe)
    assert misplaced(product, experiment) < 1e-6


def test_an_object_that_is_a_pixel_off_is_caught(experiment: client.Experiment, tmp_path: Path) -> None:
    scan = open_scan(write_pair(tmp_path, experiment.input()))
    answer = an_answer(scan, (60, 61), np.arange(30))
    optics = export_optics(scan, FileOptions())
    for shift in ((0.0, 1.0), (-1.0, 0.0)):
        moved = Reconstruction(
            answer.obj, answer.coverage, answer.origin_yx_px + shift, answer.probe, answer.indices, 1.0
        )
        path = write_export(tmp_path / "off.h5", collect(moved.in_scan(scan), optics))
        assert misplaced(opened(path), experiment) > 1e-2


@pytest.mark.parametrize("suffix", [".h5", ".cxi"])
def test_the_exported_product_and_the_diffraction_file_are_a_pair_again(
    suffix: str, experiment: client.Experiment, tmp_path: Path
) -> None:
    path = write_pair(tmp_path, experiment.input())
    scan = open_scan(path)
    answer = an_answer(scan, (60, 61), np.arange(30))
    optics = export_optics(scan, FileOptions())
    product = write_export(tmp_path / f"again{suffix}", collect(answer.in_scan(scan), optics))
    again = RawData.from_file(path, options=FileOptions(product_file=product))
    np.testing.assert_allclose(
        again.positions_yx_px, scan.positions_yx_px - answer.origin_yx_px, atol=EXACT_PX
    )
    np.testing.assert_array_equal(again.objectGuess, answer.obj)
    before = optics.to_metres(scan.positions_yx_px)
    after = Optics.from_metadata(again.metadata, "again").to_metres(again.positions_yx_px)
    np.testing.assert_allclose(after, before, atol=EXACT_PX * 1e-8)


def test_a_product_from_an_npz_scan_without_metres_is_opened(
    experiment: client.Experiment, tmp_path: Path
) -> None:
    save_ptychopinn_training_data(tmp_path / "train.npz", experiment.input())
    raw = RawData.from_file(tmp_path / "train.npz")
    scan = prepare_scan(raw, name="train.npz")
    optics = export_optics(scan, FileOptions(object_pixel_m=10e-9))
    product = opened(
        write_export(
            tmp_path / "a.h5", collect(an_answer(scan, (60, 61), np.arange(30)).in_scan(scan), optics)
        )
    )
    assert product.metadata.photon_energy_eV == 0.0
    found = product.probe_positions.get_coordinates_x_m()
    np.testing.assert_allclose(np.diff(found), np.diff(raw.xcoords) * 10e-9, atol=EXACT_PX * 1e-8)
