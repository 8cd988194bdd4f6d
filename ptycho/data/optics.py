"""From metres to object pixels and back: the optics of a scan, which way the axes of its positions run, and
what the user says about its file.

Symbols: wavelength lambda, distance z from sample to detector, side N of a pattern [px], detector pixel p.
The far field gives an object pixel of lambda z / (N p). Pairs are (y, x).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho.config.choices import CentrePatterns, FlipAxes, MatchLengths, allowed
from ptycho.data.raw import RawData
from ptycho.errors import ConfigError, DataError

HC_EV_M = 6.62607015e-34 * 299792458 / 1.602176634e-19
"""Photon energy times wavelength [eV m]."""
ELECTRON_VOLT_J = 1.602176634e-19
METADATA_KEY = "geometry"
"""Key of the metadata of a data set that holds its :class:`Optics`."""
GUESSED_PROBE = "guessed_probe"
"""Key of the metadata of a file without a probe: the size of its spot is not known."""
NUMBERS = {
    "photon_energy_eV": "--photon-energy",
    "detector_distance_m": "--detector-distance",
    "detector_pixel_m": "--detector-pixel",
    "object_pixel_m": "--object-pixel",
}
"""Setting -> the flag that sets it."""


@dataclass(frozen=True)
class Orientation:
    """One way to take the positions of a file."""

    flip: str = ""  # axes whose sign is turned: '', 'x', 'y' or 'xy'
    swap: bool = False  # take x for y before that

    def flags(self) -> str:
        """Return the flags that ask for it."""
        parts = [f"--flip-positions {self.flip}"] if self.flip else []
        parts += ["--swap-positions"] if self.swap else []
        return " ".join(parts) or "positions as in the file"

    def turn(self, positions_yx: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return positions (M, 2), in any unit, turned about the origin."""
        turned = positions_yx[:, ::-1] if self.swap else positions_yx
        return turned * np.array([-1.0 if axis in self.flip else 1.0 for axis in "yx"])


ORIENTATIONS = tuple(Orientation(flip, swap) for swap in (False, True) for flip in ("", "x", "y", "xy"))


def turned_data(raw: RawData, orientation: Orientation, factor: float = 1.0) -> RawData:
    """Return a data set with turned positions, times a factor, or itself where nothing is asked for.

    It has no ``objectGuess``, which lies in the frame of the old positions.
    """
    if orientation == Orientation() and factor == 1.0:
        return raw
    found = copy.copy(raw)
    for names in (("ycoords", "xcoords"), ("ycoords_start", "xcoords_start")):
        pair = np.stack([getattr(raw, name) for name in names], axis=1)
        for name, column in zip(names, (factor * orientation.turn(pair)).T, strict=True):
            setattr(found, name, np.ascontiguousarray(column))
    found.objectGuess = None
    return found


@dataclass(frozen=True)
class FileOptions:
    """What the user says about a data file; it wins over what the file says.

    ``ConfigError`` where a number is not positive, or a choice is unknown.
    """

    # Ptychodus product with positions, probe and object of a diffraction file
    product_file: Path | None = None
    photon_energy_eV: float | None = None
    detector_distance_m: float | None = None
    detector_pixel_m: float | None = None
    object_pixel_m: float | None = None
    flip_positions: str | None = None  # x, y or xy: axes whose sign is turned, after the swap
    swap_positions: bool = False  # take x of the file for y and y for x
    match_lengths: str = "refuse"  # as the rule of ``ptycho.data.canonical.match_lengths``
    # auto: move patterns whose beam is certainly not on pixel N // 2; off: never
    centre_patterns: str = "auto"
    mask_file: Path | None = None  # bad pixels beside those of the file, see ``ptycho.data.checks.mask``
    saturation: float | None = None  # stored values from here on are no measurement [unit of the file]
    keep_frames: bool = False  # let frames take part that look damaged
    keep_pixels: bool = False  # let pixels take part that look hot, dead, or hit by a zinger
    # take the power of the stored probe as photons per frame, whatever patterns hold
    keep_probe_power: bool = False

    def __post_init__(self) -> None:
        for name, flag in (*NUMBERS.items(), ("saturation", "--saturation")):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ConfigError(f"{flag}: out of range (got {value}, expected a number > 0). Correct it.")
        if self.flip_positions not in (None, *allowed(FlipAxes)):
            raise ConfigError(
                f"--flip-positions: unknown axes (got {self.flip_positions!r}, expected x, y or xy). "
                "Choose one of them."
            )
        for name, choice in (("match_lengths", MatchLengths), ("centre_patterns", CentrePatterns)):
            if getattr(self, name) not in allowed(choice):
                raise ConfigError(
                    f"--{name.replace('_', '-')}: unknown (got {getattr(self, name)!r}, expected one of "
                    f"{', '.join(allowed(choice))}). Choose one of them."
                )

    def given(self) -> dict[str, Any]:
        """Return the options that are not the default, by name."""
        return {
            item.name: value for item in fields(self) if (value := getattr(self, item.name)) != item.default
        }

    @classmethod
    def names(cls) -> set[str]:
        """Return the names of the options."""
        return {item.name for item in fields(cls)}

    @classmethod
    def of(cls, config: Any, *, product: bool = True) -> FileOptions:
        """Return the options of a configuration; ``product``: it is the file ``product_file`` belongs to."""
        values = {name: getattr(config, name) for name in cls.names()}
        return cls(**values if product else values | {"product_file": None})

    @property
    def orientation(self) -> Orientation:
        """How to turn positions to y and x along rows and columns of the patterns."""
        return Orientation(self.flip_positions or "", self.swap_positions)


@dataclass(frozen=True)
class Optics:
    """Sizes in metres that tie a scan in object pixels to the instrument; None where unknown."""

    photon_energy_eV: float | None = None
    detector_distance_m: float | None = None
    detector_pixel_yx_m: tuple[float, float] | None = None
    object_pixel_yx_m: tuple[float, float] | None = None
    origin_yx_m: tuple[float, float] = (0.0, 0.0)  # where object pixel (0, 0) lies

    def completed(self, n_px: int) -> Optics:
        """Fill in the pixel size, of object or detector, that follows from the far field lambda z / (N p)."""
        if self.photon_energy_eV is None or self.detector_distance_m is None:
            return self
        scale_m2 = HC_EV_M / self.photon_energy_eV * self.detector_distance_m / n_px
        names = ("object_pixel_yx_m", "detector_pixel_yx_m")
        for name, other in zip(names, names[::-1], strict=True):
            sides = getattr(self, other)
            if getattr(self, name) is None and sides is not None:
                return replace(self, **{name: tuple(scale_m2 / side for side in sides)})
        return self

    def overridden(self, options: FileOptions) -> Optics:
        """Put what the user says in the place of what the file says."""
        given = {name: getattr(options, name) for name in NUMBERS if getattr(options, name) is not None}
        for name in ("detector_pixel", "object_pixel"):
            if f"{name}_m" in given:
                side = given.pop(f"{name}_m")
                given[f"{name}_yx_m"] = (side, side)
        return replace(self, **given)

    def centred(self, middle_yx_m: Any, shape_yx: tuple[int, ...]) -> Optics:
        """Return the optics with the origin that puts the middle of an object (H, W) [px] in a place [m]."""
        reach_m = (np.array(shape_yx) - 1) / 2 * np.array(self.object_pixel_yx_m)
        return replace(self, origin_yx_m=tuple((np.array(middle_yx_m) - reach_m).tolist()))

    def to_metres(self, positions_yx_px: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return positions (M, 2) in metres."""
        return np.asarray(positions_yx_px) * np.array(self.object_pixel_yx_m) + np.array(self.origin_yx_m)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for the metadata of a data set."""
        return asdict(self)

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any] | None, where: str) -> Optics:
        """Read the optics, empty where there are none; ``DataError`` for unknown names or values <= 0."""
        stored = (metadata or {}).get(METADATA_KEY)
        if stored is None:
            return cls()
        names = tuple(cls.__dataclass_fields__)
        if not isinstance(stored, Mapping) or not set(stored) <= set(names):
            raise DataError(
                f"{where}: _metadata.{METADATA_KEY} is not understood (got {stored!r}, expected an object "
                f"with {', '.join(names)}). Correct it."
            )
        values = {name: value for name, value in stored.items() if value is not None}
        found = {name: _checked(name, value, where) for name, value in values.items()}
        return cls(**found)


def _checked(name: str, value: Any, where: str) -> float | tuple[float, float]:
    """Return a positive number, or a pair where the name says so; an origin may have any sign."""
    pair = "_yx_" in name
    numbers = value if pair and isinstance(value, list | tuple) else [value]
    real = all(isinstance(item, int | float) and math.isfinite(item) for item in numbers)
    if not real or len(numbers) != 1 + pair or (name != "origin_yx_m" and min(numbers) <= 0):
        raise DataError(
            f"{where}: _metadata.{METADATA_KEY}.{name} is out of range (got {value!r}, expected "
            f"{'two numbers' if pair else 'a number'} > 0). Correct it."
        )
    return (float(numbers[0]), float(numbers[1])) if pair else float(numbers[0])
