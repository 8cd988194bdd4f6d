"""What every reader ends with: positions on object pixels, a starting probe, and the checked data set."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho.data.checks.overlap import step_px
from ptycho.data.checks.statements import USUAL_STEPS, mistake_in_metres
from ptycho.data.domain import DOMAIN_KEY
from ptycho.data.frame_cut import FrameCut
from ptycho.data.optics import GUESSED_PROBE, METADATA_KEY, NUMBERS, FileOptions, Optics, near_field_of
from ptycho.data.prepare import checked
from ptycho.data.raw import INDEX_KEY, OWN_PLACES, RawData
from ptycho.data.scaling import NOT_MEASURED
from ptycho.errors import ConfigError, DataError
from ptycho.geometry.canvas import centre_on_object
from ptycho.physics import filled_amplitude
from ptycho.physics.propagation import focus_of

logger = logging.getLogger(__name__)

PROBE_SAMPLE = 256
"""Most frames that a starting probe is made from."""


def require_optics(optics: Optics, n_px: int, places: dict[str, str], where: str) -> Optics:
    """Return optics with an object pixel, or raise ``DataError`` on what is missing for it.

    ``places``: field of the optics -> where the file would hold it; ``n_px``: side N of a pattern [px].
    """
    optics = optics.completed(n_px)
    if optics.object_pixel_yx_m is not None:
        return optics
    names = {
        "photon_energy_eV": "the photon energy",
        "detector_distance_m": "the distance to the detector",
        "detector_pixel_yx_m": "the detector pixel size",
    }
    for field, name in names.items():
        if getattr(optics, field) is None:
            flag = NUMBERS[field.replace("_yx", "")]
            raise DataError(
                f"{where}: {name} is missing (expected {places[field]}); without it metres are no pixels. "
                f"Pass {flag}, or --object-pixel."
            )
    return optics


def on_object_pixels(
    positions_yx_m: NDArray[np.float64], optics: Optics, n_px: int, where: str
) -> tuple[NDArray[np.float64], Optics]:
    """Put positions (M, 2) [m] on the pixels of an object that just holds the scan.

    Returns patch centres (M, 2) [object px] and the optics with the origin of that object. ``DataError``
    where a position is not finite, or the object would be larger than any that makes sense.
    """
    if not np.isfinite(positions_yx_m).all():
        row = int(np.flatnonzero(~np.isfinite(positions_yx_m).all(axis=1))[0])
        raise DataError(
            f"{where}: a position is not finite (got {positions_yx_m[row].tolist()} m at row {row}, expected "
            "finite numbers). Remove this pattern."
        )
    pixel = np.array(optics.object_pixel_yx_m)
    scaled = positions_yx_m / pixel
    try:
        shift, _ = centre_on_object(scaled, n_px)
    except ConfigError as error:
        span = np.ptp(scaled, axis=0).max()
        likely = _likely_mistake(scaled, optics, n_px)
        raise DataError(
            f"{where}: the positions span too many object pixels (got {span:.4g} px of {pixel.min():.4g} m, "
            f"expected at most thousands). {likely}."
        ) from error
    return scaled + shift, replace(optics, origin_yx_m=tuple((-shift * pixel).tolist()))


def _likely_mistake(positions_yx_px: NDArray[np.float64], optics: Optics, n_px: int) -> str:
    """Name the unit that explains positions which are far too large."""
    low, high = (share * n_px / 2 for share in USUAL_STEPS)
    derived = optics.detector_pixel_yx_m is not None
    likely = mistake_in_metres(optics, step_px(positions_yx_px), low, high, derived=derived)
    unknown = "Check the units of positions, energy, distance and pixel size"
    return f"It seems that {likely}" if likely else unknown


def mean_pattern_probe(raw: RawData, options: FileOptions) -> NDArray[np.complex64]:
    r"""Return a starting probe for a file without one: the wave whose far or near field is the mean pattern.

    .. math:: P = \mathcal{D}^{-1} \sqrt{\overline{I}}

    Shape (1, N, N) complex64 [sqrt(photons)].
    """
    logger.warning(
        "%s: the file holds no probe; the starting probe is the wave that belongs to the mean pattern. A "
        "better one comes from --product or --probe-key",
        raw.source,
    )
    draft = checked(raw, options)
    usable = draft.usable
    rows = usable[np.linspace(0, len(usable) - 1, min(len(usable), PROBE_SAMPLE)).astype(np.int64)]
    total, times = np.zeros((2, raw.N, raw.N))
    for row in rows:
        bad = draft.raw.bad_pixels_of(int(row))
        good = np.True_ if bad is None else ~bad
        total += np.where(good, np.maximum(draft.raw.diff3d[row], 0), 0)
        times += good
    amplitude = np.where(times > 0, np.sqrt(total / np.maximum(times, 1)), NOT_MEASURED)
    return focus_of(filled_amplitude(amplitude), near_field_of(raw))


def make_raw_data(
    patterns: NDArray[Any],
    positions_yx_px: NDArray[np.float64],
    probe: NDArray[Any] | None,
    optics: Optics,
    *,
    source: str,
    file_format: str,
    options: FileOptions,
    obj: NDArray[Any] | None = None,
    bad_pixels: NDArray[np.bool_] | None = None,
    indexes: NDArray[np.int64] | None = None,
    cut: FrameCut | None = None,
    unused: Mapping[str, tuple[int, ...]] | None = None,
    places: Mapping[str, str] = OWN_PLACES,
) -> RawData:
    """Make the checked data set of what a reader found: its domain is ``counts``, optics are in its metadata.

    ``patterns`` (M, N, N) are counts, ``positions_yx_px`` (M, 2) patch centres [object px], ``obj`` (H, W)
    lies in the pixel frame of the positions. ``probe`` (N, N) or (P, N, N) are incoherent modes; None makes
    a starting probe. ``bad_pixels`` (N, N) or (M, N, N) is True where nothing was measured, ``indexes`` (M,)
    the number of each pattern in its file, ``options`` what the user says about the file, ``cut`` which part
    of its frames the patterns are, by default the whole, ``unused`` shape of arrays that are not read,
    ``places`` where the file holds mask and patterns, and how another probe is used. ``DataError`` where an
    array breaks ``specs/data_contracts.md``.
    """
    metadata = {"source_format": file_format, DOMAIN_KEY: "counts", METADATA_KEY: optics.to_dict()}
    if indexes is not None and not np.array_equal(indexes, np.arange(len(patterns))):
        metadata[INDEX_KEY] = indexes.tolist()
    if probe is None:
        metadata[GUESSED_PROBE] = True
    bad_pixels = bad_pixels if bad_pixels is not None and bad_pixels.any() else None
    y, x = positions_yx_px.T
    raw = RawData(
        x, y, None, None, patterns, probe, None, obj,
        metadata=metadata, bad_pixels=bad_pixels, pattern_axis=0, lengths=options.match_lengths,
        source=source,
    )  # fmt: skip
    raw.unused, raw.places = dict(unused or {}), places
    if cut is not None:
        raw.cut = cut.of(np.arange(raw.n_patterns))
    if probe is None:
        raw.probeGuess = mean_pattern_probe(raw, options)
    return raw
