"""A whole run on a file of another program: CXI in, training, reconstruction, product and CXI out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from file_makers import Instrument, cxi_tree, write_tree
from numpy.typing import NDArray

from ptycho.data.npz import read_npz
from ptycho.evaluation.metrics import score

Command = Callable[..., Any]
INSTRUMENT = Instrument(n_px=32, pixel_yx_m=(75e-6, 60e-6))
FAITHFUL = 0.05
"""Complex NRMSE of the refined object: 0.013 is measured, a wrong geometry gives 0.3 and more."""


@pytest.fixture(scope="module")
def scan_cxi(small_scan: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the small scan as CXI, its positions about the middle of its object."""
    arrays = read_npz(small_scan)
    middle = (np.array(arrays["objectGuess"].shape) - 1) / 2
    positions = np.stack([arrays["ycoords"], arrays["xcoords"]], axis=1) - middle
    metres = positions * INSTRUMENT.object_pixel_yx_m
    translation = np.stack([metres[:, 1], metres[:, 0], np.zeros(len(metres))], axis=1)
    tree = cxi_tree(INSTRUMENT, arrays["diff3d"], translation)
    tree["entry_1/instrument_1/source_1/illumination"] = arrays["probeGuess"]
    return write_tree(tmp_path_factory.mktemp("cxi") / "scan.cxi", tree)


@pytest.fixture(scope="module")
def cxi_run(scan_cxi: Path, train_command: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train on the CXI file."""
    folder = tmp_path_factory.mktemp("run") / "run"
    done = train_command(scan_cxi, folder, "--max_epochs", 2)
    assert done.code == 0, done.err
    return folder


def error_of(product: Path, truth: NDArray[Any]) -> float:
    """Return the error of the object of a product where the scan lies, found through metres."""
    with h5py.File(product) as file:
        obj, attributes = file["object"][0], dict(file["object"].attrs)
        y_m, x_m = file["probe_position_y_m"][()], file["probe_position_x_m"][()]
    pixel = np.array([attributes["pixel_height_m"], attributes["pixel_width_m"]])
    np.testing.assert_allclose(pixel, INSTRUMENT.object_pixel_yx_m)
    centre = np.array([attributes["center_y_m"], attributes["center_x_m"]])
    # The middle of the true object is the origin of the metres.
    corner = centre / pixel + (np.array(truth.shape) - np.array(obj.shape)) / 2
    start = np.round(corner).astype(int)
    placed = np.ones(truth.shape, dtype=np.complex128)
    seen = np.zeros(truth.shape, dtype=bool)
    low, high = np.maximum(start, 0), np.minimum(start + obj.shape, truth.shape)
    there = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    placed[there] = obj[tuple(slice(a, b) for a, b in zip(low - start, high - start, strict=True))]
    for row, column in np.stack([y_m, x_m], axis=1) / pixel + (np.array(truth.shape) - 1) / 2:
        seen[int(row) - 6 : int(row) + 6, int(column) - 6 : int(column) + 6] = True
    return float(score(placed, truth, seen)["complex_nrmse"])


@pytest.mark.slow
def test_a_cxi_scan_is_reconstructed_and_exported_in_its_place(
    scan_cxi: Path, small_scan: Path, cxi_run: Path, infer_command: Command, tmp_path: Path
) -> None:
    truth = read_npz(small_scan, ["objectGuess"])["objectGuess"]
    out, product = tmp_path / "out", tmp_path / "exported" / "product.h5"
    done = infer_command(cxi_run, scan_cxi, out, "--refine", 30, "--export", product)
    assert (done.code, done.err) == (0, "")
    assert str(product) in done.out.splitlines()
    assert error_of(product, truth) < FAITHFUL
    assert error_of(product, truth[::-1].copy()) > 4 * FAITHFUL
    with h5py.File(product, "r+") as file:
        file["object"][...] = file["object"][...].swapaxes(1, 2)
    assert error_of(product, truth) > 4 * FAITHFUL


@pytest.mark.slow
def test_flipped_positions_reach_the_reconstruction(
    scan_cxi: Path, small_scan: Path, cxi_run: Path, infer_command: Command, tmp_path: Path
) -> None:
    truth = read_npz(small_scan, ["objectGuess"])["objectGuess"]
    done = infer_command(
        cxi_run, scan_cxi, tmp_path / "out", "--refine", 30, "--export", tmp_path / "flipped.h5",
        "--flip_positions", "x",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert error_of(tmp_path / "flipped.h5", truth) > 4 * FAITHFUL


def test_a_cxi_result_of_a_cxi_scan_holds_the_object(
    scan_cxi: Path, cxi_run: Path, infer_command: Command, tmp_path: Path
) -> None:
    done = infer_command(cxi_run, scan_cxi, tmp_path / "out", "--export", tmp_path / "result.cxi")
    assert done.code == 0, done.err
    found = read_npz(tmp_path / "out" / "reconstruction.npz", ["object", "positions_yx_px"])
    with h5py.File(tmp_path / "result.cxi") as file:
        np.testing.assert_array_equal(file["entry_1/image_2/data"], found["object"])
        translation = file["entry_1/data_1/translation"][()]
    with h5py.File(scan_cxi) as file:
        np.testing.assert_allclose(translation, file["entry_1/data_1/translation"], atol=1e-15)


def test_an_export_that_cannot_be_is_refused_before_anything_is_written(
    small_run: tuple[Path, Any], small_scan: Path, infer_command: Command, tmp_path: Path
) -> None:
    for name, words in (("a.npz", "--export: unknown kind of file"), ("a.h5", "--object-pixel")):
        done = infer_command(small_run[0], small_scan, tmp_path / "out", "--export", tmp_path / name)
        assert done.code == 2
        assert len(done.err.splitlines()) == 1
        assert words in done.err
    assert [item for item in tmp_path.rglob("*") if item.is_file()] == []


def test_an_npz_scan_is_exported_with_the_pixel_that_the_user_states(
    small_run: tuple[Path, Any], small_scan: Path, infer_command: Command, tmp_path: Path
) -> None:
    done = infer_command(
        small_run[0], small_scan, tmp_path / "out", "--export", tmp_path / "a.h5", "--object_pixel", 1e-8
    )
    assert done.code == 0, done.err
    with h5py.File(tmp_path / "a.h5") as file:
        expected = read_npz(small_scan, ["xcoords"])["xcoords"] * 1e-8
        np.testing.assert_allclose(file["probe_position_x_m"], expected, atol=1e-15)


def test_a_settings_file_says_the_same_as_the_flags(
    small_run: tuple[Path, Any], small_scan: Path, infer_command: Command, tmp_path: Path
) -> None:
    settings = tmp_path / "settings.yaml"
    settings.write_text(f"object_pixel_m: 1e-8\nexport: {tmp_path / 'a.cxi'}\n", encoding="utf-8")
    done = infer_command(small_run[0], small_scan, tmp_path / "out", "--config", settings)
    assert done.code == 0, done.err
    with h5py.File(tmp_path / "a.cxi") as file:
        assert file["entry_1/ptychodus/object_pixel_width_m"][()] == 1e-8
    stored = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    assert stored["config"]["object_pixel_m"] == 1e-8


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--photon_energy", -1), "photon_energy_eV is -1.0, expected a finite number > 0"),
        (("--product", __file__), "--product does not apply"),
    ],
)
def test_flags_that_do_not_fit_the_file_are_refused(
    flags: tuple[Any, ...], words: str, small_scan: Path, train_command: Command, tmp_path: Path
) -> None:
    done = train_command(small_scan, tmp_path / "run", *flags)
    assert done.code == 2
    assert len(done.err.splitlines()) == 1
    assert words in done.err


def test_an_evaluation_takes_the_file_with_the_same_flags(
    scan_cxi: Path, cxi_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from ptycho.cli.evaluate_command import main

    bare = Path(shutil.copy(scan_cxi, tmp_path / "bare.cxi"))
    with h5py.File(bare, "r+") as file:
        del file["entry_1/instrument_1/source_1/energy"]
    residuals = []
    for scan, flags, code in ((scan_cxi, (), 0), (bare, (), 2), (bare, ("--photon-energy", "8000"), 0)):
        folder = tmp_path / str(len(flags)) / scan.name
        words = ("--reconstruction", cxi_run, "--test-data", scan, "--quiet", "--output-dir", folder, *flags)
        assert main([str(word) for word in words]) == code, capsys.readouterr().err
        if code == 0:
            scores = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
            residuals.append(scores["residual_mean"])
    assert residuals[0] == residuals[1] < 0.1
    assert "source_1/energy" in capsys.readouterr().err
