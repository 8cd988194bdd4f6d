"""Training on data in memory, as older programs ask for it; ``ptycho.workflows.components`` exports it."""

from __future__ import annotations

import copy
import logging
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from ptycho import loader, model_manager, params
from ptycho.config.config import (
    DEFAULT_N_GROUPS,
    InferenceConfig,
    PyTorchExecutionConfig,
    TrainingConfig,
    validate_effects,
    validate_execution_config,
    validate_training_config,
)
from ptycho.config.effects import changed, defaults_of, idle_settings, with_execution
from ptycho.data.prepare import mask_of, prepare_scan
from ptycho.data.scan import Scan
from ptycho.data.selection import training_groups
from ptycho.probe import set_probe_guess
from ptycho.process.interrupts import Terminated, ending_on_sigterm
from ptycho.process.progress import LoggedProgress
from ptycho.raw_data import RawData
from ptycho.run.engines import check_size, load_engine
from ptycho.run.job import Engine, TrainingJob, TrainingResult
from ptycho.run.pipeline import populate_legacy

logger = logging.getLogger(__name__)

NO_FOLDER = Path()
"""``output_dir`` of a caller who names the folder only when he saves."""


def create_ptycho_data_container(
    data: RawData | loader.PtychoDataContainer, config: TrainingConfig | InferenceConfig
) -> loader.PtychoDataContainer:
    """Group a scan as the settings say; scripts written for older versions call this. ``model``, ``n_groups``
    (at most one for each scan point), ``neighbor_count`` and ``seed`` are used; a container is returned as it
    is."""
    if isinstance(data, loader.PtychoDataContainer):
        return data
    wanted = data.n_patterns if config.n_groups is None else config.n_groups
    dataset = data.generate_grouped_data(
        config.model.N,
        K=config.neighbor_count,
        gridsize=config.model.gridsize,
        seed=config.seed,
        nsamples=wanted if config.enable_oversampling else min(wanted, data.n_patterns),
        enable_oversampling=config.enable_oversampling,
        neighbor_pool_size=config.neighbor_pool_size,
    )
    return loader.load(lambda: dataset, data.probeGuess)


def on_tensorflow(config: TrainingConfig) -> TrainingConfig:
    """Return a copy of the settings for TensorFlow; ``ptycho.workflows.components`` calls this."""
    changed = copy.copy(config)
    changed.backend = "tensorflow"
    return changed


def train_cdi_model(train_data: RawData, test_data: RawData | None, config: TrainingConfig) -> dict[str, Any]:
    """Train with TensorFlow and return the ``results`` of ``run_cdi_example``; scripts written for older
    versions call this."""
    return train_cdi_model_with_backend(train_data, test_data, on_tensorflow(config))


def train_cdi_model_with_backend(
    train_data: RawData,
    test_data: RawData | None,
    config: TrainingConfig,
    execution: PyTorchExecutionConfig | None = None,
) -> dict[str, Any]:
    """Train as :func:`train_cdi_model`, with the backend that the settings name; scripts written for older
    versions call this."""
    execution = execution or PyTorchExecutionConfig(logger_backend=None)
    config = _without_idle_settings(with_execution(config, execution))
    populate_legacy(config, LoggedProgress())
    validate_training_config(config, any_batch=True)
    validate_execution_config(execution)
    # A client always sends a dose; counts and files know theirs.
    known = copy.copy(config)
    known.nphotons = TrainingConfig.nphotons
    validate_effects(known, execution)
    engine = load_engine(config.backend)
    engine.check_settings(config, execution, {})
    scan = _scan(train_data, config, "the settings", config.model.N)
    test_scan = None
    if test_data is not None:
        test_scan = _scan(test_data, config, scan.name, scan.n_px)
    set_probe_guess(None, train_data.probe_modes)
    own = copy.copy(config)
    own.neighbor_count = max(config.neighbor_count, config.model.gridsize**2)
    if own.n_groups == DEFAULT_N_GROUPS:
        own.n_groups = scan.n_patterns
    result = _fitted(engine, own, execution, scan, test_scan)
    params.set("intensity_scale", scan.record.intensity_scale)
    return {
        "history": result.history,
        "history_epochs": list(range(len(result.history["train_loss"]))),
        "model_instance": result.model,
        "models": dict.fromkeys(model_manager.MODEL_NAMES, result.model),
        "intensity_scale": scan.record.intensity_scale,
        "backend": config.backend,
        "train_container": create_ptycho_data_container(train_data, own),
        "test_container": None if test_data is None else create_ptycho_data_container(test_data, own),
    }


CLIENT_SENDS = ("positions_provided", "probe_scale")
"""Settings that nothing here reads and that the window of Ptychodus holds, also where it hides them."""


def _without_idle_settings(config: TrainingConfig) -> TrainingConfig:
    """Put settings without effect beside the others back to their defaults."""
    own = copy.copy(config)
    own.model = copy.copy(config.model)
    found = []
    for item in idle_settings(own):
        for name in changed(item.part, item.names):
            if name == "nphotons" or (item.why != "has no effect" and name not in CLIENT_SENDS):
                continue
            setattr(item.part, name, defaults_of(item.part)[name])
            found.append(name)
    if not found:
        return config
    kind = own.model.model_type if own.model.model_type == "supervised" else own.model.architecture
    logger.warning("%s: left out, since it has no effect: %s", kind, ", ".join(sorted(found)))
    return own


def _scan(raw: RawData, config: TrainingConfig, where: str, n_px: int) -> Scan:
    """Decide the scale of a data set, and refuse patterns of another size."""
    name = Path(raw.source).name
    scan = prepare_scan(raw, domain=config.measurement_domain, mask=mask_of(config.model), name=name)
    check_size(scan, n_px, where)
    logger.info("%s: %s", name, scan.record.summary())
    return scan


def _fitted(
    engine: Engine,
    config: TrainingConfig,
    execution: PyTorchExecutionConfig,
    scan: Scan,
    test_scan: Scan | None,
) -> TrainingResult:
    """Train, and keep the model for ``model_manager.save``."""
    groups, validation = training_groups(scan, config, validate=test_scan is None)
    scratch = None
    if config.output_dir == NO_FOLDER:
        scratch = config.output_dir = _scratch_folder(scan)
        logger.info("training: checkpoints are kept in %s until the model is saved", scratch)
    job = TrainingJob(config, execution, scan, groups, validation, test_scan, progress=LoggedProgress())
    try:
        with ending_on_sigterm():
            result: TrainingResult = engine.fit(job)
    except Terminated:
        logger.warning("training: told to end; the last whole checkpoint stays in %s", config.output_dir)
        raise
    finally:
        # Only an empty folder goes: checkpoints in it outlive a run that fails.
        if scratch is not None:
            with suppress(OSError):
                scratch.rmdir()
    model_manager.remember(engine.to_bundle(result.model), scratch)
    return result


def _scratch_folder(scan: Scan) -> Path:
    """Make a folder for checkpoints beside the data file, or where this machine keeps temporary files."""
    prefix, source = "ptychopinn-training-", Path(scan.raw.source)
    if source.is_file():
        with suppress(OSError):
            return Path(tempfile.mkdtemp(prefix=prefix, dir=source.resolve().parent))
    return Path(tempfile.mkdtemp(prefix=prefix))
