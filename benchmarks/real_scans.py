"""What measured scans bring, planted into simulated ones: this toolkit and pty-chi LSQML, in one run.

usage: python benchmarks/real_scans.py [--peer-python PATH] [--cases gap rms1 ...] [--seconds 30]
           [--page MARKDOWN]

Every case is the small bright scan of ``peers_cases.py`` with one fault; its object is made of pictures that
come with scikit-image, which took no part in choosing any number. The peer refines what the fault asks for
(a mask, its position correction, variable or
incoherent modes of its probe) with its own defaults, and counts with the best of its marks.
``--peer-python`` is as for ``peers.py``.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import peers
import peers_ours as ours
from limits import limit_of
from numpy.typing import NDArray
from peers_cases import SMALL

from ptycho.config.config import ModelConfig
from ptycho.files.reader import open_scan
from ptycho.process.progress import Progress
from ptycho.simulation.simulate import SimulationOptions, simulate
from ptycho.solver.options import RefineOptions
from ptycho_torch import engine

Arrays = dict[str, NDArray[Any]]
START, END = "<!-- real-scans:start -->", "<!-- real-scans:end -->"
OPTIMIZED = {"probe_position_options.optimizable": True}
OPR = {"opr_mode_weight_options.optimizable": True}
AFFINE = OPTIMIZED | {"probe_position_options.affine_transform_constraint.enabled": True}


@dataclass(frozen=True)
class Fault:
    """One thing that a measured scan brings."""

    title: str
    plant: Callable[[Arrays, np.random.Generator], None]  # changes the arrays of a data file
    ours: dict[str, Any] = field(default_factory=dict)  # of RefineOptions
    peer: dict[str, Any] = field(default_factory=dict)  # options of LSQML, by dotted names
    scan: dict[str, Any] = field(default_factory=dict)  # of SimulationOptions
    peer_probe: dict[str, Any] = field(default_factory=dict)  # settings of the worker about its probe
    steps: int = 30
    limit: dict[str, Any] = field(default_factory=dict)  # of SimulationOptions, for the photon limit alone

    def noisy(self) -> SimulationOptions:
        """Return the scan whose photon limit stands beside: a gap and wrong positions are not in it."""
        return replace(picture_scan(), **self.scan, **self.limit)


def _clean(scan: Arrays, rng: np.random.Generator) -> None:
    """Plant nothing."""


def _gap(scan: Arrays, rng: np.random.Generator) -> None:
    n_px = scan["diff3d"].shape[-1]
    bad = rng.random((n_px, n_px)) < 0.01
    bad[n_px // 3 : n_px // 3 + 4] = True
    bad[:, n_px // 3 : n_px // 3 + 4] = True
    scan["bad_pixels"] = bad
    scan["diff3d"] = np.where(bad, 0, scan["diff3d"])


def _background(scan: Arrays, rng: np.random.Generator) -> None:
    scan["diff3d"] = scan["diff3d"] + rng.poisson(2.0, scan["diff3d"].shape).astype(np.uint16)


def _moved(scan: Arrays, by_yx_px: NDArray[np.float64]) -> None:
    for name, column in zip(("ycoords", "xcoords"), by_yx_px.T, strict=True):
        scan[name] = scan[name] + column


def _random(sigma_px: float) -> Callable[[Arrays, np.random.Generator], None]:
    return lambda scan, rng: _moved(scan, rng.normal(0, sigma_px, (len(scan["xcoords"]), 2)))


def _drift(scan: Arrays, rng: np.random.Generator) -> None:
    walk = np.cumsum(rng.normal(0, 1, (len(scan["xcoords"]), 2)), axis=0)
    walk -= walk.mean(axis=0)
    _moved(scan, 1.5 * walk / np.sqrt((walk**2).sum(axis=1).mean()))


def _affine(scan: Arrays, rng: np.random.Generator) -> None:
    places = np.column_stack([scan["ycoords"], scan["xcoords"]])
    # 2 % too wide along y, 1 % too narrow along x, turned by a degree, sheared by half a degree.
    matrix = np.array([[0.02, 0.0175 + 0.0087], [-0.0175, -0.01]])
    _moved(scan, (places - places.mean(axis=0)) @ matrix)


FAULTS = {
    "clean": Fault("nothing wrong", _clean),
    "gap": Fault("a gap of 4 rows and 4 columns, 1 % dead pixels", _gap),
    "background": Fault(
        "2 counts of background per pixel",
        _background,
        {"background": True},
        limit={"background_counts": 2.0},
    ),
    "rms1": Fault("positions off by 1 px rms in x and y", _random(1.0), {"positions": True}, OPTIMIZED),
    "rms2": Fault("positions off by 2 px rms in x and y", _random(2.0), {"positions": True}, OPTIMIZED),
    "drift": Fault("positions drift, 1.5 px rms", _drift, {"positions": True}, OPTIMIZED),
    "affine": Fault("raster scaled, turned, sheared", _affine, {"positions": True}, OPTIMIZED),
    "affine-on": Fault("the same, only affine", _affine, {"affine": True}, AFFINE),
    "few-photons": Fault("1e4 photons", _clean, scan={"photons": 1e4}),
    "defocus": Fault(
        "a probe off by 0.3 waves of defocus",
        _clean,
        {"probe": True},
        scan={"probe_error_waves": 0.3},
        peer_probe={"probe": True},
        steps=60,
    ),
    "few-photons-defocus": Fault(
        "1e4 photons, a probe off by 0.3 waves",
        _clean,
        {"probe": True},
        scan={"photons": 1e4, "probe_error_waves": 0.3},
        peer_probe={"probe": True},
        steps=60,
    ),
    "probe-drift": Fault(
        "a probe that drifts by 0.8 waves of defocus",
        _clean,
        {"probe": True, "probe_variation": 2},
        OPR,
        {"probe_drift_waves": 0.8},
        {"probe": True, "variable_modes": 2},
        steps=60,
    ),
    "fly": Fault(
        "a fly scan, 3 px long exposures",
        _clean,
        {"probe": True, "probe_modes": 3},
        scan={"fly_scan_px": 3.0},
        peer_probe={"probe": True, "modes": 3},
        steps=60,
    ),
}


def picture_scan() -> SimulationOptions:
    """Return the small bright scan with pictures as its object."""
    import skimage

    folder = Path(skimage.__file__).parent / "data"
    return replace(SMALL, picture=str(folder / "chelsea.png"), phase_picture=str(folder / "gravel.png"))


def own(path: Path, fault: Fault) -> peers.Mark:
    """Return steps, seconds and error of a refinement from flat; the first of two runs is not timed."""
    scan = open_scan(path)
    model = ours.untrained(scan, ModelConfig(N=scan.n_px, architecture="unrolled"))
    options = RefineOptions(fault.steps, start="flat", **fault.ours)
    for count in (2, fault.steps):
        found = engine.reconstruct(
            model, scan, np.arange(scan.n_patterns), execution=ours.EXECUTION, progress=Progress(),
            refine=replace(options, steps=count),
        )  # fmt: skip
    return peers.Mark(len(found.misfit) - 1, found.seconds, peers.judge(path, found, found.obj))


def peer(path: Path, fault: Fault, python: str, seconds: float) -> list[peers.Mark]:
    """Return the marks of LSQML, from a flat object."""
    scan = open_scan(path)
    model = ours.untrained(scan, ModelConfig(N=scan.n_px, architecture="unrolled"))
    canvas = engine.reconstruct(
        model, scan, np.arange(scan.n_patterns), execution=ours.EXECUTION, progress=Progress(),
        refine=RefineOptions(1, start="flat"),
    )  # fmt: skip
    flat = np.ones(canvas.obj.shape, np.complex64)
    settings = {
        "program": "ptychi", "algorithm": "lsqml", "probe": False, "seconds": seconds, **fault.peer_probe,
        "threads": peers.THREADS, "options": {"reconstructor_options.batch_size": 64, **fault.peer},
    }  # fmt: skip
    job = peers.peer_job(scan, canvas, flat, settings)
    if scan.raw.bad_pixels is not None:
        job["bad_pixels"] = scan.raw.bad_pixels
    result = peers.run_worker(python, job, path.parent)
    inner = (slice(peers.BORDER_PX, -peers.BORDER_PX),) * 2
    rows = zip(result["epochs"], result["seconds"], result["objects"], strict=True)
    return [peers.Mark(int(n), float(took), peers.judge(path, canvas, obj[inner])) for n, took, obj in rows]


def measure(name: str, arguments: argparse.Namespace, folder: Path) -> str:
    """Plant one fault and return its row of the table."""
    import torch

    torch.set_num_threads(peers.THREADS)
    fault, path = FAULTS[name], folder / f"{name}.npz"
    scan = simulate(replace(picture_scan(), **fault.scan))
    fault.plant(scan, np.random.default_rng(5))
    np.savez(path, **scan)
    mark = own(path, fault)
    cells = [
        fault.title,
        f"{limit_of(fault.noisy()):.4f}",
        f"{mark.nrmse:.4f}",
        f"{mark.seconds:.1f}",
        str(mark.steps),
    ]
    if arguments.peer_python:
        best = min(peer(path, fault, arguments.peer_python, arguments.seconds), key=lambda m: m.nrmse)
        cells += [f"{best.nrmse:.4f}", f"{best.seconds:.1f}", str(best.steps)]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--peer-python", metavar="PATH", help="Python that has pty-chi")
    parser.add_argument("--cases", nargs="+", choices=list(FAULTS), default=list(FAULTS))
    parser.add_argument("--seconds", type=float, default=30.0, help="of every run of the peer")
    parser.add_argument("--page", type=Path, metavar="MARKDOWN", help="page whose table is written anew")
    arguments = parser.parse_args()
    columns = ["scan", "photon limit", "NRMSE", "seconds", "iterations"]
    if arguments.peer_python:
        columns += ["LSQML, best NRMSE", "at [s]", "epochs"]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    print("\n".join(lines), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.cases:
            lines.append(measure(name, arguments, Path(folder)))
            print(lines[-1], flush=True)
    if arguments.page:
        before, _, rest = arguments.page.read_text(encoding="utf-8").partition(START)
        text = "\n".join(lines)
        arguments.page.write_text(f"{before}{START}\n{text}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
