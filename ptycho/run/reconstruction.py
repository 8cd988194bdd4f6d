"""The reconstruction of a scan with a trained model, written once over the arrays of a backend."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ptycho.data.chunks import ScanChunks
from ptycho.data.prepare import masked
from ptycho.data.probe_choice import ProbeChoice, choose_probe
from ptycho.data.reconstruction import Fit, ProbeVariation, Reconstruction
from ptycho.data.scan import PatternStore, Scan
from ptycho.errors import ConfigError
from ptycho.evaluation.misfit import FitTally, noise_misfit, photon_unit, stands_far_above_noise, tells_few
from ptycho.evaluation.uncertainty import uncertainty_line
from ptycho.geometry.batches import probe_fit_patterns
from ptycho.geometry.canvas import CANVAS_MULTIPLE_PX, CanvasPlan, plan_canvas
from ptycho.physics.variation import probe_of_modes
from ptycho.process.progress import Progress
from ptycho.run.backend import Backend
from ptycho.run.network_object import averaged, each_pair, network_object
from ptycho.run.uncertainty import errors_of
from ptycho.solver.difference_map import escaped
from ptycho.solver.options import RefineOptions
from ptycho.solver.refinement import fit_probe as fit_probe_of
from ptycho.solver.refinement import refine_shown

Array = Any


@dataclass(frozen=True)
class Selection:
    """How a scan is best reconstructed."""

    fits_probe: bool = False  # the probe is fitted to the scan first
    refine: RefineOptions | None = None  # refinement, None: what the network makes is best
    factor: float = 1.0  # on the corrections of the network
    refined_share: float = 0.0  # weight of the refined object; the rest, 0 < rest < 1, is that of the network
    record: Mapping[str, Any] | None = None  # what was chosen, in names and numbers


Select = Callable[..., Selection]
"""Decides on it, as ``ptycho.run.selection.selected``."""


class _Refined(NamedTuple):
    """An object, refined or not."""

    obj: Array  # (H, W)
    misfit: list[float]  # of every iteration
    fit: Fit  # what the object leaves unexplained
    escaped: bool = False  # the difference map found it


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
    select, chosen = select if refine is None else None, Selection(refine=refine)
    uses_probe = not flat if refine is not None else backend.whole_canvas or fit_scale or select is not None
    choose = partial(choose_probe, scan, backend.trained_probe, fit_probe=fit_probe, given=given_probe)
    choice = choose(uses_probe=uses_probe)
    check_patch(scan, choice.probe, fits=flat or backend.whole_canvas)
    plan, kept = _canvas(scan.positions_yx_px[indices], choice.probe.shape[-1], centre_yx_px)
    network = partial(
        network_object, backend, scan=scan, batch_size=batch_size, patch_weighting=patch_weighting
    )
    with PatternStore(scan, progress) as store:
        if select is not None:
            chosen = select(backend, store, scan, indices, choice, network, fit_scale, progress)
            refine = chosen.refine
            choice = choose(uses_probe=chosen.fits_probe)
        asked = refine or RefineOptions(0)
        probe = _used_probe(backend, store, scan, indices, choice, asked, progress)
        chunks = backend.chunks(store, plan, indices, backend.tensor(probe))
        chunks.variation = given_variation
        illumination = backend.illumination(chunks)
        network = partial(network, chunks, illumination, progress, factor=chosen.factor)
        end = _object(backend, network, chunks, scan, chosen, fit_scale, illumination, progress)
        coverage = backend.array(backend.illumination(chunks) if refine else illumination)
        errors = errors_of(uncertainty, backend, end.obj, chunks, end.fit.photons, refine, progress)
    found = Reconstruction(
        obj=backend.array(end.obj)[kept].astype(np.complex64),
        coverage=(coverage / coverage.max())[kept].astype(np.float32),
        origin_yx_px=plan.origin_yx_px,
        probe=backend.array(chunks.probe).astype(np.complex64),
        indices=indices,
        seconds=time.perf_counter() - start,
        misfit=(*end.misfit, end.fit.relative) if end.misfit else (),
        positions_yx_px=chunks.positions_yx_px if asked.moves_positions else None,
        position_step_px=chunks.position_step_px,
        fit=end.fit,
        frame_gain=backend.array(chunks.frame_gain) if asked.frames or scan.frame_gain is not None else None,
        background=None if chunks.background is None else backend.array(chunks.background),
        variation=chunks.variation,
        errors=errors and errors.cut(kept),
        chosen=chosen.record,
    )
    pure = refine if chosen.refined_share in (0, 1) else None
    return _told(found, pure, uncertainty, progress)


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


def _object(
    backend: Backend,
    network: Callable[..., Array],
    chunks: ScanChunks,
    scan: Scan,
    chosen: Selection,
    fit_scale: bool,
    illumination: Array,
    progress: Progress,
) -> _Refined:
    """Return the object of a network, or what a refinement makes of it or of a flat one, or their mean; the
    scale of a network is fitted where ``fit_scale`` says so, and before a refinement."""
    refine = chosen.refine
    flat = refine is not None and refine.from_flat
    begin = network(fitted=fit_scale or bool(refine), flat=flat)
    end = _refined(backend, begin, chunks, scan, refine, progress)
    if not 0 < chosen.refined_share < 1 or end.escaped:
        return end
    other = network(fitted=fit_scale) if flat else begin
    obj = averaged(backend, end.obj, other, chosen.refined_share, illumination)
    return end._replace(obj=obj, fit=_fit(backend, obj, chunks, photon_unit(scan)))


def _refined(
    backend: Backend,
    obj: Array,
    chunks: ScanChunks,
    scan: Scan,
    options: RefineOptions | None,
    progress: Progress,
) -> _Refined:
    """Return the refined object; the difference map is tried where it was asked for, or the refinement may
    have ended in a wrong minimum. Without options nothing is refined."""
    if options is None:
        return _Refined(obj, [], _fit(backend, obj, chunks, photon_unit(scan)))
    found = refine_shown(backend.primitives, chunks, obj, options, progress)
    fit = _fit(backend, found.obj, chunks, photon_unit(scan))
    asked = options.start == "difference-map"
    # Most scans measure far more numbers than are sought: only the others are looked at a second time.
    few = tells_few(len(chunks.indices), scan.n_px, backend.array(backend.illumination(chunks)))
    if not (asked or (few and stands_far_above_noise(fit))):
        return _Refined(found.obj, found.misfit, fit)
    better = escaped(backend.primitives, chunks, found, options, progress, noise_misfit=noise_misfit(fit))
    if better is found:
        if asked:
            progress.note("difference map: no object found that fits better")
        return _Refined(found.obj, found.misfit, fit)
    roots = math.sqrt(found.misfit[-1]), math.sqrt(better.misfit[-1])
    progress.note(f"difference map: root of the misfit {roots[0]:.2g} before, {roots[1]:.2g} after")
    fit = _fit(backend, better.obj, chunks, photon_unit(scan))
    return _Refined(better.obj, [*found.misfit, *better.misfit], fit, escaped=True)


def _fit(backend: Backend, obj: Array, chunks: ScanChunks, photons: float | None) -> Fit:
    """Return what an object leaves unexplained; ``photons`` per unit of counts is None where unknown."""
    tally = FitTally(len(chunks.indices), chunks.store.n_px, photons, chunks.store.background)
    each_pair(backend, obj, chunks, tally.add)
    return tally.result()
