"""The verdict on a reconstruction, in words: good, doubtful or failed, with every reason and its numbers.

Its main number is the unexplained share: the part of what changes from pattern to pattern, beyond photon
noise, that the reconstruction does not predict. It is 0 for a perfect one and 1 for an object that explains
nothing, at every dose and contrast. A wrong scan that still fits 97 % of the energy does not hide in it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ptycho.data.checks.findings import FOLLOW_BEAM
from ptycho.data.reconstruction import Fit, PlacedReconstruction, Reconstruction
from ptycho.evaluation.background import DarkExcess, background_numbers, dark_excess
from ptycho.evaluation.comparison import stored_fit
from ptycho.evaluation.corrections import position_correction
from ptycho.evaluation.drift import BeamDrift, beam_drift
from ptycho.evaluation.remedies import cause
from ptycho.geometry.batches import lit_area_px
from ptycho.process.progress import Progress

Word = Literal["good", "doubtful", "failed"]
Reason = tuple[Word, str]


@dataclass(frozen=True)
class Limits:
    """From where a number is a reason; tuned on simulated scans of 3e2 to 1e7 photons per pattern.

    Every limit lies between what well reconstructed scans and what planted faults reach.
    """

    unexplained_doubtful: float = 0.04
    """Good scans: below 0.02; positions off by half a pixel: 0.07; by one: 0.2; a wrong unit: 0.15."""
    unexplained_failed: float = 0.5
    """Mirrored or exchanged axes, a near field read as a far field, a wrong probe: 0.54 to 3."""
    paired_failed: float = 0.3
    """The same share by what neighbouring pixels have in common, at 1e3 to 1e6 photons: mirrored axes 0.33 to
    0.6, positions off by a pixel 0.04 to 0.29, good scans below 0."""
    paired_doubtful: float = 0.012
    noise_ratio: float = 1.2
    """The same where the misfit is clearly above a known noise. Positions stretched by 10 %, which a fitted
    probe takes up to a part: 0.013 to 0.044 from 1e5 photons on; good scans, with twice the noise too: 0."""
    structure: float = 0.25
    """Energy that changes from pattern to pattern, over that of the noise, below which it tells nothing."""
    noise_error: float = 0.08
    faint_noise_error: float = 0.3
    """Part of the noise energy that may be wrong, taken off the above: amplitude steps leave faint pixels, of
    less than ``clear_photons``, too dark."""
    paired_structure: float = 20.0
    paired_chance: float = 5.0
    """Standard errors of the covariance of neighbouring pixels, which tells where no unit tells the noise."""
    worse_than_mean: float = 3.0
    """Misfit beyond that of the mean pattern, over the noise, of an object that adds error only."""
    bright_photons: float = 1.0
    clear_photons: float = 4.0
    """Mean photons of a detector pixel from which its noise hardly depends on what is expected there."""
    steep_phase: float = 0.01
    """Share of phase steps beyond pi/2 from which the phase may have slipped; objects of 3 rad: 0.0002."""
    steep_noise_ratio: float = 1.25
    """Misfit over noise of a steep object: right ones 0.97 to 1.11, those with slipped phase 1.3 to 10."""
    flat_contrast: float = 0.02
    """Relative spread of the object; a glass slide has it, but its patterns do not change either."""
    common_misfit: float = 0.02
    """Part of the energy that is wrong in the same way in every pattern; good scans: below 0.001."""
    dark_errors: float = 5.0
    """Standard errors by which the darkest pixels count too much; honest scans stay below 0."""
    dark_share: float = 0.003
    """The same as a part of all counts, from which it does harm; honest scans: 0.0017 at most."""
    dark_changing: float = 0.15
    """Part of it that changes as light does: a background below 0.1; speckle that is missed as a whole 0.23,
    light that wrong positions, a drifting probe or a fly scan have lost in part from 1.5 on."""
    hot_share: float = 0.06
    """Part of the misfit in the four worst detector pixels; good scans and the star: below 0.01."""
    gain_share: float = 0.1
    """Part of the misfit that one factor per frame takes away; +30 % halfway: 0.2, good scans: 0.01."""
    gain_spread: float = 0.01
    """Spread of those factors below which they do no harm."""
    drift: float = 0.1
    """Logarithm of a drift from which it does harm: 0.02 of complex NRMSE. Spirals without one reach 0.05."""
    drift_noise: float = 3.0
    """What noise adds to that limit, in units of the misfit expected of it: an object takes in more of it
    where fewer patterns overlap, as at the end of a spiral; honest ones at 1e4 photons reach 3.3."""
    drift_errors: float = 4.0
    """Standard errors of a drift so large: at most 0.9 in 100 honest scans, 2.2 in 60 with a wrong probe."""
    explained_power: float = 0.65
    """Photons of the object over those measured; amplitude steps at 3e2 photons: 0.45, others from 0.75."""
    bad_pattern: float = 3.0
    """Misfit over noise of a pattern relative to the median of all; good scans: up to 1.6."""
    bad_patterns: float = 0.05
    """Share of such patterns. Positions off by 0.3 px, which still give 0.03 NRMSE: 0.04."""
    bad_misfit: float = 0.3
    """Part of the misfit in such patterns, however few."""
    overlap_doubtful: float = 0.2
    overlap_failed: float = 0.0
    """One less step over lit diameter; neighbours that share no light leave every spot a scale of its own."""
    numbers_per_unknown: float = 2.0
    """Measured numbers per real unknown of the object; below it many objects fit."""


LIMITS = Limits()
WRONG = ", as with wrong positions, axes (--find-orientation), domain (--measurement-domain) or probe"
"""What leaves so much unexplained, and the flags that find out."""


@dataclass(frozen=True)
class Verdict:
    """What a reconstruction is worth."""

    word: Word  # the worst of all reasons
    reasons: tuple[str, ...]  # why it is not good; empty where it is
    numbers: dict[str, Any] = field(default_factory=dict)  # what was found, by name

    def line(self) -> str:
        """Return the verdict in one line, in capitals where it is not good."""
        if self.word != "good":
            return f"verdict: {self.word.upper()}: {'; '.join(self.reasons)}"
        dim = ", which covers what differs from pattern to pattern: a wrong scan would hardly show"
        return f"verdict: good: {_misfit_words(self.numbers)}{dim if self.numbers['noise_dominates'] else ''}"

    def to_dict(self) -> dict[str, Any]:
        """Return the content of ``metrics.json``."""
        return {"verdict": self.word, "reasons": list(self.reasons), **self.numbers}


def _misfit_words(numbers: dict[str, Any]) -> str:
    misfit = f"misfit {numbers['misfit']:.3g}"
    if not numbers["noise_known"]:
        return f"{misfit}, noise level unknown"
    ratio = numbers["noise_ratio"]
    return f"{misfit}, {ratio:.0f}x photon noise" if ratio >= 99.5 else f"{misfit}, {ratio:.2g}x photon noise"


def announce(verdict: Verdict, progress: Progress) -> None:
    """Tell the verdict; a silent caller hears of it where it is not good."""
    progress.conclude(verdict.line(), good=verdict.word == "good")


def judge(placed: PlacedReconstruction) -> Verdict:
    """Say what a reconstruction is worth, from its own patterns alone and what the checks of the scan found.

    What it leaves unexplained is found out where its ``fit`` is None.
    """
    found, scan, positions = placed.found, placed.scan, placed.positions_yx_px
    if not np.isfinite(found.obj).all() or not np.isfinite(found.probe).all():
        return Verdict("failed", ("the object holds values that are no numbers",), {"misfit": math.nan})
    fit = found.fit or stored_fit(placed)
    varied = 0 if found.variation is None else found.variation.modes.size * 2 + found.variation.weights.size
    numbers = _fit_numbers(fit, 2 * int(found.scanned.sum()) + varied)
    numbers |= {} if found.variation is None else {"varying_probe_share": found.varying_share}
    numbers |= _object_numbers(found) | _scan_numbers(found, fit, positions)
    correction = position_correction(placed)
    numbers |= {} if correction is None else correction.numbers()
    numbers |= background_numbers(placed)
    dark = dark_excess(fit)
    numbers |= {} if dark is None else dark.numbers()
    drift = beam_drift(placed)
    numbers["beam_drift"], numbers["beam_drift_error"] = drift or (None, None)
    has_failed = any(word == "failed" for word, _ in _fit_reasons(numbers))
    left = numbers["unexplained"] > LIMITS.unexplained_doubtful
    noise = (numbers["misfit_expected"] or 0.0) * float(fit.energy.sum())
    # A background, which has been told, looks like several other faults; a flat object tells nothing.
    silent = _is_background(dark) or numbers["object_contrast"] < LIMITS.flat_contrast
    found_cause = None if silent else cause(placed, fit, noise, failed=has_failed, left=left)
    numbers |= {} if found_cause is None else found_cause.numbers
    misplaced = found_cause is not None and found_cause.moves_positions
    # A jump looks like a drift, and the check has told either; frames that were refined have followed it.
    told = any(finding.check == "beam" for finding in scan.findings)
    warnings = [finding for finding in scan.findings if finding.level == "warning"]
    drifts = list(_drift_reasons(drift, numbers["misfit_expected"]))
    if misplaced or _follows_frames(placed) or (correction is not None and not drifts):
        # Patterns compared at wrong places also differ in brightness; the right ones have told.
        warnings = [finding for finding in warnings if finding.check != "beam"]
    bad = _bad_patterns(fit)
    numbers["bad_patterns"] = len(bad)
    reasons = [
        *_fit_reasons(numbers),
        *_pixel_reasons(numbers, dark),
        *([] if found_cause is None else [("doubtful", found_cause.line)]),
        *([] if told or misplaced else drifts),
        *_scan_reasons(numbers),
        *_bad_reasons(bad, fit, placed.numbers, positions),
        *(("doubtful", doubt) for doubt in (correction.doubts() if correction is not None else ())),
        *(("doubtful", finding.message) for finding in warnings),
    ]
    words = {word for word, _ in reasons}
    word: Word = "failed" if "failed" in words else "doubtful" if words else "good"
    # What failed comes first: a reader may stop there.
    ordered = sorted(reasons, key=lambda reason: reason[0] != "failed")
    return Verdict(word, tuple(text for _, text in ordered), numbers)


def _follows_frames(placed: PlacedReconstruction) -> bool:
    """Tell whether factors of the frames were found, beside the known ones of scans that were joined."""
    found, known = placed.found.frame_gain, placed.scan.frame_gain
    # A file holds ones where nothing was found.
    return found is not None and not np.allclose(found, 1.0 if known is None else known[placed.rows], 1e-5)


def _fit_numbers(fit: Fit, n_unknowns: int) -> dict[str, Any]:
    """Return misfit, noise and what is left unexplained; fitted unknowns take their share of the noise."""
    energy, expected = max(fit.energy.sum(), 1e-30), fit.expected.sum()
    fitted = min(n_unknowns / 4 / (fit.photons or 1.0), expected / 2)
    bright = fit.mean_photons >= LIMITS.bright_photons
    clear = fit.mean_photons >= LIMITS.clear_photons
    if not bright.any():
        bright = fit.pixel_count > 0
    noise = fit.pixel_expected[bright].sum()
    noise -= fitted * noise / max(expected, 1e-30)
    misfit, common = fit.pixel_misfit[bright].sum(), fit.pixel_common[bright].sum()
    varying = fit.pixel_varying[bright].sum()
    structure = varying - fit.pixel_varying_expected[bright].sum()
    # Counts after a flat field are no multiples of a photon, and still photons on average.
    known = fit.photons is not None or bool(structure > 0 and 0.8 <= misfit / max(noise, 1e-30) <= 1.3)
    dominated = known and bool(structure < LIMITS.structure * noise)
    paired = _paired_share(fit)
    if not known:
        dominated, unexplained = paired is None, 0.0
    elif not dominated:
        # The noise is known to a part only; what that part could explain is no reason.
        faint = fit.pixel_expected[bright & ~clear].sum() / max(fit.pixel_expected[bright].sum(), 1e-30)
        doubt = (LIMITS.noise_error * (1 - faint) + LIMITS.faint_noise_error * faint) * noise
        unexplained = (misfit - common - noise - doubt) / structure
    else:
        worse = (misfit - varying) / max(noise, 1e-30)
        unexplained = 1.0 + worse if worse > LIMITS.worse_than_mean else 0.0
    unexplained = max(unexplained, paired or 0.0)
    dominated &= unexplained <= LIMITS.unexplained_doubtful
    worst = np.sort((fit.pixel_misfit - fit.pixel_expected).ravel())[-4:]
    # A factor common to all frames is the object's; noise alone gives each a quarter of a photon.
    gain_energy = (fit.light_power * (fit.gain - fit.gain.mean()) ** 2).sum()
    gain_energy -= len(fit.gain) / 4 / (fit.photons or 1.0)
    return {
        "misfit": fit.relative,
        "misfit_expected": float((expected - fitted) / energy) if known else None,
        "noise_ratio": float(misfit / max(noise, 1e-30)) if known else None,
        "noise_known": known,
        "noise_dominates": dominated,
        "unexplained": float(max(unexplained, 0.0)),
        "paired_unexplained": None if paired is None else float(max(paired, 0.0)),
        "common_misfit": float(fit.pixel_common[clear].sum() / energy),
        "worst_pixels_share": float(worst.sum() / max(fit.misfit.sum(), 1e-30)),
        "frame_gain_share": float(gain_energy / max(fit.misfit.sum(), 1e-30)),
        "frame_gain_spread": float(np.std(fit.gain)),
        "explained_power": float(fit.power.sum() / energy),
        "numbers_per_unknown": float(fit.pixel_count.sum() / max(n_unknowns, 1)),
    }


def _paired_share(fit: Fit) -> float | None:
    """Return the unexplained share by what neighbours have in common; None where chance covers it."""
    chance = fit.pixel_misfit.sum() * math.sqrt(2 / max(fit.pixel_count.sum(), 1.0))
    if fit.paired_varying < LIMITS.paired_structure * chance:
        return None
    # Where few photons fall no object explains all of it, so the part of the noise is no reason.
    return (fit.paired_misfit - LIMITS.paired_chance * chance) / fit.paired_varying - fit.relative


def _fit_reasons(numbers: dict[str, Any]) -> Iterator[Reason]:
    share, known, misfit = numbers["unexplained"], numbers["noise_known"], _misfit_words(numbers)
    paired = numbers["paired_unexplained"] or 0.0
    has_failed = share > LIMITS.unexplained_failed or paired > LIMITS.paired_failed
    above = known and numbers["noise_ratio"] > LIMITS.noise_ratio and paired > LIMITS.paired_doubtful
    if above or share > LIMITS.unexplained_doubtful:
        what = f"{100 * share:.0f} % of what changes from pattern to pattern is not explained"
        if numbers["object_contrast"] < LIMITS.flat_contrast:
            what = f"the object is flat (contrast {numbers['object_contrast']:.2g}) but the patterns change"
        elif share > 1:
            what = "the mean pattern explains the patterns better than the object does"
        cure = WRONG if has_failed or share > LIMITS.paired_failed else ""
        yield "failed" if has_failed else "doubtful", f"{what} ({misfit}){cure}"
    steep = numbers["steep_phase_share"]
    if known and steep > LIMITS.steep_phase and numbers["noise_ratio"] > LIMITS.steep_noise_ratio:
        what = f"the phase is steep ({100 * steep:.0f} % of its steps exceed pi/2) and may have slipped"
        yield "doubtful", f"{what} ({misfit}); try --init flat --refine 100"
    if numbers["explained_power"] < LIMITS.explained_power:
        what = f"the object explains {100 * numbers['explained_power']:.0f} % of the photons"
        yield "doubtful", f"{what}, as after amplitude steps on few of them; try --refine-likelihood poisson"


def _pixel_reasons(numbers: dict[str, Any], dark: DarkExcess | None) -> Iterator[Reason]:
    """Say where the misfit lies: in few detector pixels, in all patterns, in the brightness of frames."""
    if dark is not None and _is_background(dark):
        less = f"{dark.predicted:.2g} are expected ({dark.errors:.0f} sigma)"
        what = f"the darkest pixels count {dark.measured:.2g} photons in every pattern where {less}"
        yield "doubtful", f"{what}, as with a background; try --refine-background"
    worst, common = numbers["worst_pixels_share"], numbers["common_misfit"]
    if worst > LIMITS.hot_share:
        share = f"{100 * worst:.0f} % of the misfit"
        yield "doubtful", f"{share} lies in 4 detector pixels, as with hot or dead ones"
    elif common > LIMITS.common_misfit:
        what = f"every pattern is off in the same way by {100 * common:.2g} % of its photons"
        yield "doubtful", f"{what}, as with a wrong probe or a background; try --refine-background"
    spread = numbers["frame_gain_spread"]
    if numbers["frame_gain_share"] > LIMITS.gain_share and spread > LIMITS.gain_spread:
        what = f"the amplitude changes by {100 * spread:.2g} % from frame to frame"
        yield "doubtful", f"{what}; try {FOLLOW_BEAM}"


def _is_background(dark: DarkExcess | None) -> bool:
    if dark is None:
        return False
    harms = dark.errors > LIMITS.dark_errors and dark.share > LIMITS.dark_share
    return harms and dark.changing < LIMITS.dark_changing


def _drift_reasons(drift: BeamDrift | None, noise_misfit: float | None) -> Iterator[Reason]:
    least = LIMITS.drift + LIMITS.drift_noise * (noise_misfit or 0.0)
    if drift is None or drift.errors < LIMITS.drift_errors or abs(drift.log_factor) < least:
        return
    change, error = math.expm1(drift.log_factor), math.exp(drift.log_factor) * drift.error
    what = f"the beam seems to drift by {change:+.0%} (+-{error:.0%}) from the first pattern to the last"
    yield "doubtful", f"{what}, and the amplitude of the object with it; try {FOLLOW_BEAM}"


def _object_numbers(found: Reconstruction) -> dict[str, float]:
    obj, scanned = found.obj, found.scanned
    steep = total = 0
    for axis in (0, 1):
        first, second = (np.take(obj, range(k, obj.shape[axis] - 1 + k), axis) for k in (0, 1))
        both = np.logical_and(*(np.take(scanned, range(k, obj.shape[axis] - 1 + k), axis) for k in (0, 1)))
        product = (second * first.conj())[both]
        # Where hardly anything is transmitted the phase is noise.
        size = np.abs(product)
        kept = size > 0.05 * np.median(size) if len(size) else size > 0
        steep += int((product.real[kept] < 0).sum())
        total += int(kept.sum())
    return {
        "object_contrast": float(np.std(obj[scanned]) / max(float(np.abs(obj[scanned]).mean()), 1e-30)),
        "steep_phase_share": steep / max(total, 1),
    }


def _scan_numbers(found: Reconstruction, fit: Fit, positions_yx_px: NDArray[np.float64]) -> dict[str, Any]:
    diameter_px = 2 * math.sqrt(lit_area_px(found.probe) / math.pi)
    photons = float(fit.energy.mean() * fit.photons) if fit.photons is not None else None
    count, overlap = len(positions_yx_px), None
    if count > 1:
        near = _nearest_px(positions_yx_px)
        overlap = float(1 - np.median(near) / diameter_px)
    per_pixel = None if photons is None else photons * count / max(int(found.scanned.sum()), 1)
    return {"photons_per_pattern": photons, "photons_per_object_pixel": per_pixel, "overlap": overlap}


def _nearest_px(positions_yx_px: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the distance of every position to its nearest neighbour, shape (J,) [px]."""
    from scipy.spatial import cKDTree

    return cKDTree(positions_yx_px).query(positions_yx_px, k=2)[0][:, 1]


def _scan_reasons(numbers: dict[str, Any]) -> Iterator[Reason]:
    overlap, per_unknown = numbers["overlap"], numbers["numbers_per_unknown"]
    if overlap is not None and overlap < LIMITS.overlap_failed:
        yield "failed", "neighbouring spots share no light: any of many objects fits"
    elif overlap is not None and overlap < LIMITS.overlap_doubtful:
        yield "doubtful", f"neighbouring spots overlap by {100 * overlap:.0f} % only"
    if per_unknown < LIMITS.numbers_per_unknown:
        yield "doubtful", f"{per_unknown:.2g} measured numbers per unknown of the object: many objects fit"


def _bad_patterns(fit: Fit) -> NDArray[np.int64]:
    """Return the rows of patterns that fit far worse than most."""
    ratio = fit.misfit / np.maximum(fit.expected, 1e-30)
    middle = float(np.median(ratio))
    # Each bright pixel adds 1/4 on average, of variance 1/8.
    beyond = fit.misfit - middle * fit.expected > 5 * np.sqrt(np.maximum(fit.expected, 1.0) / 2) * middle
    return np.flatnonzero((ratio > LIMITS.bad_pattern * middle) & beyond)


def _bad_reasons(
    bad: NDArray[np.int64], fit: Fit, indices: NDArray[np.int64], positions_yx_px: NDArray[np.float64]
) -> Iterator[Reason]:
    """Say how many patterns fit badly, and whether they lie together."""
    count, total = len(bad), len(fit.misfit)
    share = fit.misfit[bad].sum() / max(fit.misfit.sum(), 1e-30)
    if not count or (count <= LIMITS.bad_patterns * total and share <= LIMITS.bad_misfit):
        return
    chosen = np.sort(indices[bad])
    where = f"first: pattern {chosen[0]}"
    if count >= 3:
        near, close = _nearest_px(positions_yx_px), _nearest_px(positions_yx_px[bad])
        in_time = np.diff(chosen) <= 2
        if in_time.mean() > 0.5 and chosen[-1] - chosen[0] < total / 2:
            where = f"together in time, patterns {chosen[0]} to {chosen[-1]}"
        elif (close <= 1.5 * np.median(near)).mean() > 0.5 and count < total / 4:
            middle = positions_yx_px[bad].mean(axis=0)
            where = f"together around y={middle[0]:.0f}, x={middle[1]:.0f} px"
    yield "doubtful", f"{count} of {total} patterns fit far worse than the others ({where})"
