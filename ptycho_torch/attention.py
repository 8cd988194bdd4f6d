"""Attention gates of ``cnn`` in PyTorch; images are (batch, channel, y, x)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _gate(values: Tensor) -> Tensor:
    """Return a factor between 0 and 2 that is 1 for 0."""
    return 2.0 * torch.sigmoid(values)


def _spatial_gate(x: Tensor, layer: nn.Module) -> Tensor:
    """Return one factor for every pixel, from mean and maximum of its channels."""
    seen = torch.cat([x.mean(dim=1, keepdim=True), x.amax(dim=1, keepdim=True)], dim=1)
    return _gate(layer(seen))


def attended(x: Tensor, place: str, convolutions: nn.ModuleDict, vectors: nn.ParameterDict) -> Tensor:
    """Multiply an image (B, C, H, W) with the gates at a place of the network (block of
    ``ptycho.networks.architectures.attention_table``): ECA, then CBAM, then spatial; where none stands it is
    returned itself."""
    if f"{place}_eca" in vectors:
        kernel = vectors[f"{place}_eca"]
        pooled = x.mean(dim=(2, 3))[:, None]
        x = x * _gate(F.conv1d(pooled, kernel[None, None], padding="same"))[:, 0, :, None, None]
    if f"{place}_cbam_reduce" in convolutions:
        reduce, expand = convolutions[f"{place}_cbam_reduce"], convolutions[f"{place}_cbam_expand"]
        pooled = (x.mean(dim=(2, 3), keepdim=True), x.amax(dim=(2, 3), keepdim=True))
        x = x * _gate(sum(expand(F.relu(reduce(part))) for part in pooled))
        x = x * _spatial_gate(x, convolutions[f"{place}_cbam_spatial"])
    if f"{place}_spatial" in convolutions:
        x = x * _spatial_gate(x, convolutions[f"{place}_spatial"])
    return x
