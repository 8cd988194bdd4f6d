"""Facts about the Fisher information and the photon limit (eq. 30, 31): dense matrices and closed forms."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from judges import random_complex
from numpy.typing import NDArray

from ptycho.data.scaling import NOT_MEASURED
from ptycho.physics import diffracted_intensity, extract_patches, illumination
from ptycho.physics.detector import FAR_FIELD, Detector
from ptycho.physics.information import (
    LARGEST_PHASE_SIGMA_RAD,
    count_score,
    fisher_solution,
    lit_pixels,
    object_errors,
    simple_limit,
    without_phase,
)
from ptycho.physics.pixel_parts import part_modes, part_turns
from ptycho.physics.propagation import near_field_transfer

Array = NDArray[Any]

N_PX, SHAPE = 8, (11, 12)
CORNERS = np.array([[y, x] for y in (0, 1, 3) for x in (0, 2, 4)])
ROUNDING = 1e-9
"""Of sums that hold the inverse of an expected count, relative to the largest entry."""
SOLVED = 2e-3
"""What a solution leaves that ends at a residual of one thousandth."""


def scan(kind: str = "far") -> tuple[Array, Array, Array, Detector]:
    """Object, probe modes, amplitude with pixels that measured nothing, and detector."""
    rng = np.random.default_rng(3)
    y, x = np.indices((N_PX, N_PX)) - (N_PX - 1) / 2
    probes = 40 * np.exp((y**2 + x**2) * (0.15j - 0.06)) * (1 + 0.2 * random_complex(rng, 2, N_PX, N_PX))
    obj = 1 + 0.2 * random_complex(rng, *SHAPE)
    amplitude = np.ones((len(CORNERS), N_PX, N_PX))
    if kind == "masked":
        amplitude[rng.random(amplitude.shape) < 0.2] = NOT_MEASURED
    if kind == "near":
        return obj, probes, amplitude, Detector(near_field_transfer(N_PX, 0.3, rng.uniform(-1, 1, (9, 2))))
    if kind == "background":
        return obj, probes, amplitude, Detector(None, rng.uniform(0, 5, (N_PX, N_PX)))
    if kind == "parts":
        turns = part_turns(N_PX, 2)
        return obj, part_modes(probes, turns), amplitude, Detector(None, None, turns)
    return obj, probes, amplitude, FAR_FIELD


def counts(obj: Array, probes: Array, detector: Detector) -> Array:
    return diffracted_intensity(extract_patches(obj, CORNERS, probes.shape[-1]), probes, detector)


def dense(obj: Array, probes: Array, amplitude: Array, detector: Detector) -> tuple[Array, Array, Array]:
    """Slopes of all counts by real and imaginary part of every pixel, expected counts, and the Fisher matrix.

    Counts are quadratic in the object, so their central differences are exact.
    """
    slopes = []
    for unit in (1.0, 1j):
        for index in range(obj.size):
            step = np.zeros(obj.size, complex)
            step[index] = unit
            step = step.reshape(obj.shape)
            difference = counts(obj + step, probes, detector) - counts(obj - step, probes, detector)
            slopes.append(difference.ravel() / 2)
    jacobian = np.stack(slopes, axis=1)
    expected = counts(obj, probes, detector).ravel()
    weight = (amplitude.ravel() >= 0) / expected
    return jacobian, expected, jacobian.T @ (weight[:, None] * jacobian)


def flat(canvas: Array) -> Array:
    return np.concatenate([canvas.real.ravel(), canvas.imag.ravel()])


def canvas(values: Array) -> Array:
    return (values[: len(values) // 2] + 1j * values[len(values) // 2 :]).reshape(SHAPE)


KINDS = ["far", "masked", "near", "background", "parts"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_product_is_that_of_the_dense_fisher_matrix(kind: str) -> None:
    obj, probes, amplitude, detector = scan(kind)
    _, _, matrix = dense(obj, probes, amplitude, detector)
    change = random_complex(np.random.default_rng(4), *SHAPE)
    found = count_score(obj, CORNERS, probes, amplitude, detector, change=change)
    expected = matrix @ flat(change)
    np.testing.assert_allclose(flat(found), expected, atol=ROUNDING * np.abs(expected).max())


@pytest.mark.parametrize("kind", KINDS)
def test_noise_makes_the_gradient_of_counts_that_are_off_by_their_root(kind: str) -> None:
    obj, probes, amplitude, detector = scan(kind)
    jacobian, expected, _ = dense(obj, probes, amplitude, detector)
    noise = np.random.default_rng(5).standard_normal(amplitude.shape)
    found = count_score(obj, CORNERS, probes, amplitude, detector, noise=noise)
    gradient = jacobian.T @ ((amplitude.ravel() >= 0) * noise.ravel() / np.sqrt(expected))
    np.testing.assert_allclose(flat(found), gradient, atol=ROUNDING * np.abs(gradient).max())


def test_no_count_tells_the_phase_of_the_whole_object() -> None:
    obj, probes, amplitude, _ = scan()
    light = illumination(probes, CORNERS, SHAPE)
    turned, grown = (count_score(obj, CORNERS, probes, amplitude, change=f * obj) for f in (1j, 1))
    assert np.abs(turned).max() < ROUNDING * np.abs(grown).max()
    other = random_complex(np.random.default_rng(6), *SHAPE)
    left = without_phase(other, obj, light)
    np.testing.assert_allclose(without_phase(other + 0.3j * obj, obj, light), left, atol=1e-12)
    assert abs((light * obj.conj() * left).imag.sum()) < 1e-9 * light.sum()


def test_a_solution_is_that_of_the_dense_matrix_over_the_lit_pixels() -> None:
    obj, probes, amplitude, _ = scan()
    _, _, matrix = dense(obj, probes, amplitude, FAR_FIELD)
    light = illumination(probes, CORNERS, SHAPE)
    lit = lit_pixels(light)
    assert 0.3 < lit.mean() <= 1
    kept = np.tile(lit.ravel(), 2)
    gradient = matrix @ flat(np.where(lit, random_complex(np.random.default_rng(7), *SHAPE), 0))
    gradient[~kept] = 0
    expected = np.zeros(2 * lit.size)
    expected[kept] = np.linalg.pinv(matrix[np.ix_(kept, kept)], rcond=1e-9) @ gradient[kept]
    found = fisher_solution(
        lambda change: count_score(obj, CORNERS, probes, amplitude, change=change), canvas(gradient), light
    )
    assert not found[~lit].any()
    # Directions that hardly any count tells end last.
    missed = matrix @ flat(found) - matrix @ expected
    assert np.linalg.norm(missed[kept]) < 10 * SOLVED * np.linalg.norm(gradient)
    exact, near = (without_phase(part, obj, light) for part in (canvas(expected), found))
    assert np.linalg.norm(near - exact) < 0.05 * np.linalg.norm(exact)


@pytest.mark.parametrize("background", [0.0, 7.0])
def test_one_pixel_is_known_as_well_as_its_photons_are_counted(background: float) -> None:
    """A spot on one object pixel spreads evenly: I = |P O|^2 / N^2 + b in every detector pixel. The amplitude
    has the information 4 |P|^2 I_light / I, its phase none."""
    probe, obj = np.zeros((1, N_PX, N_PX), complex), np.full((N_PX, N_PX), 0.8 * np.exp(0.4j))
    probe[0, 3, 4] = 50 * np.exp(1j)
    corner, amplitude = np.zeros((1, 2), np.int64), np.ones((1, N_PX, N_PX))
    detector = FAR_FIELD if not background else Detector(None, np.full((N_PX, N_PX), background))
    light = 2500 * 0.64 / N_PX**2
    information = 4 * 2500 * light / (light + background)
    direction = obj / np.abs(obj)
    change = np.zeros_like(obj)
    change[3, 4] = (2 + 5j) * direction[3, 4]
    found = count_score(obj, corner, probe, amplitude, detector, change=change)
    expected = np.zeros_like(obj)
    expected[3, 4] = 2 * information * direction[3, 4]
    np.testing.assert_allclose(found, expected, atol=1e-6 * information)


def test_errors_are_the_roots_of_the_inverse_on_the_diagonal() -> None:
    """Independent pixels of known illumination: samples of variance 1 / (2 W) along and 4 / (2 W) across."""
    rng = np.random.default_rng(8)
    shape = (40, 44)
    light = 100 * np.exp(-(((np.indices(shape)[0] - 20) / 25) ** 2))
    light[:, :4] = 0
    obj = 0.7 * np.exp(1j * rng.uniform(-3, 3, shape))
    along, across = (rng.standard_normal((12, *shape)) for _ in range(2))
    sigma = np.sqrt(0.5 / np.maximum(light, 1e-9))
    changes = sigma * (along + 2j * across) * obj / np.abs(obj)
    found = object_errors(obj, light, changes)
    lit = lit_pixels(light)
    assert not lit[:, :4].any()
    assert lit[:, 4:].all()
    assert np.isnan(found.amplitude_sigma[~lit]).all()
    np.testing.assert_allclose(found.amplitude_sigma[lit], sigma[lit], rtol=0.12)
    np.testing.assert_allclose(found.phase_sigma_rad[lit], (2 * sigma / 0.7)[lit], rtol=0.12)
    variance = 5 * sigma[lit] ** 2
    assert found.nrmse(obj, lit) == pytest.approx(np.sqrt(variance.mean()) / 0.7, rel=0.02)
    assert simple_limit(obj, light, lit) == pytest.approx(np.sqrt((1 / light[lit]).mean()) / 0.7)


def test_a_pixel_without_any_light_of_its_own_has_any_phase() -> None:
    light, obj = np.full((20, 20), 50.0), np.ones((20, 20), complex)
    obj[10, 10] = 1e-9
    changes = random_complex(np.random.default_rng(9), 4, 20, 20)
    found = object_errors(obj, light, changes)
    assert found.phase_sigma_rad[10, 10] == pytest.approx(LARGEST_PHASE_SIGMA_RAD)
    assert found.phase_sigma_rad[3, 3] < LARGEST_PHASE_SIGMA_RAD
