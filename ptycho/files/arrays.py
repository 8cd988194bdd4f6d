"""Small arrays of HDF5 files, read whole, and holes: what nobody wrote there."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from ptycho.errors import DataError
from ptycho.files.contents import complex_of
from ptycho.files.hdf5 import MOST_LINKS, endless, lookup, reading

if TYPE_CHECKING:
    import h5py


def read_array(dataset: h5py.Dataset, kinds: str, shapes: str, fits: bool) -> NDArray[Any]:
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


def unwritten(dataset: h5py.Dataset, links: int = 0) -> str | None:
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


def _unmapped(dataset: h5py.Dataset, links: int) -> str | None:
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


def _holds(source: h5py.Dataset, space: Any) -> bool:
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
