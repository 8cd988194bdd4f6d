"""Scans from CXI and NeXus files, each written with plain h5py after its description."""

from __future__ import annotations

import itertools
import logging
import tracemalloc
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
import pytest
from file_makers import (
    CHARGE_C,
    Instrument,
    counts,
    cxi_tree,
    from_first,
    gaussian_probe,
    nexus_tree,
    wavelength_m,
    write_tree,
)
from numpy.typing import NDArray

from ptycho.data.npz import write_npz
from ptycho.data.optics import FileOptions, Optics
from ptycho.errors import ConfigError, DataError
from ptycho.files.frames import beam_window
from ptycho.files.reader import open_scan, pattern_size
from ptycho.physics import diffracted_intensity, extract_patches
from ptycho.raw_data import RawData, peek_pattern_size

EXACT_PX = 1e-6
"""Positions go through metres and back: rounding of a float64 in units of 1e-8 m."""
EXPLAINED = 1e-5
"""Error of counts that the right geometry explains; only the float32 of the stored frames is left."""
WRONG = 0.1
"""Error of counts that a wrong geometry leaves, at least."""
INSTRUMENT = Instrument()
POINTS = np.array([[0.0, 0.0], [3.5, 1.0], [7.0, -2.25], [1.0, 9.0], [12.0, 4.0], [-6.0, 2.0]])
"""Scan points, (y, x) object pixels in any frame: no symmetry, mean and middle differ."""


def as_translation(points_yx_px: NDArray[Any], instrument: Instrument = INSTRUMENT) -> NDArray[Any]:
    """Return points as CXI has them: (x, y, z) in metres."""
    metres = points_yx_px * instrument.object_pixel_yx_m
    return np.stack([metres[:, 1], metres[:, 0], np.zeros(len(metres))], axis=1)


def write_cxi(path: Path, changes: dict[str, Any] | None = None, tree: Any = cxi_tree, **frames: Any) -> Path:
    """Write a file of six frames; a change to None takes a dataset out."""
    values = tree(INSTRUMENT, counts(len(POINTS), INSTRUMENT.n_px, **frames), as_translation(POINTS))
    values |= changes or {}
    return write_tree(path, {key: value for key, value in values.items() if value is not None})


@pytest.mark.parametrize(("tree", "name"), [(cxi_tree, "scan.cxi"), (nexus_tree, "scan.nxs")])
def test_metres_become_object_pixels(tree: Any, name: str, tmp_path: Path) -> None:
    path = write_cxi(tmp_path / name, tree=tree)
    raw = RawData.from_file(path)
    np.testing.assert_allclose(from_first(raw.positions_yx_px), from_first(POINTS), atol=EXACT_PX)
    np.testing.assert_array_equal(raw.diff3d, counts(len(POINTS), INSTRUMENT.n_px))
    assert raw.diff3d.dtype == np.uint16
    np.testing.assert_allclose(raw.probe_modes, gaussian_probe(INSTRUMENT.n_px))
    # Every patch fits on an object that begins at pixel (0, 0).
    assert (raw.positions_yx_px.min(axis=0) >= (INSTRUMENT.n_px - 1) / 2).all()
    optics = Optics.from_metadata(raw.metadata, "test")
    assert optics.photon_energy_eV == pytest.approx(8000)
    assert optics.detector_distance_m == pytest.approx(2.0)
    assert optics.object_pixel_yx_m == pytest.approx(INSTRUMENT.object_pixel_yx_m)
    np.testing.assert_allclose(
        optics.to_metres(raw.positions_yx_px), as_translation(POINTS)[:, 1::-1], atol=1e-15
    )


def test_the_object_pixel_is_that_of_the_far_field(tmp_path: Path) -> None:
    """8 keV is 1.5498 angstrom; 2 m, 16 pixels of 75 and 55 um: 258.3 nm and 352.2 nm."""
    optics = Optics.from_metadata(RawData.from_file(write_cxi(tmp_path / "a.cxi")).metadata, "test")
    np.testing.assert_allclose(optics.object_pixel_yx_m, (258.3e-9, 352.2e-9), rtol=3e-4)


def physical_frames(
    steps: NDArray[Any], points_yx_px: NDArray[Any], instrument: Instrument
) -> tuple[NDArray[Any], NDArray[Any], Any, Any]:
    """Scatter from a sample in the laboratory: sums over space, no FFT, no pixel of an object array.

    Returns frames, translations of the sample (x, y, z) [m], the transmission as a function of x and y [m],
    and the directions of rows and columns with the corner of the detector.
    """
    n_px, wavelength = instrument.n_px, wavelength_m(instrument.energy_eV)
    directions = steps / np.linalg.norm(steps, axis=1)[:, None]

    def transmission(x_m: NDArray[Any], y_m: NDArray[Any]) -> NDArray[Any]:
        a, b = x_m / 1e-6, y_m / 1e-6
        return np.exp(1j * (0.9 * np.sin(1.3 * a) + 0.7 * np.sin(0.8 * b + 0.5) + 0.4 * np.sin(0.6 * a * b)))

    index = np.arange(n_px) - (n_px - 1) / 2
    row_m, column_m = np.meshgrid(*(index * side for side in instrument.object_pixel_yx_m), indexing="ij")
    points = row_m[..., None] * directions[0] + column_m[..., None] * directions[1]
    probe = gaussian_probe(n_px)[0]
    corner = -(n_px // 2 + 0.5) * steps.sum(axis=0)
    translations = -(points_yx_px * instrument.object_pixel_yx_m) @ directions
    frames = []
    detector = [corner + (i + 0.5) * steps[0] + (j + 0.5) * steps[1] for i, j in np.ndindex(n_px, n_px)]
    kernel = np.exp(
        -2j
        * np.pi
        * (np.array(detector)[:, :2] @ points[..., :2].reshape(-1, 2).T)
        / (wavelength * instrument.distance_m)
    )
    for translation in translations:
        lab = points - translation
        exit_wave = probe * transmission(lab[..., 0], lab[..., 1])
        frames.append(np.abs(kernel @ exit_wave.ravel()).reshape(n_px, n_px) ** 2 / n_px**2)
    return np.array(frames, dtype=np.float32), translations, transmission, (directions, corner)


def unexplained(raw: RawData, transmission: Any, directions: NDArray[Any]) -> float:
    """Return the error of counts that the true sample gives at the positions that were read."""
    optics = Optics.from_metadata(raw.metadata, "test")
    size = int(np.ceil(raw.positions_yx_px.max())) + raw.N
    row_m, column_m = (
        optics.object_pixel_yx_m[axis] * np.arange(size) + optics.origin_yx_m[axis] for axis in range(2)
    )
    lab = row_m[:, None, None] * directions[0] + column_m[None, :, None] * directions[1]
    obj = transmission(lab[..., 0], lab[..., 1])
    corners = np.round(raw.positions_yx_px - (raw.N - 1) / 2).astype(np.int64)
    predicted = diffracted_intensity(extract_patches(obj, corners, raw.N), raw.probe_modes)
    return float(np.linalg.norm(predicted - raw.diff3d) / np.linalg.norm(raw.diff3d))


ORIENTATIONS = {
    "unstated": ((0, -1, 0), (-1, 0, 0)),
    "usual": ((0, -1, 0), (-1, 0, 0)),
    "mirrored": ((0, -1, 0), (1, 0, 0)),
    "upside down": ((0, 1, 0), (-1, 0, 0)),
    "turned by 90 degrees": ((1, 0, 0), (0, -1, 0)),
    "turned by 30 degrees": ((0.5, -np.sqrt(0.75), 0), (-np.sqrt(0.75), -0.5, 0)),
}


@pytest.mark.parametrize("name", ORIENTATIONS)
def test_a_sample_in_the_laboratory_is_explained_in_every_orientation_of_the_detector(
    name: str, tmp_path: Path
) -> None:
    instrument = Instrument(n_px=16, pixel_yx_m=(75e-6, 60e-6))
    steps = np.array(ORIENTATIONS[name]) * instrument.pixel_yx_m[:, None]
    points = np.round(POINTS)
    frames, translations, transmission, (directions, corner) = physical_frames(steps, points, instrument)
    tree = cxi_tree(instrument, frames, translations)
    if name != "unstated":
        tree["entry_1/instrument_1/detector_1/basis_vectors"] = steps
        tree["entry_1/instrument_1/detector_1/corner_position"] = corner
    path = write_tree(tmp_path / "a.cxi", tree)
    assert unexplained(RawData.from_file(path), transmission, directions) < EXPLAINED
    for flip, swap in itertools.product((None, "x", "y", "xy"), (False, True)):
        if (flip, swap) == (None, False):
            continue
        raw = RawData.from_file(path, options=FileOptions(flip_positions=flip, swap_positions=swap))
        assert unexplained(raw, transmission, directions) > WRONG, (flip, swap)


def test_columns_of_basis_vectors_and_one_pair_per_frame_are_read_alike(tmp_path: Path) -> None:
    steps = np.array([[0, 75e-6, 0], [-55e-6, 0, 0]])
    found = []
    for number, basis in enumerate((steps, steps.T, np.repeat(steps[None], len(POINTS), axis=0))):
        path = write_cxi(tmp_path / f"{number}.cxi", {"entry_1/instrument_1/detector_1/basis_vectors": basis})
        found.append(from_first(RawData.from_file(path).positions_yx_px))
    np.testing.assert_allclose(found[0], from_first(POINTS) * (-1, 1), atol=EXACT_PX)
    np.testing.assert_array_equal(found[1], found[0])
    np.testing.assert_array_equal(found[2], found[0])


def test_flags_turn_and_swap_positions(tmp_path: Path) -> None:
    path = write_cxi(tmp_path / "a.cxi", {"entry_1/instrument_1/detector_1/y_pixel_size": 55e-6})
    plain = from_first(RawData.from_file(path).positions_yx_px)

    def turned(**options: Any) -> NDArray[Any]:
        return from_first(RawData.from_file(path, options=FileOptions(**options)).positions_yx_px)

    np.testing.assert_allclose(turned(flip_positions="x"), plain * (1, -1), atol=EXACT_PX)
    np.testing.assert_allclose(turned(flip_positions="y"), plain * (-1, 1), atol=EXACT_PX)
    np.testing.assert_allclose(turned(swap_positions=True), plain[:, ::-1], atol=EXACT_PX)
    np.testing.assert_allclose(
        turned(swap_positions=True, flip_positions="x"), plain[:, ::-1] * (1, -1), atol=EXACT_PX
    )


SOURCE, DETECTOR = "entry_1/instrument_1/source_1", "entry_1/instrument_1/detector_1"


@pytest.mark.parametrize(
    "changes",
    [
        {f"{SOURCE}/energy": None, f"{SOURCE}/wavelength": wavelength_m(8000)},
        {f"{SOURCE}/energy": 8.0, f"{SOURCE}/energy@units": "keV"},
        {f"{SOURCE}/energy": 8000.0},
        {f"{SOURCE}/energy": np.full(6, 8000 * CHARGE_C)},
        {"entry_1/instrument_1/beam_1/energy": 8000.0, "entry_1/instrument_1/beam_1/energy@units": b"eV",
         f"{SOURCE}/energy": 1e-10},
        {f"{DETECTOR}/distance": None, f"{DETECTOR}/corner_position": [0.0, 0.0, 2.0]},
        {f"{DETECTOR}/distance": [2000.0], f"{DETECTOR}/distance@units": "mm"},
        {f"{DETECTOR}/x_pixel_size": None, f"{DETECTOR}/y_pixel_size": None,
         f"{DETECTOR}/basis_vectors": [[0, -75e-6, 0], [-55e-6, 0, 0]]},
        {"entry_1/data_1/translation": None},
        {"entry_1/sample_1/geometry_1/translation": as_translation(POINTS).T},
        {"entry_1/sample_1/geometry_1/translation": as_translation(POINTS)[:, :2]},
        {f"{DETECTOR}/data@axes": None, "entry_1/data_1/data": None},
    ],
)  # fmt: skip
def test_other_ways_to_say_the_same_are_understood(changes: dict[str, Any], tmp_path: Path) -> None:
    raw = RawData.from_file(write_cxi(tmp_path / "a.cxi", changes))
    np.testing.assert_allclose(from_first(raw.positions_yx_px), from_first(POINTS), atol=EXACT_PX)


def test_flags_stand_in_for_and_win_over_the_file(tmp_path: Path) -> None:
    bare = {
        f"{SOURCE}/energy": None,
        f"{DETECTOR}/distance": None,
        f"{DETECTOR}/x_pixel_size": None,
        f"{DETECTOR}/y_pixel_size": None,
    }
    path = write_cxi(tmp_path / "a.cxi", bare)
    known = FileOptions(photon_energy_eV=8000, detector_distance_m=2, detector_pixel_m=75e-6)
    raw = RawData.from_file(path, options=known)
    expected = from_first(POINTS) * (1, 75 / 55)
    expected[:, 1] *= INSTRUMENT.object_pixel_yx_m[1] / INSTRUMENT.object_pixel_yx_m[0] * 55 / 75
    np.testing.assert_allclose(from_first(raw.positions_yx_px), expected, atol=EXACT_PX)
    other = RawData.from_file(write_cxi(tmp_path / "b.cxi"), options=FileOptions(photon_energy_eV=16000))
    np.testing.assert_allclose(from_first(other.positions_yx_px), 2 * from_first(POINTS), atol=EXACT_PX)
    wide = RawData.from_file(
        write_cxi(tmp_path / "c.cxi", {f"{SOURCE}/energy@units": "furlong"}),
        options=FileOptions(photon_energy_eV=8000),
    )
    np.testing.assert_allclose(from_first(wide.positions_yx_px), from_first(POINTS), atol=EXACT_PX)


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        (f"{SOURCE}/energy", ("photon energy", f"'{SOURCE}/energy'", "--photon-energy")),
        (f"{DETECTOR}/distance", ("distance", f"'{DETECTOR}/distance'", "--detector-distance")),
        ("pixels", ("pixel size", f"'{DETECTOR}/x_pixel_size'", "--detector-pixel")),
    ],
)
def test_what_metres_need_is_asked_for_by_its_path(
    missing: str, words: tuple[str, ...], tmp_path: Path
) -> None:
    changes = {missing: None}
    if missing == "pixels":
        changes = {f"{DETECTOR}/{axis}_pixel_size": None for axis in "xy"}
    path = write_cxi(tmp_path / "a.cxi", changes)
    with pytest.raises(DataError) as error:
        RawData.from_file(path)
    for word in ("a.cxi", *words):
        assert word in str(error.value)
    RawData.from_file(path, options=FileOptions(object_pixel_m=3e-7))


def test_a_raster_of_four_axes_is_read_row_by_row(tmp_path: Path) -> None:
    frames = counts(6, 16)
    path = write_cxi(tmp_path / "a.cxi", {f"{DETECTOR}/data": frames.reshape(2, 3, 16, 16)})
    np.testing.assert_array_equal(RawData.from_file(path).diff3d, frames)


def test_frames_are_cut_to_the_square_around_the_beam(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    wide = np.zeros((6, 40, 30), dtype=np.uint16)
    wide[:, 20 - 8 : 20 + 8, 10 - 8 : 10 + 8] = counts(6, 16)
    wide[:, :, 25:] = 7
    centre = {f"{DETECTOR}/beam_center_x": 10.0, f"{DETECTOR}/beam_center_y": 20.0}
    for axis in "xy":
        centre[f"{DETECTOR}/beam_center_{axis}@units"] = "pixel"
    corner = {f"{DETECTOR}/corner_position": [10.5 * 55e-6, 20.5 * 75e-6, 2.0]}
    for number, geometry in enumerate((centre, corner)):
        path = write_cxi(
            tmp_path / f"{number}.cxi",
            {f"{DETECTOR}/data": wide, f"{SOURCE}/illumination": gaussian_probe(20), **geometry},
        )
        with caplog.at_level(logging.WARNING):
            raw = RawData.from_file(path)
        assert raw.N == pattern_size(path) == peek_pattern_size(path) == 20
        np.testing.assert_array_equal(raw.diff3d[:, 2:18, 2:18], counts(6, 16))
        assert "40 x 30 px are cut to 20 x 20 px" in caplog.text


@pytest.mark.parametrize("centre", [None, (7.5, 7.5), (8.0, 8.0), (8.4, 7.0)])
def test_a_square_frame_with_the_beam_in_its_middle_stays_whole(centre: Any) -> None:
    window = beam_window((16, 16), centre, "a")
    assert (window.y, window.x, window.side) == (0, 0, 16)


def test_a_beam_beside_the_middle_moves_the_window() -> None:
    window = beam_window((16, 16), (9.6, 8.0), "a")
    assert (window.y, window.x, window.side) == (4, 2, 12)
    for shape, centre in (((16, 20), None), ((16, 16), (30.0, 8.0)), ((16, 16), (1.0, 8.0))):
        with pytest.raises(DataError, match="centre"):
            beam_window(shape, centre, "a")


@pytest.mark.parametrize("shape", ["frame", "one", "each"])
def test_the_mask_of_a_file_marks_bad_pixels(shape: str, tmp_path: Path) -> None:
    frames = counts(6, 16, dtype=np.uint32)
    mask = np.zeros((16, 16), dtype=np.uint32)
    mask[3, 4] = mask[10:12, 2:9] = mask[0, 0] = 1
    mask[8, 8] = 0x1000
    frames[:, mask == 1] = 2**32 - 1
    bad = mask == 1
    if shape != "frame":
        mask = np.repeat(mask[None], 1 if shape == "one" else 6, axis=0)
    if shape == "each":
        mask[4, 2, 2] = 2
        bad = np.repeat(bad[None], 6, axis=0)
        bad[4, 2, 2] = True
    path = write_cxi(tmp_path / "a.cxi", {f"{DETECTOR}/data": frames, f"{DETECTOR}/mask": mask})
    raw = RawData.from_file(path)
    np.testing.assert_array_equal(raw.bad_pixels, bad)
    np.testing.assert_array_equal(raw.diff3d, frames)
    scan = open_scan(path)
    np.testing.assert_array_equal(scan.raw.bad_pixels, bad)
    assert scan.record.max_counts == np.where(bad, 0, frames).max()


@pytest.mark.parametrize(
    ("dtype", "gap"), [(np.uint16, 65535), (np.int32, -1), (np.float32, np.nan), (np.float32, -3.0)]
)
def test_gaps_that_the_detector_marks_need_no_mask(
    dtype: Any, gap: float, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    frames = counts(6, 16).astype(dtype)
    frames[:, 5] = gap
    with caplog.at_level(logging.WARNING):
        scan = open_scan(write_cxi(tmp_path / "a.cxi", {f"{DETECTOR}/data": frames}))
    assert "hold no measurement" in caplog.text
    bad = np.broadcast_to(scan.raw.bad_pixels, frames.shape)
    np.testing.assert_array_equal(bad, np.broadcast_to(np.arange(16)[:, None] == 5, frames.shape))


def test_noise_below_zero_is_set_to_zero_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    frames = counts(6, 16).astype(np.float32)
    frames[1, 3, 3], frames[4, 9, 2] = -0.5, -2.5
    with caplog.at_level(logging.WARNING):
        scan = open_scan(write_cxi(tmp_path / "a.cxi", {f"{DETECTOR}/data": frames}))
    assert "2 values below 0" in caplog.text
    assert "the lowest -2.5" in caplog.text
    np.testing.assert_array_equal(scan.raw.diff3d, np.maximum(frames, 0))
    assert scan.raw.bad_pixels is None


def test_floats_of_a_cxi_file_are_counts_unless_the_user_says_otherwise(tmp_path: Path) -> None:
    path = write_cxi(tmp_path / "a.cxi", {f"{DETECTOR}/data": counts(6, 16) * np.float32(0.37)})
    scan = open_scan(path)
    assert (scan.record.domain, scan.record.reason) == ("counts", "stated by the file")
    assert open_scan(path, domain="amplitude").record.domain == "amplitude"


def test_a_file_without_a_probe_starts_from_the_mean_pattern(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_cxi(
        tmp_path / "a.cxi", {f"{SOURCE}/illumination": None, "entry_1/other": gaussian_probe(16, 2)}
    )
    with caplog.at_level(logging.WARNING):
        raw = RawData.from_file(path)
    assert "no probe" in caplog.text
    mean = counts(6, 16).mean(axis=0)
    found = diffracted_intensity(np.ones((1, 16, 16)), raw.probe_modes)[0]
    np.testing.assert_allclose(found, mean, atol=1e-3 * mean.max())
    light = np.abs(raw.probe_modes[0]) ** 2
    centre = [(light * axis).sum() / light.sum() for axis in np.indices(light.shape)]
    np.testing.assert_allclose(centre, 7.5, atol=0.2)
    assert len(RawData.from_file(path, probe_key="entry_1/other").probe_modes) == 2


def test_a_starting_probe_is_made_of_good_pixels(tmp_path: Path) -> None:
    frames = counts(6, 16, dtype=np.uint32)
    mean = frames.mean(axis=0)
    mask = np.zeros((16, 16), dtype=np.uint32)
    mask[3:5] = 1
    for told in (True, False):
        frames[:, 3:5] = 2**32 - 1
        changes = {f"{SOURCE}/illumination": None, f"{DETECTOR}/data": frames}
        changes |= {f"{DETECTOR}/mask": mask} if told else {}
        raw = RawData.from_file(write_cxi(tmp_path / f"{told}.cxi", changes))
        found = diffracted_intensity(np.ones((1, 16, 16)), raw.probe_modes)[0]
        np.testing.assert_allclose(found[mask == 0], mean[mask == 0], atol=1e-3 * mean.max())
        np.testing.assert_allclose(found, mean, atol=0.15 * mean.max())


@pytest.mark.parametrize(
    "filters", [hdf5plugin.Bitshuffle(cname="lz4"), hdf5plugin.LZ4(), {"compression": "gzip"}]
)
def test_frames_of_detectors_are_unpacked_in_blocks(
    filters: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_cxi(tmp_path / "a.cxi", {f"{DETECTOR}/data": None, f"{DETECTOR}/data@axes": None})
    frames = counts(6, 16, dtype=">u4")
    with h5py.File(path, "r+") as file:
        file[DETECTOR].create_dataset("data", data=frames, chunks=(1, 16, 16), **filters)
    monkeypatch.setattr("ptycho.files.frames.BLOCK_BYTES", 4 * 16 * 16 * 2)
    raw = RawData.from_file(path)
    np.testing.assert_array_equal(raw.diff3d, frames)
    assert raw.diff3d.dtype == np.dtype(np.uint32)


def test_a_large_stack_is_read_without_a_second_copy(tmp_path: Path) -> None:
    count, n_px = 1600, 256
    points = np.stack([np.arange(count) % 40, np.arange(count) // 40], axis=1) * 5.0
    instrument = Instrument(n_px=n_px)
    tree = cxi_tree(instrument, np.ones((1, 1, 1)), as_translation(points, instrument))
    mask = np.zeros((n_px, n_px), dtype=np.uint32)
    mask[100] = 1
    path = write_tree(tmp_path / "large.cxi", {**tree, f"{DETECTOR}/mask": mask})
    with h5py.File(path, "r+") as file:
        del file[DETECTOR]["data"]
        frames = file[DETECTOR].create_dataset("data", (count, n_px, n_px), np.uint16, chunks=(1, n_px, n_px))
        for row in range(count):
            frames[row] = row % 7 + 1
    RawData.from_file(write_cxi(tmp_path / "small.cxi"))  # loads what is loaded late
    tracemalloc.start()
    try:
        raw = RawData.from_file(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # The stack of 210 MB is 1, a block and the checks add 60 MB; a copy would make it 2.
    assert 1.0 < peak / raw.diff3d.nbytes < 1.8


def test_the_content_decides_and_not_the_name(tmp_path: Path) -> None:
    path = write_cxi(tmp_path / "scan.npz")
    assert RawData.from_file(path).n_patterns == len(POINTS)
    arrays = {
        "xcoords": POINTS[:, 1],
        "ycoords": POINTS[:, 0],
        "diff3d": counts(6, 16),
        "probeGuess": gaussian_probe(16),
    }
    write_npz(tmp_path / "other.npz", arrays)
    (tmp_path / "other.npz").rename(tmp_path / "scan.h5")
    np.testing.assert_array_equal(RawData.from_file(tmp_path / "scan.h5").ycoords, POINTS[:, 0])


def test_an_npz_file_keeps_what_the_user_says_about_its_metres(tmp_path: Path) -> None:
    arrays = {
        "xcoords": POINTS[:, 1],
        "ycoords": POINTS[:, 0],
        "diff3d": counts(6, 16),
        "probeGuess": gaussian_probe(16),
    }
    write_npz(tmp_path / "a.npz", arrays)
    RawData.from_file(tmp_path / "a.npz", options=FileOptions(object_pixel_m=1e-8)).to_file(
        tmp_path / "b.npz"
    )
    optics = Optics.from_metadata(RawData.from_file(tmp_path / "b.npz").metadata, "b")
    assert optics.object_pixel_yx_m == (1e-8, 1e-8)
    with pytest.raises(ConfigError, match="--product does not apply"):
        RawData.from_file(tmp_path / "a.npz", options=FileOptions(product_file=tmp_path / "b.npz"))


def test_positions_of_an_npz_file_are_turned_in_pixels(tmp_path: Path) -> None:
    arrays = {"xcoords": POINTS[:, 1], "ycoords": POINTS[:, 0], "diff3d": counts(6, 16)}
    arrays |= {"probeGuess": gaussian_probe(16), "objectGuess": np.ones((90, 90), complex)}
    write_npz(tmp_path / "a.npz", arrays)
    plain = RawData.from_file(tmp_path / "a.npz", options=FileOptions())
    assert plain.objectGuess is not None
    options = FileOptions(swap_positions=True, flip_positions="x")
    turned = RawData.from_file(tmp_path / "a.npz", options=options)
    np.testing.assert_array_equal(turned.positions_yx_px, POINTS[:, ::-1] * (1, -1))
    np.testing.assert_array_equal(turned.xcoords_start, -POINTS[:, 0])
    np.testing.assert_array_equal(turned.diff3d, plain.diff3d)
    # It lies in the frame of the positions before they were turned.
    assert turned.objectGuess is None


@pytest.mark.parametrize(
    "geometry",
    [
        3,
        {"colour": 1},
        {"object_pixel_yx_m": 1e-8},
        {"photon_energy_eV": -1},
        {"object_pixel_yx_m": [1e-8, 0]},
        {"origin_yx_m": ["a", 1]},
    ],
)
def test_metadata_about_metres_are_checked(geometry: Any) -> None:
    with pytest.raises(DataError, match=r"_metadata\.geometry"):
        Optics.from_metadata({"geometry": geometry}, "a.npz")
