"""The uses of the loop: plain updates, a refinement, and the fit of a probe."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ptycho.process.progress import PROBE_PHASE, Progress
from ptycho.solver.loop import Solution, solve, unchanged
from ptycho.solver.options import RefineOptions
from ptycho.solver.primitives import Array, Chunk, Patterns, Primitives, Reduce
from ptycho.solver.schedule import NETWORK_LEAST_GAIN, PROBE_REFINE_STEPS, subset_schedule


def accelerated_steps(
    backend: Primitives,
    obj: Array,
    chunks: Patterns | Iterable[Chunk],
    illumination: Array,
    n_steps: int,
    on_step: Callable[[int], None] | None = None,
    *,
    likelihood: str = "amplitude",
    subsets: int = 1,
    reduce: Reduce = unchanged,
) -> tuple[Array, Array]:
    """Run iterations of the object alone (eq. 11), at first on subsets of the patterns (eq. 19), and return
    the last two iterates, complex (H, W) [transmission], so that momentum can go on.

    ``chunks`` are read once for every iteration; more than one subset needs ``Patterns``. The illumination
    is real (H, W) [photons / pixel]. ``on_step`` is called with the index of each finished iteration.
    """
    options, counts = RefineOptions(n_steps, likelihood=likelihood), list(subset_schedule(n_steps, subsets))
    done = None if on_step is None else lambda index, _: on_step(index)
    found = solve(
        backend,
        chunks,
        obj,
        options,
        counts,
        illumination=illumination,
        watched=False,
        least_gain=NETWORK_LEAST_GAIN,
        on_iteration=done,
        reduce=reduce,
    )
    return found.obj, found.previous


def refine(
    backend: Primitives,
    patterns: Patterns,
    obj: Array,
    options: RefineOptions,
    *,
    subsets: int | None = None,
    on_step: Callable[[int, float], None] | None = None,
) -> Solution:
    """Refine an object, complex (H, W) [transmission], and on request what is known about the scan, until the
    misfit no longer falls.

    ``patterns`` hold the refined probe, of the total power of the start, positions and intensities
    afterwards; ``subsets`` are the most in one iteration, by default what the scan allows; ``on_step`` is
    called with index and misfit of each finished iteration.
    """
    counts = options.subset_counts(patterns.subsets if subsets is None else subsets)
    return solve(backend, patterns, obj, options, counts, on_iteration=on_step)


def refine_shown(
    backend: Primitives,
    patterns: Patterns,
    obj: Array,
    options: RefineOptions,
    progress: Progress,
    name: str = "refining",
    *,
    subsets: int | None = None,
) -> Solution:
    """Refine as :func:`refine` does, and show every iteration and its misfit in a phase of this name."""
    with progress.phase(name, options.steps) as phase:

        def shown(index: int, misfit: float) -> None:
            phase.update(index + 1, misfit=misfit)

        found = refine(backend, patterns, obj, options, subsets=subsets, on_step=shown)
        if len(found.misfit) < options.steps:
            phase.ended(f"converged after {len(found.misfit)}")
    return found


def fit_probe(backend: Primitives, patterns: Patterns, flat: Array, progress: Progress) -> Array:
    """Fit the probe to patterns, those of ``ptycho.geometry.batches.probe_fit_patterns``, together with an
    object that starts ``flat``, ones (H, W); return its modes (P, N, N) [sqrt(photons)], of the power they
    had."""
    options = RefineOptions(PROBE_REFINE_STEPS, probe=True, start="flat")
    refine_shown(backend, patterns, flat, options, progress, PROBE_PHASE)
    return patterns.probe
