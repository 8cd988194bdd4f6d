"""The door to every scan of another program: which format a file has, by what is in it, and who reads it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ptycho.data.npz import npz_headers
from ptycho.data.optics import METADATA_KEY, NUMBERS, FileOptions, Optics
from ptycho.data.orientation import Orientation, turned_data
from ptycho.errors import ConfigError, DataError
from ptycho.files import cxi, ptychodus
from ptycho.files.cxi_layout import entry_of
from ptycho.files.hdf5 import find_dataset, is_hdf5, opened
from ptycho.files.product import sibling_product

if TYPE_CHECKING:
    import h5py

    from ptycho.data.raw import RawData

FORMATS = "Ptychodus diffraction or training data, CXI, NXcxi_ptycho"


def _kind(path: Path, options: FileOptions) -> str:
    """Name the format of a file."""
    if not is_hdf5(path):
        return "diffraction"
    with opened(path) as file:
        kind = _format(file)
        alone = kind != "cxi" or cxi.has_positions(file, entry_of(file))
    paired = not alone and (options.product_file is not None or sibling_product(path) is not None)
    return "diffraction" if paired else kind


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


def read_foreign(
    path: str | Path,
    options: FileOptions | None = None,
    probe_key: str | None = None,
    pattern_axis: int | None = None,
) -> RawData:
    """Read a scan from a file of any known format of other programs.

    Parameters
    ----------
    path : path-like
        File.
    options : FileOptions, optional
        What the user says about it.
    probe_key : str, optional
        Path of the probe inside a CXI file.
    pattern_axis : int, optional
        Only the first axis counts patterns in these formats.

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
    path, options = Path(path), options or FileOptions()
    if pattern_axis not in (None, 0):
        raise ConfigError(
            f"{path}: --pattern-axis does not apply to HDF5 (got {pattern_axis}, expected 0). Leave it out."
        )
    kind = _kind(path, options)
    if kind == "cxi":
        return cxi.read_cxi(path, options, probe_key)
    if probe_key is not None:
        raise ConfigError(
            f"{path}: --probe-key does not apply to files of Ptychodus (got {probe_key!r}, expected none). "
            "Leave it out."
        )
    return (
        ptychodus.read_training_file(path, options)
        if kind == "training"
        else ptychodus.read_pair(path, options)
    )


def foreign_pattern_size(path: str | Path, options: FileOptions | None = None) -> int:
    """Return the pattern size of such a scan without reading a pattern.

    Parameters
    ----------
    path : path-like
        File.
    options : FileOptions, optional
        What the user says about it.

    Returns
    -------
    int
        Side N [px].

    Raises
    ------
    DataError
        If the file is damaged, of an unknown layout, or lacks patterns.
    """
    if not is_hdf5(path):
        return int(npz_headers(path)["patterns"][0][-1])
    with opened(path) as file:
        if _format(file) == "cxi":
            return cxi.pattern_layout(file, entry_of(file), options or FileOptions())[1].side
        return int(ptychodus.pattern_dataset(file).shape[-1])


def with_options(raw: RawData, options: FileOptions) -> RawData:
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
