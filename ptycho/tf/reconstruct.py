"""Reconstruct a scan with a trained TensorFlow model, and polish the result by the forward model."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ptycho.config.config import PyTorchExecutionConfig
from ptycho.data.probe_choice import ProbeChoice, choose_probe, network_gain
from ptycho.data.probe_mask import masked
from ptycho.data.reconstruction import Fit, Reconstruction
from ptycho.data.scan import Scan
from ptycho.evaluation.misfit import FitTally, photon_unit
from ptycho.geometry.batches import CHUNK_PIXELS, probe_fit_patterns
from ptycho.geometry.canvas import CANVAS_MULTIPLE_PX, CanvasPlan, plan_canvas
from ptycho.geometry.grouping import covering_groups
from ptycho.process.isolation import untouched_process
from ptycho.process.progress import Progress
from ptycho.solver.options import RefineOptions
from ptycho.tf import physics, solver
from ptycho.tf.data import PatternStore, ScanChunks
from ptycho.tf.device import device_name
from ptycho.tf.model import PtychoPINN
from ptycho.tf.runtime import as_complex, tf
from ptycho.tf.solver import compiled, refine_shown, scan_illumination


@untouched_process()
def reconstruct(
    model: PtychoPINN,
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
) -> Reconstruction:
    """Reconstruct the object of a scan with a trained model.

    Parameters
    ----------
    model : PtychoPINN
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

    Returns
    -------
    Reconstruction
        Object, coverage and their place.
    """
    start = time.perf_counter()
    uses_probe = model.is_unrolled or fit_scale if polish is None else polish.start == "network"
    choice = choose_probe(
        scan, model.trained_probe, fit_probe=fit_probe, uses_probe=uses_probe, given=given_probe
    )
    progress.note(choice.summary)
    plan = plan_canvas(scan.positions_yx_px[members], scan.n_px, multiple_px=CANVAS_MULTIPLE_PX)
    with tf.device(device_name(execution.accelerator)), PatternStore(scan, progress) as store:
        probe = _probe(choice, store, scan, members, model, progress)
        chunks = ScanChunks(store, plan, members, probe)
        weight = scan_illumination(chunks, plan.shape_yx)
        if polish is not None and polish.start == "flat":
            obj = tf.ones(plan.shape_yx, tf.complex64)
        elif model.is_unrolled:
            total = model.generator.steps(chunks.subsets)
            with progress.phase("reconstructing", total) as phase:
                obj = model.generator(
                    chunks, weight, lambda index: phase.update(index + 1), subsets=chunks.subsets
                )
        else:
            window = probe if patch_weighting == "probe" else _middle(probe)
            obj = _stitched(model, store, plan, members, window, scan.record.input_scale, execution, progress)
        if fit_scale or polish is not None:
            gain = _fitted_gain(obj, chunks, model.core_config.gaussian_smoothing_sigma)
        elif model.is_unrolled:
            gain = tf.exp(model.log_gain)
        else:
            gain = tf.exp(model.log_gain) * network_gain(scan, model.trained_probe)
        obj = obj * as_complex(gain)
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
        coverage = (weight / tf.reduce_max(weight)).numpy()
        return Reconstruction(
            obj=obj.numpy(),
            coverage=coverage.astype(np.float32),
            origin_yx_px=plan.origin_yx_px,
            probe=chunks.probe.numpy(),
            members=members,
            seconds=time.perf_counter() - start,
            misfit=misfit,
            positions_yx_px=chunks.positions_yx_px if polish is not None and polish.positions else None,
            fit=fit,
            frame_gain=chunks.frame_gain.numpy() if polish is not None and polish.frames else None,
        )


def _predicted(
    obj: tf.Tensor, corners: tf.Tensor, probes: tf.Tensor, amplitude: tf.Tensor, sigma_px: float
) -> tf.Tensor:
    """Return the expected amplitude of one chunk."""
    patches = physics.extract_patches(obj, corners, amplitude.shape[-1])
    return physics.smoothed_amplitude(physics.diffracted_amplitude(patches, probes), sigma_px)


def _fit(obj: tf.Tensor, chunks: ScanChunks, photons: float | None, sigma_px: float) -> Fit:
    """Return what the object leaves unexplained; one pass."""
    tally = FitTally(len(chunks.members), chunks.plan.patch_px, photons)
    for chunk in chunks:
        predicted = compiled(_predicted, chunk)(
            obj, chunk.corners_yx, chunk.probes, chunk.amplitude, sigma_px
        )
        tally.add(chunk.rows, predicted.numpy(), chunk.amplitude.numpy())
    return tally.result()


def _probe(
    choice: ProbeChoice,
    store: PatternStore,
    scan: Scan,
    members: NDArray[np.int64],
    model: PtychoPINN,
    progress: Progress,
) -> tf.Tensor:
    """Return the chosen probe, fitted to the scan where that was decided."""
    probe = choice.probe
    if choice.fit:
        fitted = fitted_probe(store, replace(scan, probe=probe), members, progress)
        probe = masked(fitted, model.core_config)
    return tf.constant(probe)


def fitted_probe(
    store: PatternStore, scan: Scan, members: NDArray[np.int64], progress: Progress
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
    progress : Progress
        Shows the iterations.

    Returns
    -------
    complex64 array, shape (P, N, N)
        Probe modes [sqrt(photons)], of the power they had.
    """
    chosen, plan = probe_fit_patterns(scan.positions_yx_px, members, scan.n_px)
    chunks = ScanChunks(store, plan, chosen, tf.constant(scan.probe))
    return solver.fit_probe(chunks, tf.ones(plan.shape_yx, tf.complex64), progress).numpy()


def _middle(probe: tf.Tensor) -> tf.Tensor:
    """Return a window that is 1 in the middle half of the patch, as a probe of one mode."""
    n_px = probe.shape[-1]
    window = np.zeros((1, n_px, n_px), probe.dtype.as_numpy_dtype)
    window[:, n_px // 4 : n_px - n_px // 4, n_px // 4 : n_px - n_px // 4] = 1.0
    return tf.constant(window)


def _fitted_gain(obj: tf.Tensor, chunks: ScanChunks, sigma_px: float) -> tf.Tensor:
    """Return the factor on the object that fits the measured amplitudes best in least squares."""
    mixed, energy = tf.constant(0.0), tf.constant(0.0)
    for chunk in chunks:
        patches = physics.extract_patches(obj, chunk.corners_yx, chunk.amplitude.shape[-1])
        predicted = physics.smoothed_amplitude(physics.diffracted_amplitude(patches, chunk.probes), sigma_px)
        predicted = tf.where(physics.measured(chunk.amplitude), predicted, 0.0)
        mixed += tf.reduce_sum(predicted * chunk.amplitude)
        energy += tf.reduce_sum(predicted**2)
    return tf.where(energy > 0, tf.math.divide_no_nan(mixed, energy), 1.0)


def _stitched(
    model: PtychoPINN,
    store: PatternStore,
    plan: CanvasPlan,
    members: NDArray[np.int64],
    window: tf.Tensor,
    input_scale: float,
    execution: PyTorchExecutionConfig,
    progress: Progress,
) -> tf.Tensor:
    """Return the object stitched from the patches of ``cnn``; each pattern counts once, at its own place."""
    gridsize = model.core_config.gridsize
    groups = covering_groups(plan.positions_yx_px, gridsize=gridsize)
    size = execution.inference_batch_size or max(1, CHUNK_PIXELS // (4 * gridsize**2 * plan.patch_px**2))
    total, weight = tf.zeros(plan.shape_yx, tf.complex64), tf.zeros(plan.shape_yx)
    with progress.phase("reconstructing", len(members)) as phase:
        for first in range(0, len(members), size):
            rows = groups.indices[first : first + size]
            amplitude = tf.constant(store.amplitude(members[rows]))
            patches = model.network_patches(amplitude, input_scale)[:, 0]
            shifts = tf.constant(plan.shifts_yx_px[rows[:, 0]], tf.float32)
            corners = tf.constant(plan.corners_yx[rows[:, 0]])
            moved = physics.shift_field(patches[:, None], shifts)[:, 0]
            windows = physics.shift_field(window, shifts)
            total += physics.weighted_patches(moved, corners, windows, plan.shape_yx)
            weight += physics.illumination(windows, corners, plan.shape_yx)
            phase.update(min(first + size, len(members)))
    floor = 1e-9 * tf.reduce_max(weight)
    return tf.where(weight > floor, total / as_complex(weight + floor), tf.ones_like(total))
