"""The way into every scan: which format a file has, by its content and not its name, and who reads it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from ptycho.data.npz import npz_headers
from ptycho.data.optics import FileOptions
from ptycho.data.prepare import ProbeMask, prepare_scan
from ptycho.data.raw import RawData
from ptycho.data.scan import Scan
from ptycho.errors import DataError
from ptycho.files.cxi import CXI
from ptycho.files.formats import Format, Request, Source
from ptycho.files.hdf5 import find_dataset, is_hdf5, opened
from ptycho.files.own import OwnNpz
from ptycho.files.ptychodus import PtychodusPair, PtychodusTraining

FORMATS: tuple[Format, ...] = (PtychodusTraining(), PtychodusPair(), CXI(), OwnNpz())
"""Every kind of data file; the first that recognises a file reads it. The last takes every other NPZ file."""


@contextmanager
def _recognised(path: Path) -> Iterator[tuple[Format, Source]]:
    """Open a data file once and find its format."""
    if is_hdf5(path):
        with opened(path) as file:
            yield _format(file), file
    else:
        headers = npz_headers(path)
        yield _format(headers), headers


def _format(source: Source) -> Format:
    """Return the format of a file; name what an HDF5 file of none of them holds."""
    for known in FORMATS:
        if known.recognises(source):
            return known
    if find_dataset(source, ["probe_position_x_m"]) is not None:
        raise DataError(
            f"{source.filename}: a product without patterns (got positions, probe and object, expected "
            "diffraction data). Name the diffraction file, and pass this one as --product."
        )
    found = ", ".join(sorted(source)[:8]) or "nothing"
    expected = ", ".join(dict.fromkeys(known.name for known in FORMATS[:-1]))
    raise DataError(
        f"{source.filename}: unknown HDF5 layout (found: {found}; expected {expected}). Convert it to one of "
        "them, or to NPZ."
    )


def read_data(
    path: str | Path,
    options: FileOptions | None = None,
    probe_key: str | None = None,
    pattern_axis: int | None = None,
) -> RawData:
    """Read a data set from an NPZ or HDF5 file and check it, see ``specs/data_contracts.md``.

    Its metadata hold the optics. ``options`` are what the user says about optics, orientation and partner of
    the file, ``probe_key`` is the key of an NPZ file, or path inside a CXI file, that holds the probe,
    ``probeGuess`` by default, ``pattern_axis`` the axis that counts the patterns, found from the shape by
    default and always the first in HDF5. ``DataError`` where the file is damaged, of an unknown layout, or
    lacks something, ``ConfigError`` for a setting that does not apply to this format.
    """
    request = Request(Path(path), options or FileOptions(), probe_key, pattern_axis)
    with _recognised(request.path) as (kind, source):
        make = kind.read(source, request)
    return make()


def pattern_size(path: str | Path, probe_key: str | None = None, options: FileOptions | None = None) -> int:
    """Return the side N of a pattern [px] from the headers of a data file; arguments as :func:`read_data`.

    What the user says about the optics decides where the beam meets the detector. ``DataError`` where the
    file cannot be read or has neither probe nor patterns.
    """
    request = Request(Path(path), options or FileOptions(), probe_key)
    with _recognised(request.path) as (kind, source):
        return kind.pattern_size(source, request)


def open_scan(
    path: str | Path,
    *,
    domain: Literal["counts", "amplitude"] | None = None,
    mask: ProbeMask | None = None,
    probe_key: str | None = None,
    pattern_axis: int | None = None,
    options: FileOptions | None = None,
) -> Scan:
    """Read a scan and decide its scale, ready for an engine; errors as :func:`read_data`.

    ``domain`` says what the patterns hold, decided from the data where it is not given; ``mask`` is
    multiplied with the probe; the other arguments are those of :func:`read_data`.
    """
    raw = read_data(path, options, probe_key, pattern_axis)
    return prepare_scan(raw, domain=domain, mask=mask, name=Path(path).name, options=options)
