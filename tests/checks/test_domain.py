"""Counts and amplitude are told apart by their photons, and a contradiction is reported."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scan_makers import honest_options, honest_scan

from ptycho.data.domain import steps_of
from ptycho.data.prepare import prepare_scan
from ptycho.data.scan import Scan
from ptycho.raw_data import RawData
from ptycho.simulation.simulate import simulate


def as_stored(counts: NDArray[Any], form: str, seed: int) -> NDArray[np.float32]:
    """Return counts the way a beamline may store them."""
    rng = np.random.default_rng(seed)
    flat = 1 + rng.choice([0.02, 0.05, 0.1]) * rng.standard_normal(counts.shape[1:])
    monitor = 1 + 0.1 * rng.standard_normal((len(counts), 1, 1))
    forms = {
        "flat": counts / flat,
        "gain": 0.37 * counts,
        "monitor": counts / monitor,
        "amplitude": np.sqrt(counts),
        "scaled amplitude": 0.013 * np.sqrt(counts),
        "flat amplitude": np.sqrt(counts / flat),
    }
    return forms[form].astype(np.float32)


def scan_of(
    seed: int, form: str | None, *, dose: bool = False, domain: Any = None, gauge: float = 1.0
) -> Scan:
    arrays = simulate(honest_options(seed))
    patterns = arrays["diff3d"] if form is None else as_stored(arrays["diff3d"], form, seed)
    raw = RawData(
        arrays["xcoords"], arrays["ycoords"], None, None, patterns, gauge * arrays["probeGuess"], None,
        nphotons=float(arrays["nphotons"]) if dose else None,
    )  # fmt: skip
    return prepare_scan(raw, domain=domain)


def doubts(scan: Scan) -> list[str]:
    return [finding.message for finding in scan.findings if finding.check == "domain"]


@pytest.mark.parametrize("seed", range(100, 110))
@pytest.mark.parametrize("form", ["flat", "gain", "monitor"])
def test_counts_in_floats_are_counts_whatever_the_probe(form: str, seed: int) -> None:
    scan = scan_of(seed, form, gauge=7.3)
    assert scan.record.domain == "counts"
    assert "photons" in scan.record.reason
    assert doubts(scan) == []


@pytest.mark.parametrize("seed", range(100, 110))
@pytest.mark.parametrize("form", ["amplitude", "scaled amplitude", "flat amplitude"])
def test_amplitude_stays_amplitude(form: str, seed: int) -> None:
    scan = scan_of(seed, form, gauge=0.01 if seed % 2 else 1.0)
    assert scan.record.domain == "amplitude"
    assert doubts(scan) == []


def test_smooth_values_tell_nothing_by_themselves() -> None:
    rng = np.random.default_rng(0)
    for seed in range(6):
        mean = honest_scan(seed).diff3d + rng.uniform(0, 1, (64, *honest_scan(seed).diff3d.shape[1:]))
        assert steps_of(np.sqrt(mean)) is None
        assert steps_of(mean) is None


def test_bright_counts_without_single_photons_are_told_by_probe_and_dose() -> None:
    rng = np.random.default_rng(3)
    counts = rng.poisson(rng.uniform(200, 9000, (40, 32, 32))) * rng.normal(1, 0.02, (32, 32))
    photons = float(counts.sum(axis=(1, 2)).mean()) / 0.8
    axis = np.arange(32) - 15.5
    probe = np.exp(-np.add.outer(axis**2, axis**2) / 40).astype(complex)
    probe *= np.sqrt(photons / (abs(probe) ** 2).sum())
    x, y = rng.uniform(20, 60, (2, 40))

    def made(dose: float | None, patterns: NDArray[Any] = counts) -> Scan:
        return prepare_scan(RawData(x, y, None, None, patterns, probe, None, nphotons=dose))

    both = made(photons)
    assert both.record.domain == "counts"
    assert "the power of the probe and the stated dose" in both.record.reason
    assert doubts(both) == []
    # The probe alone may fit by chance: amplitude as before, and a warning with the flag.
    one = made(None)
    assert one.record.domain == "amplitude"
    assert "--measurement-domain counts" in doubts(one)[0]
    root = made(photons, np.sqrt(counts))
    assert root.record.domain == "amplitude"
    assert doubts(root) == []


@pytest.mark.parametrize("seed", [100, 103, 106])
@pytest.mark.parametrize(
    ("form", "wrong"), [("flat", "amplitude"), ("amplitude", "counts"), (None, "amplitude")]
)
def test_a_flag_against_the_evidence_is_reported(form: str | None, wrong: str, seed: int) -> None:
    scan = scan_of(seed, form, dose=True, domain=wrong)
    assert scan.record.domain == wrong
    (line,) = doubts(scan)
    right = "amplitude" if wrong == "counts" else "counts"
    assert f"--measurement-domain {right}" in line


@pytest.mark.parametrize("seed", [100, 101, 105])
def test_a_file_that_states_the_wrong_kind_is_doubted(seed: int) -> None:
    arrays = simulate(honest_options(seed))
    root = np.sqrt(arrays["diff3d"])
    raw = RawData(
        arrays["xcoords"], arrays["ycoords"], None, None, root, arrays["probeGuess"], None,
        metadata={"measurement_domain": "counts"},
    )  # fmt: skip
    assert "--measurement-domain amplitude" in doubts(prepare_scan(raw))[0]
