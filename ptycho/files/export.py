"""Reconstructions for other programs: an HDF5 product of Ptychodus, or a CXI file.

Both hold positions, probe and object in metres. What is not known is 0 in a product, as Ptychodus has it, and
is left out of a CXI file; only the size of an object pixel has to be known.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho.data.npz import atomic_path
from ptycho.data.optics import ELECTRON_VOLT_J, FileOptions, Optics
from ptycho.data.reconstruction import PlacedReconstruction
from ptycho.data.scan import Scan
from ptycho.errors import ConfigError, DataError, MissingPackageError
from ptycho.files.hdf5 import File
from ptycho.files.product import FRAME_PHOTONS, SIGMAS, VARIATION_WEIGHTS, Product
from ptycho.physics.information import ObjectErrors

SUFFIXES = {".h5": "product", ".hdf5": "product", ".cxi": "cxi"}
"""Ending of an exported file -> its format."""
CXI_VERSION = 160


@dataclass(frozen=True)
class Export(Product):
    """What an exported file holds: a product with an object pixel, a probe (P, N, N) [sqrt(photons)] and an
    object; ``frame_gain`` where it was refined."""

    name: str = ""  # of the data set
    misfit: tuple[float, ...] = ()  # relative amplitude misfit of a refinement, step by step
    errors: ObjectErrors | None = None  # of every pixel of the object

    @property
    def photons(self) -> float:
        """Photons that a frame sends through an empty object."""
        return float((np.abs(self.probe) ** 2).sum())

    @property
    def components(self) -> NDArray[np.complex64]:
        """The mean probe, and the modes by which its first one changes, (1 + K, P, N, N)."""
        if self.variation is None:
            return self.probe[None]
        found = np.zeros((1 + len(self.variation.modes), *self.probe.shape), self.probe.dtype)
        found[0], found[1:, 0] = self.probe, self.variation.modes
        return found

    @property
    def sigmas(self) -> dict[str, NDArray[np.float32]]:
        """Error bars (H, W) by their names in a file; none where there are none."""
        return {} if self.errors is None else dict(zip(SIGMAS, self.errors, strict=True))

    @property
    def frame_photons(self) -> NDArray[np.float64] | None:
        """The same for each frame, shape (J,), where they were refined."""
        return None if self.frame_gain is None else self.frame_gain.astype(np.float64) ** 2 * self.photons


def check_target(path: str | Path) -> str:
    """Return the format, 'product' or 'cxi', that the ending of an exported file asks for.

    ``ConfigError`` for another ending, ``MissingPackageError`` without h5py.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise ConfigError(
            f"--export: unknown kind of file (got {str(path)!r}, expected a name ending in "
            f"{', '.join(SUFFIXES)}). Rename it."
        )
    try:
        import h5py  # noqa: F401
    except ImportError as error:
        raise MissingPackageError("--export: HDF5 files need h5py. Install with: pip install h5py") from error
    return SUFFIXES[suffix]


def export_optics(scan: Scan, options: FileOptions) -> Optics:
    """Return the optics of a scan with an object pixel, where what the user says wins.

    ``DataError`` where the object pixel is not known and does not follow.
    """
    optics = Optics.from_metadata(scan.raw.metadata, scan.name).overridden(options).completed(scan.n_px)
    if optics.object_pixel_yx_m is None:
        raise DataError(
            f"{scan.name}: the size of an object pixel is not known, so --export has no metres (got an NPZ "
            "file without it, expected _metadata.geometry, or flags). Pass --object-pixel, or "
            "--photon-energy, --detector-distance and --detector-pixel."
        )
    return optics


def collect(placed: PlacedReconstruction, optics: Optics) -> Export:
    """Put a reconstruction in metres, by the scan's positions where it did not move them."""
    found = placed.found
    middle_px = found.origin_yx_px + (np.array(found.obj.shape) - 1) / 2
    positions_m, centre_m = optics.to_metres(placed.positions_yx_px), optics.to_metres(middle_px)
    return Export(
        placed.numbers, positions_m, found.probe, found.obj, tuple(centre_m), optics, found.frame_gain,
        variation=found.variation, name=Path(placed.scan.name).stem, misfit=found.misfit, errors=found.errors,
    )  # fmt: skip


def write_export(path: str | Path, content: Export) -> Path:
    """Write a file in the format of its ending, whole or not at all."""
    import h5py

    write = {"product": _write_product, "cxi": _write_cxi}[check_target(path)]
    with atomic_path(path) as temporary, h5py.File(temporary, "w") as file:
        write(file, content)
    return Path(path)


def _comment(content: Export) -> str:
    known = {
        "photon energy": content.optics.photon_energy_eV,
        "detector distance": content.optics.detector_distance_m,
    }
    unknown = [name for name, value in known.items() if value is None]
    note = f"; not known: {', '.join(unknown)}" if unknown else ""
    return f"reconstructed by ptychopinn {_version()}{note}"


def _version() -> str:
    try:
        return importlib.metadata.version("ptychopinn")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _write_product(file: File, content: Export) -> None:
    """Lay a reconstruction out as Ptychodus 1.7 reads it."""
    (height_m, width_m), (centre_y_m, centre_x_m) = content.optics.object_pixel_yx_m, content.centre_yx_m
    file.attrs.update(
        {
            "name": content.name,
            "comments": _comment(content),
            "detector_object_distance_m": content.optics.detector_distance_m or 0.0,
            "photon_energy_eV": content.optics.photon_energy_eV or 0.0,
            "probe_photon_count": content.photons,
            "exposure_time_s": 0.0,
            "mass_attenuation_m2_per_kg": 0.0,
            "tomography_angle_deg": 0.0,
            "focus_object_distance_m": content.optics.focus_distance_m or 0.0,
            "tilt_angle_deg": 0.0,
            "far_field": not content.optics.is_near,
        }
    )
    arrays: Mapping[str, Any] = {
        "probe_position_indexes": content.indexes,
        "probe_position_x_m": content.positions_yx_m[:, 1],
        "probe_position_y_m": content.positions_yx_m[:, 0],
        "probe": content.components,
        "object": content.obj[None],
        "object_layer_spacing_m": np.zeros(0),
        "loss_epochs": np.arange(len(content.misfit)),
        "loss_values": np.asarray(content.misfit, dtype=np.float64),
        FRAME_PHOTONS: content.frame_photons,
        VARIATION_WEIGHTS: None if content.variation is None else content.variation.weights,
        **content.sigmas,
    }
    for name, array in arrays.items():
        if array is not None:
            file.create_dataset(name, data=array)
    pixel = {"pixel_height_m": height_m, "pixel_width_m": width_m}
    file["probe"].attrs.update(pixel)
    file["object"].attrs.update({**pixel, "center_x_m": centre_x_m, "center_y_m": centre_y_m})


def _write_cxi(file: File, content: Export) -> None:
    """Lay a reconstruction out as CXI 1.6, with the names Ptychodus adds to it."""
    optics, (height_m, width_m) = content.optics, content.optics.object_pixel_yx_m
    (centre_y_m, centre_x_m), energy_eV = content.centre_yx_m, optics.photon_energy_eV
    side_y_m, side_x_m = optics.detector_pixel_yx_m or (None, None)
    # A larger column is a larger x of the file, as with the detector that CXI takes for granted.
    translation = np.zeros((len(content.positions_yx_m), 3))
    translation[:, :2] = content.positions_yx_m[:, ::-1]
    values: dict[str, Any] = {
        "cxi_version": CXI_VERSION,
        "number_of_entries": 1,
        "entry_1/title": content.name,
        "entry_1/experiment_description": _comment(content),
        "entry_1/sample_1/name": content.name,
        "entry_1/sample_1/geometry_1/translation": translation,
        "entry_1/process_1/program": "ptychopinn",
        "entry_1/process_1/version": _version(),
        "entry_1/ptychodus/probe_position_indexes": content.indexes,
        "entry_1/ptychodus/probe_photon_count": content.photons,
        "entry_1/ptychodus/object_center_x_m": centre_x_m,
        "entry_1/ptychodus/object_center_y_m": centre_y_m,
        "entry_1/ptychodus/loss_epochs": np.arange(len(content.misfit)),
        "entry_1/ptychodus/loss_values": np.asarray(content.misfit, dtype=np.float64),
        f"entry_1/ptychodus/{FRAME_PHOTONS}": content.frame_photons,
        **{f"entry_1/ptychodus/{name}": values for name, values in content.sigmas.items()},
        "entry_1/instrument_1/source_1/energy": None if energy_eV is None else energy_eV * ELECTRON_VOLT_J,
        "entry_1/instrument_1/detector_1/distance": optics.detector_distance_m,
        "entry_1/instrument_1/detector_1/y_pixel_size": side_y_m,
        "entry_1/instrument_1/detector_1/x_pixel_size": side_x_m,
    }
    for name in ("probe", "object"):
        values[f"entry_1/ptychodus/{name}_pixel_width_m"] = width_m
        values[f"entry_1/ptychodus/{name}_pixel_height_m"] = height_m
    for path, value in values.items():
        if value is not None:
            file[path] = value
    _write_image(file, "entry_1/image_1", content.probe[None], "coherent:incoherent:y:x", optics, None)
    _write_image(file, "entry_1/image_2", content.obj, "y:x", optics, (centre_x_m, centre_y_m, 0.0))
    import h5py

    links = {
        "entry_1/data_1/translation": "/entry_1/sample_1/geometry_1/translation",
        "entry_1/instrument_1/source_1/illumination": "/entry_1/image_1/data",
    }
    for path, target in links.items():
        file[path] = h5py.SoftLink(target)


def _write_image(
    file: File,
    path: str,
    array: NDArray[np.complex64],
    axes: str,
    optics: Optics,
    centre_xyz_m: tuple[float, ...] | None,
) -> None:
    """Write one picture of a CXI file; sizes are (x, y, z) [m]."""
    height_m, width_m = optics.object_pixel_yx_m
    file[f"{path}/data"] = array
    file[f"{path}/data"].attrs["axes"] = axes
    file[f"{path}/data_space"] = "real"
    file[f"{path}/data_type"] = "amplitude"
    file[f"{path}/image_size"] = np.array([width_m * array.shape[-1], height_m * array.shape[-2], 0.0])
    if centre_xyz_m is not None:
        file[f"{path}/image_center"] = np.array(centre_xyz_m)
