"""The measured data set: arrays brought to canonical axes and checked.

Axes: patterns (M, N, N) with DC at N // 2, probe (P, N, N), positions (y, x) float64 object pixels. A
position is the centre of its patch: patch[i, j] = object[y - (N - 1) / 2 + i, x - (N - 1) / 2 + j].
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ptycho.data.canonical import (
    canonical_column,
    canonical_object,
    canonical_patterns,
    canonical_probe,
    check_patterns,
    checked_background,
    checked_dose,
    checked_upsampling,
    match_lengths,
    patches_or_none,
    pixel_mask,
)
from ptycho.data.frame_cut import FrameCut
from ptycho.data.npz import write_npz
from ptycho.errors import DataError

COLUMNS = ("xcoords", "ycoords", "xcoords_start", "ycoords_start", "scan_index")
_LATER_KEYS = ("bad_pixels", "background", "detector_upsampling", "nphotons", "label", "_metadata")
OPTIONAL_KEYS = (*COLUMNS[2:], "objectGuess", "Y", "norm_Y_I", *_LATER_KEYS)
OWN_PLACES = {"mask": "mask or bad_pixels", "patterns": "diff3d", "probe": "--probe-key {key} uses it"}
"""Where an NPZ file of ours holds what is read, and how another probe is used."""
INDEX_KEY = "pattern_indexes"
"""Key of the metadata with the number of each pattern in its file, where that is not its place."""


def _head(values: ArrayLike | None, count: int, kept: int) -> NDArray[Any] | None:
    """Return the first ``kept`` where there is one value for each of ``count`` patterns."""
    array = None if values is None else np.asarray(values)
    return array[:kept] if array is not None and len(array) == count else array


def _stored_mask(
    values: ArrayLike,
    shape: tuple[int, ...],
    stored_shape: tuple[int, ...],
    n_positions: int,
    pattern_axis: int | None,
    source: str,
) -> NDArray[np.bool_]:
    """Return bad pixels in the canonical ``shape`` of the patterns; a flag for every stored value has its
    axes."""
    flags = np.asarray(values)
    if flags.ndim > 2 and flags.shape == stored_shape:
        flags = canonical_patterns((flags != 0).astype(np.uint8), n_positions, pattern_axis, source)
    return pixel_mask(flags, shape, source)


class RawData:
    """One scan: patterns, positions, probe, and whatever the file says about the object.

    ``xcoords`` and ``ycoords`` (M,) are patch centres, column and row [object pixels]; ``xcoords_start`` and
    ``ycoords_start`` (M,) nominal positions [object pixels], by default the positions themselves. ``diff3d``,
    real, (M, N, N), (N, N, M) or (M, N, N, 1), holds counts or amplitude, and keeps its dtype; its axis
    ``pattern_axis``, by default found from the shape, counts the patterns. ``probeGuess``, complex, (N, N),
    (N, N, 1) or (P, N, N), are incoherent modes. ``scan_index`` (M,) is the scan that each pattern belongs
    to, by default 0.

    ``objectGuess``, complex (H, W), is in the pixel frame of the positions. ``Y`` and ``label``, complex,
    (M, N, N) or (M, N, N, 1), are known object patches, ignored with a warning when there is not one per
    pattern; ``norm_Y_I`` is kept as given. ``bad_pixels``, bool or numbers, (N, N), or (M, N, N) for each
    pattern its own, is nonzero where nothing was measured: what the patterns hold there takes no part in
    anything. ``background``, real (N, N) or one number >= 0, is what every pattern counts beside the light
    [counts / pixel]; it is never subtracted. ``detector_upsampling``, 1 to 16, counts the parts of a detector
    pixel along each axis that it adds, by default 1. ``nphotons`` > 0 is the mean photons per pattern, by
    default ``physics_parameters.nphotons`` of ``metadata``, which describe the data set.

    ``lengths`` ('refuse', 'head') says what happens where patterns and positions differ in number, see
    :func:`ptycho.data.canonical.match_lengths`; ``source`` is the name used in messages. ``DataError`` where
    an array breaks ``specs/data_contracts.md``.
    """

    def __init__(
        self,
        xcoords: ArrayLike,
        ycoords: ArrayLike,
        xcoords_start: ArrayLike | None,
        ycoords_start: ArrayLike | None,
        diff3d: ArrayLike,
        probeGuess: ArrayLike | None,
        scan_index: ArrayLike | None,
        objectGuess: ArrayLike | None = None,
        Y: ArrayLike | None = None,
        norm_Y_I: Any = None,
        metadata: dict[str, Any] | None = None,
        *,
        bad_pixels: ArrayLike | None = None,
        background: ArrayLike | None = None,
        detector_upsampling: int | None = None,
        nphotons: float | None = None,
        label: ArrayLike | None = None,
        pattern_axis: int | None = None,
        lengths: str | None = None,
        source: str = "RawData",
    ) -> None:
        self.source = source
        self.unused: dict[str, tuple[int, ...]] = {}
        self.places: Mapping[str, str] = OWN_PLACES
        given = (xcoords, ycoords, xcoords_start, ycoords_start, scan_index)
        columns = zip(COLUMNS, given, strict=True)
        table = {key: canonical_column(value, key, source) for key, value in columns if value is not None}
        n_positions = len(table["xcoords"])
        self.diff3d = canonical_patterns(diff3d, n_positions, pattern_axis, source)
        self.bad_pixels = None
        if bad_pixels is not None:
            axes = np.shape(diff3d), n_positions, pattern_axis
            self.bad_pixels = _stored_mask(bad_pixels, self.diff3d.shape, *axes, source)
        self.background = None if background is None else checked_background(background, self.N, source)
        self.detector_upsampling = checked_upsampling(detector_upsampling, source)
        check_patterns(self.diff3d, source)
        count, kept = self.n_patterns, match_lengths(table, self.n_patterns, source, lengths)
        table = {key: column[:kept] for key, column in table.items()}
        self.cut = FrameCut.whole(self.N, count, kept)  # of the frames of the file
        self.diff3d = self.diff3d[:kept]
        if self.bad_pixels is not None and self.bad_pixels.ndim == 3:
            self.bad_pixels = self.bad_pixels[:kept]
        self.xcoords, self.ycoords = table["xcoords"], table["ycoords"]
        self.xcoords_start = table.get("xcoords_start", self.xcoords)
        self.ycoords_start = table.get("ycoords_start", self.ycoords)
        self.scan_index = table.get("scan_index", np.zeros(self.n_patterns)).astype(np.int64)
        self.probeGuess = None if probeGuess is None else np.asarray(probeGuess)
        if self.probeGuess is not None:
            canonical_probe(self.probeGuess, self.N, source)
        self.objectGuess = None if objectGuess is None else canonical_object(objectGuess, source)
        self.Y = patches_or_none(_head(Y, count, kept), "Y", self.diff3d.shape, source)
        self.label = patches_or_none(_head(label, count, kept), "label", self.diff3d.shape, source)
        self.norm_Y_I, self.metadata = norm_Y_I, metadata
        if nphotons is None and metadata:
            physics = metadata.get("physics_parameters")
            nphotons = physics.get("nphotons") if isinstance(physics, dict) else None
        self.nphotons = None if nphotons is None else checked_dose(nphotons, source)

    @classmethod
    def from_coords_without_pc(
        cls,
        xcoords: ArrayLike,
        ycoords: ArrayLike,
        diff3d: ArrayLike,
        probeGuess: ArrayLike | None,
        scan_index: ArrayLike | None,
        objectGuess: ArrayLike | None = None,
        *,
        bad_pixels: ArrayLike | None = None,
        background: ArrayLike | None = None,
    ) -> RawData:
        """Build a data set whose nominal positions are its positions; parameters as for the class."""
        given = (xcoords, ycoords, None, None, diff3d, probeGuess, scan_index, objectGuess)
        return cls(*given, bad_pixels=bad_pixels, background=background)

    def to_file(self, path: str | Path) -> None:
        """Write an NPZ file (``specs/data_contracts.md``) that appears whole or not at all."""
        keys = ("xcoords", "ycoords", "diff3d", "probeGuess", *OPTIONAL_KEYS[:-1])
        arrays = {key: getattr(self, key) for key in keys if getattr(self, key) is not None}
        if self.metadata is not None:
            arrays["_metadata"] = json.dumps(self.metadata, default=str)
        write_npz(path, arrays)

    def subset(self, rows: ArrayLike) -> RawData:
        """Return a data set of some patterns, in this order; they keep their numbers in the file."""
        rows = np.asarray(rows, dtype=np.int64)
        columns = {key: getattr(self, key) for key in (*COLUMNS, "diff3d", "Y", "label")}
        shared = ("probeGuess", "objectGuess", "norm_Y_I", "background", "detector_upsampling")
        shared = (*shared, "nphotons", "source")
        made = type(self)(
            **{key: None if column is None else column[rows] for key, column in columns.items()},
            **{key: getattr(self, key) for key in shared},
            metadata={**(self.metadata or {}), INDEX_KEY: self.pattern_numbers[rows].tolist()},
            bad_pixels=self.bad_pixels_of(rows),
            pattern_axis=0,
        )
        made.cut = self.cut.of(rows)
        return made

    def bad_pixels_of(self, rows: Any) -> NDArray[np.bool_] | None:
        """Return where patterns were not measured: (N, N), or (*S, N, N) for rows of shape S."""
        shared = self.bad_pixels is None or self.bad_pixels.ndim == 2
        return self.bad_pixels if shared else self.bad_pixels[rows]

    def good_values(self, rows: Any) -> NDArray[Any]:
        """Return some patterns (K, N, N) as stored, 0 where nothing was measured; a slice or (K,) rows."""
        values, bad = self.diff3d[rows], self.bad_pixels_of(rows)
        return values if bad is None else np.where(bad, values.dtype.type(0), values)

    def good_share(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the share (N, N) of some patterns in which a pixel was measured."""
        bad = self.bad_pixels_of(rows)
        if bad is None:
            return np.ones((self.N, self.N))
        return (~bad).astype(np.float64) if bad.ndim == 2 else (~bad).mean(axis=0)

    @property
    def pattern_numbers(self) -> NDArray[np.int64]:
        """Number of each pattern in its file, shape (M,): its place there where nothing else is said."""
        stored = (self.metadata or {}).get(INDEX_KEY)
        if stored is None:
            return np.arange(self.n_patterns)
        numbers = np.asarray(stored, dtype=np.int64)
        if numbers.shape != (self.n_patterns,):
            raise DataError(
                f"{self.source}: _metadata.{INDEX_KEY} does not fit the patterns (got {numbers.size} numbers"
                f", expected {self.n_patterns}). Leave it out, or write one number for each pattern."
            )
        return numbers

    @property
    def n_patterns(self) -> int:
        """Number of patterns M."""
        return int(self.diff3d.shape[0])

    @property
    def N(self) -> int:
        """Side of a pattern [pixels]."""
        return int(self.diff3d.shape[-1])

    @property
    def positions_yx_px(self) -> NDArray[np.float64]:
        """Patch centres (y, x), shape (M, 2) [object pixels]."""
        return np.stack([self.ycoords, self.xcoords], axis=1)

    @property
    def probe_modes(self) -> NDArray[np.complex64]:
        """Incoherent probe modes as stored, shape (P, N, N)."""
        if self.probeGuess is None:
            raise DataError(
                f"{self.source}: there is no probe (got None, expected (P, {self.N}, {self.N})). "
                f"Pass probeGuess."
            )
        return canonical_probe(self.probeGuess, self.N, self.source)

    def __repr__(self) -> str:
        """One line: source, number and size of the patterns."""
        size = f"{self.n_patterns} patterns of {self.N} x {self.N}"
        return f"RawData({self.source!r}, {size}, {self.diff3d.dtype})"
