"""Pre-training of ``unrolled`` on simulated scans, so that a new scan reconstructs without training.

The learned steps are trained one after the other: the U-Net of a step sees what the steps before it leave and
learns the difference to the known object. The physics before it is not differentiated, so that a batch costs
convolutions only.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ptycho.config.config import ModelConfig
from ptycho.data.reconstruction import SCANNED_SHARE
from ptycho.geometry.canvas import CANVAS_MULTIPLE_PX, lay_on_canvas
from ptycho.networks import architectures
from ptycho.networks.bundle import Bundle
from ptycho.process.progress import Progress
from ptycho.simulation.curriculum import PretrainOptions, draw_scan
from ptycho.simulation.simulate import SimulationOptions, simulate
from ptycho.solver.schedule import STEP_DAMPING
from ptycho_torch import physics
from ptycho_torch.generators import UnrolledGenerator
from ptycho_torch.isolation import untouched_torch
from ptycho_torch.reconstruct import resolve_accelerator
from ptycho_torch.solver import Chunk, accelerated_steps, noise_level, preconditioned_step, scan_illumination

PLAIN_STEPS = 60
"""Plain steps of the network that comes out; low frequencies of a scan of a thousand patterns need them."""
NEAR_STEPS, NEAR_BLUR_PX = 30, (1.0, 5.0)
"""Plain steps of most training scans, which start from the true object with this blur and end better
converged than those from a flat one."""
STRONG_PHASE_RAD = 2.5
"""Phase range of objects that plain steps often do not find from a flat start [rad]."""
SLOW_PX = 16.0
"""Gaussian sigma of the errors that a U-Net is not asked to mend: it sees no farther [px]."""
CROP_PX = 96
"""Side of the crops in a batch [px]."""
MIN_LIT = 0.5
"""Share of a crop that light fell on."""
MOST_WORKERS = 8
"""Most threads that simulate; more wait for each other."""
WARM_UP = 50
"""Iterations of rising learning rate."""
ERROR_FLOOR = 3e-4
"""Error that counts as nothing, so that scans of many photons do not rule the loss [transmission]."""
CHANNELS = architectures.UNROLLED_INPUTS
"""Where the inputs of a U-Net end in an example; then come base (2), truth (2), mask and gain."""


class KnownScan(NamedTuple):
    """A simulated scan with its object."""

    chunk: Chunk  # all patterns
    weight: Tensor  # (H, W), illumination [photons / pixel]
    truth: Tensor  # (H, W), true object [transmission]
    scanned: Tensor  # (H, W), bool, pixels that saw enough light to be compared


def known_scan(arrays: Mapping[str, NDArray[Any]], device: str = "cpu") -> KnownScan:
    """Return a scan that ``ptycho.simulation.simulate.simulate`` made, in memory of a device, on a canvas
    whose sides are multiples of ``CANVAS_MULTIPLE_PX``."""
    truth = arrays["objectGuess"]
    n_px = arrays["diff3d"].shape[-1]
    room = [(0, -size % CANVAS_MULTIPLE_PX) for size in truth.shape]
    truth = torch.from_numpy(np.pad(truth, room, mode="edge")).to(device)
    positions = np.stack([arrays["ycoords"], arrays["xcoords"]], axis=1)
    plan = lay_on_canvas(positions, n_px, shape_yx=tuple(truth.shape), origin_yx_px=np.zeros(2))
    probe, shifts_px, amplitude, corners = (
        torch.from_numpy(values).to(device)
        for values in (
            arrays["probeGuess"].reshape(-1, n_px, n_px),
            plan.shifts_yx_px.astype(np.float32),
            np.sqrt(arrays["diff3d"].astype(np.float32)),
            plan.corners_yx,
        )
    )
    chunk = Chunk(corners, physics.shift_field(probe, shifts_px), amplitude)
    weight = scan_illumination([chunk], truth.shape)
    return KnownScan(chunk, weight, truth, weight > SCANNED_SHARE * weight.max())


def simulated(drawn: Sequence[SimulationOptions]) -> Iterator[dict[str, NDArray[Any]]]:
    """Simulate scans in this order, a few ahead of what is asked for, on all processors but one."""
    workers = max(1, min(MOST_WORKERS, (os.cpu_count() or 1) - 1))
    with ThreadPoolExecutor(workers) as pool:
        waiting = [pool.submit(simulate, options) for options in drawn[: 2 * workers]]
        for options in (*drawn[2 * workers :], *[None] * len(waiting)):
            yield waiting.pop(0).result()
            if options is not None:
                waiting.append(pool.submit(simulate, options))


def plain_iterates(
    generator: UnrolledGenerator, scan: KnownScan, blur_px: float | None
) -> tuple[Tensor, Tensor]:
    """Return the last two iterates (H, W) of the plain steps that come before the learned ones: as many as a
    reconstruction makes from a flat object, or fewer from the true one with a blur."""
    start, steps = torch.ones_like(scan.truth), generator.plain
    if blur_px is not None:
        # Where no light falls nobody knows the object.
        lit = scan.weight / (scan.weight + STEP_DAMPING * scan.weight.max())
        start = start + lit * (_smooth(scan.truth, blur_px) - 1)
        steps = NEAR_STEPS
    return accelerated_steps(start, [scan.chunk], scan.weight, steps, likelihood=generator.likelihood)


def _smooth(image: Tensor, sigma_px: float) -> Tensor:
    from scipy.ndimage import gaussian_filter

    smooth = gaussian_filter(image.cpu().numpy(), sigma_px, mode="nearest")
    return torch.from_numpy(smooth).to(image.device)


@torch.no_grad()
def example(
    generator: UnrolledGenerator, index: int, scan: KnownScan, iterates: tuple[Tensor, Tensor]
) -> Tensor:
    """Return what the U-Net of learned step ``index`` (from 0) sees of a scan after plain steps with the last
    two ``iterates``, and what it should have answered: inputs (6), object without correction (2), truth (2)
    in its phase and with its slow errors, mask, factor on the correction; (12, H, W)."""
    chunks, kind = [scan.chunk], generator.likelihood
    obj, previous = iterates
    for k in range(index + 1):
        leading = obj + generator.vectors["step_momentum"][k] * (obj - previous)
        step = preconditioned_step(leading, chunks, scan.weight, kind)
        seen, gain = generator.seen(leading, step, scan.weight, noise_level(leading, chunks, scan.weight))
        base = leading + generator.vectors["step_length"][k] * step
        if k < index:
            previous, obj = obj, base + gain * torch.complex(*generator.correction(seen[None], k)[0])
    turn = torch.vdot(scan.truth[scan.scanned], base[scan.scanned])
    known = scan.truth * (turn / turn.abs())
    lit = scan.scanned.float()
    known = known + _smooth((base - known) * lit, SLOW_PX) / _smooth(lit, SLOW_PX).clamp(min=1e-3)
    parts = (seen, *(torch.view_as_real(image).permute(2, 0, 1) for image in (base, known)))
    return torch.cat((*parts, scan.scanned[None].float(), gain[None]))


def _crop(whole: Tensor, lit: NDArray[np.bool_], rng: np.random.Generator) -> Tensor:
    """Return a square of an example, mirrored and turned at random, most of which is ``lit`` (H, W)."""
    size = CROP_PX
    for _ in range(8):
        y, x = (int(rng.integers(0, length - size + 1)) for length in lit.shape)
        if lit[y : y + size, x : x + size].mean() > MIN_LIT:
            break
    part = whole[:, y : y + size, x : x + size]
    axes = [axis for axis in (1, 2) if rng.random() < 0.5]
    part = part.flip(axes) if axes else part
    return part.transpose(1, 2) if rng.random() < 0.5 else part


def relative_error(answer: Callable[[Tensor], Tensor], batch: Tensor) -> Tensor:
    """Return the error that the answers (B, 2, H, W) of a U-Net to the inputs of examples (B, 12, H, W)
    leave, relative to that without them: 1 for a correction of nothing."""
    inputs, base, truth, mask, gain = batch.split([CHANNELS, 2, 2, 1, 1], dim=1)

    def power(difference: Tensor) -> Tensor:
        return (difference**2 * mask).sum(dim=(1, 2, 3))

    before = power(base - truth) + ERROR_FLOOR**2 * mask.sum(dim=(1, 2, 3)).clamp(min=1.0)
    return torch.sqrt(power(base + gain * answer(inputs) - truth) / before + 1e-4).mean()


def _rate(iteration: int, total: int) -> float:
    """Return the learning rate relative to the highest: a short rise, then half a cosine."""
    return min(1.0, (iteration + 1) / WARM_UP) * (0.5 * (1 + math.cos(math.pi * iteration / total)) + 0.01)


def fit_step(
    generator: UnrolledGenerator,
    index: int,
    examples: list[Tensor],
    options: PretrainOptions,
    progress: Progress,
) -> None:
    """Train the U-Net of learned step ``index`` (from 0) on examples (12, H, W) of :func:`example`."""
    rng = np.random.default_rng([options.seed, 1 + index])
    own = [p for name, p in generator.convolutions.named_parameters() if name.startswith(f"unet{index}_")]
    optimizer = torch.optim.AdamW(own, lr=options.learning_rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: _rate(i, options.iterations))
    # On the host: a question to a GPU at every crop would make it wait.
    lit = [whole[CHANNELS + 4].cpu().numpy() > 0 for whole in examples]
    recent: list[float] = []
    with progress.phase(f"training step {index + 1}", options.iterations) as phase:
        for iteration in range(options.iterations):
            chosen = rng.integers(0, len(examples), options.batch_size)
            batch = torch.stack([_crop(examples[i], lit[i], rng) for i in chosen])
            batch = batch.contiguous(memory_format=torch.channels_last)
            loss = relative_error(lambda x: generator.correction(x, index), batch)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(own, 1.0)
            optimizer.step()
            schedule.step()
            recent = [*recent[-99:], float(loss.detach())]
            phase.update(iteration + 1, error=sum(recent) / len(recent))


def examples(
    generator: UnrolledGenerator, index: int, options: PretrainOptions, progress: Progress, device: str
) -> list[Tensor]:
    """Simulate what learned step ``index`` trains on, ``options.scans`` examples; every step sees other
    scans."""
    rng = np.random.default_rng([options.seed, 101 + index])
    drawn_scans = [draw_scan(options.seed, index * options.scans + count) for count in range(options.scans)]
    found: list[Tensor] = []
    with progress.phase(f"simulating for step {index + 1}", options.scans) as phase:
        for count, (drawn, arrays) in enumerate(zip(drawn_scans, simulated(drawn_scans), strict=True)):
            blur_px = float(rng.uniform(*NEAR_BLUR_PX)) / max(1.0, drawn.phase_range_rad)
            near = count % 3 > 0 or drawn.phase_range_rad > STRONG_PHASE_RAD
            scan = known_scan(arrays, device)
            found.append(
                example(generator, index, scan, plain_iterates(generator, scan, blur_px if near else None))
            )
            phase.update(count + 1)
    return found


@untouched_torch()
def pretrain(
    options: PretrainOptions, progress: Progress | None = None, *, accelerator: str = "cpu"
) -> Bundle:
    """Pre-train ``unrolled`` with the Poisson likelihood, on an ``accelerator`` as
    :func:`ptycho_torch.reconstruct.resolve_accelerator` takes it; the bundle has no probe of its own, and
    every backend loads it."""
    progress, device = progress or Progress(), resolve_accelerator(accelerator)
    model, generator = untrained(options, device)
    for index in range(generator.learned):
        found = examples(generator, index, options, progress, device)
        fit_step(generator, index, found, options, progress)
    return bundle_of(model, generator)


def untrained(options: PretrainOptions, device: str = "cpu") -> tuple[ModelConfig, UnrolledGenerator]:
    """Return settings and network as a pre-training begins with them."""
    model = ModelConfig(
        architecture="unrolled",
        unrolled_steps=PLAIN_STEPS + architectures.LEARNED_STEPS,
        unrolled_width=options.width,
        unrolled_likelihood="poisson",
    )
    generator = UnrolledGenerator(model, options.seed).to(device, memory_format=torch.channels_last)
    with torch.no_grad():
        # What a U-Net has removed must not come back by momentum.
        generator.vectors["step_momentum"][1:] = 0.0
    return model, generator


def bundle_of(model: ModelConfig, generator: UnrolledGenerator) -> Bundle:
    """Return a pre-trained network without a probe of its own."""
    no_probe = np.zeros((1, model.N, model.N), np.complex64)
    return Bundle("pytorch", model, generator.export_weights(), no_probe)
