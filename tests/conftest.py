"""Fixtures of all tests: backends that may be missing, commands in this process, small scans, shared runs."""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib
import importlib.util
import io
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "datasets" / "demo_64.npz"
BACKENDS = {
    "torch": ("torch", "lightning", "tensordict"),
    "tensorflow": ("tensorflow",),
    "ptychodus": ("ptychodus", "pydantic_ai", "hdf5plugin", "psutil"),
}
"""Backend, or client -> packages it needs."""
FOLDERS = {
    "torch": ("torch",),
    "tf": ("tensorflow",),
    "parity": ("torch", "tensorflow"),
    "compat": ("torch", "tensorflow", "ptychodus"),
}
"""Folder of tests -> backends that everything in it needs."""

# Threads that wait for each other on busy cores make these small problems ten times slower. TensorFlow asks
# for its own two pools; child processes inherit all of it.
for _threads in ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"):
    os.environ.setdefault(_threads, "1")
os.environ.pop("MLFLOW_TRACKING_URI", None)
_DRAWN = {"figures": False}


class Done(NamedTuple):
    """What a command left: exit status and its two streams."""

    code: int
    out: str
    err: str


def require(name: str) -> None:
    """Skip the test where a backend is missing; fail it where ``PTYCHO_REQUIRE`` names the backend."""
    missing = [package for package in BACKENDS[name] if importlib.util.find_spec(package) is None]
    if not missing:
        return
    reason = f"backend {name} is not installed (missing {', '.join(missing)})"
    if name in os.environ.get("PTYCHO_REQUIRE", "").replace(" ", "").split(","):
        pytest.fail(f"{reason}, but PTYCHO_REQUIRE={os.environ['PTYCHO_REQUIRE']}", pytrace=False)
    pytest.skip(reason, allow_module_level=True)


class _BackendModule(pytest.Module):
    """A test module that is not even imported where its backend is missing."""

    def collect(self) -> list[pytest.Item | pytest.Collector]:
        """Return the tests, after a look at the backends."""
        for name in FOLDERS[self.path.parent.name]:
            require(name)
        return list(super().collect())


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    """Guard the folders that need a backend."""
    if module_path.parent.parent.name == "tests" and module_path.parent.name in FOLDERS:
        return _BackendModule.from_parent(parent, path=module_path)
    return None


@functools.cache
def _shares_fixtures(path: str) -> bool:
    """Return whether a file has fixtures that all of its tests share."""
    return 'scope="module"' in (ROOT / path).read_text(encoding="utf-8")


def unit_of(nodeid: str) -> str:
    """Return the unit of work that a test belongs to, where several processes share the tests.

    A file whose tests share a fixture stays in one process, or each would make that fixture again. Any other
    test is a unit of its own. The group marks of pytest-xdist 3.8 have no effect with pytest 9.2.
    """
    path = nodeid.partition("::")[0]
    return path if _shares_fixtures(path) else nodeid


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Hand out units in the order of the collection."""
    from xdist.scheduler import LoadScopeScheduling

    class Units(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return unit_of(nodeid)

    config.option.loadscopereorder = False
    return Units(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Begin with the units that hold slow tests, where several processes share them: the end is even."""
    if not hasattr(config, "workerinput"):
        return
    slow = {unit_of(item.nodeid) for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: unit_of(item.nodeid) not in slow)


@contextlib.contextmanager
def _untouched_settings() -> Iterator[None]:
    """Put the process back as it was: a command owns its process, a test does not."""
    from ptycho import params

    saved = copy.deepcopy(params.cfg)
    environment = dict(os.environ)
    try:
        with warnings.catch_warnings():
            yield
    finally:
        params.cfg.clear()
        params.cfg.update(saved)
        os.environ.clear()
        os.environ.update(environment)
        if "torch" in sys.modules:
            sys.modules["torch"].use_deterministic_algorithms(False)


def _run(name: str, *words: object) -> Done:
    command = importlib.import_module(f"ptycho_torch.{name}").cli_main
    out, err = io.StringIO(), io.StringIO()
    with _untouched_settings(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = command([str(word) for word in words])
        except SystemExit as stop:
            code = stop.code
    return Done(code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="session")
def run_python() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run this interpreter in the repository root: ``run_python("-c", code, hidden=folder)``.

    ``hidden`` goes to the front of its PYTHONPATH; other keywords go to :func:`subprocess.run`.
    """

    def run(*words: str, hidden: Path | None = None, **options: Any) -> subprocess.CompletedProcess[str]:
        environment = dict(os.environ) if hidden is None else {**os.environ, "PYTHONPATH": str(hidden)}
        settings = {"capture_output": True, "text": True, "timeout": 120, **options}
        return subprocess.run([sys.executable, *words], cwd=ROOT, env=environment, check=False, **settings)

    return run


@pytest.fixture(scope="session", name="require")
def _require() -> Callable[[str], None]:
    """Return :func:`require`."""
    return require


@pytest.fixture(scope="session")
def run_command() -> Callable[..., Done]:
    """Run a command of PyTorch in this process: ``run_command("train", "--output_dir", folder)``."""
    return _run


@pytest.fixture(scope="session")
def train_command() -> Callable[..., Done]:
    """Train a little on the CPU: ``train_command(scan, folder, *flags)``; flags win over quick defaults."""
    require("torch")
    quick = ("--max_epochs", 1, "--gridsize", 1, "--device", "cpu")

    def train(scan: Path, folder: Path, *flags: object) -> Done:
        log = () if "--logger" in flags else ("--disable_mlflow",)
        steps = () if "cnn" in flags else ("--unrolled_steps", 4)
        return _run("train", "--train_data_file", scan, "--output_dir", folder, *quick, *steps, *log, *flags)

    return train


@pytest.fixture(scope="session")
def infer_command() -> Callable[..., Done]:
    """Reconstruct on the CPU: ``infer_command(model, scan, folder, *flags)``."""
    require("torch")

    def infer(model: Path, scan: Path, folder: Path, *flags: object) -> Done:
        return _run(
            "inference",
            "--model_path",
            model,
            "--test_data",
            scan,
            "--output_dir",
            folder,
            "--device",
            "cpu",
            *flags,
        )

    return infer


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Let a test marked ``pictures``, and the fixtures made for it, draw."""
    _DRAWN["figures"] = item.get_closest_marker("pictures") is not None


@pytest.fixture(scope="session")
def drawing() -> Callable[[], contextlib.AbstractContextManager[None]]:
    """Return a context in which figures are drawn, for what several tests share."""

    @contextlib.contextmanager
    def drawn() -> Iterator[None]:
        before, _DRAWN["figures"] = _DRAWN["figures"], True
        yield
        _DRAWN["figures"] = before

    return drawn


@pytest.fixture(scope="session", autouse=True)
def figures_where_asked_for() -> Iterator[None]:
    """Draw the figures of commands only for tests marked ``pictures``: they take two thirds of a small run.

    Other tests find noise in their place, another one in every file.
    """
    from PIL import Image

    from ptycho.data.npz import atomic_path
    from ptycho.evaluation import figures

    draw = figures.save_figure

    def save(figure: Any, path: str | Path) -> Path:
        if _DRAWN["figures"]:
            return draw(figure, path)
        with atomic_path(path) as temporary:
            Image.effect_noise((64, 64), 50).save(temporary, format="png")
        return Path(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "save_figure", save)
        yield


@pytest.fixture(autouse=True)
def untouched_settings() -> Iterator[None]:
    """Keep one test's ``params.cfg`` and environment from the next."""
    with _untouched_settings():
        yield


@pytest.fixture(scope="session")
def without_lightning(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder that hides Lightning from a process that has it on its PYTHONPATH."""
    folder = tmp_path_factory.mktemp("hidden")
    (folder / "sitecustomize.py").write_text(
        "import sys\n"
        "from importlib.machinery import PathFinder\n"
        "class Finder(PathFinder):\n"
        "    @classmethod\n"
        "    def find_spec(cls, name, path=None, target=None):\n"
        "        hidden = name.partition('.')[0] == 'lightning'\n"
        "        return None if hidden else super().find_spec(name, path, target)\n"
        "sys.meta_path[:] = [Finder if finder is PathFinder else finder for finder in sys.meta_path]\n",
        encoding="utf-8",
    )
    return folder


@pytest.fixture(scope="session")
def demo_scan() -> Path:
    """Return the scan that comes with the project: 400 patterns of 64 x 64 px with their truth."""
    return DEMO


@pytest.fixture(scope="session")
def small_scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a scan of 8 x 8 patterns of 32 x 32 px with its truth."""
    from ptycho.simulation.simulate import SimulationOptions, write_scan

    path = tmp_path_factory.mktemp("scan") / "small.npz"
    write_scan(path, SimulationOptions(n_px=32, n_y=8, n_x=8, step_px=3.0, photons=1e6, seed=3))
    return path


@pytest.fixture(scope="session")
def small_run(
    small_scan: Path, train_command: Callable[..., Done], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Done]:
    """Train one epoch on the small scan; return the output folder and what was printed."""
    folder = tmp_path_factory.mktemp("small") / "run"
    done = train_command(small_scan, folder)
    assert done.code == 0, done.err
    return folder, done


@pytest.fixture(scope="session")
def demo_run(
    train_command: Callable[..., Done], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Done]:
    """Train three epochs on a part of the scan that comes with the project, with the default network."""
    folder = tmp_path_factory.mktemp("demo") / "run"
    done = train_command(DEMO, folder, "--max_epochs", 3, "--unrolled_steps", 22, "--n_images", 128)
    assert done.code == 0, done.err
    return folder, done


@pytest.fixture(scope="session")
def mlflow_run(small_scan: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Train with MLflow through the Python call; return the output folder and the run's name in the store."""
    require("torch")
    if importlib.util.find_spec("mlflow") is None:
        pytest.skip("mlflow is not installed; it belongs to the torch extra")
    from ptycho_torch.config_params import DataConfig, ModelConfig, TrainingConfig
    from ptycho_torch.train import main

    folder = tmp_path_factory.mktemp("mlflow") / "run"
    settings = (
        DataConfig(N=32, grid_size=(1, 1)),
        ModelConfig(architecture="unrolled", unrolled_steps=4),
        TrainingConfig(epochs=2, device="cpu", torch_loss_mode="amplitude"),
    )
    with _untouched_settings():
        outcome = main(small_scan.parent, existing_config=settings, disable_mlflow=False, output_dir=folder)
    assert outcome.result.run_id is not None
    return folder, outcome.result.run_id
