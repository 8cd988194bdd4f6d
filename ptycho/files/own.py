"""Our own NPZ scans: the keys of ``specs/data_contracts.md``."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

from ptycho.data.canonical import parsed_metadata
from ptycho.data.npz import missing_key, read_npz
from ptycho.data.optics import METADATA_KEY, NUMBERS, FileOptions, Optics, turned_data
from ptycho.data.raw import OPTIONAL_KEYS, RawData
from ptycho.errors import ConfigError
from ptycho.files.arrays import complex_of, unused_arrays
from ptycho.files.formats import Headers, Request, Source

logger = logging.getLogger(__name__)

PATTERN_KEYS = ("diff3d", "diffraction")
"""Keys of the patterns; a file that has one is ours."""


class OwnNpz:
    """The format of this project; an NPZ file that is nobody else's is taken for it."""

    name = "NPZ"

    def recognises(self, source: Source) -> bool:
        """Tell whether a file is NPZ."""
        return isinstance(source, dict)

    def read(self, source: Headers, request: Request) -> Callable[[], RawData]:
        """Read a scan in object pixels; its positions are turned as the user says."""
        return partial(_read, source, request)

    def pattern_size(self, source: Headers, request: Request) -> int:
        """Return N by the patterns, else by the probe [px]."""
        probe = request.probe_key or "probeGuess"
        for key in (*PATTERN_KEYS, probe):
            shape = source[key][0] if key in source else ()
            if len(shape) >= 2:
                return int(shape[-2] if shape[-1] == 1 or key != probe else shape[-1])
        raise missing_key(request.path, "diff3d", source)


def _read(headers: Headers, request: Request) -> RawData:
    path, probe = request.path, request.probe_key or "probeGuess"
    patterns = "diff3d" if "diff3d" in headers or "diffraction" not in headers else "diffraction"
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
        pattern_axis=request.pattern_axis,
        lengths=request.options.match_lengths,
        source=str(path),
        **optional,
    )
    raw.unused = unused_arrays(headers, taken, raw.N)
    return _with_options(raw, request.options)


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


def _with_options(raw: RawData, options: FileOptions) -> RawData:
    """Turn the positions, and note in the metadata what the user says about the optics."""
    if options.product_file:
        raise ConfigError(
            f"{raw.source}: --product does not apply (got an NPZ file, which holds its own positions, "
            "expected a diffraction file of Ptychodus). Leave it out."
        )
    raw = turned_data(raw, options.orientation)
    stored = Optics.from_metadata(raw.metadata, raw.source)
    stated = any(getattr(options, name) is not None for name in ("propagation", *NUMBERS))
    if stated or stored.is_near:
        optics = stored.overridden(options)
        optics = optics.completed(raw.N) if optics.is_near else optics
        raw.metadata = {**(raw.metadata or {}), METADATA_KEY: optics.to_dict()}
    return raw
