"""A mask that says the opposite of what it means, or leaves hardly anything to look at."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ptycho.data.canonical import CHUNK
from ptycho.data.checks.findings import Draft, Finding
from ptycho.data.checks.unmeasured import LIMITS, LOWEST_LIMIT
from ptycho.errors import DataError

if TYPE_CHECKING:
    from ptycho.data.optics import FileOptions
    from ptycho.data.raw import RawData

MOST_MASKED = 0.5
"""Share of the pixels from which on a mask is looked at twice: detectors are good for the most part."""
TURNED_COUNTS = 0.75
"""Share of the counts on masked pixels from which on such a mask marks the good ones."""
MOST_COUNTS = 0.9
"""Share of the counts that no mask of bad pixels hides without a reason."""
HARDLY_ANY = 0.9
"""Share of masked pixels that is worth a word in any case."""


def check_mask(draft: Draft, options: FileOptions) -> Draft:
    """Turn a mask that marks the good pixels; warn of one that leaves few; refuse one that leaves none."""
    del options
    raw = draft.raw
    if raw.bad_pixels is None or not raw.bad_pixels.any():
        return draft
    masked = float(raw.bad_pixels.mean())
    on_masked, on_rest = _counts(raw)
    share = on_masked / max(on_masked + on_rest, 1e-30)
    held = f"the mask marks {masked:.3g} of the pixels, which hold {share:.3g} of the counts"
    if on_masked > 0 and (on_rest == 0 or (masked > MOST_MASKED and share > TURNED_COUNTS)):
        turned = copy.copy(raw)
        turned.bad_pixels = None if raw.bad_pixels.all() else ~raw.bad_pixels
        message = f"{held}: it marks the good pixels, and is turned"
        return replace(draft, raw=turned).found(Finding("mask", message, "repaired"))
    if on_rest == 0:
        raise DataError(
            f"{raw.source}: bad_pixels leaves nothing (got no count on the {1 - masked:.3g} of the pixels "
            "that are good, expected photons). Nonzero marks a bad pixel; correct the mask."
        )
    if masked > HARDLY_ANY or (masked > MOST_MASKED and share > 0.5) or share > MOST_COUNTS:
        return draft.found(Finding("mask", f"{held}; check bad_pixels, where true means not measured"))
    return draft


def _counts(raw: RawData) -> tuple[float, float]:
    """Return the sum of what masked and other pixels hold, without numbers that no photons made."""
    first = raw.diff3d[0]
    steady = np.ones(first.shape, dtype=bool)
    on_masked, on_rest = np.zeros(first.shape), np.zeros(first.shape)
    for start in range(0, raw.n_patterns, CHUNK):
        rows = slice(start, start + CHUNK)
        chunk = raw.diff3d[rows]
        steady &= (chunk == first).all(axis=0)
        bad: NDArray[np.bool_] = raw.bad_pixels if raw.bad_pixels.ndim == 2 else raw.bad_pixels[rows]
        counts = np.where(np.isfinite(chunk) & (chunk > 0), chunk.astype(np.float64), 0.0)
        large = counts >= LOWEST_LIMIT
        counts[large] *= ~np.isin(counts[large], (*LIMITS, *np.float32(LIMITS).tolist()))
        on_masked += (counts * bad).sum(axis=0)
        on_rest += (counts * ~bad).sum(axis=0)
    varied = ~steady if raw.n_patterns > 1 and not steady.all() else np.ones_like(steady)
    return float(on_masked[varied].sum()), float(on_rest[varied].sum())
