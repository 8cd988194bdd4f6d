"""Our own NPZ scans: the keys of ``specs/data_contracts.md``."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ptycho.data.canonical import parsed_metadata
from ptycho.data.npz import missing_key, read_npz
from ptycho.data.raw import OPTIONAL_KEYS, RawData
from ptycho.files.contents import complex_of, unused_arrays

logger = logging.getLogger(__name__)

PATTERN_KEYS = ("diff3d", "diffraction")
"""Keys of the patterns; a file that has one is ours."""
Headers = Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]


def read_own(
    path: Path, headers: Headers, probe_key: str | None, pattern_axis: int | None, lengths: str
) -> RawData:
    """Read an NPZ scan.

    Parameters
    ----------
    path : Path
        File.
    headers : mapping of str to (shape, dtype)
        Its arrays.
    probe_key, pattern_axis
        As for :func:`ptycho.files.reader.read_data`.
    lengths : {'refuse', 'head'}
        What happens where patterns and positions differ in number.

    Returns
    -------
    RawData
        The checked data set.
    """
    patterns = "diff3d" if "diff3d" in headers or "diffraction" not in headers else "diffraction"
    probe = probe_key or "probeGuess"
    required = ("xcoords", "ycoords", patterns, probe)
    for key in required:
        if key not in headers:
            raise missing_key(path, key, headers, in_use=(*required, *OPTIONAL_KEYS))
    present = [key for key in OPTIONAL_KEYS if key in headers and key not in required]
    objects = [key for key in present if headers[key][1].hasobject]
    if objects:
        logger.warning(
            "%s: skipped %s, pickled Python objects; if a dose is in there, store it under 'nphotons'",
            path,
            ", ".join(objects),
        )
    arrays = read_npz(path, [*required, *(key for key in present if key not in objects)])
    metadata = parsed_metadata(arrays.pop("_metadata", None), str(path))
    optional = {key: arrays.get(key) for key in OPTIONAL_KEYS[:-1]}
    taken = {*required, *OPTIONAL_KEYS}
    if _has_mask(path, headers, headers[patterns][0]):
        optional["bad_pixels"] = read_npz(path, ["mask"])["mask"]
        taken.add("mask")
    for key in ("objectGuess", "Y", "label"):
        optional[key] = None if optional[key] is None else complex_of(optional[key])
    raw = RawData(
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


def _has_mask(path: Path, headers: Headers, shape: tuple[int, ...]) -> bool:
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


def own_pattern_size(path: Path, headers: Headers, probe_key: str | None) -> int:
    """Return the side N of a pattern from the headers [px]; parameters as for :func:`read_own`."""
    probe = probe_key or "probeGuess"
    for key in (probe, *PATTERN_KEYS):
        shape = headers[key][0] if key in headers else ()
        if len(shape) >= 2:
            return int(shape[-2] if shape[-1] == 1 or key != probe else shape[-1])
    raise missing_key(path, "diff3d", headers)
