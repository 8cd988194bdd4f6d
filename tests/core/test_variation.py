"""Facts about a probe that changes from pattern to pattern: its physics, its gauge, its start (eq. 26)."""

from __future__ import annotations

import numpy as np
import pytest
from judges import random_complex
from numpy.typing import NDArray

from ptycho.data.variation import VaryingProbe
from ptycho.physics import (
    diffracted_amplitude,
    exit_waves,
    propagate,
    propagate_back,
    shift_field,
    variation_equations,
    variation_gradient,
    varied_probes,
)
from ptycho.physics.variation import MORE_MODE_POWER, orthogonal_variation, probe_of_modes
from ptycho.solver import schedule

N, K, J = 16, 2, 7
ROUNDING = 1e-10


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)


def drawn(rng: np.random.Generator) -> tuple[NDArray, NDArray, NDArray, NDArray, NDArray]:
    """Probe, variable modes, weights, patches, and no shifts."""
    modes, weights = random_complex(rng, K, N, N), rng.uniform(-1, 1, (J, 1 + K))
    return random_complex(rng, 2, N, N), modes, weights, random_complex(rng, J, N, N), np.zeros((J, 2))


def test_the_gradient_is_that_of_half_the_squared_misfit(rng: np.random.Generator) -> None:
    probe, modes, weights, patches, shifts = drawn(rng)
    amplitude = rng.uniform(1, 3, (J, N, N))

    def loss(changed: NDArray) -> float:
        return float(
            ((diffracted_amplitude(patches, varied_probes(probe, changed, weights)) - amplitude) ** 2).sum()
            / 2
        )

    field = propagate(exit_waves(patches, varied_probes(probe, modes, weights)))
    root = np.sqrt((np.abs(field) ** 2).sum(axis=1))
    residual = propagate_back(field * (1 - amplitude / root)[:, None])
    gradient, power = variation_gradient(patches, residual, shifts, weights)
    step = 1e-5 * random_complex(rng, K, N, N)
    slope = (loss(modes + step) - loss(modes - step)) / 2
    assert slope == pytest.approx(np.vdot(gradient, step).real, rel=1e-5)
    assert power == pytest.approx(np.einsum("jk,jyx->kyx", weights[:, 1:] ** 2, np.abs(patches) ** 2))


def test_a_gauss_newton_step_finds_small_changes_of_the_weights(rng: np.random.Generator) -> None:
    probe, modes, weights, patches, shifts = drawn(rng)
    probe, modes, change = 300 * probe, 300 * modes, 1e-4 * rng.standard_normal((J, K))
    true = weights + np.pad(change, ((0, 0), (1, 0)))
    for by in (shifts, rng.uniform(-0.5, 0.5, (J, 2))):
        used, moved = (shift_field(varied_probes(probe, modes, known), by) for known in (weights, true))
        counted = diffracted_amplitude(patches, moved)
        normal, right = variation_equations(patches, used, counted, modes, by)
        found = np.linalg.solve(normal, right[:, :, None])[:, :, 0]
        assert np.abs(found - change).max() < 0.05 * np.abs(change).max()


def test_pixels_that_measured_nothing_say_nothing(rng: np.random.Generator) -> None:
    probe, modes, weights, patches, shifts = drawn(rng)
    # So bright that the root of a count is not biased.
    probes = varied_probes(1e3 * probe, 1e3 * modes, weights)
    amplitude = diffracted_amplitude(patches, probes)
    whole, _ = variation_equations(patches, probes, amplitude, modes, shifts)
    amplitude[:, 3:6] = -1
    normal, right = variation_equations(patches, probes, amplitude, modes, shifts)
    assert np.abs(right).max() < 1e-3 * np.abs(normal).max()
    assert (np.trace(normal, axis1=1, axis2=2) < np.trace(whole, axis1=1, axis2=2)).all()


def test_the_gauge_changes_no_probe_and_sorts_orthogonal_modes(rng: np.random.Generator) -> None:
    modes = random_complex(rng, 3, N, N) * np.array([1.0, 3.0, 0.5])[:, None, None]
    coefficients = rng.standard_normal((40, 3)) @ rng.standard_normal((3, 3))
    coefficients -= coefficients.mean(axis=0)
    of_modes, of_coefficients = orthogonal_variation(modes, coefficients.T @ coefficients / 40)
    new, weights = np.einsum("kl,lyx->kyx", of_modes, modes), coefficients @ of_coefficients
    before, after = (np.einsum("jk,kyx->jyx", *pair) for pair in ((coefficients, modes), (weights, new)))
    np.testing.assert_allclose(after, before, atol=1e-6 * np.abs(before).max())
    np.testing.assert_allclose(weights.T @ weights / 40, np.eye(3), atol=1e-6)
    flat = new.reshape(3, -1)
    gram = (flat @ flat.conj().T).real
    assert np.abs(gram - np.diag(np.diag(gram))).max() < 1e-6 * gram.max()
    assert (np.diff(np.diag(gram)) < 0).all()
    # The strongest are those of the singular value decomposition, as real vectors.
    real = np.concatenate([before.reshape(40, -1).real, before.reshape(40, -1).imag], axis=1)
    values = np.linalg.svd(real, compute_uv=False)[:3]
    np.testing.assert_allclose(np.sqrt(40 * np.diag(gram)), values, rtol=1e-6)


def test_the_mean_change_goes_into_the_mean_probe_and_its_likeness_out(rng: np.random.Generator) -> None:
    varying = VaryingProbe(30, K, N, 3)
    count = K + schedule.VARIATION_MORE_MODES
    varying.modes = random_complex(rng, count, N, N)
    probe, before = random_complex(rng, 1, N, N), varying.coefficients.copy()
    offset = varying.settle(varying.moments(), 30.0, probe)
    assert np.abs(offset).max() > 0
    first = probe[0] + offset
    assert np.abs(varying.coefficients.mean(axis=0)).max() < ROUNDING
    assert np.abs(np.einsum("kyx,yx->k", varying.modes, first.conj())).max() < 1e-6
    assert varying.coefficients.shape == before.shape
    # Every pattern keeps the power of the mean one.
    power = float((np.abs(first) ** 2).sum())
    probes = varied_probes(first[None], varying.modes, varying.weights(power))
    np.testing.assert_allclose((np.abs(probes) ** 2).sum(axis=(1, 2, 3)), power, rtol=1e-6)


@pytest.mark.parametrize("have", [1, 2])
def test_more_incoherent_modes_are_orthogonal_and_keep_the_power(have: int, rng: np.random.Generator) -> None:
    y, x = np.mgrid[:N, :N] - (N - 1) / 2
    probe = np.exp(-(y**2 + x**2) / 12)[None] * np.exp(0.2j * x) * np.array([1.0, 0.4j])[:have, None, None]
    if have == 2:
        probe[1] *= y / 4
    made = probe_of_modes(probe, 4)
    flat = made.reshape(4, -1)
    gram = np.abs(flat @ flat.conj().T)
    total = (np.abs(probe) ** 2).sum()
    assert np.trace(gram) == pytest.approx(total)
    assert np.abs(gram - np.diag(np.diag(gram))).max() < 1e-6 * total
    np.testing.assert_allclose(np.diag(gram)[have:] / gram[0, 0], MORE_MODE_POWER)
    np.testing.assert_allclose(made[:have] / made[0, 8, 8], probe[:have] / probe[0, 8, 8])


def test_of_more_modes_the_strongest_are_kept(rng: np.random.Generator) -> None:
    probe = random_complex(rng, 3, N, N) * np.array([1.0, 0.1, 2.0])[:, None, None]
    kept = probe_of_modes(probe, 2)
    assert (np.abs(kept) ** 2).sum() == pytest.approx((np.abs(probe) ** 2).sum())
    np.testing.assert_allclose(kept / kept[0, 0, 0], probe[[0, 2]] / probe[0, 0, 0])
    assert probe_of_modes(probe, 3) == pytest.approx(probe)


def test_one_scan_starts_the_same_way_every_time() -> None:
    one, two = (VaryingProbe(20, 1, N, 3).coefficients for _ in range(2))
    np.testing.assert_array_equal(one, two)
