"""Facts about the motion of patterns (eq. 16, 23): the equations are the slopes of a nearly even residual."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from judges import random_complex
from numpy.typing import NDArray

from ptycho.data.scaling import NOT_MEASURED
from ptycho.physics import (
    diffracted_intensity,
    exit_waves,
    motion_equations,
    object_slope,
    propagate,
    root_residual,
)
from ptycho.physics.detector import Detector
from ptycho.physics.propagation import near_field_transfer

Array = NDArray[Any]

N_PX, SHAPE = 16, (31, 28)
CORNERS = np.array([[3, 4], [9, 2], [12, 10]])
WAVES = np.random.default_rng(0).uniform(-0.25, 0.25, (6, 2))
"""Wave vectors of the object [rad / px]: its differences of fourth order err by k^4 / 30, about 1e-4."""
WEIGHTS = random_complex(np.random.default_rng(1), 6) / 4
SLOPES = 5e-4
"""What those differences leave of the equations, relative to the largest entry."""
STEP = 1e-4
STRAINS = [(a, b) for a in (0, 1) for b in (0, 1)]
"""Distance along axis a moves the object along axis b."""


def obj_at(y: Array, x: Array) -> Array:
    """The object between its pixels."""
    return 1 + sum(w * np.exp(1j * (ky * y + kx * x)) for w, (ky, kx) in zip(WEIGHTS, WAVES, strict=True))


def moved_patches(parameter: int, length: float) -> Array:
    """Patches moved along y or x (0, 1), or strained about their middle (2 to 5)."""
    y, x = (CORNERS[:, axis, None, None] + np.indices((N_PX, N_PX))[axis] for axis in (0, 1))
    places = [y + 0.0, x + 0.0]
    if parameter < 2:
        places[parameter] = places[parameter] + length
    else:
        along, moved = STRAINS[parameter - 2]
        away = np.indices((N_PX, N_PX))[along] - (N_PX - 1) / 2
        places[moved] = places[moved] + length * away
    return obj_at(*places)


def scan(*, near: bool, masked: bool, photons: float = 60.0) -> tuple[Array, Array, Array | None]:
    """Probe modes of every position, counts of a slightly other scan, and the transfer."""
    rng = np.random.default_rng(2)
    y, x = (np.arange(N_PX) - (N_PX - 1) / 2)[:, None], np.arange(N_PX) - (N_PX - 1) / 2
    mode = photons * np.exp((y**2 + x**2) * (0.03j - 0.05))
    probes = np.stack([mode, 0.3j * x / 3 * mode]) * (1 + 0.05 * random_complex(rng, 3, 2, 1, 1))
    transfer = near_field_transfer(N_PX, 0.2, rng.uniform(-0.5, 0.5, (3, 2))) if near else None
    patches = moved_patches(0, 0.3) * np.exp(0.1j)
    amplitude = np.sqrt(rng.poisson(diffracted_intensity(patches, probes, Detector(transfer))))
    if masked:
        amplitude[rng.random(amplitude.shape) < 0.2] = NOT_MEASURED
    return probes, amplitude, transfer


def residual(patches: Array, probes: Array, amplitude: Array, transfer: Array | None) -> Array:
    """What measured counts exceed the expected ones by, one row for each pattern."""
    field = propagate(exit_waves(patches, probes), Detector(transfer))
    return root_residual((np.abs(field) ** 2).sum(axis=1), amplitude)[1].reshape(len(patches), -1)


@pytest.mark.parametrize("near", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("strains", [False, True])
def test_equations_are_the_slopes_of_the_residual(near: bool, masked: bool, strains: bool) -> None:
    probes, amplitude, transfer = scan(near=near, masked=masked)
    obj = obj_at(*np.indices(SHAPE))
    normal, right = motion_equations(obj, CORNERS, probes, amplitude, Detector(transfer), strains=strains)
    count = 6 if strains else 2
    ahead, behind = (
        [residual(moved_patches(k, sign * STEP), probes, amplitude, transfer) for k in range(count)]
        for sign in (1, -1)
    )
    slopes = np.stack([(a - b) / (2 * STEP) for a, b in zip(ahead, behind, strict=True)], axis=1)
    missed = residual(moved_patches(0, 0.0), probes, amplitude, transfer)
    expected = slopes @ slopes.transpose(0, 2, 1), -(slopes @ missed[:, :, None])[:, :, 0]
    for found, wanted in zip((normal, right), expected, strict=True):
        assert found.shape == wanted.shape
        # A strain moves the rim of a patch by half its side: entries of every size are compared by their own.
        scale = np.abs(wanted).max(axis=0)
        assert (np.abs(found - wanted) <= SLOPES * scale).all()
    if strains:
        swapped = [0, 1, 2, 4, 3, 5]
        assert not np.allclose(right[:, swapped], expected[1], rtol=0.05)


def test_a_step_finds_a_displacement() -> None:
    # Expected counts in place of drawn ones: only many of them leave the residual even.
    probes, _, _ = scan(near=False, masked=False, photons=6e4)
    for axis in (0, 1):
        amplitude = np.sqrt(diffracted_intensity(moved_patches(axis, 0.01), probes))
        normal, right = motion_equations(obj_at(*np.indices(SHAPE)), CORNERS, probes, amplitude)
        found = np.linalg.solve(normal, right[:, :, None])[:, :, 0]
        np.testing.assert_allclose(found, np.tile(0.01 * np.eye(2)[axis], (3, 1)), atol=3e-4)


def test_pixels_that_measured_nothing_take_no_part() -> None:
    probes, amplitude, _ = scan(near=False, masked=True)
    obj = obj_at(*np.indices(SHAPE))
    expected = motion_equations(obj, CORNERS, probes, amplitude, strains=True)
    other = np.where(amplitude < 0, 7 * NOT_MEASURED, amplitude)
    for found, wanted in zip(
        motion_equations(obj, CORNERS, probes, other, strains=True), expected, strict=True
    ):
        np.testing.assert_array_equal(found, wanted)
    lit = np.where(amplitude < 0, 0.0, amplitude)
    assert not np.allclose(
        motion_equations(obj, CORNERS, probes, lit, strains=True)[1], expected[1], rtol=1e-2
    )
    nothing = motion_equations(obj, CORNERS, probes, np.full_like(amplitude, NOT_MEASURED))
    assert not np.any(nothing[0])
    assert not np.any(nothing[1])


@pytest.mark.parametrize("axis", [0, 1])
def test_the_slope_of_a_wave_is_that_of_fourth_order_differences(axis: int) -> None:
    waves = 2 * np.pi * 3 / SHAPE[axis]
    wave = np.exp(1j * waves * np.indices(SHAPE)[axis])
    factor = 1j * (8 * np.sin(waves) - np.sin(2 * waves)) / 6
    np.testing.assert_allclose(object_slope(wave, axis), factor * wave, atol=1e-12)
    assert abs(factor - 1j * waves) < waves**5 / 30
    assert np.abs(object_slope(wave, 1 - axis)).max() < 1e-12


@pytest.mark.parametrize(
    ("mean", "bias", "variance"),
    [(0.3, 0.12, 0.1), (1.0, 0.05, 0.23), (3.0, 0.012, 0.24), (10.0, 2e-3, 0.245), (100.0, 2e-3, 0.248)],
)
def test_the_residual_of_poisson_counts_is_nearly_even(mean: float, bias: float, variance: float) -> None:
    """From a few counts on its mean is 0 and its variance 1/4; the plain root is never as even."""
    counts = np.random.default_rng(3).poisson(mean, (100, 32, 32))
    _, missed = root_residual(np.full(counts.shape, mean), np.sqrt(counts))
    plain = np.sqrt(counts) - np.sqrt(mean)
    assert abs(missed.mean()) < min(bias, 0.45 * abs(plain.mean()))
    assert variance < missed.var() < 0.265
    if mean in (1.0, 3.0):
        assert plain.var() > 0.3
