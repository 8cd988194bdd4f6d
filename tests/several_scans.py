"""Parts of one simulated scan as files of their own, with what stage and beam do between two scans."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho.data.npz import write_npz
from ptycho.simulation.simulate import SimulationOptions, simulate

ROWS = ("diff3d", "xcoords", "ycoords", "scan_index")
OFFSET_YX_PX = (7.3, -4.6)
INTENSITY = 0.5


def whole_scan(**options: Any) -> dict[str, Any]:
    """Return 10 x 14 patterns of 32 px."""
    given = {"n_y": 10, "n_x": 14, "step_px": 3.0, "photons": 1e6, "jitter_px": 0.7, "seed": 3}
    found = simulate(SimulationOptions(n_px=32, **given | options))
    return {key: value for key, value in found.items() if not key.endswith("_start")}


def fields(whole: dict[str, Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the patterns of the left and of the right 60 % of a field."""
    order = np.argsort(whole["xcoords"], kind="stable")
    share = int(0.6 * len(order))
    return np.sort(order[:share]), np.sort(order[-share:])


def part(
    whole: dict[str, Any],
    rows: NDArray[np.int64],
    offset_yx_px: tuple[float, float] = (0.0, 0.0),
    intensity: float = 1.0,
) -> dict[str, Any]:
    """Return some patterns as a scan whose positions lack an offset, of a weaker beam that the file does not
    tell of."""
    found = {key: value[rows] if key in ROWS else value for key, value in whole.items()}
    found["ycoords"] = found["ycoords"] - offset_yx_px[0]
    found["xcoords"] = found["xcoords"] - offset_yx_px[1]
    if intensity != 1.0:
        found["diff3d"] = np.random.default_rng(0).binomial(found["diff3d"], intensity)
    return found


def written(folder: Path, **scans: dict[str, Any]) -> list[Path]:
    """Write scans by their names."""
    paths = [folder / f"{name}.npz" for name in scans]
    for path, arrays in zip(paths, scans.values(), strict=True):
        write_npz(path, arrays)
    return paths
