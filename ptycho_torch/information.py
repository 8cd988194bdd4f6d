"""Fisher information in PyTorch: the twin of ``ptycho.physics.information``."""

from __future__ import annotations

import torch
from torch import Tensor

from ptycho.physics import FAR_FIELD, INTENSITY_FLOOR, Detector
from ptycho_torch.physics import (
    exit_waves,
    extract_patches,
    measured,
    place_patches,
    propagate,
    propagate_back,
)


def count_score(
    obj: Tensor,
    corners_yx: Tensor,
    probes: Tensor,
    amplitude: Tensor,
    detector: Detector = FAR_FIELD,
    *,
    change: Tensor | None = None,
    noise: Tensor | None = None,
) -> Tensor:
    """As :func:`ptycho.physics.information.count_score`."""
    n_px = probes.shape[-1]
    field = propagate(exit_waves(extract_patches(obj, corners_yx, n_px), probes), detector)
    expected = detector.counted((field.real**2 + field.imag**2).sum(dim=1)) + INTENSITY_FLOOR
    off = torch.zeros_like(expected)
    if change is not None:
        moved = propagate(exit_waves(extract_patches(change, corners_yx, n_px), probes), detector)
        off = 2 * (field.real * moved.real + field.imag * moved.imag).sum(dim=1)
    if noise is not None:
        off = off + torch.sqrt(expected) * noise
    missed = torch.where(measured(amplitude), 2 * off / expected, 0.0)
    back = propagate_back(field * missed[:, None], detector)
    return place_patches((probes.conj() * back).sum(dim=1), corners_yx, tuple(obj.shape[-2:]))
