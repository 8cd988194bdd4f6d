"""The training command: flags to settings to one library call, then the paths that were written."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptycho.cli.console import EXIT_FAILED, EXIT_OK, ConsoleProgress, run_command, typed_flags, with_dashes
from ptycho.cli.flags import CONTRACTS, DOMAINS, LOGGERS, training_parser
from ptycho.config.choices import COMMAND_DEFAULTS
from ptycho.errors import ConfigError
from ptycho.process.progress import Progress

if TYPE_CHECKING:
    from ptycho.config.config import PyTorchExecutionConfig, TrainingConfig
    from ptycho.run.pipeline import InferenceOutcome, TrainingOutcome

DEFAULT_BACKEND = "pytorch"
USAGE = (
    "Name a scan and a folder: --train_data_file scan.npz --output_dir run (or the legacy form: "
    "--ptycho_dir folder --config settings.json)."
)


def measurement_domain(values: dict[str, Any]) -> str | None:
    """Return what the flags say about the patterns, and take those flags out.

    Parameters
    ----------
    values : dict
        Parsed flags; changed in place.

    Returns
    -------
    {'counts', 'amplitude'} or None
        None where no flag says it.

    Raises
    ------
    ConfigError
        If a value is unknown or two flags contradict each other.
    """
    found = set()
    for name, known in (("measurement_domain", DOMAINS), ("scale_contract_version", CONTRACTS)):
        value = values.pop(name, None)
        if value is None:
            continue
        if value not in known:
            raise ConfigError(
                f"--{name.replace('_', '-')}: unknown value (got {value!r}, expected one of "
                f"{', '.join(known)}). Choose one of them."
            )
        found.add(known[value])
    if len(found) > 1:
        raise ConfigError(
            "--measurement-domain and --scale-contract-version contradict each other (got counts and "
            "amplitude, expected the same). Leave one of them out."
        )
    return found.pop() if found else None


def chosen_accelerator(values: dict[str, Any]) -> str | None:
    """Return the accelerator that the flags name, and take them out.

    Parameters
    ----------
    values : dict
        Parsed flags; changed in place.

    Returns
    -------
    str or None
        None where no flag says it.

    Raises
    ------
    ConfigError
        If the older and the newer flag contradict each other.
    """
    device, accelerator = values.pop("device", None), values.pop("accelerator", None)
    if device is None or accelerator in (None, "auto"):
        return device or accelerator
    if accelerator != device and {accelerator, device} != {"gpu", "cuda"}:
        raise ConfigError(
            f"--device and --accelerator contradict each other (got {device!r} and {accelerator!r}, "
            "expected the same). Leave --device out."
        )
    return accelerator


def chosen_logger(values: dict[str, Any], *, training: bool) -> str:
    """Return the logger that the flags name, and take them out.

    Parameters
    ----------
    values : dict
        Parsed flags; changed in place.
    training : bool
        Whether a logger is wanted by default.

    Returns
    -------
    str
        One of ``LOGGERS``; ``--disable-mlflow`` alone means ``none``.

    Raises
    ------
    ConfigError
        If the name is unknown, or MLflow is asked for and disabled.
    """
    disabled, asked = values.pop("disable_mlflow", False), values.pop("logger", None)
    if asked is not None and asked not in LOGGERS:
        raise ConfigError(
            f"--logger: unknown name (got {asked!r}, expected one of {', '.join(LOGGERS)}). Choose one of "
            "them."
        )
    if disabled and asked == "mlflow":
        raise ConfigError(
            "--logger and --disable-mlflow contradict each other (got mlflow and disabled, expected one of "
            "them). Leave --disable-mlflow out, or pass --logger csv."
        )
    if asked is not None:
        return asked
    from ptycho.run.mlflow_store import default_logger

    return default_logger() if training and not disabled else "none"


def settings_path(values: dict[str, Any]) -> Path | None:
    """Return the settings file that the flags name, and take the flag out.

    Parameters
    ----------
    values : dict
        Parsed flags; changed in place.

    Returns
    -------
    Path or None
        An existing file; None where no flag names one.

    Raises
    ------
    ConfigError
        If there is no such file.
    """
    path = values.pop("config", None)
    if path is not None and not path.is_file():
        raise ConfigError(
            f"--config: no such file (got {str(path)!r}, expected a settings file). Check the path."
        )
    return path


def execution_settings(
    values: dict[str, Any], *, training: bool, device: str = "auto"
) -> PyTorchExecutionConfig:
    """Take the flags that only steer the execution out of the parsed values.

    Parameters
    ----------
    values : dict
        Parsed flags; changed in place.
    training : bool
        Whether a logger is wanted by default.
    device : str
        Accelerator where no flag names one.

    Returns
    -------
    PyTorchExecutionConfig
        Checked settings.

    Raises
    ------
    ConfigError
        If a value is out of range.
    """
    from ptycho.config.config import PyTorchExecutionConfig, validate_execution_config

    values["accelerator"] = chosen_accelerator(values) or device
    logger = chosen_logger(values, training=training)
    own = {
        "accelerator",
        "num_workers",
        "deterministic",
        "enable_checkpointing",
        "checkpoint_save_top_k",
        "checkpoint_monitor_metric",
        "checkpoint_mode",
        "early_stop_patience",
        "inference_batch_size",
    }
    chosen = {name: values.pop(name) for name in own & values.keys()}
    steps = values.pop("accumulate_grad_batches", None)
    if steps is not None:
        chosen["accum_steps"] = steps
    # Processes that prepare batches stay for the whole training.
    chosen["persistent_workers"] = chosen.get("num_workers", 0) > 0
    config = PyTorchExecutionConfig(logger_backend=None if logger == "none" else logger, **chosen)
    validate_execution_config(config)
    return config


def training_settings(
    values: dict[str, Any],
    settings_file: Path | None,
    backend: str,
    execution: PyTorchExecutionConfig | None = None,
) -> TrainingConfig:
    """Return the settings of a training: flag before settings file before default.

    Parameters
    ----------
    values : dict
        Parsed flags without those of the execution.
    settings_file : Path or None
        YAML file.
    backend : str
        Backend of the command, unless flags or file name another.
    execution : PyTorchExecutionConfig, optional
        With it, settings that cannot work in a run are refused before the data file is looked at.

    Returns
    -------
    TrainingConfig
        Checked settings; N comes from the header of the data file.

    Raises
    ------
    PtychoError
        If a setting is unknown, missing or out of range.
    """
    from ptycho.config.config import (
        TrainingConfig,
        build_config,
        default_settings,
        flat_settings,
        load_yaml_config,
        merge_settings,
        validate_training_config,
    )
    from ptycho.data.optics import FileOptions
    from ptycho.files.overwrites import check_there
    from ptycho.files.reader import pattern_size
    from ptycho.run.engines import check_training_settings

    if values.pop("profile", None) == "ci":
        values = {"measurement_domain": "counts", "torch_loss_mode": "poisson", **values}
    domain = measurement_domain(values)
    if domain is not None:
        values["measurement_domain"] = domain
    from_file = load_yaml_config(settings_file) if settings_file is not None else {}
    defaults = {**default_settings(TrainingConfig), **COMMAND_DEFAULTS, "backend": backend}
    merged = merge_settings(defaults, from_file, values)
    for name in ("train_data_file", "output_dir"):
        if merged[name] is None:
            raise ConfigError(f"--{name} is missing (got nothing, expected a path). {USAGE}")
    config = build_config(TrainingConfig, merged)
    validate_training_config(config)
    if execution is not None:
        check_training_settings(config, execution)
    check_there(config.train_data_file, config.test_data_file, config.product_file)
    size = pattern_size(config.train_data_file, config.probe_key, FileOptions.of(config))
    if "N" not in flat_settings(from_file):
        config.model.N = size
    validate_training_config(config)
    return config


def run_training(
    config: TrainingConfig, execution: PyTorchExecutionConfig, progress: Progress, resume: Path | None = None
) -> TrainingOutcome:
    """Run one training through the pipeline, bridged through the backend's own settings.

    Parameters
    ----------
    config : TrainingConfig
        Settings.
    execution : PyTorchExecutionConfig
        Hardware, precision, logging.
    progress : Progress
        Told what goes on.
    resume : Path, optional
        Checkpoint to go on from.

    Returns
    -------
    TrainingOutcome
        Model, object, files and scores.
    """
    from ptycho.run.engines import pytorch_calls, require_backend
    from ptycho.run.pipeline import train

    require_backend(config.backend)
    native = None
    if config.backend == "pytorch":
        config, native = pytorch_calls("config_bridge").through_torch(config)
    return train(config, execution, native=native, progress=progress, resume=resume)


def report(outcome: TrainingOutcome | InferenceOutcome) -> None:
    """Print the scores and the paths that were written; the two pictures come last.

    Parameters
    ----------
    outcome : TrainingOutcome or InferenceOutcome
        What the pipeline returned.
    """
    found = outcome.reconstruction
    height, width = found.obj.shape
    print(f"reconstructed {len(found.members)} patterns to {height} x {width} px in {found.seconds:.1f} s")
    if outcome.scores:
        shown = ("complex_nrmse", "phase_psnr_db", "amplitude_ssim", "phase_ssim")
        print("against the known truth: " + ", ".join(f"{name} {outcome.scores[name]:.4g}" for name in shown))
    run_id = getattr(getattr(outcome, "result", None), "run_id", None)
    if run_id is not None:
        print(f"MLflow run {run_id}")
    for path in [*outcome.files[2:], *outcome.files[:2]]:
        print(path)


def exit_status(outcome: TrainingOutcome | InferenceOutcome, *, strict: bool) -> int:
    """Return the status a command ends with.

    Parameters
    ----------
    outcome : TrainingOutcome or InferenceOutcome
        What the pipeline returned.
    strict : bool
        Whether a failed verdict counts.

    Returns
    -------
    int
        0, or 3 for a failed verdict.
    """
    return EXIT_FAILED if strict and outcome.verdict.word == "failed" else EXIT_OK


def _run(values: dict[str, Any], backend: str, device: str) -> int:
    quiet, strict = values.pop("quiet", False), values.pop("strict", False)
    progress = Progress() if quiet else ConsoleProgress()
    legacy = values.pop("ptycho_dir", None)
    settings_file = settings_path(values)
    if legacy is not None:
        outcome = _run_legacy(values, legacy, settings_file, progress, device)
    else:
        from ptycho.files.overwrites import check_training

        resume = values.pop("resume", None)
        if resume is not None and not resume.is_file():
            raise ConfigError(
                f"--resume: no such file (got {str(resume)!r}, expected a checkpoint). Check the path."
            )
        execution = execution_settings(values, training=True, device=device)
        config = training_settings(values, settings_file, values.pop("backend", backend), execution)
        check_training(config, {"--config": settings_file})
        outcome = run_training(config, execution, progress, resume)
    if not quiet:
        report(outcome)
    return exit_status(outcome, strict=strict)


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
    """Run the command.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments; those of the process where none are given.
    backend : {'pytorch', 'tensorflow'}
        Backend where no flag and no settings file names one.
    prog : str
        Name shown in the help.
    device : {'auto', 'cpu'}
        Accelerator where no flag names one.

    Returns
    -------
    int
        0 done, 2 bad input, 3 a failed verdict with ``--strict``, 130 interrupted, 1 our fault.
    """
    words = with_dashes(sys.argv[1:] if argv is None else argv)
    parser = training_parser(prog, device)
    values = vars(parser.parse_args(words))
    debug = values.pop("debug", False)
    return run_command(lambda: _run(values, backend, device), debug=debug, typed=typed_flags(parser, words))
