"""Facts about the terms of a loss, the labels they compare with, and settings that would do nothing."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ptycho.config import config as c
from ptycho.config.architectures import CNN, UNROLLED
from ptycho.config.effects import NOT_IMPLEMENTED
from ptycho.data.feed import scan_labels, wanted_labels
from ptycho.data.prepare import prepare_scan
from ptycho.data.scan import Scan
from ptycho.errors import ConfigError, DataError
from ptycho.geometry.grouping import object_patches
from ptycho.physics.losses import LossTerms, label_error, loss_terms, supervised_loss, total_variation
from ptycho.raw_data import RawData
from ptycho.simulation.simulate import SimulationOptions, simulate

Array = NDArray[Any]
OTHER: dict[str, Any] = {
    "model_type": "supervised",
    "amp_activation": "relu",
    "fno_input_transform": "sqrt",
    "generator_output_mode": "amp_phase",
    "ffno_encoder_norm": "layer",
    "spectral_bottleneck_gate_mode": "per_block",
    "recon_log_fixed_indices": [1],
    "unrolled_likelihood": "poisson",
}


def training(model: dict[str, Any] | None = None, **changes: Any) -> c.TrainingConfig:
    return c.TrainingConfig(c.ModelConfig(**(model or {})), **changes)


def another(config: type, name: str) -> Any:
    """A value that is not the default."""
    default = next(item.default for item in fields(config) if item.name == name)
    if name in OTHER:
        return OTHER[name]
    return not default if isinstance(default, bool) else (default or 0) + 2


# --- terms ---


def test_total_variation_of_a_ramp_is_its_slope_where_it_is_lit() -> None:
    y, x = np.indices((9, 7))
    light = np.zeros((9, 7))
    light[2:6, 1:5] = 3.0
    ramp = np.where(light > 0, 0.3j * y + 0.1 * x, 50.0)
    # 3 of 4 rows and 3 of 4 columns of differences: as many of one kind as of the other.
    assert total_variation(ramp, light) == pytest.approx(0.2)
    assert total_variation(np.stack([ramp, 3 * ramp]), light) == pytest.approx(0.4)


def test_a_bright_pixel_counts_more_than_a_dim_one() -> None:
    light = np.array([[1.0, 1.0], [9.0, 9.0]])
    image = np.array([[0.0, 1.0], [0.0, 0.0]])
    # Differences 1 (light 1), 0 (light 9), 0 and 1 down (light 1).
    assert total_variation(image, light) == pytest.approx(2 / 12)


def patches(seed: int = 0) -> tuple[Array, Array, Array]:
    rng = np.random.default_rng(seed)
    shape = (3, 6, 6)
    found, known = (rng.uniform(0.5, 1.5, shape) * np.exp(1j * rng.uniform(-3, 3, shape)) for _ in range(2))
    return found, known, rng.uniform(0.1, 1, (6, 6))


def test_labels_are_compared_as_complex_numbers() -> None:
    found, known, light = patches()
    assert label_error(known, known, light) == 0
    assert label_error(known + 0.3j, known, light) == pytest.approx(0.3)
    brute = sum(light[i, j] * abs(found[k, i, j] - known[k, i, j]) for k, i, j in np.ndindex(found.shape))
    assert label_error(found, known, light) == pytest.approx(brute / (3 * light.sum()))


def test_supervised_loss_adds_amplitude_and_phase() -> None:
    _, known, light = patches()
    assert supervised_loss(1.25 * known, known, 0 * light + 1) == pytest.approx(
        0.25 * abs(known).mean(), rel=1e-5
    )
    turned = supervised_loss(known * np.exp(0.2j), known, light)
    assert turned == pytest.approx(2 * np.sin(0.1), rel=1e-4)  # the chord of 0.2 rad; the floor takes 1e-6
    full_turn = supervised_loss(known * np.exp(2j * np.pi), known, light)
    assert full_turn == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("defect", [lambda z: z.conj(), lambda z: 1.01 * z, lambda z: np.roll(z, 1, axis=-1)])
def test_both_judges_of_labels_catch_a_defect(defect: Any) -> None:
    _, known, light = patches()
    assert label_error(defect(known), known, light) > 5e-3
    assert supervised_loss(defect(known), known, light) > 5e-3


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, LossTerms("poisson")),
        ({"torch_loss_mode": "amplitude", "nll_weight": 0.5}, LossTerms("amplitude", 0.5)),
        ({"torch_loss_mode": "mae"}, LossTerms("mae", 0.0, 1.0)),
        ({"torch_loss_mode": "mae", "mae_weight": 0.3}, LossTerms("mae", 0.0, 0.3)),
        ({"mae_weight": 0.3, "nll_weight": 0.0}, LossTerms("poisson", 0.0, 0.3)),
        ({"realspace_weight": 0.5, "tv_weight": 0.4}, LossTerms("poisson", tv=0.2)),
        ({"realspace_weight": 0.5, "realspace_mae_weight": 0.4}, LossTerms("poisson", labels=0.2)),
        ({"model": {"model_type": "supervised"}}, LossTerms("supervised")),
    ],
)
def test_the_settings_name_the_loss(changes: dict[str, Any], expected: LossTerms) -> None:
    assert loss_terms(training(**changes)) == expected


def test_labels_are_needed_only_where_they_take_part() -> None:
    assert LossTerms("supervised").needs_labels
    assert LossTerms(labels=0.1).needs_labels
    assert not LossTerms(tv=0.1, mae=1.0).needs_labels


def test_a_loss_without_data_is_refused() -> None:
    message = r"^training: no term of the loss compares with data .*Set nll_weight"
    with pytest.raises(ConfigError, match=message):
        loss_terms(training(nll_weight=0.0, realspace_weight=1.0, tv_weight=1.0))


# --- labels ---


@pytest.fixture(scope="module")
def scan() -> Scan:
    options = SimulationOptions(n_px=32, n_y=4, n_x=5, step_px=2.5, photons=1e5, seed=1)
    arrays = simulate(options)
    keys = ("xcoords", "ycoords", "diff3d", "probeGuess", "objectGuess")
    given = {key: arrays[key] for key in keys}
    raw = RawData(xcoords_start=None, ycoords_start=None, scan_index=None, **given)
    return prepare_scan(raw, name="a.npz")


def test_labels_are_cut_from_the_object_at_the_positions(scan: Scan) -> None:
    expected = object_patches(scan.raw.objectGuess, scan.positions_yx_px, 32)
    found = scan_labels(scan)
    np.testing.assert_array_equal(found.of(np.arange(20)), expected)
    np.testing.assert_array_equal(found.of(np.array([[3, 19], [3, 0]])), expected[[3, 19, 3, 0]])
    assert np.abs(found.of(np.array([4])) - expected[5]).max() > 0.01


def with_arrays(scan: Scan, **arrays: Any) -> Scan:
    raw = scan.raw.subset(np.arange(20))
    for name, value in arrays.items():
        setattr(raw, name, value)
    return replace(scan, raw=raw)


def test_stored_patches_win_over_the_object_and_y_over_label(scan: Scan) -> None:
    first, second = (np.full((20, 32, 32), value, np.complex128) for value in (1j, 2j))
    rows = np.array([2, 5])
    assert (scan_labels(with_arrays(scan, Y=first, label=second)).of(rows) == 1j).all()
    found = scan_labels(with_arrays(scan, label=second[..., None])).of(rows)
    assert found.shape == (2, 32, 32)
    assert found.dtype == np.complex64
    assert (found == 2j).all()


def test_a_scan_without_labels_or_outside_its_object_is_refused_by_name(scan: Scan) -> None:
    message = r"^a\.npz: there are no labels .*got neither Y, label nor objectGuess"
    with pytest.raises(DataError, match=message):
        scan_labels(with_arrays(scan, objectGuess=None))
    with pytest.raises(DataError, match=r"^a\.npz: \d+ of 20 patches leave the object"):
        scan_labels(with_arrays(scan, objectGuess=scan.raw.objectGuess[:-6]))
    assert wanted_labels(False, with_arrays(scan, objectGuess=None)) is None
    assert wanted_labels(True, None) is None


# --- settings that would do nothing ---


def test_defaults_and_every_setting_of_the_chosen_network_are_accepted() -> None:
    for architecture in c.ARCHITECTURES:
        c.validate_effects(training({"architecture": architecture}), c.PyTorchExecutionConfig())
    for name in set(CNN.settings) - {"decoder_spatial_kernel", "model_type"}:
        c.validate_effects(training({"gridsize": 2, name: another(c.ModelConfig, name)}))
    c.validate_effects(training({"model_type": "supervised"}))
    c.validate_effects(training({"spatial_decoder": True, "decoder_spatial_kernel": 3}))
    c.validate_effects(training({"architecture": "unrolled", "unrolled_steps": 5, "unrolled_width": 8}))


def test_the_message_names_setting_value_default_and_way_out() -> None:
    with pytest.raises(ConfigError) as caught:
        c.validate_effects(training({"architecture": "unrolled", "amp_activation": "relu"}))
    assert str(caught.value) == (
        "unrolled: amp_activation has no effect (got 'relu', expected its default 'sigmoid'). "
        "Leave it out or pass --architecture cnn."
    )


@pytest.mark.parametrize("name", CNN.settings)
def test_unrolled_refuses_what_only_cnn_has(name: str) -> None:
    model = {"architecture": "unrolled", name: another(c.ModelConfig, name)}
    with pytest.raises(ConfigError, match=rf"^unrolled: {name} has no effect"):
        c.validate_effects(training(model))


@pytest.mark.parametrize("name", UNROLLED.settings)
def test_cnn_refuses_what_only_unrolled_has(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"^cnn: {name} has no effect"):
        c.validate_effects(training({name: another(c.ModelConfig, name)}))


@pytest.mark.parametrize("name", NOT_IMPLEMENTED)
def test_settings_that_nothing_reads_are_refused(name: str) -> None:
    config, execution = training(), c.PyTorchExecutionConfig()
    owner = next(part for part in (config.model, config, execution) if hasattr(part, name))
    setattr(owner, name, another(type(owner), name))
    with pytest.raises(ConfigError, match=rf"^training: {name} is not implemented"):
        c.validate_effects(config, execution)


@pytest.mark.parametrize(
    ("model", "changes", "message"),
    [
        ({"decoder_spatial_kernel": 3}, {}, "without spatial_decoder: decoder_spatial_kernel has no effect"),
        ({"probe_mask_sigma": 2.0}, {}, "without probe_mask: probe_mask_sigma has no effect"),
        ({"model_type": "supervised"}, {"mae_weight": 0.5}, "supervised: mae_weight has no effect"),
        ({"model_type": "supervised", "gaussian_smoothing_sigma": 1.0}, {}, "supervised: gaussian_smoothing"),
        ({}, {"tv_weight": 0.5}, "realspace_weight is 0 while tv_weight is 0.5"),
    ],
)
def test_settings_that_need_another_are_refused_without_it(
    model: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        c.validate_effects(training(model, **changes))


def test_a_choice_that_would_do_what_the_default_does_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"scheduler is not implemented \(got 'MultiStage'"):
        c.validate_effects(training(scheduler="MultiStage"))
    with pytest.raises(ConfigError, match="adamw without weight_decay is adam"):
        c.validate_effects(training(optimizer="adamw"))
    c.validate_effects(training(optimizer="adamw", weight_decay=0.1))
