"""Facts about the photon limit of simulated scans (eq. 30): its information is that of their counts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from judges import random_complex

from ptycho.errors import ConfigError
from ptycho.simulation.limit import scan_score, simulated_limit
from ptycho.simulation.probes import refocus, rim_frequency
from ptycho.simulation.simulate import SimulationOptions, expected_counts, simulate

OPTIONS = SimulationOptions(
    n_px=16, n_y=6, n_x=6, step_px=2, probe_diameter_px=7, defocus_waves=0.3, photons=1e5
)
KINDS: dict[str, dict[str, Any]] = {
    "far field": {},
    "whole pixels": {"integer_positions": True},
    "near field": {"propagation": "near", "fresnel_number": 0.2},
    "modes and background": {"n_modes": 2, "background_counts": 3.0},
    "fly scan": {"fly_scan_px": 1.5},
    "parts of pixels": {"detector_upsampling": 2},
    "wide probe": {"detector_upsampling": 2, "probe_window": 2},
    "drifting probe": {"probe_drift_waves": 0.6},
    "wrong stored probe": {"probe_error_waves": 0.4},
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_information_along_a_change_is_that_of_the_expected_counts(kind: str) -> None:
    """sum (dI)^2 / I, from counts of the simulator, whose differences are exact: they are quadratic."""
    options = replace(OPTIONS, **KINDS[kind])
    arrays = simulate(options)
    obj = arrays["objectGuess"].astype(np.complex128)
    change = 0.1 * random_complex(np.random.default_rng(1), *obj.shape)
    positions = np.stack([arrays["ycoords"], arrays["xcoords"]], axis=1)
    probe = arrays.get("probe_true", arrays["probeGuess"]).astype(np.complex128)
    probe = probe.reshape(-1, *probe.shape[-2:])
    information = 0.0
    for index in range(len(positions)):
        used = probe
        if options.probe_drift_waves:
            rim = rim_frequency(options.diameter_px, options.defocus_waves)
            used = refocus(probe, options.probe_drift_waves * ((index + 0.5) / len(positions) - 0.5), rim)
        how = (options.fresnel_number, options.detector_upsampling, options.fly_scan_px, options.probe_window)
        middle, after, before = (
            expected_counts(part, used, positions[index : index + 1], *how)
            for part in (obj, obj + change, obj - change)
        )
        information += (((after - before) / 2) ** 2 / (middle + options.background_counts + 1e-8)).sum()
    found = np.vdot(change, scan_score(options, arrays)(change, None)).real
    assert found == pytest.approx(information, rel=1e-3)


def test_the_limit_falls_with_the_root_of_the_dose_and_stands_a_little_above_its_simple_form() -> None:
    found = {dose: simulated_limit(o := replace(OPTIONS, photons=dose), simulate(o)) for dose in (1e4, 1e6)}
    assert found[1e4].simple == pytest.approx(10 * found[1e6].simple, rel=1e-3)
    assert found[1e4].nrmse == pytest.approx(10 * found[1e6].nrmse, rel=0.02)
    for limit in found.values():
        assert 1.0 < limit.nrmse / limit.simple < 1.5
        assert f"NRMSE {limit.nrmse:.4g} " in limit.line()
        assert f"simple form {limit.simple:.4g}," in limit.line()


def test_a_background_raises_the_limit_but_not_its_simple_form() -> None:
    scans = [replace(OPTIONS, background_counts=counts) for counts in (0.0, 20.0)]
    dark, bright = (simulated_limit(options, simulate(options)) for options in scans)
    assert bright.nrmse > 1.3 * dark.nrmse
    assert bright.simple == pytest.approx(dark.simple)


def test_a_fly_scan_in_the_near_field_is_refused() -> None:
    options = replace(OPTIONS, propagation="near", fresnel_number=0.2, fly_scan_px=1.0)
    with pytest.raises(ConfigError, match=r"^simulation: no photon limit .* Leave out --report-limit\.$"):
        simulated_limit(options, {})
