"""How a scan is best reconstructed, decided by pixels that took no part (eq. 29).

Photons in different pixels are independent: what explains the hidden ones best is nearest to the truth, which
nobody has to know. Some patterns around the middle try what there is to choose from; then the scan is
reconstructed in the best way, with all pixels.

References
----------
Batson and Royer, Noise2Self, ICML 2019.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import count
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ptycho.config.config import ModelConfig
from ptycho.data.chunks import ScanChunks
from ptycho.data.hidden import UNSEEN
from ptycho.data.probe_choice import ProbeChoice
from ptycho.data.scan import PatternStore, Scan
from ptycho.geometry.batches import middle_patterns
from ptycho.process.progress import Progress
from ptycho.run.backend import Backend
from ptycho.run.network_object import averaged, fitted_gain, plain_iterates
from ptycho.run.reconstruction import Select, Selection
from ptycho.run.unseen import CHANCE, HiddenScan, beyond_chance, not_better, percent, standard_error
from ptycho.solver.options import RefineOptions
from ptycho.solver.refinement import refine

Array = Any
SELECTION_PIXELS, SELECTION_PATTERNS = 2**20, 36
"""Detector pixels, of all patterns together, that the choice is made with, and the fewest patterns."""
SEED, HIDDEN = 0, 0
"""Which pixels are hidden: by this seed, this set and the unseen ones. Where the network learned on a scan
only the latter: if it was this one it has seen all others, whatever its seed."""
PLAIN = RefineOptions(60, likelihood="poisson", start="flat")
"""Plain iterations; a trial of a probe takes a third of them."""
WARM = RefineOptions(30, likelihood="poisson")
"""Iterations that go on from the object of a network."""
TRIAL_STEPS, AMPLITUDE_STEPS = 20, 8
"""Iterations of a trial, and those that show what the other likelihood makes of its end."""
CLEARLY = 4.0
"""Standard errors by which a refinement has to beat the network, and total variation none. Hidden pixels say
little of what few photons determine, and there a network that has learned to know objects is often right,
iterations never; nor do they say much of slow phases, which smoothing may pull away."""
LIKELY = 2.0
"""Standard errors by which the amplitude likelihood has to beat that of Poisson, which counts follow."""
DOUBT = 2.0
"""Times by which the weight of a refinement over that of the network is below what hidden pixels alone would
give it (eq. 29b): they are where the light is, and see little of dim places and of slow phases."""
TOLL = 1.0
"""Standard errors that count against a refinement beside such a network, in the mean of both."""
MOST_FACTOR = 1.5
"""Largest factor on the corrections of a network."""
NOT_A_NUMBER = 1e30
"""Deviance of a pattern for an object that is none."""
MOST_TRIALS = 15
"""Trials of one choice with a network of groups and a probe that is not fitted."""
STRENGTHS = (0.0, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032)
"""Strengths of total variation to choose from, each twice the one before [transmission]."""


class Trial(NamedTuple):
    """One way to reconstruct, and what hidden pixels say of it."""

    name: str
    refine: RefineOptions | None
    obj: Array
    missed: NDArray[np.float64]  # (T,), deviance of the hidden pixels of every pattern that is looked at
    factor: float = 1.0  # on the corrections of the network that it begins with
    refined_share: float = 0.0  # weight of what was refined; the rest is the object of the network

    @property
    def deviance(self) -> float:
        """Deviance of all of them."""
        return float(self.missed.sum())

    def beats(self, other: Trial, errors: float = CHANCE) -> bool:
        """Tell whether hidden pixels prefer it by so many standard errors."""
        return beyond_chance(other.missed - self.missed, errors)


def selection(model: ModelConfig) -> Select | None:
    """Return what chooses how a scan is reconstructed with a network; None where it smooths exit waves: the
    forward model of a refinement does not."""
    return None if model.gaussian_smoothing_sigma > 0 else selected


class _Trials:
    """Ways to reconstruct the same patterns under the same probe, from the pixels that are not hidden."""

    def __init__(
        self,
        hidden: HiddenScan,
        number: int,
        among: NDArray[np.bool_],
        network: Callable[..., Array],
        on_trial: Callable[[], None],
    ) -> None:
        self.hidden, self.network, self.on_trial = hidden, network, on_trial
        self.judges = (number, UNSEEN), among
        self.chunks: ScanChunks = hidden.hiding(number)
        self.light = hidden.backend.illumination(self.chunks)
        self.rim: Array = None

    def _judged(self, name: str, how: RefineOptions | None, obj: Array, factor: float = 1.0) -> Trial:
        missed = self.hidden.deviance(obj, *self.judges)
        if not np.isfinite(missed).all():
            missed = np.full_like(missed, NOT_A_NUMBER)
        self.on_trial()
        return Trial(name, how, obj, missed, factor, float(how is not None))

    def of_network(self, *, fitted: bool) -> Trial:
        """Return what the network makes, in the scale that fits best where that is asked for; one of the
        whole canvas with its own corrections, unless others beat them."""

        def made(factor: float) -> Trial:
            obj = self.network(*scan, fitted=fitted, factor=factor, iterates=iterates)
            # No network knows what lies in the dark around a scan, which is not looked at either.
            lit = averaged(self.hidden.backend, self.rim, obj, 0.0, self.light)
            return self._judged("the network", None, lit, factor)._replace(obj=obj)

        scan, iterates = (self.chunks, self.light, Progress()), None
        if not self.hidden.backend.whole_canvas:
            return made(1.0)
        iterates = plain_iterates(self.hidden.backend, self.chunks, self.light)
        tried = {factor: made(factor) for factor in (0.0, 0.5, 1.0)}
        between = _least(*(trial.deviance for trial in tried.values()))
        factor = round(float(np.clip(0.5 + 0.5 * between, 0.0, MOST_FACTOR)), 2)
        tried[factor] = tried.get(factor) or made(factor)
        own, best = tried[1.0], min(tried.values(), key=lambda trial: trial.deviance)
        return best if best.beats(own) else own

    def plain(self) -> Trial:
        """Return what the first plain iterations make of a flat object."""
        flat = self.network(self.chunks, self.light, Progress(), fitted=True, flat=True)
        found = self.refined(Trial("plain iterations", PLAIN, flat, np.zeros(0)))
        self.rim = found.obj
        return found

    def refined(self, begin: Trial, steps: int = TRIAL_STEPS) -> Trial:
        """Return what some iterations make of the object of a trial, with the settings of its refinement."""
        some = replace(begin.refine, steps=steps)
        obj = refine(self.hidden.backend.primitives, self.chunks, begin.obj, some).obj
        return self._judged(begin.name, begin.refine, obj, begin.factor)

    def best_refined(self, plain: Trial, network: Trial) -> Trial:
        """Return the best that iterations make: from the object of the network unless a flat one leads
        further, on the likelihood and with the total variation that suit."""
        begin = network._replace(name="the network, refined", refine=WARM)
        gain = fitted_gain(self.hidden.backend, begin.obj, self.chunks)
        begin = begin._replace(obj=begin.obj * gain)
        best = self.refined(begin)
        if plain.beats(best):
            begin, best = plain, self.refined(plain, PLAIN.steps - TRIAL_STEPS)
        # Before it is smoothed, what is fitted to counts has more noise than what is fitted to amplitudes.
        best = self._smoothed(best, begin)
        how = replace(best.refine, likelihood="amplitude")
        amplitude, poisson = (
            self.refined(best._replace(refine=each), AMPLITUDE_STEPS) for each in (how, best.refine)
        )
        return amplitude if amplitude.beats(poisson, LIKELY) else best

    def averaged(self, refined: Trial, network: Trial, doubt: float) -> tuple[Trial, Trial]:
        """Return the mean of both objects with the weights that suit (eq. 29b), or one of them where the
        other has none, and the network with the same rim: errors of the two are not the same, and the mean
        has less of both. The refinement is given ``doubt`` times less weight over the network than hidden
        pixels give it."""

        def made(share: float) -> Trial:
            obj = averaged(self.hidden.backend, refined.obj, network.obj, share, self.light)
            name = f"{network.name} and {refined.name}"
            return self._judged(name, refined.refine, obj, network.factor)._replace(refined_share=share)

        network = made(0.0)._replace(name=network.name, refine=None, obj=network.obj)
        half, all_of_it = made(0.5).deviance, refined.deviance
        toll = TOLL * standard_error(network.missed - refined.missed) if doubt > 1 else 0.0
        best = 0.5 + 0.5 * _least(network.deviance, half + toll / 2, all_of_it + toll)
        best = float(np.clip(best, 0.0, 1.0))
        share = round(best / (best + doubt * (1 - best)), 2)
        return (made(share) if 0 < share < 1 else refined if share else network), network

    def _smoothed(self, best: Trial, begin: Trial) -> Trial:
        """Return a refinement of an object with the total variation that suits: every second strength is
        tried until one does harm, then those beside the best, and a parabola tells which lies between. All
        of them have the same iterations, those of ``best`` are more."""
        same = best.refine == begin.refine and not begin.refine.from_flat
        tried = {0: best} if same else {}

        def trial(number: int) -> None:
            how = replace(best.refine, tv=STRENGTHS[number])
            tried[number] = tried.get(number) or self.refined(begin._replace(refine=how))

        trial(0)
        last = 0
        for number in range(1, len(STRENGTHS), 2):
            trial(number)
            if tried[number].deviance > tried[last].deviance:
                break
            last = number
        middle = min(tried, key=lambda number: tried[number].deviance)
        beside = [number for number in (middle - 1, middle + 1) if 0 <= number < len(STRENGTHS)]
        for number in beside:
            trial(number)
        better = [number for number in tried if number and tried[number].beats(tried[0], CLEARLY)]
        if not better:
            return best
        middle = min(better, key=lambda number: tried[number].deviance)
        found = tried[middle]
        ends = [tried[middle + step].deviance for step in (-1, 1) if middle + step in tried]
        # A stronger one may explain more, and not for certain.
        if len(ends) < 2 or middle == 1 or found.deviance > min(ends):
            return found
        between = _least(ends[0], found.deviance, ends[1])
        return found._replace(refine=replace(found.refine, tv=round(found.refine.tv * 2**between, 5)))


def _least(low: float, middle: float, high: float) -> float:
    """Return where the parabola through values at -1, 0 and 1 is least, 0 where it has no least value."""
    bend = low - 2 * middle + high
    return (low - high) / bend / 2 if bend > 0 else 0.0


def selected(
    backend: Backend,
    store: PatternStore,
    scan: Scan,
    indices: NDArray[np.int64],
    choice: ProbeChoice,
    network: Callable[..., Array],
    fitted: bool,
    progress: Progress,
) -> Selection:
    """Choose probe and refinement of the patterns ``indices`` (J,) of a scan, and say in a line what and why.

    ``choice`` is the probe and whether it may be fitted; ``network`` makes the object of a network, or a flat
    one, in the scale that fits best where that is asked for; its own is ``fitted`` or not.
    """
    pixels = max(SELECTION_PIXELS, SELECTION_PATTERNS * scan.n_px**2)
    some = middle_patterns(scan.positions_yx_px, indices, scan.n_px, pixels)
    number = HIDDEN if backend.trained_probe.record is None else UNSEEN
    own = HiddenScan(backend, store, replace(scan, probe=choice.probe), some, SEED)
    done, total = count(1), MOST_TRIALS + choice.fit + 3 * backend.whole_canvas
    with progress.phase("choosing", total) as phase:
        if choice.asked:
            own = own.fitted(number, Progress())
        # Patterns at the rim tell of places that hardly another sees, and that are not looked at.
        among = own.well_covered()
        trials = _Trials(own, number, among, network, lambda: phase.update(next(done)))
        plain, told, fits = trials.plain(), "", choice.asked
        if choice.fit and not choice.asked:
            fit = _Trials(own.fitted(number, Progress()), number, among, network, trials.on_trial)
            other = fit.plain()
            fits, told = other.beats(plain), _probe_line(plain, other)
            trials, plain = (fit, other) if fits else (trials, plain)
        learned = trials.of_network(fitted=fitted)
        refined = trials.best_refined(plain, learned)
        # Without its corrections it is no network, and one of groups has seen all pixels of its training.
        knows = bool(learned.factor) and backend.whole_canvas
        errors, doubt = (CLEARLY, DOUBT) if knows else (CHANCE, 1.0)
        both, learned = trials.averaged(refined, learned, doubt)
        phase.update(total)
    best = refined if refined.beats(both, errors) else min(both, learned, key=lambda trial: trial.deviance)
    others = [trial for trial in (refined, learned) if trial is not best]
    second = min(others, key=lambda trial: trial.deviance)
    progress.note(f"chosen by hidden pixels: {_line(best, second)}{told}")
    how = best.refine
    record = {
        "probe": "fitted" if fits else "as stored",
        "object": best.name,
        "refined_share": best.refined_share,
        "correction_factor": best.factor,
        "iterations": 0 if how is None else how.steps,
        "likelihood": None if how is None else how.likelihood,
        "total_variation": 0.0 if how is None else how.tv,
        "hidden_deviance": best.deviance,
        "hidden_deviance_of_the_other": second.deviance,
    }
    return Selection(fits, how, best.factor, best.refined_share, record)


def _line(best: Trial, second: Trial) -> str:
    """Say what is best, and how much better it is than the other."""
    words = [_described(trial) for trial in (best, second)]
    if second.deviance < best.deviance:
        share = percent(best.missed, second.missed)
        return f"{words[0]}; {words[1]} explains unseen photons {share} better, which is not enough"
    share = percent(second.missed, best.missed)
    return f"{words[0]}, which explains unseen photons {share} better than {words[1]}"


def _described(trial: Trial) -> str:
    how, share, words = trial.refine, trial.refined_share, []
    if how is not None:
        words += [f"weights {1 - share:.2g} and {share:.2g}"] if share < 1 else []
        words += [f"{how.steps} iterations", how.likelihood]
        words += [f"total variation {how.tv:g}"] if how.tv else []
    words += [f"corrections x {trial.factor:g}"] if trial.factor != 1 else []
    return f"{trial.name} ({', '.join(words)})" if words else trial.name


def _probe_line(own: Trial, fitted: Trial) -> str:
    """Say which probe is better, and how much."""
    if fitted.beats(own):
        return f"; a fitted probe, {percent(own.missed, fitted.missed)} better than the scan's own"
    return f"; the scan's own probe, a fitted one is {not_better(own.missed, fitted.missed)}"
