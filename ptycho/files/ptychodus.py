"""Diffraction data of Ptychodus 1.7 with the product that belongs to them, and its HDF5 training data."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ptycho.data.canonical import canonical_column, canonical_patterns, pixel_mask
from ptycho.data.npz import read_npz
from ptycho.data.optics import FileOptions, Optics
from ptycho.data.raw import RawData
from ptycho.errors import ConfigError, DataError
from ptycho.files.arrays import read_array
from ptycho.files.assemble import make_raw_data, on_object_pixels
from ptycho.files.contents import unread_datasets, unused_arrays
from ptycho.files.cxi import pattern_layout, read_frames
from ptycho.files.cxi_layout import EntryPaths, entry_of
from ptycho.files.frames import Window, read_stack
from ptycho.files.hdf5 import find_dataset, require_dataset
from ptycho.files.numbers import read_number
from ptycho.files.own import Headers
from ptycho.files.product import (
    WRITE_AGAIN,
    Product,
    find_product,
    first_layer,
    incoherent_modes,
    pair_by_index,
    read_product,
)

if TYPE_CHECKING:
    import h5py

logger = logging.getLogger(__name__)

PLACES = {"mask": "bad_pixels", "patterns": "patterns", "probe": "that of the product is used"}
"""Where these files hold mask and patterns, and how another probe is used."""


def read_pair(source: h5py.File | Headers, path: Path, options: FileOptions) -> Callable[[], RawData]:
    """Read an HDF5, NPZ or CXI diffraction file and its product.

    Parameters
    ----------
    source : h5py.File, or mapping of str to (shape, dtype)
        Open diffraction file, or the headers of an NPZ file.
    path : Path
        Diffraction file.
    options : FileOptions
        ``product_file`` and what the user says about the optics.

    Returns
    -------
    callable
        Makes the checked data set in the pixel frame of the product's object; the file may be closed by then.

    Raises
    ------
    DataError
        If a file is missing, damaged, or the two do not fit.
    """
    product = read_product(find_product(path, options.product_file))
    frames = (
        _frames_from_npz(source, path, product)
        if isinstance(source, dict)
        else _frames_from_hdf5(source, product, options)
    )
    product = replace(product, optics=replace(product.optics, detector_pixel_yx_m=frames.detector_pixel_yx_m))
    return partial(_in_frame_of_product, product, frames, options, path)


@dataclass(frozen=True)
class _Frames:
    """Patterns that have a position, and that position."""

    patterns: NDArray[Any]
    indexes: NDArray[np.int64]
    positions_yx_m: NDArray[np.float64]
    bad_pixels: NDArray[np.bool_] | None
    detector_pixel_yx_m: tuple[float, float] | None = None
    unused: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


def _frames_from_hdf5(file: h5py.File, product: Product, options: FileOptions) -> _Frames:
    """Read the patterns that have a position from an HDF5 or CXI diffraction file."""
    entry = entry_of(file)
    if entry is not None:
        dataset, window = pattern_layout(file, entry, options)
        rows, positions = pair_by_index(np.arange(int(np.prod(dataset.shape[:-2]))), product, file.filename)
        patterns, bad, detector = read_frames(file, entry, options, rows)
        paths = EntryPaths(entry)
        unused = unread_datasets(file, [dataset, find_dataset(file, paths.mask)], window.side)
        return _Frames(patterns, rows, positions, bad, detector.pixel_yx_m, unused)
    dataset = pattern_dataset(file)
    item = require_dataset(file, ["indexes"], "the index of each pattern", WRITE_AGAIN)
    count = (len(dataset),)
    indexes = read_array(item, "iu", f"{count} integers", item.shape == count).astype(np.int64)
    bad = _bad_pixels(file, dataset.shape)
    sides = [dataset.attrs.get(f"detector_pixel_{side}_m") for side in ("height", "width")]
    rows, positions = pair_by_index(indexes, product, file.filename)
    bad = bad if bad is None or bad.ndim == 2 else bad[rows]
    patterns = read_stack(dataset, Window(0, 0, dataset.shape[-1]), rows)
    unused = _unread(file, dataset)
    pixel = (float(sides[0]), float(sides[1])) if None not in sides and min(sides) > 0 else None
    return _Frames(patterns, indexes[rows], positions, bad, pixel, unused)


def _frames_from_npz(headers: Headers, path: Path, product: Product) -> _Frames:
    """Read the patterns that have a position from an NPZ diffraction file."""
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
    bad = bad if bad is None or bad.ndim == 2 else bad[rows]
    stack = stack if len(rows) == len(stack) else stack[rows]
    return _Frames(stack, indexes[rows], positions, bad, unused=unused)


def _in_frame_of_product(product: Product, frames: _Frames, options: FileOptions, path: Path) -> RawData:
    """Put positions on the pixels of the product's object, or of a new one where it is empty."""
    optics, n_px = product.optics.overridden(options), frames.patterns.shape[-1]
    centre = np.array(product.centre_yx_m)
    from_centre = options.orient(frames.positions_yx_m - centre)
    if product.obj is None:
        positions, optics = on_object_pixels(from_centre + centre, optics, n_px, str(path))
    else:
        pixel, middle = np.array(optics.object_pixel_yx_m), (np.array(product.obj.shape) - 1) / 2
        positions = from_centre / pixel + middle
        optics = optics.centred(centre, product.obj.shape)
    return make_raw_data(
        frames.patterns, positions, product.probe, optics.completed(n_px), source=str(path),
        file_format="ptychodus", obj=product.obj, bad_pixels=frames.bad_pixels, indexes=frames.indexes,
        unused=frames.unused, places=PLACES,
    )  # fmt: skip


def pattern_dataset(file: h5py.File) -> h5py.Dataset:
    """Return the patterns of a diffraction or training file.

    Parameters
    ----------
    file : h5py.File
        Open file.

    Returns
    -------
    h5py.Dataset
        Shape (M, N, N).

    Raises
    ------
    DataError
        If they are missing, or no stack of square patterns.
    """
    dataset = require_dataset(file, ["patterns"], "the stack of patterns", WRITE_AGAIN)
    if (
        dataset.ndim != 3
        or dataset.dtype.kind not in "iuf"
        or dataset.shape[1] != dataset.shape[2]
        or not dataset.size
    ):
        raise DataError(
            f"{file.filename}: 'patterns' has the wrong shape or type (got {dataset.shape}, {dataset.dtype}, "
            "expected (M, N, N) integers or floats). Crop or pad them to squares in Ptychodus."
        )
    return dataset


def _bad_pixels(file: h5py.File, shape: tuple[int, ...]) -> NDArray[np.bool_] | None:
    """Pixels that the file calls bad, shape (N, N), or (M, N, N) where it has a mask for each pattern."""
    dataset = find_dataset(file, ["bad_pixels"])
    if dataset is None:
        return None
    fits = dataset.shape in (shape, shape[1:])
    return read_array(dataset, "biu", f"{shape[1:]} flags", fits).astype(bool)


def _unread(file: h5py.File, patterns: h5py.Dataset, *others: str) -> dict[str, tuple[int, ...]]:
    """Return the datasets that are not read, beside the patterns, their bad pixels and others."""
    read = [find_dataset(file, [path]) for path in ("bad_pixels", *others)]
    return unread_datasets(file, [patterns, *read], patterns.shape[-1])


def read_training_file(file: h5py.File, options: FileOptions) -> Callable[[], RawData]:
    """Read HDF5 training data, which hold patterns, positions in object pixels, probe and object.

    Parameters
    ----------
    file : h5py.File
        Open file.
    options : FileOptions
        What the user says about the optics.

    Returns
    -------
    callable
        Makes the checked data set; the file may be closed by then.

    Raises
    ------
    DataError
        If something is missing or has the wrong shape.
    ConfigError
        If positions are to be turned: they are in object pixels already.
    """
    if options.flip_positions or options.swap_positions or options.product_file:
        raise ConfigError(
            f"{file.filename}: --product, --flip-positions and --swap-positions do not apply (got a file "
            "with positions in object pixels, expected positions in metres). Leave them out."
        )
    dataset = pattern_dataset(file)
    positions = _training_positions(file, len(dataset))
    probe, obj = (
        read_array(require_dataset(file, [key], f"the {key}", WRITE_AGAIN), "iufc", "numbers", True)
        for key in ("probe", "object")
    )
    optics = _training_optics(file).overridden(options)
    bad = _bad_pixels(file, dataset.shape)
    patterns = read_stack(dataset, Window(0, 0, dataset.shape[-1]))
    unused = _unread(file, dataset, "probe", "object")
    probe, obj = incoherent_modes(probe, file.filename), first_layer(obj, file.filename)
    if optics.object_pixel_yx_m is not None and obj is not None:
        optics = optics.centred((0.0, 0.0), obj.shape)
    return partial(
        make_raw_data, patterns, positions, probe, optics.completed(patterns.shape[-1]), source=file.filename,
        file_format="ptychodus training data", obj=obj, bad_pixels=bad,
        unused=unused, places={**PLACES, "probe": "probe is used"},
    )  # fmt: skip


def _training_positions(file: h5py.File, count: int) -> NDArray[np.float64]:
    """Read positions (y, x) in object pixels, shape (M, 2)."""
    columns = []
    for axis in "yx":
        item = require_dataset(file, [f"probe_position_{axis}_px"], f"the {axis} positions", WRITE_AGAIN)
        columns.append(read_array(item, "iuf", f"({count},) numbers", item.shape == (count,)))
    return np.stack(columns, axis=1).astype(np.float64)


def _training_optics(file: h5py.File) -> Optics:
    found = {}
    for key in (
        "photon_energy_eV",
        "detector_object_distance_m",
        "object_pixel_height_m",
        "object_pixel_width_m",
    ):
        dataset = find_dataset(file, [key])
        value = None if dataset is None else read_number(dataset)
        found[key] = value if value is not None and value > 0 else None
    sides = (found["object_pixel_height_m"], found["object_pixel_width_m"])
    return Optics(
        found["photon_energy_eV"], found["detector_object_distance_m"], None, None if None in sides else sides
    )
