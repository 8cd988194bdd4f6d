"""The loss of a training run in PyTorch; its real-space terms are twins of ``ptycho.physics.losses``."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ptycho.physics.losses import UNIT_FLOOR, LossTerms
from ptycho_torch import physics

MAIN_TERMS = {
    "amplitude": physics.amplitude_loss,
    "mae": physics.mean_absolute_loss,
    "poisson": physics.poisson_loss,
}


class Prediction(NamedTuple):
    """What a model makes of a batch."""

    predicted: Tensor  # (J, N, N), expected amplitude [sqrt(photons)]
    amplitude: Tensor  # (J, N, N), the measured one
    image: Tensor  # (H, W), canvas of ``unrolled``, or (J, N, N), patches of ``cnn`` [transmission]
    light: Tensor  # (H, W) or (N, N), light that fell on the image [photons / pixel]
    patches: Tensor | None  # (J, N, N), in the frame of their own positions, where labels ask for them
    labels: Tensor | None  # (J, N, N), known patches
    patch_light: Tensor  # (N, N), light that fell on a patch [photons / pixel]


def unit(values: Tensor) -> Tensor:
    """Return complex numbers on the unit circle (eq. 7f); dark ones fall to 0."""
    return values / torch.sqrt(values.real**2 + values.imag**2 + UNIT_FLOOR)


def total_variation(image: Tensor, light: Tensor) -> Tensor:
    """As :func:`ptycho.physics.losses.total_variation`."""
    count = image.shape[:-2].numel()
    down = torch.minimum(light[1:], light[:-1])
    right = torch.minimum(light[:, 1:], light[:, :-1])
    total = (down * image.diff(dim=-2).abs()).sum() + (right * image.diff(dim=-1).abs()).sum()
    return total / (count * (down.sum() + right.sum()))


def mean_deviation(image: Tensor, light: Tensor) -> Tensor:
    """Return the mean absolute difference of every image (..., H, W) from its own mean, weighted with the
    light (H, W) on it; in the unit of the image."""
    weight = light / light.sum()
    mean = (weight * image).sum(dim=(-2, -1), keepdim=True)
    return (weight * (image - mean).abs()).sum() / image.shape[:-2].numel()


PENALTIES = {"Total_Variation": total_variation, "Mean_Deviation": mean_deviation}


def label_error(patches: Tensor, labels: Tensor, light: Tensor) -> Tensor:
    """As :func:`ptycho.physics.losses.label_error`."""
    return (light * (patches - labels).abs()).sum() / (len(patches) * light.sum())


def supervised_loss(patches: Tensor, labels: Tensor, light: Tensor) -> Tensor:
    """As :func:`ptycho.physics.losses.supervised_loss`."""
    difference = (patches.abs() - labels.abs()).abs() + (unit(patches) - unit(labels)).abs()
    return (light * difference).sum() / (len(patches) * light.sum())


def total_loss(terms: LossTerms, found: Prediction) -> Tensor:
    """Return the weighted sum of the terms of a loss, dimensionless; a term of weight 0 is not computed."""
    total = torch.zeros((), device=found.predicted.device)
    if terms.likelihood:
        total = total + terms.likelihood * MAIN_TERMS[terms.kind](found.predicted, found.amplitude)
    if terms.mae:
        total = total + terms.mae * physics.mean_absolute_loss(found.predicted, found.amplitude)
    if terms.tv:
        total = total + terms.tv * total_variation(found.image, found.light)
    if terms.labels and found.patches is not None and found.labels is not None:
        total = total + terms.labels * label_error(found.patches, found.labels, found.patch_light)
    if terms.amplitude_penalty is not None:
        name, weight = terms.amplitude_penalty
        total = total + weight * PENALTIES[name](found.image.abs(), found.light)
    if terms.phase_penalty is not None:
        name, weight = terms.phase_penalty
        total = total + weight * PENALTIES[name](unit(found.image), found.light)
    return total
