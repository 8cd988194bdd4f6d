"""Arrays of a data file brought to canonical axes, or refused with the file, key, value and mend named.

Axes: patterns (M, N, N), probe modes (P, N, N), object (H, W), one number per pattern for positions.
``where`` is the name that messages start with: the file, or ``RawData`` for arrays handed over in memory.
Arrays of another shape or dtype raise ``DataError``, where nothing else is said.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ptycho.errors import DataError

CHUNK = 256
"""Patterns converted to float at a time, so that no full-size float copy is made."""

logger = logging.getLogger(__name__)


def blocks(count: int) -> Iterator[slice]:
    """Yield the rows of block after block of at most :data:`CHUNK` patterns."""
    return (slice(start, min(start + CHUNK, count)) for start in range(0, count, CHUNK))


def canonical_column(values: ArrayLike, key: str, where: str) -> NDArray[np.float64]:
    """Return one finite number per pattern (M,), from (M,), (M, 1) or (1, M)."""
    array = np.asarray(values)
    if array.size != max(array.shape, default=0) or array.dtype.kind not in "iufb":
        raise DataError(
            f"{where}: {key} is not a list of numbers (got shape {array.shape}, dtype "
            f"{array.dtype}, expected (patterns,)). Save one value per pattern."
        )
    column = array.reshape(-1).astype(np.float64)
    bad = np.flatnonzero(~np.isfinite(column))
    if bad.size:
        raise DataError(
            f"{where}: {key} has {bad.size} values that are not finite (got {column[bad[0]]} at "
            f"row {bad[0]}, expected finite numbers). Remove these patterns."
        )
    return column


def match_lengths(
    columns: dict[str, NDArray[np.float64]], n_patterns: int, where: str, rule: str | None = None
) -> int:
    """Return how many patterns and values to keep, from the start, where they differ in number.

    For files ``refuse`` raises ``DataError`` and ``head`` keeps the first of all. By default, for arrays in
    memory, values beyond the patterns are dropped with a warning, and fewer are refused.
    """
    lengths = {key: len(column) for key, column in columns.items()}
    other = {key: length for key, length in lengths.items() if length != n_patterns}
    if not other:
        return n_patterns
    named = ", ".join(f"{key} {length}" for key, length in other.items())
    if rule == "head":
        kept = min(n_patterns, *lengths.values())
        logger.warning(
            "%s: patterns and positions differ in number (%d patterns, %s); the first %d of each are used",
            where,
            n_patterns,
            named,
            kept,
        )
        return kept
    if rule == "refuse":
        raise DataError(
            f"{where}: patterns and positions differ in number (got {n_patterns} patterns, {named}; expected "
            "the same). Save one position per pattern; --match-lengths head uses the first of each, and "
            "--pattern-axis reads the patterns along another axis."
        )
    for key, length in other.items():
        if length < n_patterns:
            raise DataError(
                f"{where}: {key} is too short (got {length} values for {n_patterns} patterns, expected one "
                "each). Save all of them, or pass --pattern-axis if the axes of the patterns are misread."
            )
    text = f"{where}: more positions than patterns ({named}; {n_patterns} patterns); the last are not used"
    logger.warning(text)
    warnings.warn(text, RuntimeWarning, stacklevel=3)
    return n_patterns


def canonical_patterns(
    values: ArrayLike, n_positions: int, pattern_axis: int | None, where: str
) -> NDArray[Any]:
    """Return contiguous patterns (M, N, N) in their own dtype, from (M, N, N), (N, N, M) or (M, N, N, 1).

    When just one pair of neighbouring axes is square, the remaining axis counts patterns. Otherwise it is the
    axis as long as the positions, then one shorter than them, then the last one if it is the longest; a cube
    is taken as (M, N, N). No copy is made where none is needed.
    """
    array = np.asarray(values)
    if array.ndim == 4 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim != 3 or array.dtype.kind not in "iuf" or not array.size:
        raise DataError(
            f"{where}: diff3d is not a stack of patterns (got shape {array.shape}, dtype "
            f"{array.dtype}, expected (patterns, N, N) integers or floats). Save it that way."
        )
    axis = _pattern_axis(array.shape, n_positions) if pattern_axis is None else pattern_axis
    if axis not in (-3, -2, -1, 0, 1, 2):
        raise DataError(f"{where}: no such pattern axis (got {axis}, expected 0, 1 or 2). Correct it.")
    stack = np.moveaxis(array, axis, 0)
    if stack.shape[1] != stack.shape[2]:
        likely = [i for i in range(3) if len({*array.shape[:i], *array.shape[i + 1 :]}) == 1]
        mend = f"Pass --pattern-axis {likely[0]}" if likely else "Crop or pad the patterns to squares"
        raise DataError(
            f"{where}: diff3d holds no square patterns (got shape {array.shape} with pattern "
            f"axis {axis}, expected (patterns, N, N)). {mend}."
        )
    return np.ascontiguousarray(stack)


def check_patterns(patterns: NDArray[Any], where: str) -> None:
    """Refuse patterns without a single count; single values are for ``ptycho.data.checks``."""
    # A comparison with not-a-number is false.
    if any(((patterns[rows] > 0) & (patterns[rows] < np.inf)).any() for rows in blocks(len(patterns))):
        return
    value = patterns.reshape(-1)[0]
    kind = "all zero" if not patterns.any() else "nothing but negative numbers, or none"
    raise DataError(
        f"{where}: diff3d is {kind} (got {value} in all {len(patterns)} patterns, expected photons). Check "
        "the export."
    )


def canonical_probe(values: NDArray[Any], N: int, where: str) -> NDArray[np.complex64]:
    """Return modes (P, N, N) from (N, N), (N, N, 1) or (P, N, N); refuse not finite or all zero ones. Their
    side is that of the patterns, or a whole multiple of it (eq. 5b)."""
    probe = values[None] if values.ndim == 2 else values
    if probe.shape == (N, N, 1):
        probe = np.moveaxis(probe, -1, 0)
    side = probe.shape[-1]
    fits = probe.ndim == 3 and len(probe) > 0 and probe.shape[1] == side and side % N == 0
    if not fits or probe.dtype.kind not in "iufc":
        raise DataError(
            f"{where}: probeGuess does not fit the patterns (got shape {values.shape}, dtype "
            f"{values.dtype}, expected ({N}, {N}) or (P, {N}, {N}), or a whole multiple of {N}). Save a "
            "probe of that size."
        )
    finite = np.isfinite(probe)
    if not finite.all():
        raise DataError(
            f"{where}: probeGuess is not finite (got {probe[~finite][0]}, expected complex "
            f"numbers). Save a valid probe."
        )
    if not probe.any():
        raise DataError(
            f"{where}: probeGuess is all zero (got 0, expected an illumination). Save a valid probe."
        )
    return probe.astype(np.complex64)


def probe_power(probe: NDArray[Any]) -> float:
    """Return the photons per pattern of an empty object: the power of all modes (P, N, N) [sqrt(photons)]."""
    return float((np.abs(probe).astype(np.float64) ** 2).sum())


def canonical_object(values: ArrayLike, where: str) -> NDArray[Any]:
    """Return the object (H, W) from (H, W) or (1, H, W)."""
    array = np.asarray(values)
    picture = array[0] if array.ndim == 3 and array.shape[0] == 1 else array
    if picture.ndim != 2 or picture.dtype.kind not in "iufc":
        raise DataError(
            f"{where}: objectGuess is not one picture (got shape {array.shape}, dtype "
            f"{array.dtype}, expected (H, W) complex). Save one layer."
        )
    return picture


def patches_or_none(
    values: ArrayLike | None, key: str, shape: tuple[int, ...], where: str
) -> NDArray[Any] | None:
    """Return complex patches of the shape of the patterns; None, with a warning, where they do not fit."""
    if values is None:
        return None
    array = np.asarray(values)
    array = array[..., 0] if array.ndim == 4 and array.shape[-1] == 1 else array
    if array.shape == shape and array.dtype.kind in "iufc":
        return array
    logger.warning("%s: %s is ignored, it is %s %s and not %s", where, key, array.dtype, array.shape, shape)
    return None


def pixel_mask(values: ArrayLike, shape: tuple[int, ...], where: str) -> NDArray[np.bool_]:
    """Return true where nothing was measured, (N, N), or (M, N, N) where patterns differ; nonzero is bad."""
    mask, n_px = np.asarray(values), shape[-1]
    if mask.shape not in (shape[1:], (1, *shape[1:]), shape) or mask.dtype.kind not in "biuf":
        raise DataError(
            f"{where}: bad_pixels does not fit the patterns (got shape {mask.shape}, dtype "
            f"{mask.dtype}, expected bool ({n_px}, {n_px}) or {shape}). Save one flag per pixel."
        )
    # Not-a-number is no statement that a pixel is good.
    mask = mask if mask.dtype == bool else mask != 0
    if mask.ndim == 3 and all((mask[rows] == mask[:1]).all() for rows in blocks(len(mask))):
        mask = mask[0]
    return mask


def checked_background(values: ArrayLike, n_px: int, where: str) -> NDArray[np.float64]:
    """Return counts of every pattern that no light explains, (N, N), from (N, N) or one number, all >= 0."""
    array = np.asarray(values)
    shaped = array.size == 1 or array.shape == (n_px, n_px)
    if not shaped or array.dtype.kind not in "iuf":
        raise DataError(
            f"{where}: background does not fit the patterns (got shape {array.shape}, dtype {array.dtype}, "
            f"expected one number or ({n_px}, {n_px})). Save the mean counts of a pattern beside the light."
        )
    lowest = array.min() if np.isfinite(array).all() else np.nan
    if not lowest >= 0:
        raise DataError(
            f"{where}: background holds values that are no counts (got {lowest:.4g}, expected finite counts "
            ">= 0). Save the mean counts of a pattern beside the light."
        )
    shape = (n_px, n_px)
    return np.broadcast_to(array.reshape(()) if array.size == 1 else array, shape).astype(np.float64)


def checked_dose(value: Any, where: str) -> float:
    """Return the mean photons per pattern, one finite number > 0."""
    array = np.asarray(value)
    if array.size != 1 or array.dtype.kind not in "iuf" or not 0 < float(array.reshape(())) < np.inf:
        raise DataError(
            f"{where}: nphotons is no dose (got {value!r}, expected photons per pattern > 0). "
            f"Leave it out when the dose is unknown."
        )
    return float(array.reshape(()))


MOST_UPSAMPLING = 16
"""Most parts of a detector pixel along each axis: finer ones add nothing that a pattern could tell."""


def checked_upsampling(value: Any, where: str) -> int | None:
    """Return the parts of a detector pixel along each axis, one whole number, or None."""
    if value is None:
        return None
    array = np.asarray(value)
    number = array.reshape(()).item() if array.size == 1 and array.dtype.kind in "iuf" else 0
    if number not in range(1, MOST_UPSAMPLING + 1):
        raise DataError(
            f"{where}: detector_upsampling is out of range (got {value!r}, expected a whole number from 1 to "
            f"{MOST_UPSAMPLING}). Save the parts of a detector pixel along each axis."
        )
    return int(number)


def parsed_metadata(stored: NDArray[Any] | None, where: str) -> dict[str, Any] | None:
    """Return metadata stored as JSON text; None, with a logged warning, where it is no JSON object."""
    if stored is None:
        return None
    try:
        content = json.loads(str(stored))
    except json.JSONDecodeError:
        content = None
    if isinstance(content, dict):
        return content
    logger.warning("%s: _metadata is ignored, it is not a JSON object", where)
    return None


def _pattern_axis(shape: tuple[int, ...], n_positions: int) -> int:
    """Axis that counts patterns: what the square sides leave over, else what the positions say."""
    first, last = shape[1] == shape[2], shape[0] == shape[1]
    if first != last:
        return 0 if first else 2
    for axis in (0, 2):
        if shape[axis] == n_positions:
            return axis
    for axis in (0, 2):
        if shape[axis] < n_positions:
            return axis
    return 2 if shape[2] > max(shape[:2]) else 0
