"""What the model of every backend knows beside its network: the scan it is trained on, and what it lowers."""

from __future__ import annotations

from types import ModuleType
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ptycho.config.architectures import architecture_of
from ptycho.config.config import ModelConfig
from ptycho.data.probe_choice import TrainedProbe
from ptycho.data.scaling import ScaleRecord
from ptycho.networks.architectures import CORRECTION_FACTOR
from ptycho.networks.bundle import Bundle
from ptycho.networks.schedule import TrainedEpoch
from ptycho.physics.detector import Detector
from ptycho.physics.losses import LossTerms, monitored_loss

Array = Any


class Prediction(NamedTuple):
    """What a model makes of a batch."""

    predicted: Array  # (J, N, N), expected amplitude [sqrt(photons)]
    amplitude: Array  # (J, N, N), the measured one
    image: Array  # (H, W), canvas of ``unrolled``, or (J, N, N), patches of ``cnn`` [transmission]
    illumination: Array  # (H, W) or (N, N), illumination of the image [photons / pixel]
    patches: Array | None  # (J, N, N), in the frame of their own positions, where labels ask for them
    labels: Array | None  # (J, N, N), known patches
    patch_illumination: Array  # (N, N), illumination of a patch [photons / pixel]


def _detector(batch: dict[str, Array]) -> Detector:
    return Detector(batch.get("transfer"), batch.get("background"), batch.get("part_turns"))


def total_loss(terms: LossTerms, found: Prediction, losses: ModuleType) -> Array:
    """Return the weighted sum of the terms of a loss, dimensionless, with the ``losses`` of a backend; a term
    of weight 0 is not computed."""
    compared = found.predicted, found.amplitude
    weighted = [
        (terms.likelihood, losses.MAIN_TERMS[terms.kind], compared),
        (terms.mae, losses.MAIN_TERMS["mae"], compared),
        (terms.tv, losses.total_variation, (found.image, found.illumination)),
        (terms.labels, losses.label_error, (found.patches, found.labels, found.patch_illumination)),
    ]
    for penalty, part in ((terms.amplitude_penalty, abs), (terms.phase_penalty, losses.unit)):
        if penalty is not None:
            name, weight = penalty
            weighted.append((weight, losses.PENALTIES[name], (part(found.image), found.illumination)))
    return sum(weight * term(*given) for weight, term, given in weighted if weight)


class PatternModel:
    """Base of the models: what a batch, arrays by the names of ``ptycho.data.feed``, is compared with.

    A backend adds what depends on its arrays. ``_array`` makes one of a NumPy probe, ``_numpy`` goes back;
    ``snapshot`` copies what training changes, ``restore`` goes back to a copy;
    ``_probes`` are the modes moved to every position of a batch, in the parts of detector pixels (eq. 5b),
    ``_illumination`` is that of a patch (N, N) in the frame of its own position, ``_shape`` is (H, W) of its
    canvas; ``_flat`` makes (J, N, N) of (B, C, N, N), ``_part`` takes the patterns of a chunk that a mask
    (J,) names; ``gain`` is the trained factor on predicted amplitudes, and ``merge`` averages overlapping
    patches.
    """

    backend: ClassVar[str]
    chunk: ClassVar[type]
    physics: ClassVar[ModuleType]
    losses: ClassVar[ModuleType]
    core_config: ModelConfig
    generator: Any
    terms: LossTerms  # what training lowers
    probe: Array  # (P, N, N), of the training scan [sqrt(photons)]
    log_gain: Array  # logarithm of the factor on all predicted amplitudes
    scale_record: ScaleRecord | None = None  # of the training scan
    probe_refined: bool = False
    probe_start: NDArray[np.complex64] | None = None
    trained_epoch: TrainedEpoch | None = None

    @property
    def loss_name(self) -> str:
        """Name that the loss of an epoch is logged under."""
        return f"{self.terms.kind}_train_loss"

    @property
    def val_loss_name(self) -> str:
        """Name that the validation loss is logged under."""
        return f"{self.terms.kind}_val_loss"

    def monitored(self, asked: str, *, validated: bool) -> str:
        """Return which loss decides the best epoch, as :func:`ptycho.physics.losses.monitored_loss`; that of
        training where nothing is ``validated``."""
        chosen = monitored_loss(asked, self.terms.kind)
        return chosen if validated else "train_loss"

    def learns(self, name: str) -> bool:
        """Return whether training changes a weight of the table. How far a correction is to be trusted is a
        question of pixels that the network is not shown; other losses leave its factor alone."""
        return self.terms.hidden or name != CORRECTION_FACTOR

    @property
    def whole_canvas(self) -> bool:
        """True where the network sees a whole canvas, not a group of patterns."""
        return architecture_of(self.core_config).whole_canvas

    @property
    def trained_probe(self) -> TrainedProbe:
        """What the training run knew about the beam."""
        probe = self._numpy(self.probe)
        return TrainedProbe(probe, self.probe_start, self.probe_refined, self.scale_record)

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
        self.probe, self.probe_refined = self._array(probe), refined
        self.probe_start = start if refined else probe
        self.scale_record = record

    def begin_with(self, bundle: Bundle | None) -> None:
        """Take over the weights of a network that the training begins with, if any."""
        if bundle is not None:
            self.generator.import_weights(bundle.weights, bundle.where)

    def take(self, bundle: Bundle) -> None:
        """Take over the weights, probe and scale of a bundle of any backend; ``BundleError`` if a weight is
        missing, unknown, or of another shape."""
        self.generator.import_weights(bundle.weights, bundle.where)
        start = bundle.probe_start
        self.attach_scan(bundle.probe, bundle.scale_record, refined=bundle.probe_refined, start=start)
        self.trained_epoch = bundle.trained_epoch

    def to_bundle(self) -> Bundle:
        """Return the trained model as a bundle that every backend loads."""
        return Bundle(
            backend=self.backend,
            model=self.core_config,
            weights=self.generator.export_weights(),
            probe=self._numpy(self.probe),
            log_gain=float(self._numpy(self.log_gain)),
            probe_refined=self.probe_refined,
            scale_record=self.scale_record,
            probe_start=self.probe_start,
            trained_epoch=self.trained_epoch,
        )

    def network_patches(self, amplitude: Array, input_scale: float | None = None) -> Array:
        """Return the patches (B, C, N, N) of ``cnn`` [transmission], each in the frame of its own position,
        from measured ``amplitude`` (B, C, N, N) [sqrt(photons)], filled where nothing was measured, times
        ``input_scale`` (by default that of the training scan)."""
        if input_scale is None:
            input_scale = self.scale_record.input_scale if self.scale_record else 1.0
        return self.generator(self.physics.filled_amplitude(amplitude) * input_scale)

    def predict(self, batch: dict[str, Array]) -> Prediction:
        """Return what the model makes of the patterns that a batch compares with."""
        return self._predict_canvas(batch) if self.whole_canvas else self._predict_patches(batch)

    def loss(self, batch: dict[str, Array]) -> Array:
        """Return the loss of a batch, dimensionless."""
        if self.terms.supervised:
            return self.losses.supervised_loss(
                self._own_patches(batch), batch["labels"], self._illumination(batch)
            )
        return total_loss(self.terms, self.predict(batch), self.losses)

    def compared(self, batch: dict[str, Array]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return predicted and measured amplitude (J, N, N) of a batch [sqrt(photons)]; the latter is
        negative where nothing is compared."""
        found = self.predict(batch)
        return self._numpy(found.predicted), self._numpy(found.amplitude)

    def plain_loss(self, batch: dict[str, Array]) -> Array:
        """Return the loss of a batch for the object that its plain iterations found, without the network."""
        return total_loss(self.terms, self._predict_canvas(batch, learned=False), self.losses)

    def _own_patches(self, batch: dict[str, Array]) -> Array:
        """Return the patches of ``cnn``, shape (J, N, N), each in the frame of its own position."""
        return self._flat(self.network_patches(batch["amplitude"], batch.get("input_scale")))

    def _expected(self, patches: Array, probes: Array, detector: Detector, sigma_px: float = 0.0) -> Array:
        """Return the expected amplitude (J, N, N) [sqrt(photons)]; gain and smoothing are of the light."""
        predicted = self.physics.diffracted_amplitude(patches, probes, detector._replace(background=None))
        if sigma_px > 0:
            predicted = self.physics.smoothed_amplitude(predicted, sigma_px)
        return self.physics.with_background(predicted * self.gain, detector)

    def _predict_patches(self, batch: dict[str, Array]) -> Prediction:
        """Merge the patches of every group, where groups are merged, and predict its patterns."""
        patches, illumination = self._own_patches(batch), self._illumination(batch)
        probes, corners = self._probes(batch), batch["corners"]
        obj = self.merge(patches, corners, batch["shifts"], probes, self._shape(batch))
        seen = self.physics.extract_patches(obj, corners, self.core_config.N)
        sigma_px = self.core_config.gaussian_smoothing_sigma
        predicted = self._expected(seen, probes, _detector(batch), sigma_px)
        measured, labels = self._flat(batch["amplitude"]), batch.get("labels")
        return Prediction(predicted, measured, patches, illumination, patches, labels, illumination)

    def _predict_canvas(self, batch: dict[str, Array], *, learned: bool = True) -> Prediction:
        """Reconstruct a tile from what the network sees; compare with what is held out, if anything is. Not
        ``learned``: the object is what plain iterations made of the tile."""
        shifts, labels = batch["shifts"], batch.get("labels")
        seen = self.chunk(batch["corners"], self._probes(batch), batch["amplitude"])
        seen = validated = seen._replace(detector=_detector(batch))
        if "validated" in batch:
            chosen = batch["validated"]
            seen, validated = self._part(seen, batch["seen"]), self._part(seen, chosen)
            shifts, labels = shifts[chosen], None if labels is None else labels[chosen]
        illumination = self.physics.illumination(seen.probes, seen.corners_yx, self._shape(batch))
        obj = self._canvas_object(batch, seen, illumination) if learned else batch["start"][0]
        patches = self.physics.extract_patches(obj, validated.corners_yx, validated.probes.shape[-1])
        predicted = self._expected(patches, validated.probes, validated.detector)
        own = None if labels is None else self.physics.shift_field(patches[:, None], -shifts)[:, 0]
        measured = batch.get("compared", validated.amplitude)
        return Prediction(predicted, measured, obj, illumination, own, labels, self._illumination(batch))

    def _canvas_object(self, batch: dict[str, Array], seen: Any, illumination: Array) -> Array:
        """Return the object that the network makes of a chunk; where a batch brings what plain iterations
        made of it, only the learned steps are left."""
        if "start" not in batch:
            return self.generator([seen], illumination)
        obj, previous = batch["start"][0], batch["start"][1]
        return self.generator.learned_steps(obj, previous, [seen], illumination, turn=batch["turn"])
