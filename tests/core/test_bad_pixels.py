"""Facts about pixels that measured nothing: they take no part, whatever is stored there."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from judges import SOFTENED, gradient_mismatch, random_complex, small_scan
from masked_scans import gaps, masked_small_scan
from numpy.typing import NDArray

from ptycho import physics
from ptycho.data.npz import read_npz, write_npz
from ptycho.data.prepare import prepare_scan
from ptycho.data.scaling import NOT_MEASURED, make_scale_record, measured_amplitude
from ptycho.errors import DataError
from ptycho.raw_data import RawData
from ptycho.simulation.simulate import SimulationOptions, simulate

Array = NDArray[Any]
GARBAGE = (np.nan, -7.0, 2.0**32 - 1)


@pytest.fixture(scope="module")
def arrays() -> dict[str, Any]:
    """Return the arrays of a scan of 7 x 7 patterns of 32 px."""
    found = simulate(SimulationOptions(n_px=32, n_y=7, n_x=7, step_px=3.0, photons=1e6, seed=3))
    return {key: found[key] for key in ("xcoords", "ycoords", "diff3d", "probeGuess", "objectGuess")}


def raw_of(arrays: dict[str, Any], **changes: Any) -> RawData:
    given = {**arrays, **changes}
    x, y = given.pop("xcoords"), given.pop("ycoords")
    return RawData(x, y, None, None, given.pop("diff3d"), given.pop("probeGuess"), None, **given)


# --- physics ---


def masked_scan() -> tuple[Any, Array]:
    return small_scan(noisy=True), masked_small_scan().amplitude


def half_masked_misfit(counts: Array, amplitude: Array) -> float:
    """Half the squared softened misfit over measured pixels, spelt out once more."""
    good = amplitude >= 0
    softened = np.sqrt((counts + 1e-8 + SOFTENED**2 * amplitude**2) / (1 + SOFTENED**2))
    return float(0.5 * (1 + SOFTENED**2) * ((softened - amplitude)[good] ** 2).sum())


def test_the_object_gradient_is_that_of_the_misfit_over_measured_pixels() -> None:
    found, amplitude = masked_scan()
    n_px = amplitude.shape[-1]

    def loss(obj: Array) -> float:
        patches = physics.extract_patches(obj, found.corners_yx, n_px)
        return half_masked_misfit(physics.diffracted_intensity(patches, found.probes), amplitude)

    def gradient(measured: Array) -> Any:
        return lambda obj: physics.object_gradient(obj, found.corners_yx, found.probes, measured)

    start = 0.9 * found.obj
    assert gradient_mismatch(loss, gradient(amplitude), start) < 1e-6
    # Zeros, or what was there, in place of nothing is another gradient.
    assert gradient_mismatch(loss, gradient(np.maximum(amplitude, 0)), start) > 1e-2
    assert gradient_mismatch(loss, gradient(found.amplitude), start) > 1e-2


def test_the_probe_gradient_is_that_of_the_misfit_over_measured_pixels() -> None:
    found, amplitude = masked_scan()
    rng = np.random.default_rng(3)
    shifts = rng.uniform(-0.5, 0.5, (len(found.corners_yx), 2))
    patches = physics.extract_patches(found.obj, found.corners_yx, amplitude.shape[-1])

    def loss(probe: Array) -> float:
        counts = physics.diffracted_intensity(patches, physics.shift_field(probe, shifts))
        return half_masked_misfit(counts, amplitude)

    def gradient(probe: Array, measured: Array = amplitude) -> Array:
        moved = physics.shift_field(probe, shifts)
        residual = physics.wave_residual(found.obj, found.corners_yx, moved, measured)
        return physics.probe_gradient(patches, residual, shifts)

    base = random_complex(rng, 2, *amplitude.shape[1:])
    assert gradient_mismatch(loss, gradient, base) < 1e-6
    assert gradient_mismatch(loss, lambda probe: gradient(probe, np.maximum(amplitude, 0)), base) > 1e-2


@pytest.mark.parametrize("name", ["amplitude_loss", "mean_absolute_loss", "poisson_loss"])
def test_a_loss_sums_over_measured_pixels_alone(name: str) -> None:
    found, amplitude = masked_scan()
    loss = getattr(physics, name)
    predicted = 1.1 * found.amplitude + 0.1
    good = amplitude >= 0
    # The rule of the loss without any mask, on the good pixels in a row.
    expected = loss(predicted[good], found.amplitude[good])
    assert loss(predicted, amplitude) == pytest.approx(expected, rel=1e-12)
    assert abs(loss(predicted, np.maximum(amplitude, 0)) / expected - 1) > 1e-2


@pytest.mark.parametrize("value", [0.0, NOT_MEASURED])
def test_no_photon_is_no_loss(value: float) -> None:
    amplitude = np.full((2, 8, 8), value)
    for name in ("amplitude_loss", "mean_absolute_loss", "poisson_loss"):
        assert getattr(physics, name)(np.ones_like(amplitude), amplitude) == 0


def test_a_filled_pixel_lies_between_its_neighbours() -> None:
    y, x = np.indices((32, 32)) - 16
    smooth = 100 * np.exp(-(y**2 + x**2) / 200) + 1
    bad = gaps(32)
    filled = physics.filled_amplitude(np.where(bad, NOT_MEASURED, smooth))
    np.testing.assert_array_equal(filled[~bad], smooth[~bad])
    assert np.abs(filled - smooth)[bad].max() < 0.15 * smooth.max()
    assert filled.min() >= smooth.min()
    nothing = physics.filled_amplitude(np.full((2, 32, 32), NOT_MEASURED))
    np.testing.assert_allclose(nothing, 0, atol=1e-6)


# --- scale ---


@pytest.mark.parametrize("per_pattern", [False, True])
@pytest.mark.parametrize("garbage", GARBAGE)
def test_what_stands_under_the_mask_changes_no_bit(
    arrays: dict[str, Any], garbage: float, per_pattern: bool
) -> None:
    bad = gaps(32)
    if per_pattern:
        bad = bad & (np.random.default_rng(1).random(arrays["diff3d"].shape) < 0.7)
    clean = arrays["diff3d"].astype(np.float64)
    broken = np.where(bad, garbage, clean)
    first, second = (prepare_scan(raw_of(arrays, diff3d=d, bad_pixels=bad)) for d in (clean, broken))
    assert first.record == second.record
    np.testing.assert_array_equal(first.probe, second.probe)
    # What is under a mask is no news.
    assert first.findings == second.findings == ()
    one, two = (measured_amplitude(s.raw.diff3d, s.record, s.raw.bad_pixels) for s in (first, second))
    np.testing.assert_array_equal(one, two)
    assert (one[np.broadcast_to(bad, one.shape)] == NOT_MEASURED).all()
    assert (one[~np.broadcast_to(bad, one.shape)] >= 0).all()


@pytest.mark.parametrize("domain", ["counts", "amplitude"])
@pytest.mark.parametrize("gauge", [1.0, 0.2, 5.0])
def test_the_gauge_of_the_probe_does_not_see_the_gap(
    arrays: dict[str, Any], domain: str, gauge: float
) -> None:
    """The counts fall by a third; the probe of the whole pattern stays what it is."""
    counts = arrays["diff3d"].astype(np.float64)
    patterns = counts if domain == "counts" else np.sqrt(counts)
    dose = {} if domain == "counts" else {"nphotons": 4 * counts.sum() / len(counts)}
    probe = gauge * arrays["probeGuess"]
    whole = make_scale_record(raw_of(arrays, diff3d=patterns, probeGuess=probe, **dose), override=domain)
    raw = raw_of(arrays, diff3d=patterns, probeGuess=probe, bad_pixels=gaps(32), **dose)
    masked = make_scale_record(raw, override=domain)
    assert masked.mean_counts < 0.8 * whole.mean_counts
    assert masked.probe_gain == pytest.approx(whole.probe_gain, rel=0.02)
    assert masked.amplitude_gain == pytest.approx(whole.amplitude_gain, rel=0.02)


def test_bad_pixels_do_not_decide_between_counts_and_amplitude(arrays: dict[str, Any]) -> None:
    counts = arrays["diff3d"].astype(np.float32)
    counts[:, 3, 3] = 0.5
    bad = np.zeros((32, 32), dtype=bool)
    assert "whole numbers" not in make_scale_record(raw_of(arrays, diff3d=counts)).reason
    bad[3, 3] = True
    assert "whole numbers" in make_scale_record(raw_of(arrays, diff3d=counts, bad_pixels=bad)).reason


# --- files ---


@pytest.mark.parametrize("key", ["bad_pixels", "mask"])
@pytest.mark.parametrize("dtype", [bool, np.uint8, np.float64])
def test_an_npz_file_names_its_bad_pixels(
    arrays: dict[str, Any], key: str, dtype: Any, tmp_path: Path
) -> None:
    bad = gaps(32)
    broken = arrays["diff3d"].astype(np.float32)
    broken[:, bad] = np.nan
    write_npz(tmp_path / "a.npz", {**arrays, "diff3d": broken, key: bad.astype(dtype) * dtype(3)})
    raw = RawData.from_file(tmp_path / "a.npz")
    np.testing.assert_array_equal(raw.bad_pixels, bad)
    raw.to_file(tmp_path / "b.npz")
    np.testing.assert_array_equal(read_npz(tmp_path / "b.npz")["bad_pixels"], bad)


def test_every_pattern_may_have_a_mask_of_its_own(arrays: dict[str, Any], tmp_path: Path) -> None:
    shape = arrays["diff3d"].shape
    bad = np.random.default_rng(2).random(shape) < 0.1
    raw = raw_of(arrays, bad_pixels=bad)
    np.testing.assert_array_equal(raw.subset([5, 2]).bad_pixels, bad[[5, 2]])
    np.testing.assert_array_equal(raw.bad_pixels_of(slice(1, 3)), bad[1:3])
    raw.to_file(tmp_path / "a.npz")
    np.testing.assert_array_equal(RawData.from_file(tmp_path / "a.npz").bad_pixels, bad)
    # The axes of the mask are those of the patterns.
    last = {"diff3d": np.moveaxis(arrays["diff3d"], 0, 2), "bad_pixels": np.moveaxis(bad, 0, 2)}
    np.testing.assert_array_equal(raw_of(arrays, **last).bad_pixels, bad)
    same = np.broadcast_to(bad[0], shape)
    np.testing.assert_array_equal(raw_of(arrays, bad_pixels=same).bad_pixels, bad[0])


def test_a_mask_that_does_not_fit_is_refused_or_named(
    arrays: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(DataError, match=r"got shape \(31, 32\)"):
        raw_of(arrays, bad_pixels=np.ones((31, 32), bool))
    write_npz(tmp_path / "a.npz", {**arrays, "mask": np.ones((50, 60), bool)})
    write_npz(tmp_path / "b.npz", {**arrays, "bad_pixels": gaps(32), "mask": ~gaps(32)})
    with caplog.at_level(logging.WARNING):
        assert RawData.from_file(tmp_path / "a.npz").bad_pixels is None
        np.testing.assert_array_equal(RawData.from_file(tmp_path / "b.npz").bad_pixels, gaps(32))
    assert "mask is ignored, it is bool (50, 60)" in caplog.text
    assert "mask is ignored, bad_pixels is used" in caplog.text


def test_counts_under_the_mask_are_no_counts(arrays: dict[str, Any]) -> None:
    bad = gaps(32)
    for mask, patterns in ((bad, np.where(bad, arrays["diff3d"] + 5, 0)), (bad | True, arrays["diff3d"])):
        with pytest.raises(DataError, match=r"no photon fell on a good pixel.*invert the mask"):
            make_scale_record(raw_of(arrays, diff3d=patterns, bad_pixels=mask))


def test_grouped_patterns_are_filled(arrays: dict[str, Any]) -> None:
    bad = gaps(32)
    broken = arrays["diff3d"].astype(np.float32)
    broken[:, bad] = np.nan
    dataset = raw_of(arrays, diff3d=broken, bad_pixels=bad).generate_grouped_data(32, gridsize=2, seed=1)
    plain = raw_of(arrays).generate_grouped_data(32, gridsize=2, seed=1)
    assert np.isfinite(dataset["X_full"]).all()
    assert dataset["X_full"].min() >= 0
    assert dataset["X_full"].shape == plain["X_full"].shape
    good = np.corrcoef(dataset["X_full"][:, ~bad].ravel(), plain["X_full"][:, ~bad].ravel())[0, 1]
    assert good > 1 - 1e-6
