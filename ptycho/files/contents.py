"""What else a data file holds: complex numbers as pairs, and arrays that are not read."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import h5py

PARTS = (("real", "imag"), ("re", "im"), ("r", "i"))
"""Names of the real and imaginary part where a number is a record."""


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


def unread_datasets(
    file: h5py.File, taken: Collection[h5py.Dataset | None], n_px: int
) -> dict[str, tuple[int, ...]]:
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
