"""Facts about probes wider than the patterns (eq. 5b): waves fold onto the pixels, and files say how wide."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from judges import adjoint_mismatch, gradient_mismatch, random_complex
from numpy.typing import NDArray
from wide_probe import WIDE, counted, outside, wide_probe, write_wide_scan
from wide_probe import N as SIDE

from ptycho import physics
from ptycho.data.feed import scan_labels
from ptycho.data.joined import join_scans
from ptycho.data.npz import read_npz, write_npz
from ptycho.data.optics import FileOptions
from ptycho.data.prepare import ProbeMask
from ptycho.errors import ConfigError, DataError
from ptycho.files.reader import open_scan, pattern_size
from ptycho.physics import part_modes, part_modes_adjoint, shift_field
from ptycho.physics.detector import Detector
from ptycho.physics.forward import beam_counts, binned_intensity
from ptycho.physics.pixel_parts import part_turns
from ptycho.simulation.simulate import SimulationOptions, simulate

N, J, P = 8, 3, 2
KINDS = [(1, 2), (2, 2), (2, 3), (3, 3)]
"""Windows M and parts K."""


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_wide_scan(tmp_path_factory.mktemp("wide") / "wide.npz", grid=4)


def sight(windows: int, parts: int) -> Detector:
    return Detector(part_turns=part_turns(N, parts, windows))


def test_pixels_count_what_the_far_field_of_the_whole_window_does(rng: np.random.Generator) -> None:
    probe, obj = wide_probe(1e4), random_complex(rng, 1, WIDE, WIDE)
    turns = part_turns(SIDE, 2, 2)
    found = physics.diffracted_intensity(obj, part_modes(probe[None], turns), Detector(part_turns=turns))
    np.testing.assert_allclose(found[0], counted(probe * obj[0]), rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(binned_intensity(obj, probe[None, None], 2, 2), found, rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(beam_counts(probe[None], SIDE), counted(probe), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize(("windows", "parts"), KINDS)
def test_no_photon_is_lost(windows: int, parts: int, rng: np.random.Generator) -> None:
    side, detector = windows * N, sight(windows, parts)
    patches, probes = random_complex(rng, J, side, side), random_complex(rng, J, P, side, side)
    counts = physics.diffracted_intensity(patches, part_modes(probes, detector.part_turns), detector)
    assert counts.shape == (J, N, N)
    power = (np.abs(patches[:, None] * probes) ** 2).sum(axis=(1, 2, 3))
    np.testing.assert_allclose(counts.sum(axis=(1, 2)), power, rtol=1e-12)


@pytest.mark.parametrize(("windows", "parts"), KINDS)
def test_both_ways_are_adjoint(windows: int, parts: int, rng: np.random.Generator) -> None:
    side, detector = windows * N, sight(windows, parts)
    turns = detector.part_turns

    def forward(modes: NDArray[Any]) -> NDArray[Any]:
        return physics.propagate(part_modes(modes, turns), detector)

    def back(field: NDArray[Any]) -> NDArray[Any]:
        return part_modes_adjoint(physics.propagate_back(field, detector), turns)

    x, y = random_complex(rng, J, P, side, side), random_complex(rng, J, P * parts**2, N, N)
    assert adjoint_mismatch(forward, back, x, y) < 1e-12
    # All parts together lose nothing, so steps by object and probe keep their length.
    np.testing.assert_allclose(back(forward(x)), x, rtol=1e-10, atol=1e-12)


def test_the_gradients_are_those_of_the_misfit(rng: np.random.Generator) -> None:
    detector, side = sight(2, 3), 2 * N
    corners, shifts = np.array([[0, 1], [3, 2], [4, 4]]), rng.uniform(-0.5, 0.5, (J, 2))
    obj, probe = 1 + 0.3 * random_complex(rng, 22, 21), random_complex(rng, P, side, side)
    amplitude = rng.uniform(1, 5, (J, N, N))
    amplitude[:, 2, 3] = -1

    def moved(at: NDArray[Any]) -> NDArray[Any]:
        return part_modes(shift_field(at, shifts), detector.part_turns)

    def misfit(o: NDArray[Any], p: NDArray[Any]) -> float:
        patches = physics.extract_patches(o, corners, side)
        counts = physics.diffracted_intensity(patches, moved(p), detector)
        missed = physics.softened_amplitude(counts, amplitude) - amplitude
        return 0.5 * (1 + physics.SOFTENING**2) * float((missed[amplitude >= 0] ** 2).sum())

    def by_object(o: NDArray[Any]) -> NDArray[Any]:
        return physics.object_gradient(o, corners, moved(probe), amplitude, detector)

    def by_probe(p: NDArray[Any]) -> NDArray[Any]:
        residual = physics.wave_residual(obj, corners, moved(p), amplitude, detector)
        residual = part_modes_adjoint(residual, detector.part_turns)
        return physics.probe_gradient(physics.extract_patches(obj, corners, side), residual, shifts)

    assert gradient_mismatch(lambda o: misfit(o, probe), by_object, obj) < 1e-6
    assert gradient_mismatch(lambda p: misfit(obj, p), by_probe, probe) < 1e-6


def test_a_step_of_positions_goes_where_they_are(rng: np.random.Generator) -> None:
    detector, side, corners = sight(2, 2), 2 * N, np.full((J, 2), 4)
    waves = np.hypot(*np.meshgrid(np.fft.fftfreq(24), np.fft.fftfreq(24), indexing="ij"))
    smooth = np.fft.ifft2(np.fft.fft2(random_complex(rng, 24, 24)) * (waves < 0.2))
    obj = 1 + 0.5 * smooth / np.abs(smooth).max()
    probe = 300 * np.exp(-((np.hypot(*np.mgrid[-7.5:8, -7.5:8]) / 5) ** 2)).astype(complex)
    probes = part_modes(probe[None], detector.part_turns)
    true = rng.uniform(-0.02, 0.02, (J, 2))
    away = shift_field(obj, -true)
    patches = np.stack([physics.extract_patches(o, corners[:1], side)[0] for o in away])
    amplitude = np.sqrt(physics.diffracted_intensity(patches, probes, detector))
    normal, right = physics.motion_equations(obj, corners, probes, amplitude, detector)
    found = np.linalg.solve(normal, right[:, :, None])[:, :, 0]
    assert np.abs(found - true).max() < 0.15 * np.abs(true).max()


def test_the_difference_map_takes_the_nearest_waves_with_the_amplitude(rng: np.random.Generator) -> None:
    detector = sight(2, 3)
    waves, amplitude = random_complex(rng, J, 9, 2 * N, 2 * N), rng.uniform(2, 8, (J, N, N))
    nearest, missed = physics.mapped_waves(None, waves, amplitude, detector)
    field = physics.propagate(nearest, detector)
    found = np.sqrt((np.abs(field) ** 2).sum(axis=1))
    before = np.sqrt((np.abs(physics.propagate(waves, detector)) ** 2).sum(axis=1))
    assert np.abs(found - amplitude).max() < 0.01 * np.abs(before - amplitude).max()
    # The nearest: what is taken away lies in what the detector sees.
    seen = physics.propagate_back(physics.propagate(missed, detector), detector) / 4
    np.testing.assert_allclose(seen, missed, rtol=1e-10, atol=1e-12)


def test_a_file_may_hold_a_wider_probe_where_pixels_have_as_many_parts(path: Path, tmp_path: Path) -> None:
    scan = open_scan(path)
    assert (scan.n_px, scan.patch_px, scan.probe.shape) == (SIDE, WIDE, (1, WIDE, WIDE))
    assert outside(scan.probe[0]) > 0.1
    assert scan.record.probe_gain == 1
    assert not scan.findings
    assert pattern_size(path) == SIDE
    arrays = read_npz(path)
    del arrays["detector_upsampling"]
    write_npz(tmp_path / "untold.npz", arrays)
    assert open_scan(tmp_path / "untold.npz", options=FileOptions(detector_upsampling=3)).patch_px == WIDE
    with pytest.raises(ConfigError, match=r"Pass --detector-upsampling 2, or a probe of 32 px") as error:
        open_scan(tmp_path / "untold.npz")
    assert "\n" not in str(error.value)
    for side in (48, 65):
        write_npz(tmp_path / "odd.npz", arrays | {"probeGuess": np.ones((side, side), complex)})
        with pytest.raises(DataError, match="probeGuess does not fit the patterns"):
            open_scan(tmp_path / "odd.npz")


def test_a_window_puts_the_probe_into_its_middle(path: Path, tmp_path: Path) -> None:
    arrays = read_npz(path)
    small = arrays["probeGuess"][16:48, 16:48]
    write_npz(tmp_path / "small.npz", arrays | {"probeGuess": small})
    scan = open_scan(tmp_path / "small.npz", options=FileOptions(probe_window=2))
    assert outside(scan.probe[0]) == 0
    found = scan.probe[0] / scan.record.probe_gain
    np.testing.assert_allclose(found[16:48, 16:48], small, rtol=1e-5)
    with pytest.raises(ConfigError, match="Pass --detector-upsampling 3"):
        open_scan(tmp_path / "small.npz", options=FileOptions(probe_window=3))
    with pytest.raises(ConfigError, match="larger than its window"):
        open_scan(path, options=FileOptions(probe_window=1))
    assert open_scan(path, options=FileOptions(probe_window=2)).patch_px == WIDE
    with pytest.raises(ConfigError, match="--probe-window: out of range"):
        FileOptions(probe_window=0)
    joined = [open_scan(tmp_path / "small.npz"), scan]
    with pytest.raises(DataError, match="size of the probe is not that of"):
        join_scans(joined)


def test_a_mask_of_the_probe_and_labels_have_its_size(path: Path) -> None:
    scan = open_scan(path, mask=ProbeMask(diameter_px=20.0))
    assert outside(scan.probe[0]) < 1e-6
    assert scan_labels(scan).of(np.arange(2)).shape == (2, WIDE, WIDE)


def test_bad_pixels_do_not_change_the_scale(path: Path, tmp_path: Path) -> None:
    arrays = read_npz(path)
    stop = np.zeros((SIDE, SIDE), bool)
    stop[:, :14] = True
    arrays["probeGuess"] = 7 * arrays["probeGuess"]
    write_npz(tmp_path / "whole.npz", arrays)
    write_npz(tmp_path / "bad.npz", arrays | {"bad_pixels": stop})
    still = FileOptions(centre_patterns="off")
    whole, behind = (open_scan(tmp_path / f"{name}.npz", options=still) for name in ("whole", "bad"))
    ratio = np.abs(behind.probe).max() / np.abs(whole.probe).max()
    assert 0.95 < ratio < 1.05


def test_the_simulator_makes_such_scans() -> None:
    options = SimulationOptions(
        n_px=16, n_y=3, n_x=3, step_px=3.0, seed=2, photons=1e5, probe_diameter_px=16.0, n_modes=2,
        detector_upsampling=3, probe_window=2,
    )  # fmt: skip
    made = simulate(options)
    assert made["diff3d"].shape == (9, 16, 16)
    assert made["probeGuess"].shape == (2, 32, 32)
    assert min(made["objectGuess"].shape) > 32
    seen = made["diff3d"].sum(axis=(1, 2)).mean() / 1e5
    assert 0.3 < seen <= 1.01
    with pytest.raises(ConfigError, match="probe_window exceeds detector_upsampling"):
        dataclasses.replace(options, detector_upsampling=1)
    assert "probe_window" not in SimulationOptions().to_dict()
