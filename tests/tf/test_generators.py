"""Facts about the networks in TensorFlow: weights travel, shapes hold, the untrained one is plain physics."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from judges import FLOAT32, FLOAT64, SmallScan, assert_twin, plain_steps, small_scan

from ptycho.config.config import ModelConfig
from ptycho.errors import BundleError, ConfigError
from ptycho.networks import architectures
from ptycho.solver.schedule import STEP_DAMPING
from ptycho.tf.generators import CnnGenerator, UnrolledGenerator, build_generator
from ptycho.tf.runtime import tf
from ptycho.tf.solver import Chunk, scan_illumination

STEPS = 6
SAME_NUMBERS = 1e-6  # one convolution, read from and written to the same float32 arrays


def chunked(scan: SmallScan, *cuts: int) -> list[Chunk]:
    """Split the scan before each of the given positions."""
    return [Chunk(*map(tf.constant, part)) for part in scan.chunks(*cuts)]


def unrolled(steps: int = STEPS, *, trained: bool = False) -> UnrolledGenerator:
    """A small network; ``trained`` fills the last layers, which start at zero, with numbers that matter."""
    model = ModelConfig(architecture="unrolled", unrolled_steps=steps, unrolled_width=4)
    generator = build_generator(model, 3)
    if trained:
        weights = generator.export_weights()
        rng = np.random.default_rng(1)
        for k in range(generator.learned):
            weights[f"unet{k}_out/kernel"] = rng.normal(0, 0.02, (3, 3, 4, 2)).astype(np.float32)
            weights[f"unet{k}_out/bias"] = np.array([0.01, -0.02], np.float32)
        generator.import_weights(weights, "test")
    return generator


def reconstruct(generator: UnrolledGenerator, chunks: list[Chunk], shape: tuple[int, ...]) -> Any:
    return generator(chunks, scan_illumination(chunks, shape))


def cnn(**options: Any) -> CnnGenerator:
    return build_generator(ModelConfig(**({"N": 32, "n_filters_scale": 1} | options)), 3)


def patterns(n_px: int = 32, channels: int = 1) -> Any:
    return tf.constant(np.random.default_rng(0).random((2, channels, n_px, n_px), dtype=np.float32))


# --- weights ---


@pytest.mark.parametrize("generator", [cnn(gridsize=2), unrolled()])
def test_exported_weights_are_those_of_the_table(generator: Any) -> None:
    exported = generator.export_weights()
    initial = architectures.initial_weights(generator.table, 3)
    assert list(exported) == list(initial)
    for name, array in exported.items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, initial[name])


def test_weights_travel_to_another_network() -> None:
    first, second = cnn(), build_generator(ModelConfig(N=32, n_filters_scale=1), 99)
    with pytest.raises(AssertionError):
        assert_twin(first(patterns()), second(patterns()), 1e-3)
    second.import_weights(first.export_weights(), "test")
    assert_twin(first(patterns()), second(patterns()), SAME_NUMBERS)


def test_exported_weights_do_not_follow_the_network() -> None:
    generator = unrolled()
    exported = generator.export_weights()
    for variable in generator.weights.values():
        variable.assign_add(tf.ones_like(variable))
    np.testing.assert_array_equal(exported["step_length"], 1.0)
    np.testing.assert_array_equal(exported["unet0_out/kernel"], 0.0)


def test_weights_of_another_width_are_refused() -> None:
    model = ModelConfig(architecture="unrolled", unrolled_steps=STEPS, unrolled_width=6)
    with pytest.raises(BundleError, match=r"^model\.zip: \d+ weights do not fit"):
        unrolled().import_weights(build_generator(model, 0).export_weights(), "model.zip")


def test_an_unknown_architecture_is_refused() -> None:
    with pytest.raises(ConfigError, match="architecture is 'resnet'"):
        build_generator(ModelConfig(architecture="resnet"), 0)


# --- cnn ---


@pytest.mark.parametrize("n_px", [16, 64, 128])
@pytest.mark.parametrize("gridsize", [1, 2])
def test_the_cnn_maps_groups_of_patterns_to_groups_of_patches(n_px: int, gridsize: int) -> None:
    found = cnn(N=n_px, gridsize=gridsize)(patterns(n_px, gridsize**2))
    assert found.shape == (2, gridsize**2, n_px, n_px)
    assert found.dtype == tf.complex64


@pytest.mark.parametrize("probe_big", [False, True])
@pytest.mark.parametrize("pad_object", [False, True])
def test_only_a_network_without_border_branch_leaves_the_border_empty(
    probe_big: bool, pad_object: bool
) -> None:
    found = np.array(cnn(probe_big=probe_big, pad_object=pad_object)(patterns()))
    middle = found[..., 8:24, 8:24].copy()
    found[..., 8:24, 8:24] = 0
    assert (np.abs(found).max() == 0) == (pad_object and not probe_big)
    assert np.abs(middle).min() > 0


def test_amplitude_and_phase_stay_within_their_bounds() -> None:
    found = np.array(cnn()(1000 * patterns()))
    assert np.abs(found).max() <= 1 + SAME_NUMBERS
    assert np.abs(np.angle(found)).max() <= np.pi + SAME_NUMBERS


# --- unrolled ---


@pytest.mark.parametrize("steps", [1, 2, STEPS])
def test_the_untrained_unrolled_network_is_plain_accelerated_steps(steps: int) -> None:
    scan = small_scan(noisy=True)
    found = reconstruct(unrolled(steps), chunked(scan, 7), scan.obj.shape)
    learned = min(2, steps)
    # Weights are stored in float32, so the learned momentum starts at the float32 number next to 0.8.
    stored = float(np.float32(architectures.STEP_MOMENTUM))
    momenta = [k / (k + 3) for k in range(steps - learned)] + [stored] * learned
    arguments = (scan.corners_yx, scan.probes, scan.amplitude, scan.obj.shape)
    assert_twin(plain_steps(*arguments, momenta, STEP_DAMPING, learned=learned), found, FLOAT64)
    if steps > 2:
        missing = plain_steps(*arguments, momenta[:-1], STEP_DAMPING, learned=learned - 1)
        with pytest.raises(AssertionError):
            assert_twin(missing, found, 1e-4)


@pytest.mark.parametrize("cuts", [(12,), (1, 5, 23)])
def test_chunks_change_nothing(cuts: tuple[int, ...]) -> None:
    scan = small_scan(np.complex64, noisy=True)
    generator = unrolled(trained=True)
    whole = reconstruct(generator, chunked(scan), scan.obj.shape)
    assert whole.dtype == tf.complex64
    assert_twin(whole, reconstruct(generator, chunked(scan, *cuts), scan.obj.shape), FLOAT32)
    with pytest.raises(AssertionError):
        assert_twin(whole, reconstruct(generator, chunked(scan, 12)[:1], scan.obj.shape), 1e-3)


def test_a_compiled_network_gives_what_an_eager_one_gives_on_any_canvas() -> None:
    generator = unrolled(trained=True)
    signature = [
        tf.TensorSpec([None, 2], tf.int64),
        tf.TensorSpec([None, 2, 16, 16], tf.complex64),
        tf.TensorSpec([None, 16, 16]),
        tf.TensorSpec([2], tf.int32),
    ]
    compiled = tf.function(
        lambda *parts: reconstruct(generator, [Chunk(*parts[:3])], parts[3]), input_signature=signature
    )
    for fractional in (False, True):
        scan = small_scan(np.complex64, fractional=fractional)
        chunk = chunked(scan)[0]
        eager = reconstruct(generator, [chunk], scan.obj.shape)
        assert_twin(eager, compiled(*chunk[:3], tf.constant(scan.obj.shape)), STEPS * FLOAT32)


def test_a_trained_network_differs_from_physics_only_where_light_fell() -> None:
    scan = small_scan(noisy=True)
    chunks = chunked(scan)
    weight = np.array(scan_illumination(chunks, scan.obj.shape))
    plain = np.array(reconstruct(unrolled(), chunks, scan.obj.shape))
    corrected = np.array(reconstruct(unrolled(trained=True), chunks, scan.obj.shape))
    dark = weight == 0
    assert dark.any()
    assert (corrected[dark] == 1).all()
    assert np.abs((corrected - plain)[weight > 0.1 * weight.max()]).max() > 1e-3


def test_every_weight_of_a_trained_network_has_a_gradient() -> None:
    scan = small_scan(np.complex64, noisy=True)
    chunks = chunked(scan)
    generator = unrolled(trained=True)
    with tf.GradientTape() as tape:
        found = reconstruct(generator, chunks, scan.obj.shape)
        misfit = tf.reduce_sum(tf.abs(found - 1) ** 2)
    slopes = tape.gradient(misfit, generator.weights)
    assert [name for name, slope in slopes.items() if slope is None or not np.abs(slope).max() > 0] == []


def test_every_step_is_reported() -> None:
    scan = small_scan(np.complex64, noisy=True)
    chunks = chunked(scan)
    seen: list[int] = []
    unrolled()(chunks, scan_illumination(chunks, scan.obj.shape), seen.append)
    assert seen == list(range(STEPS))
