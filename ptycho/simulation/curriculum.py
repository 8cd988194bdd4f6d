"""What a pre-training sees: random small scans of many test objects, probes, steps and doses."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ptycho.errors import ConfigError
from ptycho.simulation.simulate import SimulationOptions

SCENES = ("dead_leaves", "dead_leaves", "lines", "gaussian_random_field")
"""Test objects that are drawn from, the commonest twice. Stars, collages, pictures are for validation."""
PROBE = "disc"
"""Kind of probe; zone plates are for validation."""
PATTERN_SIZES_PX = (32, 48, 64)
CANVAS_PX = 124
"""Side that the patches of a scan roughly fill [px]."""
GRID_RANGE = (6, 14)
"""Smallest and largest number of rows and columns."""
PHOTONS_PER_PX_RANGE = (10**1.5, 10**5)
"""Photons per area of a scan point, from almost nothing to more than noise matters [photons / px]."""
WAVES_LIMIT, WAVES_PER_DIAMETER = 2.0, 0.05
"""Largest defocus [waves], and what the pixels carry per diameter of the probe [waves / px]."""


@dataclass(frozen=True)
class PretrainOptions:
    """How much a pre-training sees and does; ``ConfigError`` where a value is out of range."""

    scans: int = 500  # simulated scans for each learned step
    iterations: int = 1500  # steps of the optimiser for each learned step
    batch_size: int = 4  # crops in a batch
    learning_rate: float = 2e-3  # the highest one
    width: int = 24  # filters of the finest level of the U-Nets
    seed: int = 0  # of scans, initial weights and order

    def __post_init__(self) -> None:
        counts = ("scans", "iterations", "batch_size", "width")
        rules = [(name, getattr(self, name) < 1, ">= 1", "Raise it.") for name in counts]
        rules += [
            ("learning_rate", not 0 < self.learning_rate < 1, "0 to 1", "Pass --learning-rate 2e-3."),
            ("seed", not 0 <= self.seed < 2**63, ">= 0 and < 2**63", "Change it."),
        ]
        for name, wrong, expected, cure in rules:
            if wrong:
                got = f"got {getattr(self, name)}, expected {expected}"
                raise ConfigError(f"pre-training: {name} is out of range ({got}). {cure}")


def draw_scan(seed: int, index: int) -> SimulationOptions:
    """Draw the options of one small scan, the same for the same seed and index."""
    rng = np.random.default_rng([seed, index])
    n_px = int(rng.choice(PATTERN_SIZES_PX))
    diameter_px = n_px * rng.uniform(0.35, 0.6)
    step_px = diameter_px * rng.uniform(0.1, 0.28)
    rows = int(np.clip(int((CANVAS_PX - n_px) / step_px) + 1, *GRID_RANGE))
    step_px = max(step_px, (96 - n_px) / (rows - 1))
    density = np.exp(rng.uniform(*np.log(PHOTONS_PER_PX_RANGE)))
    waves = min(WAVES_LIMIT, WAVES_PER_DIAMETER * diameter_px) * rng.uniform(0.25, 1.0)
    return SimulationOptions(
        scene=str(rng.choice(SCENES)),
        phase_range_rad=float(rng.uniform(0.4, 2.5)),
        n_px=n_px,
        scan="spiral" if rng.random() < 1 / 3 else "raster",
        step_px=float(step_px),
        n_y=rows,
        n_x=rows,
        jitter_px=float(rng.uniform(0.2, 1.0) * min(1.5, step_px / 3)),
        probe=PROBE,
        probe_diameter_px=float(diameter_px),
        defocus_waves=float(waves * rng.choice((-1.0, 1.0))),
        photons=float(density * step_px**2),
        seed=int(rng.integers(2**31)),
    )
