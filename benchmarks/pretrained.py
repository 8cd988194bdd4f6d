"""The network that comes with the package against plain steps and total variation, on unseen kinds of scans.

usage: python benchmarks/pretrained.py [--photons 5.7e3 1e4 1e5 1e6] [--cases star picture collage modes
           wide_collage wide_star wide_disc strong strong_star] [--model pretrained] [--json FILE]

Every row is one scan of 64 px patterns with the true probe. `amplitude` and `poisson` are as many plain steps
as the network has in all; `TV` is the best of several strengths of 60 Poisson steps, chosen with the truth,
which favours it; `limit` is the photon limit.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from limits import limit_of

from ptycho.config.config import PyTorchExecutionConfig
from ptycho.evaluation.metrics import score
from ptycho.files.reader import open_scan
from ptycho.networks.architectures import architecture_table, initial_weights
from ptycho.networks.bundle import Bundle, read_bundle
from ptycho.process.progress import Progress
from ptycho.run.engines import find_model, load_engine
from ptycho.run.outputs import truth_on_canvas
from ptycho.simulation.simulate import SimulationOptions, write_scan
from ptycho.solver.options import RefineOptions

WAYS = ("amplitude", "poisson", "TV", "network")
STRENGTHS = (0.001, 0.002, 0.005, 0.01, 0.02)
WIDE = {"n_y": 12, "n_x": 12, "step_px": 11.5, "probe_diameter_px": 46.0}
"""A probe as wide as its sampling allows, and neighbours that share three quarters of it."""
CASES: dict[str, dict[str, Any]] = {
    "star": {"scene": "siemens_star", "n_y": 22, "n_x": 22, "step_px": 5.0, "seed": 2, "defocus_waves": 1.5},
    "picture": {"picture": "camera", "n_y": 22, "n_x": 22, "step_px": 5.0, "seed": 3, "defocus_waves": 0.7},
    "collage": {"scene": "collage", "n_y": 35, "n_x": 35, "step_px": 4.0, "seed": 1},
    "modes": {"scene": "collage", "n_y": 22, "n_x": 22, "step_px": 5.0, "seed": 4, "n_modes": 2},
    "wide_collage": {"scene": "collage", **WIDE, "seed": 6},
    "wide_star": {"scene": "siemens_star", **WIDE, "seed": 7},
    "wide_disc": {"scene": "collage", **WIDE, "probe": "disc", "seed": 8},
    "strong": {"scene": "collage", "n_y": 22, "n_x": 22, "step_px": 5.0, "seed": 9, "phase_range_rad": 8.0},
    "strong_star": {"scene": "siemens_star", "n_y": 22, "n_x": 22, "seed": 9, "phase_range_rad": 8.0},
}
"""Stars, pictures and collages: the curriculum leaves all of them out."""


def options_of(case: str, photons: float, folder: Path) -> SimulationOptions:
    """Return what to simulate; the picture comes from scikit-image."""
    settings = dict(CASES[case])
    if "picture" in settings:
        from PIL import Image
        from skimage import data

        path = folder / f"{settings['picture']}.png"
        Image.fromarray(getattr(data, settings["picture"])()).save(path)
        settings["picture"] = str(path)
    return SimulationOptions(photons=photons, **settings)


def untrained(bundle: Bundle, likelihood: str) -> Bundle:
    """Return the same network as it is before training: plain steps."""
    model = dataclasses.replace(bundle.model, unrolled_likelihood=likelihood)
    return dataclasses.replace(bundle, model=model, weights=initial_weights(architecture_table(model), 0))


def measure(path: Path, bundle: Bundle) -> dict[str, float]:
    """Return the error and the time of every way to reconstruct one scan."""
    engine, scan = load_engine("pytorch"), open_scan(path)
    members = np.arange(scan.n_patterns)

    def error(which: Bundle, refine: RefineOptions | None = None) -> tuple[float, float]:
        found = engine.reconstruct(
            engine.from_bundle(which),
            scan,
            members,
            execution=PyTorchExecutionConfig(accelerator="cpu"),
            progress=Progress(),
            refine=refine,
            fit_probe=None if refine else False,
        )
        truth, mask = truth_on_canvas(path, found) or (None, None)
        return score(found.obj, truth, mask)["complex_nrmse"], found.seconds

    smoothed = {
        tv: error(bundle, RefineOptions(60, likelihood="poisson", tv=tv, start="flat")) for tv in STRENGTHS
    }
    best = min(smoothed, key=lambda tv: smoothed[tv][0])
    rows = {
        "amplitude": error(untrained(bundle, "amplitude")),
        "poisson": error(untrained(bundle, "poisson")),
        "TV": smoothed[best],
        "network": error(bundle),
    }
    found = {name: value for name, (value, _) in rows.items()}
    return found | {"TV_strength": best} | {f"{name}_s": seconds for name, (_, seconds) in rows.items()}


def main() -> None:
    """Simulate, reconstruct, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--photons", type=float, nargs="+", default=[5.7e3, 1e4, 1e5, 1e6])
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--model", default="pretrained", metavar="PATH", help="network to judge")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    bundle = read_bundle(find_model(Path(options.model)))
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        for case in options.cases:
            for photons in options.photons:
                path = Path(scratch) / f"{case}_{photons:g}.npz"
                options_of_scan = options_of(case, photons, Path(scratch))
                write_scan(path, options_of_scan, compressed=False)
                row = {"limit": limit_of(options_of_scan), **measure(path, bundle)}
                results.append({"case": case, "photons": photons, **row})
                shown = ", ".join(f"{name} {row[name]:.4f}" for name in ("limit", *WAYS))
                print(f"{case} {photons:g}: {shown} (TV {row['TV_strength']:g})", flush=True)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
