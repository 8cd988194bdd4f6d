"""Scans in which nothing is wrong: no check may say a word about them."""

from __future__ import annotations

import pytest
from scan_makers import honest_scan

from ptycho.raw_data import RawData


@pytest.fixture(scope="session")
def honest_scans() -> list[RawData]:
    """Return 20 random simulated scans: 8 x 8 patterns of 32 to 64 px, 3e2 to 1e7 photons per frame."""
    return [honest_scan(seed) for seed in range(20)]
