"""The inference command: which model is taken, what is written, and reconstructions at true positions."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ptycho.data.npz import read_npz, write_npz
from ptycho.run.engines import ModelNotFoundError, find_model

Command = Callable[..., Any]
PICTURES = ("reconstructed_amplitude.png", "reconstructed_phase.png")
PICTURE_BYTES = 1000
PLACES = (
    "wts.h5.zip",
    "checkpoints/best-checkpoint.ckpt",
    "checkpoints/best-checkpoint.h5.zip",
    "checkpoints/last.ckpt",
    "wts.pt",
    "model.pt",
)
"""Where a training folder keeps its model; the first one that is there is taken."""
OWN = ("--select", "off")
"""Asks for what the network makes, whatever hidden pixels say of it."""
SAME_OBJECT = 1e-6
"""Largest difference of two objects that come from the same numbers, relative to the largest value."""


def object_in(folder: Path) -> NDArray[np.complex64]:
    """Return the reconstructed object of an output folder."""
    return read_npz(folder / "reconstruction.npz", ["object"])["object"]


def difference(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Return the largest difference relative to the largest value; infinite where the shapes differ."""
    if a.shape != b.shape:
        return float("inf")
    return float(np.abs(a - b).max() / np.abs(b).max())


@pytest.mark.pictures
def test_two_pictures_at_150_dpi_and_the_object_are_written(
    small_run: tuple[Path, Any], small_scan: Path, infer_command: Command, tmp_path: Path
) -> None:
    from PIL import Image

    done = infer_command(small_run[0], small_scan, tmp_path / "a" / "out")
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines()[-2:] == [str(tmp_path / "a" / "out" / name) for name in PICTURES]
    for name in PICTURES:
        path = tmp_path / "a" / "out" / name
        assert path.stat().st_size > PICTURE_BYTES
        with Image.open(path) as picture:
            assert picture.format == "PNG"
            assert picture.info["dpi"] == pytest.approx((150, 150), abs=0.1)
    stored = read_npz(tmp_path / "a" / "out" / "reconstruction.npz")
    assert set(stored) >= {
        "object", "coverage", "origin_yx_px", "probe", "positions_yx_px", "pattern_index", "scale_record",
    }  # fmt: skip
    assert stored["object"].dtype == np.complex64
    assert stored["object"].shape == stored["coverage"].shape
    assert stored["pattern_index"].tolist() == list(range(64))
    scan = read_npz(small_scan)
    np.testing.assert_array_equal(stored["positions_yx_px"][:, 0], scan["ycoords"])
    np.testing.assert_array_equal(stored["positions_yx_px"][:, 1], scan["xcoords"])
    assert json.loads(str(stored["scale_record"]))["domain"] == "counts"


def test_inference_gives_the_object_that_the_training_gave(
    small_run: tuple[Path, Any], small_scan: Path, infer_command: Command, tmp_path: Path
) -> None:
    checkpoints = small_run[0] / "checkpoints"
    model = checkpoints / "best-checkpoint.ckpt"
    best = infer_command(model, small_scan, tmp_path / "best", *OWN)
    assert best.code == 0, best.err
    assert difference(object_in(tmp_path / "best"), object_in(small_run[0])) < SAME_OBJECT
    assert difference(object_in(tmp_path / "best") * 1.01, object_in(small_run[0])) > SAME_OBJECT


def test_the_model_is_looked_for_in_the_stated_order(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        find_model(tmp_path)
    assert isinstance(caught.value, FileNotFoundError)
    assert all(name in str(caught.value) for name in PLACES)
    for name in reversed(PLACES):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
        assert find_model(tmp_path) == tmp_path / name
    assert find_model(tmp_path / "wts.h5.zip") == tmp_path / "wts.h5.zip"


def test_every_place_of_a_model_gives_the_same_object(
    small_run: tuple[Path, Any], small_scan: Path, infer_command: Command, tmp_path: Path
) -> None:
    last = small_run[0] / "checkpoints" / "last.ckpt"
    models = {name: tmp_path / name.replace("/", "-") for name in PLACES}
    for name, folder in models.items():
        (folder / name).parent.mkdir(parents=True)
        shutil.copyfile(small_run[0] / "wts.h5.zip" if name.endswith("zip") else last, folder / name)
    models["direct"] = last
    found = {}
    for name, model in models.items():
        done = infer_command(model, small_scan, tmp_path / "out")
        assert done.code == 0, done.err
        found[name] = object_in(tmp_path / "out")
    for name, obj in found.items():
        # One epoch was trained, so the best weights in the bundle are the last ones.
        assert difference(obj, found["direct"]) < SAME_OBJECT, name


def test_the_order_of_flags_does_not_matter(
    small_run: tuple[Path, Any], small_scan: Path, run_command: Command, tmp_path: Path
) -> None:
    done = run_command(
        "inference", "--output-dir", tmp_path / "out", "--quiet", "--test-data", small_scan, "--model-path",
        small_run[0], "--device", "cpu",
    )  # fmt: skip
    assert done == (0, "", "")
    assert (tmp_path / "out" / PICTURES[0]).is_file()


def test_some_of_the_patterns_are_used_on_request(
    small_run: tuple[Path, Any], small_scan: Path, infer_command: Command, tmp_path: Path
) -> None:
    assert infer_command(small_run[0], small_scan, tmp_path / "out", "--n_images", 32).code == 0
    members = read_npz(tmp_path / "out" / "reconstruction.npz", ["pattern_index"])["pattern_index"]
    assert len(np.unique(members)) == 32
    assert members.max() < 64


def shuffled(scan: Path, path: Path) -> Path:
    """Write the patterns of a scan in another order."""
    arrays = read_npz(scan)
    order = np.random.default_rng(5).permutation(len(arrays["diff3d"]))
    for key in ("diff3d", "xcoords", "ycoords", "xcoords_start", "ycoords_start", "scan_index"):
        arrays[key] = arrays[key][order]
    write_npz(path, arrays)
    return path


@pytest.mark.parametrize(("architecture", "gridsize"), [("cnn", 1), ("unrolled", 2), ("unrolled", 3)])
def test_a_pattern_counts_at_its_own_position_whatever_its_place_in_the_file(
    architecture: str,
    gridsize: int,
    small_scan: Path,
    train_command: Command,
    infer_command: Command,
    tmp_path: Path,
) -> None:
    done = train_command(small_scan, tmp_path / "run", "--architecture", architecture, "--gridsize", gridsize)
    assert done.code == 0, done.err
    assert f"gridsize={gridsize}" in done.out.splitlines()[0]
    other = shuffled(small_scan, tmp_path / "shuffled.npz")
    for scan, folder in ((small_scan, tmp_path / "a"), (other, tmp_path / "b")):
        assert infer_command(tmp_path / "run", scan, folder, *OWN).code == 0
    # Sums over patterns in another order differ by rounding, which the steps amplify a little.
    assert difference(object_in(tmp_path / "b"), object_in(tmp_path / "a")) < 1e-4
    arrays = read_npz(other)
    arrays["xcoords"], arrays["ycoords"] = arrays["ycoords"], arrays["xcoords"]
    write_npz(tmp_path / "swapped.npz", arrays)
    assert infer_command(tmp_path / "run", tmp_path / "swapped.npz", tmp_path / "c", *OWN).code == 0
    assert difference(object_in(tmp_path / "c"), object_in(tmp_path / "a")) > 1e-2


def test_flags_of_the_reconstruction_take_effect(
    small_scan: Path, train_command: Command, infer_command: Command, tmp_path: Path
) -> None:
    assert train_command(small_scan, tmp_path / "run", "--architecture", "cnn").code == 0
    cases: dict[str, tuple[object, ...]] = {
        "plain": (),
        "small": ("--inference-batch-size", 7),
        "uniform": ("--patch-weighting", "uniform"),
        "scaled": ("--varpro-scaling",),
        "stats": ("--log-patch-stats", "--patch-stats-limit", 3, "--phase-vmin", -1, "--phase-vmax", 1),
    }
    for name, flags in cases.items():
        done = infer_command(tmp_path / "run", small_scan, tmp_path / name, *OWN, *flags)
        assert done.code == 0, done.err
    plain = object_in(tmp_path / "plain")
    assert difference(object_in(tmp_path / "small"), plain) < 1e-5
    assert difference(object_in(tmp_path / "uniform"), plain) > 1e-3
    ratio = object_in(tmp_path / "scaled") / plain
    scanned = read_npz(tmp_path / "plain" / "reconstruction.npz", ["coverage"])["coverage"] > 0.05
    assert np.ptp(ratio.real[scanned]) < 1e-4
    assert abs(ratio.real[scanned].mean() - 1) > 1e-3
    assert len((tmp_path / "stats" / "patch_stats.csv").read_text(encoding="utf-8").splitlines()) == 1 + 3


def test_optics_that_nothing_but_an_export_looks_at_are_named(
    small_scan: Path, infer_command: Command, tmp_path: Path
) -> None:
    flags = ("--photon-energy", 9000, "--detector-distance", 2, "--detector-pixel", 75e-6)
    told = "optics: --photon-energy, --detector-distance, --detector-pixel stored with the run"
    plain = infer_command("pretrained", small_scan, tmp_path / "plain")
    stated = infer_command("pretrained", small_scan, tmp_path / "stated", *flags)
    taken = infer_command(
        "pretrained", small_scan, tmp_path / "taken", *flags, "--export", tmp_path / "product.h5"
    )
    assert (plain.code, stated.code, taken.code) == (0, 0, 0)
    assert [told in done.out for done in (plain, stated, taken)] == [False, True, False]


def test_a_model_of_an_mlflow_run_is_used_by_its_name(
    mlflow_run: tuple[Path, str], small_scan: Path, run_command: Command, tmp_path: Path
) -> None:
    folder, run_id = mlflow_run
    done = run_command(
        "inference", "--run_id", run_id, "--infer_dir", small_scan.parent, "--mlruns", folder / "mlruns",
        "--output_dir", tmp_path / "out", "--file_index", 0, *OWN,
    )  # fmt: skip
    assert (done.code, done.err) == (0, "")
    for name in PICTURES:
        assert (tmp_path / "out" / "Test" / name).stat().st_size > PICTURE_BYTES
    from ptycho_torch.inference import load_and_predict

    store = str(folder / "mlruns")
    files = load_and_predict(run_id, str(small_scan.parent), store, save_dir=str(tmp_path), plot_name="again")
    assert files[0] == tmp_path / "again" / PICTURES[0]
    assert difference(object_in(tmp_path / "again"), object_in(tmp_path / "out" / "Test")) == 0.0
    done = run_command(
        "inference", "--run_id", run_id, "--infer_dir", small_scan.parent, "--mlruns", folder / "mlruns",
        "--output_dir", tmp_path / "few", "--n_images", 30, "--refine", 2, "--quiet",
    )  # fmt: skip
    assert (done.code, done.out) == (0, "")
    record = json.loads((tmp_path / "few" / "Test" / "config.json").read_text(encoding="utf-8"))
    assert (record["config"]["n_groups"], record["config"]["refine_steps"]) == (30, 2)
    assert (
        len(read_npz(tmp_path / "few" / "Test" / "reconstruction.npz", ["pattern_index"])["pattern_index"])
        == 30
    )
    done = run_command(
        "inference", "--run_id", run_id, "--infer_dir", small_scan.parent, "--mlruns", folder / "mlruns",
        "--output_dir", tmp_path / "none", "--file_index", 1,
    )  # fmt: skip
    assert done.code == 2
    assert "there is no file number 1 (found 1 NPZ files" in done.err


def test_a_store_or_run_that_is_not_there_is_named_and_not_made(
    mlflow_run: tuple[Path, str], small_scan: Path, run_command: Command, tmp_path: Path
) -> None:
    words = ("inference", "--infer_dir", small_scan.parent, "--output_dir", tmp_path / "out")
    done = run_command(*words, "--run_id", mlflow_run[1], "--mlruns", tmp_path / "mlruns")
    assert done.code == 2
    assert "no MLflow store" in done.err
    assert not (tmp_path / "mlruns").exists()
    done = run_command(*words, "--run_id", "abc", "--mlruns", mlflow_run[0] / "mlruns")
    assert done.code == 2
    assert "no such MLflow run (got 'abc'" in done.err
    assert len(done.err.splitlines()) == 1


def test_pictures_of_bare_arrays_for_older_callers(tmp_path: Path) -> None:
    from ptycho_torch.inference import save_individual_reconstructions

    rows, columns = np.mgrid[:60, :80] / 20
    files = save_individual_reconstructions(1 + 0.2 * np.sin(rows), np.cos(columns), tmp_path)
    assert [path.name for path in files] == list(PICTURES)
    assert all(path.stat().st_size > PICTURE_BYTES for path in files)
