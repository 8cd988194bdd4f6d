"""Reconstructions of both backends get the verdict they deserve, and the same one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs import reconstructed as reconstruction_of

from ptycho.data.npz import write_npz
from ptycho.data.scan import Scan
from ptycho.evaluation.verdict import Verdict, judge
from ptycho.files.reader import open_scan
from ptycho.simulation.simulate import SimulationOptions, simulate
from ptycho.solver.options import RefineOptions

BASE: dict[str, Any] = {"n_px": 32, "n_y": 10, "n_x": 10, "step_px": 3.0, "photons": 1e6, "seed": 10}
BACKENDS = ("pytorch", "tensorflow")
FLAT = RefineOptions(60, start="flat")
Arrays = dict[str, Any]


def simulated(**options: Any) -> Arrays:
    return simulate(SimulationOptions(**{**BASE, **options}))


def reconstructed(
    arrays: Arrays, folder: Path, backend: str = "pytorch", refine: RefineOptions | None = None
) -> Verdict:
    """Return the verdict on a reconstruction with the network that comes with the package, or from flat."""
    write_npz(folder / "scan.npz", arrays)
    return verdict_on(open_scan(folder / "scan.npz"), backend, refine)


def verdict_on(scan: Scan, backend: str, refine: RefineOptions | None) -> Verdict:
    found = reconstruction_of(scan, backend, refine, fit_probe=refine is None)
    return judge(found.in_scan(scan))


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "refine"), [("pytorch", None), ("tensorflow", FLAT)])
def test_the_scan_that_comes_with_the_project_is_good(
    backend: str, refine: RefineOptions | None, demo_scan: Path
) -> None:
    found = verdict_on(open_scan(demo_scan), backend, refine)
    assert (found.word, found.reasons) == ("good", ())
    assert 0.9 < found.numbers["noise_ratio"] < 1.2


@pytest.mark.parametrize("photons", [3e2, 1e3, 3e3, 1e4, 1e5, 1e6, 1e7])
def test_honest_scans_are_good_at_every_dose(photons: float, tmp_path: Path) -> None:
    arrays = simulated(photons=photons, seed=21, probe="disc", scan="spiral")
    assert reconstructed(arrays, tmp_path).reasons == ()
    if photons >= 1e4:
        assert reconstructed(arrays, tmp_path, refine=FLAT).reasons == ()


def mirrored(arrays: Arrays) -> Arrays:
    return {**arrays, "xcoords": -arrays["xcoords"]}


def exchanged(arrays: Arrays) -> Arrays:
    return {**arrays, "xcoords": arrays["ycoords"], "ycoords": arrays["xcoords"]}


def wrong_unit(arrays: Arrays) -> Arrays:
    return {**arrays, **{name: 1.3 * arrays[name] for name in ("xcoords", "ycoords")}}


def shaken(arrays: Arrays) -> Arrays:
    moves = np.random.default_rng(0).normal(0, 1 / np.sqrt(2), (2, len(arrays["xcoords"])))
    return {**arrays, "xcoords": arrays["xcoords"] + moves[0], "ycoords": arrays["ycoords"] + moves[1]}


def other_probe(arrays: Arrays) -> Arrays:
    return {**arrays, "probeGuess": simulated(defocus_waves=0.4)["probeGuess"]}


def amplitude_as_counts(arrays: Arrays) -> Arrays:
    roots = np.rint(8 * np.sqrt(arrays["diff3d"])).astype(np.uint16)
    return {**arrays, "diff3d": roots}


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (mirrored, ("failed",)),
        (exchanged, ("failed",)),
        (wrong_unit, ("doubtful", "failed")),
        (shaken, ("doubtful",)),
        (amplitude_as_counts, ("doubtful", "failed")),
        (other_probe, ("doubtful", "failed")),
    ],
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_wrong_scan_is_not_good(backend: str, spoil: Any, words: tuple[str, ...], tmp_path: Path) -> None:
    assert reconstructed(spoil(simulated()), tmp_path, backend, FLAT).word in words


@pytest.mark.parametrize("factor", [0.9, 1.1])
@pytest.mark.parametrize("photons", [3e5, 1e6, 1e7])
def test_positions_of_a_wrong_scale_are_not_good_although_the_probe_takes_part_of_it_up(
    factor: float, photons: float, tmp_path: Path
) -> None:
    arrays = simulated(photons=photons)
    stretched = {name: factor * arrays[name] for name in ("xcoords", "ycoords")}
    found = reconstructed({**arrays, **stretched}, tmp_path)
    assert found.word == "doubtful"
    assert "is not explained" in found.reasons[0]


@pytest.mark.parametrize("spoil", [mirrored, shaken])
def test_a_wrong_scan_is_not_good_with_a_fitted_probe_either(spoil: Any, tmp_path: Path) -> None:
    assert reconstructed(spoil(simulated()), tmp_path).word != "good"


def test_a_phase_that_slipped_is_not_good_and_a_steep_one_that_did_not_is(tmp_path: Path) -> None:
    steep = simulated(n_px=64, step_px=5.0, seed=5, phase_range_rad=8.0)
    slipped = reconstructed(steep, tmp_path)
    assert slipped.word == "doubtful"
    assert "the phase is steep" in slipped.reasons[0]
    assert reconstructed(steep, tmp_path, refine=FLAT).word == "good"


def test_both_backends_find_the_same_numbers(tmp_path: Path) -> None:
    one, two = (reconstructed(simulated(n_modes=2), tmp_path, backend, FLAT) for backend in BACKENDS)
    assert one.word == two.word
    assert one.numbers.keys() == two.numbers.keys()
    for name in ("misfit", "misfit_expected", "noise_ratio", "overlap", "numbers_per_unknown"):
        assert one.numbers[name] == pytest.approx(two.numbers[name], rel=2e-3), name


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_drift_of_the_beam_that_object_and_probe_took_in_is_named(backend: str, tmp_path: Path) -> None:
    """The counts fit as well as those of a steady beam; the object is 5 % off."""
    arrays = simulated(photons=2e6, jitter_px=1.0)
    order = np.arange(100).reshape(10, 10)
    order[1::2] = order[1::2, ::-1]
    arrays.update({name: arrays[name][order.ravel()] for name in ("diff3d", "xcoords", "ycoords")})
    assert reconstructed(arrays, tmp_path, backend).reasons == ()
    share = np.linspace(1.0, 0.75, 100)[:, None, None]
    arrays["diff3d"] = np.random.default_rng(0).binomial(arrays["diff3d"].astype(np.int64), share)
    write_npz(tmp_path / "scan.npz", {**arrays, "diff3d": arrays["diff3d"].astype(np.uint32)})
    found = verdict_on(replace(open_scan(tmp_path / "scan.npz"), findings=()), backend, None)
    (reason,) = found.reasons
    assert reason.startswith("the beam seems to drift by -2")
    assert found.numbers["noise_ratio"] < 1.3
    assert found.numbers["beam_drift"] == pytest.approx(np.log(0.75), abs=0.06)


def test_a_drift_that_the_check_told_is_not_told_twice(tmp_path: Path) -> None:
    arrays = simulated(scan="spiral")
    share = np.linspace(1.0, 0.6, 100)[:, None, None]
    arrays["diff3d"] = np.random.default_rng(0).binomial(arrays["diff3d"].astype(np.int64), share)
    write_npz(tmp_path / "scan.npz", {**arrays, "diff3d": arrays["diff3d"].astype(np.uint32)})
    scan = open_scan(tmp_path / "scan.npz")
    assert [finding.check for finding in scan.findings] == ["beam"]
    told = [reason for reason in verdict_on(scan, "pytorch", None).reasons if "drift by" in reason]
    assert told == [scan.findings[0].message]
