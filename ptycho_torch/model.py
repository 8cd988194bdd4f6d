"""The Lightning module: a generator, the probe, and the physics that turns measured patterns into a loss.

Its checkpoints are read without unpickling, and refused where a training run cannot go on from one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ptycho.data.scaling import ScaleRecord
from ptycho.errors import BundleError
from ptycho.geometry.canvas import CANVAS_MULTIPLE_PX, plan_canvas
from ptycho.networks.architectures import CORRECTION_FACTOR
from ptycho.networks.model import PatternModel
from ptycho.networks.schedule import TrainedEpoch
from ptycho.physics.losses import LossTerms
from ptycho.run.job import check_left, check_same_loss
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
        value = asdict(value)
    if isinstance(value, dict):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return True if hasattr(value, "shape") else str(value)


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


class PtychoPINN_Lightning(PatternModel, L.LightningModule):
    """Physics-informed network: patterns in, object out, trained on the patterns alone.

    Batches are those of ``ptycho_torch.data``.

    Parameters
    ----------
    model_config, data_config, training_config, inference_config : dataclass or dict
        Of ``ptycho_torch.config_params``, or their plain forms.
    seed : int
        Seed of the initial weights.
    """

    backend, chunk, physics, losses = "pytorch", Chunk, physics, losses

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
        n_px, trainable = self.core_config.N, self.model_config.intensity_scale_trainable
        self.register_buffer("probe", torch.zeros(1, n_px, n_px, dtype=torch.complex64))
        self.log_gain = nn.Parameter(torch.zeros(()), requires_grad=trainable)
        for name, weight in self.generator.named_parameters():
            weight.requires_grad_(self.learns(name.rpartition(".")[2]))

    def _array(self, values: NDArray[Any]) -> Tensor:
        return torch.from_numpy(values).to(self.probe.device)

    def _numpy(self, array: Tensor) -> NDArray[Any]:
        return array.detach().cpu().numpy()

    def snapshot(self) -> dict[str, Tensor]:
        """Return a copy of everything that training changes, on the CPU."""
        return {name: kept.detach().cpu().clone() for name, kept in self.state_dict().items()}

    def restore(self, snapshot: dict[str, Tensor]) -> None:
        """Go back to a copy of :meth:`snapshot`."""
        self.load_state_dict(snapshot, strict=True)

    def _probes(self, batch: dict[str, Tensor]) -> Tensor:
        probe = batch.get("probe", self.probe)
        shifts = batch["shifts"]
        moved = probe if shifts.abs().amax() < 1e-6 else physics.shift_field(probe, shifts)
        return physics.part_modes(moved, batch.get("part_turns"))

    def _illumination(self, batch: dict[str, Tensor]) -> Tensor:
        return batch.get("probe", self.probe).abs().square().sum(dim=0)

    @staticmethod
    def _flat(x: Tensor) -> Tensor:
        return x.reshape(-1, *x.shape[-2:])

    @staticmethod
    def _shape(batch: dict[str, Tensor]) -> tuple[int, int]:
        return int(batch["shape"][0]), int(batch["shape"][1])

    @staticmethod
    def _part(chunk: Chunk, rows: Tensor) -> Chunk:
        probes = chunk.probes if chunk.probes.ndim == 4 else chunk.probes.expand(len(rows), -1, -1, -1)
        placed = chunk.corners_yx[rows], probes[rows], chunk.amplitude[rows]
        return Chunk(*placed, detector=chunk.detector.of(rows))

    @property
    def gain(self) -> Tensor:
        """Trained factor on predicted amplitudes."""
        return self.log_gain.exp()

    @staticmethod
    def sums(
        patches: Tensor, corners: Tensor, shifts: Tensor, probes: Tensor, shape: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """Return the sum of overlapping patches on a canvas (H, W), weighted with the illumination, and the
        sum of the weights."""
        moved = physics.shift_field(patches[:, None], shifts)[:, 0]
        total = physics.weighted_patches(moved, corners, probes, shape)
        return total, physics.illumination(probes, corners, shape)

    def merge(self, *placed: Any) -> Tensor:
        """Average overlapping patches of a group on its canvas, as :meth:`sums`."""
        total, weight = self.sums(*placed)
        return total / (weight + 1e-6 * weight.max())

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        """Return the predicted amplitude (J, N, N) of a batch [sqrt(photons)]."""
        return self.predict(batch).predicted

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
        if not self.whole_canvas:
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

    def _mixed_loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Return the loss; of what Lightning lets compute in half precision only the convolutions do."""
        device = batch["amplitude"].device.type
        if not torch.is_autocast_enabled(device):
            return self.loss(batch)
        self.generator.mixed_dtype = torch.get_autocast_dtype(device)
        try:
            with torch.autocast(device, enabled=False):
                return self.loss(batch)
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

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Take over what ``state_dict`` of this version or a former one returned."""
        return super().load_state_dict(_completed(state_dict, self), strict, assign)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the scale of the training scan and the epoch beside the weights."""
        checkpoint["scale_record"] = self.scale_record.to_dict() if self.scale_record else None
        checkpoint["probe_refined"] = self.probe_refined
        start = self.probe_start
        checkpoint["probe_start"] = None if start is None else torch.from_numpy(start)
        checkpoint["trained_epoch"] = asdict(self.trained_epoch) if self.trained_epoch else None

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Make room for the probe of the checkpoint and take its scale."""
        self.probe = torch.zeros_like(checkpoint["state_dict"]["probe"], device=self.probe.device)
        self.probe_refined = bool(checkpoint.get("probe_refined", False))
        start = checkpoint.get("probe_start")
        self.probe_start = None if start is None else start.cpu().numpy()
        record = checkpoint.get("scale_record")
        self.scale_record = ScaleRecord.from_dict(record) if record else None
        epoch = checkpoint.get("trained_epoch")
        self.trained_epoch = TrainedEpoch(**epoch) if epoch else None


def _completed(state: Mapping[str, Any], model: PtychoPINN_Lightning) -> dict[str, Any]:
    """Return the state of a former version with the weights that it did not have and that change nothing."""
    own = model.state_dict()
    added = {name: torch.ones_like(own[name]) for name in own if name.endswith(CORRECTION_FACTOR)}
    return {**added, **state}


def damaged(path: Path, error: Exception) -> BundleError:
    """Return the error for a file that is no checkpoint, or was cut or changed; ``error`` is what reading it
    raised."""
    # What PyTorch says after its first sentence is advice to load the file unsafely.
    reason = " ".join(str(error).split()).split(". ")[0][:160]
    return BundleError(
        f"{path}: not a checkpoint of this toolkit, or damaged (got {type(error).__name__}: {reason}; "
        "expected the file a training run wrote). Choose another file, or train again."
    )


def read_settings(path: Path) -> tuple[Any, Any, Any, Any]:
    """Return new data, model, training and inference settings that a checkpoint was trained with;
    ``BundleError`` if it is damaged, no checkpoint of this toolkit, or of another version."""
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)["hyper_parameters"]
        plain = {name: stored[name] for name in CONFIG_TYPES}
    except Exception as error:
        raise damaged(path, error) from error
    return tuple(restore(name, value) for name, value in plain.items())


def check_resume(path: Path, model: PtychoPINN_Lightning, n_epochs: int) -> None:
    """Refuse a checkpoint before anything of it is taken over: ``BundleError`` if it is damaged or holds
    another network than ``model``, ``ConfigError`` if it has all of the ``n_epochs`` already or learned other
    weights by its loss."""
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        state = _completed(content["state_dict"], model)
        found = {name: tuple(value.shape) for name, value in state.items() if name != "probe"}
        trained, stored = int(content["epoch"]) + 1, content["hyper_parameters"]
        names = ("model_config", "training_config")
        loss = loss_mode(*(restore(name, stored[name]) for name in names))
    except Exception as error:
        raise damaged(path, error) from error
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items() if name != "probe"}
    other = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
    if other:
        name = other[0]
        raise BundleError(
            f"{path}: the checkpoint holds another network (got {name} with shape {found.get(name)}, "
            f"expected {expected.get(name)}). Pass the settings of the training that wrote it."
        )
    check_same_loss(path, loss, model.terms.kind)
    check_left(path, trained, n_epochs)
