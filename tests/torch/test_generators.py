"""Facts about the networks in PyTorch: weights travel, shapes hold, the untrained unrolled one is physics."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from judges import FLOAT32, FLOAT64, SmallScan, assert_twin, plain_steps, small_scan
from torch import Tensor

from ptycho.config.config import ModelConfig
from ptycho.errors import BundleError, ConfigError
from ptycho.networks import architectures
from ptycho.solver.schedule import STEP_DAMPING
from ptycho_torch.generators import CnnGenerator, UnrolledGenerator, build_generator
from ptycho_torch.solver import Chunk, scan_illumination

STEPS = 6
SAME_NUMBERS = 1e-6  # one convolution, read from and written to the same float32 arrays


def chunked(scan: SmallScan, *cuts: int) -> list[Chunk]:
    """Split the scan before each of the given positions."""
    return [Chunk(*map(torch.from_numpy, part)) for part in scan.chunks(*cuts)]


def unrolled(steps: int = STEPS, *, trained: bool = False) -> UnrolledGenerator:
    """A small network; ``trained`` fills the last layers, which start at zero, with numbers that matter."""
    generator = build_generator(
        ModelConfig(architecture="unrolled", unrolled_steps=steps, unrolled_width=4), 3
    )
    if trained:
        weights = generator.export_weights()
        rng = np.random.default_rng(1)
        for k in range(generator.learned):
            weights[f"unet{k}_out/kernel"] = rng.normal(0, 0.02, (3, 3, 4, 2)).astype(np.float32)
            weights[f"unet{k}_out/bias"] = np.array([0.01, -0.02], np.float32)
        generator.import_weights(weights, "test")
    return generator


@torch.no_grad()
def reconstruct(generator: UnrolledGenerator, chunks: list[Chunk], shape: tuple[int, int]) -> Tensor:
    return generator(chunks, scan_illumination(chunks, shape))


def cnn(**options: Any) -> CnnGenerator:
    return build_generator(ModelConfig(**({"N": 32, "n_filters_scale": 1} | options)), 3)


def patterns(n_px: int = 32, channels: int = 1) -> Tensor:
    return torch.rand(2, channels, n_px, n_px, generator=torch.Generator().manual_seed(0))


# --- weights ---


@pytest.mark.parametrize("trained", [False, True])
def test_unrolled_weights_travel_to_another_network(trained: bool) -> None:
    scan = small_scan(np.complex64, noisy=True)
    chunks = chunked(scan)
    first = unrolled(trained=trained)
    second = build_generator(ModelConfig(architecture="unrolled", unrolled_steps=STEPS, unrolled_width=4), 99)
    second.import_weights(first.export_weights(), "test")
    outputs = [reconstruct(generator, chunks, scan.obj.shape) for generator in (first, second)]
    assert_twin(*outputs, SAME_NUMBERS)


@torch.no_grad()
def test_cnn_weights_travel_to_another_network() -> None:
    first, second = cnn(), build_generator(ModelConfig(N=32, n_filters_scale=1), 99)
    with pytest.raises(AssertionError):
        assert_twin(first(patterns()), second(patterns()), 1e-3)
    second.import_weights(first.export_weights(), "test")
    assert_twin(first(patterns()), second(patterns()), SAME_NUMBERS)


@pytest.mark.parametrize("generator", [cnn(gridsize=2), unrolled()])
def test_exported_weights_are_those_of_the_table(generator: Any) -> None:
    exported = generator.export_weights()
    initial = architectures.initial_weights(generator.table, 3)
    assert sorted(exported) == sorted(initial)
    for name, array in exported.items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, initial[name])
    assert sum(array.size for array in exported.values()) == sum(p.numel() for p in generator.parameters())


def test_exported_weights_do_not_follow_the_network() -> None:
    generator = unrolled()
    exported = generator.export_weights()
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.add_(1.0)
    np.testing.assert_array_equal(exported["step_length"], 1.0)
    np.testing.assert_array_equal(exported["unet0_out/kernel"], 0.0)


def test_a_kernel_keeps_its_axes() -> None:
    generator = unrolled(steps=1)
    weights = generator.export_weights()
    kernel = np.zeros((3, 3, architectures.UNROLLED_INPUTS, 4), np.float32)
    kernel[0, 2, 5, 1] = 1.0  # up one row, right one column, from input 5 to output 1
    generator.import_weights(weights | {"unet0_down0a/kernel": kernel}, "test")
    picture = torch.zeros(1, architectures.UNROLLED_INPUTS, 8, 8)
    picture[0, 5, 3, 4] = 1.0
    found = generator.convolutions["unet0_down0a"](picture)[0]
    # A convolution layer correlates: output (y, x) reads input (y - 1, x + 1).
    assert found[1, 4, 3] == 1.0
    assert found.abs().sum() == 1.0


def test_weights_of_another_width_are_refused() -> None:
    other = build_generator(ModelConfig(architecture="unrolled", unrolled_steps=STEPS, unrolled_width=6), 0)
    with pytest.raises(BundleError, match=r"^model\.zip: \d+ weights do not fit"):
        unrolled().import_weights(other.export_weights(), "model.zip")


def test_an_unknown_architecture_is_refused() -> None:
    with pytest.raises(ConfigError, match="architecture is 'resnet'"):
        build_generator(ModelConfig(architecture="resnet"), 0)


# --- cnn ---


@pytest.mark.parametrize("n_px", [16, 32, 64, 128])
@pytest.mark.parametrize("gridsize", [1, 2])
@torch.no_grad()
def test_the_cnn_maps_groups_of_patterns_to_groups_of_patches(n_px: int, gridsize: int) -> None:
    found = cnn(N=n_px, gridsize=gridsize)(patterns(n_px, gridsize**2))
    assert found.shape == (2, gridsize**2, n_px, n_px)
    assert found.dtype == torch.complex64


@pytest.mark.parametrize("probe_big", [False, True])
@pytest.mark.parametrize("pad_object", [False, True])
@torch.no_grad()
def test_only_a_network_without_border_branch_leaves_the_border_empty(
    probe_big: bool, pad_object: bool
) -> None:
    found = cnn(probe_big=probe_big, pad_object=pad_object)(patterns())
    border = found.clone()
    border[..., 8:24, 8:24] = 0
    assert (border.abs().max() == 0) == (pad_object and not probe_big)
    assert found[..., 8:24, 8:24].abs().min() > 0


@torch.no_grad()
def test_amplitude_and_phase_stay_within_their_bounds() -> None:
    found = cnn()(1000 * patterns())
    assert found.abs().max() <= 1 + SAME_NUMBERS
    assert found.angle().abs().max() <= np.pi + SAME_NUMBERS


# --- unrolled ---


@pytest.mark.parametrize("steps", [1, 2, STEPS])
def test_the_untrained_unrolled_network_is_plain_accelerated_steps(steps: int) -> None:
    scan = small_scan(noisy=True)
    chunks = chunked(scan, 7)
    found = reconstruct(unrolled(steps).double(), chunks, scan.obj.shape)
    learned = min(2, steps)
    # Weights are stored in float32, so the learned momentum starts at the float32 number next to 0.8.
    stored = float(np.float32(architectures.STEP_MOMENTUM))
    momenta = [k / (k + 3) for k in range(steps - learned)] + [stored] * learned
    arguments = (scan.corners_yx, scan.probes, scan.amplitude, scan.obj.shape)
    assert_twin(plain_steps(*arguments, momenta, STEP_DAMPING, learned=learned), found, FLOAT64)
    if steps > 2:
        with pytest.raises(AssertionError):
            assert_twin(plain_steps(*arguments, momenta[:-1], STEP_DAMPING, learned=learned), found, 1e-4)


def test_single_precision_is_close_to_double() -> None:
    scan = small_scan(np.complex64, noisy=True)
    found = reconstruct(unrolled(), chunked(scan), scan.obj.shape)
    momenta = [0.0, 0.25, 0.4, 0.5, architectures.STEP_MOMENTUM, architectures.STEP_MOMENTUM]
    arguments = (scan.corners_yx, scan.probes, scan.amplitude, scan.obj.shape)
    exact = plain_steps(*arguments, momenta, STEP_DAMPING, learned=2)
    assert found.dtype == torch.complex64
    assert_twin(exact, found, STEPS * FLOAT32)


@pytest.mark.parametrize("cuts", [(12,), (1, 5, 23)])
def test_chunks_change_nothing(cuts: tuple[int, ...]) -> None:
    scan = small_scan(np.complex64, noisy=True)
    generator = unrolled(trained=True)
    whole = reconstruct(generator, chunked(scan), scan.obj.shape)
    assert_twin(whole, reconstruct(generator, chunked(scan, *cuts), scan.obj.shape), FLOAT32)
    with pytest.raises(AssertionError):
        assert_twin(whole, reconstruct(generator, chunked(scan, 12)[:1], scan.obj.shape), 1e-3)


@pytest.mark.parametrize("trained", [False, True])
def test_the_object_does_not_depend_on_the_dose(trained: bool) -> None:
    scan = small_scan(noisy=True)
    generator = unrolled(trained=trained).double()
    weak = reconstruct(generator, chunked(scan), scan.obj.shape)
    stronger = scan._replace(probes=100 * scan.probes, amplitude=100 * scan.amplitude)
    strong = reconstruct(generator, chunked(stronger), scan.obj.shape)
    assert_twin(weak, strong, FLOAT32)  # the intensity floor of 1e-8 photons is the only scale in the model
    mismatched = scan._replace(amplitude=1.1 * scan.amplitude)
    brighter = reconstruct(generator, chunked(mismatched), scan.obj.shape)
    with pytest.raises(AssertionError):
        assert_twin(weak, brighter, 1e-2)


def test_a_trained_network_differs_from_physics_only_where_light_fell() -> None:
    scan = small_scan(noisy=True)
    chunks = chunked(scan)
    weight = scan_illumination(chunks, scan.obj.shape)
    plain = reconstruct(unrolled().double(), chunks, scan.obj.shape)
    corrected = reconstruct(unrolled(trained=True).double(), chunks, scan.obj.shape)
    dark = weight == 0
    assert dark.any()
    assert (corrected[dark] == 1).all()
    assert (corrected - plain)[weight > 0.1 * weight.max()].abs().max() > 1e-3


def test_every_weight_of_a_trained_network_has_a_gradient() -> None:
    scan = small_scan(np.complex64, noisy=True)
    chunks = chunked(scan)
    generator = unrolled(trained=True)
    found = generator(chunks, scan_illumination(chunks, scan.obj.shape))
    (found - 1).abs().square().sum().backward()
    silent = [
        name for name, p in generator.named_parameters() if p.grad is None or not p.grad.abs().max() > 0
    ]
    assert silent == []


def test_every_step_is_reported() -> None:
    scan = small_scan(np.complex64, noisy=True)
    chunks = chunked(scan)
    seen: list[int] = []
    unrolled()(chunks, scan_illumination(chunks, scan.obj.shape), seen.append)
    assert seen == list(range(STEPS))


def test_a_large_canvas_in_strips_is_the_canvas_in_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = build_generator(
        ModelConfig(architecture="unrolled", unrolled_steps=2, unrolled_width=4), seed=1
    )
    weights = generator.export_weights()
    rng = np.random.default_rng(0)
    for name in weights:
        if name.endswith("out/kernel"):
            weights[name] = rng.normal(size=weights[name].shape).astype(np.float32)
    generator.import_weights(weights, "test")
    canvas = torch.from_numpy(rng.normal(size=(1, architectures.UNROLLED_INPUTS, 200, 40)).astype(np.float32))
    with torch.no_grad():
        whole = generator._unet(canvas, "unet0_")
        monkeypatch.setattr(architectures, "STRIP_PIXELS", 40 * 48)
        assert_twin(whole.numpy(), generator.correction(canvas, 0), FLOAT32)
        monkeypatch.setattr(architectures, "STRIP_HALO_PX", 8)
        with pytest.raises(AssertionError):
            assert_twin(whole.numpy(), generator.correction(canvas, 0), FLOAT32)
