"""Numbers of an HDF5 file with their units: lengths in metres, photon energies in eV."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np

from ptycho.data.optics import ELECTRON_VOLT_J
from ptycho.errors import DataError
from ptycho.files.arrays import read_array

if TYPE_CHECKING:
    import h5py

logger = logging.getLogger(__name__)

PLAUSIBLE_EV = (1.0, 2e6)
"""Smallest and largest photon energy that makes sense [eV]."""
UNITS: dict[str, dict[str, float]] = {
    "m": dict.fromkeys(("m", "meter", "metre", "meters", "metres"), 1)
    | {"dm": 1e-1, "cm": 1e-2, "mm": 1e-3}
    | dict.fromkeys(("um", "µm", "μm", "micron", "microns"), 1e-6)
    | {"nm": 1e-9, "angstrom": 1e-10, "å": 1e-10, "pm": 1e-12},
    "eV": {"ev": 1, "kev": 1e3, "mev": 1e6} | dict.fromkeys(("j", "joule", "joules"), 1 / ELECTRON_VOLT_J),
}
"""Unit that we use -> unit of a file (in lower case) -> factor."""


def unit_factor(dataset: h5py.Dataset, unit: str) -> float | None:
    """Return the factor from the attribute ``units`` of a dataset to ``'m'`` or ``'eV'``.

    None where it states no unit; ``DataError`` where the unit is unknown.
    """
    stated = dataset.attrs.get("units", dataset.attrs.get("unit"))
    if stated is None:
        return None
    if isinstance(stated, np.ndarray) and stated.size == 1:
        stated = stated.reshape(-1)[0]
    name = stated.decode("utf-8", "replace") if isinstance(stated, bytes) else str(stated)
    known, word = UNITS[unit], name.strip()
    if not word:
        return None
    if word.lower() not in known or word == "meV":
        raise DataError(
            f"{dataset.file.filename}: '{dataset.name}' has an unknown unit (got {name!r}, expected one of "
            f"{', '.join(known)}). Correct its attribute units."
        )
    return known[word.lower()]


def metres_per_unit(dataset: h5py.Dataset) -> float:
    """Return the factor from the unit of a dataset to metres, which are taken where it states none."""
    factor = unit_factor(dataset, "m")
    return 1.0 if factor is None else factor


def read_number(dataset: h5py.Dataset) -> float:
    """Read one finite number in the unit of the file, or one per frame that agree to a thousandth."""
    values = read_array(dataset, "iuf", "one number", dataset.size is not None)
    values = np.asarray(values, dtype=np.float64).reshape(-1)
    middle = float(np.median(values))
    if not np.isfinite(values).all() or np.ptp(values) > 1e-3 * abs(middle):
        raise DataError(
            f"{dataset.file.filename}: '{dataset.name}' is not one number (got {values.min():g} to "
            f"{values.max():g}, expected one finite number). Split the scan, or pass it as a flag."
        )
    return middle


def length_m(dataset: h5py.Dataset) -> float:
    """Read one length of any sign [m]."""
    return metres_per_unit(dataset) * read_number(dataset)


def size_m(dataset: h5py.Dataset) -> float:
    """Read one length > 0 [m]."""
    value = length_m(dataset)
    if not value > 0:
        raise DataError(
            f"{dataset.file.filename}: '{dataset.name}' is out of range (got {value} m, expected > 0). "
            "Correct it, or pass it as a flag."
        )
    return value


def energy_eV(dataset: h5py.Dataset) -> float:
    """Read one photon energy [eV], within ``PLAUSIBLE_EV``.

    What states no unit is in joules, as CXI has it, or in eV where joules make no sense.
    """
    value, factor = read_number(dataset), unit_factor(dataset, "eV")
    energy = value * factor if factor is not None else value / ELECTRON_VOLT_J
    if factor is None and PLAUSIBLE_EV[0] <= value <= PLAUSIBLE_EV[1]:
        logger.warning(
            "%s: '%s' states no unit; %g is taken as eV", dataset.file.filename, dataset.name, value
        )
        energy = value
    if not PLAUSIBLE_EV[0] <= energy <= PLAUSIBLE_EV[1]:
        raise DataError(
            f"{dataset.file.filename}: '{dataset.name}' is no photon energy (got {energy:g} eV, expected "
            f"{PLAUSIBLE_EV[0]:g} to {PLAUSIBLE_EV[1]:g} eV). Correct it, or pass --photon-energy."
        )
    return float(energy)
