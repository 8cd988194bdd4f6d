"""How often a slow drift of the beam is found, before and after the reconstruction, and what harm it does.

usage: python benchmarks/drift.py [--seeds 100 120] [--drifts -0.5 -0.3 -0.2 -0.1 0 0.1 0.2 0.3 0.5]
           [--paths raster serpentine] [--wrong-probe] [--cure] [--json FILE]

Every row is one random scan of 144 patterns of 32 or 48 px, 1e4 to 3e6 photons, reconstructed by the network
that comes with the package. Seeds 0 to 19 chose the limits; others did not.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ptycho.config.config import PyTorchExecutionConfig
from ptycho.data.npz import write_npz
from ptycho.data.reconstruction import Reconstruction
from ptycho.data.scan import Scan
from ptycho.evaluation.drift import beam_drift
from ptycho.evaluation.metrics import score
from ptycho.evaluation.verdict import judge
from ptycho.files.reader import open_scan
from ptycho.process.progress import Progress
from ptycho.run.engines import find_model, load_engine
from ptycho.run.outputs import truth_on_canvas
from ptycho.simulation.objects import SCENES
from ptycho.simulation.simulate import SimulationOptions, simulate
from ptycho.solver.options import RefineOptions

GRIDS = ((12, 12), (9, 16), (16, 9))
PATHS = ("raster", "serpentine", "spiral")
DRIFTS = [-0.5, -0.3, -0.2, -0.1, 0.0, 0.1, 0.2, 0.3, 0.5]


def options_of(seed: int, path: str, wrong_probe: bool) -> SimulationOptions:
    """Return a random scan."""
    rng = np.random.default_rng([seed, 77])
    n_px = int(rng.choice([32, 48]))
    diameter_px = float(rng.uniform(0.35, 0.5)) * n_px
    probe = str(rng.choice(["zone-plate", "disc"]))
    finest = 0.1 * diameter_px if probe == "disc" else 0.1 * diameter_px - 0.31
    step_px = diameter_px * float(rng.uniform(0.15, 0.3))
    n_y, n_x = GRIDS[seed % 3]
    return SimulationOptions(
        scene=str(rng.choice(sorted(SCENES))),
        phase_range_rad=float(rng.uniform(0.3, 2.0)),
        n_px=n_px,
        scan="spiral" if path == "spiral" else "raster",
        step_px=step_px,
        n_y=n_y,
        n_x=n_x,
        jitter_px=float(rng.choice([0.0, 0.1, 0.3])) * step_px,
        probe=probe,  # type: ignore[arg-type]
        probe_diameter_px=diameter_px,
        defocus_waves=float(rng.uniform(0.0, min(1.5, finest))),
        probe_error_waves=float(rng.uniform(0.1, 0.3)) if wrong_probe else 0.0,
        photons=float(10 ** rng.uniform(4, 6.5)),
        seed=seed,
    )


def drifting(options: SimulationOptions, path: str, drift: float) -> dict[str, Any]:
    """Return the arrays of a scan whose beam rises or falls evenly by a share of its first counts."""
    factor = 1 + drift * np.linspace(0, 1, options.count)
    # A brighter scan is thinned out, which leaves the statistics of photons.
    arrays = dict(simulate(replace(options, photons=options.photons * float(factor.max()))))
    arrays["probeGuess"] = simulate(options)["probeGuess"]
    if path == "serpentine":
        order = np.arange(options.count).reshape(options.n_y, options.n_x)
        order[1::2] = order[1::2, ::-1]
        for name in ("diff3d", "xcoords", "ycoords", "xcoords_start", "ycoords_start"):
            arrays[name] = arrays[name][order.ravel()]
    rng, share = np.random.default_rng([options.seed, 3]), factor / factor.max()
    arrays["diff3d"] = rng.binomial(arrays["diff3d"].astype(np.int64), share[:, None, None]).astype(np.uint32)
    return arrays


def reconstructed(scan: Scan, **settings: Any) -> Reconstruction:
    """Return what the network that comes with the package makes of a scan."""
    engine = load_engine("pytorch")
    found: Reconstruction = engine.reconstruct(
        engine.load(find_model(Path("pretrained"))),
        scan,
        scan.usable,
        execution=PyTorchExecutionConfig(accelerator="cpu"),
        progress=Progress(),
        **settings,
    )
    return found


def error(found: Reconstruction, path: Path) -> float:
    """Return the complex NRMSE."""
    truth, mask = truth_on_canvas(path, found) or (None, None)
    return score(found.obj, truth, mask)["complex_nrmse"]


def measure(arrays: dict[str, Any], path: Path, cure: bool) -> dict[str, Any]:
    """Return what both ways find in one scan, and the error with and without a cure."""
    write_npz(path, arrays)
    scan = open_scan(path)
    found = reconstructed(scan)
    drift = beam_drift(found.in_scan(scan))
    row: dict[str, Any] = {
        "check": any(finding.check == "beam" for finding in scan.findings),
        "verdict": any(
            "drift" in reason for reason in judge(found.in_scan(replace(scan, findings=()))).reasons
        ),
        "log_factor": drift and drift.log_factor,
        "standard_error": drift and drift.error,
        "nrmse": error(found, path),
    }
    if cure:
        row["nrmse_frames"] = error(
            reconstructed(scan, refine=RefineOptions(60, start="flat", frames=True)), path
        )
    if cure and drift is not None:
        factor = np.exp(drift.log_factor * np.linspace(0, 1, scan.n_patterns))[:, None, None]
        write_npz(path, {**arrays, "diff3d": (arrays["diff3d"] / factor).astype(np.float32)})
        row["nrmse_divided"] = error(reconstructed(open_scan(path, domain="counts")), path)
    return row


def main() -> None:
    """Simulate, reconstruct, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs=2, default=[100, 120], help="first, and one past the last")
    parser.add_argument("--drifts", type=float, nargs="+", default=DRIFTS)
    parser.add_argument("--paths", nargs="+", choices=PATHS, default=["raster", "serpentine"])
    parser.add_argument("--wrong-probe", action="store_true", help="store a probe that is out of focus")
    parser.add_argument(
        "--cure", action="store_true", help="also refine frames, and divide by the drift found"
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        for seed in range(*options.seeds):
            path = options.paths[seed % len(options.paths)]
            chosen = options_of(seed, path, options.wrong_probe)
            for drift in options.drifts:
                arrays = drifting(chosen, path, drift)
                row = measure(arrays, Path(scratch) / "scan.npz", options.cure)
                rows.append({"seed": seed, "path": path, "photons": chosen.photons, "drift": drift, **row})
                print(rows[-1], flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
