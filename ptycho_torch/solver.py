"""The primitives of the solver on PyTorch tensors, and the pieces of a learned step.

All tensors of a chunk and the canvas live on one device. What is computed, and why, is written at
``ptycho.solver.primitives.Primitives``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ptycho.networks.architectures import NOISE_FLOOR
from ptycho.physics import FAR_FIELD, INTENSITY_FLOOR, Detector
from ptycho.physics.slow_phase import phase_gain
from ptycho.solver import refinement
from ptycho.solver.primitives import PER_PATTERN, Wanted
from ptycho.solver.schedule import (
    FULLY_TURNED,
    PHASE_FLOOR,
    PHASE_SHRINK,
    PHASE_STEP_RAD,
    POISSON_FLOOR,
    STEP_DAMPING,
    TURNED,
    TV_SMOOTHING,
    UPHILL,
)
from ptycho_torch import physics
from ptycho_torch.information import count_score

TINY = 1e-30
"""Smallest power that is divided by."""


class Chunk(NamedTuple):
    """Some patterns of a scan with their places on the canvas."""

    corners_yx: Tensor  # (J, 2), int, canvas index of patch pixel (0, 0)
    probes: Tensor  # (P, N, N) or (J, P, N, N), modes [sqrt(photons)], moved by sub-pixel parts of positions
    amplitude: Tensor  # (J, N, N), measured [sqrt(photons)]; negative where nothing was measured (eq. 20)
    shifts_yx_px: Tensor | None = None  # (J, 2), sub-pixel parts, where the probe is to be refined [px]
    rows: NDArray[np.int64] | None = None  # (J,), which patterns of a ``ScanChunks`` these are
    detector: Detector = FAR_FIELD  # how far away it is, and what it counts beside the light
    # Variable modes (K, N, N) of the probe, and the weights (J, 1 + K) of all, where it changes (eq. 26)
    variation: tuple[Tensor, Tensor] | None = None


def scan_illumination(chunks: Iterable[Chunk], shape_yx: tuple[int, int]) -> Tensor:
    """Return the photons per canvas pixel of all chunks, shape (H, W) (eq. 8)."""
    return sum(physics.illumination(c.probes, c.corners_yx, shape_yx) for c in chunks)


def poisson_residual(
    patches: Tensor, probes: Tensor, amplitude: Tensor, detector: Detector = FAR_FIELD
) -> Tensor:
    """Return half the Poisson residual of exit waves, shape (J, P, N, N); its curvature is that of the
    amplitude misfit (eq. 17)."""
    field = physics.propagate(physics.exit_waves(patches, probes), detector)
    expected = detector.counted((field.real**2 + field.imag**2).sum(dim=1))
    kept, counts = physics.measured(amplitude), amplitude.clamp(min=0) ** 2
    floor = POISSON_FLOOR * physics.count_quantum(amplitude)
    missed = torch.where(kept, 0.5 * (1.0 - (counts + floor) / (expected + floor)), 0.0)
    return physics.propagate_back(field * missed[:, None], detector)


def _found(obj: Tensor, chunk: Chunk, wanted: Wanted) -> dict[str, Tensor]:
    """Return all that a chunk tells but its illumination: sums, and arrays over its patterns."""
    corners, probes, amplitude, detector = *chunk[:3], chunk.detector
    found, poisson = {}, wanted.likelihood == "poisson"
    # Without a background the residual itself tells the misfit.
    watched = wanted.misfit and detector.background is not None
    if wanted.probe or wanted.frames or wanted.background or watched or poisson:
        patches = physics.extract_patches(obj, corners, probes.shape[-1])
    if wanted.frames or wanted.background or watched:
        light = physics.diffracted_intensity(patches, probes, detector._replace(background=None))
    if wanted.misfit or not poisson:
        residual = physics.wave_residual(obj, corners, probes, amplitude, detector)
    if wanted.misfit:
        missed = residual.abs().square().sum() / detector.windows**2
        found["error"] = _error(detector.counted(light), amplitude) if watched else missed
        found["energy"] = physics.measured_energy(amplitude)
    if wanted.positions:
        told = physics.motion_equations(obj, corners, probes, amplitude, detector, strains=wanted.strains)
        found["normal"], found["right"] = told
        found["curvature"] = found["normal"][:, :2, :2].diagonal(dim1=1, dim2=2).sum() / 2
    if wanted.frames:
        found["fit"] = physics.frame_fits(light, amplitude, detector)
    if wanted.background:
        told = physics.background_sums(light, amplitude, detector, wanted.likelihood)
        found["excess"], found["weight"] = told
    if poisson:
        residual = poisson_residual(patches, probes, amplitude, detector)
    back = (probes.conj() * residual).sum(dim=1)
    found["gradient"] = physics.place_patches(back, corners, tuple(obj.shape))
    if wanted.probe:
        residual = physics.part_modes_adjoint(residual, detector.part_turns)
        found["probe_gradient"] = physics.probe_gradient(patches, residual, chunk.shifts_yx_px)
        found["object_power"] = patches.abs().square().sum(dim=0)
    if wanted.variation:
        modes, weights = chunk.variation
        told = physics.variation_gradient(patches, residual, chunk.shifts_yx_px, weights)
        found["variation_gradient"], found["variation_power"] = told
        told = physics.variation_equations(patches, probes, amplitude, modes, chunk.shifts_yx_px, detector)
        found["variation_normal"], found["variation_right"] = told
    return found


def _error(expected: Tensor, amplitude: Tensor) -> Tensor:
    """Return the squared amplitude misfit of expected counts [photons]."""
    missed = torch.sqrt(expected + INTENSITY_FLOOR) - amplitude
    return torch.where(physics.measured(amplitude), missed, 0.0).square().sum()


def _in_order(found: Sequence[dict[str, Any]], name: str) -> Tensor:
    """Return an array over all patterns of the chunks, in the order of the scan."""
    values = torch.cat([part[name] for part in found])
    order = np.argsort(np.concatenate([part["rows"] for part in found]))
    return values[torch.from_numpy(order).to(values.device)]


class TorchPrimitives:
    """``ptycho.solver.primitives.Primitives`` on tensors; what each method does is written there."""

    def constant(self, array: Tensor) -> Tensor:
        return array.detach()

    @torch.no_grad()
    def chunk_sums(
        self, obj: Tensor, chunk: Chunk, wanted: Wanted
    ) -> tuple[dict[str, Tensor | int], dict[str, Any]]:
        found = _found(obj, chunk, wanted)
        own = {name: found.pop(name) for name in PER_PATTERN if name in found}
        if own:
            found["patterns"] = len(chunk.amplitude)
        if wanted.illumination:
            found["illumination"] = physics.illumination(chunk.probes, chunk.corners_yx, tuple(obj.shape))
        return found, own | {"rows": chunk.rows}

    @torch.no_grad()
    def mapped(
        self, obj: Tensor, chunk: Chunk, waves: Tensor | None, *, illumination: bool
    ) -> tuple[dict[str, Tensor], Tensor]:
        corners, probes, amplitude = chunk[:3]
        fitting = physics.exit_waves(physics.extract_patches(obj, corners, probes.shape[-1]), probes)
        waves, missed = physics.mapped_waves(waves, fitting, amplitude, chunk.detector)
        back = (probes.conj() * missed).sum(dim=1)
        sums = {"gradient": physics.place_patches(back, corners, tuple(obj.shape))}
        if illumination:
            sums["illumination"] = physics.illumination(probes, corners, tuple(obj.shape))
        return sums, waves

    @torch.no_grad()
    def count_score(
        self, obj: Tensor, chunk: Chunk, *, change: Tensor | None = None, noise: Tensor | None = None
    ) -> Tensor:
        corners, probes, amplitude = chunk[:3]
        return count_score(obj, corners, probes, amplitude, chunk.detector, change=change, noise=noise)

    def preconditioned(self, gradient: Tensor, illumination: Tensor) -> Tensor:
        return gradient / (illumination + STEP_DAMPING * illumination.max())

    def phase_gain(
        self, obj: Tensor, chunk: Chunk, count: int, least: float, stiffness_px2: float = 0.0
    ) -> Tensor:
        probe = chunk.probes[0] if chunk.probes.ndim == 4 else chunk.probes
        gain = phase_gain(tuple(obj.shape), probe.detach().cpu().numpy(), count, least, stiffness_px2)
        # In its own precision first: not every device knows double.
        return torch.from_numpy(gain).to(obj.real.dtype).to(obj.device)

    def advanced(
        self, leading: Tensor, step: Tensor, illumination: Tensor, gain: Tensor, slow: Any
    ) -> tuple[Tensor, Any]:
        power = leading.abs().square().clamp(min=PHASE_FLOOR)
        lit = illumination / (STEP_DAMPING * illumination.max())
        phase = torch.where(lit > 1, -(step * leading.conj()).imag / power, 0.0)
        further = torch.fft.ifft2(torch.fft.fft2(phase) * gain).real
        last, trust = (further, torch.ones_like(further[0, 0])) if slow is None else slow
        back = -(further * last).sum() / last.square().sum().clamp(min=TINY)
        turned = ((back - TURNED) / (FULLY_TURNED - TURNED)).clamp(0, 1)
        trust = trust * (1 - (1 - PHASE_SHRINK) * turned)
        turn = (trust * further).clamp(-PHASE_STEP_RAD, PHASE_STEP_RAD)
        turn = turn * lit.clamp(max=1)
        return (leading - step) * torch.polar(torch.ones_like(turn), turn), (further, trust)

    def uphill(self, step: Tensor, new: Tensor, old: Tensor) -> float:
        way = new - old
        size = step.abs().square().sum() * way.abs().square().sum()
        cosine = (step.conj() * way).real.sum() / torch.sqrt(size).clamp(min=TINY)
        return float((cosine / UPHILL).clamp(0, 1))

    def total_variation_gradient(self, obj: Tensor) -> Tensor:
        down = torch.diff(obj, dim=0, append=obj[-1:])
        right = torch.diff(obj, dim=1, append=obj[:, -1:])
        length = torch.sqrt(down.abs() ** 2 + right.abs() ** 2 + TV_SMOOTHING**2)
        down, right = down / length, right / length
        flow = torch.diff(down, dim=0, prepend=torch.zeros_like(down[:1]))
        return -(flow + torch.diff(right, dim=1, prepend=torch.zeros_like(right[:, :1])))

    def probe_step(self, gradient: Tensor, object_power: Tensor) -> Tensor:
        return gradient / object_power.max()

    def same_power(self, probe: Tensor, reference: Tensor) -> Tensor:
        return probe * torch.sqrt(reference.abs().square().sum() / probe.abs().square().sum())

    def frame_factors(
        self, found: Sequence[dict[str, Any]], gain: Tensor, previous: Tensor, momentum: float
    ) -> Tensor:
        trend = torch.where(previous > 0, gain / previous, 1.0)
        return gain * _in_order(found, "fit") * trend**momentum

    def pattern_sum(self, values: Tensor) -> Tensor:
        return values.sum(dim=0)


PRIMITIVES = TorchPrimitives()
accelerated_steps = partial(refinement.accelerated_steps, PRIMITIVES)
refine = partial(refinement.refine, PRIMITIVES)


def chunk_gradient(obj: Tensor, chunk: Chunk, likelihood: str) -> Tensor:
    """Return the object gradient of one chunk, shape (H, W) [photons] (eq. 9, or 17 for ``poisson``)."""
    return _found(obj, chunk, Wanted(likelihood))["gradient"]


def preconditioned_step(
    obj: Tensor, chunks: Iterable[Chunk], weight: Tensor, likelihood: str = "amplitude"
) -> Tensor:
    """Return the differentiable step of all chunks: minus the gradient over the damped illumination
    ``weight``, shape (H, W) [transmission] (eq. 10)."""
    return -PRIMITIVES.preconditioned(sum(chunk_gradient(obj, c, likelihood) for c in chunks), weight)


@torch.no_grad()
def noise_level(obj: Tensor, chunks: Iterable[Chunk], weight: Tensor) -> Tensor:
    """Return the noise of every object pixel, shape (H, W) [transmission], from what the object leaves
    unexplained (eq. 18), not differentiated; patterns and probe times a factor give the same level."""
    energy, count = (torch.zeros((), device=obj.device, dtype=weight.dtype) for _ in range(2))
    for chunk in chunks:
        patches = physics.extract_patches(obj, chunk.corners_yx, chunk.probes.shape[-1])
        kept = physics.measured(chunk.amplitude)
        missed = chunk.amplitude - physics.diffracted_amplitude(patches, chunk.probes, chunk.detector)
        energy = energy + torch.where(kept, missed, 0.0).square().sum()
        count = count + kept.sum()
    return torch.sqrt(energy / count.clamp(min=1) / (weight + STEP_DAMPING * weight.max())) + NOISE_FLOOR
