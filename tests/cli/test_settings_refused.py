"""Bad settings: one line and status 2, before a file is read or a folder made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ptycho.data.npz import read_npz, write_npz

Command = Callable[..., Any]
INFERENCE_WITHOUT_DATA = {
    "a negative number of steps": (("--refine", -3), "--refine -3"),
    "smoothing out of range": (("--refine", 5, "--refine-tv", 2), "--refine-tv 2.0"),
    "no GPU": (("--device", "cuda"), "no cuda device"),
    "workers": (("--num-workers", 2), "num_workers has no effect"),
    "weights of an unrolled model": (("--patch-weighting", "uniform"), "patch_weighting has no effect"),
    "a batch of an unrolled model": (("--inference-batch-size", 4), "inference_batch_size has no effect"),
    "two numbers of patterns": (
        ("--n-images", 9, "--n-subsample", 9),
        "n_groups and n_subsample both choose",
    ),
    "a seed of nothing": (("--subsample-seed", 3), "subsample_seed has no effect"),
    "a seed where all patterns take part": (("--seed", 3), "seed has no effect"),
    "two seeds": (("--n-images", 9, "--seed", 3, "--subsample-seed", 4), "seed has no effect"),
    "a mask of nothing": (("--probe-mask-diameter", 9), "probe_mask_diameter has no effect"),
    "a likelihood of nothing": (("--refine-likelihood", "poisson"), "refine_likelihood has no effect"),
    "a limit of nothing": (("--patch-stats-limit", 4), "patch_stats_limit has no effect"),
    "no statistics": (("--log-patch-stats", "--patch-stats-limit", 0), "patch_stats_limit is 0"),
}
TRAINING_WITHOUT_DATA = {
    "no GPU": (("--device", "cuda"), "no cuda device"),
    "no epochs": (("--max-epochs", 0), "nepochs is 0"),
    "no statistics": (("--log-patch-stats", "--patch-stats-limit", 0), "patch_stats_limit is 0"),
    "an unknown monitor": (("--checkpoint-monitor", "loss"), "checkpoint_monitor_metric is unknown"),
    "a batch of unrolled": (("--batch-size", 8), "batch_size has no effect"),
    "an unknown schedule": (("--scheduler", "Cosinus"), "scheduler is 'Cosinus'"),
    "a seed of nothing": (("--subsample-seed", 3), "subsample_seed has no effect"),
    "a schedule without its stages": (("--scheduler", "MultiStage"), "scheduler is not implemented"),
    "a dose that the counts know": (("--nphotons", 7e3), "nphotons has no effect"),
}
YAML = {
    "refine_likelihood: poison": "refine_likelihood is 'poison', expected one of amplitude, poisson",
    "refine_start: networt": "refine_start is 'networt', expected one of network, flat, difference-map",
    "patch_weighting: prob": "patch_weighting is 'prob', expected one of probe, uniform",
    "model:\n  unrolled_width: 48": "unrolled_width belongs to the trained model (got 48, expected 24)",
    "architecture: cnn": "architecture belongs to the trained model (got 'cnn', expected 'unrolled')",
}


def unread(done: Any, folder: Path, text: str) -> None:
    """Assert that a command was refused in one line before anything was done."""
    assert (done.code, len(done.err.splitlines())) == (2, 1), done.err
    assert text in done.err
    assert "internal" not in done.err
    assert done.err.rstrip().endswith((".", "?"))
    assert not folder.exists()


@pytest.fixture
def unreadable(tmp_path: Path) -> Path:
    """Return a scan that is no scan: whoever opens it says so."""
    path = tmp_path / "unread.npz"
    path.write_bytes(b"nobody may read this")
    return path


@pytest.mark.parametrize("name", INFERENCE_WITHOUT_DATA)
def test_an_inference_is_refused_before_its_scan_is_read(
    unreadable: Path, infer_command: Command, tmp_path: Path, name: str
) -> None:
    flags, text = INFERENCE_WITHOUT_DATA[name]
    unread(infer_command(Path("pretrained"), unreadable, tmp_path / "out", *flags), tmp_path / "out", text)


def test_the_scan_that_may_not_be_read_is_refused_where_it_is(
    unreadable: Path, infer_command: Command, tmp_path: Path
) -> None:
    done = infer_command(Path("pretrained"), unreadable, tmp_path / "out")
    assert done.code == 2
    assert "unread.npz" in done.err


@pytest.mark.parametrize("name", TRAINING_WITHOUT_DATA)
def test_a_training_is_refused_before_its_scan_is_read(
    unreadable: Path, run_command: Command, require: Callable[[str], None], tmp_path: Path, name: str
) -> None:
    require("torch")
    flags, text = TRAINING_WITHOUT_DATA[name]
    done = run_command("train", "--train_data_file", unreadable, "--output_dir", tmp_path / "out", *flags)
    unread(done, tmp_path / "out", text)


@pytest.mark.parametrize("content", YAML)
def test_a_misspelt_choice_or_another_network_of_a_settings_file_is_refused(
    unreadable: Path, infer_command: Command, tmp_path: Path, content: str
) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text(content + "\n", encoding="utf-8")
    done = infer_command(Path("pretrained"), unreadable, tmp_path / "out", "--config", path)
    unread(done, tmp_path / "out", YAML[content])


def test_a_network_setting_that_is_the_model_s_and_an_empty_section_are_fine(
    small_run: tuple[Path, Any], small_scan: Path, infer_command: Command, tmp_path: Path
) -> None:
    path = tmp_path / "settings.yaml"
    for name, content in (("same", "model:\n  unrolled_steps: 4\n  gridsize: 1\n"), ("empty", "model:\n")):
        path.write_text(content, encoding="utf-8")
        done = infer_command(small_run[0], small_scan, tmp_path / name, "--config", path)
        assert done.code == 0, done.err


def test_an_empty_section_and_the_old_name_of_groups_work_in_a_training(
    small_scan: Path, train_command: Command, tmp_path: Path
) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text("n_images: 30\nmodel:\n", encoding="utf-8")
    done = train_command(small_scan, tmp_path / "run", "--config", path)
    assert done.code == 0, done.err
    assert "n_groups=30\n" in done.out
    path.write_text("n_images: 30\nn_groups: 20\n", encoding="utf-8")
    done = train_command(small_scan, tmp_path / "two", "--config", path)
    unread(done, tmp_path / "two", "n_images is the old name of n_groups and says another number")


def test_a_mask_of_an_inference_reaches_the_probe(
    small_run: tuple[Path, Any], small_scan: Path, infer_command: Command, tmp_path: Path
) -> None:
    flags = ("--probe-mask", "--probe-mask-diameter", 12, "--probe-mask-sigma", 0)
    assert infer_command(small_run[0], small_scan, tmp_path / "plain").code == 0
    assert infer_command(small_run[0], small_scan, tmp_path / "masked", *flags).code == 0
    plain, masked = (read_npz(tmp_path / name / "reconstruction.npz") for name in ("plain", "masked"))
    away = np.hypot(*(np.indices((32, 32)) - 15.5)) > 7
    assert np.abs(masked["probe"][:, away]).max() == 0
    assert np.abs(plain["probe"][:, away]).max() > 0


def test_positions_in_another_unit_are_named_and_not_an_internal_error(
    small_scan: Path, train_command: Command, infer_command: Command, tmp_path: Path
) -> None:
    arrays = read_npz(small_scan)
    for name in [key for key in arrays if key.startswith(("xcoords", "ycoords"))]:
        arrays[name] = arrays[name] * 20_000
    write_npz(tmp_path / "nm.npz", arrays)
    for command, first in ((train_command, ()), (infer_command, (Path("pretrained"),))):
        done = command(*first, tmp_path / "nm.npz", tmp_path / "out")
        assert (done.code, len(done.err.splitlines())) == (2, 1), done.err
        assert "nm.npz" in done.err
        assert "positions" in done.err
