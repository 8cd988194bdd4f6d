"""The solver in two checkouts: time of a refinement and of the plain steps of ``unrolled``, and the ratio.

usage: python benchmarks/solver.py BEFORE AFTER [--grid 20x20] [--size 64] [--rounds 3] [--backend pytorch]

Every measurement runs in a process of its own, the checkouts taking turns, so that a busy machine hits both.
A process reconstructs the same simulated scan several times from a flat object; the first time, which holds
compilation, is reported beside the best of the others. A ratio above 1 means that AFTER is slower.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "refine": {"start": "flat"},
    "refine probe": {"start": "flat", "probe": True},
    "refine all": {"start": "flat", "probe": True, "positions": True, "frames": True},
    "refine poisson": {"start": "flat", "likelihood": "poisson", "tv": 1e-3},
}
"""Name -> how the object is refined; ``plain`` is the network before its learned steps."""
ITERATIONS, REPEATS = 20, 3


def measured(path: Path, backend: str) -> dict[str, list[float]]:
    """Return the seconds of every case, repeated, in this process."""
    from ptycho.config.config import ModelConfig, PyTorchExecutionConfig
    from ptycho.files.reader import open_scan
    from ptycho.process.progress import Phase, Progress
    from ptycho.run.engines import load_engine

    try:
        from ptycho.solver.options import RefineOptions
    except ImportError:  # a checkout from before the loop was one
        from ptycho.solver.options import RefineOptions

    class Clock(Progress):
        """Notes when every iteration of the phase of interest was done."""

        def phase(self, name: str, total: int) -> Phase:
            times = [time.perf_counter()]
            if name in ("refining", "reconstructing"):
                self.times = times

            class Timed(Phase):
                def update(self, done: int, **values: Any) -> None:
                    times.append(time.perf_counter())

            return Timed()

    engine, scan, config = load_engine(backend), open_scan(path), ModelConfig(architecture="unrolled")
    if backend == "pytorch":
        from ptycho_torch.model import PtychoPINN_Lightning as Network
    else:
        from ptycho.tf.model import PtychoPINN as Network
    found: dict[str, list[float]] = {}
    for name, words in CASES.items():
        for _ in range(REPEATS + 1):
            model = Network(config, seed=1)
            model.attach_scan(scan.probe, scan.record, refined=False)
            clock, execution = Clock(), PyTorchExecutionConfig(accelerator="cpu")
            polish = RefineOptions(ITERATIONS, **words) if words else None
            engine.reconstruct(
                model, scan, scan.usable, execution=execution, progress=clock, polish=polish, fit_probe=False
            )
            last = -1 if words else -1 - model.generator.learned
            found.setdefault(name, []).append(clock.times[last] - clock.times[0])
    return found


def turns(path: Path, checkouts: list[Path], backend: str, rounds: int) -> Iterator[dict[str, list[float]]]:
    """Yield what processes of the first and of the second checkout measure, taking turns."""
    for _ in range(rounds):
        for checkout in checkouts:
            words = [sys.executable, __file__, "--one", str(path), backend]
            place = os.environ | {"PYTHONPATH": str(checkout.resolve())}
            done = subprocess.run(words, env=place, cwd=checkout, check=True, capture_output=True, text=True)
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
    parser.add_argument("--one", nargs=2, metavar=("FILE", "BACKEND"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measured(Path(options.one[0]), options.one[1])))
        return
    if len(options.checkouts) != 2:
        parser.error("name two checkouts, BEFORE and AFTER")
    print(f"{'backend':<12}{'case':<16}{'before [s]':>11}{'after [s]':>11}{'ratio':>7}{'first':>7}")
    with tempfile.TemporaryDirectory() as folder:
        scan = Path(folder) / "scan.npz"
        words = ["--grid", options.grid, "--size", options.size, "--quiet", "--no-compress"]
        subprocess.run([sys.executable, "-m", "ptycho.simulate", "--output", scan, *words], check=True)
        for backend in [options.backend] if options.backend else ["pytorch", "tensorflow"]:
            every = list(turns(scan, options.checkouts, backend, options.rounds))
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
