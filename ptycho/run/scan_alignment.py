"""Find out how several scans of one sample lie to each other, by a short reconstruction of each of them.

All are reconstructed with the same probe: a probe that is off to one side moves every object alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ptycho.data.joined import join_scans
from ptycho.data.reconstruction import Reconstruction
from ptycho.data.scan import Scan
from ptycho.errors import DataError
from ptycho.geometry.batches import lit_area_px
from ptycho.geometry.registration import CLEAR, Match, Picture, match
from ptycho.process.progress import Progress
from ptycho.run.orientation_search import Trial
from ptycho.run.shared_field import shift_to
from ptycho.solver.options import RefineOptions

STEPS = 40
"""Iterations of a trial."""
FULL_WEIGHT = 0.25
"""Share of the strongest illumination from which a pixel counts in full."""


@dataclass(frozen=True)
class Place:
    """Where a scan lies."""

    offset_yx_px: NDArray[np.float64]  # (2,), added to the positions of its file [object px]
    gain: float  # amplitude of its beam relative to that of the first scan
    found: Match | None = None  # None: the first scan
    beside: str = ""  # name of the scan that it was matched with

    def line(self, name: str) -> str:
        """Return what was found in one line."""
        if self.found is None:
            return f"scans: {name} lies as its file says; the others are matched with it"
        y_px, x_px = self.offset_yx_px
        return (
            f"scans: {name} moved by y {y_px:+.2f} px, x {x_px:+.2f} px, its beam {self.gain**2:.3g}x that "
            f"of the first (correlation {self.found.correlation:.2f} with {self.beside}, "
            f"{self.found.margin:.2g}x better than the next place)"
        )


def aligned_scan(scans: Sequence[Scan], reconstruct: Trial, progress: Progress) -> Scan:
    """Return several scans of one object as one, each moved to where it lies; tell where.

    They are of one beam (``ptycho.data.joined``). ``DataError`` where one of them shows nothing
    that another shows too.
    """
    places = find_places(scans, reconstruct, progress)
    for scan, place in zip(scans, places, strict=True):
        progress.note(place.line(scan.name))
    offsets = np.array([place.offset_yx_px for place in places])
    return join_scans(scans, offsets, np.array([place.gain for place in places]))


class _Trials:
    """Short reconstructions of scans with one probe, that of the first scan refined on it."""

    def __init__(self, first: Scan, reconstruct: Trial) -> None:
        self.reconstruct, self.mean_counts = reconstruct, first.record.mean_counts
        found = reconstruct(first, first.usable, refine=RefineOptions(STEPS, probe=True, start="flat"))
        self.probe: NDArray[np.complex64] = found.probe

    def __call__(self, scan: Scan) -> Reconstruction:
        """Return the object of a scan; its beam is taken to be as strong as its patterns."""
        given = self.probe * np.float32(self.gain(scan))
        options = RefineOptions(STEPS, start="flat")
        return self.reconstruct(scan, scan.usable, refine=options, given_probe=given)

    def gain(self, scan: Scan) -> float:
        """Return the amplitude of the beam that a scan is reconstructed with, relative to the first."""
        return float(np.sqrt(scan.record.mean_counts / self.mean_counts))


@dataclass(frozen=True)
class _Placed:
    """A scan that was found."""

    place: Place
    scan: Scan  # about where it lies
    obj: Reconstruction  # made there
    rest_yx_px: NDArray[np.float64]  # (2,), from there to its place


def find_places(scans: Sequence[Scan], reconstruct: Trial, progress: Progress) -> list[Place]:
    """Return where each of several scans lies in the frame of the first; error as :func:`aligned_scan`."""
    count = len(scans)
    with progress.phase("matching scans", 2 * count) as phase:
        trial, objects = _Trials(scans[0], reconstruct), []
        phase.update(1)
        for scan in scans:
            objects.append(trial(scan))
            phase.update(1 + len(objects))
        spot_px = float(np.sqrt(lit_area_px(trial.probe) / np.pi))
        placed = {0: _Placed(Place(np.zeros(2), 1.0), scans[0], objects[0], np.zeros(2))}
        while len(placed) < count:
            number, other, best = _best_match([_picture(found) for found in objects], placed, spot_px)
            if best is None or not best.clear:
                raise _not_found(scans[number], [scans[index].name for index in placed], best)
            beside = placed[other]
            start = beside.place.offset_yx_px - beside.rest_yx_px + best.offset_yx_px
            # Once more where it lies: two objects agree to a fraction of a pixel on the same pixels only.
            scan = _moved(scans[number], start)
            obj = trial(scan)
            gain = trial.gain(scans[number]) / trial.gain(scans[other]) * best.factor
            rest, gain = _settled(scan, obj, beside, gain)
            place = Place(start + rest, beside.place.gain * gain, best, scans[other].name)
            placed[number] = _Placed(place, scan, obj, rest)
            phase.update(count + len(placed))
    return [placed[number].place for number in range(count)]


def _best_match(
    pictures: Sequence[Picture], placed: dict[int, _Placed], spot_px: float
) -> tuple[int, int, Match | None]:
    """Return the scan that is found best beside one of those placed, that one, and how they match."""
    tried = [
        (number, other, match(pictures[other], pictures[number], spot_px))
        for number in range(len(pictures))
        if number not in placed
        for other in placed
    ]
    return max(tried, key=lambda item: 0.0 if item[2] is None else item[2].evidence)


def _moved(scan: Scan, offset_yx_px: NDArray[np.float64]) -> Scan:
    return replace(scan, positions_yx_px=scan.positions_yx_px + offset_yx_px)


def _settled(
    scan: Scan, obj: Reconstruction, beside: _Placed, gain: float
) -> tuple[NDArray[np.float64], float]:
    """Return what is left of the offset of a scan, and its beam relative to that of another, from the
    patterns of each on the object of the other; as it is where these do not tell."""
    signed = ((1.0, shift_to(scan, beside.obj)), (-1.0, shift_to(beside.scan, obj)))
    told = [(sign, found) for sign, found in signed if found is not None]
    if not told:
        return beside.rest_yx_px, gain
    normal = sum(found.normal for _, found in told)
    right = sum(sign * found.normal @ found.offset_yx_px for sign, found in told)
    power = [sign * np.log(found.power) for sign, found in told]
    return beside.rest_yx_px + np.linalg.solve(normal, right), float(np.exp(np.mean(power) / 2))


def _picture(found: Reconstruction) -> Picture:
    weight = np.where(found.scanned, np.minimum(found.coverage / FULL_WEIGHT, 1.0), 0.0)
    return Picture(found.obj, weight, found.origin_yx_px)


def _not_found(scan: Scan, placed: Sequence[str], best: Match | None) -> DataError:
    got = "no common field"
    if best is not None:
        got = f"a correlation of {best.correlation:.2f}, {best.margin:.2f}x better than another place"
    return DataError(
        f"{scan.name}: it is not clear where it lies beside {' or '.join(placed)} (got {got}, expected >= "
        f"{CLEAR}x). Reconstruct the scans one by one, or pass --align-scans false to take positions as they "
        "are."
    )
