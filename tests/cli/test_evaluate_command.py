"""The evaluation command: what it prints and writes, half scans, and one line for every kind of bad input."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import pytest

from ptycho.cli.evaluate_command import main
from ptycho.data.npz import read_npz, write_npz

PICTURES = (
    "comparison_truth.png",
    "frc_truth.png",
    "residuals.png",
    "frc_half_scans.png",
    "comparison_half_scans.png",
)
PICTURE_BYTES = 5000
Command = Callable[..., Any]


def scores_in(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))


def run(*words: object) -> int:
    return main([str(word) for word in words])


@pytest.fixture(scope="module")
def judged(
    small_run: tuple[Path, Any],
    small_scan: Path,
    drawing: Callable[[], AbstractContextManager[None]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Judge the small run in every way; return the folder."""
    folder = tmp_path_factory.mktemp("judged") / "scores"
    words = ("--reconstruction", small_run[0], "--output-dir", folder, "--quiet", "--accelerator", "cpu")
    files = ("--truth", small_scan, "--test-data", small_scan, "--model-path", small_run[0])
    with drawing():
        assert run(*words, *files) == 0
    return folder


def test_scores_and_paths_are_printed_and_the_files_are_there(
    small_run: tuple[Path, Any], small_scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "scores"
    assert run("--reconstruction", small_run[0], "--output_dir", folder, "--truth", small_scan) == 0
    out, err = capsys.readouterr()
    assert err == ""
    lines = out.splitlines()
    printed = dict(line.split() for line in lines if not line.startswith("/"))
    assert {name: float(value) for name, value in printed.items()} == pytest.approx(
        scores_in(folder), rel=1e-5
    )
    assert [line for line in lines if line.startswith("/")] == [
        str(folder / name)
        for name in (
            "metrics.json",
            "metrics.csv",
            "metrics.md",
            "comparison_truth.png",
            "frc_truth.png",
            "frc_truth.csv",
        )
    ]
    assert all(Path(line).is_file() for line in lines if line.startswith("/"))


def test_quiet_prints_nothing(
    small_run: tuple[Path, Any], small_scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        run("--reconstruction", small_run[0], "--output-dir", tmp_path, "--truth", small_scan, "--quiet") == 0
    )
    assert capsys.readouterr() == ("", "")


def test_the_scores_against_the_truth_are_those_of_the_run(judged: Path, small_run: tuple[Path, Any]) -> None:
    of_the_run = json.loads((small_run[0] / "metrics.json").read_text(encoding="utf-8"))
    found = scores_in(judged)
    scores = {name: value for name, value in of_the_run.items() if f"truth_{name}" in found}
    assert scores.keys() >= {"complex_nrmse", "phase_psnr_db"}
    assert {name: found[f"truth_{name}"] for name in scores} == pytest.approx(scores, rel=1e-4)


def test_the_verdict_of_the_stored_files_is_that_of_the_run(
    judged: Path, small_run: tuple[Path, Any]
) -> None:
    of_the_run = json.loads((small_run[0] / "metrics.json").read_text(encoding="utf-8"))
    found = scores_in(judged)
    assert (found["verdict"], len(found["reasons"])) == (of_the_run["verdict"], len(of_the_run["reasons"]))
    names = ("misfit", "misfit_expected", "noise_ratio", "unexplained", "overlap", "numbers_per_unknown")
    assert [found[name] for name in names] == pytest.approx([of_the_run[name] for name in names], rel=1e-4)


def test_all_pictures_are_drawn(judged: Path) -> None:
    assert [name for name in PICTURES if (judged / name).stat().st_size < PICTURE_BYTES] == []


def test_a_reconstruction_agrees_with_itself_and_not_with_another(
    small_run: tuple[Path, Any], small_scan: Path, infer_command: Command, tmp_path: Path
) -> None:
    def against(reference: Path, folder: Path) -> dict[str, Any]:
        words = (
            "--reconstruction",
            small_run[0],
            "--reference",
            reference,
            "--output-dir",
            folder,
            "--quiet",
        )
        assert run(*words) == 0
        return scores_in(folder)

    assert against(small_run[0] / "reconstruction.npz", tmp_path / "same")["reference_complex_nrmse"] < 1e-6
    assert infer_command(small_run[0], small_scan, tmp_path / "half", "--n_images", 32).code == 0
    other = against(tmp_path / "half", tmp_path / "other")
    assert 0.001 < other["reference_complex_nrmse"] < 0.5


def test_half_scans_of_a_lower_dose_agree_less(
    judged: Path, small_run: tuple[Path, Any], small_scan: Path, infer_command: Command, tmp_path: Path
) -> None:
    arrays = read_npz(small_scan)
    arrays["diff3d"] = np.random.default_rng(1).binomial(arrays["diff3d"], 2.5e-5).astype(np.uint16)
    arrays["probeGuess"] = arrays["probeGuess"] * np.complex64(5e-3)
    write_npz(tmp_path / "dim.npz", arrays)
    assert infer_command(small_run[0], tmp_path / "dim.npz", tmp_path / "dim").code == 0
    words = (
        "--reconstruction",
        tmp_path / "dim",
        "--test-data",
        tmp_path / "dim.npz",
        "--accelerator",
        "cpu",
    )
    assert run(*words, "--model-path", small_run[0], "--output-dir", tmp_path / "out", "--quiet") == 0
    bright, dim = scores_in(judged), scores_in(tmp_path / "out")
    assert dim["half_scan_complex_nrmse"] > 2 * bright["half_scan_complex_nrmse"]
    assert dim["half_scan_resolution_px"] > bright["half_scan_resolution_px"] >= 2


def test_the_seed_decides_the_split_and_refinement_sharpens_both_halves(
    small_run: tuple[Path, Any], small_scan: Path, judged: Path, tmp_path: Path
) -> None:
    def halves(name: str, *flags: object) -> float:
        files = ("--test-data", small_scan, "--model-path", small_run[0], "--accelerator", "cpu", "--quiet")
        assert run("--reconstruction", small_run[0], "--output-dir", tmp_path / name, *files, *flags) == 0
        return scores_in(tmp_path / name)["half_scan_complex_nrmse"]

    first = scores_in(judged)["half_scan_complex_nrmse"]
    assert halves("again") == pytest.approx(first, rel=1e-3)
    assert halves("other", "--seed", 7) != pytest.approx(first, rel=1e-3)
    assert halves("refined", "--refine", 30) < first


def bad_requests(run_folder: Path, scan: Path, tmp_path: Path) -> dict[str, tuple[list[object], str]]:
    """Return flags that cannot work, and the beginning of what is said about them."""
    truth = ["--truth", scan]
    named = ["--reconstruction", run_folder]
    (tmp_path / "text.npz").write_text("no archive", encoding="utf-8")
    (tmp_path / "taken").write_text("a file", encoding="utf-8")
    held = read_npz(scan)
    room = ((8, 8), (8, 8))
    wide = {"diff3d": np.pad(held["diff3d"], ((0, 0), *room)), "probeGuess": np.pad(held["probeGuess"], room)}
    write_npz(tmp_path / "large.npz", {**held, **wide})
    return {
        "no reconstruction": ([*truth], "--reconstruction is missing"),
        "nothing to compare with": ([*named], f"{run_folder}: nothing to compare with"),
        "a missing file": (
            ["--reconstruction", tmp_path / "absent.npz", *truth],
            f"{tmp_path / 'absent.npz'}: ",
        ),
        "a text file": (["--reconstruction", tmp_path / "text.npz", *truth], f"{tmp_path / 'text.npz'}: "),
        "a scan": (
            ["--reconstruction", scan, *truth],
            f"{scan}: not a reconstruction (key 'object' is missing",
        ),
        "a missing truth": ([*named, "--truth", tmp_path / "absent.npz"], f"{tmp_path / 'absent.npz'}: "),
        "a reference that is a scan": ([*named, "--reference", scan], f"{scan}: not a reconstruction"),
        "patterns of another size": (
            [*named, "--test-data", tmp_path / "large.npz"],
            "large.npz: the patterns do not",
        ),
        "a model without patterns": (
            [*named, *truth, "--model-path", run_folder],
            f"{run_folder}: a model needs",
        ),
        "no model there": (
            [*named, "--test-data", scan, "--model-path", tmp_path / "absent"],
            f"{tmp_path / 'absent'}: no such file",
        ),
        "steps without halves": ([*named, *truth, "--refine", 5], "half scans: --refine needs them"),
        "negative steps": (
            [*named, *truth, "--refine", -1],
            "refinement: a number is out of range (got --refine -1, expected",
        ),
        "an unknown backend": (
            [*named, "--test-data", scan, "--model-path", run_folder, "--backend", "jax"],
            "backend: unknown name",
        ),
        "an unknown domain": (
            [*named, "--test-data", scan, "--measurement-domain", "volts"],
            "--measurement-domain",
        ),
        "a folder that is a file": (
            [*named, *truth, "--output-dir", tmp_path / "taken"],
            f"{tmp_path / 'taken'}: ",
        ),
    }


def test_bad_input_is_one_line_and_status_2(
    small_run: tuple[Path, Any], small_scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, (words, start) in bad_requests(small_run[0], small_scan, tmp_path).items():
        code = run("--output-dir", tmp_path / "out", *words)
        out, err = capsys.readouterr()
        assert (name, code, len(err.splitlines())) == (name, 2, 1), (out, err)
        assert err.startswith(f"error: {start}"), (name, err)
        assert err.rstrip().endswith((".", "?")), (name, err)
    assert not (tmp_path / "out").exists()


def test_an_unknown_flag_is_answered_with_the_closest(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run("--reconstruktion", "x")
    assert stop.value.code == 2
    assert "Did you mean --reconstruction?" in capsys.readouterr().err


def test_help_loads_neither_numpy_nor_a_framework(run_python: Callable[..., CompletedProcess[str]]) -> None:
    code = (
        "import sys\nfrom ptycho.cli.evaluate_command import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "print('loaded:', sorted({'numpy', 'torch', 'tensorflow', 'matplotlib'} & set(sys.modules)))"
    )
    done = run_python("-c", code)
    assert "--model-path" in done.stdout
    assert done.stdout.splitlines()[-1] == "loaded: []"
