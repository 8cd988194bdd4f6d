"""Refinement of object, probe, positions and frame intensities by the forward model alone, in TensorFlow."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ptycho.data.scan import Scan
from ptycho.geometry.batches import refined_members
from ptycho.geometry.canvas import CANVAS_MULTIPLE_PX, plan_canvas
from ptycho.geometry.subsets import subset_momentum
from ptycho.networks import architectures
from ptycho.process.progress import PROBE_PHASE, Progress
from ptycho.run.job import RefineOptions
from ptycho.tf import physics
from ptycho.tf.data import PatternStore, ScanChunks
from ptycho.tf.runtime import as_complex, tf
from ptycho.tf.solver import Chunk, SubsetWeights, compiled, poisson_residual, scan_illumination


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

    obj: tf.Tensor
    probe: tf.Tensor
    misfit: list[float]


class _Asked(NamedTuple):
    """What a pass looks for: plain values, which a compiled function tells apart by what they are."""

    probe: bool
    positions: bool
    frames: bool
    poisson: bool


def _power(field: tf.Tensor, axis: int | None = None) -> tf.Tensor:
    """Return the sum of squares."""
    return tf.reduce_sum(tf.math.real(field) ** 2 + tf.math.imag(field) ** 2, axis=axis)


def _position_equations(
    patches: tf.Tensor, residual: tf.Tensor, probes: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the normal matrices (J, 2, 2) and right sides (J, 2) of the position steps (eq. 16)."""
    waves = tf.constant(2j * math.pi * np.fft.fftfreq(probes.shape[-1]), residual.dtype)
    spectrum = tf.signal.fft2d(tf.broadcast_to(probes, tf.shape(residual)))
    count = tf.shape(residual)[0]
    slopes = [
        tf.reshape(tf.signal.ifft2d(spectrum * wave) * patches[:, None], (count, -1))
        for wave in (waves[:, None], waves[None, :])
    ]
    target = tf.reshape(residual, (count, -1))

    def mixed(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
        return tf.reduce_sum(tf.math.real(tf.math.conj(a) * b), axis=1)

    normal = tf.stack([tf.stack([mixed(a, b) for b in slopes], 1) for a in slopes], 1)
    right = tf.stack([mixed(a, target) for a in slopes], 1)
    return normal, right


def _position_steps(normal: tf.Tensor, right: tf.Tensor) -> tf.Tensor:
    """Return the least-squares moves of all positions of a scan, shape (J, 2) [px] (eq. 16)."""
    # A flat region says nothing about its position; the ridge, one for the whole scan, keeps it where it is.
    ridge = 1e-3 * tf.reduce_mean(tf.linalg.diag_part(normal)) * tf.eye(2, dtype=normal.dtype)
    steps = architectures.POSITION_STEP * tf.linalg.solve(normal + ridge, right[..., None])[..., 0]
    return tf.clip_by_value(steps, -architectures.POSITION_LIMIT_PX, architectures.POSITION_LIMIT_PX)


def _frame_gains(patches: tf.Tensor, probes: tf.Tensor, amplitude: tf.Tensor) -> tf.Tensor:
    """Return the factor on every frame that fits its measured pixels best, shape (J,); 1 without any."""
    predicted = tf.where(physics.measured(amplitude), physics.diffracted_amplitude(patches, probes), 0.0)
    power = tf.reduce_sum(predicted**2, (1, 2))
    fit = tf.math.divide_no_nan(tf.reduce_sum(predicted * amplitude, (1, 2)), power)
    return tf.where(power > 0, fit, 1.0)


def total_variation_gradient(obj: tf.Tensor) -> tf.Tensor:
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
    down = tf.concat([obj[1:], obj[-1:]], 0) - obj
    right = tf.concat([obj[:, 1:], obj[:, -1:]], 1) - obj
    length = as_complex(tf.sqrt(tf.abs(down) ** 2 + tf.abs(right) ** 2 + architectures.TV_SMOOTHING**2))
    down, right = down / length, right / length
    above = tf.concat([tf.zeros_like(down[:1]), down[:-1]], 0)
    before = tf.concat([tf.zeros_like(right[:, :1]), right[:, :-1]], 1)
    return -(down - above + right - before)


def _sums(
    obj: tf.Tensor,
    corners: tf.Tensor,
    probes: tf.Tensor,
    amplitude: tf.Tensor,
    shifts: tf.Tensor,
    asked: _Asked,
) -> dict[str, tf.Tensor]:
    """Return what one chunk tells."""
    patches = physics.extract_patches(obj, corners, amplitude.shape[-1])
    residual = physics.wave_residual(obj, corners, probes, amplitude)
    found = {"error": _power(residual), "energy": physics.measured_energy(amplitude)}
    if asked.positions:
        found["normal"], found["right"] = _position_equations(patches, residual, probes)
    if asked.frames:
        found["gain"] = _frame_gains(patches, probes, amplitude)
    if asked.poisson:
        residual = poisson_residual(patches, probes, amplitude)
    back = tf.reduce_sum(tf.math.conj(probes) * residual, axis=1)
    found["gradient"] = physics.place_patches(back, corners, tf.shape(obj))
    if asked.probe:
        found["probe_gradient"] = physics.probe_gradient(patches, residual, shifts)
        found["light"] = _power(patches, axis=0)
    return found


def _visited(
    part: Iterable[Chunk], leading: tf.Tensor, asked: _Asked, rows: list[NDArray[np.int64]]
) -> list[dict[str, tf.Tensor]]:
    """Return what every chunk of a subset tells; note which patterns it holds."""
    found = []
    for chunk in part:
        tensors = (chunk.corners_yx, chunk.probes, chunk.amplitude, chunk.shifts_yx_px)
        found.append(compiled(_sums, chunk)(leading, *tensors, asked))
        rows.append(chunk.rows)
    return found


def _move(
    chunks: ScanChunks,
    found: list[dict[str, tf.Tensor]],
    rows: list[NDArray[np.int64]],
    previous_gain: tf.Tensor,
) -> None:
    """Move positions and frame intensities (eq. 21) by what a pass found for them."""
    back = np.argsort(np.concatenate(rows))
    if "normal" in found[0]:
        normal, right = (
            tf.gather(tf.concat([part.pop(name) for part in found], 0), back) for name in ("normal", "right")
        )
        step = _position_steps(normal, right)
        # All positions together may drift; that is the object's freedom, not theirs.
        chunks.change(shifts=chunks.shifts + step - tf.reduce_mean(step, axis=0))
    if "gain" in found[0]:
        gain = chunks.frame_gain
        trend = tf.where(previous_gain > 0, tf.math.divide_no_nan(gain, previous_gain), 1.0)
        fit = tf.gather(tf.concat([part.pop("gain") for part in found], 0), back)
        gain = gain * fit * trend**architectures.FRAME_MOMENTUM
        mean = tf.reduce_mean(gain)
        chunks.change(frame_gain=gain / tf.where(mean > 0, mean, 1.0))


def _asked(index: int, options: RefineOptions) -> _Asked:
    """Return what a pass looks for."""
    return _Asked(
        probe=options.probe and index >= architectures.PROBE_REST_STEPS,
        positions=options.positions and index >= architectures.POSITION_REST_STEPS,
        frames=options.frames,
        poisson=options.likelihood == "poisson",
    )


def refine(
    chunks: ScanChunks,
    obj: tf.Tensor,
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
    power = _power(chunks.probe)
    previous, previous_probe, previous_gain, update = obj, chunks.probe, chunks.frame_gain, 0
    weights = SubsetWeights(chunks, scan_illumination(chunks, chunks.plan.shape_yx))
    misfit: list[float] = []
    whole = 0
    counts = options.subset_counts(chunks.subsets)
    for index, count in enumerate(counts):
        found, rows = [], []
        for subset in range(count):
            leading = obj + subset_momentum(update, max(counts)) * (obj - previous)
            parts = _visited(chunks.part(subset, count), leading, _asked(index, options), rows)
            weight = weights.of(subset, count)
            damped = as_complex(weight + architectures.STEP_DAMPING * tf.reduce_max(weight))
            previous, obj = obj, leading - sum(part.pop("gradient") for part in parts) / damped
            update += 1
            found += parts
        gain = chunks.frame_gain
        _move(chunks, found, rows, previous_gain)
        previous_gain = gain
        sums = {name: sum(part[name] for part in found) for name in found[0]}
        if options.tv:
            obj = obj - options.tv * total_variation_gradient(obj)
        misfit.append(float(tf.math.divide_no_nan(sums["error"], sums["energy"])))
        if "light" in sums:
            probe = chunks.probe
            step = (
                architectures.PROBE_STEP * sums["probe_gradient"] / as_complex(tf.reduce_max(sums["light"]))
            )
            moved = probe - step + architectures.PROBE_MOMENTUM * (probe - previous_probe)
            # Object and probe share one scale; it stays with the probe that came in.
            previous_probe = probe
            chunks.change(probe=moved * as_complex(tf.sqrt(power / _power(moved))))
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
    chunks: ScanChunks, obj: tf.Tensor, options: RefineOptions, progress: Progress, name: str = "refining"
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
    store: PatternStore, scan: Scan, members: NDArray[np.int64], progress: Progress
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
    chunks = ScanChunks(store, plan, members, tf.constant(scan.probe))
    flat = tf.ones(plan.shape_yx, tf.complex64)
    return refine_shown(chunks, flat, options, progress, PROBE_PHASE).probe.numpy()
