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
    """The known patch of every pattern, in the frame of its own position."""

    stored: NDArray[Any] | None  # (M, N, N), of the data file
    obj: NDArray[Any] | None  # (H, W), that patches are cut from where none are stored
    positions_yx_px: NDArray[np.float64]  # (M, 2), patch centres [object px]
    n_px: int  # N

    def of(self, indices: NDArray[np.int64]) -> NDArray[np.complex64]:
        """Return the known patches (J, N, N) [transmission] of J pattern indices of any shape."""
        rows = np.asarray(indices).reshape(-1)
        if self.stored is not None:
            return np.ascontiguousarray(self.stored[rows], dtype=np.complex64)
        return object_patches(np.asarray(self.obj), self.positions_yx_px[rows], self.n_px)


def wanted_labels(wanted: bool, scan: Scan | None) -> Labels | None:
    """Return the labels of a scan, where they are wanted and there is a scan."""
    return scan_labels(scan) if wanted and scan is not None else None


def scan_labels(scan: Scan) -> Labels:
    """Find the known patches: ``Y``, else ``label``, else cut from ``objectGuess``; else ``DataError``."""
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
