"""What a file says about its scan, against what it holds: units, domain of the patterns, unread arrays."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho.data.checks.overlap import spot_px, step_px
from ptycho.data.domain import BY_USER, domain_sample, photon_references, steps_of, totals_of
from ptycho.data.optics import ELECTRON_VOLT_J, NUMBERS, Optics
from ptycho.data.scan import Scan
from ptycho.errors import DataError

SMALLEST_STEP_PX = 0.5
"""Neighbours closer than this have nearly the same pattern, whatever the sample: it has no finer detail."""
ALIKE = 0.1
"""Squared difference of neighbours, in units of that of any two patterns, up to which they are alike."""
FEWEST_PATTERNS = 6
"""In fewer patterns neighbours and any two are the same pairs."""
SAMPLE = 64
"""Pairs that are compared."""
SAME_PIXEL = 0.01
"""Relative difference of two object pixel sizes that are the same."""
IN_METRES = ("cxi", "ptychodus")
"""Formats whose positions are in metres."""
SILENT = {"probe_true", "data_error"}
"""What our own simulations keep for comparison, and the errors of counts."""
PATTERNS = "intens|diffr|diff3d|pattern|counts|frames|(data|detector)_[0-9]+/data$"
OFFERS = (
    ("mask|bad|good_?pix|valid|hot", "store it as {mask} to use it"),
    ("probe|illumination", "{probe}"),
    ("dark|white|flat|background|gain", "the patterns are taken as corrected by it"),
    (PATTERNS, "store it as {patterns} to use it"),
)
"""Expression that a name holds -> what to do with the array; the first that fits."""
USUAL_STEPS = (0.03, 0.8)
"""Steps of a scan in units of the diameter of its spot."""
UNITS_M = {"metres": 1.0, "millimetres": 1e-3, "micrometres": 1e-6, "nanometres": 1e-9, "angstrom": 1e-10}
USUAL_STEPS_M = (2e-9, 2e-5)
"""Steps of scans, where the object pixel is not known [m]."""


@dataclass(frozen=True)
class Quantity:
    """A number of the optics, the values it may have, and the units it is mistaken in."""

    name: str
    field: str  # attribute of :class:`Optics`
    unit: str
    ranges: tuple[tuple[float, float], ...]  # that make sense [unit]
    mistakes: dict[str, float]  # unit that a number may be in -> factor from it to ours
    power: int  # an object pixel goes with the number to this power

    def plausible(self, value: float) -> bool:
        """Tell whether a value makes sense."""
        return any(low <= value <= high for low, high in self.ranges)

    def value(self, optics: Optics) -> float | None:
        """Return the number of some optics; that of the rows where there are two."""
        found: Any = getattr(optics, self.field)
        return float(found[0]) if isinstance(found, tuple) else found


_LENGTHS = {"mm": 1e-3, "um": 1e-6, "nm": 1e-9, "cm": 1e-2}
QUANTITIES = (
    # Lasers, then extreme ultraviolet to hard X-rays.
    Quantity("photon energy", "photon_energy_eV", "eV", ((1.2, 4.0), (30.0, 2e5)),
             {"keV": 1e3, "J": 1 / ELECTRON_VOLT_J, "MeV": 1e6}, -1),
    Quantity("distance to the detector", "detector_distance_m", "m", ((1e-3, 50.0),), _LENGTHS, 1),
    Quantity("detector pixel", "detector_pixel_yx_m", "m", ((5e-7, 3e-3),), _LENGTHS, -1),
    Quantity("object pixel", "object_pixel_yx_m", "m", ((1e-12, 1e-5),), {**_LENGTHS, "angstrom": 1e-10}, 1),
)  # fmt: skip


def implausible(optics: Optics) -> Iterator[str]:
    """Yield a few words on every number that makes no sense, and what it would be in another unit."""
    for quantity in QUANTITIES:
        value = quantity.value(optics)
        if value is None or quantity.plausible(value):
            continue
        others = (
            f"{value:.4g} {unit} would be {value * factor:.4g} {quantity.unit}"
            for unit, factor in quantity.mistakes.items()
            if quantity.plausible(value * factor)
        )
        text = f"the {quantity.name} is {value:.4g} {quantity.unit}"
        likely = next(others, None)
        yield f"{text} ({likely})" if likely else text


def mistaken_number(optics: Optics, low: float, high: float, *, derived: bool) -> str | None:
    """Say which number's unit, and flag, explains positions that a factor within bounds would mend.

    None where no single number does. ``derived``: the object pixel follows from energy, distance and detector
    pixel.
    """
    fitting = []
    for quantity in QUANTITIES:
        value = quantity.value(optics)
        if value is None or derived == (quantity.field == "object_pixel_yx_m"):
            continue
        for unit, factor in quantity.mistakes.items():
            # Positions in pixels go with one over the object pixel.
            if low <= factor**-quantity.power <= high and quantity.plausible(value * factor):
                text = (
                    f"the {quantity.name} is taken as {value:.4g} {quantity.unit}, and in {unit} it fits; "
                    f"pass {NUMBERS[quantity.field.replace('_yx', '')]} {value * factor:.6g}"
                )
                fitting.append((quantity.plausible(value), text))
    # A number that makes no sense is the one; where all of them do, the first may be.
    return min(fitting, key=lambda item: item[0])[1] if fitting else None


def mistake_in_metres(
    optics: Optics, step_px: float, low_px: float, high_px: float, *, derived: bool
) -> str | None:
    """Say what explains a step > 0 that is not usual, of positions taken as metres, and the cure; or None.

    That is the unit of a number, see :func:`mistaken_number`, or of the positions.
    """
    likely = mistaken_number(optics, low_px / step_px, high_px / step_px, derived=derived)
    if likely is not None:
        return likely
    for name, factor in UNITS_M.items():
        if factor != 1.0 and low_px <= step_px * factor <= high_px:
            return f"the positions are in {name}; store them in metres"
    pixel = optics.object_pixel_yx_m
    if pixel is not None and low_px <= step_px * pixel[0] <= high_px:
        return "the positions are in object pixels; multiply them by the object pixel size in metres"
    return None


def unit_of_pixels(optics: Optics, step_px: float, low_px: float, high_px: float) -> str | None:
    """Name the unit, and the cure, of positions taken as object pixels whose step is not usual; or None."""
    pixel = optics.object_pixel_yx_m
    for name, factor in UNITS_M.items():
        if pixel is not None and low_px <= step_px * factor / pixel[0] <= high_px:
            return f"They seem to be in {name}: divide xcoords and ycoords by {pixel[0] / factor:.4g}"
    for name, factor in UNITS_M.items():
        if USUAL_STEPS_M[0] <= step_px * factor <= USUAL_STEPS_M[1]:
            return f"They seem to be in {name}: divide xcoords and ycoords by the object pixel size"
    return None


def check_positions(scan: Scan) -> str | None:
    """Refuse positions that cannot be object pixels; warn where all patterns are at one place.

    Neighbours differ more than such a small step can change, or are further apart than a patch.
    """
    positions = scan.positions_yx_px[scan.usable]
    if len(positions) < 2:
        return None
    step = step_px(positions)
    if step > scan.n_px:
        raise _wrong_unit(
            scan, step, f"neighbours that are {step:.4g} px apart, where a patch is {scan.n_px} px wide"
        )
    if step >= SMALLEST_STEP_PX or len(positions) < FEWEST_PATTERNS:
        return None
    if _neighbours_differ(scan):
        apart = "all positions the same" if step == 0 else f"neighbours that are {step:.4g} px apart"
        raise _wrong_unit(scan, step, f"{apart}, whose patterns differ like any two")
    if step == 0 or np.ptp(positions, axis=0).max() < SMALLEST_STEP_PX:
        return "all patterns are at one place, so object and probe cannot be told apart; scan the sample"
    return None


def check_optics(scan: Scan) -> str | None:
    """Warn of numbers of the instrument that make no sense, or contradict each other."""
    optics = Optics.from_metadata(scan.raw.metadata, scan.raw.source)
    odd = list(implausible(optics))
    expected = _derived_pixel(optics, scan.n_px)
    if optics.object_pixel_yx_m is not None and expected is not None:
        ratio = np.array(optics.object_pixel_yx_m) / np.array(expected)
        if np.abs(ratio - 1).max() > SAME_PIXEL:
            odd.append(
                f"energy, distance and detector pixel give an object pixel of {expected[0]:.4g} m, not "
                f"{optics.object_pixel_yx_m[0]:.4g} m, which is taken"
            )
    if not odd:
        return None
    return (
        f"{'; '.join(odd)}; correct it with --photon-energy, --detector-distance, --detector-pixel or "
        "--object-pixel"
    )


def check_domain(scan: Scan) -> str | None:
    """Warn where patterns that are taken for counts look like amplitude, or the other way round."""
    raw, record = scan.raw, scan.record
    sample = domain_sample(raw, scan.usable)
    whole = raw.diff3d.dtype.kind in "iub" or not (sample % 1).any()
    # Whole numbers have the steps of counts also where they are rounded amplitude.
    kind, why = (None if whole else steps_of(sample)), "single photons leave the steps of it"
    if kind is None:
        references = photon_references(raw)
        found = totals_of(sample, references)
        if found is None:
            return None
        kind, names = found
        # One number may fit by chance; it counts where nothing but a default or a flag is against it.
        alone = names in references
        if alone and (whole or (record.reason != BY_USER and record.domain == "counts")):
            return None
        why = f"its total fits {names}"
    if kind == record.domain:
        return None
    return (
        f"the patterns are taken as {record.domain} ({record.reason}), but look like {kind}: {why}; pass "
        f"--measurement-domain {kind}"
    )


def check_contents(scan: Scan) -> str | None:
    """Name the arrays of a file that are not read, and what would use them."""
    offers = []
    for key, shape in scan.raw.unused.items():
        cure = next((cure for name, cure in OFFERS if re.search(name, key.lower())), None)
        if cure is not None and key.rpartition("/")[2] not in SILENT:
            offers.append(f"{key} {shape}: {cure.format_map(scan.raw.places).format(key=key)}")
    return f"the file also holds arrays that are not read ({'; '.join(offers)})" if offers else None


def _neighbours_differ(scan: Scan) -> bool:
    """Tell whether patterns of neighbours are as different as those of any two places."""
    from scipy.spatial import cKDTree

    rows = scan.usable
    random = np.random.default_rng(0)
    chosen = random.permutation(len(rows))[:SAMPLE]
    positions = scan.positions_yx_px[rows]
    # The exact copy of a place is a repeated exposure; where all are copies, any other pattern will do.
    near = cKDTree(positions).query(positions[chosen], k=2)[1]
    near = np.where(near[:, 1] == chosen, near[:, 0], near[:, 1])
    far = (chosen + random.integers(1, len(rows), len(chosen))) % len(rows)
    here = _shape(scan, rows[chosen])
    neighbours, others = (_difference(here, _shape(scan, rows[found])) for found in (near, far))
    # Only pixels that hold photons have the noise of an amplitude, 1/4.
    lit = float((scan.amplitude(rows[chosen]) > 0).mean())
    noise = 2 * 0.25 * lit / scan.record.mean_counts * scan.n_px**2
    if np.ptp(positions, axis=0).max() == 0.0:
        return others > max(4 * noise, 0.01)
    return min(neighbours, others) > 2 * noise and neighbours - noise > ALIKE * (others - noise)


def _shape(scan: Scan, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return amplitudes of unit power: the beam may change its strength."""
    amplitude = scan.amplitude(rows).astype(np.float64).clip(0.0)
    return amplitude / np.sqrt((amplitude**2).sum(axis=(1, 2), keepdims=True)).clip(1e-300)


def _difference(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    return float(np.median(((first - second) ** 2).sum(axis=(1, 2))))


def _wrong_unit(scan: Scan, step: float, found: str) -> DataError:
    """Build the refusal, with the unit that explains it where there is one."""
    optics = Optics.from_metadata(scan.raw.metadata, scan.raw.source)
    spot = spot_px(scan)
    low, high = (share * spot for share in USUAL_STEPS)
    form = (scan.raw.metadata or {}).get("source_format")
    mend = None
    if form in IN_METRES:
        likely = None
        if step > 0:
            derived = form == "cxi" and _follows(optics, scan.n_px)
            likely = mistake_in_metres(optics, step, low, high, derived=derived)
        likely = likely or next(implausible(optics), None)
        mend = f"It seems that {likely}" if likely else "Check the units of positions and of the instrument"
    elif step > 0:
        mend = unit_of_pixels(optics, step, low, high)
    apart = "Patches that share no pixel cannot be put together: scan in smaller steps, or check the unit"
    mend = mend or (apart if step > scan.n_px else "Save xcoords and ycoords in object pixels")
    return DataError(
        f"{scan.name}: the positions are not in object pixels (got {found}, expected steps of {low:.2g} to "
        f"{high:.2g} px for a beam {spot:.3g} px wide). {mend}."
    )


def _follows(optics: Optics, n_px: int) -> bool:
    """Tell whether the object pixel is the one that follows from the other sizes."""
    expected, stated = _derived_pixel(optics, n_px), optics.object_pixel_yx_m
    return None not in (expected, stated) and bool(np.allclose(stated, expected, rtol=SAME_PIXEL))


def _derived_pixel(optics: Optics, n_px: int) -> tuple[float, float] | None:
    """Object pixel that energy, distance and detector pixel give [m]."""
    return replace(optics, object_pixel_yx_m=None).completed(n_px).object_pixel_yx_m
