"""Facts about ptycho.raw_data: what a file may look like, what is refused, and what groups hold."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ptycho.data.npz import write_npz
from ptycho.data.optics import FileOptions
from ptycho.errors import ConfigError, DataError
from ptycho.geometry.grouping import object_patches
from ptycho.raw_data import RawData

N, M = 8, 30


def complex_picture(shape: tuple[int, ...], seed: int = 0) -> NDArray[np.complex128]:
    rng = np.random.default_rng(seed)
    return rng.uniform(0.5, 1, shape) * np.exp(1j * rng.uniform(-1, 1, shape))


def scan(**changes: Any) -> dict[str, Any]:
    """Arrays of a good file; a change to None leaves the key out."""
    rng = np.random.default_rng(7)
    x, y = rng.uniform(5, 34, M), rng.uniform(5, 24, M)
    arrays = {
        "xcoords": x,
        "ycoords": y,
        "diff3d": rng.poisson(40, (M, N, N)).astype(np.uint16),
        "probeGuess": complex_picture((2, N, N), 1),
        "objectGuess": complex_picture((30, 40), 2),
    } | changes
    return {key: value for key, value in arrays.items() if value is not None}


def load(tmp_path: Path, **changes: Any) -> RawData:
    write_npz(tmp_path / "scan.npz", scan(**changes))
    return RawData.from_file(tmp_path / "scan.npz")


def build(**changes: Any) -> RawData:
    return RawData.from_coords_without_pc(**({"scan_index": np.zeros(M, int)} | scan(**changes)))


def refusal(tmp_path: Path, **changes: Any) -> str:
    with pytest.raises(DataError) as error:
        load(tmp_path, **changes)
    message = str(error.value)
    assert message.startswith(f"{tmp_path / 'scan.npz'}: ")
    assert "\n" not in message
    assert "expected" in message or "found" in message
    return message


def with_value(key: str, index: Any, value: Any) -> dict[str, Any]:
    array = np.array(scan()[key])
    if key == "diff3d" and not float(value).is_integer():
        array = array.astype(np.float32)
    if value == -1:
        array = array.astype(np.int32)
    array[index] = value
    return {key: array}


def test_a_file_comes_back_as_its_arrays(tmp_path: Path) -> None:
    raw, arrays = load(tmp_path), scan()
    assert (raw.n_patterns, raw.N, raw.diff3d.dtype) == (M, N, np.uint16)
    np.testing.assert_array_equal(raw.diff3d, arrays["diff3d"])
    np.testing.assert_array_equal(raw.positions_yx_px, np.transpose([arrays["ycoords"], arrays["xcoords"]]))
    np.testing.assert_array_equal(raw.xcoords_start, raw.xcoords)
    np.testing.assert_array_equal(raw.scan_index, np.zeros(M))
    np.testing.assert_array_equal(raw.probe_modes, arrays["probeGuess"].astype(np.complex64))
    assert raw.nphotons is raw.Y is raw.label is raw.bad_pixels is raw.metadata is None


def test_writing_and_reading_again_changes_nothing(tmp_path: Path) -> None:
    raw = load(
        tmp_path,
        nphotons=np.array(1e6),
        bad_pixels=np.eye(N, dtype=bool),
        Y=complex_picture((M, N, N)),
        label=complex_picture((M, N, N, 1)),
        xcoords_start=np.arange(M),
        _metadata=json.dumps({"a": 1}),
    )
    raw.to_file(tmp_path / "again.npz")
    again = RawData.from_file(str(tmp_path / "again.npz"))
    for key, value in vars(raw).items():
        if key not in ("source", "cut"):
            np.testing.assert_array_equal(getattr(again, key), value, err_msg=key)
    np.testing.assert_array_equal(again.cut.rows, raw.cut.rows)
    assert again.cut[:4] == raw.cut[:4]
    assert again.diff3d.dtype == raw.diff3d.dtype


def test_either_key_names_the_patterns_and_diff3d_wins(tmp_path: Path) -> None:
    patterns = scan()["diff3d"]
    np.testing.assert_array_equal(load(tmp_path, diff3d=None, diffraction=patterns).diff3d, patterns)
    np.testing.assert_array_equal(load(tmp_path, diffraction=patterns + 1).diff3d, patterns)


@pytest.mark.parametrize(
    "stored",
    [
        lambda p: np.moveaxis(p, 0, -1),
        lambda p: p[..., None],
        lambda p: np.asfortranarray(p),
    ],
)
def test_every_axis_order_becomes_patterns_first(tmp_path: Path, stored: Any) -> None:
    patterns = scan()["diff3d"]
    np.testing.assert_array_equal(load(tmp_path, diff3d=stored(patterns)).diff3d, patterns)
    np.testing.assert_array_equal(build(diff3d=stored(patterns)).diff3d, patterns)


def test_a_cube_is_taken_patterns_first_unless_told(tmp_path: Path) -> None:
    cube = np.random.default_rng(0).poisson(9, (M, M, M))
    probe = complex_picture((M, M))
    write_npz(tmp_path / "cube.npz", scan(diff3d=cube, probeGuess=probe))
    np.testing.assert_array_equal(RawData.from_file(tmp_path / "cube.npz").diff3d, cube)
    for axis in (0, 1, 2, -1):
        raw = RawData.from_file(tmp_path / "cube.npz", pattern_axis=axis)
        np.testing.assert_array_equal(raw.diff3d, np.moveaxis(cube, axis, 0))


def test_a_pattern_axis_in_the_middle_is_proposed(tmp_path: Path) -> None:
    message = refusal(tmp_path, diff3d=np.moveaxis(scan()["diff3d"], 0, 1))
    assert "--pattern-axis 1" in message


@pytest.mark.parametrize(
    ("stored", "modes"),
    [
        (complex_picture((N, N)), 1),
        (complex_picture((N, N, 1)), 1),
        (complex_picture((1, N, N)), 1),
        (complex_picture((3, N, N)), 3),
        (complex_picture((N, N, N)), N),
    ],
)
def test_every_probe_form_becomes_modes_first(tmp_path: Path, stored: NDArray[Any], modes: int) -> None:
    raw = load(tmp_path, probeGuess=stored)
    assert raw.probe_modes.dtype == np.complex64
    np.testing.assert_array_equal(raw.probe_modes, stored.reshape(modes, N, N).astype(np.complex64))
    assert raw.probeGuess.shape == stored.shape


def test_the_probe_may_have_another_key(tmp_path: Path) -> None:
    probe = complex_picture((N, N))
    message = refusal(tmp_path, probeGuess=None, probe=probe)
    assert "key 'probeGuess' is missing (found: diff3d, objectGuess, probe, xcoords, ycoords)" in message
    assert "--probe-key probe" in message
    raw = RawData.from_file(tmp_path / "scan.npz", probe_key="probe")
    np.testing.assert_array_equal(raw.probeGuess, probe)


@pytest.mark.parametrize(("patterns", "positions"), [(20, M), (M, 20)])
def test_a_file_with_another_number_of_positions_is_refused_or_cut_on_request(
    tmp_path: Path, patterns: int, positions: int, caplog: pytest.LogCaptureFixture
) -> None:
    held = {
        "diff3d": scan()["diff3d"][:patterns],
        "xcoords": scan()["xcoords"][:positions],
        "ycoords": scan()["ycoords"][:positions],
        "Y": np.ones((patterns, N, N), complex),
        "bad_pixels": np.eye(N, dtype=bool)[None] & (np.arange(patterns) % 2 == 0)[:, None, None],
    }
    message = refusal(tmp_path, **held)
    assert f"(got {patterns} patterns, xcoords {positions}, ycoords {positions}" in message
    assert "--match-lengths head" in message
    raw = RawData.from_file(tmp_path / "scan.npz", options=FileOptions(match_lengths="head"))
    assert "differ in number" in caplog.text
    assert raw.diff3d.shape == raw.Y.shape == raw.bad_pixels.shape == (20, N, N)
    np.testing.assert_array_equal(raw.diff3d, scan()["diff3d"][:20])
    np.testing.assert_array_equal(raw.xcoords, scan()["xcoords"][:20])


def test_arrays_of_a_client_with_more_positions_are_cut_with_a_warning_that_is_logged_too(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with pytest.warns(RuntimeWarning, match="more positions than patterns"):
        raw = build(diff3d=scan()["diff3d"][:20], scan_index=np.arange(M))
    assert "more positions than patterns" in caplog.text
    assert raw.positions_yx_px.shape == (20, 2)
    np.testing.assert_array_equal(raw.scan_index, np.arange(20))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"xcoords": None}, "key 'xcoords' is missing"),
        ({"diff3d": None}, "key 'diff3d' is missing"),
        ({"xcoords": np.ones(M - 1)}, f"got {M} patterns, xcoords {M - 1}"),
        ({"ycoords": np.ones((M, 2))}, f"ycoords is not a list of numbers (got shape ({M}, 2)"),
        ({"diff3d": np.ones((M, N))}, f"got shape ({M}, {N})"),
        ({"diff3d": np.ones((M, N, N + 1))}, f"got shape ({M}, {N}, {N + 1})"),
        ({"diff3d": np.ones((M, N, N), complex)}, "dtype complex128"),
        ({"diff3d": np.zeros((M, N, N))}, "all zero"),
        ({"probeGuess": complex_picture((N + 2, N + 2))}, f"got shape ({N + 2}, {N + 2})"),
        ({"probeGuess": np.zeros((N, N))}, "probeGuess is all zero"),
        ({"objectGuess": complex_picture((2, 30, 40))}, "got shape (2, 30, 40)"),
        ({"bad_pixels": np.zeros((N, N + 1), bool)}, "bad_pixels"),
        ({"nphotons": np.array(-5.0)}, "nphotons"),
        ({"diff3d": np.full((M, N, N), np.nan)}, "nothing but negative numbers, or none"),
        ({"diff3d": np.full((M, N, N), -1)}, "got -1 in all"),
        (with_value("xcoords", 3, np.inf), "got inf at row 3"),
        (with_value("probeGuess", (1, 0, 0), np.nan), "probeGuess is not finite"),
    ],
)
def test_unusable_files_are_refused_with_the_value(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    assert words in refusal(tmp_path, **changes)


def test_one_count_far_into_the_stack_makes_a_data_set() -> None:
    patterns = np.full((700, N, N), np.nan, dtype=np.float32)
    patterns[613, 1, 1] = 1
    raw = build(diff3d=patterns, xcoords=np.arange(700), ycoords=np.arange(700), scan_index=np.zeros(700))
    assert raw.n_patterns == 700


def test_labels_that_do_not_fit_are_ignored_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        raw = load(tmp_path, Y=complex_picture((M - 1, N, N)))
    assert raw.Y is None
    assert "Y is ignored" in caplog.text


def test_pickled_metadata_is_skipped_and_text_metadata_gives_the_dose(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    np.savez(tmp_path / "scan.npz", **scan(), _metadata=np.array("{}", dtype=object))
    with caplog.at_level(logging.WARNING):
        assert RawData.from_file(tmp_path / "scan.npz").metadata is None
    assert "_metadata" in caplog.text
    described = json.dumps({"physics_parameters": {"nphotons": 2e6}})
    assert load(tmp_path, _metadata=described).nphotons == 2e6
    assert load(tmp_path, _metadata=described, nphotons=np.array([3e6])).nphotons == 3e6


def test_a_subset_keeps_rows_together() -> None:
    raw = build()
    part = raw.subset([7, 2])
    np.testing.assert_array_equal(part.diff3d, raw.diff3d[[7, 2]])
    np.testing.assert_array_equal(part.positions_yx_px, raw.positions_yx_px[[7, 2]])


def test_the_patterns_of_a_part_keep_the_numbers_of_their_file(tmp_path: Path) -> None:
    raw = load(tmp_path, _metadata=json.dumps({"pattern_indexes": (10 + 2 * np.arange(M)).tolist()}))
    np.testing.assert_array_equal(build().subset([7, 2, 5]).subset([2, 0]).pattern_numbers, [5, 7])
    part = raw.subset([7, 2])
    np.testing.assert_array_equal(part.pattern_numbers, [24, 14])
    np.testing.assert_array_equal(raw.pattern_numbers, 10 + 2 * np.arange(M))
    part.to_file(tmp_path / "part.npz")
    np.testing.assert_array_equal(RawData.from_file(tmp_path / "part.npz").pattern_numbers, [24, 14])
    with pytest.raises(DataError, match=r"_metadata\.pattern_indexes does not fit .* \(got 3 numbers, expec"):
        _ = load(tmp_path, _metadata=json.dumps({"pattern_indexes": [1, 2, 3]})).pattern_numbers


def test_groups_hold_the_patterns_of_their_points() -> None:
    raw = build()
    data = raw.generate_grouped_data(N, K=7, nsamples=1, gridsize=2, seed=0)
    rows = data["nn_indices"]
    assert rows.shape == (M, 4)
    assert data["diffraction"].shape == data["X_full"].shape == data["Y"].shape == (M, N, N, 4)
    assert data["diffraction"].dtype == np.uint16
    for b, c in ((0, 0), (5, 3), (M - 1, 1)):
        np.testing.assert_array_equal(data["diffraction"][b, :, :, c], raw.diff3d[rows[b, c]])


def test_normalised_amplitude_has_mean_square_half_n_squared() -> None:
    raw = build()
    data = raw.generate_grouped_data(N, gridsize=1)
    x = data["X_full"]
    assert x.dtype == np.float32
    assert (x.astype(float) ** 2).sum(axis=(1, 2)).mean() == pytest.approx((N / 2) ** 2, rel=1e-6)
    shape = np.sqrt(raw.diff3d / raw.diff3d[0, 0, 0])
    np.testing.assert_allclose(x[..., 0] / x[0, 0, 0, 0], shape, rtol=2e-6)


def test_coordinates_of_groups_are_x_then_y_with_the_group_mean_apart() -> None:
    x_start = scan()["xcoords"] + 0.25
    raw = RawData(scan()["xcoords"], scan()["ycoords"], x_start, None, scan()["diff3d"], None, None)
    data = raw.generate_grouped_data(N, K=7, nsamples=12, gridsize=2, seed=1)
    points = np.stack([raw.xcoords, raw.ycoords])[:, data["nn_indices"]].transpose(1, 0, 2)[:, None]
    assert points.shape == (12, 1, 2, 4)
    mean = points.mean(axis=-1, keepdims=True)
    np.testing.assert_allclose(data["coords_nn"], points)
    np.testing.assert_allclose(data["coords_offsets"], mean)
    np.testing.assert_allclose(data["coords_relative"], -(points - mean), atol=1e-12)
    np.testing.assert_allclose(
        data["coords_start_nn"] - data["coords_nn"],
        np.broadcast_to([[[0.25], [0]]], (12, 1, 2, 4)),
        atol=1e-12,
    )
    assert data["coords_start_offsets"].dtype == np.float64


def test_groups_without_a_seed_are_the_same_every_time() -> None:
    one, two, other = (
        build().generate_grouped_data(N, K=7, gridsize=2, seed=seed)["nn_indices"] for seed in (None, None, 5)
    )
    np.testing.assert_array_equal(one, two)
    assert (one != other).any()


@pytest.mark.parametrize(("nsamples", "expected"), [(1, M), (2, 2), (M, M), (5 * M, M)])
def test_one_sample_means_one_group_per_scan_point(nsamples: int, expected: int) -> None:
    assert len(build().generate_grouped_data(N, nsamples=nsamples, gridsize=1)["nn_indices"]) == expected


def test_gridsize_comes_from_the_parameters_when_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    from ptycho import params

    monkeypatch.setitem(params.cfg, "gridsize", 3)
    assert build().generate_grouped_data(N, K=12)["nn_indices"].shape == (M, 9)


def test_another_pattern_size_is_refused() -> None:
    with pytest.raises(ConfigError, match=f"got 64, expected {N}"):
        build().generate_grouped_data(64, gridsize=1)


WAVE_YX = (0.11, -0.23)  # cycles per pixel


def with_known_object() -> RawData:
    """A scan far inside an object that is one plane wave."""
    given = scan()
    turns = np.add.outer(WAVE_YX[0] * np.arange(110), WAVE_YX[1] * np.arange(120))
    moved = {key: given[key] + 40 for key in ("xcoords", "ycoords")}
    return build(**moved, objectGuess=np.exp(2j * np.pi * turns))


def check_labels(labels: NDArray[Any], raw: RawData, rows: NDArray[np.int64]) -> None:
    """Judge: labels equal the wave at y - (N-1)/2 + i, x - (N-1)/2 + j."""
    steps = np.arange(N) - (N - 1) / 2
    for (b, c), row in np.ndenumerate(rows):
        y, x = np.meshgrid(raw.ycoords[row] + steps, raw.xcoords[row] + steps, indexing="ij")
        truth = np.exp(2j * np.pi * (WAVE_YX[0] * y + WAVE_YX[1] * x))
        np.testing.assert_allclose(labels[b, :, :, c], truth, atol=1e-5)


@pytest.mark.parametrize("gridsize", [1, 2])
def test_labels_are_the_object_at_the_positions(gridsize: int) -> None:
    raw = with_known_object()
    data = raw.generate_grouped_data(N, K=7, nsamples=9, gridsize=gridsize, seed=2)
    check_labels(data["Y"], raw, data["nn_indices"])


@pytest.mark.parametrize(
    "defect",
    [
        lambda y: y.swapaxes(1, 2),
        lambda y: np.roll(y, 1, axis=1),
        lambda y: y[..., ::-1],
        np.conj,
    ],
)
def test_the_judge_of_labels_catches_planted_defects(defect: Any) -> None:
    raw = with_known_object()
    data = raw.generate_grouped_data(N, K=7, nsamples=9, gridsize=2, seed=2)
    with pytest.raises(AssertionError):
        check_labels(defect(data["Y"]), raw, data["nn_indices"])


@pytest.mark.parametrize("size", [8, 7])
def test_patches_on_whole_pixels_are_cut_out_exactly(size: int) -> None:
    picture = complex_picture((20, 31)).astype(np.complex64)
    corners = np.array([[0, 0], [20 - size, 31 - size], [3, 11]])
    patches = object_patches(picture, corners + (size - 1) / 2, size)
    for patch, (i, j) in zip(patches, corners, strict=True):
        np.testing.assert_array_equal(patch, picture[i : i + size, j : j + size])


def test_labels_outside_the_object_are_refused_only_when_asked_for() -> None:
    raw = build(objectGuess=complex_picture((20, 40)))
    data = raw.generate_grouped_data(N, gridsize=1)
    assert data["X_full"].shape == (M, N, N, 1)
    outside = int((raw.ycoords > 20 - N + (N - 1) / 2).sum())
    with pytest.raises(DataError, match=f"{outside} of {M} patches leave the object"):
        data["Y"]


def test_stored_labels_win_over_the_object_and_no_truth_means_none() -> None:
    known = complex_picture((M, N, N), 5)
    raw = RawData(
        scan()["xcoords"],
        scan()["ycoords"],
        None,
        None,
        scan()["diff3d"],
        None,
        None,
        scan()["objectGuess"],
        known,
    )
    data = raw.generate_grouped_data(N, gridsize=1)
    np.testing.assert_array_equal(data["Y"][..., 0], known.astype(np.complex64))
    assert build(objectGuess=None).generate_grouped_data(N, gridsize=1)["Y"] is None


def test_large_arrays_are_made_once_and_the_mapping_is_whole() -> None:
    data = build().generate_grouped_data(N, gridsize=1)
    assert data["X_full"] is data["X_full"]
    assert set(data) == {
        "diffraction",
        "X_full",
        "Y",
        "coords_offsets",
        "coords_relative",
        "coords_start_offsets",
        "coords_start_relative",
        "coords_nn",
        "coords_start_nn",
        "nn_indices",
        "objectGuess",
        "sample_indices",
    }
    assert all(not callable(value) for value in dict(data).values())
