"""Typed configuration: defaults, pickling, rules, the legacy bridge and the order of precedence."""

from __future__ import annotations

import dataclasses
import pickle
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml

from ptycho.config import config as c
from ptycho.errors import ConfigError

REQUIRED = object()

MODEL = {
    "N": 64,
    "gridsize": 1,
    "n_filters_scale": 2,
    "model_type": "pinn",
    "architecture": "cnn",
    "fno_modes": 12,
    "fno_width": 32,
    "fno_blocks": 4,
    "fno_cnn_blocks": 2,
    "learned_input_channels": 1,
    "max_hidden_channels": None,
    "resnet_width": None,
    "fno_input_transform": "none",
    "generator_output_mode": "real_imag",
    "amp_activation": "sigmoid",
    "object_big": True,
    "probe_big": True,
    "probe_mask": False,
    "probe_mask_sigma": 1.0,
    "probe_mask_diameter": None,
    "pad_object": True,
    "probe_scale": 4.0,
    "gaussian_smoothing_sigma": 0.0,
    "unrolled_steps": 22,
    "unrolled_width": 24,
    "unrolled_likelihood": "amplitude",
    "cbam_encoder": False,
    "cbam_bottleneck": False,
    "cbam_decoder": False,
    "eca_encoder": False,
    "eca_decoder": False,
    "spatial_decoder": False,
    "decoder_spatial_kernel": 7,
}
TRAINING = {
    "model": REQUIRED,
    "train_data_file": None,
    "test_data_file": None,
    "batch_size": 16,
    "nepochs": 50,
    "mae_weight": 0.0,
    "nll_weight": 1.0,
    "realspace_mae_weight": 0.0,
    "realspace_weight": 0.0,
    "tv_weight": 0.0,
    "nphotons": 1e9,
    "n_groups": None,
    "n_images": None,
    "n_subsample": None,
    "subsample_seed": None,
    "neighbor_count": 4,
    "enable_oversampling": False,
    "neighbor_pool_size": None,
    "positions_provided": True,
    "probe_trainable": False,
    "intensity_scale_trainable": True,
    "output_dir": Path("training_outputs"),
    "sequential_sampling": False,
    "backend": "tensorflow",
    "torch_loss_mode": "poisson",
    "torch_mae_pred_l2_match_target": False,
    "gradient_clip_val": None,
    "gradient_clip_algorithm": "norm",
    "optimizer": "adam",
    "momentum": 0.9,
    "weight_decay": 0.0,
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "scheduler": "Default",
    "lr_warmup_epochs": 0,
    "lr_min_ratio": 0.1,
    "plateau_factor": 0.5,
    "plateau_patience": 2,
    "plateau_min_lr": 5e-5,
    "plateau_threshold": 0.0,
    "learning_rate": 1e-3,
    "init_weights": None,
    "seed": 42,
    "measurement_domain": None,
    "probe_key": None,
    "pattern_axis": None,
    "further_scans": (),
    "product_file": None,
    "photon_energy_eV": None,
    "detector_distance_m": None,
    "detector_pixel_m": None,
    "object_pixel_m": None,
    "propagation": None,
    "focus_distance_m": None,
    "fresnel_number": None,
    "flip_positions": None,
    "swap_positions": False,
    "match_lengths": "refuse",
    "centre_patterns": "auto",
    "mask_file": None,
    "saturation": None,
    "detector_upsampling": None,
    "probe_window": None,
    "keep_frames": False,
    "keep_pixels": False,
    "keep_probe_power": False,
    "unwrap": False,
    "remove_ramp": False,
    "log_patch_stats": False,
    "patch_stats_limit": None,
}
INFERENCE = {
    "model": REQUIRED,
    "model_path": REQUIRED,
    "test_data_file": REQUIRED,
    "n_groups": None,
    "n_images": None,
    "n_subsample": None,
    "subsample_seed": None,
    "neighbor_count": 4,
    "enable_oversampling": False,
    "neighbor_pool_size": None,
    "debug": False,
    "output_dir": Path("inference_outputs"),
    "backend": "tensorflow",
    "seed": 42,
    "measurement_domain": None,
    "probe_key": None,
    "pattern_axis": None,
    "further_scans": (),
    "product_file": None,
    "photon_energy_eV": None,
    "detector_distance_m": None,
    "detector_pixel_m": None,
    "object_pixel_m": None,
    "propagation": None,
    "focus_distance_m": None,
    "fresnel_number": None,
    "flip_positions": None,
    "swap_positions": False,
    "align_scans": True,
    "find_orientation": False,
    "match_lengths": "refuse",
    "centre_patterns": "auto",
    "mask_file": None,
    "saturation": None,
    "detector_upsampling": None,
    "probe_window": None,
    "keep_frames": False,
    "keep_pixels": False,
    "keep_probe_power": False,
    "unwrap": False,
    "remove_ramp": False,
    "log_patch_stats": False,
    "patch_stats_limit": None,
    "patch_weighting": "probe",
    "varpro_scaling": False,
    "phase_vmin": None,
    "phase_vmax": None,
    "fit_probe": None,
    "refine_steps": 0,
    "refine_probe": False,
    "refine_positions": False,
    "refine_affine": False,
    "refine_frames": False,
    "refine_background": False,
    "refine_likelihood": "amplitude",
    "refine_tv": 0.0,
    "select": "off",
    "refine_start": "network",
    "probe_modes": 0,
    "probe_variation": 0,
    "uncertainty": None,
    "export": None,
}
EXECUTION = {
    "accelerator": "auto",
    "devices": 1,
    "strategy": "auto",
    "deterministic": True,
    "precision": "32-true",
    "gradient_clip_val": None,
    "gradient_clip_algorithm": "norm",
    "accum_steps": 1,
    "num_workers": 0,
    "pin_memory": False,
    "persistent_workers": False,
    "prefetch_factor": None,
    "learning_rate": 1e-3,
    "scheduler": "Default",
    "enable_progress_bar": False,
    "enable_checkpointing": True,
    "checkpoint_save_top_k": 1,
    "checkpoint_monitor_metric": "val_loss",
    "checkpoint_mode": "min",
    "early_stop_patience": 100,
    "logger_backend": "csv",
    "recon_log_every_n_epochs": None,
    "recon_log_num_patches": 4,
    "recon_log_fixed_indices": None,
    "recon_log_stitch": False,
    "recon_log_max_stitch_samples": None,
    "ffno_encoder_blocks": 24,
    "ffno_encoder_modes": 12,
    "ffno_encoder_share_weights": True,
    "ffno_encoder_gate_init": 0.1,
    "ffno_encoder_norm": "instance",
    "ffno_encoder_mlp_ratio": 2.0,
    "spectral_bottleneck_blocks": 6,
    "spectral_bottleneck_modes": 12,
    "spectral_bottleneck_share_weights": True,
    "spectral_bottleneck_gate_init": 0.1,
    "spectral_bottleneck_gate_mode": "shared",
    "inference_batch_size": None,
    "middle_trim": 0,
    "pad_eval": False,
}
TABLES = [
    (c.ModelConfig, MODEL),
    (c.TrainingConfig, TRAINING),
    (c.InferenceConfig, INFERENCE),
    (c.PyTorchExecutionConfig, EXECUTION),
]
LEGACY_NAMES = {
    "object_big": "object.big",
    "probe_big": "probe.big",
    "probe_mask": "probe.mask",
    "probe_trainable": "probe.trainable",
    "intensity_scale_trainable": "intensity_scale.trainable",
    "positions_provided": "positions.provided",
    "output_dir": "output_prefix",
    "train_data_file": "train_data_file_path",
    "test_data_file": "test_data_file_path",
}


def _default_faults(cls: type, table: dict[str, Any]) -> list[str]:
    """Names whose default differs from the table in value or type, or that only one side has."""
    actual = {
        item.name: REQUIRED if item.default is dataclasses.MISSING else item.default
        for item in dataclasses.fields(cls)
    }
    faults = sorted(set(table) ^ set(actual))
    return faults + [
        name
        for name in table
        if name in actual and (table[name] != actual[name] or type(table[name]) is not type(actual[name]))
    ]


def _training(**changes: Any) -> c.TrainingConfig:
    return c.TrainingConfig(model=c.ModelConfig(), **changes)


@pytest.mark.parametrize(("cls", "table"), TABLES)
def test_every_default_is_the_documented_one(cls: type, table: dict[str, Any]) -> None:
    assert _default_faults(cls, table) == []


def test_the_default_comparison_catches_a_planted_defect() -> None:
    assert _default_faults(c.ModelConfig, {**MODEL, "probe_mask": True}) == ["probe_mask"]
    assert _default_faults(c.ModelConfig, {**MODEL, "pad_object": 1}) == ["pad_object"]
    assert _default_faults(c.ModelConfig, {**MODEL, "extra": 1}) == ["extra"]


def test_a_client_may_build_half_empty_objects_and_fill_them_after_pickling() -> None:
    model = c.ModelConfig(N=0, gridsize=5, probe_scale=0.0)
    training = c.TrainingConfig(model, train_data_file=Path(), output_dir=Path(), batch_size=3, nphotons=0)
    inference = c.InferenceConfig(model=model, model_path=Path(), test_data_file=Path(), debug=True)
    for config in (training, inference, c.PyTorchExecutionConfig(devices=0)):
        assert pickle.loads(pickle.dumps(config, protocol=4)) == config
    child = pickle.loads(pickle.dumps(training, protocol=4))
    child.model.N = 128
    assert (child.model.N, training.model.N) == (128, 0)


def test_the_import_loads_only_the_standard_library() -> None:
    code = (
        "import sys, ptycho.config.config; "
        "print(sorted({'numpy', 'torch', 'tensorflow', 'lightning', 'yaml', 'scipy'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_n_groups_falls_back_to_512_for_training_only() -> None:
    assert _training().n_groups == c.DEFAULT_N_GROUPS == 512
    assert _training(n_groups=7).n_groups == 7
    assert c.InferenceConfig(c.ModelConfig(), Path("m"), Path("t")).n_groups is None


def test_n_images_is_a_deprecated_name_of_n_groups() -> None:
    with pytest.warns(DeprecationWarning, match="n_groups") as caught:
        assert _training(n_images=9).n_groups == 9
    assert Path(caught[0].filename) == Path(__file__)
    with pytest.warns(DeprecationWarning, match="n_groups"):
        assert _training(n_images=9, n_groups=3).n_groups == 3
    with pytest.warns(DeprecationWarning, match="InferenceConfig"):
        assert c.InferenceConfig(c.ModelConfig(), Path("m"), Path("t"), n_images=5).n_groups == 5


# --- legacy bridge


def test_key_mappings_are_the_documented_ones_and_can_be_inverted() -> None:
    assert c.KEY_MAPPINGS == LEGACY_NAMES
    back = {legacy: name for name, legacy in c.KEY_MAPPINGS.items()}
    flat = c.dataclass_to_legacy_dict(_training(train_data_file=Path("a") / "b.npz"))
    named = {back.get(key, key): value for key, value in flat.items()}
    expected = {**MODEL, **TRAINING, "n_groups": 512, "train_data_file": "a/b.npz"}
    expected["output_dir"] = "training_outputs"
    del expected["model"]
    assert named == expected


def test_the_bridge_writes_in_place_keeps_what_none_would_erase_and_returns_nothing() -> None:
    cfg: dict[str, Any] = {"test_data_file_path": "kept.npz", "resnet_width": 8, "h5_path": "wts.h5"}
    cfg["N"] = 128
    config = _training(train_data_file=Path("x.npz"), output_dir=Path())
    assert c.update_legacy_dict(cfg, config) is None  # type: ignore[func-returns-value]
    assert cfg["test_data_file_path"] == "kept.npz"
    assert cfg["resnet_width"] == 8
    assert cfg["h5_path"] == "wts.h5"
    assert cfg["N"] == 64
    assert cfg["train_data_file_path"] == "x.npz"
    assert cfg["output_prefix"] == "."
    assert cfg["object.big"] is True
    assert cfg["probe.mask"] is False
    assert not {"model", "object_big", "output_dir", "n_subsample"} & set(cfg)
    assert not any(isinstance(value, Path) for value in cfg.values())


def test_the_bridge_accepts_each_data_configuration_and_refuses_execution_settings() -> None:
    cfg: dict[str, Any] = {}
    c.update_legacy_dict(cfg, c.ModelConfig(gridsize=3))
    c.update_legacy_dict(cfg, c.InferenceConfig(c.ModelConfig(gridsize=2), Path("m"), Path("t.npz")))
    assert (cfg["gridsize"], cfg["model_path"], cfg["test_data_file_path"]) == (2, "m", "t.npz")
    before = dict(cfg)
    for wrong in (c.PyTorchExecutionConfig(), c.ModelConfig, {"N": 64}, None):
        with pytest.raises(ConfigError, match=r"params\.cfg"):
            c.update_legacy_dict(cfg, wrong)
    assert cfg == before


def test_a_sealed_dictionary_warns_once_for_one_bridge_call() -> None:
    from ptycho import params

    saved = dict(params.cfg)
    params.seal()
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            c.update_legacy_dict(params.cfg, _training())
        assert len(caught) == 1
    finally:
        params.unseal()
        params.cfg.clear()
        params.cfg.update(saved)


# --- validators


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("N", 0),
        ("gridsize", 0),
        ("gridsize", 1.5),
        ("gridsize", True),
        ("n_filters_scale", 0),
        ("probe_scale", 0.0),
        ("probe_scale", float("nan")),
        ("probe_scale", "4"),
        ("gaussian_smoothing_sigma", -1e-9),
        ("probe_mask_sigma", -1),
        ("probe_mask_diameter", 0.0),
        ("model_type", "PINN"),
        ("amp_activation", "tanh"),
        ("fno_input_transform", "exp"),
        ("generator_output_mode", "complex"),
        ("resnet_width", 6),
        ("unrolled_steps", 0),
        ("unrolled_width", 0),
        ("unrolled_likelihood", "gauss"),
        ("object_big", "False"),
    ],
)
def test_a_network_setting_out_of_range_is_named_with_its_value(field: str, value: Any) -> None:
    model = c.ModelConfig(**{field: value})
    with pytest.raises(ConfigError) as caught:
        c.validate_model_config(model)
    assert f"model: {field} is {value!r}, expected " in str(caught.value)


def test_an_unknown_architecture_is_answered_with_the_closest_one() -> None:
    assert c.ARCHITECTURES == ("cnn", "unrolled")
    with pytest.raises(ValueError, match=r"'Unroled'.*cnn, unrolled\. Did you mean 'unrolled'\?"):
        c.validate_model_config(c.ModelConfig(architecture="Unroled"))
    with pytest.raises(ConfigError, match=r"'transformer'.*Use one of: cnn, unrolled"):
        c.validate_model_config(c.ModelConfig(architecture="transformer"))


def test_choices_are_listed_in_the_message() -> None:
    with pytest.raises(ConfigError, match="sigmoid, swish, softplus, relu"):
        c.validate_model_config(c.ModelConfig(amp_activation="tanh"))  # type: ignore[arg-type]


@pytest.mark.parametrize("batch_size", [1, 2, 16, 1024])
def test_powers_of_two_are_batch_sizes(batch_size: int) -> None:
    c.validate_training_config(_training(batch_size=batch_size))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("batch_size", 0),
        ("batch_size", -4),
        ("batch_size", 3),
        ("batch_size", 12),
        ("batch_size", 16.0),
        ("batch_size", True),
        ("batch_size", None),
        ("nepochs", 0),
        ("mae_weight", 1.01),
        ("nll_weight", -0.1),
        ("nphotons", 0),
        ("nphotons", float("inf")),
        ("backend", "jax"),
        ("torch_loss_mode", "mse"),
        ("optimizer", "lion"),
        ("scheduler", "cosine"),
        ("gradient_clip_algorithm", "max"),
        ("n_groups", 0),
        ("neighbor_count", 0),
        ("learning_rate", 0.0),
        ("measurement_domain", "intensity"),
        ("seed", -1),
        ("realspace_mae_weight", -1.0),
        ("positions_provided", "yes"),
    ],
)
def test_a_training_setting_out_of_range_is_named_with_its_value(field: str, value: Any) -> None:
    config = _training(**{field: value})
    with pytest.raises(ConfigError) as caught:
        c.validate_training_config(config)
    assert f"training: {field} is {value!r}, expected " in str(caught.value)


def test_training_rules_reach_the_network_and_pairs_of_settings() -> None:
    with pytest.raises(ConfigError, match="model: gridsize is 0"):
        c.validate_training_config(c.TrainingConfig(model=c.ModelConfig(gridsize=0)))
    with pytest.raises(ConfigError, match="realspace_weight is 0"):
        c.validate_training_config(_training(realspace_mae_weight=0.1))
    c.validate_training_config(_training(realspace_mae_weight=0.1, realspace_weight=0.2))


def test_a_model_path_is_a_trained_directory_a_file_or_a_name_without_zip(tmp_path: Path) -> None:
    def check(path: Path) -> None:
        c.validate_inference_config(c.InferenceConfig(c.ModelConfig(), path, Path("t.npz")))

    with pytest.raises(ConfigError, match=r"holds no trained model \(got nothing"):
        check(tmp_path)
    with pytest.raises(ConfigError, match="does not exist"):
        check(tmp_path / "wts.h5")
    (tmp_path / "wts.h5.zip").touch()
    for good in (tmp_path, tmp_path / "wts.h5", tmp_path / "wts.h5.zip"):
        check(good)
    (tmp_path / "unpacked").mkdir()
    (tmp_path / "unpacked" / "manifest.json").touch()
    check(tmp_path / "unpacked")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("accelerator", "tpu"),
        ("devices", 0),
        ("devices", "all"),
        ("deterministic", "yes"),
        ("precision", "64-true"),
        ("accum_steps", 0),
        ("num_workers", -1),
        ("learning_rate", -1e-3),
        ("checkpoint_save_top_k", -1),
        ("checkpoint_mode", "mean"),
        ("early_stop_patience", 0),
        ("logger_backend", "wandb"),
        ("inference_batch_size", 0),
        ("spectral_bottleneck_gate_mode", "none"),
        ("prefetch_factor", 2),
        ("persistent_workers", True),
    ],
)
def test_an_execution_setting_out_of_range_is_named_with_its_value(field: str, value: Any) -> None:
    config = c.PyTorchExecutionConfig(**{field: value})
    with pytest.raises(ValueError, match=f"execution: {field} is {value!r}"):
        c.validate_execution_config(config)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"devices": "auto"},
        {"deterministic": "warn"},
        {"logger_backend": None},
        {"accelerator": "mps"},
        {"num_workers": 2, "prefetch_factor": 4, "persistent_workers": True},
        {"checkpoint_save_top_k": 0},
    ],
)
def test_allowed_execution_settings_pass(settings: dict[str, Any]) -> None:
    c.validate_execution_config(c.PyTorchExecutionConfig(**settings))


# --- YAML and precedence


def _write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_a_flag_beats_yaml_and_yaml_beats_the_default(tmp_path: Path) -> None:
    file = _write(tmp_path / "run.yaml", "nepochs: 7\nbatch_size: 8\nmodel:\n  gridsize: 2\n  N: 128\n")
    settings = c.merge_settings(
        c.default_settings(c.TrainingConfig),
        c.load_yaml_config(file),
        {"batch_size": 32, "N": None, "gridsize": None, "probe_trainable": False},
    )
    assert (settings["batch_size"], settings["nepochs"], settings["mae_weight"]) == (32, 7, 0.0)
    config = c.build_config(c.TrainingConfig, settings)
    assert (config.batch_size, config.nepochs, config.model.N, config.model.gridsize) == (32, 7, 128, 2)
    assert config.n_groups == 512


def test_a_flag_that_equals_the_default_still_beats_yaml() -> None:
    merged = c.merge_settings({"nepochs": 50}, {"nepochs": 7}, {"nepochs": 50})
    assert merged == {"nepochs": 50}


def test_yaml_null_is_a_value() -> None:
    assert c.merge_settings({"seed": 42}, {"seed": None}, None) == {"seed": None}


def test_exponents_and_paths_from_yaml_get_the_type_of_their_field(tmp_path: Path) -> None:
    file = _write(tmp_path / "run.yaml", "nphotons: 1e6\ngradient_clip_val: 1e-1\ntrain_data_file: a.npz\n")
    raw = c.load_yaml_config(file)
    assert raw["nphotons"] == "1e6"
    config = c.build_config(
        c.TrainingConfig, c.merge_settings(c.default_settings(c.TrainingConfig), raw, None)
    )
    assert (config.nphotons, config.gradient_clip_val, config.train_data_file) == (1e6, 0.1, Path("a.npz"))
    with pytest.raises(ConfigError, match="nphotons is not a number"):
        c.build_config(c.TrainingConfig, {"nphotons": "many"})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"nepoch": 1}, r"'nepoch' is unknown.*'nepochs'"),
        ({"Batch_Size": 1}, "Did you mean 'batch_size'"),
        ({"model": {"grid_size": 1}}, "Did you mean 'gridsize'"),
        ({"model": 3}, "'model' is not a section"),
        ({"N": 64, "model": {"N": 128}}, "'N' is given twice"),
        ({1: 2}, "setting 1 is unknown"),
    ],
)
def test_wrong_yaml_keys_are_refused_with_a_hint(settings: dict[Any, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        c.merge_settings(c.default_settings(c.TrainingConfig), settings, {})


def test_an_unknown_flag_is_refused_too() -> None:
    with pytest.raises(ConfigError, match=r"flags: setting 'epochs'.*'nepochs'"):
        c.merge_settings(c.default_settings(c.TrainingConfig), None, {"epochs": 3})


def test_yaml_files_that_cannot_be_used_name_the_path(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="missing"):
        c.load_yaml_config(tmp_path / "missing.yaml")
    broken = _write(tmp_path / "broken.yaml", "a: [1, 2\nb: }\n")
    for kind in (yaml.YAMLError, ConfigError):
        with pytest.raises(kind, match="broken") as caught:
            c.load_yaml_config(broken)
        assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"list\.yaml.*got list"):
        c.load_yaml_config(_write(tmp_path / "list.yaml", "- 1\n"))
    with pytest.raises(yaml.YAMLError, match="tag"):
        c.load_yaml_config(_write(tmp_path / "tag.yaml", "a: !!python/object/apply:os.getcwd []\n"))
    assert c.load_yaml_config(_write(tmp_path / "empty.yaml", "")) == {}
