"""What a detector counts beside the light, as a run tells it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ptycho.data.reconstruction import Fit, PlacedReconstruction
from ptycho.evaluation.figures import save_map_png

DARK_SHARE = 0.1
"""Share of the detector pixels, the darkest as predicted, that tell a background."""
FOLLOWED = 0.5
"""How much of the dark a fit of amplitudes may be too dark; in honest scans at most 0.3 was."""
MOST_DARKENING = 0.413
"""Largest difference of the mean count and the squared mean of its root [photons], at a mean of 1.3."""


class DarkExcess(NamedTuple):
    """What the darkest pixels count beyond what is predicted there."""

    measured: float  # mean count [photons / pixel]
    predicted: float
    errors: float  # size in standard errors of the count, beyond what a fit of amplitudes may leave
    share: float  # of all counts, were it the same in every pixel
    changing: float  # part of it that changes from pattern to pattern as no steady background does

    def numbers(self) -> dict[str, float]:
        """Return what ``metrics.json`` says about it."""
        return {"dark_measured": self.measured, "dark_predicted": self.predicted, "dark_errors": self.errors}


def dark_excess(fit: Fit) -> DarkExcess | None:
    r"""Compare counts k and predicted amplitude A over the darkest tenth of the detector.

    A fit of amplitudes may follow the mean root of the counts instead of the root of their mean lambda. It is
    then too dark, by :math:`\lambda - E[\sqrt k]^2`: at most A where A is small and at most 0.413 anywhere. A
    part of that is granted. None where nobody knows what a photon is.
    """
    number = fit.pixel_count
    if fit.photons is None or not number.any():
        return None
    mean = np.where(number > 0, fit.pixel_power / np.maximum(number, 1), np.inf)
    dark = mean <= np.quantile(mean[number > 0], DARK_SHARE)
    dark &= number > 0
    count, unit = number[dark].sum(), fit.photons
    measured, predicted = fit.pixel_energy[dark].sum() * unit, fit.pixel_power[dark].sum() * unit
    darkening = min(fit.pixel_amplitude[dark].sum() * math.sqrt(unit), MOST_DARKENING * count)
    granted, excess = FOLLOWED * max(darkening, 0.0), measured - predicted
    changing = (fit.pixel_varying - fit.pixel_varying_expected)[dark].sum() * unit
    return DarkExcess(
        measured=float(measured / count),
        predicted=float(predicted / count),
        errors=float((excess - granted) / math.sqrt(max(predicted + granted, 1.0))),
        share=float(excess / count * number.sum() / max(fit.energy.sum() * unit, 1e-30)),
        changing=float(changing / excess) if excess > 0 else math.inf,
    )


def background_numbers(placed: PlacedReconstruction) -> dict[str, Any]:
    """Return what ``metrics.json`` says about a background [photons / pixel]; nothing without one."""
    background = placed.background
    return {} if background is None else {"background_mean": float(background.mean())}


def background_line(placed: PlacedReconstruction) -> str | None:
    """Return the background in one line; None without one."""
    background, given = placed.background, placed.scan.background
    if background is None:
        return None
    same = given is not None and np.array_equal(background, given)
    share = background.sum(dtype=np.float64) / placed.scan.record.mean_counts
    return (
        f"background: {background.mean():.3g} photons per pixel and pattern ({background.min():.3g} to "
        f"{background.max():.3g}), {100 * share:.2g} % of the counts, {'as given' if same else 'as found'}"
    )


def save_background_png(background: NDArray[np.float32], path: Path) -> Path:
    """Draw a background (N, N) [photons / pixel]."""
    title = f"Background, mean {background.mean():.3g} photons / pixel"
    return save_map_png(background, path, title, "photons / pixel and pattern")
