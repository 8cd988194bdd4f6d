"""A training run and an inference leave no trace in their process, also where they fail."""

from __future__ import annotations

import contextlib
import copy
import logging
import os
import random
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flag_walk import EntryPoint, entry_points

from ptycho.cli.console import run_command
from ptycho.config.config import InferenceConfig, ModelConfig, PyTorchExecutionConfig, TrainingConfig
from ptycho.errors import DataError, PtychoError
from ptycho.process.interrupts import Terminated
from ptycho.process.isolation import untouched_process
from ptycho.raw_data import RawData
from ptycho.run.engines import load_engine
from ptycho.run.pipeline import infer, train
from ptycho.workflows.components import run_cdi_example_with_backend
from ptycho_torch.isolation import untouched_torch

BACKENDS = ("pytorch", "tensorflow")
MODELS: dict[str, dict[str, Any]] = {
    "unrolled": {"unrolled_steps": 3, "unrolled_width": 4},
    "cnn": {"n_filters_scale": 1},
}


def tensorflow_state() -> dict[str, Any]:
    """Return what TensorFlow keeps for the whole process."""
    load_engine("tensorflow")
    from tensorflow.python.eager import context

    tf = sys.modules["tensorflow"]
    state = context.context()
    rng = getattr(state, "_rng", None)
    return {
        "seed": state._seed,
        "generator": rng and rng.getstate(),
        "own generator": tf.random.get_global_generator().state.numpy().tobytes(),
        "eager": tf.config.functions_run_eagerly(),
        "floatx": tf.keras.backend.floatx(),
        "policy": tf.keras.mixed_precision.global_policy().name,
        "threads": (
            tf.config.threading.get_intra_op_parallelism_threads(),
            tf.config.threading.get_inter_op_parallelism_threads(),
        ),
    }


def torch_state() -> dict[str, Any]:
    """Return what PyTorch keeps for the whole process."""
    cudnn = torch.backends.cudnn
    return {
        "generator": torch.get_rng_state().numpy().tobytes(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "only warns": torch.is_deterministic_algorithms_warn_only_enabled(),
        "fills": torch.utils.deterministic.fill_uninitialized_memory,
        "cudnn": (cudnn.deterministic, cudnn.benchmark, cudnn.enabled),
        "matmul": torch.get_float32_matmul_precision(),
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "threads": torch.get_num_threads(),
        "gradients": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
    }


def process_state() -> dict[str, Any]:
    """Return what a host program may expect to find again, once both frameworks are imported."""
    for backend in BACKENDS:
        load_engine(backend)
    named = logging.root.manager.loggerDict
    loggers = [logging.root, *(item for item in named.values() if isinstance(item, logging.Logger))]
    found: dict[str, Any] = {
        "random": random.getstate(),
        "numpy": [np.asarray(part).tobytes() for part in np.random.get_state()],  # noqa: NPY002
        "errors": np.geterr(),
        "environment": dict(os.environ),
        "folder": Path.cwd(),
        "filters": list(warnings.filters),
        "shown by": warnings.showwarning,
        "signals": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "streams": [getattr(stream, "errors", None) for stream in (sys.stdout, sys.stderr)],
        "threads": {thread.name for thread in threading.enumerate() if not thread.daemon},
    }
    for item in loggers:
        handlers = [(handler, handler.level) for handler in item.handlers]
        found[f"logger {item.name}"] = (item.level, item.disabled, item.propagate, handlers)
    found |= {f"torch {name}": value for name, value in torch_state().items()}
    return found | {f"tensorflow {name}": value for name, value in tensorflow_state().items()}


def changed(before: dict[str, Any]) -> list[str]:
    """Return the names of everything that is no longer as it was."""
    after = process_state()
    return [name for name, value in before.items() if after[name] != value]


@contextlib.contextmanager
def an_unusual_host() -> Iterator[None]:
    """Set everything that a run might take for granted to something else."""
    with untouched_torch():
        random.seed(5)
        np.random.seed(6)  # noqa: NPY002
        torch.manual_seed(7)
        torch.use_deterministic_algorithms(True, warn_only=True)
        os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)
        os.environ["PL_GLOBAL_SEED"] = "3"
        logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
        logging.getLogger("tensorflow").setLevel(logging.CRITICAL)
        warnings.filterwarnings("ignore", message="a rule of the host")
        yield


def training(scan: Path, folder: Path, backend: str, architecture: str, **options: Any) -> TrainingConfig:
    model = ModelConfig(N=32, gridsize=1, architecture=architecture, **MODELS[architecture])
    settings = {"nepochs": 1, "n_groups": 24, "torch_loss_mode": "amplitude", **options}
    return TrainingConfig(model, scan, output_dir=folder, backend=backend, **settings)


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("architecture", sorted(MODELS))
def test_a_training_and_an_inference_leave_no_trace(
    backend: str, architecture: str, small_scan: Path, tmp_path: Path
) -> None:
    execution = PyTorchExecutionConfig(accelerator="cpu", deterministic=True)
    config = training(small_scan, tmp_path / "run", backend, architecture)
    wanted = InferenceConfig(ModelConfig(), tmp_path / "run", small_scan, output_dir=tmp_path / "pictures")
    wanted.backend = backend
    settings = [copy.deepcopy(asdict(item)) for item in (config, execution, wanted)]
    broken = tmp_path / "broken.npz"
    broken.write_bytes(b"no scan")
    with an_unusual_host():
        before = process_state()
        train(config, execution)
        assert changed(before) == []
        infer(wanted, execution)
        assert changed(before) == []
        for file, words, options in (
            (broken, "broken", {}),
            (small_scan, "loss", {"learning_rate": 1e30, "nepochs": 9}),
        ):
            wrong = training(file, tmp_path / words, backend, architecture, **options)
            with pytest.raises(PtychoError, match=words):
                train(wrong, execution)
            assert changed(before) == []
    assert [asdict(item) for item in (config, execution, wanted)] == settings


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_a_plug_in_calls_leaves_no_trace(backend: str, small_scan: Path, tmp_path: Path) -> None:
    raw = RawData.from_file(small_scan)
    config = training(small_scan, tmp_path / "run", backend, "unrolled")
    settings = copy.deepcopy(asdict(config))
    with an_unusual_host():
        before = process_state()
        run_cdi_example_with_backend(raw, None, config, do_stitching=True)
        assert changed(before) == []
    assert asdict(config) == settings


def commands(scan: Path, folder: Path) -> dict[str, list[str]]:
    """Return words with which every command does its work in seconds."""
    fast = "--max-epochs 1 --gridsize 1 --unrolled-steps 3 --unrolled-width 4 --n-images 24 --logger none"
    train = f"--train-data-file {scan} --output-dir {folder}/run --device cpu {fast}"
    infer = f"--model-path {folder}/run --test-data {scan} --output-dir {folder}/found --n-images 24"
    judge = f"--reconstruction {folder}/found --truth {scan} --test-data {scan} --output-dir {folder}/scores"
    return {
        "train": train.split(),
        "inference": infer.split(),
        "evaluate": judge.split(),
        "simulate": f"--output {folder}/new.npz --size 32 --grid 3 --preview {folder}/new.png".split(),
        "pretrain": f"--output-dir {folder}/net --scans 1 --iterations 1 --batch-size 1 --width 4".split(),
    }


def kind_of(entry_point: EntryPoint) -> str:
    return next(
        kind
        for kind in ("pretrain", "train", "inference", "evaluate", "simulate")
        if kind in entry_point.name
    )


@pytest.mark.slow
def test_every_command_called_from_python_leaves_no_trace(
    small_scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words, done = commands(small_scan, tmp_path), set()
    found = sorted(
        (entry_point for entry_point in entry_points() if entry_point.flags()),
        key=lambda entry_point: list(words).index(kind_of(entry_point)),
    )
    with an_unusual_host():
        root = logging.getLogger()
        handlers, root.handlers = root.handlers, []
        before = process_state()
        for entry_point in found:
            if kind_of(entry_point) not in done:
                done.add(kind_of(entry_point))
                assert entry_point.main(words[kind_of(entry_point)]) == 0, capsys.readouterr().err
                assert changed(before) == [], entry_point.name
            for wrong in (["--no-such-flag"], [*words[kind_of(entry_point)], "--seed", "-3"], ["--debug"]):
                with contextlib.suppress(SystemExit, PtychoError):
                    assert entry_point.main(wrong) == 2
                assert changed(before) == [], (entry_point.name, wrong)
        root.handlers = handlers
    assert done == words.keys()


def test_a_command_that_is_interrupted_or_fails_leaves_no_trace(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        assert warnings.filters[0][0] == "ignore"
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        os.environ["PLANTED"] = "1"
        logging.getLogger("planted").setLevel(logging.CRITICAL)
        raise planted[-1]

    planted: list[BaseException] = []
    with an_unusual_host():
        before = process_state()
        for stop, status in ((KeyboardInterrupt(), 130), (Terminated(), 143), (ZeroDivisionError(), 1)):
            planted.append(stop)
            assert run_command(work, debug=False) == status
            assert changed(before) == []
        with pytest.raises(ZeroDivisionError):
            run_command(lambda: 1 // 0, debug=True)
        assert changed(before) == []


def test_what_the_classes_of_the_api_do_leaves_no_trace(small_scan: Path, tmp_path: Path) -> None:
    from ptycho_torch.api import base_api
    from ptycho_torch.config_params import DataConfig, TrainingConfig
    from ptycho_torch.config_params import ModelConfig as TorchModel
    from ptycho_torch.model import PtychoPINN_Lightning

    raw = RawData.from_file(small_scan)
    manager = base_api.ConfigManager(
        DataConfig(N=32, C=1, grid_size=(1, 1)),
        TorchModel(architecture="unrolled", unrolled_steps=3, unrolled_width=4),
        TrainingConfig(epochs=1, device="cpu", num_workers=0, torch_loss_mode="amplitude"),
    )
    with an_unusual_host():
        before = process_state()
        model = base_api.PtychoModel._new_model(PtychoPINN_Lightning, manager)
        assert changed(before) == []
        loader = base_api.PtychoDataLoader(small_scan, manager, output_dir=tmp_path)
        trainer = base_api.Trainer._from_lightning(model, loader, "lightning", manager)
        settings = copy.deepcopy([asdict(item) for item in manager.to_tuple()])
        trainer.train()
        assert changed(before) == []
        (last,) = tmp_path.rglob("last.ckpt")
        base_api.PtychoModel._extract_configs_from_checkpoint(last)
        loaded = base_api.PtychoModel._load(last)
        asked = base_api.ConfigManager.from_loaded_model(loaded)
        scan = base_api.PtychoDataLoader.from_np(raw.diff3d, raw.probe_modes, raw.positions_yx_px, asked)
        base_api.InferenceEngine(asked, loaded).predict_and_stitch(scan)
        assert changed(before) == []
        broken = tmp_path / "broken.npz"
        broken.write_bytes(b"no scan")
        with pytest.raises(PtychoError):
            base_api.PtychoDataLoader(broken, manager, output_dir=tmp_path)
        loader.data_dir = broken
        with pytest.raises(PtychoError):
            trainer.train()
        assert changed(before) == []
    assert [asdict(item) for item in manager.to_tuple()] == settings


def test_building_a_network_draws_from_no_generator_of_the_host() -> None:
    for backend in BACKENDS:
        engine = load_engine(backend)
        from ptycho.networks.bundle import read_bundle
        from ptycho.run.engines import PRETRAINED_FILE

        before = process_state()
        engine.from_bundle(read_bundle(PRETRAINED_FILE))
        assert changed(before) == []


def test_everything_planted_is_put_back_after_an_error(tmp_path: Path) -> None:
    before = process_state()
    with contextlib.suppress(DataError), untouched_torch():
        random.random()
        np.random.standard_normal()  # noqa: NPY002
        torch.rand(3)
        np.seterr(all="raise")
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
        os.environ.pop("PATH")
        os.chdir(tmp_path)
        warnings.simplefilter("ignore")
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        logging.getLogger().addHandler(logging.NullHandler())
        logging.getLogger("ptycho").setLevel(logging.CRITICAL)
        logging.getLogger("made.by.a.run").setLevel(logging.CRITICAL)
        logging.getLogger("lightning.pytorch").disabled = True
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = True
        torch.set_default_dtype(torch.float64)
        torch.set_num_threads(torch.get_num_threads() + 1)
        torch.set_grad_enabled(False)
        planted = changed(before)
        raise DataError("planted")
    assert len(planted) >= 14, planted
    assert changed(before) == []
    assert logging.getLogger("made.by.a.run").getEffectiveLevel() == logging.getLogger().level
    with untouched_process():
        random.random()
    assert changed(before) == []


def test_the_last_epoch_lies_where_an_interruption_looks_for_it() -> None:
    from ptycho.run.engines import LAST
    from ptycho.tf import checkpoints
    from ptycho_torch import engine

    expected = {"pytorch": "checkpoints/last.ckpt", "tensorflow": "checkpoints/last.h5.zip"}
    written = {"pytorch": f"{engine.LAST_STEM}.ckpt", "tensorflow": checkpoints.LAST_NAME}
    assert {backend: f"checkpoints/{name}" for backend, name in written.items()} == expected == LAST
