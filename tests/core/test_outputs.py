"""What a run writes: whole files, a repeatable record, the truth in its place, statistics of patches."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from ptycho.config.config import ModelConfig, PyTorchExecutionConfig, TrainingConfig
from ptycho.data.npz import read_npz, write_npz
from ptycho.data.reconstruction import Reconstruction
from ptycho.data.scan import Scan
from ptycho.errors import DataError
from ptycho.evaluation.phase import PhaseView
from ptycho.evaluation.verdict import Verdict
from ptycho.files.reader import open_scan
from ptycho.run.outputs import (
    output_folder,
    prepare_folder,
    truth_on_canvas,
    write_json,
    write_patch_stats,
    write_reconstruction,
    write_run_record,
    write_training_curves,
)

SHAPE = (64, 60)
ORIGIN = (3.0, 5.0)


def known_object(scan_file: Path) -> Reconstruction:
    """Return a 'reconstruction' that is the stored truth on a canvas of its own, times a constant phase."""
    truth = read_npz(scan_file, ["objectGuess"])["objectGuess"]
    scan = open_scan(scan_file)
    obj = np.ones(SHAPE, dtype=np.complex64)
    inside = truth[int(ORIGIN[0]) :, int(ORIGIN[1]) :][: SHAPE[0], : SHAPE[1]]
    obj[: inside.shape[0], : inside.shape[1]] = inside
    coverage = np.zeros(SHAPE, dtype=np.float32)
    coverage[6:40, 8:42] = 0.5
    return Reconstruction(
        obj=obj * np.complex64(np.exp(0.4j)), coverage=coverage, origin_yx_px=np.array(ORIGIN),
        probe=scan.probe, indices=np.arange(10, 60), seconds=0.1,
    )  # fmt: skip


@pytest.fixture
def scan(small_scan: Path) -> Scan:
    """Return the small scan."""
    return open_scan(small_scan)


def test_a_folder_is_made_with_its_parents_and_left_empty(tmp_path: Path) -> None:
    assert prepare_folder(str(tmp_path / "a" / "b")) == tmp_path / "a" / "b"
    assert list((tmp_path / "a" / "b").iterdir()) == []
    assert prepare_folder(tmp_path / "a" / "b").is_dir()


def test_a_folder_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(DataError, match=r"cannot be written to .*Pass another --output_dir"):
            prepare_folder(folder)


def _interrupted(folder: Path, *, leave: bool) -> None:
    with output_folder(folder) as made:
        if leave:
            (made / "file").touch()
        raise KeyboardInterrupt


def test_a_folder_that_a_failing_block_made_goes_again_unless_it_holds_something(tmp_path: Path) -> None:
    for name, leave, left in (("a/b", False, []), ("c/d", True, ["c", "c/d", "c/d/file"])):
        with pytest.raises(KeyboardInterrupt):
            _interrupted(tmp_path / name, leave=leave)
        assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")) == left
    with output_folder(str(tmp_path / "e")) as folder:
        pass
    assert folder.is_dir()


def test_json_has_no_numbers_that_json_does_not_know(tmp_path: Path) -> None:
    content = {"a": float("nan"), "b": [1.5, float("inf")], "c": np.float32(2.5), "d": tmp_path, "e": None}
    path = write_json(tmp_path / "x.json", content)
    assert json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda name: pytest.fail(name)) == {
        "a": None, "b": [1.5, None], "c": 2.5, "d": str(tmp_path), "e": None,
    }  # fmt: skip


def test_json_writes_numbers_and_truth_values_of_numpy_as_such(tmp_path: Path) -> None:
    content = {
        "yes": np.bool_(True),
        "count": np.int64(3),
        "half": np.float32(0.5),
        "none": np.float32(np.nan),
    }
    text = write_json(tmp_path / "x.json", content).read_text(encoding="utf-8")
    assert json.loads(text) == {"yes": True, "count": 3, "half": 0.5, "none": None}


def test_the_record_of_a_run_says_what_is_needed_to_repeat_it(scan: Scan, tmp_path: Path) -> None:
    config = TrainingConfig(model=ModelConfig(N=32, gridsize=1), nepochs=7, seed=5, output_dir=tmp_path)
    path = write_run_record(tmp_path, config, PyTorchExecutionConfig(num_workers=2), scan.record)
    record = json.loads(path.read_text(encoding="utf-8"))
    assert (path.name, record["seed"]) == ("config.json", 5)
    assert (record["config"]["nepochs"], record["config"]["model"]["N"]) == (7, 32)
    assert record["execution"]["num_workers"] == 2
    assert record["scale_record"] == scan.record.to_dict()
    assert record["versions"]["numpy"] == np.__version__


def test_curves_are_written_where_an_epoch_ended(tmp_path: Path) -> None:
    assert write_training_curves(tmp_path, {"train_loss": [], "val_loss": []}) == []
    assert list(tmp_path.iterdir()) == []
    files = write_training_curves(tmp_path, {"train_loss": [3.0, 2.0], "val_loss": []})
    assert [path.name for path in files] == ["loss.png", "history.json"]
    assert json.loads(files[1].read_text(encoding="utf-8")) == {"train_loss": [3.0, 2.0]}


def test_the_truth_lies_on_the_canvas_where_the_reconstruction_does(small_scan: Path) -> None:
    found = known_object(small_scan)
    known = truth_on_canvas(small_scan, found)
    assert known is not None
    truth, mask = known
    np.testing.assert_allclose(truth[mask] * np.exp(0.4j), found.obj[mask], rtol=1e-5)
    stored = read_npz(small_scan, ["objectGuess"])["objectGuess"]
    rows = np.arange(SHAPE[0])[:, None] + int(ORIGIN[0]) < stored.shape[0]
    columns = np.arange(SHAPE[1]) + int(ORIGIN[1]) < stored.shape[1]
    np.testing.assert_array_equal(mask, found.scanned & rows & columns)
    # One pixel aside is not the same.
    assert np.abs(np.roll(truth, 1, axis=0) * np.exp(0.4j) - found.obj)[mask].max() > 0.05


def test_an_object_that_is_not_called_the_truth_is_no_truth(small_scan: Path, tmp_path: Path) -> None:
    arrays = read_npz(small_scan)
    write_npz(tmp_path / "guess.npz", {**arrays, "object_is_truth": np.array(False)})
    assert truth_on_canvas(tmp_path / "guess.npz", known_object(small_scan)) is None
    del arrays["object_is_truth"]
    write_npz(tmp_path / "silent.npz", arrays)
    assert truth_on_canvas(tmp_path / "silent.npz", known_object(small_scan)) is None


def test_a_reconstruction_is_written_with_scores_where_the_truth_is_known(
    small_scan: Path, scan: Scan, tmp_path: Path
) -> None:
    found = known_object(small_scan)
    files, scores = write_reconstruction(tmp_path, found.in_scan(scan), small_scan)
    assert [path.name for path in files] == [
        "reconstructed_amplitude.png", "reconstructed_phase.png", "reconstruction.npz", "probe.png",
        "comparison.png", "metrics.json",
    ]  # fmt: skip
    assert all(path.is_file() for path in files)
    assert scores["complex_nrmse"] < 1e-3
    assert json.loads(files[-1].read_text(encoding="utf-8")).keys() == scores.keys()
    stored = read_npz(files[2])
    np.testing.assert_array_equal(stored["object"], found.obj)
    np.testing.assert_array_equal(stored["positions_yx_px"], scan.positions_yx_px[10:60])
    np.testing.assert_array_equal(stored["origin_yx_px"], ORIGIN)


def test_a_reconstruction_without_a_truth_has_no_scores(small_scan: Path, scan: Scan, tmp_path: Path) -> None:
    files, scores = write_reconstruction(
        tmp_path, known_object(small_scan).in_scan(scan), None, PhaseView((-1.0, 1.0))
    )
    assert scores == {}
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in files}
    assert not (tmp_path / "metrics.json").exists()


def test_a_verdict_is_written_with_and_without_a_truth(small_scan: Path, scan: Scan, tmp_path: Path) -> None:
    verdict = Verdict("doubtful", ("a reason",), {"misfit": 0.01, "misfit_expected": None})
    for truth in (small_scan, None):
        files, scores = write_reconstruction(
            tmp_path, known_object(small_scan).in_scan(scan), truth, verdict=verdict
        )
        metrics = json.loads(files[-1].read_text(encoding="utf-8"))
        assert metrics == {**verdict.to_dict(), **scores}
        assert ("complex_nrmse" in metrics) == (truth is not None)


def test_patch_statistics_are_those_of_a_loop_over_patches(
    small_scan: Path, scan: Scan, tmp_path: Path
) -> None:
    obj = np.ones((90, 90), dtype=np.complex64)
    rows, columns = np.mgrid[:90, :90]
    obj = ((1 + 0.3 * np.sin(rows / 9)) * np.exp(0.5j * np.cos(columns / 7))).astype(np.complex64)
    found = Reconstruction(
        obj=obj, coverage=np.ones((90, 90), np.float32), origin_yx_px=np.zeros(2), probe=scan.probe,
        indices=np.array([3, 17, 40]), seconds=0.0,
    )  # fmt: skip
    path = write_patch_stats(tmp_path, found.in_scan(scan), 2)
    with path.open(encoding="utf-8") as stream:
        table = list(csv.DictReader(stream))
    assert [int(float(row["pattern"])) for row in table] == [3, 17]
    weight = np.abs(scan.probe[0]) ** 2
    weight = weight / weight.sum()
    for row in table:
        y, x = scan.positions_yx_px[int(float(row["pattern"]))]
        assert (float(row["y_px"]), float(row["x_px"])) == pytest.approx((y, x), rel=1e-4)
        top, left = int(np.floor(y - 15.5 + 0.5)), int(np.floor(x - 15.5 + 0.5))
        patch = obj[top : top + 32, left : left + 32]
        for name, values in (("amplitude", np.abs(patch)), ("phase", np.angle(patch))):
            mean = (values * weight).sum()
            unit = "_rad" if name == "phase" else ""
            assert float(row[f"{name}_mean{unit}"]) == pytest.approx(mean, rel=1e-4)
            spread = np.sqrt(((values - mean) ** 2 * weight).sum())
            assert float(row[f"{name}_std{unit}"]) == pytest.approx(spread, rel=1e-3)


def test_a_wrap_does_not_move_the_mean_phase_of_a_patch(scan: Scan, tmp_path: Path) -> None:
    columns = np.indices((90, 90))[1]
    phase = 3.1 + 0.5 * np.cos(columns / 7)
    found = Reconstruction(
        obj=np.exp(1j * phase).astype(np.complex64), coverage=np.ones((90, 90), np.float32),
        origin_yx_px=np.zeros(2), probe=scan.probe, indices=np.array([17]), seconds=0.0,
    )  # fmt: skip
    path = write_patch_stats(tmp_path, found.in_scan(scan), None)
    with path.open(encoding="utf-8") as stream:
        (row,) = csv.DictReader(stream)
    weight = (np.abs(scan.probe) ** 2).sum(axis=0)
    y, x = (int(np.floor(value - 15.5 + 0.5)) for value in scan.positions_yx_px[17])
    mean = np.average(phase[y : y + 32, x : x + 32], weights=weight)
    spread = np.sqrt(np.average((phase[y : y + 32, x : x + 32] - mean) ** 2, weights=weight))
    turns = (float(row["phase_mean_rad"]) - mean) / (2 * np.pi)
    assert turns == pytest.approx(round(turns), abs=1e-3)
    assert float(row["phase_std_rad"]) == pytest.approx(spread, rel=1e-3)
