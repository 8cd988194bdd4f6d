"""Facts about the two backends: one physics, one network, one training; each reads what the other wrote.

Each backend computes in a process of its own (``worker.py``) and NumPy compares the numbers.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from judges import FLOAT32, assert_twin

from ptycho import physics
from ptycho.config.config import ModelConfig
from ptycho.data.npz import read_npz, write_npz
from ptycho.data.reconstruction import SCANNED_SHARE
from ptycho.files.reader import open_scan
from ptycho.networks.architectures import architecture_table, initial_weights
from ptycho.networks.bundle import Bundle, write_bundle
from ptycho.simulation.simulate import SimulationOptions, simulate, write_scan

WORKER = Path(__file__).with_name("worker.py")
sys.path.insert(0, str(WORKER.parent))
worker = importlib.import_module("worker")
EPOCHS = worker.EPOCHS
GRADIENT = 1e-5
"""TensorFlow returns the gradient of a float32 weight in float32, however precise the computation."""
OBJECT = 1e-5
"""Single-precision Fourier transforms after each other, each with an error of 2e-7."""
REFINED = 1e-4
"""A position is a small difference of large sums."""
LOSS = 1e-5
LATER = 2e-2
"""The first steps of Adam have one length for every weight, also where the sign of its gradient is rounding:
a network without physics inside drifts apart by a few thousandths in ten steps. Plain descent does not."""
QUALITY = 0.03
SECONDS = 240

pytestmark = pytest.mark.slow

Answers = dict[str, np.ndarray]


def _together(folder: Path, *stage: str) -> None:
    """Run both backends at the same time."""
    words = [[sys.executable, str(WORKER), name, str(folder), *stage] for name in ("torch", "tf")]
    started = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for command in words]
    for process in started:
        _, err = process.communicate(timeout=SECONDS)
        assert process.returncode == 0, err[-3000:]


def _bright_scan(path: Path, options: SimulationOptions) -> None:
    """Write a scan whose probe lights every detector pixel: a Gaussian with a steep wave front."""
    arrays = simulate(options)
    n_px = options.n_px
    # A probe that is even about the middle of the patch would have no light at the Nyquist frequency.
    y, x = (np.indices((n_px, n_px)) - n_px / 2) / n_px
    mode = np.exp((y**2 + x**2) * (190j - 32))
    probe = np.stack([mode, 5 * (x + 0.5j * y) * mode])
    probe *= np.sqrt(options.photons / (np.abs(probe) ** 2).sum())
    corners_px = np.stack([arrays["ycoords"], arrays["xcoords"]], axis=1) - (n_px - 1) / 2
    corners = np.floor(corners_px + 0.5).astype(np.int64)
    patches = physics.extract_patches(arrays["objectGuess"], corners, n_px)
    counts = physics.diffracted_intensity(patches, physics.shift_field(probe, corners_px - corners))
    arrays["diff3d"] = np.random.default_rng(1).poisson(counts).astype(np.uint16)
    arrays["probeGuess"] = probe.astype(np.complex64)
    write_npz(path, arrays)


def _masked_scan(path: Path, whole: Path) -> None:
    """Write a scan with a gap, with other bad pixels in every pattern and with nonsense under all of them."""
    arrays = read_npz(whole)
    bad = np.random.default_rng(4).random(arrays["diff3d"].shape) < 0.05
    bad[:, 19:22], bad[:, :, 19:22] = True, True
    arrays["diff3d"] = np.where(bad, np.nan, arrays["diff3d"].astype(np.float32))
    write_npz(path, arrays | {"bad_pixels": bad})


def _random_bundle(path: Path, model: ModelConfig, scan_file: Path) -> None:
    """Write a bundle whose every layer matters, also those that start at zero."""
    scan = open_scan(scan_file)
    rng = np.random.default_rng(8)
    weights = initial_weights(architecture_table(model), 4)
    for name, start in weights.items():
        spread = 0.02 if start.ndim < 4 or not start.any() else 0.0
        weights[name] = (start + spread * rng.standard_normal(start.shape)).astype(np.float32)
    write_bundle(path, Bundle("numpy", model, weights, scan.probe, 0.05, False, scan.record))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write scans and bundles."""
    folder = tmp_path_factory.mktemp("parity")
    options = SimulationOptions(n_px=32, n_y=10, n_x=10, step_px=3.0, photons=1e6, n_modes=2, seed=3)
    _bright_scan(folder / "scan.npz", options)
    _masked_scan(folder / "masked.npz", folder / "scan.npz")
    write_scan(folder / "dark.npz", options)
    for name, model in worker.MODELS.items():
        _random_bundle(folder / f"{name}.h5.zip", model, folder / "scan.npz")
    return folder


@pytest.fixture(scope="module")
def folder(inputs: Path) -> Path:
    """Let both backends compute everything."""
    _together(inputs)
    _together(inputs, "other")
    return inputs


@pytest.fixture(scope="module")
def answers(folder: Path) -> tuple[Answers, Answers]:
    """Answers of PyTorch and of TensorFlow."""
    first, second = read_npz(folder / "torch.npz"), read_npz(folder / "tf.npz")
    assert sorted(first) == sorted(second)
    return first, second


def _pairs(answers: tuple[Answers, Answers], prefix: str) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    names = [name for name in answers[0] if name.startswith(prefix)]
    assert names, f"nothing was computed for {prefix}"
    yield from ((name, answers[0][name], answers[1][name]) for name in names)


def test_both_backends_have_one_physics(answers: tuple[Answers, Answers]) -> None:
    for name, expected, found in _pairs(answers, "physics/"):
        try:
            assert_twin(expected, found, FLOAT32)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from error


def test_every_weight_has_one_gradient_of_every_loss(answers: tuple[Answers, Answers]) -> None:
    for name, expected, found in _pairs(answers, "loss/"):
        np.testing.assert_allclose(found, expected, rtol=1e-6, err_msg=name)
    for name, expected, found in _pairs(answers, "gradient/"):
        assert np.abs(expected).max() > 0, f"{name} is silent"
        try:
            assert_twin(expected, found, GRADIENT)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from error


@pytest.mark.parametrize("architecture", worker.ARCHITECTURES)
def test_the_same_bundle_gives_the_same_object(answers: tuple[Answers, Answers], architecture: str) -> None:
    covers = list(_pairs(answers, f"coverage/{architecture}"))
    objects = _pairs(answers, f"object/{architecture}")
    for (_, expected, found), (_, light, same) in zip(objects, covers, strict=True):
        assert_twin(light, same, FLOAT32)
        # Outside, patches are divided by a billionth of the light.
        scanned = light >= SCANNED_SHARE
        assert_twin(expected[scanned], found[scanned], OBJECT)
        with pytest.raises(AssertionError):
            assert_twin(expected[scanned], found[scanned] * (1 + 5 * OBJECT), OBJECT)


def test_both_backends_refine_alike(answers: tuple[Answers, Answers]) -> None:
    light = answers[0]["coverage/unrolled/0"] >= SCANNED_SHARE
    for name, expected, found in _pairs(answers, "refine/"):
        assert np.abs(expected).max() > 1e-4, f"{name} stands still"
        inside = light if name.endswith("object") else ...
        try:
            assert_twin(expected[inside], found[inside], REFINED)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from error


def test_both_backends_leave_bad_pixels_out(inputs: Path) -> None:
    _together(inputs, "masked")
    first, second = (read_npz(inputs / f"{name}_masked.npz") for name in ("torch", "tf"))
    light = first["coverage"] >= SCANNED_SHARE
    for name, expected, found in _pairs((first, second), ""):
        if name.startswith("history/"):
            # The first mean; what follows an epoch drifts apart with the sign of gradients that are rounding.
            bar = LOSS if name.endswith("train_loss") else LATER
            np.testing.assert_allclose(found[0], expected[0], rtol=bar, err_msg=name)
            continue
        inside = light if name.startswith("object/") or name.endswith("/object") else ...
        assert np.isfinite(expected[inside]).all(), name
        try:
            assert_twin(expected[inside], found[inside], REFINED if name.startswith("refine/") else OBJECT)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from error


def test_dark_detector_pixels_leave_nothing_to_rounding(answers: tuple[Answers, Answers]) -> None:
    assert_twin(answers[0]["dark"], answers[1]["dark"], OBJECT)


def test_the_first_losses_of_a_training_agree(answers: tuple[Answers, Answers]) -> None:
    for name, expected, found in _pairs(answers, "history/"):
        assert len(set(expected)) == EPOCHS, f"{name} stands still"
        # An epoch of cnn is three steps or more, so its first mean holds the first three losses.
        exact = 1 if "/cnn" in name and "sgd" not in name else EPOCHS
        if name.endswith("train_loss"):
            np.testing.assert_allclose(found[:exact], expected[:exact], rtol=LOSS, err_msg=name)
        np.testing.assert_allclose(found, expected, rtol=LATER, err_msg=name)


def test_each_backend_reconstructs_the_bundled_scan_with_what_the_other_trained(folder: Path) -> None:
    for writer, reader in (("torch", "tf"), ("tf", "torch")):
        own = read_npz(folder / f"{writer}.npz", ["own"])["own"]
        other = read_npz(folder / f"{reader}_other.npz")
        scanned = other["coverage"] >= SCANNED_SHARE
        assert_twin(own[scanned], other["object"][scanned], OBJECT)


def test_both_backends_train_to_the_same_quality_on_the_bundled_scan(
    answers: tuple[Answers, Answers],
) -> None:
    first, second = (set_["quality/complex_nrmse"] for set_ in answers)
    assert abs(first - second) < QUALITY * first
    assert first < 0.03
