"""Simulated scans: one frozen set of options in, one data file with its own ground truth out.

Axes: positions are (y, x) object pixels of the patch centre, on patch pixel ``(N - 1) / 2``; the origin is
pixel (0, 0) of the stored object. An empty object scatters the sum of |probe|^2 photons.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ptycho.config.choices import Propagation, allowed
from ptycho.data.npz import write_npz
from ptycho.data.optics import METADATA_KEY, Optics
from ptycho.errors import ConfigError
from ptycho.files.overwrites import check_outputs, check_there
from ptycho.geometry.canvas import centre_on_object, lay_on_canvas
from ptycho.physics import Detector, diffracted_intensity, extract_patches, shift_field
from ptycho.physics.forward import binned_intensity
from ptycho.physics.propagation import near_field_transfer
from ptycho.simulation.objects import EDGE_BLUR_PX, PHASE_RANGE_RAD, check_scene, make_scene, picture
from ptycho.simulation.positions import raster_points, spiral_points
from ptycho.simulation.probes import PROBES, incoherent_modes, refocus, rim_frequency, scale_to_photons

CHUNK_PATTERNS = 64
"""Patterns that are computed at once; bounds the memory, the result does not depend on it."""
FLY_PARTS = 5
"""Places that an exposure is cut into while the sample moves."""
SCANS = ("raster", "spiral")
RANGES = {
    "n_px": (8, 4096),
    "step_px": (0.01, 1e4),
    "n_y": (1, 1e5),
    "n_x": (1, 1e5),
    "jitter_px": (0, 1e4),
    "phase_range_rad": (0, 100),
    "edge_blur_px": (0, 100),
    "photons": (1e-3, 1e15),
    "probe_error_waves": (-100, 100),
    "background_counts": (0, 1e6),
    "detector_upsampling": (1, 16),
    "probe_window": (1, 16),
    "fly_scan_px": (0, 100),
    "probe_drift_waves": (-100, 100),
    "seed": (0, 2**63 - 1),
    "n_positions": (1, 1e7),
    "fresnel_number": (1e-6, 1e6),
}
"""Option -> its smallest and largest value."""
WHOLE = ("n_px", "n_y", "n_x", "detector_upsampling", "probe_window", "seed", "n_positions")
"""Options that are whole numbers."""


@dataclass(frozen=True)
class SimulationOptions:
    """Everything that decides a simulated scan; equal options give equal data.

    ``ConfigError`` where a value is out of range.
    """

    scene: str = "collage"  # procedural object, a key of ptycho.simulation.objects.SCENES
    picture: str | None = None  # picture files that make the object instead
    phase_picture: str | None = None
    phase_range_rad: float = PHASE_RANGE_RAD  # largest phase difference inside the object
    edge_blur_px: float = EDGE_BLUR_PX  # Gaussian sigma of everything in it
    n_px: int = 64  # pattern size N
    scan: Literal["raster", "spiral"] = "raster"  # or a Fermat spiral of the same density
    step_px: float = 5.0  # distance between neighbours [object px]
    n_y: int = 20  # rows and columns of the raster; the spiral takes n_y * n_x points by default
    n_x: int = 20
    n_positions: int | None = None  # points of the spiral
    jitter_px: float = 1.0  # largest random displacement along each axis [object px]
    integer_positions: bool = False  # every patch exactly on object pixels: no sub-pixel shift is left
    probe: Literal["zone-plate", "disc"] = "zone-plate"  # a key of ptycho.simulation.probes.PROBES
    probe_diameter_px: float | None = None  # diameter of the lit area; 0.45 N by default
    defocus_waves: float = 1.0  # path difference between rim and axis of the probe
    propagation: Propagation = "far"  # where the detector is
    fresnel_number: float | None = None  # near field: of an object pixel
    probe_error_waves: float = 0.0  # defocus error of the stored starting probe; not 0: adds probe_true
    n_modes: int = 1  # incoherent probe modes P
    mode_decay: float = 0.3  # power of a mode relative to the one before
    photons: float = 1e6  # per frame that an empty object would scatter, the sum of |probe|^2
    background_counts: float = 0.0  # mean counts per pixel that no probe explains
    detector_upsampling: int = 1  # parts of a detector pixel along each axis, whose counts it adds
    probe_window: int = 1  # side of the window of the probe, in patterns
    fly_scan_px: float = 0.0  # way along x that the sample moves during an exposure [object px]
    probe_drift_waves: float = 0.0  # defocus from the first pattern to the last, on average none
    seed: int = 0  # of the object, the jitter and the noise, which draw from separate streams

    def __post_init__(self) -> None:
        object.__setattr__(self, "scene", check_scene(self.scene))
        _choose("scan", self.scan, SCANS)
        _choose("probe", self.probe, tuple(PROBES))
        _choose("propagation", self.propagation, allowed(Propagation))
        for name in RANGES:
            if getattr(self, name) is not None:
                _check_range(name, getattr(self, name))
        self._check_near_field()
        if self.probe_window > self.detector_upsampling:
            raise ConfigError(
                f"simulation: probe_window exceeds detector_upsampling (got {self.probe_window!r} and "
                f"{self.detector_upsampling!r}, expected no more). Set detector_upsampling to it."
            )
        if self.n_positions is not None and self.scan != "spiral":
            raise ConfigError(
                f"simulation: n_positions is for the spiral (got {self.n_positions} with scan "
                f"{self.scan!r}, expected none). Set scan to spiral, or give rows and columns, --grid."
            )
        if self.picture is not None and self.scene != type(self).scene:
            raise ConfigError(
                f"simulation: scene has no effect beside picture (got {self.scene!r} and {self.picture!r}, "
                "expected one of them). Leave scene out."
            )
        if self.n_modes == 1 and self.mode_decay != type(self).mode_decay:
            raise ConfigError(
                f"simulation: mode_decay has no effect on one mode (got {self.mode_decay!r}, expected its "
                f"default {type(self).mode_decay}). Leave it out or set n_modes to 2."
            )
        if self.phase_picture is not None and self.picture is None:
            raise ConfigError(
                f"simulation: phase_picture needs a picture (got {self.phase_picture!r} alone, "
                "expected both). Set picture to that of the amplitude too."
            )

    def _check_near_field(self) -> None:
        number = self.fresnel_number
        if number is None and self.propagation == "near":
            raise ConfigError(
                "simulation: propagation near needs a Fresnel number (got fresnel_number None, expected >= "
                f"1 / n_px = {1 / self.n_px:.4g}). Set fresnel_number to 0.2."
            )
        if number is not None and self.propagation != "near":
            raise ConfigError(
                f"simulation: fresnel_number belongs to the near field (got {number!r} with propagation "
                f"{self.propagation!r}, expected near). Set propagation to near."
            )
        for name in ("probe_window", "detector_upsampling") if number is not None else ():
            if (value := getattr(self, name)) != 1:
                raise ConfigError(
                    f"simulation: parts of detector pixels are those of a far field (got {name} {value!r} "
                    "with propagation near, expected 1). Leave it out."
                )
        if number is not None and number * self.n_px < 1:
            raise ConfigError(
                f"simulation: fresnel_number is out of range (got {number!r}, expected >= 1 / n_px = "
                f"{1 / self.n_px:.4g}, or the near field spreads over more than a pattern). Raise it."
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the options as plain values; those of the near field only where the scan is in it."""
        far = {"propagation", "fresnel_number"} if self.fresnel_number is None else set()
        plain = {"fly_scan_px": 0, "probe_drift_waves": 0, "probe_window": 1}
        hidden = far | {name for name, value in plain.items() if getattr(self, name) == value}
        return {name: value for name, value in asdict(self).items() if name not in hidden}

    @property
    def count(self) -> int:
        """Number of scan points J."""
        return self.n_positions if self.n_positions is not None else self.n_y * self.n_x

    @property
    def diameter_px(self) -> float:
        """Diameter of the lit area [px]."""
        return 0.45 * self.n_px if self.probe_diameter_px is None else self.probe_diameter_px


def _check_range(name: str, value: float) -> None:
    """Raise unless an option lies in its range; a NaN is outside."""
    (low, high), whole = RANGES[name], name in WHOLE
    if not low <= value <= high or (whole and value != int(value)):
        kind = "a whole number from " if whole else ""
        raise ConfigError(
            f"simulation: {name} is out of range (got {value!r}, expected {kind}{low:g} to {high:g}). "
            f"Change {name}."
        )


def _choose(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        near = get_close_matches(value, choices, n=1) or list(choices[:1])
        raise ConfigError(
            f"simulation: unknown {name} (got {value!r}, expected one of {', '.join(choices)}). "
            f"Use {near[0]!r}."
        )


def scan_positions(
    options: SimulationOptions, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64], tuple[int, int]]:
    """Place the scan on an object just large enough, in its middle; return where the patches really are
    (J, 2), where they were meant to be (J, 2) [object px], and the shape (H, W) of the object."""
    if options.scan == "spiral":
        nominal = spiral_points(options.count, options.step_px)
    else:
        nominal = raster_points(options.n_y, options.n_x, options.step_px)
    true = nominal + rng.uniform(-options.jitter_px, options.jitter_px, size=nominal.shape)
    if options.integer_positions:
        true = np.rint(true)
    origin, shape = centre_on_object(true, options.probe_window * options.n_px)
    return true + origin, nominal + origin, shape


def make_probe(options: SimulationOptions) -> NDArray[np.complex128]:
    """Make the illumination, modes (P, N, N) [sqrt(photons)]; the sum of |P|^2 over all of them is the dose.

    ``ConfigError`` where the probe fits neither its window nor the pixels, or the modes are out of range.
    """
    make = PROBES[options.probe]
    probe = make(
        options.probe_window * options.n_px, options.diameter_px, defocus_waves=options.defocus_waves
    )
    return scale_to_photons(incoherent_modes(probe, options.n_modes, options.mode_decay), options.photons)


def make_object(
    options: SimulationOptions, shape_yx: tuple[int, int], seed: int | np.random.SeedSequence
) -> NDArray[np.complex128]:
    """Make the object (H, W) [transmission], from a picture where one is named; ``DataError`` as there."""
    how = {"phase_range_rad": options.phase_range_rad, "edge_blur_px": options.edge_blur_px}
    if options.picture is None:
        return make_scene(options.scene, shape_yx, seed, **how)
    return picture(options.picture, shape_yx, phase_path=options.phase_picture, **how)


def expected_counts(
    obj: NDArray[np.complex128],
    probes: NDArray[np.complex128],
    positions_yx_px: NDArray[np.float64],
    fresnel_number: float | None = None,
    upsampling: int = 1,
    fly_px: float = 0.0,
    windows: int = 1,
) -> NDArray[np.float64]:
    """Return the mean counts (J, N, N) of a scan, eq. 1 to 5b of specs/physics.md, with k = ``upsampling``,
    or, with the Fresnel number of an object pixel, those of the near field, eq. 22. They are the mean over
    ``FLY_PARTS`` places along x where the sample moves by ``fly_px`` meanwhile. ``windows``: eq. 5b, M.

    Zero frequency of a far field is at ``N // 2``. Whole pixels cut the patch, the fraction left moves the
    probe (P, N, N), or (J, P, N, N) of every pattern [sqrt(photons)]. Pixel (0, 0) of the object (H, W) is at
    coordinate (0, 0); ``DataError`` where a patch reaches outside of it.
    """
    n_px = probes.shape[-1]
    plan = lay_on_canvas(positions_yx_px, n_px, shape_yx=obj.shape, origin_yx_px=np.zeros(2))
    patches = extract_patches(obj, plan.corners_yx, n_px)
    parts = fly_px * ((np.arange(FLY_PARTS) + 0.5) / FLY_PARTS - 0.5) if fly_px else np.zeros(1)
    total = 0.0
    for part in parts:
        shifts = plan.shifts_yx_px + np.array([0.0, part])
        moved = shift_field(probes, shifts)
        if fresnel_number is None:
            total = total + binned_intensity(patches, moved, upsampling, windows)
        else:
            transfer = near_field_transfer(n_px, fresnel_number, shifts)
            total = total + diffracted_intensity(patches, moved, Detector(transfer))
    return total / len(parts)


def drifting_probes(
    options: SimulationOptions, probes: NDArray[np.complex128], chunk: slice
) -> NDArray[np.complex128]:
    """Return the probes (B, P, N, N) of some patterns of a beam that goes out of focus."""
    time = (np.arange(options.count)[chunk] + 0.5) / options.count - 0.5
    rim = rim_frequency(options.diameter_px, options.defocus_waves)
    return np.stack([refocus(probes, options.probe_drift_waves * share, rim) for share in time])


def _draw_counts(
    obj: NDArray[np.complex128],
    probes: NDArray[np.complex128],
    positions_yx_px: NDArray[np.float64],
    options: SimulationOptions,
    rng: np.random.Generator,
) -> NDArray[np.unsignedinteger[Any]]:
    """Return Poisson counts, shape (J, N, N), as uint16 where they fit, else as uint32."""
    counts = np.empty((len(positions_yx_px), options.n_px, options.n_px), dtype=np.uint32)
    largest = 0
    for start in range(0, len(counts), CHUNK_PATTERNS):
        chunk = slice(start, start + CHUNK_PATTERNS)
        used = drifting_probes(options, probes, chunk) if options.probe_drift_waves else probes
        how = (options.fresnel_number, options.detector_upsampling, options.fly_scan_px, options.probe_window)
        mean = expected_counts(obj, used, positions_yx_px[chunk], *how)
        drawn = rng.poisson(mean + options.background_counts)
        largest = max(largest, int(drawn.max()))
        if largest > np.iinfo(np.uint32).max:
            raise ConfigError(
                f"simulation: the brightest pixel overflows (got {largest} counts, expected at most "
                f"{np.iinfo(np.uint32).max}). Lower photons."
            )
        counts[chunk] = drawn
    return counts.astype(np.uint16) if largest <= np.iinfo(np.uint16).max else counts


def simulate(options: SimulationOptions) -> dict[str, NDArray[Any]]:
    """Simulate one scan.

    Object and probe are rounded to complex64 before they are used: the stored truth is what made the counts.

    Returns
    -------
    dict of str to array
        ``diff3d`` (J, N, N) uint16 or uint32 counts; ``xcoords``, ``ycoords`` and the intended
        ``xcoords_start``, ``ycoords_start`` (J,) float64 [object px]; ``probeGuess`` (M N, M N) or, of P
        modes, (P, M N, M N) complex64 [sqrt(photons)]; ``objectGuess`` (H, W) complex64, the true object;
        ``object_is_truth`` () bool; ``scan_index`` (J,) int64; ``nphotons`` () float64; ``simulation``, JSON;
        in the near field ``_metadata`` () text; where pixels have several parts ``detector_upsampling`` ()
        int64; with a probe error also ``probe_true``.

    Raises
    ------
    ConfigError
        If the options contradict each other.
    DataError
        If a picture cannot be read.
    """
    object_seed, scan_seed, noise_seed = np.random.SeedSequence(options.seed).spawn(3)
    positions, nominal, shape = scan_positions(options, np.random.default_rng(scan_seed))
    probe = guess = make_probe(options).astype(np.complex64)
    error = options.probe_error_waves
    if error != 0.0:
        rim = rim_frequency(options.diameter_px, options.defocus_waves)
        guess = refocus(probe.astype(np.complex128), error, rim).astype(np.complex64)
    obj = make_object(options, shape, object_seed).astype(np.complex64)
    counts = _draw_counts(
        obj.astype(np.complex128),
        probe.astype(np.complex128),
        positions,
        options,
        np.random.default_rng(noise_seed),
    )
    arrays: dict[str, NDArray[Any]] = {
        "diff3d": counts,
        "xcoords": positions[:, 1].copy(),
        "ycoords": positions[:, 0].copy(),
        "xcoords_start": nominal[:, 1].copy(),
        "ycoords_start": nominal[:, 0].copy(),
        "probeGuess": guess[0] if len(guess) == 1 else guess,
        "objectGuess": obj,
        "object_is_truth": np.array(True),
        "scan_index": np.zeros(len(counts), dtype=np.int64),
        "nphotons": np.array(options.photons, dtype=np.float64),
        "simulation": np.array(json.dumps(options.to_dict(), sort_keys=True)),
    }
    if options.fresnel_number is not None:
        optics = Optics(propagation="near", fresnel_number=options.fresnel_number)
        known = {name: value for name, value in optics.to_dict().items() if value is not None}
        arrays["_metadata"] = np.array(json.dumps({METADATA_KEY: known}))
    if options.detector_upsampling != 1:
        arrays["detector_upsampling"] = np.array(options.detector_upsampling)
    if error != 0.0:
        arrays["probe_true"] = probe[0] if len(probe) == 1 else probe
    return arrays


def write_scan(
    path: str | Path, options: SimulationOptions, *, compressed: bool = True
) -> dict[str, NDArray[Any]]:
    """Write what :func:`simulate` returns as an NPZ file that appears whole or not at all, and return it.

    ``compressed`` deflates the arrays; counts shrink to about half. ``ConfigError`` where the path is no
    file name ending in ``.npz``, and as :func:`simulate`.
    """
    if Path(path).suffix.lower() != ".npz" or Path(path).is_dir():
        raise ConfigError(
            f"output: not a data file (got {str(path)!r}, expected a file name ending in .npz). Rename it."
        )
    check_simulation(options, "--output", Path(path))
    write_npz(path, arrays := simulate(options), compressed=compressed)
    return arrays


def check_simulation(options: SimulationOptions, flag: str, path: Path) -> None:
    """Refuse a simulation that would replace a picture it makes its object from, with ``ConfigError``.

    ``flag`` names the output.
    """
    named = {"--picture": options.picture, "--phase-picture": options.phase_picture}
    inputs = {name: None if read is None else Path(read) for name, read in named.items()}
    check_there(*inputs.values())
    check_outputs(inputs, [(flag, path)])
