"""What a detector counts beside the light, as a run tells it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho.data.reconstruction import PlacedReconstruction
from ptycho.evaluation.figures import save_map_png


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
