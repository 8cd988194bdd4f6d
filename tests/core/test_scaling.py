"""Facts about ptycho.data.scaling: which domain a file is in, what its factors do to amplitude and probe."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from ptycho.data.domain import decide_domain
from ptycho.data.scaling import ScaleRecord, make_scale_record, measured_amplitude, scaled_probe
from ptycho.errors import ConfigError, DataError
from ptycho.raw_data import RawData

N = 16
FLOAT32 = 2e-6  # a float32 square root and product, relative


def data_set(
    patterns: NDArray[np.generic], probe_power: float = 1e4, nphotons: float | None = None
) -> RawData:
    rng = np.random.default_rng(3)
    probe = rng.standard_normal((2, N, N)) + 1j * rng.standard_normal((2, N, N))
    probe *= np.sqrt(probe_power / (np.abs(probe) ** 2).sum())
    x, y = rng.uniform(20, 90, (2, len(patterns)))
    return RawData(x, y, None, None, patterns, probe, None, nphotons=nphotons)


def counts(mean_total: float = 1e4, n_patterns: int = 600) -> NDArray[np.int64]:
    return np.random.default_rng(4).poisson(mean_total / N**2, (n_patterns, N, N))


def power_of(probe: NDArray[np.complex64]) -> float:
    return float((np.abs(probe.astype(np.complex128)) ** 2).sum())


def check_amplitude(amplitude: NDArray[np.float32], photons: NDArray[np.generic]) -> None:
    """Judge: float32, and its square is the photon count."""
    assert amplitude.dtype == np.float32
    np.testing.assert_allclose(amplitude.astype(np.float64) ** 2, photons.astype(np.float64), rtol=FLOAT32)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.uint32, np.int64])
def test_integers_are_counts(dtype: type) -> None:
    domain, reason = decide_domain(counts().astype(dtype))
    assert domain == "counts"
    assert np.dtype(dtype).name in reason


def test_fractional_floats_are_amplitude() -> None:
    assert decide_domain(np.sqrt(counts()).astype(np.float32))[0] == "amplitude"


def test_whole_floats_above_50_are_counts() -> None:
    domain, reason = decide_domain(counts(3e4).astype(np.float32))
    assert domain == "counts"
    assert "float32" in reason


def test_small_whole_floats_are_amplitude_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert decide_domain(counts(256).astype(np.float64))[0] == "amplitude"
    assert "--measurement-domain counts" in caplog.text


def test_the_user_has_the_last_word() -> None:
    assert decide_domain(counts(), "amplitude") == ("amplitude", "chosen by the user")
    assert decide_domain(np.sqrt(counts()), "counts")[0] == "counts"
    with pytest.raises(ConfigError, match="got 'intensity'"):
        decide_domain(counts(), "intensity")  # type: ignore[arg-type]


def test_counts_of_300_are_not_squared_or_wrapped_in_uint16() -> None:
    patterns = np.full((3, N, N), 300, dtype=np.uint16)
    record = make_scale_record(data_set(patterns))
    assert record.mean_counts == 300 * N**2
    assert record.max_counts == 300
    check_amplitude(measured_amplitude(patterns, record), patterns)
    stored_amplitude = make_scale_record(data_set(patterns), override="amplitude")
    assert stored_amplitude.mean_counts == 90000 * N**2


def test_the_judge_catches_a_wrapped_square_and_a_wrong_domain() -> None:
    patterns = np.full((3, N, N), 300, dtype=np.uint16)
    wrapped = patterns * patterns
    with pytest.raises(AssertionError):
        check_amplitude(np.sqrt(wrapped.astype(np.float32)), patterns.astype(np.float64) ** 2)
    as_amplitude = make_scale_record(data_set(patterns), override="amplitude")
    with pytest.raises(AssertionError):
        check_amplitude(measured_amplitude(patterns, as_amplitude), patterns)


@pytest.mark.parametrize(
    "as_stored", [lambda k: k.astype(np.uint16), np.sqrt, lambda k: (0.01 * np.sqrt(k)).astype(np.float32)]
)
def test_the_network_input_has_the_same_mean_square_for_every_file(
    as_stored: Callable[[NDArray[np.generic]], NDArray[np.generic]],
) -> None:
    patterns = as_stored(counts())
    record = make_scale_record(data_set(patterns))
    x = record.input_scale * measured_amplitude(patterns, record).astype(np.float64)
    assert (x**2).sum(axis=(1, 2)).mean() == pytest.approx((N / 2) ** 2, rel=FLOAT32)
    assert record.intensity_scale == pytest.approx(np.sqrt(record.mean_counts) / (N / 2), rel=1e-12)
    assert record.input_scale * record.intensity_scale == pytest.approx(1, rel=1e-12)


def test_a_known_dose_turns_stored_amplitude_into_photons() -> None:
    photons = counts()
    dose = float(photons.sum(axis=(1, 2)).mean())
    patterns = 0.037 * np.sqrt(photons)
    record = make_scale_record(data_set(patterns, nphotons=dose))
    assert record.amplitude_gain == pytest.approx(1 / 0.037, rel=1e-12)
    assert record.mean_counts == pytest.approx(dose, rel=1e-12)
    check_amplitude(measured_amplitude(patterns, record), photons)


def test_counts_are_the_truth_whatever_dose_is_stated() -> None:
    photons = counts()
    record = make_scale_record(data_set(photons, nphotons=1e9))
    assert record.mean_counts == pytest.approx(photons.sum(axis=(1, 2)).mean(), rel=1e-12)
    assert record.amplitude_gain == 1


@pytest.mark.parametrize("dose", [0.0, -1.0, np.nan, np.inf])
def test_an_impossible_dose_is_refused(dose: float) -> None:
    with pytest.raises(DataError, match="nphotons"):
        data_set(counts(), nphotons=dose)


@pytest.mark.parametrize("ratio", [0.95, 1.0, 3.9])
def test_a_probe_in_the_gauge_of_the_data_is_kept(ratio: float) -> None:
    photons = counts()
    raw = data_set(photons, probe_power=ratio * photons.sum(axis=(1, 2)).mean())
    record = make_scale_record(raw)
    assert record.probe_gain == 1
    np.testing.assert_array_equal(scaled_probe(raw, record), raw.probe_modes)


@pytest.mark.parametrize("ratio", [1e-8, 0.85, 4.2, 1e6])
def test_a_probe_in_another_gauge_is_scaled_to_the_data(ratio: float) -> None:
    photons = counts()
    raw = data_set(photons, probe_power=ratio * photons.sum(axis=(1, 2)).mean())
    record = make_scale_record(raw)
    probe = scaled_probe(raw, record)
    assert probe.shape == (2, N, N)
    assert probe.dtype == np.complex64
    assert power_of(probe) == pytest.approx(record.mean_counts, rel=FLOAT32)
    np.testing.assert_allclose(probe / probe[0, 0, 0], raw.probe_modes / raw.probe_modes[0, 0, 0], rtol=1e-5)


def test_totals_are_exact_where_float32_sums_would_drift() -> None:
    patterns = np.full((700, N, N), 16777217, dtype=np.uint32)  # 2**24 + 1 has no float32
    assert make_scale_record(data_set(patterns)).mean_counts == 16777217 * N**2


def test_a_record_survives_json_and_refuses_other_fields() -> None:
    record = make_scale_record(data_set(counts()))
    values = json.loads(json.dumps(record.to_dict()))
    assert ScaleRecord.from_dict(values) == record
    for broken in ({**values, "gain": 1.0}, {k: v for k, v in values.items() if k != "probe_gain"}):
        with pytest.raises(DataError, match="fields do not match"):
            ScaleRecord.from_dict(broken)
    with pytest.raises(ConfigError, match="got 'volts'"):
        ScaleRecord.from_dict({**values, "domain": "volts"})


def test_the_summary_is_one_line_with_the_decision() -> None:
    summary = make_scale_record(data_set(counts().astype(np.uint16), probe_power=1.0)).summary()
    assert "\n" not in summary
    assert "counts (integer dtype uint16)" in summary
    assert "probe scaled by" in summary
