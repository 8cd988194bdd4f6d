"""XLA in the TensorFlow backend: time of inference and of refinement with it and without it, in one run.

usage: python benchmarks/xla.py [--grid 50x50] [--size 64] [--refine 20]

Every variant runs in a process of its own on the same simulated scan; the time holds the compilation.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def measure(path: Path, xla: bool, refine: int) -> None:
    """Print the seconds of the first and of the second reconstruction of a process."""
    import numpy as np

    from ptycho.config.config import ModelConfig, PyTorchExecutionConfig
    from ptycho.files.reader import open_scan
    from ptycho.process.progress import Progress
    from ptycho.run.engines import load_engine
    from ptycho.solver.options import RefineOptions
    from ptycho.tf import solver
    from ptycho.tf.model import PtychoPINN

    if not xla:
        solver.XLA_PIXELS = 2**62
    scan, engine = open_scan(path), load_engine("tensorflow")
    model = PtychoPINN(ModelConfig(N=scan.n_px, architecture="unrolled"), seed=1)
    model.attach_scan(scan.probe, scan.record, refined=False)
    options = RefineOptions(refine) if refine else None
    for label in ("first", "second"):
        start = time.perf_counter()
        members = np.arange(scan.n_patterns)
        engine.reconstruct(
            model, scan, members, execution=PyTorchExecutionConfig(), progress=Progress(), refine=options
        )
        print(f"XLA {'on' if xla else 'off'}, {label} run: {time.perf_counter() - start:.2f} s", flush=True)


def main() -> None:
    """Simulate a scan and measure both variants on it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--grid", default="50x50")
    parser.add_argument("--size", default="64")
    parser.add_argument("--refine", type=int, default=20)
    parser.add_argument("--one", nargs=2, metavar=("FILE", "XLA"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        measure(Path(options.one[0]), options.one[1] == "on", options.refine)
        return
    with tempfile.TemporaryDirectory() as folder:
        scan = Path(folder) / "scan.npz"
        words = ["--grid", options.grid, "--size", options.size, "--quiet", "--no-compress"]
        subprocess.run([sys.executable, "-m", "ptycho.simulate", "--output", scan, *words], check=True)
        for xla in ("off", "on"):
            words = ["--refine", str(options.refine), "--one", str(scan), xla]
            subprocess.run([sys.executable, __file__, *words], check=True)


if __name__ == "__main__":
    main()
