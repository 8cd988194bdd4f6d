"""The way into every scan: which format a file has, by its content and not its name, and who reads it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from ptycho.data.npz import npz_headers
from ptycho.data.optics import METADATA_KEY, NUMBERS, FileOptions, Optics
from ptycho.data.orientation import Orientation, turned_data
from ptycho.data.prepare import prepare_scan
from ptycho.data.probe_mask import ProbeMask
from ptycho.data.raw import RawData
from ptycho.data.scan import Scan
from ptycho.errors import ConfigError, DataError
from ptycho.files import cxi, ptychodus
from ptycho.files.cxi_layout import entry_of
from ptycho.files.hdf5 import find_dataset, is_hdf5, opened
from ptycho.files.own import PATTERN_KEYS, own_pattern_size, read_own
from ptycho.files.product import sibling_product

if TYPE_CHECKING:
    import h5py

FORMATS = "Ptychodus diffraction or training data, CXI, NXcxi_ptycho"
DIFFRACTION_KEYS = {"patterns", "indexes"}
"""Keys of an NPZ file with diffraction data of Ptychodus."""


class _Recognised(NamedTuple):
    """A data file that is open: its format, and the HDF5 file or the headers of an NPZ file."""

    kind: Literal["own", "diffraction", "training", "cxi"]
    source: Any


@contextmanager
def _recognised(path: Path) -> Iterator[_Recognised]:
    """Open a data file once and tell its format."""
    if is_hdf5(path):
        with opened(path) as file:
            yield _Recognised(_format(file), file)
        return
    headers = npz_headers(path)
    foreign = headers.keys() >= DIFFRACTION_KEYS and headers.keys().isdisjoint(PATTERN_KEYS)
    yield _Recognised("diffraction" if foreign else "own", headers)


def _format(file: h5py.File) -> str:
    """Name the format of an HDF5 file."""
    if find_dataset(file, ["patterns"]) is not None:
        return "training" if find_dataset(file, ["probe_position_x_px"]) is not None else "diffraction"
    if entry_of(file) is not None:
        return "cxi"
    if find_dataset(file, ["probe_position_x_m"]) is not None:
        raise DataError(
            f"{file.filename}: a product without patterns (got positions, probe and object, expected "
            "diffraction data). Name the diffraction file, and pass this one as --product."
        )
    found = ", ".join(sorted(file)[:8]) or "nothing"
    raise DataError(
        f"{file.filename}: unknown HDF5 layout (found: {found}; expected {FORMATS}). Convert it to one of "
        "them, or to NPZ."
    )


def read_data(
    path: str | Path,
    options: FileOptions | None = None,
    probe_key: str | None = None,
    pattern_axis: int | None = None,
) -> RawData:
    """Read a data set from a file of any known format.

    Parameters
    ----------
    path : path-like
        NPZ or HDF5 file, see ``specs/data_contracts.md``.
    options : FileOptions, optional
        What the user says about optics, orientation and partner of the file.
    probe_key : str, optional
        Key of an NPZ file, or path inside a CXI file, that holds the probe.
    pattern_axis : int, optional
        Axis that counts the patterns; found from the shape by default. Always the first one in HDF5.

    Returns
    -------
    RawData
        Checked data set; its metadata hold the optics.

    Raises
    ------
    DataError
        If the file is damaged, of an unknown layout, or lacks something.
    ConfigError
        If a setting does not apply to this format.
    """
    path = Path(path)
    with _recognised(path) as (kind, source):
        if kind == "own":
            raw = read_own(path, source, probe_key, pattern_axis, (options or FileOptions()).match_lengths)
            return raw if options is None else _with_options(raw, options)
        make = _foreign(path, kind, source, options or FileOptions(), probe_key, pattern_axis)
    return make()


def _foreign(
    path: Path, kind: str, source: Any, options: FileOptions, probe_key: str | None, pattern_axis: int | None
) -> Callable[[], RawData]:
    """Read a file of another program, and refuse settings that do not apply to it."""
    if pattern_axis not in (None, 0):
        raise ConfigError(
            f"{path}: --pattern-axis does not apply to HDF5 (got {pattern_axis}, expected 0). Leave it out."
        )
    if kind == "cxi" and not _paired(path, source, options):
        return cxi.read_cxi(source, options, probe_key)
    if probe_key is not None:
        raise ConfigError(
            f"{path}: --probe-key does not apply to files of Ptychodus (got {probe_key!r}, expected none). "
            "Leave it out."
        )
    if kind == "training":
        return ptychodus.read_training_file(source, options)
    return ptychodus.read_pair(source, path, options)


def _paired(path: Path, file: h5py.File, options: FileOptions) -> bool:
    """Tell whether the positions of a CXI file are in a product."""
    alone = cxi.has_positions(file, entry_of(file))
    return not alone and (options.product_file is not None or sibling_product(path) is not None)


def pattern_size(path: str | Path, probe_key: str | None = None, options: FileOptions | None = None) -> int:
    """Return the pattern size of a data file from its headers alone.

    Parameters
    ----------
    path : path-like
        File.
    probe_key : str, optional
        Key that holds the probe instead of ``probeGuess``.
    options : FileOptions, optional
        What the user says about the optics, which decide where the beam meets the detector.

    Returns
    -------
    int
        Side N of a pattern [px].

    Raises
    ------
    DataError
        If the file cannot be read or has neither probe nor patterns.
    """
    path = Path(path)
    with _recognised(path) as (kind, source):
        if kind == "own":
            return own_pattern_size(path, source, probe_key)
        if kind == "cxi":
            return cxi.pattern_layout(source, entry_of(source), options or FileOptions())[1].side
        shape = source["patterns"][0] if isinstance(source, dict) else ptychodus.pattern_dataset(source).shape
        return int(shape[-1])


def open_scan(
    path: str | Path,
    *,
    domain: Literal["counts", "amplitude"] | None = None,
    mask: ProbeMask | None = None,
    probe_key: str | None = None,
    pattern_axis: int | None = None,
    options: FileOptions | None = None,
) -> Scan:
    """Read a scan from a file and decide its scale.

    Parameters
    ----------
    path : path-like
        NPZ or HDF5 file, see ``specs/data_contracts.md``.
    domain : {'counts', 'amplitude'}, optional
        What the patterns hold; decided from the data where it is not given.
    mask : ProbeMask, optional
        Multiplied with the probe.
    probe_key : str, optional
        Key of the file that holds the probe; ``probeGuess`` by default.
    pattern_axis : int, optional
        Axis that counts the patterns; found from the shape by default.
    options : FileOptions, optional
        What the user says about the optics, the orientation and the partner of the file.

    Returns
    -------
    Scan
        Ready for an engine.

    Raises
    ------
    DataError
        If the file breaks the data contract.
    """
    raw = read_data(path, options, probe_key, pattern_axis)
    return prepare_scan(raw, domain=domain, mask=mask, name=Path(path).name, options=options)


def _with_options(raw: RawData, options: FileOptions) -> RawData:
    """Turn the positions of an NPZ scan, and note in its metadata what the user says about its optics.

    Parameters
    ----------
    raw : RawData
        Data set in object pixels.
    options : FileOptions
        Orientation and optics; the rest does not apply.

    Returns
    -------
    RawData
        The same object where no position is turned.

    Raises
    ------
    ConfigError
        If a product is named.
    """
    if options.product_file:
        raise ConfigError(
            f"{raw.source}: --product does not apply (got an NPZ file, which holds its own positions, "
            "expected a diffraction file of Ptychodus). Leave it out."
        )
    raw = turned_data(raw, Orientation(options.flip_positions or "", options.swap_positions))
    if any(getattr(options, name) is not None for name in NUMBERS):
        optics = Optics.from_metadata(raw.metadata, raw.source).overridden(options)
        raw.metadata = {**(raw.metadata or {}), METADATA_KEY: optics.to_dict()}
    return raw
