"""CXI files of version 1.5 and 1.6, and NeXus files after NXcxi_ptycho, which have the same names.

The frame of CXI: z along the beam, y up, x to the left as seen along the beam. ``translation`` is where the
sample is, so the beam meets it at minus that. The rows of a frame run along -y and its columns along -x,
unless ``basis_vectors`` of the detector say otherwise. With the usual detector a larger x of the file is
therefore a larger column, and a larger y a larger row.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ptycho.errors import DataError
from ptycho.files.assemble import make_raw_data, on_object_pixels, require_optics
from ptycho.files.frames import Window, beam_window, filler, read_stack
from ptycho.files.hdf5 import (
    find_dataset,
    lookup,
    opened,
    read_array,
    read_number,
    require_dataset,
    unit_factor,
)
from ptycho.files.optics import ELECTRON_VOLT_J, HC_EV_M, FileOptions, Optics
from ptycho.raw_data import RawData

if TYPE_CHECKING:
    import h5py

logger = logging.getLogger(__name__)

DEFAULT_BASIS = np.array([[0.0, -1.0, 0.0], [-1.0, 0.0, 0.0]])
"""Directions of the rows and the columns of a frame where the file states none."""
PLAUSIBLE_EV = (1.0, 2e6)
HAS_SIGNAL = 0x1000
"""The bit of a CXI mask that marks a good pixel."""
DEFINITIONS = ("NXcxi_ptycho", "NXptycho")
ADD_IT = "Add it, or write the file again."


def entry_of(file: h5py.File) -> str | None:
    """Return the name of the entry of a CXI or NXcxi_ptycho file.

    Parameters
    ----------
    file : h5py.File
        Open file.

    Returns
    -------
    str or None
        ``entry_1``, or the first group that names the definition; None where the file is of another kind.
    """
    if "entry_1" in file:
        return "entry_1"
    for name in file:
        definition = find_dataset(file, [f"{name}/definition"])
        if definition is not None and definition.size == 1:
            value = np.asarray(definition[()]).reshape(-1)[0]
            if (value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)) in DEFINITIONS:
                return name
    return None


class _Paths:
    """Where an entry keeps what is needed, in the order of looking."""

    def __init__(self, entry: str) -> None:
        instrument, sample, data = f"{entry}/instrument_1", f"{entry}/sample_1", f"{entry}/data_1"
        self.detector = detector = f"{instrument}/detector_1"
        self.patterns = [f"{data}/data", f"{detector}/data"]
        self.translation = [
            f"{data}/translation",
            f"{sample}/geometry_1/translation",
            f"{detector}/translation",
        ]
        self.beam_energy = [f"{instrument}/beam_1/incident_beam_energy", f"{instrument}/beam_1/energy"]
        self.source_energy = [f"{instrument}/source_1/energy"]
        self.wavelength = [f"{instrument}/source_1/wavelength", f"{instrument}/beam_1/incident_wavelength"]
        self.distance = [f"{detector}/distance"]
        self.corner = [f"{detector}/corner_position"]
        self.pixel = {axis: [f"{detector}/{axis}_pixel_size"] for axis in "yx"}
        self.centre = {axis: [f"{detector}/beam_center_{axis}"] for axis in "yx"}
        self.basis = [f"{detector}/basis_vectors"]
        self.mask = [f"{detector}/mask"]
        self.definition = [f"{entry}/definition"]
        self.probe = [
            f"{instrument}/source_1/illumination",
            f"{instrument}/source_1/probe",
            f"{detector}/probe",
            f"{detector}/data_illumination",
        ]


def pattern_layout(file: h5py.File, entry: str, options: FileOptions) -> tuple[h5py.Dataset, Window]:
    """Find the frames of an entry and the square of them that is read.

    Parameters
    ----------
    file : h5py.File
        Open file.
    entry : str
        Its entry.
    options : FileOptions
        The detector pixel, where the user states it.

    Returns
    -------
    dataset : h5py.Dataset
        Shape (M, H, W), or (rows, columns, H, W) of a raster.
    window : Window
        Square around the beam.

    Raises
    ------
    DataError
        If the frames are missing or of another shape, or the beam is beside the detector.
    """
    paths = _Paths(entry)
    dataset = require_dataset(file, paths.patterns, "the stack of patterns", ADD_IT)
    if dataset.ndim not in (3, 4) or dataset.dtype.kind not in "iuf" or not dataset.size:
        raise DataError(
            f"{file.filename}: '{dataset.name}' is no stack of patterns (got shape {dataset.shape}, dtype "
            f"{dataset.dtype}, expected (M, N, N) integers or floats). Write it in that shape."
        )
    basis, _ = _basis(file, paths)
    pixel = _detector_pixel(file, paths, options)
    return dataset, beam_window(dataset.shape[-2:], _beam_centre(file, paths, pixel, basis), file.filename)


def read_cxi(path: Path, options: FileOptions, probe_key: str | None = None) -> RawData:
    """Read a scan from a CXI or NXcxi_ptycho file.

    Parameters
    ----------
    path : Path
        File.
    options : FileOptions
        What the user says about optics and orientation; the probe of ``product_file``.
    probe_key : str, optional
        Path of the probe inside the file.

    Returns
    -------
    RawData
        Checked data set.

    Raises
    ------
    DataError
        If something is missing or has the wrong shape; the message names the dataset.
    """
    with opened(path) as file:
        entry = entry_of(file)
        if entry is None:
            raise DataError(f"{path}: not a CXI file (expected the group 'entry_1'). Convert it.")
        paths = _Paths(entry)
        dataset, window = pattern_layout(file, entry, options)
        basis, _ = _basis(file, paths)
        optics = Optics(
            _energy_eV(file, paths), _distance_m(file, paths), _detector_pixel(file, paths, options)
        )
        places = {
            "photon_energy_eV": _either(paths.source_energy + paths.beam_energy[:1]),
            "detector_distance_m": _either(paths.distance),
            "detector_pixel_yx_m": _either(paths.pixel["x"]),
        }
        optics = require_optics(optics.overridden(options), window.side, places, str(path))
        positions_m = options.orient(_beam_on_sample(file, paths, dataset, basis))
        bad = _bad_pixels(file, paths, dataset, window)
        probe = _probe(file, paths, probe_key, options)
        patterns = read_stack(dataset, window, repair=None if bad is None else filler(bad))
    positions, optics = on_object_pixels(positions_m, optics, window.side, str(path))
    return make_raw_data(
        patterns, positions, probe, optics, source=str(path), file_format="cxi", bad_pixels=bad
    )


def _either(paths: list[str]) -> str:
    return " or ".join(f"'{path}'" for path in paths)


def _text(file: h5py.File, paths: list[str]) -> str:
    dataset = find_dataset(file, paths)
    value = b"" if dataset is None or dataset.size != 1 else np.asarray(dataset[()]).reshape(-1)[0]
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _length_m(dataset: h5py.Dataset, positive: bool = True) -> float:
    """Read a length; CXI states metres where no unit is given."""
    factor = unit_factor(dataset, "m")
    value = read_number(dataset) * (1.0 if factor is None else factor)
    if positive and not value > 0:
        raise DataError(
            f"{dataset.file.filename}: '{dataset.name}' is out of range (got {value} m, expected > 0). "
            "Correct it, or pass it as a flag."
        )
    return value


def _energy_eV(file: h5py.File, paths: _Paths) -> float | None:
    """Photon energy; ``source_1/energy`` of NeXus is that of the machine, so it comes last there."""
    nexus = _text(file, paths.definition) in DEFINITIONS
    order = [*paths.beam_energy, *([] if nexus else paths.source_energy)]
    for path in order:
        dataset = find_dataset(file, [path])
        if dataset is not None:
            return _stated_energy_eV(dataset)
    wavelength = find_dataset(file, paths.wavelength)
    if wavelength is not None:
        return HC_EV_M / _length_m(wavelength)
    source = find_dataset(file, paths.source_energy) if nexus else None
    return None if source is None else _stated_energy_eV(source)


def _stated_energy_eV(dataset: h5py.Dataset) -> float:
    """Return an energy in eV: by its unit, else joules as CXI has it, else eV where joules make no sense."""
    value, factor = read_number(dataset), unit_factor(dataset, "eV")
    energy = value * factor if factor is not None else value / ELECTRON_VOLT_J
    if factor is None and PLAUSIBLE_EV[0] <= value <= PLAUSIBLE_EV[1]:
        logger.warning(
            "%s: '%s' states no unit; %g is taken as eV", dataset.file.filename, dataset.name, value
        )
        energy = value
    if not PLAUSIBLE_EV[0] <= energy <= PLAUSIBLE_EV[1]:
        raise DataError(
            f"{dataset.file.filename}: '{dataset.name}' is no photon energy (got {energy:g} eV, expected "
            f"{PLAUSIBLE_EV[0]:g} to {PLAUSIBLE_EV[1]:g} eV). Correct it, or pass --photon-energy."
        )
    return float(energy)


def _distance_m(file: h5py.File, paths: _Paths) -> float | None:
    dataset = find_dataset(file, paths.distance)
    if dataset is not None:
        return abs(_length_m(dataset, positive=False)) or None
    corner = _corner_m(file, paths)
    return None if corner is None else abs(float(corner[2])) or None


def _corner_m(file: h5py.File, paths: _Paths) -> NDArray[np.float64] | None:
    dataset = find_dataset(file, paths.corner)
    if dataset is None:
        return None
    values = read_array(dataset, "iuf", "(3,) numbers", dataset.shape in ((3,), (1, 3))).reshape(3)
    factor = unit_factor(dataset, "m")
    return values.astype(np.float64) * (1.0 if factor is None else factor)


def _basis(file: h5py.File, paths: _Paths) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
    """Unit vectors of rows and columns, shape (2, 3), and their lengths where the file states them [m]."""
    dataset = find_dataset(file, paths.basis)
    if dataset is None:
        return DEFAULT_BASIS, None
    shape = dataset.shape
    vectors = read_array(
        dataset, "iuf", "(2, 3) or (3, 2) numbers", shape[-2:] in ((2, 3), (3, 2)) and len(shape) < 4
    )
    vectors = vectors.reshape(-1, *shape[-2:]).astype(np.float64)
    if np.ptp(vectors, axis=0).max() > 1e-6 * np.abs(vectors).max():
        raise DataError(
            f"{file.filename}: '{dataset.name}' changes during the scan (got {len(vectors)} different "
            "pairs, expected one). Split the scan."
        )
    pair = vectors[0] if vectors.shape[1:] == (2, 3) else vectors[0].T
    lengths = np.linalg.norm(pair, axis=1)
    if not np.isfinite(pair).all() or lengths.min() == 0 or abs(pair[0] @ pair[1]) > 1e-3 * lengths.prod():
        raise DataError(
            f"{file.filename}: '{dataset.name}' holds no two directions at right angles "
            f"(got {pair.tolist()}, expected the steps along rows and columns in m). Correct it."
        )
    return pair / lengths[:, None], lengths


def _detector_pixel(file: h5py.File, paths: _Paths, options: FileOptions) -> tuple[float, float] | None:
    """Height and width of a detector pixel; one stands for both where the other is missing."""
    if options.detector_pixel_m is not None:
        return options.detector_pixel_m, options.detector_pixel_m
    _, lengths = _basis(file, paths)
    if lengths is not None:
        return float(lengths[0]), float(lengths[1])
    found = [find_dataset(file, paths.pixel[axis]) for axis in "yx"]
    sides = [None if dataset is None else _length_m(dataset) for dataset in found]
    if sides == [None, None]:
        return None
    height, width = sides
    return (height if height is not None else width, width if width is not None else height)


def _beam_centre(
    file: h5py.File, paths: _Paths, pixel: tuple[float, float] | None, basis: NDArray[np.float64]
) -> tuple[float, float] | None:
    """Where the beam meets the frame [px]: ``beam_center_x`` and ``_y``, else from ``corner_position``."""
    datasets = [find_dataset(file, paths.centre[axis]) for axis in "yx"]
    if None not in datasets:
        return tuple(
            _centre_px(dataset, None if pixel is None else pixel[axis])
            for axis, dataset in enumerate(datasets)
        )
    corner = _corner_m(file, paths)
    if corner is None or pixel is None or not corner[:2].any():
        return None
    if find_dataset(file, paths.basis) is None:
        # Without basis vectors writers do not agree on the sign of the corner; its size is what counts.
        return tuple(abs(float(corner[1 - axis])) / pixel[axis] - 0.5 for axis in range(2))
    return tuple(-float(corner @ basis[axis]) / pixel[axis] - 0.5 for axis in range(2))


def _centre_px(dataset: h5py.Dataset, side_m: float | None) -> float:
    """Read one coordinate of the beam centre, in pixels or as a length."""
    stated = dataset.attrs.get("units")
    word = stated.decode() if isinstance(stated, bytes) else str(stated or "")
    value = read_number(dataset)
    if word.strip().lower() in ("pixel", "pixels", "px") or (not word and value > 1):
        return value
    if side_m is None:
        raise DataError(
            f"{dataset.file.filename}: '{dataset.name}' is a length, and the detector pixel is missing "
            "(expected x_pixel_size). Pass --detector-pixel."
        )
    return _length_m(dataset, positive=False) / side_m - 0.5


def _beam_on_sample(
    file: h5py.File, paths: _Paths, dataset: h5py.Dataset, basis: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Where the beam meets the sample, along the rows and the columns of the frames [m]."""
    translation = require_dataset(file, paths.translation, "the list of positions", ADD_IT)
    count, shape = int(np.prod(dataset.shape[:-2])), translation.shape
    usual = len(shape) == 2 and shape[0] == count and shape[1] in (2, 3)
    turned = len(shape) == 2 and shape[1] == count and shape[0] in (2, 3)
    values = read_array(translation, "iuf", f"({count}, 3) numbers, one row per frame", usual or turned)
    values = values.astype(np.float64) if usual else values.T.astype(np.float64)
    factor = unit_factor(translation, "m")
    lab = np.zeros((count, 3))
    lab[:, : values.shape[1]] = values * (1.0 if factor is None else factor)
    return -(lab @ basis.T)


def _bad_pixels(
    file: h5py.File, paths: _Paths, dataset: h5py.Dataset, window: Window
) -> NDArray[np.bool_] | None:
    """Pixels that are bad in any frame, inside the window."""
    mask = find_dataset(file, paths.mask)
    if mask is None:
        return None
    frame = dataset.shape[-2:]
    fits = mask.shape in (frame, (1, *frame), (dataset.shape[0], *frame))
    if not fits or mask.dtype.kind not in "iub":
        raise DataError(
            f"{file.filename}: '{mask.name}' does not fit the frames (got {mask.shape}, {mask.dtype}, "
            f"expected {frame} integers). Correct it."
        )
    bad = np.zeros((window.side, window.side), dtype=bool)
    stack = mask if mask.ndim == 3 else None
    for index in range(1 if stack is None else len(stack)):
        values: Any = mask[window.slices] if stack is None else stack[(index, *window.slices)]
        bad |= (values.astype(np.int64) & ~HAS_SIGNAL) != 0
    return bad


def _probe(
    file: h5py.File, paths: _Paths, probe_key: str | None, options: FileOptions
) -> NDArray[Any] | None:
    """Probe of the named path, of the product, or of the usual places; None where there is none."""
    if probe_key is not None:
        dataset = require_dataset(file, [probe_key], "the probe", "Correct --probe-key.")
    elif options.product_file is not None:
        from ptycho.files.ptychodus import read_product

        return read_product(options.product_file).probe
    else:
        dataset = find_dataset(file, paths.probe)
    if dataset is None:
        return None
    probe = read_array(dataset, "fc", "(N, N) or (P, N, N) complex numbers", dataset.ndim in (2, 3, 4))
    return probe[0] if probe.ndim == 4 else probe


def has_patterns(file: h5py.File, entry: str) -> bool:
    """Tell whether an entry holds frames.

    Parameters
    ----------
    file : h5py.File
        Open file.
    entry : str
        Its entry.

    Returns
    -------
    bool
        False for a file that holds results only.
    """
    return any(lookup(file, path) is not None for path in _Paths(entry).patterns)
