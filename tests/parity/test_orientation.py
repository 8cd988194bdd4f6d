"""A scan whose positions run another way is found out, and reconstructed as if they ran the right way."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs import Told

from ptycho.config.config import InferenceConfig, ModelConfig, PyTorchExecutionConfig
from ptycho.data.npz import read_npz, write_npz
from ptycho.data.optics import Orientation
from ptycho.run.pipeline import infer
from ptycho.simulation.simulate import SimulationOptions, simulate

PLANTED = {
    "pytorch": [Orientation("x"), Orientation("y", True), Orientation("", True), Orientation("xy")],
    "tensorflow": [Orientation("y", True)],  # the search itself is the same code
}
Command = Callable[..., Any]
SAME = 1e-3
"""The canvas of a turned scan begins elsewhere by a fraction of a pixel."""


@pytest.fixture(scope="module")
def arrays() -> dict[str, Any]:
    """A scan of a probe without symmetry: whole positions, so that a turned canvas is the same canvas."""
    options = SimulationOptions(
        n_px=32, n_y=9, n_x=10, step_px=3.0, photons=1e6, n_modes=2, integer_positions=True, seed=8
    )
    found = simulate(options)
    found.pop("object_is_truth", None)
    return found


def reconstructed(scan: Path, folder: Path, backend: str, **settings: Any) -> tuple[Path, list[str]]:
    config = InferenceConfig(
        ModelConfig(), Path("pretrained"), scan, output_dir=folder, backend=backend, refine_steps=20,
        refine_start="flat", **settings,
    )  # fmt: skip
    told = Told()
    infer(config, PyTorchExecutionConfig(accelerator="cpu"), progress=told)
    return folder / "reconstruction.npz", told.lines


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["pytorch", "tensorflow"])
def test_the_planted_orientation_is_found_and_used(
    backend: str, arrays: dict[str, Any], tmp_path: Path, require: Callable[[str], None]
) -> None:
    del require
    write_npz(tmp_path / "right.npz", arrays)
    right = read_npz(reconstructed(tmp_path / "right.npz", tmp_path / "right", backend)[0])
    stored = np.stack([arrays["ycoords"], arrays["xcoords"]], axis=1)
    for number, way in enumerate(PLANTED[backend]):
        # What is stored is the inverse of what has to be done to it.
        inverse = np.linalg.inv(way.turn(np.eye(2)))
        y, x = (stored @ inverse).T
        path = tmp_path / f"{number}.npz"
        write_npz(path, {**arrays, "ycoords": y, "xcoords": x})
        found, lines = reconstructed(path, tmp_path / str(number), backend, find_orientation=True)
        line = next(line for line in lines if line.startswith("orientation: "))
        assert f"{way.flags()} fits best" in line
        assert line.endswith("; used")
        obj = read_npz(found)["object"]
        assert obj.shape == right["object"].shape
        assert np.abs(obj - right["object"]).max() < SAME * np.abs(right["object"]).max()


def turned_file(small_scan: Path, planted: Orientation, folder: Path) -> Path:
    arrays = read_npz(small_scan)
    turned = planted.turn(np.stack([arrays["ycoords"], arrays["xcoords"]], axis=1))
    arrays |= {"ycoords": turned[:, 0], "xcoords": turned[:, 1]}
    for name in ("xcoords_start", "ycoords_start"):
        del arrays[name]
    write_npz(folder / "turned.npz", arrays)
    return folder / "turned.npz"


def test_the_command_uses_what_it_found_and_drops_the_scores(
    small_scan: Path, infer_command: Command, tmp_path: Path
) -> None:
    turned = turned_file(small_scan, Orientation("x"), tmp_path)
    wrong = infer_command("pretrained", turned, tmp_path / "wrong")
    assert "verdict: FAILED: " in wrong.out
    done = infer_command("pretrained", turned, tmp_path / "out", "--find-orientation")
    assert (done.code, done.err) == (0, "")
    assert "orientation: --flip-positions x fits best, " in done.out
    assert "verdict: good: " in done.out
    assert "no scores: the truth of turned.npz lies in the frame of positions that were turned" in done.out
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["verdict"] == "good"
    assert "complex_nrmse" not in metrics
    config = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))["config"]
    assert (config["flip_positions"], config["find_orientation"]) == ("x", False)
    by_flag = infer_command("pretrained", turned, tmp_path / "flag", "--flip-positions", "x")
    assert by_flag.code == 0, by_flag.err
    objects = [read_npz(tmp_path / name / "reconstruction.npz")["object"] for name in ("out", "flag")]
    np.testing.assert_array_equal(*objects)


def test_a_search_beside_flags_is_refused_before_a_folder_is_made(
    small_scan: Path, infer_command: Command, tmp_path: Path
) -> None:
    done = infer_command("pretrained", small_scan, tmp_path / "out", "--find-orientation", "--swap-positions")
    assert done.code == 2
    assert "--find-orientation: it tries every orientation" in done.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "code"), [((), 0), (("--strict",), 3), (("--strict", "--quiet"), 3), (("--quiet",), 0)]
)
def test_a_failed_verdict_ends_with_status_three_where_that_is_asked_for(
    flags: tuple[str, ...],
    code: int,
    small_scan: Path,
    infer_command: Command,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    turned = turned_file(small_scan, Orientation("x"), tmp_path)
    done = infer_command("pretrained", turned, tmp_path / "out", *flags)
    assert done.code == code
    assert (tmp_path / "out" / "reconstruction.npz").is_file()
    if "--quiet" in flags:
        assert done.out == ""
        assert "verdict: FAILED: " in caplog.text
    else:
        assert "verdict: FAILED: " in done.out
    assert json.loads((tmp_path / "out" / "metrics.json").read_text(encoding="utf-8"))["verdict"] == "failed"


def test_a_good_verdict_ends_with_status_zero_all_the_same(
    small_scan: Path, infer_command: Command, tmp_path: Path
) -> None:
    done = infer_command("pretrained", small_scan, tmp_path / "out", "--strict", "--quiet")
    assert (done.code, done.out, done.err) == (0, "", "")


def test_positions_turned_by_flags_give_the_object_of_a_straight_file(
    small_scan: Path, tmp_path: Path
) -> None:
    turned = turned_file(small_scan, Orientation("y", True), tmp_path)
    objects = []
    for name, path, flags in (
        ("straight", small_scan, {}),
        # The inverse: y and x exchanged, then x turned.
        ("turned", turned, {"swap_positions": True, "flip_positions": "x"}),
    ):
        config = InferenceConfig(
            ModelConfig(), Path("pretrained"), path, output_dir=tmp_path / name, backend="pytorch", **flags
        )
        objects.append(infer(config, PyTorchExecutionConfig(accelerator="cpu")).reconstruction.obj)
    np.testing.assert_allclose(*objects, atol=1e-4)
