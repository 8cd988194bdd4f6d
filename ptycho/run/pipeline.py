"""Training and inference from files to files, over an engine chosen by name.

The settings reach ``params.cfg`` before anything else happens; nothing in here reads it back.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho import params
from ptycho.config.architectures import architecture_of
from ptycho.config.choices import BUNDLE_NAME
from ptycho.config.config import (
    InferenceConfig,
    ModelConfig,
    PyTorchExecutionConfig,
    TrainingConfig,
    update_legacy_dict,
)
from ptycho.config.effects import refuse_other_network, with_execution
from ptycho.data.joined import check_same_beam, check_same_kind, join_scans
from ptycho.data.npz import npz_headers
from ptycho.data.optics import NUMBERS, FileOptions, Orientation
from ptycho.data.prepare import mask_of
from ptycho.data.reconstruction import PlacedReconstruction, Reconstruction
from ptycho.data.scan import Scan
from ptycho.data.selection import Bounds, subsample, training_groups
from ptycho.errors import ConfigError, DataError
from ptycho.evaluation.background import background_line
from ptycho.evaluation.corrections import position_correction
from ptycho.evaluation.phase import PhaseView
from ptycho.evaluation.verdict import Verdict, announce, judge
from ptycho.files.export import collect, export_optics, write_export
from ptycho.files.hdf5 import is_hdf5
from ptycho.files.overwrites import Inputs, check_inference, check_there, check_training
from ptycho.files.reader import open_scan
from ptycho.networks.bundle import write_bundle
from ptycho.process.interrupts import advising, ending_on_sigterm
from ptycho.process.isolation import untouched_process
from ptycho.process.progress import Progress
from ptycho.run.checks import (
    check_beginning,
    check_inference_settings,
    check_training_settings,
    refinement,
)
from ptycho.run.engines import (
    PRETRAINED_FILE,
    check_near_field,
    check_size,
    choose_device,
    find_model,
    fitted_model,
    initial_network,
    load_engine,
    masked_model,
    replacing_model,
    resume_advice,
)
from ptycho.run.job import Engine, TrainingJob, TrainingPart, TrainingResult
from ptycho.run.orientation_search import Trial, find_orientation, turned_scan
from ptycho.run.outputs import (
    TRUTH_FLAG,
    output_folder,
    scan_results,
    write_patch_stats,
    write_reconstruction,
    write_run_record,
    write_training_curves,
)
from ptycho.run.reconstruction import check_patch
from ptycho.run.scan_alignment import aligned_scan
from ptycho.run.selection import selection


@dataclass
class InferenceOutcome:
    """What an inference left behind."""

    reconstruction: Reconstruction
    files: list[Path]  # everything written, pictures first
    scores: dict[str, float]  # against the truth, where the data file holds it
    verdict: Verdict


@dataclass
class TrainingOutcome(InferenceOutcome):
    """What a training run left behind."""

    result: TrainingResult


def populate_legacy(config: TrainingConfig | InferenceConfig | ModelConfig, progress: Progress) -> None:
    """Fill ``params.cfg`` from settings with a known pattern size, before anything else runs (CONFIG-001).
    ``progress`` is told the one line that clients look for."""
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
    checked: bool = False,
    also_read: Inputs | None = None,
) -> TrainingOutcome:
    """Train on a scan, reconstruct it, and write model, curves, object and pictures.

    ``train_data_file`` and ``output_dir`` of the settings are used, the former unless ``scan``, the training
    scan, is open already. ``native`` holds the backend's own configuration objects by name, ``bounds_yx`` is
    as for :func:`ptycho.data.selection.training_groups`, ``progress`` is silent by default, ``resume`` a
    checkpoint to go on from. ``checked``: the settings have passed
    :func:`ptycho.run.checks.check_training_settings`, and their files are there. ``also_read`` are further
    files that no output may replace, by their flag. Raise ``PtychoError`` where a setting or a file is wrong;
    nothing half-written stays.
    """
    progress, execution = progress or Progress(), execution or PyTorchExecutionConfig()
    config = with_execution(config, execution)
    populate_legacy(config, progress)
    engine = load_engine(config.backend) if checked else check_training_settings(config, execution, native)
    choose_device(engine, execution, progress)
    if not checked:
        named = (config.train_data_file if scan is None else None, *config.further_scans)
        check_there(*named, config.test_data_file, config.mask_file)
    check_training(config, also_read)
    check_beginning(config, resume)
    with output_folder(config.output_dir) as folder:
        scans, test_scan = _training_scans(config, scan, progress)
        scan = scans[0]
        with progress.phase("grouping", 1) as phase:
            how = {"validate": test_scan is None, "bounds_yx": bounds_yx}
            parts = [TrainingPart(item, *training_groups(item, config, **how)) for item in scans]
            phase.update(1, groups=sum(len(part.groups.indices) for part in parts))
        options = {
            "native": native or {},
            "progress": progress,
            "resume": resume,
            "further": tuple(parts[1:]),
            "initial": None if resume is not None else initial_network(engine, config, progress),
        }
        job = TrainingJob(config, execution, *parts[0], test_scan, **options)
        result = _fitted(engine, job)
        write_run_record(folder, config, execution, scan.record)
        bundle = write_bundle(folder / BUNDLE_NAME, engine.to_bundle(result.model))
        indices = subsample(scan, config.n_subsample, config.subsample_seed)
        found = engine.reconstruct(result.model, scan, indices, execution=execution, progress=progress)
        with progress.phase("writing", 1) as phase:
            used = FileOptions.of(config).orientation
            pictures, scores, verdict = _write_object(folder, found.in_scan(scan), config, used, progress)
            curves = write_training_curves(folder, result.history)
            phase.update(1)
    files = [*pictures, *curves, bundle, *result.checkpoints]
    if result.run_id is not None:
        engine.log_artifacts(result.run_id, folder, [path for path in files if path.suffix != ".npz"])
    announce(verdict, progress)
    return TrainingOutcome(found, files, scores, verdict, result)


def _training_scans(
    config: TrainingConfig, scan: Scan | None, progress: Progress
) -> tuple[list[Scan], Scan | None]:
    """Open the scans to train on, the first unless it is open already, and the one that validates."""
    if scan is None:
        if config.train_data_file is None:
            raise ConfigError(
                "training: train_data_file is missing (got None, expected an NPZ file). "
                "Pass --train_data_file."
            )
        scan = _open(config.train_data_file, config)
    check_size(scan, config.model.N, "the settings")
    scans = [scan, *_further(config)]
    for item in scans:
        check_same_kind(scan, item)
        check_near_field(item, config.model)
        check_patch(item, item.probe, fits=architecture_of(config.model).whole_canvas)
        _note_scale(item, config, progress)
    if len(scans) > 1:
        progress.note(f"training on {len(scans)} scans; the reconstruction is that of {scan.name}")
    if config.test_data_file is None:
        return scans, None
    test_scan = _open(config.test_data_file, config, product=False)
    check_size(test_scan, scan.n_px, str(config.train_data_file))
    return scans, test_scan


def _fitted(engine: Engine, job: TrainingJob) -> TrainingResult:
    """Train; an interruption says how to continue, and a former model does not stand for the new run."""
    kept, since_s = job.execution.enable_checkpointing, time.time()
    with (
        advising(lambda: resume_advice(job.config, checkpoints=kept, resumed=job.resume, since_s=since_s)),
        replacing_model(job.config, since_s),
    ):
        result: TrainingResult = engine.fit(job)
        return result


@ending_on_sigterm()
@untouched_process()
def infer(
    config: InferenceConfig,
    execution: PyTorchExecutionConfig | None = None,
    *,
    progress: Progress | None = None,
    stated: Collection[str] = (),
    also_read: Inputs | None = None,
) -> InferenceOutcome:
    """Reconstruct a scan with a trained model, and write object and pictures.

    ``model_path``, ``test_data_file`` and ``output_dir`` of the settings are used; ``n_groups`` takes that
    many scan points. Of ``execution`` accelerator and batch size count, ``progress`` is silent by default.
    ``stated`` names network settings that a flag or a settings file names, even where they equal the default;
    ``also_read`` and errors are as for :func:`train`.
    """
    progress, execution = progress or Progress(), execution or PyTorchExecutionConfig()
    # The caller's settings stay his.
    config = copy.copy(config)
    check_inference(config, also_read)
    engine = load_engine(config.backend)
    path = find_model(Path(config.model_path), config.backend)
    check_inference_settings(config, execution)
    choose_device(engine, execution, progress)
    model = engine.load(path)
    refuse_other_network(config, execution, engine.core_config(model), stated)
    model = masked_model(engine, model, config.model, stated)
    config.model = engine.core_config(model)
    options = refinement(config)
    with output_folder(config.output_dir) as folder:
        update_legacy_dict(params.cfg, config)
        scans = [_open(config.test_data_file, config), *_further(config)]
        scan = scans[0]
        model = fitted_model(engine, model, scan, f"the model {path}")
        config.model = engine.core_config(model)
        populate_legacy(config, progress)
        used = FileOptions.of(config).orientation
        if config.find_orientation:
            used = _found_orientation(engine, scan, execution, progress)
            scans = [turned_scan(item, used) for item in scans]
        scan = _joined(engine, scans, config, execution, progress)
        optics = None if config.export is None else export_optics(scan, FileOptions.of(config))
        _note_scale(scan, config, progress)
        if (epoch := engine.to_bundle(model).trained_epoch) is not None:
            progress.note(epoch.found_in(path))
        found = engine.reconstruct(
            model,
            scan,
            _chosen_patterns(scan, config),
            execution=execution,
            progress=progress,
            refine=options,
            **_asked(config),
        )
        with progress.phase("writing", 1) as phase:
            placed = found.in_scan(scan)
            files, scores, verdict = _write_object(folder, placed, config, used, progress)
            if optics is not None:
                files.append(write_export(config.export, collect(placed, optics)))
            # The record names the orientation that was found in the place of the search.
            config.find_orientation = False
            config.flip_positions, config.swap_positions = used.flip or None, used.swap
            write_run_record(folder, config, execution, scan.record)
            phase.update(1)
    announce(verdict, progress)
    return InferenceOutcome(found, files, scores, verdict)


def _asked(config: InferenceConfig) -> dict[str, Any]:
    """Return what the settings ask of a reconstruction beside its refinement."""
    return {
        "select": selection(config.model) if config.select == "auto" else None,
        "patch_weighting": config.patch_weighting,
        "fit_scale": config.varpro_scaling,
        "fit_probe": config.fit_probe,
        "uncertainty": config.uncertainty,
    }


def _chosen_patterns(scan: Scan, config: InferenceConfig) -> NDArray[np.int64]:
    """Return the indices of the patterns to reconstruct, at least one group of them."""
    wanted = config.n_groups if config.n_groups is not None else config.n_subsample
    seed = config.subsample_seed if config.subsample_seed is not None else config.seed
    indices = subsample(scan, wanted, seed)
    if len(indices) < config.model.gridsize**2:
        raise DataError(
            f"{scan.name}: too few patterns for gridsize {config.model.gridsize} (got {len(indices)}, "
            f"expected at least {config.model.gridsize**2}). Pass a larger --n_images."
        )
    return indices


def _write_object(
    folder: Path,
    placed: PlacedReconstruction,
    config: TrainingConfig | InferenceConfig,
    used: Orientation,
    progress: Progress,
) -> tuple[list[Path], dict[str, float], Verdict]:
    """Write a reconstruction; return the files, the scores against a known truth, and the verdict."""
    verdict = judge(placed)
    if parts := scan_results(placed):
        told = ", ".join(f"{item['file']} {item['misfit'] or 0.0:.4g}" for item in parts)
        progress.note(f"scans: misfit of {told}")
    if (correction := position_correction(placed)) is not None:
        progress.note(correction.line(placed.scan.positions_yx_px[placed.rows]))
        if (caution := correction.caution()) is not None:
            progress.note(caution)
    if (told := background_line(placed)) is not None:
        progress.note(told)
    training = isinstance(config, TrainingConfig)
    source = config.train_data_file if training else Path(config.test_data_file)
    limits = (None, None) if training else (config.phase_vmin, config.phase_vmax)
    view = PhaseView(limits, config.unwrap, config.remove_ramp)
    truth = _truth_file(source, used, progress)
    files, scores = write_reconstruction(folder, placed, truth, view, verdict=verdict)
    if config.log_patch_stats:
        files.append(write_patch_stats(folder, placed, config.patch_stats_limit))
    return files, scores, verdict


def _found_orientation(
    engine: Engine, scan: Scan, execution: PyTorchExecutionConfig, progress: Progress
) -> Orientation:
    """Find out which way the positions run; as they are where that is not clear."""
    search = find_orientation(scan, _trial(engine, scan, execution), progress)
    progress.note(search.line())
    return search.best if search.clear else Orientation()


def _trial(engine: Engine, scan: Scan, execution: PyTorchExecutionConfig) -> Trial:
    """Return the reconstruction of trials that start from a flat object, without a word."""
    model = fitted_model(engine, engine.load(PRETRAINED_FILE), scan, "the pre-trained network")
    how = {"execution": execution, "progress": Progress(), "fit_probe": False}
    return partial(engine.reconstruct, model, **how)


def _joined(
    engine: Engine,
    scans: Sequence[Scan],
    config: InferenceConfig,
    execution: PyTorchExecutionConfig,
    progress: Progress,
) -> Scan:
    """Return the scans of an inference as one; a single one as it is."""
    if len(scans) == 1 or not config.align_scans:
        return join_scans(scans)
    for other in scans[1:]:
        check_same_beam(scans[0], other)
    return aligned_scan(scans, _trial(engine, scans[0], execution), progress)


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


def _further(config: TrainingConfig | InferenceConfig) -> list[Scan]:
    """Open the further scans of a run; a product that is named belongs to the first."""
    return [_open(Path(item), config, product=False) for item in config.further_scans]


def _note_scale(scan: Scan, config: TrainingConfig | InferenceConfig, progress: Progress) -> None:
    """Tell the scale of a scan, and which optics nothing but an export looks at."""
    progress.note(scan.record.summary())
    stated = [flag for name, flag in NUMBERS.items() if getattr(config, name) is not None]
    in_metres = "source_format" in (scan.raw.metadata or {})
    if stated and not in_metres and getattr(config, "export", None) is None:
        why = "positions in object pixels need none, the --export of an inference does"
        progress.note(f"optics: {', '.join(stated)} stored with the run; {why}")
