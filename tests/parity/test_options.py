"""Facts about options: each changes what it names, and changes it alike in both backends."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from judges import assert_twin

from ptycho.data.npz import read_npz
from ptycho.simulation.simulate import SimulationOptions, write_scan

WORKER = Path(__file__).with_name("options_worker.py")
sys.path.insert(0, str(WORKER.parent))
worker = importlib.import_module("options_worker")
SAME = 1e-6
"""Both compute in double precision, on weights in single; gradients come back in single."""
GRADIENT = 1e-5
LOSS = 2e-5
"""Single precision, through a few hundred sums."""
TRAINED = 1e-4
"""The same after a few steps of Adam."""
SECONDS = 120

pytestmark = pytest.mark.slow

Answers = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Answers, Answers]:
    """Answers of PyTorch and of TensorFlow, computed at the same time."""
    folder = tmp_path_factory.mktemp("options")
    options = SimulationOptions(n_px=32, n_y=8, n_x=8, step_px=3.0, photons=1e6, n_modes=2, seed=3)
    write_scan(folder / "scan.npz", options)
    names = ("torch", "tf")
    words = [[sys.executable, str(WORKER), name, str(folder)] for name in names]
    started = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for command in words]
    for process in started:
        _, err = process.communicate(timeout=SECONDS)
        assert process.returncode == 0, err[-3000:]
    first, second = (read_npz(folder / f"options_{name}.npz") for name in names)
    assert sorted(first) == sorted(second)
    return first, second


@pytest.mark.parametrize("name", worker.NETWORK)
def test_an_option_of_the_network_changes_the_patches_alike(
    answers: tuple[Answers, Answers], name: str
) -> None:
    first, second = answers
    assert_twin(first[f"patches/{name}"], second[f"patches/{name}"], SAME)
    for key in first:
        if key.startswith(f"slope/{name}/"):
            assert_twin(first[key], second[key], GRADIENT)
            assert np.abs(first[key]).max() > 0, f"{key} is silent"
    if name != "plain":
        with pytest.raises(AssertionError):
            assert_twin(first["patches/plain"], first[f"patches/{name}"], 1e-3)


@pytest.mark.parametrize("name", worker.LOSSES)
def test_an_option_of_the_loss_changes_it_alike(answers: tuple[Answers, Answers], name: str) -> None:
    first, second = (float(part[f"loss/{name}"]) for part in answers)
    assert second == pytest.approx(first, rel=LOSS)
    plain, _, option = name.partition("/")
    if option:
        assert abs(first - float(answers[0][f"loss/{plain}"])) > 1e-3 * first


@pytest.mark.parametrize("name", worker.TRAININGS)
def test_a_training_with_options_starts_alike_and_lowers_its_loss(
    answers: tuple[Answers, Answers], name: str
) -> None:
    first, second = (part[f"history/{name}/train_loss"] for part in answers)
    assert second[0] == pytest.approx(first[0], rel=TRAINED)
    assert first[-1] < first[0]
    assert second[-1] < second[0]


def test_a_trainable_gain_moves_and_a_fixed_one_stays(answers: tuple[Answers, Answers]) -> None:
    for part in answers:
        assert part["gain/gain"] != 0
        assert part["gain/unrolled"] == 0


def test_hidden_pixels_alone_find_how_far_a_correction_is_to_be_trusted(
    answers: tuple[Answers, Answers],
) -> None:
    for part in answers:
        moved = {name: np.abs(part[f"factor/{name}"] - 1).max() for name in worker.TRAININGS}
        assert moved.pop("hidden") > 1e-5
        assert set(moved.values()) == {0.0}


def test_a_trainable_probe_moves_within_its_mask(answers: tuple[Answers, Answers]) -> None:
    for part in answers:
        start, found = part["probe/unrolled"], part["probe/probe"]
        away = np.hypot(*(np.indices((32, 32)) - 15.5)) > 8
        assert np.abs(found[:, away]).max() == 0
        assert np.abs(found - start)[:, ~away].max() > 1e-3 * np.abs(start).max()
    assert_twin(answers[0]["probe/probe"], answers[1]["probe/probe"], 1e-3)


def test_supervised_training_without_labels_is_refused_before_anything_begins(
    answers: tuple[Answers, Answers],
) -> None:
    messages = {str(part["refused"]) for part in answers}
    assert len(messages) == 1
    assert "there are no labels to compare with (got neither Y, label nor objectGuess" in messages.pop()
