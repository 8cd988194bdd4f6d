"""Names of a CXI entry, the geometry of its detector, and its frames: the square around the beam.

The frame of CXI: z along the beam, y up, x to the left as seen along the beam. ``basis_vectors`` are the
steps from row to row and from column to column [m].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho.data.canonical import blocks
from ptycho.data.frame_cut import FrameCut
from ptycho.data.optics import FileOptions
from ptycho.errors import DataError
from ptycho.files.arrays import length_m, metres_per_unit, read_array, read_number, size_m
from ptycho.files.frames import Window, beam_window, read_stack
from ptycho.files.hdf5 import Dataset, File, find_dataset, require_dataset

DEFAULT_BASIS = np.array([[0.0, -1.0, 0.0], [-1.0, 0.0, 0.0]])
"""Directions of the rows and the columns of a frame where the file states none."""
DEFINITIONS = ("NXcxi_ptycho", "NXptycho")
HAS_SIGNAL = 0x1000
"""The bit of a CXI mask that marks a good pixel."""
ADD_IT = "Add it, or write the file again."


def entry_of(file: File) -> str | None:
    """Return ``entry_1``, or the first group that names the definition; None in a file of another kind."""
    if "entry_1" in file:
        return "entry_1"
    for name in file:
        if is_nexus(file, [f"{name}/definition"]):
            return name
    return None


def is_nexus(file: File, definition: list[str]) -> bool:
    """Tell whether an entry follows NXcxi_ptycho, by what stands at one of the paths ``definition``."""
    dataset = find_dataset(file, definition)
    if dataset is None or dataset.size != 1:
        return False
    value = np.asarray(dataset[()]).reshape(-1)[0]
    return (value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)) in DEFINITIONS


class EntryPaths:
    """Where the entry of a name keeps what is needed, in the order of looking."""

    def __init__(self, entry: str) -> None:
        instrument, sample, data = f"{entry}/instrument_1", f"{entry}/sample_1", f"{entry}/data_1"
        detector, source = f"{instrument}/detector_1", f"{instrument}/source_1"
        self.patterns = [f"{data}/data", f"{detector}/data"]
        folders = (data, f"{sample}/geometry_1", detector)
        self.translation = [f"{folder}/translation" for folder in folders]
        self.beam_energy = [f"{instrument}/beam_1/incident_beam_energy", f"{instrument}/beam_1/energy"]
        self.source_energy = [f"{source}/energy"]
        self.wavelength = [f"{source}/wavelength", f"{instrument}/beam_1/incident_wavelength"]
        self.distance = [f"{detector}/distance"]
        self.corner = [f"{detector}/corner_position"]
        self.pixel = {axis: [f"{detector}/{axis}_pixel_size"] for axis in "yx"}
        self.centre = {axis: [f"{detector}/beam_center_{axis}"] for axis in "yx"}
        self.basis = [f"{detector}/basis_vectors"]
        self.mask = [f"{detector}/mask"]
        self.definition = [f"{entry}/definition"]
        self.extras = f"{entry}/ptychodus"
        self.product_probe = [f"{entry}/image_1/data", f"{source}/illumination"]
        self.product_object = [f"{entry}/image_2/data"]
        self.probe = [f"{source}/illumination", f"{source}/probe", f"{detector}/probe"]
        self.probe += [f"{detector}/data_illumination"]


@dataclass(frozen=True)
class Detector:
    """Where the frames are, as far as file and user say."""

    distance_m: float | None  # from the sample [m]
    pixel_yx_m: tuple[float, float] | None  # step from row to row and from column to column [m]
    basis: NDArray[np.float64]  # (2, 3): directions of these steps, (x, y, z), length 1
    centre_yx_px: tuple[float, float] | None  # where the beam meets the frame; index: middle of that pixel


def read_detector(file: File, paths: EntryPaths, options: FileOptions) -> Detector:
    """Read the geometry of the detector; distance and pixel that the user states are not looked for.

    ``DataError`` where a dataset has the wrong shape or unit.
    """
    basis, steps_m = _basis(file, paths)
    corner_m = _corner_m(file, paths)
    distance_m = options.detector_distance_m
    if distance_m is None:
        distance_m = _distance_m(file, paths, corner_m)
    pixel = steps_m
    if options.detector_pixel_m is not None:
        pixel = (options.detector_pixel_m, options.detector_pixel_m)
    elif pixel is None:
        pixel = _pixel_yx_m(file, paths)
    centre = _stated_centre(file, paths, pixel)
    if centre is None and corner_m is not None and pixel is not None and corner_m[:2].any():
        # Without basis vectors writers do not agree on the sign of the corner; its size is what counts.
        along = np.abs(corner_m[1::-1]) if steps_m is None else -(basis @ corner_m)
        centre = tuple(float(offset) / side - 0.5 for offset, side in zip(along, pixel, strict=True))
    return Detector(distance_m, pixel, basis, centre)


def _distance_m(file: File, paths: EntryPaths, corner_m: NDArray[np.float64] | None) -> float | None:
    dataset = find_dataset(file, paths.distance)
    if dataset is not None:
        return abs(length_m(dataset)) or None
    return None if corner_m is None else abs(float(corner_m[2])) or None


def _corner_m(file: File, paths: EntryPaths) -> NDArray[np.float64] | None:
    dataset = find_dataset(file, paths.corner)
    if dataset is None:
        return None
    values = read_array(dataset, "iuf", "(3,) numbers", dataset.shape in ((3,), (1, 3))).reshape(3)
    return values.astype(np.float64) * metres_per_unit(dataset)


def _basis(file: File, paths: EntryPaths) -> tuple[NDArray[np.float64], tuple[float, float] | None]:
    """Directions of rows and columns, shape (2, 3), and their steps where the file states them [m]."""
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
    return pair / lengths[:, None], (float(lengths[0]), float(lengths[1]))


def _pixel_yx_m(file: File, paths: EntryPaths) -> tuple[float, float] | None:
    """Height and width of a detector pixel; one stands for both where the other is missing."""
    found = [find_dataset(file, paths.pixel[axis]) for axis in "yx"]
    sides = [None if dataset is None else size_m(dataset) for dataset in found]
    if sides == [None, None]:
        return None
    height, width = sides
    return (width if height is None else height, height if width is None else width)


def _stated_centre(
    file: File, paths: EntryPaths, pixel: tuple[float, float] | None
) -> tuple[float, float] | None:
    """Where ``beam_center_y`` and ``beam_center_x`` say that the beam meets the frame [px]."""
    datasets = [find_dataset(file, paths.centre[axis]) for axis in "yx"]
    if None in datasets:
        return None
    sides = (None, None) if pixel is None else pixel
    row, column = (_centre_px(dataset, side) for dataset, side in zip(datasets, sides, strict=True))
    return row, column


def _centre_px(dataset: Dataset, side_m: float | None) -> float:
    """Read one coordinate of the beam centre, stated in pixels or as a length [px]."""
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
    return length_m(dataset) / side_m - 0.5


class EntryFrames:
    """The frames of an entry: ``dataset`` (M, H, W), or (rows, columns, H, W) of a raster, not read yet.

    ``window`` is the square around the beam. ``DataError`` where they are missing or of another shape, or the
    beam is beside the detector.
    """

    def __init__(self, file: File, paths: EntryPaths, options: FileOptions) -> None:
        self.file, self.paths, where = file, paths, file.filename
        self.detector: Detector = read_detector(file, paths, options)
        self.dataset = dataset = require_dataset(file, paths.patterns, "the stack of patterns", ADD_IT)
        if dataset.ndim not in (3, 4) or dataset.dtype.kind not in "iuf" or not dataset.size:
            raise DataError(
                f"{where}: '{dataset.name}' is no stack of patterns (got shape {dataset.shape}, dtype "
                f"{dataset.dtype}, expected (M, N, N) integers or floats). Write it in that shape."
            )
        self.window: Window = beam_window(dataset.shape[-2:], self.detector.centre_yx_px, where)
        self.count = int(np.prod(dataset.shape[:-2]))

    def read(self, rows: NDArray[np.int64] | None = None) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Return frames (J, N, N) in the dtype of the file, and their bad pixels.

        These are (N, N), or (J, N, N) where the file has a mask for each frame. ``rows`` (J,) are ascending;
        None takes all. ``DataError`` where the frames are damaged or the mask does not fit.
        """
        return read_stack(self.dataset, self.window, rows), self._bad_pixels(rows)

    def cut(self, rows: NDArray[np.int64] | None = None) -> FrameCut:
        """Return which part of the frames :meth:`read` reads."""
        window, kept = self.window, np.arange(self.count) if rows is None else rows
        return FrameCut(self.dataset.shape[-2:], (window.y, window.x), window.side, self.count, kept)

    def _bad_pixels(self, rows: NDArray[np.int64] | None) -> NDArray[np.bool_]:
        mask, dataset, window = find_dataset(self.file, self.paths.mask), self.dataset, self.window
        if mask is None:
            return np.zeros((window.side, window.side), dtype=bool)
        frame = dataset.shape[-2:]
        of_all = (frame, (1, *frame))
        if mask.shape not in (*of_all, (self.count, *frame), dataset.shape) or mask.dtype.kind not in "iub":
            raise DataError(
                f"{self.file.filename}: '{mask.name}' does not fit the frames (got {mask.shape}, "
                f"{mask.dtype}, expected {frame} integers). Correct it."
            )
        if mask.shape in of_all:
            return _bad(mask[(..., *window.slices)].reshape(window.side, window.side))
        kept = np.arange(self.count) if rows is None else rows
        bad = np.empty((len(kept), window.side, window.side), dtype=bool)
        for part in blocks(len(kept)):
            bad[part] = _bad(read_stack(mask, window, kept[part]))
        return bad


def _bad(mask: NDArray[Any]) -> NDArray[np.bool_]:
    return (mask.astype(np.int64) & ~HAS_SIGNAL) != 0
