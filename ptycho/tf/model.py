"""The model in TensorFlow: a generator, the probe, and the physics that makes a loss from patterns."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ptycho.config.config import ModelConfig
from ptycho.networks.model import PatternModel
from ptycho.physics.losses import LossTerms
from ptycho.tf import losses, physics
from ptycho.tf.generators import build_generator
from ptycho.tf.runtime import Tensor, as_complex, tf
from ptycho.tf.solver import Chunk

Batch = dict[str, Tensor]


class PtychoPINN(PatternModel):
    """As :class:`ptycho_torch.model.PtychoPINN_Lightning`; ``terms`` is what training lowers, by default the
    amplitude misfit, and ``gain_trainable`` trains one factor on all predicted amplitudes."""

    backend, chunk, physics, losses = "tensorflow", Chunk, physics, losses

    def __init__(
        self,
        model: ModelConfig,
        seed: int = 42,
        *,
        terms: LossTerms | None = None,
        gain_trainable: bool = False,
    ) -> None:
        self.core_config = model
        self.generator = build_generator(model, seed)
        self.terms = terms if terms is not None else LossTerms()
        self.gain_trainable = gain_trainable
        self.log_gain = tf.Variable(0.0)
        self.probe = tf.zeros((1, model.N, model.N), tf.complex64)

    def _array(self, values: NDArray[np.complex64]) -> Tensor:
        return tf.constant(values, tf.complex64)

    def _numpy(self, array: Tensor) -> NDArray[np.generic]:
        return array.numpy()

    def trainable(self) -> dict[str, tf.Variable]:
        """Return what training changes: weights by table name, and ``log_gain`` where it is trained."""
        weights = {name: value for name, value in self.generator.weights.items() if self.learns(name)}
        return weights | ({"log_gain": self.log_gain} if self.gain_trainable else {})

    def snapshot(self) -> dict[str, NDArray[np.float32]]:
        """Return a copy of everything that training changes."""
        return {name: variable.numpy().copy() for name, variable in self.trainable().items()}

    def restore(self, snapshot: dict[str, NDArray[np.float32]]) -> None:
        """Go back to a copy of :meth:`snapshot`."""
        for name, variable in self.trainable().items():
            variable.assign(snapshot[name])

    def _probes(self, batch: Batch) -> Tensor:
        """Return the probe of every position, or one with a leading axis of 1 where it serves all."""
        probe, shifts = batch.get("probe", self.probe), batch["shifts"]
        whole = tf.reduce_max(tf.abs(shifts)) < 1e-6
        moved = tf.cond(whole, lambda: probe[None], lambda: physics.shift_field(probe, shifts))
        return physics.part_modes(moved, batch.get("part_turns"))

    def _illumination(self, batch: Batch) -> Tensor:
        return tf.reduce_sum(tf.abs(batch.get("probe", self.probe)) ** 2, axis=0)

    def _flat(self, x: Tensor) -> Tensor:
        return tf.reshape(x, (-1, self.core_config.N, self.core_config.N))

    @staticmethod
    def _shape(batch: Batch) -> Tensor:
        return batch["shape"]

    @staticmethod
    def _part(chunk: Chunk, rows: Tensor) -> Chunk:
        shape = tf.concat([tf.shape(chunk.amplitude)[:1], tf.shape(chunk.probes)[1:]], 0)
        probes = tf.broadcast_to(chunk.probes, shape)
        placed = chunk.corners_yx[rows], probes[rows], chunk.amplitude[rows]
        return Chunk(*placed, detector=chunk.detector.of(rows))

    @property
    def gain(self) -> Tensor:
        """Trained factor on predicted amplitudes."""
        return tf.exp(self.log_gain)

    @staticmethod
    def merge(patches: Tensor, corners: Tensor, shifts: Tensor, probes: Tensor, shape: Tensor) -> Tensor:
        """Average overlapping patches (J, N, N) on a canvas (H, W), weighted with the light they saw; 0 where
        none fell. ``probes`` (J or 1, P, N, N) are moved by the sub-pixel ``shifts`` (J, 2) already."""
        moved = physics.shift_field(patches[:, None], shifts)[:, 0]
        total = physics.weighted_patches(moved, corners, probes, shape)
        weight = physics.illumination(probes, corners, shape)
        return total / as_complex(weight + 1e-6 * tf.reduce_max(weight))
