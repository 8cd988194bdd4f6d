"""The frames of a CXI entry: where they lie, the square around the beam, and the pixels of its mask."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ptycho.data.canonical import CHUNK
from ptycho.data.optics import FileOptions
from ptycho.errors import DataError
from ptycho.files.cxi_layout import Detector, EntryPaths, read_detector
from ptycho.files.frames import Window, beam_window, read_stack
from ptycho.files.hdf5 import find_dataset, require_dataset

if TYPE_CHECKING:
    import h5py

HAS_SIGNAL = 0x1000
"""The bit of a CXI mask that marks a good pixel."""
ADD_IT = "Add it, or write the file again."


class EntryFrames:
    """The frames of an entry: ``dataset`` (M, H, W), or (rows, columns, H, W) of a raster, not read yet.

    ``window`` is the square around the beam. ``DataError`` where they are missing or of another shape, or the
    beam is beside the detector.
    """

    def __init__(self, file: h5py.File, paths: EntryPaths, options: FileOptions) -> None:
        self.file, self.paths, where = file, paths, file.filename
        self.detector: Detector = read_detector(file, paths, options)
        self.dataset = dataset = require_dataset(file, paths.patterns, "the stack of patterns", ADD_IT)
        if dataset.ndim not in (3, 4) or dataset.dtype.kind not in "iuf" or not dataset.size:
            raise DataError(
                f"{where}: '{dataset.name}' is no stack of patterns (got shape {dataset.shape}, dtype "
                f"{dataset.dtype}, expected (M, N, N) integers or floats). Write it in that shape."
            )
        self.window: Window = beam_window(dataset.shape[-2:], self.detector.centre_yx_px, where)
        self.count = int(np.prod(dataset.shape[:-2]))

    def read(self, rows: NDArray[np.int64] | None = None) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Return frames (J, N, N) in the dtype of the file, and their bad pixels.

        These are (N, N), or (J, N, N) where the file has a mask for each frame. ``rows`` (J,) are ascending;
        None takes all. ``DataError`` where the frames are damaged or the mask does not fit.
        """
        return read_stack(self.dataset, self.window, rows), self._bad_pixels(rows)

    def _bad_pixels(self, rows: NDArray[np.int64] | None) -> NDArray[np.bool_]:
        mask, dataset, window = find_dataset(self.file, self.paths.mask), self.dataset, self.window
        if mask is None:
            return np.zeros((window.side, window.side), dtype=bool)
        frame = dataset.shape[-2:]
        of_all = (frame, (1, *frame))
        if mask.shape not in (*of_all, (self.count, *frame), dataset.shape) or mask.dtype.kind not in "iub":
            raise DataError(
                f"{self.file.filename}: '{mask.name}' does not fit the frames (got {mask.shape}, "
                f"{mask.dtype}, expected {frame} integers). Correct it."
            )
        if mask.shape in of_all:
            return _bad(mask[(..., *window.slices)].reshape(window.side, window.side))
        kept = np.arange(self.count) if rows is None else rows
        bad = np.empty((len(kept), window.side, window.side), dtype=bool)
        for at in range(0, len(kept), CHUNK):
            part = slice(at, at + CHUNK)
            bad[part] = _bad(read_stack(mask, window, kept[part]))
        return bad


def _bad(mask: NDArray[Any]) -> NDArray[np.bool_]:
    return (mask.astype(np.int64) & ~HAS_SIGNAL) != 0
