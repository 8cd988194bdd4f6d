"""Which pixels the user calls bad: the mask of the file, the file of ``--mask``, and saturation.

A mask may say the opposite of what it means, or leave hardly anything to look at. The two masks are looked at
one by one, since only one of them may be turned, and then added.
"""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ptycho.data.canonical import blocks, pixel_mask
from ptycho.data.checks.findings import Draft, holds_counts, named
from ptycho.data.checks.unmeasured import LIMITS, LOWEST_LIMIT
from ptycho.data.frame_cut import FrameCut
from ptycho.data.npz import open_array
from ptycho.data.optics import FileOptions
from ptycho.data.raw import RawData
from ptycho.errors import DataError

MASK_KEYS = ("mask", "bad_pixels")
"""Keys of an NPZ file of ``--mask``, the first that is there."""
MOST_MASKED = 0.5
"""Share of the pixels from which on a mask is looked at twice: detectors are good for the most part."""
TURNED_COUNTS = 0.75
"""Share of the counts on masked pixels from which on such a mask marks the good ones."""
MOST_COUNTS = 0.9
"""Share of the counts that no mask of bad pixels hides without a reason."""
HARDLY_ANY = 0.9
"""Share of masked pixels that is worth a word in any case."""
MOST_SATURATED = 0.1
"""Share of the counts that detectors saturate at before somebody puts an attenuator in."""

Mask = NDArray[np.bool_]


def check_mask(draft: Draft, options: FileOptions) -> Draft:
    """Turn masks that mark the good pixels; warn of one that leaves few; refuse one that leaves none.

    ``DataError`` also where the file of ``--mask`` is not a mask of these patterns.
    """
    raw = draft.raw
    masks = [("bad_pixels", raw.bad_pixels)]
    if options.mask_file is not None:
        masks.append(("--mask", read_mask(options.mask_file, raw.cut)))
    kept: Mask | None = None
    for name, bad in masks:
        if bad is None or not bad.any():
            continue
        draft, bad = _judged(draft, bad, name, kept)
        kept = _added(kept, bad)
    if kept is raw.bad_pixels:
        return draft
    marked = copy.copy(raw)
    marked.bad_pixels = kept
    return Draft(marked, draft.left_out, draft.findings)


def read_mask(path: Path, cut: FrameCut) -> Mask:
    """Return the bad pixels, (N, N) or (M, N, N), that a file of ``--mask`` marks; nonzero is bad."""
    try:
        mask = open_array(path, MASK_KEYS)
    except DataError as error:
        raise DataError(f"--mask: {error}") from error
    if mask.ndim == 3 and len(mask) == 1:
        mask = mask[0]
    if mask.shape not in cut.shapes() or mask.dtype.kind not in "biuf":
        known = " or ".join(str(shape) for shape in cut.shapes())
        raise DataError(
            f"--mask: {path} does not fit the patterns (got shape {mask.shape}, dtype {mask.dtype}, expected "
            f"bool or numbers {known}). Save one flag per pixel."
        )
    found = cut.marked(mask)
    return found if found.ndim == 2 else pixel_mask(found, found.shape, "--mask")


def _added(one: Mask | None, other: Mask | None) -> Mask | None:
    if one is None or other is None:
        return one if other is None else other
    return one | other


def _judged(draft: Draft, bad: Mask, name: str, known: Mask | None) -> tuple[Draft, Mask | None]:
    """Return a mask, turned where it marks the good pixels, and the draft with what is to be said."""
    raw, masked = draft.raw, float(bad.mean())
    on_masked, on_rest = _masked_counts(raw, bad, known)
    share = on_masked / max(on_masked + on_rest, 1e-30)
    words = "the mask" if name == "bad_pixels" else name
    held = f"{words} marks {masked:.3g} of the pixels, which hold {share:.3g} of the counts"
    if on_masked > 0 and (on_rest == 0 or (masked > MOST_MASKED and share > TURNED_COUNTS)):
        turned = None if bad.all() else ~bad
        return draft.repaired("mask", f"{held}: it marks the good pixels, and is turned"), turned
    if on_rest == 0:
        raise DataError(
            f"{raw.source}: {name} leaves nothing (got no count on the {1 - masked:.3g} of the pixels "
            "that are good, expected photons). Nonzero marks a bad pixel; correct the mask."
        )
    if masked > HARDLY_ANY or (masked > MOST_MASKED and share > 0.5) or share > MOST_COUNTS:
        return draft.found("mask", f"{held}; check {name}, where true means not measured"), bad
    return draft, bad


def _masked_counts(raw: RawData, bad: Mask, known: Mask | None) -> tuple[float, float]:
    """Return the sum of what masked and other pixels hold, without numbers that no photons made, and without
    what is ``known`` to be bad already."""
    first = raw.diff3d[0]
    steady = np.ones(first.shape, dtype=bool)
    on_masked, on_rest = np.zeros(first.shape), np.zeros(first.shape)
    for rows in blocks(raw.n_patterns):
        chunk = raw.diff3d[rows]
        here, before = (mask if mask is None or mask.ndim == 2 else mask[rows] for mask in (bad, known))
        steady &= (chunk == first).all(axis=0)
        counts = np.where(np.isfinite(chunk) & (chunk > 0), chunk.astype(np.float64), 0.0)
        large = counts >= LOWEST_LIMIT
        counts[large] *= ~np.isin(counts[large], (*LIMITS, *np.float32(LIMITS).tolist()))
        if before is not None:
            counts *= ~before
        on_masked += (counts * here).sum(axis=0)
        on_rest += (counts * ~here).sum(axis=0)
    varied = ~steady if raw.n_patterns > 1 and not steady.all() else np.ones_like(steady)
    return float(on_masked[varied].sum()), float(on_rest[varied].sum())


def check_saturation(draft: Draft, options: FileOptions) -> Draft:
    """Mark stored values that the user calls saturated, where they are; warn where they hold many counts."""
    limit, raw = options.saturation, draft.raw
    if limit is None:
        return draft
    power = 1 if holds_counts(raw) else 2
    places, lost, total = [], np.zeros((raw.N, raw.N)), np.zeros((raw.N, raw.N))
    steady, first = np.ones((raw.N, raw.N), dtype=bool), raw.good_values(slice(0, 1))[0]
    for rows in blocks(raw.n_patterns):
        chunk = raw.good_values(rows)
        # The limit has the precision of what is stored, else a value that equals it might be below.
        over = chunk >= (np.asarray(limit).astype(chunk.dtype) if chunk.dtype.kind == "f" else limit)
        place = np.argwhere(over)
        place[:, 0] += rows.start
        places.append(place)
        steady &= (chunk == first).all(axis=0)
        counts = np.where(np.isfinite(chunk) & (chunk > 0), chunk.astype(np.float64), 0.0) ** power
        lost += np.where(over, np.minimum(counts, limit**power), 0.0).sum(axis=0)
        total += np.where(over, np.minimum(counts, limit**power), counts).sum(axis=0)
    found = np.concatenate(places)
    if not len(found):
        return draft
    single = np.zeros(raw.diff3d.shape, dtype=bool)
    single[tuple(found.T)] = True
    marked = copy.copy(raw)
    marked.bad_pixels = _added(raw.bad_pixels, pixel_mask(single, single.shape, raw.source))
    patterns = np.unique(found[:, 0])
    held = f"{len(found)} values of {len(patterns)} patterns reach --saturation {limit:g}, and take no part"
    draft = draft.repaired("saturation", held, marked)
    # A gap that is filled with a large number holds no counts.
    share = float(lost[~steady].sum() / max(total[~steady].sum(), 1e-30))
    if share <= MOST_SATURATED:
        return draft
    return draft.found(
        "saturation",
        f"--saturation {limit:g} takes {share:.2g} of the counts, in patterns {named(patterns)}: "
        "check that it is in the unit of the file, or measure with less light",
    )
