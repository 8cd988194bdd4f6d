"""Hot and dead pixels are found without a mask; sharp light, dark rings and shadows are left alone."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scan_makers import honest_options, honest_scan

from ptycho.data.optics import FileOptions
from ptycho.data.prepare import prepare_scan
from ptycho.files.reader import open_scan
from ptycho.physics import diffracted_intensity, extract_patches
from ptycho.raw_data import RawData
from ptycho.simulation.simulate import SimulationOptions, simulate

COUNTS = (0, 1, 2, 5, 6, 12, 13, 16, 17, 18)
"""Seeds of honest scans that hold counts, from 4e4 to 4e8 of them."""


def with_counts(raw: RawData, counts: NDArray[Any]) -> RawData:
    """Return the data set with other counts."""
    found = copy.copy(raw)
    found.diff3d = counts.astype(np.uint32)
    return found


def marked(raw: RawData, options: FileOptions | None = None) -> NDArray[np.bool_]:
    """Return the bad pixels after the checks."""
    bad = prepare_scan(raw, options=options).raw.bad_pixels
    return np.zeros((raw.N, raw.N), dtype=bool) if bad is None else bad


@pytest.mark.parametrize("seed", COUNTS)
@pytest.mark.parametrize("kind", ["steady", "as bright as the beam", "twenty times too bright", "touching"])
def test_hot_pixels_are_marked_and_no_others(kind: str, seed: int) -> None:
    raw, rng = honest_scan(seed), np.random.default_rng(seed)
    mean = raw.diff3d.mean(axis=0)
    hot = np.zeros((raw.N, raw.N), dtype=bool)
    places = [(4, 5), (4, 6), (5, 5)] if kind == "touching" else [(5, raw.N - 9), (raw.N // 2 + 7, 3)]
    for place in places:
        hot[place] = True
    more = {
        "steady": 5000 * hot,
        "as bright as the beam": rng.poisson((mean.max() + 5) * hot, raw.diff3d.shape),
        "twenty times too bright": rng.poisson((20 * mean + 5) * hot, raw.diff3d.shape),
        "touching": rng.poisson((20 * mean + 100) * hot, raw.diff3d.shape),
    }[kind]
    bad = with_counts(raw, raw.diff3d + more.astype(np.int64))
    np.testing.assert_array_equal(marked(bad), hot)
    # A pixel that never changes measures nothing, whatever it looks like.
    assert kind == "steady" or not marked(bad, FileOptions(keep_pixels=True)).any()


@pytest.mark.parametrize("seed", [0, 2, 13, 16, 18])
def test_dead_pixels_and_gaps_of_zeros_are_marked(seed: int) -> None:
    raw = honest_scan(seed)
    mean = raw.diff3d.mean(axis=0)
    y, x = np.indices(mean.shape) - raw.N // 2
    outside = np.where(np.hypot(y, x) > 0.2 * raw.N, mean, 0)
    dead = outside == outside.max()
    dead[raw.N // 2 + 2 : raw.N // 2 + 4] = True
    bad = prepare_scan(with_counts(raw, np.where(dead, 0, raw.diff3d)))
    assert bad.raw.bad_pixels is not None
    np.testing.assert_array_equal(bad.raw.bad_pixels, dead)
    assert "dead, dark amid light" in bad.findings[-1].message


def test_the_square_roots_of_counts_show_them_too() -> None:
    raw = honest_scan(7)
    found = copy.copy(raw)
    found.diff3d = raw.diff3d.copy()
    found.diff3d[:, 9, 50] = np.sqrt(np.random.default_rng(1).poisson(300, raw.n_patterns))
    assert np.argwhere(marked(found)).tolist() == [[9, 50]]


@pytest.mark.parametrize("photons", [1e4, 1e6])
@pytest.mark.parametrize("diameter_px", [32.0, 40.0, 46.0])
def test_the_direct_beam_of_a_wide_flat_probe_and_its_dark_rings_are_no_fault(
    photons: float, diameter_px: float
) -> None:
    options = SimulationOptions(
        probe="disc", probe_diameter_px=diameter_px, defocus_waves=0.0, photons=photons, n_y=8, n_x=8,
        step_px=6.0, phase_range_rad=0.2, scene="siemens_star", seed=4,
    )  # fmt: skip
    arrays = simulate(options)
    raw = RawData(
        arrays["xcoords"], arrays["ycoords"], None, None, arrays["diff3d"], arrays["probeGuess"], None
    )
    mean = arrays["diff3d"].mean(axis=0)
    assert mean[32, 32] > 1.5 * np.sort(mean, axis=None)[-4]
    assert prepare_scan(raw).findings == ()


def test_the_scan_that_comes_with_the_project_has_two_faults_when_it_is_given_two(demo_scan: Any) -> None:
    raw = open_scan(demo_scan).raw
    counts = raw.diff3d.astype(np.int64)
    counts[:, 12, 40] += np.random.default_rng(0).poisson(3000, len(counts))
    counts[:, 50, 20] += np.random.default_rng(1).poisson(3000, len(counts))
    assert np.argwhere(marked(with_counts(raw, counts))).tolist() == [[12, 40], [50, 20]]


def test_the_seeds_cover_two_decades_of_dose() -> None:
    doses = [honest_options(seed).photons for seed in COUNTS]
    assert max(doses) > 1e3 * min(doses)


@pytest.mark.parametrize(("sigma_px", "seed"), [(4.0, 1), (6.0, 0), (6.0, 1)])
def test_streaks_of_a_probe_that_its_window_cuts_off_are_light(sigma_px: float, seed: int) -> None:
    """They are one pixel wide, along rows and columns near those of the beam."""
    from scipy.ndimage import gaussian_filter

    rng, n_px, step = np.random.default_rng(seed), 64, 32
    places = np.stack(np.meshgrid(*[np.arange(5) * step] * 2, indexing="ij"), -1).reshape(-1, 2)
    side = 4 * step + n_px
    obj = np.exp(0.5j * gaussian_filter(rng.normal(size=(side, side)), 2.0))
    wave = 1e5 * np.exp(15j * gaussian_filter(rng.normal(size=(n_px, n_px)), sigma_px))
    light = np.rint(diffracted_intensity(extract_patches(obj, places, n_px), wave[None, None]))
    y, x = (places + (n_px - 1) / 2).T
    assert not marked(RawData.from_coords_without_pc(x, y, light, wave, None)).any()
    # A fault off the streaks is found, and so is one on them.
    for row, column in ((12, 9), (n_px // 2, 5)):
        light[:, row, column] += 40 * light[:, row - 2 : row + 3, column - 2 : column + 3].mean()
    found = marked(RawData.from_coords_without_pc(x, y, light, wave, None))
    assert np.argwhere(found).tolist() == [[12, 9], [n_px // 2, 5]]
