"""Training, loading and stitching on data in memory, as older programs call them.

Ptychodus calls :func:`load_inference_bundle`, :func:`run_cdi_example` and :func:`save_outputs`. Every call
takes typed settings and fills ``params.cfg`` from them.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ptycho import model_manager, params
from ptycho.config.choices import BUNDLE_NAME
from ptycho.config.config import InferenceConfig, PyTorchExecutionConfig, TrainingConfig, update_legacy_dict
from ptycho.data.optics import Orientation, turned_data
from ptycho.data.prepare import mask_of, prepare_scan
from ptycho.errors import BundleError
from ptycho.evaluation.figures import save_reconstruction_pngs
from ptycho.networks.bundle import MANIFEST, read_bundle
from ptycho.raw_data import RawData
from ptycho.run.client import client_options
from ptycho.run.engines import ModelNotFoundError, find_model, load_engine
from ptycho.run.outputs import prepare_folder, write_training_curves
from ptycho.workflows.training import (
    create_ptycho_data_container,
    on_tensorflow,
    train_cdi_model,
    train_cdi_model_with_backend,
)

__all__ = [
    "create_ptycho_data_container", "load_data", "load_inference_bundle",
    "load_inference_bundle_with_backend", "reassemble_cdi_image", "run_cdi_example",
    "run_cdi_example_with_backend", "save_outputs", "train_cdi_model", "train_cdi_model_with_backend",
]  # fmt: skip

LEGACY_MANIFEST = "manifest.dill"
"""Member of the bundles of older programs, which hold pickled Python objects."""
Picture = NDArray[np.float32] | None


class Stitched(NamedTuple):
    """What a workflow returns to Ptychodus and scripts: two pictures or None, and everything else by name."""

    amplitude: Picture
    phase: Picture
    results: dict[str, Any]


def load_data(
    file_path: str | Path,
    n_images: int | None = None,
    n_subsample: int | None = None,
    flip_x: bool = False,
    flip_y: bool = False,
    swap_xy: bool = False,
    coord_scale: float = 1.0,
    subsample_seed: int | None = None,
) -> RawData:
    """Read a data set, or some of its patterns; scripts written for older versions call this. ``n_images``
    takes so many from the start, ``n_subsample`` at random instead, in their order, reproducibly with
    ``subsample_seed``. x and y of the positions are exchanged by ``swap_xy``, then flipped and both
    scaled; ``objectGuess``, which no longer fits, is left out then."""
    raw = RawData.from_file(file_path)
    if n_subsample is not None and n_subsample < raw.n_patterns:
        rng = np.random.default_rng(subsample_seed)
        raw = raw.subset(np.sort(rng.choice(raw.n_patterns, n_subsample, replace=False)))
    elif n_subsample is None and n_images is not None and n_images < raw.n_patterns:
        raw = raw.subset(np.arange(n_images))
    return _with_moved_positions(raw, (flip_x, flip_y), swap_xy=swap_xy, coord_scale=coord_scale)


def _with_moved_positions(
    raw: RawData, flip_xy: tuple[bool, bool], *, swap_xy: bool = False, coord_scale: float = 1.0
) -> RawData:
    flip = "".join(axis for axis, turned in zip("xy", flip_xy, strict=True) if turned)
    return turned_data(raw, Orientation(flip, swap_xy), coord_scale)


def run_cdi_example(
    train_data: RawData,
    test_data: RawData | None,
    config: TrainingConfig,
    flip_x: bool = False,
    flip_y: bool = False,
    transpose: bool = False,
    M: int = 20,
    do_stitching: bool = False,
) -> Stitched:
    """Train with TensorFlow on data in memory; Ptychodus calls this, then saves the model.

    While ``output_dir`` is empty, checkpoints lie in a folder ``ptychopinn-training-*`` beside the training
    data; ``model_manager.save`` removes it, a run that is told to end by SIGTERM leaves it.

    The probe of ``train_data`` is the one in force. ``test_data`` validates; None keeps a twentieth of the
    groups for that. ``n_groups`` left at its default, 512, takes one group for every scan point; any
    ``batch_size`` >= 1 will do; ``nphotons`` is not used, counts and files know their dose. The other
    parameters reconstruct the test scan too, see :func:`reassemble_cdi_image`.

    Returned are amplitude and phase [rad], float32 (H, W), or None unless ``do_stitching``, and ``results``:
    ``history`` (lists ``train_loss``, ``val_loss``), ``history_epochs``, ``model_instance``, ``models``,
    ``intensity_scale``, ``backend``, ``train_container``, ``test_container``; with ``do_stitching`` also
    those of :func:`reassemble_cdi_image`. Raise ``PtychoError`` where a setting or a data set is wrong,
    ``Terminated`` where the process is told to end.
    """
    config = on_tensorflow(config)
    return run_cdi_example_with_backend(
        train_data, test_data, config, flip_x, flip_y, transpose, M, do_stitching
    )


def run_cdi_example_with_backend(
    train_data: RawData,
    test_data: RawData | None,
    config: TrainingConfig,
    flip_x: bool = False,
    flip_y: bool = False,
    transpose: bool = False,
    M: int = 20,
    do_stitching: bool = False,
    torch_execution_config: PyTorchExecutionConfig | None = None,
) -> Stitched:
    """Train as :func:`run_cdi_example`, with the backend that the settings name; scripts written for older
    versions call this."""
    results = train_cdi_model_with_backend(train_data, test_data, config, torch_execution_config)
    if not do_stitching:
        return Stitched(None, None, results)
    chosen = train_data if test_data is None else test_data
    amplitude, phase, stitched = reassemble_cdi_image(chosen, config, flip_x, flip_y, transpose, M)
    return Stitched(amplitude, phase, {**results, **stitched})


def reassemble_cdi_image(
    test_data: RawData,
    config: TrainingConfig | InferenceConfig,
    flip_x: bool = False,
    flip_y: bool = False,
    transpose: bool = False,
    M: int = 20,
    coord_scale: float = 1.0,
) -> Stitched:
    """Reconstruct a scan with the model trained or loaded last; scripts written for older versions call this.

    Amplitude and phase [rad] are (H, W); ``results`` hold ``reconstructed_obj`` (H, W) and ``coverage`` (H,
    W). Of the settings ``measurement_domain``, ``backend`` and the probe mask are used. ``flip_x``,
    ``flip_y`` and ``coord_scale`` change the positions, ``transpose`` exchanges the axes of the result, ``M``
    is not used: overlapping patches are weighted with the light they saw. Raise ``BundleError`` where there
    is no model, ``DataError`` where the scan does not fit it.
    """
    del M
    bundle = model_manager.current_bundle()
    engine = load_engine(config.backend)
    raw = _with_moved_positions(test_data, (flip_x, flip_y), coord_scale=coord_scale)
    scan = prepare_scan(
        raw, domain=config.measurement_domain, mask=mask_of(bundle.model), name=Path(raw.source).name
    )
    options, model = client_options(bundle.model), engine.from_bundle(bundle)
    found = model_manager.judged(engine, model, scan, scan.usable, bundle.where, options)
    obj, coverage = (found.obj.T, found.coverage.T) if transpose else (found.obj, found.coverage)
    return Stitched(np.abs(obj), np.angle(obj), {"reconstructed_obj": obj, "coverage": coverage})


def save_outputs(
    amplitude: ArrayLike | None,
    phase: ArrayLike | None,
    results: Mapping[str, Any],
    output_prefix: str | Path,
) -> list[Path]:
    """Write pictures and loss curves to a folder; Ptychodus calls this after a training run. Amplitude and
    phase [rad] are (H, W) or (H, W, 1), or None for no pictures; ``history`` of the results is drawn where it
    is there."""
    folder = prepare_folder(output_prefix)
    files: list[Path] = []
    if amplitude is not None and phase is not None:
        obj = np.squeeze(np.asarray(amplitude)) * np.exp(1j * np.squeeze(np.asarray(phase)))
        files += save_reconstruction_pngs(obj, folder)
    return [*files, *write_training_curves(folder, results.get("history") or {})]


def load_inference_bundle(model_dir: str | Path) -> tuple[model_manager.DiffractionToObject, dict[str, Any]]:
    """Load a trained model and fill ``params.cfg`` from it; Ptychodus calls this before it reconstructs.

    The folder holds ``wts.h5.zip``, or the content of one, or a folder with either. The dictionary is a copy
    of ``params.cfg``, with ``N``, ``gridsize`` and ``intensity_scale``. Raise ``BundleError`` where there is
    no model (a ``FileNotFoundError`` too), or one that is damaged or of another program.
    """
    bundle = read_bundle(_bundle_in(Path(model_dir)))
    model = model_manager.DiffractionToObject(bundle)
    model_manager.remember(bundle)
    update_legacy_dict(params.cfg, bundle.model)
    params.set("intensity_scale", model.intensity_scale)
    return model, params.params()


def load_inference_bundle_with_backend(
    bundle_dir: str | Path, config: Any = None
) -> tuple[model_manager.DiffractionToObject, dict[str, Any]]:
    """Load a model of any backend as :func:`load_inference_bundle`, ``config`` unused; scripts written for
    older versions call this."""
    del config
    return load_inference_bundle(bundle_dir)


def _bundle_in(folder: Path) -> Path:
    """Find the one bundle in a folder or right below it."""
    if not folder.is_dir():
        raise BundleError(
            f"{folder}: no such folder (got {'a file' if folder.exists() else 'nothing'}, expected a folder "
            f"with {BUNDLE_NAME}). Choose the folder of a trained model."
        )
    for places in ([folder], sorted(path for path in folder.iterdir() if path.is_dir())):
        found = []
        for place in places:
            _refuse_legacy(place)
            with suppress(ModelNotFoundError):
                found.append(find_model(place, "tensorflow"))
        if len(found) > 1:
            raise BundleError(
                f"{folder}: which model is meant is not clear (got {', '.join(str(path) for path in found)}, "
                "expected one). Choose one of these folders."
            )
        if found:
            return found[0]
    names = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
    raise ModelNotFoundError(
        f"{folder}: no trained model in this folder (got {names}, expected {BUNDLE_NAME} or {MANIFEST}). "
        "Choose the folder of a trained model."
    )


def _refuse_legacy(folder: Path) -> None:
    """Refuse a bundle of pickled Python objects, packed or not."""
    packed = folder / BUNDLE_NAME
    inside: list[str] = []
    if packed.is_file() and zipfile.is_zipfile(packed):
        with zipfile.ZipFile(packed) as archive:
            inside = archive.namelist()
    if (folder / LEGACY_MANIFEST).is_file() or LEGACY_MANIFEST in inside:
        raise BundleError(
            f"{folder}: this model holds pickled Python objects, which can run any code (got "
            f"{LEGACY_MANIFEST}, expected {MANIFEST}). Train again with this version."
        )
