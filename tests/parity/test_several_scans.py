"""Several scans of one sample become one object, and several of different ones train one network."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs import Told
from several_scans import INTENSITY, OFFSET_YX_PX, fields, part, whole_scan, written

from ptycho.config.config import InferenceConfig, ModelConfig, PyTorchExecutionConfig, TrainingConfig
from ptycho.data.npz import read_npz
from ptycho.data.selection import training_groups
from ptycho.files.reader import open_scan
from ptycho.process.progress import Progress
from ptycho.run.engines import load_engine
from ptycho.run.evaluate import Request, evaluate
from ptycho.run.job import TrainingJob, TrainingPart
from ptycho.run.pipeline import infer, train

BACKENDS = ("pytorch", "tensorflow")
CPU = PyTorchExecutionConfig(accelerator="cpu", logger_backend=None)
PLACE = 0.1
"""A tenth of a pixel, where a step of the scan is three."""
Command = Callable[..., Any]


@pytest.fixture(scope="module")
def whole() -> dict[str, Any]:
    return whole_scan()


def reconstructed(
    paths: list[Path], folder: Path, backend: str = "pytorch", **settings: Any
) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """Return what the file of a reconstruction holds, its metrics, and what was told."""
    given = {"refine_steps": 40, "refine_start": "flat", **settings}
    config = InferenceConfig(
        ModelConfig(), Path("pretrained"), paths, output_dir=folder, backend=backend, **given
    )
    told = Told()
    infer(config, CPU, progress=told)
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    return read_npz(folder / "reconstruction.npz"), metrics, told.lines


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_two_halves_as_their_files_say_are_the_whole_scan_to_the_last_bit(
    backend: str, whole: dict[str, Any], tmp_path: Path
) -> None:
    rows = np.arange(len(whole["diff3d"]))
    halves = {"one": part(whole, rows[:80]), "two": part(whole, rows[80:])}
    paths = written(tmp_path, whole=whole, **halves)
    steps = {"refine_steps": 12}
    expected, _, _ = reconstructed(paths[:1], tmp_path / "a", backend, **steps)
    found, metrics, lines = reconstructed(paths[1:], tmp_path / "b", backend, align_scans=False, **steps)
    for name in ("object", "probe", "positions_yx_px", "pattern_index", "frame_gain"):
        np.testing.assert_array_equal(found[name], expected[name])
    assert "scan_index" not in expected
    assert found["scan_index"].tolist() == [0] * 80 + [1] * (len(rows) - 80)
    assert found["scan_files"].tolist() == ["one.npz", "two.npz"]
    assert found["scan_first_pattern"].tolist() == [0, 80]
    assert [item["offset_yx_px"] for item in metrics["scans"]] == [[0, 0], [0, 0]]
    (line,) = (line for line in lines if line.startswith("scans: "))
    assert line == "scans: misfit of " + ", ".join(
        f"{item['file']} {item['misfit']:.4g}" for item in metrics["scans"]
    )


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_an_offset_and_another_exposure_are_found_and_the_object_is_that_of_one_scan(
    backend: str, whole: dict[str, Any], tmp_path: Path
) -> None:
    one, two = fields(whole)
    scans = {"a": part(whole, one), "b": part(whole, two, OFFSET_YX_PX, INTENSITY)}
    paths = written(tmp_path, whole=whole, **scans)
    found, metrics, lines = reconstructed(paths[1:], tmp_path / "found", backend)
    place = metrics["scans"][1]
    np.testing.assert_allclose(place["offset_yx_px"], OFFSET_YX_PX, atol=PLACE)
    np.testing.assert_allclose(found["scan_offsets_yx_px"], [[0, 0], place["offset_yx_px"]])
    assert place["intensity"] == pytest.approx(INTENSITY, rel=0.02)
    true = np.stack([whole["ycoords"][two], whole["xcoords"][two]], axis=1)
    np.testing.assert_allclose(found["positions_yx_px"][found["scan_index"] == 1], true, atol=PLACE)
    gains = [found["frame_gain"][found["scan_index"] == number] for number in (0, 1)]
    assert gains[1].mean() / gains[0].mean() == pytest.approx(np.sqrt(INTENSITY), rel=0.01)
    assert any(line.startswith("scans: b.npz moved by y +7.") for line in lines)
    assert metrics["verdict"] == "good"
    _, alone, _ = reconstructed(paths[:1], tmp_path / "whole", backend)
    assert metrics["complex_nrmse"] < 1.3 * alone["complex_nrmse"]


def test_positions_of_a_remounted_sample_that_are_believed_are_wrong(
    whole: dict[str, Any], tmp_path: Path
) -> None:
    one, two = fields(whole)
    paths = written(tmp_path, a=part(whole, one), b=part(whole, two, OFFSET_YX_PX))
    _, metrics, _ = reconstructed(paths, tmp_path / "believed", align_scans=False)
    assert metrics["verdict"] != "good"
    assert metrics["complex_nrmse"] > 0.1


def test_scans_are_found_beside_each_other_in_a_row(whole: dict[str, Any], tmp_path: Path) -> None:
    order = np.argsort(whole["xcoords"], kind="stable")
    thirds = [np.sort(order[start : start + 66]) for start in (0, 37, 74)]
    offsets = ((0.0, 0.0), (7.3, -4.6), (-3.2, 11.8))
    scans = {
        name: part(whole, rows, offset) for name, rows, offset in zip("acb", thirds, offsets, strict=True)
    }
    # The second of the files touches the first only through the third.
    paths = written(tmp_path, **{name: scans[name] for name in "abc"})
    _, metrics, lines = reconstructed(paths, tmp_path / "out")
    places = {item["file"][0]: item["offset_yx_px"] for item in metrics["scans"]}
    np.testing.assert_allclose(places["c"], offsets[1], atol=PLACE)
    np.testing.assert_allclose(places["b"], offsets[2], atol=2 * PLACE)
    assert any("with c.npz" in line for line in lines if line.startswith("scans: b.npz"))


def test_what_does_not_belong_together_is_refused_in_one_line(
    whole: dict[str, Any], infer_command: Command, tmp_path: Path
) -> None:
    other = whole_scan(seed=9, scene="dead_leaves")
    small = whole_scan(n_y=4, n_x=4)
    small["diff3d"], small["probeGuess"] = small["diff3d"][:, 4:-4, 4:-4], small["probeGuess"][4:-4, 4:-4]
    a, b, c = written(tmp_path, a=whole, b=other, c=small)
    for path, said in (
        (b, "b.npz: it is not clear where it lies beside a.npz"),
        (c, "c.npz: the size of the patterns is not that of a.npz (got 24 px, expected 32 px)"),
    ):
        done = infer_command("pretrained", a, tmp_path / "out", "--test-data", a, path)
        assert done.code == 2
        assert done.err.startswith(f"error: {said}")
        assert len(done.err.splitlines()) == 1
        assert not (tmp_path / "out").exists()
    done = infer_command("pretrained", a, tmp_path / "out", "--no-align-scans")
    assert done.code == 2
    assert "align_scans has no effect" in done.err
    done = infer_command("pretrained", a, tmp_path / "out", "--test-data", a, tmp_path / "none.npz")
    assert (done.code, "none.npz: no such file" in done.err) == (2, True)


def test_an_evaluation_knows_the_scans_of_a_reconstruction(whole: dict[str, Any], tmp_path: Path) -> None:
    one, two = fields(whole)
    a, b = written(tmp_path, a=part(whole, one), b=part(whole, two, OFFSET_YX_PX, INTENSITY))
    _, metrics, _ = reconstructed([a, b], tmp_path / "out")
    found = evaluate(Request(tmp_path / "out", test_data=a, further_scans=(b,)), tmp_path / "again")
    assert found.verdict is not None
    assert found.verdict.to_dict()["misfit"] == pytest.approx(metrics["misfit"], rel=1e-3)
    with pytest.raises(ValueError, match=r"expected 2 scans: a\.npz, b\.npz"):
        evaluate(Request(tmp_path / "out", test_data=a), tmp_path / "alone")


@pytest.fixture(scope="module")
def different(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return scans of two objects, with two probes and two doses."""
    made = {
        "a": whole_scan(n_y=6, n_x=6),
        "b": whole_scan(n_y=6, n_x=6, photons=2e5, n_modes=2, scene="dead_leaves", seed=4),
    }
    return written(tmp_path_factory.mktemp("different"), **made)


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_training_on_two_scans_lowers_the_misfit_of_both(
    backend: str, different: list[Path], tmp_path: Path
) -> None:
    engine, scans = load_engine(backend), [open_scan(path) for path in different]
    model = ModelConfig(N=32, n_filters_scale=1)
    misfits = []
    for epochs in (1, 7):
        config = TrainingConfig(
            model, nepochs=epochs, batch_size=8, torch_loss_mode="amplitude", output_dir=tmp_path,
            intensity_scale_trainable=False, backend=backend,
        )  # fmt: skip
        first, *rest = (TrainingPart(scan, *training_groups(scan, config, validate=True)) for scan in scans)
        quiet = PyTorchExecutionConfig(accelerator="cpu", logger_backend=None, enable_checkpointing=False)
        trained = engine.fit(TrainingJob(config, quiet, *first, further=tuple(rest)))
        found = [
            engine.reconstruct(trained.model, scan, scan.usable, execution=CPU, progress=Progress())
            for scan in scans
        ]
        misfits.append([item.fit.relative for item in found])
    assert (np.array(misfits[1]) < 0.9 * np.array(misfits[0])).all()


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_run_on_two_scans_reconstructs_either(backend: str, different: list[Path], tmp_path: Path) -> None:
    model = ModelConfig(N=32, architecture="unrolled", unrolled_steps=14, unrolled_width=8)
    config = TrainingConfig(
        model, train_data_file=different, nepochs=1, output_dir=tmp_path / "run", backend=backend,
        torch_loss_mode="amplitude", intensity_scale_trainable=False, probe_trainable=True,
    )  # fmt: skip
    told = Told()
    train(config, CPU, progress=told)
    assert "training on 2 scans; the reconstruction is that of a.npz" in told.lines
    stored = json.loads((tmp_path / "run" / "config.json").read_text(encoding="utf-8"))["config"]
    assert (stored["train_data_file"], stored["further_scans"]) == (str(different[0]), [str(different[1])])
    for path in different:
        asked = InferenceConfig(
            ModelConfig(), tmp_path / "run", path, output_dir=tmp_path / path.stem, backend=backend
        )
        outcome = infer(asked, CPU)
        assert outcome.scores["complex_nrmse"] < 0.15


def test_scans_of_two_sizes_do_not_train_one_network(
    different: list[Path], train_command: Command, tmp_path: Path
) -> None:
    small = whole_scan(n_y=4, n_x=4)
    small["diff3d"], small["probeGuess"] = small["diff3d"][:, 4:-4, 4:-4], small["probeGuess"][4:-4, 4:-4]
    (path,) = written(tmp_path, c=small)
    flags = ("--train_data_file", different[0], path)
    done = train_command(different[0], tmp_path / "run", *flags)
    assert done.code == 2
    assert "c.npz: the size of the patterns is not that of a.npz (got 24 px, expected 32 px)" in done.err
    assert not (tmp_path / "run").exists()
