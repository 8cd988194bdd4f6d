"""Whose file a data file is, by its content and not by its name."""

from __future__ import annotations

from pathlib import Path

from ptycho.data.npz import npz_headers
from ptycho.files.hdf5 import is_hdf5

DIFFRACTION_KEYS = {"patterns", "indexes"}
"""Keys of an NPZ file with diffraction data of Ptychodus."""

OWN_KEYS = {"diff3d", "diffraction"}
"""Keys of our own patterns; a file that has one is ours."""


def is_foreign(path: str | Path) -> bool:
    """Tell whether a data file is in the format of another program.

    Parameters
    ----------
    path : path-like
        Data file.

    Returns
    -------
    bool
        True for HDF5 of any kind and for NPZ diffraction data of Ptychodus.

    Raises
    ------
    DataError
        If the file is neither HDF5 nor NPZ, damaged, or not there.
    """
    if is_hdf5(path):
        return True
    keys = set(npz_headers(path))
    return keys >= DIFFRACTION_KEYS and keys.isdisjoint(OWN_KEYS)
