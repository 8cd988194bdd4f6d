"""What else a data file holds: complex numbers as pairs, and arrays that are not read."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

PARTS = (("real", "imag"), ("re", "im"), ("r", "i"))
"""Names of the real and imaginary part where a number is a record."""


def complex_of(values: NDArray[Any]) -> NDArray[Any]:
    """Return complex numbers that are stored as pairs, as MATLAB and others do.

    Parameters
    ----------
    values : array
        Records of a real and an imaginary part, real numbers of shape (..., N, N, 2), or anything else.

    Returns
    -------
    array
        Complex numbers; anything else as it is.
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
    """Return the arrays of a file that are not read and have the size of patterns.

    Parameters
    ----------
    headers : mapping of str to (shape, dtype)
        Of the file.
    taken : collection of str
        Keys that are read.
    n_px : int
        Side N of a pattern [px].

    Returns
    -------
    dict of str to tuple of int
        Key -> shape, of arrays with two axes of N pixels.
    """
    return {
        key: shape
        for key, (shape, dtype) in headers.items()
        if key not in taken and not dtype.hasobject and shape.count(n_px) >= 2
    }
