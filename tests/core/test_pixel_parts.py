"""Facts about detector pixels that add what falls on parts of each (eq. 5b), and how a scan says so."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from judges import adjoint_mismatch, gradient_mismatch, random_complex
from numpy.typing import NDArray

from ptycho import physics
from ptycho.config.config import ModelConfig, TrainingConfig
from ptycho.data.feed import GroupSource
from ptycho.data.joined import join_scans
from ptycho.data.npz import read_npz, write_npz
from ptycho.data.optics import FileOptions
from ptycho.data.prepare import prepare_scan
from ptycho.data.raw import RawData
from ptycho.data.scan import PatternStore
from ptycho.data.selection import training_groups
from ptycho.errors import ConfigError, DataError
from ptycho.files.reader import open_scan, read_data
from ptycho.physics import part_modes, part_modes_adjoint, shift_field
from ptycho.physics.detector import Detector
from ptycho.physics.forward import binned_intensity
from ptycho.physics.pixel_parts import part_turns
from ptycho.process.progress import Progress
from ptycho.simulation.simulate import SimulationOptions, simulate

N, J, P = 16, 4, 2
OPTIONS = SimulationOptions(n_px=32, n_y=4, n_x=4, step_px=3.0, photons=1e5, seed=2, detector_upsampling=2)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(3)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scan whose pixels have 2 x 2 parts, and whose file says so."""
    written = tmp_path_factory.mktemp("parts") / "scan.npz"
    write_npz(written, simulate(OPTIONS))
    return written


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_the_modes_of_the_parts_add_up_to_what_a_pixel_counts(parts: int, rng: np.random.Generator) -> None:
    probes, patches = random_complex(rng, J, P, N, N), random_complex(rng, J, N, N)
    parted = part_modes(probes, part_turns(N, parts))
    assert parted.shape == (J, P * parts**2, N, N)
    found = physics.diffracted_intensity(patches, parted)
    np.testing.assert_allclose(found, binned_intensity(patches, probes, parts), rtol=1e-10)
    power = (np.abs(parted) ** 2).sum(axis=1)
    np.testing.assert_allclose(power, (np.abs(probes) ** 2).sum(axis=1), rtol=1e-12)
    # The first modes are those of the first mode: a probe that changes relies on it (eq. 26).
    alone = part_modes(probes[:, :1], part_turns(N, parts))
    np.testing.assert_array_equal(parted[:, : parts**2], alone)


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_both_ways_are_adjoint_and_lose_nothing(parts: int, rng: np.random.Generator) -> None:
    turns, x = part_turns(N, parts), random_complex(rng, J, P, N, N)
    y = random_complex(rng, J, P * parts**2, N, N)

    def forward(modes: NDArray[Any]) -> NDArray[Any]:
        return part_modes(modes, turns)

    def back(parted: NDArray[Any]) -> NDArray[Any]:
        return part_modes_adjoint(parted, turns)

    assert adjoint_mismatch(forward, back, x, y) < 1e-12
    np.testing.assert_allclose(back(forward(x)), x, rtol=1e-12)
    assert part_modes(x, None) is x
    assert part_modes_adjoint(y, None) is y


def test_the_probe_gradient_is_that_of_the_misfit_of_such_pixels(rng: np.random.Generator) -> None:
    obj, probe = 1 + 0.3 * random_complex(rng, 30, 30), random_complex(rng, P, N, N)
    corners, shifts = rng.integers(0, 15, (J, 2)), rng.uniform(-0.5, 0.5, (J, 2))
    patches, turns = physics.extract_patches(obj, corners, N), part_turns(N, 2)
    amplitude = rng.uniform(1, 2, (J, N, N))

    def loss(changed: NDArray[Any]) -> float:
        counts = binned_intensity(patches, shift_field(changed, shifts), 2)
        return float(((np.sqrt(counts + physics.INTENSITY_FLOOR) - amplitude) ** 2).sum())

    def gradient(at: NDArray[Any]) -> NDArray[Any]:
        parted = part_modes(shift_field(at, shifts), turns)
        waves = physics.exit_waves(patches, parted)
        field = physics.propagate(waves)
        root = np.sqrt((np.abs(field) ** 2).sum(axis=1) + physics.INTENSITY_FLOOR)
        residual = physics.propagate_back(field * (1 - amplitude / root)[:, None])
        return 2 * physics.probe_gradient(patches, part_modes_adjoint(residual, turns), shifts)

    assert gradient_mismatch(loss, gradient, probe) < 1e-6


def test_a_gauss_newton_step_finds_changes_of_the_weights_behind_such_pixels(
    rng: np.random.Generator,
) -> None:
    probe, modes = 300 * random_complex(rng, P, N, N), 300 * random_complex(rng, 2, N, N)
    patches, turns = random_complex(rng, J, N, N), part_turns(N, 3)
    weights, shifts = rng.uniform(-1, 1, (J, 3)), rng.uniform(-0.5, 0.5, (J, 2))
    change = 1e-4 * rng.standard_normal((J, 2))
    true = physics.varied_probes(probe, modes, weights + np.pad(change, ((0, 0), (1, 0))))
    amplitude = np.sqrt(binned_intensity(patches, shift_field(true, shifts), 3))
    used = part_modes(shift_field(physics.varied_probes(probe, modes, weights), shifts), turns)
    normal, right = physics.variation_equations(
        patches, used, amplitude, modes, shifts, Detector(part_turns=turns)
    )
    found = np.linalg.solve(normal, right[:, :, None])[:, :, 0]
    assert np.abs(found - change).max() < 0.05 * np.abs(change).max()


def test_a_file_says_it_and_the_user_wins(path: Path, tmp_path: Path) -> None:
    assert int(read_npz(path)["detector_upsampling"]) == 2
    assert open_scan(path).detector_upsampling == 2
    for asked in (1, 3):
        told = FileOptions(detector_upsampling=asked)
        assert open_scan(path, options=told).detector_upsampling == asked
    raw = read_data(path)
    raw.subset([0, 3, 4]).to_file(tmp_path / "part.npz")
    assert open_scan(tmp_path / "part.npz").detector_upsampling == 2
    plain = simulate(dataclasses.replace(OPTIONS, detector_upsampling=1))
    assert "detector_upsampling" not in plain
    write_npz(tmp_path / "plain.npz", plain)
    assert open_scan(tmp_path / "plain.npz").detector_upsampling == 1


@pytest.mark.parametrize("value", [0, -1, 17, 1.5, np.nan, "two", [1, 2], 1j])
def test_a_number_of_parts_that_cannot_be_is_refused(value: Any, path: Path) -> None:
    arrays = read_npz(path)
    names = ("xcoords", "ycoords", "xcoords_start", "ycoords_start", "diff3d", "probeGuess", "scan_index")
    with pytest.raises(DataError, match="detector_upsampling is out of range") as error:
        RawData(*(arrays[name] for name in names), detector_upsampling=value)
    assert "\n" not in str(error.value)
    if isinstance(value, int | float):
        with pytest.raises(ConfigError, match="--detector-upsampling: out of range"):
            FileOptions(detector_upsampling=value)  # type: ignore[arg-type]


@pytest.mark.parametrize("flag", [True, False])
def test_parts_in_the_near_field_are_refused_in_one_line(flag: bool, tmp_path: Path) -> None:
    near = dataclasses.replace(OPTIONS, detector_upsampling=1, propagation="near", fresnel_number=0.12)
    more = {} if flag else {"detector_upsampling": np.array(2)}
    write_npz(tmp_path / "near.npz", {**simulate(near), **more})
    told = FileOptions(detector_upsampling=2) if flag else FileOptions()
    with pytest.raises(ConfigError, match="parts of detector pixels are those of a far field") as error:
        open_scan(tmp_path / "near.npz", options=told)
    assert "\n" not in str(error.value)
    one = open_scan(tmp_path / "near.npz", options=FileOptions(detector_upsampling=1))
    assert one.detector_upsampling == 1


def test_batches_carry_the_turns_where_pixels_have_parts(path: Path) -> None:
    config = TrainingConfig(ModelConfig(N=32, gridsize=1), n_groups=8)
    for asked in (None, 1):
        scan = prepare_scan(read_data(path), options=FileOptions(detector_upsampling=asked))
        groups, _ = training_groups(scan, config, validate=False)
        with PatternStore(scan, Progress()) as store:
            source = GroupSource(store, scan, groups, merge=True)
            batch = source[[0, 1]]
        assert set(batch) == set(source.signature)
        assert ("part_turns" in batch) == (asked is None)
        if asked is None:
            np.testing.assert_allclose(batch["part_turns"], part_turns(32, 2), rtol=1e-6)


def test_scans_of_other_pixels_are_not_joined(path: Path) -> None:
    scans = [open_scan(path, options=FileOptions(detector_upsampling=asked)) for asked in (None, 1)]
    with pytest.raises(DataError, match=r"number of parts of a detector pixel is not that of"):
        join_scans(scans)
    assert join_scans([scans[0], scans[0]]).detector_upsampling == 2
