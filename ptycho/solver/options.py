"""What a refinement is asked for, and the one validation of it."""

from __future__ import annotations

from dataclasses import dataclass

from ptycho.config.rules import BOOL
from ptycho.config.validation import INFERENCE_RULES
from ptycho.errors import ConfigError
from ptycho.solver.schedule import (
    DEFORM_EVERY,
    DEFORM_UNTIL,
    REST_STEPS,
    VARIATION_MORE_STEPS,
    VARIATION_REST_STEPS,
    subset_schedule,
)

OF_THE_PROBE = {"probe_modes": "--probe-modes", "probe_variation": "--probe-variation"}
"""Fields that say what the refined probe consists of, settings of the same name -> their flags."""


def setting_of(name: str) -> str:
    """Return the setting that a field of :class:`RefineOptions` comes from."""
    return name if name in OF_THE_PROBE else f"refine_{name}"


@dataclass(frozen=True)
class RefineOptions:
    """How a reconstruction is refined by the forward model alone; ``ConfigError`` where a value is out of
    range, or something is to be refined in no iterations."""

    steps: int  # most iterations, >= 0; fewer where the misfit no longer falls
    probe: bool = False  # refine the probe too, all modes
    positions: bool = False  # refine the scan positions too
    frames: bool = False  # refine one intensity factor per frame too
    likelihood: str = "amplitude"  # or poisson: what the updates descend on
    tv: float = 0.0  # strength of total-variation smoothing per iteration, in [0, 1) [transmission]; 0: off
    # What the object starts from: network, flat, or flat and then the difference map
    start: str = "network"
    background: bool = False  # refine what the detector counts beside the light too
    affine: bool = False  # refine scale, rotation and shear of the scan positions alone
    probe_modes: int = 0  # incoherent modes to refine, made from those there are; 0: as many as there are
    probe_variation: int = 0  # modes by which the probe changes from pattern to pattern (eq. 26)

    def __post_init__(self) -> None:
        rules = {name: INFERENCE_RULES[f"refine_{name}"] for name in ("steps", "likelihood", "tv", "start")}
        rules |= dict.fromkeys(REST_STEPS, BOOL) | {"affine": BOOL}
        rules |= {name: INFERENCE_RULES[name] for name in OF_THE_PROBE}
        flags = {"steps": "--refine", "tv": "--refine-tv"}
        for name, (rule, holds) in rules.items():
            value = getattr(self, name)
            if holds(value):
                continue
            if name in flags:
                raise ConfigError(
                    f"refinement: a number is out of range (got {flags[name]} {value}, expected {rule}). "
                    "Correct it."
                )
            name = setting_of(name)
            raise ConfigError(f"refinement: {name} is {value!r}, expected {rule}. Change {name}.")
        if self.affine and self.positions:
            raise ConfigError(
                "refinement: two ways to refine the positions (got --refine-positions and --refine-affine, "
                "expected one). Leave out --refine-affine: free positions take in an affine error too."
            )
        asked = [f"--refine-{name}" for name in (*REST_STEPS, "affine") if getattr(self, name)]
        asked += [f"--init {self.start}"] if self.from_flat else []
        asked += [flag for name, flag in OF_THE_PROBE.items() if getattr(self, name)]
        if asked and not self.steps:
            raise ConfigError(
                f"refinement: {asked[0]} needs steps (got --refine 0, expected >= 1). Pass --refine 50."
            )
        for name, flag in OF_THE_PROBE.items():
            if getattr(self, name) and not self.probe:
                raise ConfigError(
                    f"refinement: {flag} needs a probe that is refined (got {flag} {getattr(self, name)} "
                    "alone, expected --refine-probe beside it). Pass --refine-probe."
                )

    @property
    def moves_positions(self) -> bool:
        """True where positions are refined, each or all together."""
        return self.positions or self.affine

    @property
    def from_flat(self) -> bool:
        """True where the refinement starts from a flat object."""
        return self.start != "network"

    @property
    def companions(self) -> bool:
        """True where anything beside the object is refined."""
        return self.probe or self.frames or self.background or self.moves_positions

    def moving(self, iteration: int) -> frozenset[str]:
        """Return which keys of ``REST_STEPS`` are refined and no longer rest in an iteration, from 0."""
        found = {name for name, rest in REST_STEPS.items() if getattr(self, name) and iteration >= rest}
        if self.probe_variation and iteration >= VARIATION_REST_STEPS:
            found.add("variation")
        return frozenset(found | {"positions"} if self.deforming(iteration) else found)

    @property
    def search_steps(self) -> int:
        """Iterations in which modes by which the probe changes are looked for, at most half of them."""
        return max(0, min(VARIATION_MORE_STEPS, (self.steps - VARIATION_REST_STEPS) // 2))

    def searching(self, iteration: int) -> bool:
        """Tell whether modes by which the probe changes are still looked for in an iteration, from 0, so
        that the misfit tells nothing about the end (eq. 26)."""
        return bool(self.probe_variation) and iteration <= VARIATION_REST_STEPS + self.search_steps

    def deforming(self, iteration: int) -> bool:
        """Tell whether the positions move together with the object in an iteration, from 0 (eq. 23)."""
        since = iteration - REST_STEPS["positions"]
        ends = max(DEFORM_UNTIL * self.steps, REST_STEPS["positions"] + 1)
        return (
            (self.positions or self.affine) and since >= 0 and since % DEFORM_EVERY == 0 and iteration < ends
        )

    def subset_counts(self, most: int) -> list[int]:
        """Return into how many subsets every iteration is cut (eq. 19) of the ``most`` that the scan allows.

        An object that is good already gets two subsets at most: more would make it noisy. What else is
        refined needs the whole scan from the moment it moves, and frame intensities, which trade with the
        object at once, from the first. Positions move with their subset, but for those that move together; a
        background takes the sums of all subsets.
        """
        counts = list(subset_schedule(self.steps, most if self.from_flat else min(2, most)))
        return [
            1 if self.moving(iteration) - {"positions", "background"} or self.deforming(iteration) else count
            for iteration, count in enumerate(counts)
        ]
