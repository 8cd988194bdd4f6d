"""The default of the inference against every single method, on scans with a known truth.

usage: python benchmarks/never_worse.py [--cases 64] [--side 10] [--first 0] [--json FILE] [--figure PNG]

The default chooses by hidden pixels and is told nothing: it may fit the probe and take what the network
makes, or refine it. The others are given the true probe. `limit` is the photon limit. With `--json`, what
the file already holds is not run again.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from limits import limit_of
from training_pays import PROBES, STRENGTHS, error, reconstructed

from ptycho.evaluation.figures import new_figure
from ptycho.run.engines import find_model, load_engine
from ptycho.run.selection import selected
from ptycho.simulation.objects import SCENES
from ptycho.simulation.simulate import SimulationOptions, write_scan
from ptycho.solver.options import RefineOptions

DOSES, OVERLAPS = (3e3, 3e4, 1e5, 1e6), (0.8, 1.0, 1.3)
"""Counts per pattern, and factors on the steps of the scan."""
PLAIN = {"start": "flat", "likelihood": "poisson"}
METHODS: dict[str, RefineOptions | None] = {
    "amplitude": RefineOptions(60, start="flat"),
    "poisson": RefineOptions(60, **PLAIN),
    **{f"TV {tv:g}": RefineOptions(60, tv=tv, **PLAIN) for tv in STRENGTHS},
    "shipped": None,
}
ALLOWED = 1.03
TICKS = (0.9, 1.0, 1.2, 1.5, 2.0, 3.0, 5.0)


def cases(side: int) -> dict[str, SimulationOptions]:
    """Return scans by name; any few neighbours differ in kind, dose, probe and overlap."""
    found = {}
    grid = list(product(range(len(PROBES)), DOSES, sorted(SCENES)))
    for number in np.random.default_rng(2).permutation(len(grid)).tolist():
        which, dose, scene = grid[number]
        overlap = OVERLAPS[number % len(OVERLAPS)]
        beam = {"n_px": 64, "step_px": 5.0, **PROBES[which]}
        beam["step_px"] *= overlap
        options = SimulationOptions(scene=scene, photons=dose, n_y=side, n_x=side, seed=4900 + number, **beam)
        found[f"{scene} {dose:g} p{which} x{overlap:g} {side}x{side} #{options.seed}"] = options
    return found


def measure(options: SimulationOptions, row: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return the error of every method on one scan; a ``row`` may hold some of them."""
    row = {"limit": row.get("limit") or limit_of(options), **row}
    if row.keys() >= {*METHODS, "default"}:
        return row
    path = folder / "scan.npz"
    write_scan(path, options, compressed=False)
    shipped = load_engine("pytorch").load(find_model(Path("pretrained")))
    row = {name: row.get(name) or error(path, shipped, how) for name, how in METHODS.items()} | row
    if "default" not in row:
        row["default"], found = reconstructed(path, shipped, select=selected)
        row["chosen"] = found.chosen
    return row


def best(row: dict[str, Any]) -> float:
    """Return the smallest error of a single method."""
    return float(min(row[name] for name in METHODS))


def draw(rows: dict[str, dict[str, Any]], path: Path) -> None:
    """Write a figure: every case, its error over that of the best single method."""
    figure = new_figure(8.0, 4.0)
    axes = figure.subplots()
    smoothed = [name for name in METHODS if name.startswith("TV")]
    curves = {
        "60 iterations, amplitude": ["amplitude"],
        "60 iterations, Poisson": ["poisson"],
        "the same, best total variation": smoothed,
        "pre-trained network": ["shipped"],
        "default": ["default"],
    }
    for label, names in curves.items():
        ratio = np.sort([min(row[name] for name in names) / best(row) for row in rows.values()])
        axes.plot(np.linspace(0, 100, len(ratio)), ratio, label=label, linewidth=2 + (label == "default"))
    axes.axhline(ALLOWED, color="0.6", linewidth=1)
    axes.set(xlabel="scans, each curve in its own order [%]", ylabel="error / best single method")
    axes.set_yscale("log")
    axes.set_yticks(TICKS, [f"{tick:g}" for tick in TICKS])
    axes.minorticks_off()
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=100)


def summary(rows: dict[str, dict[str, Any]]) -> str:
    """Return a table: geometric mean of the errors of every way by dose and by probe, the error of the
    default over that of the best single method on average and at worst, and how often it is above
    ``ALLOWED``."""
    groups: dict[str, list[str]] = {}
    for name in sorted(rows, key=lambda name: (float(name.split()[1]), name.split()[2])):
        dose, probe = name.split()[1:3]
        for group in (f"{dose} photons", f"probe {probe}", "all"):
            groups.setdefault(group, []).append(name)
    ways = ("limit", *METHODS, "default")
    lines = [f"| scans | {' | '.join(ways)} | default / best: mean | worst | above {ALLOWED} |"]
    lines.append(f"|{'---|' * (len(ways) + 4)}")
    for group, names in sorted(groups.items(), key=lambda item: len(item[1])):
        part = [rows[name] for name in names]
        ratio = np.array([row["default"] / best(row) for row in part])
        means = [f"{np.exp(np.mean([np.log(row[way]) for row in part])):.4f}" for way in ways]
        words = f"{ratio.mean():.3f} | {ratio.max():.3f} | {(ratio > ALLOWED).sum()} of {len(part)}"
        lines.append(f"| {group} | {' | '.join(means)} | {words} |")
    return "\n".join(lines)


def main() -> None:
    """Simulate, reconstruct, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", type=int, default=64, help="how many of the list (default 64)")
    parser.add_argument("--first", type=int, default=0, help="the first of them (default 0)")
    parser.add_argument("--side", type=int, default=10, help="patterns along each axis (default 10)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--figure", type=Path, metavar="PNG")
    options = parser.parse_args()
    known = json.loads(options.json.read_text()) if options.json and options.json.exists() else {}
    wanted = list(cases(options.side).items())[options.first : options.first + options.cases]
    print(f"| scan | limit | {' | '.join(METHODS)} | default | default / best |")
    print(f"|{'---|' * (len(METHODS) + 4)}", flush=True)
    for name, settings in wanted:
        with tempfile.TemporaryDirectory() as scratch:
            known[name] = measure(settings, known.get(name, {}), Path(scratch))
        if options.json:
            options.json.write_text(json.dumps(known, indent=1))
        row = known[name]
        numbers = " | ".join(f"{row[way]:.4f}" for way in ("limit", *METHODS, "default"))
        print(f"| {name} | {numbers} | {row['default'] / best(row):.3f} |", flush=True)
    rows = {name: known[name] for name, _ in wanted}
    print(f"\n{summary(rows)}")
    if options.figure:
        draw(rows, options.figure)


if __name__ == "__main__":
    main()
