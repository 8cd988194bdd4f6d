"""Facts about counts that no wave explains: what patterns tell of them, and how a file gives them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from plain_solver import COUNT, Numbers, Scan

from ptycho import physics
from ptycho.config.config import ModelConfig, TrainingConfig
from ptycho.data.feed import GroupSource
from ptycho.data.npz import read_npz, write_npz
from ptycho.data.prepare import prepare_scan
from ptycho.data.scan import PatternStore
from ptycho.data.selection import training_groups
from ptycho.errors import DataError
from ptycho.physics.background import ROOT_BIAS, background_step, light_sums
from ptycho.physics.detector import Detector
from ptycho.process.progress import Progress
from ptycho.raw_data import RawData
from ptycho.simulation.simulate import SimulationOptions, simulate
from ptycho.solver.loop import solve
from ptycho.solver.options import RefineOptions

Array = NDArray[Any]
EXACT = 1e-6
"""The floor below intensities, 1e-8, beside light of 0.01 photons and more."""
N_PX = 16


def light(seed: int = 0, count: int = 7) -> Array:
    """Return speckle intensity [photons / pixel], bright in the middle."""
    rng = np.random.default_rng(seed)
    beam = 40 * np.exp(-((np.indices((N_PX, N_PX)) - N_PX // 2) ** 2).sum(axis=0) / 20.0)
    return beam * rng.exponential(1.0, (count, N_PX, N_PX)) + 0.01


def halo() -> Array:
    return 0.5 + 3 * np.exp(-((np.indices((N_PX, N_PX)) - N_PX // 2) ** 2).sum(axis=0) / 80.0)


# --- physics ---


def test_expected_counts_contain_the_background_once() -> None:
    rng = np.random.default_rng(1)
    patches, probes = rng.normal(size=(3, N_PX, N_PX)) + 1j, rng.normal(size=(2, N_PX, N_PX)) + 0.5j
    detector = Detector(None, halo())
    alone = physics.diffracted_intensity(patches, probes)
    np.testing.assert_allclose(physics.diffracted_intensity(patches, probes, detector), alone + halo())
    amplitude = physics.diffracted_amplitude(patches, probes)
    expected = np.sqrt(0.49 * alone + halo())
    np.testing.assert_allclose(physics.with_background(0.7 * amplitude, detector), expected, rtol=1e-7)
    assert physics.with_background(amplitude, Detector()) is amplitude


def test_a_right_background_has_no_excess_for_the_fit_that_it_stands_beside() -> None:
    truth, background = light(), halo()
    exact = np.sqrt(truth + background)
    excess, weight = physics.background_sums(truth, exact, Detector(None, background), "poisson")
    assert np.abs(excess).max() < 1e-10
    unit = physics.count_quantum(exact)
    np.testing.assert_allclose(weight, (1 / (truth + background + unit)).sum(axis=0))
    # Light that fits the roots of counts is smaller by a quarter of a photon.
    dim = np.maximum(truth - ROOT_BIAS * unit, 0.01)
    bright = (truth > 1).all(axis=0)
    assert bright.sum() > 3
    excess, _ = physics.background_sums(dim, np.sqrt(truth))
    assert np.abs(excess[bright]).max() < 1e-6
    assert (physics.background_sums(dim, np.sqrt(truth), Detector(), "poisson")[0][bright] > 0.01).all()


def test_a_step_finds_a_constant_in_the_dark_at_once() -> None:
    counts = np.random.default_rng(2).poisson(2.0, (30, N_PX, N_PX)).astype(float)
    sums = physics.background_sums(np.zeros_like(counts), np.sqrt(counts))
    found = background_step(0.0, *sums, 0.0)
    np.testing.assert_allclose(found, counts.mean(axis=0), rtol=EXACT)


def test_steps_find_a_smooth_background_beside_known_light() -> None:
    rng, background, truth = np.random.default_rng(3), halo(), light(count=200)
    amplitude = np.sqrt(rng.poisson(truth + background))
    found = np.zeros((N_PX, N_PX))
    for _ in range(15):
        told = physics.background_sums(truth, amplitude, Detector(None, found), "poisson")
        found = background_step(found, *told, 2.0)
    # 200 patterns and about 25 pixels under the Gaussian: 0.05 counts where it is dark.
    assert np.sqrt(((found - background) ** 2).mean()) < 0.1
    assert np.sqrt(((halo()[::-1, ::-1] + 1 - found) ** 2).mean()) > 0.5


def test_a_background_is_never_negative_and_goes_on_over_bad_pixels() -> None:
    truth = light()
    amplitude = np.sqrt(truth + 2.0)
    amplitude[:, 3:6, 3:6] = -1.0
    told = physics.background_sums(truth, amplitude, Detector(), "poisson")
    assert (told[1][3:6, 3:6] == 0).all()
    found = background_step(0.0, *told, 1.5)
    np.testing.assert_allclose(found[4, 4], found[2, 4], rtol=0.05)
    less = physics.background_sums(2 * truth, np.sqrt(truth), Detector(), "poisson")
    assert (background_step(0.0, *less, 1.5) == 0).all()


def test_the_factor_of_a_frame_is_that_of_its_light() -> None:
    truth, background = light(), halo()
    factors = np.linspace(0.5, 1.5, len(truth))
    amplitude = np.sqrt(factors[:, None, None] ** 2 * truth + background)
    amplitude[2, :4] = -1.0
    detector = Detector(None, background)
    np.testing.assert_allclose(physics.frame_fits(truth, amplitude, detector), factors, rtol=EXACT)
    assert np.abs(physics.frame_fits(truth, amplitude) - factors).max() > 0.05
    # A frame without a beam has the factor 0, one without a measured pixel 1.
    dark = np.broadcast_to(np.sqrt(background), truth.shape)
    assert (physics.frame_fits(truth, dark, detector) < 1e-6).all()
    assert (physics.frame_fits(truth, np.full_like(truth, -1.0), detector) == 1).all()
    seen, power = light_sums(truth, amplitude[:1] ** 1, background)
    assert float(seen[0] / power[0]) == pytest.approx(factors[0] ** 2, rel=EXACT)


# --- the loop ---


class LitScan(Scan):
    background: Any = None

    def next_background(self, sums: dict[str, Any]) -> float:
        return (self.background or 0.0) + sums["excess"] / sums["weight"]


class Counting(Numbers):
    """Adds what the background needs: one of excess per pattern, two of weight."""

    def chunk_sums(self, obj: float, chunk: Any, wanted: Any) -> Any:
        sums, told = super().chunk_sums(obj, chunk, wanted)
        if wanted.background:
            sums |= {"excess": 1.0 * len(chunk.rows), "weight": 2.0 * len(chunk.rows)}
        return sums, told


def test_a_background_rests_then_moves_once_in_an_iteration_whatever_its_subsets() -> None:
    scan, numbers = LitScan(), Counting()
    solve(numbers, scan, 1.0, RefineOptions(5, background=True), [2] * 5)
    assert [change["background"] for change in scan.changes] == [0.5, 1.0]
    assert [wanted.background for wanted in numbers.wanted[:: COUNT // 2]] == [False] * 3 + [True] * 2
    # The light of the probe is what it was.
    assert sum(wanted.illumination for wanted in numbers.wanted) == COUNT // 2
    options = RefineOptions(10, background=True, start="flat")
    assert options.subset_counts(4) == RefineOptions(10, start="flat").subset_counts(4)


# --- files ---


@pytest.fixture(scope="module")
def arrays() -> dict[str, Any]:
    options = SimulationOptions(n_px=32, n_y=7, n_x=7, step_px=3.0, photons=1e5, seed=3, background_counts=20)
    found = simulate(options)
    return {key: found[key] for key in ("xcoords", "ycoords", "diff3d", "probeGuess", "objectGuess")}


def raw_of(arrays: dict[str, Any], **changes: Any) -> RawData:
    given = {**arrays, **changes}
    x, y = given.pop("xcoords"), given.pop("ycoords")
    return RawData(x, y, None, None, given.pop("diff3d"), given.pop("probeGuess"), None, **given)


@pytest.mark.parametrize("background", [20, np.float32(20.0), np.full((32, 32), 20), np.array([20.0])])
def test_a_file_gives_a_number_or_a_map(arrays: dict[str, Any], background: Any, tmp_path: Path) -> None:
    write_npz(tmp_path / "a.npz", {**arrays, "background": np.asarray(background)})
    raw = RawData.from_file(tmp_path / "a.npz")
    np.testing.assert_array_equal(raw.background, np.full((32, 32), 20.0))
    np.testing.assert_array_equal(raw.subset([4, 2]).background, raw.background)
    raw.to_file(tmp_path / "b.npz")
    np.testing.assert_array_equal(read_npz(tmp_path / "b.npz")["background"], raw.background)
    scan = prepare_scan(raw)
    assert scan.background.dtype == np.float32
    np.testing.assert_array_equal(scan.background, raw.background)
    # The patterns still hold it.
    np.testing.assert_allclose(scan.amplitude(slice(0, 3)) ** 2, arrays["diff3d"][:3], rtol=1e-6)


def test_a_caller_gives_it_as_a_file_does(arrays: dict[str, Any]) -> None:
    given = (arrays[key] for key in ("xcoords", "ycoords", "diff3d", "probeGuess"))
    raw = RawData.from_coords_without_pc(*given, None, background=20)
    np.testing.assert_array_equal(raw.background, np.full((32, 32), 20.0))


@pytest.mark.parametrize(
    ("background", "said"),
    [
        (-1.0, r"got -1, expected finite counts >= 0"),
        (np.nan, r"got nan, expected finite counts >= 0"),
        (np.inf, r"got nan, expected finite counts >= 0"),
        (np.ones((31, 32)), r"got shape \(31, 32\), dtype float64, expected one number or \(32, 32\)"),
        (np.ones((49, 32, 32)), r"got shape \(49, 32, 32\)"),
        (np.full((32, 32), "1"), r"dtype <U1"),
        (1j, r"dtype complex128"),
    ],
)
def test_what_is_no_background_is_refused(arrays: dict[str, Any], background: Any, said: str) -> None:
    with pytest.raises(DataError, match=said) as error:
        raw_of(arrays, background=background)
    assert "\n" not in str(error.value)


def test_amplitude_in_another_unit_takes_its_background_along(arrays: dict[str, Any]) -> None:
    counts = arrays["diff3d"].astype(np.float64)
    dose = float(counts.sum(axis=(1, 2)).mean())
    raw = raw_of(
        arrays, diff3d=np.sqrt(counts / 50), background=20 / 50, nphotons=dose,
        metadata={"measurement_domain": "amplitude"},
    )  # fmt: skip
    scan = prepare_scan(raw)
    assert scan.record.domain == "amplitude"
    np.testing.assert_allclose(scan.background, 20.0, rtol=1e-4)
    again = scan.with_background(np.full((32, 32), 7, np.float32))
    np.testing.assert_allclose(again.background, 7.0, rtol=1e-6)
    assert scan.with_background(None) is scan


def test_the_power_of_the_probe_is_compared_with_the_light_alone(arrays: dict[str, Any]) -> None:
    weak = 3e-3 * arrays["probeGuess"]
    light_alone = float(arrays["diff3d"].sum(axis=(1, 2)).mean()) - 20 * 32**2
    scan = prepare_scan(raw_of(arrays, probeGuess=weak, background=20))
    assert (np.abs(scan.probe) ** 2).sum() == pytest.approx(light_alone, rel=1e-3)
    blind = prepare_scan(raw_of(arrays, probeGuess=weak))
    assert (np.abs(blind.probe) ** 2).sum() > 1.1 * light_alone


def test_batches_carry_a_background_where_the_scan_has_one(arrays: dict[str, Any]) -> None:
    config = TrainingConfig(ModelConfig(N=32, gridsize=1), n_groups=8)
    for background in (None, halo().repeat(2, 0).repeat(2, 1)):
        scan = prepare_scan(raw_of(arrays, background=background))
        groups, _ = training_groups(scan, config, validate=False)
        with PatternStore(scan, Progress()) as store:
            source = GroupSource(store, scan, groups, merge=True)
            batch = source[[0, 1]]
        assert set(batch) == set(source.signature)
        assert ("background" in batch) == (background is not None)
        if background is not None:
            np.testing.assert_allclose(batch["background"], background, rtol=1e-6)


def test_a_background_follows_its_patterns_to_the_middle(arrays: dict[str, Any]) -> None:
    background = halo().repeat(2, 0).repeat(2, 1)
    moved = raw_of(
        arrays, diff3d=np.roll(arrays["diff3d"], (16, 16), axis=(1, 2)),
        background=np.roll(background, (16, 16), axis=(0, 1)),
    )  # fmt: skip
    scan = prepare_scan(moved)
    np.testing.assert_allclose(scan.background, background, rtol=1e-6)
