"""A reconstructed object: where it lies, what it was made from, what it leaves unexplained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho.data.scaling import ScaleRecord, measured_amplitude
from ptycho.data.scan import Scan
from ptycho.errors import DataError
from ptycho.geometry.canvas import CanvasPlan, lay_on_canvas
from ptycho.physics.detector import Detector
from ptycho.physics.information import ObjectErrors
from ptycho.physics.pixel_parts import part_modes, turns_of
from ptycho.physics.propagation import near_field_transfer, shift_field
from ptycho.physics.variation import varied_probes

SCANNED_SHARE = 0.05
"""Share of the strongest illumination above which a canvas pixel counts as scanned."""


@dataclass(frozen=True)
class Fit:
    """What a reconstruction leaves unexplained, summed over good pixels [photons]."""

    misfit: NDArray[np.float64]  # (J,), sum of (A - measured)**2 of every pattern
    expected: NDArray[np.float64]  # (J,), what photon noise leaves of it on average
    energy: NDArray[np.float64]  # (J,), sum of measured**2
    power: NDArray[np.float64]  # (J,), sum of A**2
    # (J,), sum of L**2, where A = sqrt(I + B) changes by L = I / A times a small change of the light I
    light_power: NDArray[np.float64]
    gain: NDArray[np.float64]  # (J,), factor on the amplitude of the light that would fit each pattern best
    pixel_misfit: NDArray[np.float64]  # the first three by detector pixel, (N, N)
    pixel_expected: NDArray[np.float64]
    pixel_energy: NDArray[np.float64]
    pixel_power: NDArray[np.float64]  # sum of A**2
    pixel_amplitude: NDArray[np.float64]  # sum of A
    pixel_common: NDArray[np.float64]  # part of the misfit that is the same in every pattern
    # what the mean pattern, in the place of every expected one, leaves; then its noise
    pixel_varying: NDArray[np.float64]
    pixel_varying_expected: NDArray[np.float64]
    pixel_count: NDArray[np.float64]  # measured numbers
    # Covariance, from pattern to pattern, of neighbouring detector pixels: of A - measured, and of measured.
    # Noise differs from pixel to pixel and adds nothing on average, whatever its unit.
    paired_misfit: float
    paired_varying: float
    # photons per unit of counts; None where the unit is unknown and taken as one photon
    photons: float | None

    @property
    def relative(self) -> float:
        """Misfit relative to the measured energy (eq. 7a)."""
        return float(self.misfit.sum() / max(self.energy.sum(), 1e-30))

    @property
    def residuals(self) -> NDArray[np.float64]:
        """Misfit of every pattern relative to its measured energy (eq. 7a), shape (J,)."""
        return self.misfit / np.maximum(self.energy, 1e-12)

    @property
    def mean_photons(self) -> NDArray[np.float64]:
        """Mean photons of every detector pixel, shape (N, N)."""
        return self.pixel_energy / np.maximum(self.pixel_count, 1) * (self.photons or 1.0)


@dataclass(frozen=True)
class JoinedFrom:
    """Of which scans a reconstruction was made; S of them."""

    names: tuple[str, ...]  # of their files, (S,)
    offsets_yx_px: NDArray[np.float64]  # (S, 2), added to the positions of the files [object px]
    gain: NDArray[np.float64]  # (S,), factor on the amplitude of the beam


@dataclass(frozen=True)
class StoredFacts:
    """What the file of a reconstruction says about the measurement it was made from."""

    record: ScaleRecord | None = None  # scale of the scan; None where the file does not say
    bad_pixels: NDArray[np.bool_] | None = None  # (N, N) or (J, N, N), not measured
    options: Mapping[str, Any] = field(default_factory=dict)  # names of ``FileOptions`` -> what the user said
    joined: JoinedFrom | None = None  # None where it was one scan


@dataclass(frozen=True)
class ProbeVariation:
    """How the first mode of a probe changes from pattern to pattern (eq. 26)."""

    modes: NDArray[np.complex64]  # (K, N, N) [sqrt(photons)]
    # (J, 1 + K), of the first mode of the probe and of these in every pattern
    weights: NDArray[np.float32]

    def of(self, rows: NDArray[np.int64]) -> ProbeVariation:
        """Return the variation in some of the patterns."""
        return replace(self, weights=self.weights[rows])

    @property
    def power(self) -> float:
        """Mean power of the variable modes [photons]."""
        own = (np.abs(self.modes) ** 2).sum(axis=(1, 2))
        return float((self.weights[:, 1:] ** 2).mean(axis=0) @ own)


@dataclass(frozen=True)
class Reconstruction:
    """A stitched object and where it lies."""

    obj: NDArray[np.complex64]  # (H, W) transmission; 1 where no light fell
    coverage: NDArray[np.float32]  # (H, W), illumination relative to the strongest, 0 to 1
    origin_yx_px: NDArray[np.float64]  # (2,), object coordinate of canvas pixel (0, 0)
    probe: NDArray[np.complex64]  # (P, N, N), used [sqrt(photons)]
    # (J,), patterns that took part; read from a file, their numbers in the data file
    indices: NDArray[np.int64]
    seconds: float
    # relative, in every step of the refinement and, as eq. 7a says, after the last
    misfit: tuple[float, ...] = ()
    positions_yx_px: NDArray[np.float64] | None = None  # (J, 2), refined patch centres [object px]
    position_step_px: float | None = None  # rms of how far they moved in the last iteration
    fit: Fit | None = None  # beside what photon noise alone would leave
    # (J,), refined factor on the amplitude of every frame; None: ones
    frame_gain: NDArray[np.float32] | None = None
    # (N, N), what every pattern counts beside the light [photons / pixel]; None: as the scan says
    background: NDArray[np.float32] | None = None
    stored: StoredFacts | None = None  # what only its file knows, where it was read from one
    errors: ObjectErrors | None = None  # of every pixel, from photon noise, where they were asked for
    variation: ProbeVariation | None = None  # of the probe, where it changes from pattern to pattern
    chosen: Mapping[str, Any] | None = None  # by hidden pixels: settings and what they explain; None: nothing

    @property
    def varying_share(self) -> float | None:
        """Share of the power of the probe that changes from pattern to pattern; None where none may."""
        if self.variation is None:
            return None
        varying = self.variation.power
        return varying / max(varying + float((np.abs(self.probe) ** 2).sum()), 1e-30)

    @property
    def scanned(self) -> NDArray[np.bool_]:
        """Pixels that saw enough light to be trusted, shape (H, W)."""
        return self.coverage >= SCANNED_SHARE

    def in_scan(self, scan: Scan) -> PlacedReconstruction:
        """Return the reconstruction beside its scan, or a part of it that holds what took part; raise
        ``DataError`` where size or number of the patterns is another."""
        patch_px = self.probe.shape[-1]
        if patch_px not in (scan.n_px, scan.patch_px):
            raise DataError(
                f"{scan.name}: the patterns do not fit the reconstruction (got N={scan.n_px}, expected "
                f"N={patch_px}). Name the file it was made from."
            )
        rows = self._rows_in(scan)
        positions = scan.positions_yx_px[rows] if self.positions_yx_px is None else self.positions_yx_px
        origin = np.asarray(self.origin_yx_px, np.float64)
        plan = lay_on_canvas(
            positions, patch_px, shape_yx=self.obj.shape, origin_yx_px=origin, reach_px=np.inf
        )
        return PlacedReconstruction(self, scan, rows, scan.pattern_numbers[rows], positions, plan)

    def _rows_in(self, scan: Scan) -> NDArray[np.int64]:
        """Return the places (J,) of what took part in its scan, or a part of it."""
        numbers = np.arange(scan.n_patterns) if self.stored is None else scan.pattern_numbers
        order = np.argsort(numbers, kind="stable")
        places = np.searchsorted(numbers, self.indices, sorter=order)
        missing = places == len(numbers)
        rows = order[np.where(missing, 0, places)]
        missing |= numbers[rows] != self.indices
        if len(self.indices) == 0 or missing.any():
            last = max(int(self.indices.max(initial=-1)), 0)
            lost = f" and number {self.indices[missing][0]}" if missing.any() and last < numbers.max() else ""
            raise DataError(
                f"{scan.name}: the patterns do not fit the reconstruction (got {scan.n_patterns}, expected "
                f"more than {last}, the last that took part{lost}). Name the file it was made from."
            )
        return rows


@dataclass(frozen=True)
class PlacedReconstruction:
    """A reconstruction beside the scan it was made from; J patterns took part."""

    found: Reconstruction
    scan: Scan
    rows: NDArray[np.int64]  # (J,), their places in the scan
    numbers: NDArray[np.int64]  # (J,), their numbers in the data file
    positions_yx_px: NDArray[np.float64]  # (J, 2), refined places, else those of the scan [object px]
    plan: CanvasPlan  # where the patches lie on the canvas, as the run laid them

    @property
    def background(self) -> NDArray[np.float32] | None:
        """What every pattern counts beside the light, (N, N) [photons / pixel]: as found, else as given."""
        return self.scan.background if self.found.background is None else self.found.background

    def detector(self, chosen: NDArray[np.int64]) -> Detector:
        """Return how the detector saw ``chosen`` (B,) of the J patterns (eq. 5b, 22, 25)."""
        number, shifts = self.scan.fresnel_number, self.plan.shifts_yx_px[chosen].astype(np.float32)
        transfer = None if number is None else near_field_transfer(self.plan.patch_px, number, shifts)
        return Detector(transfer, self.background, self._turns)

    def probes(self, chosen: NDArray[np.int64]) -> NDArray[np.complex64]:
        """Return the probe of each of ``chosen`` (B,) of the J patterns, (B, P, N, N) [sqrt(photons)], moved
        by the sub-pixel parts of their positions, in the parts of detector pixels where these have several
        (eq. 5b)."""
        found, probe = self.found, self.found.probe
        if found.variation is not None:
            probe = varied_probes(probe, found.variation.modes, found.variation.weights[chosen])
        probe = shift_field(probe, self.plan.shifts_yx_px[chosen])
        if found.frame_gain is not None:
            probe = probe * found.frame_gain[chosen, None, None, None]
        return part_modes(probe, self._turns)

    @property
    def _turns(self) -> NDArray[np.complex128] | None:
        return turns_of(self.scan.n_px, self.scan.detector_upsampling, self.plan.patch_px)

    def measured_amplitude(self, chosen: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return what was measured in ``chosen`` (B,) of the J patterns, (B, N, N) [sqrt(photons)].

        It is negative where nothing was measured. Where the reconstruction was read from a file, its scale
        counts, and its bad pixels beside those of the scan.
        """
        stored, raw, rows = self.found.stored or StoredFacts(), self.scan.raw, self.rows[chosen]
        return measured_amplitude(
            raw.diff3d[rows], stored.record or self.scan.record, self.bad_pixels(chosen)
        )

    def bad_pixels(self, chosen: NDArray[np.int64]) -> NDArray[np.bool_] | None:
        """Return what was not measured in ``chosen`` (B,) of the J patterns, (N, N) or (B, N, N)."""
        bad = self.scan.raw.bad_pixels_of(self.rows[chosen])
        more = None if self.found.stored is None else self.found.stored.bad_pixels
        if more is None:
            return bad
        more = more if more.ndim == 2 else more[chosen]
        return more if bad is None else bad | more
