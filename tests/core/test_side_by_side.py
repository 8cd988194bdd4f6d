"""The comparison that the demo ends with: it states the errors of its reconstructions, in the order given."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from ptycho.data.npz import read_npz, write_npz
from ptycho.files.reader import open_scan
from ptycho.simulation.simulate import SimulationOptions, write_scan

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
from side_by_side import main  # noqa: E402


@pytest.fixture
def scan_file(tmp_path: Path) -> Path:
    write_scan(tmp_path / "scan.npz", SimulationOptions(n_px=32, n_y=8, n_x=8, step_px=5.0, seed=2))
    return tmp_path / "scan.npz"


def stored(scan_file: Path, folder: Path, error: float) -> str:
    """Store the truth with noise of this relative size as a reconstruction."""
    obj = read_npz(scan_file, ["objectGuess"])["objectGuess"]
    rng, scan = np.random.default_rng(0), open_scan(scan_file)
    noise = rng.standard_normal(obj.shape) + 1j * rng.standard_normal(obj.shape)
    size = error * np.sqrt((np.abs(obj) ** 2).mean() / 2)
    folder.mkdir()
    arrays = {
        "object": (obj + size * noise).astype(np.complex64),
        "coverage": np.ones(obj.shape, np.float32),
        "origin_yx_px": np.zeros(2),
        "probe": scan.probe,
        "positions_yx_px": scan.positions_yx_px,
        "pattern_index": scan.usable,
        "scale_record": np.array('{"domain": "counts"}'),
    }
    write_npz(folder / "reconstruction.npz", arrays)
    return f"{folder.name} solver={folder}"


def test_the_last_lines_are_the_errors(
    scan_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = [stored(scan_file, tmp_path / name, error) for name, error in (("worse", 0.08), ("good", 0.02))]
    picture = tmp_path / "picture.png"
    assert main([*named, "--truth", str(scan_file), "--output", str(picture)]) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == str(picture)
    assert [line.split("  ")[0].strip() for line in lines] == ["worse solver", "good solver"]
    errors = [float(line.split()[-1]) for line in lines]
    assert errors == pytest.approx([0.08, 0.02], rel=0.05)
    assert picture.stat().st_size < 200_000


def test_a_scan_without_a_truth_is_refused(
    scan_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = stored(scan_file, tmp_path / "one", 0.1)
    arrays = read_npz(scan_file)
    arrays["object_is_truth"] = np.array(False)
    write_npz(tmp_path / "blind.npz", arrays)
    picture = tmp_path / "picture.png"
    assert main([named, "--truth", str(tmp_path / "blind.npz"), "--output", str(picture)]) == 2
    assert "no known truth" in capsys.readouterr().err
    assert not picture.exists()
