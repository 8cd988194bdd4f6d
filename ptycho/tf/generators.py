"""The networks in TensorFlow, built from the tables of ``ptycho.networks.architectures``.

Twins of ``ptycho_torch.generators``, but images inside are (batch, y, x, channel), and kernels are held in
table layout.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from ptycho.config.architectures import architecture_of
from ptycho.config.config import ModelConfig
from ptycho.networks import architectures
from ptycho.solver.schedule import STEP_DAMPING, needed_iterations
from ptycho.tf.runtime import Tensor, as_complex, tf
from ptycho.tf.solver import Chunk, accelerated_steps, noise_level, preconditioned_step

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": tf.sigmoid,
    "swish": tf.nn.silu,
    "softplus": tf.math.softplus,
    "relu": tf.nn.relu,
}


def _doubled(x: Tensor) -> Tensor:
    """Return images of twice the size, every pixel four times."""
    return tf.repeat(tf.repeat(x, 2, axis=1), 2, axis=2)


def _gate(values: Tensor) -> Tensor:
    """Return a factor between 0 and 2 that is 1 for 0."""
    return 2.0 * tf.sigmoid(values)


def turned(x: Tensor, turn: Tensor | int) -> Tensor:
    """As :func:`ptycho_torch.generators.turned`, of images (B, H, W, C)."""
    return x if isinstance(turn, int) and turn == 0 else _transposed(_mirrored(x, turn), turn)


def turned_back(x: Tensor, turn: Tensor | int) -> Tensor:
    """Undo :func:`turned`."""
    return x if isinstance(turn, int) and turn == 0 else _mirrored(_transposed(x, turn), turn)


def _mirrored(x: Tensor, turn: Tensor | int) -> Tensor:
    for bit, axis in ((1, 1), (2, 2)):
        x = tf.where((turn & bit) > 0, tf.reverse(x, [axis]), x)
    return x


def _transposed(x: Tensor, turn: Tensor | int) -> Tensor:
    order = tf.where((turn & 4) > 0, (0, 2, 1, 3), (0, 1, 2, 3))
    # A convolution has to know its channels before it runs.
    return tf.ensure_shape(tf.transpose(x, order), (x.shape[0], None, None, x.shape[-1]))


class TableNetwork:
    """Variables of an architecture table under their table names, with weights drawn from a seed."""

    mixed_dtype: tf.DType | None = None  # what convolutions compute in; None: as what they are given

    def __init__(self, model: ModelConfig, seed: int) -> None:
        self.table = architectures.architecture_table(model)
        start = architectures.initial_weights(self.table, seed)
        self.weights = {name: tf.Variable(array) for name, array in start.items()}

    def import_weights(self, weights: Mapping[str, NDArray[np.float32]], where: str) -> None:
        """As :meth:`ptycho_torch.generators.TableNetwork.import_weights`."""
        architectures.check_weights(weights, self.table, where)
        for name, variable in self.weights.items():
            variable.assign(weights[name])

    def export_weights(self) -> dict[str, NDArray[np.float32]]:
        """Return all weights by table name, kernels (y, x, in, out)."""
        return {name: variable.numpy().copy() for name, variable in self.weights.items()}

    def _convolved(self, x: Tensor, name: str) -> Tensor:
        """Apply one convolution with bias, in the precision of the image."""
        kernel, bias = (tf.cast(self.weights[f"{name}/{part}"], x.dtype) for part in ("kernel", "bias"))
        return tf.nn.bias_add(tf.nn.conv2d(x, kernel, 1, "SAME"), bias)

    def _block(self, x: Tensor, name: str, activation: Callable[[Tensor], Tensor]) -> Tensor:
        """Apply the two convolutions of one level."""
        for part in "ab":
            x = activation(self._convolved(x, f"{name}{part}"))
        return x


class CnnGenerator(TableNetwork):
    """The published encoder with an amplitude and a phase decoder."""

    def __init__(self, model: ModelConfig, seed: int) -> None:
        super().__init__(model, seed)
        self.n_px, self.pad_object = model.N, model.pad_object
        self.amplitude_activation = ACTIVATIONS[model.amp_activation]
        encoder, decoder = architectures.cnn_ladder(model.N, model.n_filters_scale)
        self.levels = (len(encoder), len(decoder))
        bordered = model.probe_big and model.pad_object
        self.outer = architectures.outer_channels(model.n_filters_scale) if bordered else 0
        self.border, quarter = np.ones((model.N, model.N, 1), np.float32), model.N // 4
        self.border[quarter : model.N - quarter, quarter : model.N - quarter] = 0.0

    def __call__(self, patterns: Tensor) -> Tensor:
        """As :meth:`ptycho_torch.generators.CnnGenerator.forward`."""
        x = tf.cast(tf.transpose(patterns, (0, 2, 3, 1)), self.mixed_dtype or patterns.dtype)
        for level in range(self.levels[0]):
            x = tf.nn.max_pool2d(self._gated_block(x, f"encoder{level}"), 2, 2, "VALID")
        x = self._attended(x, "bottleneck")
        amplitude = tf.cast(self._head(x, "amplitude", self.amplitude_activation), patterns.dtype)
        phase = architectures.PHASE_LIMIT_RAD * tf.cast(self._head(x, "phase", tf.tanh), patterns.dtype)
        patches = tf.complex(amplitude * tf.cos(phase), amplitude * tf.sin(phase))
        return tf.transpose(patches, (0, 3, 1, 2))

    def _spatial_gate(self, x: Tensor, name: str) -> Tensor:
        """Return one factor for every pixel, from mean and maximum of its channels."""
        seen = [tf.reduce_mean(x, axis=-1, keepdims=True), tf.reduce_max(x, axis=-1, keepdims=True)]
        return _gate(self._convolved(tf.concat(seen, -1), name))

    def _attended(self, x: Tensor, place: str) -> Tensor:
        """As :func:`ptycho_torch.generators.attended`, of an image (B, H, W, C)."""
        if f"{place}_eca" in self.weights:
            kernel = tf.cast(self.weights[f"{place}_eca"], x.dtype)[:, None, None]
            pooled = tf.reduce_mean(x, axis=(1, 2))[..., None]
            x = x * _gate(tf.nn.conv1d(pooled, kernel, 1, "SAME"))[:, None, None, :, 0]
        if f"{place}_cbam_reduce/kernel" in self.weights:
            pooled = (how(x, axis=(1, 2), keepdims=True) for how in (tf.reduce_mean, tf.reduce_max))
            squeezed = (tf.nn.relu(self._convolved(part, f"{place}_cbam_reduce")) for part in pooled)
            x = x * _gate(tf.add_n([self._convolved(part, f"{place}_cbam_expand") for part in squeezed]))
            x = x * self._spatial_gate(x, f"{place}_cbam_spatial")
        if f"{place}_spatial/kernel" in self.weights:
            x = x * self._spatial_gate(x, f"{place}_spatial")
        return x

    def _gated_block(self, x: Tensor, name: str) -> Tensor:
        """Apply the convolutions of one level and the gates behind them."""
        return self._attended(self._block(x, name, tf.nn.relu), name)

    def _head(self, x: Tensor, name: str, activation: Callable[[Tensor], Tensor]) -> Tensor:
        """Decode one real map, shape (B, N, N, C); the branches never overlap, so the bound of one holds."""
        for level in range(self.levels[1]):
            x = _doubled(self._gated_block(x, f"{name}{level}"))
        cut = x.shape[-1] - self.outer
        inner = x[..., :cut]
        if not self.pad_object:
            return activation(self._convolved(_doubled(inner), f"{name}_inner"))
        quarter = self.n_px // 4
        room = ((0, 0), (quarter, quarter), (quarter, quarter), (0, 0))
        padded = tf.pad(activation(self._convolved(inner, f"{name}_inner")), room)
        if not self.outer:
            return padded
        outer = activation(self._convolved(_doubled(x[..., cut:]), f"{name}_outer"))
        return padded + tf.cast(self.border, x.dtype) * outer


class UnrolledGenerator(TableNetwork):
    """Accelerated physics steps on the shared canvas; the last ones are corrected by small U-Nets."""

    def __init__(self, model: ModelConfig, seed: int) -> None:
        super().__init__(model, seed)
        self.learned = architectures.learned_steps(model.unrolled_steps)
        self.plain = model.unrolled_steps - self.learned
        self.likelihood = model.unrolled_likelihood

    def steps(self, subsets: int) -> int:
        """As :meth:`ptycho_torch.generators.UnrolledGenerator.steps`."""
        return needed_iterations(self.plain, subsets) + self.learned

    def __call__(
        self,
        chunks: Iterable[Chunk],
        weight: Tensor,
        on_step: Callable[[int], None] | None = None,
        *,
        subsets: int = 1,
        factor: float = 1.0,
        iterates: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """As :meth:`ptycho_torch.generators.UnrolledGenerator.forward`."""
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
        """As :meth:`ptycho_torch.generators.UnrolledGenerator.plain_iterations`."""
        flat, count = as_complex(tf.ones_like(weight)), self.steps(subsets) - self.learned
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
        """As :meth:`ptycho_torch.generators.UnrolledGenerator.learned_steps`."""
        for k in range(self.learned):
            momentum, length = self._scalar("step_momentum", k, obj), self._scalar("step_length", k, obj)
            leading = obj + momentum * (obj - previous)
            step = preconditioned_step(leading, chunks, weight, self.likelihood)
            noise = noise_level(leading, chunks, weight) if self.likelihood == "poisson" else None
            seen, gain = self._seen(leading, step, weight, noise)
            gain *= factor * tf.cast(self.weights[architectures.CORRECTION_FACTOR][k], gain.dtype)
            answer = turned_back(self._unet(turned(seen[None], turn), f"unet{k}_"), turn)
            correction = gain[..., None] * answer[0]
            previous = obj
            obj = leading + length * step + tf.complex(correction[..., 0], correction[..., 1])
            if on_step is not None:
                on_step(steps - self.learned + k)
        return obj

    @staticmethod
    def _seen(leading: Tensor, step: Tensor, weight: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return what a U-Net sees, shape (H, W, 6), and the factor on what it answers, shape (H, W)."""
        relative = weight / tf.reduce_max(weight)
        coverage = relative / (relative + STEP_DAMPING)
        if noise is None:
            scale = architectures.STEP_INPUT_GAIN
            last, gain = tf.math.log(relative + 1e-6) / (6 * math.log(10)), coverage
        else:
            # In units of the noise a correction is of order one at every dose.
            scale = architectures.NOISE_STEP_GAIN / noise
            last, gain = tf.math.log(noise) / (2 * math.log(10)) + 1, coverage * noise
        own = (tf.math.real(leading) - 1, tf.math.imag(leading))
        moves = (scale * tf.math.real(step), scale * tf.math.imag(step))
        return tf.stack((*own, *moves, coverage, last), axis=-1), gain

    def _scalar(self, name: str, index: int, like: Tensor) -> Tensor:
        """Return one learned number in the dtype of the canvas."""
        return as_complex(tf.cast(self.weights[name][index], like.dtype.real_dtype))

    def _unet(self, x: Tensor, name: str) -> Tensor:
        """Return the two channels (real, imaginary) of the correction."""
        dtype, x = x.dtype, tf.cast(x, self.mixed_dtype or x.dtype)
        fine = self._block(x, f"{name}down0", tf.nn.silu)
        middle = self._block(tf.nn.avg_pool2d(fine, 2, 2, "VALID"), f"{name}down1", tf.nn.silu)
        coarse = self._block(tf.nn.avg_pool2d(middle, 2, 2, "VALID"), f"{name}down2", tf.nn.silu)
        middle = self._block(tf.concat([_doubled(coarse), middle], -1), f"{name}up1", tf.nn.silu)
        fine = self._block(tf.concat([_doubled(middle), fine], -1), f"{name}up0", tf.nn.silu)
        return tf.cast(self._convolved(fine, f"{name}out"), dtype)


GENERATORS = {"cnn": CnnGenerator, "unrolled": UnrolledGenerator}


def build_generator(model: ModelConfig, seed: int) -> CnnGenerator | UnrolledGenerator:
    """Build the network that a configuration names; ``ConfigError`` where its options do not fit."""
    return GENERATORS[architecture_of(model).name](model, seed)
