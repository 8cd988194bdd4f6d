"""A scan made ready: domain, probe and mask decided once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ptycho.config.config import ModelConfig
from ptycho.data.npz import read_npz, write_npz
from ptycho.data.prepare import ProbeMask, mask_of, prepare_scan
from ptycho.data.scaling import measured_amplitude
from ptycho.errors import DataError
from ptycho.files.reader import open_scan
from ptycho.raw_data import RawData


def test_a_file_becomes_a_scan_in_y_x_order(small_scan: Path) -> None:
    scan = open_scan(small_scan)
    arrays = read_npz(small_scan)
    assert (scan.n_px, scan.n_patterns, scan.name) == (32, 64, "small.npz")
    np.testing.assert_array_equal(
        scan.positions_yx_px, np.stack([arrays["ycoords"], arrays["xcoords"]], axis=1)
    )
    assert scan.probe.shape == (1, 32, 32)
    assert scan.probe.dtype == np.complex64
    assert scan.record.domain == "counts"
    np.testing.assert_allclose((np.abs(scan.probe) ** 2).sum(), 1e6, rtol=1e-5)


def test_a_probe_of_another_program_is_brought_to_the_counts_once(small_scan: Path, tmp_path: Path) -> None:
    arrays = read_npz(small_scan)
    write_npz(tmp_path / "dim.npz", {**arrays, "probeGuess": 1e-3 * arrays["probeGuess"]})
    scan = open_scan(tmp_path / "dim.npz")
    power = (np.abs(scan.probe.astype(complex)) ** 2).sum()
    np.testing.assert_allclose(power, scan.record.mean_counts, rtol=1e-5)
    assert scan.record.probe_gain == pytest.approx(np.sqrt(scan.record.mean_counts / 1.0), rel=1e-3)


def test_what_the_user_says_about_the_domain_wins(small_scan: Path) -> None:
    counts, amplitude = open_scan(small_scan), open_scan(small_scan, domain="amplitude")
    assert (counts.record.domain, amplitude.record.domain) == ("counts", "amplitude")
    stored = counts.raw.diff3d[:2]
    np.testing.assert_allclose(measured_amplitude(stored, counts.record) ** 2, stored, rtol=1e-6)
    ratio = measured_amplitude(stored, amplitude.record)[stored > 0] / stored[stored > 0]
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-5)


def test_other_keys_and_axes_are_taken_on_request(small_scan: Path, tmp_path: Path) -> None:
    arrays = read_npz(small_scan)
    arrays["lens"] = arrays.pop("probeGuess")
    arrays["diff3d"] = np.moveaxis(arrays["diff3d"], 0, 2)
    write_npz(tmp_path / "other.npz", arrays)
    scan = open_scan(tmp_path / "other.npz", probe_key="lens", pattern_axis=2)
    np.testing.assert_array_equal(scan.probe, open_scan(small_scan).probe)
    with pytest.raises(DataError, match="'probeGuess' is missing"):
        open_scan(tmp_path / "other.npz")


@pytest.mark.parametrize(("diameter", "sigma"), [(None, 1.0), (20.0, 0.5), (25.0, 3.0), (20.0, 0.0)])
@pytest.mark.parametrize("n_px", [32, 33])
def test_the_mask_is_a_centred_disc_of_the_given_diameter(
    n_px: int, diameter: float | None, sigma: float
) -> None:
    values = ProbeMask(diameter, sigma).values(n_px)
    assert values.dtype == np.float32
    assert values.shape == (n_px, n_px)
    assert values.min() >= 0
    assert values.max() <= 1
    np.testing.assert_array_equal(values, values[::-1])
    np.testing.assert_array_equal(values, values.T)
    radius = (n_px / 2 if diameter is None else diameter) / 2
    # An area of pi r^2, a little more for a soft edge, and jagged by its pixels.
    assert values.sum() == pytest.approx(np.pi * (radius**2 + (np.pi * sigma) ** 2 / 12), rel=0.04)
    axis = np.arange(n_px) - (n_px - 1) / 2
    distance = np.hypot(axis[:, None], axis)
    assert values[distance < radius - 3 * max(sigma, 0.5)].min() > 0.99
    assert values[distance > radius + 3 * max(sigma, 0.5)].max(initial=0.0) < 0.01
    assert values.sum() != pytest.approx(np.pi * (radius + 1) ** 2, rel=0.04)


def test_a_mask_reaches_the_probe_and_only_where_it_is_asked_for(small_scan: Path) -> None:
    assert mask_of(ModelConfig()) is None
    mask = mask_of(ModelConfig(probe_mask=True, probe_mask_diameter=12.0, probe_mask_sigma=0.5))
    assert mask == ProbeMask(12.0, 0.5)
    masked = open_scan(small_scan, mask=mask)
    plain = open_scan(small_scan)
    np.testing.assert_allclose(masked.probe, plain.probe * mask.values(32), rtol=1e-6)
    assert masked.record == plain.record


def test_arrays_in_memory_need_a_probe(small_scan: Path) -> None:
    arrays = read_npz(small_scan)
    coordinates = (arrays["xcoords"], arrays["ycoords"])
    raw = RawData.from_coords_without_pc(*coordinates, arrays["diff3d"], arrays["probeGuess"], None)
    np.testing.assert_array_equal(prepare_scan(raw).probe, open_scan(small_scan).probe)
    without = RawData.from_coords_without_pc(*coordinates, arrays["diff3d"], None, None)
    with pytest.raises(DataError, match="there is no probe"):
        prepare_scan(without)
