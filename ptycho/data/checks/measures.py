"""Statistics of a stack of patterns that several checks look at, read block by block."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ptycho.data.canonical import CHUNK
from ptycho.data.domain import DOMAIN_KEY, domain_sample, steps_of

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
    sample = domain_sample(raw, np.arange(raw.n_patterns))
    return not bool((sample % 1).any()) or steps_of(sample) == "counts"


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
        yield rows, raw.good_values(rows).astype(np.float64) ** power


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
