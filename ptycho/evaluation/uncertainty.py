"""The error bars of a reconstruction (eq. 31), as a run tells and draws them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho.data.reconstruction import Reconstruction
from ptycho.evaluation.figures import new_figure, save_figure
from ptycho.physics.information import ObjectErrors
from ptycho.solver.options import RefineOptions

ENDS = 0.99
"""Share of the scanned pixels whose errors the colours tell apart."""


def _scanned(found: Reconstruction, errors: ObjectErrors) -> ObjectErrors:
    """Return errors where enough light fell, nan elsewhere."""
    return ObjectErrors(*(np.where(found.scanned, part, np.nan) for part in errors))


def uncertainty_line(found: Reconstruction, refined: RefineOptions | None, kind: str | None) -> str | None:
    """Return the error bars in one line, and what they leave out; None without them."""
    if found.errors is None:
        return None
    amplitude, phase = (float(np.nanmedian(part)) for part in _scanned(found, found.errors))
    if refined is None:
        left_out = "what the network adds or smooths is not in it"
    elif refined.tv:
        left_out = "what the smoothing moves is not in it"
    elif refined.likelihood == "amplitude" and kind == "fisher":
        left_out = "a fit of amplitudes has more noise, --refine-likelihood poisson has this"
    else:
        left_out = "bias is not in it"
    unit = ""
    if found.fit is not None and found.fit.photons is None:
        unit = "; nobody knows what a photon is, so one unit of counts is taken for it"
    source = {
        "fisher": "from photon noise with this probe and these positions",
        "bootstrap": "from counts drawn and refined again",
    }[kind or "fisher"]
    return (
        f"error bars (one sigma, median): amplitude {amplitude:.3g}, phase {phase:.3g} rad, {source}; "
        f"{left_out}{unit}"
    )


def save_uncertainty_png(found: Reconstruction, errors: ObjectErrors, path: Path) -> Path:
    """Draw the errors of amplitude and phase over the scanned pixels, side by side."""
    rows, columns = np.nonzero(found.scanned)
    box = slice(rows.min(), rows.max() + 1), slice(columns.min(), columns.max() + 1)
    extent = (columns.min() - 0.5, columns.max() + 0.5, rows.max() + 0.5, rows.min() - 0.5)
    figure = new_figure(11, 5)
    titles = ("Amplitude, one sigma", "transmission"), ("Phase, one sigma", "rad")
    for number, (values, (title, unit)) in enumerate(zip(_scanned(found, errors), titles, strict=True)):
        axes = figure.add_subplot(1, 2, number + 1)
        highest = float(np.nanquantile(values, ENDS)) or 1.0
        image = axes.imshow(values[box], cmap="magma", vmin=0, vmax=highest, extent=extent)
        axes.set_title(f"{title} (photon noise alone, no bias)", fontsize=9)
        axes.set_xlabel("x [px]", fontsize=9)
        axes.set_ylabel("y [px]", fontsize=9)
        figure.colorbar(image, ax=axes, fraction=0.05, pad=0.02, extend="max").set_label(unit, fontsize=9)
    figure.tight_layout()
    return save_figure(figure, path)


def interval_scores(
    aligned: NDArray[Any], truth: NDArray[Any], errors: ObjectErrors, scale: float, mask: NDArray[np.bool_]
) -> dict[str, float]:
    """Return in what share of the pixels of a mask (H, W) the truth lies within one sigma, and within 1.96.

    ``aligned`` (H, W) is in the gauge of the truth, by a factor ``scale`` on the amplitude. Honest error bars
    hold 68 and 95 %; bias lowers both.
    """
    kept = mask & np.isfinite(errors.amplitude_sigma)
    missed = {
        "amplitude": (np.abs(aligned) - np.abs(truth)) / (scale * errors.amplitude_sigma),
        "phase": np.angle(aligned * np.conj(truth)) / errors.phase_sigma_rad,
    }
    return {
        f"{name}_within_{word}": float((np.abs(values[kept]) < sigmas).mean())
        for name, values in missed.items()
        for word, sigmas in (("one_sigma", 1.0), ("95_percent", 1.96))
    }
