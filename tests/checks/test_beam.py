"""A beam that changes during a scan is reported; a sample that changes the counts is not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scan_makers import honest_options
from scipy.ndimage import gaussian_filter

from ptycho.data.checks.beam import beam_change
from ptycho.data.npz import read_npz, write_npz
from ptycho.data.prepare import prepare_scan
from ptycho.data.scan import Scan
from ptycho.physics import diffracted_intensity, extract_patches
from ptycho.raw_data import RawData
from ptycho.simulation.simulate import SimulationOptions, simulate


def scan_of(options: SimulationOptions, factor: NDArray[np.float64] | None = None) -> Scan:
    arrays = simulate(options)
    counts = arrays["diff3d"]
    if factor is not None:
        counts = np.random.default_rng(options.seed).poisson(counts * factor[:, None, None]).astype(np.uint32)
    return prepare_scan(
        RawData.from_coords_without_pc(
            arrays["xcoords"], arrays["ycoords"], counts, arrays["probeGuess"], None
        )
    )


def lines(scan: Scan) -> list[str]:
    return [finding.message for finding in scan.findings if finding.check == "beam"]


@pytest.mark.parametrize("amount", [0.3, -0.25])
@pytest.mark.parametrize("seed", [200, 201, 202, 204, 206])
def test_a_jump_is_reported_with_its_pattern_and_size(seed: int, amount: float) -> None:
    options = replace(honest_options(seed), photons=1e5, n_modes=1)
    at = int(np.random.default_rng(seed).integers(20, 44))
    (line,) = lines(scan_of(options, np.where(np.arange(64) >= at, 1 + amount, 1.0)))
    assert "jump by" in line
    assert "--refine-frames" in line
    change = beam_change(scan_of(options, np.where(np.arange(64) >= at, 1 + amount, 1.0)))
    assert change is not None
    assert change.pattern == pytest.approx(at, abs=1)
    assert change.factor == pytest.approx(1 + amount, abs=0.09)


def test_a_drift_on_a_spiral_is_reported() -> None:
    options = SimulationOptions(n_px=32, scan="spiral", n_positions=120, step_px=3, photons=1e5, seed=3)
    (line,) = lines(scan_of(options, np.linspace(1.0, 0.6, 120)))
    assert "drift by" in line
    assert "--refine-frames" in line


@pytest.mark.parametrize("seed", range(300, 312))
def test_samples_on_any_path_change_no_beam(seed: int) -> None:
    paths = ({}, {"scan": "raster", "n_y": 2, "n_x": 32}, {"scan": "raster", "n_y": 12, "n_x": 12})
    assert lines(scan_of(replace(honest_options(seed), **paths[seed % 3]))) == []


def test_an_absorbing_edge_across_the_scan_is_no_jump() -> None:
    """Half of the field lets a third through: the counts fall along the scan, over the width of the beam."""
    options = SimulationOptions(n_px=32, n_y=12, n_x=12, step_px=3, photons=1e6, jitter_px=0.3, seed=4)
    arrays = simulate(options)
    y = arrays["ycoords"] - arrays["ycoords"].mean()
    share = 1 / (1 + np.exp(y / 2.5))
    counts = np.random.default_rng(1).poisson(arrays["diff3d"] * (0.35 + 0.65 * share)[:, None, None])
    keys = ("xcoords", "ycoords")
    raw = RawData.from_coords_without_pc(
        *(arrays[key] for key in keys), counts.astype(np.uint16), arrays["probeGuess"], None
    )
    assert lines(prepare_scan(raw)) == []


SEEDS = 2
SIDE = 15
"""Rows and columns of the scans below."""
ORDERS = ("raster", "snake", "columns", "shuffled")
TEXTURES = ("edge", "slope", "half")


def textured_scan(texture: str, order: str, factor: NDArray[np.float64], seed: int = 0) -> Scan:
    """Return a scan of an absorbing object, 12 px spots 5 px apart, in a beam of given power (M,)."""
    rng = np.random.default_rng(seed)
    n_px, step_px = 16, 5
    size = n_px + (SIDE - 1) * step_px
    y, _ = np.mgrid[:size, :size] / size
    grain = gaussian_filter(rng.normal(size=(size, size)), 3)
    grain = 0.04 * grain / grain.std()
    through = {
        "edge": 0.4 + 0.5 * (y > 0.62) + grain,
        "slope": 0.3 + 0.6 * y + grain,
        "half": np.where(y > 0.4, 0.6 + grain, 1.0),
    }[texture]
    places = np.argwhere(np.ones((SIDE, SIDE)))
    if order == "snake":
        places = np.concatenate([row[:: 1 - 2 * (at % 2)] for at, row in enumerate(np.split(places, SIDE))])
    places = {"columns": places[:, ::-1], "shuffled": rng.permutation(places)}.get(order, places) * step_px
    radius = np.hypot(*(np.mgrid[:n_px, :n_px] - (n_px - 1) / 2))
    wave = 1 / (1 + np.exp(2 * (radius - 6)))
    wave = np.sqrt(1e6 / (wave**2).sum()) * wave.astype(complex)
    patches = extract_patches(through.clip(0.05, 1) + 0j, places, n_px)
    counts = rng.poisson(factor[:, None, None] * diffracted_intensity(patches, wave[None, None]))
    centres = places + (n_px - 1) / 2
    return prepare_scan(
        RawData.from_coords_without_pc(
            centres[:, 1], centres[:, 0], counts.astype(np.uint32), wave.astype(np.complex64), None
        )
    )


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("texture", TEXTURES)
def test_a_steady_beam_on_edges_slopes_and_halves_is_silent(texture: str, order: str) -> None:
    for seed in range(SEEDS):
        assert lines(textured_scan(texture, order, np.ones(SIDE**2), seed)) == [], seed


@pytest.mark.parametrize(
    ("texture", "order"),
    [
        ("edge", "shuffled"),
        ("slope", "columns"),
        ("slope", "shuffled"),
        ("half", "columns"),
        ("half", "shuffled"),
    ],
)
def test_a_step_of_a_tenth_on_any_of_them_is_named_with_pattern_and_size(texture: str, order: str) -> None:
    amount, at = (0.1, 97) if texture in TEXTURES[:1] else (-0.1, 128)
    factor = np.where(np.arange(SIDE**2) >= at, 1 + amount, 1.0)
    scan = textured_scan(texture, order, factor)
    change = beam_change(scan)
    assert change is not None
    assert len(lines(scan)) == 1, change
    assert change.kind == "step"
    assert change.pattern == pytest.approx(at, abs=1)
    assert change.factor == pytest.approx(1 + amount, abs=0.02)


def test_the_command_warns_of_a_jump(
    demo_scan: Path, infer_command: Callable[..., Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    arrays = read_npz(demo_scan)
    rows = slice(100, 200)
    cut = {key: arrays[key][rows] for key in ("xcoords", "ycoords", "diff3d")}
    cut["diff3d"][51:] = np.random.default_rng(0).poisson(1.3 * cut["diff3d"][51:])
    write_npz(tmp_path / "jump.npz", {**cut, "probeGuess": arrays["probeGuess"]})
    done = infer_command("pretrained", tmp_path / "jump.npz", tmp_path / "out")
    assert done.code == 0
    assert "jump.npz: the counts jump by +31% at pattern 51" in caplog.text
