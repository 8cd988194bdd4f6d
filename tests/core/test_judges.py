"""Facts about the judges: each passes the true model and fails on every planted defect."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from judges import (
    FLOAT32,
    FLOAT64,
    SOFTENED,
    adjoint_mismatch,
    assert_twin,
    gradient_mismatch,
    plain_gradient,
    random_complex,
)
from numpy.typing import NDArray

from ptycho import physics

N = 8
SHAPE = (13, 17)
CORNERS = np.array([[0, 1], [2, 9], [5, 4], [3, 3]])
SMALL_SLOPE = 1e-7  # central differences in float64: truncation h^2 and rounding 1e-16 / h, both below this

Array = NDArray[Any]
Model = Callable[[Array, Array], Array]


def scene() -> tuple[Array, Array, Array]:
    """Object, probes (J, P, N, N) and measured amplitude, all without symmetry."""
    rng = np.random.default_rng(1)
    obj, probes = random_complex(rng, *SHAPE), random_complex(rng, len(CORNERS), 3, N, N)
    return obj, probes, rng.uniform(0.5, 3.0, (len(CORNERS), N, N))


def true_intensity(obj: Array, probes: Array) -> Array:
    return physics.diffracted_intensity(physics.extract_patches(obj, CORNERS, N), probes)


def intensity_of(waves: Array) -> Array:
    return (np.abs(physics.far_field(waves)) ** 2).sum(axis=1)


def waves_of(obj: Array, probes: Array) -> Array:
    return physics.exit_waves(physics.extract_patches(obj, CORNERS, N), probes)


WRONG_MODELS: dict[str, Model] = {
    "conjugate dropped": lambda o, p: true_intensity(o, p.conj()),
    "one-pixel roll": lambda o, p: np.roll(true_intensity(o, p), 1, axis=-1),
    "x and y swapped": lambda o, p: true_intensity(o, p).swapaxes(-1, -2),
    "gain 1 + 1e-4": lambda o, p: true_intensity(o, p) * (1 + 1e-4),
    "missing fftshift": lambda o, p: (np.abs(np.fft.fft2(waves_of(o, p), norm="ortho")) ** 2).sum(axis=1),
    "modes summed coherently": lambda o, p: np.abs(physics.far_field(waves_of(o, p).sum(axis=1))) ** 2,
}


@pytest.mark.parametrize("name", WRONG_MODELS)
def test_twin_judge_refuses_a_wrong_model(name: str) -> None:
    obj, probes, _ = scene()
    with pytest.raises(AssertionError, match="differs by"):
        assert_twin(true_intensity(obj, probes), WRONG_MODELS[name](obj, probes), FLOAT32)


def test_twin_judge_accepts_rounding_only() -> None:
    obj, probes, _ = scene()
    truth = true_intensity(obj, probes)
    assert_twin(truth, truth * (1 + 1e-14), FLOAT64)
    with pytest.raises(AssertionError):
        assert_twin(truth, truth * (1 + 1e-9), FLOAT64)


@pytest.mark.parametrize(
    "broken",
    [np.full((2, 2), np.nan), np.ones((2, 3)), np.ones((2, 2), dtype=np.complex128), np.ones((1, 2, 2))],
)
def test_twin_judge_refuses_nan_shape_and_kind(broken: Array) -> None:
    with pytest.raises(AssertionError):
        assert_twin(np.ones((2, 2)), broken, FLOAT32)


def test_twin_judge_wants_exact_zeros_where_the_reference_is_zero() -> None:
    assert_twin(np.zeros(3), np.zeros(3), FLOAT32)
    with pytest.raises(AssertionError):
        assert_twin(np.zeros(3), np.full(3, 1e-30), FLOAT32)


def back(fields: Array, probes: Array) -> Array:
    """Adjoint of object -> far fields."""
    waves = (probes.conj() * physics.far_field_adjoint(fields)).sum(axis=1)
    return physics.place_patches(waves, CORNERS, SHAPE)


WRONG_ADJOINTS: dict[str, Model] = {
    "conjugate dropped": lambda f, p: back(f, p.conj()),
    "one-pixel roll": lambda f, p: np.roll(back(f, p), 1, axis=1),
    "x and y swapped": lambda f, p: back(f.swapaxes(-1, -2), p),
    "gain 1 + 1e-4": lambda f, p: back(f, p) * (1 + 1e-4),
    "missing fftshift": lambda f, p: physics.place_patches(
        (p.conj() * np.fft.ifft2(f, norm="ortho")).sum(axis=1), CORNERS, SHAPE
    ),
    "modes summed coherently": lambda f, p: back(np.broadcast_to(f.sum(axis=1, keepdims=True), f.shape), p),
    "wrong shape": lambda f, p: back(f, p)[:-1],
}


def judged_adjoint(adjoint: Model) -> float:
    obj, probes, _ = scene()
    fields = random_complex(np.random.default_rng(2), *probes.shape)
    return adjoint_mismatch(
        lambda o: physics.far_field(waves_of(o, probes)), lambda f: adjoint(f, probes), obj, fields
    )


def test_adjoint_judge_accepts_the_true_pair() -> None:
    assert judged_adjoint(back) < 1e-12


@pytest.mark.parametrize("name", WRONG_ADJOINTS)
def test_adjoint_judge_refuses_a_wrong_pair(name: str) -> None:
    assert judged_adjoint(WRONG_ADJOINTS[name]) > 5e-5


def misfit(obj: Array) -> float:
    _, probes, amplitude = scene()
    expected = true_intensity(obj, probes) + physics.INTENSITY_FLOOR + SOFTENED**2 * amplitude**2
    return 0.5 * float(((np.sqrt(expected) - np.sqrt(1 + SOFTENED**2) * amplitude) ** 2).sum())


def coherent_gradient(obj: Array) -> Array:
    _, probes, amplitude = scene()
    return plain_gradient(obj, CORNERS, probes.sum(axis=1, keepdims=True), amplitude)


def unshifted_gradient(obj: Array) -> Array:
    _, probes, amplitude = scene()
    return plain_gradient(obj, CORNERS, probes, np.fft.fftshift(amplitude, axes=(-2, -1)))


def judged_gradient(change: Callable[[Array], Array]) -> float:
    obj, probes, amplitude = scene()
    return gradient_mismatch(misfit, lambda o: change(plain_gradient(o, CORNERS, probes, amplitude)), obj)


def test_gradient_judge_accepts_the_plain_gradient() -> None:
    assert judged_gradient(lambda g: g) < SMALL_SLOPE


WRONG_GRADIENTS: dict[str, Callable[[Array], Array]] = {
    "conjugate dropped": np.conj,
    "one-pixel roll": lambda g: np.roll(g, 1, axis=0),
    "gain 1 + 1e-4": lambda g: g * (1 + 1e-4),
    "half of it": lambda g: g / 2,
    "x and y swapped": np.transpose,
}


@pytest.mark.parametrize("name", WRONG_GRADIENTS)
def test_gradient_judge_refuses_a_wrong_gradient(name: str) -> None:
    assert judged_gradient(WRONG_GRADIENTS[name]) > 5e-5


@pytest.mark.parametrize("gradient", [coherent_gradient, unshifted_gradient])
def test_gradient_judge_refuses_the_gradient_of_another_model(gradient: Callable[[Array], Array]) -> None:
    assert gradient_mismatch(misfit, gradient, scene()[0]) > 5e-5


def test_gradient_judge_handles_real_points() -> None:
    point = np.random.default_rng(3).standard_normal(6)
    assert gradient_mismatch(lambda v: float((v**3).sum()), lambda v: 3 * v**2, point) < SMALL_SLOPE
    assert gradient_mismatch(lambda v: float((v**3).sum()), lambda v: 2 * v**2, point) > 0.1
