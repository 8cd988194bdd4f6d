r"""Whether the probe changed with time, by what is left of the patterns.

Symbols: pattern j is taken at time t_j; :math:`g_j = O_j^* \chi_j` is what it asks of the probe (eq. 9, 13).
Over one probe for all they sum to about zero. For unit weights w_j of sum 0 the power
:math:`R(w) = |\sum_j w_j g_j|^2 (J - 1) / \sum_j |g_j - \bar g|^2` is about 1 where the g_j come in no order.
Here w are half waves of 1 to 8 maxima over the scan; a probe that drifts or jumps puts its power into the
longest, one error that differs from place to place into all or none.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ptycho.data.reconstruction import PlacedReconstruction
from ptycho.physics import exit_waves, extract_patches, part_modes_adjoint, shift_field, unmatched_waves

FEWEST_PATTERNS = 25
"""Fewer say nothing."""
MOST_PATTERNS = 400
"""Patterns that are looked at; of more, as many spread over the time."""
CHUNK = 64
WAVES = 8
SHORT = 2
"""Waves from this one on are shorter than a drift or a jump."""
POWER = 2.0
"""R of the longest wave from which the probe changes: a drift by a wave 2.2 to 6 from 3e4 photons on; wrong
positions, background, fly scans and clean scans up to 1.4. A beam that fades by 40 % reaches 2.6, where next
to nothing is left unexplained."""
LEAD = 3.0
"""How far beyond 1 it must be, in units of that of the largest short wave; drifts 6 to 20."""


def probe_change_doubt(placed: PlacedReconstruction) -> str | None:
    """Say that what is left of the patterns asks for a probe that drifts or jumps during the scan.

    None where it does not, and where the probe was allowed to. It is meant for scans of which much is left.
    """
    power = None if placed.found.variation is not None else wave_powers(placed)
    if power is None or power[0] < POWER or power[0] - 1 < LEAD * (power[SHORT:].max() - 1):
        return None
    return (
        f"what is left asks for a probe that changes along the scan ({power[0]:.2g}x what chance would); try "
        "--refine-probe --probe-variation 2"
    )


def wave_powers(placed: PlacedReconstruction) -> NDArray[np.float64] | None:
    """Return R of all half waves, (WAVES,), the longest first; None where there are too few patterns."""
    count = len(placed.numbers)
    if count < FEWEST_PATTERNS:
        return None
    order = np.argsort(placed.numbers, kind="stable")
    rows = order[np.unique(np.linspace(0, count - 1, min(count, MOST_PATTERNS)).astype(np.int64))]
    phase = np.pi * (np.arange(len(rows)) + 0.5) / len(rows)
    # Rows of a discrete cosine transform: orthogonal, of sum 0.
    waves = np.cos(np.arange(1, WAVES + 1)[:, None] * phase) * np.sqrt(2 / len(rows))
    along, mean, power = 0.0, 0.0, 0.0
    for chosen, asked in _asked(placed, rows):
        along = along + np.tensordot(waves[:, chosen], asked, 1)
        mean, power = mean + asked.sum(axis=0), power + float((np.abs(asked) ** 2).sum())
    power -= float((np.abs(mean) ** 2).sum()) / len(rows)
    found = (np.abs(along) ** 2).reshape(WAVES, -1).sum(axis=1)
    return found * (len(rows) - 1) / max(power, 1e-30)


def _asked(
    placed: PlacedReconstruction, rows: NDArray[np.int64]
) -> Iterator[tuple[slice, NDArray[np.complexfloating]]]:
    """Yield what some patterns ask of the probe, (B, P, N, N), and their places among ``rows``."""
    obj, plan = placed.found.obj, placed.plan
    for start in range(0, len(rows), CHUNK):
        chosen = rows[start : start + CHUNK]
        patches = extract_patches(obj, plan.corners_yx[chosen], plan.patch_px)
        waves = exit_waves(patches, placed.probes(chosen))
        detector = placed.detector(chosen)
        missed = unmatched_waves(waves, placed.measured_amplitude(chosen), detector)
        missed = part_modes_adjoint(missed, detector.part_turns)
        asked = shift_field(np.conj(patches)[:, None] * missed, -plan.shifts_yx_px[chosen])
        yield slice(start, start + len(chosen)), asked
