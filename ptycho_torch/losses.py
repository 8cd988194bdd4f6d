"""The loss of a training run in PyTorch; its real-space terms are twins of ``ptycho.physics.losses``."""

from __future__ import annotations

import torch
from torch import Tensor

from ptycho.config.choices import HIDDEN
from ptycho.physics.losses import UNIT_FLOOR
from ptycho_torch import physics

MAIN_TERMS = {
    "amplitude": physics.amplitude_loss,
    "mae": physics.mean_absolute_loss,
    "poisson": physics.poisson_loss,
    HIDDEN: physics.poisson_loss,
}


def unit(values: Tensor) -> Tensor:
    """Return complex numbers on the unit circle (eq. 7f); dark ones fall to 0."""
    return values / torch.sqrt(values.real**2 + values.imag**2 + UNIT_FLOOR)


def total_variation(image: Tensor, illumination: Tensor) -> Tensor:
    """As :func:`ptycho.physics.losses.total_variation`."""
    count = image.shape[:-2].numel()
    down = torch.minimum(illumination[1:], illumination[:-1])
    right = torch.minimum(illumination[:, 1:], illumination[:, :-1])
    total = (down * image.diff(dim=-2).abs()).sum() + (right * image.diff(dim=-1).abs()).sum()
    return total / (count * (down.sum() + right.sum()))


def mean_deviation(image: Tensor, illumination: Tensor) -> Tensor:
    """Return the mean absolute difference of every image (..., H, W) from its own mean, weighted with the
    illumination (H, W) on it; in the unit of the image."""
    weight = illumination / illumination.sum()
    mean = (weight * image).sum(dim=(-2, -1), keepdim=True)
    return (weight * (image - mean).abs()).sum() / image.shape[:-2].numel()


PENALTIES = {"Total_Variation": total_variation, "Mean_Deviation": mean_deviation}


def label_error(patches: Tensor, labels: Tensor, illumination: Tensor) -> Tensor:
    """As :func:`ptycho.physics.losses.label_error`."""
    return (illumination * (patches - labels).abs()).sum() / (len(patches) * illumination.sum())


def supervised_loss(patches: Tensor, labels: Tensor, illumination: Tensor) -> Tensor:
    """As :func:`ptycho.physics.losses.supervised_loss`."""
    difference = (patches.abs() - labels.abs()).abs() + (unit(patches) - unit(labels)).abs()
    return (illumination * difference).sum() / (len(patches) * illumination.sum())
