"""The networks in PyTorch, built from the tables of ``ptycho.networks.architectures``.

Images inside are (batch, channel, y, x). ``CnnGenerator`` maps groups of patterns to groups of object
patches; ``UnrolledGenerator`` maps a whole scan to one object canvas.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ptycho.config.architectures import architecture_of
from ptycho.config.config import ModelConfig
from ptycho.geometry.canvas import CANVAS_MULTIPLE_PX
from ptycho.networks import architectures
from ptycho.solver.schedule import STEP_DAMPING, needed_iterations
from ptycho_torch.solver import Chunk, accelerated_steps, noise_level, preconditioned_step

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "swish": F.silu,
    "softplus": F.softplus,
    "relu": F.relu,
}


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


def turned(x: Tensor, turn: Tensor | int) -> Tensor:
    """Return images (..., H, W), mirrored where bit 0 (y) and bit 1 (x) of a turn are set, and then
    transposed where bit 2 is."""
    axes = [axis for bit, axis in ((1, -2), (2, -1)) if int(turn) & bit]
    x = x.flip(axes) if axes else x
    return x.transpose(-2, -1) if int(turn) & 4 else x


def turned_back(x: Tensor, turn: Tensor | int) -> Tensor:
    """Undo :func:`turned`."""
    x = x.transpose(-2, -1) if int(turn) & 4 else x
    return turned(x, int(turn) & 3)


class TableNetwork(nn.Module):
    """Layers of an architecture table under their table names, with weights drawn from a seed."""

    mixed_dtype: torch.dtype | None = None  # what convolutions compute in; None: as what they are given

    def __init__(self, table: list[architectures.LayerSpec], seed: int) -> None:
        super().__init__()
        self.table = table
        self.convolutions = nn.ModuleDict()
        self.vectors = nn.ParameterDict()
        for layer in table:
            if layer.kind == "conv":
                # Nothing is drawn from the host's generator: the weights follow below.
                size, _, inputs, outputs = layer.shape
                self.convolutions[layer.name] = nn.utils.skip_init(
                    nn.Conv2d, inputs, outputs, size, padding="same"
                )
            else:
                self.vectors[layer.name] = nn.Parameter(torch.empty(layer.shape))
        self.import_weights(architectures.initial_weights(table, seed), "initial weights")

    @torch.no_grad()
    def import_weights(self, weights: Mapping[str, NDArray[np.float32]], where: str) -> None:
        """Fill every layer from arrays by table name, kernels (y, x, in, out); ``BundleError``, which names
        the file ``where``, if a weight is missing, unknown, or of another shape."""
        architectures.check_weights(weights, self.table, where)
        for name, layer in self.convolutions.items():
            layer.weight.copy_(torch.from_numpy(weights[f"{name}/kernel"].transpose(3, 2, 0, 1).copy()))
            layer.bias.copy_(torch.from_numpy(weights[f"{name}/bias"]))
        for name, vector in self.vectors.items():
            vector.copy_(torch.from_numpy(weights[name]))

    def export_weights(self) -> dict[str, NDArray[np.float32]]:
        """Return all weights by table name, kernels (y, x, in, out)."""
        weights: dict[str, NDArray[np.float32]] = {}
        for name, layer in self.convolutions.items():
            kernel = layer.weight.detach().cpu().numpy()
            weights[f"{name}/kernel"] = np.ascontiguousarray(kernel.transpose(2, 3, 1, 0))
            weights[f"{name}/bias"] = layer.bias.detach().cpu().numpy().copy()
        for name, vector in self.vectors.items():
            weights[name] = vector.detach().cpu().numpy().copy()
        return weights

    def _half(self, x: Tensor) -> torch.autocast:
        """Return the context in which the convolutions of an image compute."""
        return torch.autocast(x.device.type, dtype=self.mixed_dtype, enabled=self.mixed_dtype is not None)

    def _block(self, x: Tensor, name: str, activation: Callable[[Tensor], Tensor]) -> Tensor:
        """Apply the two convolutions of one level."""
        for part in "ab":
            x = activation(self.convolutions[f"{name}{part}"](x))
        return x


class CnnGenerator(TableNetwork):
    """The published encoder with an amplitude and a phase decoder."""

    def __init__(self, model: ModelConfig, seed: int) -> None:
        super().__init__(architectures.architecture_table(model), seed)
        self.n_px = model.N
        self.pad_object = model.pad_object
        self.amplitude_activation = ACTIVATIONS[model.amp_activation]
        encoder, decoder = architectures.cnn_ladder(model.N, model.n_filters_scale)
        self.levels = (len(encoder), len(decoder))
        bordered = model.probe_big and model.pad_object
        self.outer = architectures.outer_channels(model.n_filters_scale) if bordered else 0
        border = torch.ones(model.N, model.N)
        quarter = model.N // 4
        border[quarter : model.N - quarter, quarter : model.N - quarter] = 0.0
        self.register_buffer("border", border, persistent=False)

    def forward(self, patterns: Tensor) -> Tensor:
        """Return the patches (B, C, N, N) [transmission] of groups of patterns, each in the frame of its own
        position, from amplitudes of the same shape, normalised to a mean energy of (N / 2)^2 per pattern."""
        with self._half(patterns):
            x = patterns
            for level in range(self.levels[0]):
                x = F.max_pool2d(self._gated_block(x, f"encoder{level}"), 2)
            x = attended(x, "bottleneck", self.convolutions, self.vectors)
            amplitude = self._head(x, "amplitude", self.amplitude_activation).to(patterns.dtype)
            phase = self._head(x, "phase", torch.tanh).to(patterns.dtype) * architectures.PHASE_LIMIT_RAD
        # The gradient of torch.polar has the wrong sign where swish makes the amplitude negative.
        return torch.complex(amplitude * phase.cos(), amplitude * phase.sin())

    def _gated_block(self, x: Tensor, name: str) -> Tensor:
        """Apply the convolutions of one level and the gates behind them."""
        return attended(self._block(x, name, F.relu), name, self.convolutions, self.vectors)

    def _head(self, x: Tensor, name: str, activation: Callable[[Tensor], Tensor]) -> Tensor:
        """Decode one real map, shape (B, C, N, N); the branches never overlap, so the bound of one holds."""
        for level in range(self.levels[1]):
            x = F.interpolate(self._gated_block(x, f"{name}{level}"), scale_factor=2)
        inner = x[:, : x.shape[1] - self.outer]
        if not self.pad_object:
            return activation(self.convolutions[f"{name}_inner"](F.interpolate(inner, scale_factor=2)))
        quarter = self.n_px // 4
        padded = F.pad(activation(self.convolutions[f"{name}_inner"](inner)), (quarter,) * 4)
        if not self.outer:
            return padded
        outer = F.interpolate(x[:, x.shape[1] - self.outer :], scale_factor=2)
        return padded + self.border * activation(self.convolutions[f"{name}_outer"](outer))


class UnrolledGenerator(TableNetwork):
    """Accelerated physics steps on the shared canvas; the last ones are corrected by small U-Nets."""

    def __init__(self, model: ModelConfig, seed: int) -> None:
        super().__init__(architectures.architecture_table(model), seed)
        self.learned = architectures.learned_steps(model.unrolled_steps)
        self.plain = model.unrolled_steps - self.learned
        self.likelihood = model.unrolled_likelihood

    def steps(self, subsets: int) -> int:
        """Return the iterations of plain steps and the learned ones; ``subsets`` as in :meth:`forward`."""
        return needed_iterations(self.plain, subsets) + self.learned

    def forward(
        self,
        chunks: Iterable[Chunk],
        weight: Tensor,
        on_step: Callable[[int], None] | None = None,
        *,
        subsets: int = 1,
        factor: float = 1.0,
        iterates: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Return the object (H, W) of a scan [transmission], 1 where no light fell.

        The chunks are read once for every step. H and W of the illumination ``weight`` [photons / pixel] are
        multiples of ``CANVAS_MULTIPLE_PX``; ``on_step`` is called with the index of each finished step. More
        than one of ``subsets``, the most of a plain step (``ptycho.geometry.batches.most_subsets``), needs
        ``ScanChunks``. The U-Nets correct ``factor`` times as much; the last two ``iterates`` (H, W) of the
        plain steps may be known.
        """
        last = iterates or self.plain_iterations(chunks, weight, on_step, subsets=subsets)
        return self.learned_steps(*last, chunks, weight, on_step, steps=self.steps(subsets), factor=factor)

    def plain_iterations(
        self,
        chunks: Iterable[Chunk],
        weight: Tensor,
        on_step: Callable[[int], None] | None = None,
        *,
        subsets: int = 1,
    ) -> tuple[Tensor, Tensor]:
        """Return the last two iterates (H, W) of the steps without a network, from a flat object; arguments
        as in :meth:`forward`."""
        complex_type = torch.promote_types(weight.dtype, torch.complex64)
        flat = torch.ones(weight.shape, dtype=complex_type, device=weight.device)
        count = self.steps(subsets) - self.learned
        return accelerated_steps(
            flat, chunks, weight, count, on_step, likelihood=self.likelihood, subsets=subsets
        )

    def learned_steps(
        self,
        obj: Tensor,
        previous: Tensor,
        chunks: Iterable[Chunk],
        weight: Tensor,
        on_step: Callable[[int], None] | None = None,
        *,
        steps: int = 0,
        turn: Tensor | int = 0,
        factor: float = 1.0,
    ) -> Tensor:
        """Return the object (H, W) after the learned steps, the last of ``steps``, from the last two iterates
        of the plain ones; arguments as in :meth:`forward`. The U-Nets see the canvas in one of the
        ``ptycho.data.hidden.TURNS``; what they answer is multiplied by a ``factor``."""
        for k in range(self.learned):
            leading = obj + self.vectors["step_momentum"][k] * (obj - previous)
            step = preconditioned_step(leading, chunks, weight, self.likelihood)
            noise = noise_level(leading, chunks, weight) if self.likelihood == "poisson" else None
            seen, gain = self.seen(leading, step, weight, noise)
            correction = factor * self.vectors[architectures.CORRECTION_FACTOR][k] * gain
            answer = turned_back(self.correction(turned(seen[None], turn), k), turn)
            correction = correction * torch.complex(*answer[0])
            previous = obj
            obj = leading + self.vectors["step_length"][k] * step + correction
            if on_step is not None:
                on_step(steps - self.learned + k)
        return obj

    @staticmethod
    def seen(leading: Tensor, step: Tensor, weight: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return what a U-Net sees at a learned step (6, H, W), and the factor (H, W) on what it answers (eq.
        11, 18); ``noise`` (H, W) [transmission] is None for the amplitude likelihood."""
        relative = weight / weight.max()
        coverage = relative / (relative + STEP_DAMPING)
        if noise is None:
            scaled, gain = architectures.STEP_INPUT_GAIN * step, coverage
            last = torch.log10(relative + 1e-6) / 6
        else:
            # In units of the noise a correction is of order one at every dose.
            scaled, last = architectures.NOISE_STEP_GAIN * step / noise, torch.log10(noise) / 2 + 1
            gain = coverage * noise
        parts = (leading.real - 1, leading.imag, *torch.view_as_real(scaled).unbind(-1), coverage, last)
        return torch.stack(parts), gain

    def correction(self, x: Tensor, index: int) -> Tensor:
        """Return real and imaginary part (B, 2, H, W) of the correction of learned step ``index``, from 0,
        for what :meth:`seen` returns. Without gradients a large canvas passes in strips, which bounds memory
        only."""
        name = f"unet{index}_"
        height, width = x.shape[-2:]
        halo = architectures.STRIP_HALO_PX
        rows = max(halo, architectures.STRIP_PIXELS // width // CANVAS_MULTIPLE_PX * CANVAS_MULTIPLE_PX)
        if torch.is_grad_enabled() or height <= rows + 2 * halo:
            return self._unet(x, name)
        strips = []
        for top in range(0, height, rows):
            first, last = max(0, top - halo), min(height, top + rows + halo)
            strip = self._unet(x[:, :, first:last], name)
            strips.append(strip[:, :, top - first : min(rows, height - top) + top - first])
        return torch.cat(strips, dim=2)

    def _unet(self, x: Tensor, name: str) -> Tensor:
        """Pass an image down two levels and up again; return the two channels (real, imaginary)."""
        with self._half(x):
            fine = self._block(x, f"{name}down0", F.silu)
            middle = self._block(F.avg_pool2d(fine, 2), f"{name}down1", F.silu)
            coarse = self._block(F.avg_pool2d(middle, 2), f"{name}down2", F.silu)
            coarse = F.interpolate(coarse, scale_factor=2)
            middle = self._block(torch.cat([coarse, middle], 1), f"{name}up1", F.silu)
            middle = F.interpolate(middle, scale_factor=2)
            fine = self._block(torch.cat([middle, fine], 1), f"{name}up0", F.silu)
            return self.convolutions[f"{name}out"](fine).to(x.dtype)


GENERATORS = {"cnn": CnnGenerator, "unrolled": UnrolledGenerator}


def build_generator(model: ModelConfig, seed: int) -> CnnGenerator | UnrolledGenerator:
    """Build the network that a configuration names; ``ConfigError`` where its options do not fit."""
    return GENERATORS[architecture_of(model).name](model, seed)
