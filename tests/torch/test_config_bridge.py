"""The PyTorch settings arrive in the typed configuration under the right names. Needs no framework."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ptycho import params
from ptycho.config import config as core
from ptycho.errors import ConfigError
from ptycho_torch import config_bridge as bridge
from ptycho_torch import config_params as p

DOSE = {"nphotons": 1e6}
TRAIN = {"n_groups": 100, "train_data_file": "train.npz", "test_data_file": "test.npz"}


def _training(
    data: p.DataConfig | None = None,
    model: p.ModelConfig | None = None,
    training: p.TrainingConfig | None = None,
    **overrides: Any,
) -> core.TrainingConfig:
    data, model = data or p.DataConfig(**DOSE), model or p.ModelConfig()
    return bridge.to_training_config(
        bridge.to_model_config(data, model), data, model, training or p.TrainingConfig(**TRAIN), overrides
    )


def _differences(result: Any, expected: dict[str, Any]) -> list[str]:
    return sorted(name for name, value in expected.items() if getattr(result, name) != value)


def test_default_settings_become_a_valid_network() -> None:
    model = bridge.to_model_config(p.DataConfig(), p.ModelConfig())
    core.validate_model_config(model)
    assert (
        _differences(
            model,
            {
                "N": 64,
                "gridsize": 2,
                "model_type": "pinn",
                "amp_activation": "swish",
                "probe_mask": False,
                "probe_scale": 4.0,
                "architecture": "cnn",
            },
        )
        == []
    )


def test_every_network_setting_is_forwarded() -> None:
    same = {
        "n_filters_scale": 3,
        "architecture": "cnn",
        "fno_modes": 5,
        "fno_width": 6,
        "fno_blocks": 7,
        "fno_cnn_blocks": 8,
        "learned_input_channels": 9,
        "max_hidden_channels": 10,
        "resnet_width": 12,
        "fno_input_transform": "sqrt",
        "generator_output_mode": "amp_phase",
        "object_big": False,
        "probe_big": False,
        "probe_mask_sigma": 0.5,
        "probe_mask_diameter": 11.0,
        "pad_object": False,
        "gaussian_smoothing_sigma": 0.25,
        "unrolled_steps": 13,
        "unrolled_width": 14,
        "unrolled_likelihood": "poisson",
        "cbam_encoder": False,
        "cbam_bottleneck": True,
        "cbam_decoder": True,
        "eca_encoder": True,
        "eca_decoder": True,
        "spatial_decoder": True,
        "decoder_spatial_kernel": 5,
    }
    data = p.DataConfig(N=128, grid_size=(3, 3), probe_scale=2.0)
    model = bridge.to_model_config(data, p.ModelConfig(mode="Supervised", amp_activation="relu", **same))
    expected = {
        **same,
        "N": 128,
        "gridsize": 3,
        "probe_scale": 2.0,
        "model_type": "supervised",
        "amp_activation": "relu",
        "probe_mask": False,
    }
    assert set(expected) == {item.name for item in dataclasses.fields(core.ModelConfig)}
    assert _differences(model, expected) == []


def test_the_comparison_catches_a_setting_that_was_not_forwarded() -> None:
    model = bridge.to_model_config(p.DataConfig(), p.ModelConfig(unrolled_steps=9))
    defect = dataclasses.replace(model, unrolled_steps=4)
    assert _differences(defect, {"unrolled_steps": 9}) == ["unrolled_steps"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("silu", "swish"),
        ("SiLU", "swish"),
        ("sigmoid", "sigmoid"),
        ("swish", "swish"),
        ("softplus", "softplus"),
        ("relu", "relu"),
    ],
)
def test_activations_are_renamed(name: str, expected: str) -> None:
    model = p.ModelConfig(amp_activation=name)  # type: ignore[arg-type]
    assert bridge.to_model_config(p.DataConfig(), model).amp_activation == expected


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"probe_mask": None}, False),
        ({"probe_mask": True}, True),
        ({"probe_mask": False}, False),
        ({"probe_mask": np.zeros((4, 4))}, True),
        ({"probe_mask": np.bool_(False)}, False),
        ({"probe_mask": np.bool_(True)}, True),
        ({"probe_mask_tensor": np.ones((4, 4))}, True),
    ],
)
def test_a_mask_array_counts_as_masked_and_none_as_not(fields: dict[str, Any], expected: bool) -> None:
    assert bridge.to_model_config(p.DataConfig(), p.ModelConfig(**fields)).probe_mask is expected


@pytest.mark.parametrize(
    ("data", "model", "message"),
    [
        ({"grid_size": (2, 3)}, {}, r"not square \(got \(2, 3\)"),
        ({"grid_size": 2}, {}, "not square"),
        ({}, {"mode": "PINN"}, "mode is 'PINN', expected one of Unsupervised, Supervised"),
        ({}, {"amp_activation": "gelu"}, "amp_activation is 'gelu'"),
        ({}, {"amp_activation": ["relu"]}, "amp_activation is"),
        ({}, {"probe_mask": "round"}, "probe_mask is 'round'"),
    ],
)
def test_settings_without_a_counterpart_are_refused(
    data: dict[str, Any], model: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        bridge.to_model_config(p.DataConfig(**data), p.ModelConfig(**model))


def test_every_training_setting_is_forwarded() -> None:
    same = {
        "batch_size": 8,
        "learning_rate": 2e-4,
        "n_groups": 77,
        "torch_mae_pred_l2_match_target": True,
        "gradient_clip_val": 0.5,
        "gradient_clip_algorithm": "value",
        "optimizer": "sgd",
        "momentum": 0.8,
        "weight_decay": 0.01,
        "adam_beta1": 0.7,
        "adam_beta2": 0.9,
        "scheduler": "ReduceLROnPlateau",
        "plateau_factor": 0.3,
        "plateau_patience": 4,
        "plateau_min_lr": 1e-6,
        "plateau_threshold": 0.1,
    }
    result = _training(
        p.DataConfig(nphotons=2e7, K=9, subsample_seed=5, measurement_domain="normalized_amplitude"),
        p.ModelConfig(intensity_scale_trainable=True),
        p.TrainingConfig(
            epochs=6,
            warmup_epochs=2,
            min_lr_ratio=0.2,
            nll=False,
            output_dir="out",
            train_data_file="a.npz",
            test_data_file="b.npz",
            **same,
        ),
    )
    assert (
        _differences(
            result,
            {
                **same,
                "nepochs": 6,
                "lr_warmup_epochs": 2,
                "lr_min_ratio": 0.2,
                "nll_weight": 0.0,
                "nphotons": 2e7,
                "neighbor_count": 9,
                "subsample_seed": 5,
                "measurement_domain": "amplitude",
                "intensity_scale_trainable": True,
                "output_dir": Path("out"),
                "train_data_file": Path("a.npz"),
                "test_data_file": Path("b.npz"),
                "mae_weight": 0.0,
                "realspace_mae_weight": 0.0,
                "realspace_weight": 0.0,
                "positions_provided": True,
                "probe_trainable": False,
                "sequential_sampling": False,
                "backend": "pytorch",
                "torch_loss_mode": "mae",
            },
        )
        == []
    )
    core.validate_training_config(result)


@pytest.mark.parametrize(
    ("loss_function", "mode", "expected"),
    [
        ("Poisson", "poisson", "poisson"),
        ("MAE", "poisson", "mae"),
        ("Poisson", "mae", "mae"),
        ("MAE", "amplitude", "amplitude"),
        ("Poisson", "amplitude", "amplitude"),
    ],
)
def test_the_loss_is_taken_from_whichever_place_chose_one(
    loss_function: Any, mode: Any, expected: str
) -> None:
    result = _training(
        model=p.ModelConfig(loss_function=loss_function),
        training=p.TrainingConfig(torch_loss_mode=mode, **TRAIN),
    )
    assert result.torch_loss_mode == expected


def test_the_file_decides_the_domain_unless_amplitude_was_chosen() -> None:
    assert _training().measurement_domain is None
    with pytest.raises(ConfigError, match="measurement_domain is 'photons'"):
        _training(p.DataConfig(measurement_domain="photons", **DOSE))  # type: ignore[arg-type]


def test_overrides_win_over_everything() -> None:
    changes = {"N": 256, "architecture": "unrolled"}
    model = bridge.to_model_config(p.DataConfig(N=64), p.ModelConfig(), changes)
    assert (model.N, model.architecture) == (256, "unrolled")
    result = _training(n_groups=3, nphotons=1e5, backend="tensorflow", train_data_file="c.npz", nepochs=1)
    assert (
        _differences(
            result,
            {
                "n_groups": 3,
                "nphotons": 1e5,
                "backend": "tensorflow",
                "train_data_file": Path("c.npz"),
                "nepochs": 1,
            },
        )
        == []
    )


@pytest.mark.parametrize("missing", ["n_groups", "train_data_file"])
def test_what_training_needs_is_asked_for_as_an_override(missing: str) -> None:
    training = p.TrainingConfig(**{**TRAIN, missing: None})
    with pytest.raises(ValueError, match=f"{missing}.*override"):
        _training(training=training)


def test_the_dose_must_be_chosen() -> None:
    with pytest.raises(ValueError, match=r"nphotons.*1e\+05.*1e\+09.*override"):
        _training(p.DataConfig())


def test_training_without_a_test_file_warns() -> None:
    with pytest.warns(UserWarning, match="test_data_file"):
        _training(training=p.TrainingConfig(**{**TRAIN, "test_data_file": None}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _training()


def test_inference_takes_its_files_from_the_overrides() -> None:
    data = p.DataConfig(K=11, subsample_seed=3)
    model = bridge.to_model_config(data, p.ModelConfig())
    files = {"model_path": "run", "test_data_file": "t.npz", "n_groups": 20, "debug": True}
    result = bridge.to_inference_config(model, data, p.InferenceConfig(), files)
    assert (
        _differences(
            result,
            {
                "model_path": Path("run"),
                "test_data_file": Path("t.npz"),
                "n_groups": 20,
                "debug": True,
                "neighbor_count": 11,
                "subsample_seed": 3,
                "backend": "pytorch",
                "model": model,
            },
        )
        == []
    )
    for missing in ("model_path", "test_data_file"):
        with pytest.raises(ValueError, match=f"{missing}.*override"):
            bridge.to_inference_config(model, data, p.InferenceConfig(), {**files, missing: None})


def test_an_unknown_override_is_refused_with_the_closest_name() -> None:
    with pytest.raises(ConfigError, match=r"'nepoch' is no field of TrainingConfig.*'nepochs'"):
        _training(nepoch=3)
    with pytest.raises(ConfigError, match="'gridsize'"):
        bridge.to_model_config(p.DataConfig(), p.ModelConfig(), {"grid_size": 1})


def test_the_bridge_changes_neither_its_inputs_nor_the_legacy_dictionary() -> None:
    data, model, training = p.DataConfig(**DOSE), p.ModelConfig(), p.TrainingConfig(**TRAIN)
    overrides = {"output_dir": "out"}
    before = copy.deepcopy((data, model, training, overrides, dict(params.cfg)))
    tf_model = bridge.to_model_config(data, model)
    bridge.to_training_config(tf_model, data, model, training, overrides)
    assert (data, model, training, overrides, dict(params.cfg)) == before


def test_the_result_fills_the_legacy_dictionary() -> None:
    cfg: dict[str, Any] = {"N": 128, "gridsize": 1}
    core.update_legacy_dict(cfg, _training(n_groups=9))
    assert (cfg["N"], cfg["gridsize"], cfg["n_groups"], cfg["nphotons"]) == (64, 2, 9, 1e6)
