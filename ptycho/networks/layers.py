"""One layer of an architecture table, and the attention layers that ``cnn`` may add.

Every gate is ``2 sigmoid(z)`` of a map z that starts at zero, so that a network with attention begins as the
same network without it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["conv", "vector"]
Init = Literal["he", "head", "zero", "one", "momentum"]

CBAM_REDUCTION = 16
"""The channel gate of CBAM squeezes this many channels into one."""
CBAM_KERNEL_PX = 7
"""Side of the kernel of the spatial gate of CBAM [px]."""
ECA_KERNEL = 3
"""Neighbouring channels that decide the ECA gate of one."""


@dataclass(frozen=True)
class LayerSpec:
    """One entry of an architecture table."""

    name: str  # unique; weights are <name>/kernel and <name>/bias (conv) or <name> (vector)
    kind: Kind  # a convolution with bias, or a bare vector of learned numbers
    shape: tuple[int, ...]  # of the kernel (y, x, in, out), or length of the vector
    init: Init = "he"  # how kernel or vector start; head is a tenth of he: maps start flat
    bias: float = 0.0  # where the biases of a convolution start


def _cbam(place: str, width: int) -> list[LayerSpec]:
    """Return the channel gate, a perceptron that two poolings share, and the spatial gate."""
    squeezed = max(1, width // CBAM_REDUCTION)
    kernel = (CBAM_KERNEL_PX, CBAM_KERNEL_PX, 2, 1)
    return [
        LayerSpec(f"{place}_cbam_reduce", "conv", (1, 1, width, squeezed)),
        LayerSpec(f"{place}_cbam_expand", "conv", (1, 1, squeezed, width), "zero"),
        LayerSpec(f"{place}_cbam_spatial", "conv", kernel, "zero"),
    ]


def _eca(place: str) -> list[LayerSpec]:
    return [LayerSpec(f"{place}_eca", "vector", (ECA_KERNEL,), "zero")]


def attention_table(model: Any, encoder: list[int], decoder: list[int]) -> list[LayerSpec]:
    """Return the attention layers of ``cnn`` for blocks of so many filters, after the blocks that they gate.
    CBAM: Woo et al., ECCV 2018. ECA: Wang et al., CVPR 2020."""
    table: list[LayerSpec] = []
    for level, width in enumerate(encoder):
        table += _eca(f"encoder{level}") if model.eca_encoder else []
        table += _cbam(f"encoder{level}", width) if model.cbam_encoder else []
    table += _cbam("bottleneck", encoder[-1]) if model.cbam_bottleneck else []
    kernel = (model.decoder_spatial_kernel, model.decoder_spatial_kernel, 2, 1)
    for head in ("amplitude", "phase"):
        for level, width in enumerate(decoder):
            place = f"{head}{level}"
            table += _eca(place) if model.eca_decoder else []
            table += _cbam(place, width) if model.cbam_decoder else []
            table += [LayerSpec(f"{place}_spatial", "conv", kernel, "zero")] if model.spatial_decoder else []
    return table
