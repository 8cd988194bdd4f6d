"""Files of Ptychodus 1.7: diffraction data and the product that belongs to them, and HDF5 training data.

A product holds positions in metres, x and y in separate arrays, and where the centre of its object lies: of
an object of width W that is pixel (W - 1) / 2. +x runs along the columns and +y along the rows. A pattern and
its position carry the same index.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ptycho.errors import ConfigError, DataError
from ptycho.files.assemble import make_raw_data, on_object_pixels
from ptycho.files.frames import Window, filler, read_stack
from ptycho.files.hdf5 import find_dataset, is_hdf5, missing, opened, read_array, read_number, require_dataset
from ptycho.files.optics import FileOptions, Optics
from ptycho.npz import npz_headers, read_npz
from ptycho.raw_data import RawData

if TYPE_CHECKING:
    import h5py

logger = logging.getLogger(__name__)

WRITE_AGAIN = "Write it again with Ptychodus."
PRODUCT_KEYS = ("probe_position_indexes", "probe_position_x_m", "probe_position_y_m", "probe", "object")
SAME_PIXEL = 0.01
"""Relative difference of two object pixel sizes that are the same."""


@dataclass(frozen=True)
class Product:
    """Positions, probe and object, in metres.

    Attributes
    ----------
    indexes : int64 array, shape (M,)
        Number of the pattern that each position belongs to.
    positions_yx_m : float64 array, shape (M, 2)
        Positions [m].
    probe : complex array, shape (P, N, N)
        Incoherent modes.
    obj : complex array, shape (H, W), or None
        Object; None where the product holds an empty one.
    centre_yx_m : tuple of float
        Middle of the object, pixel ((H - 1) / 2, (W - 1) / 2) [m].
    optics : Optics
        Energy, distance and object pixel.
    """

    indexes: NDArray[np.int64]
    positions_yx_m: NDArray[np.float64]
    probe: NDArray[Any]
    obj: NDArray[Any] | None
    centre_yx_m: tuple[float, float]
    optics: Optics


def find_product(diffraction: Path, named: Path | None) -> Path:
    """Find the product of a diffraction file.

    Parameters
    ----------
    diffraction : Path
        HDF5 or NPZ diffraction file.
    named : Path or None
        What the user names; it wins.

    Returns
    -------
    Path
        Otherwise the file in the same folder whose name has ``product`` in the place of ``diffraction``.

    Raises
    ------
    DataError
        If there is none.
    """
    if named is not None:
        if not named.is_file():
            raise DataError(
                f"{named}: no such file (expected the product of {diffraction.name}). Check --product."
            )
        return named
    names = [
        diffraction.stem.replace(old, new)
        for old, new in (("diffraction", "product"), ("Diffraction", "Product"), ("DIFFRACTION", "PRODUCT"))
    ]
    for name in names:
        for suffix in dict.fromkeys((diffraction.suffix, ".h5", ".hdf5", ".npz")):
            candidate = diffraction.with_name(name + suffix)
            if candidate != diffraction and candidate.is_file():
                return candidate
    raise DataError(
        f"{diffraction}: its product with positions, probe and object is missing (expected "
        f"{diffraction.with_name('product.h5').name} beside diffraction.h5, or --product). Pass --product "
        "product.h5."
    )


def read_product(path: Path) -> Product:
    """Read a product.

    Parameters
    ----------
    path : Path
        HDF5 or NPZ product of Ptychodus.

    Returns
    -------
    Product
        Checked: one index and two coordinates for each position.

    Raises
    ------
    DataError
        If something is missing or has the wrong shape.
    """
    arrays, numbers = _product_from_hdf5(path) if is_hdf5(path) else _product_from_npz(path)
    x_m, y_m, indexes = (
        np.atleast_1d(arrays[key])
        for key in ("probe_position_x_m", "probe_position_y_m", "probe_position_indexes")
    )
    if x_m.ndim != 1 or not len(x_m) == len(y_m) == len(indexes):
        raise DataError(
            f"{path}: positions and their indexes do not match (got {x_m.shape}, {y_m.shape}, "
            f"{indexes.shape}, expected one of each). {WRITE_AGAIN}"
        )
    probe, obj = _modes(arrays["probe"], path), _layer(arrays["object"], path)
    optics = Optics(
        numbers["photon_energy_eV"] or None,
        numbers["detector_object_distance_m"] or None,
        None,
        (numbers["pixel_height_m"], numbers["pixel_width_m"]),
    )
    if min(optics.object_pixel_yx_m) <= 0:
        raise DataError(
            f"{path}: the object pixel has no size (got {optics.object_pixel_yx_m} m, expected > 0). "
            f"{WRITE_AGAIN}"
        )
    positions = np.stack([y_m, x_m], axis=1).astype(np.float64)
    centre = (numbers["center_y_m"], numbers["center_x_m"])
    return Product(indexes.astype(np.int64), positions, probe, obj, centre, optics)


def _product_from_hdf5(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, float]]:
    """Read arrays and numbers of an HDF5 product."""
    with opened(path) as file:
        found = {
            key: require_dataset(file, [key], f"'{key}' of the product", WRITE_AGAIN) for key in PRODUCT_KEYS
        }
        if not bool(file.attrs.get("far_field", True)):
            raise _near_field(path)
        numbers = {}
        for key in ("photon_energy_eV", "detector_object_distance_m"):
            value = file.attrs.get(
                key, file.attrs.get("probe_energy_eV") if key == "photon_energy_eV" else None
            )
            if value is None:
                raise missing(file, [f"/@{key}"], f"the attribute {key} of the product", WRITE_AGAIN)
            numbers[key] = float(value)
        for key in ("pixel_height_m", "pixel_width_m", "center_x_m", "center_y_m"):
            if key not in found["object"].attrs:
                raise missing(file, [f"/object@{key}"], f"the attribute {key} of the object", WRITE_AGAIN)
            numbers[key] = float(found["object"].attrs[key])
        empty = {"object": np.zeros((0, 0), dtype=complex)} if not found["object"].size else {}
        arrays = {
            key: read_array(item, "iufc", "numbers", True) for key, item in found.items() if key not in empty
        }
    return {**arrays, **empty}, numbers


def _product_from_npz(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, float]]:
    """Read arrays and numbers of an NPZ product; its names carry a prefix where HDF5 has attributes."""
    prefixed = {
        "pixel_height_m": "object_pixel_height_m",
        "pixel_width_m": "object_pixel_width_m",
        "center_x_m": "object_center_x_m",
        "center_y_m": "object_center_y_m",
        "photon_energy_eV": "photon_energy_eV",
        "detector_object_distance_m": "detector_object_distance_m",
    }
    headers = npz_headers(path)
    for key in (*PRODUCT_KEYS, *prefixed.values()):
        if key not in headers:
            raise DataError(
                f"{path}: '{key}' of the product is missing (found: {', '.join(sorted(headers))}). "
                f"{WRITE_AGAIN}"
            )
    far = ["far_field"] if "far_field" in headers else []
    arrays = read_npz(path, [*PRODUCT_KEYS, *prefixed.values(), *far])
    if far and not bool(arrays["far_field"]):
        raise _near_field(path)
    return arrays, {name: float(arrays[key]) for name, key in prefixed.items()}


def _near_field(path: Path) -> DataError:
    return DataError(
        f"{path}: a near-field product (got far_field false, expected far-field patterns). Reconstruct it "
        "with another program."
    )


def _modes(probe: NDArray[Any], path: Path) -> NDArray[Any]:
    """Return the incoherent modes of a probe array of 2 to 4 axes."""
    if probe.ndim == 4 and probe.shape[0] > 1:
        logger.warning(
            "%s: the probe varies from position to position (%d components); the first is used",
            path,
            probe.shape[0],
        )
    modes = probe[0] if probe.ndim == 4 else probe
    if modes.ndim not in (2, 3) or not modes.size:
        raise DataError(
            f"{path}: 'probe' has the wrong shape (got {probe.shape}, expected (N, N), (P, N, N) or "
            f"(1, P, N, N)). {WRITE_AGAIN}"
        )
    return modes


def _layer(obj: NDArray[Any], path: Path) -> NDArray[Any] | None:
    """Return the first layer of an object, or None where it is empty."""
    if not obj.size:
        return None
    if obj.ndim == 3 and len(obj) > 1:
        logger.warning("%s: the object has %d layers; the first is used", path, len(obj))
    layer = obj[0] if obj.ndim == 3 else obj
    if layer.ndim != 2:
        raise DataError(
            f"{path}: 'object' has the wrong shape (got {obj.shape}, expected (H, W) or (layers, H, W)). "
            f"{WRITE_AGAIN}"
        )
    return layer


def pair_by_index(
    pattern_indexes: NDArray[np.int64], product: Product, where: str
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Give each pattern the position with its index, as the client does.

    Positions of one index are averaged. A pattern between two indexes gets the position between theirs. A
    pattern outside of the indexes, and one with a negative index, is left out.

    Parameters
    ----------
    pattern_indexes : int64 array, shape (M,)
        Index of each pattern.
    product : Product
        Positions and their indexes.
    where : str
        Name used in messages.

    Returns
    -------
    rows : int64 array, shape (J,)
        Patterns that have a position.
    positions_yx_m : float64 array, shape (J, 2)
        Their positions [m].

    Raises
    ------
    DataError
        If no pattern has one.
    """
    known, inverse = np.unique(product.indexes, return_inverse=True)
    counts = np.bincount(inverse)
    means = [np.bincount(inverse, weights=column) / counts for column in product.positions_yx_m.T]
    inside = (pattern_indexes >= max(known[0], 0)) & (pattern_indexes <= known[-1])
    rows = np.flatnonzero(inside)
    if not len(rows):
        raise DataError(
            f"{where}: no pattern has a position (got pattern indexes {pattern_indexes.min()} to "
            f"{pattern_indexes.max()}, position indexes {known[0]} to {known[-1]}, expected common ones). "
            "Name the product that belongs to these patterns."
        )
    taken = pattern_indexes[rows]
    between = int((~np.isin(taken, known)).sum())
    if len(rows) < len(pattern_indexes) or between:
        logger.warning(
            "%s: %d of %d patterns have no position and are left out; %d get one between their neighbours",
            where,
            len(pattern_indexes) - len(rows),
            len(pattern_indexes),
            between,
        )
    return rows, np.stack([np.interp(taken, known, column) for column in means], axis=1)


def read_pair(path: Path, options: FileOptions) -> RawData:
    """Read an HDF5 or NPZ diffraction file and its product.

    Parameters
    ----------
    path : Path
        Diffraction file.
    options : FileOptions
        ``product_file`` and what the user says about the optics.

    Returns
    -------
    RawData
        Checked data set in the pixel frame of the product's object.

    Raises
    ------
    DataError
        If a file is missing, damaged, or the two do not fit.
    """
    product = read_product(find_product(path, options.product_file))
    if is_hdf5(path):
        with opened(path) as file:
            dataset = pattern_dataset(file)
            indexes = _indexes(file, len(dataset))
            bad = _bad_pixels(file, dataset.shape[1:])
            stated = [dataset.attrs.get(f"detector_pixel_{side}_m") for side in ("height", "width")]
            rows, positions_m = pair_by_index(indexes, product, str(path))
            repair = None if bad is None else filler(bad)
            patterns = read_stack(dataset, Window(0, 0, dataset.shape[-1]), rows, repair)
    else:
        headers = npz_headers(path)
        arrays = read_npz(path, [key for key in ("patterns", "indexes", "bad_pixels") if key in headers])
        rows, positions_m = pair_by_index(np.asarray(arrays["indexes"], dtype=np.int64), product, str(path))
        patterns = arrays.pop("patterns")
        patterns = patterns if len(rows) == len(patterns) else patterns[rows]
        bad, stated, indexes = arrays.get("bad_pixels"), [None, None], arrays["indexes"]
        repair = None if bad is None else filler(bad.astype(bool))
        if repair is not None:
            repair(patterns)
    detector = tuple(float(side) for side in stated) if None not in stated and min(stated) > 0 else None
    _warn_of_another_pixel(
        replace(product.optics, detector_pixel_yx_m=detector), patterns.shape[-1], str(path)
    )
    return _in_frame_of_product(product, positions_m, patterns, bad, np.asarray(indexes)[rows], options, path)


def _in_frame_of_product(
    product: Product,
    positions_m: NDArray[np.float64],
    patterns: NDArray[Any],
    bad: NDArray[np.bool_] | None,
    indexes: NDArray[np.int64],
    options: FileOptions,
    path: Path,
) -> RawData:
    """Put positions on the pixels of the product's object, or of a new one where it is empty."""
    optics = product.optics.overridden(options)
    centre = np.array(product.centre_yx_m)
    from_centre = options.orient(positions_m - centre)
    if product.obj is None:
        positions, optics = on_object_pixels(from_centre + centre, optics, patterns.shape[-1], str(path))
    else:
        pixel, middle = np.array(optics.object_pixel_yx_m), (np.array(product.obj.shape) - 1) / 2
        positions = from_centre / pixel + middle
        optics = replace(optics, origin_yx_m=tuple((centre - middle * pixel).tolist()))
    return make_raw_data(
        patterns,
        positions,
        product.probe,
        optics.completed(patterns.shape[-1]),
        source=str(path),
        file_format="ptychodus",
        obj=product.obj,
        bad_pixels=bad,
        indexes=indexes,
    )


def _warn_of_another_pixel(optics: Optics, n_px: int, where: str) -> None:
    """Say so where the far field asks for another object pixel than the product has."""
    expected = replace(optics, object_pixel_yx_m=None).completed(n_px).object_pixel_yx_m
    if expected is None:
        return
    ratio = np.array(optics.object_pixel_yx_m) / np.array(expected)
    if np.abs(ratio - 1).max() > SAME_PIXEL:
        logger.warning(
            "%s: energy, distance and detector pixel give an object pixel of %.4g m, the product has %.4g m; "
            "the product is taken",
            where,
            expected[0],
            optics.object_pixel_yx_m[0],
        )


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


def _indexes(file: h5py.File, count: int) -> NDArray[np.int64]:
    dataset = require_dataset(file, ["indexes"], "the index of each pattern", WRITE_AGAIN)
    return read_array(dataset, "iu", f"({count},) integers", dataset.shape == (count,)).astype(np.int64)


def _bad_pixels(file: h5py.File, shape: tuple[int, ...]) -> NDArray[np.bool_] | None:
    dataset = find_dataset(file, ["bad_pixels"])
    if dataset is None:
        return None
    return read_array(dataset, "biu", f"{shape} flags", dataset.shape == shape).astype(bool)


def read_training_file(path: Path, options: FileOptions) -> RawData:
    """Read HDF5 training data, which hold patterns, positions in object pixels, probe and object in one file.

    Parameters
    ----------
    path : Path
        File.
    options : FileOptions
        What the user says about the optics.

    Returns
    -------
    RawData
        Checked data set.

    Raises
    ------
    DataError
        If something is missing or has the wrong shape.
    ConfigError
        If positions are to be turned: they are in object pixels already.
    """
    if options.flip_positions or options.swap_positions or options.product_file:
        raise ConfigError(
            f"{path}: --product, --flip-positions and --swap-positions do not apply (got a file with "
            "positions in object pixels, expected positions in metres). Leave them out."
        )
    with opened(path) as file:
        dataset = pattern_dataset(file)
        columns = [
            require_dataset(file, [f"probe_position_{axis}_px"], f"the {axis} positions", WRITE_AGAIN)
            for axis in "yx"
        ]
        positions = np.stack(
            [
                read_array(item, "iuf", f"({len(dataset)},) numbers", item.shape == (len(dataset),))
                for item in columns
            ],
            axis=1,
        ).astype(np.float64)
        probe, obj = (
            read_array(require_dataset(file, [key], f"the {key}", WRITE_AGAIN), "iufc", "numbers", True)
            for key in ("probe", "object")
        )
        optics = _training_optics(file).overridden(options)
        bad = _bad_pixels(file, dataset.shape[1:])
        patterns = read_stack(dataset, Window(0, 0, dataset.shape[-1]))
    if optics.object_pixel_yx_m is not None:
        # Positions are counted from the object's pixel (0, 0); its middle is the origin in metres.
        middle = (np.array(obj.shape[-2:]) - 1) / 2
        optics = replace(optics, origin_yx_m=tuple((-middle * np.array(optics.object_pixel_yx_m)).tolist()))
    return make_raw_data(
        patterns,
        positions,
        _modes(probe, path),
        optics.completed(patterns.shape[-1]),
        source=str(path),
        file_format="ptychodus training data",
        obj=_layer(obj, path),
        bad_pixels=bad,
    )


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
