"""Objects of strong phase are reconstructed, from flat and by the network of the package."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from masked_scans import nrmse, reconstructed

from ptycho.data.npz import read_npz
from ptycho.evaluation.comparison import laid_on_canvas
from ptycho.evaluation.gauge import solve_gauge
from ptycho.evaluation.phase import PhaseView, shown_phase
from ptycho.files.reader import open_scan
from ptycho.networks.bundle import read_bundle
from ptycho.run import network_object
from ptycho.run.engines import find_model, load_engine
from ptycho.run.outputs import truth_on_canvas
from ptycho.simulation.simulate import SimulationOptions, simulate, write_scan
from ptycho.solver.options import RefineOptions
from ptycho.solver.refinement import accelerated_steps

RANGE_RAD = 10.0
SCAN = SimulationOptions(
    scene="lens", n_px=32, n_y=14, n_x=14, step_px=2.5, photons=1e6, phase_range_rad=RANGE_RAD, seed=1
)
"""Fine steps of a wide body; NRMSE 0.0056 after 60 iterations."""
STRONG = SimulationOptions(
    scene="collage", n_px=64, n_y=22, n_x=22, step_px=5.0, photons=1e4, phase_range_rad=8.0, seed=9
)
"""At its rim 31 iterations leave a spot whose phase is wrong by half a turn."""
WELL = 0.01
PHASE_RAD = 0.03
"""Root mean square of the phase error; photon noise leaves 0.005."""


@pytest.fixture(scope="module")
def scan_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("thick") / "scan.npz"
    write_scan(path, SCAN)
    return path


@pytest.mark.parametrize("backend", ["pytorch", "tensorflow"])
def test_an_object_of_ten_radians_is_found_from_flat_and_shown_unwrapped(
    backend: str, scan_file: Path
) -> None:
    scan = open_scan(scan_file)
    found = reconstructed(load_engine(backend), scan, refine=RefineOptions(60, start="flat"))
    assert nrmse(found, scan_file) < WELL
    # A tenth of the phase has no wraps, so ten times it is the phase that made the patterns.
    thin = simulate(replace(SCAN, phase_range_rad=RANGE_RAD / 10))["objectGuess"]
    np.testing.assert_allclose(
        np.exp(10j * np.angle(thin)), np.exp(1j * np.angle(read_npz(scan_file)["objectGuess"])), atol=1e-4
    )
    true, _ = laid_on_canvas(found, 10 * np.angle(thin), np.ones(thin.shape, bool))
    truth, mask = truth_on_canvas(scan_file, found) or (None, None)
    obj = solve_gauge(found.obj, truth, mask).obj
    shown = shown_phase(obj, mask, mask, found.coverage, PhaseView(unwrap=True))
    error = (shown - true.real)[mask]
    assert np.ptp(true.real[mask]) > 0.8 * RANGE_RAD
    assert np.std(error) < PHASE_RAD
    wrapped = shown_phase(obj, mask, mask, found.coverage, PhaseView())
    assert np.std((wrapped - true.real)[mask]) > 1.0


@pytest.mark.parametrize("backend", ["pytorch", "tensorflow"])
def test_the_network_of_the_package_waits_until_slow_phases_are_at_rest(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "scan.npz"
    write_scan(path, STRONG)
    errors = []
    for rounds in (network_object.MORE_ROUNDS, 0):
        monkeypatch.setattr(network_object, "MORE_ROUNDS", rounds)
        found = reconstructed(load_engine(backend), open_scan(path), fit_probe=False)
        errors.append(nrmse(found, path))
    # 60 Poisson iterations with the best total variation leave 0.072.
    assert errors[0] < 0.07 < 0.12 < errors[1]


@pytest.mark.parametrize(("steps", "goes_on"), [(12, False), (22, True)])
def test_a_network_of_few_steps_keeps_to_them(
    steps: int, goes_on: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, engine, asked = tmp_path / "scan.npz", load_engine("pytorch"), []
    write_scan(path, replace(STRONG, n_px=32, n_y=8, n_x=8))
    shipped = read_bundle(find_model(Path("pretrained")))
    network = engine.from_bundle(replace(shipped, model=replace(shipped.model, unrolled_steps=steps)))

    def counted(*arguments: Any, **options: Any) -> Any:
        asked.append(options)
        return accelerated_steps(*arguments, **options)

    monkeypatch.setattr(network_object, "accelerated_steps", counted)
    reconstructed(engine, open_scan(path), network, fit_probe=False)
    assert bool(asked) == goes_on
