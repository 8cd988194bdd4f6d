"""Reconstruct a scan with a trained PyTorch model, and polish the result by the forward model."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from ptycho.config.config import PyTorchExecutionConfig
from ptycho.data.probe_choice import ProbeChoice, choose_probe, network_gain
from ptycho.data.probe_mask import masked
from ptycho.data.reconstruction import Fit, Reconstruction
from ptycho.data.scan import Scan
from ptycho.errors import ConfigError
from ptycho.evaluation.misfit import FitTally, photon_unit
from ptycho.geometry.batches import probe_fit_patterns
from ptycho.geometry.canvas import CANVAS_MULTIPLE_PX, CanvasPlan, plan_canvas
from ptycho.geometry.grouping import covering_groups
from ptycho.process.progress import Progress
from ptycho.solver.options import RefineOptions
from ptycho_torch import physics, solver
from ptycho_torch.data import CHUNK_PIXELS, PatternStore, ScanChunks
from ptycho_torch.isolation import untouched_torch
from ptycho_torch.model import PtychoPINN_Lightning
from ptycho_torch.solver import refine_shown, scan_illumination


def resolve_accelerator(requested: str) -> str:
    """Return the accelerator a run uses, which this machine must have.

    Parameters
    ----------
    requested : {'auto', 'cpu', 'gpu', 'cuda', 'mps'}
        ``auto`` takes CUDA where there is one, else the CPU.

    Returns
    -------
    {'cpu', 'cuda', 'mps'}
        Accelerator.

    Raises
    ------
    ConfigError
        If the machine does not have it.
    """
    if requested == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    name = "cuda" if requested == "gpu" else requested
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(name, False):
        usable = ", ".join(["auto", *(key for key, value in there.items() if value)])
        raise ConfigError(
            f"accelerator: this machine has no {requested} device for PyTorch (got {requested!r}, expected "
            f"one of {usable}). Pass --accelerator auto."
        )
    return name


@untouched_torch()
@torch.inference_mode()
def reconstruct(
    model: PtychoPINN_Lightning,
    scan: Scan,
    members: NDArray[np.int64],
    *,
    execution: PyTorchExecutionConfig,
    progress: Progress,
    patch_weighting: str = "probe",
    fit_scale: bool = False,
    polish: RefineOptions | None = None,
    fit_probe: bool | None = None,
    given_probe: NDArray[np.complex64] | None = None,
    centre_yx_px: tuple[float, float] | None = None,
) -> Reconstruction:
    """Reconstruct the object of a scan with a trained model.

    Parameters
    ----------
    model : PtychoPINN_Lightning
        Trained model.
    scan : Scan
        Patterns, positions, probe.
    members : int64 array, shape (J,)
        Patterns that take part.
    execution : PyTorchExecutionConfig
        Accelerator and batch size.
    progress : Progress
        Told what goes on.
    patch_weighting : {'probe', 'uniform'}
        How overlapping patches of ``cnn`` are weighted; ``uniform`` counts the middle half of each alike.
    fit_scale : bool
        Multiply the object with the one factor that fits the measured amplitudes best.
    polish : RefineOptions, optional
        Refine the stitched object by the forward model.
    fit_probe : bool, optional
        Fit the probe of the file to the scan before the network sees it, or fit none; decided by default,
        see ``ptycho.data.probe_choice``.
    given_probe : complex64 array, shape (P, N, N), optional
        Probe modes to use as they are [sqrt(photons)].
    centre_yx_px : tuple of float, optional
        Object coordinate that the middle of the result, index ``((H-1)/2, (W-1)/2)``, shall have [px].

    Returns
    -------
    Reconstruction
        Object, coverage and their place.
    """
    device = torch.device(resolve_accelerator(execution.accelerator))
    model = model.to(device).eval()
    start = time.perf_counter()
    uses_probe = model.is_unrolled or fit_scale if polish is None else polish.start == "network"
    choice = choose_probe(
        scan, model.trained_probe, fit_probe=fit_probe, uses_probe=uses_probe, given=given_probe
    )
    progress.note(choice.summary)
    plan, kept = _canvas(scan.positions_yx_px[members], scan.n_px, centre_yx_px)
    with PatternStore(scan, progress) as store:
        probe = _probe(choice, store, scan, members, model, progress)
        chunks = ScanChunks(store, plan, members, probe)
        weight = scan_illumination(chunks, plan.shape_yx)
        if polish is not None and polish.start == "flat":
            obj = torch.ones(plan.shape_yx, dtype=torch.complex64, device=device)
        elif model.is_unrolled:
            total = model.generator.steps(chunks.subsets)
            with progress.phase("reconstructing", total) as phase:
                obj = model.generator(
                    chunks, weight, lambda index: phase.update(index + 1), subsets=chunks.subsets
                )
        else:
            window = probe if patch_weighting == "probe" else _middle(probe)
            obj = _stitched(model, store, plan, members, window, scan.record.input_scale, execution, progress)
        if polish is not None or fit_scale:
            obj = obj * _fitted_gain(obj, chunks, model.core_config.gaussian_smoothing_sigma)
        elif model.is_unrolled:
            obj = obj * model.log_gain.exp()
        else:
            obj = obj * model.log_gain.exp() * network_gain(scan, model.trained_probe)
        misfit: tuple[float, ...] = ()
        if polish is not None:
            refined = refine_shown(chunks, obj, polish, progress)
            obj, misfit = refined.obj, tuple(refined.misfit)
            weight = scan_illumination(chunks, plan.shape_yx)
        fit = _fit(obj, chunks, photon_unit(scan), model.core_config.gaussian_smoothing_sigma)
        if misfit:
            progress.note(
                f"refined in {len(misfit)} steps: misfit {misfit[0]:.4g} before, {fit.relative:.4g} after"
            )
            misfit = (*misfit, fit.relative)
    return Reconstruction(
        obj=obj[kept].cpu().numpy().astype(np.complex64),
        coverage=(weight / weight.max())[kept].cpu().numpy().astype(np.float32),
        origin_yx_px=plan.origin_yx_px,
        probe=chunks.probe.cpu().numpy().astype(np.complex64),
        members=members,
        seconds=time.perf_counter() - start,
        misfit=misfit,
        positions_yx_px=chunks.positions_yx_px if polish is not None and polish.positions else None,
        fit=fit,
        frame_gain=chunks.frame_gain.cpu().numpy() if polish is not None and polish.frames else None,
    )


def _canvas(
    positions_yx_px: NDArray[np.float64], n_px: int, centre_yx_px: tuple[float, float] | None
) -> tuple[CanvasPlan, tuple[slice, slice]]:
    """Return the canvas to work on, which the network wants in whole multiples, and the part to hand out."""
    if centre_yx_px is None:
        plan = plan_canvas(positions_yx_px, n_px, multiple_px=CANVAS_MULTIPLE_PX)
        return plan, (slice(None), slice(None))
    plan = plan_canvas(positions_yx_px, n_px, centre_yx_px=centre_yx_px)
    height, width = plan.shape_yx
    # Room at the far sides only, so that corners and origin stay.
    larger = (height + -height % CANVAS_MULTIPLE_PX, width + -width % CANVAS_MULTIPLE_PX)
    return replace(plan, shape_yx=larger), (slice(height), slice(width))


def _fit(obj: torch.Tensor, chunks: ScanChunks, photons: float | None, sigma_px: float) -> Fit:
    """Return what the object leaves unexplained; one pass."""
    n_px = chunks.plan.patch_px
    tally = FitTally(len(chunks.members), n_px, photons)
    for chunk in chunks:
        patches = physics.extract_patches(obj, chunk.corners_yx, n_px)
        predicted = physics.smoothed_amplitude(physics.diffracted_amplitude(patches, chunk.probes), sigma_px)
        tally.add(chunk.rows, predicted.cpu().numpy(), chunk.amplitude.cpu().numpy())
    return tally.result()


def _probe(
    choice: ProbeChoice,
    store: PatternStore,
    scan: Scan,
    members: NDArray[np.int64],
    model: PtychoPINN_Lightning,
    progress: Progress,
) -> torch.Tensor:
    """Return the chosen probe on the device of the model, fitted to the scan where that was decided."""
    probe, device = choice.probe, model.probe.device
    if choice.fit:
        fitted = fitted_probe(store, replace(scan, probe=probe), members, device, progress)
        probe = masked(fitted, model.core_config)
    return torch.from_numpy(probe).to(device)


def fitted_probe(
    store: PatternStore, scan: Scan, members: NDArray[np.int64], device: torch.device, progress: Progress
) -> NDArray[np.complex64]:
    """Fit the probe of a scan to those of its patterns that lie around the middle.

    Parameters
    ----------
    store : PatternStore
        Patterns of the scan.
    scan : Scan
        Its positions and the probe to start from.
    members : int64 array, shape (J,)
        Patterns that may take part.
    device : torch.device
        Where the work is done.
    progress : Progress
        Shows the iterations.

    Returns
    -------
    complex64 array, shape (P, N, N)
        Probe modes [sqrt(photons)], of the power they had.
    """
    chosen, plan = probe_fit_patterns(scan.positions_yx_px, members, scan.n_px)
    chunks = ScanChunks(store, plan, chosen, torch.from_numpy(scan.probe).to(device))
    flat = torch.ones(plan.shape_yx, dtype=torch.complex64, device=device)
    return solver.fit_probe(chunks, flat, progress).cpu().numpy()


def _middle(probe: torch.Tensor) -> torch.Tensor:
    """Return a window that is 1 in the middle half of the patch, as a probe of one mode."""
    n_px = probe.shape[-1]
    window = torch.zeros(1, n_px, n_px, dtype=probe.dtype, device=probe.device)
    window[:, n_px // 4 : n_px - n_px // 4, n_px // 4 : n_px - n_px // 4] = 1.0
    return window


def _fitted_gain(obj: torch.Tensor, chunks: ScanChunks, sigma_px: float) -> torch.Tensor:
    """Return the factor on the object that fits the measured amplitudes best in least squares."""
    mixed = torch.zeros((), device=obj.device)
    energy = torch.zeros((), device=obj.device)
    for chunk in chunks:
        patches = physics.extract_patches(obj, chunk.corners_yx, chunk.amplitude.shape[-1])
        predicted = physics.smoothed_amplitude(physics.diffracted_amplitude(patches, chunk.probes), sigma_px)
        predicted = torch.where(physics.measured(chunk.amplitude), predicted, 0.0)
        mixed += (predicted * chunk.amplitude).sum()
        energy += (predicted**2).sum()
    return torch.where(energy > 0, mixed / energy, 1.0)


def _stitched(
    model: PtychoPINN_Lightning,
    store: PatternStore,
    plan: CanvasPlan,
    members: NDArray[np.int64],
    window: torch.Tensor,
    input_scale: float,
    execution: PyTorchExecutionConfig,
    progress: Progress,
) -> torch.Tensor:
    """Return the object stitched from the patches of ``cnn``; each pattern counts once, at its own place."""
    device, gridsize = model.probe.device, model.core_config.gridsize
    groups = covering_groups(plan.positions_yx_px, gridsize=gridsize)
    size = execution.inference_batch_size or max(1, CHUNK_PIXELS // (4 * gridsize**2 * plan.patch_px**2))
    total = torch.zeros(plan.shape_yx, dtype=torch.complex64, device=device)
    weight = torch.zeros(plan.shape_yx, device=device)
    scale = torch.tensor(input_scale, dtype=torch.float32, device=device)
    with progress.phase("reconstructing", len(members)) as phase:
        for first in range(0, len(members), size):
            rows = groups.indices[first : first + size]
            patches = model.network_patches(store.amplitude(members[rows]).to(device), scale)[:, 0]
            # In single precision before it moves: MPS has no other.
            shifts = torch.from_numpy(plan.shifts_yx_px[rows[:, 0]].astype(np.float32)).to(device)
            corners = torch.from_numpy(plan.corners_yx[rows[:, 0]]).to(device)
            moved = physics.shift_field(patches[:, None], shifts)[:, 0]
            windows = physics.shift_field(window, shifts)
            total += physics.weighted_patches(moved, corners, windows, plan.shape_yx)
            weight += physics.illumination(windows, corners, plan.shape_yx)
            phase.update(min(first + size, len(members)))
    floor = 1e-9 * weight.max()
    return torch.where(weight > floor, total / (weight + floor), torch.ones_like(total))
