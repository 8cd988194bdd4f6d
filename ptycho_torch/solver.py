"""The accelerated physics steps that the unrolled network starts from, in PyTorch.

A scan arrives as chunks, so that memory is bounded by one chunk however long the scan is. All tensors of a
chunk and the canvas live on one device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ptycho.geometry.subsets import subset_momentum, subset_schedule
from ptycho.networks.architectures import NOISE_FLOOR, POISSON_FLOOR, STEP_DAMPING
from ptycho.physics import INTENSITY_FLOOR
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
        Measured amplitude [sqrt(photons)]; negative where nothing was measured (eq. 20).
    shifts_yx_px : real tensor, shape (J, 2), or None
        Sub-pixel shift of the probe of each position, where the probe itself is to be refined [px].
    rows : int array, shape (J,), or None
        Which members of a ``ScanChunks`` these are.
    """

    corners_yx: Tensor
    probes: Tensor
    amplitude: Tensor
    shifts_yx_px: Tensor | None = None
    rows: NDArray[np.int64] | None = None


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


def poisson_residual(patches: Tensor, probes: Tensor, amplitude: Tensor) -> Tensor:
    """Return half the Poisson residual; its curvature is that of the amplitude misfit (eq. 17).

    Parameters
    ----------
    patches : complex tensor, shape (J, N, N)
        Object patches [transmission].
    probes : complex tensor, shape (P, N, N) or (J, P, N, N)
        Probe modes [sqrt(photons)].
    amplitude : real tensor, shape (J, N, N)
        Measured amplitude [sqrt(photons)].

    Returns
    -------
    complex tensor, shape (J, P, N, N)
        What the exit waves miss [sqrt(photons)].
    """
    field = physics.far_field(physics.exit_waves(patches, probes))
    expected = (field.real**2 + field.imag**2).sum(dim=1)
    kept, counts = physics.measured(amplitude), amplitude.clamp(min=0) ** 2
    mean = counts.sum(dim=(1, 2), keepdim=True) / kept.sum(dim=(1, 2), keepdim=True).clamp(min=1)
    # Patterns in units of less than a photon per pixel keep their shape: the floor shrinks with them.
    floor = POISSON_FLOOR * mean.clamp(min=INTENSITY_FLOOR, max=1.0)
    missed = torch.where(kept, 0.5 * (1.0 - (counts + floor) / (expected + floor)), 0.0)
    return physics.far_field_adjoint(field * missed[:, None])


def chunk_gradient(obj: Tensor, chunk: Chunk, likelihood: str) -> Tensor:
    """Return the object gradient of one chunk (eq. 9, or 17 for ``poisson``).

    Parameters
    ----------
    obj : complex tensor, shape (H, W)
        Object canvas [transmission].
    chunk : Chunk
        Some patterns.
    likelihood : {'amplitude', 'poisson'}
        What the step descends on.

    Returns
    -------
    complex tensor, shape (H, W)
        Gradient [photons].
    """
    if likelihood == "amplitude":
        return physics.object_gradient(obj, chunk.corners_yx, chunk.probes, chunk.amplitude)
    patches = physics.extract_patches(obj, chunk.corners_yx, chunk.amplitude.shape[-1])
    residual = poisson_residual(patches, chunk.probes, chunk.amplitude)
    return physics.place_patches((chunk.probes.conj() * residual).sum(dim=1), chunk.corners_yx, obj.shape)


def preconditioned_step(
    obj: Tensor, chunks: Iterable[Chunk], weight: Tensor, likelihood: str = "amplitude"
) -> Tensor:
    """Return the data-consistency step: minus the gradient over the damped illumination (eq. 10).

    Parameters
    ----------
    obj : complex tensor, shape (H, W)
        Object canvas [transmission].
    chunks : iterable of Chunk
        The scan.
    weight : real tensor, shape (H, W)
        Illumination [photons / pixel].
    likelihood : {'amplitude', 'poisson'}
        What the step descends on.

    Returns
    -------
    complex tensor, shape (H, W)
        Step [transmission].
    """
    gradient = sum(chunk_gradient(obj, chunk, likelihood) for chunk in chunks)
    return -gradient / (weight + STEP_DAMPING * weight.max())


@torch.no_grad()
def noise_level(obj: Tensor, chunks: Iterable[Chunk], weight: Tensor) -> Tensor:
    """Return the noise of every object pixel, from what the object leaves unexplained (eq. 18).

    It needs no unit of the counts: patterns and probe times a factor give the same level.

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
    real tensor, shape (H, W)
        Noise [transmission].
    """
    energy, count = (torch.zeros((), device=obj.device, dtype=weight.dtype) for _ in range(2))
    for chunk in chunks:
        patches = physics.extract_patches(obj, chunk.corners_yx, chunk.amplitude.shape[-1])
        kept = physics.measured(chunk.amplitude)
        missed = chunk.amplitude - physics.diffracted_amplitude(patches, chunk.probes)
        energy = energy + torch.where(kept, missed, 0.0).square().sum()
        count = count + kept.sum()
    return torch.sqrt(energy / count.clamp(min=1) / (weight + STEP_DAMPING * weight.max())) + NOISE_FLOOR


class SubsetWeights:
    """The illumination of every subset, computed when it is first asked for.

    Parameters
    ----------
    chunks : iterable of Chunk
        The scan; cut into subsets it has a method ``part``.
    weight : real tensor, shape (H, W)
        Illumination of the whole scan [photons / pixel].
    """

    def __init__(self, chunks: Iterable[Chunk], weight: Tensor) -> None:
        self.chunks, self.weight = chunks, weight
        self._known: dict[tuple[int, int], Tensor] = {}

    def of(self, index: int, count: int) -> Tensor:
        """Return the illumination of subset ``index`` of ``count``, shape (H, W) [photons / pixel]."""
        if count == 1:
            return self.weight
        if (index, count) not in self._known:
            part = self.chunks.part(index, count)
            self._known[index, count] = scan_illumination(part, tuple(self.weight.shape))
        return self._known[index, count]


@torch.no_grad()
def accelerated_steps(
    obj: Tensor,
    chunks: Iterable[Chunk],
    weight: Tensor,
    n_steps: int,
    on_step: Callable[[int], None] | None = None,
    *,
    likelihood: str = "amplitude",
    subsets: int = 1,
) -> tuple[Tensor, Tensor]:
    """Run preconditioned Nesterov steps on all positions (eq. 11), at first on subsets of them (eq. 19).

    Parameters
    ----------
    obj : complex tensor, shape (H, W)
        Object to start from [transmission].
    chunks : iterable of Chunk
        The scan; read once for every step. More than one subset needs a ``ScanChunks``.
    weight : real tensor, shape (H, W)
        Illumination [photons / pixel].
    n_steps : int
        Number of passes through the scan.
    on_step : callable, optional
        Called with the index of each finished pass.
    likelihood : {'amplitude', 'poisson'}
        What the steps descend on.
    subsets : int
        Most subsets of a pass, from ``ptycho.geometry.subsets.most_subsets``.

    Returns
    -------
    obj, previous : complex tensor, shape (H, W)
        The last two iterates, so that momentum can go on.
    """
    previous, update, weights = obj, 0, SubsetWeights(chunks, weight)
    for index, count in enumerate(subset_schedule(n_steps, subsets)):
        for part in range(count):
            leading = obj + subset_momentum(update, subsets) * (obj - previous)
            seen = chunks if count == 1 else chunks.part(part, count)
            step = preconditioned_step(leading, seen, weights.of(part, count), likelihood)
            previous, obj, update = obj, leading + step, update + 1
        if on_step is not None:
            on_step(index)
    return obj, previous
