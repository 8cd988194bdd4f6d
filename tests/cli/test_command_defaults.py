"""Every default of the two commands of the specification, and the line about a GPU that stands idle."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ptycho.cli.console import with_dashes
from ptycho.cli.flags import inference_parser, training_parser
from ptycho.cli.train_command import execution_settings, training_settings
from ptycho.config.config import InferenceConfig
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
form; ``--torch_loss_mode`` came later and is amplitude here."""
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


def test_every_default_of_the_training_is_that_of_the_specification(small_scan: Path) -> None:
    words = with_dashes(["--train_data_file", str(small_scan), "--output_dir", "out"])
    values = vars(training_parser("train", "cpu").parse_args(words))
    execution = execution_settings(values, training=True, device="cpu")
    config = training_settings(values, None, "pytorch")
    assert _differing(TRAINING, config.model, config, execution) == {}
    assert _differing({**TRAINING, "nepochs": 99, "none": 1}, config.model, config, execution) == {
        "nepochs": 100,
        "none": "absent",
    }


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
