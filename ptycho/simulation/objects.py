"""Procedural test objects for simulated scans, plus one that is made from pictures.

A test object is drawn as two maps in [0, 1], absorption and thickness, on a (y, x) grid of object pixels.
Absorption 0..1 becomes the amplitude 1.0..0.6, thickness 0..1 a phase of ``phase_range_rad`` centred at
zero.
"""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ptycho.errors import ConfigError, DataError

AMPLITUDE_RANGE = (0.6, 1.0)
"""Amplitude of the most absorbing and of the empty parts of every test object."""
PHASE_RANGE_RAD = 1.5
"""Phase between thickness 0 and thickness 1 [rad]."""
EDGE_BLUR_PX = 0.7
"""Gaussian sigma that limits the band of what is drawn to what a pixel grid can carry [px]."""

Map = NDArray[np.float64]  # (H, W)
Maps = NDArray[np.float64]  # (2, H, W): absorption and thickness
Grid = tuple[Map, Map]  # broadcastable pixel coordinates (y, x)
Pair = tuple[float, float]
Shape = tuple[int, int]


def _transmission(maps: Maps, phase_range_rad: float, edge_blur_px: float) -> NDArray[np.complex128]:
    """Turn maps into a slightly blurred complex object."""
    from scipy.ndimage import gaussian_filter

    smooth = gaussian_filter(maps, (0.0, edge_blur_px, edge_blur_px), mode="nearest")
    low, high = AMPLITUDE_RANGE
    amplitude = high - (high - low) * smooth[0]
    return amplitude * np.exp(1j * phase_range_rad * (smooth[1] - 0.5))


def _paint(maps: Maps, coverage: Map, material: NDArray[np.float64]) -> None:
    """Cover the maps with a material; fractional coverage mixes, which anti-aliases every edge."""
    maps += coverage * (np.asarray(material)[:, None, None] - maps)


def _grid(shape_yx: Shape) -> Grid:
    return np.arange(float(shape_yx[0]))[:, None], np.arange(float(shape_yx[1]))[None, :]


def _bar(grid: Grid, centre_yx: Pair, length_px: float, width_px: float, angle_rad: float = 0.0) -> Map:
    """Return the coverage of a rectangle; at angle 0 its length runs along x."""
    dy, dx = grid[0] - centre_yx[0], grid[1] - centre_yx[1]
    along = dx * np.cos(angle_rad) + dy * np.sin(angle_rad)
    across = dy * np.cos(angle_rad) - dx * np.sin(angle_rad)
    inside = np.minimum(length_px / 2 - np.abs(along), width_px / 2 - np.abs(across))
    return np.clip(0.5 + inside, 0.0, 1.0)


def _star(grid: Grid, centre_yx: Pair, radius_px: float, n_spokes: int, angle_rad: float) -> Map:
    """Return the coverage of a spoke pattern; the distance to a spoke's edge is ``r sin(n a) / n``."""
    dy, dx = grid[0] - centre_yx[0], grid[1] - centre_yx[1]
    radius = np.hypot(dy, dx)
    spokes = 0.5 + radius * np.sin(n_spokes * (np.arctan2(dy, dx) - angle_rad)) / n_spokes
    return np.clip(spokes, 0.0, 1.0) * np.clip(0.5 + radius_px - radius, 0.0, 1.0)


def _leaves(shape_yx: Shape, rng: np.random.Generator, radius_range_px: Pair) -> Maps:
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


def lines(shape_yx: Shape, rng: np.random.Generator) -> Maps:
    """Draw straight bars of random place, direction, width and material."""
    maps = np.zeros((2, *shape_yx))
    grid = _grid(shape_yx)
    for _ in range(40):
        centre = tuple(rng.random(2) * np.array(shape_yx))
        length = rng.uniform(0.3, 1.2) * max(shape_yx)
        bar = _bar(grid, centre, length, rng.uniform(1.5, 8.0), rng.uniform(0.0, np.pi))
        _paint(maps, bar, rng.uniform(0.15, 1.0, size=2))
    return maps


def siemens_star(shape_yx: Shape, rng: np.random.Generator) -> Maps:
    """Draw a spoke target with a random centre, rotation and material."""
    maps = np.zeros((2, *shape_yx))
    centre = tuple(rng.uniform(0.4, 0.6, size=2) * shape_yx)
    star = _star(_grid(shape_yx), centre, 0.42 * min(shape_yx), 18, rng.uniform(0.0, 2 * np.pi))
    _paint(maps, star, np.array([rng.uniform(0.6, 1.0), 1.0]))
    return maps


def dead_leaves(shape_yx: Shape, rng: np.random.Generator) -> Maps:
    """Draw overlapping discs and squares of all sizes, the usual stand-in for natural images."""
    return _leaves(shape_yx, rng, (3.0, 40.0))


def _random_field(shape_yx: Shape, rng: np.random.Generator, exponent: float) -> Maps:
    """Return two fields of mean 0 and deviation 1 whose power falls as ``frequency ** -exponent``."""
    noise = rng.standard_normal((2, *shape_yx))
    frequency = np.hypot(np.fft.fftfreq(shape_yx[0])[:, None], np.fft.fftfreq(shape_yx[1])[None, :])
    frequency[0, 0] = np.inf
    field = np.fft.ifft2(np.fft.fft2(noise) * frequency ** (-exponent / 2)).real
    return field / field.std(axis=(1, 2), keepdims=True)


def gaussian_random_field(shape_yx: Shape, rng: np.random.Generator) -> Maps:
    """Draw a smooth random field whose power falls as ``frequency ** -3``, squeezed into [0, 1]."""
    field = _random_field(shape_yx, rng, 3.0)
    # Half of the thickness is shared, because a thicker place also absorbs more.
    field[0] = (field[0] + field[1]) / np.sqrt(2.0)
    return 0.5 + 0.5 * np.tanh(field)


def texture(shape_yx: Shape, rng: np.random.Generator) -> Maps:
    """Draw rough texture on faint leaves: its power falls as ``frequency ** -2``, as that of natural pictures
    does, and the borders of the leaves are the edges in it."""
    field = _random_field(shape_yx, rng, 2.0)
    return np.clip(0.3 * _leaves(shape_yx, rng, (6.0, 60.0)) + 0.7 * (0.5 + 0.25 * field), 0.0, 1.0)


def power_law(shape_yx: Shape, rng: np.random.Generator) -> Maps:
    """Draw rough to smooth fields: their power falls as ``frequency ** -a``, a anywhere from 1 to 4, and what
    absorption and thickness share, how strong each is, and how far it is cut at its ends differs."""
    field = _random_field(shape_yx, rng, rng.uniform(1.0, 4.0))
    shared = rng.uniform(0.0, 1.0)
    field[0] = shared * field[1] + np.sqrt(1.0 - shared**2) * field[0]
    contrast = 10.0 ** rng.uniform(-1.0, 0.4, size=(2, 1, 1))
    return np.clip(0.5 + 0.25 * contrast * field, 0.0, 1.0)


def patchwork(shape_yx: Shape, rng: np.random.Generator) -> Maps:
    """Draw leaves of all sizes with a texture inside, rough or smooth, whose strength changes at edges of its
    own: edges between places that differ in kind, as in natural pictures and in grains or cells."""
    small = rng.uniform(1.5, 6.0)
    leaves = _leaves(shape_yx, rng, (small, rng.uniform(20.0, 80.0)))
    strength = _leaves(shape_yx, rng, (6.0, 60.0))
    field = _random_field(shape_yx, rng, rng.uniform(1.0, 3.5))
    if rng.random() < 0.5:
        # A thicker place often also absorbs more.
        leaves[0], field[0], strength[0] = leaves[1], field[1], strength[1]
    flat = rng.uniform(0.1, 0.9)
    contrast = 10.0 ** rng.uniform(-0.6, 0.2, size=(2, 1, 1))
    maps = flat * (leaves - 0.5) + (1.0 - flat) * strength**2 * field
    return np.clip(0.5 + contrast * maps, 0.0, 1.0)


def lens(shape_yx: Shape, rng: np.random.Generator) -> Maps:
    """Draw one wide, smooth body off the middle, finely textured: for phases of many turns that still show
    which way they go from pixel to pixel."""
    height, width = shape_yx
    y, x = _grid(shape_yx)
    middle = rng.uniform(0.46, 0.54, size=2)
    radii = np.array([0.46 * height, 0.5 * width]) * rng.uniform(0.9, 1.0, size=2)
    away = np.hypot((y - middle[0] * height) / radii[0], (x - middle[1] * width) / radii[1])
    body = np.where(away < 1.0, np.cos(0.5 * np.pi * np.minimum(away, 1.0)) ** 2, 0.0)
    texture = _leaves(shape_yx, rng, (3.0, 12.0))
    return np.stack([0.5 * body + 0.5 * texture[0], 0.94 * body + 0.06 * texture[1]])


def collage(shape_yx: Shape, rng: np.random.Generator) -> Maps:
    """Draw a star, line pairs and a letter F on faint leaves: fine and coarse, no mirror symmetry."""
    height, width = shape_yx
    size = min(shape_yx)
    grid = _grid(shape_yx)
    maps = _leaves(shape_yx, rng, (0.025 * size + 1.0, 0.2 * size))
    maps *= np.array([0.5, 0.6])[:, None, None]
    star = _star(grid, (0.36 * height, 0.4 * width), 0.17 * size, 16, rng.uniform(0.0, 2 * np.pi))
    _paint(maps, star, np.array([0.9, 1.0]))
    top, left, stroke = 0.5 * height, 0.62 * width, 0.04 * size
    strokes = (
        _bar(grid, (top + 0.12 * size, left), stroke, 0.28 * size),
        _bar(grid, (top, left + 0.07 * size), 0.18 * size, stroke),
        _bar(grid, (top + 0.11 * size, left + 0.05 * size), 0.14 * size, stroke),
    )
    letter = np.maximum.reduce(strokes)
    _paint(maps, letter, np.array([1.0, 0.0]))
    # Line pairs of shrinking period, down to 4 px, below the star.
    row = 0.57 * height
    for period in np.maximum(4.0, size * np.array([0.034, 0.027, 0.02])):
        for k in range(3):
            _paint(maps, _bar(grid, (row + k * period, 0.38 * width), 0.2 * size, period / 2), np.ones(2))
        row += 3.4 * period
    return maps


def _grey(path: str | Path, shape_yx: Shape) -> Map:
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
    shape_yx: Shape,
    *,
    phase_path: str | Path | None = None,
    phase_range_rad: float = PHASE_RANGE_RAD,
    edge_blur_px: float = EDGE_BLUR_PX,
) -> NDArray[np.complex128]:
    """Make an object (H, W) complex128 from a picture, cropped about its middle: bright places transmit more.

    The phase is that of ``phase_path``, else of the same picture. ``DataError`` where a file is no picture,
    or one without contrast.
    """
    amplitude = _grey(path, shape_yx)
    thickness = amplitude if phase_path is None else _grey(phase_path, shape_yx)
    return _transmission(np.stack([1.0 - amplitude, thickness]), phase_range_rad, edge_blur_px)


SCENES: dict[str, Callable[[Shape, np.random.Generator], Maps]] = {
    scene.__name__: scene
    for scene in (
        collage,
        dead_leaves,
        gaussian_random_field,
        lens,
        lines,
        patchwork,
        power_law,
        siemens_star,
        texture,
    )
}
"""Name of every test object and the function that draws it."""


def check_scene(name: str) -> str:
    """Return the canonical name of a test object, dashes count as underscores; ``ConfigError`` for none."""
    key = name.replace("-", "_").lower()
    if key not in SCENES:
        near = (get_close_matches(key, SCENES, n=1) or list(SCENES))[0]
        known = ", ".join(SCENES)
        raise ConfigError(f"scene: unknown name (got {name!r}, expected one of {known}). Use {near!r}.")
    return key


def make_scene(
    name: str,
    shape_yx: Shape,
    seed: int | np.random.SeedSequence,
    *,
    phase_range_rad: float = PHASE_RANGE_RAD,
    edge_blur_px: float = EDGE_BLUR_PX,
) -> NDArray[np.complex128]:
    """Draw the test object of a name (H, W); the same seed draws the same one."""
    maps = SCENES[check_scene(name)](shape_yx, np.random.default_rng(seed))
    return _transmission(maps, phase_range_rad, edge_blur_px)
