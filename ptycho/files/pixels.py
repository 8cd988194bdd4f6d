"""Pixels of a detector that measured nothing: found in the frames, filled from their neighbours, and said."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ptycho.errors import DataError
from ptycho.files.frames import Window, read_stack

if TYPE_CHECKING:
    import h5py

logger = logging.getLogger(__name__)

SAMPLE = 16
"""Frames that are looked at for pixels without a measurement."""


def unmeasured(dataset: h5py.Dataset, window: Window) -> NDArray[np.bool_]:
    """Find the pixels that hold no measurement in any of some evenly spaced frames.

    Detectors mark gaps and dead pixels with negative numbers, with not-a-number, or with the largest number
    of an unsigned type.

    Parameters
    ----------
    dataset : h5py.Dataset
        Frames.
    window : Window
        Part of each frame.

    Returns
    -------
    bool array, shape (N, N)
        True where nothing was measured.

    Raises
    ------
    DataError
        If the data are damaged.
    """
    count = int(np.prod(dataset.shape[:-2]))
    rows = np.unique(np.linspace(0, count - 1, min(count, SAMPLE)).astype(np.int64))
    frames = read_stack(dataset, window, rows)
    unsigned = frames.dtype.kind == "u"
    # A comparison with not-a-number is false.
    valid = frames < np.iinfo(frames.dtype).max if unsigned else frames >= 0
    return ~valid.any(axis=0)


class Repair:
    """Fill bad pixels and set what is left below 0 to 0, block by block; count the latter.

    Parameters
    ----------
    bad_pixels : bool array, shape (N, N)
        True where the detector measured nothing.
    where : str
        Name used in messages.

    Raises
    ------
    DataError
        If every pixel is bad.
    """

    def __init__(self, bad_pixels: NDArray[np.bool_], where: str) -> None:
        self.where = where
        self.fill = filler(bad_pixels, where)
        self.below, self.values, self.lowest = 0, 0, 0.0

    def __call__(self, frames: NDArray[Any]) -> None:
        """Repair frames, shape (K, N, N), in place."""
        if self.fill is not None:
            self.fill(frames)
        self.values += frames.size
        if frames.dtype.kind != "u" and (lowest := float(np.nanmin(frames))) < 0:
            self.below += int((frames < 0).sum())
            self.lowest = min(self.lowest, lowest)
            np.maximum(frames, 0, out=frames)

    def report(self) -> None:
        """Say once how many values were below 0."""
        if self.below:
            logger.warning(
                "%s: %d values below 0 (%.2g of all, the lowest %.4g) are set to 0",
                self.where,
                self.below,
                self.below / self.values,
                self.lowest,
            )


def filler(bad_pixels: NDArray[np.bool_], where: str) -> Callable[[NDArray[Any]], None] | None:
    r"""Return what fills bad pixels with the smoothest values that continue their good neighbours.

    A filled pixel is the mean of its neighbours: the discrete Laplace equation
    :math:`L_{bb} x_b = -L_{bg} x_g` is factorised once and solved for every frame. Values lie between those
    of the good neighbours; whole numbers stay whole.

    Parameters
    ----------
    bad_pixels : bool array, shape (N, N)
        True where the detector measured nothing.
    where : str
        Name used in messages.

    Returns
    -------
    callable or None
        Changes frames, shape (K, N, N), in place; None where no pixel is bad.

    Raises
    ------
    DataError
        If every pixel is bad.
    """
    if not bad_pixels.any():
        return None
    if bad_pixels.all():
        raise DataError(
            f"{where}: the mask of bad pixels leaves nothing (got every pixel bad, expected some good ones). "
            "Check it."
        )
    from scipy.sparse import csr_array, diags_array, kronsum
    from scipy.sparse.linalg import splu

    bad = np.flatnonzero(bad_pixels)
    lines = [diags_array([1.0, 1.0], offsets=[-1, 1], shape=(side, side)) for side in bad_pixels.shape]
    neighbours = csr_array(kronsum(lines[1], lines[0]))[bad]
    good = np.setdiff1d(neighbours.indices, bad)
    border = neighbours[:, good]
    solver = splu((diags_array(neighbours.sum(axis=1)) - neighbours[:, bad]).tocsc())

    def fill(frames: NDArray[Any]) -> None:
        stack = frames.reshape(len(frames), -1)
        filled = solver.solve(border @ stack[:, good].T.astype(np.float64)).T
        stack[:, bad] = np.rint(filled) if frames.dtype.kind in "iu" else filled

    return fill
