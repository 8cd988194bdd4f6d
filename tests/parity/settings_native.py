"""The walk over the settings in the PyTorch form: a training run, then the reconstruction of a client."""

from __future__ import annotations

import importlib
import logging
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from settings_walk import Circumstances, Walk
from settings_worker import NETWORKS, Maker
from watched import Kept

from ptycho.data.npz import read_npz, write_npz
from ptycho.run.client import REFINE_VARIABLE
from ptycho_torch import config_params as native
from ptycho_torch.model import read_settings
from ptycho_torch.train import train_folder

LABELS = ("notes", "model_name", "experiment_name")
"""Words whose purpose is to be found in the checkpoint."""
CONTEXTS = {
    "momentum": {"optimizer": "sgd", "epochs": 2},
    "warmup_epochs": {"scheduler": "WarmupCosine", "epochs": 3},
    "min_lr_ratio": {"scheduler": "Cosine", "epochs": 3, "warmup_epochs": 0},
    "optimizer": {"weight_decay": 0.1},
    "gradient_clip_algorithm": {"gradient_clip_val": 1e-3},
    "amp_loss_coeff": {"amp_loss": "Total_Variation"},
    "phase_loss_coeff": {"phase_loss": "Total_Variation"},
    "amplitude_variance_coeff": {"amplitude_variance_loss": True},
}
PLATEAU = {"plateau_threshold": 0.9, "plateau_patience": 0}
PLATEAUED = {"scheduler": "Adaptive", "epochs": 3, **PLATEAU}
CONTEXTS |= dict.fromkeys(("plateau_factor", "plateau_min_lr", "plateau_patience"), PLATEAUED)
CONTEXTS["plateau_threshold"] = {**PLATEAUED, "plateau_threshold": 0.0, "learning_rate": 1e-4}
WITH_VALUE = {("scheduler", name): PLATEAU for name in ("Adaptive", "ReduceLROnPlateau")}
SITUATIONS = {"scheduler": {"epochs": 3}}
LEFT_OUT = {
    "object_big": "both values say the same of groups of one pattern, and clients send either",
    "cbam_encoder": "its other value is the default of the core form, which always passes",
}
SPELLINGS = {
    "K": ["neighbor_count"],
    "nll": ["nll_weight"],
    "mode": ["model_type"],
    "epochs": ["nepochs"],
    "loss_function": ["torch_loss_mode"],
}
SPELLINGS |= {"warmup_epochs": ["lr_warmup_epochs"], "min_lr_ratio": ["lr_min_ratio"]}
SPELLINGS |= {"n_devices": ["devices"], "device": ["accelerator"], "grid_size": ["gridsize"]}


class _Warned(logging.Handler):
    """Keeps what is doubted aloud."""

    def __init__(self, said: list[str]) -> None:
        super().__init__(logging.WARNING)
        self.said = said

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a line."""
        self.said.append(record.getMessage())


def _run(parts: dict[str, Any], folder: Path, scan: Path, progress: Kept) -> None:
    """Train as older programs do, and reconstruct as the client does."""
    api = importlib.import_module("ptycho_torch.api.base_api")
    warned, logger = _Warned(progress.said), logging.getLogger("ptycho_torch")
    logger.addHandler(warned)
    try:
        if parts["training"].output_dir == native.TrainingConfig.output_dir:
            parts = {**parts, "training": replace(parts["training"], output_dir=str(folder))}
        manager = api.ConfigManager(*parts.values())
        api.adopt_data(manager, 32, scan.name)
        outcome = train_folder(scan, existing_config=manager.to_tuple(), progress=progress)
        kept = read_settings(Path(parts["training"].output_dir) / "checkpoints" / "last.ckpt")[2]
        progress.note(repr([getattr(kept, name) for name in LABELS]))
        model = api.PtychoModel()
        model.model = outcome.result.model
        arrays = read_npz(scan)
        yx = np.stack([arrays["ycoords"], arrays["xcoords"]], axis=1)
        loader = api.PtychoDataLoader.from_np(arrays["diff3d"], arrays["probeGuess"], yx, manager)
        # A refinement would hide what a setting does to the network.
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(REFINE_VARIABLE, "off")
            found = api.InferenceEngine(manager, model).predict_and_stitch(loader)
        write_npz(folder / "predicted.npz", {"object": found.numpy()})
    finally:
        logger.removeHandler(warned)


def settings(architecture: str) -> dict[str, Any]:
    """Return the plain settings."""
    core = NETWORKS[architecture]
    channels = core.gridsize**2
    network = {name: getattr(core, name) for name in ("architecture", "unrolled_steps", "unrolled_width")}
    return {
        "data": native.DataConfig(
            N=32, C=channels, grid_size=(core.gridsize,) * 2, x_bounds=(0.0, 1.0), y_bounds=(0.0, 1.0)
        ),
        "model": native.ModelConfig(
            **(network if architecture == "unrolled" else {"n_filters_scale": 1}),
            C_model=channels,
            C_forward=channels,
        ),
        "training": native.TrainingConfig(
            epochs=1, device="cpu", num_workers=0, torch_loss_mode="amplitude", n_groups=20
        ),
        "inference": native.InferenceConfig(),
        "datagen": native.DatagenConfig(),
    }


def training(name: str, folder: Path, scans: dict[str, Path], architecture: str) -> Walk:
    """Return the walk over a training run and the reconstruction behind it."""
    run = folder / "run"
    paths = {
        "output_dir": str(run / "elsewhere"),
        "train_data_file": str(scans["other"]),
        "test_data_file": str(scans["other"]),
        "device": "cuda:0",
        "probe_mask_tensor": np.ones((32, 32)),
        "amp_activation": "relu",  # silu is swish here, and sigmoid the default of the other form
        "warmup_epochs": 1,
        "inference.batch_size": 5,
    }
    needs = Circumstances(CONTEXTS, WITH_VALUE, SITUATIONS, spellings=SPELLINGS)
    parts, kind = settings(architecture), f"native {architecture}"
    left_out = LEFT_OUT if architecture == "unrolled" else {}
    return Walk(name, kind, parts, _run, run, paths, scans, needs, left_out)


NATIVE: dict[str, Maker] = {f"native {name}": partial(training, architecture=name) for name in NETWORKS}
"""What is run -> who makes the walk over its settings."""
