"""NPZ archives: the one place that reads and writes them, and that puts any output file in place whole.

Nothing here unpickles: object arrays are skipped, or refused when asked for by name.
"""

from __future__ import annotations

import difflib
import logging
import os
import secrets
import zipfile
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ptycho.errors import DataError

logger = logging.getLogger(__name__)

_SUFFIX = ".npy"
_NPY_MAGIC = b"\x93NUMPY"
_SAME_START = 4
_ALIKE = 0.6
_KNOWN_STARTS = {
    b"": "an empty file",
    b"\x93NUM": "a single .npy array",
    b"\x89HDF": "an HDF5 file",
    b"\x89PNG": "a PNG picture",
}
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError, RuntimeError, OSError)


def read_npz(path: str | Path, keys: Sequence[str] | None = None) -> dict[str, NDArray[Any]]:
    """Read arrays from an NPZ archive without unpickling.

    By default every array except object arrays, which are named in one warning. ``DataError`` for a file that
    is missing, a folder, not an archive, damaged or empty, and for a key that is missing or holds Python
    objects.
    """
    headers = npz_headers(path)
    objects = sorted(key for key, (_, dtype) in headers.items() if dtype.hasobject)
    if keys is None:
        if objects:
            logger.warning("%s: skipped %s, which hold(s) pickled Python objects", path, ", ".join(objects))
        keys = [key for key in headers if key not in objects]
    for key in keys:
        if key not in headers:
            raise missing_key(path, key, headers)
        if key in objects:
            raise DataError(
                f"{path}: key {key!r} holds pickled Python objects (got dtype object, expected "
                f"numbers or text). Save it again as a plain array."
            )
    with _damage_named(path), np.load(path, allow_pickle=False) as archive:
        return {key: archive[key] for key in keys}


def npz_headers(path: str | Path) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Read shape and dtype of every array, object arrays too, in stored order; errors as :func:`read_npz`."""
    path = Path(path)
    _check_is_archive(path)
    headers: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {}
    with _damage_named(path), zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if not info.filename.endswith(_SUFFIX):
                continue
            with archive.open(info) as member:
                version = np.lib.format.read_magic(member)
                form = np.lib.format
                read = form.read_array_header_1_0 if version == (1, 0) else form.read_array_header_2_0
                shape, _, dtype = read(member)
            headers[info.filename.removesuffix(_SUFFIX)] = (shape, dtype)
    if not headers:
        raise _no_arrays(path)
    return headers


def open_array(path: str | Path, keys: Sequence[str]) -> NDArray[Any]:
    """Return the array of an NPY file, left on disk, or of an NPZ archive: the first of ``keys`` that it has,
    else its only one. ``DataError`` as :func:`read_npz`, and where it has several others."""
    path = Path(path)
    with suppress(OSError), path.open("rb") as stream:
        if stream.read(len(_NPY_MAGIC)) == _NPY_MAGIC:
            with _damage_named(path):
                return np.load(path, mmap_mode="r", allow_pickle=False)
    headers = npz_headers(path)
    chosen = next((key for key in keys if key in headers), None)
    if chosen is None and len(headers) > 1:
        raise DataError(
            f"{path}: which array is meant is not clear (found: {', '.join(sorted(headers))}; expected "
            f"{' or '.join(keys)}, or one alone). Rename it."
        )
    chosen = chosen or next(iter(headers))
    return read_npz(path, [chosen])[chosen]


def write_npz(path: str | Path, arrays: Mapping[str, ArrayLike], compressed: bool = False) -> None:
    """Write arrays to an NPZ archive that appears whole or not at all, ``DataError`` for dtype object.

    Its folder is made when absent. Detector counts shrink a lot when ``compressed``, float amplitude hardly.
    """
    plain = {key: np.asanyarray(value) for key, value in arrays.items()}
    for key, array in plain.items():
        if array.dtype.hasobject:
            raise DataError(
                f"{path}: key {key!r} is not storable (got dtype {array.dtype}, expected numbers "
                f"or text). Convert it to a plain array."
            )
    method = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w", compression=method) as archive:
        for key, array in plain.items():
            with archive.open(key + _SUFFIX, "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path that becomes ``path`` when the block ends without an exception.

    The temporary file lies in the same folder, made when absent, with the same suffix, and is flushed to disk
    before it is renamed. After an exception ``path`` is as it was. ``DataError`` if it is a folder.
    """
    target = Path(path).resolve()  # a link keeps pointing at the file that is replaced
    if target.is_dir():
        raise DataError(f"{path}: cannot write there (got a folder, expected a file name). Add a file name.")
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.stem}.{secrets.token_hex(6)}.tmp{target.suffix}")
    try:
        yield temporary
        with temporary.open("r+b") as stream:
            os.fsync(stream.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def missing_key(
    where: str | Path, key: str, found: Collection[str], in_use: Collection[str] = ()
) -> DataError:
    """Build the error for an absent key: it lists the keys found and proposes the closest one not in use."""
    close = _closest(key, [name for name in found if name not in in_use])
    flag = f" or pass --probe-key {close}" if key == "probeGuess" else ""
    named = "Name its array with --probe-key, or save" if key == "probeGuess" else "Save"
    mend = f"Rename {close!r}{flag}." if close else f"{named} the file again with {key!r} in it."
    return DataError(f"{where}: key {key!r} is missing (found: {', '.join(sorted(found))}). {mend}")


def _closest(name: str, options: Sequence[str]) -> str | None:
    """Closest option by spelling; the same beginning counts most."""

    def likeness(option: str) -> float:
        pair = (name.casefold(), option.casefold())
        same_start = pair[0][:_SAME_START] == pair[1][:_SAME_START]
        return difflib.SequenceMatcher(None, *pair).ratio() + 0.5 * same_start

    best = max(options, key=likeness, default=None)
    return best if best is not None and likeness(best) > _ALIKE else None


def no_such_file(path: Path, problem: str = ": no such file (expected a data file). ") -> DataError:
    """Build the error for an absent file: it proposes the closest name in the folder."""
    folder = path.parent
    names = sorted(item.name for item in folder.iterdir()) if folder.is_dir() else []
    close = difflib.get_close_matches(path.name, names, n=3, cutoff=0.6)
    mend = f"Did you mean {', '.join(close)}?" if close else "Check the path."
    return DataError(f"{path}{problem}{mend}")


def _no_arrays(path: Path) -> DataError:
    return DataError(f"{path}: the archive holds no arrays (got 0, expected at least 1). Save it again.")


def _check_is_archive(path: Path) -> None:
    """Refuse what is not a complete zip archive, saying what it is instead."""
    if path.is_dir():
        raise DataError(f"{path}: cannot be read (got a folder, expected an NPZ file). Name the file in it.")
    if not path.is_file():
        raise no_such_file(path, ": no such file (expected an NPZ file). ")
    with _damage_named(path), path.open("rb") as stream:
        start = stream.read(4)
    if start == b"PK\x05\x06":
        raise _no_arrays(path)
    if zipfile.is_zipfile(path):
        return
    if start == b"PK\x03\x04":
        raise DataError(
            f"{path}: the archive is cut short (got {path.stat().st_size} bytes without the last "
            f"index, expected a complete NPZ file). Copy it again from its source."
        )
    kind = _KNOWN_STARTS.get(start, f"a file starting with {start!r}")
    raise DataError(
        f"{path}: not an NPZ archive (got {kind}, expected the output of numpy.savez). Convert it to NPZ."
    )


@contextmanager
def _damage_named(path: str | Path) -> Iterator[None]:
    """Turn what zipfile, zlib and NumPy raise on damaged bytes into one DataError naming the file."""
    try:
        yield
    except DataError:
        raise
    except _DAMAGE as error:
        detail = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"{path}: the archive is damaged or unreadable (got {detail!r}, expected numpy.savez "
            f"output). Copy it again from its source."
        ) from error
