"""Charts of a judgement: Fourier ring correlation, and the misfit of every pattern at its place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho.evaluation.figures import new_figure, save_figure
from ptycho.evaluation.metrics import FRC


def save_frc_png(curve: FRC, path: str | Path, title: str) -> Path:
    """Write a Fourier ring correlation with its half-bit curve.

    Parameters
    ----------
    curve : FRC
        Correlation by frequency [cycles / px].
    path : str or Path
        PNG to write.
    title : str
        What was correlated.

    Returns
    -------
    Path
        The picture.
    """
    figure = new_figure(6.4, 4.2)
    figure.set_layout_engine("constrained")
    axes = figure.subplots()
    axes.plot(curve.frequency_cycles_per_px, curve.correlation, label="correlation", linewidth=1.4)
    axes.plot(curve.frequency_cycles_per_px, curve.half_bit, "--", label="half-bit", linewidth=1.0)
    resolution = curve.resolution_px
    if resolution is not None:
        axes.axvline(1 / resolution, color="0.5", linewidth=0.8)
    crossing = "above half-bit up to Nyquist"
    if resolution is not None:
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
    """Write how badly every pattern is explained, at its scan position.

    Parameters
    ----------
    positions_yx_px : float array, shape (J, 2)
        Scan positions [object px].
    misfit : real array, shape (J,)
        Relative amplitude misfit of each pattern.
    path : str or Path
        PNG to write.

    Returns
    -------
    Path
        The picture.
    """
    figure = new_figure(6.4, 5.4)
    figure.set_layout_engine("constrained")
    axes = figure.subplots()
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
