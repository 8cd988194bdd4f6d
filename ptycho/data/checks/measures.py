"""Statistics of a stack of patterns that several checks look at, read block by block."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ptycho.data.canonical import CHUNK
from ptycho.data.domain_evidence import domain_sample, steps_of
from ptycho.data.scaling import DOMAIN_KEY

if TYPE_CHECKING:
    from ptycho.data.raw import RawData

SHOWN = 8
"""Most pattern numbers that a line names."""


def holds_counts(raw: RawData) -> bool:
    """Tell whether patterns hold counts, as far as the file shows; else they are taken for amplitude.

    Parameters
    ----------
    raw : RawData
        Data set.

    Returns
    -------
    bool
        True for what the file calls counts, for integers, for whole numbers, and where single photons show.
    """
    stated = (raw.metadata or {}).get(DOMAIN_KEY)
    if stated is not None:
        return bool(stated == "counts")
    if raw.diff3d.dtype.kind in "iub":
        return True
    sample = domain_sample(raw.diff3d, raw.bad_pixels, None)
    return not bool((sample % 1).any()) or steps_of(sample) == "counts"


def good_pixels(raw: RawData, rows: slice) -> NDArray[np.bool_]:
    """Return which pixels of some patterns were measured.

    Parameters
    ----------
    raw : RawData
        Data set.
    rows : slice
        Patterns.

    Returns
    -------
    bool array, shape (N, N), or (K, N, N) where every pattern has a mask of its own
        True where measured.
    """
    if raw.bad_pixels is None:
        return np.ones((raw.N, raw.N), dtype=bool)
    return ~(raw.bad_pixels if raw.bad_pixels.ndim == 2 else raw.bad_pixels[rows])


def count_blocks(raw: RawData) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    """Read counts block by block, 0 where nothing was measured.

    Parameters
    ----------
    raw : RawData
        Data set.

    Yields
    ------
    rows : slice
        Patterns of the block.
    counts : float64 array, shape (K, N, N)
        Counts; the square of what an amplitude file holds.
    """
    power = 1 if holds_counts(raw) else 2
    for start in range(0, raw.n_patterns, CHUNK):
        rows = slice(start, min(start + CHUNK, raw.n_patterns))
        values = raw.diff3d[rows].astype(np.float64)
        yield rows, np.where(good_pixels(raw, rows), values**power, 0.0)


def with_bad_pixels(raw: RawData, bad: NDArray[np.bool_]) -> RawData:
    """Return a data set in which further pixels take no part.

    Parameters
    ----------
    raw : RawData
        Data set; it is not changed.
    bad : bool array, shape (N, N), or (M, N, N) for each pattern
        Pixels that are bad, beside those that are so already.

    Returns
    -------
    RawData
        With these pixels in ``bad_pixels``, and 0 as their value.
    """
    marked = copy.copy(raw)
    marked.diff3d = raw.diff3d.copy()
    np.copyto(marked.diff3d, 0, where=bad)
    marked.bad_pixels = bad if raw.bad_pixels is None else raw.bad_pixels | bad
    return marked


def named(rows: NDArray[Any]) -> str:
    """Return the first few pattern numbers as text.

    Parameters
    ----------
    rows : int array, shape (K,)
        Pattern numbers.

    Returns
    -------
    str
        For a message.
    """
    shown = ", ".join(str(int(row)) for row in rows[:SHOWN])
    return shown if len(rows) <= SHOWN else f"{shown}, ..."
