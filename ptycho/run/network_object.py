"""The object that a network makes of the patterns of a scan, in the scale of the beam."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho.data.chunks import ScanChunks
from ptycho.data.probe_choice import network_gain
from ptycho.data.reconstruction import SCANNED_SHARE
from ptycho.data.scan import Scan
from ptycho.geometry.batches import CHUNK_PIXELS
from ptycho.geometry.grouping import covering_groups
from ptycho.physics.background import light_sums
from ptycho.physics.slow_phase import phase_scale_px, slow_turn_rad
from ptycho.process.interrupts import step
from ptycho.process.progress import Progress
from ptycho.run.backend import Backend
from ptycho.solver.refinement import accelerated_steps
from ptycho.solver.schedule import FAR_TURN_RAD, MORE_ROUNDS, MORE_STEPS, SETTLED_TURN_RAD

Array = Any


def network_object(
    backend: Backend,
    chunks: ScanChunks,
    illumination: Array,
    progress: Progress,
    *,
    scan: Scan,
    fitted: bool,
    batch_size: int | None,
    patch_weighting: str,
    flat: bool = False,
    factor: float = 1.0,
    iterates: tuple[Array, Array] | None = None,
) -> Array:
    """Return the object (H, W) that the network makes of the patterns, or a flat one, in the scale of the
    beam; arguments as in ``ptycho.run.reconstruction.reconstruct``, and whether the scale is ``fitted``. A
    network of the whole canvas corrects ``factor`` times as much, behind plain iterations whose last two
    ``iterates`` may be known."""
    if flat:
        obj = backend.tensor(np.ones(chunks.plan.shape_yx, np.complex64))
    elif backend.whole_canvas:
        obj = _canvas_object(backend, chunks, illumination, progress, factor, iterates)
    else:
        probe = backend.array(chunks.probe)
        window = probe if patch_weighting == "probe" else _middle(probe)
        obj = _stitched(backend, chunks, window, scan.record.input_scale, batch_size, progress)
    return obj * _gain(backend, obj, chunks, scan, fitted=fitted)


def plain_iterates(
    backend: Backend,
    chunks: ScanChunks,
    illumination: Array,
    on_step: Callable[[int], None] | None = None,
) -> tuple[Array, Array]:
    """Return the last two iterates (H, W) of the plain steps of a network of the whole canvas, which go on
    until slow phases are at rest, where they are not few by choice; ``on_step`` is called with the index of
    each of the network's own, and again with that of the last."""
    generator, light = backend.generator, backend.array(illumination)
    own = generator.steps(chunks.subsets) - generator.learned
    last: tuple[Array, Array] = generator.plain_iterations(
        chunks, illumination, on_step, subsets=chunks.subsets
    )
    scale_px = phase_scale_px(backend.array(chunks.probe))
    again = None if on_step is None else lambda _: on_step(own - 1)
    for _ in range(MORE_ROUNDS if own >= MORE_STEPS else 0):
        turn_rad = slow_turn_rad(*(backend.array(obj) for obj in last), light, scale_px, SCANNED_SHARE)
        if turn_rad <= SETTLED_TURN_RAD:
            break
        last = accelerated_steps(
            backend.primitives,
            last[0],
            chunks,
            illumination,
            MORE_STEPS,
            again,
            likelihood=generator.likelihood,
            subsets=chunks.subsets if turn_rad > FAR_TURN_RAD else 1,
        )
    return last


def _canvas_object(
    backend: Backend,
    chunks: ScanChunks,
    illumination: Array,
    progress: Progress,
    factor: float,
    iterates: tuple[Array, Array] | None,
) -> Array:
    """Return the object (H, W) that a network of the whole canvas makes; arguments as in
    :func:`network_object`."""
    with progress.phase("reconstructing", backend.generator.steps(chunks.subsets)) as phase:

        def done(index: int) -> None:
            phase.update(index + 1)

        last = iterates or plain_iterates(backend, chunks, illumination, done)
        how = {"subsets": chunks.subsets, "factor": factor, "iterates": last}
        return backend.generator(chunks, illumination, done, **how)


def _stitched(
    backend: Backend,
    chunks: ScanChunks,
    window: NDArray[np.complex64],
    input_scale: float,
    batch_size: int | None,
    progress: Progress,
) -> Array:
    """Return the object stitched from the patches of groups; each pattern counts once, at its own place."""
    plan, indices, gridsize = chunks.plan, chunks.indices, backend.core_config.gridsize
    groups = covering_groups(plan.positions_yx_px, gridsize=gridsize)
    size = batch_size or max(1, CHUNK_PIXELS // (4 * gridsize**2 * plan.patch_px**2))
    total: Array = 0.0
    weight: Array = 0.0
    with progress.phase("reconstructing", len(indices)) as phase:
        for first in range(0, len(indices), size):
            step()
            rows = groups.indices[first : first + size]
            amplitude = chunks.store.amplitude(indices[rows])
            if (beam := chunks.store.frame_gain) is not None:
                # The network sees every pattern as under one beam.
                amplitude = amplitude / beam[indices[rows]][..., None, None]
            places = plan.corners_yx[rows[:, 0]], plan.shifts_yx_px[rows[:, 0]]
            sums = backend.patch_sums(amplitude, input_scale, window, *places, plan.shape_yx)
            total, weight = total + sums[0], weight + sums[1]
            phase.update(min(first + size, len(indices)))
    return backend.quotient(total, weight)


def _gain(backend: Backend, obj: Array, chunks: ScanChunks, scan: Scan, *, fitted: bool) -> float:
    """Return the factor on the object: fitted in least squares to the amplitudes, else that of the model."""
    if fitted:
        return fitted_gain(backend, obj, chunks)
    own = 1.0 if backend.whole_canvas else network_gain(scan, backend.trained_probe)
    return backend.gain() * own


def fitted_gain(backend: Backend, obj: Array, chunks: ScanChunks) -> float:
    """Return the factor on an object (H, W) that fits the amplitudes of patterns in least squares, or their
    counts where a background lies under them."""
    sums, background = np.zeros(2), chunks.store.background

    def add(_: Any, predicted: NDArray[np.float32], measured: NDArray[np.float32]) -> None:
        seen = np.where(measured >= 0, predicted, 0.0)
        sums[:] += np.vdot(seen, measured), np.vdot(seen, seen)

    def add_light(_: Any, predicted: NDArray[np.float32], measured: NDArray[np.float32]) -> None:
        light = np.where(measured >= 0, np.maximum(predicted**2 - background, 0.0), 0.0)
        sums[:] += [part.sum() for part in light_sums(light, measured, background)]

    each_pair(backend, obj, chunks, add if background is None else add_light)
    if not min(sums) > 0:
        return 1.0
    return float(sums[0] / sums[1]) if background is None else float(np.sqrt(sums[0] / sums[1]))


def each_pair(backend: Backend, obj: Array, chunks: ScanChunks, take: Callable[..., None]) -> None:
    """Hand rows, expected and measured amplitude of every chunk on, once."""
    sigma_px = backend.core_config.gaussian_smoothing_sigma
    for chunk in chunks:
        predicted = backend.array(backend.predicted(obj, chunk, sigma_px))
        take(chunk.rows, predicted, backend.array(chunk.amplitude))


def _middle(probe: NDArray[np.complex64]) -> NDArray[np.complex64]:
    """Return a window that is 1 in the middle half of the patch, as a probe of one mode."""
    n_px = probe.shape[-1]
    window = np.zeros((1, n_px, n_px), probe.dtype)
    window[:, n_px // 4 : n_px - n_px // 4, n_px // 4 : n_px - n_px // 4] = 1.0
    return window


def averaged(
    backend: Backend, refined: Array, network: Array, refined_share: float, illumination: Array
) -> Array:
    """Return the mean (H, W) of a refined object and that of a network, with the weight ``refined_share`` of
    the former, and the refined one alone where hardly any light fell (eq. 29b); the global phase, which no
    pattern knows, is that of the refined one."""
    known, other = (backend.array(obj).astype(np.complex128) for obj in (refined, network))
    light = backend.array(illumination)
    turn = np.vdot(other, light * known)
    other *= turn / abs(turn) if abs(turn) > 0 else 1.0
    share = np.where(light >= SCANNED_SHARE * light.max(), refined_share, 1.0)
    return backend.tensor((known + (1 - share) * (other - known)).astype(np.complex64))
