"""The published network at its default width leaves its flat start and does not saturate."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ptycho.config.choices import AmpActivation, allowed
from ptycho.config.config import ModelConfig, PyTorchExecutionConfig, TrainingConfig
from ptycho.data.selection import training_groups
from ptycho.files.reader import open_scan
from ptycho.run.job import TrainingJob
from ptycho_torch import engine, optimizer
from ptycho_torch.generators import build_generator

GROUPS = 96
DEMO = Path(__file__).parents[2] / "datasets" / "demo_64.npz"


def saturated_share(folder: Path) -> float:
    """Share of phases within a tenth of the limit after one epoch at gridsize 2."""
    scan = open_scan(DEMO)
    config = TrainingConfig(
        ModelConfig(N=64, gridsize=2, architecture="cnn"),
        nepochs=1,
        batch_size=4,
        n_groups=GROUPS,
        output_dir=folder,
        backend="pytorch",
        torch_loss_mode="amplitude",
        intensity_scale_trainable=False,
    )
    execution = PyTorchExecutionConfig(logger_backend=None, enable_checkpointing=False, accelerator="cpu")
    groups, _ = training_groups(scan, config, validate=False)
    model = engine.fit(TrainingJob(config, execution, scan, groups)).model
    patterns = torch.from_numpy(np.sqrt(scan.raw.diff3d[groups.indices[:8]].astype(np.float32)))
    with torch.no_grad():
        phase = model.network_patches(patterns).angle().abs()
    return float((phase > 0.9 * np.pi).float().mean())


@pytest.mark.parametrize("activation", allowed(AmpActivation))
def test_the_amplitude_starts_near_one_half_whatever_its_activation(activation: str) -> None:
    """Where it starts at 0 no light is scattered, and the first steps saturate the network for good."""
    for gridsize, pad_object in ((1, True), (2, False)):
        model = ModelConfig(N=32, gridsize=gridsize, amp_activation=activation, pad_object=pad_object)
        patterns = torch.from_numpy(np.random.default_rng(0).random((4, gridsize**2, 32, 32), np.float32))
        with torch.no_grad():
            amplitude = build_generator(model, seed=1)(patterns).abs()
        assert 0.4 < float(amplitude.mean()) < 0.8


def test_the_default_width_does_not_saturate_in_its_first_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert saturated_share(tmp_path) < 0.05
    monkeypatch.setattr(optimizer, "base_rate", lambda rate, model: 3 * rate)
    assert saturated_share(tmp_path) > 0.05
