"""Training and inference from files to files, over an engine chosen by name.

The settings reach ``params.cfg`` before anything else happens; nothing in here reads it back.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho import params
from ptycho.config.choices import BUNDLE_NAME
from ptycho.config.config import (
    InferenceConfig,
    ModelConfig,
    PyTorchExecutionConfig,
    TrainingConfig,
    update_legacy_dict,
    validate_execution_config,
    validate_inference_config,
)
from ptycho.config.effects import with_execution
from ptycho.config.inference_effects import refuse_other_network, validate_inference_effects
from ptycho.data.npz import npz_headers
from ptycho.data.optics import NUMBERS, FileOptions
from ptycho.data.orientation import Orientation
from ptycho.data.probe_mask import mask_of
from ptycho.data.reconstruction import Reconstruction
from ptycho.data.scan import Scan
from ptycho.data.selection import Bounds, subsample, training_groups
from ptycho.errors import ConfigError, DataError
from ptycho.evaluation.verdict import Verdict, announce, judge
from ptycho.files.export import check_target, collect, export_optics, write_export
from ptycho.files.hdf5 import is_hdf5
from ptycho.files.overwrites import check_inference, check_there, check_training
from ptycho.files.reader import open_scan
from ptycho.process.interrupts import advising, ending_on_sigterm
from ptycho.process.isolation import untouched_process
from ptycho.process.progress import Progress
from ptycho.run.engines import (
    PRETRAINED_FILE,
    check_size,
    check_training_settings,
    choose_device,
    find_model,
    fitted_model,
    load_engine,
    masked_model,
    replacing_model,
    resume_advice,
)
from ptycho.run.job import TrainingJob, TrainingResult
from ptycho.run.orientation_search import check_search, find_orientation, turned_scan
from ptycho.run.outputs import (
    TRUTH_FLAG,
    prepare_folder,
    write_patch_stats,
    write_reconstruction,
    write_run_record,
    write_training_curves,
)
from ptycho.solver.options import RefineOptions

logger = logging.getLogger(__name__)


@dataclass
class TrainingOutcome:
    """What a training left behind.

    Attributes
    ----------
    result : TrainingResult
        Model, losses, checkpoints.
    reconstruction : Reconstruction
        Object of the training scan.
    files : list of Path
        Everything written, pictures first.
    scores : dict of str to float
        Against the truth, where the data file holds it.
    verdict : Verdict
        What the reconstruction is worth.
    """

    result: TrainingResult
    reconstruction: Reconstruction
    files: list[Path]
    scores: dict[str, float]
    verdict: Verdict


@dataclass
class InferenceOutcome:
    """What an inference left behind.

    Attributes
    ----------
    reconstruction : Reconstruction
        Object of the scan.
    files : list of Path
        Everything written, pictures first.
    scores : dict of str to float
        Against the truth, where the data file holds it.
    verdict : Verdict
        What the reconstruction is worth.
    """

    reconstruction: Reconstruction
    files: list[Path]
    scores: dict[str, float]
    verdict: Verdict


def populate_legacy(config: TrainingConfig | InferenceConfig | ModelConfig, progress: Progress) -> None:
    """Fill ``params.cfg`` from the settings, before anything else runs (CONFIG-001).

    Parameters
    ----------
    config : TrainingConfig, InferenceConfig or ModelConfig
        Settings of the run, once its pattern size is known.
    progress : Progress
        Told the one line that clients look for.
    """
    update_legacy_dict(params.cfg, config)
    model = config if isinstance(config, ModelConfig) else config.model
    groups = getattr(config, "n_groups", None)
    progress.note(f"✓ params.cfg populated: N={model.N}, gridsize={model.gridsize}, n_groups={groups}")


@ending_on_sigterm()
@untouched_process()
def train(
    config: TrainingConfig,
    execution: PyTorchExecutionConfig | None = None,
    *,
    scan: Scan | None = None,
    native: Mapping[str, Any] | None = None,
    bounds_yx: tuple[Bounds, Bounds] | None = None,
    progress: Progress | None = None,
    resume: Path | None = None,
) -> TrainingOutcome:
    """Train on a scan, reconstruct it, and write model, curves, object and pictures.

    Parameters
    ----------
    config : TrainingConfig
        Settings; ``train_data_file`` and ``output_dir`` are used.
    execution : PyTorchExecutionConfig, optional
        Hardware, precision, logging.
    scan : Scan, optional
        The training scan where it is open already.
    native : mapping, optional
        The backend's own configuration objects by name.
    bounds_yx : pair of pairs of float, optional
        See :func:`ptycho.data.selection.training_groups`.
    progress : Progress, optional
        Told what goes on; silent by default.
    resume : Path, optional
        Checkpoint to go on from.

    Returns
    -------
    TrainingOutcome
        Model, object, files and scores.

    Raises
    ------
    PtychoError
        If a setting or a file is wrong; nothing half-written stays.
    """
    progress, execution = progress or Progress(), execution or PyTorchExecutionConfig()
    config = with_execution(config, execution)
    populate_legacy(config, progress)
    engine = check_training_settings(config, execution, native)
    choose_device(engine, execution, progress)
    check_there(config.train_data_file if scan is None else None, config.test_data_file)
    check_training(config)
    folder = prepare_folder(config.output_dir)
    if scan is None:
        scan = _open(_given(config.train_data_file, "train_data_file"), config)
    check_size(scan, config.model.N, "the settings")
    _note_scale(scan, config, progress)
    test_scan = None
    if config.test_data_file is not None:
        test_scan = _open(config.test_data_file, config, product=False)
        check_size(test_scan, scan.n_px, str(config.train_data_file))
    with progress.phase("grouping", 1) as phase:
        validate = test_scan is None
        groups, validation = training_groups(scan, config, validate=validate, bounds_yx=bounds_yx)
        phase.update(1, groups=len(groups.indices))
    job = TrainingJob(config, execution, scan, groups, validation, test_scan, native or {}, progress, resume)
    kept, since_s = execution.enable_checkpointing, time.time()
    with (
        advising(lambda: resume_advice(config, checkpoints=kept, resumed=resume, since_s=since_s)),
        replacing_model(config, since_s),
    ):
        result = engine.fit(job)
    write_run_record(folder, config, execution, scan.record)
    from ptycho.networks.bundle import write_bundle

    bundle = write_bundle(folder / BUNDLE_NAME, engine.to_bundle(result.model))
    members = subsample(scan, config.n_subsample, config.subsample_seed)
    found = engine.reconstruct(result.model, scan, members, execution=execution, progress=progress)
    with progress.phase("writing", 1) as phase:
        verdict = judge(found, scan)
        used = Orientation(config.flip_positions or "", config.swap_positions)
        truth = _truth_file(config.train_data_file, used, progress)
        pictures, scores = write_reconstruction(folder, found, scan, truth, verdict=verdict)
        if config.log_patch_stats:
            pictures.append(write_patch_stats(folder, found, scan, config.patch_stats_limit))
        curves = write_training_curves(folder, result.history)
        phase.update(1)
    files = [*pictures, *curves, bundle, *result.checkpoints]
    if result.run_id is not None:
        engine.log_artifacts(result.run_id, folder, [path for path in files if path.suffix != ".npz"])
    announce(verdict, progress)
    return TrainingOutcome(result, found, files, scores, verdict)


def check_inference_settings(config: InferenceConfig, execution: PyTorchExecutionConfig) -> None:
    """Refuse settings of an inference that cannot work, or that nothing would read; no file is opened.

    Parameters
    ----------
    config : InferenceConfig
        Settings.
    execution : PyTorchExecutionConfig
        Accelerator and batch size.

    Raises
    ------
    ConfigError
        At the first one.
    """
    refinement(config)
    validate_inference_config(config)
    validate_execution_config(execution)
    validate_inference_effects(config, execution)
    if config.export is not None:
        check_target(config.export)


def refinement(config: InferenceConfig) -> RefineOptions | None:
    """Return the refinement that a configuration asks for.

    Parameters
    ----------
    config : InferenceConfig
        The ``refine_*`` settings.

    Returns
    -------
    RefineOptions or None
        None where no step is asked for.

    Raises
    ------
    ConfigError
        If a number is out of range, something is to be refined in no steps, or the model smooths exit waves.
    """
    options = RefineOptions(
        steps=config.refine_steps,
        probe=config.refine_probe,
        positions=config.refine_positions,
        frames=config.refine_frames,
        likelihood=config.refine_likelihood,
        tv=config.refine_tv,
        start=config.refine_start,
    )
    if not options.steps:
        return None
    sigma_px = config.model.gaussian_smoothing_sigma
    if sigma_px > 0:
        raise ConfigError(
            "refinement: its forward model smooths no exit wave (got a model with gaussian_smoothing_sigma "
            f"{sigma_px:g} px, expected 0). Leave out --refine, or train without --gaussian_smoothing_sigma."
        )
    return options


@ending_on_sigterm()
@untouched_process()
def infer(
    config: InferenceConfig,
    execution: PyTorchExecutionConfig | None = None,
    *,
    progress: Progress | None = None,
    stated: Collection[str] = (),
) -> InferenceOutcome:
    """Reconstruct a scan with a trained model, and write object and pictures.

    Parameters
    ----------
    config : InferenceConfig
        ``model_path``, ``test_data_file`` and ``output_dir`` are used; ``n_groups`` takes that many scan
        points.
    execution : PyTorchExecutionConfig, optional
        Accelerator and batch size.
    progress : Progress, optional
        Told what goes on; silent by default.
    stated : collection of str
        Network settings that a flag or a settings file names, even where they equal the default.

    Returns
    -------
    InferenceOutcome
        Object, files and scores.

    Raises
    ------
    PtychoError
        If a setting or a file is wrong; nothing half-written stays.
    """
    progress, execution = progress or Progress(), execution or PyTorchExecutionConfig()
    # The caller's settings stay his.
    config = copy.copy(config)
    engine = load_engine(config.backend)
    path = find_model(Path(config.model_path), config.backend)
    check_inference_settings(config, execution)
    choose_device(engine, execution, progress)
    check_inference(config)
    check_search(config)
    model = engine.load(path)
    refuse_other_network(config.model, engine.core_config(model), stated)
    validate_inference_effects(config, execution, engine.core_config(model))
    model = masked_model(engine, model, config.model, stated)
    folder = prepare_folder(config.output_dir)
    config.model = engine.core_config(model)
    update_legacy_dict(params.cfg, config)
    scan = _open(config.test_data_file, config)
    model = fitted_model(engine, model, scan, f"the model {path}")
    config.model = engine.core_config(model)
    populate_legacy(config, progress)
    used = Orientation(config.flip_positions or "", config.swap_positions)
    if config.find_orientation:
        used = _found_orientation(engine, scan, execution, progress)
        scan = turned_scan(scan, used)
    optics = None if config.export is None else export_optics(scan, FileOptions.of(config))
    _note_scale(scan, config, progress)
    epoch = engine.to_bundle(model).trained_epoch
    if epoch is not None:
        progress.note(epoch.found_in(path))
    wanted = config.n_groups if config.n_groups is not None else config.n_subsample
    members = subsample(
        scan, wanted, config.subsample_seed if config.subsample_seed is not None else config.seed
    )
    if len(members) < config.model.gridsize**2:
        raise DataError(
            f"{scan.name}: too few patterns for gridsize {config.model.gridsize} (got {len(members)}, "
            f"expected at least {config.model.gridsize**2}). Pass a larger --n_images."
        )
    found = engine.reconstruct(
        model,
        scan,
        members,
        execution=execution,
        progress=progress,
        patch_weighting=config.patch_weighting,
        fit_scale=config.varpro_scaling,
        refine=refinement(config),
        fit_probe=config.fit_probe,
    )
    limits = (config.phase_vmin, config.phase_vmax)
    with progress.phase("writing", 1) as phase:
        verdict = judge(found, scan)
        truth = _truth_file(Path(config.test_data_file), used, progress)
        pictures, scores = write_reconstruction(folder, found, scan, truth, limits, verdict=verdict)
        if config.log_patch_stats:
            pictures.append(write_patch_stats(folder, found, scan, config.patch_stats_limit))
        if optics is not None:
            pictures.append(write_export(config.export, collect(found, scan, optics)))
        write_run_record(folder, _with_orientation(config, used), execution, scan.record)
        phase.update(1)
    announce(verdict, progress)
    return InferenceOutcome(found, pictures, scores, verdict)


def _found_orientation(
    engine: Any, scan: Scan, execution: PyTorchExecutionConfig, progress: Progress
) -> Orientation:
    """Find out which way the positions run; as they are where that is not clear."""
    model = fitted_model(engine, engine.load(PRETRAINED_FILE), scan, "the pre-trained network")

    def reconstruct(turned: Scan, members: NDArray[np.int64], refine: RefineOptions) -> Reconstruction:
        found: Reconstruction = engine.reconstruct(
            model, turned, members, execution=execution, progress=Progress(), refine=refine, fit_probe=False
        )
        return found

    search = find_orientation(scan, reconstruct, progress)
    progress.note(search.line())
    return search.best if search.clear else Orientation()


def _with_orientation(config: InferenceConfig, used: Orientation) -> InferenceConfig:
    """Return the settings with the orientation that was found in the place of the search."""
    record = copy.copy(config)
    record.find_orientation = False
    record.flip_positions, record.swap_positions = used.flip or None, used.swap
    return record


def _truth_file(path: Path | None, used: Orientation, progress: Progress) -> Path | None:
    """Return the file that may hold the truth; its object lies in the frame of its own positions."""
    if path is None or used == Orientation():
        return path
    if not is_hdf5(path) and TRUTH_FLAG in npz_headers(path):
        progress.note(f"no scores: the truth of {path.name} lies in the frame of positions that were turned")
    return None


def _open(path: Path, config: TrainingConfig | InferenceConfig, *, product: bool = True) -> Scan:
    return open_scan(
        path,
        domain=config.measurement_domain,
        mask=mask_of(config.model),
        probe_key=config.probe_key,
        pattern_axis=config.pattern_axis,
        options=FileOptions.of(config, product=product),
    )


def _note_scale(scan: Scan, config: TrainingConfig | InferenceConfig, progress: Progress) -> None:
    """Tell the scale of a scan, and which optics nothing but an export looks at."""
    progress.note(scan.record.summary())
    stated = [flag for name, flag in NUMBERS.items() if getattr(config, name) is not None]
    in_metres = "source_format" in (scan.raw.metadata or {})
    if stated and not in_metres and getattr(config, "export", None) is None:
        progress.note(
            f"optics: {', '.join(stated)} stored with the run; positions in object pixels need none, the "
            "--export of an inference does"
        )


def _given(path: Path | None, name: str) -> Path:
    if path is None:
        raise ConfigError(f"training: {name} is missing (got None, expected an NPZ file). Pass --{name}.")
    return path
