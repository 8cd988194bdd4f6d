"""The model that was trained or loaded last in this process, as older programs save and call it."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ptycho import params
from ptycho.config.architectures import architecture_of
from ptycho.config.config import PyTorchExecutionConfig
from ptycho.data.canonical import CHUNK
from ptycho.data.prepare import mask_of, prepare_scan
from ptycho.data.probe_choice import network_gain
from ptycho.errors import BundleError, DataError
from ptycho.evaluation.verdict import announce, judge
from ptycho.geometry.batches import CHUNK_PIXELS
from ptycho.geometry.canvas import group_canvases, lay_on_canvas
from ptycho.networks.bundle import Bundle, read_bundle, write_bundle
from ptycho.physics import extract_patches, shift_field
from ptycho.probe import probe_window
from ptycho.process.interrupts import ending_on_sigterm
from ptycho.process.progress import LoggedProgress
from ptycho.run.client import client_options
from ptycho.run.engines import fitted_model, load_engine
from ptycho.run.pipeline import populate_legacy

if TYPE_CHECKING:
    from ptycho.data.raw import RawData
    from ptycho.data.reconstruction import Reconstruction
    from ptycho.data.scan import Scan
    from ptycho.run.job import Engine

__all__ = ["MODEL_NAMES", "DiffractionToObject", "ModelManager", "current_bundle", "remember", "save"]

MODEL_NAMES = ("autoencoder", "diffraction_to_obj")
"""Names under which older programs ask for a model; a bundle holds one network, which serves both."""


class DiffractionToObject:
    """A trained network of any backend behind the one method that Ptychodus calls. ``intensity_scale`` is the
    factor from the normalised amplitude of a container to what it takes."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self.intensity_scale = bundle.scale_record.intensity_scale if bundle.scale_record else 1.0
        self._model = load_engine("tensorflow").from_bundle(bundle)

    def predict(self, inputs: ArrayLike | Sequence[ArrayLike], **options: Any) -> NDArray[np.complex64]:
        """Reconstruct one patch (B, N, N, 1) for every group of patterns; Ptychodus calls this.

        ``inputs`` are the normalised amplitude times ``intensity_scale``, (B, N, N, C), and ``local_offsets``
        of the same container, (B, 1, 2, C) [object pixels]; single patterns (C = 1) need no offsets.
        ``options`` are accepted for callers of Keras and not used. A patch [transmission] is centred on the
        middle of the group; overlapping ones of a group are averaged, weighted with the light they saw. The
        network ``unrolled`` reconstructs the whole scan that the offsets belong to, whatever the groups; its
        patches are cut from that object. So are those of a network whose object is refined
        (``ptycho.run.client``), which needs the scan with its probe behind the offsets.
        """
        del options
        if architecture_of(self.bundle.model).whole_canvas:
            return self._cut_patches(inputs)
        amplitude, offsets_yx_px = self._checked(inputs)
        raw, indices = _behind(inputs)
        known = raw is not None and raw.probeGuess is not None
        if known and len(indices) == len(amplitude) and client_options(self.bundle.model):
            return self._cut_patches(inputs)
        populate_legacy(self.bundle.model, LoggedProgress())
        # Without the beam behind the offsets, its power is that of the training.
        scan = self._prepared(raw) if known else None
        gain = np.float32(1.0 if scan is None else network_gain(scan, self._model.trained_probe))
        groups, n_px, _, size = amplitude.shape
        step = max(1, CHUNK_PIXELS // (4 * size * n_px**2))
        patches = np.empty((groups, n_px, n_px, 1), np.complex64)
        for start in range(0, groups, step):
            rows = slice(start, start + step)
            patches[rows, ..., 0] = gain * self._patches(amplitude[rows], offsets_yx_px[rows])
        if scan is not None:
            self._reconstructed(scan, indices, {})
        return patches

    def _prepared(self, raw: RawData) -> Scan:
        """Return the scan that offsets belong to, after the checks."""
        return prepare_scan(raw, mask=mask_of(self.bundle.model), name=raw.source)

    def _reconstructed(
        self, scan: Scan, indices: NDArray[np.int64], options: dict[str, Any]
    ) -> Reconstruction:
        """Reconstruct some patterns of a scan with its own probe and the options of an engine."""
        chosen = np.intersect1d(indices, scan.usable)
        with ending_on_sigterm():
            return judged(load_engine("tensorflow"), self._model, scan, chosen, self.bundle.where, options)

    def _checked(self, inputs: Any) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """Return amplitude (B, N, N, C) and positions relative to the middle of the group (B, C, 2)."""
        parts = list(inputs) if isinstance(inputs, list | tuple) else [inputs]
        amplitude = np.asarray(parts[0], np.float32)
        model, where = self.bundle.model, self.bundle.where
        wanted = (model.N, model.N, model.gridsize**2)
        if amplitude.ndim != 4 or amplitude.shape[1:] != wanted:
            raise DataError(
                f"{where}: the patterns do not fit the model, which was trained on patterns of {model.N} px "
                f"with gridsize {model.gridsize} (got shape {amplitude.shape}, expected (groups, {model.N}, "
                f"{model.N}, {wanted[2]})). Set the pattern size and the gridsize of the training."
            )
        if len(parts) == 1 and model.gridsize == 1:
            return amplitude, np.zeros((len(amplitude), 1, 2))
        offsets = np.asarray(parts[1] if len(parts) == 2 else None, np.float64)
        if offsets.shape != (len(amplitude), 1, 2, wanted[2]):
            raise DataError(
                f"{where}: the offsets do not fit the patterns (got shape {offsets.shape}, expected "
                f"({len(amplitude)}, 1, 2, {wanted[2]})). Pass local_offsets of the same container."
            )
        return amplitude, -offsets[:, 0, ::-1].transpose(0, 2, 1)

    def _cut_patches(self, inputs: Any) -> NDArray[np.complex64]:
        """Reconstruct the scan behind the offsets; return the patch of every group, shape (B, N, N, 1)."""
        raw, indices = _behind(inputs)
        if raw is None or len(indices) != len(inputs[0]):
            raise DataError(
                f"{self.bundle.where}: this network reconstructs a whole scan at once (got offsets without a "
                "scan, or other patterns than theirs, expected those of one container). Pass X and "
                "local_offsets of the same container."
            )
        populate_legacy(replace(self.bundle.model, N=raw.N), LoggedProgress())
        scan = self._prepared(raw)
        found = self._reconstructed(scan, indices, client_options(self.bundle.model))
        positions = raw.positions_yx_px[indices].mean(axis=1)
        # A pattern that was left out may lie beside the object that the others make: no light fell there.
        obj, origin, n_px = found.obj, found.origin_yx_px, scan.n_px
        off = lay_on_canvas(positions, n_px, shape_yx=obj.shape, origin_yx_px=origin, reach_px=np.inf)
        room = max(0, int(np.ceil(np.abs(off.shifts_yx_px).max() - 0.5)))
        obj = np.pad(obj, room, constant_values=1.0)
        plan = lay_on_canvas(positions, n_px, shape_yx=obj.shape, origin_yx_px=origin - room)
        # The assembly of the client shifts back by the same transform: a periodic shift is undone exactly.
        patches = np.empty((len(positions), n_px, n_px, 1), np.complex64)
        for start in range(0, len(positions), CHUNK):
            rows = slice(start, start + CHUNK)
            cut = extract_patches(obj, plan.corners_yx[rows], n_px)
            patches[rows, ..., 0] = shift_field(cut[:, None], -plan.shifts_yx_px[rows])[:, 0]
        return patches

    def _patches(
        self, amplitude: NDArray[np.float32], offsets_yx_px: NDArray[np.float64]
    ) -> NDArray[np.complex64]:
        """Return the merged patch of every group, shape (B, N, N)."""
        from ptycho.tf import physics
        from ptycho.tf.runtime import device_name, tf

        model, n_px = self._model, self.bundle.model.N
        with tf.device(device_name("auto")):
            patches = model.network_patches(tf.constant(amplitude.transpose(0, 3, 1, 2)))
            patches = tf.reshape(patches, (-1, n_px, n_px))
            if amplitude.shape[-1] > 1:
                plan = group_canvases(offsets_yx_px, n_px)
                window = probe_window(n_px)
                shifts = tf.constant(plan.shifts_yx_px, tf.float32)
                probes = physics.shift_field(model.probe if window is None else tf.constant(window), shifts)
                merged = model.merge(patches, tf.constant(plan.corners_yx), shifts, probes, plan.shape_yx)
                side = plan.shape_yx[1]
                room = (side - n_px) // 2
                patches = tf.reshape(merged, (-1, side, side))[:, room : room + n_px, room : room + n_px]
            found: NDArray[np.complex64] = (patches * tf.cast(tf.exp(model.log_gain), tf.complex64)).numpy()
        return found


def _behind(inputs: Any) -> tuple[Any, Any]:
    """Return the data set that offsets were made from and its patterns of each group, or None twice."""
    offsets = inputs[1] if isinstance(inputs, list | tuple) and len(inputs) == 2 else None
    return getattr(offsets, "scan", None), getattr(offsets, "indices", None)


def judged(
    engine: Engine,
    model: Any,
    scan: Scan,
    indices: NDArray[np.int64],
    where: str,
    options: Mapping[str, Any],
) -> Reconstruction:
    """Reconstruct patterns of a scan with a model from ``where`` and the ``options`` of
    ``engine.reconstruct``, and log the verdict; ``ptycho.workflows.components`` calls this."""
    model, progress = fitted_model(engine, model, scan, f"the model {where}"), LoggedProgress()
    given = {"execution": PyTorchExecutionConfig(), "progress": progress, **options}
    found: Reconstruction = engine.reconstruct(model, scan, indices, **given)
    announce(judge(found.in_scan(scan)), progress)
    return found


@dataclass
class _Current:
    """What this process trained or loaded last."""

    bundle: Bundle | None = None
    scratch: Path | None = None


_current = _Current()


def remember(bundle: Bundle, scratch: Path | None = None) -> None:
    """Keep a model for :func:`save`, which removes the folder ``scratch`` with its checkpoints;
    ``ptycho.workflows.components`` calls this after training and loading."""
    _current.bundle, _current.scratch = bundle, scratch


def current_bundle() -> Bundle:
    """Return the model trained or loaded last, ``BundleError`` where there is none;
    ``ptycho.workflows.components`` calls this."""
    if _current.bundle is None:
        raise BundleError(
            "model_manager: this process has no trained model (got none, expected one). Call run_cdi_example "
            "or load_inference_bundle first."
        )
    return _current.bundle


def save(out_prefix: str | Path) -> Path:
    """Write the model trained last as ``<out_prefix>/<params 'h5_path'>.zip`` (``wts.h5.zip``),
    ``BundleError`` where there is none; Ptychodus calls this after a training run."""
    path = write_bundle(Path(out_prefix) / f"{params.get('h5_path')}.zip", current_bundle())
    if _current.scratch is not None:
        shutil.rmtree(_current.scratch, ignore_errors=True)
        _current.scratch = None
    return path


class ModelManager:
    """Models in files, as scripts written for older versions save and load them."""

    @staticmethod
    def save_multiple_models(
        models: Mapping[str, DiffractionToObject],
        base_path: str | Path,
        custom_objects: Any = None,
        intensity_scale: float | None = None,
    ) -> Path:
        """Write the one network that models share to ``<base_path>.zip``, ``BundleError`` where there is
        none; the last two parameters are not used. Scripts written for older versions call this."""
        del custom_objects, intensity_scale
        if not models:
            raise BundleError(f"{base_path}: no model to save (got {{}}, expected one or more). Pass models.")
        return write_bundle(f"{base_path}.zip", next(iter(models.values())).bundle)

    @staticmethod
    def load_multiple_models(
        base_path: str | Path, model_names: Iterable[str] | None = None
    ) -> dict[str, DiffractionToObject]:
        """Load ``MODEL_NAMES``, or some of them, from ``<base_path>.zip``; an unknown name is a ``KeyError``.
        Scripts written for older versions call this."""
        names = tuple(model_names or MODEL_NAMES)
        for name in names:
            if name not in MODEL_NAMES:
                raise KeyError(
                    f"{base_path}.zip: no model of this name (got {name!r}, expected one of "
                    f"{', '.join(MODEL_NAMES)}). Choose one."
                )
        model = DiffractionToObject(read_bundle(f"{base_path}.zip"))
        return dict.fromkeys(names, model)
