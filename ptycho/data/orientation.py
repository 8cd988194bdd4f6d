"""Which way the axes of positions run.

Positions are exchanged first (x for y), then signs are turned, as ``--swap-positions`` and
``--flip-positions`` say.
"""

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
    """One way to take the positions of a file.

    Attributes
    ----------
    flip : str
        Axes whose sign is turned: '', 'x', 'y' or 'xy'.
    swap : bool
        Take x for y before that.
    """

    flip: str = ""
    swap: bool = False

    def flags(self) -> str:
        """Return the flags that ask for it."""
        parts = [f"--flip-positions {self.flip}"] if self.flip else []
        parts += ["--swap-positions"] if self.swap else []
        return " ".join(parts) or "positions as in the file"

    def turn(self, positions_yx: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return positions turned this way.

        Parameters
        ----------
        positions_yx : float64 array, shape (M, 2)
            Positions in any unit.

        Returns
        -------
        float64 array, shape (M, 2)
            In the same unit, turned about the origin.
        """
        turned = positions_yx[:, ::-1] if self.swap else positions_yx
        return turned * np.array([-1.0 if axis in self.flip else 1.0 for axis in "yx"])


ORIENTATIONS = tuple(Orientation(flip, swap) for swap in (False, True) for flip in ("", "x", "y", "xy"))


def turned_data(raw: RawData, orientation: Orientation, factor: float = 1.0) -> RawData:
    """Return a data set with turned positions.

    Parameters
    ----------
    raw : RawData
        Data set.
    orientation : Orientation
        How to take its positions.
    factor : float
        Factor on the positions.

    Returns
    -------
    RawData
        The data set itself where nothing is asked for; else one without ``objectGuess``, which lies in the
        frame of the old positions.
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
