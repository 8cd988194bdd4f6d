"""Pictures of a run: objects, comparisons, probes, curves; each is written whole or not at all.

Figures are drawn on their own Agg canvas, never through pyplot, so no global state changes. Row 0 of an
array is at the top; axes count the pixels of the full array, also where a picture shows a part of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ptycho.data.npz import atomic_path
from ptycho.errors import DataError
from ptycho.evaluation.gauge import gauge_fit_region
from ptycho.evaluation.metrics import FRC
from ptycho.evaluation.phase import PhaseView, shown_phase, unwrapped

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


def _draw_map(axes: Axes, values: Array, region: Region, limits: Limits, cmap: str) -> Any:
    """Draw part of a map, its axes in pixels of the full map; NaN is light grey."""
    from matplotlib import colormaps

    rows, columns = region
    extent = tuple(edge - 0.5 for edge in (columns.start, columns.stop, rows.stop, rows.start))
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
    image = _draw_map(axes, values, region, limits, cmap)
    axes.set_title(title, fontsize=size)
    _colour_bar(axes.figure, image, unit, ax=axes, fraction=0.05, pad=0.02)


def _save_map(
    path: Path, values: Array, valid: Array, limits: Limits, cmap: str, unit: str, title: str
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
    image = _draw_map(axes, np.where(valid, values, np.nan), region, limits, cmap)
    axes.locator_params(axis="y", nbins=int(np.clip(map_height // 50, 1, 6)))
    axes.locator_params(axis="x", nbins=int(np.clip(map_width // 80, 1, 6)))
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("x [px]", fontsize=9)
    axes.set_ylabel("y [px]", fontsize=9)
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
    view: PhaseView,
) -> tuple[Path, Path]:
    """Write both maps; colours follow the pixels ``inside`` where no limit is given."""
    folder = Path(output_dir)
    low, high = (
        chosen if given is None else given
        for chosen, given in zip(_limits(phase_rad[inside]), view.limits_rad, strict=True)
    )
    amplitude_png, phase_png = (folder / f"reconstructed_{name}.png" for name in ("amplitude", "phase"))
    limits = _limits(amplitude[inside])
    return (
        _save_map(amplitude_png, amplitude, valid, limits, "gray", "transmission", "Reconstructed amplitude"),
        _save_map(
            phase_png, phase_rad, valid, (low, high), "viridis", "rad", view.title("Reconstructed phase")
        ),
    )


def save_reconstruction_pngs(
    obj: ComplexArray,
    output_dir: str | Path,
    *,
    coverage: Array | None = None,
    view: PhaseView | None = None,
) -> tuple[Path, Path]:
    """Write ``reconstructed_amplitude.png`` (gray) and ``reconstructed_phase.png`` (viridis) at 150 dpi.

    The pictures show the bounding box of the covered pixels of ``obj`` (H, W); uncovered ones, where
    ``coverage`` (H, W) is not > 0, are light grey. Colours span the 0.5 to 99.5 percentile of the
    well-covered pixels; the limits of a ``view`` go before them. The phase is centred on its median.
    ``DataError`` where shapes differ, or no covered pixel is finite.
    """
    obj = _checked_image("reconstruction picture", obj)
    seen = np.ones(obj.shape) if coverage is None else _checked_image("coverage", coverage, obj)
    valid = (seen > 0) & np.isfinite(obj)
    _region("reconstruction picture", valid)
    inside = valid & (seen >= WELL_COVERED * np.median(seen[valid]))
    view = view or PhaseView()
    phase = shown_phase(np.where(valid, obj, 0), valid, inside, seen, view)
    return _save_pair(np.abs(obj), phase, valid, inside, output_dir, view)


def save_individual_images(
    amplitude: RealArray, phase_rad: RealArray, output_dir: str | Path
) -> tuple[Path, Path]:
    """Write the two pictures of :func:`save_reconstruction_pngs` from real maps (H, W), the phase as given.

    ``DataError`` where a map is not two-dimensional, shapes differ, or no pixel is finite.
    """
    amplitude = _checked_image("amplitude picture", amplitude)
    phase_rad = _checked_image("phase picture", phase_rad, amplitude)
    valid = np.isfinite(amplitude) & np.isfinite(phase_rad)
    return _save_pair(amplitude, phase_rad, valid, valid, output_dir, PhaseView())


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
    unwrap: bool = False,
) -> Path:
    """Write truth, reconstruction and difference side by side, amplitude above phase.

    The gauge of ``obj`` (H, W) is fitted already. Both share the truth's colour limits and are turned by its
    mean phase; the phase difference is wrapped. With ``unwrap`` the truth is unwrapped, and the other one is
    shown on its branch. ``mask`` (H, W) is what is shown, ``names`` what the two are called, ``scores`` go to
    the title. ``DataError`` where shapes differ, or the mask holds no finite pixel.
    """
    obj = _checked_image("comparison", obj)
    truth = _checked_image("comparison", truth, obj)
    valid = np.isfinite(obj) & np.isfinite(truth)
    if mask is not None:
        valid &= _checked_image("mask", mask, obj).astype(bool)
    region = _region("comparison", valid)
    obj, truth = np.where(valid, obj, np.nan), np.where(valid, truth, np.nan)
    turn = np.exp(-1j * np.angle(truth[valid].sum()))
    phase, amplitude, apart = np.angle(truth * turn), np.abs(truth), np.angle(obj * truth.conj())
    found = np.angle(obj * turn)
    if unwrap:
        phase = np.where(valid, unwrapped(phase, valid), np.nan)
        found = phase + apart
    rows = (
        ("amplitude", "transmission", "gray", amplitude, np.abs(obj), np.abs(obj) - amplitude),
        ("phase", "rad", "viridis", phase, found, apart),
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


def save_map_png(values: RealArray, path: str | Path, title: str, unit: str) -> Path:
    """Write a map of detector pixels (N, N), from 0 to its largest value."""
    limits = (0.0, float(values.max()) or 1.0)
    return _save_map(Path(path), values, np.ones(values.shape, bool), limits, "viridis", unit, title)


def _chart(height_in: float, x_label: str, y_label: str) -> tuple[Figure, Axes]:
    figure = new_figure(6.4, height_in)
    figure.set_layout_engine("constrained")
    axes = figure.subplots()
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    return figure, axes


def save_loss_png(history: Mapping[str, Sequence[float]], path: str | Path) -> Path:
    """Write loss curves, one value per epoch, on a logarithmic axis when all values are positive.

    Values that are not finite leave a gap; ``DataError`` where there is no other.
    """
    from matplotlib.ticker import MaxNLocator

    curves = {name: np.asarray(values, dtype=np.float64).ravel() for name, values in history.items()}
    finite = [values[np.isfinite(values)] for values in curves.values()]
    if not any(values.size for values in finite):
        raise DataError(
            f"{path}: the loss history holds no finite value (got curves {list(curves)}, "
            "expected at least one number). Check the training log."
        )
    figure, axes = _chart(4.2, "epoch", "loss")
    for name, values in curves.items():
        axes.plot(np.arange(1, values.size + 1), values, label=name, marker=".", markersize=4, linewidth=1.2)
    if all((values > 0).all() for values in finite):
        axes.set_yscale("log")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(True, which="both", alpha=0.3)
    axes.legend(fontsize=8)
    return save_figure(figure, path)


def save_frc_png(curve: FRC, path: str | Path, title: str) -> Path:
    """Write a Fourier ring correlation with its half-bit curve; ``title`` says what was correlated."""
    figure, axes = _chart(4.2, "spatial frequency [cycles / px]", "correlation")
    axes.plot(curve.frequency_cycles_per_px, curve.correlation, label="correlation", linewidth=1.4)
    axes.plot(curve.frequency_cycles_per_px, curve.half_bit, "--", label="half-bit", linewidth=1.0)
    resolution = curve.resolution_px
    crossing = "above half-bit up to Nyquist"
    if resolution is not None:
        axes.axvline(1 / resolution, color="0.5", linewidth=0.8)
        crossing = f"half-bit at a period of {resolution:.2f} px"
    axes.set_title(f"Fourier ring correlation, {title}: {crossing}", fontsize=10)
    axes.set_xlim(0, 0.5)
    axes.set_ylim(min(-0.05, float(curve.correlation.min())), 1.05)
    axes.grid(True, alpha=0.3)
    axes.legend(fontsize=8)
    return save_figure(figure, path)


def save_residual_map_png(
    positions_yx_px: NDArray[np.float64], misfit: NDArray[Any], path: str | Path
) -> Path:
    """Write the relative amplitude misfit (J,) of every pattern at its scan position (J, 2) [object px]."""
    figure, axes = _chart(5.4, "x [px]", "y [px]")
    extent = float(np.ptp(positions_yx_px, axis=0).max()) or 1.0
    size = float(np.clip((320.0 / np.sqrt(len(misfit))) ** 2 / 4, 2.0, 120.0))
    dots = axes.scatter(positions_yx_px[:, 1], positions_yx_px[:, 0], c=misfit, s=size, cmap="magma")
    figure.colorbar(dots, ax=axes, label="relative amplitude misfit")
    axes.set_aspect("equal")
    axes.invert_yaxis()
    axes.margins(0.02 + 4 / extent)
    axes.set_title(f"Misfit of {len(misfit)} patterns, median {np.median(misfit):.3g}", fontsize=10)
    return save_figure(figure, path)
