"""Peak memory of training and inference on a long scan, by the real commands.

usage: python benchmarks/large_scan.py [--grid 224x224] [--size 64] [--epochs 1] [--limit-gib 4]
                                       [--steps 22] [--width 24]

Leaves with status 1 when a command needed more than the limit.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def peak_gib(words: list[str | Path]) -> tuple[float, float]:
    """Run a command; return its peak resident memory [GiB] and its time [s]."""
    start = time.perf_counter()
    process = subprocess.Popen(words)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{words}: failed with status {status}")
    return usage.ru_maxrss / 2**20, time.perf_counter() - start


def main() -> None:
    """Simulate, train, reconstruct, and compare the peaks with the limit."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--grid", default="224x224")
    parser.add_argument("--size", default="64")
    parser.add_argument("--epochs", default="1")
    parser.add_argument("--limit-gib", type=float, default=4.0)
    parser.add_argument("--steps", default="22", help="steps of unrolled")
    parser.add_argument("--width", default="24", help="filters of unrolled")
    parser.add_argument("--scan", type=Path, help="use this file instead of simulating one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scan, run = options.scan or Path(folder) / "scan.npz", Path(folder) / "run"
        if options.scan is None:
            grid = ["--grid", options.grid, "--size", options.size, "--no-compress", "--quiet"]
            subprocess.run([sys.executable, "-m", "ptycho.simulate", "--output", scan, *grid], check=True)
        train = [sys.executable, "-m", "ptycho_torch.train", "--train_data_file", scan, "--output_dir", run]
        train += [
            "--gridsize",
            "1",
            "--n_images",
            "1000000",
            "--max_epochs",
            options.epochs,
            "--torch-loss-mode",
            "amplitude",
            "--disable_mlflow",
        ]
        train += ["--unrolled_steps", options.steps, "--unrolled_width", options.width]
        infer = [sys.executable, "-m", "ptycho_torch.inference", "--model_path", run, "--test_data", scan]
        infer += ["--output_dir", Path(folder) / "pictures"]
        peaks = []
        for name, words in (("training", train), ("inference", infer)):
            peak, took = peak_gib(words)
            peaks.append(peak)
            print(f"{name}: peak {peak:.2f} GiB resident, {took:.0f} s", flush=True)
    if max(peaks) > options.limit_gib:
        raise SystemExit(f"peak {max(peaks):.2f} GiB, expected at most {options.limit_gib} GiB")


if __name__ == "__main__":
    main()
