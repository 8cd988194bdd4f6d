"""How close a reconstruction comes to the photon limit, the smallest error of any unbiased one (eq. 30)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho.data.reconstruction import PlacedReconstruction
from ptycho.data.scaling import NOT_MEASURED
from ptycho.evaluation.misfit import photon_unit
from ptycho.physics.forward import illumination
from ptycho.physics.information import PhotonLimit, count_score, photon_limit, simple_limit
from ptycho.process.progress import Progress

CHUNK = 64
"""Patterns at a time."""
LIMIT_WAVE_PIXELS = 2**24
"""Pixels of all exit waves, 4,096 patterns of 64 px, up to which the Fisher information is solved for."""


def limit_scores(
    placed: PlacedReconstruction, mask: NDArray[np.bool_], nrmse: float, progress: Progress
) -> dict[str, float]:
    """Return the photon limit inside a mask (H, W), and by how much the error against the truth, ``nrmse``,
    exceeds it; nothing where nobody knows what a photon is. A line says so."""
    unit = photon_unit(placed.scan)
    if unit is None:
        return {}
    limit = reconstruction_limit(placed, mask, progress)
    # Illumination and counts are in units of the file.
    least, simple = limit.nrmse / math.sqrt(unit), limit.simple / math.sqrt(unit)
    progress.note(
        f"noise is {nrmse / least:.3g}x the photon limit: NRMSE {nrmse:.4g} against the truth, at least "
        f"{least:.4g} for an unbiased estimate with this probe, scan and dose"
    )
    return {
        "photon_limit_nrmse": least,
        "simple_photon_limit_nrmse": simple,
        "error_over_photon_limit": nrmse / least,
    }


def reconstruction_limit(
    placed: PlacedReconstruction, mask: NDArray[np.bool_], progress: Progress
) -> PhotonLimit:
    """Return the photon limit of a reconstruction inside a mask (H, W) of pixels that it has scanned, for its
    own probe, positions and background, were a unit of counts one photon.

    A large scan has its simple form (eq. 30a) alone.
    """
    obj, plan, count = placed.found.obj, placed.plan, len(placed.rows)
    chunks = [np.arange(start, min(start + CHUNK, count)) for start in range(0, count, CHUNK)]
    light: Any = sum(illumination(placed.probes(rows), plan.corners_yx[rows], obj.shape) for rows in chunks)
    light = light.astype(np.float64)
    if count * math.prod(placed.probes(chunks[0][:1]).shape) > LIMIT_WAVE_PIXELS:
        simple = simple_limit(obj, light, mask)
        return PhotonLimit(simple, simple, int(mask.sum()))
    shape = (placed.scan.n_px, placed.scan.n_px)

    def score(change: NDArray[Any] | None, rng: np.random.Generator | None) -> NDArray[Any]:
        total = np.zeros(obj.shape, np.complex128)
        change = None if change is None else change.astype(np.complex64)
        for rows in chunks:
            noise = None if rng is None else rng.standard_normal((len(rows), *shape), np.float32)
            bad = placed.bad_pixels(rows)
            amplitude = np.ones(1, np.float32) if bad is None else np.where(bad, NOT_MEASURED, 1.0)
            own = plan.corners_yx[rows], placed.probes(rows).astype(np.complex64), amplitude
            total += count_score(obj, *own, placed.detector(rows), change=change, noise=noise)
        return total

    with progress.phase("photon limit", 1) as phase:
        found = photon_limit(obj, score, light, mask)
        phase.update(1)
    return found
