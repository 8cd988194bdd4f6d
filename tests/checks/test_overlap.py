"""Spots that share too little of the object are reported; scans with usual overlap are not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scan_makers import honest_options, honest_scan

from ptycho.data.checks.overlap import coverage, diameter_px, lit_pixels, step_px
from ptycho.data.prepare import prepare_scan
from ptycho.data.scan import Scan
from ptycho.files.reader import open_scan
from ptycho.raw_data import RawData
from ptycho.simulation.simulate import SimulationOptions, make_probe, simulate, write_scan


def scan_of(options: SimulationOptions, rows: Any = slice(None)) -> Scan:
    arrays = simulate(options)
    keys = ("xcoords", "ycoords", "diff3d")
    raw = RawData.from_coords_without_pc(*(arrays[key][rows] for key in keys), arrays["probeGuess"], None)
    return prepare_scan(raw)


def in_steps(seed: int, share: float) -> SimulationOptions:
    """Return a raster whose steps are a share of the diameter of the spot."""
    options = replace(honest_options(seed), scan="raster", jitter_px=0.0)
    return replace(options, step_px=share * diameter_px(lit_pixels(make_probe(options))))


def lines(scan: Scan) -> list[str]:
    return [finding.message for finding in scan.findings if finding.check == "overlap"]


def test_the_diameter_of_a_spot_is_that_of_its_disc() -> None:
    for n_px, diameter in ((32, 14.0), (64, 40.0), (65, 30.0)):
        axis = np.arange(n_px) - (n_px - 1) / 2
        disc = (np.hypot(axis[:, None], axis) < diameter / 2).astype(complex)
        assert diameter_px(lit_pixels(disc[None])) == pytest.approx(np.sqrt(0.95) * diameter, rel=0.05)


@pytest.mark.parametrize("share", [0.3, 0.5, 0.7])
def test_the_shared_part_of_discs_in_a_row_is_that_of_lenses(share: float) -> None:
    axis = np.arange(128) - 63.5
    lit = np.hypot(axis[:, None], axis) < 40
    positions = np.stack([np.zeros(9), share * 80 * np.arange(9)], axis=1)
    angle = np.arccos(share)
    lens = 2 / np.pi * (angle - share * np.sin(angle))
    twice = 2 * lens if share >= 0.5 else None
    found = coverage(positions, lit)
    assert found is not None
    if twice is not None:
        assert found.shared == pytest.approx(twice, abs=0.03)
    assert found.lit_px == pytest.approx(np.pi * 40**2 * (1 + 8 * (1 - lens)), rel=0.03)
    assert found.parts == 1
    apart = coverage(positions * 1.2 / share, lit)
    assert apart is not None
    assert (apart.shared, apart.parts) == (0.0, 9)


@pytest.mark.parametrize("seed", range(0, 20, 4))
def test_spots_without_common_illumination_are_reported(seed: int) -> None:
    (line,) = lines(scan_of(in_steps(seed, 1.3)))
    assert "share no illumination" in line


@pytest.mark.parametrize("seed", range(1, 20, 4))
def test_spots_with_little_common_illumination_are_reported(seed: int) -> None:
    (line,) = lines(scan_of(in_steps(seed, 0.9)))
    assert "seen twice" in line or "share no" in line


def test_a_probe_as_wide_as_the_window_without_overlap_is_reported() -> None:
    options = SimulationOptions(
        n_px=32, n_y=6, n_x=6, step_px=32, jitter_px=0, probe="disc", probe_diameter_px=23
    )
    assert "share no" in lines(scan_of(options))[0]


def test_too_few_measured_numbers_are_reported() -> None:
    options = SimulationOptions(
        n_px=64, n_y=10, n_x=10, step_px=32.5, jitter_px=0, probe="disc", probe_diameter_px=46
    )
    scan = scan_of(options)
    assert coverage(scan.positions_yx_px, lit_pixels(scan.probe)).shared > 0.5
    (line,) = lines(scan)
    assert "measured numbers for each unknown" in line


def test_parts_of_a_scan_without_a_bridge_are_counted() -> None:
    options = SimulationOptions(n_px=32, n_y=6, n_x=18, step_px=4, jitter_px=0.5)
    keep = np.flatnonzero((np.arange(6 * 18) % 18 < 6) | (np.arange(6 * 18) % 18 >= 12))
    (line,) = lines(scan_of(options, keep))
    assert "2 parts" in line
    assert "50%" in line


def test_one_pattern_alone_is_reported() -> None:
    (line,) = lines(prepare_scan(honest_scan(0).subset([5])))
    assert "only one pattern" in line


@pytest.mark.parametrize("path", ["row", "column", "sparse", "wide", "repeated", "pair"])
def test_usual_overlap_is_not_reported(path: str) -> None:
    for seed in (0, 5, 10, 13):
        options = replace(honest_options(seed), scan="raster", jitter_px=0.3)
        wide = min(0.7 * options.n_px, 40.0)
        changed = {
            "row": {"n_y": 1, "n_x": 20},
            "column": {"n_y": 20, "n_x": 1},
            "sparse": {"step_px": 0.55 * options.diameter_px},
            "wide": {
                "probe": "disc",
                "probe_diameter_px": wide,
                "step_px": 0.25 * wide,
                "defocus_waves": 1.0,
            },
            "repeated": {},
            "pair": {"n_y": 1, "n_x": 2},
        }[path]
        if path == "repeated":
            raw = honest_scan(seed).subset(np.repeat(np.arange(64), 2))
            raw.diff3d = np.random.default_rng(seed).poisson(raw.diff3d).astype(np.uint32)
            raw.metadata = {"measurement_domain": "counts"}
            assert lines(prepare_scan(raw)) == []
        else:
            assert lines(scan_of(replace(options, **changed))) == []


def test_the_real_scan_overlaps(real_scan: Path) -> None:
    scan = open_scan(real_scan)
    assert scan.findings == ()
    assert step_px(scan.positions_yx_px) == pytest.approx(9.04, abs=0.01)


def test_the_command_warns_of_spots_that_share_nothing(
    caplog: pytest.LogCaptureFixture, infer_command: Callable[..., Any], tmp_path: Path
) -> None:
    options = SimulationOptions(n_px=32, n_y=4, n_x=4, step_px=20, jitter_px=0.5, photons=1e5)
    write_scan(tmp_path / "sparse.npz", options)
    done = infer_command("pretrained", tmp_path / "sparse.npz", tmp_path / "out")
    assert done.code == 0
    assert "sparse.npz: neighbouring spots share no illumination (steps of" in caplog.text
