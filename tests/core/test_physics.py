"""Facts about the reference physics: brute force, closed forms, adjoints and gradients in float64."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from judges import (
    FLOAT64,
    SOFTENED,
    adjoint_mismatch,
    assert_twin,
    gradient_mismatch,
    plain_gradient,
    random_complex,
    small_scan,
)
from numpy.typing import NDArray

from ptycho import physics
from ptycho.errors import DataError

ROUNDING = 1e-12  # float64 sums of some thousand terms
SMALL_SLOPE = 1e-6  # central differences in float64: truncation h^2 times the third derivative
SIZES = [8, 9, 16, 15]
SHAPE = (31, 26)

Array = NDArray[Any]


def scan(
    n_px: int, n_patterns: int = 7, n_modes: int = 3, seed: int = 0
) -> tuple[Array, Array, Array, Array]:
    """Object, corners, shared probe modes and sub-pixel shifts of patches on a non-square canvas."""
    rng = np.random.default_rng(seed)
    corners = np.stack([rng.integers(0, size - n_px + 1, n_patterns) for size in SHAPE], axis=1)
    shifts = rng.uniform(-0.5, 0.5, (n_patterns, 2))
    return random_complex(rng, *SHAPE), corners, random_complex(rng, n_modes, n_px, n_px), shifts


def band_limited(rng: np.random.Generator, n_px: int, reach: int) -> Array:
    """A periodic field whose frequencies are at most ``reach``."""
    spectrum = random_complex(rng, n_px, n_px)
    index = np.abs(np.fft.fftfreq(n_px, 1 / n_px)) <= reach
    return np.fft.ifft2(spectrum * np.multiply.outer(index, index)) * n_px


def half_softened_misfit(counts: Array, amplitude: Array) -> float:
    softened = np.sqrt(counts + physics.INTENSITY_FLOOR + SOFTENED**2 * amplitude**2)
    return 0.5 * float(((softened - np.sqrt(1 + SOFTENED**2) * amplitude) ** 2).sum())


# --- propagation ---


@pytest.mark.parametrize("n_px", SIZES)
def test_far_field_is_the_shifted_unitary_fft(n_px: int) -> None:
    waves = random_complex(np.random.default_rng(1), 2, 3, n_px, n_px)
    brute = np.fft.fftshift(np.fft.fft2(waves, norm="ortho"), axes=(-2, -1))
    assert_twin(brute, physics.far_field(waves), FLOAT64)
    assert_twin(np.abs(brute) ** 2, np.abs(physics.far_field(waves)) ** 2, FLOAT64)


@pytest.mark.parametrize("n_px", [8, 9])
def test_far_field_is_the_written_out_sum(n_px: int) -> None:
    waves = random_complex(np.random.default_rng(2), n_px, n_px)
    index = np.arange(n_px)
    kernel = np.exp(-2j * np.pi * np.multiply.outer(index - n_px // 2, index) / n_px)
    assert_twin(kernel @ waves @ kernel.T / n_px, physics.far_field(waves), FLOAT64)


@pytest.mark.parametrize("n_px", SIZES)
def test_a_flat_wave_lights_the_middle_pixel_only(n_px: int) -> None:
    expected = np.zeros((n_px, n_px), dtype=np.complex128)
    expected[n_px // 2, n_px // 2] = n_px
    assert_twin(expected, physics.far_field(np.ones((n_px, n_px), dtype=np.complex128)), FLOAT64)


def test_a_ramp_towards_plus_x_moves_the_spot_towards_plus_x() -> None:
    ramp = np.exp(2j * np.pi * 3 * np.arange(16) / 16) * np.ones((16, 1))
    spot = np.abs(physics.far_field(ramp))
    assert np.unravel_index(spot.argmax(), spot.shape) == (8, 11)


@pytest.mark.parametrize("n_px", SIZES)
def test_far_field_keeps_every_photon(n_px: int) -> None:
    waves = random_complex(np.random.default_rng(3), 4, n_px, n_px)
    before, after = ((np.abs(w) ** 2).sum(axis=(1, 2)) for w in (waves, physics.far_field(waves)))
    assert_twin(before, after, FLOAT64)


@pytest.mark.parametrize("n_px", SIZES)
def test_far_field_adjoint_is_adjoint_and_inverse(n_px: int) -> None:
    rng = np.random.default_rng(4)
    x, y = random_complex(rng, 2, n_px, n_px), random_complex(rng, 2, n_px, n_px)
    assert adjoint_mismatch(physics.far_field, physics.far_field_adjoint, x, y) < ROUNDING
    assert_twin(x, physics.far_field_adjoint(physics.far_field(x)), FLOAT64)


def test_the_judge_catches_a_far_field_without_centring() -> None:
    rng = np.random.default_rng(5)
    x, y = random_complex(rng, 8, 8), random_complex(rng, 8, 8)
    assert adjoint_mismatch(lambda v: np.fft.fft2(v, norm="ortho"), physics.far_field_adjoint, x, y) > 1e-2


@pytest.mark.parametrize("n_px", [8, 9])
def test_centring_phase_has_unit_modulus_and_the_asked_dtype(n_px: int) -> None:
    phase = physics.centring_phase(n_px, np.complex64)
    assert phase.dtype == np.complex64
    np.testing.assert_allclose(np.abs(phase), 1.0, atol=1e-6)


# --- sub-pixel shift ---


@pytest.mark.parametrize("n_px", [48, 49])
def test_a_shifted_gaussian_is_the_gaussian_at_the_shifted_place(n_px: int) -> None:
    grid = np.arange(n_px) - (n_px - 1) / 2
    shifts = np.array([[0.3, -0.45], [-2.7, 1.25], [0.0, 0.0]])

    def gaussian(dy: float, dx: float) -> Array:
        return np.exp(-((grid[:, None] - dy) ** 2 + (grid - dx) ** 2) / (2 * 2.5**2)) * np.exp(0.2j)

    moved = physics.shift_field(gaussian(0.0, 0.0), shifts)
    # With sigma 2.5 px the spectrum at Nyquist and the field at the edge are both below 1e-13 of their peaks.
    assert_twin(np.stack([gaussian(*shift) for shift in shifts]), moved, FLOAT64)


@pytest.mark.parametrize("shape", [(8, 8), (9, 9), (3, 8, 8), (5, 3, 9, 9)])
def test_a_whole_shift_is_a_roll(shape: tuple[int, ...]) -> None:
    field = random_complex(np.random.default_rng(6), *shape)
    shifts = np.array([[1, 0], [0, 1], [-2, 3], [0, 0], [4, -1]], dtype=np.float64)
    rolled = [
        np.roll(field[j] if field.ndim == 4 else field, shift.astype(int), axis=(-2, -1))
        for j, shift in enumerate(shifts)
    ]
    assert_twin(np.stack(rolled), physics.shift_field(field, shifts), FLOAT64)


@pytest.mark.parametrize("n_px", SIZES)
def test_shift_back_is_the_adjoint_and_the_inverse(n_px: int) -> None:
    rng = np.random.default_rng(7)
    x, y = random_complex(rng, 4, 2, n_px, n_px), random_complex(rng, 4, 2, n_px, n_px)
    shifts = rng.uniform(-3, 3, (4, 2))

    def move(field: Array) -> Array:
        return physics.shift_field(field, shifts)

    def move_back(field: Array) -> Array:
        return physics.shift_field(field, -shifts)

    assert adjoint_mismatch(move, move_back, x, y) < ROUNDING
    assert adjoint_mismatch(move, move, x, y) > 1e-2
    assert_twin(x, move_back(move(x)), FLOAT64)


@pytest.mark.parametrize("n_px", [24, 25])
def test_moving_the_probe_back_gives_the_pattern_of_moving_the_object(n_px: int) -> None:
    rng = np.random.default_rng(8)
    probe, patch = band_limited(rng, n_px, 5), band_limited(rng, n_px, 5)
    delta = np.array([[0.37, -0.21]])
    by_object = physics.diffracted_intensity(physics.shift_field(patch, -delta), probe[None])
    by_probe = physics.diffracted_intensity(patch[None], physics.shift_field(probe[None], delta))
    assert_twin(by_object, by_probe, FLOAT64)
    wrong_way = physics.diffracted_intensity(patch[None], physics.shift_field(probe[None], -delta))
    with pytest.raises(AssertionError):
        assert_twin(by_object, wrong_way, 1e-3)


# --- extraction and placement ---


@pytest.mark.parametrize("n_px", SIZES)
def test_patches_are_windows_of_the_object(n_px: int) -> None:
    obj, corners, _, _ = scan(n_px)
    windows = [obj[y : y + n_px, x : x + n_px] for y, x in corners]
    np.testing.assert_array_equal(physics.extract_patches(obj, corners, n_px), windows)


@pytest.mark.parametrize("dtype", [np.float64, np.complex128, np.float32, np.complex64])
def test_placed_patches_add_where_they_overlap(dtype: type) -> None:
    rng = np.random.default_rng(9)
    _, corners, _, _ = scan(9, n_patterns=20)
    patches = random_complex(rng, 20, 9, 9)
    patches = (patches if np.issubdtype(dtype, np.complexfloating) else patches.real).astype(dtype)
    looped = np.zeros(SHAPE, dtype=dtype)
    for patch, (y, x) in zip(patches, corners, strict=True):
        looped[y : y + 9, x : x + 9] += patch
    placed = physics.place_patches(patches, corners, SHAPE)
    assert placed.dtype == dtype
    assert_twin(looped, placed, 1e-6 if placed.real.dtype == np.float32 else FLOAT64)


@pytest.mark.parametrize("n_px", SIZES)
def test_placing_is_the_adjoint_of_extracting(n_px: int) -> None:
    obj, corners, _, _ = scan(n_px)
    patches = random_complex(np.random.default_rng(10), len(corners), n_px, n_px)

    def extract(o: Array) -> Array:
        return physics.extract_patches(o, corners, n_px)

    def place(p: Array) -> Array:
        return physics.place_patches(p, corners, SHAPE)

    def place_swapped(p: Array) -> Array:
        return physics.place_patches(p.swapaxes(-1, -2), corners, SHAPE)

    assert adjoint_mismatch(extract, place, obj, patches) < ROUNDING
    assert adjoint_mismatch(extract, place_swapped, obj, patches) > 1e-2


@pytest.mark.parametrize("corner", [(-1, 0), (0, -1), (SHAPE[0] - 7, 0), (0, SHAPE[1] - 7)])
def test_a_patch_outside_the_canvas_is_refused_and_named(corner: tuple[int, int]) -> None:
    corners = np.array([[0, 0], [SHAPE[0] - 8, SHAPE[1] - 8], corner])
    physics.patch_indices(corners[:2], 8, SHAPE)
    with pytest.raises(DataError, match=rf"1 of 3 patches .*patch 2 at corner y={corner[0]}, x={corner[1]}"):
        physics.patch_indices(corners, 8, SHAPE)
    with pytest.raises(DataError):
        physics.extract_patches(np.ones(SHAPE, dtype=np.complex128), corners, 8)
    with pytest.raises(DataError):
        physics.place_patches(np.ones((3, 8, 8)), corners, SHAPE)


# --- forward model ---


@pytest.mark.parametrize("n_px", [8, 9])
@pytest.mark.parametrize("per_position", [False, True])
def test_modes_add_as_intensities(n_px: int, per_position: bool) -> None:
    obj, corners, probes, shifts = scan(n_px)
    if per_position:
        probes = physics.shift_field(probes, shifts)
    patches = physics.extract_patches(obj, corners, n_px)
    looped = np.zeros(patches.shape)
    for j in range(len(patches)):
        for mode in probes[j] if per_position else probes:
            field = np.fft.fftshift(np.fft.fft2(mode * patches[j], norm="ortho"))
            looped[j] += np.abs(field) ** 2
    assert_twin(looped, physics.diffracted_intensity(patches, probes), FLOAT64)
    coherent = np.abs(physics.far_field(physics.exit_waves(patches, probes).sum(axis=1))) ** 2
    with pytest.raises(AssertionError):
        assert_twin(looped, coherent, 1e-3)


def test_an_empty_object_scatters_every_photon_of_the_probe() -> None:
    _, _, probes, _ = scan(16)
    total = physics.diffracted_intensity(np.ones((1, 16, 16), dtype=np.complex128), probes).sum()
    assert total == pytest.approx((np.abs(probes) ** 2).sum(), rel=ROUNDING)


def test_the_amplitude_squared_is_the_intensity_above_the_floor() -> None:
    obj, corners, probes, _ = scan(8)
    patches = physics.extract_patches(obj, corners, 8)
    squared = physics.diffracted_amplitude(patches, probes) ** 2
    assert_twin(physics.diffracted_intensity(patches, probes) + physics.INTENSITY_FLOOR, squared, FLOAT64)


def test_a_dark_pattern_has_the_floor_as_its_intensity() -> None:
    dark = physics.diffracted_amplitude(np.zeros((1, 8, 8), dtype=np.complex128), np.ones((1, 8, 8)))
    np.testing.assert_allclose(dark, 1e-4, rtol=1e-12)


def test_probe_and_patch_of_different_size_are_refused() -> None:
    with pytest.raises(DataError, match=r"\(9, 9\) and \(8, 8\) px"):
        physics.exit_waves(np.ones((2, 8, 8)), np.ones((1, 9, 9)))


@pytest.mark.parametrize("n_px", [8, 9])
def test_the_far_field_of_a_scan_has_the_expected_adjoint(n_px: int) -> None:
    obj, corners, probes, shifts = scan(n_px)
    moved = physics.shift_field(probes, shifts)
    fields = random_complex(np.random.default_rng(11), len(corners), len(probes), n_px, n_px)

    def forward(o: Array) -> Array:
        return physics.far_field(physics.exit_waves(physics.extract_patches(o, corners, n_px), moved))

    def back(f: Array) -> Array:
        return physics.place_patches(
            (moved.conj() * physics.far_field_adjoint(f)).sum(axis=1), corners, SHAPE
        )

    def back_without_conjugate(f: Array) -> Array:
        return physics.place_patches((moved * physics.far_field_adjoint(f)).sum(axis=1), corners, SHAPE)

    assert adjoint_mismatch(forward, back, obj, fields) < ROUNDING
    assert adjoint_mismatch(forward, back_without_conjugate, obj, fields) > 1e-2


# --- gradient, illumination, stitching ---


@pytest.mark.parametrize("n_px", [8, 9])
@pytest.mark.parametrize("per_position", [False, True])
def test_the_object_gradient_is_the_slope_of_half_the_squared_misfit(n_px: int, per_position: bool) -> None:
    obj, corners, probes, shifts = scan(n_px)
    if per_position:
        probes = physics.shift_field(probes, shifts)
    amplitude = np.random.default_rng(12).uniform(0.5, 4.0, (len(corners), n_px, n_px))

    def loss(o: Array) -> float:
        counts = physics.diffracted_intensity(physics.extract_patches(o, corners, n_px), probes)
        return half_softened_misfit(counts, amplitude)

    def gradient(o: Array) -> Array:
        return physics.object_gradient(o, corners, probes, amplitude)

    assert gradient_mismatch(loss, gradient, obj) < SMALL_SLOPE
    assert gradient_mismatch(loss, lambda o: gradient(o).conj(), obj) > 1e-2
    each = probes if per_position else np.broadcast_to(probes, (len(corners), *probes.shape))
    assert_twin(plain_gradient(obj, corners, each, amplitude), gradient(obj), FLOAT64)


def test_softening_moves_no_solution_and_bounds_the_pull_of_a_dark_pixel() -> None:
    measured = np.array([0.0, 1.0, 1.0, 7.0])
    expected = np.array([0.0, 0.0, 1.0, 49.0])
    found = physics.softened_amplitude(expected, measured)
    np.testing.assert_allclose(found[2:], measured[2:], rtol=1e-7)
    assert measured[1] / found[1] == pytest.approx(np.sqrt(1 + 0.03**-2), rel=1e-3)
    assert 0 < found[0] < 1e-3


def test_the_object_gradient_vanishes_at_the_true_object() -> None:
    obj, corners, probes, _ = scan(9)
    truth = physics.diffracted_amplitude(physics.extract_patches(obj, corners, 9), probes)
    assert np.abs(physics.object_gradient(obj, corners, probes, truth)).max() < 1e-10


@pytest.mark.parametrize("per_position", [False, True])
def test_illumination_is_the_photons_that_fell_on_each_pixel(per_position: bool) -> None:
    _, corners, probes, shifts = scan(9)
    if per_position:
        probes = physics.shift_field(probes, shifts)
    looped = np.zeros(SHAPE)
    for j, (y, x) in enumerate(corners):
        looped[y : y + 9, x : x + 9] += (np.abs(probes[j] if per_position else probes) ** 2).sum(axis=0)
    assert_twin(looped, physics.illumination(probes, corners, SHAPE), FLOAT64)


@pytest.mark.parametrize("per_position", [False, True])
def test_stitched_patches_of_an_object_are_the_object(per_position: bool) -> None:
    obj, corners, probes, shifts = scan(9, n_patterns=60)
    if per_position:
        probes = physics.shift_field(probes, np.resize(shifts, (60, 2)))
    weight = physics.illumination(probes, corners, SHAPE)
    total = physics.weighted_patches(physics.extract_patches(obj, corners, 9), corners, probes, SHAPE)
    lit = weight > 0
    assert lit.mean() > 0.8
    assert_twin(obj[lit], total[lit] / weight[lit], FLOAT64)


def test_an_undamped_step_averages_the_waves_with_their_measured_amplitude() -> None:
    obj, corners, probes, shifts = scan(9, n_patterns=60)
    moved = physics.shift_field(probes, np.resize(shifts, (60, 2)))
    amplitude = np.random.default_rng(14).uniform(0.5, 4.0, (60, 9, 9))
    weight = physics.illumination(moved, corners, SHAPE)
    stepped = obj - physics.object_gradient(obj, corners, moved, amplitude) / np.where(weight > 0, weight, 1)
    field = physics.far_field(physics.exit_waves(physics.extract_patches(obj, corners, 9), moved))
    softened = (np.abs(field) ** 2).sum(axis=1) + SOFTENED**2 * amplitude**2
    corrected = field * (amplitude * np.sqrt((1 + SOFTENED**2) / softened))[:, None]
    waves = physics.far_field_adjoint(corrected)
    average = physics.place_patches((moved.conj() * waves).sum(axis=1), corners, SHAPE)
    lit = weight > 0
    assert_twin(
        average[lit] / weight[lit], stepped[lit], 1e-9
    )  # the floor of 1e-8 photons against 10 and more


# --- smoothing ---


@pytest.mark.parametrize("n_px", [32, 33])
def test_a_smoothed_amplitude_is_that_of_a_smoothed_exit_wave(n_px: int) -> None:
    from scipy.ndimage import gaussian_filter

    sigma_px = 1.6
    obj, corners, probes, _ = scan(n_px // 2)
    patches = np.pad(physics.extract_patches(obj, corners, n_px // 2), ((0, 0), *[(0, n_px - n_px // 2)] * 2))
    waves = physics.exit_waves(patches, np.resize(probes, (3, n_px, n_px)))
    widths = (0, 0, sigma_px, sigma_px)
    smooth = gaussian_filter(waves.real, widths, mode="wrap", truncate=9) + 1j * gaussian_filter(
        waves.imag, widths, mode="wrap", truncate=9
    )
    expected = np.sqrt((np.abs(physics.far_field(smooth)) ** 2).sum(axis=1))
    amplitude = np.sqrt((np.abs(physics.far_field(waves)) ** 2).sum(axis=1))
    # A sampled Gaussian of this width has 1e-5 of its height at the highest frequency, where it folds over.
    assert_twin(expected, physics.smoothed_amplitude(amplitude, sigma_px), 1e-4)
    with pytest.raises(AssertionError):
        assert_twin(expected, physics.smoothed_amplitude(amplitude, sigma_px * 1.01), 1e-4)
    assert (physics.smoothed_amplitude(amplitude, 0.0) == amplitude).all()


# --- losses ---


def amplitudes(seed: int = 13) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    return rng.uniform(0.1, 5.0, (3, 6, 6)), np.sqrt(rng.poisson(9.0, (3, 6, 6)).astype(np.float64))


def test_losses_are_zero_at_a_perfect_fit() -> None:
    _, measured = amplitudes()
    assert physics.amplitude_loss(measured, measured) == 0.0
    assert physics.mean_absolute_loss(measured, measured) == 0.0
    floor_per_photon = physics.INTENSITY_FLOOR * measured.size / (measured**2).sum()
    assert 0.0 <= physics.poisson_loss(measured, measured) <= 2 * floor_per_photon


def test_losses_match_their_closed_forms() -> None:
    _, measured = amplitudes()
    assert physics.amplitude_loss(1.5 * measured, measured) == pytest.approx(0.25, rel=ROUNDING)
    assert physics.mean_absolute_loss(0.9 * measured, measured) == pytest.approx(0.1, rel=ROUNDING)
    # I = 4 k: (4k - k + k ln(1/4)) / k
    assert physics.poisson_loss(2.0 * measured, measured) == pytest.approx(3.0 - np.log(4.0), rel=1e-6)


@pytest.mark.parametrize("loss", [physics.amplitude_loss, physics.mean_absolute_loss, physics.poisson_loss])
def test_losses_do_not_depend_on_the_dose(loss: Any) -> None:
    predicted, measured = amplitudes()
    assert loss(100 * predicted, 100 * measured) == pytest.approx(loss(predicted, measured), rel=1e-6)


def test_the_poisson_loss_differs_from_the_likelihood_by_a_constant() -> None:
    from scipy.stats import poisson

    predicted, measured = amplitudes()
    counts = np.round(measured**2)

    def likelihood(values: Array) -> float:
        return -float(poisson.logpmf(counts, values**2).sum() / counts.sum())

    first = physics.poisson_loss(predicted, measured) - likelihood(predicted)
    second = physics.poisson_loss(predicted[::-1], measured) - likelihood(predicted[::-1])
    assert first == pytest.approx(second, rel=1e-6)
    assert first != pytest.approx(
        physics.amplitude_loss(predicted, measured) - likelihood(predicted), rel=1e-3
    )


def test_the_poisson_loss_has_the_slope_of_the_likelihood() -> None:
    predicted, measured = amplitudes()
    counts = measured**2

    def slope(values: Array) -> Array:
        return 2 * values * (1 - counts / values**2) / counts.sum()

    def loss(values: Array) -> float:
        return float(physics.poisson_loss(values, measured))

    assert gradient_mismatch(loss, slope, predicted) < SMALL_SLOPE
    assert gradient_mismatch(loss, lambda v: slope(v) / (2 * v), predicted) > 1e-2


# --- dtype ---


@pytest.mark.parametrize(
    ("complex_type", "real_type"), [(np.complex64, np.float32), (np.complex128, np.float64)]
)
def test_the_precision_follows_the_input(complex_type: type, real_type: type) -> None:
    obj, corners, probes, shifts = scan(8)
    obj, probes = obj.astype(complex_type), probes.astype(complex_type)
    moved = physics.shift_field(probes, shifts)
    patches = physics.extract_patches(obj, corners, 8)
    amplitude = physics.diffracted_amplitude(patches, moved)
    assert moved.dtype == patches.dtype == physics.far_field(patches).dtype == complex_type
    assert amplitude.dtype == physics.illumination(moved, corners, SHAPE).dtype == real_type
    assert physics.object_gradient(obj, corners, moved, amplitude).dtype == complex_type
    assert physics.weighted_patches(patches, corners, moved, SHAPE).dtype == complex_type


# --- specification ---


def test_every_cited_equation_is_in_the_specification() -> None:
    root = Path(__file__).parents[2]
    written = set(re.findall(r"\\tag\{(\w+)\}", (root / "specs/physics.md").read_text(encoding="utf-8")))
    cited = {
        path.relative_to(root).as_posix(): set(
            re.findall(r"eq\. (\d+[a-f]?)", path.read_text(encoding="utf-8"))
        )
        for package in ("ptycho", "ptycho_torch")
        for path in (root / package).rglob("*.py")
    }
    assert {name: numbers - written for name, numbers in cited.items() if numbers - written} == {}
    reference = set().union(
        *(numbers for name, numbers in cited.items() if name.startswith("ptycho/physics/"))
    )
    assert reference >= {
        *map(str, range(1, 7)),
        "8",
        "9",
        "12",
        "13",
        "15",
        "16",
        "20",
        "22",
        "24",
        "25",
        "5b",
    } | {f"7{k}" for k in "abcdef"}
    named = {*map(str, range(1, 32))} - {"7"}
    assert written == named | {f"7{letter}" for letter in "abcdef"} | {"5b", "29a", "29b", "30a"}


def test_probe_gradient_is_that_of_the_squared_misfit() -> None:
    found = small_scan(fractional=False, noisy=True)
    rng = np.random.default_rng(3)
    shifts = rng.uniform(-0.5, 0.5, (len(found.corners_yx), 2))
    base = random_complex(rng, 2, *found.probes.shape[-2:])
    patches = physics.extract_patches(found.obj, found.corners_yx, found.amplitude.shape[-1])

    def loss(probe: NDArray[Any]) -> float:
        counts = physics.diffracted_intensity(patches, physics.shift_field(probe, shifts))
        return half_softened_misfit(counts, found.amplitude)

    def gradient(probe: NDArray[Any]) -> NDArray[Any]:
        moved = physics.shift_field(probe, shifts)
        residual = physics.wave_residual(found.obj, found.corners_yx, moved, found.amplitude)
        return physics.probe_gradient(patches, residual, shifts)

    assert gradient_mismatch(loss, gradient, base) < 1e-6
    assert gradient_mismatch(loss, lambda probe: gradient(probe).conj(), base) > 1e-2


def test_residual_energy_is_the_squared_misfit_of_softened_amplitudes() -> None:
    found = small_scan(noisy=True)
    residual = physics.wave_residual(found.obj * 1.1, found.corners_yx, found.probes, found.amplitude)
    patches = physics.extract_patches(found.obj * 1.1, found.corners_yx, found.amplitude.shape[-1])
    counts = physics.diffracted_intensity(patches, found.probes)
    softened = np.sqrt(
        (counts + physics.INTENSITY_FLOOR + SOFTENED**2 * found.amplitude**2) / (1 + SOFTENED**2)
    )
    misfit = (counts * (1 - found.amplitude / softened) ** 2).sum()
    assert (np.abs(residual) ** 2).sum() == pytest.approx(misfit, rel=1e-6)
    assert misfit == pytest.approx(((np.sqrt(counts) - found.amplitude) ** 2).sum(), rel=1e-2)
