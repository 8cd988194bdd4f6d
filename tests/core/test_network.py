"""Facts about the architecture tables and their initial weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ptycho.config.config import ModelConfig
from ptycho.errors import BundleError, ConfigError
from ptycho.networks import architectures


def cnn(n_px: int = 64, **options: Any) -> list[architectures.LayerSpec]:
    """Table of a small ``cnn``."""
    return architectures.cnn_table(ModelConfig(N=n_px, **({"n_filters_scale": 1} | options)))


Weights = dict[str, NDArray[np.float32]]

EVERY_ATTENTION: dict[str, Any] = dict.fromkeys(
    ("cbam_encoder", "cbam_bottleneck", "cbam_decoder", "eca_encoder", "eca_decoder", "spatial_decoder"), True
)
PUBLISHED = {
    64: ([32, 64, 128], [64, 32]),
    128: ([16, 32, 64, 128], [128, 64, 32]),
    256: ([8, 16, 32, 64, 128], [256, 128, 64, 32]),
}


@pytest.mark.parametrize("n_px", PUBLISHED)
@pytest.mark.parametrize("scale", [1, 2, 3])
def test_the_ladder_has_the_published_filters(n_px: int, scale: int) -> None:
    encoder, decoder = PUBLISHED[n_px]
    assert architectures.cnn_ladder(n_px, scale) == (
        [f * scale for f in encoder],
        [f * scale for f in decoder],
    )


@pytest.mark.parametrize("n_px", [16, 24, 64, 96, 120, 128, 144, 240, 256, 512])
def test_the_decoder_returns_to_half_the_pattern(n_px: int) -> None:
    encoder, decoder = architectures.cnn_ladder(n_px, 1)
    assert n_px // 2 ** len(encoder) * 2 ** len(decoder) == n_px // 2
    assert encoder[-1] == 128
    assert decoder[-1] == 32


@pytest.mark.parametrize(("n_px", "multiple"), [(8, 8), (12, 8), (65, 8), (100, 8), (136, 16), (272, 32)])
def test_a_size_that_cannot_be_halved_is_refused_with_the_rule(n_px: int, multiple: int) -> None:
    message = rf"^network: .*\(got N={n_px}, expected a multiple of {multiple} and at least 16\)\. \w.*\.$"
    with pytest.raises(ConfigError, match=message):
        cnn(n_px)


@pytest.mark.parametrize("n_px", PUBLISHED)
@pytest.mark.parametrize("gridsize", [1, 2])
def test_the_table_follows_the_ladder_in_pairs_of_convolutions(n_px: int, gridsize: int) -> None:
    channels = gridsize**2
    encoder, decoder = PUBLISHED[n_px]
    shapes = {layer.name: layer.shape for layer in cnn(n_px, gridsize=gridsize)}
    widths = [channels, *encoder]
    for level, filters in enumerate(encoder):
        assert shapes[f"encoder{level}a"] == (3, 3, widths[level], filters)
        assert shapes[f"encoder{level}b"] == (3, 3, filters, filters)
    for head in ("amplitude", "phase"):
        widths = [128, *decoder]
        for level, filters in enumerate(decoder):
            assert shapes[f"{head}{level}a"] == (3, 3, widths[level], filters)
            assert shapes[f"{head}{level}b"] == (3, 3, filters, filters)
        assert shapes[f"{head}_inner"] == (3, 3, 28, channels)
        assert shapes[f"{head}_outer"] == (3, 3, 4, channels)
    assert len(shapes) == 2 * len(encoder) + 2 * (2 * len(decoder) + 2)


@pytest.mark.parametrize(("probe_big", "pad_object"), [(False, True), (True, False), (False, False)])
def test_the_border_branch_is_there_only_when_asked_for(probe_big: bool, pad_object: bool) -> None:
    table = cnn(n_filters_scale=2, probe_big=probe_big, pad_object=pad_object)
    shapes = {layer.name: layer.shape for layer in table}
    assert "phase_outer" not in shapes
    assert shapes["phase_inner"] == (3, 3, 64, 1)


@pytest.mark.parametrize("table", [cnn(gridsize=2, **EVERY_ATTENTION), architectures.unrolled_table()])
def test_layer_names_are_unique(table: list[architectures.LayerSpec]) -> None:
    assert len({layer.name for layer in table}) == len(table)


def test_every_learned_step_has_a_net_of_its_own() -> None:
    shapes = architectures.weight_shapes(architectures.unrolled_table(width=6, n_learned=3))
    assert shapes["step_length"] == shapes["step_momentum"] == (3,)
    for k in range(3):
        assert shapes[f"unet{k}_down0a/kernel"] == (3, 3, architectures.UNROLLED_INPUTS, 6)
        assert shapes[f"unet{k}_up1a/kernel"] == (3, 3, 24 + 12, 12)
        assert shapes[f"unet{k}_up0a/kernel"] == (3, 3, 12 + 6, 6)
        assert shapes[f"unet{k}_out/kernel"] == (3, 3, 6, 2)


@pytest.mark.parametrize(("total", "learned"), [(1, 1), (2, 2), (3, 2), (22, 2)])
def test_at_least_one_and_at_most_all_steps_are_learned(total: int, learned: int) -> None:
    assert architectures.learned_steps(total) == learned


def test_the_configuration_names_the_table() -> None:
    model = ModelConfig(N=128, gridsize=2, n_filters_scale=1, probe_big=False)
    assert architectures.architecture_table(model) == cnn(128, gridsize=2, probe_big=False)
    unrolled = ModelConfig(architecture="unrolled", unrolled_steps=1, unrolled_width=5)
    assert architectures.architecture_table(unrolled) == architectures.unrolled_table(width=5, n_learned=1)
    with pytest.raises(ConfigError, match="architecture is 'resnet', expected one of"):
        architectures.architecture_table(ModelConfig(architecture="resnet"))


# --- attention ---


@pytest.mark.parametrize(
    ("switch", "expected"),
    [
        ("eca_encoder", {f"encoder{k}_eca": (3,) for k in range(3)}),
        (
            "cbam_bottleneck",
            {
                "bottleneck_cbam_reduce": (1, 1, 128, 8),
                "bottleneck_cbam_expand": (1, 1, 8, 128),
                "bottleneck_cbam_spatial": (7, 7, 2, 1),
            },
        ),
        (
            "spatial_decoder",
            {f"{head}{k}_spatial": (5, 5, 2, 1) for head in ("amplitude", "phase") for k in (0, 1)},
        ),
    ],
)
def test_each_switch_adds_its_layers_and_no_others(switch: str, expected: dict[str, tuple[int, ...]]) -> None:
    plain, found = cnn(), cnn(**{switch: True}, decoder_spatial_kernel=5)
    assert found[: len(plain)] == plain
    assert {layer.name: layer.shape for layer in found[len(plain) :]} == expected


def test_few_channels_are_squeezed_into_one() -> None:
    shapes = {layer.name: layer.shape for layer in cnn(256, cbam_encoder=True)}
    assert shapes["encoder0_cbam_reduce"] == (1, 1, 8, 1)


def test_attention_leaves_the_start_of_all_other_layers_alone() -> None:
    plain = architectures.initial_weights(cnn(), 4)
    found = architectures.initial_weights(cnn(**EVERY_ATTENTION), 4)
    assert_same_weights({name: found[name] for name in plain}, plain)
    gates = [name for name in found if name.endswith(("expand/kernel", "spatial/kernel", "_eca"))]
    assert len(gates) == 3 + 2 * 3 + 2 + 4 + 2 * 4 + 4
    assert all((found[name] == 0).all() for name in gates)


# --- weights ---


def assert_same_weights(first: Weights, second: Weights) -> None:
    """Judge: the same names in the same order, and the same bits."""
    assert list(first) == list(second)
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])


def test_initial_weights_follow_the_seed_alone() -> None:
    table = cnn()
    assert_same_weights(architectures.initial_weights(table, 7), architectures.initial_weights(table, 7))
    with pytest.raises(AssertionError):
        assert_same_weights(architectures.initial_weights(table, 7), architectures.initial_weights(table, 8))


def test_initial_weights_have_the_variance_of_he() -> None:
    weights = architectures.initial_weights(cnn(n_filters_scale=2), 0)
    wide, head = weights["encoder2b/kernel"], weights["phase_inner/kernel"]
    assert wide.dtype == np.float32
    assert wide.std() == pytest.approx(np.sqrt(2 / (9 * 256)), rel=0.01)  # 590,000 numbers: 0.1 % expected
    assert head.std() == pytest.approx(0.1 * np.sqrt(2 / (9 * 56)), rel=0.15)  # 504 numbers: 3 % expected
    assert all((array == 0).all() for name, array in weights.items() if name.endswith("/bias"))


def test_the_untrained_unrolled_network_is_plain_physics() -> None:
    weights = architectures.initial_weights(architectures.unrolled_table(width=4), 0)
    np.testing.assert_array_equal(weights["step_length"], np.ones(2, np.float32))
    np.testing.assert_array_equal(
        weights["step_momentum"], np.full(2, architectures.STEP_MOMENTUM, np.float32)
    )
    assert (weights["unet0_out/kernel"] == 0).all()
    assert (weights["unet1_out/kernel"] == 0).all()
    assert (weights["unet1_up0b/kernel"] != 0).all()


def small_weights() -> tuple[Weights, list[architectures.LayerSpec]]:
    table = architectures.unrolled_table(width=2, n_learned=1)
    return architectures.initial_weights(table, 0), table


def test_weights_of_the_table_are_accepted() -> None:
    architectures.check_weights(*small_weights(), "model.zip")


def missing(weights: Weights) -> None:
    del weights["unet0_up1a/bias"]


def extra(weights: Weights) -> None:
    weights["unet7_out/bias"] = np.zeros(2, np.float32)


def wrong_shape(weights: Weights) -> None:
    weights["step_length"] = np.ones(2, np.float32)


def transposed(weights: Weights) -> None:
    weights["unet0_out/kernel"] = weights["unet0_out/kernel"].transpose(3, 2, 0, 1)


@pytest.mark.parametrize(
    ("defect", "told"),
    [
        (missing, r"got unet0_up1a/bias with shape None, expected \(4,\)"),
        (extra, r"got unet7_out/bias with shape \(2,\), expected None"),
        (wrong_shape, r"got step_length with shape \(2,\), expected \(1,\)"),
        (transposed, r"got unet0_out/kernel with shape \(2, 2, 3, 3\), expected \(3, 3, 2, 2\)"),
    ],
)
def test_weights_that_do_not_fit_are_refused_and_named(defect: Any, told: str) -> None:
    weights, table = small_weights()
    defect(weights)
    with pytest.raises(BundleError, match=rf"^model\.zip: 1 weights do not fit .*{told}"):
        architectures.check_weights(weights, table, "model.zip")
