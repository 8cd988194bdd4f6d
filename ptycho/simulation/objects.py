"""Procedural test objects for simulated scans, plus one that is made from pictures.

A scene is drawn as two maps in [0, 1], absorption and thickness, on a (y, x) grid of object pixels.
Absorption 0..1 becomes the amplitude 1.0..0.6, thickness 0..1 a phase of ``phase_range_rad`` centred at
zero. Every scene is a function ``(shape_yx, rng, **options)`` that returns the transmission (H, W)
complex128.
"""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho.errors import ConfigError, DataError

AMPLITUDE_RANGE = (0.6, 1.0)
"""Amplitude of the most absorbing and of the empty parts of every scene."""
PHASE_RANGE_RAD = 1.5
"""Phase between thickness 0 and thickness 1 [rad]."""
BLUR_PX = 0.7
"""Gaussian sigma [px] that limits the band of every drawn edge to what a pixel grid can carry."""

Maps = NDArray[np.float64]


def _transmission(maps: Maps, phase_range_rad: float) -> NDArray[np.complex128]:
    """Turn the (absorption, thickness) maps, shape (2, H, W), into a slightly blurred complex object."""
    from scipy.ndimage import gaussian_filter

    smooth = gaussian_filter(maps, (0.0, BLUR_PX, BLUR_PX), mode="nearest")
    low, high = AMPLITUDE_RANGE
    amplitude = high - (high - low) * smooth[0]
    return amplitude * np.exp(1j * phase_range_rad * (smooth[1] - 0.5))


def _paint(maps: Maps, coverage: NDArray[np.float64], material: NDArray[np.float64]) -> None:
    """Cover the maps with a material; fractional coverage mixes, which anti-aliases every edge."""
    maps += coverage * (np.asarray(material)[:, None, None] - maps)


def _grid(shape_yx: tuple[int, int]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the broadcastable pixel coordinates (y, x)."""
    return np.arange(float(shape_yx[0]))[:, None], np.arange(float(shape_yx[1]))[None, :]


def _bar(
    grid: tuple[NDArray[np.float64], NDArray[np.float64]],
    centre_yx: tuple[float, float],
    length_px: float,
    width_px: float,
    angle_rad: float = 0.0,
) -> NDArray[np.float64]:
    """Return the coverage of a rectangle; at angle 0 its length runs along x."""
    dy, dx = grid[0] - centre_yx[0], grid[1] - centre_yx[1]
    along = dx * np.cos(angle_rad) + dy * np.sin(angle_rad)
    across = dy * np.cos(angle_rad) - dx * np.sin(angle_rad)
    inside = np.minimum(length_px / 2 - np.abs(along), width_px / 2 - np.abs(across))
    return np.clip(0.5 + inside, 0.0, 1.0)


def _star(
    grid: tuple[NDArray[np.float64], NDArray[np.float64]],
    centre_yx: tuple[float, float],
    radius_px: float,
    n_spokes: int,
    angle_rad: float,
) -> NDArray[np.float64]:
    """Return the coverage of a spoke pattern; the distance to a spoke's edge is ``r sin(n a) / n``."""
    dy, dx = grid[0] - centre_yx[0], grid[1] - centre_yx[1]
    radius = np.hypot(dy, dx)
    spokes = 0.5 + radius * np.sin(n_spokes * (np.arctan2(dy, dx) - angle_rad)) / n_spokes
    return np.clip(spokes, 0.0, 1.0) * np.clip(0.5 + radius_px - radius, 0.0, 1.0)


def _leaves(
    shape_yx: tuple[int, int], rng: np.random.Generator, radius_range_px: tuple[float, float]
) -> Maps:
    """Return maps fully covered by discs and squares whose radii follow r^-3: edges at every scale."""
    small, large = radius_range_px
    mean_square = 2 * np.log(large / small) / (small**-2 - large**-2)
    count = int(np.ceil(4 * shape_yx[0] * shape_yx[1] / (np.pi * mean_square)))
    radii = (rng.random(count) * (small**-2 - large**-2) + large**-2) ** -0.5
    centres = rng.random((count, 2)) * np.array(shape_yx)
    angles = rng.random(count) * np.pi
    square = rng.random(count) < 0.4
    materials = rng.random((count, 2))
    maps = np.full((2, *shape_yx), 0.5)
    yy, xx = _grid(shape_yx)
    for i in range(count):
        reach = 1.5 * radii[i] + 1
        rows, columns = (slice(max(0, int(c - reach)), int(c + reach) + 2) for c in centres[i])
        grid = (yy[rows], xx[:, columns])
        if square[i]:
            coverage = _bar(grid, tuple(centres[i]), 1.8 * radii[i], 1.8 * radii[i], angles[i])
        else:
            distance = np.hypot(grid[0] - centres[i, 0], grid[1] - centres[i, 1])
            coverage = np.clip(0.5 + radii[i] - distance, 0.0, 1.0)
        _paint(maps[:, rows, columns], coverage, materials[i])
    return maps


def lines(
    shape_yx: tuple[int, int],
    rng: np.random.Generator,
    *,
    n_lines: int = 40,
    width_range_px: tuple[float, float] = (1.5, 8.0),
    phase_range_rad: float = PHASE_RANGE_RAD,
) -> NDArray[np.complex128]:
    """Draw straight bars of random place, direction, width and material."""
    maps = np.zeros((2, *shape_yx))
    grid = _grid(shape_yx)
    for _ in range(n_lines):
        centre = tuple(rng.random(2) * np.array(shape_yx))
        length = rng.uniform(0.3, 1.2) * max(shape_yx)
        bar = _bar(grid, centre, length, rng.uniform(*width_range_px), rng.uniform(0.0, np.pi))
        _paint(maps, bar, rng.uniform(0.15, 1.0, size=2))
    return _transmission(maps, phase_range_rad)


def siemens_star(
    shape_yx: tuple[int, int],
    rng: np.random.Generator,
    *,
    n_spokes: int = 18,
    phase_range_rad: float = PHASE_RANGE_RAD,
) -> NDArray[np.complex128]:
    """Draw a spoke target with a random centre, rotation and material."""
    maps = np.zeros((2, *shape_yx))
    centre = tuple(rng.uniform(0.4, 0.6, size=2) * shape_yx)
    star = _star(_grid(shape_yx), centre, 0.42 * min(shape_yx), n_spokes, rng.uniform(0.0, 2 * np.pi))
    _paint(maps, star, np.array([rng.uniform(0.6, 1.0), 1.0]))
    return _transmission(maps, phase_range_rad)


def dead_leaves(
    shape_yx: tuple[int, int],
    rng: np.random.Generator,
    *,
    radius_range_px: tuple[float, float] = (3.0, 40.0),
    phase_range_rad: float = PHASE_RANGE_RAD,
) -> NDArray[np.complex128]:
    """Draw overlapping discs and squares of all sizes, the usual stand-in for natural images."""
    return _transmission(_leaves(shape_yx, rng, radius_range_px), phase_range_rad)


def gaussian_random_field(
    shape_yx: tuple[int, int],
    rng: np.random.Generator,
    *,
    exponent: float = 3.0,
    phase_range_rad: float = PHASE_RANGE_RAD,
) -> NDArray[np.complex128]:
    """Draw a smooth random field whose power falls as ``frequency ** -exponent``, squeezed into [0, 1]."""
    noise = rng.standard_normal((2, *shape_yx))
    frequency = np.hypot(np.fft.fftfreq(shape_yx[0])[:, None], np.fft.fftfreq(shape_yx[1])[None, :])
    frequency[0, 0] = np.inf
    field = np.fft.ifft2(np.fft.fft2(noise) * frequency ** (-exponent / 2)).real
    field /= field.std(axis=(1, 2), keepdims=True)
    # Half of the thickness is shared, because a thicker place also absorbs more.
    field[0] = (field[0] + field[1]) / np.sqrt(2.0)
    return _transmission(0.5 + 0.5 * np.tanh(field), phase_range_rad)


def collage(
    shape_yx: tuple[int, int], rng: np.random.Generator, *, phase_range_rad: float = PHASE_RANGE_RAD
) -> NDArray[np.complex128]:
    """Draw a star, line pairs and a letter F on faint leaves: fine and coarse, no mirror symmetry."""
    height, width = shape_yx
    size = min(shape_yx)
    grid = _grid(shape_yx)
    maps = _leaves(shape_yx, rng, (0.025 * size + 1.0, 0.2 * size))
    maps *= np.array([0.5, 0.6])[:, None, None]
    star = _star(grid, (0.36 * height, 0.4 * width), 0.17 * size, 16, rng.uniform(0.0, 2 * np.pi))
    _paint(maps, star, np.array([0.9, 1.0]))
    top, left, stroke = 0.5 * height, 0.62 * width, 0.04 * size
    letter = np.maximum.reduce(
        [
            _bar(grid, (top + 0.12 * size, left), stroke, 0.28 * size),
            _bar(grid, (top, left + 0.07 * size), 0.18 * size, stroke),
            _bar(grid, (top + 0.11 * size, left + 0.05 * size), 0.14 * size, stroke),
        ]
    )
    _paint(maps, letter, np.array([1.0, 0.0]))
    # Line pairs of shrinking period, down to 4 px, below the star.
    row = 0.57 * height
    for period in np.maximum(4.0, size * np.array([0.034, 0.027, 0.02])):
        for k in range(3):
            _paint(maps, _bar(grid, (row + k * period, 0.38 * width), 0.2 * size, period / 2), np.ones(2))
        row += 3.4 * period
    return _transmission(maps, phase_range_rad)


def _grey(path: str | Path, shape_yx: tuple[int, int]) -> NDArray[np.float64]:
    """Return a picture as grey values in [0, 1], cropped about its middle to the aspect and resized."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            grey = image if image.mode in ("F", "I", "I;16") else image.convert("L")
            fitted = ImageOps.fit(grey.convert("F"), (shape_yx[1], shape_yx[0]), Image.Resampling.BICUBIC)
    except (FileNotFoundError, IsADirectoryError, UnidentifiedImageError) as error:
        raise DataError(
            f"picture: cannot be read as an image (got {str(path)!r}, expected a PNG, JPEG or TIFF file). "
            "Check the path."
        ) from error
    values = np.asarray(fitted, dtype=np.float64)
    low, high = values.min(), values.max()
    if high <= low:
        raise DataError(
            f"picture: every pixel is the same (got {low:g} in {str(path)!r}, expected some contrast). "
            "Choose another one."
        )
    return (values - low) / (high - low)


def picture(
    path: str | Path,
    shape_yx: tuple[int, int],
    *,
    phase_path: str | Path | None = None,
    phase_range_rad: float = PHASE_RANGE_RAD,
) -> NDArray[np.complex128]:
    """Make an object (H, W) complex128 from a picture, cropped about its middle: bright places transmit more.

    The phase is that of ``phase_path``, else of the same picture. ``DataError`` where a file is no picture,
    or one without contrast.
    """
    amplitude = _grey(path, shape_yx)
    thickness = amplitude if phase_path is None else _grey(phase_path, shape_yx)
    return _transmission(np.stack([1.0 - amplitude, thickness]), phase_range_rad)


SCENES: dict[str, Callable[..., NDArray[np.complex128]]] = {
    "collage": collage,
    "dead_leaves": dead_leaves,
    "gaussian_random_field": gaussian_random_field,
    "lines": lines,
    "siemens_star": siemens_star,
}
"""Name of every scene and the function that draws it."""


def check_scene(name: str) -> str:
    """Return the canonical name of a scene, dashes count as underscores; ``ConfigError`` for none."""
    key = name.replace("-", "_").lower()
    if key not in SCENES:
        near = (get_close_matches(key, SCENES, n=1) or list(SCENES))[0]
        known = ", ".join(SCENES)
        raise ConfigError(f"scene: unknown name (got {name!r}, expected one of {known}). Use {near!r}.")
    return key


def make_scene(
    name: str, shape_yx: tuple[int, int], seed: int | np.random.SeedSequence, **options: Any
) -> NDArray[np.complex128]:
    """Draw the scene of a name; the same seed draws the same object."""
    return SCENES[check_scene(name)](shape_yx, np.random.default_rng(seed), **options)
