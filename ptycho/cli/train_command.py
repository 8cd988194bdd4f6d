"""The training command: flags to settings to one library call, then the paths that were written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptycho.cli.console import ConsoleProgress, report, run_main
from ptycho.cli.flags import training_parser
from ptycho.cli.settings import (
    DEFAULT_BACKEND,
    execution_settings,
    read_settings,
    settings_path,
    settle_domain,
    stated_settings,
)
from ptycho.config.architectures import KNOWN
from ptycho.config.choices import (
    COMMAND_DEFAULTS,
    HIDDEN,
    HIDDEN_DEFAULTS,
    HIDDEN_PATIENCE,
    NO_NETWORK,
    PRETRAINED,
)
from ptycho.errors import ConfigError
from ptycho.process.progress import Progress

if TYPE_CHECKING:
    from ptycho.config.config import PyTorchExecutionConfig, TrainingConfig
    from ptycho.run.pipeline import TrainingOutcome

USAGE = (
    "Name a scan and a folder: --train_data_file scan.npz --output_dir run (or the legacy form: "
    "--ptycho_dir folder --config settings.json)."
)


def command_defaults(stated: Mapping[str, Any]) -> dict[str, Any]:
    """Return the defaults of a training command beside the settings that are ``stated``: a network of the
    whole canvas learns from hidden pixels unless another loss is named."""
    network = KNOWN.get(str(stated.get("architecture", COMMAND_DEFAULTS["architecture"])))
    loss = stated.get("torch_loss_mode", HIDDEN)
    if network is None or not network.whole_canvas or loss != HIDDEN:
        return dict(COMMAND_DEFAULTS)
    from ptycho.config.config import ModelConfig

    # That of the package has the default width; a network of another one is drawn from the seed.
    fits = stated.get("unrolled_width", ModelConfig.unrolled_width) == ModelConfig.unrolled_width
    drawn = stated.get("init_weights", PRETRAINED if fits else NO_NETWORK) == NO_NETWORK
    own = {name: value for name, value in HIDDEN_DEFAULTS.items() if not (drawn and name == "learning_rate")}
    return {**COMMAND_DEFAULTS, **own}


def training_settings(
    values: dict[str, Any],
    settings_file: Path | None,
    backend: str,
    execution: PyTorchExecutionConfig | None = None,
) -> TrainingConfig:
    """Return training settings: flag before settings file before default; N from the header of the data file.
    With ``execution`` they are checked before that file is looked at. Raise ``PtychoError`` where a setting
    is unknown, missing or out of range."""
    from ptycho.config.config import TrainingConfig
    from ptycho.data.optics import FileOptions
    from ptycho.files.overwrites import check_there
    from ptycho.files.reader import pattern_size
    from ptycho.run.checks import check_training_settings

    if values.pop("profile", None) == "ci":
        values = {"measurement_domain": "counts", "torch_loss_mode": "poisson", **values}
    settle_domain(values)
    required = {"train_data_file": "train_data_file", "output_dir": "output_dir"}
    defaults = {**command_defaults(stated_settings(values, settings_file)), "backend": backend}
    config, in_file = read_settings(TrainingConfig, values, settings_file, defaults, required, USAGE)
    if execution is not None:
        check_training_settings(config, execution, any_batch=False)
    further = config.further_scans
    check_there(
        config.train_data_file, *further, config.test_data_file, config.product_file, config.mask_file
    )
    size = pattern_size(config.train_data_file, config.probe_key, FileOptions.of(config))
    if "N" not in in_file:
        config.model.N = size
    return config


def _run(values: dict[str, Any], backend: str, device: str) -> int:
    quiet, strict = values.pop("quiet", False), values.pop("strict", False)
    progress = Progress() if quiet else ConsoleProgress()
    legacy = values.pop("ptycho_dir", None)
    settings_file = settings_path(values)
    if legacy is not None:
        outcome = _run_legacy(values, legacy, settings_file, progress, device)
    else:
        outcome = _train(values, settings_file, progress, backend, device)
    return report(outcome, quiet=quiet, strict=strict)


def _train(
    values: dict[str, Any], settings_file: Path | None, progress: Progress, backend: str, device: str
) -> TrainingOutcome:
    """Train through the pipeline; PyTorch is bridged through its own settings."""
    from ptycho.run.engines import pytorch_calls
    from ptycho.run.pipeline import train

    resume = values.pop("resume", None)
    if resume is not None and not resume.is_file():
        raise ConfigError(
            f"--resume: no such file (got {str(resume)!r}, expected a checkpoint). Check the path."
        )
    patience = values.get("early_stop_patience")
    execution = execution_settings(values, training=True, device=device)
    config = training_settings(values, settings_file, values.pop("backend", backend), execution)
    if config.torch_loss_mode == HIDDEN and patience is None:
        execution.early_stop_patience = HIDDEN_PATIENCE
    native = None
    if config.backend == "pytorch":
        config, native = pytorch_calls("config_bridge").through_torch(config)
    return train(
        config,
        execution,
        native=native,
        progress=progress,
        resume=resume,
        checked=True,
        also_read={"--config": settings_file},
    )


def _run_legacy(
    values: dict[str, Any], folder: Path, settings_file: Path | None, progress: Progress, device: str
) -> TrainingOutcome:
    output = values.pop("output_dir", None)
    execution = execution_settings(values, training=True, device=device)
    if values:
        mixed = ", ".join(f"--{name}" for name in sorted(values))
        raise ConfigError(
            f"--ptycho_dir: cannot be combined with {mixed} (expected only --config and --output_dir). "
            f"{USAGE}"
        )
    from ptycho.run.engines import pytorch_calls

    return pytorch_calls("train").train_folder(
        folder, config_path=settings_file, output_dir=output, execution_config=execution, progress=progress
    )


def main(
    argv: Sequence[str] | None = None,
    *,
    backend: str = DEFAULT_BACKEND,
    prog: str = "ptycho_train",
    device: str = "auto",
) -> int:
    """Run the command; ``backend`` and accelerator ``device`` count where no flag or settings file names one.
    Return the status as :func:`ptycho.cli.console.run_main`."""
    return run_main(training_parser(prog, device), lambda values: _run(values, backend, device), argv)
