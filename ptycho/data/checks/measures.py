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

    They do for what the file calls counts, for whole numbers, and where single photons show.
    """
    stated = (raw.metadata or {}).get(DOMAIN_KEY)
    if stated is not None:
        return bool(stated == "counts")
    if raw.diff3d.dtype.kind in "iub":
        return True
    sample = domain_sample(raw, np.arange(raw.n_patterns))
    return not bool((sample % 1).any()) or steps_of(sample) == "counts"


def count_blocks(raw: RawData) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    """Yield rows and counts (K, N, N) of block after block, squares of amplitude, 0 where not measured."""
    power = 1 if holds_counts(raw) else 2
    for start in range(0, raw.n_patterns, CHUNK):
        rows = slice(start, min(start + CHUNK, raw.n_patterns))
        yield rows, raw.good_values(rows).astype(np.float64) ** power


def with_bad_pixels(raw: RawData, bad: NDArray[np.bool_]) -> RawData:
    """Return a data set in which further pixels, (N, N) or (M, N, N), are bad too, and 0."""
    marked = copy.copy(raw)
    marked.diff3d = raw.diff3d.copy()
    np.copyto(marked.diff3d, 0, where=bad)
    marked.bad_pixels = bad if raw.bad_pixels is None else raw.bad_pixels | bad
    return marked


def named(rows: NDArray[Any]) -> str:
    """Return the first few pattern numbers as text."""
    shown = ", ".join(str(int(row)) for row in rows[:SHOWN])
    return shown if len(rows) <= SHOWN else f"{shown}, ..."
