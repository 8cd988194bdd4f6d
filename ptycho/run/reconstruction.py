"""The reconstruction of a scan with a trained model, written once over the arrays of a backend."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ptycho.config.config import ModelConfig
from ptycho.data.chunks import ScanChunks
from ptycho.data.prepare import masked
from ptycho.data.probe_choice import ProbeChoice, TrainedProbe, choose_probe, network_gain
from ptycho.data.reconstruction import Fit, ProbeVariation, Reconstruction
from ptycho.data.scan import PatternStore, Scan
from ptycho.errors import ConfigError
from ptycho.evaluation.misfit import FitTally, noise_misfit, photon_unit, stands_far_above_noise, tells_few
from ptycho.evaluation.uncertainty import uncertainty_line
from ptycho.geometry.batches import CHUNK_PIXELS, probe_fit_patterns
from ptycho.geometry.canvas import CANVAS_MULTIPLE_PX, CanvasPlan, plan_canvas
from ptycho.geometry.grouping import covering_groups
from ptycho.physics.background import light_sums
from ptycho.physics.variation import probe_of_modes
from ptycho.process.interrupts import step
from ptycho.process.progress import Progress
from ptycho.run.uncertainty import errors_of
from ptycho.solver.difference_map import escaped
from ptycho.solver.options import RefineOptions
from ptycho.solver.primitives import Primitives
from ptycho.solver.refinement import fit_probe as fit_probe_of
from ptycho.solver.refinement import refine_shown

Array = Any


class Backend(Protocol):
    """What one backend computes of a reconstruction, with one model on one device; arrays are its own."""

    primitives: Primitives
    chunks: Callable[[PatternStore, CanvasPlan, NDArray[np.int64], Array], ScanChunks]
    core_config: ModelConfig
    trained_probe: TrainedProbe
    whole_canvas: bool  # the network sees a whole canvas, not a group of patterns
    generator: Any  # the network itself

    def tensor(self, values: NDArray[Any]) -> Array:
        """Return values as an array of the backend."""

    def array(self, tensor: Array) -> NDArray[Any]:
        """Return an array of the backend as NumPy values."""

    def illumination(self, chunks: ScanChunks) -> Array:
        """Return the photons per canvas pixel (H, W) (eq. 8)."""

    def predicted(self, obj: Array, chunk: Any, sigma_px: float) -> Array:
        """Return the expected amplitude (J, N, N) of a chunk [sqrt(photons)] (eq. 6, 15)."""

    def patch_sums(
        self,
        amplitude: NDArray[np.float32],
        input_scale: float,
        window: NDArray[np.complex64],
        corners_yx: NDArray[np.int64],
        shifts_yx_px: NDArray[np.float64],
        shape_yx: tuple[int, int],
    ) -> tuple[Array, Array]:
        """Return weighted sum and weight (H, W) of the patches that a network makes of groups (eq. 12).

        The first patch of each group of ``amplitude`` (B, C, N, N) counts, at its corner and its shift (B, 2)
        [px], weighted with the power of ``window`` (P, N, N).
        """

    def quotient(self, total: Array, weight: Array) -> Array:
        """Return total / weight (H, W), and 1 where hardly any weight is."""

    def gain(self) -> float:
        """Return the factor on amplitudes that the model learned."""


class Selected(Protocol):
    """How a scan is best reconstructed."""

    fits_probe: bool  # the probe is fitted to the scan first
    refine: RefineOptions | None  # refinement, None: what the network makes is best
    factor: float  # on the corrections of the network
    record: Mapping[str, Any]  # what was chosen, in names and numbers


Select = Callable[..., Selected]
"""Decides on it, as ``ptycho.run.selection.selected``."""


def reconstruct(
    backend: Backend,
    scan: Scan,
    indices: NDArray[np.int64],
    *,
    progress: Progress,
    batch_size: int | None = None,
    patch_weighting: str = "probe",
    fit_scale: bool = False,
    refine: RefineOptions | None = None,
    fit_probe: bool | None = None,
    given_probe: NDArray[np.complex64] | None = None,
    given_variation: ProbeVariation | None = None,
    centre_yx_px: tuple[float, float] | None = None,
    uncertainty: str | None = None,
    select: Select | None = None,
) -> Reconstruction:
    """Reconstruct the object of a scan with a model and the arithmetic of a backend, from the patterns
    ``indices`` (J,).

    A network sees ``batch_size`` groups at a time; ``patch_weighting`` says how their patches are merged:
    ``probe``, or ``uniform``, which counts the middle half of each alike. ``fit_scale`` multiplies the object
    with the one factor that fits the measured amplitudes best; ``refine`` refines it by the forward model.
    ``fit_probe`` fits the probe of the file to the scan before the network sees it, or not; by default that
    is decided, see ``ptycho.data.probe_choice``. ``given_probe`` (P, N, N) [sqrt(photons)] is used as it is,
    with the ``given_variation`` of its first mode, of the J patterns.
    ``centre_yx_px`` is the object coordinate [px] of the middle of the result, index
    ``((H-1)/2, (W-1)/2)``. ``uncertainty`` adds error bars: ``fisher``, from the information of the counts,
    or ``bootstrap``, from counts drawn again and refined again. ``select`` decides, where no refinement is
    asked for, whether the probe is fitted and how the object is refined.
    """
    start, flat = time.perf_counter(), refine is not None and refine.from_flat
    select, record, factor = select if refine is None else None, None, 1.0
    uses_probe = not flat if refine is not None else backend.whole_canvas or fit_scale or select is not None
    choose = partial(choose_probe, scan, backend.trained_probe, fit_probe=fit_probe, given=given_probe)
    choice = choose(uses_probe=uses_probe)
    check_patch(scan, choice.probe, fits=flat or backend.whole_canvas)
    plan, kept = _canvas(scan.positions_yx_px[indices], choice.probe.shape[-1], centre_yx_px)
    network = partial(
        _network_object, backend, scan=scan, batch_size=batch_size, patch_weighting=patch_weighting
    )
    with PatternStore(scan, progress) as store:
        if select is not None:
            chosen = select(backend, store, scan, indices, choice, network, fit_scale, progress)
            refine, factor, record = chosen.refine, chosen.factor, chosen.record
            choice = choose(uses_probe=chosen.fits_probe)
        asked = refine or RefineOptions(0)
        probe = _used_probe(backend, store, scan, indices, choice, asked, progress)
        chunks = backend.chunks(store, plan, indices, backend.tensor(probe))
        chunks.variation = given_variation
        illumination = backend.illumination(chunks)
        begin = {"fitted": fit_scale or bool(refine), "flat": asked.from_flat, "factor": factor}
        obj = network(chunks, illumination, progress, **begin)
        obj, misfit, fit = _refined(backend, obj, chunks, scan, refine, progress)
        coverage = backend.array(backend.illumination(chunks) if refine else illumination)
        errors = errors_of(uncertainty, backend, obj, chunks, fit.photons, refine, progress)
    found = Reconstruction(
        obj=backend.array(obj)[kept].astype(np.complex64),
        coverage=(coverage / coverage.max())[kept].astype(np.float32),
        origin_yx_px=plan.origin_yx_px,
        probe=backend.array(chunks.probe).astype(np.complex64),
        indices=indices,
        seconds=time.perf_counter() - start,
        misfit=(*misfit, fit.relative) if misfit else (),
        positions_yx_px=chunks.positions_yx_px if asked.moves_positions else None,
        position_step_px=chunks.position_step_px,
        fit=fit,
        frame_gain=backend.array(chunks.frame_gain) if asked.frames or scan.frame_gain is not None else None,
        background=None if chunks.background is None else backend.array(chunks.background),
        variation=chunks.variation,
        errors=errors and errors.cut(kept),
        chosen=record,
    )
    return _told(found, refine, uncertainty, progress)


def check_patch(scan: Scan, probe: NDArray[Any], *, fits: bool) -> None:
    """Raise ``ConfigError`` where a network makes patches of the size of a pattern, and the probe is larger;
    ``fits``: the network makes none, or takes no part."""
    patch_px = probe.shape[-1]
    if patch_px != scan.n_px and not fits:
        raise ConfigError(
            f"{scan.name}: architecture cnn makes patches as large as a pattern (got a probe of {patch_px} "
            f"px, expected {scan.n_px} px). Take an unrolled network, --init flat, or no --probe-window."
        )


def _told(
    found: Reconstruction, refined: RefineOptions | None, kind: str | None, progress: Progress
) -> Reconstruction:
    """Say what a refinement found, and return it."""
    if (told := uncertainty_line(found, refined, kind)) is not None:
        progress.note(told)
    if misfit := found.misfit:
        told = f"misfit {misfit[0]:.4g} before, {misfit[-1]:.4g} after"
        progress.note(f"refined in {len(misfit) - 1} steps: {told}")
    if found.variation is not None:
        count, share = len(found.variation.modes), 100 * found.varying_share
        named = f"{count} variable mode" + ("s" if count > 1 else "")
        progress.note(f"the probe changes from pattern to pattern: {named} with {share:.2g} % of its power")
    return found


def _used_probe(
    backend: Backend,
    store: PatternStore,
    scan: Scan,
    indices: NDArray[np.int64],
    choice: ProbeChoice,
    asked: RefineOptions,
    progress: Progress,
) -> NDArray[np.complex64]:
    """Return the chosen probe (P, N, N) [sqrt(photons)], in as many modes as a refinement asks for and fitted
    where that was decided, and say which it is."""
    progress.note(choice.summary)
    probe = probe_of_modes(choice.probe, asked.probe_modes or len(choice.probe))
    if choice.fit:
        probe = fitted_probe(backend, store, replace(scan, probe=probe), indices, progress)
    return probe


def fitted_probe(
    backend: Backend, store: PatternStore, scan: Scan, indices: NDArray[np.int64], progress: Progress
) -> NDArray[np.complex64]:
    """Fit the probe (P, N, N) of a scan to those of the patterns ``indices`` that lie around the middle.

    It keeps its power [sqrt(photons)], and lies within the mask of the settings.
    """
    chosen, plan = probe_fit_patterns(scan.positions_yx_px, indices, scan.patch_px)
    chunks = backend.chunks(store, plan, chosen, backend.tensor(scan.probe))
    flat = backend.tensor(np.ones(plan.shape_yx, np.complex64))
    return masked(
        backend.array(fit_probe_of(backend.primitives, chunks, flat, progress)), backend.core_config
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


def _middle(probe: NDArray[np.complex64]) -> NDArray[np.complex64]:
    """Return a window that is 1 in the middle half of the patch, as a probe of one mode."""
    n_px = probe.shape[-1]
    window = np.zeros((1, n_px, n_px), probe.dtype)
    window[:, n_px // 4 : n_px - n_px // 4, n_px // 4 : n_px - n_px // 4] = 1.0
    return window


def _pairs(backend: Backend, obj: Array, chunks: ScanChunks, take: Callable[..., None]) -> None:
    """Hand rows, expected and measured amplitude of every chunk on, once."""
    sigma_px = backend.core_config.gaussian_smoothing_sigma
    for chunk in chunks:
        predicted = backend.array(backend.predicted(obj, chunk, sigma_px))
        take(chunk.rows, predicted, backend.array(chunk.amplitude))


def _refined(
    backend: Backend,
    obj: Array,
    chunks: ScanChunks,
    scan: Scan,
    options: RefineOptions | None,
    progress: Progress,
) -> tuple[Array, list[float], Fit]:
    """Return the refined object, the misfit of every iteration, and what the object leaves unexplained; the
    difference map is tried where it was asked for, or the refinement may have ended in a wrong minimum.
    Without options nothing is refined."""
    if options is None:
        return obj, [], _fit(backend, obj, chunks, photon_unit(scan))
    found = refine_shown(backend.primitives, chunks, obj, options, progress)
    fit = _fit(backend, found.obj, chunks, photon_unit(scan))
    asked = options.start == "difference-map"
    # Most scans measure far more numbers than are sought: only the others are looked at a second time.
    few = tells_few(len(chunks.indices), scan.n_px, backend.array(backend.illumination(chunks)))
    if not (asked or (few and stands_far_above_noise(fit))):
        return found.obj, found.misfit, fit
    better = escaped(backend.primitives, chunks, found, options, progress, noise_misfit=noise_misfit(fit))
    if better is found:
        if asked:
            progress.note("difference map: no object found that fits better")
        return found.obj, found.misfit, fit
    roots = math.sqrt(found.misfit[-1]), math.sqrt(better.misfit[-1])
    progress.note(f"difference map: root of the misfit {roots[0]:.2g} before, {roots[1]:.2g} after")
    return better.obj, [*found.misfit, *better.misfit], _fit(backend, better.obj, chunks, photon_unit(scan))


def _fit(backend: Backend, obj: Array, chunks: ScanChunks, photons: float | None) -> Fit:
    """Return what an object leaves unexplained; ``photons`` per unit of counts is None where unknown."""
    tally = FitTally(len(chunks.indices), chunks.store.n_px, photons, chunks.store.background)
    _pairs(backend, obj, chunks, tally.add)
    return tally.result()


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

    _pairs(backend, obj, chunks, add if background is None else add_light)
    if not min(sums) > 0:
        return 1.0
    return float(sums[0] / sums[1]) if background is None else float(np.sqrt(sums[0] / sums[1]))


def _network_object(
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
    beam; arguments as in :func:`reconstruct`, and whether the scale is ``fitted``. A network of the whole
    canvas corrects ``factor`` times as much, behind plain iterations whose last two ``iterates`` may be
    known."""
    if flat:
        obj = backend.tensor(np.ones(chunks.plan.shape_yx, np.complex64))
    elif backend.whole_canvas:
        obj = _canvas_object(backend, chunks, illumination, progress, factor, iterates)
    else:
        probe = backend.array(chunks.probe)
        window = probe if patch_weighting == "probe" else _middle(probe)
        obj = _stitched(backend, chunks, window, scan.record.input_scale, batch_size, progress)
    return obj * _gain(backend, obj, chunks, scan, fitted=fitted)


def _canvas_object(
    backend: Backend,
    chunks: ScanChunks,
    illumination: Array,
    progress: Progress,
    factor: float,
    iterates: tuple[Array, Array] | None,
) -> Array:
    """Return the object (H, W) that a network of the whole canvas makes; arguments as in
    :func:`_network_object`."""
    with progress.phase("reconstructing", backend.generator.steps(chunks.subsets)) as phase:
        how = {"subsets": chunks.subsets, "factor": factor, "iterates": iterates}
        return backend.generator(chunks, illumination, lambda index: phase.update(index + 1), **how)


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
