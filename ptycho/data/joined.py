"""Several scans as one: patterns side by side, read where they lie, and which scan each of them is from.

All of them share one object and one beam. Positions of a scan may be off by an offset, and its beam may be
stronger or weaker than that of another (eq. 28).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho.data.canonical import probe_power
from ptycho.data.frame_cut import FrameCut
from ptycho.data.optics import Optics
from ptycho.data.raw import COLUMNS, INDEX_KEY, RawData
from ptycho.data.scan import Scan, ScanParts
from ptycho.errors import DataError
from ptycho.geometry.canvas import check_extent

SAME_OPTICS = 0.01
"""Relative difference of photon energies, object pixels and Fresnel numbers up to which they count as one."""


class Stacked:
    """Stacks (M_s, N, N) of several scans as one (M, N, N); only the rows that are asked for are copied."""

    ndim = 3

    def __init__(self, parts: Sequence[Any], dtype: Any, n_px: int) -> None:
        self.parts, self.dtype = tuple(parts), np.dtype(dtype)
        self._ends = np.cumsum([len(part) for part in self.parts])
        self.shape = (int(self._ends[-1]), n_px, n_px)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> NDArray[Any]:
        """Return some rows: a slice, or indices of any shape S, as (\\*S, N, N)."""
        index = np.arange(len(self))[rows]
        flat = index.reshape(-1)
        found = np.empty((len(flat), *self.shape[1:]), self.dtype)
        whose = np.searchsorted(self._ends, flat, side="right")
        for number in np.unique(whose):
            own, part = whose == number, self.parts[number]
            found[own] = part[flat[own] - (self._ends[number] - len(part))]
        return found.reshape(*index.shape, *self.shape[1:])


@dataclass(frozen=True)
class _Amplitudes:
    """The amplitudes of a scan [sqrt(photons)] as a stack of patterns."""

    scan: Scan

    def __len__(self) -> int:
        return self.scan.n_patterns

    def __getitem__(self, rows: Any) -> NDArray[np.float32]:
        return self.scan.amplitude(rows)


def check_same_kind(first: Scan, other: Scan) -> None:
    """Refuse two scans that no one network sees by a ``DataError``: of patterns of another size or field, of
    pixels of other parts, or a probe of another size."""
    if other.n_px != first.n_px:
        raise _unlike(first, other, "size of the patterns", f"{other.n_px} px", f"{first.n_px} px")
    names = ["far" if scan.fresnel_number is None else "near" for scan in (other, first)]
    if names[0] != names[1]:
        raise _unlike(first, other, "field of the detector", *names)
    parts = [str(scan.detector_upsampling) for scan in (other, first)]
    if parts[0] != parts[1]:
        raise _unlike(first, other, "number of parts of a detector pixel", *parts)
    if other.patch_px != first.patch_px:
        raise _unlike(first, other, "size of the probe", f"{other.patch_px} px", f"{first.patch_px} px")


def check_same_beam(first: Scan, other: Scan) -> None:
    """Refuse two scans whose patterns do not belong to one beam on one detector by a ``DataError``."""
    check_same_kind(first, other)
    found = [
        Optics.from_metadata(scan.raw.metadata, scan.name).completed(scan.n_px) for scan in (first, other)
    ]
    for what, unit, values in (
        ("photon energy", "eV", [optics.photon_energy_eV for optics in found]),
        ("height of an object pixel", "m", [(optics.object_pixel_yx_m or (None,))[0] for optics in found]),
        ("Fresnel number", "", [scan.fresnel_number for scan in (first, other)]),
    ):
        one, two = values
        if one is not None and two is not None and abs(two / one - 1) > SAME_OPTICS:
            told = (f"{value:.6g} {unit}".strip() for value in (two, one))
            raise _unlike(first, other, what, *told)


def _unlike(first: Scan, other: Scan, what: str, got: str, expected: str) -> DataError:
    return DataError(
        f"{other.name}: the {what} is not that of {first.name} (got {got}, expected {expected}). "
        "Leave one of them out."
    )


def stated_gains(scans: Sequence[Scan]) -> NDArray[np.float64]:
    """Return the beam amplitude (S,) of scans relative to the first, by the probes of their files."""
    power = np.array([probe_power(scan.probe) for scan in scans])
    return np.sqrt(power / power[0])


def join_scans(
    scans: Sequence[Scan],
    offsets_yx_px: NDArray[np.float64] | None = None,
    gains: NDArray[np.float64] | None = None,
) -> Scan:
    """Return scans of one object as one scan with the probe of the first; a single one as it is.

    ``offsets_yx_px`` (S, 2) [object px] are added to the positions, by default none; ``gains`` (S,) are the
    amplitudes of the beam relative to the first scan, by default as the files say. No pattern is copied.
    Raise ``DataError`` where the scans are not of one beam, or lie too far apart for this machine.
    """
    first, count = scans[0], len(scans)
    if count == 1:
        return first
    for other in scans[1:]:
        check_same_beam(first, other)
    offsets = np.zeros((count, 2)) if offsets_yx_px is None else np.asarray(offsets_yx_px, np.float64)
    gain = stated_gains(scans) if gains is None else np.asarray(gains, np.float64)
    sizes = np.array([scan.n_patterns for scan in scans])
    # The factors of all patterns are 1 on average, as where a refinement finds one for each of them.
    mean = float(gain @ sizes / sizes.sum())
    numbers = [int(scan.pattern_numbers.max()) + 1 for scan in scans]
    parts = ScanParts(
        names=tuple(scan.name for scan in scans),
        index=np.repeat(np.arange(count), sizes),
        first_number=np.cumsum([0, *numbers[:-1]]),
        offsets_yx_px=offsets,
        gain=gain / mean,
    )
    raw = _joined_data(scans, parts)
    check_extent(raw.positions_yx_px, raw.N, raw.source)
    counts = np.array([scan.record.mean_counts for scan in scans]) / parts.gain**2
    mean_counts = float(counts @ sizes / sizes.sum())
    scale = float(np.sqrt(mean_counts)) / (raw.N / 2)
    record = replace(
        first.record,
        domain="counts" if _all_counts(scans) else "amplitude",
        mean_counts=mean_counts,
        max_counts=max(scan.record.max_counts for scan in scans),
        input_scale=1.0 / scale,
        intensity_scale=scale,
        amplitude_gain=1.0,
    )
    starts = np.cumsum(sizes) - sizes
    return replace(
        first,
        raw=raw,
        record=record,
        probe=(first.probe * np.float32(mean)).astype(np.complex64),
        positions_yx_px=raw.positions_yx_px,
        name=raw.source,
        left_out=np.concatenate([scan.left_out + start for scan, start in zip(scans, starts, strict=True)]),
        findings=tuple(finding for scan in scans for finding in scan.findings),
        parts=parts,
    )


def _all_counts(scans: Sequence[Scan]) -> bool:
    return all(scan.record.domain == "counts" for scan in scans)


def _joined_data(scans: Sequence[Scan], parts: ScanParts) -> RawData:
    """Return the data sets of scans as one, in counts, or in amplitudes [sqrt(photons)] where one holds
    amplitudes."""
    raw = copy.copy(scans[0].raw)
    stacks = [scan.raw.diff3d if _all_counts(scans) else _Amplitudes(scan) for scan in scans]
    kinds = [stack.dtype if _all_counts(scans) else np.float32 for stack in stacks]
    raw.source = ", ".join(parts.names)
    raw.diff3d = Stacked(stacks, np.result_type(*kinds), raw.N)
    for name in COLUMNS[:4]:
        column = np.concatenate([getattr(scan.raw, name) for scan in scans])
        setattr(raw, name, column + parts.offsets_yx_px[parts.index, 0 if name.startswith("y") else 1])
    raw.scan_index, raw.cut = parts.index, FrameCut.whole(raw.N, len(parts.index), len(parts.index))
    raw.Y = raw.label = raw.norm_Y_I = None
    raw.bad_pixels, raw.background = _joined_mask(scans), _shared_background(scans)
    numbers = np.concatenate([scan.pattern_numbers for scan in scans]) + parts.first_number[parts.index]
    raw.metadata = {key: value for key, value in (raw.metadata or {}).items() if key != INDEX_KEY}
    if not np.array_equal(numbers, np.arange(len(numbers))):
        raw.metadata[INDEX_KEY] = numbers.tolist()
    return raw


def _shared_background(scans: Sequence[Scan]) -> NDArray[np.float64] | None:
    """Return what every pattern of all scans counts beside the light (N, N) [photons / pixel], or None."""
    first, shape = scans[0], (scans[0].n_px, scans[0].n_px)
    own = [np.zeros(shape) if scan.background is None else scan.background for scan in scans]
    for scan, background in zip(scans[1:], own[1:], strict=True):
        if not np.allclose(background, own[0], rtol=1e-3):
            raise DataError(
                f"{scan.name}: the background is not that of {first.name} (got {background.mean():.4g} "
                f"photons per pixel, expected {own[0].mean():.4g} as there). Leave out the key background "
                "and pass --refine-background."
            )
    return None if all(scan.background is None for scan in scans) else own[0].astype(np.float64)


def _joined_mask(scans: Sequence[Scan]) -> Any:
    """Return where nothing was measured: None, (N, N) where all scans agree, else a stack (M, N, N)."""
    masks, n_px = [scan.raw.bad_pixels for scan in scans], scans[0].n_px
    if all(mask is None for mask in masks):
        return None
    masks = [np.zeros((n_px, n_px), bool) if mask is None else mask for mask in masks]
    if all(mask.ndim == 2 and np.array_equal(mask, masks[0]) for mask in masks):
        return masks[0]
    whole = [
        np.broadcast_to(mask, (scan.n_patterns, n_px, n_px)) for mask, scan in zip(masks, scans, strict=True)
    ]
    return Stacked(whole, bool, n_px)
