"""The model in TensorFlow: a generator, the probe, and the physics that makes a loss from patterns."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ptycho.config.architectures import architecture_of
from ptycho.config.config import ModelConfig
from ptycho.data.probe_choice import TrainedProbe
from ptycho.data.scaling import ScaleRecord
from ptycho.networks.schedule import TrainedEpoch
from ptycho.physics.losses import LossTerms
from ptycho.tf import losses, physics
from ptycho.tf.generators import build_generator
from ptycho.tf.runtime import Tensor, as_complex, tf
from ptycho.tf.solver import Chunk

Batch = dict[str, Tensor]


class PtychoPINN:
    """As :class:`ptycho_torch.model.PtychoPINN_Lightning`; ``terms`` is what training lowers, by default the
    amplitude misfit, and ``gain_trainable`` trains one factor on all predicted amplitudes."""

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
        self.loss_name, self.val_loss_name = f"{self.terms.kind}_train_loss", f"{self.terms.kind}_val_loss"
        self.gain_trainable = gain_trainable
        self.log_gain = tf.Variable(0.0)
        self.probe = tf.zeros((1, model.N, model.N), tf.complex64)
        self.probe_refined = False
        self.probe_start: NDArray[np.complex64] | None = None
        self.trained_epoch: TrainedEpoch | None = None
        self.scale_record: ScaleRecord | None = None

    @property
    def trained_probe(self) -> TrainedProbe:
        """What the training run knew about the beam."""
        return TrainedProbe(self.probe.numpy(), self.probe_start, self.probe_refined, self.scale_record)

    def attach_scan(
        self,
        probe: NDArray[np.complex64],
        record: ScaleRecord | None,
        *,
        refined: bool,
        start: NDArray[np.complex64] | None = None,
    ) -> None:
        """As :meth:`ptycho_torch.model.PtychoPINN_Lightning.attach_scan`."""
        self.probe = tf.constant(probe, tf.complex64)
        self.probe_refined = refined
        self.probe_start = start if refined else probe
        self.scale_record = record

    def trainable(self) -> dict[str, tf.Variable]:
        """Return what training changes: weights by table name, and ``log_gain`` where it is trained."""
        return self.generator.weights | ({"log_gain": self.log_gain} if self.gain_trainable else {})

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
        return tf.cond(whole, lambda: probe[None], lambda: physics.shift_field(probe, shifts))

    def predict(self, batch: Batch) -> losses.Prediction:
        """Return what the model makes of the patterns that a batch compares with."""
        whole = architecture_of(self.core_config).whole_canvas
        return self._predict_canvas(batch) if whole else self._predict_patches(batch)

    def _predict_canvas(self, batch: Batch) -> losses.Prediction:
        """Reconstruct a tile from what the network sees; compare with what is held out, if anything is."""
        amplitude, shifts, labels = batch["amplitude"], batch["shifts"], batch.get("labels")
        seen = validated = Chunk(batch["corners"], self._probes(batch), amplitude)
        if "validated" in batch:
            chosen = batch["validated"]
            whole = seen._replace(probes=_for_each(seen.probes, amplitude))
            seen, validated = _masked(whole, batch["seen"]), _masked(whole, chosen)
            shifts = tf.boolean_mask(shifts, chosen)
            labels = None if labels is None else tf.boolean_mask(labels, chosen)
        light = physics.illumination(seen.probes, seen.corners_yx, batch["shape"])
        obj = self.generator([seen], light)
        patches = physics.extract_patches(obj, validated.corners_yx, self.core_config.N)
        predicted = physics.diffracted_amplitude(patches, validated.probes) * tf.exp(self.log_gain)
        own = None if labels is None else physics.shift_field(patches[:, None], -shifts)[:, 0]
        return losses.Prediction(predicted, validated.amplitude, obj, light, own, labels, self._light(batch))

    def _predict_patches(self, batch: Batch) -> losses.Prediction:
        """Merge the patches of every group, where groups are merged, and predict its patterns."""
        patches, light, n_px = self._own_patches(batch), self._light(batch), self.core_config.N
        probes, corners = self._probes(batch), batch["corners"]
        obj = self.merge(patches, corners, batch["shifts"], probes, batch["shape"])
        predicted = physics.diffracted_amplitude(physics.extract_patches(obj, corners, n_px), probes)
        sigma_px = self.core_config.gaussian_smoothing_sigma
        if sigma_px > 0:
            predicted = physics.smoothed_amplitude(predicted, sigma_px)
        measured = tf.reshape(batch["amplitude"], (-1, n_px, n_px))
        predicted = predicted * tf.exp(self.log_gain)
        return losses.Prediction(predicted, measured, patches, light, patches, batch.get("labels"), light)

    def _light(self, batch: Batch) -> Tensor:
        """Return the light that falls on a patch in the frame of its own position, shape (N, N)."""
        return tf.reduce_sum(tf.abs(batch.get("probe", self.probe)) ** 2, axis=0)

    def _own_patches(self, batch: Batch) -> Tensor:
        """Return the patches of ``cnn``, shape (J, N, N), each in the frame of its own position."""
        n_px = self.core_config.N
        return tf.reshape(self.network_patches(batch["amplitude"]), (-1, n_px, n_px))

    def network_patches(self, amplitude: Tensor, input_scale: float | None = None) -> Tensor:
        """As :meth:`ptycho_torch.model.PtychoPINN_Lightning.network_patches`."""
        scale = input_scale
        if scale is None:
            scale = self.scale_record.input_scale if self.scale_record else 1.0
        return self.generator(physics.filled_amplitude(amplitude) * scale)

    @staticmethod
    def merge(patches: Tensor, corners: Tensor, shifts: Tensor, probes: Tensor, shape: Tensor) -> Tensor:
        """Average overlapping patches (J, N, N) on a canvas (H, W), weighted with the light they saw; 0 where
        none fell. ``probes`` (J or 1, P, N, N) are moved by the sub-pixel ``shifts`` (J, 2) already."""
        moved = physics.shift_field(patches[:, None], shifts)[:, 0]
        total = physics.weighted_patches(moved, corners, probes, shape)
        weight = physics.illumination(probes, corners, shape)
        return total / as_complex(weight + 1e-6 * tf.reduce_max(weight))

    def loss(self, batch: Batch) -> Tensor:
        """Return the loss of a batch, dimensionless."""
        if self.terms.supervised:
            return losses.supervised_loss(self._own_patches(batch), batch["labels"], self._light(batch))
        return losses.total_loss(self.terms, self.predict(batch))


def _for_each(probes: Tensor, amplitude: Tensor) -> Tensor:
    """Return one stack of probe modes for every pattern."""
    return tf.broadcast_to(probes, tf.concat([tf.shape(amplitude)[:1], tf.shape(probes)[1:]], 0))


def _masked(chunk: Chunk, chosen: Tensor) -> Chunk:
    """Return some patterns of a chunk."""
    return Chunk(*(tf.boolean_mask(part, chosen) for part in chunk[:3]))
