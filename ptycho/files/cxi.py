"""CXI files of version 1.5 and 1.6, and NeXus files after NXcxi_ptycho, which have the same names.

The frame of CXI: z along the beam, y up, x to the left as seen along the beam. ``translation`` is where the
sample is, so the beam meets it at minus that. The rows of a frame run along -y and its columns along -x,
unless ``basis_vectors`` of the detector say otherwise. With the usual detector a larger x of the file is
therefore a larger column, and a larger y a larger row.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ptycho.data.canonical import CHUNK
from ptycho.data.optics import HC_EV_M, FileOptions, Optics
from ptycho.data.raw import OWN_PLACES, RawData
from ptycho.errors import DataError
from ptycho.files.arrays import read_array
from ptycho.files.assemble import make_raw_data, on_object_pixels, require_optics
from ptycho.files.contents import unread_datasets
from ptycho.files.cxi_layout import Detector, EntryPaths, entry_of, is_nexus, read_detector
from ptycho.files.frames import Window, beam_window, read_stack
from ptycho.files.hdf5 import find_dataset, require_dataset
from ptycho.files.numbers import energy_eV, size_m, unit_factor
from ptycho.files.product import read_product

if TYPE_CHECKING:
    import h5py

HAS_SIGNAL = 0x1000
"""The bit of a CXI mask that marks a good pixel."""
ADD_IT = "Add it, or write the file again."


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
    paths = EntryPaths(entry)
    return _frames(file, paths, read_detector(file, paths, options))


def has_positions(file: h5py.File, entry: str) -> bool:
    """Tell whether an entry holds positions of its own.

    Parameters
    ----------
    file : h5py.File
        Open file.
    entry : str
        Its entry.

    Returns
    -------
    bool
        False for diffraction data whose positions are in a product.
    """
    return find_dataset(file, EntryPaths(entry).translation) is not None


def read_frames(
    file: h5py.File, entry: str, options: FileOptions, rows: NDArray[np.int64] | None = None
) -> tuple[NDArray[Any], NDArray[np.bool_], Detector]:
    """Read the frames of an entry as they are, and which of their pixels its mask calls bad.

    Parameters
    ----------
    file : h5py.File
        Open file.
    entry : str
        Its entry.
    options : FileOptions
        What the user says about the detector.
    rows : int64 array, shape (J,), optional
        Frames to take, ascending; all by default.

    Returns
    -------
    patterns : array, shape (J, N, N)
        Counts in the dtype of the file.
    bad : bool array, shape (N, N), or (J, N, N) where the file has a mask for each frame
        True where nothing was measured.
    detector : Detector
        Where the frames are.

    Raises
    ------
    DataError
        If the frames are missing, damaged, or of another shape.
    """
    paths = EntryPaths(entry)
    detector = read_detector(file, paths, options)
    dataset, window = _frames(file, paths, detector)
    return read_stack(dataset, window, rows), _bad_pixels(file, paths, dataset, window, rows), detector


def _frames(file: h5py.File, paths: EntryPaths, detector: Detector) -> tuple[h5py.Dataset, Window]:
    """Find the frames and the square around the beam."""
    dataset = require_dataset(file, paths.patterns, "the stack of patterns", ADD_IT)
    if dataset.ndim not in (3, 4) or dataset.dtype.kind not in "iuf" or not dataset.size:
        raise DataError(
            f"{file.filename}: '{dataset.name}' is no stack of patterns (got shape {dataset.shape}, dtype "
            f"{dataset.dtype}, expected (M, N, N) integers or floats). Write it in that shape."
        )
    return dataset, beam_window(dataset.shape[-2:], detector.centre_yx_px, file.filename)


def read_cxi(file: h5py.File, options: FileOptions, probe_key: str | None = None) -> Callable[[], RawData]:
    """Read a scan from a CXI or NXcxi_ptycho file.

    Parameters
    ----------
    file : h5py.File
        Open file.
    options : FileOptions
        What the user says about optics and orientation; the probe of ``product_file``.
    probe_key : str, optional
        Path of the probe inside the file.

    Returns
    -------
    callable
        Makes the checked data set; the file may be closed by then.

    Raises
    ------
    DataError
        If something is missing or has the wrong shape; the message names the dataset.
    """
    entry, where = entry_of(file), file.filename
    if entry is None:
        raise DataError(f"{where}: not a CXI file (expected the group 'entry_1'). Convert it.")
    paths = EntryPaths(entry)
    detector = read_detector(file, paths, options)
    dataset, window = _frames(file, paths, detector)
    energy = options.photon_energy_eV
    energy = _energy_eV(file, paths) if energy is None else energy
    optics = Optics(energy, detector.distance_m, detector.pixel_yx_m).overridden(options)
    optics = require_optics(optics, window.side, _places(paths), where)
    positions_m = options.orient(_beam_on_sample(file, paths, dataset, detector.basis, options))
    probe = _probe(file, paths, probe_key, options)
    patterns, bad, _ = read_frames(file, entry, options)
    unused = unread_datasets(file, [dataset, *_other(file, paths, probe_key, options)], window.side)
    positions, optics = on_object_pixels(positions_m, optics, window.side, where)
    return partial(
        make_raw_data, patterns, positions, probe, optics, source=where, file_format="cxi", bad_pixels=bad,
        lengths=options.match_lengths, unused=unused, places=_unread_places(),
    )  # fmt: skip


def _unread_places() -> dict[str, str]:
    """Where a CXI file holds mask and patterns, and how another probe is used."""
    usual = EntryPaths("entry_1")
    return {**OWN_PLACES, "mask": usual.mask[0], "patterns": usual.patterns[0]}


def _places(paths: EntryPaths) -> dict[str, str]:
    """Where a file would hold what metres need, for messages."""
    places = {
        "photon_energy_eV": [*paths.source_energy, *paths.beam_energy[:1]],
        "detector_distance_m": paths.distance,
        "detector_pixel_yx_m": paths.pixel["x"],
    }
    return {name: " or ".join(f"'{path}'" for path in looked) for name, looked in places.items()}


def _energy_eV(file: h5py.File, paths: EntryPaths) -> float | None:
    """Photon energy; ``source_1/energy`` of NeXus is that of the machine, so it comes last there."""
    nexus = is_nexus(file, paths.definition)
    found = find_dataset(file, [*paths.beam_energy, *([] if nexus else paths.source_energy)])
    if found is not None:
        return energy_eV(found)
    wavelength = find_dataset(file, paths.wavelength)
    if wavelength is not None:
        return HC_EV_M / size_m(wavelength)
    source = find_dataset(file, paths.source_energy)
    return None if source is None else energy_eV(source)


def _beam_on_sample(
    file: h5py.File,
    paths: EntryPaths,
    dataset: h5py.Dataset,
    basis: NDArray[np.float64],
    options: FileOptions,
) -> NDArray[np.float64]:
    """Where the beam meets the sample, along the rows and the columns of the frames [m]."""
    translation = require_dataset(file, paths.translation, "the list of positions", ADD_IT)
    count, shape = int(np.prod(dataset.shape[:-2])), translation.shape
    if options.match_lengths == "head" and len(shape) == 2 and shape[1] in (2, 3):
        count = shape[0]
    usual = len(shape) == 2 and shape[0] == count and shape[1] in (2, 3)
    turned = len(shape) == 2 and shape[1] == count and shape[0] in (2, 3)
    values = read_array(translation, "iuf", f"({count}, 3) numbers, one row per frame", usual or turned)
    values = values.astype(np.float64) if usual else values.T.astype(np.float64)
    factor = unit_factor(translation, "m")
    lab = np.zeros((count, 3))
    lab[:, : values.shape[1]] = values * (1.0 if factor is None else factor)
    return -(lab @ basis.T)


def _bad_pixels(
    file: h5py.File,
    paths: EntryPaths,
    dataset: h5py.Dataset,
    window: Window,
    rows: NDArray[np.int64] | None,
) -> NDArray[np.bool_]:
    """Pixels that the mask calls bad inside the window, in all frames or in each."""
    mask = find_dataset(file, paths.mask)
    if mask is None:
        return np.zeros((window.side, window.side), dtype=bool)
    frame, count = dataset.shape[-2:], int(np.prod(dataset.shape[:-2]))
    if mask.shape not in (frame, (1, *frame), (count, *frame), dataset.shape) or mask.dtype.kind not in "iub":
        raise DataError(
            f"{file.filename}: '{mask.name}' does not fit the frames (got {mask.shape}, {mask.dtype}, "
            f"expected {frame} integers). Correct it."
        )
    if mask.shape in (frame, (1, *frame)):
        values: NDArray[Any] = mask[(..., *window.slices)].reshape(window.side, window.side)
        return (values.astype(np.int64) & ~HAS_SIGNAL) != 0
    kept = np.arange(count) if rows is None else rows
    bad = np.empty((len(kept), window.side, window.side), dtype=bool)
    for at in range(0, len(kept), CHUNK):
        part = slice(at, at + CHUNK)
        bad[part] = (read_stack(mask, window, kept[part]).astype(np.int64) & ~HAS_SIGNAL) != 0
    return bad


def _probe(
    file: h5py.File, paths: EntryPaths, probe_key: str | None, options: FileOptions
) -> NDArray[Any] | None:
    """Probe of the named path, of the product, or of the usual places; None where there is none."""
    if probe_key is not None:
        dataset = require_dataset(file, [probe_key], "the probe", "Correct --probe-key.")
    elif options.product_file is not None:
        return read_product(options.product_file).probe
    else:
        dataset = find_dataset(file, paths.probe)
    if dataset is None:
        return None
    probe = read_array(dataset, "fc", "(N, N) or (P, N, N) complex numbers", dataset.ndim in (2, 3, 4))
    return probe[0] if probe.ndim == 4 else probe


def _other(
    file: h5py.File, paths: EntryPaths, probe_key: str | None, options: FileOptions
) -> list[h5py.Dataset | None]:
    """Return what is read beside the frames; where the user names a probe, no other one is missed."""
    chosen = probe_key is not None or options.product_file is not None
    probes = [[path] for path in (*paths.probe, probe_key or "")] if chosen else [paths.probe]
    return [find_dataset(file, found) for found in (paths.mask, *probes)]
