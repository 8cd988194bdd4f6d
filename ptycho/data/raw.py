"""The measured data set: read from a file or arrays, brought to canonical axes, checked, grouped.

Axes: patterns (M, N, N) with DC at N // 2, probe (P, N, N), positions (y, x) float64 object pixels. A
position is the centre of its patch: patch[i, j] = object[y - (N - 1) / 2 + i, x - (N - 1) / 2 + j].
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ptycho import params
from ptycho.data.canonical import (
    canonical_column,
    canonical_object,
    canonical_patterns,
    canonical_probe,
    check_patterns,
    checked_dose,
    match_lengths,
    parsed_metadata,
    patches_or_none,
    pixel_mask,
)
from ptycho.data.npz import missing_key, npz_headers, read_npz, write_npz
from ptycho.errors import ConfigError, DataError
from ptycho.files.contents import complex_of, unused_arrays
from ptycho.files.kinds import is_foreign
from ptycho.geometry.grouping import GroupedData, Groups, grouped_fields, make_groups

if TYPE_CHECKING:
    from ptycho.data.checks.findings import Draft
    from ptycho.data.optics import FileOptions

logger = logging.getLogger(__name__)

_OPTIONAL_KEYS = (
    "xcoords_start",
    "ycoords_start",
    "scan_index",
    "objectGuess",
    "Y",
    "norm_Y_I",
    "bad_pixels",
    "nphotons",
    "label",
    "_metadata",
)
INDEX_KEY = "pattern_indexes"
"""Key of the metadata with the number of each pattern in its file, where that is not its place."""


class RawData:
    """One scan: patterns, positions, probe, and whatever the file says about the object.

    Parameters
    ----------
    xcoords, ycoords : array, shape (M,)
        Patch centres: column and row [object pixels].
    xcoords_start, ycoords_start : array, shape (M,), or None
        Nominal positions [object pixels]; by default the positions themselves.
    diff3d : real array, shape (M, N, N), (N, N, M) or (M, N, N, 1)
        Counts or amplitude; the dtype is kept.
    probeGuess : complex array, shape (N, N), (N, N, 1) or (P, N, N), or None
        Incoherent probe modes.
    scan_index : int array, shape (M,), or None
        Scan that each pattern belongs to; by default 0.
    objectGuess : complex array, shape (H, W), optional
        Object in the pixel frame of the positions.
    Y, label : complex array, shape (M, N, N) or (M, N, N, 1), optional
        Known object patches; ignored with a warning when there is not one per pattern.
    norm_Y_I : float or array, optional
        Kept as given.
    metadata : dict, optional
        Description of the data set; ``physics_parameters.nphotons`` is used when `nphotons` is absent.
    bad_pixels : bool or number array, shape (N, N), or (M, N, N) for each pattern its own, optional
        Nonzero where nothing was measured: what the patterns hold there takes no part in anything.
    nphotons : float, optional
        Mean photons per pattern, > 0.
    pattern_axis : int, optional
        Axis of `diff3d` that counts patterns; by default found from the shape.
    lengths : {'refuse', 'head'}, optional
        What happens where patterns and positions differ in number, see
        :func:`ptycho.data.canonical.match_lengths`.
    source : str
        Name used in messages.

    Raises
    ------
    DataError
        If an array breaks ``specs/data_contracts.md``.
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
        nphotons: float | None = None,
        label: ArrayLike | None = None,
        pattern_axis: int | None = None,
        lengths: str | None = None,
        source: str = "RawData",
    ) -> None:
        self.source = source
        self.unused: dict[str, tuple[int, ...]] = {}
        columns = {
            "xcoords": xcoords,
            "ycoords": ycoords,
            "xcoords_start": xcoords_start,
            "ycoords_start": ycoords_start,
            "scan_index": scan_index,
        }
        given = {key: value for key, value in columns.items() if value is not None}
        table = {key: canonical_column(value, key, source) for key, value in given.items()}
        n_positions = len(table["xcoords"])
        self.diff3d = canonical_patterns(diff3d, n_positions, pattern_axis, source)
        if bad_pixels is not None:
            bad_pixels = np.asarray(bad_pixels)
            if bad_pixels.ndim > 2 and bad_pixels.shape == np.shape(diff3d):
                # A flag for every value has the axes of the values.
                flags = (bad_pixels != 0).astype(np.uint8)
                bad_pixels = canonical_patterns(flags, n_positions, pattern_axis, source)
            bad_pixels = pixel_mask(bad_pixels, self.diff3d.shape, source)
        self.bad_pixels = bad_pixels
        check_patterns(self.diff3d, source)
        count, kept = self.n_patterns, match_lengths(table, self.n_patterns, source, lengths)
        table = {key: column[:kept] for key, column in table.items()}
        self.diff3d = self.diff3d[:kept]
        if self.bad_pixels is not None and self.bad_pixels.ndim == 3:
            self.bad_pixels = self.bad_pixels[:kept]
        Y, label = (
            values[:kept] if values is not None and len(values) == count else values
            for values in (None if known is None else np.asarray(known) for known in (Y, label))
        )
        self.xcoords, self.ycoords = table["xcoords"], table["ycoords"]
        self.xcoords_start = table.get("xcoords_start", self.xcoords)
        self.ycoords_start = table.get("ycoords_start", self.ycoords)
        self.scan_index = table.get("scan_index", np.zeros(self.n_patterns)).astype(np.int64)
        self.probeGuess = None if probeGuess is None else np.asarray(probeGuess)
        if self.probeGuess is not None:
            canonical_probe(self.probeGuess, self.N, source)
        self.objectGuess = None if objectGuess is None else canonical_object(objectGuess, source)
        self.Y = patches_or_none(Y, "Y", self.diff3d.shape, source)
        self.label = patches_or_none(label, "label", self.diff3d.shape, source)
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
    ) -> RawData:
        """Build a data set whose nominal positions are its positions; parameters as for the class."""
        return cls(xcoords, ycoords, None, None, diff3d, probeGuess, scan_index, objectGuess)

    @classmethod
    def from_file(
        cls,
        path: str | Path,
        probe_key: str | None = None,
        pattern_axis: int | None = None,
        options: FileOptions | None = None,
    ) -> RawData:
        """Read a data set from an NPZ or HDF5 file; its content decides, not its name.

        Parameters
        ----------
        path : str or Path
            File laid out as in ``specs/data_contracts.md``.
        probe_key : str, optional
            Key that holds the probe instead of ``probeGuess``.
        pattern_axis : int, optional
            Axis of the patterns array that counts patterns; by default found from the shape.
        options : FileOptions, optional
            What the user says about the optics, the orientation and the partner of the file.

        Returns
        -------
        RawData
            The checked data set.

        Raises
        ------
        DataError
            If the file or an array in it breaks ``specs/data_contracts.md``.
        """
        if is_foreign(path):
            from ptycho.files.reader import read_foreign

            return read_foreign(path, options, probe_key, pattern_axis)
        lengths = "refuse" if options is None else options.match_lengths
        raw = cls._from_npz(path, probe_key, pattern_axis, lengths)
        if options is None:
            return raw
        from ptycho.files.reader import with_options

        return with_options(raw, options)

    @classmethod
    def _from_npz(
        cls, path: str | Path, probe_key: str | None, pattern_axis: int | None, lengths: str
    ) -> RawData:
        """Read an NPZ file; :meth:`from_file` explains the parameters."""
        headers = npz_headers(path)
        patterns = "diff3d" if "diff3d" in headers or "diffraction" not in headers else "diffraction"
        probe = probe_key or "probeGuess"
        required = ("xcoords", "ycoords", patterns, probe)
        for key in required:
            if key not in headers:
                raise missing_key(path, key, headers, in_use=(*required, *_OPTIONAL_KEYS))
        present = [key for key in _OPTIONAL_KEYS if key in headers and key not in required]
        objects = [key for key in present if headers[key][1].hasobject]
        if objects:
            logger.warning(
                "%s: skipped %s, pickled Python objects; if a dose is in there, store it under 'nphotons'",
                path,
                ", ".join(objects),
            )
        arrays = read_npz(path, [*required, *(key for key in present if key not in objects)])
        metadata = parsed_metadata(arrays.pop("_metadata", None), str(path))
        optional = {key: arrays.get(key) for key in _OPTIONAL_KEYS[:-1]}
        taken = {*required, *_OPTIONAL_KEYS}
        if _has_mask(path, headers, headers[patterns][0]):
            optional["bad_pixels"] = read_npz(path, ["mask"])["mask"]
            taken.add("mask")
        for key in ("objectGuess", "Y", "label"):
            optional[key] = None if optional[key] is None else complex_of(optional[key])
        raw = cls(
            arrays["xcoords"],
            arrays["ycoords"],
            diff3d=arrays.pop(patterns),
            probeGuess=complex_of(arrays[probe]),
            metadata=metadata,
            pattern_axis=pattern_axis,
            lengths=lengths,
            source=str(path),
            **optional,
        )
        raw.unused = unused_arrays(headers, taken, raw.N)
        return raw

    def to_file(self, path: str | Path) -> None:
        """Write the data set to an NPZ file that :meth:`from_file` reads back.

        Parameters
        ----------
        path : str or Path
            Destination; it appears whole or not at all.
        """
        keys = ("xcoords", "ycoords", "diff3d", "probeGuess", *_OPTIONAL_KEYS[:-1])
        arrays = {key: getattr(self, key) for key in keys if getattr(self, key) is not None}
        if self.metadata is not None:
            arrays["_metadata"] = json.dumps(self.metadata, default=str)
        write_npz(path, arrays)

    def subset(self, rows: ArrayLike) -> RawData:
        """Return a data set of some of the patterns.

        Parameters
        ----------
        rows : int array, shape (B,)
            Patterns to take, in this order.

        Returns
        -------
        RawData
            Same probe, object and dose; its patterns keep the numbers they have in the file.
        """
        rows = np.asarray(rows, dtype=np.int64)
        metadata = {**(self.metadata or {}), INDEX_KEY: self.pattern_numbers[rows].tolist()}
        return RawData(
            self.xcoords[rows],
            self.ycoords[rows],
            self.xcoords_start[rows],
            self.ycoords_start[rows],
            self.diff3d[rows],
            self.probeGuess,
            self.scan_index[rows],
            self.objectGuess,
            None if self.Y is None else self.Y[rows],
            self.norm_Y_I,
            metadata,
            bad_pixels=self.bad_pixels_of(rows),
            nphotons=self.nphotons,
            pattern_axis=0,
            source=self.source,
            label=None if self.label is None else self.label[rows],
        )

    def bad_pixels_of(self, rows: Any) -> NDArray[np.bool_] | None:
        """Return the bad pixels of some patterns.

        Parameters
        ----------
        rows : slice, or int array of any shape S
            Patterns.

        Returns
        -------
        bool array, shape (N, N) for all patterns, or (*S, N, N), or None
            True where nothing was measured.
        """
        return (
            self.bad_pixels if self.bad_pixels is None or self.bad_pixels.ndim == 2 else self.bad_pixels[rows]
        )

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

    def generate_grouped_data(
        self,
        N: int,
        K: int = 4,
        nsamples: int = 1,
        dataset_path: str | Path | None = None,
        seed: int | None = None,
        sequential_sampling: bool = False,
        gridsize: int | None = None,
        enable_oversampling: bool = False,
        neighbor_pool_size: int | None = None,
    ) -> GroupedData:
        """Group the patterns with their neighbours, C = gridsize**2 to a group.

        Parameters
        ----------
        N : int
            Side of a pattern [pixels]; must be that of the data.
        K : int
            Nearest neighbours that partners are drawn from; raised to C, with a warning, when below.
        nsamples : int
            Number of groups B; exactly 1 means one group per scan point. Patterns that tell nothing
            (``ptycho.data.checks.frames``) take no part.
        dataset_path : str or Path, optional
            Accepted and not used: nothing is cached on disk.
        seed : int, optional
            Seed of the partners drawn; by default ``ptycho.params`` 'npseed', so that the same data give the
            same groups every time.
        sequential_sampling : bool
            As `sequential` of :func:`ptycho.geometry.grouping.make_groups`.
        gridsize : int, optional
            Side of a group; by default ``ptycho.params`` 'gridsize'.
        enable_oversampling : bool
            Allow more groups than scan points when gridsize > 1.
        neighbor_pool_size : int, optional
            Replaces K; >= C.

        Returns
        -------
        GroupedData
            ``diffraction`` as stored, ``X_full`` float32 amplitude normalised by the input scale of
            :mod:`ptycho.data.scaling`, ``Y`` complex object patches or None: each (B, N, N, C), made when asked
            for. ``nn_indices`` (B, C), ``sample_indices`` (B,), ``objectGuess``. ``coords_nn`` (B, 1, 2, C),
            ``coords_offsets`` (B, 1, 2, 1) group mean, ``coords_relative`` = -(coords - mean): (x, y) along
            axis 2 [object pixels]; ``coords_start_*`` likewise for the nominal positions.

        Raises
        ------
        ConfigError
            If N is not the pattern size or a grouping number is out of range.
        DataError
            If there are fewer than C patterns, or, on asking for ``Y``, a patch leaves objectGuess.
        """
        if self.N != N:
            raise ConfigError(
                f"{self.source}: N is not the pattern size (got {N}, expected {self.N}). Set N to {self.N}."
            )
        draft = self.checked()
        usable = np.setdiff1d(np.arange(self.n_patterns), draft.left_out)
        if 1 < nsamples <= self.n_patterns:
            nsamples = min(nsamples, len(usable))
        groups = make_groups(
            self.positions_yx_px[usable],
            gridsize=params.get("gridsize") if gridsize is None else gridsize,
            n_groups=None if nsamples == 1 else nsamples,
            neighbor_count=K,
            seed=params.get("npseed") if seed is None else seed,
            sequential=sequential_sampling,
            enable_oversampling=enable_oversampling,
            neighbor_pool_size=neighbor_pool_size,
        )
        groups = Groups(usable[groups.indices], groups.centres_yx_px, groups.offsets_yx_px)
        return GroupedData(grouped_fields(draft.raw, groups), self)

    def checked(self) -> Draft:
        """Return the data set with what is certain mended, as every scan that an engine sees.

        Returns
        -------
        Draft
            Data set, the patterns that take no part, and what was found.
        """
        from ptycho.data.checks.findings import Draft
        from ptycho.data.checks.registry import check_patterns as check
        from ptycho.data.optics import FileOptions

        return check(Draft(self), FileOptions())


def _has_mask(
    path: str | Path, headers: dict[str, tuple[tuple[int, ...], Any]], shape: tuple[int, ...]
) -> bool:
    """Tell whether ``mask`` marks bad pixels: it does where ``bad_pixels`` is absent and its shape fits."""
    if "mask" not in headers:
        return False
    found, dtype = headers["mask"]
    per_pixel = len(found) >= 2 and found[-1] == found[-2] and found[-1] in shape
    if "bad_pixels" not in headers and dtype.kind in "biuf" and (per_pixel or found == shape):
        return True
    reason = (
        "bad_pixels is used" if "bad_pixels" in headers else f"it is {dtype} {found}, patterns are {shape}"
    )
    logger.warning("%s: mask is ignored, %s", path, reason)
    return False


def peek_pattern_size(
    path: str | Path, probe_key: str | None = None, options: FileOptions | None = None
) -> int:
    """Return the pattern size of a data file from its headers alone.

    Parameters
    ----------
    path : str or Path
        NPZ or HDF5 file laid out as in ``specs/data_contracts.md``.
    probe_key : str, optional
        Key that holds the probe instead of ``probeGuess``.
    options : FileOptions, optional
        What the user says about the optics, which decide where the beam meets the detector.

    Returns
    -------
    int
        Side N of a pattern [px].

    Raises
    ------
    DataError
        If the file cannot be read or has neither probe nor patterns.
    """
    if is_foreign(path):
        from ptycho.files.reader import foreign_pattern_size

        return foreign_pattern_size(path, options)
    headers = npz_headers(path)
    probe = probe_key or "probeGuess"
    for key in (probe, "diff3d", "diffraction"):
        shape = headers[key][0] if key in headers else ()
        if len(shape) >= 2:
            return int(shape[-2] if shape[-1] == 1 or key != probe else shape[-1])
    raise missing_key(path, "diff3d", headers)
