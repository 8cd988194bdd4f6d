"""The PyTorch engine: true positions in groups, checkpoints without pickles, bundles, resuming, training."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from judges import assert_twin
from numpy.typing import NDArray

from ptycho.config.config import ModelConfig, PyTorchExecutionConfig, TrainingConfig
from ptycho.data.feed import GroupSource
from ptycho.data.scan import PatternStore, Scan
from ptycho.data.selection import training_groups
from ptycho.errors import BundleError, ConfigError
from ptycho.files.reader import open_scan
from ptycho.geometry.grouping import covering_groups
from ptycho.networks.bundle import read_bundle, write_bundle
from ptycho.process.progress import Progress
from ptycho.run.job import TrainingJob
from ptycho.simulation.simulate import SimulationOptions, write_scan
from ptycho_torch import engine
from ptycho_torch.config_bridge import from_core
from ptycho_torch.data import FeedDataset
from ptycho_torch.model import PtychoPINN_Lightning

Command = Callable[..., Any]
SINGLE = 2e-5
"""Bar for sums of a few dozen single-precision patches and one FFT, relative to the largest value."""
CPU = PyTorchExecutionConfig(accelerator="cpu")


@pytest.fixture(scope="module")
def whole_pixel_scan(tmp_path_factory: pytest.TempPathFactory) -> Scan:
    """Return 5 x 6 patterns of 32 x 32 px at irregular whole-pixel positions, so that no shift is left."""
    path = tmp_path_factory.mktemp("scan") / "whole.npz"
    options = SimulationOptions(
        n_px=32, n_y=5, n_x=6, step_px=4.0, jitter_px=1.5, integer_positions=True, seed=7
    )
    write_scan(path, options)
    return open_scan(path)


def new_model(scan: Scan, **settings: Any) -> PtychoPINN_Lightning:
    """Return an untrained model of a scan."""
    data, model, training = from_core(ModelConfig(N=scan.n_px, **settings))
    module = PtychoPINN_Lightning(model, data, training, seed=11).eval()
    module.attach_scan(scan.probe, scan.record, refined=False)
    return module


def patches_of(model: PtychoPINN_Lightning, scan: Scan, indices: NDArray[np.int64]) -> NDArray[np.complex64]:
    """Return the network's patches of groups of patterns, shape (B, C, N, N)."""
    with PatternStore(scan, Progress()) as store, torch.inference_mode():
        return model.network_patches(torch.from_numpy(store.amplitude(indices))).numpy()


def reconstruct(model: PtychoPINN_Lightning, scan: Scan, members: NDArray[np.int64] | None = None) -> Any:
    """Reconstruct all patterns, or some of them."""
    members = np.arange(scan.n_patterns) if members is None else members
    return engine.reconstruct(model, scan, members, execution=CPU, progress=Progress())


def stitched_by_loop(
    patches: NDArray[Any], corners_yx: NDArray[np.int64], weight: NDArray[Any], shape_yx: tuple[int, int]
) -> NDArray[np.complex128]:
    """Return the mean of patches on a canvas, weighted, pattern by pattern; 1 where nothing fell."""
    total, light = np.zeros(shape_yx, dtype=np.complex128), np.zeros(shape_yx)
    n_px = patches.shape[-1]
    for patch, (y, x) in zip(patches, corners_yx, strict=True):
        total[y : y + n_px, x : x + n_px] += patch * weight
        light[y : y + n_px, x : x + n_px] += weight
    return np.divide(total, light, out=np.ones_like(total), where=light > 0)


@pytest.mark.parametrize("gridsize", [1, 2, 3])
def test_cnn_patches_are_stitched_where_each_pattern_was_taken(gridsize: int, whole_pixel_scan: Scan) -> None:
    scan = whole_pixel_scan
    model = new_model(scan, architecture="cnn", gridsize=gridsize, amp_activation="sigmoid")
    found = reconstruct(model, scan)
    groups = covering_groups(scan.positions_yx_px, gridsize=gridsize)
    patches = patches_of(model, scan, groups.indices)[:, 0]
    corners = np.rint(scan.positions_yx_px - (scan.n_px - 1) / 2 - found.origin_yx_px).astype(int)
    light = (np.abs(scan.probe) ** 2).sum(axis=0)
    expected = stitched_by_loop(patches, corners, light, found.obj.shape)
    lit = found.coverage > 1e-3
    assert lit.mean() > 0.5
    assert_twin(expected[lit], found.obj[lit], SINGLE)
    # One pattern taken one pixel aside is seen.
    corners[4, 1] += 1
    with pytest.raises(AssertionError):
        assert_twin(stitched_by_loop(patches, corners, light, found.obj.shape)[lit], found.obj[lit], SINGLE)


def smooth_object(y: NDArray[Any], x: NDArray[Any]) -> NDArray[np.complex128]:
    """Return an object known at every coordinate, without symmetry."""
    phase = 0.5 * np.sin(y / 7.0) * np.cos(x / 9.0) + 0.3 * np.sin((y + 2 * x) / 15.0)
    return (1 - 0.1 * np.cos(x / 11.0)) * np.exp(1j * phase)


def true_patches(scan: Scan, positions_yx_px: NDArray[np.float64]) -> NDArray[np.complex128]:
    """Return the smooth object in the frame of each position, shape (J, N, N)."""
    axis = np.arange(scan.n_px) - (scan.n_px - 1) / 2
    y, x = (positions_yx_px[:, k, None] + axis for k in (0, 1))
    return smooth_object(y[:, :, None], x[:, None, :])


@pytest.mark.parametrize("gridsize", [2, 3])
def test_a_group_of_true_patches_predicts_what_the_object_scatters(gridsize: int, small_scan: Path) -> None:
    scan = open_scan(small_scan)
    model = new_model(scan, architecture="cnn", gridsize=gridsize, amp_activation="sigmoid")
    groups = covering_groups(scan.positions_yx_px, gridsize=gridsize)
    rows = list(range(0, 64, 7))
    members = groups.indices[rows]
    patches = true_patches(scan, scan.positions_yx_px)
    expected = np.abs(np.fft.fftshift(np.fft.fft2(scan.probe[0] * patches, norm="ortho"), axes=(-2, -1)))
    expected = expected[members.reshape(-1)]

    def predicted(given: NDArray[np.complex128]) -> NDArray[np.float32]:
        model.network_patches = lambda *_: torch.from_numpy(given[members].astype(np.complex64))
        with PatternStore(scan, Progress()) as store, torch.inference_mode():
            batch = FeedDataset(GroupSource(store, scan, groups, merge=True))[rows]
            amplitude, measured = model.predict(batch)[:2]
        counts = scan.raw.diff3d[members.reshape(-1)].astype(np.float32)
        assert_twin(np.sqrt(counts), measured, 1e-6)
        return amplitude.numpy()

    # Patches are moved by fractions of a pixel with periodic edges, where the probe is weak.
    tolerance = 0.03
    assert_twin(expected, predicted(patches), tolerance)
    mirrored = true_patches(scan, 2 * scan.positions_yx_px.mean(axis=0) - scan.positions_yx_px)
    swapped = true_patches(scan, scan.positions_yx_px[:, ::-1])
    nudged = true_patches(scan, scan.positions_yx_px + np.random.default_rng(2).normal(0, 1, (64, 2)))
    for wrong in (mirrored, swapped, nudged):
        with pytest.raises(AssertionError):
            assert_twin(expected, predicted(wrong), tolerance)


@pytest.mark.parametrize("architecture", ["cnn", "unrolled"])
def test_forward_predict_gives_the_patches_of_the_reconstruction(
    architecture: str, whole_pixel_scan: Scan
) -> None:
    scan = whole_pixel_scan
    model = new_model(scan, architecture=architecture, gridsize=1, unrolled_steps=6, amp_activation="sigmoid")
    centres_xy = torch.from_numpy(scan.positions_yx_px[:, None, None, ::-1].copy())
    probe = torch.from_numpy(scan.probe)
    with PatternStore(scan, Progress()) as store, torch.inference_mode():
        amplitude = torch.from_numpy(store.amplitude(np.arange(scan.n_patterns)))[:, None]
        factor = scan.record.input_scale if architecture == "cnn" else 1.0
        found = model.forward_predict(amplitude, centres_xy, probe, factor).numpy()
    assert found.shape == (30, 1, 32, 32)
    if architecture == "cnn":
        expected = patches_of(model, scan, np.arange(30)[:, None])
    else:
        whole = reconstruct(model, scan)
        corners = np.rint(scan.positions_yx_px - (scan.n_px - 1) / 2 - whole.origin_yx_px).astype(int)
        expected = np.stack([whole.obj[y : y + 32, x : x + 32] for y, x in corners])[:, None]
    # Where the prediction is dark, its phase is rounding, and the steps carry that on.
    tolerance = SINGLE if architecture == "cnn" else 5e-3
    assert_twin(expected, found, tolerance)
    if architecture == "unrolled":
        with torch.inference_mode():
            turned = model.forward_predict(amplitude, centres_xy.flip(-1), probe, factor).numpy()
        with pytest.raises(AssertionError):
            assert_twin(expected, turned, tolerance)


def test_a_checkpoint_holds_plain_values_and_loads_without_unpickling(small_run: tuple[Path, Any]) -> None:
    for name in ("last.ckpt", "best-checkpoint.ckpt"):
        path = small_run[0] / "checkpoints" / name
        content = torch.load(path, map_location="cpu", weights_only=True)
        settings = content["hyper_parameters"]
        assert {"data_config", "model_config", "training_config", "inference_config"} <= set(settings)
        assert settings["data_config"]["N"] == 32
        assert content["scale_record"]["domain"] == "counts"
        model = PtychoPINN_Lightning.load_from_checkpoint(path, map_location="cpu", weights_only=True)
        assert model.core_config.architecture == "unrolled"


def test_a_checkpoint_with_a_weight_missing_or_a_setting_too_many_is_refused(
    small_run: tuple[Path, Any], tmp_path: Path
) -> None:
    content = torch.load(small_run[0] / "checkpoints" / "last.ckpt", map_location="cpu", weights_only=True)
    name = next(key for key in content["state_dict"] if key.startswith("generator"))
    less = {key: value for key, value in content["state_dict"].items() if key != name}
    torch.save({**content, "state_dict": less}, tmp_path / "less.ckpt")
    with pytest.raises(BundleError, match=r"less\.ckpt.*Missing key"):
        engine.load(tmp_path / "less.ckpt")
    content["hyper_parameters"]["model_config"]["novelty"] = 1
    torch.save(content, tmp_path / "more.ckpt")
    with pytest.raises(BundleError, match="novelty"):
        engine.load(tmp_path / "more.ckpt")


def test_checkpoint_to_bundle_to_model_changes_nothing(
    small_run: tuple[Path, Any], small_scan: Path, tmp_path: Path
) -> None:
    model = engine.load(small_run[0] / "checkpoints" / "best-checkpoint.ckpt")
    path = write_bundle(tmp_path / "model.zip", engine.to_bundle(model))
    again = engine.from_bundle(read_bundle(path))
    scan = open_scan(small_scan)
    first, second = reconstruct(model, scan), reconstruct(again, scan)
    assert_twin(first.obj, second.obj, 1e-6)
    assert again.scale_record == model.scale_record
    assert again.core_config == model.core_config
    assert again.probe_refined == model.probe_refined
    assert torch.equal(again.probe, model.probe)
    with torch.no_grad():
        next(again.generator.parameters()).mul_(1.5)
    with pytest.raises(AssertionError):
        assert_twin(first.obj, reconstruct(again, scan).obj, 1e-6)


def weights_in(folder: Path) -> dict[str, torch.Tensor]:
    """Return the last weights of a training run."""
    path = folder / "checkpoints" / "last.ckpt"
    return torch.load(path, map_location="cpu", weights_only=True)["state_dict"]


def largest_step(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """Return the largest difference of two sets of weights."""
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


@pytest.mark.parametrize("architecture", ["cnn", "unrolled"])
def test_a_resumed_training_ends_like_one_that_was_never_stopped(
    architecture: str, small_scan: Path, train_command: Command, tmp_path: Path
) -> None:
    small = ("--n_filters_scale", 1) if architecture == "cnn" else ("--unrolled_width", 8)
    flags = ("--architecture", architecture, *small, "--gridsize", 2, "--n_images", 32, "--quiet")
    flags += ("--scheduler", "Exponential")
    assert train_command(small_scan, tmp_path / "whole", *flags, "--max_epochs", 3).code == 0
    assert train_command(small_scan, tmp_path / "part", *flags, "--max_epochs", 2).code == 0
    shutil.copyfile(tmp_path / "part" / "checkpoints" / "last.ckpt", tmp_path / "first.ckpt")
    before = weights_in(tmp_path / "part")
    assert torch.load(tmp_path / "first.ckpt", map_location="cpu", weights_only=True)["epoch"] == 1
    more = ("--max_epochs", 3, "--resume", tmp_path / "first.ckpt")
    resumed = train_command(small_scan, tmp_path / "part", *flags, *more)
    assert resumed == (0, "", "")
    last = tmp_path / "part" / "checkpoints" / "last.ckpt"
    assert torch.load(last, map_location="cpu", weights_only=True)["epoch"] == 2
    whole = weights_in(tmp_path / "whole")
    assert largest_step(weights_in(tmp_path / "part"), whole) < 1e-6
    assert largest_step(before, whole) > 1e-4


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(
    small_scan: Path, train_command: Command, tmp_path: Path
) -> None:
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        assert train_command(small_scan, tmp_path / name, "--seed", seed, "--disable_mlflow").code == 0
    assert largest_step(weights_in(tmp_path / "a"), weights_in(tmp_path / "b")) == 0.0
    assert largest_step(weights_in(tmp_path / "a"), weights_in(tmp_path / "c")) > 1e-3


@pytest.mark.parametrize("loss", ["amplitude", "poisson", "mae"])
def test_training_cnn_lowers_the_loss(
    loss: str, small_scan: Path, train_command: Command, tmp_path: Path
) -> None:
    import json

    flags = ("--architecture", "cnn", "--n_filters_scale", 1, "--gridsize", 2, "--n_images", 32)
    flags += ("--max_epochs", 4, "--batch_size", 8)
    done = train_command(small_scan, tmp_path / "run", *flags, "--torch_loss_mode", loss, "--quiet")
    assert done == (0, "", "")
    history = json.loads((tmp_path / "run" / "history.json").read_text(encoding="utf-8"))["train_loss"]
    assert len(history) == 4
    assert history[-1] < history[0]


def test_a_training_that_diverges_says_so_and_leaves_no_bundle(
    small_scan: Path, train_command: Command, tmp_path: Path
) -> None:
    flags = ("--architecture", "cnn", "--learning_rate", "1e30", "--max_epochs", 3, "--batch_size", 4)
    done = train_command(small_scan, tmp_path / "run", *flags)
    assert done.code == 2
    assert "the loss is not finite in epoch" in done.err
    assert "Lower --learning-rate" in done.err
    assert not (tmp_path / "run" / "wts.h5.zip").exists()


def test_the_accelerator_is_one_that_the_machine_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert engine.resolve_accelerator("auto") == "cpu"
    with pytest.raises(
        ConfigError, match=r"no cuda device for PyTorch \(got 'cuda', expected one of auto, cpu"
    ):
        engine.resolve_accelerator("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [engine.resolve_accelerator(name) for name in ("auto", "gpu", "cuda", "cpu")] == [
        "cuda", "cuda", "cuda", "cpu",
    ]  # fmt: skip


@pytest.mark.parametrize("architecture", ["cnn", "unrolled"])
def test_half_precision_of_the_convolutions_trains_both_networks(
    architecture: str, small_scan: Path, tmp_path: Path
) -> None:
    losses = {}
    for precision in ("32-true", "bf16-mixed"):
        model = ModelConfig(N=32, architecture=architecture)
        if architecture == "unrolled":
            model.unrolled_steps, model.unrolled_width = 4, 8
        config = TrainingConfig(
            model, nepochs=2, output_dir=tmp_path / precision, torch_loss_mode="amplitude"
        )
        scan = open_scan(small_scan)
        execution = PyTorchExecutionConfig(accelerator="cpu", logger_backend=None, precision=precision)
        job = TrainingJob(config, execution, scan, *training_groups(scan, config, validate=True))
        result = engine.fit(job)
        losses[precision] = np.array(result.history["val_loss"])
        assert {value.dtype for value in result.model.parameters()} == {torch.float32}
        assert result.model.generator.mixed_dtype is None
    single, half = losses.values()
    # Eight bits of mantissa in the convolutions only: close, and not the same.
    np.testing.assert_allclose(half, single, rtol=0.05)
    assert (half != single).any()


def test_sixteen_bits_with_five_of_exponent_need_a_gpu() -> None:
    config = TrainingConfig(ModelConfig())
    execution = PyTorchExecutionConfig(accelerator="cpu", precision="16-mixed")
    with pytest.raises(ConfigError, match="16-mixed needs a GPU"):
        engine.check_settings(config, execution, {})


def test_nothing_in_double_precision_goes_to_a_device(
    whole_pixel_scan: Scan, monkeypatch: pytest.MonkeyPatch
) -> None:
    doubles, to = [], torch.Tensor.to

    def watched(tensor: torch.Tensor, *words: Any, **more: Any) -> torch.Tensor:
        if any(isinstance(word, torch.device) for word in (*words, *more.values())):
            doubles.extend([tuple(tensor.shape)] if tensor.dtype in (torch.float64, torch.complex128) else [])
        return to(tensor, *words, **more)

    monkeypatch.setattr(torch.Tensor, "to", watched)
    for architecture in ("cnn", "unrolled"):
        reconstruct(new_model(whole_pixel_scan, architecture=architecture), whole_pixel_scan)
    assert doubles == []
    watched(torch.zeros(3, dtype=torch.float64), torch.device("cpu"))
    assert doubles == [(3,)]
