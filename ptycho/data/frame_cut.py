"""Which part of the frames of a data file a data set holds, so that a mask of whole frames fits it."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ptycho.data.canonical import blocks


class FrameCut(NamedTuple):
    """A square window of some frames of a file."""

    shape_yx: tuple[int, int]  # of a whole frame [detector px]
    corner_yx: tuple[int, int]  # where the window begins [detector px]
    n_px: int  # its side N
    count: int  # frames of the file
    rows: NDArray[np.int64]  # (M,), which of them became patterns

    @classmethod
    def whole(cls, n_px: int, count: int, kept: int) -> FrameCut:
        """Return the cut of patterns that are whole frames, the first ``kept`` of them."""
        return cls((n_px, n_px), (0, 0), n_px, count, np.arange(kept))

    def of(self, rows: NDArray[np.int64]) -> FrameCut:
        """Return the cut of some of the patterns."""
        return self._replace(rows=self.rows[rows])

    def shapes(self) -> list[tuple[int, ...]]:
        """Return the shapes of masks that fit: of a pattern or a whole frame, for all or for each."""
        frames = dict.fromkeys(((self.n_px, self.n_px), self.shape_yx))
        return [*frames, *((self.count, *frame) for frame in frames)]

    def marked(self, mask: NDArray[Any]) -> NDArray[np.bool_]:
        """Return where a mask of one of these shapes is not zero, (N, N) or (M, N, N), block by block."""
        y, x = self.corner_yx if mask.shape[-2:] == self.shape_yx else (0, 0)
        window = (slice(y, y + self.n_px), slice(x, x + self.n_px))
        if mask.ndim == 2:
            return np.asarray(mask[window] != 0)
        found = np.empty((len(self.rows), self.n_px, self.n_px), dtype=bool)
        for part in blocks(len(self.rows)):
            found[part] = mask[self.rows[part]][(slice(None), *window)] != 0
        return found
