"""Evaluation against closed forms: planted gauges, shifts, noise and damage must come out as they went in."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ptycho.data.npz import read_npz, write_npz
from ptycho.data.reconstruction import Reconstruction
from ptycho.data.scan import Scan
from ptycho.errors import ConfigError, DataError
from ptycho.evaluation.comparison import (
    correlate,
    on_canvas_of,
    read_reconstruction,
    stored_domain,
    stored_fit,
)
from ptycho.evaluation.gauge import solve_gauge
from ptycho.files.reader import open_scan
from ptycho.physics import illumination
from ptycho.run.evaluate import Request, evaluate
from ptycho.simulation.objects import make_scene
from ptycho.simulation.simulate import SimulationOptions, expected_counts, write_scan
from ptycho.solver.options import RefineOptions

OPTIONS = SimulationOptions(n_px=32, n_y=7, n_x=9, step_px=3.0, photons=1e6, seed=3)
GAUGE_TOL = 1e-4
"""The Gauss-Newton fit of a band-limited scene stops at a change of 1e-7 of the error."""
SINGLE = 1e-6
"""Relative rounding of complex64."""


def smooth(shape: tuple[int, int], seed: int) -> NDArray[np.complex128]:
    """Return a periodic scene without content above 0.15 cycles per pixel: a Fourier shift is exact."""
    fy, fx = np.fft.fftfreq(shape[0])[:, None], np.fft.fftfreq(shape[1])
    low = np.hypot(fy, fx) < 0.15
    rng = np.random.default_rng(seed)
    maps = [np.fft.ifft2(np.fft.fft2(rng.standard_normal(shape)) * low).real for _ in range(2)]
    return (1 + 0.1 * maps[0] / maps[0].std()) * np.exp(0.4j * maps[1] / maps[1].std())


def moved(obj: NDArray[Any], shift_yx_px: tuple[float, float]) -> NDArray[np.complex128]:
    """Move the content of a periodic object."""
    fy, fx = np.fft.fftfreq(obj.shape[0])[:, None], np.fft.fftfreq(obj.shape[1])
    return np.fft.ifft2(np.fft.fft2(obj) * np.exp(-2j * np.pi * (fy * shift_yx_px[0] + fx * shift_yx_px[1])))


def noise(shape: tuple[int, int], sigma: float, seed: int) -> NDArray[np.complex128]:
    """Return white complex noise with a standard deviation of ``sigma``."""
    a, b = np.random.default_rng(seed).standard_normal((2, *shape)) * sigma / np.sqrt(2)
    return a + 1j * b


@pytest.fixture(scope="module")
def scan_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("evaluate") / "scan.npz"
    write_scan(path, OPTIONS)
    return path


@pytest.fixture(scope="module")
def scan(scan_file: Path) -> Scan:
    return open_scan(scan_file)


@pytest.fixture(scope="module")
def perfect(scan_file: Path, scan: Scan) -> Reconstruction:
    """Return the truth in the form of a reconstruction."""
    obj = read_npz(scan_file, ["objectGuess"])["objectGuess"]
    corners = np.floor(scan.positions_yx_px - (scan.n_px - 1) / 2 + 0.5).astype(int)
    light = illumination(scan.probe, corners, obj.shape)
    return Reconstruction(
        obj=obj,
        coverage=(light / light.max()).astype(np.float32),
        origin_yx_px=np.zeros(2),
        probe=scan.probe,
        indices=np.arange(scan.n_patterns),
        seconds=0.0,
        positions_yx_px=scan.positions_yx_px,
    )


def stored(found: Reconstruction, folder: Path, **changes: Any) -> Path:
    """Write a reconstruction the way a run does, with some keys changed; None leaves a key out."""
    arrays = {
        "object": found.obj,
        "coverage": found.coverage,
        "origin_yx_px": found.origin_yx_px,
        "probe": found.probe,
        "positions_yx_px": found.positions_yx_px,
        "pattern_index": found.indices,
        "scale_record": np.array(json.dumps({"domain": "counts"})),
        **changes,
    }
    write_npz(
        folder / "reconstruction.npz", {key: value for key, value in arrays.items() if value is not None}
    )
    return folder / "reconstruction.npz"


def scores_in(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))


def test_the_planted_gauge_is_reported_and_removed() -> None:
    truth = smooth((80, 96), 1)
    y, x = np.indices(truth.shape)
    middle = (truth.shape[0] // 2, truth.shape[1] // 2)
    ramp = np.exp(1j * (0.02 * (y - middle[0]) - 0.05 * (x - middle[1])))
    found = solve_gauge(2.0 * np.exp(0.7j) * moved(truth, (1.3, -0.6)) * ramp, truth)
    assert np.abs(found.obj - truth).max() < GAUGE_TOL
    np.testing.assert_allclose(found.shift_yx_px, (-1.3, 0.6), atol=GAUGE_TOL)
    np.testing.assert_allclose(found.ramp_yx_rad_per_px, (0.02, -0.05), atol=GAUGE_TOL)
    assert abs(found.scale) == pytest.approx(0.5, rel=GAUGE_TOL)


def test_a_planted_ramp_scale_and_shift_are_in_the_scores_of_a_run(
    perfect: Reconstruction, scan_file: Path, tmp_path: Path
) -> None:
    y, x = np.indices(perfect.obj.shape)
    turned = 0.8j * np.exp(0.03j * y - 0.01j * x) * np.roll(perfect.obj, (2, -1), axis=(0, 1))
    evaluate(Request(stored(replace(perfect, obj=turned), tmp_path), truth=scan_file), tmp_path / "out")
    scores = scores_in(tmp_path / "out")
    assert scores["truth_complex_nrmse"] < GAUGE_TOL
    assert scores["truth_gauge_scale"] == pytest.approx(1.25, rel=GAUGE_TOL)
    assert scores["truth_gauge_shift_y_px"] == pytest.approx(-2, abs=1e-3)
    assert scores["truth_gauge_shift_x_px"] == pytest.approx(1, abs=1e-3)
    assert scores["truth_gauge_ramp_y_rad_per_px"] == pytest.approx(0.03, abs=GAUGE_TOL)
    assert scores["truth_gauge_ramp_x_rad_per_px"] == pytest.approx(-0.01, abs=GAUGE_TOL)


def test_planted_noise_comes_out_as_nrmse_and_psnr(
    perfect: Reconstruction, scan_file: Path, tmp_path: Path
) -> None:
    sigma = 0.02
    noisy = perfect.obj + noise(perfect.obj.shape, sigma, 5)
    evaluate(Request(stored(replace(perfect, obj=noisy), tmp_path), truth=scan_file), tmp_path / "out")
    scores = scores_in(tmp_path / "out")
    rms = np.sqrt(np.mean(np.abs(perfect.obj[perfect.scanned]) ** 2))
    assert scores["truth_complex_nrmse"] == pytest.approx(sigma / rms, rel=0.05)
    # Half of the noise lies along the amplitude.
    closed_form_db = 20 * np.log10(scores["truth_amplitude_range"] / (sigma / np.sqrt(2)))
    assert scores["truth_amplitude_psnr_db"] == pytest.approx(closed_form_db, abs=0.3)
    assert scores["truth_amplitude_range"] == pytest.approx(
        np.ptp(np.abs(perfect.obj[perfect.scanned])), rel=1e-5
    )


def test_correlation_of_equal_objects_is_one_and_what_lies_outside_does_not_count() -> None:
    a = smooth((64, 80), 2) + noise((64, 80), 0.1, 2)
    mask = np.zeros(a.shape, dtype=bool)
    mask[4:60, 9:70] = True
    mask[4:10, 9:20] = False
    other = np.where(mask, a, 7.0)
    np.testing.assert_allclose(correlate(a, other, mask).correlation, 1, rtol=1e-9)
    assert correlate(a, other, np.ones_like(mask)).correlation.min() < 0.9


def test_correlation_of_independent_noise_stays_below_half_bit() -> None:
    curve = correlate(
        1 + noise((192, 192), 0.1, 3), 1 + noise((192, 192), 0.1, 4), np.ones((192, 192), dtype=bool)
    )
    assert (curve.correlation[4:] < curve.half_bit[4:]).all()


@pytest.mark.parametrize("signal_to_noise", [0.25, 1.0, 4.0])
def test_correlation_has_its_closed_form_for_a_known_ratio_of_signal_and_noise(
    signal_to_noise: float,
) -> None:
    shape = (256, 256)
    signal = 1 + noise(shape, 0.1 * np.sqrt(signal_to_noise), 6)
    curve = correlate(
        signal + noise(shape, 0.1, 7), signal + noise(shape, 0.1, 8), np.ones(shape, dtype=bool)
    )
    assert curve.correlation[20:].mean() == pytest.approx(signal_to_noise / (signal_to_noise + 1), abs=0.02)


def test_the_resolution_in_the_scores_is_that_of_the_written_curve(
    perfect: Reconstruction, scan_file: Path, tmp_path: Path
) -> None:
    blurred = replace(perfect, obj=perfect.obj + noise(perfect.obj.shape, 0.2, 9))
    evaluate(Request(stored(blurred, tmp_path), truth=scan_file), tmp_path / "out")
    with (tmp_path / "out" / "frc_truth.csv").open(encoding="utf-8") as stream:
        rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(stream)]
    below = next(i for i, row in enumerate(rows) if row["correlation"] < row["half_bit"])
    period_px = scores_in(tmp_path / "out")["truth_frc_resolution_px"]
    assert (
        rows[below - 1]["frequency_cycles_per_px"] <= 1 / period_px <= rows[below]["frequency_cycles_per_px"]
    )


def test_another_object_is_laid_on_the_canvas_where_it_belongs() -> None:
    scene = make_scene("collage", (60, 75), 4)
    probe = np.ones((1, 8, 8), dtype=np.complex64)

    def piece(y: int, x: int, height: int, width: int) -> Reconstruction:
        return Reconstruction(
            scene[y : y + height, x : x + width],
            np.ones((height, width), np.float32),
            np.array([y, x]) + 0.2,
            probe,
            np.arange(1),
            0.0,
        )

    found = piece(10, 20, 30, 40)
    obj, mask = on_canvas_of(piece(4, 33, 31, 42), found)
    np.testing.assert_array_equal(np.argwhere(mask).min(axis=0), (0, 13))
    np.testing.assert_array_equal(np.argwhere(mask).max(axis=0), (24, 39))
    np.testing.assert_array_equal(obj[mask], found.obj[mask])
    assert not on_canvas_of(piece(45, 20, 10, 40), found)[1].any()


def test_true_object_and_probe_explain_every_pattern_down_to_its_noise(
    perfect: Reconstruction, scan: Scan, scan_file: Path, tmp_path: Path
) -> None:
    positions = scan.positions_yx_px
    counts = expected_counts(perfect.obj.astype(complex), perfect.probe.astype(complex), positions)
    write_npz(tmp_path / "clean.npz", {**read_npz(scan_file), "diff3d": counts})
    clean = open_scan(tmp_path / "clean.npz", domain="counts")
    assert stored_fit(perfect.in_scan(clean)).residuals.max() < SINGLE
    # The square root of a Poisson count above a few has a variance of 1/4.
    bright = (counts > 5).sum(axis=(1, 2)) / 4
    dim = np.where(counts > 5, 0, counts).sum(axis=(1, 2))
    misfit = stored_fit(perfect.in_scan(scan)).residuals * scan.raw.diff3d.sum(axis=(1, 2))
    assert (misfit > 0.8 * bright).all()
    assert (misfit < 1.2 * bright + 2 * dim).all()


@pytest.mark.pictures
def test_the_damaged_pattern_is_the_worst_at_its_place(
    perfect: Reconstruction, scan_file: Path, tmp_path: Path
) -> None:
    arrays = read_npz(scan_file)
    arrays["diff3d"][17] = np.roll(arrays["diff3d"][17], 3, axis=0)
    write_npz(tmp_path / "damaged.npz", arrays)
    evaluate(Request(stored(perfect, tmp_path), test_data=tmp_path / "damaged.npz"), tmp_path / "out")
    assert scores_in(tmp_path / "out")["residual_worst_pattern"] == 17
    table = np.loadtxt(tmp_path / "out" / "residuals.csv", delimiter=",", skiprows=1)
    worst = table[np.argmax(table[:, 3])]
    np.testing.assert_allclose(worst[:3], (17, arrays["ycoords"][17], arrays["xcoords"][17]), rtol=1e-5)
    assert (tmp_path / "out" / "residuals.png").stat().st_size > 1000


def test_residuals_are_taken_where_the_reconstruction_puts_its_patterns(
    perfect: Reconstruction, scan: Scan
) -> None:
    shifted = replace(scan, positions_yx_px=scan.positions_yx_px + 0.4)
    at_own = stored_fit(perfect.in_scan(shifted)).residuals
    np.testing.assert_array_equal(at_own, stored_fit(perfect.in_scan(scan)).residuals)
    assert (
        stored_fit(replace(perfect, positions_yx_px=None).in_scan(shifted)).residuals.min() > 2 * at_own.max()
    )


def test_a_part_of_the_patterns_is_compared_with_its_own(perfect: Reconstruction, scan: Scan) -> None:
    chosen = np.array([3, 40, 11])
    part = replace(perfect, indices=chosen, positions_yx_px=scan.positions_yx_px[chosen])
    np.testing.assert_allclose(
        stored_fit(part.in_scan(scan)).residuals,
        stored_fit(perfect.in_scan(scan)).residuals[chosen],
        rtol=SINGLE,
    )


def test_the_three_tables_hold_the_same_numbers(
    perfect: Reconstruction, scan_file: Path, tmp_path: Path
) -> None:
    noisy = replace(perfect, obj=perfect.obj + noise(perfect.obj.shape, 0.01, 1))
    found = evaluate(Request(stored(noisy, tmp_path), truth=scan_file, test_data=scan_file), tmp_path / "out")
    folder = tmp_path / "out"
    assert found.verdict is not None
    metrics, scores = scores_in(folder), found.scores
    assert {name: metrics[name] for name in scores} == pytest.approx(scores)
    assert metrics.keys() - scores.keys() == found.verdict.to_dict().keys()
    with (folder / "metrics.csv").open(encoding="utf-8") as stream:
        rows = list(csv.reader(stream))
    assert rows[0] == ["metric", "value"]
    assert {name: float(value) for name, value in rows[1:]} == pytest.approx(scores, rel=1e-6)
    report = (folder / "metrics.md").read_text(encoding="utf-8").splitlines()[2:]
    cells = [line.strip("| ").split(" | ") for line in report]
    assert {name: float(value) for name, value in cells} == pytest.approx(scores, rel=1e-5)
    assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in found.files)


def test_a_reconstruction_says_what_its_patterns_held(perfect: Reconstruction, tmp_path: Path) -> None:
    assert stored_domain(stored(perfect, tmp_path)) == "counts"
    record = np.array(json.dumps({"domain": "amplitude"}))
    assert stored_domain(stored(perfect, tmp_path, scale_record=record).parent) == "amplitude"
    assert stored_domain(stored(perfect, tmp_path, scale_record=None)) is None
    assert read_reconstruction(tmp_path).obj.shape == perfect.obj.shape


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"probe": None}, r"reconstruction\.npz: not a reconstruction \(key 'probe' is missing, exp"),
        ({"coverage": np.ones((4, 5))}, r"coverage has shape \(4, 5\), expected .*, the shape of the object"),
        ({"object": np.ones(7)}, r"object has shape \(7,\), expected 2 axes"),
    ],
)
def test_a_file_that_is_no_reconstruction_is_refused(
    perfect: Reconstruction, tmp_path: Path, changes: dict[str, Any], text: str
) -> None:
    with pytest.raises(DataError, match=text):
        read_reconstruction(stored(perfect, tmp_path, **changes))


def test_a_request_that_cannot_be_met_is_refused_before_anything_is_written(
    perfect: Reconstruction, scan_file: Path, tmp_path: Path
) -> None:
    path, out = stored(perfect, tmp_path), tmp_path / "out"
    with pytest.raises(ConfigError, match="nothing to compare with"):
        evaluate(Request(path), out)
    with pytest.raises(ConfigError, match="a model needs patterns"):
        evaluate(Request(path, truth=scan_file, model_path=tmp_path), out)
    with pytest.raises(ConfigError, match=r"--refine needs them \(got 5 steps"):
        evaluate(Request(path, truth=scan_file, refine=RefineOptions(5)), out)
    plain = {**read_npz(scan_file), "object_is_truth": np.array(False)}
    write_npz(tmp_path / "plain.npz", plain)
    with pytest.raises(DataError, match=r"plain\.npz: the file does not hold a known truth"):
        evaluate(Request(path, truth=tmp_path / "plain.npz"), out)
    far = stored(replace(perfect, origin_yx_px=np.array([500.0, 0.0])), tmp_path / "far")
    with pytest.raises(DataError, match=r"far.*does not overlap the reconstruction \(got 0 shared pixels"):
        evaluate(Request(path, reference=far), out)
    write_scan(tmp_path / "few.npz", replace(OPTIONS, n_y=3, n_x=3))
    with pytest.raises(DataError, match=r"few\.npz: the patterns do not fit .* \(got 9, expected more"):
        evaluate(Request(path, test_data=tmp_path / "few.npz"), out)
    write_scan(tmp_path / "large.npz", replace(OPTIONS, n_px=48))
    with pytest.raises(DataError, match=r"large\.npz: .* \(got N=48, expected N=32\)"):
        evaluate(Request(path, test_data=tmp_path / "large.npz"), out)
    assert not out.exists()
