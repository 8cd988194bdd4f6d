"""Metrics against closed forms and scikit-image; the gauge fit against planted gauges and planted defects."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from ptycho.errors import DataError
from ptycho.evaluation import metrics

SIZE_YX = (128, 112)  # not square, so that swapped axes show
# A band-limited periodic scene is moved exactly by a Fourier shift: only rounding and the stop rule remain.
EXACT_GAUGE_TOL = 1e-6
# complex64 stores 24 bits, so that the fit can be no better than a few 6e-8.
SINGLE_PRECISION_TOL = 1e-6


def _band_limited(seed: int, cutoff: float, size_yx: tuple[int, int]) -> NDArray[np.float64]:
    """Return smooth noise with peak 1 and no Fourier content above ``cutoff`` cycles per pixel."""
    spectrum = np.fft.fft2(np.random.default_rng(seed).standard_normal(size_yx))
    radius = np.hypot(np.fft.fftfreq(size_yx[0])[:, None], np.fft.fftfreq(size_yx[1]))
    values = np.fft.ifft2(spectrum * (radius < cutoff) / np.maximum(radius, 0.02)).real
    return values / np.abs(values).max()


def _scene(seed: int = 0, size_yx: tuple[int, int] = SIZE_YX, cutoff: float = 0.12) -> NDArray[np.complex128]:
    amplitude = 0.8 + 0.2 * _band_limited(seed, cutoff, size_yx)
    return amplitude * np.exp(1j * _band_limited(seed + 100, cutoff, size_yx))


def _change_gauge(
    obj: NDArray[Any], shift_yx: tuple[float, float], ramp_yx: tuple[float, float], scale: complex
) -> NDArray[np.complex128]:
    """Move the content, then add a ramp and a complex scale."""
    fy, fx = np.fft.fftfreq(obj.shape[0])[:, None], np.fft.fftfreq(obj.shape[1])
    moved = np.fft.ifft2(np.fft.fft2(obj) * np.exp(-2j * np.pi * (fy * shift_yx[0] + fx * shift_yx[1])))
    y, x = np.indices(obj.shape)
    return scale * moved * np.exp(1j * (ramp_yx[0] * y + ramp_yx[1] * x))


@pytest.fixture
def truth() -> NDArray[np.complex128]:
    return _scene()


@pytest.fixture
def mask() -> NDArray[np.bool_]:
    mask = np.zeros(SIZE_YX, dtype=bool)
    mask[14:-20, 17:-12] = True
    return mask


@pytest.mark.parametrize(
    ("shift_yx", "ramp_yx"),
    [
        ((0.37, -0.37), (0.013, -0.013)),
        ((0.0, 0.0), (0.013, 0.0)),
        ((3.4, -6.45), (-0.31, 1.2)),
        ((0.5, 0.5), (2.0, -2.0)),
    ],
)
@pytest.mark.parametrize("scanned", [True, False])
def test_a_planted_gauge_is_removed(truth, mask, shift_yx, ramp_yx, scanned):
    obj = _change_gauge(truth, shift_yx, ramp_yx, 0.7 - 2j)
    region = mask if scanned else None
    assert metrics.complex_nrmse(obj, truth, region) > 0.5
    aligned = metrics.fit_gauge(obj, truth, region)
    assert metrics.complex_nrmse(aligned, truth, region) < EXACT_GAUGE_TOL


def test_the_gauge_of_an_object_that_is_not_periodic_is_removed(mask):
    wide = _scene(3, (256, 240))
    window = np.s_[60 : 60 + SIZE_YX[0], 50 : 50 + SIZE_YX[1]]
    obj = _change_gauge(wide, (0.37, -2.2), (0.013, 0.05), 1.3j)[window]
    assert metrics.complex_nrmse(metrics.fit_gauge(obj, wide[window], mask), wide[window], mask) < 1e-4


def test_noise_survives_the_gauge_fit_unchanged(truth, mask):
    rng = np.random.default_rng(5)
    noise = 0.05 * (rng.standard_normal(SIZE_YX) + 1j * rng.standard_normal(SIZE_YX)) / np.sqrt(2)
    obj = _change_gauge(truth + noise, (0.37, 0.2), (0.013, 0.02), 2j)
    found = metrics.complex_nrmse(metrics.fit_gauge(obj, truth, mask), truth, mask)
    expected = np.linalg.norm(noise[mask]) / np.linalg.norm(truth[mask])
    assert found == pytest.approx(expected, rel=0.01)


def test_single_precision_in_gives_single_precision_out(truth, mask):
    obj = _change_gauge(truth, (0.37, 0.0), (0.013, 0.0), 1j).astype(np.complex64)
    aligned = metrics.fit_gauge(obj, truth, mask)
    assert aligned.dtype == np.complex64
    assert metrics.complex_nrmse(aligned, truth, mask) < SINGLE_PRECISION_TOL


def test_parts_of_the_gauge_that_are_switched_off_stay(truth, mask):
    ramped = _change_gauge(truth, (0, 0), (0.03, 0), 1)
    moved = _change_gauge(truth, (1.5, 0), (0, 0), 1)
    assert metrics.complex_nrmse(metrics.fit_gauge(ramped, truth, mask, ramp=False), truth, mask) > 0.3
    assert metrics.complex_nrmse(metrics.fit_gauge(moved, truth, mask, shift=False), truth, mask) > 0.05


def test_pixels_outside_the_mask_may_be_nan(truth, mask):
    obj = np.where(mask, 3j * truth, np.nan)
    scores = metrics.score(obj, truth, mask)
    assert scores["complex_nrmse"] < EXACT_GAUGE_TOL
    assert np.isfinite(metrics.fit_gauge(obj, truth, mask)).all()


@pytest.mark.parametrize("defect", ["conjugated", "transposed", "flat", "zero"])
def test_a_wrong_object_scores_badly(defect, mask):
    truth = _scene(7, (128, 128))
    wrong = {
        "conjugated": truth.conj(),
        "transposed": truth.T,
        "flat": np.ones_like(truth),
        "zero": np.zeros_like(truth),
    }[defect]
    noise = 1e-6 * np.random.default_rng(0).standard_normal(truth.shape)
    scores = metrics.score(wrong + noise * (defect == "flat"), truth)
    assert scores["complex_nrmse"] > 0.1
    assert scores["phase_mae_rad"] > 0.1
    assert scores["phase_psnr_db"] < 25
    assert scores["phase_ssim"] < 0.5
    assert scores["frc_resolution_px"] > 20


def test_a_local_error_of_3_px_is_seen_where_it_is(truth, mask):
    damaged = truth.copy()
    damaged[60:63, 50:53] *= -1
    scores = metrics.score(damaged, truth, mask)
    closed_form = 2 * np.linalg.norm(truth[60:63, 50:53]) / np.linalg.norm(truth[mask])
    assert scores["complex_nrmse"] == pytest.approx(closed_form, rel=0.02)
    aligned = metrics.fit_gauge(damaged, truth, mask)
    assert np.abs(aligned - truth)[60:63, 50:53].min() > 1
    mask[58:65, 48:55] = False
    assert metrics.complex_nrmse(aligned, truth, mask) < 0.01


def test_nrmse_and_mae_have_their_closed_forms(truth, mask):
    assert metrics.complex_nrmse(1.1 * truth, truth, mask) == pytest.approx(0.1)
    assert metrics.complex_nrmse(np.zeros_like(truth), truth) == 1
    assert metrics.amplitude_mae(truth * np.exp(2j) + 0, truth, mask) == pytest.approx(0, abs=1e-12)
    assert metrics.amplitude_mae(1.5 * truth, truth, mask) == pytest.approx(0.5 * np.abs(truth[mask]).mean())
    assert metrics.phase_mae(truth * np.exp(0.2j), truth, mask) == pytest.approx(0.2)
    assert metrics.phase_mae(np.exp(3.1j) + 0 * truth, np.exp(-3.1j) + 0 * truth) == pytest.approx(
        2 * np.pi - 6.2
    )


def test_psnr_has_its_closed_form_and_states_its_range(mask):
    truth = np.zeros(SIZE_YX)
    truth[40, 40] = 4.0
    truth[0, 0] = 99.0  # outside the mask: must not widen the range
    estimate = truth + 0.04 * np.where(np.indices(SIZE_YX).sum(axis=0) % 2, 1, -1)
    value_db, peak = metrics.psnr(estimate, truth, mask)
    assert value_db == pytest.approx(40)
    assert peak == 4
    assert metrics.psnr(estimate, truth)[0] == pytest.approx(
        peak_signal_noise_ratio(truth, estimate, data_range=99)
    )
    assert metrics.psnr(truth, truth)[0] == np.inf
    assert np.isnan(metrics.psnr(estimate, np.ones(SIZE_YX))[0])


def test_ssim_agrees_with_scikit_image_on_a_rectangle(mask):
    rng = np.random.default_rng(2)
    truth, estimate = rng.random(SIZE_YX), rng.random(SIZE_YX)
    estimate += truth
    region = metrics.gauge_fit_region(mask)
    expected = structural_similarity(truth[region], estimate[region], data_range=np.ptp(truth[region]))
    estimate[~mask] = np.nan
    assert metrics.ssim(estimate, truth, mask) == pytest.approx(expected, rel=1e-12)
    assert metrics.ssim(truth, truth) == pytest.approx(1)


def test_frc_of_equal_images_is_one_and_of_noise_is_nought():
    rng = np.random.default_rng(4)
    a, b = rng.standard_normal((2, 200, 160))
    same = metrics.fourier_ring_correlation(a, 5 * a + 3)
    np.testing.assert_allclose(same.correlation, 1, rtol=1e-12)
    assert same.resolution_px is None
    other = metrics.fourier_ring_correlation(a, b)
    assert np.abs(other.correlation[20:]).max() < 0.25
    assert abs(other.correlation[20:].mean()) < 0.02
    assert other.resolution_px > 20
    assert other.frequency_cycles_per_px[0] == 1 / 160
    assert other.frequency_cycles_per_px[-1] == 0.5


def test_half_bit_curve_follows_the_number_of_pixels_in_a_ring():
    n = 32
    curve = metrics.fourier_ring_correlation(*np.random.default_rng(0).random((2, n, n))).half_bit
    k = np.arange(n) - n // 2
    for ring in (1, 2, 7, 16):
        count = sum(round(np.hypot(i, j)) == ring for i in k for j in k)
        expected = (0.2071 + 1.9102 / count**0.5) / (1.2071 + 0.9102 / count**0.5)
        assert curve[ring - 1] == pytest.approx(expected)


def test_frc_finds_the_frequency_where_the_signal_ends():
    rng = np.random.default_rng(8)
    noise = 1e-3 * rng.standard_normal((2, 256, 256))
    signal = _band_limited(9, 0.2, (256, 256))
    resolution = metrics.fourier_ring_correlation(signal + noise[0], signal + noise[1]).resolution_px
    assert resolution == pytest.approx(1 / 0.2, rel=0.05)


@pytest.mark.parametrize("contrast", [0.0, 1e-5, 1e-3])
def test_frc_of_a_collapsed_image_is_zero_although_its_residue_correlates(truth, contrast):
    collapsed = 1 + contrast * (truth - truth.mean())
    frc = metrics.fourier_ring_correlation(collapsed, truth)
    np.testing.assert_array_equal(frc.correlation, 0)
    assert frc.resolution_px == min(SIZE_YX)


def test_score_of_the_truth_is_perfect_and_has_the_agreed_keys(truth, mask):
    scores = metrics.score(truth, truth, mask)
    assert list(scores) == [
        "complex_nrmse",
        "amplitude_mae",
        "phase_mae_rad",
        "amplitude_psnr_db",
        "amplitude_range",
        "phase_psnr_db",
        "phase_range_rad",
        "amplitude_ssim",
        "phase_ssim",
        "frc_resolution_px",
    ]
    assert scores["complex_nrmse"] < 1e-12
    assert scores["phase_ssim"] == pytest.approx(1)
    assert scores["frc_resolution_px"] == 2
    assert scores["amplitude_range"] == pytest.approx(np.ptp(np.abs(truth[mask])))


def test_score_does_not_depend_on_where_the_phase_wraps(truth, mask):
    noisy = truth * np.exp(0.02j * np.random.default_rng(1).standard_normal(SIZE_YX))
    plain, turned = metrics.score(noisy, truth, mask), metrics.score(noisy, truth * np.exp(3j), mask)
    assert turned == pytest.approx(plain, rel=1e-6)
    assert plain["phase_psnr_db"] == pytest.approx(20 * np.log10(plain["phase_range_rad"] / 0.02), abs=0.3)


@pytest.mark.parametrize("dtype", [np.complex64, np.complex128])
def test_a_truth_without_amplitude_or_phase_contrast_has_no_decibels_there(mask, dtype):
    smooth = _band_limited(1, 0.1, SIZE_YX)
    pure_phase = metrics.score(1.2 * np.exp(1.1j * smooth), np.exp(1j * smooth).astype(dtype), mask)
    assert np.isfinite([pure_phase["phase_ssim"], pure_phase["phase_psnr_db"]]).all()
    assert np.isnan([pure_phase["amplitude_ssim"], pure_phase["amplitude_psnr_db"]]).all()
    assert pure_phase["amplitude_range"] == 0
    pure_amplitude = metrics.score((1 + 0.1j) * (2 + smooth) + 0.01, ((2 + smooth) * 1j).astype(dtype), mask)
    assert np.isfinite([pure_amplitude["amplitude_ssim"], pure_amplitude["amplitude_psnr_db"]]).all()
    assert np.isnan([pure_amplitude["phase_ssim"], pure_amplitude["phase_psnr_db"]]).all()


def test_bad_input_is_named_with_its_value(truth, mask):
    with pytest.raises(DataError, match=r"gauge: .*got shapes \(127, 112\) and \(128, 112\)"):
        metrics.fit_gauge(truth[1:], truth)
    with pytest.raises(DataError, match=r"score: the mask does not match \(got shape \(5, 5\)"):
        metrics.score(truth, truth, mask[:5, :5])
    with pytest.raises(DataError, match=r"selects nothing \(got 0 of"):
        metrics.complex_nrmse(truth, truth, 0 * mask)
    with pytest.raises(DataError, match=r"estimate is not finite inside the mask \(got 14336"):
        metrics.score(np.nan * truth, truth)
    with pytest.raises(DataError, match=r"too small \(got \(4, 112\)"):
        metrics.fourier_ring_correlation(truth[:4], truth[:4])
    with pytest.raises(DataError, match="truth is zero"):
        metrics.complex_nrmse(truth, 0 * truth)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("crossing", [0.12, 0.2, 0.3])
def test_the_resolution_beside_a_truth_is_where_half_a_bit_is_left(seed, crossing):
    n = 384
    spectra = np.random.default_rng(seed).standard_normal((4, n, n))
    frequency = np.hypot(np.fft.fftfreq(n)[:, None], np.fft.fftfreq(n))
    # The signal falls off so that its ratio to the noise is sqrt(2) - 1 at the crossing.
    falling = np.sqrt((np.sqrt(2) - 1) * np.exp((crossing - frequency) / 0.02))
    truth = 1 + np.fft.ifft2((spectra[0] + 1j * spectra[1]) * falling)
    noise = np.fft.ifft2(spectra[2] + 1j * spectra[3])
    found = metrics.fourier_ring_correlation(truth + noise, truth, known_truth=True).resolution_px
    assert 1 / found == pytest.approx(crossing, abs=0.012)
    flattered = metrics.fourier_ring_correlation(truth + noise, truth).resolution_px
    assert 1 / flattered > crossing + 0.03
