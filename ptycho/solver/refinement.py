"""The uses of the loop: plain updates, a refinement, and the fit of a probe."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from ptycho.process.progress import PROBE_PHASE, Progress
from ptycho.solver.loop import solve, unchanged
from ptycho.solver.options import RefineOptions
from ptycho.solver.primitives import Array, Chunk, Patterns, Primitives, Reduce
from ptycho.solver.schedule import PROBE_REFINE_STEPS, subset_schedule


class Refined(NamedTuple):
    """What a refinement found.

    Attributes
    ----------
    obj : complex array, shape (H, W)
        Object [transmission].
    probe : complex array, shape (P, N, N)
        Probe modes [sqrt(photons)]; their total power is that of the start.
    misfit : list of float
        Amplitude misfit relative to the measured energy (eq. 7a) in every iteration.
    """

    obj: Array
    probe: Array
    misfit: list[float]


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
    """Run iterations of the object alone (eq. 11), at first on subsets of the patterns (eq. 19).

    Parameters
    ----------
    backend : Primitives
        Arithmetic.
    obj : complex array, shape (H, W)
        Object to start from [transmission].
    chunks : Patterns, or iterable of Chunk
        The scan; read once for every iteration. More than one subset needs ``Patterns``.
    illumination : real array, shape (H, W)
        Illumination [photons / pixel].
    n_steps : int
        Number of iterations.
    on_step : callable, optional
        Called with the index of each finished iteration.
    likelihood : {'amplitude', 'poisson'}
        What the updates descend on.
    subsets : int
        Most subsets of an iteration, from ``ptycho.geometry.batches.most_subsets``.
    reduce : callable
        Adds the sums of all processes.

    Returns
    -------
    obj, previous : complex array, shape (H, W)
        The last two iterates, so that momentum can go on.
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
    on_step: Callable[[int, float], None] | None = None,
    reduce: Reduce = unchanged,
) -> Refined:
    """Refine an object, and on request what is known about the scan, until the misfit no longer falls.

    Parameters
    ----------
    backend : Primitives
        Arithmetic.
    patterns : Patterns
        The scan; it holds the refined probe, positions and intensities afterwards.
    obj : complex array, shape (H, W)
        Object to start from [transmission].
    options : RefineOptions
        Iterations and what is refined.
    on_step : callable, optional
        Called with index and misfit of each finished iteration.
    reduce : callable
        Adds the sums of all processes.

    Returns
    -------
    Refined
        Object, probe and the misfit in every iteration.
    """
    counts = options.subset_counts(patterns.subsets)
    found = solve(backend, patterns, obj, options, counts, on_iteration=on_step, reduce=reduce)
    return Refined(found.obj, patterns.probe, found.misfit)


def refine_shown(
    backend: Primitives,
    patterns: Patterns,
    obj: Array,
    options: RefineOptions,
    progress: Progress,
    name: str = "refining",
) -> Refined:
    """Refine as :func:`refine` does, and show every iteration.

    Parameters
    ----------
    backend : Primitives
        Arithmetic.
    patterns : Patterns
        The scan.
    obj : complex array, shape (H, W)
        Object to start from [transmission].
    options : RefineOptions
        Iterations and what is refined.
    progress : Progress
        Shows the iterations and their misfit.
    name : str
        What the phase is called.

    Returns
    -------
    Refined
        As :func:`refine`.
    """
    with progress.phase(name, options.steps) as phase:
        found = refine(
            backend,
            patterns,
            obj,
            options,
            on_step=lambda index, misfit: phase.update(index + 1, misfit=misfit),
        )
        if len(found.misfit) < options.steps:
            phase.ended(f"converged after {len(found.misfit)}")
    return found


def fit_probe(backend: Primitives, patterns: Patterns, flat: Array, progress: Progress) -> Array:
    """Fit the probe to patterns, together with an object that starts flat.

    Parameters
    ----------
    backend : Primitives
        Arithmetic.
    patterns : Patterns
        Those of ``ptycho.geometry.batches.probe_fit_patterns``.
    flat : complex array, shape (H, W)
        Ones.
    progress : Progress
        Shows the iterations.

    Returns
    -------
    complex array, shape (P, N, N)
        Probe modes [sqrt(photons)], of the power they had.
    """
    options = RefineOptions(PROBE_REFINE_STEPS, probe=True, start="flat")
    return refine_shown(backend, patterns, flat, options, progress, PROBE_PHASE).probe
