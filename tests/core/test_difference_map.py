"""Facts about the difference map and about when it is tried, without a backend."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from judges import FLOAT64, SmallScan, assert_twin, random_complex, small_scan

from ptycho import physics
from ptycho.data.reconstruction import Fit
from ptycho.evaluation.misfit import (
    TRAPPED_NOISE,
    FitTally,
    noise_misfit,
    stands_far_above_noise,
    tells_few,
)
from ptycho.process.progress import Phase, Progress
from ptycho.solver import difference_map as module
from ptycho.solver import refinement
from ptycho.solver.difference_map import difference_map, escaped
from ptycho.solver.loop import Solution
from ptycho.solver.options import RefineOptions
from ptycho.solver.schedule import MAP_ROUND, MAP_ROUNDS, MAP_TRIAL, STEP_DAMPING


def onto_amplitudes(waves: Any, scan: SmallScan) -> Any:
    """Return the nearest waves that have the measured amplitudes, written out with a plain transform."""
    n_px = waves.shape[-1]
    ramp = np.exp(2j * np.pi * (n_px // 2) * np.arange(n_px) / n_px)
    turned = ramp[:, None] * ramp
    field = np.fft.fft2(waves * turned, norm="ortho")
    root = np.sqrt((np.abs(field) ** 2).sum(axis=1, keepdims=True))
    return np.fft.ifft2(field * scan.amplitude[:, None] / root, norm="ortho") / turned


def test_a_step_is_that_of_elser_with_both_projections() -> None:
    """psi + P_F(2 P_O psi - psi) - P_O psi."""
    scan = small_scan()
    fitting = physics.exit_waves(
        physics.extract_patches(scan.obj, scan.corners_yx, scan.amplitude.shape[-1]), scan.probes
    )
    waves = fitting + 0.1 * random_complex(np.random.default_rng(3), *fitting.shape)
    found, missed = physics.misfit.mapped_waves(waves, fitting, scan.amplitude)
    expected = waves + onto_amplitudes(2 * fitting - waves, scan) - fitting
    # The softened amplitude differs from the plain one by 1e-6 or less.
    assert_twin(expected, found, 1e-5)
    assert_twin(fitting - missed, found, FLOAT64)
    with pytest.raises(AssertionError):
        assert_twin(waves + onto_amplitudes(fitting, scan) - fitting, found, 1e-3)


def test_unmeasured_pixels_leave_the_waves_as_they_are() -> None:
    scan = small_scan()
    nothing = np.full_like(scan.amplitude, -1.0)
    waves = random_complex(np.random.default_rng(0), len(nothing), 1, *nothing.shape[1:])
    assert not physics.misfit.unmatched_waves(waves, nothing).any()
    assert physics.misfit.unmatched_waves(waves, scan.amplitude).any()


class Reference:
    """The primitives that the difference map asks for, in float64."""

    def __init__(self) -> None:
        self.used = 0

    def constant(self, array: Any) -> Any:
        return array

    def mapped(self, obj: Any, chunk: Any, waves: Any, *, illumination: bool) -> tuple[dict[str, Any], Any]:
        self.used += 1
        corners, probes, amplitude = chunk
        fitting = physics.exit_waves(physics.extract_patches(obj, corners, amplitude.shape[-1]), probes)
        waves, missed = physics.misfit.mapped_waves(waves, fitting, amplitude)
        back = (np.conj(probes) * missed).sum(axis=1)
        sums = {"gradient": physics.place_patches(back, corners, obj.shape)}
        if illumination:
            sums["illumination"] = physics.illumination(probes, corners, obj.shape)
        return sums, waves

    def preconditioned(self, gradient: Any, illumination: Any) -> Any:
        return gradient / (illumination + STEP_DAMPING * illumination.max())


class Patterns:
    """A small scan in chunks."""

    subsets = 4

    def __init__(self, scan: SmallScan, *cuts: int) -> None:
        self.scan, self.cuts = scan, cuts
        self.wave_pixels = scan.amplitude.size * scan.probes.shape[-3]
        self.asked: list[tuple[int, int]] = []

    def part(self, index: int, count: int) -> Iterator[Any]:
        self.asked.append((index, count))
        yield from self.scan.chunks(*self.cuts)


def test_the_true_object_stays() -> None:
    scan = small_scan()
    found = difference_map(Reference(), Patterns(scan), scan.obj, 5)
    assert np.abs(found - scan.obj).max() < 1e-4
    moved = difference_map(Reference(), Patterns(scan), scan.obj * np.exp(0.3j * np.eye(*scan.obj.shape)), 5)
    assert np.abs(moved - scan.obj).max() > 1e-2


def test_it_does_not_depend_on_chunks_or_processes() -> None:
    scan = small_scan()
    start = np.ones_like(scan.obj)
    whole = difference_map(Reference(), Patterns(scan), start, 6)
    assert_twin(whole, difference_map(Reference(), Patterns(scan, 3, 11), start, 6), FLOAT64)
    doubled = difference_map(
        Reference(), Patterns(scan), start, 6,
        reduce=lambda sums: {name: 2 * value for name, value in sums.items()},
    )  # fmt: skip
    assert_twin(whole, doubled, FLOAT64)
    wrong = difference_map(
        Reference(), Patterns(scan), start, 6,
        reduce=lambda sums: sums | {"gradient": 2 * sums["gradient"]},
    )  # fmt: skip
    assert np.abs(wrong - whole).max() > 1e-3


@pytest.mark.parametrize(("share", "count"), [(1.0, 1), (0.6, 2), (0.3, 4), (0.01, 4)])
def test_a_subset_is_taken_where_not_all_waves_fit(
    share: float, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    patterns = Patterns(small_scan())
    monkeypatch.setattr(module, "WAVE_PIXELS", int(share * patterns.wave_pixels))
    difference_map(Reference(), patterns, np.ones_like(patterns.scan.obj), 2)
    assert patterns.asked == [(0, count)] * 2


class Noted(Progress):
    def __init__(self) -> None:
        self.phases: list[tuple[str, int]] = []

    def phase(self, name: str, total: int) -> Phase:
        self.phases.append((name, total))
        return Phase()


def rounds(
    monkeypatch: pytest.MonkeyPatch, misfits: list[float], options: RefineOptions, **words: float
) -> tuple[Solution, Solution, list[tuple[str, int]]]:
    """Run ``escaped`` from a misfit of 1 where its plain iterations end at given misfits."""
    left = iter(misfits)
    seen: list[RefineOptions] = []

    def settled(backend: Any, patterns: Any, obj: Any, asked: RefineOptions, *_: Any, **__: Any) -> Solution:
        seen.append(asked)
        return Solution(obj, obj, [next(left)])

    monkeypatch.setattr(refinement, "solve", settled)
    monkeypatch.setattr(module, "difference_map", lambda *_, **__: object())
    found, progress = Solution(object(), None, [1.0]), Noted()
    return found, escaped(Reference(), None, found, options, progress, **words), progress.phases


FLAT, ASKED = RefineOptions(30, start="flat"), RefineOptions(30, start="difference-map")
TRIAL = [("difference map", MAP_TRIAL[0]), ("refining", MAP_TRIAL[1])]
ROUND = [("difference map", MAP_ROUND[0]), ("refining", MAP_ROUND[1])]


def test_a_trial_that_finds_nothing_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    found, best, phases = rounds(monkeypatch, [1.2], FLAT)
    assert best is found
    assert phases == TRIAL


def test_a_little_is_kept_but_no_reason_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    _, best, phases = rounds(monkeypatch, [0.9], FLAT)
    assert best.misfit == [0.9]
    assert phases == TRIAL


def test_rounds_go_on_while_the_misfit_falls(monkeypatch: pytest.MonkeyPatch) -> None:
    _, best, phases = rounds(monkeypatch, [0.5, 0.1, 0.2], FLAT)
    assert best.misfit == [0.1]
    assert phases == TRIAL + 2 * ROUND


def test_who_asks_gets_whole_rounds_and_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    found, best, phases = rounds(monkeypatch, [1.5], ASKED)
    assert best is found
    assert phases == ROUND
    _, best, phases = rounds(monkeypatch, [10.0**-k for k in range(1, 9)], ASKED)
    assert phases == MAP_ROUNDS * ROUND
    assert best.misfit == [10.0**-MAP_ROUNDS]


def test_the_noise_is_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    _, best, phases = rounds(monkeypatch, [0.1], ASKED, noise_misfit=0.1)
    assert best.misfit == [0.1]
    assert phases == ROUND


def test_what_else_is_refined_goes_on_beside_the_better_object(monkeypatch: pytest.MonkeyPatch) -> None:
    options = replace(ASKED, probe=True)
    _, best, phases = rounds(monkeypatch, [0.5, 0.4, 0.3], options)
    assert phases == [*ROUND, *ROUND, ("refining", options.steps)]
    assert best.misfit == [0.3]
    found, best, phases = rounds(monkeypatch, [1.5], options)
    assert best is found
    assert phases == ROUND


def fit_of(excess: float, photons: float | None) -> Fit:
    """Return the fit of patterns of 400 counts per pixel whose misfit is a multiple of the photon noise."""
    tally = FitTally(4, 8, photons)
    predicted = np.full((4, 8, 8), 20.0, np.float32)
    tally.add(np.arange(4), predicted, predicted + np.float32(0.5 * np.sqrt(excess)))
    return tally.result()


def test_far_above_the_noise_is_a_multiple_of_it() -> None:
    assert not stands_far_above_noise(fit_of(0.8 * TRAPPED_NOISE, 1.0))
    assert stands_far_above_noise(fit_of(1.2 * TRAPPED_NOISE, 1.0))
    assert noise_misfit(fit_of(1.0, 1.0)) == pytest.approx(0.25 / 400, rel=0.1)
    # Where nobody knows what a photon is, only the size of the misfit is left.
    assert noise_misfit(fit_of(1.0, None)) == 0.0
    assert stands_far_above_noise(fit_of(1.0, None))
    assert not stands_far_above_noise(fit_of(1e-6, None))


def test_few_numbers_are_fewer_than_four_for_each_unknown() -> None:
    light = np.zeros((50, 50))
    light[5:45, 5:45] = 1.0
    light[0] = 0.01
    assert tells_few(199, 8, light)
    assert not tells_few(201, 8, light)
