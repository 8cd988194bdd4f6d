"""How the patterns of a scan fit the object that another one made of the same field (eq. 28)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho.data.canonical import blocks
from ptycho.data.reconstruction import Reconstruction
from ptycho.data.scan import Scan
from ptycho.geometry.canvas import lay_on_canvas
from ptycho.physics import diffracted_amplitude, extract_patches, part_modes, shift_field
from ptycho.physics.detector import Detector
from ptycho.physics.pixel_parts import turns_of
from ptycho.physics.propagation import near_field_transfer

MOST_PATTERNS = 96
"""Patterns that are compared, evenly taken from those in the shared field."""
LEAST_PATTERNS = 6
"""Fewer decide nothing."""
KNOWN_COVERAGE = 0.25
"""Share of the strongest illumination from which a pixel of the object counts as known."""
KNOWN_SHARE = 0.97
"""Part of the beam of a pattern that must fall on known pixels."""
STEPS = 8
REACH_PX = 2.0
"""Farther than this from the place where it began, the fit has lost its way [px]."""
HALF_STEP_PX = 0.25
"""Displacement that slopes are taken from [px]."""


@dataclass(frozen=True)
class Shift:
    """What moves patterns to where an object explains them best."""

    offset_yx_px: NDArray[np.float64]  # (2,), added to the positions of the scan [object px]
    normal: NDArray[np.float64]  # (2, 2), how well the patterns tell it [photons / px^2]
    power: float  # of the beam over that of the object's scan


def shift_to(scan: Scan, found: Reconstruction) -> Shift | None:
    """Find the offset of a scan, close to its place, at which the object of another scan explains it best.

    A Gauss-Newton fit of offset and beam to the measured amplitudes, the object at rest. None where too few
    patterns lie in the shared field, or the fit does not settle.
    """
    rows, offset = _shared(scan, found), np.zeros(2)
    if len(rows) < LEAST_PATTERNS:
        return None
    measured = scan.amplitude(rows).astype(np.float64)
    good = measured >= 0

    def expected(place: NDArray[np.float64]) -> NDArray[np.float64]:
        return _expected(scan, found, rows, place)

    for _ in range(STEPS):
        value, steps = expected(offset), HALF_STEP_PX * np.eye(2)
        slopes = [(expected(offset + step) - expected(offset - step)) / (2 * HALF_STEP_PX) for step in steps]
        gain = float(np.vdot(value[good], measured[good]) / max(np.vdot(value[good], value[good]), 1e-30))
        columns = np.stack([*(gain * slope[good] for slope in slopes), value[good]])
        normal = columns @ columns.T
        step = np.linalg.lstsq(normal, columns @ (measured - gain * value)[good], rcond=None)[0][:2]
        offset = offset + step.clip(-0.5, 0.5)
        if np.abs(offset).max() > REACH_PX:
            return None
        if np.abs(step).max() < 1e-4:
            break
    # What the beam alone explains is no displacement.
    told = normal[:2, :2] - np.outer(normal[:2, 2], normal[2, :2]) / max(normal[2, 2], 1e-30)
    value = expected(offset)
    power = float((measured[good] ** 2).sum() / max((value[good] ** 2).sum(), 1e-30))
    fit = found.fit
    own = 1.0 if fit is None else float(fit.energy.sum() / max(fit.power.sum(), 1e-30))
    return Shift(offset, told, power / own)


def _shared(scan: Scan, found: Reconstruction) -> NDArray[np.int64]:
    """Return the patterns whose beam falls on known pixels of an object, also where they move a little."""
    n_px, room_px = found.probe.shape[-1], REACH_PX + HALF_STEP_PX
    corners_px = scan.positions_yx_px[scan.usable] - (n_px - 1) / 2 - found.origin_yx_px
    far_px = np.array(found.obj.shape) - n_px
    inside = ((corners_px >= room_px) & (corners_px <= far_px - room_px)).all(axis=1)
    rows = scan.usable[inside]
    if not len(rows):
        return rows
    beam = (np.abs(found.probe) ** 2).sum(axis=0)
    known = (found.coverage >= KNOWN_COVERAGE).astype(np.float32)
    corners = _plan(scan, found, rows, np.zeros(2)).corners_yx
    share = [
        (extract_patches(known, corners[part], n_px) * beam).sum(axis=(1, 2)) for part in blocks(len(rows))
    ]
    rows = rows[np.concatenate(share) >= KNOWN_SHARE * beam.sum()]
    return rows[np.linspace(0, len(rows) - 1, min(len(rows), MOST_PATTERNS)).astype(np.int64)]


def _plan(scan: Scan, found: Reconstruction, rows: Any, offset_yx_px: NDArray[np.float64]) -> Any:
    return lay_on_canvas(
        scan.positions_yx_px[rows] + offset_yx_px,
        found.probe.shape[-1],
        shape_yx=found.obj.shape,
        origin_yx_px=np.asarray(found.origin_yx_px, np.float64),
        reach_px=np.inf,
    )


def _expected(
    scan: Scan, found: Reconstruction, rows: NDArray[np.int64], offset_yx_px: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the amplitudes (B, N, N) that the object and probe of another scan predict [sqrt(photons)]."""
    plan, number = _plan(scan, found, rows, offset_yx_px), scan.fresnel_number
    patches = extract_patches(found.obj, plan.corners_yx, plan.patch_px)
    shifts = plan.shifts_yx_px
    transfer = None if number is None else near_field_transfer(plan.patch_px, number, shifts)
    turns = turns_of(scan.n_px, scan.detector_upsampling, plan.patch_px)
    seen = Detector(transfer, scan.background, turns)
    probes = part_modes(shift_field(found.probe, shifts), turns)
    return diffracted_amplitude(patches, probes, seen).astype(np.float64)
