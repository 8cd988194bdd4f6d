"""One rule about epochs: the best by the monitored loss is what a training run shows, stores and hands on."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ptycho.config.config import InferenceConfig, ModelConfig, PyTorchExecutionConfig, TrainingConfig
from ptycho.data.npz import read_npz
from ptycho.networks.bundle import read_bundle, write_bundle
from ptycho.networks.schedule import TrainedEpoch
from ptycho.process.progress import Phase, Progress
from ptycho.run import pipeline
from ptycho.run.engines import FORMER_BUNDLE, find_model

pytestmark = pytest.mark.slow

SAME_OBJECT = 1e-5  # complex64 sums in another order, relative to the largest modulus
QUIET = PyTorchExecutionConfig(accelerator="cpu", logger_backend=None)
MODEL = ModelConfig(N=32, architecture="unrolled", unrolled_steps=3, unrolled_width=4, gridsize=1)
BACKENDS = ("pytorch", "tensorflow")
LAST = {"pytorch": "checkpoints/last.ckpt", "tensorflow": "checkpoints/last.h5.zip"}


class Notes(Progress):
    """Keeps every note, and why phases ended."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def phase(self, name: str, total: int) -> Phase:
        del total
        notes = self

        class Kept(Phase):
            def ended(self, why: str) -> None:
                notes.lines.append(f"{name}: {why}")

        return Kept()

    def note(self, text: str) -> None:
        self.lines.append(text)

    def starting(self, start: str) -> list[str]:
        return [line for line in self.lines if line.startswith(start)]


def settings(backend: str, scan: Path, folder: Path, **changes: Any) -> TrainingConfig:
    """A rate so high that later epochs are worse than the first ones."""
    given = {"nepochs": 4, "learning_rate": 0.3, "neighbor_count": 6, "probe_trainable": False, **changes}
    return TrainingConfig(MODEL, backend=backend, train_data_file=scan, output_dir=folder, **given)


def infer(backend: str, model: Path, scan: Path, folder: Path) -> tuple[Any, Notes]:
    notes = Notes()
    config = InferenceConfig(ModelConfig(), model, scan, output_dir=folder, backend=backend)
    return pipeline.infer(config, QUIET, progress=notes).reconstruction.obj, notes


def difference(a: Any, b: Any) -> float:
    return float(np.abs(a - b).max() / np.abs(b).max())


@pytest.fixture(scope="module", params=BACKENDS)
def run(request: pytest.FixtureRequest, small_scan: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A training run whose last epoch is not its best: backend, folder, outcome, notes."""
    backend, folder = request.param, tmp_path_factory.mktemp(request.param)
    notes = Notes()
    outcome = pipeline.train(settings(backend, small_scan, folder), QUIET, progress=notes)
    losses = outcome.result.history["val_loss"]
    assert losses[-1] > 1.05 * min(losses), losses
    return backend, folder, outcome, notes


def test_inference_takes_the_best_epoch_and_gives_the_picture_of_the_training(
    run: Any, small_scan: Path, tmp_path: Path
) -> None:
    backend, folder, outcome, _ = run
    found, notes = infer(backend, folder, small_scan, tmp_path / "best")
    assert difference(found, outcome.reconstruction.obj) < SAME_OBJECT
    assert difference(read_npz(folder / "reconstruction.npz")["object"], found) < SAME_OBJECT
    last, last_notes = infer(backend, folder / LAST[backend], small_scan, tmp_path / "last")
    assert difference(last, found) > 100 * SAME_OBJECT
    best = int(np.argmin(outcome.result.history["val_loss"])) + 1
    (line,) = notes.starting("model: ")
    assert line.startswith(f"model: {folder / 'wts.h5.zip'}, epoch {best} of its training (val_loss ")
    assert last_notes.starting("model: ")[0].startswith(f"model: {folder / LAST[backend]}, epoch 4 of")


def test_a_training_reports_which_epoch_it_hands_on(run: Any) -> None:
    _, folder, outcome, notes = run
    losses = outcome.result.history["val_loss"]
    best = int(np.argmin(losses)) + 1
    assert notes.starting("model: ") == [
        f"model: epoch {best} of 4, the best by val_loss ({min(losses):.4g})"
    ]
    assert read_bundle(folder / "wts.h5.zip").trained_epoch == TrainedEpoch(best, "val_loss", min(losses))


def test_an_unfinished_training_is_answered_by_its_best_epoch(
    run: Any, small_scan: Path, tmp_path: Path
) -> None:
    backend, folder, outcome, _ = run
    shutil.copytree(folder / "checkpoints", tmp_path / "run/checkpoints")
    found, notes = infer(backend, tmp_path / "run", small_scan, tmp_path / "out")
    assert difference(found, outcome.reconstruction.obj) < SAME_OBJECT
    assert "best-checkpoint" in notes.starting("model: ")[0]
    best = find_model(tmp_path / "run", backend)
    best.unlink()
    found, notes = infer(backend, tmp_path / "run", small_scan, tmp_path / "out")
    assert difference(found, outcome.reconstruction.obj) > 100 * SAME_OBJECT
    assert notes.starting("model: ")[0].startswith(f"model: {tmp_path / 'run' / LAST[backend]}, epoch 4 of")


def test_the_best_epoch_counts_without_its_checkpoint_too(run: Any, small_scan: Path, tmp_path: Path) -> None:
    backend, _, outcome, _ = run
    execution = replace(QUIET, checkpoint_save_top_k=0)
    again = pipeline.train(settings(backend, small_scan, tmp_path), execution)
    assert again.result.history["val_loss"] == outcome.result.history["val_loss"]
    assert difference(again.reconstruction.obj, outcome.reconstruction.obj) < SAME_OBJECT


def test_a_resumed_training_keeps_the_best_epoch_before_it(
    run: Any, small_scan: Path, tmp_path: Path
) -> None:
    backend, folder, outcome, _ = run
    losses = outcome.result.history["val_loss"]
    shutil.copytree(folder / "checkpoints", tmp_path / "checkpoints")
    notes, config = Notes(), settings(backend, small_scan, tmp_path / "more", nepochs=5)
    more = pipeline.train(config, QUIET, progress=notes, resume=tmp_path / LAST[backend])
    assert len(more.result.history["val_loss"]) == 1
    assert more.result.history["val_loss"][0] > min(losses), (
        "the further epoch is the best; choose another seed"
    )
    assert notes.starting("model: epoch ")[0].startswith(f"model: epoch {int(np.argmin(losses)) + 1} of 5, ")
    assert difference(more.reconstruction.obj, outcome.reconstruction.obj) < SAME_OBJECT


def test_a_resumed_training_without_its_best_epoch_says_that_it_is_lost(
    run: Any, small_scan: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    backend, folder, outcome, _ = run
    for part in (folder / "checkpoints").glob("last.*"):
        shutil.copyfile(part, tmp_path / part.name)
    notes, config = Notes(), settings(backend, small_scan, tmp_path / "more", nepochs=5)
    resume = tmp_path / Path(LAST[backend]).name
    if backend == "pytorch":
        # Its state names the file in the folder of the training; that folder is gone.
        away = folder.with_name("away")
        folder.rename(away)
    try:
        pipeline.train(config, QUIET, progress=notes, resume=resume)
    finally:
        if backend == "pytorch":
            away.rename(folder)
    best = int(np.argmin(outcome.result.history["val_loss"])) + 1
    assert f"the weights of its best epoch, {best}, are not beside it" in caplog.text
    assert notes.starting("model: epoch 5 of 5, the best by val_loss")


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_training_that_stops_early_gives_epoch_and_reason(
    backend: str, small_scan: Path, tmp_path: Path
) -> None:
    notes = Notes()
    config = settings(backend, small_scan, tmp_path, nepochs=30)
    execution = replace(QUIET, early_stop_patience=2, enable_checkpointing=False)
    done = pipeline.train(config, execution, progress=notes)
    trained, best = len(done.result.history["val_loss"]), int(np.argmin(done.result.history["val_loss"])) + 1
    assert trained == best + 2 < 30
    assert notes.starting("model: ")[0].startswith(f"model: epoch {best} of {trained}, ")
    reason = f"stopped early after epoch {trained}: validation loss no longer falls"
    assert notes.starting("training: ") == [f"training: {reason}"]


def test_a_training_that_is_cut_short_does_not_leave_a_former_model_in_its_place(
    run: Any, small_scan: Path, tmp_path: Path
) -> None:
    backend, folder, _, _ = run
    bundle = write_bundle(tmp_path / "wts.h5.zip", read_bundle(folder / "wts.h5.zip"))

    class Stopping(Notes):
        def phase(self, name: str, total: int) -> Phase:
            if name != "training":
                return Phase()

            class Interrupting(Phase):
                def update(self, done: int, **values: Any) -> None:
                    if done == 2:
                        raise KeyboardInterrupt

            return Interrupting()

    with pytest.raises(KeyboardInterrupt):
        pipeline.train(settings(backend, small_scan, tmp_path), QUIET, progress=Stopping())
    assert not bundle.exists()
    assert (tmp_path / FORMER_BUNDLE).is_file()
    assert find_model(tmp_path, backend).parent == tmp_path / "checkpoints"
