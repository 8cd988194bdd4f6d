"""Pre-training of ``unrolled`` on simulated scans, so that a new scan reconstructs without training.

The learned steps are trained one after the other: the U-Net of a step sees what the steps before it leave and
learns the difference to the known object. The physics before it is not differentiated, so that a batch costs
convolutions only.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ptycho.config.config import ModelConfig
from ptycho.data.reconstruction import SCANNED_SHARE
from ptycho.geometry.canvas import CANVAS_MULTIPLE_PX, lay_on_canvas
from ptycho.networks import architectures
from ptycho.networks.bundle import Bundle
from ptycho.process.progress import Progress
from ptycho.simulation.curriculum import PretrainOptions, draw_scan
from ptycho.simulation.simulate import SimulationOptions, simulate
from ptycho_torch import physics
from ptycho_torch.generators import UnrolledGenerator
from ptycho_torch.isolation import untouched_torch
from ptycho_torch.solver import Chunk, accelerated_steps, noise_level, preconditioned_step, scan_illumination

PLAIN_STEPS = 60
"""Plain steps of the network that comes out; low frequencies of a scan of a thousand patterns need them."""
START_STEPS, START_BLUR_PX = 20, (2.0, 5.0)
"""Plain steps of a training scan from the true object with this blur, which spares the steps that low
frequencies take from a flat start; they fill in detail and noise."""
CROP_PX = 80
"""Side of the crops in a batch [px]."""
MIN_LIT = 0.5
"""Share of a crop that light fell on."""
WARM_UP = 50
"""Iterations of rising learning rate."""
ERROR_FLOOR = 1e-3
"""Error that counts as nothing, so that scans of many photons do not rule the loss [transmission]."""
CHANNELS = architectures.UNROLLED_INPUTS
"""Where the inputs of a U-Net end in an example; then come base (2), truth (2), mask and gain."""


class KnownScan(NamedTuple):
    """A simulated scan with its object."""

    chunk: Chunk  # all patterns
    weight: Tensor  # (H, W), illumination [photons / pixel]
    truth: Tensor  # (H, W), true object [transmission]
    scanned: Tensor  # (H, W), bool, pixels that saw enough light to be compared


def known_scan(options: SimulationOptions) -> KnownScan:
    """Simulate a scan in memory, on a canvas whose sides are multiples of ``CANVAS_MULTIPLE_PX``."""
    arrays = simulate(options)
    n_px, truth = options.n_px, arrays["objectGuess"]
    room = [(0, -size % CANVAS_MULTIPLE_PX) for size in truth.shape]
    truth = torch.from_numpy(np.pad(truth, room, mode="edge"))
    positions = np.stack([arrays["ycoords"], arrays["xcoords"]], axis=1)
    plan = lay_on_canvas(positions, n_px, shape_yx=tuple(truth.shape), origin_yx_px=np.zeros(2))
    probe = torch.from_numpy(arrays["probeGuess"].reshape(-1, n_px, n_px))
    probes = physics.shift_field(probe, torch.from_numpy(plan.shifts_yx_px.astype(np.float32)))
    amplitude = torch.from_numpy(np.sqrt(arrays["diff3d"].astype(np.float32)))
    chunk = Chunk(torch.from_numpy(plan.corners_yx), probes, amplitude)
    weight = scan_illumination([chunk], truth.shape)
    return KnownScan(chunk, weight, truth, weight > SCANNED_SHARE * weight.max())


@torch.no_grad()
def example(generator: UnrolledGenerator, index: int, scan: KnownScan, blur_px: float) -> Tensor:
    """Return what the U-Net of learned step ``index`` (from 0) sees of a scan, and what it should have
    answered: inputs (6), object without correction (2), truth in its phase (2), mask, factor on the
    correction; (12, H, W). The plain steps start from the true object, blurred by ``blur_px``."""
    from scipy.ndimage import gaussian_filter

    chunks, kind = [scan.chunk], generator.likelihood
    start = torch.from_numpy(gaussian_filter(scan.truth.numpy(), blur_px, mode="nearest"))
    obj, previous = accelerated_steps(start, chunks, scan.weight, START_STEPS, likelihood=kind)
    for k in range(index + 1):
        leading = obj + generator.vectors["step_momentum"][k] * (obj - previous)
        step = preconditioned_step(leading, chunks, scan.weight, kind)
        seen, gain = generator.seen(leading, step, scan.weight, noise_level(leading, chunks, scan.weight))
        base = leading + generator.vectors["step_length"][k] * step
        if k < index:
            previous, obj = obj, base + gain * torch.complex(*generator.correction(seen[None], k)[0])
    turn = torch.vdot(scan.truth[scan.scanned], base[scan.scanned])
    known = scan.truth * (turn / turn.abs())
    parts = (seen, *(torch.view_as_real(image).permute(2, 0, 1) for image in (base, known)))
    return torch.cat((*parts, scan.scanned[None].float(), gain[None]))


def _crop(whole: Tensor, rng: np.random.Generator) -> Tensor:
    """Return a lit square of an example, mirrored and turned at random."""
    size = CROP_PX
    for _ in range(8):
        y, x = (int(rng.integers(0, length - size + 1)) for length in whole.shape[1:])
        part = whole[:, y : y + size, x : x + size]
        if part[CHANNELS + 4].mean() > MIN_LIT:
            break
    axes = [axis for axis in (1, 2) if rng.random() < 0.5]
    part = part.flip(axes) if axes else part
    return part.transpose(1, 2) if rng.random() < 0.5 else part


def relative_error(answer: Callable[[Tensor], Tensor], batch: Tensor) -> Tensor:
    """Return the error that the answers (B, 2, H, W) of a U-Net to the inputs of examples (B, 12, H, W)
    leave, relative to that without them: 1 for a correction of nothing. The mean offset of a crop is left
    out: a drift over more than the crop is not for a small network to know."""
    inputs, base, truth, mask, gain = batch.split([CHANNELS, 2, 2, 1, 1], dim=1)
    lit = mask.sum(dim=(1, 2, 3)).clamp(min=1.0)

    def power(difference: Tensor) -> Tensor:
        offset = (difference * mask).sum(dim=(2, 3)) / lit[:, None]
        return ((difference - offset[..., None, None]) ** 2 * mask).sum(dim=(1, 2, 3))

    before = power(base - truth) + ERROR_FLOOR**2 * lit
    return torch.sqrt(power(base + gain * answer(inputs) - truth) / before + 1e-4).mean()


def _rate(iteration: int, total: int) -> float:
    """Return the learning rate relative to the highest: a short rise, then half a cosine."""
    return min(1.0, (iteration + 1) / WARM_UP) * (0.5 * (1 + math.cos(math.pi * iteration / total)) + 0.01)


def _fit_step(
    generator: UnrolledGenerator,
    index: int,
    examples: list[Tensor],
    options: PretrainOptions,
    progress: Progress,
) -> None:
    """Train the U-Net of one learned step."""
    rng = np.random.default_rng([options.seed, 1 + index])
    own = [p for name, p in generator.convolutions.named_parameters() if name.startswith(f"unet{index}_")]
    optimizer = torch.optim.AdamW(own, lr=options.learning_rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: _rate(i, options.iterations))
    recent: list[float] = []
    with progress.phase(f"training step {index + 1}", options.iterations) as phase:
        for iteration in range(options.iterations):
            chosen = rng.integers(0, len(examples), options.batch_size)
            batch = torch.stack([_crop(examples[i], rng) for i in chosen])
            loss = relative_error(lambda x: generator.correction(x, index), batch)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(own, 1.0)
            optimizer.step()
            schedule.step()
            recent = [*recent[-99:], float(loss.detach())]
            phase.update(iteration + 1, error=sum(recent) / len(recent))


def _examples(
    generator: UnrolledGenerator, index: int, options: PretrainOptions, progress: Progress
) -> list[Tensor]:
    """Simulate what one learned step trains on; every step sees other scans."""
    rng = np.random.default_rng([options.seed, 101 + index])
    found: list[Tensor] = []
    with progress.phase(f"simulating for step {index + 1}", options.scans) as phase:
        for count in range(options.scans):
            scan = known_scan(draw_scan(options.seed, index * options.scans + count))
            found.append(example(generator, index, scan, float(rng.uniform(*START_BLUR_PX))))
            phase.update(count + 1)
    return found


@untouched_torch()
def pretrain(options: PretrainOptions, progress: Progress | None = None) -> Bundle:
    """Pre-train ``unrolled`` with the Poisson likelihood; the bundle has no probe of its own, and every
    backend loads it."""
    progress = progress or Progress()
    model = ModelConfig(
        architecture="unrolled",
        unrolled_steps=PLAIN_STEPS + architectures.LEARNED_STEPS,
        unrolled_width=options.width,
        unrolled_likelihood="poisson",
    )
    generator = UnrolledGenerator(model, options.seed)
    with torch.no_grad():
        # What a U-Net has removed must not come back by momentum.
        generator.vectors["step_momentum"][1:] = 0.0
    for index in range(generator.learned):
        _fit_step(generator, index, _examples(generator, index, options, progress), options, progress)
    no_probe = np.zeros((1, model.N, model.N), np.complex64)
    return Bundle("pytorch", model, generator.export_weights(), no_probe)
