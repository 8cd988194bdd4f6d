"""The photon limit of a simulated scan: the smallest error that any unbiased reconstruction can have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho.data.reconstruction import SCANNED_SHARE
from ptycho.errors import ConfigError
from ptycho.geometry.canvas import lay_on_canvas
from ptycho.physics import Detector, part_modes, shift_field
from ptycho.physics.forward import illumination
from ptycho.physics.information import PhotonLimit, Score, count_score, photon_limit
from ptycho.physics.pixel_parts import turns_of
from ptycho.physics.propagation import near_field_transfer
from ptycho.simulation.simulate import CHUNK_PATTERNS, FLY_PARTS, SimulationOptions, drifting_probes


def check_limit(options: SimulationOptions) -> None:
    """Raise ``ConfigError`` where the limit of a simulated scan is not known."""
    if options.fly_scan_px and options.fresnel_number is not None:
        raise ConfigError(
            f"simulation: no photon limit of a fly scan in the near field (got fly_scan_px "
            f"{options.fly_scan_px!r}, expected 0). Leave out --report-limit."
        )


def simulated_limit(options: SimulationOptions, arrays: Mapping[str, NDArray[Any]]) -> PhotonLimit:
    """Return the photon limit of a scan as ``simulate`` returned it, for the true probe, positions and
    background, over pixels with at least ``SCANNED_SHARE`` of the strongest illumination.

    ``ConfigError`` as :func:`check_limit`.
    """
    check_limit(options)
    obj = arrays["objectGuess"]
    light = sum(illumination(probes, corners, obj.shape) for corners, probes, _ in _scan(options, arrays))
    light = light.astype(np.float64)
    return photon_limit(obj, scan_score(options, arrays), light, light >= SCANNED_SHARE * light.max())


def scan_score(options: SimulationOptions, arrays: Mapping[str, NDArray[Any]]) -> Score:
    """Return how the likelihood of a simulated scan answers counts that are off, in single precision."""
    obj, measured = arrays["objectGuess"], np.ones(1, np.float32)

    def score(change: NDArray[Any] | None, rng: np.random.Generator | None) -> NDArray[Any]:
        total = np.zeros(obj.shape, np.complex128)
        change = None if change is None else change.astype(np.complex64)
        for corners, probes, detector in _scan(options, arrays):
            shape = (len(corners), *arrays["diff3d"].shape[1:])
            noise = None if rng is None else rng.standard_normal(shape, np.float32)
            total += count_score(obj, corners, probes, measured, detector, change=change, noise=noise)
        return total

    return score


def _scan(
    options: SimulationOptions, arrays: Mapping[str, NDArray[Any]]
) -> Iterator[tuple[NDArray[np.int64], NDArray[Any], Detector]]:
    """Yield corners, probes (B, P, N, N) and detector of some patterns after the other, in single precision.

    The places of a fly scan are so many incoherent modes.
    """
    probe = arrays.get("probe_true", arrays["probeGuess"])
    probe, shape = probe.reshape(-1, *probe.shape[-2:]), arrays["objectGuess"].shape
    patch_px, n_px = probe.shape[-1], options.n_px
    positions = np.stack([arrays["ycoords"], arrays["xcoords"]], axis=1)
    plan = lay_on_canvas(positions, patch_px, shape_yx=shape, origin_yx_px=np.zeros(2))
    turns = turns_of(n_px, options.detector_upsampling, patch_px)
    turns = None if turns is None else turns.astype(np.complex64)
    background = None
    if options.background_counts:
        background = np.full((n_px, n_px), options.background_counts, np.float32)
    parts = np.zeros(1)
    if options.fly_scan_px:
        parts = options.fly_scan_px * ((np.arange(FLY_PARTS) + 0.5) / FLY_PARTS - 0.5)
    for start in range(0, len(positions), CHUNK_PATTERNS):
        chunk = slice(start, start + CHUNK_PATTERNS)
        used = drifting_probes(options, probe, chunk) if options.probe_drift_waves else probe
        shifts = plan.shifts_yx_px[chunk]
        moved = [shift_field(used, shifts + np.array([0.0, part])) / np.sqrt(len(parts)) for part in parts]
        probes = part_modes(np.concatenate(moved, axis=1).astype(np.complex64), turns)
        transfer = None
        if options.fresnel_number is not None:
            transfer = near_field_transfer(n_px, options.fresnel_number, shifts).astype(np.complex64)
        yield plan.corners_yx[chunk], probes, Detector(transfer, background, turns)
