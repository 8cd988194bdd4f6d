"""Scans in which nothing is wrong: no check may say a word about them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from scan_makers import honest_scan

from ptycho.raw_data import RawData


@pytest.fixture(scope="session")
def honest_scans() -> list[RawData]:
    """Return 20 random simulated scans: 8 x 8 patterns of 32 to 64 px, 3e2 to 1e7 photons per frame."""
    return [honest_scan(seed) for seed in range(20)]


def _shared(name: str) -> Path:
    """Return a file of the shared data; skip the test where it is not there."""
    beside = Path(__file__).resolve().parents[3] / "shared" / "data"
    path = Path(os.environ.get("PTYCHO_SHARED_DATA", beside)) / name
    if not path.is_file():
        pytest.skip(f"the measured scan is not there ({path}); set PTYCHO_SHARED_DATA to its folder")
    return path


@pytest.fixture(scope="session")
def real_scan() -> Path:
    """Return the measured far-field scan of a star, 516 patterns of 128 px."""
    return _shared("aps_siemens_star.npz")


@pytest.fixture(scope="session")
def near_field_scan() -> Path:
    """Return the measured near-field scan of a star, 200 images of 100 px."""
    return _shared("petra_p25_near_field.cxi")
