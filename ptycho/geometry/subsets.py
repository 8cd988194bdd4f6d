"""Ordered subsets: parts of a scan that each cover the field, and how many its overlap allows (eq. 19).

When they are used is written in ``ptycho.solver.schedule``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ptycho.solver.schedule import BLOCKS

MIN_OVERLAP = 2.0
"""Patterns of a subset that must see a pixel on average."""
_BITS = 16


def subset_order(positions_yx_px: NDArray[np.float64]) -> NDArray[np.int64]:
    """Order positions (J, 2) [px] along a Z curve: every ``BLOCKS``-th is spread evenly over the scan."""
    low = positions_yx_px.min(axis=0)
    extent = max(float((positions_yx_px - low).max()), 1e-9)
    cells = ((positions_yx_px - low) / extent * (2**_BITS - 1)).astype(np.int64)
    code = np.zeros(len(cells), dtype=np.int64)
    for bit in range(_BITS):
        for axis in (0, 1):
            code |= ((cells[:, axis] >> bit) & 1) << (2 * bit + axis)
    return np.argsort(code, kind="stable")


def subset_blocks(positions_yx_px: NDArray[np.float64]) -> list[NDArray[np.int64]]:
    """Return the rows, ascending, of each of the ``BLOCKS`` parts of a scan that subsets are made of."""
    order = subset_order(positions_yx_px)
    return [np.sort(order[block::BLOCKS]) for block in range(BLOCKS)]


def most_subsets(positions_yx_px: NDArray[np.float64], probe: NDArray[np.complexfloating]) -> int:
    """Return into how many subsets, 1 to ``BLOCKS``, a scan can be cut that each still see every pixel
    several times; positions (J, 2) [px], probe (P, N, N)."""
    light = (np.abs(probe.astype(np.complex128)) ** 2).sum(axis=0)
    # The participation area: exact for a disc of even light, little moved by a faint halo.
    area_px = light.sum() ** 2 / max(float((light**2).sum()), 1e-300)
    field_px = float(np.prod(np.ptp(positions_yx_px, axis=0) + np.sqrt(area_px)))
    overlap = len(positions_yx_px) * area_px / field_px
    count = 1
    while count < BLOCKS and overlap >= 2 * count * MIN_OVERLAP:
        count *= 2
    return count
