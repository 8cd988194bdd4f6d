"""Small arrays of HDF5 files, and numbers with their units; holes, and arrays that nobody reads."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho.data.optics import ELECTRON_VOLT_J
from ptycho.errors import DataError
from ptycho.files.hdf5 import MOST_LINKS, Dataset, File, endless, lookup, reading

logger = logging.getLogger(__name__)

PARTS = (("real", "imag"), ("re", "im"), ("r", "i"))
"""Names of the real and imaginary part where a number is a record."""
PLAUSIBLE_EV = (1.0, 2e6)
"""Smallest and largest photon energy that makes sense [eV]."""
UNITS: dict[str, dict[str, float]] = {
    "m": dict.fromkeys(("m", "meter", "metre", "meters", "metres"), 1)
    | {"dm": 1e-1, "cm": 1e-2, "mm": 1e-3}
    | dict.fromkeys(("um", "µm", "μm", "micron", "microns"), 1e-6)
    | {"nm": 1e-9, "angstrom": 1e-10, "å": 1e-10, "pm": 1e-12},
    "eV": {"ev": 1, "kev": 1e3, "mev": 1e6} | dict.fromkeys(("j", "joule", "joules"), 1 / ELECTRON_VOLT_J),
}
"""Unit that we use -> unit of a file (in lower case) -> factor."""


def read_array(dataset: Dataset, kinds: str, shapes: str, fits: bool) -> NDArray[Any]:
    """Read a small dataset whole, in its own dtype; pairs of real numbers come back complex.

    ``kinds`` are the NumPy kinds that are allowed ('iuf'), ``shapes`` the shapes for the message, ``fits``
    whether the shape is one of them. ``DataError`` otherwise, and for holes and damaged data.
    """
    pairs = "c" in kinds and dataset.dtype.names is not None
    if not fits or not (dataset.dtype.kind in kinds or pairs) or not dataset.size:
        raise DataError(
            f"{dataset.file.filename}: '{dataset.name}' has the wrong shape or type (got {dataset.shape}, "
            f"{dataset.dtype}, expected {shapes}). Write it in that shape."
        )
    holes = unwritten(dataset)
    if holes is not None:
        raise DataError(
            f"{dataset.file.filename}: '{dataset.name}' has holes (got {holes}, expected all {dataset.size} "
            "values). Write it again, or copy all files that it is made of."
        )
    with reading(dataset):
        return complex_of(dataset[()]) if pairs else dataset[()]


def unwritten(dataset: Dataset, links: int = 0) -> str | None:
    """Tell in words what part of a dataset nobody wrote, None for none; HDF5 reads a fill value there.

    An acquisition that was aborted leaves chunks unwritten; a virtual dataset may map no source, or one that
    is shorter than the part it should fill. ``links``: virtual datasets that led here.
    """
    import h5py

    if not dataset.size:
        return None
    if dataset.is_virtual:
        return _unmapped(dataset, links)
    if dataset.chunks is not None:
        expected = math.prod(
            -(-side // chunk) for side, chunk in zip(dataset.shape, dataset.chunks, strict=True)
        )
        missed = expected - dataset.id.get_num_chunks()
        return f"{missed} of {expected} chunks that were never written" if missed > 0 else None
    if dataset.id.get_space_status() == h5py.h5d.SPACE_STATUS_NOT_ALLOCATED:
        return "none that was ever written"
    return None


def _unmapped(dataset: Dataset, links: int) -> str | None:
    """Tell what part of a virtual dataset no source fills; refuse it where a source is too short."""
    import h5py

    if links > MOST_LINKS:
        raise endless(dataset.file.filename, dataset.name)
    mapped = 0
    for item in dataset.virtual_sources():
        if _is_open_ended(item.vspace):
            return None
        mapped += item.vspace.get_select_npoints()
        with contextlib.ExitStack() as stack:
            file = dataset.file
            if item.file_name != ".":
                beside = Path(file.filename).parent / item.file_name
                file = stack.enter_context(h5py.File(beside, "r", locking="best-effort"))
            source = lookup(file, item.dset_name, links + 1)
            if item.vspace.get_select_npoints() > source.size or not _holds(source, item.src_space):
                raise DataError(
                    f"{dataset.file.filename}: '{dataset.name}' reads more of '{item.file_name}' than there "
                    f"is (got '{item.dset_name}' of shape {source.shape}, expected a longer one). Copy that "
                    "file again, or write this one again."
                )
            inner = unwritten(source, links + 1)
            if inner is not None:
                return f"{inner} in '{item.dset_name}' of '{item.file_name}'"
    missed = dataset.size - mapped
    return f"{missed} of {dataset.size} values that no source fills" if missed > 0 else None


def _holds(source: Dataset, space: Any) -> bool:
    """Tell whether a dataset is as large as the part of it that is read."""
    import h5py

    if space.get_select_type() != h5py.h5s.SEL_HYPERSLABS:
        return True
    _, last = space.get_select_bounds()
    return all(end < side for end, side in zip(last, source.shape, strict=True))


def _is_open_ended(space: Any) -> bool:
    """Tell whether a mapping grows with its source, and so never has a hole."""
    import h5py

    if not space.is_regular_hyperslab():
        return False
    _, _, count, block = space.get_regular_hyperslab()
    return h5py.h5s.UNLIMITED in (*count, *block)


def complex_of(values: NDArray[Any]) -> NDArray[Any]:
    """Return complex numbers that are stored as pairs, as MATLAB and others do; anything else as it is.

    Pairs are records of a real and an imaginary part, or real numbers of shape (..., N, N, 2).
    """
    names = values.dtype.names
    if names is not None:
        lower = {name.lower(): name for name in names}
        for real, imaginary in PARTS:
            if set(lower) == {real, imaginary}:
                return values[lower[real]] + 1j * values[lower[imaginary]]
        return values
    pairs = values.ndim >= 3 and values.shape[-1] == 2 and values.shape[-2] > 2
    if pairs and values.dtype.kind == "f":
        return values[..., 0] + 1j * values[..., 1]
    return values


def unused_arrays(
    headers: Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]], taken: Collection[str], n_px: int
) -> dict[str, tuple[int, ...]]:
    """Return key -> shape of the arrays that are not read (``taken`` are) and have two axes of N pixels."""
    return {
        key: shape
        for key, (shape, dtype) in headers.items()
        if key not in taken and not dtype.hasobject and shape.count(n_px) >= 2
    }


def unread_datasets(file: File, taken: Collection[Dataset | None], n_px: int) -> dict[str, tuple[int, ...]]:
    """Return path -> shape of the datasets that are not read and have the size of frames or patterns.

    ``taken`` is what is read, the frames first; links to one of them count as it. ``n_px`` is the side of a
    pattern, a window of the frames [px].
    """
    kept = [dataset for dataset in taken if dataset is not None]
    frame = kept[0].shape[-2:]
    unread: dict[str, tuple[int, ...]] = {}

    def look(path: str, item: Any) -> None:
        shape = getattr(item, "shape", None) or ()
        sized = shape[-2:] == frame or shape.count(n_px) >= 2
        if sized and item.dtype.kind in "biufcV" and item not in kept:
            unread[path] = shape

    file.visititems(look)
    return unread


def unit_factor(dataset: Dataset, unit: str) -> float | None:
    """Return the factor from the attribute ``units`` of a dataset to ``'m'`` or ``'eV'``.

    None where it states no unit; ``DataError`` where the unit is unknown.
    """
    stated = dataset.attrs.get("units", dataset.attrs.get("unit"))
    if stated is None:
        return None
    if isinstance(stated, np.ndarray) and stated.size == 1:
        stated = stated.reshape(-1)[0]
    name = stated.decode("utf-8", "replace") if isinstance(stated, bytes) else str(stated)
    known, word = UNITS[unit], name.strip()
    if not word:
        return None
    if word.lower() not in known or word == "meV":
        raise DataError(
            f"{dataset.file.filename}: '{dataset.name}' has an unknown unit (got {name!r}, expected one of "
            f"{', '.join(known)}). Correct its attribute units."
        )
    return known[word.lower()]


def metres_per_unit(dataset: Dataset) -> float:
    """Return the factor from the unit of a dataset to metres, which are taken where it states none."""
    factor = unit_factor(dataset, "m")
    return 1.0 if factor is None else factor


def read_number(dataset: Dataset) -> float:
    """Read one finite number in the unit of the file, or one per frame that agree to a thousandth."""
    values = read_array(dataset, "iuf", "one number", dataset.size is not None)
    values = np.asarray(values, dtype=np.float64).reshape(-1)
    middle = float(np.median(values))
    if not np.isfinite(values).all() or np.ptp(values) > 1e-3 * abs(middle):
        raise DataError(
            f"{dataset.file.filename}: '{dataset.name}' is not one number (got {values.min():g} to "
            f"{values.max():g}, expected one finite number). Split the scan, or pass it as a flag."
        )
    return middle


def length_m(dataset: Dataset) -> float:
    """Read one length of any sign [m]."""
    return metres_per_unit(dataset) * read_number(dataset)


def size_m(dataset: Dataset) -> float:
    """Read one length > 0 [m]."""
    value = length_m(dataset)
    if not value > 0:
        raise DataError(
            f"{dataset.file.filename}: '{dataset.name}' is out of range (got {value} m, expected > 0). "
            "Correct it, or pass it as a flag."
        )
    return value


def energy_eV(dataset: Dataset) -> float:
    """Read one photon energy [eV], within ``PLAUSIBLE_EV``.

    What states no unit is in joules, as CXI has it, or in eV where joules make no sense.
    """
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
