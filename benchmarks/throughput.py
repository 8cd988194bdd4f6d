"""Patterns per second of every stage, with warm-up and median, for one or both backends in one run.

usage: python benchmarks/throughput.py [--backends pytorch tensorflow] [--patterns 1225] [--size 64]
           [--architectures unrolled cnn] [--repeats 5] [--json FILE]

Every backend runs in a process of its own on the same simulated scan, with the same settings.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ptycho.process.progress import Phase, Progress


@dataclass
class _Clock(Phase):
    """Keeps the moment of every update."""

    moments: list[float] = field(default_factory=lambda: [time.perf_counter()])

    def update(self, done: int, **values: Any) -> None:
        self.moments.append(time.perf_counter())


@dataclass
class _Clocks(Progress):
    """Keeps one clock per phase."""

    clocks: dict[str, _Clock] = field(default_factory=dict)

    def phase(self, name: str, total: int) -> Phase:
        self.clocks[name] = _Clock()
        return self.clocks[name]


def median_rate(patterns: int, call: Callable[[], Any], repeats: int) -> float:
    """Return patterns per second: the median of some calls after one that warms up."""
    call()
    took = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        took.append(time.perf_counter() - start)
    return patterns / statistics.median(took)


def measure(path: Path, backend: str, architecture: str, repeats: int) -> dict[str, float]:
    """Return patterns per second by stage for one backend and one architecture."""
    import numpy as np

    from ptycho.config.config import ModelConfig, PyTorchExecutionConfig, TrainingConfig
    from ptycho.data.selection import training_groups
    from ptycho.files.reader import open_scan
    from ptycho.geometry.grouping import make_groups
    from ptycho.run.engines import load_engine
    from ptycho.run.job import TrainingJob

    scan = open_scan(path)
    count = scan.n_patterns
    rates = {
        "reading": median_rate(count, lambda: open_scan(path), repeats),
        "grouping": median_rate(
            count, lambda: make_groups(scan.positions_yx_px, gridsize=2, n_groups=count, seed=1), repeats
        ),
    }
    engine = load_engine(backend)
    with tempfile.TemporaryDirectory() as folder:
        config = TrainingConfig(
            ModelConfig(N=scan.n_px, gridsize=1, architecture=architecture),
            nepochs=repeats + 1,
            n_groups=count,
            batch_size=16,
            torch_loss_mode="amplitude",
            intensity_scale_trainable=False,
            output_dir=Path(folder),
            backend=backend,
        )
        execution = PyTorchExecutionConfig(
            logger_backend=None, enable_checkpointing=False, accelerator="auto"
        )
        groups, _ = training_groups(scan, config, validate=False)
        progress = _Clocks()
        result = engine.fit(TrainingJob(config, execution, scan, groups, progress=progress))
        epochs = np.diff(progress.clocks["training"].moments)[1:]
        rates["training"] = len(groups.indices) / float(np.median(epochs))
        members = np.arange(count)
        rates["inference"] = median_rate(
            count,
            lambda: engine.reconstruct(result.model, scan, members, execution=execution, progress=Progress()),
            repeats,
        )
    return rates


def main() -> None:
    """Run every backend and architecture, print a table, and the ratios to the first backend."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backends", nargs="+", default=["pytorch"])
    parser.add_argument("--architectures", nargs="+", default=["unrolled", "cnn"])
    parser.add_argument("--patterns", type=int, default=1225)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", nargs=3, metavar=("FILE", "BACKEND", "ARCHITECTURE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        file, backend, architecture = options.one
        print(json.dumps(measure(Path(file), backend, architecture, options.repeats)))
        return
    side = round(options.patterns**0.5)
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        scan = Path(folder) / "scan.npz"
        grid = ["--grid", f"{side}x{side}", "--size", str(options.size)]
        subprocess.run(
            [sys.executable, "-m", "ptycho.simulate", "--output", scan, "--quiet", *grid], check=True
        )
        for architecture in options.architectures:
            for backend in options.backends:
                words = [
                    sys.executable,
                    __file__,
                    "--repeats",
                    str(options.repeats),
                    "--one",
                    scan,
                    backend,
                    architecture,
                ]
                done = subprocess.run(words, check=True, capture_output=True, text=True)
                found[f"{architecture} {backend}"] = json.loads(done.stdout.strip().splitlines()[-1])
    print(
        f"{side * side} patterns of {options.size} x {options.size}, patterns per second (median of "
        f"{options.repeats}):"
    )
    stages = ("reading", "grouping", "training", "inference")
    print("".join(f"{word:>22}" for word in ("", *stages)))
    for name, rates in found.items():
        print(f"{name:>22}" + "".join(f"{rates[stage]:>22.4g}" for stage in stages))
        first = f"{name.split()[0]} {options.backends[0]}"
        if name != first:
            ratios = (rates[stage] / found[first][stage] for stage in stages)
            print(f"{'ratio to ' + options.backends[0]:>22}" + "".join(f"{ratio:>22.2f}" for ratio in ratios))
    if options.json:
        options.json.write_text(json.dumps(found, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
