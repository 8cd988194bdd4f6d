"""Facts about whose probe a scan is reconstructed with, and about the transmission that the beam decides."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ptycho.data.optics import FileOptions
from ptycho.data.prepare import prepare_scan
from ptycho.data.probe_choice import (
    TrainedProbe,
    choose_probe,
    in_gauge_of,
    network_gain,
    probe_overlap,
    probe_power,
)
from ptycho.data.scan import Scan
from ptycho.raw_data import RawData
from ptycho.simulation.probes import incoherent_modes, refocus, rim_frequency
from ptycho.simulation.simulate import SimulationOptions, make_probe, simulate

TRAINED = SimulationOptions(n_px=32, n_y=4, n_x=4, step_px=3.0, photons=1e6, seed=3)


def scan_of(options: SimulationOptions, *, keep_probe_power: bool = False, through: float = 1.0) -> Scan:
    """Simulate a scan; a filter behind the sample lets the share ``through`` of the photons through."""
    arrays = simulate(options)
    counts = np.random.default_rng(1).binomial(arrays["diff3d"], through)
    raw = RawData(
        arrays["xcoords"], arrays["ycoords"], None, None, counts, arrays["probeGuess"], None, source="scan"
    )
    return prepare_scan(raw, options=FileOptions(keep_probe_power=keep_probe_power))


def trained_on(scan: Scan, *, refined: bool = True) -> TrainedProbe:
    """What a training run leaves that found a probe a little out of focus from where it started."""
    if not refined:
        return TrainedProbe(scan.probe, scan.probe, False, scan.record)
    rim = rim_frequency(TRAINED.diameter_px, TRAINED.defocus_waves)
    found = refocus(scan.probe.astype(complex), 0.3, rim).astype(np.complex64)
    return TrainedProbe(found, scan.probe, True, scan.record)


@pytest.fixture(scope="module")
def scan() -> Scan:
    return scan_of(TRAINED)


def test_the_overlap_does_not_see_phase_scale_and_a_mixing_of_the_modes() -> None:
    modes = incoherent_modes(make_probe(TRAINED)[0], 3, 0.4)
    rng = np.random.default_rng(2)
    turn = np.linalg.qr(rng.normal(size=(3, 3)) + 1j * rng.normal(size=(3, 3)))[0]
    mixed = 0.3 * np.tensordot(turn, modes, axes=1)
    assert probe_overlap(modes, mixed) == pytest.approx(1, abs=1e-12)
    assert probe_overlap(modes[:1], modes[1:2]) == pytest.approx(0, abs=1e-12)
    other = modes[:1] + 0.5j * modes[1:2] * np.sqrt(probe_power(modes[:1]) / probe_power(modes[1:2]))
    assert probe_overlap(modes[:1], other) == pytest.approx(1 / np.sqrt(1.25), abs=1e-12)
    assert probe_overlap(modes, 0 * modes) == 0


def test_the_training_scan_gets_the_probe_of_the_training_in_any_order_and_type(scan: Scan) -> None:
    trained = trained_on(scan)
    raw = scan.raw
    order = np.random.default_rng(0).permutation(raw.n_patterns)
    turned = RawData(
        *(raw.positions_yx_px[order, axis] for axis in (1, 0)),
        None, None, raw.diff3d[order].astype(np.float64), raw.probeGuess, None, source="scan",
    )  # fmt: skip
    for again in (scan, prepare_scan(turned, domain="counts")):
        choice = choose_probe(again, trained)
        np.testing.assert_allclose(choice.probe, trained.probe, rtol=1e-6)
        assert not choice.fit
        assert "trained on this scan" in choice.summary


@pytest.mark.parametrize("photons", [1e6, 1e5])
def test_a_scan_with_the_probe_of_the_start_gets_that_of_the_training_at_its_own_power(
    scan: Scan, photons: float
) -> None:
    trained, other = trained_on(scan), scan_of(replace(TRAINED, seed=5, photons=photons))
    choice = choose_probe(other, trained)
    assert probe_overlap(choice.probe, trained.probe) == pytest.approx(1, abs=1e-6)
    assert probe_power(choice.probe) == pytest.approx(probe_power(other.probe), rel=1e-5)
    assert choice.fit, "equal probes in two files do not make equal beams"
    assert "agrees with the one that the training started from" in choice.summary


@pytest.mark.parametrize(
    "changed",
    [{"defocus_waves": 0.7}, {"probe_diameter_px": 19.0}, {"probe": "disc"}, {"probe_error_waves": 0.3}],
)
@pytest.mark.parametrize("refined", [True, False])
def test_a_scan_with_another_probe_gets_its_own_fitted_first(
    scan: Scan, changed: dict[str, float], refined: bool
) -> None:
    other = scan_of(replace(TRAINED, seed=5, **changed))
    choice = choose_probe(other, trained_on(scan, refined=refined))
    assert choice.probe is other.probe
    assert choice.fit
    assert "the scan's own, fitted to it first (the training had another one" in choice.summary


def test_another_number_of_modes_is_another_probe(scan: Scan) -> None:
    other = scan_of(replace(TRAINED, seed=5, n_modes=2))
    choice = choose_probe(other, trained_on(scan))
    assert choice.probe is other.probe
    assert "it has 2 modes, the training had 1" in choice.summary


def test_files_without_the_start_are_compared_with_the_probe_of_the_training(scan: Scan) -> None:
    old = replace(trained_on(scan), start=None)
    assert not choose_probe(scan, old).fit
    other = scan_of(replace(TRAINED, seed=5))
    assert choose_probe(other, old).probe is other.probe
    same = replace(old, probe=scan.probe)
    assert "agrees with it" in choose_probe(other, same).summary


def test_the_word_of_the_user_wins(scan: Scan) -> None:
    trained, other = trained_on(scan), scan_of(replace(TRAINED, seed=5, defocus_waves=0.7))
    for chosen in (scan, other):
        asked = choose_probe(chosen, trained, fit_probe=True)
        assert asked.fit
        assert asked.probe is chosen.probe
        assert not choose_probe(chosen, trained, fit_probe=False).fit
    assert choose_probe(other, trained, fit_probe=False).probe is other.probe
    assert not choose_probe(other, trained, uses_probe=False).fit
    given = choose_probe(other, trained, given=trained.probe)
    assert given.probe is trained.probe
    assert not given.fit


def test_a_network_that_saw_no_scan_takes_that_of_the_scan(scan: Scan) -> None:
    choice = choose_probe(scan, TrainedProbe(np.zeros((1, 32, 32), np.complex64)))
    assert choice.probe is scan.probe
    assert choice.fit


def test_a_darker_sample_leaves_the_beam_as_it_is_and_darkens_what_a_network_returns(
    scan: Scan,
) -> None:
    trained, dark = trained_on(scan), scan_of(replace(TRAINED, seed=5), through=0.4)
    assert probe_power(in_gauge_of(dark, trained)) == pytest.approx(probe_power(trained.probe), rel=1e-5)
    bright = scan_of(replace(TRAINED, seed=5))
    assert network_gain(scan, trained) == pytest.approx(1, rel=1e-9)
    ratio = network_gain(dark, trained) / network_gain(bright, trained)
    assert ratio == pytest.approx(np.sqrt(0.4), rel=0.01)
    assert network_gain(bright, TrainedProbe(0 * scan.probe)) == 1


def test_the_power_of_the_probe_of_the_file_is_kept_on_request_alone() -> None:
    through = 0.1
    scaled = scan_of(TRAINED, through=through)
    assert probe_power(scaled.probe) == pytest.approx(scaled.record.mean_counts, rel=1e-4)
    assert "the absolute transmission is unknown" in scaled.record.summary()
    kept = scan_of(TRAINED, through=through, keep_probe_power=True)
    assert probe_power(kept.probe) == pytest.approx(TRAINED.photons, rel=1e-4)
    assert "probe kept" in kept.record.summary()
    assert "unknown" not in kept.record.summary()
