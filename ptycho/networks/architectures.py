"""Architectures as tables of layers, and their initial weights: the one source both backends build from.

Kernels are stored (y, x, input channel, output channel) in float32. A backend reads the table, makes its own
layers, fills them from the dictionary of weights, and reads them back under the same names, so that one file
of weights serves every backend.

Every gate of an attention layer is ``2 sigmoid(z)`` of a map z that starts at zero, so that a network with
attention begins as the same network without it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ptycho.config.architectures import architecture_of
from ptycho.errors import BundleError, ConfigError

Kind = Literal["conv", "vector"]
Init = Literal["he", "head", "zero", "one", "momentum"]

LEARNED_STEPS = 2
"""How many of the last steps of ``unrolled`` carry a network; the ones before are plain physics."""
CORRECTION_FACTOR = "correction_factor"
"""Vector of ``unrolled``: a factor on what the U-Net of each learned step answers. Networks of former
versions have none, which is a factor of 1."""
STEP_MOMENTUM = 0.8
"""Momentum of the learned steps before training."""
UNROLLED_INPUTS = 6
"""Canvas channels the U-Net sees: object (2), step (2), coverage, log illumination."""
STRIP_PIXELS, STRIP_HALO_PX = 2**18, 32
"""A large canvas passes the U-Net in strips of so many pixels, with a halo wider than the U-Net can see."""
STEP_INPUT_GAIN = 10.0
"""Factor on the step before the U-Net sees it; late steps are about a tenth of the object's contrast."""
NOISE_FLOOR = 1e-6
"""Smallest noise a canvas is said to have, so that data without any do not divide by zero [transmission]."""
NOISE_STEP_GAIN = 0.25
"""Factor on the step, in units of the noise, before the U-Net of the Poisson likelihood sees it."""
PHASE_LIMIT_RAD = np.pi
"""The phase branch of ``cnn`` ends in this times tanh."""
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


def learned_steps(total_steps: int) -> int:
    """Return how many of all the steps of ``unrolled`` carry a network, 1 to ``LEARNED_STEPS``."""
    return max(1, min(LEARNED_STEPS, total_steps))


def cnn_ladder(n_px: int, filters_scale: int) -> tuple[list[int], list[int]]:
    """Return the encoder and decoder filters of the published network for patterns of N x N.

    The encoder halves the size once per entry, the decoder doubles it back to N / 2. ``ConfigError`` where N
    is no multiple of 8 (of 16 from 128, of 32 from 256).

    References
    ----------
    PtychoPINN, Sci. Rep. 13, 22789 (2023), with the ladder 64/128/256 extended to other sizes.
    """
    levels = 3 if n_px < 128 else 4 if n_px < 256 else 5
    if n_px < 16 or n_px % 2**levels:
        raise ConfigError(
            f"network: architecture cnn cannot take patterns of {n_px} px (got N={n_px}, expected a "
            "multiple of "
            f"{2**levels} and at least 16). Crop or pad the patterns, or use --architecture unrolled."
        )
    encoder = [(128 >> (levels - 1 - i)) * filters_scale for i in range(levels)]
    decoder = [(32 << (levels - 2 - i)) * filters_scale for i in range(levels - 1)]
    return encoder, decoder


def outer_channels(filters_scale: int) -> int:
    """Return how many of the last decoder channels feed the border of the patch: one eighth."""
    return 32 * filters_scale // 8


AMPLITUDE_BIAS: dict[str, float] = {"swish": 0.7388, "relu": 0.5}
"""Activation -> bias that lets the amplitude start at 1/2, as sigmoid does by itself.

An object that starts at 0 scatters no light: the first steps are then so large that the network saturates."""


def _conv(name: str, inputs: int, outputs: int, init: Init = "he", bias: float = 0.0) -> LayerSpec:
    return LayerSpec(name, "conv", (3, 3, inputs, outputs), init, bias)


def _block(name: str, inputs: int, outputs: int) -> list[LayerSpec]:
    """Return the two convolutions of one level."""
    return [_conv(f"{name}a", inputs, outputs), _conv(f"{name}b", outputs, outputs)]


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


def cnn_table(model: Any) -> list[LayerSpec]:
    """Return the table of the published encoder with two decoders, in the order of use.

    Attention comes last, so that the other layers start with the same numbers with and without it.
    """
    channels = model.gridsize**2
    encoder, decoder = cnn_ladder(model.N, model.n_filters_scale)
    table, width = [], channels
    for level, filters in enumerate(encoder):
        table += _block(f"encoder{level}", width, filters)
        width = filters
    for head in ("amplitude", "phase"):
        inputs = width
        for level, filters in enumerate(decoder):
            table += _block(f"{head}{level}", inputs, filters)
            inputs = filters
        outer = outer_channels(model.n_filters_scale) if model.probe_big and model.pad_object else 0
        bias = AMPLITUDE_BIAS.get(model.amp_activation, 0.0) if head == "amplitude" else 0.0
        table.append(_conv(f"{head}_inner", inputs - outer, channels, "head", bias))
        if outer:
            table.append(_conv(f"{head}_outer", outer, channels, "head", bias))
    return table + attention_table(model, encoder, decoder)


def unrolled_table(*, width: int = 24, n_learned: int = LEARNED_STEPS) -> list[LayerSpec]:
    """Return the table of the unrolled reconstruction: one small U-Net for each learned step.

    ``width`` counts the filters of the finest level; the coarser ones have twice and four times as many. The
    last layer starts at zero, so that the untrained network is the plain accelerated solver.
    """
    table = [
        LayerSpec("step_length", "vector", (n_learned,), "one"),
        LayerSpec("step_momentum", "vector", (n_learned,), "momentum"),
        LayerSpec(CORRECTION_FACTOR, "vector", (n_learned,), "one"),
    ]
    for k in range(n_learned):
        table += _block(f"unet{k}_down0", UNROLLED_INPUTS, width)
        table += _block(f"unet{k}_down1", width, 2 * width)
        table += _block(f"unet{k}_down2", 2 * width, 4 * width)
        table += _block(f"unet{k}_up1", 6 * width, 2 * width)
        table += _block(f"unet{k}_up0", 3 * width, width)
        table.append(_conv(f"unet{k}_out", width, 2, "zero"))
    return table


TABLES: dict[str, Callable[[Any], list[LayerSpec]]] = {
    "cnn": cnn_table,
    "unrolled": lambda model: unrolled_table(
        width=model.unrolled_width, n_learned=learned_steps(model.unrolled_steps)
    ),
}
"""Architecture -> the table of a network with these settings."""


def architecture_table(model: Any) -> list[LayerSpec]:
    """Return the table of the architecture that settings name, in the order of use."""
    return TABLES[architecture_of(model).name](model)


def weight_shapes(table: list[LayerSpec]) -> dict[str, tuple[int, ...]]:
    """Return the shape of every weight: ``<layer>/kernel``, ``<layer>/bias`` or ``<layer>``."""
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in table:
        if layer.kind == "conv":
            shapes[f"{layer.name}/kernel"] = layer.shape
            shapes[f"{layer.name}/bias"] = layer.shape[-1:]
        else:
            shapes[layer.name] = layer.shape
    return shapes


CONSTANTS = {"zero": 0.0, "one": 1.0, "momentum": STEP_MOMENTUM}


def initial_weights(table: list[LayerSpec], seed: int) -> dict[str, NDArray[np.float32]]:
    """Draw the weights training starts from, in the order of the table, the same for every backend.

    References
    ----------
    He et al., ICCV 2015: normal with variance 2 / fan-in.
    """
    rng = np.random.default_rng(seed)
    weights: dict[str, NDArray[np.float32]] = {}
    for layer in table:
        if layer.init in CONSTANTS:
            start = np.full(layer.shape, CONSTANTS[layer.init])
        else:
            deviation = np.sqrt(2.0 / np.prod(layer.shape[:-1]))
            start = rng.normal(0.0, deviation if layer.init == "he" else 0.1 * deviation, layer.shape)
        name = f"{layer.name}/kernel" if layer.kind == "conv" else layer.name
        weights[name] = np.asarray(start, dtype=np.float32)
        if layer.kind == "conv":
            weights[f"{layer.name}/bias"] = np.full(layer.shape[-1:], layer.bias, dtype=np.float32)
    return weights


def completed(weights: Mapping[str, NDArray[Any]], table: list[LayerSpec]) -> dict[str, NDArray[Any]]:
    """Return the weights of a former version with those that it did not have and that change nothing."""
    known = {item.name: item for item in table if item.name == CORRECTION_FACTOR}
    added = {name: np.ones(item.shape, np.float32) for name, item in known.items() if name not in weights}
    return {**weights, **added}


def check_weights(weights: Mapping[str, NDArray[Any]], table: list[LayerSpec], where: str) -> None:
    """Raise ``BundleError`` where names or shapes are not those of the table; ``where`` names the file."""
    expected = weight_shapes(table)
    found = {name: tuple(array.shape) for name, array in weights.items()}
    wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if wrong:
        name = wrong[0]
        raise BundleError(
            f"{where}: {len(wrong)} weights do not fit the architecture (got {name} with shape "
            f"{found.get(name)}, "
            f"expected {expected.get(name)}). Load it with the settings it was trained with."
        )
