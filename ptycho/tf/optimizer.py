r"""The optimisers, written out so that a training run follows the same numbers as ``torch.optim``.

Adam here is :math:`w \leftarrow w - \eta\,\hat m / (\sqrt{\hat v} + \epsilon)` with :math:`\hat m = m / (1 -
\beta_1^t)` and :math:`\hat v = v / (1 - \beta_2^t)`: the small number is added to the root of the corrected
moment, where Keras adds it to that of the uncorrected one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho.config.choices import Optimizer as OptimizerName
from ptycho.config.choices import allowed
from ptycho.config.config import TrainingConfig
from ptycho.errors import ConfigError
from ptycho.tf.runtime import Tensor, tf

EPSILON = 1e-8
"""Keeps the step of Adam finite where a weight has no gradient."""


class Optimizer:
    """Adam, AdamW or momentum descent on variables by name; ``ConfigError`` for any other optimiser."""

    def __init__(self, training: TrainingConfig, variables: dict[str, tf.Variable]) -> None:
        if training.optimizer not in allowed(OptimizerName):
            raise ConfigError(
                f"training: unknown optimizer (got {training.optimizer!r}, expected one of "
                f"{', '.join(allowed(OptimizerName))}). Choose one of them."
            )
        self.training, self.variables = training, variables
        self.steps = 0
        zeros = {name: tf.zeros_like(variable) for name, variable in variables.items()}
        self.first = {name: tf.Variable(value) for name, value in zeros.items()}
        self.second: dict[str, tf.Variable] = {}
        if training.optimizer != "sgd":
            self.second = {name: tf.Variable(value) for name, value in zeros.items()}
        self._compiled = tf.function(self._updated)

    def apply(self, gradients: Sequence[Tensor], rate: float) -> None:
        """Take one step at a learning rate; the gradients are in the order of the variables."""
        self.steps += 1
        training = self.training
        # In float32 these differences would lose four digits, so they are made here in double precision.
        numbers = {
            "rate": rate,
            "step": rate / (1 - training.adam_beta1**self.steps),
            "root": np.sqrt(1 - training.adam_beta2**self.steps),
            "keep": 1 - rate * training.weight_decay,
            "first": 0.0 if self.steps == 1 else 1.0,
        }
        tensors = {name: tf.constant(value, tf.float32) for name, value in numbers.items()}
        self._compiled(list(gradients), tensors)

    def _updated(self, gradients: list[Tensor], numbers: dict[str, Tensor]) -> None:
        training = self.training
        for (name, variable), gradient in zip(self.variables.items(), gradients, strict=True):
            if training.weight_decay and training.optimizer != "adamw":
                gradient = gradient + training.weight_decay * variable
            first = self.first[name]
            if training.optimizer == "sgd":
                first.assign(training.momentum * numbers["first"] * first + gradient)
                variable.assign_sub(numbers["rate"] * first)
                continue
            if training.weight_decay and training.optimizer == "adamw":
                variable.assign(variable * numbers["keep"])
            second = self.second[name]
            first.assign_add((1 - training.adam_beta1) * (gradient - first))
            second.assign(training.adam_beta2 * second + (1 - training.adam_beta2) * gradient**2)
            root = tf.sqrt(second) / numbers["root"] + EPSILON
            variable.assign_sub(numbers["step"] * first / root)

    def state(self) -> dict[str, NDArray[Any]]:
        """Return what a later run needs to go on: step counter and moments."""
        found: dict[str, NDArray[Any]] = {"steps": np.array(self.steps)}
        for order, slots in (("first", self.first), ("second", self.second)):
            found |= {f"{order}/{name}": slot.numpy() for name, slot in slots.items()}
        return found

    def load_state(self, state: dict[str, NDArray[Any]]) -> None:
        """Go on from what :meth:`state` returned."""
        self.steps = int(state["steps"])
        for order, slots in (("first", self.first), ("second", self.second)):
            for name, slot in slots.items():
                slot.assign(state[f"{order}/{name}"])


def check_clipping(limit: float | None, algorithm: str) -> None:
    """Refuse a clipping algorithm other than ``norm`` and ``value`` by a ``ConfigError``; limits of None and
    0 clip nothing."""
    if limit and algorithm not in ("norm", "value"):
        raise ConfigError(
            f"training: TensorFlow cannot clip this way (got gradient_clip_algorithm={algorithm!r}, expected "
            "norm or value). Choose one of them."
        )


def clipped(gradients: Sequence[Tensor], limit: float | None, algorithm: str) -> list[Tensor]:
    """Return gradients limited in the norm of all together (``norm``) or in every element (``value``); as
    they are for None and 0."""
    if not limit:
        return list(gradients)
    if algorithm == "value":
        return [tf.clip_by_value(gradient, -limit, limit) for gradient in gradients]
    factor = tf.minimum(limit / (tf.linalg.global_norm(gradients) + 1e-6), 1.0)
    return [gradient * factor for gradient in gradients]
