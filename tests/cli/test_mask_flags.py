"""--mask and --saturation on the command line: kept with the run, repeated by the evaluation, or refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ptycho.cli.evaluate_command import main as evaluate
from ptycho.data.npz import read_npz, write_npz

Command = Callable[..., Any]
SAME = 1e-4
"""Relative: single precision in the run, double in the evaluation."""


def metrics(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def masked(
    small_run: tuple[Path, Any],
    small_scan: Path,
    infer_command: Command,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, Path, float]:
    """Reconstruct a scan with garbage under a mask that looks like counts; return run, scan and limit."""
    folder = tmp_path_factory.mktemp("masked")
    arrays = read_npz(small_scan)
    limit = float(np.sort(arrays["diff3d"], axis=None)[-20])
    bad = np.random.default_rng(0).random((32, 32)) < 0.03
    patterns = np.where(bad, np.roll(arrays["diff3d"], 9, axis=0) + 5, arrays["diff3d"]).astype(np.uint32)
    write_npz(folder / "scan.npz", {**arrays, "diff3d": patterns})
    np.save(folder / "bad.npy", bad)
    flags = ("--mask", folder / "bad.npy", "--saturation", limit, "--refine", 10)
    done = infer_command(small_run[0], folder / "scan.npz", folder / "run", *flags)
    assert (done.code, done.err) == (0, ""), done.err
    return folder / "run", folder / "scan.npz", limit


def test_a_run_keeps_what_it_was_told_and_what_it_left_out(masked: tuple[Path, Path, float]) -> None:
    folder, scan, limit = masked
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))["config"]
    assert config["mask_file"] == str(scan.with_name("bad.npy"))
    assert config["saturation"] == limit
    stored = read_npz(folder / "reconstruction.npz")
    bad = np.load(scan.with_name("bad.npy")) | (read_npz(scan)["diff3d"] >= limit)
    np.testing.assert_array_equal(stored["bad_pixels"], bad)
    told = json.loads(str(stored["file_options"]))
    assert (told["mask_file"], told["saturation"]) == (config["mask_file"], limit)


@pytest.mark.parametrize("there", [True, False])
def test_an_evaluation_repeats_both_also_when_the_file_is_gone(
    masked: tuple[Path, Path, float],
    there: bool,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder, scan, _ = masked
    mask, away = scan.with_name("bad.npy"), tmp_path / "away.npy"
    if not there:
        mask.rename(away)
    words = ["--reconstruction", str(folder), "--test-data", str(scan), "--output-dir", str(tmp_path / "e")]
    try:
        assert evaluate([*words, "--quiet"]) == 0, capsys.readouterr().err
    finally:
        if not there:
            away.rename(mask)
    found, expected = metrics(tmp_path / "e"), metrics(folder)
    names = ("misfit", "misfit_expected", "noise_ratio", "unexplained")
    assert [found[name] for name in names] == pytest.approx([expected[name] for name in names], rel=SAME)
    assert found["verdict"] == expected["verdict"]
    assert "reach --saturation" in caplog.text


def test_settings_of_a_file_do_the_same(
    masked: tuple[Path, Path, float], small_run: tuple[Path, Any], infer_command: Command, tmp_path: Path
) -> None:
    folder, scan, limit = masked
    settings = tmp_path / "settings.yaml"
    settings.write_text(
        f"mask_file: {scan.with_name('bad.npy')}\nsaturation: {limit}\nrefine_steps: 10\n", encoding="utf-8"
    )
    done = infer_command(small_run[0], scan, tmp_path / "run", "--config", settings)
    assert done.code == 0, done.err
    one, two = (read_npz(path / "reconstruction.npz") for path in (folder, tmp_path / "run"))
    for key in ("object", "bad_pixels", "file_options"):
        np.testing.assert_array_equal(one[key], two[key])


@pytest.mark.parametrize("command", ["train", "inference", "evaluate"])
def test_a_wrong_mask_or_limit_is_one_line_that_names_the_flag(
    command: str,
    masked: tuple[Path, Path, float],
    small_run: tuple[Path, Any],
    train_command: Command,
    infer_command: Command,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, scan, _ = masked
    np.save(tmp_path / "small.npy", np.zeros((31, 32)))
    np.savez(tmp_path / "pickled.npz", mask=np.array([None], dtype=object))
    cases = {
        "--mask": [tmp_path / "small.npy", tmp_path / "absent.npy", tmp_path / "pickled.npz", scan.parent],
        "--saturation": [0, -1, "nan", "many"],
    }
    for flag, values in cases.items():
        for value in values:
            if command == "train":
                done = train_command(scan, tmp_path / "out", flag, value)
                code, err = done.code, done.err
            elif command == "inference":
                done = infer_command(small_run[0], scan, tmp_path / "out", flag, value)
                code, err = done.code, done.err
            else:
                words = ("--reconstruction", folder, "--test-data", scan, "--output-dir", tmp_path / "out")
                try:
                    code = evaluate([str(word) for word in (*words, flag, value)])
                except SystemExit as stop:
                    code = stop.code
                err = capsys.readouterr().err
            assert (code, len(err.splitlines())) == (2, 1), (flag, value, err)
            assert flag in err
            assert "Traceback" not in err
            assert not (tmp_path / "out").exists()
