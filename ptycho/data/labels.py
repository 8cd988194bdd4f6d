"""Known object patches of a scan: stored one by one, or cut from a known object when they are asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho.data.scan import Scan
from ptycho.errors import DataError
from ptycho.geometry.grouping import check_inside, object_patches


@dataclass(frozen=True)
class Labels:
    """The known patch of every pattern, in the frame of its own position.

    Attributes
    ----------
    stored : complex array, shape (M, N, N), or None
        Patches of the data file.
    obj : complex array, shape (H, W), or None
        Object that patches are cut from where none are stored.
    positions_yx_px : float64 array, shape (M, 2)
        Patch centres [object px].
    n_px : int
        Patch size N [px].
    """

    stored: NDArray[Any] | None
    obj: NDArray[Any] | None
    positions_yx_px: NDArray[np.float64]
    n_px: int

    def of(self, indices: NDArray[np.int64]) -> NDArray[np.complex64]:
        """Return the patches of some patterns.

        Parameters
        ----------
        indices : int array, any shape, J entries
            Which patterns.

        Returns
        -------
        complex64 array, shape (J, N, N)
            Known patches [transmission].
        """
        rows = np.asarray(indices).reshape(-1)
        if self.stored is not None:
            return np.ascontiguousarray(self.stored[rows], dtype=np.complex64)
        return object_patches(np.asarray(self.obj), self.positions_yx_px[rows], self.n_px)


def wanted_labels(wanted: bool, scan: Scan | None) -> Labels | None:
    """Return the known patches of a scan, where they are wanted and there is a scan.

    Parameters
    ----------
    wanted : bool
        A loss asks for them.
    scan : Scan or None
        Patterns and the optional arrays of the file.

    Returns
    -------
    Labels or None
        See :func:`scan_labels`.

    Raises
    ------
    DataError
        If they are wanted and the scan has none.
    """
    return scan_labels(scan) if wanted and scan is not None else None


def scan_labels(scan: Scan) -> Labels:
    """Find the known patches of a scan: ``Y``, else ``label``, else cut from ``objectGuess``.

    Parameters
    ----------
    scan : Scan
        Patterns and the optional arrays of the file.

    Returns
    -------
    Labels
        One patch for every pattern.

    Raises
    ------
    DataError
        If the file has none of the three, or a pattern lies outside the object.
    """
    raw = scan.raw
    stored = raw.Y if raw.Y is not None else raw.label
    if stored is not None:
        return Labels(stored.reshape(raw.diff3d.shape), None, scan.positions_yx_px, scan.n_px)
    if raw.objectGuess is None:
        raise DataError(
            f"{scan.name}: there are no labels to compare with (got neither Y, label nor objectGuess, "
            "expected one of them). Add one to the file, or set --model-type pinn and "
            "--realspace-mae-weight 0."
        )
    check_inside(raw.objectGuess.shape, scan.positions_yx_px, scan.n_px, scan.name)
    return Labels(None, raw.objectGuess, scan.positions_yx_px, scan.n_px)
