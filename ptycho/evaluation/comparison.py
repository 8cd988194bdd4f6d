"""A stored reconstruction beside what it is compared with: another one, a correlation, its own patterns."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ptycho.data.npz import npz_headers, read_npz
from ptycho.data.optics import FileOptions
from ptycho.data.reconstruction import (
    Fit,
    JoinedFrom,
    PlacedReconstruction,
    ProbeVariation,
    Reconstruction,
    StoredFacts,
)
from ptycho.data.scaling import ScaleRecord
from ptycho.errors import DataError
from ptycho.evaluation.gauge import gauge_fit_region
from ptycho.evaluation.metrics import FRC, fourier_ring_correlation
from ptycho.evaluation.misfit import FitTally, photon_unit
from ptycho.files.hdf5 import is_hdf5
from ptycho.files.product import read_answer
from ptycho.physics.information import ObjectErrors
from ptycho.process.progress import Progress

REQUIRED = {
    "object": 2, "coverage": 2, "origin_yx_px": 1, "probe": 3, "positions_yx_px": 2, "pattern_index": 1
}  # fmt: skip
"""Keys of a ``reconstruction.npz`` that are needed, and the number of axes of each."""
JOINED = ("scan_files", "scan_offsets_yx_px", "scan_gain")
"""Keys of one that was made of several scans, (S,), (S, 2) and (S,)."""
ERRORS = ObjectErrors._fields
"""Keys of error bars, (H, W)."""
OPTIONAL = (
    "frame_gain", "misfit", "scale_record", "bad_pixels", "background", "file_options", "variable_modes",
    "probe_weights", *ERRORS, *JOINED,
)  # fmt: skip
"""Keys that an older one lacks."""
CHUNK = 64
"""Patterns compared at a time."""


def read_reconstruction(path: str | Path) -> Reconstruction:
    """Read a ``reconstruction.npz``, by its own name or that of its folder, or what ``--export`` wrote.

    ``DataError`` where the file is missing, damaged, or holds something else.
    """
    path = reconstruction_file(path)
    if is_hdf5(path):
        return read_answer(path)
    headers = npz_headers(path)
    for key, rank in REQUIRED.items():
        if key not in headers:
            raise _other_file(path, f"key {key!r} is missing, expected {', '.join(REQUIRED)}")
        shape = headers[key][0]
        if len(shape) != rank or (key == "coverage" and shape != headers["object"][0]):
            rule = f"{rank} axes" if key != "coverage" else f"{headers['object'][0]}, the shape of the object"
            raise _other_file(path, f"{key} has shape {shape}, expected {rule}")
    count = headers["pattern_index"][0][0]
    for key, rows in {"positions_yx_px": (count, 2), "frame_gain": (count,)}.items():
        if key in headers and headers[key][0] != rows:
            rule = f"{rows}, one row for each pattern"
            raise _other_file(path, f"{key} has shape {headers[key][0]}, expected {rule}")
    variable = headers.get("variable_modes", ((0, *headers["probe"][0][1:]),))[0]
    fits = {
        "variable_modes": (variable[0], *headers["probe"][0][1:]),
        "probe_weights": (count, 1 + variable[0]),
    }
    for key, shape in fits.items() if fits.keys() & headers.keys() else ():
        if key not in headers or headers[key][0] != shape:
            what = f"has shape {headers[key][0]}" if key in headers else "is missing"
            raise _other_file(path, f"{key} {what}, expected {shape}, as the other arrays have it")
    found = read_npz(path, [*REQUIRED, *(key for key in OPTIONAL if key in headers)])
    return Reconstruction(
        obj=found["object"],
        coverage=found["coverage"],
        origin_yx_px=found["origin_yx_px"],
        probe=found["probe"],
        indices=found["pattern_index"],
        seconds=0.0,
        misfit=tuple(found.get("misfit", np.zeros(0)).tolist()),
        positions_yx_px=found["positions_yx_px"],
        frame_gain=found.get("frame_gain"),
        background=found.get("background"),
        errors=ObjectErrors(*(found[key] for key in ERRORS)) if found.keys() >= {*ERRORS} else None,
        variation=(
            ProbeVariation(found["variable_modes"], found["probe_weights"])
            if "variable_modes" in found
            else None
        ),
        stored=StoredFacts(
            _stored_record(found), found.get("bad_pixels"), _stored_options(found), _joined_from(found)
        ),
    )


def _joined_from(found: Mapping[str, NDArray[Any]]) -> JoinedFrom | None:
    if not all(key in found for key in JOINED):
        return None
    names, offsets, gain = (found[key] for key in JOINED)
    return JoinedFrom(tuple(map(str, names)), offsets, gain)


def _other_file(path: Path, why: str) -> DataError:
    return DataError(
        f"{path}: not a reconstruction ({why}). Name a reconstruction.npz that an inference wrote."
    )


def _stored_record(found: Mapping[str, NDArray[Any]]) -> ScaleRecord | None:
    """Return the scale of the scan it was made from; None where the file does not tell all of it."""
    values = json.loads(str(found["scale_record"])) if "scale_record" in found else {}
    whole = values.keys() == {item.name for item in fields(ScaleRecord)}
    return ScaleRecord.from_dict(values) if whole else None


def _stored_options(found: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    """Return what the user said about the data file, as far as this version knows it."""
    values = json.loads(str(found["file_options"])) if "file_options" in found else {}
    return {name: value for name, value in values.items() if name in FileOptions.names()}


def reconstruction_file(path: str | Path) -> Path:
    """Return the file of a reconstruction that is named by itself or by its folder; it may be absent."""
    path = Path(path)
    return path / "reconstruction.npz" if path.is_dir() else path


def stored_domain(path: str | Path) -> Literal["counts", "amplitude"] | None:
    """Return what the patterns held when a reconstruction was made; None where the file does not say."""
    path = reconstruction_file(path)
    if is_hdf5(path) or "scale_record" not in npz_headers(path):
        return None
    return json.loads(str(read_npz(path, ["scale_record"])["scale_record"])).get("domain")


def on_canvas_of(other: Reconstruction, found: Reconstruction) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Lay another reconstruction on the canvas (H, W) of the first, as :func:`laid_on_canvas`."""
    return laid_on_canvas(found, other.obj, other.scanned, other.origin_yx_px)


def laid_on_canvas(
    found: Reconstruction, obj: NDArray[Any], seen: NDArray[np.bool_], origin_yx_px: ArrayLike = 0.0
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Lay an object on the canvas (H, W) of a reconstruction, to whole pixels.

    A fraction of a pixel is left to the gauge fit. Returns the object, 1 where it has none, and the pixels
    that the reconstruction has scanned and the object has ``seen``.
    """
    y, x = np.round(found.origin_yx_px - origin_yx_px).astype(int)
    height, width = found.obj.shape
    rows, columns = np.arange(height) + y, np.arange(width) + x
    inside_y, inside_x = (rows >= 0) & (rows < obj.shape[0]), (columns >= 0) & (columns < obj.shape[1])
    target, source = np.ix_(inside_y, inside_x), np.ix_(rows[inside_y], columns[inside_x])
    laid = np.ones((height, width), dtype=np.complex128)
    both = np.zeros((height, width), dtype=bool)
    laid[target], both[target] = obj[source], seen[source]
    return laid, both & found.scanned


def stored_fit(placed: PlacedReconstruction, progress: Progress | None = None) -> Fit:
    """Return what a reconstruction leaves unexplained, as the run that made it found out.

    Its own positions and frame intensities count, and where it was read from a file, the scale and the bad
    pixels of that file. Amplitude misfits are relative to the energy (eq. 7a); noise alone leaves a quarter
    of the lit detector pixels over the counts.
    """
    from ptycho.physics import diffracted_amplitude, extract_patches

    found, scan, plan = placed.found, placed.scan, placed.plan
    count = len(plan.corners_yx)
    tally = FitTally(count, scan.n_px, photon_unit(scan), placed.background)
    with (progress or Progress()).phase("comparing", count) as phase:
        size = max(1, CHUNK // (scan.detector_upsampling * plan.patch_px // scan.n_px) ** 2)
        for start in range(0, count, size):
            rows = np.arange(start, min(start + size, count))
            patches = extract_patches(found.obj, plan.corners_yx[rows], plan.patch_px)
            predicted = diffracted_amplitude(patches, placed.probes(rows), placed.detector(rows))
            tally.add(rows, predicted, placed.measured_amplitude(rows))
            phase.update(int(rows[-1]) + 1)
    return tally.result()


def correlate(a: NDArray[Any], b: NDArray[Any], mask: NDArray[np.bool_], *, known_truth: bool = False) -> FRC:
    """Return the Fourier ring correlation of two objects (H, W) inside the smallest box around the mask.

    They are in one gauge; outside of what was scanned both are set to their mean. ``known_truth``: ``b`` is
    free of noise.
    """
    box = gauge_fit_region(mask)
    first, second = (np.where(mask, image, image[mask].mean())[box] for image in (a, b))
    return fourier_ring_correlation(first, second, known_truth=known_truth)
