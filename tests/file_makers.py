"""HDF5 files written with plain h5py after the published descriptions, without a reader or writer of ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

PLANCK_J_S, LIGHT_M_S, CHARGE_C = 6.62607015e-34, 299792458.0, 1.602176634e-19


def wavelength_m(energy_eV: float) -> float:
    """Return the wavelength of photons of an energy."""
    return PLANCK_J_S * LIGHT_M_S / (energy_eV * CHARGE_C)


def from_first(positions: NDArray[Any]) -> NDArray[Any]:
    """Return positions relative to the first one, so that the frame of the object does not matter."""
    return positions - positions[0]


class Instrument:
    """A far-field instrument, and the object pixel that belongs to it."""

    def __init__(
        self,
        n_px: int = 16,
        energy_eV: float = 8000.0,
        distance_m: float = 2.0,
        pixel_yx_m: Any = (75e-6, 55e-6),
    ) -> None:
        self.n_px, self.energy_eV, self.distance_m = n_px, energy_eV, distance_m
        self.pixel_yx_m = np.array(pixel_yx_m)
        self.object_pixel_yx_m = wavelength_m(energy_eV) * distance_m / (n_px * self.pixel_yx_m)


def counts(n_frames: int, n_px: int, dtype: Any = np.uint16, seed: int = 5) -> NDArray[Any]:
    """Return frames with a bright middle."""
    y, x = np.indices((n_px, n_px)) - n_px // 2
    mean = 2000 * np.exp(-(y**2 + x**2) / (0.03 * n_px**2))
    return np.random.default_rng(seed).poisson(mean, (n_frames, n_px, n_px)).astype(dtype)


def gaussian_probe(n_px: int, modes: int = 1) -> NDArray[np.complex64]:
    """Return modes of a smooth probe, each weaker than the one before, shape (modes, N, N)."""
    y, x = np.indices((n_px, n_px)) - (n_px - 1) / 2
    probe = 30 * np.exp(-(y**2 + x**2) / (0.03 * n_px**2)) * np.exp(0.02j * y + 0.01j * x * y)
    return np.stack([probe * 0.5**mode * np.exp(0.3j * mode * y) for mode in range(modes)]).astype(
        np.complex64
    )


def write_tree(path: Path, values: dict[str, Any]) -> Path:
    """Write datasets by path; ``path@name`` is an attribute, a link stays one."""
    with h5py.File(path, "w") as file:
        for name, value in values.items():
            place, at, attribute = name.partition("@")
            if at:
                (file[place] if place else file).attrs[attribute] = value
            else:
                file[name] = value
    return path


def cxi_tree(instrument: Instrument, frames: NDArray[Any], translation_m: NDArray[Any]) -> dict[str, Any]:
    """Return the datasets of a CXI 1.6 file with everything a reconstruction needs."""
    detector, source = "entry_1/instrument_1/detector_1", "entry_1/instrument_1/source_1"
    return {
        "cxi_version": 160,
        "number_of_entries": 1,
        f"{source}/energy": instrument.energy_eV * CHARGE_C,
        f"{source}/illumination": gaussian_probe(instrument.n_px),
        f"{detector}/distance": instrument.distance_m,
        f"{detector}/y_pixel_size": instrument.pixel_yx_m[0],
        f"{detector}/x_pixel_size": instrument.pixel_yx_m[1],
        f"{detector}/data": frames,
        f"{detector}/data@axes": "translation:y:x",
        "entry_1/sample_1/geometry_1/translation": translation_m,
        "entry_1/data_1/data": h5py.SoftLink(f"/{detector}/data"),
        "entry_1/data_1/translation": h5py.SoftLink("/entry_1/sample_1/geometry_1/translation"),
    }


def nexus_tree(instrument: Instrument, frames: NDArray[Any], translation_m: NDArray[Any]) -> dict[str, Any]:
    """Return the datasets of a NeXus NXcxi_ptycho file: units everywhere, energies of beam and machine."""
    tree = cxi_tree(instrument, frames, translation_m * 1e6)
    detector = "entry_1/instrument_1/detector_1"
    tree |= {
        "entry_1/definition": "NXcxi_ptycho",
        "entry_1@NX_class": "NXentry",
        "entry_1/instrument_1/source_1/energy": 3.0,
        "entry_1/instrument_1/source_1/energy@units": "GeV",
        "entry_1/instrument_1/beam_1/incident_beam_energy": instrument.energy_eV / 1000,
        "entry_1/instrument_1/beam_1/incident_beam_energy@units": "keV",
        f"{detector}/distance": instrument.distance_m * 1000,
        f"{detector}/distance@units": "mm",
        f"{detector}/y_pixel_size": instrument.pixel_yx_m[0] * 1e6,
        f"{detector}/y_pixel_size@units": "um",
        f"{detector}/x_pixel_size": instrument.pixel_yx_m[1] * 1e6,
        f"{detector}/x_pixel_size@units": "um",
        "entry_1/sample_1/geometry_1/translation@units": "um",
    }
    return tree


def diffraction_tree(frames: NDArray[Any], indexes: NDArray[Any], pixel_yx_m: Any) -> dict[str, Any]:
    """Return the datasets of a Ptychodus diffraction file."""
    return {
        "indexes": indexes,
        "patterns": frames,
        "patterns@detector_pixel_height_m": pixel_yx_m[0],
        "patterns@detector_pixel_width_m": pixel_yx_m[1],
        "bad_pixels": np.zeros(frames.shape[1:], dtype=bool),
    }


def product_tree(
    instrument: Instrument,
    positions_yx_m: NDArray[Any],
    indexes: NDArray[Any],
    obj: NDArray[Any],
    centre_yx_m: Any,
    probe: NDArray[Any],
) -> dict[str, Any]:
    """Return the datasets and attributes of a Ptychodus 1.7 product."""
    height_m, width_m = instrument.object_pixel_yx_m
    return {
        "@name": "test",
        "@comments": "",
        "@photon_energy_eV": instrument.energy_eV,
        "@detector_object_distance_m": instrument.distance_m,
        "@far_field": True,
        "probe_position_indexes": indexes,
        "probe_position_x_m": positions_yx_m[:, 1],
        "probe_position_y_m": positions_yx_m[:, 0],
        "probe": probe[None],
        "probe@pixel_height_m": height_m,
        "probe@pixel_width_m": width_m,
        "object": obj[None],
        "object@pixel_height_m": height_m,
        "object@pixel_width_m": width_m,
        "object@center_x_m": centre_yx_m[1],
        "object@center_y_m": centre_yx_m[0],
        "object_layer_spacing_m": np.zeros(0),
    }
