"""Simulated scans: random ones in which nothing is wrong, for whatever must stay silent on honest data, and
one with its truth as if a solver had found it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ptycho.data.npz import write_npz
from ptycho.data.reconstruction import Reconstruction
from ptycho.data.scan import Scan
from ptycho.files.reader import open_scan
from ptycho.geometry.canvas import plan_canvas
from ptycho.physics import illumination
from ptycho.raw_data import RawData
from ptycho.simulation.simulate import SimulationOptions, simulate

BASE = {"n_px": 32, "n_y": 9, "n_x": 9, "step_px": 3.0}
"""Settings of the scan with a truth."""
SCENES = ("collage", "dead_leaves", "gaussian_random_field", "lines", "siemens_star")
"""Test objects of the random scans: of every kind, thin."""
SIDES_PX = (32, 48, 64)
"""Pattern sizes of the random scans [px]."""


def honest_options(seed: int) -> SimulationOptions:
    """Return the options of a random scan: size, dose, probe, modes, step, object and path all vary."""
    rng = np.random.default_rng([seed, 8])
    n_px = int(rng.choice(SIDES_PX))
    diameter_px = float(rng.uniform(0.3, 0.55)) * n_px
    probe = str(rng.choice(["zone-plate", "disc"]))
    # The finest fringe of the illumination has to fit the pixels.
    finest = 0.1 * diameter_px if probe == "disc" else 0.1 * diameter_px - 0.31
    return SimulationOptions(
        scene=str(rng.choice(SCENES)),
        phase_range_rad=float(rng.uniform(0.3, 2.5)),
        n_px=n_px,
        scan=str(rng.choice(["raster", "spiral"])),  # type: ignore[arg-type]
        step_px=diameter_px * float(rng.uniform(0.15, 0.35)),
        n_y=8,
        n_x=8,
        jitter_px=float(rng.uniform(0.0, 1.5)),
        probe=probe,  # type: ignore[arg-type]
        probe_diameter_px=diameter_px,
        defocus_waves=float(rng.uniform(0.0, min(2.0, finest))),
        n_modes=int(rng.choice([1, 1, 1, 3])),
        photons=float(10 ** rng.uniform(np.log10(3e2), 7)),
        background_counts=float(rng.choice([0.0, 0.0, 0.02])),
        seed=seed,
    )


def honest_scan(seed: int) -> RawData:
    """Return the data set of :func:`honest_options`; every fourth one holds amplitude, not counts."""
    options = honest_options(seed)
    arrays = simulate(options)
    patterns = arrays["diff3d"]
    domain = "amplitude" if seed % 4 == 3 else "counts"
    if domain == "amplitude":
        patterns = np.sqrt(patterns.astype(np.float32))
    return RawData(
        arrays["xcoords"],
        arrays["ycoords"],
        arrays["xcoords_start"],
        arrays["ycoords_start"],
        patterns,
        arrays["probeGuess"],
        arrays["scan_index"],
        arrays["objectGuess"],
        metadata={"measurement_domain": domain},
        # The dose of an amplitude file is the mean of what was measured, not that of the empty beam.
        nphotons=float(arrays["diff3d"].sum(axis=(1, 2)).mean()) if domain == "amplitude" else None,
        source=f"honest {seed}",
    )


def scan_of(arrays: dict[str, Any], folder: Path) -> Scan:
    write_npz(folder / "scan.npz", arrays)
    return open_scan(folder / "scan.npz")


def true_object(arrays: dict[str, Any], scan: Scan, n_patterns: int | None = None) -> Reconstruction:
    """Return the truth of a simulated scan as if a solver had found it."""
    members = np.arange(n_patterns or scan.n_patterns)
    plan = plan_canvas(scan.positions_yx_px[members], scan.n_px)
    y, x = np.round(plan.origin_yx_px).astype(int)
    obj = arrays["objectGuess"][y : y + plan.shape_yx[0], x : x + plan.shape_yx[1]]
    light = illumination(scan.probe.astype(complex), plan.corners_yx, obj.shape)
    origin = np.array([y, x], float)
    return Reconstruction(obj, (light / light.max()).astype(np.float32), origin, scan.probe, members, 0.0)
