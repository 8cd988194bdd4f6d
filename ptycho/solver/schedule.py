"""Numbers of the solver, and what happens in which iteration: subsets, momentum, rests, the end.

An iteration goes once through all patterns; an update moves the object once. Neighbouring patterns tell
nearly the same about a pixel. Where many of them overlap, an eighth of the scan gives almost the step of the
whole, so one iteration makes eight updates. The noise of a subset stays in the object, so the last iterations
use the whole scan again. The most subsets of a scan are known to ``ptycho.geometry.batches.most_subsets``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

STEP_DAMPING = 0.02
"""Share of the strongest illumination added to the preconditioner; faint rims then amplify no noise."""
BLOCKS = 8
"""Parts a scan is cut into; a subset is one or several of them."""
_SHARES = ((0.4, 1), (0.6, 2), (0.8, 4))
"""Until this share of the iterations, the most subsets are divided by this."""
MIN_ITERATIONS = 20
"""Iterations that subsets never go below."""
MOST_SUBSETS = 4
"""More subsets of an iteration than this make the slow phase, which is amplified, noisy."""
SUBSET_MOMENTUM = 0.9
"""Most momentum where subsets are used: many updates make it long, and it would carry their noise along."""
PROBE_REFINE_STEPS = 40
"""Joint iterations of object and probe before a training run that refines the probe."""
PROBE_REFINE_PIXELS = 2**23
"""Detector pixels the probe is refined on: 2048 patterns of 64 x 64 around the middle of the scan."""
PROBE_REST_STEPS = 3
"""Iterations in which the probe still rests."""
PROBE_STEP, PROBE_MOMENTUM = 1.0, 0.8
"""Length and momentum of a probe step, relative to the steepest safe one."""
VARIATION_REST_STEPS = 5
"""Iterations in which the probe is the same for all patterns: the object has to be there first."""
VARIATION_STEP, VARIATION_MOMENTUM = 1.0, 0.8
"""Length and momentum of a step of the variable modes of a probe, relative to the steepest safe one."""
VARIATION_RIDGE, VARIATION_SHARE = 1e-3, 0.5
"""Share of the mean curvature of the coefficients added to that of each, and of their least-squares step that
is taken: beside object and modes, which take in the same, a whole one goes to and fro."""
VARIATION_MORE_MODES, VARIATION_MORE_STEPS = 4, 12
"""More modes than asked for that take part at first, and for how many steps: they find the strongest ones."""
FRAME_MOMENTUM = 0.9
"""Momentum of the intensity factors of frames. Without it object and factors push each other to and fro, and
a drift that both can take in hardly moves."""
CONVERGED, CONVERGED_STEPS = 2e-3, 10
"""A refinement ends when the misfit fell by less than this share over so many iterations."""
POSITION_REST_STEPS, POSITION_LIMIT_PX = 3, 1.0
"""Positions rest at first, then move by their least-squares step, at most so far in one iteration."""
NEAR_POSITION_STEP = 0.5
"""The share of that step in the near field, whose images follow the sample: beside the momentum of the object
a whole one goes to and fro."""
DEFORM_EVERY, DEFORM_UNTIL = 3, 0.8
"""Every so many iterations the positions move together, with the object, until this share of them: the object
then settles where it is."""
POSITION_RIDGE = 1e-3
"""Share of the mean curvature of all positions added to that of each: a flat region says nothing about its
position, and the ridge, one for the whole scan, keeps it where it is."""
POISSON_FLOOR = 0.1
"""Expected counts added in the Poisson step, so that one photon where none is expected does not rule."""
PHASE_STEP_RAD = 0.5
"""Most that a pixel turns further in one update."""
UPHILL = 0.1
"""Cosine of the angle between the way of an update and what its step took away from which the momentum begins
anew; below it, it is kept in proportion, so that no rounding decides."""
TURNED, FULLY_TURNED, PHASE_SHRINK = 0.8, 1.0, 0.5
"""Where the slow part of a step takes back the first share of the last one, the gain was too large; from the
second share on, this part of the gain stays."""
SUBSET_GAIN_ITERATIONS = 5
"""First iterations in which subsets take slow phases further. Later ones would amplify what subsets disagree
on, until the object is worse than after fewer iterations."""
NETWORK_LEAST_GAIN = 150.0
"""Gain that a canvas has to need before the plain steps of a network take slow phases further: on fields as
small as it was trained on, its learned steps know what plain ones leave."""
SETTLED_TURN_RAD, FAR_TURN_RAD = 1.5e-3, 1.5e-2
"""A slow phase that still turns by more than the first in an iteration, anywhere, keeps the plain steps of a
network going: what they leave wrong in strong phases no learned step mends. From the second on the way is
long and subsets are faster; below, their noise would turn it for ever."""
MORE_STEPS, MORE_ROUNDS = 20, 4
"""Iterations after which it is looked at again, and how often at most; who asks for fewer gets no more."""
PHASE_FLOOR = 0.05
"""Squared modulus of the object below which a pixel has hardly a phase [transmission^2]."""
TV_SMOOTHING = 1e-2
"""Gradient modulus below which total variation acts like plain smoothing [transmission / px]."""
MAP_ROUND, MAP_ROUNDS = (200, 100), 5
"""Iterations of the difference map and plain ones after them in a round, and most rounds."""
MAP_TRIAL = (60, 20)
"""The same of a first round that nobody asked for."""
MAP_GAIN = 0.64
"""A round goes on to another where the misfit is below this share of the one before: 0.8 of its root."""
MAP_ENOUGH = 1e-9
"""Relative misfit below which nothing is left to find; single precision ends here."""
WAVE_PIXELS = 2**28
"""Most pixels of exit waves that the difference map keeps, 2 GiB; it takes a subset of a larger scan."""
BACKGROUND_REST_STEPS, BACKGROUND_BLUR_PX = 3, 3.0
"""Iterations in which the background still rests; how far its steps are smoothed, rms of a Gaussian."""
REST_STEPS = {
    "probe": PROBE_REST_STEPS,
    "positions": POSITION_REST_STEPS,
    "frames": 0,
    "background": BACKGROUND_REST_STEPS,
}
"""What moves beside the object -> iterations in which it rests, so that a poor start does not spoil it."""


def nesterov_momentum(update: int) -> float:
    """Return the momentum after so many object updates, in [0, 1) (eq. 11).

    References
    ----------
    Nesterov, Soviet Math. Dokl. 27, 372 (1983).
    """
    return update / (update + 3)


def needed_iterations(n_steps: int, most: int) -> int:
    """Return how many iterations in at ``most`` so many subsets do the work of updates with the whole scan.

    They are ``n_steps`` at most, and not below ``MIN_ITERATIONS`` unless these are fewer.
    """
    return min(n_steps, max(MIN_ITERATIONS, 2 * n_steps // most))


def subset_schedule(n_iterations: int, most: int) -> Iterator[int]:
    """Yield the number of subsets of every iteration: ``most`` at first, the whole scan in the end (eq. 19);
    1 leaves every iteration whole."""
    for index in range(n_iterations):
        share = (index + 0.5) / n_iterations
        divisor = next((by for until, by in _SHARES if share < until), BLOCKS)
        yield max(1, most // divisor)


def subset_momentum(update: int, most: int) -> float:
    """Return the momentum after so many object updates, in [0, 1), with ``most`` subsets in an iteration
    (eq. 11, eq. 19)."""
    momentum = nesterov_momentum(update)
    return momentum if most == 1 else min(momentum, SUBSET_MOMENTUM)


def has_converged(misfit: Sequence[float]) -> bool:
    """Tell whether the least relative amplitude misfit before every iteration so far fell by less than
    ``CONVERGED`` over the last ``CONVERGED_STEPS``: a refinement may end.

    The least one, since momentum and frame factors can make the misfit go to and fro.
    """
    if len(misfit) <= CONVERGED_STEPS:
        return False
    return min(misfit[-CONVERGED_STEPS:]) > min(misfit[:-CONVERGED_STEPS]) * (1 - CONVERGED)
