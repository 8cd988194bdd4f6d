"""Charts: loss curves, Fourier ring correlation, and the misfit of every pattern at its place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ptycho.errors import DataError
from ptycho.evaluation.figures import new_figure, save_figure
from ptycho.evaluation.metrics import FRC

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def _chart(height_in: float) -> tuple[Figure, Axes]:
    figure = new_figure(6.4, height_in)
    figure.set_layout_engine("constrained")
    return figure, figure.subplots()


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
    figure, axes = _chart(4.2)
    for name, values in curves.items():
        axes.plot(np.arange(1, values.size + 1), values, label=name, marker=".", markersize=4, linewidth=1.2)
    if all((values > 0).all() for values in finite):
        axes.set_yscale("log")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("epoch")
    axes.set_ylabel("loss")
    axes.grid(True, which="both", alpha=0.3)
    axes.legend(fontsize=8)
    return save_figure(figure, path)


def save_frc_png(curve: FRC, path: str | Path, title: str) -> Path:
    """Write a Fourier ring correlation with its half-bit curve; ``title`` says what was correlated."""
    figure, axes = _chart(4.2)
    axes.plot(curve.frequency_cycles_per_px, curve.correlation, label="correlation", linewidth=1.4)
    axes.plot(curve.frequency_cycles_per_px, curve.half_bit, "--", label="half-bit", linewidth=1.0)
    resolution = curve.resolution_px
    crossing = "above half-bit up to Nyquist"
    if resolution is not None:
        axes.axvline(1 / resolution, color="0.5", linewidth=0.8)
        crossing = f"half-bit at a period of {resolution:.2f} px"
    axes.set_title(f"Fourier ring correlation, {title}: {crossing}", fontsize=10)
    axes.set_xlabel("spatial frequency [cycles / px]")
    axes.set_ylabel("correlation")
    axes.set_xlim(0, 0.5)
    axes.set_ylim(min(-0.05, float(curve.correlation.min())), 1.05)
    axes.grid(True, alpha=0.3)
    axes.legend(fontsize=8)
    return save_figure(figure, path)


def save_residual_map_png(
    positions_yx_px: NDArray[np.float64], misfit: NDArray[Any], path: str | Path
) -> Path:
    """Write the relative amplitude misfit (J,) of every pattern at its scan position (J, 2) [object px]."""
    figure, axes = _chart(5.4)
    extent = float(np.ptp(positions_yx_px, axis=0).max()) or 1.0
    size = float(np.clip((320.0 / np.sqrt(len(misfit))) ** 2 / 4, 2.0, 120.0))
    dots = axes.scatter(positions_yx_px[:, 1], positions_yx_px[:, 0], c=misfit, s=size, cmap="magma")
    figure.colorbar(dots, ax=axes, label="relative amplitude misfit")
    axes.set_aspect("equal")
    axes.invert_yaxis()
    axes.margins(0.02 + 4 / extent)
    axes.set_title(f"Misfit of {len(misfit)} patterns, median {np.median(misfit):.3g}", fontsize=10)
    axes.set_xlabel("x [px]")
    axes.set_ylabel("y [px]")
    return save_figure(figure, path)
