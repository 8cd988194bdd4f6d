"""--detector-upsampling on the command line: kept with the run, repeated by the evaluation, or refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ptycho.cli.evaluate_command import main as evaluate
from ptycho.cli.simulate_command import main as simulate
from ptycho.data.npz import read_npz

Command = Callable[..., Any]
SAME = 1e-4
"""Relative: single precision in the run, double in the evaluation."""


def metrics(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))


def evaluated(folder: Path, scan: Path, out: Path, *more: str) -> dict[str, Any]:
    words = ["--reconstruction", str(folder), "--test-data", str(scan), "--output-dir", str(out), *more]
    assert evaluate([*words, "--quiet"]) == 0
    return metrics(out)


def test_a_run_keeps_the_flag_and_an_evaluation_repeats_it(
    small_run: tuple[Path, Any], small_scan: Path, infer_command: Command, tmp_path: Path
) -> None:
    folder, flag = tmp_path / "run", "--detector-upsampling"
    done = infer_command(small_run[0], small_scan, folder, flag, 2, "--refine", 10)
    assert (done.code, done.err) == (0, ""), done.err
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))["config"]
    assert config["detector_upsampling"] == 2
    told = json.loads(str(read_npz(folder / "reconstruction.npz")["file_options"]))
    assert told == {"detector_upsampling": 2}
    own = metrics(folder)["misfit"]
    assert evaluated(folder, small_scan, tmp_path / "again")["misfit"] == pytest.approx(own, rel=SAME)
    other = evaluated(folder, small_scan, tmp_path / "other", flag, "1")["misfit"]
    assert abs(other / own - 1) > 0.01


@pytest.mark.parametrize("command", ["train", "inference", "evaluate"])
@pytest.mark.parametrize("value", [0, 17, 1.5, "many"])
def test_a_wrong_number_of_parts_is_one_line_that_names_the_flag(
    command: str,
    value: Any,
    small_run: tuple[Path, Any],
    small_scan: Path,
    train_command: Command,
    infer_command: Command,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if command == "train":
        done = train_command(small_scan, tmp_path / "out", "--detector-upsampling", value)
        code, err = done.code, done.err
    elif command == "inference":
        done = infer_command(small_run[0], small_scan, tmp_path / "out", "--detector-upsampling", value)
        code, err = done.code, done.err
    else:
        words = (
            "--reconstruction",
            small_run[0],
            "--test-data",
            small_scan,
            "--output-dir",
            tmp_path / "out",
        )
        try:
            code = evaluate([str(word) for word in (*words, "--detector-upsampling", value)])
        except SystemExit as stop:
            code = stop.code
        err = capsys.readouterr().err
    assert (code, len(err.splitlines())) == (2, 1), err
    assert "detector-upsampling" in err or "detector_upsampling" in err
    assert not (tmp_path / "out").exists()


def test_in_the_near_field_it_is_refused_in_one_line(
    small_run: tuple[Path, Any], infer_command: Command, tmp_path: Path
) -> None:
    scan = tmp_path / "near.npz"
    words = "--size 32 --grid 8x8 --step 3 --propagation near --fresnel-number 0.12 --photons 1e6"
    assert simulate(["--output", str(scan), *words.split()]) == 0
    done = infer_command(small_run[0], scan, tmp_path / "out", "--detector-upsampling", 2)
    assert (done.code, len(done.err.splitlines())) == (2, 1), done.err
    assert "parts of detector pixels are those of a far field" in done.err
    assert not (tmp_path / "out").exists()
