"""The Lightning module: a generator, the probe, and the physics that turns measured patterns into a loss."""

from __future__ import annotations

from dataclasses import asdict, is_dataclass
from typing import Any

import lightning as L
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ptycho.config.architectures import architecture_of
from ptycho.data.probe_choice import TrainedProbe
from ptycho.data.scaling import ScaleRecord
from ptycho.errors import BundleError
from ptycho.geometry.canvas import CANVAS_MULTIPLE_PX, plan_canvas
from ptycho.networks.schedule import TrainedEpoch
from ptycho.physics.losses import LossTerms
from ptycho_torch import losses, physics
from ptycho_torch.config_bridge import loss_mode, to_model_config
from ptycho_torch.config_params import SECTIONS, DataConfig, InferenceConfig, ModelConfig, TrainingConfig
from ptycho_torch.generators import build_generator
from ptycho_torch.optimizer import build_optimizer
from ptycho_torch.solver import Chunk

CONFIG_TYPES = dict(list(SECTIONS.items())[:4])
"""Sections that a checkpoint holds."""


def plain(value: Any) -> Any:
    """Return a setting in plain types, which a checkpoint can hold and ``weights_only`` can load; arrays
    become True, since a mask is stored with the probe."""
    if is_dataclass(value):
        return {name: plain(item) for name, item in asdict(value).items()}
    if isinstance(value, dict):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if hasattr(value, "shape"):
        return True
    return str(value)


def restore(name: str, value: Any) -> Any:
    """Return the configuration object of a section from its plain form; an object comes back as it is, None
    gives defaults. ``BundleError`` where this version does not know a setting."""
    kind = CONFIG_TYPES[name]
    if value is None:
        return kind()
    if not isinstance(value, dict):
        return value
    listed = {key for key, item in value.items() if isinstance(item, list) and len(item) == 2}
    try:
        return kind(**{key: tuple(item) if key in listed else item for key, item in value.items()})
    except TypeError as error:
        raise BundleError(
            f"checkpoint: {name} does not fit this version (got {error}, expected the settings of "
            f"{kind.__name__}). Load it with the version that wrote it."
        ) from error


class PtychoPINN_Lightning(L.LightningModule):
    """Physics-informed network: patterns in, object out, trained on the patterns alone.

    Batches are those of ``ptycho_torch.data``.

    Parameters
    ----------
    model_config, data_config, training_config, inference_config : dataclass or dict
        Of ``ptycho_torch.config_params``, or their plain forms.
    seed : int
        Seed of the initial weights.
    """

    def __init__(
        self,
        model_config: ModelConfig | dict[str, Any],
        data_config: DataConfig | dict[str, Any],
        training_config: TrainingConfig | dict[str, Any],
        inference_config: InferenceConfig | dict[str, Any] | None = None,
        seed: int = 42,
    ) -> None:
        super().__init__()
        self.model_config = restore("model_config", model_config)
        self.data_config = restore("data_config", data_config)
        self.training_config = restore("training_config", training_config)
        self.inference_config = restore("inference_config", inference_config)
        settings = {name: plain(getattr(self, name)) for name in CONFIG_TYPES}
        self.save_hyperparameters({**settings, "seed": seed})
        self.core_config = to_model_config(self.data_config, self.model_config)
        self.generator = build_generator(self.core_config, seed)
        supervised = self.core_config.model_type == "supervised"
        kind = "supervised" if supervised else loss_mode(self.model_config, self.training_config)
        self.terms = LossTerms(kind)
        self.scale_record: ScaleRecord | None = None
        self.probe_refined = False
        self.probe_start: NDArray[np.complex64] | None = None
        self.trained_epoch: TrainedEpoch | None = None
        n_px, trainable = self.core_config.N, self.model_config.intensity_scale_trainable
        self.register_buffer("probe", torch.zeros(1, n_px, n_px, dtype=torch.complex64))
        self.log_gain = nn.Parameter(torch.zeros(()), requires_grad=trainable)

    @property
    def loss_name(self) -> str:
        """Name that the loss of an epoch is logged under."""
        return f"{self.terms.kind}_train_loss"

    @property
    def val_loss_name(self) -> str:
        """Name that the validation loss is logged under."""
        return f"{self.terms.kind}_val_loss"

    @property
    def trained_probe(self) -> TrainedProbe:
        """What the training run knew about the beam."""
        return TrainedProbe(self.probe.cpu().numpy(), self.probe_start, self.probe_refined, self.scale_record)

    def attach_scan(
        self,
        probe: NDArray[np.complex64],
        record: ScaleRecord | None,
        *,
        refined: bool,
        start: NDArray[np.complex64] | None = None,
    ) -> None:
        """Take over probe (P, N, N) [sqrt(photons)] and scale of the scan to train on; ``start`` is the probe
        of its file, where ``refined`` says that ``probe`` is another one."""
        self.probe = torch.from_numpy(probe).to(self.probe.device)
        self.probe_refined = refined
        self.probe_start = start if refined else probe
        self.scale_record = record

    def _probes(self, batch: dict[str, Tensor]) -> Tensor:
        probe = batch.get("probe", self.probe)
        shifts = batch["shifts"]
        return probe if shifts.abs().amax() < 1e-6 else physics.shift_field(probe, shifts)

    def predict(self, batch: dict[str, Tensor]) -> losses.Prediction:
        """Return what the model makes of the patterns that a batch compares with."""
        whole = architecture_of(self.core_config).whole_canvas
        return self._predict_canvas(batch) if whole else self._predict_patches(batch)

    def _predict_canvas(self, batch: dict[str, Tensor]) -> losses.Prediction:
        """Reconstruct a tile from what the network sees; compare with what is held out, if anything is."""
        amplitude, shifts, labels = batch["amplitude"], batch["shifts"], batch.get("labels")
        seen = validated = Chunk(batch["corners"], self._probes(batch), amplitude)
        if "validated" in batch:
            chosen = batch["validated"]
            seen, validated = (_part(seen, batch[name]) for name in ("seen", "validated"))
            shifts, labels = shifts[chosen], None if labels is None else labels[chosen]
        light = physics.illumination(seen.probes, seen.corners_yx, _shape(batch))
        obj = self.generator([seen], light)
        patches = physics.extract_patches(obj, validated.corners_yx, amplitude.shape[-1])
        predicted = physics.diffracted_amplitude(patches, validated.probes) * self.log_gain.exp()
        own = None if labels is None else physics.shift_field(patches[:, None], -shifts)[:, 0]
        return losses.Prediction(predicted, validated.amplitude, obj, light, own, labels, self._light(batch))

    def _predict_patches(self, batch: dict[str, Tensor]) -> losses.Prediction:
        """Merge the patches of every group, where groups are merged, and predict its patterns."""
        patches, light = self._own_patches(batch), self._light(batch)
        probes, corners = self._probes(batch), batch["corners"]
        obj = self._merge(patches, corners, batch["shifts"], probes, _shape(batch))
        seen = physics.extract_patches(obj, corners, light.shape[-1])
        predicted = physics.diffracted_amplitude(seen, probes)
        sigma_px = self.core_config.gaussian_smoothing_sigma
        if sigma_px > 0:
            predicted = physics.smoothed_amplitude(predicted, sigma_px)
        measured = batch["amplitude"].reshape(predicted.shape)
        predicted = predicted * self.log_gain.exp()
        return losses.Prediction(predicted, measured, patches, light, patches, batch.get("labels"), light)

    def predict_amplitude(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return predicted and measured amplitude (J, N, N) [sqrt(photons)] of :meth:`predict`."""
        found = self.predict(batch)
        return found.predicted, found.amplitude

    def _light(self, batch: dict[str, Tensor]) -> Tensor:
        """Return the light that falls on a patch in the frame of its own position, shape (N, N)."""
        return batch.get("probe", self.probe).abs().square().sum(dim=0)

    def _own_patches(self, batch: dict[str, Tensor]) -> Tensor:
        """Return the patches of ``cnn``, shape (J, N, N), each in the frame of its own position."""
        patches = self.network_patches(batch["amplitude"], batch.get("input_scale"))
        return patches.reshape(-1, *patches.shape[-2:])

    def network_patches(self, amplitude: Tensor, input_scale: Tensor | None = None) -> Tensor:
        """Return the patches (B, C, N, N) of ``cnn`` [transmission], each in the frame of its own position,
        from measured ``amplitude`` (B, C, N, N) [sqrt(photons)], filled where nothing was measured, times
        ``input_scale`` (by default that of the training scan)."""
        scale = input_scale
        if scale is None:
            scale = self.scale_record.input_scale if self.scale_record else 1.0
        return self.generator(physics.filled_amplitude(amplitude) * scale)

    @staticmethod
    def _merge(
        patches: Tensor, corners: Tensor, shifts: Tensor, probes: Tensor, shape: tuple[int, int]
    ) -> Tensor:
        """Average overlapping patches of a group on its canvas, weighted with the light they saw."""
        moved = physics.shift_field(patches[:, None], shifts)[:, 0]
        total = physics.weighted_patches(moved, corners, probes, shape)
        weight = physics.illumination(probes, corners, shape)
        return total / (weight + 1e-6 * weight.max())

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        """Return the predicted amplitude (J, N, N) of a batch [sqrt(photons)]."""
        return self.predict_amplitude(batch)[0]

    def forward_predict(
        self, x: Tensor, positions: Tensor, probe: Tensor, input_scale_factor: Tensor | float = 1.0
    ) -> Tensor:
        """Reconstruct object patches from patterns.

        Parameters
        ----------
        x : real tensor, shape (B, C, N, N)
            Amplitude; times ``input_scale_factor`` it is normalised for ``cnn`` and sqrt(photons) for
            ``unrolled``.
        positions : real tensor, shape (B, C, 1, 2) or (B, C, 2)
            Patch centres, (x, y) in the last axis, object pixels. ``cnn`` does not look at them.
        probe : complex tensor, shape (N, N), (P, N, N) or (B, C, P, N, N)
            Probe modes [sqrt(photons)]; of a batched probe the first entry serves all.
        input_scale_factor : tensor or float
            Factor on ``x``.

        Returns
        -------
        complex tensor, shape (B, C, N, N)
            Object patches [transmission], each in the frame of its own position.
        """
        if not architecture_of(self.core_config).whole_canvas:
            return self.generator(physics.filled_amplitude(x) * input_scale_factor)
        n_px = x.shape[-1]
        modes = probe.reshape(-1, *probe.shape[-3:])[0] if probe.ndim > 2 else probe[None]
        centres_yx = positions.reshape(-1, 2).flip(-1).cpu().double().numpy()
        plan = plan_canvas(centres_yx, n_px, multiple_px=CANVAS_MULTIPLE_PX)
        shape, shifts = plan.shape_yx, torch.from_numpy(plan.shifts_yx_px.astype(np.float32)).to(x)
        corners = torch.from_numpy(plan.corners_yx).to(x.device)
        probes = physics.shift_field(modes.to(self.probe.dtype), shifts)
        chunk = Chunk(corners, probes, (x * input_scale_factor).reshape(-1, n_px, n_px))
        obj = self.generator([chunk], physics.illumination(probes, corners, shape))
        patches = physics.extract_patches(obj, corners, n_px)
        return physics.shift_field(patches[:, None], -shifts)[:, 0].reshape(x.shape)

    def _loss(self, batch: dict[str, Tensor]) -> Tensor:
        if self.terms.supervised:
            return losses.supervised_loss(self._own_patches(batch), batch["labels"], self._light(batch))
        return losses.total_loss(self.terms, self.predict(batch))

    def _mixed_loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Return the loss; of what Lightning lets compute in half precision only the convolutions do."""
        device = batch["amplitude"].device.type
        if not torch.is_autocast_enabled(device):
            return self._loss(batch)
        self.generator.mixed_dtype = torch.get_autocast_dtype(device)
        try:
            with torch.autocast(device, enabled=False):
                return self._loss(batch)
        finally:
            self.generator.mixed_dtype = None

    def training_step(self, batch: dict[str, Tensor], batch_index: int) -> Tensor:
        """Return the loss of a batch and log it."""
        loss = self._mixed_loss(batch)
        self.log(self.loss_name, loss, on_step=False, on_epoch=True, batch_size=1)
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_index: int) -> Tensor:
        """Return the loss on patterns the network did not see, and log it."""
        loss = self._mixed_loss(batch)
        self.log(self.val_loss_name, loss, on_step=False, on_epoch=True, batch_size=1)
        return loss

    def configure_optimizers(self) -> Any:
        """Return optimiser and schedule from the training settings."""
        return build_optimizer(self, self.training_config)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the scale of the training scan and the epoch beside the weights."""
        checkpoint["scale_record"] = self.scale_record.to_dict() if self.scale_record else None
        checkpoint["probe_refined"] = self.probe_refined
        start = self.probe_start
        checkpoint["probe_start"] = None if start is None else torch.from_numpy(start)
        checkpoint["trained_epoch"] = asdict(self.trained_epoch) if self.trained_epoch else None

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Make room for the probe of the checkpoint and take its scale."""
        state = checkpoint["state_dict"]
        self.probe = torch.zeros_like(state["probe"], device=self.probe.device)
        self.probe_refined = bool(checkpoint.get("probe_refined", False))
        start = checkpoint.get("probe_start")
        self.probe_start = None if start is None else start.cpu().numpy()
        record = checkpoint.get("scale_record")
        self.scale_record = ScaleRecord.from_dict(record) if record else None
        epoch = checkpoint.get("trained_epoch")
        self.trained_epoch = TrainedEpoch(**epoch) if epoch else None


def _shape(batch: dict[str, Tensor]) -> tuple[int, int]:
    """Return the shape of the canvas of a batch."""
    return int(batch["shape"][0]), int(batch["shape"][1])


def _part(whole: Chunk, rows: Tensor) -> Chunk:
    """Return the patterns of a tile that a mask (J,) names."""
    probes = whole.probes if whole.probes.ndim == 4 else whole.probes.expand(len(rows), *whole.probes.shape)
    return Chunk(whole.corners_yx[rows], probes[rows], whole.amplitude[rows])
