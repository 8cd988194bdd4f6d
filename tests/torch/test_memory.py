"""The memory of a run does not grow with several copies of the scan."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LIMIT_GIB = 1.25
"""A small scan needs 0.75 GiB, this one 1.0; one complex copy of all its patterns would add 0.13 to every array of a step,
and a step over all patterns at once holds about ten of them."""


@pytest.mark.slow
def test_four_thousand_patterns_stay_within_the_limit() -> None:
    words = [sys.executable, str(ROOT / "benchmarks" / "large_scan.py"), "--grid", "64x64", "--steps", "4"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*words, "--limit-gib", str(LIMIT_GIB)], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("GiB resident") == 2
