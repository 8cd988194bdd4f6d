"""A product of Ptychodus 1.7: positions, probe and object in metres, from HDF5, NPZ or CXI.

x and y are in separate arrays. The centre of an object of width W is pixel (W - 1) / 2. +x runs along the
columns and +y along the rows. A pattern and its position carry the same index.

An exported reconstruction, read back as one, has object coordinates in metres over the object pixel: those of
the data file up to a shift.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho.data.npz import npz_headers, read_npz
from ptycho.data.optics import Optics
from ptycho.data.reconstruction import ProbeVariation, Reconstruction, StoredFacts
from ptycho.errors import DataError
from ptycho.files.arrays import energy_eV, length_m, read_array, read_number
from ptycho.files.cxi_layout import EntryPaths, entry_of
from ptycho.files.hdf5 import Dataset, File, find_dataset, is_hdf5, missing, opened, require_dataset
from ptycho.geometry.canvas import lay_on_canvas
from ptycho.physics import illumination, shift_field
from ptycho.physics.information import ObjectErrors

logger = logging.getLogger(__name__)

WRITE_AGAIN = "Write it again with Ptychodus."
FRAME_PHOTONS = "probe_photon_counts"
"""Key of the photons that each position sends through an empty object, where a product has them."""
SIGMAS = ("object_amplitude_sigma", "object_phase_sigma_rad")
"""Error bars of the object, (H, W), one sigma; programs that do not know them pass them by."""
VARIATION_WEIGHTS = "opr_weights"
"""Key of the weights (M, components) that a position gives the first mode of every component of the probe."""
OPTICS_KEYS = ("photon_energy_eV", "detector_object_distance_m")
PLACE_KEYS = ("pixel_height_m", "pixel_width_m", "center_x_m", "center_y_m")
NEAR_KEYS = ("far_field", "focus_object_distance_m")
"""Whether patterns are far fields, as they are where nothing is said, and where the focus of others lies."""
PRODUCT_KEYS = ("probe_position_indexes", "probe_position_x_m", "probe_position_y_m", "probe", "object")

LOSS_KEYS = ("loss_values", "entry_1/ptychodus/loss_values")
"""Where a product and a CXI file hold the misfit of a refinement."""
Parts = tuple[dict[str, NDArray[Any]], dict[str, float]]  # arrays by PRODUCT_KEYS, numbers by the others


@dataclass(frozen=True)
class Product:
    """Positions, probe and object, in metres."""

    indexes: NDArray[np.int64]  # (M,): number of the pattern that each position belongs to
    positions_yx_m: NDArray[np.float64]  # (M, 2)
    probe: NDArray[Any]  # (N, N) or (P, N, N), incoherent modes
    obj: NDArray[Any] | None  # (H, W); None where the product holds an empty one
    centre_yx_m: tuple[float, float]  # middle of the object, pixel ((H - 1) / 2, (W - 1) / 2)
    optics: Optics
    frame_gain: NDArray[np.float64] | None = None  # (M,), factor on the amplitude of the probe
    variation: ProbeVariation | None = None  # of its first mode, of M positions


def find_product(diffraction: Path, named: Path | None) -> Path:
    """Return the product of a diffraction file: the one the user named, else :func:`sibling_product`."""
    if named is not None and not named.is_file():
        raise DataError(
            f"{named}: no such file (expected the product of {diffraction.name}). Check --product."
        )
    found = named or sibling_product(diffraction)
    if found is None:
        raise DataError(
            f"{diffraction}: its product with positions, probe and object is missing (expected product.h5 "
            "beside diffraction.h5, or --product). Pass --product product.h5."
        )
    return found


def sibling_product(diffraction: Path) -> Path | None:
    """Return the file beside it that has ``product`` in its name where this has ``diffraction``, or None."""
    words = {"diffraction": "product", "Diffraction": "Product", "DIFFRACTION": "PRODUCT"}
    for word, swapped in words.items():
        for suffix in dict.fromkeys((diffraction.suffix, ".h5", ".hdf5", ".npz", ".cxi")):
            candidate = diffraction.with_name(diffraction.stem.replace(word, swapped) + suffix)
            if candidate != diffraction and word in diffraction.stem and candidate.is_file():
                return candidate
    return None


def read_product(path: Path, *, varying: bool = False) -> Product:
    """Read an HDF5, NPZ or CXI product, with one index and two coordinates for each position.

    It warns of a probe that varies from position to position unless that is ``varying``, what the caller
    makes use of. ``DataError`` where something is missing or has the wrong shape.
    """
    if is_hdf5(path):
        with opened(path) as file:
            entry = entry_of(file)
            arrays, numbers = _from_hdf5(file) if entry is None else _from_cxi(file, EntryPaths(entry))
    else:
        arrays, numbers = _from_npz(path)
    indexes, x_m, y_m = (np.atleast_1d(arrays[key]) for key in PRODUCT_KEYS[:3])
    if x_m.ndim != 1 or not len(x_m) == len(y_m) == len(indexes):
        raise DataError(
            f"{path}: positions and their indexes do not match (got {x_m.shape}, {y_m.shape}, "
            f"{indexes.shape}, expected one of each). {WRITE_AGAIN}"
        )
    variation = _variation(arrays.get(VARIATION_WEIGHTS), arrays["probe"], len(indexes), path)
    used = varying and variation is not None
    probe, obj = incoherent_modes(arrays["probe"], path, warn=not used), first_layer(arrays["object"], path)
    optics = Optics(
        *(numbers[key] or None for key in OPTICS_KEYS),
        None,
        (numbers["pixel_height_m"], numbers["pixel_width_m"]),
    )
    if not numbers.get("far_field", True):
        focus = numbers.get("focus_object_distance_m") or None
        optics = replace(optics, propagation="near", focus_distance_m=focus)
    if min(optics.object_pixel_yx_m) <= 0:
        raise DataError(
            f"{path}: the object pixel has no size (got {optics.object_pixel_yx_m} m, expected > 0). "
            f"{WRITE_AGAIN}"
        )
    positions = np.stack([y_m, x_m], axis=1).astype(np.float64)
    centre = (numbers["center_y_m"], numbers["center_x_m"])
    gain = _frame_gain(arrays.get(FRAME_PHOTONS), probe, len(positions), path)
    return Product(indexes.astype(np.int64), positions, probe, obj, centre, optics, gain, variation)


def _variation(
    weights: NDArray[Any] | None, probe: NDArray[Any], count: int, path: Path
) -> ProbeVariation | None:
    """Return how the first mode of a probe (components, P, N, N) varies from position to position."""
    if weights is None or probe.ndim != 4 or len(probe) < 2:
        return None
    if weights.shape != (count, len(probe)) or not np.isfinite(weights).all():
        raise DataError(
            f"{path}: '{VARIATION_WEIGHTS}' does not fit (got shape {weights.shape}, expected "
            f"{(count, len(probe))}, finite numbers for each position). {WRITE_AGAIN}"
        )
    return ProbeVariation(probe[1:, 0].astype(np.complex64), weights.astype(np.float32))


def _frame_gain(
    photons: NDArray[Any] | None, probe: NDArray[Any], count: int, path: Path
) -> NDArray[np.float64] | None:
    """Return the factor on the probe that gives every position its photons, shape (M,)."""
    if photons is None:
        return None
    if photons.shape != (count,) or not (np.isfinite(photons) & (photons >= 0)).all():
        raise DataError(
            f"{path}: '{FRAME_PHOTONS}' does not fit (got shape {photons.shape}, expected {count} numbers "
            f">= 0, one for each position). {WRITE_AGAIN}"
        )
    return np.sqrt(photons / max(float((np.abs(probe.astype(np.complex128)) ** 2).sum()), 1e-300))


def _from_hdf5(file: File) -> Parts:
    keys = PRODUCT_KEYS
    found = {key: require_dataset(file, [key], f"'{key}' of the product", WRITE_AGAIN) for key in keys}
    numbers = {key: float(file.attrs[key]) for key in NEAR_KEYS if key in file.attrs}
    for key in OPTICS_KEYS:
        older = file.attrs.get("probe_energy_eV") if key == "photon_energy_eV" else None
        value = file.attrs.get(key, older)
        if value is None:
            raise missing(file, [f"/@{key}"], f"the attribute {key} of the product", WRITE_AGAIN)
        numbers[key] = float(value)
    for key in PLACE_KEYS:
        if key not in found["object"].attrs:
            raise missing(file, [f"/object@{key}"], f"the attribute {key} of the object", WRITE_AGAIN)
        numbers[key] = float(found["object"].attrs[key])
    for key in (FRAME_PHOTONS, VARIATION_WEIGHTS):
        found[key] = find_dataset(file, [key])
    return {key: _array(item) for key, item in found.items() if item is not None}, numbers


def _from_cxi(file: File, paths: EntryPaths) -> Parts:
    """Read arrays and numbers by the names of CXI, and those that Ptychodus adds."""
    images = {"probe": paths.product_probe, "object": paths.product_object}
    found = {
        key: require_dataset(file, looked, f"the {key} of the product", WRITE_AGAIN)
        for key, looked in images.items()
    }
    for key in ("probe_position_indexes", FRAME_PHOTONS):
        found[key] = find_dataset(file, [f"{paths.extras}/{key}"])
    arrays = {key: _array(item) for key, item in found.items() if item is not None}
    place = require_dataset(file, paths.translation, "the list of positions", WRITE_AGAIN)
    fits = place.ndim == 2 and place.shape[1] in (2, 3)
    positions = read_array(place, "iuf", "(M, 2) or (M, 3) numbers", fits)
    arrays.setdefault("probe_position_indexes", np.arange(len(positions)))
    arrays["probe_position_x_m"], arrays["probe_position_y_m"] = positions[:, 0], positions[:, 1]
    numbers = {}
    for key in PLACE_KEYS:
        looked = [f"{paths.extras}/object_{key}"]
        numbers[key] = read_number(require_dataset(file, looked, f"{key} of the object", WRITE_AGAIN))
    energy, distance = (find_dataset(file, looked) for looked in (paths.source_energy, paths.distance))
    numbers["photon_energy_eV"] = 0.0 if energy is None else energy_eV(energy)
    numbers["detector_object_distance_m"] = 0.0 if distance is None else length_m(distance)
    return arrays, numbers


def _array(dataset: Dataset) -> NDArray[Any]:
    """Read numbers of any shape; an empty array stays one."""
    if not dataset.size:
        return np.zeros(dataset.shape, dtype=dataset.dtype)
    return read_array(dataset, "iufc", "numbers", True)


def _from_npz(path: Path) -> Parts:
    """Read arrays and numbers of an NPZ product; its names carry a prefix where HDF5 has attributes."""
    prefixed = {key: f"object_{key}" for key in PLACE_KEYS} | {key: key for key in OPTICS_KEYS}
    headers = npz_headers(path)
    for key in (*PRODUCT_KEYS, *prefixed.values()):
        if key not in headers:
            raise DataError(
                f"{path}: '{key}' of the product is missing (found: {', '.join(sorted(headers))}). "
                f"{WRITE_AGAIN}"
            )
    prefixed |= {key: key for key in NEAR_KEYS if key in headers}
    extra = [key for key in (FRAME_PHOTONS, VARIATION_WEIGHTS) if key in headers]
    arrays = read_npz(path, [*PRODUCT_KEYS, *prefixed.values(), *extra])
    return arrays, {name: float(arrays[key]) for name, key in prefixed.items()}


def incoherent_modes(probe: NDArray[Any], path: Path, *, warn: bool = True) -> NDArray[Any]:
    """Return the modes (N, N) or (P, N, N) of a probe; of (components, P, N, N), those of the first, with a
    warning."""
    if warn and probe.ndim == 4 and probe.shape[0] > 1:
        varies = "the probe varies from position to position"
        logger.warning("%s: %s (%d components); the first is used", path, varies, len(probe))
    modes = probe[0] if probe.ndim == 4 else probe
    if modes.ndim not in (2, 3) or not modes.size:
        raise DataError(
            f"{path}: 'probe' has the wrong shape (got {probe.shape}, expected (N, N), (P, N, N) or "
            f"(1, P, N, N)). {WRITE_AGAIN}"
        )
    return modes


def first_layer(obj: NDArray[Any], path: Path) -> NDArray[Any] | None:
    """Return the first layer (H, W) of an object (H, W) or (layers, H, W), or None where it is empty."""
    if not obj.size:
        return None
    if obj.ndim == 3 and len(obj) > 1:
        logger.warning("%s: the object has %d layers; the first is used", path, len(obj))
    layer = obj[0] if obj.ndim == 3 else obj
    if layer.ndim != 2:
        raise DataError(
            f"{path}: 'object' has the wrong shape (got {obj.shape}, expected (H, W) or (layers, H, W)). "
            f"{WRITE_AGAIN}"
        )
    return layer


def pair_by_index(
    pattern_indexes: NDArray[np.int64], product: Product, where: str
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Give each pattern, by its index (M,), the position with that index, as Ptychodus does.

    Positions of one index are averaged. A pattern between two indexes gets the position between theirs. A
    pattern outside of the indexes, and one with a negative index, is left out. Returns the rows (J,) of the
    others and their positions (J, 2) [m]; ``DataError`` where there are none.
    """
    known, inverse = np.unique(product.indexes, return_inverse=True)
    counts = np.bincount(inverse)
    means = [np.bincount(inverse, weights=column) / counts for column in product.positions_yx_m.T]
    inside = (pattern_indexes >= max(known[0], 0)) & (pattern_indexes <= known[-1])
    rows = np.flatnonzero(inside)
    if not len(rows):
        raise DataError(
            f"{where}: no pattern has a position (got pattern indexes {pattern_indexes.min()} to "
            f"{pattern_indexes.max()}, position indexes {known[0]} to {known[-1]}, expected common ones). "
            "Name the product that belongs to these patterns."
        )
    taken = pattern_indexes[rows]
    between = int((~np.isin(taken, known)).sum())
    if len(rows) < len(pattern_indexes) or between:
        logger.warning(
            "%s: %d of %d patterns have no position and are left out; %d get one between their neighbours",
            *(where, len(pattern_indexes) - len(rows), len(pattern_indexes), between),
        )
    return rows, np.stack([np.interp(taken, known, column) for column in means], axis=1)


def read_answer(path: Path) -> Reconstruction:
    """Read an exported reconstruction, an HDF5 product or a CXI file with the names of Ptychodus.

    It has positions of its own; its coverage is the illumination of its probe. ``DataError`` where the file
    is damaged, or holds no object.
    """
    product = read_product(path, varying=True)
    if product.obj is None:
        raise DataError(
            f"{path}: it holds no object (got an empty one, expected a reconstruction). Name the file that "
            "--export wrote."
        )
    pixel_yx_m, shape = np.array(product.optics.object_pixel_yx_m), product.obj.shape
    origin = np.array(product.centre_yx_m) / pixel_yx_m - (np.array(shape) - 1) / 2
    probe = product.probe if product.probe.ndim == 3 else product.probe[None]
    positions = product.positions_yx_m / pixel_yx_m
    n_px = probe.shape[-1]
    plan = lay_on_canvas(positions, n_px, shape_yx=shape, origin_yx_px=origin, reach_px=np.inf)
    seen = illumination(shift_field(probe, plan.shifts_yx_px), plan.corners_yx, shape)
    with opened(path) as file:
        losses = find_dataset(file, list(LOSS_KEYS))
        misfit: NDArray[np.float64] = np.zeros(0) if losses is None else np.atleast_1d(losses[()])
        sigmas = [find_dataset(file, [name, f"entry_1/ptychodus/{name}"]) for name in SIGMAS]
        known = [item[()].astype(np.float32) for item in sigmas if item is not None and item.shape == shape]
    return Reconstruction(
        obj=product.obj,
        coverage=(seen / max(float(seen.max()), 1e-30)).astype(np.float32),
        origin_yx_px=origin,
        probe=probe,
        indices=product.indexes,
        seconds=0.0,
        misfit=tuple(float(value) for value in misfit),
        positions_yx_px=positions,
        frame_gain=None if product.frame_gain is None else product.frame_gain.astype(np.float32),
        stored=StoredFacts(),
        variation=product.variation,
        errors=ObjectErrors(*known) if len(known) == len(SIGMAS) else None,
    )
