"""The classes that clients drive, call by call, in this process; ``tests/compat`` has the client itself."""

from __future__ import annotations

import logging
import os
import pickle
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ptycho.config.config import ModelConfig as CoreModelConfig
from ptycho.config.config import PyTorchExecutionConfig
from ptycho.config.config import TrainingConfig as CoreTrainingConfig
from ptycho.errors import BundleError, ConfigError, DataError
from ptycho.geometry.grouping import object_patches
from ptycho.process.progress import Progress
from ptycho.raw_data import RawData
from ptycho.run.client import REFINE_VARIABLE
from ptycho.run.job import TrainingJob
from ptycho.run.selection import selected
from ptycho_torch import engine
from ptycho_torch.api.base_api import (
    ConfigManager,
    DataloaderFormats,
    InferenceEngine,
    PtychoDataLoader,
    PtychoModel,
    Trainer,
)
from ptycho_torch.api.settings import adopt_data, execution_of
from ptycho_torch.config_params import DataConfig, InferenceConfig, ModelConfig, TrainingConfig
from ptycho_torch.lightning_utils import find_best_checkpoint
from ptycho_torch.model import PtychoPINN_Lightning
from ptycho_torch.trainer import build_trainer

PLACE_PX = 0.02
"""Shifts of a scene with sharp edges, and the spline it is compared with, place its features this well."""


class KnownPatches(nn.Module):
    """A network that knows the answer: it hands out true patches, in the order of the scan."""

    whole_canvas = False

    def __init__(self, patches: np.ndarray) -> None:
        super().__init__()
        self.patches, self.given = torch.from_numpy(patches), 0

    def forward(self, amplitude: Tensor) -> Tensor:
        first, self.given = self.given, self.given + len(amplitude)
        return self.patches[first : self.given, None].expand(amplitude.shape)


def single(**training: Any) -> ConfigManager:
    """Return the settings of a small network for single patterns of 32 px."""
    return ConfigManager(
        data_config=DataConfig(N=32, C=1, grid_size=(1, 1)),
        model_config=ModelConfig(n_filters_scale=1, C_model=1, C_forward=1),
        training_config=TrainingConfig(device="cpu", num_workers=0, **training),
    )


def new_model(manager: ConfigManager) -> PtychoModel:
    return PtychoModel._new_model(model=PtychoPINN_Lightning, config_manager=manager)


def load_scan(
    small_scan: Path, rows: np.ndarray, manager: ConfigManager, dtype: type = np.uint16
) -> PtychoDataLoader:
    raw = RawData.from_file(small_scan)
    return PtychoDataLoader.from_np(
        diff_patterns=raw.diff3d[rows].astype(dtype),
        probe=raw.probe_modes,
        positions=raw.positions_yx_px[rows],
        config_manager=manager,
    )


@pytest.mark.parametrize("per_pattern", [False, True])
def test_bad_pixels_that_a_caller_names_take_no_part(small_scan: Path, per_pattern: bool) -> None:
    raw, manager = RawData.from_file(small_scan), single()
    bad = np.random.default_rng(0).random(raw.diff3d.shape if per_pattern else (32, 32)) < 0.05
    loaders = [
        PtychoDataLoader.from_np(
            np.where(bad, garbage, raw.diff3d.astype(np.float32)),
            raw.probe_modes,
            raw.positions_yx_px,
            manager,
            bad_pixels=bad,
        )
        for garbage in (65535.0, np.nan)
    ]
    model = new_model(manager)
    one, two = (InferenceEngine(manager, model).predict_and_stitch(loader).numpy() for loader in loaders)
    np.testing.assert_array_equal(loaders[0].scan.raw.bad_pixels, bad)
    np.testing.assert_array_equal(one, two)


def test_a_background_that_a_caller_names_is_that_of_the_scan(small_scan: Path) -> None:
    raw = RawData.from_file(small_scan)
    arrays = raw.diff3d, raw.probe_modes, raw.positions_yx_px
    loader = PtychoDataLoader.from_np(*arrays, single(), background=2)
    assert loader.scan is not None
    np.testing.assert_array_equal(loader.scan.background, np.full((32, 32), 2, np.float32))
    with pytest.raises(DataError, match="scan: background holds values that are no counts"):
        PtychoDataLoader.from_np(*arrays, single(), background=-2)


@pytest.mark.parametrize("switch", ["on", "off"])
def test_the_object_is_refined_unless_the_environment_says_no(
    small_scan: Path, switch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(REFINE_VARIABLE, switch)
    manager, rows = single(), np.arange(40)
    model, loader = new_model(manager), load_scan(small_scan, rows, manager)
    found = InferenceEngine(manager, model).predict_and_stitch(loader).numpy()
    own = engine.reconstruct(
        model.model,
        loader.scan,
        rows,
        execution=PyTorchExecutionConfig(accelerator="cpu"),
        progress=Progress(),
        fit_scale=manager.inference_config.varpro_scaling,
        centre_yx_px=tuple(
            np.mean([loader.scan.positions_yx_px.min(0), loader.scan.positions_yx_px.max(0)], 0)
        ),
        select=selected if switch == "on" else None,
    )
    np.testing.assert_array_equal(found, own.obj)
    assert (own.chosen is not None) == (switch == "on")


@pytest.mark.parametrize("extra", [0, 1])
def test_the_middle_of_the_result_is_the_middle_of_all_positions(
    small_scan: Path, extra: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scan dense at one end; with one more row at the other end the parity of the height changes.

    The patches are true: nothing is to be refined.
    """
    monkeypatch.setenv(REFINE_VARIABLE, "off")
    raw = RawData.from_file(small_scan)
    rows = np.concatenate([np.arange(24), np.arange(24, 56 + 8 * extra, 3)])
    positions = raw.positions_yx_px[rows]
    middle = (positions.min(axis=0) + positions.max(axis=0)) / 2
    assert abs(middle - positions.mean(axis=0)).max() > 2
    truth = np.asarray(raw.objectGuess)
    manager = single()
    model = new_model(manager)
    model.model.generator = KnownPatches(object_patches(truth, positions, 32))
    found = InferenceEngine(manager, model).predict_and_stitch(load_scan(small_scan, rows, manager)).numpy()
    assert found.dtype == np.complex64
    from scipy.ndimage import map_coordinates

    corner = middle - (np.array(found.shape) - 1) / 2
    inner = (slice(12, -12),) * 2
    at = np.stack(np.mgrid[: found.shape[0], : found.shape[1]]) + corner[:, None, None]
    expected = map_coordinates(truth.real, at, order=3) + 1j * map_coordinates(truth.imag, at, order=3)
    from skimage.registration import phase_cross_correlation

    moved = phase_cross_correlation(
        found[inner] - found[inner].mean(),
        expected[inner] - expected[inner].mean(),
        upsample_factor=50,
        normalization=None,
    )[0]
    assert abs(moved).max() <= PLACE_PX


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64])
def test_counts_of_any_integer_type_give_the_same_object(small_scan: Path, dtype: type) -> None:
    raw, rows, manager = RawData.from_file(small_scan), np.arange(64), single()
    assert raw.diff3d.max() > np.iinfo(np.uint8).max
    model = new_model(manager)
    stitch = InferenceEngine(manager, model).predict_and_stitch
    if dtype is np.uint8:
        # Counts that fit, so that only the type differs.
        half = PtychoDataLoader.from_np(raw.diff3d // 256, raw.probe_modes, raw.positions_yx_px, manager)
        same = PtychoDataLoader.from_np(
            (raw.diff3d // 256).astype(dtype), raw.probe_modes, raw.positions_yx_px, manager
        )
    else:
        half, same = load_scan(small_scan, rows, manager), load_scan(small_scan, rows, manager, dtype)
    assert same.scan is not None
    np.testing.assert_array_equal(same.scan.raw.diff3d, raw.diff3d // (256 if dtype is np.uint8 else 1))
    assert same.scan.record.domain == "counts"
    np.testing.assert_array_equal(stitch(half), stitch(same))


def test_patterns_of_another_size_than_the_model_are_refused(small_scan: Path) -> None:
    manager = single()
    manager.data_config.N = 64
    with pytest.raises(DataError, match=r"got N=32, expected N=64"):
        load_scan(small_scan, np.arange(8), manager)


def test_the_data_decide_size_and_the_channels_decide_the_grid(
    small_scan: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    manager = ConfigManager(data_config=DataConfig(N=128, C=9, K=6, grid_size=(2, 2)))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "train_data.npz").symlink_to(small_scan)
    with caplog.at_level(logging.WARNING):
        loader = PtychoDataLoader(
            data_dir=tmp_path / "in",
            config_manager=manager,
            data_format=DataloaderFormats("lightning_only_module"),
            output_dir=tmp_path / "out",
        )
    data = manager.data_config
    assert (data.N, data.grid_size, data.K) == (32, (3, 3), 9)
    assert len(caplog.records) == 3
    assert loader.output_dir is not None
    assert loader.output_dir.parent == tmp_path / "out"
    assert not (tmp_path / "out").exists()
    caplog.clear()
    adopt_data(manager, 32, "scan")
    assert not caplog.records


@pytest.mark.parametrize("channels", [0, 3, 6])
def test_a_number_of_channels_that_is_no_square_is_refused(channels: int) -> None:
    with pytest.raises(ConfigError, match=rf"no square \(got {channels},"):
        adopt_data(ConfigManager(data_config=DataConfig(C=channels)), 64, "scan")


def test_a_client_without_cuda_trains_on_the_cpu_in_one_process(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with caplog.at_level(logging.WARNING):
        found = execution_of(TrainingConfig(device="cuda", strategy="ddp_spawn", n_devices=2, accum_steps=3))
    assert (found.accelerator, found.devices, found.strategy, found.accum_steps) == ("cpu", 1, "auto", 3)
    assert ["CUDA" in record.message for record in caplog.records] == [True, False]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert execution_of(TrainingConfig(device="cuda:1")).accelerator == "cuda"


def test_a_loaded_model_fixes_its_architecture(small_scan: Path) -> None:
    manager = single()
    model = new_model(manager)
    loaded = ConfigManager.from_loaded_model(model)
    loaded.validate_arch_compatibility(model)
    with pytest.raises(ConfigError, match="the trained model fixes n_filters_scale"):
        loaded.update(model_config={"n_filters_scale": 2})
    loaded.update(inference_config={"patch_weighting": "uniform"})
    assert loaded.inference_config.patch_weighting == "uniform"
    data = DataConfig(N=64, C=1, grid_size=(1, 1))
    other = ConfigManager(data_config=data, model_config=loaded.model_config)
    with pytest.raises(ConfigError, match=r"N=64 instead of 32") as caught:
        other.validate_arch_compatibility(model)
    assert "n_filters_scale" not in str(caught.value)


def test_a_checkpoint_gives_back_the_settings_of_its_training(small_run: tuple[Path, Any]) -> None:
    data, model, training, inference = PtychoModel._extract_configs_from_checkpoint(
        str(small_run[0] / "checkpoints/last.ckpt")
    )
    kinds = (DataConfig, ModelConfig, TrainingConfig, InferenceConfig)
    assert tuple(type(item) for item in (data, model, training, inference)) == kinds
    assert (data.N, data.grid_size, model.architecture, training.epochs) == (32, (1, 1), "unrolled", 1)
    pickle.loads(pickle.dumps((data, model, training, inference)))
    assert PtychoModel._load(small_run[0] / "wts.h5.zip").model.core_config.architecture == "unrolled"


def test_a_file_that_is_no_checkpoint_is_refused_in_one_line(
    small_run: tuple[Path, Any], tmp_path: Path
) -> None:
    cut = tmp_path / "cut.ckpt"
    cut.write_bytes((small_run[0] / "checkpoints/last.ckpt").read_bytes()[:5000])
    with pytest.raises(BundleError, match=r"cut\.ckpt: not a checkpoint of this toolkit, or damaged") as info:
        PtychoModel._extract_configs_from_checkpoint(cut)
    assert "\n" not in str(info.value)


def test_the_best_checkpoint_is_preferred_to_the_last_and_that_to_any_other(tmp_path: Path) -> None:
    assert find_best_checkpoint(tmp_path) is None
    assert find_best_checkpoint(tmp_path / "absent") is None
    names = ("a/epoch=1.ckpt", "a/epoch=2.ckpt", "checkpoints/last.ckpt", "checkpoints/best-checkpoint.ckpt")
    for age, name in enumerate(names):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
        os.utime(path, (1000 + age, 1000 + age))
        assert find_best_checkpoint(tmp_path) == path
        if age == 0:
            (path.parent / ".unfinished.tmp.ckpt").touch()
    assert find_best_checkpoint(str(tmp_path / "checkpoints")) == path


def test_a_training_needs_files(small_scan: Path) -> None:
    manager = single(epochs=1)
    loader = load_scan(small_scan, np.arange(8), manager)
    trainer = Trainer._from_lightning(new_model(manager), loader, "lightning", manager)
    with pytest.raises(ConfigError, match="holds a scan in memory"):
        trainer.train()
    with pytest.raises(ValueError, match="spark"):
        Trainer._from_lightning(new_model(manager), loader, "spark", manager)


def test_the_bounds_of_the_client_reach_the_training(small_scan: Path, tmp_path: Path) -> None:
    """Along y and along x, which the error names."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "train_data.npz").symlink_to(small_scan)
    for name, told in (
        ("y_bounds", r"y_bounds \[0.51, 0.511\] and x_bounds \[0.0, 1.0\] for 64 points"),
        ("x_bounds", r"y_bounds \[0.0, 1.0\] and x_bounds \[0.51, 0.511\] for 64 points"),
    ):
        manager = single(epochs=1)
        manager.data_config.y_bounds = manager.data_config.x_bounds = (0.0, 1.0)
        setattr(manager.data_config, name, (0.51, 0.511))
        loader = PtychoDataLoader(tmp_path / "in", manager, output_dir=tmp_path / "out")
        with pytest.raises(DataError, match=rf"no scan point lies within the bounds \(got {told}"):
            Trainer._from_lightning(new_model(manager), loader, "lightning", manager).train()


def test_a_checkpoint_is_written_in_its_own_folder_and_appears_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = TrainingJob(CoreTrainingConfig(CoreModelConfig()), PyTorchExecutionConfig(), None, None)
    writer = build_trainer(job, "cpu", False, []).strategy.checkpoint_io
    path = tmp_path / "checkpoints" / "last.ckpt"
    # Nothing can be written to the folder of temporary files.
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "absent"))
    writer.save_checkpoint({"epoch": 1}, str(path))

    def broken(content: object, where: Path) -> None:
        where.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(torch, "save", broken)
    with pytest.raises(OSError, match="no space left"):
        writer.save_checkpoint({"epoch": 2}, str(path))
    assert torch.load(path, weights_only=True) == {"epoch": 1}
    assert list(path.parent.iterdir()) == [path]


STOPPED = """
import signal, sys
from pathlib import Path
from lightning.pytorch.callbacks import Callback
from ptycho_torch.api.base_api import ConfigManager
from ptycho_torch.config_params import DataConfig, ModelConfig, TrainingConfig
from ptycho_torch.train import train_folder
class Stop(Callback):
    def on_train_epoch_end(self, trainer, module):
        if trainer.current_epoch == 1:
            signal.raise_signal(int(sys.argv[3]))
# A run in the background of a shell starts with this signal ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
settings = (DataConfig(C=1, grid_size=(1, 1)),
            ModelConfig(architecture="unrolled", unrolled_steps=2, unrolled_width=4, C_model=1, C_forward=1),
            TrainingConfig(epochs=1000, device="cpu", torch_loss_mode="amplitude"))
try:
    source, output = Path(sys.argv[1]), Path(sys.argv[2])
    train_folder(source, existing_config=settings, output_dir=output, callbacks=[Stop()])
except BaseException as stop:
    print(type(stop).__name__, signal.getsignal(signal.SIGINT) is signal.default_int_handler)
"""


@pytest.mark.parametrize(
    ("number", "raised"), [(signal.SIGTERM, "Terminated"), (signal.SIGINT, "KeyboardInterrupt")]
)
def test_what_interrupts_a_training_is_an_exception_and_no_exit(
    small_scan: Path, tmp_path: Path, number: int, raised: str
) -> None:
    words = (str(small_scan), str(tmp_path / "out"), str(int(number)))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", STOPPED, *words],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert done.stdout.split()[-2:] == [raised, "True"], done.stderr
    checkpoints = tmp_path / "out" / "checkpoints"
    assert {path.name for path in checkpoints.iterdir()} == {"best-checkpoint.ckpt", "last.ckpt"}
    assert list(tmp_path.glob("ptychopinn-*")) == []
