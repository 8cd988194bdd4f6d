"""Numbers of an instrument that make sense, and the mistake in a unit that explains one that does not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ptycho.data.optics import ELECTRON_VOLT_J, NUMBERS, Optics

USUAL_STEPS = (0.03, 0.8)
"""Steps of a scan in units of the diameter of its spot."""
UNITS_M = {"metres": 1.0, "millimetres": 1e-3, "micrometres": 1e-6, "nanometres": 1e-9, "angstrom": 1e-10}
USUAL_STEPS_M = (2e-9, 2e-5)
"""Steps of scans, where the object pixel is not known [m]."""


@dataclass(frozen=True)
class Quantity:
    """A number of the optics, the values it may have, and the units it is mistaken in."""

    name: str
    field: str  # attribute of :class:`Optics`
    setting: str  # key of :data:`NUMBERS`
    unit: str
    ranges: tuple[tuple[float, float], ...]  # that make sense [unit]
    mistakes: dict[str, float]  # unit that a number may be in -> factor from it to ours
    power: int  # an object pixel goes with the number to this power

    def plausible(self, value: float) -> bool:
        """Tell whether a value makes sense."""
        return any(low <= value <= high for low, high in self.ranges)

    def value(self, optics: Optics) -> float | None:
        """Return the number of some optics; that of the rows where there are two."""
        found: Any = getattr(optics, self.field)
        return float(found[0]) if isinstance(found, tuple) else found


_LENGTHS = {"mm": 1e-3, "um": 1e-6, "nm": 1e-9, "cm": 1e-2}
QUANTITIES = (
    Quantity(
        "photon energy", "photon_energy_eV", "photon_energy_eV", "eV",
        # Lasers, then extreme ultraviolet to hard X-rays.
        ((1.2, 4.0), (30.0, 2e5)), {"keV": 1e3, "J": 1 / ELECTRON_VOLT_J, "MeV": 1e6}, -1,
    ),
    Quantity(
        "distance to the detector", "detector_distance_m", "detector_distance_m", "m",
        ((1e-3, 50.0),), _LENGTHS, 1,
    ),
    Quantity(
        "detector pixel", "detector_pixel_yx_m", "detector_pixel_m", "m",
        ((5e-7, 3e-3),), _LENGTHS, -1,
    ),
    Quantity(
        "object pixel", "object_pixel_yx_m", "object_pixel_m", "m",
        ((1e-12, 1e-5),), {**_LENGTHS, "angstrom": 1e-10}, 1,
    ),
)  # fmt: skip


def implausible(optics: Optics) -> Iterator[str]:
    """Yield a few words on every number that makes no sense, and what it would be in another unit."""
    for quantity in QUANTITIES:
        value = quantity.value(optics)
        if value is None or quantity.plausible(value):
            continue
        others = (
            f"{value:.4g} {unit} would be {value * factor:.4g} {quantity.unit}"
            for unit, factor in quantity.mistakes.items()
            if quantity.plausible(value * factor)
        )
        text = f"the {quantity.name} is {value:.4g} {quantity.unit}"
        likely = next(others, None)
        yield f"{text} ({likely})" if likely else text


def mistaken_number(optics: Optics, low: float, high: float, *, derived: bool) -> str | None:
    """Say which number's unit, and flag, explains positions that a factor within bounds would mend.

    None where no single number does. ``derived``: the object pixel follows from energy, distance and detector
    pixel.
    """
    fitting = []
    for quantity in QUANTITIES:
        value = quantity.value(optics)
        if value is None or derived == (quantity.field == "object_pixel_yx_m"):
            continue
        for unit, factor in quantity.mistakes.items():
            # Positions in pixels go with one over the object pixel.
            if low <= factor**-quantity.power <= high and quantity.plausible(value * factor):
                right = f"{value * factor:.6g}"
                text = (
                    f"the {quantity.name} is taken as {value:.4g} {quantity.unit}, and in {unit} it fits; "
                    f"pass {NUMBERS[quantity.setting]} {right}"
                )
                fitting.append((quantity.plausible(value), text))
    # A number that makes no sense is the one; where all of them do, the first may be.
    return min(fitting, key=lambda item: item[0])[1] if fitting else None


def unit_of_metres(optics: Optics, step_px: float, low_px: float, high_px: float) -> str | None:
    """Name the unit, and the cure, of positions taken as metres whose step is not usual; or None."""
    for name, factor in UNITS_M.items():
        if factor != 1.0 and low_px <= step_px * factor <= high_px:
            return f"the positions are in {name}; store them in metres"
    pixel = optics.object_pixel_yx_m
    if pixel is not None and low_px <= step_px * pixel[0] <= high_px:
        return "the positions are in object pixels; multiply them by the object pixel size in metres"
    return None


def unit_of_pixels(optics: Optics, step_px: float, low_px: float, high_px: float) -> str | None:
    """Name the unit, and the cure, of positions taken as object pixels, as :func:`unit_of_metres`."""
    pixel = optics.object_pixel_yx_m
    for name, factor in UNITS_M.items():
        if pixel is not None and low_px <= step_px * factor / pixel[0] <= high_px:
            return f"They seem to be in {name}: divide xcoords and ycoords by {pixel[0] / factor:.4g}"
    for name, factor in UNITS_M.items():
        if USUAL_STEPS_M[0] <= step_px * factor <= USUAL_STEPS_M[1]:
            return f"They seem to be in {name}: divide xcoords and ycoords by the object pixel size"
    return None
