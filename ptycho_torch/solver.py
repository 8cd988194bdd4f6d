"""The accelerated physics steps that the unrolled network starts from, in PyTorch.

A scan arrives as chunks, so that memory is bounded by one chunk however long the scan is. All tensors of a chunk
and the canvas live on one device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from ptycho.network import STEP_DAMPING, nesterov_momentum
from ptycho_torch import physics


class Chunk(NamedTuple):
    """Some patterns of a scan with their places on the canvas.

    Attributes
    ----------
    corners_yx : int64 tensor, shape (J, 2)
        Canvas index of patch pixel (0, 0).
    probes : complex tensor, shape (P, N, N) or (J, P, N, N)
        Probe modes [sqrt(photons)], moved by the sub-pixel part of the position.
    amplitude : real tensor, shape (J, N, N)
        Measured amplitude [sqrt(photons)].
    shifts_yx_px : real tensor, shape (J, 2), or None
        Sub-pixel shift of the probe of each position, where the probe itself is to be refined [px].
    """

    corners_yx: Tensor
    probes: Tensor
    amplitude: Tensor
    shifts_yx_px: Tensor | None = None


def scan_illumination(chunks: Iterable[Chunk], shape_yx: tuple[int, int]) -> Tensor:
    """Return the photons per canvas pixel of all chunks (eq. 8).

    Parameters
    ----------
    chunks : iterable of Chunk
        The scan.
    shape_yx : tuple of int
        Canvas shape (H, W) [px].

    Returns
    -------
    real tensor, shape (H, W)
        Photons per pixel.
    """
    return sum(physics.illumination(c.probes, c.corners_yx, shape_yx) for c in chunks)


def preconditioned_step(obj: Tensor, chunks: Iterable[Chunk], weight: Tensor) -> Tensor:
    """Return the data-consistency step: minus the gradient over the damped illumination (eq. 10).

    Parameters
    ----------
    obj : complex tensor, shape (H, W)
        Object canvas [transmission].
    chunks : iterable of Chunk
        The scan.
    weight : real tensor, shape (H, W)
        Illumination [photons / pixel].

    Returns
    -------
    complex tensor, shape (H, W)
        Step [transmission].
    """
    gradient = sum(physics.object_gradient(obj, c.corners_yx, c.probes, c.amplitude) for c in chunks)
    return -gradient / (weight + STEP_DAMPING * weight.max())


@torch.no_grad()
def accelerated_steps(
    obj: Tensor,
    chunks: Iterable[Chunk],
    weight: Tensor,
    n_steps: int,
    on_step: Callable[[int], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """Run preconditioned Nesterov steps on all positions (eq. 11).

    Parameters
    ----------
    obj : complex tensor, shape (H, W)
        Object to start from [transmission].
    chunks : iterable of Chunk
        The scan; read once for every step.
    weight : real tensor, shape (H, W)
        Illumination [photons / pixel].
    n_steps : int
        Number of steps.
    on_step : callable, optional
        Called with the index of each finished step.

    Returns
    -------
    obj, previous : complex tensor, shape (H, W)
        The last two iterates, so that momentum can go on.
    """
    previous = obj
    for index in range(n_steps):
        leading = obj + nesterov_momentum(index) * (obj - previous)
        previous, obj = obj, leading + preconditioned_step(leading, chunks, weight)
        if on_step is not None:
            on_step(index)
    return obj, previous
