r"""What would explain the rest: how much of the misfit a known fault of a scan takes away, to first order.

Symbols: e_j is the residual of the root of the counts of pattern j, A_j its expected amplitude. A fault of
sizes theta changes A_j by :math:`\sum_k V_{jk} \theta_k`; with the sums :math:`N = \sum V^T V` and
:math:`R = \sum V^T e` over pixels, and patterns where a size is that of all, its best sizes take
:math:`R^T N^{-1} R` off the misfit. The object stays as it is. It has taken in what it can of the fault, so
this is less than a refinement gains. The share of it in the misfit beyond photon noise tells faults apart:

=================== ===================================================================== ==================
fault               V                                                                     sizes
=================== ===================================================================== ==================
positions, each     motion of a pattern (eq. 16)                                          2 of a pattern
positions together  strains of the object (eq. 23)                                        coefficients of u
probe               the step that the probe asks for (eq. 13), less what all patterns share 1
parts of a pixel    counts of 2 x 2 parts less those of the middle (eq. 5b)               1
motion of a frame   half the curvature of the counts along y and x: frames that add up    2
                    what falls while the sample moves, as coherence does that is short
=================== ===================================================================== ==================
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ptycho.data.checks.findings import FROM_FLAT
from ptycho.data.reconstruction import Fit, PlacedReconstruction
from ptycho.evaluation.corrections import position_correction
from ptycho.evaluation.probe_change import probe_change_doubt
from ptycho.geometry.batches import lit_area_px
from ptycho.geometry.deformation import Deformation
from ptycho.physics import (
    exit_waves,
    extract_patches,
    measured,
    motion_equations,
    part_modes,
    part_modes_adjoint,
    probe_gradient,
    propagate,
    root_residual,
    shift_field,
    unmatched_waves,
)
from ptycho.physics.pixel_parts import part_turns
from ptycho.physics.propagation import Real

FEWEST_PATTERNS = 25
"""Fewer say nothing."""
MOST_PATTERNS, MOST_PIXELS = 300, 2**21
"""Patterns that are looked at, and their pixels; of more, as many spread over the scan."""
CHUNK = 32
RIDGE = 1e-6
"""Part of the mean curvature added to that of every size: one that nothing tells stays 0."""
PROBE_DAMPING = 0.1
"""Part of the largest power of the object over the scan below which a probe pixel is hardly told."""
LEAST_EXCESS = 0.15
"""Misfit beyond the noise, in units of it, from which there is something to explain."""
CHANCE = 4.0
"""How many times what noise alone gives the sizes a fault must take away: a quarter of a photon each."""
LEAST_SHARE = {"positions": 0.15, "deformation": 0.35, "probe": 0.09, "parts": 0.3, "motion": 0.3}
"""Share of the misfit beyond noise from which a fault is named. Right ones: positions 0.19 to 0.83, parts
0.8, motion 0.5 to 0.6, a wrong probe 0.1 to 0.5, a deformation 0.4 to 0.6. Wrong ones: positions 0.12 where
the probe drifts, a deformation 0.31 and positions 0.1 where the probe is wrong, parts 0.29 in a
fly scan."""
ALIKE = 0.5
"""Part of the largest share from which a second fault is named beside it."""
CURES = {
    "positions": ("wrong positions", "--refine-positions"),
    "deformation": ("positions that are scaled, turned or sheared, or drift", "--refine-positions"),
    "probe": ("another probe", "--refine-probe"),
    "parts": ("pixels that add what falls on their area", "--detector-upsampling 2"),
    "motion": (
        "a sample that moves during an exposure, or a beam of short coherence",
        "--refine-probe --probe-modes 3",
    ),
}
"""Fault -> what is left looks like it, and the flags that follow it."""


class Cause(NamedTuple):
    """What is left looks like."""

    line: str  # a reason of the verdict, with the flags that follow it
    numbers: dict[str, Any]  # what ``metrics.json`` says about it
    moves_positions: bool = False  # the positions are wrong: brightness compared at them tells nothing


def cause(
    placed: PlacedReconstruction, fit: Fit, noise: float, *, failed: bool = False, left: bool = True
) -> Cause | None:
    """Return what a reconstruction leaves unexplained looks like; None where it looks like nothing known.

    ``noise`` is the misfit that photon noise leaves [photons], 0 where it is unknown. Of a reconstruction
    that has ``failed`` only positions tell: a wrong domain or field looks like any other fault. A probe that
    changes is looked for where much is ``left``.
    """
    if left and not failed and (change := probe_change_doubt(placed)):
        return Cause(change, {"looks_like": "probe change"})
    shares = named_faults(placed, fit, noise) if noise or left else {}
    shares = {fault: share for fault, share in shares.items() if fault == "positions" or not failed}
    if not shares:
        return None
    fault = max(shares, key=lambda name: shares[name])
    alike = [fault, *(name for name in shares if name != fault and shares[name] > ALIKE * shares[fault])]
    like = ", ".join(
        f"{100 * min(1.0, shares[name]):.0f} % {'of what is left looks ' if name == fault else ''}like "
        f"{CURES[name][0]}"
        for name in alike
    )
    flags = ", or ".join(dict.fromkeys(CURES[name][1] for name in alike))
    numbers = {"looks_like": fault, "looks_like_share": min(1.0, shares[fault])}
    moved = fault in ("positions", "deformation")
    return Cause(f"{like}; try {FROM_FLAT} {flags}", numbers, moved)


def named_faults(placed: PlacedReconstruction, fit: Fit, noise: float) -> dict[str, float]:
    """Return which faults explain enough of what is left, and the share that each takes away.

    ``noise`` is as for :func:`cause`. Empty where too little is left. Positions that were refined do not
    count.
    """
    excess = float(fit.misfit.sum()) - noise
    if len(placed.rows) < FEWEST_PATTERNS or excess <= LEAST_EXCESS * noise:
        return {}
    per_pattern = excess / len(fit.misfit)
    shares = {
        fault: gain / per_pattern
        for fault, gain, chance in _gains(placed)
        if gain > CHANCE * chance / 4 / (fit.photons or 1.0)
    }
    return {fault: float(share) for fault, share in shares.items() if share > LEAST_SHARE[fault]}


def _gains(placed: PlacedReconstruction) -> Iterator[tuple[str, float, float]]:
    """Yield faults, how much misfit each takes away per pattern, and the number of its sizes per pattern."""
    scan, plan = placed.scan, placed.plan
    most = int(np.clip(MOST_PIXELS // plan.patch_px**2, FEWEST_PATTERNS, MOST_PATTERNS))
    rows = np.unique(np.linspace(0, len(placed.rows) - 1, min(len(placed.rows), most)).astype(np.int64))
    chunks = [_Chunk(placed, rows[start : start + CHUNK]) for start in range(0, len(rows), CHUNK)]
    count = len(rows)
    if position_correction(placed) is None:
        yield from _of_positions(placed, rows, chunks)
    told = [chunk.probe_gradient() for chunk in chunks]
    gradient, power = (sum(part) for part in zip(*told, strict=True))
    step, lit_px = -gradient / (power + PROBE_DAMPING * power.max()), lit_area_px(placed.found.probe)
    own = sum(chunk.pixel_sums(chunk.of_probe(step)) for chunk in chunks)
    # What every pattern has in common is a matter of the pixels: their gain, or the scale of the object.
    common = own[2] / np.maximum(own[4], 1e-30)
    normal, right = (float((own[k] - common * own[2 + k]).sum()) for k in (0, 1))
    yield "probe", max(0.0, right) ** 2 / max(normal, 1e-30) / count, 2 * lit_px / count
    if scan.fresnel_number is None and scan.detector_upsampling == 1:
        yield "parts", _gain(chunk.along([chunk.of_parts()]) for chunk in chunks) / count, 1 / count
    if len(placed.found.probe) == 1:
        yield "motion", _gain(chunk.along(chunk.of_motion()) for chunk in chunks) / count, 2 / count


def _of_positions(
    placed: PlacedReconstruction, rows: NDArray[np.int64], chunks: list[_Chunk]
) -> Iterator[tuple[str, float, float]]:
    """Yield what other positions explain, as :func:`_gains` does."""
    told = [chunk.motion() for chunk in chunks]
    normal, right = (np.concatenate(part).astype(np.float64) for part in zip(*told, strict=True))
    own = normal[:, :2, :2]
    own = own + max(RIDGE * np.trace(own, axis1=1, axis2=2).mean(), 1e-30) * np.eye(2)
    steps = np.linalg.solve(own, right[:, :2, None])[:, :, 0]
    yield "positions", float((right[:, :2] * steps).sum()) / len(rows), 2.0
    places = (placed.positions_yx_px - placed.plan.origin_yx_px)[rows]
    radius_px = float(np.sqrt(lit_area_px(placed.found.probe) / np.pi))
    fields = Deformation.of_scan(places, placed.plan.shape_yx, radius_px, affine=False)
    square, line = fields.sums(places, normal, right)
    square = square + RIDGE * np.trace(square) / len(square) * np.eye(len(square))
    yield "deformation", float(line @ np.linalg.solve(square, line)) / len(rows), len(line) / len(rows)


def _gain(told: Iterable[tuple[Real, Real]]) -> float:
    """Return the misfit that sizes which are never negative take away, from sums N (K, K) and R (K,)."""
    from scipy.optimize import nnls

    normal, right = (sum(part).astype(np.float64) for part in zip(*told, strict=True))
    root = np.linalg.cholesky(normal + RIDGE * max(float(np.trace(normal)), 1e-30) * np.eye(len(normal)))
    sizes = nnls(root.T, np.linalg.solve(root, right))[0]
    return float(2 * right @ sizes - sizes @ normal @ sizes)


class _Chunk:
    """Some patterns, with what is expected of them and what is left."""

    def __init__(self, placed: PlacedReconstruction, rows: NDArray[np.int64]) -> None:
        self.obj, self.detector = placed.found.obj, placed.detector(rows)
        self.probes, self.amplitude = placed.probes(rows), placed.measured_amplitude(rows)
        self.corners_yx, self.shifts_yx_px = placed.plan.corners_yx[rows], placed.plan.shifts_yx_px[rows]
        self.n_px = placed.plan.patch_px
        self.patches = extract_patches(self.obj, self.corners_yx, self.n_px)
        self.field = propagate(exit_waves(self.patches, self.probes), self.detector)
        self.light = _counts(self.field)
        self.root, self.missed = root_residual(self.detector.counted(self.light), self.amplitude)

    def motion(self) -> tuple[Real, Real]:
        """Return the equations of the motion of every pattern, with strains (eq. 23)."""
        return motion_equations(
            self.obj, self.corners_yx, self.probes, self.amplitude, self.detector, strains=True
        )

    def probe_gradient(self) -> tuple[NDArray[np.complexfloating], Real]:
        """Return what the patterns ask of the probe (P, N, N), and the power of the object (N, N)."""
        missed = unmatched_waves(exit_waves(self.patches, self.probes), self.amplitude, self.detector)
        missed = part_modes_adjoint(missed, self.detector.part_turns)
        power = (np.abs(self.patches) ** 2).sum(axis=0)
        return probe_gradient(self.patches, missed, self.shifts_yx_px), power

    def along(self, changes: list[Real]) -> tuple[Real, Real]:
        """Return N (K, K) and R (K,) of changes of the counts (J, N, N)."""
        kept = measured(self.amplitude)
        basis = np.stack([np.where(kept, change / (2 * self.root), 0).ravel() for change in changes])
        return basis @ basis.T, basis @ self.missed.ravel()

    def pixel_sums(self, change: Real) -> Real:
        """Return the sums over patterns of V V, V e, V A, A e, A A of every pixel, (5, N, N)."""
        kept = measured(self.amplitude)
        moved, root = np.where(kept, change / (2 * self.root), 0), np.where(kept, self.root, 0)
        pairs = ((moved, moved), (moved, self.missed), (moved, root), (root, self.missed), (root, root))
        return np.stack([np.einsum("jyx,jyx->yx", *pair) for pair in pairs]).astype(np.float64)

    def of_probe(self, step: NDArray[np.complexfloating]) -> Real:
        """Return how the counts change with a step of the probe (P, N, N)."""
        moved = part_modes(shift_field(step, self.shifts_yx_px), self.detector.part_turns)
        change = propagate(exit_waves(self.patches, moved), self.detector)
        return 2 * (self.field.real * change.real + self.field.imag * change.imag).sum(axis=1)

    def of_parts(self) -> Real:
        """Return the counts of pixels of 2 x 2 parts less those of their middle (eq. 5b)."""
        parted = part_modes(self.probes, part_turns(self.n_px, 2))
        return _counts(propagate(exit_waves(self.patches, parted))) - self.light

    def of_motion(self) -> list[Real]:
        """Return half the curvature of the counts along y and x [photons / px^2]."""
        obj = np.pad(self.obj, 1, mode="edge")

        def at(step_yx: tuple[int, int]) -> Real:
            patches = extract_patches(obj, self.corners_yx + 1 + np.array(step_yx), self.n_px)
            return _counts(propagate(exit_waves(patches, self.probes), self.detector))

        return [(at((y, x)) + at((-y, -x))) / 2 - self.light for y, x in ((1, 0), (0, 1))]


def _counts(field: NDArray[np.complexfloating]) -> Real:
    """Return the photons (J, N, N) of the modes of waves (J, P, N, N)."""
    return (field.real**2 + field.imag**2).sum(axis=1)
