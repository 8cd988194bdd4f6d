"""What photon noise alone leaves of the misfit: closed form, true objects at every dose, units, mask."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ptycho.data.npz import write_npz
from ptycho.data.reconstruction import Fit
from ptycho.evaluation.misfit import FitTally, noise_energy, photon_unit
from ptycho.files.reader import open_scan
from ptycho.simulation.simulate import SimulationOptions, expected_counts, simulate

SIGMAS = 4.0
"""Standard deviations that a fixed seed may be off."""


def tallied(
    amplitude: np.ndarray, counts: np.ndarray, photons: float | None = 1.0, good: np.ndarray | None = None
) -> Fit:
    """Return the fit of patterns to their expected amplitude, in two chunks that come out of order."""
    measured = np.sqrt(counts).astype(np.float32)
    if good is not None:
        measured[:, ~good] = -1.0
    tally = FitTally(len(counts), counts.shape[-1], photons)
    for rows in (np.arange(1, len(counts), 2), np.arange(0, len(counts), 2)):
        tally.add(rows, amplitude[rows], measured[rows])
    return tally.result()


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.5, 1.0, 3.0, 10.0, 60.0, 66.0, 1e3, 1e4])
def test_the_noise_of_a_count_is_the_mean_of_many_draws(rate: float) -> None:
    error = (np.sqrt(np.random.default_rng(1).poisson(rate, 500_000)) - np.sqrt(rate)) ** 2
    expected = float(noise_energy(np.array([np.sqrt(rate)]))[0])
    assert abs(error.mean() - expected) < SIGMAS * error.std() / np.sqrt(error.size)
    assert noise_energy(np.array([0.0]))[0] == 0.0


@pytest.mark.parametrize("photons", [40.0, 4e3, 4e5, 4e7])
def test_the_true_object_leaves_exactly_the_photon_noise(photons: float) -> None:
    """From 0.01 to 1e4 counts per pixel."""
    arrays = simulate(SimulationOptions(n_px=32, n_y=7, n_x=7, step_px=3.0, photons=photons, seed=4))
    positions = np.stack([arrays["ycoords"], arrays["xcoords"]], axis=1)
    probe = np.atleast_3d(arrays["probeGuess"].astype(complex).T).T.reshape(-1, 32, 32)
    amplitude = np.sqrt(expected_counts(arrays["objectGuess"].astype(complex), probe, positions))
    fit = tallied(amplitude, arrays["diff3d"].astype(float))
    # A pixel adds its expectation e with a variance of at most 2 e.
    error = np.sqrt(2 / fit.expected.sum())
    assert abs(fit.misfit.sum() / fit.expected.sum() - 1) < SIGMAS * error
    assert fit.pixel_misfit.sum() == pytest.approx(fit.misfit.sum())
    assert fit.pixel_expected.sum() == pytest.approx(fit.expected.sum())


def test_counts_of_a_detector_gain_have_the_noise_of_their_photons() -> None:
    rng = np.random.default_rng(3)
    rate = rng.uniform(0, 20, (40, 16, 16))
    fit = tallied(np.sqrt(10 * rate), 10.0 * rng.poisson(rate), photons=0.1)
    assert fit.misfit.sum() / fit.expected.sum() == pytest.approx(1, abs=0.05)


def test_pixels_that_were_not_measured_take_no_part() -> None:
    rng = np.random.default_rng(5)
    rate = rng.uniform(0, 20, (12, 16, 16))
    counts = rng.poisson(rate).astype(float)
    good = np.ones((16, 16), bool)
    good[3:9, 2:6] = False
    fit = tallied(np.sqrt(rate), counts, good=good)
    spoiled = np.where(good, counts, 4e9)
    again = tallied(np.sqrt(rate), spoiled, good=good)
    np.testing.assert_array_equal(again.misfit, fit.misfit)
    assert fit.pixel_count[~good].max() == 0
    assert fit.pixel_misfit[~good].max() == fit.pixel_expected[~good].max() == 0
    missed = ((np.sqrt(rate) - np.sqrt(counts)) ** 2)[:, good].sum(axis=1)
    np.testing.assert_allclose(fit.misfit, missed, rtol=1e-5)


def test_the_best_factor_of_every_pattern_is_found() -> None:
    amplitude = np.random.default_rng(6).uniform(1, 2, (5, 8, 8))
    factor = np.array([1.0, 1.1, 0.9, 1.0, 2.0])
    fit = tallied(amplitude, (factor[:, None, None] * amplitude) ** 2)
    np.testing.assert_allclose(fit.gain, factor, rtol=1e-5)


@pytest.mark.parametrize(
    ("kind", "photons"),
    [
        ("counts", 1.0),
        ("gain", 0.1),
        ("amplitude", 1.0),
        ("normalised", 0.25),
        ("flat-fielded", None),
        ("smooth", None),
    ],
)
def test_what_a_photon_is_comes_from_whole_multiples(
    kind: str, photons: float | None, tmp_path: Path
) -> None:
    arrays = simulate(SimulationOptions(n_px=32, n_y=5, n_x=5, step_px=3.0, photons=3e4, seed=8))
    del arrays["nphotons"]
    counts = arrays["diff3d"]
    stored = {
        "counts": counts,
        "gain": counts.astype(np.uint32) * 10,
        "amplitude": np.sqrt(counts).astype(np.float32),
        "normalised": (2 * np.sqrt(counts)).astype(np.float32),
        "flat-fielded": (counts * np.random.default_rng(1).uniform(0.9, 1.1, (32, 32))).astype(np.float32),
        "smooth": np.sqrt(counts + 0.37 * np.roll(counts, 1, axis=2)).astype(np.float32),
    }[kind]
    write_npz(tmp_path / "scan.npz", {**arrays, "diff3d": stored})
    domain = "counts" if kind == "flat-fielded" else None
    found = photon_unit(open_scan(tmp_path / "scan.npz", domain=domain))
    assert found is None if photons is None else found == pytest.approx(photons, rel=1e-5)
