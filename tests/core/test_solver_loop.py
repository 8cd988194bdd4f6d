"""Facts about the reconstruction loop, on the plain numbers of tests/plain_solver.py."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from plain_solver import BOUND, COUNT, GAIN, MEASURED, Numbers, Scan

from ptycho.process.progress import Phase, Progress
from ptycho.solver import schedule
from ptycho.solver.loop import Solution, solve, unchanged
from ptycho.solver.options import RefineOptions
from ptycho.solver.primitives import Sums
from ptycho.solver.refinement import accelerated_steps, fit_probe, refine, refine_shown

EXACT = 1e-12
"""Sums in another order."""
EVERYTHING = RefineOptions(14, probe=True, positions=True, frames=True, tv=0.01, start="flat")


def watched(log: list[Sums]) -> Callable[[Sums], Sums]:
    """Return a reduction that notes what passes."""

    def reduce(sums: Sums) -> Sums:
        log.append(dict(sums))
        return sums

    return reduce


def run(options: RefineOptions, scan: Scan, **words: Any) -> Solution:
    return solve(Numbers(), scan, 1.0, options, options.subset_counts(scan.subsets), **words)


# --- updates and their order ---


def written_out(
    counts: Sequence[int], most_momentum: float = 1.0, tv: float = 0.0, *, restarts: bool = True
) -> tuple[float, float]:
    """Return the last two objects of plain updates, spelled out."""
    obj, previous, update = 1.0, 1.0, 0
    for count in counts:
        for subset in range(count):
            seen = MEASURED[subset::count]
            leading = obj + min(update / (update + 3), most_momentum) * (obj - previous)
            step = sum(2 * (2 * leading - a) for a in seen) / (4 * len(seen) * BOUND)
            new = leading - (1 + GAIN / count) * step
            update = 0 if restarts and step * (new - obj) > 0 else update + 1
            previous, obj = obj, new
        obj -= (1 + GAIN / count) * tv * obj
    return obj, previous


@pytest.mark.parametrize("n_steps", [0, 1, 2, 9])
def test_plain_updates_are_the_written_out_ones(n_steps: int) -> None:
    seen: list[int] = []
    found = accelerated_steps(Numbers(), 1.0, Scan(), 4.0 * COUNT, n_steps, seen.append)
    assert found == pytest.approx(written_out([1] * n_steps), rel=EXACT)
    assert seen == list(range(n_steps))
    if n_steps > 2:
        assert found != pytest.approx(written_out([1] * n_steps, most_momentum=0.0), rel=1e-6)


def test_subsets_follow_the_schedule_and_bound_the_momentum(monkeypatch: pytest.MonkeyPatch) -> None:
    # A momentum that begins anew would stay below the bound.
    monkeypatch.setattr(Numbers, "uphill", lambda *_: False)
    scan = Scan()
    found = accelerated_steps(Numbers(), 1.0, scan, 4.0 * COUNT, 10, subsets=8)
    counts = [8, 8, 8, 8, 4, 4, 2, 2, 1, 1]
    assert scan.asked == [(subset, count) for count in counts for subset in range(count)]
    expected = written_out(counts, schedule.SUBSET_MOMENTUM, restarts=False)
    assert found == pytest.approx(expected, rel=EXACT)
    assert found != pytest.approx(written_out(counts, restarts=False), rel=1e-9)


def test_the_momentum_begins_anew_where_it_runs_uphill() -> None:
    found = accelerated_steps(Numbers(), 1.0, Scan(), 4.0 * COUNT, 12)
    assert found == pytest.approx(written_out([1] * 12), rel=EXACT)
    assert found != pytest.approx(written_out([1] * 12, restarts=False), rel=1e-6)


def test_smoothing_moves_the_object_once_an_iteration_and_leaves_its_momentum() -> None:
    found = solve(Numbers(), Scan(), 1.0, RefineOptions(6, tv=0.1), [2, 2, 1, 1, 1, 1])
    expected = written_out([2, 2, 1, 1, 1, 1], schedule.SUBSET_MOMENTUM, tv=0.1)
    assert (found.obj, found.previous) == pytest.approx(expected, rel=EXACT)


def test_the_misfit_is_that_before_each_iteration() -> None:
    found = run(RefineOptions(3), Scan(most=1))
    error = sum((2.0 - a) ** 2 for a in MEASURED)
    assert found.misfit[0] == pytest.approx(error / sum(a * a for a in MEASURED), rel=EXACT)
    assert len(found.misfit) == 3


def test_an_iteration_looks_first_then_moves_the_object_then_everything_else_at_once() -> None:
    numbers, scan = Numbers(), Scan()
    solve(numbers, scan, 1.0, EVERYTHING, [1] * 10)
    last = numbers.used[len(numbers.used) - 1 - numbers.used[::-1][1:].index("smoothing") :]
    assert last == ["sums"] * (COUNT // 2) + ["object", "frames", "probe", "smoothing"]
    # The positions are found together first, then each for itself, before anything moves.
    deformed = ["deformation", "positions", "deformed", "deformed"]
    assert scan.log == [*deformed, "positions", "positions"] * 2 + deformed
    assert len(scan.changes) == 10


def test_probe_and_positions_rest_at_first_and_frames_do_not() -> None:
    scan = Scan()
    run(EVERYTHING, scan)
    moved = [set(change) for change in scan.changes]
    rest = schedule.POSITION_REST_STEPS
    assert rest == schedule.PROBE_REST_STEPS
    assert moved[:rest] == [{"frame_gain"}] * rest
    assert moved[rest:] == [{"frame_gain", "probe", "shifts"}] * (EVERYTHING.steps - rest)
    assert abs(sum(scan.shifts)) < 1e-9
    assert sum(scan.frame_gain) / COUNT == pytest.approx(1.0, rel=EXACT)


def test_all_positions_together_do_not_drift() -> None:
    """Their mean belongs to the object; without taking it out the shifts of this scan all grow."""
    scan = Scan()
    found = run(RefineOptions(20, positions=True, start="flat"), scan)
    assert max(scan.shifts) > 0.01
    assert abs(sum(scan.shifts)) < 1e-9
    assert found.obj == pytest.approx(found.previous, rel=0.1)


def test_positions_move_with_their_subset_and_deform_in_whole_iterations() -> None:
    scan = Scan()
    options = RefineOptions(12, positions=True, start="flat")
    counts = options.subset_counts(scan.subsets)
    together = [options.deforming(iteration) for iteration in range(12)]
    assert [index for index, yes in enumerate(together) if yes] == [3, 6, 9]
    assert all(count == 1 for count, yes in zip(counts, together, strict=True) if yes)
    assert max(counts[3:]) > 1
    run(options, scan)
    assert scan.log.count("positions") == sum(counts[3:])
    assert scan.log.count("deformation") == 3


def test_an_affine_refinement_moves_no_position_by_itself() -> None:
    scan, options = Scan(), RefineOptions(12, affine=True, start="flat")
    run(options, scan)
    assert "positions" not in scan.log
    assert scan.log.count("deformation") == 3
    assert abs(sum(scan.shifts)) < 1e-9
    steps = [b - a for a, b in zip(scan.shifts, scan.shifts[1:], strict=False)]
    assert max(steps) == pytest.approx(min(steps), rel=1e-6)


def test_what_rests_is_not_computed() -> None:
    numbers = Numbers()
    solve(numbers, Scan(), 1.0, RefineOptions(9, probe=True, positions=True), [1] * 9)
    each = numbers.wanted[:: COUNT // 2]
    assert [wanted.probe for wanted in each] == [False] * 3 + [True] * 6
    assert [wanted.positions for wanted in each] == [False] * 3 + [True] * 6
    assert [wanted.strains for wanted in each] == [False] * 3 + [True, False, False] * 2
    assert not any(wanted.frames for wanted in each)


def test_a_probe_moves_with_momentum_and_keeps_its_power() -> None:
    scan = Scan()
    log: list[Sums] = []
    run(RefineOptions(6, probe=True, start="flat"), scan, reduce=watched(log))
    probe = previous = 2.0
    for sums, change in zip(log[-3:], scan.changes, strict=True):
        step = schedule.PROBE_STEP * sums["probe_gradient"] / sums["object_power"]
        moved = probe - step + schedule.PROBE_MOMENTUM * (probe - previous)
        probe, previous = 0.5 * moved + 0.5 * 2.0, probe
        assert change["probe"] == pytest.approx(probe, rel=EXACT)


def test_illumination_is_computed_once_for_each_subset_until_something_moves() -> None:
    def asked(options: RefineOptions, counts: Sequence[int], **words: Any) -> list[bool]:
        numbers = Numbers()
        solve(numbers, Scan(), 1.0, options, counts, **words)
        # The first chunk of every update.
        lengths = [COUNT // count // 2 for count in counts for _ in range(count)]
        return [numbers.wanted[sum(lengths[:k])].illumination for k in range(len(lengths))]

    assert asked(RefineOptions(4), [2, 2, 1, 1]) == [True, True, False, False, True, False]
    known = asked(RefineOptions(4), [2, 2, 1, 1], illumination=4.0 * COUNT)
    assert known == [True, True, False, False, False, False]
    probe = asked(RefineOptions(6, probe=True), [1] * 6)
    assert probe == [True, False, False, False, True, True]


def test_nothing_is_differentiated() -> None:
    numbers = Numbers()
    accelerated_steps(numbers, 1.0, Scan(), 128.0, 1)
    assert numbers.constants == [1.0, 128.0]


# --- the end ---


def test_a_refinement_ends_when_the_misfit_no_longer_falls(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[int] = []
    scan, options = Scan(most=1), RefineOptions(40)
    misfit = refine(Numbers(), scan, 1.0, options, on_step=lambda index, _: done.append(index)).misfit
    later = misfit[schedule.CONVERGED_STEPS :]
    falls = [new < old * (1 - schedule.CONVERGED) for old, new in zip(misfit, later, strict=False)]
    assert falls == [True] * (len(falls) - 1) + [False]
    assert done == list(range(len(misfit)))
    assert len(refine(Numbers(), scan, 1.0, RefineOptions(schedule.CONVERGED_STEPS)).misfit) == 10
    monkeypatch.setattr(schedule, "has_converged", lambda misfit: False)
    assert len(refine(Numbers(), scan, 1.0, options).misfit) == 40


def test_only_whole_iterations_tell_that_the_misfit_no_longer_falls() -> None:
    counts = [2] * 30 + [1] * 30
    found = solve(Numbers(), Scan(), 1.0, RefineOptions(60), counts)
    assert len(found.misfit) == 30 + schedule.CONVERGED_STEPS + 1


def test_plain_updates_watch_nothing_and_never_end_early() -> None:
    numbers, done = Numbers(), []
    accelerated_steps(numbers, 1.0, Scan(), 128.0, 50, done.append)
    assert len(done) == 50
    assert not any(wanted.misfit for wanted in numbers.wanted)


class Shown(Progress):
    """Keeps what it is shown."""

    def __init__(self) -> None:
        self.lines: list[Any] = []

    def phase(self, name: str, total: int) -> Phase:
        self.lines.append((name, total))
        shown = self

        class _Phase(Phase):
            def update(self, done: int, **values: Any) -> None:
                shown.lines.append((done, sorted(values)))

            def ended(self, why: str) -> None:
                shown.lines.append(why)

        return _Phase()


def test_a_shown_refinement_shows_every_iteration_and_why_it_ended() -> None:
    shown = Shown()
    found = refine_shown(Numbers(), Scan(most=1), 1.0, RefineOptions(40), shown)
    count = len(found.misfit)
    assert shown.lines[0] == ("refining", 40)
    assert shown.lines[1:-1] == [(done + 1, ["misfit"]) for done in range(count)]
    assert shown.lines[-1] == f"converged after {count}"


def test_a_probe_is_fitted_with_an_object_that_starts_flat() -> None:
    shown, scan = Shown(), Scan()
    assert fit_probe(Numbers(), scan, 1.0, shown) == scan.probe
    assert shown.lines[0] == ("fitting probe", schedule.PROBE_REFINE_STEPS)
    assert {name for change in scan.changes for name in change} == {"probe"}
    assert scan.asked[:3] == [(0, 8), (1, 8), (2, 8)]


# --- several processes ---

UPDATE_SUMS = {"gradient", "error", "energy", "illumination"}


def test_every_sum_over_patterns_passes_the_reduction() -> None:
    log: list[Sums] = []
    run(EVERYTHING, Scan(), reduce=watched(log))
    # One for the update and one for the means of what moved, in every iteration, and one where positions
    # deform together.
    deforming = sum(EVERYTHING.deforming(iteration) for iteration in range(EVERYTHING.steps))
    assert len(log) == 2 * EVERYTHING.steps + deforming
    assert [set(sums) for sums in log].count({"deformation"}) == deforming == 3
    assert set(log[0]) == {*UPDATE_SUMS, "patterns"}
    assert set(log[1]) == {"factors"}
    assert set(log[-2]) == {*UPDATE_SUMS, "patterns", "probe_gradient", "object_power", "curvature"}
    assert set(log[-1]) == {"steps", "factors"}
    log.clear()
    accelerated_steps(Numbers(), 1.0, Scan(), 128.0, 3, reduce=watched(log))
    assert [set(sums) for sums in log] == [{"gradient"}] * 3


def two_processes(options: RefineOptions, lost: str = "") -> tuple[list[Solution], list[Scan]]:
    """Run two loops side by side, each with half the patterns, that add their sums but for a lost one."""
    scans = [Scan([j for j in range(COUNT) if (j // 8) % 2 == half]) for half in (0, 1)]
    barrier, box = threading.Barrier(2, timeout=20), [{}, {}]
    found: list[Any] = [None, None]

    def work(half: int) -> None:
        def reduce(sums: Sums) -> Sums:
            box[half] = sums
            barrier.wait()
            both = {name: value + box[1 - half][name] for name, value in sums.items()}
            barrier.wait()
            return both | ({lost: sums[lost]} if lost in sums else {})

        found[half] = run(options, scans[half], reduce=reduce)

    threads = [threading.Thread(target=work, args=(half,)) for half in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found, scans


def described(found: Solution, scan: Scan) -> list[float]:
    """Return all that both processes must agree on, then what one process knows of its patterns."""
    return [found.obj, found.previous, scan.probe, *found.misfit]


def difference(options: RefineOptions, lost: str = "") -> float:
    """Return the largest relative difference between two processes and one."""
    whole = Scan()
    alone = run(options, whole)
    found, scans = two_processes(options, lost)
    worst = 0.0
    for one, scan in zip(found, scans, strict=True):
        pairs = [*zip(described(one, scan), described(alone, whole), strict=True)]
        for name in ("shifts", "frame_gain"):
            each = getattr(whole, name)
            pairs += zip(getattr(scan, name), [each[j] for j in scan.own], strict=True)
        worst = max(worst, *(abs(a - b) / max(abs(b), 1e-3) for a, b in pairs))
    return worst


AFFINE = RefineOptions(12, affine=True, start="flat")


@pytest.mark.parametrize(
    "options", [RefineOptions(12, start="flat"), EVERYTHING, AFFINE], ids=["object", "all", "affine"]
)
def test_two_processes_find_what_one_finds(options: RefineOptions) -> None:
    assert difference(options) < 1e-9


@pytest.mark.parametrize(
    "lost",
    [
        *sorted(UPDATE_SUMS),
        "patterns",
        "probe_gradient",
        "object_power",
        "curvature",
        "steps",
        "factors",
        "deformation",
        "field",
    ],
)
def test_a_sum_that_is_not_added_is_noticed(lost: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # At its usual size the ridge is a thousandth of what it is added to.
    monkeypatch.setattr(schedule, "POSITION_RIDGE", 1.0)
    monkeypatch.setattr(schedule, "has_converged", lambda misfit: False)
    assert difference(EVERYTHING) < 1e-9
    assert difference(EVERYTHING, lost) > 1e-6


VARYING = RefineOptions(14, probe=True, probe_variation=1, start="flat")


@pytest.mark.parametrize(("lost", "noticed"), [("", False), ("varied", True)])
def test_processes_share_the_variation_of_the_probe(
    lost: str, noticed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedule, "has_converged", lambda misfit: False)
    assert (difference(VARYING, lost) > 1e-6) == noticed


def test_a_probe_varies_once_the_object_is_there() -> None:
    scan, backend = Scan(), Numbers()
    solve(backend, scan, 1.0, VARYING, [1] * VARYING.steps)
    pieces = len(backend.wanted) // VARYING.steps
    asked = [wanted.variation for wanted in backend.wanted[::pieces]]
    rest = schedule.VARIATION_REST_STEPS
    assert asked == [False] * rest + [True] * (VARYING.steps - rest)
    assert scan.log.count("variation") == 1


def test_a_search_for_modes_is_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr(schedule, "has_converged", lambda misfit: bool(seen.append(len(misfit))))
    run(VARYING, Scan())
    assert seen == [0] * (schedule.VARIATION_REST_STEPS + VARYING.search_steps + 1) + [1, 2, 3, 4]


def test_one_process_adds_nothing() -> None:
    sums = {"gradient": 1.0}
    assert unchanged(sums) is sums
