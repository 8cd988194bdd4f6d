"""The file of --mask: which pixels it marks, in whole frames too, and what is no mask of these patterns."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

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
from numpy.typing import NDArray
from scan_makers import honest_scan

from ptycho.data.canonical import CHUNK
from ptycho.data.checks.findings import Draft
from ptycho.data.checks.mask import read_mask
from ptycho.data.checks.registry import check_patterns
from ptycho.data.npz import write_npz
from ptycho.data.optics import FileOptions
from ptycho.data.prepare import prepare_scan
from ptycho.data.scaling import make_scale_record
from ptycho.errors import DataError
from ptycho.files.reader import open_scan, read_data
from ptycho.raw_data import RawData

Mask = NDArray[np.bool_]
DETECTOR = "entry_1/instrument_1/detector_1"


def some(shape: tuple[int, ...], seed: int = 0, share: float = 0.05) -> Mask:
    return np.random.default_rng(seed).random(shape) < share


def written(path: Path, mask: Any, key: str | None = None) -> Path:
    """Write a mask as NPY, or under a key of an NPZ file."""
    if key is None:
        np.save(path.with_suffix(".npy"), mask)
        return path.with_suffix(".npy")
    write_npz(path.with_suffix(".npz"), {key: mask})
    return path.with_suffix(".npz")


def masked(raw: RawData, path: Path) -> Mask | None:
    return prepare_scan(raw, options=FileOptions(mask_file=path)).raw.bad_pixels


@pytest.mark.parametrize("key", [None, "mask", "bad_pixels", "anything"])
@pytest.mark.parametrize("dtype", [bool, np.uint8, np.float32])
def test_the_file_is_added_to_what_the_scan_says(key: str | None, dtype: Any, tmp_path: Path) -> None:
    raw = honest_scan(9)
    own, more = some((raw.N, raw.N), 1), some((raw.N, raw.N), 2)
    path = written(tmp_path / "m", more.astype(dtype) * dtype(3), key)
    np.testing.assert_array_equal(masked(raw, path), more)
    raw.bad_pixels = own
    np.testing.assert_array_equal(masked(raw, path), own | more)
    each = some(raw.diff3d.shape, 3, 0.02)
    np.testing.assert_array_equal(masked(raw, written(tmp_path / "e", each, key)), own | each)
    np.testing.assert_array_equal(masked(raw, written(tmp_path / "o", more[None], key)), own | more)


def test_only_the_mask_that_marks_the_good_pixels_is_turned(tmp_path: Path) -> None:
    raw = honest_scan(9)
    own, more = some((raw.N, raw.N), 1), some((raw.N, raw.N), 2)
    raw.bad_pixels = own
    options = FileOptions(mask_file=written(tmp_path / "m", ~more))
    scan = prepare_scan(raw, options=options)
    np.testing.assert_array_equal(scan.raw.bad_pixels, own | more)
    (finding,) = scan.findings
    assert finding.level == "repaired"
    assert finding.message.startswith("--mask marks 0.9")
    assert finding.message.endswith("it marks the good pixels, and is turned")
    raw.bad_pixels = ~own
    scan = prepare_scan(raw, options=FileOptions(mask_file=written(tmp_path / "m", more)))
    np.testing.assert_array_equal(scan.raw.bad_pixels, own | more)
    assert [item.message[:8] for item in scan.findings] == ["the mask"]


def wrong_files(folder: Path, n_px: int, count: int) -> dict[str, tuple[Path, str]]:
    """Return files that are no mask of a scan, and what is said of them."""
    good = np.zeros((n_px, n_px), bool)
    write_npz(folder / "two.npz", {"one": good, "other": good})
    (folder / "text.npy").write_text("no array", encoding="utf-8")
    whole = written(folder / "whole", good).read_bytes()
    (folder / "cut.npy").write_bytes(whole[:200])
    np.save(folder / "objects.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    np.savez(folder / "pickled.npz", mask=np.array([None], dtype=object))
    (folder / "folder").mkdir()
    shape = f"expected bool or numbers ({n_px}, {n_px}) or ({count}, {n_px}, {n_px})"
    return {
        "another size": (written(folder / "size", np.zeros((n_px + 1, n_px))), shape),
        "another number": (written(folder / "number", np.zeros((count + 1, n_px, n_px))), shape),
        "complex": (written(folder / "complex", good.astype(complex)), "dtype complex128"),
        "words": (written(folder / "words", good.astype(str)), "dtype <U5"),
        "two arrays": (folder / "two.npz", "found: one, other; expected mask or bad_pixels"),
        "text": (folder / "text.npy", "not an NPZ archive"),
        "cut short": (folder / "cut.npy", "damaged or unreadable"),
        "objects": (folder / "objects.npy", "damaged or unreadable"),
        "pickled": (folder / "pickled.npz", "pickled Python objects"),
        "a folder": (folder / "folder", "got a folder"),
        "nothing": (folder / "absent.npy", "no such file"),
    }


def test_what_is_no_mask_of_the_patterns_is_refused_in_one_line(tmp_path: Path) -> None:
    raw = honest_scan(9)
    for name, (path, said) in wrong_files(tmp_path, raw.N, raw.n_patterns).items():
        with pytest.raises(DataError) as error:
            masked(raw, path)
        text = str(error.value)
        assert text.startswith(f"--mask: {path}"), name
        assert said in text, (name, text)
        assert text.count("\n") == 0
        assert text.endswith((".", "?"))


def test_a_mask_that_leaves_no_count_is_refused_by_its_flag(tmp_path: Path) -> None:
    """The masked pixels hold the largest number, which is no count either, so the mask is not turned."""
    raw = copy.copy(honest_scan(9))
    marked = np.zeros((raw.N, raw.N), bool)
    marked[:, 3:7] = True
    raw.diff3d = np.where(marked, 2**32 - 1, np.zeros(raw.diff3d.shape)).astype(np.uint32)
    with pytest.raises(DataError, match="--mask leaves nothing"):
        masked(raw, written(tmp_path / "m", marked))


def cut_file(path: Path) -> tuple[Path, Mask]:
    """Write frames of 40 x 30 px that are cut to 20 x 20 around the beam, and a mask of whole frames."""
    instrument = Instrument(n_px=20)
    wide = counts(6, 40)[:, :, :30].copy()
    wide[:] = 0
    wide[:, 10:30, 0:20] = counts(6, 20)
    tree = cxi_tree(instrument, wide, np.random.default_rng(0).random((6, 3)) * 1e-7)
    tree |= {f"{DETECTOR}/beam_center_{axis}": value for axis, value in (("x", 10.0), ("y", 20.0))}
    tree |= {f"{DETECTOR}/beam_center_{axis}@units": "pixel" for axis in "xy"}
    return write_tree(path, tree), some((40, 30), 4)


def test_a_mask_of_whole_frames_is_cut_like_the_frames(tmp_path: Path) -> None:
    path, frame = cut_file(tmp_path / "a.cxi")
    raw = read_data(path)
    np.testing.assert_array_equal(raw.diff3d, counts(6, 20))
    each = some((6, 40, 30), 5)
    for mask in (frame, each, frame[10:30, 0:20], each[:, 10:30, 0:20]):
        window = mask[..., 10:30, 0:20] if mask.shape[-1] == 30 else mask
        found = read_mask(written(tmp_path / "m", mask), raw.cut)
        np.testing.assert_array_equal(found, window)
    with pytest.raises(
        DataError, match=r"expected bool or numbers \(20, 20\) or \(40, 30\) or \(6, 20, 20\)"
    ):
        read_mask(written(tmp_path / "m", np.zeros((30, 40))), raw.cut)


def test_each_pattern_keeps_its_own_mask_when_others_have_no_position(tmp_path: Path) -> None:
    """Index -1 was never measured and 12 lies beyond the positions; the mask counts frames of the file."""
    instrument, obj = Instrument(), np.ones((41, 36), np.complex64)
    where = np.random.default_rng(0).random((6, 2)) * 1e-7
    tree = product_tree(instrument, where, np.arange(6) * 2, obj, (0.0, 0.0), gaussian_probe(16, 2))
    write_tree(tmp_path / "product.h5", tree)
    indexes = np.array([0, 1, -1, 4, 12, 2])
    frames, mask = counts(6, 16), some((6, 16, 16), 6)
    path = write_tree(tmp_path / "diffraction.h5", diffraction_tree(frames, indexes, instrument.pixel_yx_m))
    raw = read_data(path)
    np.testing.assert_array_equal(raw.diff3d, frames[[0, 1, 3, 5]])
    found = read_mask(written(tmp_path / "m", mask), raw.cut)
    np.testing.assert_array_equal(found, mask[[0, 1, 3, 5]])
    np.savez(tmp_path / "diffraction.npz", patterns=frames, indexes=indexes)
    write_tree(tmp_path / "product.npz.h5", tree)
    np.testing.assert_array_equal(read_mask(tmp_path / "m.npy", raw.subset([2, 0]).cut), mask[[3, 0]])


def test_the_first_patterns_keep_their_masks_where_positions_are_fewer(tmp_path: Path) -> None:
    raw = honest_scan(9)
    mask, kept = some(raw.diff3d.shape, 7), raw.n_patterns - 5
    columns = {name: getattr(raw, name)[:kept] for name in ("xcoords", "ycoords")}
    write_npz(tmp_path / "s.npz", {**columns, "diff3d": raw.diff3d, "probeGuess": raw.probeGuess})
    options = FileOptions(mask_file=written(tmp_path / "m", mask), match_lengths="head")
    np.testing.assert_array_equal(open_scan(tmp_path / "s.npz", options=options).raw.bad_pixels, mask[:kept])


@pytest.mark.parametrize("garbage", [0, 40_000, 65535])
def test_a_starting_probe_of_the_mean_pattern_does_not_see_masked_pixels(
    garbage: int, tmp_path: Path
) -> None:
    instrument = Instrument(n_px=16)
    bad = some((16, 16), 8)
    frames = np.where(bad, garbage, counts(30, 16)).astype(np.uint16)
    tree = cxi_tree(instrument, frames, np.random.default_rng(0).random((30, 3)) * 1e-7)
    del tree["entry_1/instrument_1/source_1/illumination"]
    options = FileOptions(mask_file=written(tmp_path / "m", bad), keep_pixels=True)
    found = read_data(write_tree(tmp_path / "a.cxi", tree), options).probe_modes
    whole = np.where(bad, 0, counts(30, 16)).astype(np.uint16)
    tree[f"{DETECTOR}/data"] = whole
    tree[f"{DETECTOR}/mask"] = bad.astype(np.uint32)
    expected = read_data(write_tree(tmp_path / "b.cxi", tree), FileOptions(keep_pixels=True)).probe_modes
    np.testing.assert_array_equal(found, expected)


def tiled(raw: RawData, times: int) -> RawData:
    """Return a data set with many more patterns, each at a place of its own."""
    count = times * raw.n_patterns
    shift = np.repeat(np.arange(times), raw.n_patterns) * 0.01
    x, y = np.tile(raw.xcoords, times) + shift, np.tile(raw.ycoords, times) + shift
    patterns = np.random.default_rng(0).poisson(np.tile(raw.diff3d, (times, 1, 1))).astype(np.uint16)
    assert len(patterns) == count
    return RawData.from_coords_without_pc(x, y, patterns, raw.probeGuess, None)


def test_masks_of_a_large_scan_are_never_held_as_numbers(tmp_path: Path) -> None:
    import tracemalloc

    small = honest_scan(9)
    raw = tiled(small, 24 * CHUNK // small.n_patterns)
    path = written(tmp_path / "m", some(raw.diff3d.shape).astype(np.float32))
    options = FileOptions(mask_file=path, saturation=float(raw.diff3d.max()))
    block = 8 * CHUNK * raw.N**2  # bytes of patterns that are converted at a time
    tracemalloc.start()
    found = read_mask(path, raw.cut)
    reading = tracemalloc.get_traced_memory()[1]
    del found
    tracemalloc.reset_peak()
    draft = check_patterns(Draft(raw), options)
    make_scale_record(draft.raw, left_out=draft.left_out)
    preparing = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert draft.raw.bad_pixels.shape == raw.diff3d.shape
    # A flag is one byte: of the file, then also of saturation and of both; a number is four or eight.
    assert reading < 1.0 * raw.diff3d.size + 1.5 * block
    assert preparing < 4.0 * raw.diff3d.size + 2.0 * block
