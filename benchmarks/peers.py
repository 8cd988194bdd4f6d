"""Quality against wall-clock time: this toolkit and other programs, on the same scans, in one run.

usage: python benchmarks/peers.py [--peer-python PATH] [--cases n64-high ...] [--seconds 30]
           [--own-seconds 12] [--training-seconds 20] [--figure PNG] [--page MARKDOWN] [--json FILE]

A peer runs in a Python of its own (``--peer-python``), through ``peers_worker.py``; nothing of it is imported
here. An environment for both: ``pip install torch==2.13.0``, ``pip install --no-deps ptychi==2.2.0
ptylab==0.3.7``, then what they import (h5py, pydantic, matplotlib, pandas, tqdm, scipy, scikit-learn,
scikit-image, tifffile). Before pty-chi is timed, its forward model is given the true object: where its
amplitudes miss the patterns by more than ours do, the run ends. PtyLab rounds positions to whole pixels.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from limits import limit_of
from numpy.typing import NDArray
from peers_cases import CASES, PEERS, Case, Peer, model_of

from ptycho import physics
from ptycho.data.reconstruction import Reconstruction
from ptycho.data.scan import Scan
from ptycho.evaluation.metrics import score
from ptycho.files.reader import open_scan
from ptycho.run.outputs import truth_on_canvas
from ptycho.simulation.simulate import write_scan

BORDER_PX = 4
"""Border around the canvas of a peer, for patches at fractions of a pixel."""
MOST_MISFIT = 1.01
"""Misfit of the true object in a peer, relative to ours, above which its geometry is not ours."""
TARGET = 0.013
"""NRMSE at which pty-chi LSQML levels off on the small bright scan."""
START, END = "<!-- peers:start -->", "<!-- peers:end -->"
THREADS = 2
COLOURS = ("#0072b2", "#d62728", "#2ca02c", "#e69f00", "#8c564b", "#7f7f7f", "#cc79a7", "#56b4e9")
"""Far apart for most eyes."""


class Mark(NamedTuple):
    """One reconstruction: steps or epochs, seconds, and its error."""

    steps: int
    seconds: float
    nrmse: float


Curves = dict[str, list[Mark]]


def judge(path: Path, found: Reconstruction, obj: NDArray[Any]) -> float:
    """Return the complex NRMSE of an object that lies on the canvas of a reconstruction."""
    truth, mask = truth_on_canvas(path, dataclasses.replace(found, obj=obj.astype(np.complex64))) or (
        None,
        None,
    )
    assert truth is not None
    return score(obj, truth, mask)["complex_nrmse"]


def peer_job(
    scan: Scan, found: Reconstruction, obj: NDArray[Any], settings: dict[str, Any]
) -> dict[str, Any]:
    """Return the arrays that ``peers_worker.py`` reads."""
    corners = scan.positions_yx_px - (scan.n_px - 1) / 2 - found.origin_yx_px + BORDER_PX
    padded = np.pad(obj, BORDER_PX, constant_values=1.0)
    counts = np.asarray(scan.raw.diff3d, dtype=np.float32)
    return {
        "counts": counts, "probe": scan.probe, "corners_yx_px": corners, "object": padded,
        "settings": json.dumps(settings),
    }  # fmt: skip


def run_worker(python: str, job: dict[str, Any], folder: Path) -> dict[str, NDArray[Any]]:
    """Run one job in the Python of the peer."""
    np.savez(folder / "job.npz", **job)
    worker = Path(__file__).with_name("peers_worker.py")
    environment = {**os.environ, "OMP_NUM_THREADS": str(THREADS)}
    subprocess.run(
        [python, worker, folder / "job.npz", folder / "result.npz"],
        check=True, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    with np.load(folder / "result.npz") as archive:
        return {name: archive[name] for name in archive.files}


def check_geometry(python: str, peer: Peer, case: Case, scan: Scan, at: Path, found: Reconstruction) -> None:
    """End the run where a peer, given the true object and probe, does not explain the patterns."""
    truth, _ = truth_on_canvas(at, found) or (None, None)
    assert truth is not None
    result = run_worker(python, peer_job(scan, found, truth, _settings(peer, case, 0.0)), at.parent)
    missed = float(result["start_misfit"]) / own_misfit(scan, found, truth)
    if missed > MOST_MISFIT:
        raise SystemExit(
            f"peers: {peer.program} misses the patterns with the true object ({missed:.2f} x our misfit)"
        )


def own_misfit(scan: Scan, found: Reconstruction, obj: NDArray[Any]) -> float:
    """Return the amplitude misfit of an object in our forward model, relative to the energy."""
    exact = scan.positions_yx_px - (scan.n_px - 1) / 2 - found.origin_yx_px
    corners = np.floor(exact + 0.5).astype(np.int64)
    patches = physics.extract_patches(np.pad(obj, 1, constant_values=1.0), corners + 1, scan.n_px)
    expected = physics.diffracted_intensity(patches, physics.shift_field(scan.probe, exact - corners))
    counts = np.asarray(scan.raw.diff3d, dtype=np.float64)
    return float(((np.sqrt(expected) - np.sqrt(counts)) ** 2).sum() / counts.sum())


def _settings(peer: Peer, case: Case, seconds: float) -> dict[str, Any]:
    return {
        "program": peer.program, "algorithm": peer.algorithm, "probe": case.probe_is_off, "seconds": seconds,
        "threads": THREADS, "options": peer.chosen(case),
    }  # fmt: skip


def peer_curve(
    python: str, peer: Peer, case: Case, scan: Scan, at: Path, found: Reconstruction, seconds: float
) -> list[Mark]:
    """Return the curve of one algorithm of another program, from a flat object."""
    flat = np.ones(found.obj.shape, dtype=np.complex64)
    result = run_worker(python, peer_job(scan, found, flat, _settings(peer, case, seconds)), at.parent)
    inner = (slice(BORDER_PX, -BORDER_PX),) * 2
    rows = zip(result["epochs"], result["seconds"], result["objects"], strict=True)
    return [Mark(int(steps), float(took), judge(at, found, obj[inner])) for steps, took, obj in rows]


def measure(name: str, arguments: argparse.Namespace, folder: Path, known: Curves) -> Curves:
    """Simulate one scan and return every curve of it; those that are known are not measured again."""
    import peers_ours as ours
    import torch

    torch.set_num_threads(THREADS)
    case, path = CASES[name], folder / f"{name}.npz"
    write_scan(path, case.options, compressed=False)
    scan = open_scan(path)
    curves = dict(known)
    if not set(known) - set(PEERS):
        points = ours.refinements(case, scan, arguments.own_seconds) | ours.pretrained(case, scan)
        if arguments.training_seconds > 0:
            model, took = ours.trained(case, scan, arguments.training_seconds)
            origin = f"after {took:.0f} s of training"
            points |= ours.network_curves(case, scan, model, arguments.own_seconds, origin)
        for label, curve in points.items():
            curves[label] = [Mark(steps, took, judge(path, found, found.obj)) for steps, took, found in curve]
    canvas = ours.pretrained(case, scan)["pretrained network"][0].found
    for label, peer in PEERS.items() if arguments.peer_python else ():
        if label in known:
            continue
        if peer.program == "ptychi":
            check_geometry(arguments.peer_python, peer, case, scan, path, canvas)
        curves[label] = peer_curve(arguments.peer_python, peer, case, scan, path, canvas, arguments.seconds)
    return curves


def time_to(curve: list[Mark], target: float) -> float | None:
    """Return the seconds of the first mark at or below an error."""
    return next((mark.seconds for mark in curve if mark.nrmse <= target), None)


def table(results: dict[str, Curves]) -> str:
    """Return a table: for every scan and curve the best error, its time, and the time to a target."""
    columns = ("scan", "way", "likelihood, smoothing", "best NRMSE", "over the limit", "at [s]", "after 2 s")
    columns += ("to 0.013 [s]",)
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for name, curves in results.items():
        limit = limit_of(CASES[name].options)
        for label, curve in curves.items():
            best = min(curve, key=lambda mark: mark.nrmse)
            early = [mark.nrmse for mark in curve if mark.seconds <= 2.0]
            reached = time_to(curve, TARGET)
            cells = [
                CASES[name].title, label, model_of(label, CASES[name]), f"{best.nrmse:.4f}",
                f"{best.nrmse / limit:.2f}", f"{best.seconds:.1f}",
                f"{min(early):.4f}" if early else "", f"{reached:.1f}" if reached is not None else "",
            ]  # fmt: skip
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(results: dict[str, Curves], path: Path) -> None:
    """Draw error against seconds, one panel per scan; dashed lines are peers."""
    from ptycho.evaluation.figures import new_figure, save_figure

    labels = list(dict.fromkeys(_stem(label) for curves in results.values() for label in curves))
    columns = min(3, len(results))
    rows = -(-len(results) // columns)
    figure = new_figure(4.2 * columns, 3.4 * rows + 0.8)
    figure.set_layout_engine("constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for panel in axes.flat[len(results) :]:
        panel.set_axis_off()
    for panel, (name, curves) in zip(axes.flat, results.items(), strict=False):
        for label, curve in curves.items():
            style, colour = (
                "--" if label in PEERS else "-",
                COLOURS[labels.index(_stem(label)) % len(COLOURS)],
            )
            panel.loglog(
                [mark.seconds for mark in curve], [mark.nrmse for mark in curve], style, color=colour,
                marker="o" if len(curve) > 1 else "*", markersize=3 if len(curve) > 1 else 14,
                label=_stem(label),
            )  # fmt: skip
        panel.set_title(CASES[name].title, fontsize=10)
        panel.grid(visible=True, which="both", alpha=0.25)
    for panel in axes[-1]:
        panel.set_xlabel("seconds on two cores")
    for panel in axes[:, 0]:
        panel.set_ylabel("complex NRMSE")
    handles = {
        label: handle
        for panel in axes.flat
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3, fontsize=9)
    save_figure(figure, path)


def _stem(label: str) -> str:
    """Return the name of a curve without the time of its training."""
    return label.split(", after")[0]


def write_page(page: Path, text: str) -> None:
    """Put the table between its marks in a page."""
    before, _, rest = page.read_text(encoding="utf-8").partition(START)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{START}\n{text}\n{END}{after}", encoding="utf-8")


def main() -> None:
    """Measure, print, draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--peer-python", metavar="PATH", help="Python that has pty-chi; left out, only our curves"
    )
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--seconds", type=float, default=30.0, help="of every curve of a peer")
    parser.add_argument("--own-seconds", type=float, default=12.0, help="of the longest point of our curves")
    parser.add_argument("--training-seconds", type=float, default=20.0, help="of the network; 0 trains none")
    parser.add_argument("--figure", type=Path, metavar="PNG")
    parser.add_argument("--page", type=Path, metavar="MARKDOWN", help="page whose table is written anew")
    parser.add_argument("--json", type=Path, metavar="FILE", help="every mark; what it holds already is kept")
    arguments = parser.parse_args()
    results: dict[str, Curves] = {}
    if arguments.json and arguments.json.exists():
        stored = json.loads(arguments.json.read_text())
        results = {
            name: {k: [Mark(*m) for m in v] for k, v in curves.items()} for name, curves in stored.items()
        }
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.cases:
            results[name] = measure(name, arguments, Path(folder), results.get(name, {}))
            if arguments.json:
                arguments.json.write_text(json.dumps(results))
            print(table({name: results[name]}), flush=True)
    if arguments.page:
        write_page(arguments.page, table(results))
    if arguments.figure:
        draw(results, arguments.figure)


if __name__ == "__main__":
    sys.exit(main())
