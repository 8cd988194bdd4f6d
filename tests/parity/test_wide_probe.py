"""Scans with a probe wider than their patterns, through both backends (eq. 5b)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from runs import CPU, error, reconstructed, small_chunks
from wide_probe import WIDE, outside, write_wide_scan

from ptycho.config.config import ModelConfig, TrainingConfig
from ptycho.data.npz import read_npz, write_npz
from ptycho.data.optics import FileOptions
from ptycho.data.reconstruction import Reconstruction
from ptycho.errors import ConfigError
from ptycho.evaluation.comparison import read_reconstruction, stored_fit
from ptycho.evaluation.drift import beam_drift
from ptycho.evaluation.probe_change import probe_change_doubt
from ptycho.evaluation.verdict import judge
from ptycho.files.reader import open_scan
from ptycho.run.outputs import write_reconstruction
from ptycho.run.pipeline import train
from ptycho.run.shared_field import _expected
from ptycho.solver.options import RefineOptions

BACKENDS = ["pytorch", "tensorflow"]
ALIKE = 2e-4
"""Two frameworks in single precision after joint steps, relative to the largest value."""
FLAT = RefineOptions(40, start="flat")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_wide_scan(tmp_path_factory.mktemp("wide") / "wide.npz", grid=6)


@pytest.fixture(scope="module")
def cropped(path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same scan with the probe that fits into a pattern."""
    arrays, written = read_npz(path), tmp_path_factory.mktemp("cropped") / "cropped.npz"
    write_npz(written, arrays | {"probeGuess": arrays["probeGuess"][16:48, 16:48]})
    return written


@pytest.fixture(scope="module")
def found(path: Path) -> Reconstruction:
    return reconstructed(open_scan(path), "pytorch", FLAT)


def assert_alike(one: Reconstruction, two: Reconstruction, *names: str) -> None:
    """The rim, where hardly any light fell, is left out: rounding decides there."""
    assert np.abs(one.obj - two.obj)[one.scanned].max() < ALIKE
    for name in names:
        values = [np.asarray(getattr(found, name)) for found in (one, two)]
        assert np.abs(values[0] - values[1]).max() < ALIKE * np.abs(values[0]).max(), name


def test_the_object_is_found_where_the_whole_probe_is_known(
    path: Path, cropped: Path, found: Reconstruction
) -> None:
    assert outside(found.probe[0]) > 0.1
    assert error(path, found) < 0.015
    assert found.fit.relative < 1e-5
    other = reconstructed(open_scan(cropped), "pytorch", FLAT)
    assert error(path, other) > 20 * error(path, found)
    assert other.fit.relative > 1000 * found.fit.relative
    short = RefineOptions(5, start="flat")
    one, two = (reconstructed(open_scan(path), backend, short) for backend in BACKENDS)
    assert_alike(one, two)
    # What is watched on the way is the misfit that is told in the end.
    for told in (one, two):
        assert told.misfit[-1] < told.misfit[-2] < 2 * told.misfit[-1]


def test_what_is_told_of_a_reconstruction_is_that_of_its_patches(
    path: Path, found: Reconstruction, tmp_path: Path
) -> None:
    scan = open_scan(path)
    placed = found.in_scan(scan)
    assert placed.plan.patch_px == WIDE
    assert judge(placed).word != "failed"
    assert stored_fit(placed).relative == pytest.approx(found.fit.relative, rel=0.05)
    drift = beam_drift(placed)
    assert drift is not None
    assert drift.errors < 4
    assert probe_change_doubt(placed) is None
    write_reconstruction(tmp_path, placed, path)
    stored = read_reconstruction(tmp_path / "reconstruction.npz")
    assert stored.probe.shape == (1, WIDE, WIDE)
    assert stored_fit(stored.in_scan(scan)).relative == pytest.approx(found.fit.relative, rel=0.05)
    rows = scan.usable[:5]
    predicted = _expected(scan, found, rows, np.zeros(2))
    missed = ((predicted - scan.amplitude(rows)) ** 2).sum() / (scan.amplitude(rows) ** 2).sum()
    assert missed < 1e-3


def test_both_backends_find_the_same_probe_and_positions(path: Path) -> None:
    scan, moving = open_scan(path), RefineOptions(6, probe=True, positions=True, start="flat")
    one, two = (reconstructed(scan, backend, moving) for backend in BACKENDS)
    assert_alike(one, two, "probe", "positions_yx_px")
    assert np.abs(one.probe - scan.probe).max() > 0.01 * np.abs(scan.probe).max()


@pytest.mark.slow
@pytest.mark.parametrize("likelihood", ["amplitude", "poisson"])
def test_both_backends_find_the_same_of_everything_that_moves(
    likelihood: str, path: Path, tmp_path: Path
) -> None:
    bad = np.random.default_rng(4).random((32, 32)) < 0.05
    write_npz(tmp_path / "bad.npz", read_npz(path) | {"bad_pixels": bad, "background": np.array(0.5)})
    scan = open_scan(tmp_path / "bad.npz")
    moving = RefineOptions(
        8, probe=True, positions=True, frames=True, background=True, likelihood=likelihood, start="flat",
        probe_modes=2, probe_variation=1,
    )  # fmt: skip
    one, two = (reconstructed(scan, backend, moving) for backend in BACKENDS)
    assert_alike(one, two, "probe", "positions_yx_px", "frame_gain", "background")
    assert one.probe.shape == (2, WIDE, WIDE)
    assert one.variation.modes.shape == (1, WIDE, WIDE)


@pytest.mark.slow
def test_a_probe_grows_beyond_the_patterns(cropped: Path, path: Path) -> None:
    options = RefineOptions(80, probe=True, start="flat")
    still = reconstructed(open_scan(cropped), "pytorch", options)
    scan = open_scan(cropped, options=FileOptions(probe_window=2))
    grown = reconstructed(scan, "pytorch", options)
    assert outside(scan.probe[0]) == 0
    assert outside(grown.probe[0]) > 0.05
    assert grown.fit.relative < 0.3 * still.fit.relative
    assert error(path, grown) < 0.7 * error(path, still)


@pytest.mark.slow
def test_positions_that_are_off_go_back(path: Path, tmp_path: Path) -> None:
    arrays = read_npz(path)
    off = np.random.default_rng(7).uniform(-0.7, 0.7, (2, len(arrays["xcoords"])))
    moved = {"xcoords": arrays["xcoords"] + off[0], "ycoords": arrays["ycoords"] + off[1]}
    write_npz(tmp_path / "off.npz", arrays | moved)
    found = reconstructed(
        open_scan(tmp_path / "off.npz"), "pytorch", RefineOptions(60, positions=True, start="flat")
    )
    missed = found.positions_yx_px - np.stack([arrays["ycoords"], arrays["xcoords"]], axis=1)
    missed -= missed.mean(axis=0)
    assert np.sqrt((missed**2).sum(axis=1).mean()) < 0.1


def test_a_scan_that_is_read_anew_in_every_pass_gives_the_same(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan, options = open_scan(path), RefineOptions(4, start="flat")
    kept = reconstructed(scan, "pytorch", options)
    # It would be kept if patches were as large as patterns, and a chunk would hold sixteen of them.
    sizes = small_chunks(monkeypatch, scan.n_patterns, 64)
    again = reconstructed(scan, "pytorch", options)
    assert max(sizes) == 4
    assert_alike(kept, again)


@pytest.mark.slow
def test_the_difference_map_and_the_network_of_the_package_know_it(path: Path, cropped: Path) -> None:
    scan = open_scan(path)
    one, two = (reconstructed(scan, backend) for backend in BACKENDS)
    assert_alike(one, two)
    assert error(path, one) < 0.1 * error(path, reconstructed(open_scan(cropped), "pytorch"))
    mapped = RefineOptions(3, start="difference-map")
    one, two = (reconstructed(scan, backend, mapped) for backend in BACKENDS)
    assert_alike(one, two)
    assert error(path, one) < 0.005


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_training_sees_the_whole_probe(backend: str, path: Path, cropped: Path, tmp_path: Path) -> None:
    losses = []
    for file in (path, cropped):
        config = TrainingConfig(
            ModelConfig(N=32, architecture="unrolled", unrolled_steps=3, unrolled_width=4),
            train_data_file=file, output_dir=tmp_path / file.stem, nepochs=2, n_groups=36,
            torch_loss_mode="amplitude", backend=backend, seed=1,
        )  # fmt: skip
        losses.append(train(config, CPU).result.history["train_loss"])
    assert losses[0][-1] < losses[0][0]
    assert losses[0][-1] < 0.8 * losses[1][-1]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_network_of_single_patterns_is_refused_in_one_line(
    backend: str, path: Path, tmp_path: Path
) -> None:
    config = TrainingConfig(
        ModelConfig(N=32, architecture="cnn", n_filters_scale=1), train_data_file=path,
        output_dir=tmp_path / "run", nepochs=1, n_groups=16, backend=backend,
    )  # fmt: skip
    with pytest.raises(
        ConfigError, match=r"cnn makes patches as large as a pattern \(got a probe of 64"
    ) as told:
        train(config, CPU)
    assert "\n" not in str(told.value)
