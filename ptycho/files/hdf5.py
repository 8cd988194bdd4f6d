"""HDF5 files, read with care: links stay beside the file, a failure is one line that names the dataset."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any, TypeAlias

from ptycho.errors import DataError, MissingPackageError, PtychoError

if TYPE_CHECKING:
    import h5py

Dataset: TypeAlias = "h5py.Dataset"
File: TypeAlias = "h5py.File"
"""For annotations; the package is imported where a file is opened."""
SIGNATURE = b"\x89HDF\r\n\x1a\n"
_OFFSETS = (0, 512, 1024, 2048)
MOST_LINKS = 16
_DAMAGE = (OSError, RuntimeError, KeyError, ValueError, TypeError, MemoryError, OverflowError)
"""What h5py and NumPy raise on damaged bytes and impossible sizes."""


def is_hdf5(path: str | Path) -> bool:
    """Tell by its signature whether a file is HDF5; a missing one is none. Needs no package."""
    path = Path(path)
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        for offset in _OFFSETS:
            stream.seek(offset)
            if stream.read(len(SIGNATURE)) == SIGNATURE:
                return True
    return False


@contextmanager
def opened(path: str | Path) -> Iterator[File]:
    """Open an HDF5 file for reading, with the filters that detectors compress with.

    ``DataError`` where the file is damaged or cut short, ``MissingPackageError`` without h5py or hdf5plugin.
    """
    try:
        import h5py
        import hdf5plugin  # noqa: F401  registers bitshuffle, LZ4, Blosc, Zstandard and others with HDF5
    except ImportError as error:
        raise MissingPackageError(
            f"{path}: HDF5 files need h5py and hdf5plugin (missing {error.name}). "
            "Install with: pip install h5py hdf5plugin"
        ) from error
    try:
        file = h5py.File(path, "r", locking="best-effort")  # some file systems of clusters have no locks
    except OSError as error:
        raise _damaged(path, error) from error
    with file:
        try:
            yield file
        except PtychoError:
            raise
        except _DAMAGE as error:
            raise _damaged(path, error) from error


def lookup(file: File, path: str, links: int = 0) -> Any:
    """Return the dataset or group at a path of a file, or None; ``links`` led here already.

    Links inside the file are followed, and links to files in its own folder. ``DataError`` for a link that
    leads out of that folder, to a file that is not there, or in a circle.
    """
    import h5py

    where = file.filename
    here: Any = file["/"]
    parts = [part for part in path.split("/") if part]
    while parts:
        part = parts.pop(0)
        link = here.get(part, getlink=True) if isinstance(here, h5py.Group) else None
        if link is None:
            return None
        if isinstance(link, h5py.SoftLink | h5py.ExternalLink):
            links += 1
            if links > MOST_LINKS:
                raise endless(where, path)
        if isinstance(link, h5py.SoftLink):
            absolute = posixpath.normpath(posixpath.join(here.name, link.path))
            here, parts = here.file["/"], [*(p for p in absolute.split("/") if p), *parts]
        elif isinstance(link, h5py.ExternalLink):
            _require_neighbour(here, where, path, link.filename, link.path, links)
            here = here[part]
        else:
            try:
                here = here[part]
            except (KeyError, RuntimeError) as error:
                raise _damaged(f"{where}: '{path}'", error) from error
    if isinstance(here, h5py.Dataset):
        _require_own_data(here, where, path, links)
    return here


def _require_neighbour(item: Any, where: str, path: str, name: str, inner: str, links: int) -> None:
    """Refuse a dataset of another file unless that file, and all it links to, lies in the same folder."""
    import h5py

    windows = PureWindowsPath(name)
    if PurePosixPath(name).is_absolute() or windows.is_absolute() or windows.drive or ".." in windows.parts:
        raise DataError(
            f"{where}: '{path}' leads out of the folder of the file (got '{name}', expected a file beside "
            "it). Copy the data into one folder, or into one file."
        )
    neighbour = Path(item.file.filename).parent / name
    found = None
    if neighbour.is_file():
        with h5py.File(neighbour, "r", locking="best-effort") as other:
            found = lookup(other, inner, links)
    if found is None:
        # HDF5 would fill a gap in a virtual dataset with zeros without a word.
        raise DataError(
            f"{where}: '{path}' reads '{inner}' of '{name}', which is not there (expected it in the same "
            "folder). Copy that file beside this one."
        )


def _require_own_data(dataset: Dataset, where: str, path: str, links: int) -> None:
    """Check the files that a virtual dataset reads from; refuse raw data outside of HDF5."""
    if dataset.external:
        raise DataError(
            f"{where}: '{path}' leads out of the folder of the file (got raw data in "
            f"'{dataset.external[0][0]}', expected them in HDF5). Write them into the file."
        )
    if not dataset.is_virtual:
        return
    if links >= MOST_LINKS:
        raise endless(where, path)
    for name, inner in dict.fromkeys((item.file_name, item.dset_name) for item in dataset.virtual_sources()):
        if name != ".":
            _require_neighbour(dataset, where, path, name, inner, links + 1)
        elif lookup(dataset.file, inner, links + 1) is None:
            raise missing(
                dataset.file, [inner], f"the source of the virtual '{path}'", "Write the file again."
            )


def endless(where: str, path: str) -> DataError:
    """Build the error for links that lead nowhere."""
    return DataError(
        f"{where}: the links at '{path}' do not end (got more than {MOST_LINKS}, expected a dataset). "
        "Write the file again."
    )


def find_dataset(file: File, paths: Sequence[str]) -> Dataset | None:
    """Return the first dataset that is there, or None."""
    import h5py

    for path in paths:
        found = lookup(file, path)
        if isinstance(found, h5py.Dataset) and found.shape is not None:
            return found
    return None


def require_dataset(file: File, paths: Sequence[str], what: str, action: str) -> Dataset:
    """As :func:`find_dataset`, or raise :func:`missing`."""
    found = find_dataset(file, paths)
    if found is None:
        raise missing(file, paths, what, action)
    return found


def missing(file: File, paths: Sequence[str], what: str, action: str) -> DataError:
    """Build the error for something that a file lacks; ``action`` is a sentence on what the user can do."""
    looked = " or ".join(f"'{path}'" for path in paths)
    return DataError(f"{file.filename}: {what} is missing (expected {looked}). {action}")


@contextmanager
def reading(dataset: Dataset) -> Iterator[None]:
    """Turn what HDF5 raises on damaged or oddly compressed data into one line that names the dataset."""
    try:
        yield
    except _DAMAGE as error:
        raise _damaged(f"{dataset.file.filename}: '{dataset.name}'", error) from error


def _damaged(where: str | Path, error: Exception) -> DataError:
    reason = " ".join(str(error).split())
    return DataError(
        f"{where}: cannot be read (got {reason!r}, expected a whole HDF5 file). Copy it again from its "
        "source."
    )
