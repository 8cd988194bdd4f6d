"""The primitives of the solver on plain Python numbers: an object of one pixel.

Pattern j measures a_j, and the model expects gain_j P O. Its own sums are then those of a least-squares
problem that can be written out by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from ptycho.solver import schedule
from ptycho.solver.primitives import Sums, Wanted

COUNT = 32
MEASURED = [1.0 + 0.3 * ((7 * j) % 5) for j in range(COUNT)]
CURVATURES = [1.0 + (j % 3) for j in range(COUNT)]
BOUND = 5.0
"""Ratio of the curvature that the preconditioner assumes to the real one: one step does not arrive."""
GAIN = 0.05
"""How much further than its step an object goes, in one piece."""


class Values(tuple[float, ...]):
    """One number for each pattern, which adds like an array."""

    def _each(self, other: Any, how: Callable[[float, float], float]) -> Values:
        others = other if isinstance(other, Values) else [other] * len(self)
        return Values(how(a, b) for a, b in zip(self, others, strict=True))

    def __add__(self, other: Any) -> Values:  # type: ignore[override]
        return self._each(other, lambda a, b: a + b)

    def __radd__(self, other: Any) -> Values:
        return self + other

    def __sub__(self, other: Any) -> Values:
        return self._each(other, lambda a, b: a - b)

    def __truediv__(self, other: Any) -> Values:
        return self._each(other, lambda a, b: a / b)


class Piece(NamedTuple):
    """Two patterns or fewer."""

    rows: list[int]
    drive: list[float]
    amplitude: list[float]
    curvature: list[float]


class Scan:
    """Patterns of a scan, or the part of them that one process holds."""

    def __init__(self, own: Sequence[int] = range(COUNT), most: int = 8) -> None:
        self.own, self.subsets, self.probe = list(own), most, 2.0
        self.shifts, self.frame_gain = Values([0.0] * len(own)), Values([1.0] * len(own))
        self.asked: list[tuple[int, int]] = []
        self.log: list[str] = []
        self.changes: list[dict[str, Any]] = []

    @property
    def position_step(self) -> float:
        return schedule.POSITION_STEP

    def __iter__(self) -> Iterator[Piece]:
        return self.part(0, 1)

    def part(self, index: int, count: int) -> Iterator[Piece]:
        self.asked.append((index, count))
        rows = [row for row, j in enumerate(self.own) if j % count == index]
        for start in range(0, len(rows), 2):
            chosen = rows[start : start + 2]
            yield Piece(
                chosen,
                [self.frame_gain[row] * self.probe for row in chosen],
                [MEASURED[self.own[row]] for row in chosen],
                [CURVATURES[self.own[row]] for row in chosen],
            )

    def position_steps(self, found: Any, ridge: float, limit_px: float, deformation: Any = None) -> Values:
        self.log.append("positions")
        steps = [0.0] * len(self.own)
        for row, curvature, missed, _ in (row for part in found for row in part):
            left = missed - (0.0 if deformation is None else deformation)
            steps[row] = max(-limit_px, min(limit_px, left / (curvature + ridge)))
        return Values(steps)

    def start_variation(self, count: int, search_steps: int) -> None:
        self.log.append("variation")

    def vary(self, sums: Sums, found: Any) -> Sums:
        return {"varied": sum(missed for part in found for _, _, missed, _ in part)}

    def settle(
        self, sums: Sums, count: float, probe: float, before: float, start: float
    ) -> tuple[float, float]:
        return probe + 0.1 * sums["varied"] / count, before

    def deformation_sums(self, found: Any, *, affine: bool) -> Sums:
        told = [row for part in found for row in part]
        return {"deformation": sum(missed for _, _, missed, _ in told) * (0.5 if affine else 1.0)}

    def deformation(self, sums: Sums) -> tuple[float, Values]:
        """A field that grows along the scan."""
        self.log.append("deformation")
        return sums["deformation"] / COUNT, Values(0.01 * sums["deformation"] * j / COUNT for j in self.own)

    def deformed(self, obj: float, deformation: float, offset_yx_px: float) -> float:
        self.log.append("deformed")
        return obj * (1 + 1e-3 * deformation - 1e-3 * offset_yx_px)

    def change(self, **values: Any) -> None:
        self.changes.append(values)
        for name, value in values.items():
            setattr(self, name, value)


class Numbers:
    """The primitives on Python numbers, and a record of their use."""

    def __init__(self) -> None:
        self.used: list[str] = []
        self.wanted: list[Wanted] = []
        self.constants: list[Any] = []

    def constant(self, array: Any) -> Any:
        self.constants.append(array)
        return array

    def chunk_sums(self, obj: float, chunk: Piece, wanted: Wanted) -> tuple[Sums, Any]:
        self.used.append("sums")
        self.wanted.append(wanted)
        missed = [d * obj - a for d, a in zip(chunk.drive, chunk.amplitude, strict=True)]
        sums: Sums = {"gradient": sum(d * r for d, r in zip(chunk.drive, missed, strict=True))}
        if wanted.misfit:
            sums |= {"error": sum(r * r for r in missed), "energy": sum(a * a for a in chunk.amplitude)}
        if wanted.probe:
            sums |= {"probe_gradient": sum(obj * r for r in missed), "object_power": len(missed) * obj**2}
        if wanted.positions:
            sums["curvature"] = sum(chunk.curvature)
        if wanted.positions or wanted.frames or wanted.variation:
            sums["patterns"] = len(missed)
        if wanted.illumination:
            sums["illumination"] = sum(d * d for d in chunk.drive)
        fits = [a / (d * obj) for d, a in zip(chunk.drive, chunk.amplitude, strict=True)]
        return sums, list(zip(chunk.rows, chunk.curvature, missed, fits, strict=True))

    def preconditioned(self, gradient: float, illumination: float) -> float:
        self.used.append("object")
        return gradient / (BOUND * illumination)

    def phase_gain(
        self, obj: float, chunk: Piece, count: int, least: float, stiffness_px2: float = 0.0
    ) -> float:
        return GAIN / count

    def advanced(
        self, leading: float, step: float, illumination: float, gain: float, slow: int | None
    ) -> tuple[float, int]:
        assert slow is None or slow > 0
        return leading - (1 + gain) * step, 1 if slow is None else slow + 1

    def uphill(self, step: float, new: float, old: float) -> bool:
        return step * (new - old) > 0

    def total_variation_gradient(self, obj: float) -> float:
        self.used.append("smoothing")
        return obj

    def probe_step(self, gradient: float, object_power: float) -> float:
        self.used.append("probe")
        return gradient / object_power

    def same_power(self, probe: float, reference: float) -> float:
        return probe * (0.5 + 0.5 * reference / probe)

    def frame_factors(self, found: Any, gain: Values, previous: Values, momentum: float) -> Values:
        self.used.append("frames")
        fits = [fit for *_, fit in sorted(row for part in found for row in part)]
        return Values(g * fit * (g / p) ** momentum for g, p, fit in zip(gain, previous, fits, strict=True))

    def pattern_sum(self, values: Values) -> float:
        return sum(values)
