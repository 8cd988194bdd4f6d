"""The solver in two checkouts: time of a refinement and of the plain steps of ``unrolled``, and the ratio.

usage: python benchmarks/solver.py BEFORE AFTER [--grid 20x20] [--size 64] [--rounds 3] [--cpu]

Every measurement runs in a process of its own, the checkouts taking turns, so that a busy machine hits both.
A process reconstructs the same simulated scan several times from a flat object; the first time, which holds
compilation, is reported beside the best of the others. A ratio above 1 means that AFTER is slower. With
--cpu processor time counts, which other work on the machine disturbs less.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import inspect
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "plain poisson": {"likelihood": "poisson"},
    "refine": {"start": "flat"},
    "refine probe": {"start": "flat", "probe": True},
    "refine all": {"start": "flat", "probe": True, "positions": True, "frames": True},
    "refine poisson": {"start": "flat", "likelihood": "poisson", "tv": 1e-3},
}
"""Name -> how the object is refined; ``plain`` is the network before its learned steps, with a likelihood."""
ITERATIONS, PLAIN_STEPS, REPEATS = 20, 60, 3


def first(*names: str) -> Any:
    """Return the first of some modules that exists."""
    for name in names:
        with contextlib.suppress(ModuleNotFoundError):
            return importlib.import_module(name)
    raise ModuleNotFoundError(names[0])


def measured(path: Path, backend: str, now: Callable[[], float]) -> dict[str, list[float]]:
    """Return the seconds of every case, repeated, in this process."""
    import numpy as np

    from ptycho.config.config import ModelConfig, PyTorchExecutionConfig

    # A checkout may be from before the rooms. Its names come first: what an older one lacks may be installed.
    network = first("ptycho.network", "ptycho.networks.architectures")
    bundle = first("ptycho.bundle", "ptycho.networks.bundle")
    open_scan = first("ptycho.scan", "ptycho.files.reader").open_scan
    progress = first("ptycho.progress", "ptycho.process.progress")
    load_engine = first("ptycho.models", "ptycho.run.engines").load_engine
    options = first("ptycho.job", "ptycho.solver.options")

    class Clock(progress.Progress):
        """Notes when every iteration of the phase of interest was done."""

        def phase(self, name: str, total: int) -> Any:
            times = [now()]
            if name in ("refining", "reconstructing"):
                self.times = times

            class Timed(progress.Phase):
                def update(self, done: int, **values: Any) -> None:
                    times.append(now())

            return Timed()

    engine, scan = load_engine(backend), open_scan(path)
    known = inspect.signature(first("ptycho.run.reconstruction", engine.__name__).reconstruct).parameters
    # Checkouts from before the name refine say polish.
    word = "refine" if "refine" in known else "polish"
    steps, execution = PLAIN_STEPS + network.LEARNED_STEPS, PyTorchExecutionConfig(accelerator="cpu")
    no_probe = np.zeros((1, scan.n_px, scan.n_px), np.complex64)
    found: dict[str, list[float]] = {}
    for name, words in CASES.items():
        config = ModelConfig(
            N=scan.n_px,
            architecture="unrolled",
            unrolled_steps=steps,
            unrolled_likelihood=words.get("likelihood", "amplitude"),
        )
        weights = network.initial_weights(network.architecture_table(config), 1)
        model = engine.from_bundle(bundle.Bundle(backend, config, weights, no_probe))
        refined = "start" in words
        refine = options.RefineOptions(ITERATIONS, **words) if refined else None
        for _ in range(REPEATS + 1):
            clock = Clock()
            engine.reconstruct(
                model,
                scan,
                scan.usable,
                execution=execution,
                progress=clock,
                fit_probe=False,
                **{word: refine},
            )
            last = -1 if refined else -1 - network.LEARNED_STEPS
            found.setdefault(name, []).append(clock.times[last] - clock.times[0])
    return found


def turns(
    path: Path, checkouts: list[Path], backend: str, *, rounds: int, cpu: bool
) -> Iterator[dict[str, list[float]]]:
    """Yield what processes of the first and of the second checkout measure, taking turns."""
    for _ in range(rounds):
        for checkout in checkouts:
            words = [sys.executable, __file__, "--one", str(path), backend, *(["--cpu"] if cpu else [])]
            place = os.environ | {"PYTHONPATH": str(checkout.resolve())}
            done = subprocess.run(
                words, env=place, cwd=checkout, check=True, stdout=subprocess.PIPE, text=True
            )
            yield json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Simulate a scan and measure both checkouts on it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkouts", nargs="*", type=Path, metavar="CHECKOUT", help="BEFORE and AFTER")
    parser.add_argument("--grid", default="20x20")
    parser.add_argument("--size", default="64")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--backend", choices=("pytorch", "tensorflow"), help="only this one")
    parser.add_argument("--cpu", action="store_true", help="count processor time")
    parser.add_argument("--one", nargs=2, metavar=("FILE", "BACKEND"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        now = time.process_time if options.cpu else time.perf_counter
        print(json.dumps(measured(Path(options.one[0]), options.one[1], now)))
        return
    if len(options.checkouts) != 2:
        parser.error("name two checkouts, BEFORE and AFTER")
    print(f"{'backend':<12}{'case':<16}{'before [s]':>11}{'after [s]':>11}{'ratio':>7}{'first':>7}")
    with tempfile.TemporaryDirectory() as folder:
        scan = Path(folder) / "scan.npz"
        words = ["--grid", options.grid, "--size", options.size, "--quiet", "--no-compress"]
        subprocess.run([sys.executable, "-m", "ptycho.simulate", "--output", scan, *words], check=True)
        for backend in [options.backend] if options.backend else ["pytorch", "tensorflow"]:
            every = list(turns(scan, options.checkouts, backend, rounds=options.rounds, cpu=options.cpu))
            for name in CASES:
                before, after = (_middle(name, every[side::2]) for side in (0, 1))
                ratios = (new / old for old, new in zip(before, after, strict=True))
                print(
                    f"{backend:<12}{name:<16}{before[0]:>11.3f}{after[0]:>11.3f}",
                    *(f"{ratio:>6.3f}" for ratio in ratios),
                    flush=True,
                )


def _middle(name: str, processes: list[dict[str, list[float]]]) -> tuple[float, float]:
    """Return the median over processes of the best time, and of the first."""
    best = statistics.median(min(times[name][1:]) for times in processes)
    return best, statistics.median(times[name][0] for times in processes)


if __name__ == "__main__":
    main()
