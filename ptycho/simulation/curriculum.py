"""What a pre-training sees: random small scans of many test objects, probes, steps and doses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ptycho.errors import ConfigError
from ptycho.simulation.simulate import SimulationOptions

SCENES = {
    "dead_leaves": 0.2,
    "lines": 0.1,
    "gaussian_random_field": 0.1,
    "power_law": 0.25,
    "patchwork": 0.35,
}
"""Test objects that are drawn from, and how often. Stars, collages, lenses, faint leaves
under a texture, pictures are for validation."""
PROBES = {"disc": 0.5, "zone-plate": 0.5}
"""Kinds of probe, and how often."""
PATTERN_SIZES_PX = {16: 0.05, 24: 0.1, 32: 0.2, 48: 0.25, 64: 0.3, 96: 0.1}
"""Sizes N of the patterns, and how often."""
CANVAS_PX = 140
"""Side that the patches of a scan roughly fill [px]."""
LEAST_PX = 112
"""Least side of what the positions and one patch span [px]."""
LEAST_ROWS, MOST_PX = 4, 900
"""Smallest number of rows and columns, and what the patterns of a row measure together at most [px]."""
PHOTONS_PER_PX_RANGE, DIM_SHARE = (10.0, 10**7.5), 1.3
"""Photons per area of a scan point, from almost nothing to more than noise matters [photons / px]; the larger
the exponent, the more of the scans are dim."""
STEP_RANGE = (0.08, 0.4)
"""Step of a scan, in diameters of the probe."""
PHASE_RANGE_RAD = (0.3, 6.0)
"""Phase range of an object [rad]."""
MOST_PHOTONS = 1e9
"""Largest number of photons in a frame."""
WAVES_LIMIT, WAVES_PER_DIAMETER, WAVES_OF_FOCUS = 2.0, 0.09, 0.31
"""Largest defocus [waves], what the pixels carry per diameter of the probe [waves / px], and how much of that
a lens needs for its focus [waves]."""
EDGE_BLUR_PX = (0.0, 1.0)
"""Gaussian sigma of what is drawn, from as sharp as pixels are to what optics leave [px]."""
APART_SHARE, APART = 0.06, 1.02
"""Share of scans whose patterns lie apart, in a raster; their step in sizes of a pattern."""
MODES = (1, 1, 1, 1, 2)
"""Numbers of incoherent modes, equally often."""


@dataclass(frozen=True)
class PretrainOptions:
    """How much a pre-training sees and does; ``ConfigError`` where a value is out of range."""

    scans: int = 1500  # simulated scans for each learned step
    iterations: int = 8000  # steps of the optimiser for each learned step
    batch_size: int = 16  # crops in a batch
    learning_rate: float = 1e-3  # the highest one
    width: int = 24  # filters of the finest level of the U-Nets
    seed: int = 0  # of scans, initial weights and order

    def __post_init__(self) -> None:
        counts = ("scans", "iterations", "batch_size", "width")
        rules = [(name, getattr(self, name) < 1, ">= 1", "Raise it.") for name in counts]
        rules += [
            ("learning_rate", not 0 < self.learning_rate < 1, "0 to 1", "Pass --learning-rate 1e-3."),
            ("seed", not 0 <= self.seed < 2**63, ">= 0 and < 2**63", "Change it."),
        ]
        for name, wrong, expected, cure in rules:
            if wrong:
                got = f"got {getattr(self, name)}, expected {expected}"
                raise ConfigError(f"pre-training: {name} is out of range ({got}). {cure}")


def draw_scan(seed: int, index: int) -> SimulationOptions:
    """Draw the options of one small scan, the same for the same seed and index."""
    rng = np.random.default_rng([seed, index])

    def one_of(shares: Mapping[Any, float]) -> Any:
        return list(shares)[rng.choice(len(shares), p=list(shares.values()))]

    n_px = int(one_of(PATTERN_SIZES_PX))
    diameter_px = n_px * rng.uniform(0.3, 0.7)
    step_px = max(1.0, diameter_px * rng.uniform(*STEP_RANGE))
    rows = int(np.clip(int((CANVAS_PX - n_px) / step_px) + 1, LEAST_ROWS, MOST_PX // n_px))
    step_px = max(step_px, (LEAST_PX - n_px) / (rows - 1))
    if rng.random() < APART_SHARE:
        step_px = APART * n_px
        rows = int(np.ceil((LEAST_PX - n_px) / step_px)) + 1
    dim, bright = np.log10(PHOTONS_PER_PX_RANGE)
    density = 10 ** (dim + (bright - dim) * rng.random() ** DIM_SHARE)
    waves = min(WAVES_LIMIT, WAVES_PER_DIAMETER * diameter_px - WAVES_OF_FOCUS) * rng.uniform(0.0, 1.0)
    return SimulationOptions(
        scene=str(one_of(SCENES)),
        phase_range_rad=float(np.exp(rng.uniform(*np.log(PHASE_RANGE_RAD)))),
        edge_blur_px=float(rng.uniform(*EDGE_BLUR_PX)),
        n_px=n_px,
        scan="spiral" if rng.random() < 1 / 3 else "raster",
        step_px=float(step_px),
        n_y=rows,
        n_x=rows,
        jitter_px=float(rng.uniform(0.2, 1.0) * min(1.5, step_px / 3)),
        probe=one_of(PROBES),
        probe_diameter_px=float(diameter_px),
        defocus_waves=float(waves * rng.choice((-1.0, 1.0))),
        n_modes=int(rng.choice(MODES)),
        photons=float(min(density * step_px**2, MOST_PHOTONS)),
        seed=int(rng.integers(2**31)),
    )
