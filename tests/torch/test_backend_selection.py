"""Choosing a backend: by name, by flag, and what happens where its packages are missing."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from ptycho import params
from ptycho.errors import ConfigError, MissingPackageError
from ptycho.run import engines, pipeline

Python = Callable[..., CompletedProcess[str]]
SENTENCE = (
    "PyTorch backend requires Lightning. Install with: pip install -e .[torch] "
    "(without a checkout: pip install 'ptychopinn[torch]')"
)


def test_the_disguise_hides_lightning_and_nothing_else(without_lightning: Path, run_python: Python) -> None:
    code = "from importlib.util import find_spec as find; print(find('lightning'), find('numpy') is not None)"
    assert run_python("-c", code, hidden=without_lightning).stdout == "None True\n"


def test_importing_train_without_lightning_fails_with_the_install_command(
    without_lightning: Path, run_python: Python
) -> None:
    code = (
        "try:\n    import ptycho_torch.train\nexcept RuntimeError as error:\n    print(error)\n"
        "else:\n    print('imported')"
    )
    done = run_python("-c", code, hidden=without_lightning)
    assert (done.stdout, done.stderr) == (SENTENCE + "\n", "")


@pytest.mark.parametrize(
    "words",
    [
        ("ptycho_torch.train", "--train_data_file", "datasets/demo_64.npz", "--output_dir"),
        (
            "ptycho_torch.inference",
            "--model_path",
            "datasets",
            "--test_data",
            "datasets/demo_64.npz",
            "--output_dir",
        ),
    ],
)
def test_a_command_without_lightning_is_one_line_with_status_2(
    words: tuple[str, ...], without_lightning: Path, tmp_path: Path, run_python: Python
) -> None:
    done = run_python("-m", *words, str(tmp_path / "out"), hidden=without_lightning)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"error: {SENTENCE}\n")
    assert not (tmp_path / "out").exists()


def test_the_other_modules_import_without_lightning(without_lightning: Path, run_python: Python) -> None:
    code = "import ptycho.run.pipeline, ptycho_torch.config_params, ptycho_torch.inference; print('ok')"
    assert run_python("-c", code, hidden=without_lightning).stdout == "ok\n"


def test_importing_train_loads_no_framework(run_python: Python) -> None:
    heavy = "{'torch', 'lightning', 'mlflow', 'tensorflow'}"
    done = run_python("-c", f"import sys, ptycho_torch.train; print(sorted({heavy} & set(sys.modules)))")
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_every_engine_has_what_the_pipeline_calls() -> None:
    engine = engines.load_engine("pytorch")
    assert engine.__name__ == "ptycho_torch.engine"
    for name in ("fit", "load", "to_bundle", "from_bundle", "core_config", "reconstruct", "log_artifacts"):
        assert callable(getattr(engine, name))


def test_an_unknown_backend_is_named_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"unknown name \(got 'jax', expected one of pytorch, tensorflow\)"):
        engines.load_engine("jax")


@pytest.mark.parametrize(
    ("backend", "sentence"),
    [
        ("pytorch", SENTENCE),
        (
            "tensorflow",
            "backend tensorflow: not installed (missing tensorflow). Install with: "
            "pip install -e .[tensorflow] (without a checkout: pip install 'ptychopinn[tensorflow]')",
        ),
    ],
)
def test_a_missing_backend_names_its_install_command(
    backend: str, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingPackageError) as caught:
        engines.load_engine(backend)
    assert str(caught.value) == sentence
    assert isinstance(caught.value, RuntimeError)


class _StoppedError(Exception):
    """Raised where an engine would begin to train."""


@pytest.mark.parametrize(("flag", "expected"), [((), "pytorch"), (("--backend", "tensorflow"), "tensorflow")])
def test_the_flag_chooses_the_engine_after_params_cfg_is_filled(
    flag: tuple[str, ...],
    expected: str,
    small_scan: Path,
    tmp_path: Path,
    run_command: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: dict[str, Any] = {}

    def choose(backend: str) -> None:
        cfg = {name: params.cfg[name] for name in ("N", "gridsize", "n_groups")}
        seen.update(backend=backend, **cfg)
        raise _StoppedError

    # The command looks at its settings before; the run chooses its engine here.
    monkeypatch.setattr(pipeline, "load_engine", choose)
    monkeypatch.setattr(engines, "require_backend", lambda backend: None)
    done = run_command(
        "train",
        "--train_data_file",
        small_scan,
        "--output_dir",
        tmp_path / "out",
        "--gridsize",
        "3",
        "--n_images",
        "17",
        *flag,
    )
    assert done.code == 1
    assert seen == {"backend": expected, "N": 32, "gridsize": 3, "n_groups": 17}
    assert done.out.splitlines()[0] == "✓ params.cfg populated: N=32, gridsize=3, n_groups=17"
