"""A way out of wrong minima: rounds of the difference map and of plain iterations (eq. 27).

Gradient descent ends in the nearest minimum. Where patterns overlap little, hardly more numbers are measured
than are sought, and that minimum is often a wrong one. The difference map keeps the exit waves of all
patterns and leaves whatever does not meet both conditions: the measured amplitudes, and one object behind all
of them. Where noise keeps the two apart it does not settle. So plain iterations end every round, and what
fits better is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ptycho.process.progress import Progress
from ptycho.solver.loop import Solution, add_sums, unchanged
from ptycho.solver.options import RefineOptions
from ptycho.solver.primitives import Array, Patterns, Primitives, Reduce, Sums
from ptycho.solver.refinement import refine_shown
from ptycho.solver.schedule import (
    MAP_ENOUGH,
    MAP_GAIN,
    MAP_ROUND,
    MAP_ROUNDS,
    MAP_TRIAL,
    WAVE_PIXELS,
)


def difference_map(
    backend: Primitives,
    patterns: Patterns,
    obj: Array,
    n_iterations: int,
    *,
    on_iteration: Callable[[int], None] | None = None,
    reduce: Reduce = unchanged,
) -> Array:
    """Return the object, complex (H, W) [transmission], after so many iterations of the difference map.

    The exit waves of all patterns are kept, of a subset where they are more than ``WAVE_PIXELS``.
    ``on_iteration`` is called with the index of each finished iteration; ``reduce`` adds the sums of all
    processes.
    """
    count = 1
    while patterns.wave_pixels > count * WAVE_PIXELS and 2 * count <= patterns.subsets:
        count *= 2
    obj = backend.constant(obj)
    waves: dict[int, Array] = {}
    light: Array = None
    for iteration in range(n_iterations):
        sums: Sums = {}
        for index, chunk in enumerate(patterns.part(0, count)):
            told, waves[index] = backend.mapped(obj, chunk, waves.get(index), illumination=light is None)
            add_sums(sums, told)
        sums = reduce(sums)
        light = sums.get("illumination", light)
        obj = obj - backend.preconditioned(sums["gradient"], light)
        if on_iteration is not None:
            on_iteration(iteration)
    return obj


def escaped(
    backend: Primitives,
    patterns: Patterns,
    found: Solution,
    options: RefineOptions,
    progress: Progress,
    *,
    noise_misfit: float = 0.0,
) -> Solution:
    """Return a solution that fits better than the one ``found`` with these options, or that one.

    Rounds start from it and go on while each finds a much smaller misfit, until it is ``noise_misfit``. The
    first is short unless the difference map was asked for (``options.start``), so that little time is lost
    where it finds nothing. Where probe, positions or frame factors are refined, they go on beside the better
    object; else ``patterns`` stay as they are.
    """
    asked = options.start == "difference-map"
    best = found
    for n_map, n_plain in [*([] if asked else [MAP_TRIAL]), *[MAP_ROUND] * MAP_ROUNDS]:
        if best.misfit[-1] <= max(MAP_ENOUGH, noise_misfit):
            break
        with progress.phase("difference map", n_map) as phase:

            def shown(index: int, phase: object = phase) -> None:
                phase.update(index + 1)

            obj = difference_map(backend, patterns, best.obj, n_map, on_iteration=shown)
        plain = RefineOptions(n_plain, likelihood=options.likelihood, tv=options.tv)
        new = refine_shown(backend, patterns, obj, plain, progress, subsets=1)
        before, best = best.misfit[-1], min(best, new, key=lambda solution: solution.misfit[-1])
        if new.misfit[-1] > MAP_GAIN * before:
            break
    if best is not found and options.companions:
        # They were found beside another object. Variable modes of the probe stay.
        again = replace(options, start="network", probe_variation=0)
        best = refine_shown(backend, patterns, best.obj, again, progress, subsets=1)
    return best
