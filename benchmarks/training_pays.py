"""Training by hidden pixels against every way to reconstruct without it, on scans with a known truth.

usage: python benchmarks/training_pays.py [--scans 24] [--side 14] [--pictures AMPLITUDE PHASE] [--json FILE]

`TV` is 60 Poisson steps with the best of several strengths, chosen with the truth, which favours it.
`trained` is the training command with its defaults. `other` is another object of the same kind and dose,
reconstructed with the network of the first. Everybody is given the true probe; the training may prefer a
fitted one. `limit` is the photon limit. With `--json`, scans that the file already holds are not run again.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from limits import limit_of

from ptycho.config.config import PyTorchExecutionConfig
from ptycho.data.reconstruction import Reconstruction
from ptycho.evaluation.metrics import score
from ptycho.files.reader import open_scan
from ptycho.process.progress import Progress
from ptycho.run.engines import find_model, fitted_model, load_engine
from ptycho.run.outputs import truth_on_canvas
from ptycho.simulation.simulate import SimulationOptions, write_scan
from ptycho.solver.options import RefineOptions
from ptycho_torch.train import cli_main

STRENGTHS = (0.002, 0.005, 0.01, 0.02)
WAYS = ("amplitude", "poisson", "TV", "shipped", "trained", "other shipped", "other trained")
KINDS = ("texture", "dead_leaves", "lines", "collage", "siemens_star", "gaussian_random_field")
DOSES = (3e3, 1e4, 1e5, 1e6)
PROBES: tuple[dict[str, Any], ...] = (
    {"probe": "zone-plate"},
    {"probe": "disc"},
    {"probe": "zone-plate", "probe_diameter_px": 14.0, "defocus_waves": 0.5},
    {"probe": "zone-plate", "n_px": 128, "step_px": 10.0},
)
"""The last one has patterns of 128 px; the others have 64."""


def cases(count: int, side: int, pictures: list[str]) -> dict[str, SimulationOptions]:
    """Return so many scans by name. Any few of them have all doses, and kinds and probes in turn."""
    found = {}
    for number in range(count):
        kind = KINDS[number % len(KINDS)]
        # Twelve scans have every kind at half of the doses, the next twelve at the other half.
        dose = DOSES[(number + number // 12) % len(DOSES)]
        which = (number // len(KINDS) + number) % len(PROBES)
        settings = {
            "n_px": 64,
            "step_px": 5.0,
            **PROBES[which],
            "n_y": side,
            "n_x": side,
            "seed": 100 + number,
        }
        found[f"{kind} {dose:g} p{which}"] = SimulationOptions(scene=kind, photons=dose, **settings)
    if pictures:
        shown = {
            "picture": pictures[0],
            "phase_picture": pictures[-1],
            "n_y": side,
            "n_x": side,
            "step_px": 5.0,
        }
        for dose in DOSES:
            found[f"picture {dose:g} p0"] = SimulationOptions(photons=dose, seed=7, **shown)
    return found


def reconstructed(path: Path, model: Any, **how: Any) -> tuple[float, Reconstruction]:
    """Return the complex NRMSE of a scan that is reconstructed with a model, and the reconstruction."""
    engine, scan = load_engine("pytorch"), open_scan(path)
    how |= {
        "execution": PyTorchExecutionConfig(accelerator="cpu", logger_backend=None),
        "progress": Progress(),
    }
    fitted = fitted_model(engine, model, scan, "the network")
    found = engine.reconstruct(fitted, scan, scan.usable, **how)
    truth, mask = truth_on_canvas(path, found) or (None, None)
    return score(found.obj, truth, mask)["complex_nrmse"], found


def error(path: Path, model: Any, refine: RefineOptions | None = None) -> float:
    """Return the complex NRMSE of a scan reconstructed with a model, or refined from a flat object."""
    refined = model.trained_probe if model.probe_refined else None
    probe = None if refined is None or refine is not None else refined.probe
    # None is asked to find the probe that is known.
    how = {"fit_probe": False} if probe is None else {"given_probe": probe}
    return reconstructed(path, model, refine=refine, **how)[0]


def measure(options: SimulationOptions, row: dict[str, float], folder: Path) -> dict[str, float]:
    """Return the error of every way to reconstruct one scan, and another of its kind; a ``row`` may hold what
    needs no network."""
    path, other = folder / "scan.npz", folder / "other.npz"
    write_scan(path, options, compressed=False)
    write_scan(other, replace(options, seed=options.seed + 1000), compressed=False)
    engine = load_engine("pytorch")
    shipped = engine.load(find_model(Path("pretrained")))

    def plain(**how: Any) -> float:
        return error(path, shipped, RefineOptions(60, start="flat", **how))

    if "TV" not in row:
        smoothed = {tv: plain(likelihood="poisson", tv=tv) for tv in STRENGTHS}
        best = min(smoothed, key=lambda tv: smoothed[tv])
        row = {"limit": limit_of(options), "photons": options.photons, "amplitude": plain()}
        row |= {"poisson": plain(likelihood="poisson"), "TV": smoothed[best], "TV strength": best}
    row["shipped"] = error(path, shipped)
    start, run = time.perf_counter(), folder / "run"
    words = ["--train_data_file", str(path), "--output_dir", str(run), "--logger", "none", "--quiet"]
    if cli_main([*words, "--device", "cpu"]) != 0:
        raise SystemExit("the training failed")
    row["training s"] = time.perf_counter() - start
    trained = engine.load(find_model(run))
    row["epoch"] = trained.trained_epoch.number
    row["trained"] = error(path, trained)
    # Another scan has its own probe.
    trained.probe_refined = False
    return row | {"other shipped": error(other, shipped), "other trained": error(other, trained)}


def best_without(row: dict[str, float]) -> float:
    """Return the smallest error without training."""
    return min(row[name] for name in ("amplitude", "poisson", "TV", "shipped"))


def summary(rows: list[dict[str, float]]) -> str:
    """Return in how many scans the training pays, and how much."""
    ratio = np.array([row["trained"] / best_without(row) for row in rows])
    dim = [row["trained"] / row["TV"] - 1 for row in rows if row["photons"] <= 1e4]
    text = f"{len(rows)} scans: trained over the best of the others {ratio.mean():.3f} on average, "
    text += f"{ratio.max():.3f} at worst, above 1.03 in {(ratio > 1.03).sum()}"
    return text + (f"; over the best TV up to 1e4 photons {100 * np.mean(dim):+.1f} %" if dim else "")


def main() -> None:
    """Simulate, train, reconstruct, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--scans", type=int, default=24, help="how many of the list (default 24)")
    parser.add_argument("--side", type=int, default=14, help="patterns along each axis (default 14)")
    parser.add_argument(
        "--pictures", nargs=2, default=[], help="files of amplitude and phase: four more scans"
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    known = json.loads(options.json.read_text()) if options.json and options.json.exists() else {}
    print(f"| scan | limit | {' | '.join(WAYS)} | trained / best |\n|{'---|' * (len(WAYS) + 3)}", flush=True)
    rows = []
    for name, settings in cases(options.scans, options.side, options.pictures).items():
        if "trained" not in known.get(name, {}):
            with tempfile.TemporaryDirectory() as scratch:
                known[name] = measure(settings, known.get(name, {}), Path(scratch))
            if options.json:
                options.json.write_text(json.dumps(known, indent=1))
        rows.append(row := known[name])
        numbers = " | ".join(f"{row[way]:.4f}" for way in ("limit", *WAYS))
        print(f"| {name} | {numbers} | {row['trained'] / best_without(row):.3f} |", flush=True)
    print(summary(rows))


if __name__ == "__main__":
    main()
