r"""The reconstruction loop: preconditioned, accelerated gradient descent with ordered subsets.

It minimises the amplitude least squares (eq. 7a) or the Poisson likelihood (eq. 7c) of all patterns over the
object and, on request, over the probe modes, the positions, one intensity factor per frame and the
background of the detector. Equations are those of specs/physics.md. In the notation of a paper::

    O, O' = start
    for every iteration k
        for every subset B_s of the patterns                                   eq. 19
            X = O + beta (O - O')                     Nesterov momentum        eq. 11
            g = sum over B_s of P* chi(X)             gradient                 eq. 9, 17
            W = sum over B_s of |P|^2                 illumination             eq. 8
            O, O' = X - g / (W + eta max W), O        preconditioned step      eq. 10
            O     *= exp(i slow part of its phase)    and what it falls short  eq. 24
            no momentum where it runs uphill
        positions  += least-squares displacement      after they rested        eq. 16
        positions, O deform together                  now and then             eq. 23
        frame gain *= least-squares factor            with momentum            eq. 21
        P          -= gamma h / max |O|^2             with heavy-ball momentum eq. 13, 14
        b          += mean excess, weighted, smooth   never below 0            eq. 25
        P_j        = P + sum_k c_jk V_k               where the probe changes  eq. 26
        O          -= tau grad TV(O)                  as far in slow phases    eq. 24
        stop if the misfit of eq. 7a no longer falls

How it relates to other methods:

ePIE and rPIE take one pattern after the other, in random order, and correct the object at once. Their update
is the gradient of that pattern over max |P|^2 (ePIE) or over (1 - a) |P|^2 + a max |P|^2 (rPIE). The
denominator of eq. 10 is that of rPIE for all patterns of a subset at once: with one pattern in a subset,
without momentum, and with a = eta / (1 + eta), both steps are the same but for the factor 1 + eta. A step
with many patterns does not depend on their order and runs in parallel; momentum and subsets make up for the
more numerous updates of a pattern-by-pattern method.

LSQ-ML finds the length of each step by least squares, in a small system for every pattern. Here the
preconditioner bounds the curvature, so that a step of fixed length is safe, and momentum takes the place of
the line search. Only positions and frame factors, a few numbers for each pattern, are solved for by least
squares.

The loop decides; a backend (``ptycho.solver.primitives``) computes. All sums over patterns pass ``reduce``,
where processes that hold a part of the patterns each add up theirs: once per update, and once more in an
iteration that moves positions or frame factors, whose means over the scan depend on those sums.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from ptycho.solver import schedule
from ptycho.solver.options import RefineOptions
from ptycho.solver.primitives import Array, Chunk, Patterns, PerPattern, Primitives, Reduce, Sums, Wanted


def unchanged(sums: Sums) -> Sums:
    """Return the sums of the one process that holds all patterns."""
    return sums


class Solution(NamedTuple):
    """What the loop found."""

    obj: Array  # complex (H, W), the last iterate [transmission]
    previous: Array  # the one before, so that momentum can go on
    misfit: list[float]  # relative to the measured energy (eq. 7a) in every iteration, where it was watched


def solve(
    backend: Primitives,
    patterns: Patterns | Iterable[Chunk],
    obj: Array,
    options: RefineOptions,
    counts: Sequence[int],
    *,
    illumination: Array = None,
    watched: bool = True,
    on_iteration: Callable[[int, float | None], None] | None = None,
    reduce: Reduce = unchanged,
    least_gain: float = 1.0,
) -> Solution:
    """Run the loop from an object, complex (H, W) [transmission]; nothing of it is differentiated.

    ``counts`` are the subsets of every iteration. ``patterns`` hold the refined probe, positions and
    intensities afterwards. ``illumination``, real (H, W) [photons / pixel], is that of the whole scan where
    it is known. Where the misfit is ``watched``, the loop stops when it no longer falls. ``on_iteration`` is
    called with index and misfit of each finished iteration; ``reduce`` adds the sums of all processes. Slow
    phases are taken further where the canvas needs a gain of ``least_gain`` (eq. 24).
    """
    obj = backend.constant(obj)
    known = {} if illumination is None else {(0, 1): backend.constant(illumination)}
    moved = _Object(backend, obj, known, max(counts, default=1), least_gain, options.tv)
    companions = _Companions(backend, patterns, options, reduce)
    misfit: list[float] = []
    whole = 0
    for iteration, count in enumerate(counts):
        moving, deforming = options.moving(iteration), options.deforming(iteration)
        companions.prepare(moving)
        asked = Wanted(options.likelihood, misfit=watched, strains=deforming, **dict.fromkeys(moving, True))
        totals: Sums = {}
        found: list[PerPattern] = []
        for subset in range(count):
            leading = moved.leading()
            wanted = asked._replace(illumination=(subset, count) not in known)
            part = patterns if count == 1 else patterns.part(subset, count)
            told: list[PerPattern] = []
            raw, first = _visit(backend, part, leading, wanted, told)
            sums = reduce(raw)
            moved.step(leading, sums, subset, count, first, iteration)
            if "positions" in moving:
                companions.step_positions(sums, told, deforming=deforming)
            found += told
            add_sums(totals, sums)
        if moving:
            moved.obj, moved.previous = companions.move(moving, totals, found, (moved.obj, moved.previous))
            if moving != {"background"}:
                known.clear()
        if options.tv:
            moved.smooth()
        if watched:
            error, energy = float(totals["error"]), float(totals["energy"])
            misfit.append(error / energy if energy > 0 else 0.0)  # 0 over no photon at all
        if on_iteration is not None:
            on_iteration(iteration, misfit[-1] if watched else None)
        # Subsets differ by their noise: only iterations in one piece tell whether the misfit still falls.
        whole = 0 if options.searching(iteration) else whole + (count == 1)
        if schedule.has_converged(misfit[len(misfit) - whole :]):
            break
    return Solution(moved.obj, moved.previous, misfit)


class _Object:
    """The object on its way: its last two iterates, the momentum, and what its steps need."""

    def __init__(
        self,
        backend: Primitives,
        obj: Array,
        known: dict[tuple[int, int], Array],
        most: int,
        least_gain: float,
        tv: float,
    ) -> None:
        self.backend, self.obj, self.previous = backend, obj, obj
        self.known, self.most, self.least_gain, self.tv = known, most, least_gain, tv
        # illumination by subset and their number; most of an iteration
        self.update: Any = 0
        self.gains: dict[tuple[int, bool], tuple[Array, Array]] = {}  # of a step, and of smoothing
        self.slow: Any = None
        self.last: tuple[Array, Array] = (None, None)  # illumination of the last step, gain of smoothing

    def leading(self) -> Array:
        """Return the object ahead by its momentum (eq. 11)."""
        return self.obj + schedule.subset_momentum(self.update, self.most) * (self.obj - self.previous)

    def step(self, leading: Array, sums: Sums, subset: int, count: int, chunk: Chunk, iteration: int) -> None:
        """Take the step that the sums of a subset ask for; ``chunk`` is one of its chunks."""
        backend = self.backend
        # What subsets disagree on is taken further too, and grows from iteration to iteration.
        further = count == 1 or iteration < schedule.SUBSET_GAIN_ITERATIONS
        if (count, further) not in self.gains:
            least = self.least_gain if further else math.inf
            wanted = (0.0, self.tv / schedule.TV_SMOOTHING) if self.tv else (0.0,)
            found = [backend.phase_gain(self.obj, chunk, count, least, stiffness) for stiffness in wanted]
            self.gains[count, further] = found[0], found[-1]
        if "illumination" in sums:
            self.known[subset, count] = sums.pop("illumination")  # eq. 8
        light = self.known[subset, count]
        step = backend.preconditioned(sums.pop("gradient"), light)  # eq. 10
        # Subsets of a noisy scan turn each other's steps back; that tells nothing about the gain.
        slow = self.slow if count == 1 else None
        gain, of_smoothing = self.gains[count, further]
        self.last = light, of_smoothing
        new, slow = backend.advanced(leading, step, light, gain, slow)  # eq. 24
        self.slow = slow if count == 1 else self.slow
        # A compiled backend knows only later whether it ran uphill, so this is no branch.
        self.update = (self.update + 1) * (1 - backend.uphill(step, new, self.obj))
        self.obj, self.previous = new, self.obj

    def smooth(self) -> None:
        """Lower the total variation. What it takes from slow phases is taken as far as what the patterns ask
        for, so that no gain decides where both are level, and no further than to nothing (eq. 24)."""
        step = self.tv * self.backend.total_variation_gradient(self.obj)
        self.obj, _ = self.backend.advanced(self.obj, step, *self.last, None)


def add_sums(totals: Sums, sums: Sums) -> None:
    """Add sums to the totals of the same names."""
    for name, value in sums.items():
        totals[name] = totals[name] + value if name in totals else value


def _visit(
    backend: Primitives, part: Iterable[Chunk], obj: Array, wanted: Wanted, found: list[PerPattern]
) -> tuple[Sums, Chunk]:
    """Go once through some patterns; return their sums and the first chunk, and append what is told of each
    pattern."""
    totals: Sums = {}
    first: Chunk = None
    for chunk in part:
        first = chunk if first is None else first
        sums, per_pattern = backend.chunk_sums(obj, chunk, wanted)
        add_sums(totals, sums)
        found.append(per_pattern)
    return totals, first


class _Companions:
    """What moves beside the object: probe modes, positions, frame factors and background."""

    def __init__(
        self, backend: Primitives, patterns: Patterns, options: RefineOptions, reduce: Reduce
    ) -> None:
        self.backend, self.patterns, self.reduce = backend, patterns, reduce
        self.affine, self.variation = options.affine, (options.probe_variation, options.search_steps)
        self.varies = False
        self.steps: Array = 0.0
        self.deformation: Any = None
        if options.probe:
            self.start = self.previous_probe = backend.constant(patterns.probe)
        if options.frames:
            self.previous_gain = backend.constant(patterns.frame_gain)

    def prepare(self, moving: frozenset[str]) -> None:
        """Let the probe change from pattern to pattern from the first iteration in which it may."""
        if "variation" in moving and not self.varies:
            self.patterns.start_variation(*self.variation)
            self.varies = True

    def step_positions(self, sums: Sums, found: list[PerPattern], *, deforming: bool) -> None:
        """Find out how far the positions of an update are to move (eq. 16), all together at first where they
        deform (eq. 23); they move at the end of the iteration."""
        patterns = self.patterns
        if deforming:
            asked = self.reduce(patterns.deformation_sums(found, affine=self.affine))
            self.deformation, self.field = patterns.deformation(asked)
        if not self.affine:
            ridge = schedule.POSITION_RIDGE * sums["curvature"] / sums["patterns"]
            limit = schedule.POSITION_LIMIT_PX
            self.steps = self.steps + patterns.position_steps(found, ridge, limit, self.deformation)

    def move(
        self, moving: frozenset[str], sums: Sums, found: list[PerPattern], objects: tuple[Array, Array]
    ) -> tuple[Array, Array]:
        """Move by what an iteration found, all from the state it was found for; return the objects, which a
        deformation takes along."""
        changed = {}
        if moving & {"positions", "frames"}:
            more, objects = self._moved_patterns(moving, sums, found, objects)
            changed |= more
        if "probe" in moving:
            changed["probe"] = self._moved_probe(sums, found, varying="variation" in moving)
        if "background" in moving:
            changed["background"] = self.patterns.next_background(sums)
        self.patterns.change(**changed)
        return objects

    def _moved_patterns(
        self, moving: frozenset[str], sums: Sums, found: list[PerPattern], objects: tuple[Array, Array]
    ) -> tuple[dict[str, Array], tuple[Array, Array]]:
        """Return new positions (eq. 16, 23), frame factors (eq. 21) and objects."""
        backend, patterns, count = self.backend, self.patterns, sums["patterns"]
        shifts, gain, added = patterns.shifts, patterns.frame_gain, {}
        if "positions" in moving and not self.affine:
            added["steps"] = backend.pattern_sum(self.steps)
        if self.deformation is not None:
            added["field"] = backend.pattern_sum(self.field)
        if "frames" in moving:
            new = backend.frame_factors(found, gain, self.previous_gain, schedule.FRAME_MOMENTUM)
            added["factors"] = backend.pattern_sum(new)
        added, changed = self.reduce(added), {}
        if "steps" in added:
            # All positions together may drift; that is the object's freedom, not theirs.
            changed["shifts"] = shifts = shifts + self.steps - added["steps"] / count
        if "field" in added:
            offset = added["field"] / count
            changed["shifts"] = shifts + self.field - offset
            objects = tuple(patterns.deformed(obj, self.deformation, offset) for obj in objects)
        self.steps, self.deformation = 0.0, None
        if "frames" in moving:
            mean = float(added["factors"]) / float(count)
            self.previous_gain, changed["frame_gain"] = gain, new / (mean if mean > 0 else 1.0)
        return changed, objects

    def _moved_probe(self, sums: Sums, found: list[PerPattern], *, varying: bool) -> Array:
        """Return the next probe (eq. 14), the mean one where it changes (eq. 26)."""
        probe = self.patterns.probe
        step = self.backend.probe_step(sums["probe_gradient"], sums["object_power"])
        momentum = schedule.PROBE_MOMENTUM * (probe - self.previous_probe)
        self.previous_probe = probe
        # Object and probe share one scale; it stays with the probe that came in.
        new = probe - schedule.PROBE_STEP * step + momentum
        if not varying:
            return self.backend.same_power(new, self.start)
        moments = self.reduce(self.patterns.vary(sums, found))
        new, self.previous_probe = self.patterns.settle(moments, sums["patterns"], new, probe, self.start)
        return new
