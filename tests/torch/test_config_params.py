"""Settings of the PyTorch backend: names, defaults, pickling and helpers. Needs no framework."""

from __future__ import annotations

import dataclasses
import json
import logging
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ptycho.errors import ConfigError
from ptycho_torch import config_params as p

DATA = {
    "nphotons": 1e5,
    "scale_contract_version": "ci_intensity_v2",
    "measurement_domain": "count_intensity",
    "N": 64,
    "C": 4,
    "K": 6,
    "K_quadrant": 30,
    "n_subsample": 7,
    "subsample_seed": None,
    "grid_size": (2, 2),
    "neighbor_function": "Nearest",
    "min_neighbor_distance": 0.0,
    "max_neighbor_distance": 3.0,
    "scan_pattern": "Isotropic",
    "normalize": "Batch",
    "probe_scale": 4.0,
    "probe_normalize": True,
    "probe_ramp_removal": False,
    "data_scaling": "Parseval",
    "phase_subtraction": True,
    "x_bounds": (0.1, 0.9),
    "y_bounds": (0.1, 0.9),
}
MODEL = {
    "mode": "Unsupervised",
    "architecture": "cnn",
    "fno_modes": 12,
    "fno_width": 32,
    "fno_blocks": 4,
    "fno_cnn_blocks": 2,
    "learned_input_channels": 1,
    "fno_input_transform": "none",
    "max_hidden_channels": None,
    "resnet_width": None,
    "spectral_bottleneck_blocks": 6,
    "spectral_bottleneck_modes": 12,
    "spectral_bottleneck_share_weights": True,
    "spectral_bottleneck_gate_init": 0.1,
    "spectral_bottleneck_gate_mode": "shared",
    "generator_output_mode": "real_imag",
    "cnn_output_mode": "amp_phase",
    "unrolled_steps": 22,
    "unrolled_width": 24,
    "unrolled_likelihood": "amplitude",
    "intensity_scale_trainable": False,
    "intensity_scale": 10000.0,
    "max_position_jitter": 10,
    "num_datasets": 1,
    "C_model": 4,
    "C_forward": 4,
    "object_big": True,
    "probe_big": True,
    "offset": 6,
    "n_filters_scale": 2,
    "amp_activation": "silu",
    "batch_norm": False,
    "probe_mask": False,
    "probe_mask_tensor": None,
    "probe_mask_sigma": 1.0,
    "probe_mask_diameter": None,
    "edge_pad": 10,
    "decoder_last_c_outer_fraction": 0.125,
    "decoder_last_amp_channels": 1,
    "use_legacy_decoder_channel_override": False,
    "use_shared_decoder": False,
    "eca_encoder": False,
    "eca_decoder": False,
    "cbam_encoder": True,
    "cbam_bottleneck": False,
    "cbam_decoder": False,
    "spatial_decoder": False,
    "decoder_spatial_kernel": 7,
    "loss_function": "Poisson",
    "amp_loss": None,
    "phase_loss": None,
    "amp_loss_coeff": 1.0,
    "phase_loss_coeff": 1.0,
    "probe_reference_coeff": 0.0,
    "amplitude_variance_loss": False,
    "amplitude_variance_coeff": 0.01,
    "training_patch_weighting": "central_mask",
    "physics_forward_mode": "amplitude",
    "rect_s1s2_trainable": True,
    "rect_s1s2_init": "ones",
    "amplitude_physics_gain": 1.0,
    "pad_object": True,
    "gaussian_smoothing_sigma": 0.0,
}
TRAINING = {
    "training_directories": [],
    "epochs": 50,
    "batch_size": 16,
    "learning_rate": 1e-3,
    "num_workers": 4,
    "accum_steps": 1,
    "n_devices": 1,
    "epochs_fine_tune": 0,
    "fine_tune_gamma": 0.1,
    "gradient_clip_val": None,
    "gradient_clip_algorithm": "norm",
    "nll": True,
    "device": "cuda",
    "strategy": "auto",
    "framework": "Lightning",
    "orchestrator": "Mlflow",
    "optimizer": "adam",
    "momentum": 0.9,
    "weight_decay": 0.0,
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "scheduler": "Default",
    "warmup_epochs": 5,
    "min_lr_ratio": 0.1,
    "plateau_factor": 0.5,
    "plateau_patience": 2,
    "plateau_min_lr": 5e-5,
    "plateau_threshold": 0.0,
    "log_grad_norm": False,
    "grad_norm_log_freq": 1,
    "stage_1_epochs": 0,
    "stage_2_epochs": 0,
    "stage_3_epochs": 0,
    "physics_weight_schedule": "cosine",
    "stage_3_lr_factor": 0.1,
    "torch_loss_mode": "poisson",
    "torch_mae_pred_l2_match_target": False,
    "enable_staged_finetuning": False,
    "finetune_stage1_epochs": 7,
    "finetune_stage2_epochs": 7,
    "finetune_stage3_epochs": 5,
    "finetune_stage1_lr_decoder": 0.1,
    "finetune_stage2_lr_encoder_top": 0.01,
    "finetune_stage2_lr_decoder": 0.05,
    "finetune_stage2_lr_phase_head": 0.1,
    "finetune_stage3_lr_encoder_bottom": 0.005,
    "finetune_stage3_lr_encoder_top": 0.01,
    "finetune_stage3_lr_decoder": 0.02,
    "finetune_stage3_lr_phase_head": 0.05,
    "finetune_skip_stage3": True,
    "finetune_early_stop_patience": 3,
    "finetune_val_split": 0.05,
    "experiment_name": "Synthetic_Runs",
    "notes": "",
    "model_name": "PtychoPINNv2",
    "output_dir": "training_outputs",
    "train_data_file": None,
    "test_data_file": None,
    "n_groups": None,
}
INFERENCE = {
    "middle_trim": 32,
    "batch_size": 1000,
    "experiment_number": 0,
    "pad_eval": True,
    "window": 20,
    "patch_weighting": "probe",
    "varpro_scaling": True,
    "log_patch_stats": False,
    "patch_stats_limit": None,
}
DATAGEN = {
    "objects_per_probe": 4,
    "diff_per_object": 7000,
    "object_class": "dead_leaves",
    "image_size": (250, 250),
    "probe_paths": [],
    "beamstop_diameter": 4,
    "reim_mode": "histogram",
    "histogram_threshold": 0.05,
}
TABLES = [
    (p.DataConfig, DATA),
    (p.ModelConfig, MODEL),
    (p.TrainingConfig, TRAINING),
    (p.InferenceConfig, INFERENCE),
    (p.DatagenConfig, DATAGEN),
]
FROZEN_DATA = {"N", "C", "grid_size", "neighbor_function", "scan_pattern"}
FROZEN_MODEL = {
    "mode",
    "C_model",
    "C_forward",
    "n_filters_scale",
    "decoder_last_amp_channels",
    "use_shared_decoder",
    "eca_encoder",
    "eca_decoder",
    "cbam_encoder",
    "cbam_bottleneck",
    "cbam_decoder",
    "spatial_decoder",
    "object_big",
    "probe_big",
}


class _Mask:
    """Stands in for a tensor on an accelerator."""

    shape = (4, 4)
    place = "accelerator"

    def detach(self) -> _Mask:
        return self

    def cpu(self) -> _Mask:
        moved = _Mask()
        moved.place = "cpu"
        return moved


def _faults(cls: type, table: dict[str, Any]) -> list[str]:
    """Names whose default differs from the table in value or type, or that only one side has."""
    config = cls()
    actual = {item.name: getattr(config, item.name) for item in dataclasses.fields(cls)}
    return sorted(set(table) ^ set(actual)) + [
        name
        for name in table
        if name in actual and (table[name] != actual[name] or type(table[name]) is not type(actual[name]))
    ]


@pytest.mark.parametrize(("cls", "table"), TABLES)
def test_every_default_is_the_documented_one(cls: type, table: dict[str, Any]) -> None:
    assert _faults(cls, table) == []


def test_the_default_comparison_catches_a_planted_defect() -> None:
    assert _faults(p.DataConfig, {**DATA, "grid_size": [2, 2]}) == ["grid_size"]
    assert _faults(p.DataConfig, {**DATA, "extra": 0}) == ["extra"]


@pytest.mark.parametrize(("cls", "table"), TABLES)
def test_every_setting_is_a_keyword_can_be_assigned_and_survives_pickling(
    cls: type, table: dict[str, Any]
) -> None:
    config = cls(**table)
    for name in table:
        setattr(config, name, None)
    assert pickle.loads(pickle.dumps(config, protocol=4)) == config


def test_lists_are_not_shared_between_instances() -> None:
    p.TrainingConfig().training_directories.append("x")
    p.DatagenConfig().probe_paths.append("x")
    assert p.TrainingConfig().training_directories == []
    assert p.DatagenConfig().probe_paths == []


def test_constructors_accept_what_no_engine_would() -> None:
    data = p.DataConfig(N=0, C=3, grid_size=(5, 1), nphotons=-1.0)
    model = p.ModelConfig(probe_mask=None, mode="?", C_model=9)
    assert (data.N, model.probe_mask, model.C_model) == (0, None, 9)


@pytest.mark.parametrize("name", ["probe_mask", "probe_mask_tensor"])
def test_a_mask_tensor_is_brought_to_the_cpu(name: str) -> None:
    config = p.ModelConfig(**{name: _Mask()})
    assert getattr(config, name).place == "cpu"


def test_a_numpy_mask_is_kept() -> None:
    mask = np.ones((4, 4), np.float32)
    assert p.ModelConfig(probe_mask=mask).probe_mask is mask


def test_frozen_fields_are_those_that_a_trained_model_fixes() -> None:
    assert set(p.get_frozen_fields(p.DataConfig)) == FROZEN_DATA
    assert set(p.get_frozen_fields(p.ModelConfig())) == FROZEN_MODEL
    assert p.get_frozen_fields(p.TrainingConfig) == ()


def test_an_update_sets_known_fields_in_place_and_reports_the_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = p.DataConfig()
    with caplog.at_level(logging.INFO, logger=p.logger.name):
        unknown = p.update_existing_config(config, {"N": 128, "grid_sise": (1, 1)}, verbose=True)
    assert unknown == ("grid_sise",)
    assert (config.N, config.grid_size) == (128, (2, 2))
    assert not hasattr(config, "grid_sise")
    assert "Did you mean 'grid_size'?" in caplog.text
    assert "DataConfig: N = 128" in caplog.text


def test_a_json_file_fills_the_sections_and_the_network_follows_the_data(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text(
        json.dumps(
            {
                "data_config": {"C": 1, "grid_size": [1, 1], "x_bounds": [0, 1]},
                "model_config": {"C_model": 4, "object_big": True, "n_filters_scale": 1},
                "training_config": {"epochs": 3},
                "datagen_config": {"image_size": [10, 20]},
            }
        )
    )
    data, model, training, inference, datagen = p.load_json_configs(path)
    assert (data.C, data.grid_size, data.x_bounds) == (1, (1, 1), (0, 1))
    assert (model.C_model, model.C_forward, model.object_big, model.n_filters_scale) == (1, 1, False, 1)
    assert (training.epochs, datagen.image_size) == (3, (10, 20))
    assert inference == p.InferenceConfig()


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"data_config": 3}', '{"data_config": {"grid_size": 2}}', "\xff"]
)
def test_a_json_file_that_cannot_be_used_names_the_path(tmp_path: Path, text: str) -> None:
    path = tmp_path / "run.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"run\.json"):
        p.load_json_configs(path)


@pytest.mark.parametrize("module", ["ptycho_torch.config_params", "ptycho_torch.config_bridge"])
def test_the_import_loads_only_the_standard_library(module: str) -> None:
    code = (
        f"import sys, {module}; "
        "print(sorted({'numpy', 'torch', 'tensorflow', 'lightning', 'yaml', 'scipy'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")
