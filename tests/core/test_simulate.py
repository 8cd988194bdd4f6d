"""The simulator against brute force, closed forms and Poisson statistics; the shipped data too."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ptycho.data.npz import read_npz
from ptycho.errors import ConfigError
from ptycho.geometry.canvas import MARGIN_PX
from ptycho.physics.forward import binned_intensity
from ptycho.simulation.positions import raster_points, spiral_points
from ptycho.simulation.probes import (
    disc_probe,
    incoherent_modes,
    refocus,
    rim_frequency,
    scale_to_photons,
    zone_plate_probe,
)
from ptycho.simulation.simulate import (
    SimulationOptions,
    expected_counts,
    make_probe,
    simulate,
    write_scan,
)

DATASETS = Path(__file__).resolve().parents[2] / "datasets"
EDGE = 1e-3
"""Largest probe amplitude at the border, relative to its maximum: shifts are periodic."""
EXACT = 1e-10
"""float64 FFT rounding relative to the brightest pixel, with room."""
SHIFT = 2e-3
"""A probe of 1e-3 at the border and a soft band edge: the shift theorem holds to about that."""
CHI2 = 0.1
"""Reduced chi squared of Poisson counts over more than 1e5 pixels is 1 to better than 1 %."""
SMALL = SimulationOptions(n_px=32, n_y=4, n_x=5, step_px=4.0, photons=1e5, seed=11)


def brute_force(obj: NDArray[Any], modes: NDArray[Any], corner_yx: tuple[int, int]) -> NDArray[Any]:
    """Return sum |fftshift(fft2(P O))|^2 / N^2 of one patch at whole pixels."""
    n_px = modes.shape[-1]
    patch = obj[corner_yx[0] : corner_yx[0] + n_px, corner_yx[1] : corner_yx[1] + n_px]
    return sum(np.abs(np.fft.fftshift(np.fft.fft2(mode * patch))) ** 2 for mode in modes) / n_px**2


def chi_squared(scan: dict[str, NDArray[Any]], background: float = 0.0) -> float:
    """Return the mean squared residual over the mean variance of the counts: 1 where file and physics agree.

    The probe is shifted by an explicit sum over frequencies, apart from the code under test.
    """
    obj, probe = scan["objectGuess"].astype(complex), scan["probeGuess"].astype(complex)
    modes = probe.reshape(-1, *probe.shape[-2:])
    n_px = modes.shape[-1]
    frequency = np.fft.fftfreq(n_px)
    residual = variance = 0.0
    for y, x, counts in zip(scan["ycoords"], scan["xcoords"], scan["diff3d"], strict=True):
        top, left = y - (n_px - 1) / 2, x - (n_px - 1) / 2
        row = int(np.clip(round(top), 0, obj.shape[0] - n_px))
        column = int(np.clip(round(left), 0, obj.shape[1] - n_px))
        ramp = np.exp(-2j * np.pi * np.add.outer(frequency * (top - row), frequency * (left - column)))
        moved = np.fft.ifft2(np.fft.fft2(modes) * ramp)
        expected = brute_force(obj, moved, (row, column)) + background
        residual += ((counts - expected) ** 2).sum()
        variance += expected.sum()
    return residual / variance


@pytest.mark.parametrize("n_px", [31, 32, 64])
@pytest.mark.parametrize("kind", ["zone-plate", "disc"])
def test_probe_vanishes_at_the_border_and_carries_the_dose(n_px: int, kind: Any) -> None:
    for n_modes in (1, 3):
        options = dataclasses.replace(SMALL, n_px=n_px, probe=kind, n_modes=n_modes)
        modes = make_probe(options)
        assert modes.shape == (n_modes, n_px, n_px)
        assert (np.abs(modes) ** 2).sum() == pytest.approx(1e5, rel=1e-12)
        border = np.ones((n_px, n_px), bool)
        border[1:-1, 1:-1] = False
        assert np.abs(modes[:, border]).max() < EDGE * np.abs(modes).max()


@pytest.mark.parametrize("make", [zone_plate_probe, disc_probe])
def test_probe_is_centred_and_as_wide_as_asked(make: Any) -> None:
    power = np.abs(make(64, 29.0, defocus_waves=1.0)) ** 2
    axis = np.arange(64) - 31.5
    assert (power * axis[:, None]).sum() == pytest.approx(0.0, abs=1e-9)
    assert (power * axis[None, :]).sum() == pytest.approx(0.0, abs=1e-9)
    radius = np.hypot(axis[:, None], axis[None, :])
    assert 0.8 < power[radius < 14.5].sum() < 0.999
    assert power[radius < 8.0].sum() < 0.75


def test_focused_zone_plate_without_stop_is_an_airy_pattern() -> None:
    from scipy.special import j1

    probe = zone_plate_probe(64, 16.0, defocus_waves=0.0, stop_fraction=0.0)
    axis = np.arange(64) - 31.5
    radius = np.hypot(axis[:, None], axis[None, :])
    argument = 2 * np.pi * (1.22 / 16.0) * radius
    airy = 2 * j1(argument) / argument
    inside = radius < 14.0
    measured = np.abs(probe) / np.abs(probe).max() * airy.max()
    # The rim of the pupil is soft by 1 / 128 cycles per px, which damps the rings slightly.
    assert np.abs(measured - np.abs(airy))[inside].max() < 0.01


def test_refocusing_equals_the_other_defocus_of_the_same_lens() -> None:
    diameter, waves, error = 24.0, 1.0, 0.25
    rim = rim_frequency(diameter, waves)
    moved = refocus(zone_plate_probe(64, diameter, defocus_waves=waves), error, rim)
    same_rim = diameter * (1.22 + 4 * (waves + error)) / (1.22 + 4 * waves)
    expected = zone_plate_probe(64, same_rim, defocus_waves=waves + error)
    # The window cut the outer rings of both at different places along the beam.
    assert np.abs(np.vdot(moved, expected)) > 0.998


def test_modes_are_orthogonal_with_the_given_powers() -> None:
    probe = scale_to_photons(zone_plate_probe(48, 20.0), 7.0)
    modes = incoherent_modes(probe, 4, 0.5).reshape(4, -1)
    gram = modes.conj() @ modes.T
    expected = 7.0 * 0.5 ** np.arange(4) / (0.5 ** np.arange(4)).sum()
    np.testing.assert_allclose(gram, np.diag(expected), atol=1e-12)
    overlap = np.vdot(probe.ravel(), modes[0]) / np.sqrt(7.0 * expected[0])
    assert overlap == pytest.approx(1.0, abs=1e-12)


def test_whole_pixel_positions_equal_brute_force() -> None:
    scan = simulate(dataclasses.replace(SMALL, integer_positions=True, n_modes=2))
    obj, modes = scan["objectGuess"].astype(complex), scan["probeGuess"].astype(complex)
    positions = np.stack([scan["ycoords"], scan["xcoords"]], axis=1)
    computed = expected_counts(obj, modes, positions)
    corners = positions - 15.5
    assert np.array_equal(corners, np.rint(corners))
    for corner, pattern in zip(corners.astype(int), computed, strict=True):
        expected = brute_force(obj, modes, tuple(corner))
        assert np.abs(pattern - expected).max() < EXACT * expected.max()


def smooth_object(y: NDArray[Any], x: NDArray[Any]) -> NDArray[Any]:
    """Return a band-limited object that is known between the pixels."""
    return (
        1.0
        + 0.4 * np.exp(2j * np.pi * (0.031 * y + 0.057 * x))
        + 0.3j * np.cos(2 * np.pi * 0.043 * y)
        + 0.2 * np.sin(2 * np.pi * (0.023 * x - 0.061 * y))
    )


def test_fractional_position_equals_the_object_sampled_there() -> None:
    axis = np.arange(100.0)
    obj = smooth_object(axis[:, None], axis[None, :])
    probe = zone_plate_probe(64, 26.0, defocus_waves=0.5)[None]
    centre = np.array([[47.83, 52.29]])
    y = centre[0, 0] - 31.5 + np.arange(64)[:, None]
    x = centre[0, 1] - 31.5 + np.arange(64)[None, :]
    expected = brute_force(smooth_object(y, x), probe, (0, 0))
    assert np.abs(expected_counts(obj, probe, centre)[0] - expected).max() < SHIFT * expected.max()
    rounded = expected_counts(obj, probe, np.rint(centre + 0.5) - 0.5)[0]
    assert np.abs(rounded - expected).max() > 5 * SHIFT * expected.max()


def test_x_moves_along_columns_and_y_along_rows() -> None:
    obj = np.ones((60, 80), complex)
    obj[:, 50:] = 0.0
    probe = disc_probe(32, 12.0)[None]
    left, right = expected_counts(obj, probe, np.array([[30.0, 20.0], [30.0, 60.0]])).sum(axis=(1, 2))
    upper, lower = expected_counts(obj, probe, np.array([[20.0, 20.0], [40.0, 20.0]])).sum(axis=(1, 2))
    assert left == pytest.approx(1.0, rel=1e-9)
    assert right < 0.1
    assert upper == pytest.approx(lower, rel=1e-9)


def test_modes_add_incoherently() -> None:
    obj = simulate(SMALL)["objectGuess"].astype(complex)
    modes = incoherent_modes(disc_probe(32, 14.0), 3)
    centre = np.array([[20.2, 21.7]])
    together = expected_counts(obj, modes, centre)
    apart = sum(expected_counts(obj, mode[None], centre) for mode in modes)
    np.testing.assert_allclose(together, apart, rtol=0, atol=EXACT)


# --- pixels that add their parts ---


def finer_far_field(wave: NDArray[Any], factor: int) -> NDArray[Any]:
    """Return the intensity on a detector with factor x factor parts in every pixel, by an explicit sum.

    The parts lie about the centre of their pixel, so for an even factor none is at zero frequency.
    """
    n_px = wave.shape[-1]
    index = np.arange(n_px)
    part = np.arange(factor * n_px)
    frequency = (part // factor - n_px // 2 + (part % factor - (factor - 1) / 2) / factor) / n_px
    kernel = np.exp(-2j * np.pi * np.outer(frequency, index))
    return np.abs(kernel @ wave @ kernel.T) ** 2 / (factor * n_px) ** 2


@pytest.mark.parametrize("factor", [2, 3])
@pytest.mark.parametrize("n_px", [31, 32])
def test_a_pixel_adds_the_parts_of_the_exact_finer_far_field(n_px: int, factor: int) -> None:
    rng = np.random.default_rng(n_px)
    shape = (2, n_px, n_px)
    modes = rng.standard_normal(shape) + 1j * rng.standard_normal(shape)
    patch = rng.standard_normal(shape[1:]) + 1j * rng.standard_normal(shape[1:])
    fine = sum(finer_far_field(mode * patch, factor) for mode in modes)
    expected = fine.reshape(n_px, factor, n_px, factor).sum(axis=(1, 3))
    found = binned_intensity(patch[None], modes, factor)[0]
    assert np.abs(found - expected).max() < EXACT * expected.max()
    assert found.sum() == pytest.approx((np.abs(modes * patch) ** 2).sum(), rel=1e-12)
    assert np.abs(binned_intensity(patch[None], modes, 1)[0] - expected).max() > 0.1 * expected.max()


def test_the_finer_far_field_is_that_of_a_wider_dark_window() -> None:
    """For an odd factor a part lies on every frequency of a padded transform; for an even one beside it."""
    wave = disc_probe(31, 14.0) * np.exp(0.1j * np.arange(31))
    wide = np.pad(wave, 31)
    np.testing.assert_allclose(
        finer_far_field(wave, 3), np.abs(np.fft.fftshift(np.fft.fft2(wide, norm="ortho"))) ** 2, atol=1e-14
    )


@pytest.mark.parametrize("factor", [1, 2, 5])
def test_a_fringe_keeps_the_contrast_of_the_closed_form(factor: int) -> None:
    n_px, distance = 32, 11
    wave = np.zeros((1, n_px, n_px), complex)
    wave[0, 9, 7] = wave[0, 9, 7 + distance] = 1.0
    found = binned_intensity(np.ones((1, n_px, n_px), complex), wave, factor)[0]
    turn = np.pi * distance / n_px
    contrast = np.sin(turn) / (factor * np.sin(turn / factor))
    frequency = (np.arange(n_px) - n_px // 2) / n_px
    expected = (2 + 2 * contrast * np.cos(2 * np.pi * frequency * distance)) / n_px**2
    np.testing.assert_allclose(found, np.broadcast_to(expected, found.shape), atol=1e-15)


def test_the_beam_stays_in_the_middle_of_its_pixel() -> None:
    """A symmetric probe scatters symmetrically about the centre of the pixel at N // 2."""
    axis = np.arange(32) - 15.5
    probe = np.exp(-(axis[:, None] ** 2 + axis**2) / 60)[None].astype(complex)
    pattern = binned_intensity(np.ones((1, 32, 32), complex), probe, 2)[0]
    inner = pattern[1:, 1:]
    np.testing.assert_allclose(inner, inner[::-1, ::-1], atol=1e-14)
    assert np.unravel_index(np.argmax(pattern), pattern.shape) == (16, 16)


def test_a_simulated_scan_counts_what_such_pixels_add() -> None:
    plain, binned = (
        simulate(dataclasses.replace(SMALL, integer_positions=True, detector_upsampling=factor))
        for factor in (1, 2)
    )
    np.testing.assert_array_equal(plain["objectGuess"], binned["objectGuess"])
    np.testing.assert_array_equal(plain["probeGuess"], binned["probeGuess"])
    obj, probe = binned["objectGuess"].astype(complex), binned["probeGuess"].astype(complex)
    positions = np.stack([binned["ycoords"], binned["xcoords"]], axis=1)
    for factor, scan in ((2, binned), (1, plain)):
        mean = []
        for y, x in (positions - 15.5).astype(int):
            fine = finer_far_field(probe * obj[y : y + 32, x : x + 32], factor)
            mean.append(fine.reshape(32, factor, 32, factor).sum(axis=(1, 3)))
        expected = np.array(mean)
        for counts, same in ((scan, True), (plain if factor == 2 else binned, False)):
            error = ((counts["diff3d"] - expected) ** 2).mean() / expected.mean()
            assert (abs(error - 1) < CHI2) == same, (factor, error)


def test_empty_object_scatters_the_dose() -> None:
    counts = expected_counts(np.ones((50, 50), complex), make_probe(SMALL), np.array([[24.3, 23.6]]))
    assert counts.sum() == pytest.approx(SMALL.photons, rel=1e-9)


def test_counts_follow_the_dose_and_the_background() -> None:
    weak = simulate(SMALL)["diff3d"].sum(dtype=float)
    strong = simulate(dataclasses.replace(SMALL, photons=1e6))["diff3d"].sum(dtype=float)
    assert strong / weak == pytest.approx(10.0, rel=5 / np.sqrt(weak))
    raised = simulate(dataclasses.replace(SMALL, background_counts=3.0))["diff3d"].sum(dtype=float)
    assert raised - weak == pytest.approx(3.0 * 20 * 32**2, abs=5 * np.sqrt(weak + raised))


def test_counts_are_poisson_over_repeated_seeds() -> None:
    from ptycho.simulation.simulate import _draw_counts

    scan = simulate(SMALL)
    obj, probe = scan["objectGuess"].astype(complex), scan["probeGuess"].astype(complex)[None]
    place = np.array([[scan["ycoords"][7], scan["xcoords"][7]]])
    streams = [np.random.default_rng(seed) for seed in range(300)]
    options = dataclasses.replace(SMALL, background_counts=2.0)
    draws = np.concatenate([_draw_counts(obj, probe, place, options, stream) for stream in streams])
    mean, variance = draws.mean(axis=0), draws.var(axis=0, ddof=1)
    # Over 300 draws a single ratio scatters by sqrt(2 / 299) = 8 %; the mean over 1024 pixels by 0.3 %.
    assert (variance / mean).mean() == pytest.approx(1.0, abs=0.02)
    np.testing.assert_allclose(mean, expected_counts(obj, probe, place)[0] + 2.0, rtol=0.5)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"n_modes": 3},
        {"scan": "spiral", "n_positions": 23},
        {"background_counts": 2.0},
        {"probe": "disc"},
    ],
)
def test_stored_truth_explains_the_counts(changes: dict[str, Any]) -> None:
    scan = simulate(dataclasses.replace(SMALL, **changes))
    assert chi_squared(scan, changes.get("background_counts", 0.0)) == pytest.approx(1.0, abs=CHI2)


def test_planted_defects_do_not_explain_the_counts() -> None:
    scan = simulate(SMALL)
    planted = {
        "transposed positions": {"xcoords": scan["ycoords"], "ycoords": scan["xcoords"]},
        "half a pixel": {"xcoords": scan["xcoords"] + 0.5},
        "nominal positions": {"xcoords": scan["xcoords_start"], "ycoords": scan["ycoords_start"]},
        "transposed patterns": {"diff3d": scan["diff3d"].transpose(0, 2, 1)},
        "uncentred patterns": {"diff3d": np.fft.ifftshift(scan["diff3d"], axes=(1, 2))},
        "conjugate object": {"objectGuess": scan["objectGuess"].conj()},
        "dose": {"probeGuess": scan["probeGuess"] * np.float32(1.05)},
    }
    for name, change in planted.items():
        assert chi_squared({**scan, **change}) > 1.0 + 3 * CHI2, name


def test_keys_dtypes_and_frame_of_a_scan() -> None:
    scan = simulate(SMALL)
    types = {key: (value.dtype.str[1:], value.shape) for key, value in scan.items() if key != "simulation"}
    assert types == {
        "diff3d": ("u2", (20, 32, 32)),
        "xcoords": ("f8", (20,)),
        "ycoords": ("f8", (20,)),
        "xcoords_start": ("f8", (20,)),
        "ycoords_start": ("f8", (20,)),
        "probeGuess": ("c8", (32, 32)),
        "objectGuess": ("c8", scan["objectGuess"].shape),
        "object_is_truth": ("b1", ()),
        "scan_index": ("i8", (20,)),
        "nphotons": ("f8", ()),
    }
    assert SimulationOptions(**json.loads(str(scan["simulation"]))) == SMALL
    for axis, key in enumerate(("ycoords", "xcoords")):
        low, high = scan[key].min(), scan[key].max()
        size = scan["objectGuess"].shape[axis]
        assert (low + high) / 2 == pytest.approx((size - 1) / 2, abs=1e-9)
        assert low - 15.5 >= MARGIN_PX - 1e-9
        assert high + 15.5 <= size - 1 - MARGIN_PX + 1e-9
        jitter = scan[key] - scan[f"{key}_start"]
        assert 0.5 < np.abs(jitter).max() <= 1.0


def test_equal_options_give_equal_scans_and_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    first = simulate(SMALL)
    monkeypatch.setattr("ptycho.simulation.simulate.CHUNK_PATTERNS", 7)
    second = simulate(SMALL)
    assert all(np.array_equal(first[key], second[key]) for key in first)
    other = simulate(dataclasses.replace(SMALL, seed=12))
    assert not np.array_equal(first["diff3d"], other["diff3d"])


def test_bright_scans_are_stored_in_32_bits() -> None:
    scan = simulate(dataclasses.replace(SMALL, photons=1e8))
    assert scan["diff3d"].dtype == np.uint32
    assert scan["diff3d"].max() > 65535


def test_probe_error_keeps_the_truth_aside() -> None:
    plain, wrong = simulate(SMALL), simulate(dataclasses.replace(SMALL, probe_error_waves=0.3))
    assert np.array_equal(wrong["probe_true"], plain["probeGuess"])
    assert np.array_equal(wrong["diff3d"], plain["diff3d"])
    assert (np.abs(wrong["probeGuess"]) ** 2).sum(dtype=float) == pytest.approx(1e5, rel=1e-6)
    ideal, guess = (np.abs(np.fft.fft2(wrong[key])) ** 2 for key in ("probe_true", "probeGuess"))
    assert np.corrcoef(ideal.ravel(), guess.ravel())[0, 1] > 0.99
    assert chi_squared(wrong) > 2.0


def test_spiral_has_the_density_of_the_step_and_raster_runs_along_x() -> None:
    from scipy.spatial import cKDTree

    points = spiral_points(800, 6.0)
    distance = cKDTree(points).query(points, k=2)[0][:, 1]
    assert np.pi * np.hypot(*points.T).max() ** 2 / 799 == pytest.approx(36.0, rel=1e-9)
    assert distance[2:].min() > 0.75 * 6.0
    assert raster_points(2, 3, 4.0).tolist() == [[0, 0], [0, 4], [0, 8], [4, 0], [4, 4], [4, 8]]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"photons": float("nan")}, "photons is out of range .got nan"),
        ({"n_px": 32.5}, "n_px is out of range .got 32.5"),
        ({"step_px": 0.0}, "step_px"),
        ({"scan": "rastar"}, "Use 'raster'"),
        ({"n_positions": 9}, "n_positions is for the spiral"),
        ({"phase_picture": "a.png"}, "phase_picture needs a picture"),
        ({"probe_diameter_px": 31.0}, "the diameter does not fit .got 31 px, expected 2 to 23.04 px"),
        ({"defocus_waves": 9.0}, "too coarse"),
        ({"n_modes": 0}, "got 0 modes"),
        ({"step_px": 9e3}, "object would be too large"),
        ({"photons": 1e14}, "overflows"),
    ],
)
def test_bad_options_are_named(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        simulate(dataclasses.replace(SMALL, **changes))


def test_write_scan_round_trips_and_wants_an_npz_name(tmp_path: Path) -> None:
    written = write_scan(tmp_path / "new" / "scan.npz", SMALL)
    stored = read_npz(tmp_path / "new" / "scan.npz")
    assert list(stored) == list(written)
    assert all(np.array_equal(stored[key], written[key]) for key in written)
    with pytest.raises(ConfigError, match=r"scan\.h5"):
        write_scan(tmp_path / "scan.h5", SMALL)
    assert not (tmp_path / "scan.h5").exists()


def test_shipped_data_are_what_their_command_makes(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    spec = importlib.util.spec_from_file_location("make_datasets", DATASETS / "make_datasets.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.main([str(tmp_path)]) == 0
    assert "400 patterns of 64x64 px" in capfd.readouterr().out
    readme = " ".join((DATASETS / "README.md").read_text().replace("\\\n", " ").split())
    for name, flags in module.COMMANDS.items():
        assert f"--output datasets/{name} {flags}" in readme
        assert (DATASETS / name).stat().st_size < 3e6
        made, shipped = read_npz(tmp_path / name), read_npz(DATASETS / name)
        assert list(made) == list(shipped)
        # A file need not name an option that is newer than it.
        options, known = (json.loads(str(arrays.pop("simulation"))) for arrays in (made, shipped))
        assert options == SimulationOptions().to_dict() | known
        # FFT rounding differs between processors; a draw whose mean moves by 1e-13 hardly ever changes.
        changed = made.pop("diff3d") != (counts := shipped["diff3d"])
        assert changed.mean() < 1e-3
        assert counts.dtype == np.uint16
        assert chi_squared(shipped) == pytest.approx(1.0, abs=0.02)
        for key, values in made.items():
            np.testing.assert_allclose(values, shipped[key], rtol=1e-5, atol=1e-4, err_msg=key)
