"""The near field: closed forms, adjoint, sub-pixel shifts, the optics of a scan, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from file_makers import Instrument, cxi_tree, diffraction_tree, product_tree, wavelength_m, write_tree
from judges import FLOAT64, adjoint_mismatch, assert_twin, gradient_mismatch, random_complex
from numpy.typing import NDArray

from ptycho import physics
from ptycho.data.npz import read_npz
from ptycho.data.optics import METADATA_KEY, FileOptions, Optics, near_field_of
from ptycho.errors import ConfigError, DataError
from ptycho.files.export import export_optics
from ptycho.files.reader import open_scan
from ptycho.physics.detector import Detector
from ptycho.physics.propagation import focus_of, near_field_transfer
from ptycho.raw_data import RawData
from ptycho.simulation.simulate import SimulationOptions, expected_counts, write_scan

ROUNDING = 1e-12  # float64 sums of some thousand terms
SMALL_SLOPE = 1e-6  # central differences in float64
LENGTHS = 1e-12  # a few float64 products
PETRA = {"photon_energy_eV": 12658.0, "detector_distance_m": 1.12, "detector_pixel_yx_m": (55e-6, 55e-6)}
"""A measured scan: 3.65 mm from focus to sample make an effective pixel of 178.66 nm, F = 0.0896."""
STILL = np.zeros((1, 2))


def propagated(wave: NDArray[Any], number: float, shifts: Any = STILL) -> NDArray[Any]:
    """Return the near field (N, N) of one wave (N, N)."""
    return physics.near_field(wave[None, None], near_field_transfer(len(wave), number, np.asarray(shifts)))[
        0, 0
    ]


def gaussian(n_px: int, waist_px: float, centre_px: tuple[float, float] | None = None) -> NDArray[Any]:
    y, x = centre_px or ((n_px - 1) / 2, (n_px - 1) / 2)
    rows, columns = np.arange(n_px)[:, None] - y, np.arange(n_px) - x
    return np.exp(-(rows**2 + columns**2) / waist_px**2).astype(np.complex128)


@pytest.mark.parametrize("n_px", [96, 97])
@pytest.mark.parametrize("number", [0.02, 0.1])
def test_a_gaussian_beam_spreads_as_in_the_textbook(n_px: int, number: float) -> None:
    """Width w(z), curvature R(z) and Gouy phase of a wave e^{+ikz}."""
    waist = 6.0
    rayleigh = np.pi * waist**2 * number  # Rayleigh length over z
    q = 1 + 1j / rayleigh  # 1 + i z / z_R
    rows = np.arange(n_px) - (n_px - 1) / 2
    square = rows[:, None] ** 2 + rows**2
    expected = np.exp(-square / (waist**2 * q)) / q
    found = propagated(gaussian(n_px, waist), number)
    assert_twin(expected, found, 1e-6)  # what reaches the border
    width = np.sqrt(2 * (np.abs(found) ** 2 * rows**2).sum() / (np.abs(found) ** 2).sum() * 2)
    assert width == pytest.approx(waist * np.sqrt(1 + 1 / rayleigh**2), rel=1e-6)
    with pytest.raises(AssertionError):
        assert_twin(expected.conj(), found, 1e-2)


def test_a_plane_wave_stays_and_a_tilted_one_moves_its_beam() -> None:
    assert_twin(np.ones((16, 16), complex), propagated(np.ones((16, 16), complex), 0.3), FLOAT64)
    n_px, number, tilt = 128, 0.05, (4 / 128, -2 / 128)  # cycles per pixel
    rows = np.arange(n_px)
    ramp = np.exp(2j * np.pi * (tilt[0] * rows[:, None] + tilt[1] * rows))
    power = np.abs(propagated(gaussian(n_px, 12.0) * ramp, number)) ** 2
    middle = [(power.sum(axis=1 - axis) * rows).sum() / power.sum() for axis in (0, 1)]
    expected = (n_px - 1) / 2 + np.array(tilt) / number
    np.testing.assert_allclose(middle, expected, atol=1e-6)


@pytest.mark.parametrize("n_px", [15, 16])
def test_two_distances_are_their_sum_and_photons_are_kept(n_px: int) -> None:
    wave = random_complex(np.random.default_rng(n_px), n_px, n_px)
    # Distances add up, so their Fresnel numbers add as 1 / F.
    twice = propagated(propagated(wave, 0.2), 0.3)
    assert_twin(propagated(wave, 1 / (1 / 0.2 + 1 / 0.3)), twice, FLOAT64)
    assert (np.abs(twice) ** 2).sum() == pytest.approx((np.abs(wave) ** 2).sum(), rel=ROUNDING)


@pytest.mark.parametrize("n_px", [15, 16])
def test_the_adjoint_is_adjoint_and_inverse(n_px: int) -> None:
    rng = np.random.default_rng(n_px)
    x, y = random_complex(rng, 2, 5, 3, n_px, n_px)
    transfer = near_field_transfer(n_px, 0.11, rng.uniform(-1, 1, (5, 2)))

    def forward(v: Any) -> Any:
        return physics.propagate(v, Detector(transfer))

    assert adjoint_mismatch(forward, lambda v: physics.propagate_back(v, Detector(transfer)), x, y) < ROUNDING
    assert_twin(x, physics.propagate_back(forward(x), Detector(transfer)), FLOAT64)
    assert adjoint_mismatch(forward, forward, x, y) > 1e-2


def test_without_a_transfer_the_detector_is_in_the_far_field() -> None:
    wave = random_complex(np.random.default_rng(1), 2, 3, 9, 9)
    assert_twin(physics.far_field(wave), physics.propagate(wave), FLOAT64)
    assert_twin(physics.far_field_adjoint(wave), physics.propagate_back(wave), FLOAT64)


def test_a_sample_between_pixels_makes_the_image_of_a_sample_that_moved_under_the_beam() -> None:
    """The probe takes the fraction; the detector stays with the beam all the same."""
    rng, n_px, size = np.random.default_rng(3), 32, 64
    index = np.abs(np.fft.fftfreq(size, 1 / size)) <= 10
    spectrum = random_complex(rng, size, size) * np.multiply.outer(index, index)
    picture = 1 + 0.3 * np.fft.ifft2(spectrum) * size / np.abs(spectrum).max()
    # Smooth, and dark at the border of the window.
    probe = 100 * gaussian(n_px, 6.0, (15.2, 16.1))
    corner, fraction = np.array([11, 17]), np.array([0.3, -0.4])
    position = corner + fraction + (n_px - 1) / 2
    found = expected_counts(picture, probe[None], position[None], 0.1)[0]
    moved = physics.shift_field(picture, -fraction[None])[0]
    window = moved[corner[0] : corner[0] + n_px, corner[1] : corner[1] + n_px]
    expected = np.abs(propagated(probe * window, 0.1)) ** 2
    assert_twin(expected, found, 1e-4)  # the beam at the border
    unmoved = near_field_transfer(n_px, 0.1, STILL)
    shifted = physics.shift_field(probe[None], fraction[None])
    patch = picture[corner[0] : corner[0] + n_px, corner[1] : corner[1] + n_px]
    with pytest.raises(AssertionError):
        assert_twin(expected, physics.diffracted_intensity(patch[None], shifted, Detector(unmoved))[0], 1e-2)


@pytest.mark.parametrize("n_px", [8, 9])
def test_the_object_gradient_is_that_of_the_misfit(n_px: int) -> None:
    rng = np.random.default_rng(n_px)
    corners = np.array([[0, 0], [2, 5], [3, 1]])
    obj, probes = random_complex(rng, n_px + 3, n_px + 5), random_complex(rng, 3, 2, n_px, n_px)
    transfer = near_field_transfer(n_px, 0.3, rng.uniform(-0.5, 0.5, (3, 2)))
    amplitude = rng.uniform(1, 3, (3, n_px, n_px))

    def loss(o: NDArray[Any]) -> float:
        counts = physics.diffracted_intensity(
            physics.extract_patches(o, corners, n_px), probes, Detector(transfer)
        )
        softened = physics.softened_amplitude(counts, amplitude)
        return float((1 + physics.SOFTENING**2) / 2 * ((softened - amplitude) ** 2).sum())

    def gradient(o: NDArray[Any]) -> NDArray[Any]:
        return physics.object_gradient(o, corners, probes, amplitude, Detector(transfer))

    assert gradient_mismatch(loss, gradient, obj) < SMALL_SLOPE
    assert gradient_mismatch(loss, lambda o: gradient(o).conj(), obj) > 1e-2


def test_a_starting_probe_has_the_measured_near_field() -> None:
    amplitude = np.abs(gaussian(16, 4.0)) + 0.1
    probe = focus_of(amplitude, 0.2)
    assert probe.shape == (1, 16, 16)
    assert_twin(amplitude, np.abs(propagated(probe[0].astype(complex), 0.2)), 1e-6)


# --- the optics of a scan ---


def test_a_focus_gives_the_effective_pixel_and_its_fresnel_number() -> None:
    found = Optics(**PETRA, propagation="near", focus_distance_m=3.65e-3).completed(100)
    assert found.object_pixel_yx_m[0] == pytest.approx(178.66e-9, rel=1e-4)
    assert found.fresnel_number == pytest.approx(0.0896, rel=1e-3)
    parallel = Optics(**PETRA, propagation="near").completed(100)
    assert parallel.object_pixel_yx_m == (55e-6, 55e-6)
    wavelength_m = 12398.4198 / 12658.0 * 1e-10
    assert parallel.fresnel_number == pytest.approx((55e-6) ** 2 / (wavelength_m * 1.12), rel=1e-6)


def test_focus_object_pixel_and_fresnel_number_say_the_same() -> None:
    focus = Optics(**PETRA, propagation="near", focus_distance_m=3.65e-3).completed(100)
    by_number = Optics(**PETRA, propagation="near", fresnel_number=focus.fresnel_number).completed(100)
    assert by_number.object_pixel_yx_m == pytest.approx(focus.object_pixel_yx_m, rel=LENGTHS)
    pixel = focus.object_pixel_yx_m
    by_pixel = Optics(**PETRA, propagation="near", object_pixel_yx_m=pixel).completed(100)
    assert by_pixel.fresnel_number == pytest.approx(focus.fresnel_number, rel=LENGTHS)


def test_new_distances_make_a_new_number_and_far_forgets_it() -> None:
    focus = Optics(**PETRA, propagation="near", focus_distance_m=3.65e-3).completed(100)
    moved = focus.overridden(FileOptions(propagation="near", focus_distance_m=7.3e-3))
    assert moved.fresnel_number > 1.9 * focus.fresnel_number
    far = focus.overridden(FileOptions(propagation="far"))
    assert (far.is_near, far.fresnel_number, far.focus_distance_m) == (False, None, None)
    assert focus.overridden(FileOptions()).fresnel_number == focus.fresnel_number


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"fresnel_number": 0.1}, r"--fresnel-number: it belongs to the near field .*--propagation near"),
        ({"focus_distance_m": 0.1, "propagation": "far"}, r"--focus-distance: .*propagation far"),
        ({"focus_distance_m": 0.1, "fresnel_number": 1.0, "propagation": "near"}, r"say the same"),
        ({"propagation": "middle"}, r"--propagation: unknown \(got 'middle'"),
        ({"fresnel_number": -1.0, "propagation": "near"}, r"--fresnel-number: out of range"),
    ],
)
def test_options_that_make_no_near_field_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        FileOptions(**options)


def cxi(folder: Path) -> Path:
    instrument = Instrument(n_px=16, pixel_yx_m=(75e-6, 75e-6))
    y, x = 10e-6 * np.stack(np.divmod(np.arange(16), 4)).astype(float)
    counts = np.random.default_rng(5).poisson(50 * np.abs(gaussian(16, 5.0)), (16, 16, 16))
    tree = cxi_tree(instrument, counts, np.stack([x, y, 0 * x], axis=1))
    without_probe = {name: value for name, value in tree.items() if "illumination" not in name}
    return write_tree(folder / "scan.cxi", without_probe)


def test_metres_of_a_file_become_near_field_pixels(tmp_path: Path) -> None:
    path = cxi(tmp_path)
    raw = RawData.from_file(path, options=FileOptions(propagation="near", focus_distance_m=0.2))
    optics = Optics.from_metadata(raw.metadata, "here")
    distance = optics.detector_distance_m
    pixel = 75e-6 * 0.2 / (0.2 + distance)
    assert optics.object_pixel_yx_m == pytest.approx((pixel, pixel), rel=LENGTHS)
    assert np.ptp(raw.xcoords) == pytest.approx(30e-6 / pixel, rel=1e-9)
    # The starting probe has the mean pattern as its near field.
    wave = propagated(raw.probe_modes[0].astype(complex), near_field_of(raw))
    assert_twin(np.sqrt(raw.diff3d.mean(axis=0)), np.abs(wave), 1e-5)


def test_a_near_field_without_its_numbers_is_refused_with_what_it_needs(tmp_path: Path) -> None:
    path = tmp_path / "far.npz"
    write_scan(path, SimulationOptions(n_px=16, n_y=4, n_x=4, step_px=2.0, defocus_waves=0.3))
    near = FileOptions(propagation="near")
    with pytest.raises(ConfigError, match=r"near field is not known .*--fresnel-number, or --photon-energy"):
        open_scan(path, options=near)
    with pytest.raises(DataError, match=r"spreads over more than a pattern \(got a Fresnel number of 0\.01"):
        open_scan(path, options=FileOptions(propagation="near", fresnel_number=0.01))
    oblong = Optics(**{**PETRA, "detector_pixel_yx_m": (5e-5, 6e-5)}, propagation="near").completed(16)
    raw = RawData.from_file(path)
    raw.metadata = {METADATA_KEY: oblong.to_dict()}
    with pytest.raises(DataError, match="detector pixels are not square"):
        near_field_of(raw)
    raw.metadata = {METADATA_KEY: {"propagation": "middle"}}
    with pytest.raises(DataError, match=r"_metadata\.geometry\.propagation is unknown"):
        near_field_of(raw)


def test_a_near_field_product_is_read_and_written_as_one(tmp_path: Path) -> None:
    instrument, focus = Instrument(n_px=16, pixel_yx_m=(75e-6, 75e-6)), 0.2
    pixel = 75e-6 * focus / (focus + instrument.distance_m)
    instrument.object_pixel_yx_m = np.array([pixel, pixel])
    steps = 2.0 * pixel * np.stack(np.divmod(np.arange(16), 4), axis=1)
    probe = np.abs(gaussian(16, 5.0))[None].astype(np.complex64)
    product = product_tree(instrument, steps, np.arange(16), np.ones((24, 24), complex), (0.0, 0.0), probe)
    write_tree(tmp_path / "product.h5", {**product, "@far_field": False, "@focus_object_distance_m": focus})
    frames = np.random.default_rng(5).poisson(50 * np.abs(gaussian(16, 5.0)), (16, 16, 16))
    path = write_tree(
        tmp_path / "diffraction.h5", diffraction_tree(frames, np.arange(16), instrument.pixel_yx_m)
    )
    scan = open_scan(path)
    wavelength = wavelength_m(instrument.energy_eV)
    reduced = instrument.distance_m * focus / (focus + instrument.distance_m)
    assert scan.fresnel_number == pytest.approx(pixel**2 / (wavelength * reduced), rel=1e-9)
    optics = export_optics(scan, FileOptions())
    assert (optics.is_near, optics.focus_distance_m) == (True, focus)


def test_a_simulated_near_field_says_so_in_its_file(tmp_path: Path) -> None:
    near = {"propagation": "near", "fresnel_number": 0.2}
    options = SimulationOptions(n_px=16, n_y=5, n_x=5, step_px=2.0, defocus_waves=0.3, **near)
    write_scan(tmp_path / "near.npz", options)
    stored = json.loads(str(read_npz(tmp_path / "near.npz", ["_metadata"])["_metadata"]))
    assert stored["geometry"]["fresnel_number"] == 0.2
    assert open_scan(tmp_path / "near.npz").fresnel_number == 0.2
    assert open_scan(tmp_path / "near.npz", options=FileOptions(propagation="far")).fresnel_number is None
    for wrong in (
        {"propagation": "near"},
        {"fresnel_number": 0.2},
        {"propagation": "near", "fresnel_number": 0.01},
    ):
        with pytest.raises(ConfigError, match=r"^simulation: "):
            SimulationOptions(n_px=16, **wrong)
