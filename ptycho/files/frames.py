"""Detector frames: a stack read in blocks into one array, cut to a square around the beam.

Axes: (frame, y, x). The array that is returned is the only one of full size.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho.errors import DataError
from ptycho.files.arrays import unwritten
from ptycho.files.hdf5 import Dataset, reading

logger = logging.getLogger(__name__)

BLOCK_BYTES = 16 * 2**20
"""Size of a block; bounds what is read on top of the stack itself."""
CENTRED_WITHIN_PX = 1.0
"""A beam this close to the middle of a square frame is in its middle: writers disagree by half a pixel."""


@dataclass(frozen=True)
class Window:
    """The square part of a frame that is read: first row and column, and side N [px]."""

    y: int
    x: int
    side: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """Rows and columns."""
        return slice(self.y, self.y + self.side), slice(self.x, self.x + self.side)


def beam_window(shape_yx: tuple[int, int], centre_yx_px: tuple[float, float] | None, where: str) -> Window:
    """Choose the largest square with the beam on pixel N // 2.

    It is the whole frame where that is square and the beam is in its middle or ``centre_yx_px`` unknown; an
    index means the middle of that pixel. ``DataError`` where the frame is not square and the centre unknown,
    or the beam is beside the detector.
    """
    height, width = shape_yx
    middle = ((height - 1) / 2, (width - 1) / 2)
    if height == width:
        centre = middle if centre_yx_px is None else centre_yx_px
        if max(abs(a - b) for a, b in zip(centre, middle, strict=True)) <= CENTRED_WITHIN_PX:
            return Window(0, 0, height)
    if centre_yx_px is None:
        raise DataError(
            f"{where}: the frames are not square and the beam centre is not stated (got {height} x {width} "
            "px, expected N x N, or a corner_position or beam_center_x and beam_center_y of the detector). "
            "Crop the frames to a square around the beam."
        )
    row, column = (int(np.floor(value + 0.5)) for value in centre_yx_px)
    half = min(row, height - row, column, width - column)
    if half < 4:
        raise DataError(
            f"{where}: the beam centre is not on the detector (got row {centre_yx_px[0]:.1f}, column "
            f"{centre_yx_px[1]:.1f} of {height} x {width} px, expected a pixel inside). Correct it."
        )
    logger.warning(
        "%s: frames of %d x %d px are cut to %d x %d px around the beam at row %d, column %d",
        *(where, height, width, 2 * half, 2 * half, row, column),
    )
    return Window(row - half, column - half, 2 * half)


def read_stack(dataset: Dataset, window: Window, rows: NDArray[np.int64] | None = None) -> NDArray[Any]:
    """Read a window of frames (M, H, W), or (rows, columns, H, W) of a raster, into one new array (J, N, N).

    ``rows`` (J,) are ascending; None takes all. The dtype is that of the file in the byte order of the
    machine. ``DataError`` where the data are damaged, or compressed with an unknown filter.
    """
    holes = unwritten(dataset)
    if holes is not None:
        # Whole patterns of nothing are left out later; those in parts are found by their dead pixels.
        where = dataset.file.filename
        logger.warning("%s: '%s' has holes (%s); nothing was measured there", where, dataset.name, holes)
    kept = np.arange(int(np.prod(dataset.shape[:-2]))) if rows is None else rows
    dtype = dataset.dtype.newbyteorder("=")
    out = np.empty((len(kept), window.side, window.side), dtype=dtype)
    frame_bytes = max(1, int(np.prod(dataset.shape[-2:])) * dtype.itemsize)
    chunk = dataset.chunks[0] if dataset.chunks and dataset.ndim == 3 else 1
    # A chunk is unpacked whole, so no chunk is cut by a block.
    step = -(-max(1, BLOCK_BYTES // frame_bytes) // chunk) * chunk
    for at in range(0, len(kept), step):
        with reading(dataset):
            _read_block(dataset, window, kept[at : at + step], out[at : at + step])
    return out


def _read_block(dataset: Dataset, window: Window, chosen: NDArray[np.int64], block: NDArray[Any]) -> None:
    """Read some frames into an array; neighbours in the file go in one call."""
    if dataset.ndim == 4:
        columns = dataset.shape[1]
        for place, index in enumerate(chosen):
            dataset.read_direct(block, (index // columns, index % columns, *window.slices), np.s_[place])
        return
    place = 0
    for run in np.split(chosen, np.flatnonzero(np.diff(chosen) != 1) + 1):
        source = (slice(int(run[0]), int(run[-1]) + 1), *window.slices)
        dataset.read_direct(block, source, np.s_[place : place + len(run)])
        place += len(run)
