"""Facts about the loss: real-space terms are those of the reference, weights multiply terms."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from judges import FLOAT32, FLOAT64, assert_twin, random_complex
from numpy.typing import NDArray

from ptycho.config import config as core
from ptycho.errors import ConfigError
from ptycho.networks.model import Prediction, total_loss
from ptycho.physics import losses as reference
from ptycho.physics.losses import LossTerms
from ptycho_torch import config_bridge as bridge
from ptycho_torch import config_params as p
from ptycho_torch import losses as candidate
from ptycho_torch import physics
from ptycho_torch.effects import DATA, INFERENCE, MODEL, TRAINING, check_inference, check_native

Array = NDArray[Any]


def tensor(array: Array) -> Any:
    return torch.from_numpy(array)


def gradient(loss: Any, values: Array) -> Array:
    start = torch.from_numpy(values).requires_grad_()
    loss(start).backward()
    return start.grad.numpy()


def arguments(dtype: type) -> dict[str, Array]:
    """Arguments of every term, by their names; a pixel is dark and one equals its neighbour."""
    rng = np.random.default_rng(2)
    image, patches, labels = (random_complex(rng, *shape) for shape in ((11, 8), (4, 9, 9), (4, 9, 9)))
    image[3, 3] = image[3, 4]
    patches[0, 0, 0] = labels[1, 2, 3] = 0.0
    light = {"image": rng.uniform(0, 5, (11, 8)), "patches": rng.uniform(0, 5, (9, 9))}
    real = np.empty(0, dtype).real.dtype
    complexes = {"image": image, "patches": patches, "labels": labels}
    return {
        **{key: value.astype(dtype) for key, value in complexes.items()},
        **{f"{key}_light": value.astype(real) for key, value in light.items()},
    }


CALLS = {
    "total_variation": ("image", "image_light"),
    "label_error": ("patches", "labels", "patches_light"),
    "supervised_loss": ("patches", "labels", "patches_light"),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize(("dtype", "bar"), [(np.complex128, FLOAT64), (np.complex64, FLOAT32)])
def test_terms_are_those_of_the_reference(name: str, dtype: type, bar: float) -> None:
    given = [arguments(dtype)[key] for key in CALLS[name]]
    exact = [value.astype(np.result_type(value, np.float64)) for value in given]
    expected = np.array(getattr(reference, name)(*exact))
    found = getattr(candidate, name)(*map(tensor, given))
    assert_twin(expected, found, bar)
    with pytest.raises(AssertionError):
        assert_twin(1.001 * expected, found, bar)


@pytest.mark.parametrize("name", CALLS)
def test_gradients_are_finite_also_where_a_pixel_is_dark(name: str) -> None:
    first, *rest = (arguments(np.complex128)[key] for key in CALLS[name])
    slope = gradient(lambda values: getattr(candidate, name)(values, *map(tensor, rest)), first)
    assert np.isfinite(slope).all()
    assert np.abs(slope).max() > 0


def prediction() -> Any:
    rng = np.random.default_rng(5)
    given = {key: tensor(value) for key, value in arguments(np.complex128).items()}
    predicted, amplitude = map(tensor, rng.uniform(0.5, 3, (2, 4, 9, 9)))
    return Prediction(
        predicted, amplitude, given["image"], given["image_light"], given["patches"], given["labels"],
        given["patches_light"],
    )  # fmt: skip


def test_the_loss_is_the_weighted_sum_of_its_terms() -> None:
    found = prediction()
    terms = LossTerms("poisson", 0.5, 0.25, 2.0, 3.0)
    expected = (
        0.5 * physics.poisson_loss(found.predicted, found.amplitude)
        + 0.25 * physics.mean_absolute_loss(found.predicted, found.amplitude)
        + 2.0 * candidate.total_variation(found.image, found.illumination)
        + 3.0 * candidate.label_error(found.patches, found.labels, found.patch_illumination)
    )
    assert float(total_loss(terms, found, candidate)) == pytest.approx(float(expected), rel=1e-6)
    for changed in (LossTerms("amplitude", 0.5, 0.25, 2.0, 3.0), LossTerms("poisson", 0.5, 0.25, 2.0, 0.0)):
        assert float(total_loss(changed, found, candidate)) != pytest.approx(float(expected), rel=1e-3)


# --- penalties that only PyTorch settings know ---


@pytest.mark.parametrize("place", ["amplitude_penalty", "phase_penalty"])
@pytest.mark.parametrize("name", ["Total_Variation", "Mean_Deviation"])
def test_a_penalty_adds_its_weight(place: str, name: str) -> None:
    found = prediction()
    image, light = (part.numpy() for part in (found.image, found.illumination))
    values = np.abs(image) if place == "amplitude_penalty" else image / np.sqrt(np.abs(image) ** 2 + 1e-6)
    if name == "Total_Variation":
        expected = reference.total_variation(values, light)
    else:
        expected = np.average(np.abs(values - np.average(values, weights=light)), weights=light)
    plain = total_loss(LossTerms(), found, candidate)
    change = total_loss(LossTerms(**{place: (name, 0.7)}), found, candidate) - plain
    assert float(change) == pytest.approx(0.7 * expected, rel=1e-5)


# --- settings that nothing reads ---

CLIENT: dict[str, Any] = {
    "data": {"N": 128, "C": 4, "K": 6, "grid_size": (2, 2), "x_bounds": (0.1, 0.9)},
    "model": {"probe_mask": None, "decoder_last_amp_channels": 4, "cbam_encoder": True},
    "training": {"strategy": "ddp_spawn", "orchestrator": "Lightning", "warmup_epochs": 0},
}
"""What a client passes that is not a default here."""


def native(name: str = "data", **changes: Any) -> tuple[Any, Any, Any]:
    kinds = {"data": p.DataConfig, "model": p.ModelConfig, "training": p.TrainingConfig}
    values = {key: kind(**CLIENT[key]) for key, kind in kinds.items()}
    for field, value in changes.items():
        setattr(values[name], field, value)
    return values["data"], values["model"], values["training"]


def test_what_a_client_passes_by_default_is_accepted() -> None:
    check_native(*native())
    check_native(*native("data", x_bounds=(0.0, 1.0)))
    check_native(*native("model", amp_loss="Total_Variation", amp_loss_coeff=0.5))


UNREAD = {"data": DATA, "model": MODEL, "training": TRAINING}


@pytest.mark.parametrize(("group", "name"), [(group, name) for group in UNREAD for name in UNREAD[group]])
def test_a_changed_setting_that_nothing_reads_is_refused_by_name(group: str, name: str) -> None:
    default = getattr(dict(zip(UNREAD, native(), strict=True))[group], name)
    value = not default if isinstance(default, bool) else "other" if isinstance(default, str) else default + 1
    message = rf"^training: {name} is not implemented \(got {value!r}, expected its default"
    with pytest.raises(ConfigError, match=message):
        check_native(*native(group, **{name: value}))


@pytest.mark.parametrize(
    ("group", "changes", "message"),
    [
        ("data", {"x_bounds": (0.8, 0.2)}, r"x_bounds is no part of a range \(got \(0.8, 0.2\), expected"),
        ("data", {"y_bounds": (0.0, 1.1)}, r"y_bounds is no part of a range \(got \(0.0, 1.1\), expected"),
        ("model", {"architecture": "unrolled", "amp_loss": "Total_Variation"}, "unrolled: amp_loss has no"),
        ("model", {"mode": "Supervised", "phase_loss": "Mean_Deviation"}, "supervised: phase_loss has no"),
        ("model", {"C_model": 9}, r"training: C_model is not C of the data \(got 9, expected 4\)"),
        ("model", {"C_forward": 9}, r"training: C_forward is not C of the data \(got 9, expected 4\)"),
        ("model", {"decoder_last_amp_channels": 9}, "decoder_last_amp_channels is not C of the data"),
        ("training", {"strategy": "fsdp"}, "training: strategy is not implemented .got 'fsdp'"),
        ("training", {"orchestrator": "none"}, "training: orchestrator is not implemented .got 'none'"),
        ("training", {"training_directories": ["a"]}, "training: training_directories is not implemented"),
        ("model", {"amp_loss_coeff": 2.0}, "model without amp_loss: amp_loss_coeff has no effect"),
        ("model", {"amplitude_variance_coeff": 2.0}, "without amplitude_variance_loss: amplitude_variance_c"),
        ("model", {"probe_mask": np.ones((8, 8))}, r"probe_mask is not implemented as an array \(got shape"),
    ],
)
def test_a_setting_that_needs_another_is_refused_without_it(
    group: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        check_native(*native(group, **changes))


def test_native_defaults_of_cnn_do_not_stand_in_the_way_of_unrolled() -> None:
    data = p.DataConfig(C=1, grid_size=(1, 1), nphotons=1e6)
    model = p.ModelConfig(architecture="unrolled", C_model=1, C_forward=1, object_big=False)
    core.validate_effects(core.TrainingConfig(bridge.to_model_config(data, model)))
    model.amp_activation = "relu"
    with pytest.raises(ConfigError, match="unrolled: amp_activation has no effect"):
        core.validate_effects(core.TrainingConfig(bridge.to_model_config(data, model)))


def test_old_native_models_keep_their_attention() -> None:
    assert bridge.to_model_config(p.DataConfig(), p.ModelConfig()).cbam_encoder
    assert not bridge.from_core(core.ModelConfig())[1].cbam_encoder


def test_a_loss_that_another_setting_overrules_is_refused() -> None:
    data, model, training = native("model", loss_function="MAE")
    check_native(data, model, training)
    training.torch_loss_mode = "amplitude"
    with pytest.raises(ConfigError, match="loss_function has no effect beside torch_loss_mode"):
        check_native(data, model, training)


@pytest.mark.parametrize("name", INFERENCE)
def test_a_changed_setting_of_a_reconstruction_that_nothing_reads_is_refused(name: str) -> None:
    settings = p.InferenceConfig()
    check_inference(settings, "cnn", p.DatagenConfig())
    default = getattr(settings, name)
    setattr(settings, name, not default if isinstance(default, bool) else (default or 0) + 1)
    with pytest.raises(ConfigError, match=rf"^reconstruction: {name} is not implemented"):
        check_inference(settings, "cnn")


def test_what_only_cnn_reads_and_what_makes_no_data_here_is_refused() -> None:
    check_inference(p.InferenceConfig(patch_weighting="uniform", batch_size=9), "cnn")
    for name, value in (("patch_weighting", "uniform"), ("batch_size", 9)):
        with pytest.raises(ConfigError, match=rf"^unrolled: {name} has no effect"):
            check_inference(p.InferenceConfig(**{name: value}), "unrolled")
    with pytest.raises(ConfigError, match=r"^synthetic data: image_size is not implemented"):
        check_inference(p.InferenceConfig(), "cnn", p.DatagenConfig(image_size=(9, 9)))
