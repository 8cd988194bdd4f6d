"""Refinement of object, probe, positions and frame intensities by the forward model alone, in PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ptycho.data.scan import Scan
from ptycho.geometry.batches import refined_members
from ptycho.geometry.canvas import CANVAS_MULTIPLE_PX, plan_canvas
from ptycho.geometry.subsets import subset_momentum
from ptycho.networks import architectures
from ptycho.process.progress import PROBE_PHASE, Progress
from ptycho.run.job import RefineOptions
from ptycho_torch import physics
from ptycho_torch.data import PatternStore, ScanChunks
from ptycho_torch.solver import Chunk, SubsetWeights, poisson_residual, scan_illumination


class Refined(NamedTuple):
    """What a refinement found.

    Attributes
    ----------
    obj : complex tensor, shape (H, W)
        Object [transmission].
    probe : complex tensor, shape (P, N, N)
        Probe modes [sqrt(photons)]; their total power is that of the start.
    misfit : list of float
        Amplitude misfit relative to the measured energy (eq. 7a) in every step.
    """

    obj: Tensor
    probe: Tensor
    misfit: list[float]


@dataclass
class _Sums:
    """What one pass over the scan adds up, and what it found for every pattern."""

    probe_gradient: Tensor | float = 0.0
    light: Tensor | float = 0.0
    error: float = 0.0
    energy: float = 0.0
    rows: list[NDArray[np.int64]] = field(default_factory=list)
    moves: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    gains: list[Tensor] = field(default_factory=list)


def _position_equations(patches: Tensor, residual: Tensor, chunk: Chunk) -> tuple[Tensor, Tensor]:
    """Return the normal matrices (J, 2, 2) and right sides (J, 2) of the position steps (eq. 16)."""
    n_px = chunk.probes.shape[-1]
    waves = torch.fft.fftfreq(n_px, device=residual.device) * 2 * torch.pi
    spectrum = torch.fft.fft2(chunk.probes.expand(residual.shape))
    slopes = [
        (torch.fft.ifft2(spectrum * 1j * wave) * patches[:, None]).flatten(1)
        for wave in (waves[:, None], waves[None, :])
    ]
    target = residual.flatten(1)
    normal = torch.stack([torch.stack([(a.conj() * b).real.sum(1) for b in slopes], 1) for a in slopes], 1)
    right = torch.stack([(a.conj() * target).real.sum(1) for a in slopes], 1)
    return normal, right


def _position_steps(normal: Tensor, right: Tensor) -> Tensor:
    """Return the least-squares moves of all positions of a scan, shape (J, 2) [px] (eq. 16)."""
    # A flat region says nothing about its position; the ridge, one for the whole scan, keeps it where it is.
    ridge = 1e-3 * normal.diagonal(dim1=1, dim2=2).mean() * torch.eye(2, device=normal.device)
    steps = architectures.POSITION_STEP * torch.linalg.solve(normal + ridge, right)
    return steps.clamp(-architectures.POSITION_LIMIT_PX, architectures.POSITION_LIMIT_PX)


def _frame_gains(patches: Tensor, chunk: Chunk) -> Tensor:
    """Return the factor on every frame that fits its measured pixels best, shape (J,); 1 without any."""
    predicted = physics.diffracted_amplitude(patches, chunk.probes)
    predicted = torch.where(physics.measured(chunk.amplitude), predicted, 0.0)
    power = predicted.square().sum(dim=(1, 2))
    fit = (predicted * chunk.amplitude).sum(dim=(1, 2)) / power
    return torch.where(power > 0, fit, 1.0)


def total_variation_gradient(obj: Tensor) -> Tensor:
    """Return the gradient of the smoothed total variation of a complex object.

    Parameters
    ----------
    obj : complex tensor, shape (H, W)
        Object [transmission].

    Returns
    -------
    complex tensor, shape (H, W)
        Of modulus below about 4; a step along minus it flattens noise and keeps edges.
    """
    down = torch.diff(obj, dim=0, append=obj[-1:])
    right = torch.diff(obj, dim=1, append=obj[:, -1:])
    length = torch.sqrt(down.abs() ** 2 + right.abs() ** 2 + architectures.TV_SMOOTHING**2)
    down, right = down / length, right / length
    flow = torch.diff(down, dim=0, prepend=torch.zeros_like(down[:1]))
    return -(flow + torch.diff(right, dim=1, prepend=torch.zeros_like(right[:, :1])))


def _gradient(
    part: Iterable[Chunk], leading: Tensor, index: int, options: RefineOptions, sums: _Sums
) -> Tensor:
    """Return the object gradient of a subset of the scan; note on the way what else the pass looks for."""
    gradient = torch.zeros_like(leading)
    for chunk in part:
        patches = physics.extract_patches(leading, chunk.corners_yx, chunk.amplitude.shape[-1])
        residual = physics.wave_residual(leading, chunk.corners_yx, chunk.probes, chunk.amplitude)
        sums.error += float(residual.abs().square().sum())
        sums.energy += float(physics.measured_energy(chunk.amplitude))
        sums.rows.append(chunk.rows)
        if options.positions and index >= architectures.POSITION_REST_STEPS:
            sums.moves.append(_position_equations(patches, residual, chunk))
        if options.frames:
            sums.gains.append(_frame_gains(patches, chunk))
        if options.likelihood == "poisson":
            residual = poisson_residual(patches, chunk.probes, chunk.amplitude)
        back = (chunk.probes.conj() * residual).sum(dim=1)
        gradient = gradient + physics.place_patches(back, chunk.corners_yx, tuple(leading.shape))
        if options.probe and index >= architectures.PROBE_REST_STEPS:
            sums.probe_gradient = sums.probe_gradient + physics.probe_gradient(
                patches, residual, chunk.shifts_yx_px
            )
            sums.light = sums.light + patches.abs().square().sum(dim=0)
    return gradient


def _move(chunks: ScanChunks, sums: _Sums, previous_gain: Tensor) -> None:
    """Move positions and frame intensities (eq. 21) by what a pass found for them."""
    back = torch.from_numpy(np.argsort(np.concatenate(sums.rows))).to(chunks.probe.device)
    if sums.moves:
        normal, right = (torch.cat(parts)[back] for parts in zip(*sums.moves, strict=True))
        step = _position_steps(normal, right)
        # All positions together may drift; that is the object's freedom, not theirs.
        chunks.change(shifts=chunks.shifts + step - step.mean(dim=0))
    if sums.gains:
        gain = chunks.frame_gain
        trend = torch.where(previous_gain > 0, gain / previous_gain, 1.0)
        gain = gain * torch.cat(sums.gains)[back] * trend**architectures.FRAME_MOMENTUM
        mean = gain.mean()
        chunks.change(frame_gain=gain / torch.where(mean > 0, mean, 1.0))


@torch.no_grad()
def refine(
    chunks: ScanChunks,
    obj: Tensor,
    options: RefineOptions,
    *,
    on_step: Callable[[int, float], None] | None = None,
) -> Refined:
    """Refine an object by preconditioned accelerated steps, and on request what is known about the scan.

    The object moves by eq. 11 and 19, the probe by eq. 14, positions by eq. 16, frame intensities by eq. 21.
    Probe and positions rest at first, so that a poor start does not spoil them.

    Parameters
    ----------
    chunks : ScanChunks
        The scan; it holds the refined probe, positions and intensities afterwards.
    obj : complex tensor, shape (H, W)
        Object to start from [transmission].
    options : RefineOptions
        Steps and what is refined.
    on_step : callable, optional
        Called with index and misfit of each finished step.

    Returns
    -------
    Refined
        Object, probe and the misfit in every step.

    References
    ----------
    specs/physics.md, eqs. 11, 14, 16, 19 and 21.
    """
    power = chunks.probe.abs().square().sum()
    previous, previous_probe, previous_gain, update = obj, chunks.probe, chunks.frame_gain, 0
    weights = SubsetWeights(chunks, scan_illumination(chunks, chunks.plan.shape_yx))
    misfit: list[float] = []
    whole = 0
    counts = options.subset_counts(chunks.subsets)
    for index, count in enumerate(counts):
        sums = _Sums()
        for subset in range(count):
            leading = obj + subset_momentum(update, max(counts)) * (obj - previous)
            gradient = _gradient(chunks.part(subset, count), leading, index, options, sums)
            weight = weights.of(subset, count)
            previous, obj = obj, leading - gradient / (weight + architectures.STEP_DAMPING * weight.max())
            update += 1
        gain = chunks.frame_gain
        _move(chunks, sums, previous_gain)
        previous_gain = gain
        if options.tv:
            obj = obj - options.tv * total_variation_gradient(obj)
        misfit.append(sums.error / sums.energy if sums.energy > 0 else 0.0)
        if isinstance(sums.light, Tensor):
            probe = chunks.probe
            step = architectures.PROBE_STEP * sums.probe_gradient / sums.light.max()
            moved = probe - step + architectures.PROBE_MOMENTUM * (probe - previous_probe)
            # Object and probe share one scale; it stays with the probe that came in.
            previous_probe = probe
            chunks.change(probe=moved * torch.sqrt(power / moved.abs().square().sum()))
        if options.probe or options.positions or options.frames:
            weights = SubsetWeights(chunks, scan_illumination(chunks, chunks.plan.shape_yx))
        if on_step is not None:
            on_step(index, misfit[-1])
        # Subsets differ by their noise: only passes in one piece tell whether the misfit still falls.
        whole += count == 1
        if architectures.has_converged(misfit[len(misfit) - whole :]):
            break
    return Refined(obj, chunks.probe, misfit)


def refine_shown(
    chunks: ScanChunks, obj: Tensor, options: RefineOptions, progress: Progress, name: str = "refining"
) -> Refined:
    """Refine as :func:`refine` does, and show every step.

    Parameters
    ----------
    chunks : ScanChunks
        The scan.
    obj : complex tensor, shape (H, W)
        Object to start from [transmission].
    options : RefineOptions
        Steps and what is refined.
    progress : Progress
        Told the steps and their misfit.
    name : str
        What the phase is called.

    Returns
    -------
    Refined
        As :func:`refine`.
    """
    with progress.phase(name, options.steps) as phase:
        found = refine(
            chunks, obj, options, on_step=lambda index, misfit: phase.update(index + 1, misfit=misfit)
        )
        if len(found.misfit) < options.steps:
            phase.ended(f"converged after {len(found.misfit)}")
    return found


def fit_probe(
    store: PatternStore, scan: Scan, members: NDArray[np.int64], device: torch.device, progress: Progress
) -> NDArray[np.complex64]:
    """Fit the probe to the middle of a scan, together with an object that starts flat.

    Parameters
    ----------
    store : PatternStore
        Patterns of the scan.
    scan : Scan
        Its positions and the probe to start from.
    members : int64 array, shape (J,)
        Patterns that may take part; those around the middle do.
    device : torch.device
        Where the work is done.
    progress : Progress
        Told the steps.

    Returns
    -------
    complex64 array, shape (P, N, N)
        Probe modes [sqrt(photons)], of the power they had.
    """
    members = refined_members(scan.positions_yx_px, members, scan.n_px)
    plan = plan_canvas(scan.positions_yx_px[members], scan.n_px, multiple_px=CANVAS_MULTIPLE_PX)
    options = RefineOptions(architectures.PROBE_REFINE_STEPS, probe=True, start="flat")
    chunks = ScanChunks(store, plan, members, torch.from_numpy(scan.probe).to(device))
    flat = torch.ones(plan.shape_yx, dtype=torch.complex64, device=device)
    return refine_shown(chunks, flat, options, progress, PROBE_PHASE).probe.cpu().numpy()
