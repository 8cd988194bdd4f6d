"""Which way the axes of positions run: x for y first, then signs, as the flags say."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from ptycho.data.raw import RawData


@dataclass(frozen=True)
class Orientation:
    """One way to take the positions of a file."""

    flip: str = ""  # axes whose sign is turned: '', 'x', 'y' or 'xy'
    swap: bool = False  # take x for y before that

    def flags(self) -> str:
        """Return the flags that ask for it."""
        parts = [f"--flip-positions {self.flip}"] if self.flip else []
        parts += ["--swap-positions"] if self.swap else []
        return " ".join(parts) or "positions as in the file"

    def turn(self, positions_yx: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return positions (M, 2), in any unit, turned about the origin."""
        turned = positions_yx[:, ::-1] if self.swap else positions_yx
        return turned * np.array([-1.0 if axis in self.flip else 1.0 for axis in "yx"])


ORIENTATIONS = tuple(Orientation(flip, swap) for swap in (False, True) for flip in ("", "x", "y", "xy"))


def turned_data(raw: RawData, orientation: Orientation, factor: float = 1.0) -> RawData:
    """Return a data set with turned positions, times a factor, or itself where nothing is asked for.

    It has no ``objectGuess``, which lies in the frame of the old positions.
    """
    if orientation == Orientation() and factor == 1.0:
        return raw
    found = copy.copy(raw)
    for names in (("ycoords", "xcoords"), ("ycoords_start", "xcoords_start")):
        pair = np.stack([getattr(raw, name) for name in names], axis=1)
        for name, column in zip(names, (factor * orientation.turn(pair)).T, strict=True):
            setattr(found, name, np.ascontiguousarray(column))
    found.objectGuess = None
    return found
