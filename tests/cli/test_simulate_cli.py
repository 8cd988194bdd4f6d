"""The simulate command: flags, messages, exit status, files."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from ptycho.cli.simulate_command import main
from ptycho.data.npz import read_npz

ROOT = Path(__file__).resolve().parents[2]
HELP_SECONDS = 1.5
"""The help takes about 0.15 s on an idle core; importing a framework would take several seconds."""
SMALL = ["--size", "32", "--grid", "3x4", "--step", "4", "--photons", "1e5"]


def _python(*words: str) -> subprocess.CompletedProcess[str]:
    """Run this interpreter in the repository root."""
    return subprocess.run(
        [sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )


def test_module_runs_and_prints_what_it_wrote(tmp_path: Path) -> None:
    path = tmp_path / "scan.npz"
    done = _python("-m", "ptycho.simulate", "--output", str(path), *SMALL)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    first, second = done.stdout.splitlines()
    assert first == str(path)
    counts = read_npz(path)["diff3d"]
    assert second.startswith("12 patterns of 32x32 px, ")
    assert f"{counts.sum(axis=(1, 2), dtype=float).mean():.4g} counts per pattern" in second


def test_the_photon_limit_is_one_line_more(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / "scan.npz")
    assert main(["--output", path, *SMALL, "--report-limit"]) == 0
    found = re.fullmatch(
        r"photon limit: NRMSE (\S+) for any unbiased estimate \(Cramer-Rao\), simple form (\S+), over (\d+) "
        r"well-lit pixels",
        capsys.readouterr().out.splitlines()[2],
    )
    assert found is not None
    limit, simple, pixels = map(float, found.groups())
    assert 0.9 * simple < limit < 2 * simple
    assert 100 < pixels < 40**2
    assert main(["--output", path, *SMALL, "--report-limit", "--quiet"]) == 0
    assert capsys.readouterr().out.splitlines() == [found.group()]


def test_help_is_quick_and_loads_no_numpy() -> None:
    start = time.perf_counter()
    done = _python("-m", "ptycho.simulate", "--help")
    assert time.perf_counter() - start < HELP_SECONDS
    assert done.returncode == 0
    assert "--probe-diameter" in done.stdout
    code = "import sys, ptycho.cli.simulate_command as c; c.build_parser(); print('numpy' in sys.modules)"
    assert _python("-c", code).stdout.strip() == "False"


def test_flags_reach_the_options(tmp_path: Path) -> None:
    path = tmp_path / "scan.npz"
    flags = (
        "--scene lines --scan spiral --positions 9 --step=3.5 --jitter 0.25 --probe disc "
        "--probe-diameter 13 --defocus 0.5 --probe-error 0.1 --modes 2 --mode-decay 0.4 --photons 2e5 "
        "--background 0.5 --detector-upsampling 3 --probe-window 2 --phase-range 1.1 --pattern-size 32 "
        "--edge-blur 0.3 --integer-positions --seed 4 --quiet --no-compress"
    )
    assert main(["--output", str(path), *flags.split()]) == 0
    stored = json.loads(str(read_npz(path, ["simulation"])["simulation"]))
    assert stored == {
        "scene": "lines",
        "picture": None,
        "phase_picture": None,
        "phase_range_rad": 1.1,
        "edge_blur_px": 0.3,
        "n_px": 32,
        "scan": "spiral",
        "step_px": 3.5,
        "n_y": 20,
        "n_x": 20,
        "n_positions": 9,
        "jitter_px": 0.25,
        "integer_positions": True,
        "probe": "disc",
        "probe_diameter_px": 13.0,
        "defocus_waves": 0.5,
        "probe_error_waves": 0.1,
        "n_modes": 2,
        "mode_decay": 0.4,
        "photons": 2e5,
        "background_counts": 0.5,
        "detector_upsampling": 3,
        "probe_window": 2,
        "seed": 4,
    }


def test_underscores_in_flags_equal_dashes_and_values_stay(tmp_path: Path) -> None:
    dashes, underscores = tmp_path / "a_b.npz", tmp_path / "c_d.npz"
    common = ["--quiet", "--size", "32", "--grid", "2x3"]
    assert main([f"--output={dashes}", "--probe-diameter", "14", "--scene", "dead-leaves", *common]) == 0
    assert main([f"--output={underscores}", "--probe_diameter=14", "--scene=dead_leaves", *common]) == 0
    assert dashes.read_bytes() == underscores.read_bytes()


def test_quiet_prints_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--output", str(tmp_path / "scan.npz"), *SMALL, "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.pictures
def test_preview_is_a_picture_of_the_right_size(tmp_path: Path) -> None:
    from PIL import Image

    picture = tmp_path / "view.png"
    assert main(["--output", str(tmp_path / "scan.npz"), *SMALL, "--preview", str(picture), "--quiet"]) == 0
    with Image.open(picture) as image:
        assert image.format == "PNG"
        assert np.asarray(image.convert("L")).std() > 10
    assert sorted(item.name for item in tmp_path.iterdir()) == ["scan.npz", "view.png"]


def test_object_can_come_from_a_picture(tmp_path: Path) -> None:
    from PIL import Image

    values = np.random.default_rng(1).integers(0, 255, (30, 30), dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / "a.png")
    path = tmp_path / "scan.npz"
    assert main(["--output", str(path), "--picture", str(tmp_path / "a.png"), *SMALL, "--quiet"]) == 0
    assert np.ptp(np.abs(read_npz(path)["objectGuess"])) > 0.1


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--scene", "siemens"], "siemens_star"),
        (["--picture", "missing.png"], "missing.png"),
        (["--photons", "-5"], "got -5.0"),
        (["--grid", "3by4"], "got '3by4'"),
        (["--grid", "0x4"], "n_y"),
        (["--positions", "40"], "--grid"),
        (["--probe-diameter", "50"], "got 50 px"),
        (["--preview", "view.txt"], "view.txt"),
        (["--colour", "red"], "--colour"),
    ],
)
def test_bad_input_is_one_line_and_leaves_no_file(
    flags: list[str], text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status = main(["--output", str(tmp_path / "scan.npz"), "--size", "32", *flags])
    except SystemExit as stop:
        status = int(str(stop.code))
    assert status == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert text in printed.err
    assert list(tmp_path.iterdir()) == []


def test_missing_output_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([])
    assert stop.value.code == 2
    assert "--output" in capsys.readouterr().err


def test_unwritable_folder_is_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(["--output", str(tmp_path / "file" / "scan.npz"), *SMALL]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="scene"):
        main(["--output", str(tmp_path / "scan.npz"), "--scene", "none", "--debug"])
