"""Ctrl-C, sent for real to real processes: status 130, one true line, no half-written file."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ptycho.config.config import ModelConfig, TrainingConfig
from ptycho.files.overwrites import RECONSTRUCTION_FILES, TRAINING_FILES
from ptycho.files.reader import open_scan
from ptycho.process.interrupts import NOTHING_LEFT
from ptycho.process.progress import Phase, Progress
from ptycho.run.engines import LAST, load_engine
from ptycho.run.pipeline import train
from ptycho.solver.options import RefineOptions
from ptycho.tf.checkpoints import read_state
from tests.runs import CPU, reconstructed

BACKENDS = {"pytorch": "ptycho_torch", "tensorflow": "ptycho"}
LIBRARIES = {"pytorch": "libtorch_cpu", "tensorflow": "libtensorflow"}
STATE = "checkpoints/last.state.npz"
PATIENCE_S = 120
TRAIN = "--max-epochs 500 --gridsize 1 --unrolled-steps 4 --logger none --early-stop-patience 500"
REFINE = "--model-path pretrained --refine 5000 --refine-probe --refine-positions --init flat"
NO_EPOCH = "no epoch was finished, so there is nothing to resume"


@dataclass
class Moment:
    """When a process is interrupted.

    Attributes
    ----------
    backend : str
        Which one works.
    command : {'train', 'inference'}
        What it does.
    loaded, line, file : str
        It has loaded this library, printed this beginning of a line, or written this file.
    """

    backend: str
    command: str
    loaded: str = ""
    line: str = ""
    file: str = ""


MOMENTS = {
    f"{backend}, {name}": moment
    for backend in BACKENDS
    for name, moment in {
        "import": Moment(backend, "train", loaded=LIBRARIES[backend]),
        "first epoch": Moment(backend, "train", line="fitting probe: "),
        "later epoch": Moment(backend, "train", file=LAST[backend]),
        "inference": Moment(backend, "inference", line="scale: "),
        "refinement": Moment(backend, "inference", line="reading: "),
    }.items()
}
# Importing TensorFlow takes long, and the refinement comes by the same way.
del MOMENTS["tensorflow, inference"]


@dataclass
class Answer:
    """What an interrupted process left."""

    status: int
    line: str
    files: set[str]
    folder: Path
    seconds: float


def started(module: str, *words: str) -> subprocess.Popen[str]:
    """Start a command."""
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", module, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def wait_for(process: subprocess.Popen[str], moment: Moment, folder: Path) -> None:
    """Wait until a process has come to a moment."""
    end = time.monotonic() + PATIENCE_S
    if moment.line:
        assert process.stdout is not None
        assert any(text.startswith(moment.line) for text in process.stdout), moment
        return
    maps = Path(f"/proc/{process.pid}/maps")
    while time.monotonic() < end and process.poll() is None:
        if moment.file and (folder / moment.file).exists():
            return
        if moment.loaded and moment.loaded in maps.read_text():
            return
        time.sleep(0.02)
    raise AssertionError(f"{moment} never came: {process.communicate()}")


def interrupted(moment: Moment, scan: Path, folder: Path) -> Answer:
    """Run a command up to a moment, interrupt it, and look at what it left."""
    data = "--train-data-file" if moment.command == "train" else "--test-data"
    flags = TRAIN if moment.command == "train" else REFINE
    words = [data, str(scan), "--output-dir", str(folder), "--device", "cpu", *flags.split()]
    process = started(f"{BACKENDS[moment.backend]}.{moment.command}", *words)
    try:
        wait_for(process, moment, folder)
        sent = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=PATIENCE_S)
    finally:
        process.kill()
        process.communicate()
    left = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    lines = [text for text in err.splitlines() if not re.match(r"[EWI]\d{4} ", text)]
    return Answer(process.returncode, "\n".join(lines), left, folder, time.monotonic() - sent)


@pytest.fixture(autouse=True, scope="module")
def sigint_at_its_default() -> Iterator[None]:
    """Let children hear SIGINT, which a shell in the background starts its own without."""
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, former)


@pytest.fixture(scope="module")
def answers(
    small_scan: Path, demo_scan: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Answer]]:
    """Interrupt all processes, a few at a time."""
    parent = tmp_path_factory.mktemp("interrupted")

    def one(name: str) -> Answer:
        scan = small_scan if MOMENTS[name].command == "train" else demo_scan
        return interrupted(MOMENTS[name], scan, parent / name.replace(", ", "_").replace(" ", "_"))

    with ThreadPoolExecutor(3) as pool:
        yield dict(zip(MOMENTS, pool.map(one, MOMENTS), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", MOMENTS)
def test_an_interruption_ends_with_status_130_and_one_true_line(
    name: str, answers: dict[str, Answer]
) -> None:
    found, moment = answers[name], MOMENTS[name]
    last = LAST[moment.backend]
    if last in found.files:
        path = found.folder / last
        said = f"the last finished epoch is in {path}; --resume {path} continues it"
        assert load_engine(moment.backend).load(path) is not None
        assert moment.backend == "pytorch" or read_state(path) is not None
    else:
        said = NOTHING_LEFT if moment.loaded or moment.command == "inference" else NO_EPOCH
        assert not moment.file
    assert (found.status, found.line) == (130, f"interrupted: {said}")
    assert found.files <= {*TRAINING_FILES, *RECONSTRUCTION_FILES, last, STATE} | {
        text for text in found.files if re.fullmatch(r"checkpoints/best-checkpoint[.\w]*", text)
    }
    if moment.loaded:
        assert not found.folder.exists()
    if moment.command == "inference":
        assert found.files == set()


class Swallowing(Progress):
    """An operation that is interrupted and forgets it, as a framework may."""

    def phase(self, name: str, total: int) -> Phase:
        return SwallowingPhase() if name in ("refining", "training") else Phase()


class SwallowingPhase(Phase):
    """Interrupts at the end of the first iteration or epoch."""

    def update(self, done: int, **values: Any) -> None:
        assert done == 1
        with suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("work", ["refinement", "training"])
def test_an_interruption_that_tensorflow_would_swallow_ends_the_next_step(
    work: str, small_scan: Path, tmp_path: Path
) -> None:
    if work == "refinement":
        flat = RefineOptions(50, start="flat")
        with pytest.raises(KeyboardInterrupt):
            reconstructed(open_scan(small_scan), "tensorflow", flat, progress=Swallowing())
        return
    model = ModelConfig(N=32, architecture="unrolled", unrolled_steps=4)
    config = TrainingConfig(
        model, nepochs=3, train_data_file=small_scan, output_dir=tmp_path / "run", backend="tensorflow"
    )
    with pytest.raises(KeyboardInterrupt):
        train(config, CPU, progress=Swallowing())


def test_an_interrupted_simulation_leaves_no_file(tmp_path: Path) -> None:
    moment = Moment("", "simulate", loaded="_multiarray_umath")
    process = started("ptycho.simulate", "--output", str(tmp_path / "new.npz"), "--grid", "300")
    try:
        wait_for(process, moment, tmp_path)
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=PATIENCE_S)
    finally:
        process.kill()
        process.communicate()
    assert (process.returncode, err) == (130, f"interrupted: {NOTHING_LEFT}\n")
    assert list(tmp_path.iterdir()) == []
