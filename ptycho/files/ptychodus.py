"""Files of Ptychodus 1.7: diffraction data with the product that belongs to them, and training data.

Training data hold patterns, positions in object pixels, probe and object in one file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho.data.canonical import canonical_column, canonical_patterns, pixel_mask
from ptycho.data.frame_cut import FrameCut
from ptycho.data.npz import read_npz
from ptycho.data.optics import FileOptions, Optics
from ptycho.data.raw import RawData
from ptycho.errors import ConfigError, DataError
from ptycho.files.arrays import read_array, read_number, unread_datasets, unused_arrays
from ptycho.files.assemble import make_raw_data, on_object_pixels
from ptycho.files.cxi_layout import EntryFrames, EntryPaths, entry_of
from ptycho.files.formats import Headers, Request, Source
from ptycho.files.frames import Window, read_stack
from ptycho.files.hdf5 import Dataset, File, find_dataset, require_dataset
from ptycho.files.own import PATTERN_KEYS
from ptycho.files.product import (
    WRITE_AGAIN,
    Product,
    find_product,
    first_layer,
    incoherent_modes,
    pair_by_index,
    read_product,
)

DIFFRACTION_KEYS = {"patterns", "indexes"}
"""Keys of an NPZ file with diffraction data of Ptychodus."""
PLACES = {"mask": "bad_pixels", "patterns": "patterns", "probe": "that of the product is used"}
"""Where these files hold mask and patterns, and how another probe is used."""


class PtychodusPair:
    """A diffraction file, HDF5, NPZ or CXI, beside a product with its positions in metres."""

    name = "Ptychodus diffraction or training data"

    def recognises(self, source: Source) -> bool:
        """Tell whether a file holds patterns by the names of Ptychodus; those of CXI ask for the pair."""
        if isinstance(source, dict):
            return source.keys() >= DIFFRACTION_KEYS and source.keys().isdisjoint(PATTERN_KEYS)
        return find_dataset(source, ["patterns"]) is not None

    def read(self, source: Source, request: Request) -> Callable[[], RawData]:
        """Read the patterns that have a position, in the pixel frame of the product's object."""
        refuse_settings(request)
        path, options = request.path, request.options
        product = read_product(find_product(path, options.product_file))
        if isinstance(source, dict):
            frames = _frames_from_npz(source, path, product)
        elif entry_of(source) is not None:
            frames = _frames_from_cxi(source, product, options)
        else:
            frames = _frames_from_hdf5(source, product)
        optics = replace(product.optics, detector_pixel_yx_m=frames.detector_pixel_yx_m)
        return partial(_in_frame_of_product, replace(product, optics=optics), frames, options, path)

    def pattern_size(self, source: Source, request: Request) -> int:
        """Return the last side of the patterns [px]."""
        shape = source["patterns"][0] if isinstance(source, dict) else pattern_dataset(source).shape
        return int(shape[-1])


def refuse_settings(request: Request) -> None:
    """Raise ``ConfigError`` for settings that do not apply to files of Ptychodus."""
    request.refuse_pattern_axis()
    if request.probe_key is not None:
        raise ConfigError(
            f"{request.path}: --probe-key does not apply to files of Ptychodus (got {request.probe_key!r}, "
            "expected none). Leave it out."
        )


@dataclass(frozen=True)
class _Frames:
    """Patterns that have a position, and that position."""

    patterns: NDArray[Any]
    indexes: NDArray[np.int64]
    positions_yx_m: NDArray[np.float64]
    bad_pixels: NDArray[np.bool_] | None
    cut: FrameCut
    detector_pixel_yx_m: tuple[float, float] | None = None
    unused: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


def _of_rows(bad: NDArray[np.bool_] | None, rows: NDArray[np.int64]) -> NDArray[np.bool_] | None:
    return bad if bad is None or bad.ndim == 2 else bad[rows]


def _frames_from_cxi(file: File, product: Product, options: FileOptions) -> _Frames:
    paths = EntryPaths(entry_of(file))
    frames = EntryFrames(file, paths, options)
    rows, positions = pair_by_index(np.arange(frames.count), product, file.filename)
    patterns, bad = frames.read(rows)
    read = [frames.dataset, find_dataset(file, paths.mask)]
    unused = unread_datasets(file, read, frames.window.side)
    return _Frames(patterns, rows, positions, bad, frames.cut(rows), frames.detector.pixel_yx_m, unused)


def _frames_from_hdf5(file: File, product: Product) -> _Frames:
    dataset = pattern_dataset(file)
    item = require_dataset(file, ["indexes"], "the index of each pattern", WRITE_AGAIN)
    count = (len(dataset),)
    indexes = read_array(item, "iu", f"{count} integers", item.shape == count).astype(np.int64)
    bad = bad_pixels(file, dataset.shape)
    sides = [dataset.attrs.get(f"detector_pixel_{side}_m") for side in ("height", "width")]
    rows, positions = pair_by_index(indexes, product, file.filename)
    patterns = read_stack(dataset, Window(0, 0, dataset.shape[-1]), rows)
    pixel = (float(sides[0]), float(sides[1])) if None not in sides and min(sides) > 0 else None
    cut = FrameCut.whole(dataset.shape[-1], len(dataset), len(dataset)).of(rows)
    return _Frames(patterns, indexes[rows], positions, _of_rows(bad, rows), cut, pixel, unread(file, dataset))


def _frames_from_npz(headers: Headers, path: Path, product: Product) -> _Frames:
    keys = ["patterns", "indexes", *(["bad_pixels"] if "bad_pixels" in headers else [])]
    arrays = read_npz(path, keys)
    stack = canonical_patterns(arrays.pop("patterns"), 0, 0, str(path))
    indexes = canonical_column(arrays["indexes"], "indexes", str(path)).astype(np.int64)
    if len(indexes) != len(stack):
        raise DataError(
            f"{path}: not every pattern has an index (got {len(indexes)} for {len(stack)} patterns, expected "
            f"one each). {WRITE_AGAIN}"
        )
    rows, positions = pair_by_index(indexes, product, str(path))
    unused = unused_arrays(headers, keys, stack.shape[-1])
    bad = pixel_mask(arrays["bad_pixels"], stack.shape, str(path)) if len(keys) == 3 else None
    cut = FrameCut.whole(stack.shape[-1], len(stack), len(stack)).of(rows)
    stack = stack if len(rows) == len(stack) else stack[rows]
    return _Frames(stack, indexes[rows], positions, _of_rows(bad, rows), cut, unused=unused)


def _in_frame_of_product(product: Product, frames: _Frames, options: FileOptions, path: Path) -> RawData:
    """Put positions on the pixels of the product's object, or of a new one where it is empty."""
    optics, n_px = product.optics.overridden(options), frames.patterns.shape[-1]
    centre = np.array(product.centre_yx_m)
    from_centre = options.orientation.turn(frames.positions_yx_m - centre)
    if product.obj is None:
        positions, optics = on_object_pixels(from_centre + centre, optics, n_px, str(path))
    else:
        pixel, middle = np.array(optics.object_pixel_yx_m), (np.array(product.obj.shape) - 1) / 2
        positions = from_centre / pixel + middle
        optics = optics.centred(centre, product.obj.shape)
    return make_raw_data(
        frames.patterns, positions, product.probe, optics.completed(n_px), source=str(path),
        file_format="ptychodus", obj=product.obj, bad_pixels=frames.bad_pixels, indexes=frames.indexes,
        options=options, cut=frames.cut, unused=frames.unused, places=PLACES,
    )  # fmt: skip


def pattern_dataset(file: File) -> Dataset:
    """Return the patterns (M, N, N) of a diffraction or training file; ``DataError`` where they are none."""
    dataset = require_dataset(file, ["patterns"], "the stack of patterns", WRITE_AGAIN)
    square = dataset.ndim == 3 and dataset.shape[1] == dataset.shape[2]
    if not square or dataset.dtype.kind not in "iuf" or not dataset.size:
        raise DataError(
            f"{file.filename}: 'patterns' has the wrong shape or type (got {dataset.shape}, {dataset.dtype}, "
            "expected (M, N, N) integers or floats). Crop or pad them to squares in Ptychodus."
        )
    return dataset


def bad_pixels(file: File, shape: tuple[int, ...]) -> NDArray[np.bool_] | None:
    """Pixels that the file calls bad, shape (N, N), or (M, N, N) where it has a mask for each pattern."""
    dataset = find_dataset(file, ["bad_pixels"])
    if dataset is None:
        return None
    fits = dataset.shape in (shape, shape[1:])
    return read_array(dataset, "biu", f"{shape[1:]} flags", fits).astype(bool)


def unread(file: File, patterns: Dataset, *others: str) -> dict[str, tuple[int, ...]]:
    """Return the datasets that are not read, beside the patterns, their bad pixels and others."""
    read = [find_dataset(file, [path]) for path in ("bad_pixels", *others)]
    return unread_datasets(file, [patterns, *read], patterns.shape[-1])


class PtychodusTraining(PtychodusPair):
    """Training data, whose positions cannot be turned: they are in object pixels already."""

    def recognises(self, source: Source) -> bool:
        """Tell whether a file holds patterns and positions in pixels."""
        return not isinstance(source, dict) and all(
            find_dataset(source, [key]) is not None for key in ("patterns", "probe_position_x_px")
        )

    def read(self, source: File, request: Request) -> Callable[[], RawData]:
        """Read everything that the file holds."""
        refuse_settings(request)
        file, options = source, request.options
        if options.flip_positions or options.swap_positions or options.product_file:
            raise ConfigError(
                f"{file.filename}: --product, --flip-positions and --swap-positions do not apply (got a file "
                "with positions in object pixels, expected positions in metres). Leave them out."
            )
        dataset = pattern_dataset(file)
        positions = _positions_yx_px(file, len(dataset))
        probe, obj = (
            read_array(require_dataset(file, [key], f"the {key}", WRITE_AGAIN), "iufc", "numbers", True)
            for key in ("probe", "object")
        )
        optics = _optics(file).overridden(options)
        bad = bad_pixels(file, dataset.shape)
        patterns = read_stack(dataset, Window(0, 0, dataset.shape[-1]))
        unused = unread(file, dataset, "probe", "object")
        probe, obj = incoherent_modes(probe, file.filename), first_layer(obj, file.filename)
        if optics.object_pixel_yx_m is not None and obj is not None:
            optics = optics.centred((0.0, 0.0), obj.shape)
        return partial(
            make_raw_data, patterns, positions, probe, optics.completed(patterns.shape[-1]),
            source=file.filename, file_format="ptychodus training data", obj=obj, bad_pixels=bad,
            options=options, unused=unused, places={**PLACES, "probe": "probe is used"},
        )  # fmt: skip


def _positions_yx_px(file: File, count: int) -> NDArray[np.float64]:
    columns = []
    for axis in "yx":
        item = require_dataset(file, [f"probe_position_{axis}_px"], f"the {axis} positions", WRITE_AGAIN)
        columns.append(read_array(item, "iuf", f"({count},) numbers", item.shape == (count,)))
    return np.stack(columns, axis=1).astype(np.float64)


def _optics(file: File) -> Optics:
    keys = ("photon_energy_eV", "detector_object_distance_m", "object_pixel_height_m", "object_pixel_width_m")
    found = [find_dataset(file, [key]) for key in keys]
    numbers = [None if dataset is None else read_number(dataset) for dataset in found]
    energy, distance, *sides = (value if value is not None and value > 0 else None for value in numbers)
    return Optics(energy, distance, None, None if None in sides else tuple(sides))
