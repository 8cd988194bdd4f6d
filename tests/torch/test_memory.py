"""The memory of a run does not grow with several copies of the scan."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
GROWTH_LIMIT_GIB = 0.5
"""What 3,072 more patterns of 64 x 64 may add to the peak of a command. They add 0.23 GiB: the patterns as
they were read, their mapped copy, and a canvas four times larger. One complex array of all of them is 0.1
GiB, and a step over all patterns at once holds about ten such arrays. The growth, not the peak, is judged:
the peak holds the libraries, which differ by 0.1 GiB from machine to machine."""


def peaks_gib(grid: str) -> dict[str, float]:
    """Peak resident memory [GiB] of training and of inference on a simulated scan of ``grid`` positions."""
    words = [sys.executable, str(ROOT / "benchmarks" / "large_scan.py"), "--grid", grid]
    words += ["--steps", "4", "--width", "4"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.findall(r"^(training|inference): peak ([0-9.]+) GiB resident", done.stdout, re.MULTILINE)
    assert [name for name, _ in found] == ["training", "inference"], done.stdout
    return {name: float(peak) for name, peak in found}


@pytest.mark.slow
def test_four_times_the_patterns_do_not_add_copies_of_the_scan() -> None:
    small, large = peaks_gib("32x32"), peaks_gib("64x64")
    growth = {name: large[name] - small[name] for name in small}
    assert all(0 < grown < GROWTH_LIMIT_GIB for grown in growth.values()), (small, large)
