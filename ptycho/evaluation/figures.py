"""Pictures of a run: objects, comparisons, probes; each is written whole or not at all.

Figures are drawn on their own Agg canvas, never through pyplot, so no global state changes. Row 0 of an
array is at the top; axes count the pixels of the full array, also where a picture shows a part of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ptycho.errors import DataError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ComplexArray = NDArray[np.complexfloating[Any, Any]]
Array = NDArray[Any]
RealArray = NDArray[np.floating[Any]]
Limits = tuple[float, float]
Region = tuple[slice, slice]

DPI = 150
TARGET_SIDE_PX = 720  # long side of a map on paper, before rounding to whole multiples of its pixels
MAX_SIDE_PX = 2400
LIMIT_PERCENTILES = (0.5, 99.5)
WELL_COVERED = 0.5  # of the median coverage: the rim of a scan is noisy and must not set the colours
MAX_PROBE_MODES = 8
UNCOVERED_GREY = "0.85"


def new_figure(width_in: float, height_in: float) -> Figure:
    """Return an empty white figure on its own Agg canvas."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width_in, height_in), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write the figure as PNG under a temporary name, then rename it."""
    from ptycho.data.npz import atomic_path

    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=DPI)
    return Path(path)


def _limits(values: Array) -> Limits:
    """Return robust colour limits, widened around a flat map so that its rounding noise stays unseen."""
    values = values[np.isfinite(values)]
    if values.size == 0:
        return 0.0, 1.0
    low, high = (float(v) for v in np.percentile(values, LIMIT_PERCENTILES))
    middle = 0.5 * (low + high)
    if high - low < 1e-5 * max(abs(middle), 1.0):
        half = 0.05 * max(abs(middle), 1.0)
        return middle - half, middle + half
    return low, high


def _region(where: str, valid: NDArray[np.bool_]) -> Region:
    from ptycho.evaluation.gauge import gauge_fit_region

    if not valid.any():
        raise DataError(
            f"{where}: there is nothing to draw (got 0 of {valid.size} pixels covered and "
            "finite, expected >= 1). Check the coverage and the reconstruction."
        )
    return gauge_fit_region(valid)


def _checked_image(where: str, image: Array, like: Array | None = None) -> Array:
    """Return the image as an array once it is known to be (H, W) and shaped like ``like``."""
    image = np.asarray(image)
    if image.ndim != 2 or image.size == 0 or (like is not None and image.shape != like.shape):
        rule = "(H, W)" if like is None else str(like.shape)
        raise DataError(
            f"{where}: the array has the wrong shape (got {image.shape}, expected {rule}). "
            "Pass maps of one object."
        )
    return image


def _phase_about_median(obj: Array, inside: NDArray[np.bool_]) -> RealArray:
    """Return the phase [rad] after a global offset is removed, so that the map is centred on 0."""
    turned = obj * np.exp(-1j * np.angle(obj[inside].sum()))
    return np.angle(turned * np.exp(-1j * np.median(np.angle(turned[inside]))))


def _draw_map(
    axes: Axes, values: Array, region: Region, limits: Limits, *, cmap: str, scale: float = 1.0
) -> Any:
    """Draw part of a map, its axes in pixels of the full map times ``scale``; NaN is light grey."""
    from matplotlib import colormaps

    rows, columns = region
    extent = tuple(scale * (edge - 0.5) for edge in (columns.start, columns.stop, rows.stop, rows.start))
    shown = values[region]
    fits = max(shown.shape) <= MAX_SIDE_PX
    image = axes.imshow(
        shown,
        cmap=colormaps[cmap].with_extremes(bad=UNCOVERED_GREY),
        vmin=limits[0],
        vmax=limits[1],
        origin="upper",
        extent=extent,
        aspect="equal",
        interpolation="nearest" if fits else "antialiased",
        interpolation_stage="data",
    )
    axes.tick_params(labelsize=8)
    axes.locator_params(nbins=6)
    return image


def _colour_bar(figure: Figure, image: Any, label: str, **place: Any) -> None:
    """Add a colour bar whose ticks are plain numbers."""
    from matplotlib.ticker import MaxNLocator, ScalarFormatter

    bar = figure.colorbar(image, format=ScalarFormatter(useOffset=False), ticks=MaxNLocator(6), **place)
    bar.set_label(label, fontsize=9)
    bar.ax.tick_params(labelsize=8)


def _panel(
    axes: Axes, values: Array, region: Region, limits: Limits, cmap: str, unit: str, title: str, size: int
) -> None:
    """Draw part of a map with its title and a colour bar."""
    image = _draw_map(axes, values, region, limits, cmap=cmap)
    axes.set_title(title, fontsize=size)
    _colour_bar(axes.figure, image, unit, ax=axes, fraction=0.05, pad=0.02)


def _save_map(
    path: Path, values: Array, valid: Array, limits: Limits, pixel_size_m: float | None, cmap: str, unit: str
) -> Path:
    """Write one map; each of its pixels becomes a whole number of picture pixels, so nothing is resampled."""
    region = _region(path.name, valid)
    shape = tuple(s.stop - s.start for s in region)
    zoom = max(1, TARGET_SIDE_PX // max(shape)) if max(shape) <= MAX_SIDE_PX else MAX_SIDE_PX / max(shape)
    map_height, map_width = (max(1, round(zoom * n)) for n in shape)
    left, right, bottom, top = 120, 195, 98, 68
    width, height = left + max(map_width, 240) + right, bottom + max(map_height, 240) + top
    figure = new_figure((width + 0.01) / DPI, (height + 0.01) / DPI)  # the canvas size is rounded down
    x, y = (left + width - right - map_width) // 2, (bottom + height - top - map_height) // 2
    axes = figure.add_axes((x / width, y / height, map_width / width, map_height / height))
    length, scale = ("px", 1.0) if pixel_size_m is None else ("µm", 1e6 * pixel_size_m)
    image = _draw_map(axes, np.where(valid, values, np.nan), region, limits, cmap=cmap, scale=scale)
    axes.locator_params(axis="y", nbins=int(np.clip(map_height // 50, 1, 6)))
    axes.locator_params(axis="x", nbins=int(np.clip(map_width // 80, 1, 6)))
    axes.set_title(path.stem.replace("_", " ").capitalize(), fontsize=10)
    axes.set_xlabel(f"x [{length}]", fontsize=9)
    axes.set_ylabel(f"y [{length}]", fontsize=9)
    bar = figure.add_axes(
        ((width - right + 22) / width, bottom / height, 24 / width, (height - bottom - top) / height)
    )
    _colour_bar(figure, image, unit, cax=bar)
    return save_figure(figure, path)


def _save_pair(
    amplitude: RealArray,
    phase_rad: RealArray,
    valid: NDArray[np.bool_],
    inside: NDArray[np.bool_],
    output_dir: str | Path,
    pixel_size_m: float | None,
    phase_limits_rad: tuple[float | None, float | None] = (None, None),
) -> tuple[Path, Path]:
    """Write both maps; colours follow the pixels ``inside`` where no limit is given."""
    folder = Path(output_dir)
    low, high = (
        chosen if given is None else given
        for chosen, given in zip(_limits(phase_rad[inside]), phase_limits_rad, strict=True)
    )
    maps = (
        ("amplitude", ("gray", "transmission"), amplitude, valid, _limits(amplitude[inside])),
        ("phase", ("viridis", "rad"), phase_rad, valid, (low, high)),
    )
    amplitude_png, phase_png = (
        _save_map(folder / f"reconstructed_{name}.png", *drawn, pixel_size_m, *look)
        for name, look, *drawn in maps
    )
    return amplitude_png, phase_png


def save_reconstruction_pngs(
    obj: ComplexArray,
    output_dir: str | Path,
    *,
    coverage: Array | None = None,
    pixel_size_m: float | None = None,
    phase_limits_rad: tuple[float | None, float | None] = (None, None),
) -> tuple[Path, Path]:
    """Write ``reconstructed_amplitude.png`` (gray) and ``reconstructed_phase.png`` (viridis) at 150 dpi.

    The pictures show the bounding box of the covered pixels of ``obj`` (H, W); uncovered ones, where
    ``coverage`` (H, W) is not > 0, are light grey. Colours span the 0.5 to 99.5 percentile of the
    well-covered pixels; an end of ``phase_limits_rad`` goes before it. The phase is centred on its median.
    Axes are in µm where the object pixel ``pixel_size_m`` is given, else in pixels. ``DataError`` where
    shapes differ, the pixel size is not positive, or no covered pixel is finite.
    """
    obj = _checked_image("reconstruction picture", obj)
    if pixel_size_m is not None and not (np.isfinite(pixel_size_m) and pixel_size_m > 0):
        raise DataError(
            f"reconstruction picture: pixel_size_m is out of bounds (got {pixel_size_m} m, "
            "expected > 0 m). Leave it out for axes in pixels."
        )
    seen = np.ones(obj.shape) if coverage is None else _checked_image("coverage", coverage, obj)
    valid = (seen > 0) & np.isfinite(obj)
    _region("reconstruction picture", valid)
    inside = valid & (seen >= WELL_COVERED * np.median(seen[valid]))
    phase = _phase_about_median(np.where(valid, obj, 0), inside)
    return _save_pair(np.abs(obj), phase, valid, inside, output_dir, pixel_size_m, phase_limits_rad)


def save_individual_images(
    amplitude: RealArray, phase_rad: RealArray, output_dir: str | Path
) -> tuple[Path, Path]:
    """Write the two pictures of :func:`save_reconstruction_pngs` from real maps (H, W), the phase as given.

    ``DataError`` where a map is not two-dimensional, shapes differ, or no pixel is finite.
    """
    amplitude = _checked_image("amplitude picture", amplitude)
    phase_rad = _checked_image("phase picture", phase_rad, amplitude)
    valid = np.isfinite(amplitude) & np.isfinite(phase_rad)
    return _save_pair(amplitude, phase_rad, valid, valid, output_dir, None)


def _score_line(scores: Mapping[str, float]) -> str:
    parts = [f"{name} {value:.4g}" for name, value in scores.items()]
    half = len(parts) if len(parts) <= 5 else (len(parts) + 1) // 2
    return "\n".join("   ".join(line) for line in (parts[:half], parts[half:]) if line)


def save_comparison_png(
    obj: ComplexArray,
    truth: ComplexArray,
    path: str | Path,
    scores: Mapping[str, float] | None = None,
    mask: Array | None = None,
    names: tuple[str, str] = ("reconstruction", "truth"),
) -> Path:
    """Write truth, reconstruction and difference side by side, amplitude above phase.

    The gauge of ``obj`` (H, W) is fitted already. Both share the truth's colour limits and are turned by its
    mean phase; the phase difference is wrapped. ``mask`` (H, W) is what is shown, ``names`` what the two are
    called, ``scores`` go to the title. ``DataError`` where shapes differ, or the mask holds no finite pixel.
    """
    obj = _checked_image("comparison", obj)
    truth = _checked_image("comparison", truth, obj)
    valid = np.isfinite(obj) & np.isfinite(truth)
    if mask is not None:
        valid &= _checked_image("mask", mask, obj).astype(bool)
    region = _region("comparison", valid)
    obj, truth = np.where(valid, obj, np.nan), np.where(valid, truth, np.nan)
    turn = np.exp(-1j * np.angle(truth[valid].sum()))
    phase, amplitude = np.angle(truth * turn), np.abs(truth)
    rows = (
        ("amplitude", "transmission", "gray", amplitude, np.abs(obj), np.abs(obj) - amplitude),
        ("phase", "rad", "viridis", phase, np.angle(obj * turn), np.angle(obj * truth.conj())),
    )
    height, width = (s.stop - s.start for s in region)
    panel_height = 3.1 * float(np.clip(height / width, 0.4, 2.5))
    figure = new_figure(12.6, 2 * (panel_height + 0.4) + (0.6 if scores else 0.1))
    figure.set_layout_engine("constrained")
    grid = figure.subplots(2, 3)
    for row, (name, unit, cmap, known, found, difference) in enumerate(rows):
        spread = max(abs(v) for v in _limits(difference))
        columns = (
            (names[1], known, _limits(known), cmap),
            (names[0], found, _limits(known), cmap),
            ("difference", difference, (-spread, spread), "RdBu_r"),
        )
        for axes, (kind, values, limits, colours) in zip(grid[row], columns, strict=True):
            _panel(axes, values, region, limits, colours, unit, f"{name}: {kind}", 10)
    if scores:
        figure.suptitle(_score_line(scores), fontsize=9)
    return save_figure(figure, path)


def save_probe_png(probe: ComplexArray, path: str | Path) -> Path:
    """Write the modes (P, N, N) or (N, N) of a probe [sqrt(photons)], amplitude above phase, and their power.

    The first 8 are drawn. The phase is grey where the amplitude is below 1 % of the mode's peak.
    ``DataError`` where the array has another rank, or holds a value that is not finite.
    """
    modes = np.asarray(probe)
    modes = modes[None] if modes.ndim == 2 else modes
    if modes.ndim != 3 or modes.size == 0 or not np.isfinite(modes).all():
        raise DataError(
            f"{path}: the probe cannot be drawn (got shape {np.shape(probe)}, expected finite "
            "(P, N, N) or (N, N)). Pass one probe."
        )
    power = np.sum(np.abs(modes) ** 2, axis=(1, 2))
    share = power / max(float(power.sum()), np.finfo(np.float64).tiny)
    drawn = modes[:MAX_PROBE_MODES]
    figure = new_figure(3.4 * len(drawn), 5.6)
    figure.set_layout_engine("compressed")
    grid = figure.subplots(2, len(drawn), squeeze=False)
    whole = (slice(0, modes.shape[1]), slice(0, modes.shape[2]))
    for index, mode in enumerate(drawn):
        amplitude = np.abs(mode)
        visible = amplitude > 0.01 * amplitude.max()
        phase = np.where(visible, np.angle(mode * np.exp(-1j * np.angle(mode.sum()))), np.nan)
        top = float(amplitude.max()) or 1.0
        title = f"mode {index + 1} of {len(modes)}: {100 * share[index]:.3g} % of power"
        panels = (
            (amplitude, (0.0, top), "gray", "sqrt(photons)", title),
            (phase, (-np.pi, np.pi), "twilight", "rad", "phase"),
        )
        for axes, (values, *rest) in zip(grid[:, index], panels, strict=True):
            _panel(axes, values, whole, *rest, 9)
    return save_figure(figure, path)
