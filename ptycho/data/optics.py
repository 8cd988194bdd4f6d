"""From metres to object pixels and back: the optics of a scan, which way the axes of its positions run, and
what the user says about its file.

Symbols: wavelength lambda, distance z from sample to detector, side N of a pattern [px], detector pixel p.
The far field gives an object pixel of lambda z / (N p). In the near field, a focus z1 before the sample makes
an image magnified by M = (z1 + z) / z1, a parallel beam by M = 1: the object pixel is p / M, and its Fresnel
number p**2 / (lambda z M), that of a parallel beam over the distance z / M. Pairs are (y, x).
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

from ptycho.config.choices import CentrePatterns, FlipAxes, MatchLengths, Propagation, allowed
from ptycho.data.canonical import MOST_UPSAMPLING
from ptycho.data.raw import RawData
from ptycho.errors import ConfigError, DataError

HC_EV_M = 6.62607015e-34 * 299792458 / 1.602176634e-19
"""Photon energy times wavelength [eV m]."""
ELECTRON_VOLT_J = 1.602176634e-19
METADATA_KEY = "geometry"
"""Key of the metadata of a data set that holds its :class:`Optics`."""
SQUARE = 0.01
"""Relative difference of the sides of a detector pixel up to which it is square."""
GUESSED_PROBE = "guessed_probe"
"""Key of the metadata of a file without a probe: the size of its spot is not known."""
NUMBERS = {
    "photon_energy_eV": "--photon-energy",
    "detector_distance_m": "--detector-distance",
    "detector_pixel_m": "--detector-pixel",
    "object_pixel_m": "--object-pixel",
    "focus_distance_m": "--focus-distance",
    "fresnel_number": "--fresnel-number",
}
"""Setting -> the flag that sets it."""
OF_NEAR_FIELD = ("focus_distance_m", "fresnel_number")
"""Those that say something about a near field alone."""
NEAR_NEEDS = (
    "--fresnel-number, or --photon-energy, --detector-distance and --detector-pixel, with --focus-distance "
    "where the beam diverges from a focus"
)
"""What the near field has to know."""


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
    propagation: str | None = None  # far or near, to the detector; None: as the file says, else far
    focus_distance_m: float | None = None  # near field: from focus to sample; None: a parallel beam
    fresnel_number: float | None = None  # near field: of an object pixel; None: from the distances
    flip_positions: str | None = None  # x, y or xy: axes whose sign is turned, after the swap
    swap_positions: bool = False  # take x of the file for y and y for x
    match_lengths: str = "refuse"  # as the rule of ``ptycho.data.canonical.match_lengths``
    # auto: move patterns whose beam is certainly not on pixel N // 2; off: never
    centre_patterns: str = "auto"
    mask_file: Path | None = None  # bad pixels beside those of the file, see ``ptycho.data.checks.mask``
    saturation: float | None = None  # stored values from here on are no measurement [unit of the file]
    detector_upsampling: int | None = None  # parts of a pixel along each axis (eq. 5b); None: as the file
    # side of the window of the probe, in patterns, into whose middle a smaller one is put; None: its own
    probe_window: int | None = None
    keep_frames: bool = False  # let frames take part that look damaged
    keep_pixels: bool = False  # let pixels take part that look hot, dead, or hit by a zinger
    # take the power of the stored probe as photons per frame, whatever patterns hold
    keep_probe_power: bool = False

    def __post_init__(self) -> None:
        for name, flag in (*NUMBERS.items(), ("saturation", "--saturation")):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ConfigError(f"{flag}: out of range (got {value}, expected a number > 0). Correct it.")
        for name in ("detector_upsampling", "probe_window"):
            parts = getattr(self, name)
            if parts is not None and parts not in range(1, MOST_UPSAMPLING + 1):
                raise ConfigError(
                    f"--{name.replace('_', '-')}: out of range (got {parts}, expected a whole number from 1 "
                    f"to {MOST_UPSAMPLING}). Correct it."
                )
        self._check_near_field()
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

    def _check_near_field(self) -> None:
        if self.propagation not in (None, *allowed(Propagation)):
            raise ConfigError(
                f"--propagation: unknown (got {self.propagation!r}, expected far or near). Choose one of "
                "them."
            )
        stated = [NUMBERS[name] for name in OF_NEAR_FIELD if getattr(self, name) is not None]
        if stated and self.propagation != "near":
            raise ConfigError(
                f"{stated[0]}: it belongs to the near field (got propagation {self.propagation or 'far'}, "
                "expected near). Pass --propagation near."
            )
        if len(stated) > 1:
            raise ConfigError(
                f"{' and '.join(stated)} say the same (got {self.focus_distance_m:g} m and "
                f"{self.fresnel_number:g}, expected one of them). Leave one out."
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
    propagation: str | None = None  # far or near, to the detector; None is far
    focus_distance_m: float | None = None  # near field: from focus to sample; None: a parallel beam
    fresnel_number: float | None = None  # near field: of an object pixel

    @property
    def is_near(self) -> bool:
        """True where the detector is in the near field."""
        return self.propagation == "near"

    def completed(self, n_px: int) -> Optics:
        """Fill in what follows from the rest: the pixel size, of object or detector, that belongs to the far
        field lambda z / (N p); object pixel and Fresnel number of a near field."""
        if self.is_near:
            return self._near_pixel()._near_number()
        if self.photon_energy_eV is None or self.detector_distance_m is None:
            return self
        scale_m2 = HC_EV_M / self.photon_energy_eV * self.detector_distance_m / n_px
        names = ("object_pixel_yx_m", "detector_pixel_yx_m")
        for name, other in zip(names, names[::-1], strict=True):
            sides = getattr(self, other)
            if getattr(self, name) is None and sides is not None:
                return replace(self, **{name: tuple(scale_m2 / side for side in sides)})
        return self

    def _near_pixel(self) -> Optics:
        """Fill in the object pixel of a near field: p / M, where F = p**2 / (lambda z M) may say M."""
        if self.object_pixel_yx_m is not None or self.detector_pixel_yx_m is None:
            return self
        sides = np.array(self.detector_pixel_yx_m)
        if self.fresnel_number is not None:
            if self.photon_energy_eV is None or self.detector_distance_m is None:
                return self
            spread_m2 = HC_EV_M / self.photon_energy_eV * self.detector_distance_m
            return replace(self, object_pixel_yx_m=tuple((spread_m2 * self.fresnel_number / sides).tolist()))
        if self.focus_distance_m is not None:
            if self.detector_distance_m is None:
                return self
            sides = sides * self.focus_distance_m / (self.focus_distance_m + self.detector_distance_m)
        return replace(self, object_pixel_yx_m=tuple(sides.tolist()))

    def _near_number(self) -> Optics:
        """Fill in the Fresnel number of an object pixel; without a focus its size tells the magnification."""
        known = (self.photon_energy_eV, self.detector_distance_m, self.detector_pixel_yx_m)
        if self.fresnel_number is not None or None in known or self.object_pixel_yx_m is None:
            return self
        energy, distance, sides = known
        magnification = sides[0] / self.object_pixel_yx_m[0]
        if self.focus_distance_m is not None:
            magnification = (self.focus_distance_m + distance) / self.focus_distance_m
        return replace(self, fresnel_number=sides[0] ** 2 / (HC_EV_M / energy * distance * magnification))

    def overridden(self, options: FileOptions) -> Optics:
        """Put what the user says in the place of what the file says."""
        near = (options.propagation or self.propagation) == "near"
        if not near:
            return replace(
                self._with(options), propagation=options.propagation or self.propagation,
                focus_distance_m=None, fresnel_number=None,
            )  # fmt: skip
        found = replace(self._with(options), propagation="near")
        if options.fresnel_number is None and any(getattr(options, name) is not None for name in NUMBERS):
            # The number of the file belongs to its distances; new ones make a new one, where they are enough.
            again = replace(found, fresnel_number=None)._near_number()
            found = found if again.fresnel_number is None else again
        return found

    def _with(self, options: FileOptions) -> Optics:
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


def near_field_of(raw: RawData) -> float | None:
    """Return the Fresnel number of an object pixel of a data set in the near field, None in the far field.

    ``ConfigError`` where it is not known, ``DataError`` where it is that of no near field.
    """
    optics = Optics.from_metadata(raw.metadata, raw.source)
    if not optics.is_near:
        return None
    number = optics.fresnel_number
    if number is None:
        raise ConfigError(
            f"{raw.source}: the near field is not known (got none of its numbers, or not all, "
            f"expected {NEAR_NEEDS}). Pass them."
        )
    sides = optics.detector_pixel_yx_m or (1.0, 1.0)
    if abs(sides[0] / sides[1] - 1) > SQUARE:
        raise DataError(
            f"{raw.source}: detector pixels are not square (got {sides[0]:.4g} x {sides[1]:.4g} m, expected "
            "equal sides in the near field). Rebin the patterns."
        )
    if number * raw.N < 1:
        raise DataError(
            f"{raw.source}: the near field spreads over more than a pattern (got a Fresnel number of "
            f"{number:.4g} per object pixel, expected >= {1 / raw.N:.4g} for {raw.N} px). Correct the "
            "distances, or pass --propagation far."
        )
    return number


def upsampling_of(raw: RawData, options: FileOptions) -> int:
    """Return the parts of a detector pixel along each axis, whose counts it adds (eq. 5b): as the user says,
    else as the file says, else 1. ``ConfigError`` where it is more in the near field, or where the probe is
    wider than so many patterns."""
    stated = options.detector_upsampling or raw.detector_upsampling or 1
    side_px = 0 if raw.probeGuess is None else np.shape(raw.probeGuess)[-2]
    if side_px > stated * raw.N:
        raise ConfigError(
            f"{raw.source}: the probe is wider than the patterns (got {side_px} px beside {raw.N} px and "
            f"detector_upsampling {stated}, expected at most {stated * raw.N} px). Pass "
            f"--detector-upsampling {side_px // raw.N}, or a probe of {raw.N} px."
        )
    if stated > 1 and near_field_of(raw) is not None:
        raise ConfigError(
            f"{raw.source}: parts of detector pixels are those of a far field (got detector_upsampling "
            f"{stated} in the near field, expected 1). Pass --detector-upsampling 1."
        )
    return stated


def _checked(name: str, value: Any, where: str) -> float | str | tuple[float, float]:
    """Return a positive number, or a pair where the name says so; an origin may have any sign, and a
    propagation is a word."""
    if name == "propagation":
        if value not in allowed(Propagation):
            raise DataError(
                f"{where}: _metadata.{METADATA_KEY}.{name} is unknown (got {value!r}, expected far or near). "
                "Correct it."
            )
        return str(value)
    pair = "_yx_" in name
    numbers = value if pair and isinstance(value, list | tuple) else [value]
    real = all(isinstance(item, int | float) and math.isfinite(item) for item in numbers)
    if not real or len(numbers) != 1 + pair or (name != "origin_yx_m" and min(numbers) <= 0):
        raise DataError(
            f"{where}: _metadata.{METADATA_KEY}.{name} is out of range (got {value!r}, expected "
            f"{'two numbers' if pair else 'a number'} > 0). Correct it."
        )
    return (float(numbers[0]), float(numbers[1])) if pair else float(numbers[0])
