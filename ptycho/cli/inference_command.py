"""The inference command: flags to settings to one library call, then the paths that were written."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptycho.cli.console import EXIT_FAILED, EXIT_OK, ConsoleProgress, report, run_main
from ptycho.cli.flags import inference_parser
from ptycho.cli.settings import (
    DEFAULT_BACKEND,
    execution_settings,
    read_settings,
    settings_path,
    settle_domain,
    stated_settings,
)
from ptycho.errors import ConfigError
from ptycho.process.progress import Progress

if TYPE_CHECKING:
    from ptycho.config.config import PyTorchExecutionConfig

USAGE = (
    "Name a model, a scan and a folder: --model_path run --test_data scan.npz --output_dir pictures (or an "
    "MLflow run: --run_id ID --infer_dir folder)."
)
LEGACY = ("run_id", "infer_dir", "file_index", "mlruns")
SCAN_AND_MODEL = {"model_path": "model_path", "test_data_file": "test_data"}
"""Setting -> flag, which a model of an MLflow run does not take."""


def selects_by_default(stated: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings by which a command differs from the library, beside those that are ``stated``:
    hidden pixels choose where nobody does."""
    return {} if "select" in stated or stated.get("refine_steps") else {"select": "auto"}


def _run(values: dict[str, Any], backend: str, device: str) -> int:
    quiet, strict = values.pop("quiet", False), values.pop("strict", False)
    progress = Progress() if quiet else ConsoleProgress()
    legacy = {name: values.pop(name) for name in LEGACY if name in values}
    settings_file = settings_path(values)
    execution = execution_settings(values, training=False, device=device)
    settle_domain(values)
    chooses = selects_by_default(stated_settings(values, settings_file))
    if legacy:
        files = _run_legacy(legacy, {**chooses, **values}, settings_file, execution, progress)
        if not quiet:
            for path in files:
                print(path)
        return EXIT_FAILED if strict and _failed(files) else EXIT_OK
    from ptycho.config.config import InferenceConfig, ModelConfig
    from ptycho.run.pipeline import infer

    required = {**SCAN_AND_MODEL, "output_dir": "output_dir"}
    defaults = {**chooses, "backend": backend, "output_dir": None}
    config, in_file = read_settings(InferenceConfig, values, settings_file, defaults, required, USAGE)
    stated = (in_file | values.keys()) & {item.name for item in fields(ModelConfig)}
    also_read = {"--config": settings_file}
    outcome = infer(config, execution, progress=progress, stated=stated, also_read=also_read)
    return report(outcome, quiet=quiet, strict=strict)


def _run_legacy(
    legacy: dict[str, Any],
    values: dict[str, Any],
    settings_file: Path | None,
    execution: PyTorchExecutionConfig,
    progress: Progress,
) -> list[Path]:
    """Reconstruct with the model of an MLflow run."""
    from ptycho.run.engines import pytorch_calls

    given = ", ".join(f"--{name}" for name in legacy)
    for name in ("run_id", "infer_dir"):
        if name not in legacy:
            raise ConfigError(f"--{name} is missing (got only {given}, expected it too). {USAGE}")
    for name, flag in SCAN_AND_MODEL.items():
        if name in values:
            raise ConfigError(
                f"--{flag}: cannot be combined with {given} (got {str(values[name])!r}, expected the model "
                f"of an MLflow run and a folder). {USAGE}"
            )
    if values.pop("backend", "pytorch") != "pytorch":
        raise ConfigError(
            f"--backend: cannot be combined with {given} (got another one, expected pytorch, which made the "
            "model of an MLflow run). Leave it out."
        )
    files: list[Path] = pytorch_calls("inference").load_and_predict(
        legacy["run_id"],
        legacy["infer_dir"],
        relative_mlflow_path=legacy.get("mlruns", Path("mlruns")),
        config_override_path=settings_file,
        file_index=legacy.get("file_index", 0),
        save_dir=values.pop("output_dir", Path("inference/output")),
        settings=values,
        execution=execution,
        progress=progress,
    )
    return files


def _failed(files: list[Path]) -> bool:
    (metrics,) = (path for path in files if path.name == "metrics.json")
    return bool(json.loads(metrics.read_text(encoding="utf-8"))["verdict"] == "failed")


def main(
    argv: Sequence[str] | None = None,
    *,
    backend: str = DEFAULT_BACKEND,
    prog: str = "ptycho_inference",
    device: str = "auto",
) -> int:
    """Run the command, as :func:`ptycho.cli.train_command.main`."""
    return run_main(inference_parser(prog, device), lambda values: _run(values, backend, device), argv)
