"""Every default of the two commands of the specification, and the line about a GPU that stands idle."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ptycho.cli.console import with_dashes
from ptycho.cli.flags import inference_parser, training_parser
from ptycho.cli.train_command import execution_settings, training_settings
from ptycho.config.choices import HIDDEN_PATIENCE
from ptycho.config.config import InferenceConfig
from ptycho.errors import ConfigError
from ptycho.process.progress import Progress
from ptycho.run.engines import choose_device, load_engine

Command = Callable[..., Any]
NO_GPU_LINE = "a GPU is present and not used: the CPU computes; pass --device cuda to use the GPU"
TRAINING = {
    "test_data_file": None,
    "nepochs": 100,
    "n_groups": 512,
    "gridsize": 2,
    "batch_size": 4,
    "accelerator": "cpu",
    "deterministic": True,
    "num_workers": 0,
    "learning_rate": 1e-3,
    "scheduler": "Default",
    "accum_steps": 1,
    "enable_checkpointing": True,
    "checkpoint_save_top_k": 1,
    "checkpoint_monitor_metric": "val_loss",
    "checkpoint_mode": "min",
    "early_stop_patience": 100,
    "measurement_domain": None,
    "probe_mask": False,
    "probe_mask_sigma": 1.0,
    "probe_mask_diameter": None,
    "log_patch_stats": False,
    "patch_stats_limit": None,
}
"""Training, as the specification lists it. ``--logger`` is MLflow where it is installed, as in its first
form; ``--torch_loss_mode`` came later, and these belong to its amplitude."""
HIDDEN = {
    "torch_loss_mode": "hidden",
    "nepochs": 12,
    "learning_rate": 2e-4,
    "unrolled_steps": 62,
    "unrolled_likelihood": "poisson",
}
OTHER = {
    "learning_rate": 1e-3,
    "torch_loss_mode": "amplitude",
    "nepochs": 100,
    "unrolled_steps": 22,
    "unrolled_likelihood": "amplitude",
}
"""Training by hidden pixels, what the commands do with a network of the whole canvas, and any other."""
INFERENCE = {
    "n_groups": None,
    "accelerator": "cpu",
    "num_workers": 0,
    "inference_batch_size": None,
    "varpro_scaling": False,
    "probe_mask": False,
    "measurement_domain": None,
    "log_patch_stats": False,
    "patch_stats_limit": None,
}
"""Inference; its first form took 32 patterns, the later one and this one take all."""


def _differing(table: dict[str, Any], *parts: Any) -> dict[str, Any]:
    """Return the settings that are not as the table says."""
    found = {name: getattr(part, name) for part in parts for name in table if hasattr(part, name)}
    return {name: found.get(name, "absent") for name in table if found.get(name, "absent") != table[name]}


def _training(scan: Path, *words: str, file: Path | None = None) -> tuple[Any, Any]:
    """Return the settings of a training command."""
    given = with_dashes(["--train_data_file", str(scan), "--output_dir", "out", *words])
    values = vars(training_parser("train", "cpu").parse_args(given))
    execution = execution_settings(values, training=True, device="cpu")
    return training_settings(values, file, "pytorch"), execution


def test_every_default_of_the_training_is_that_of_the_specification(small_scan: Path) -> None:
    config, execution = _training(small_scan, "--torch-loss-mode", "amplitude")
    assert _differing(TRAINING, config.model, config, execution) == {}
    assert _differing({**TRAINING, "nepochs": 99, "none": 1}, config.model, config, execution) == {
        "nepochs": 100,
        "none": "absent",
    }


@pytest.mark.parametrize(
    ("words", "table"),
    [
        ("", HIDDEN),
        ("--torch-loss-mode hidden", HIDDEN),
        ("--init-weights none", {**HIDDEN, "learning_rate": 1e-3}),
        ("--init-weights pretrained", HIDDEN),
        ("--unrolled-width 8", {**HIDDEN, "learning_rate": 1e-3}),
        ("--unrolled-width 8 --init-weights other", HIDDEN),
        ("--unrolled-width 24", HIDDEN),
        ("--torch-loss-mode amplitude", OTHER),
        ("--torch-loss-mode poisson", {**OTHER, "torch_loss_mode": "poisson"}),
        ("--profile ci", {**OTHER, "torch_loss_mode": "poisson"}),
        ("--architecture cnn", OTHER),
        ("--unrolled-steps 7 --max-epochs 3", {**HIDDEN, "unrolled_steps": 7, "nepochs": 3}),
    ],
)
def test_the_defaults_of_hidden_pixels_come_with_them(
    words: str, table: dict[str, Any], small_scan: Path
) -> None:
    config, _ = _training(small_scan, *words.split())
    assert _differing(table, config.model, config) == {}


@pytest.mark.parametrize(
    ("text", "table"),
    [
        ("torch_loss_mode: amplitude", OTHER),
        ("architecture: cnn", OTHER),
        ("model:\n  architecture: cnn", OTHER),
        ("nepochs: 4\nmodel:\n  unrolled_steps: 9", {**HIDDEN, "nepochs": 4, "unrolled_steps": 9}),
    ],
)
def test_a_settings_file_chooses_the_defaults_too(
    text: str, table: dict[str, Any], small_scan: Path, tmp_path: Path
) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(text, encoding="utf-8")
    config, _ = _training(small_scan, file=file)
    assert _differing(table, config.model, config) == {}


@pytest.mark.parametrize(
    ("words", "epochs"),
    [
        ("", HIDDEN_PATIENCE),
        ("--torch-loss-mode amplitude", 100),
        ("--architecture cnn", 100),
        ("--early-stop-patience 7", 7),
        ("--early-stop-patience 100", 100),
    ],
)
def test_a_training_by_hidden_pixels_waits_a_few_epochs_for_a_gain(
    words: str, epochs: int, small_scan: Path, monkeypatch: pytest.MonkeyPatch, require: Callable[[str], None]
) -> None:
    require("torch")
    from ptycho.cli import train_command
    from ptycho.run import pipeline

    waited: list[int] = []

    def noted(config: Any, execution: Any, **options: Any) -> Any:
        waited.append(execution.early_stop_patience)
        raise ConfigError("seen.")

    monkeypatch.setattr(pipeline, "train", noted)
    train_command.main(["--train-data-file", str(small_scan), "--output-dir", "out", *words.split()])
    assert waited == [epochs]


def test_every_default_of_the_inference_is_that_of_the_specification(tmp_path: Path) -> None:
    values = vars(inference_parser("inference", "cpu").parse_args([]))
    execution = execution_settings(values, training=False, device="cpu")
    assert values == {}
    from ptycho.config.config import ModelConfig

    config = InferenceConfig(ModelConfig(), tmp_path, tmp_path)
    assert _differing(INFERENCE, config.model, config, execution) == {}


def test_the_commands_of_the_specification_compute_on_the_cpu_and_our_own_choose(
    monkeypatch: pytest.MonkeyPatch, require: Callable[[str], None]
) -> None:
    require("torch")
    import ptycho_torch.inference
    import ptycho_torch.train
    from ptycho.cli import inference_command, train_command

    chosen: dict[str, str] = {}
    for module, command in ((ptycho_torch.train, train_command), (ptycho_torch.inference, inference_command)):
        with monkeypatch.context() as patch:
            patch.setattr(command, "_run", lambda values, backend, device: chosen.update(device=device))
            module.cli_main([])
            assert chosen == {"device": "cpu"}
            command.main([])
            assert chosen == {"device": "auto"}


class _Notes(Progress):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        """Keep a line."""
        self.lines.append(text)


def _fake_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


def _fake_tensorflow(monkeypatch: pytest.MonkeyPatch) -> None:
    from ptycho.tf.runtime import tf

    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [kind])


@pytest.mark.parametrize(("backend", "fake"), [("pytorch", _fake_torch), ("tensorflow", _fake_tensorflow)])
def test_a_gpu_that_is_not_used_is_named_with_its_flag(
    backend: str, fake: Callable[..., None], require: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    require({"pytorch": "torch"}.get(backend, backend))
    from ptycho.config.config import PyTorchExecutionConfig

    engine, notes = load_engine(backend), _Notes()
    choose_device(engine, PyTorchExecutionConfig(accelerator="cpu"), notes)
    assert notes.lines == []
    fake(monkeypatch)
    choose_device(engine, PyTorchExecutionConfig(accelerator="cpu"), notes)
    assert notes.lines == [NO_GPU_LINE]
    choose_device(engine, PyTorchExecutionConfig(accelerator="auto"), notes)
    assert len(notes.lines) == 1
