"""Error bars of reconstructions (eq. 31) hold the truth as often as they say, alike in both backends."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ptycho.cli.evaluate_command import main as evaluate_main
from ptycho.cli.inference_command import main as inference_main
from ptycho.config.config import PyTorchExecutionConfig
from ptycho.data.npz import read_npz
from ptycho.data.reconstruction import Reconstruction
from ptycho.data.scaling import NOT_MEASURED
from ptycho.data.scan import PatternStore
from ptycho.evaluation.comparison import read_reconstruction
from ptycho.evaluation.gauge import solve_gauge
from ptycho.evaluation.limit import limit_scores
from ptycho.evaluation.metrics import complex_nrmse
from ptycho.evaluation.uncertainty import interval_scores
from ptycho.files.reader import open_scan
from ptycho.physics.information import ObjectErrors
from ptycho.process.progress import Progress
from ptycho.run.engines import find_model, fitted_model, load_engine
from ptycho.run.outputs import truth_on_canvas
from ptycho.run.uncertainty import RedrawnStore
from ptycho.simulation.simulate import SimulationOptions, write_scan
from ptycho.solver.options import RefineOptions

SIZE: dict[str, Any] = {
    "n_px": 32, "n_y": 12, "n_x": 12, "step_px": 2.5, "probe_diameter_px": 14.4, "seed": 4
}  # fmt: skip
DOSES = (1e4, 1e6)
SAME = 1e-4
"""Of an error bar by two ways through single precision."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("uncertainty")
    for dose in DOSES:
        write_scan(made / f"{dose:g}.npz", SimulationOptions(**SIZE, photons=dose))
    return made


@cache
def found_in(
    path: Path, backend: str, steps: int, kind: str = "fisher", *, beside: tuple[str, ...] = ()
) -> Reconstruction:
    """Return a Poisson refinement without any prior, with its error bars."""
    engine, scan = load_engine(backend), open_scan(path)
    return engine.reconstruct(
        fitted_model(engine, engine.load(find_model(Path("pretrained"), backend)), scan, "the model"),
        scan,
        scan.usable,
        execution=PyTorchExecutionConfig(accelerator="cpu"),
        progress=Progress(),
        refine=RefineOptions(steps, start="flat", likelihood="poisson", **dict.fromkeys(beside, True)),
        fit_probe=False,
        uncertainty=kind,
    )


@pytest.mark.parametrize("kind", ["fisher", "bootstrap"])
@pytest.mark.parametrize("dose", DOSES)
def test_intervals_hold_the_truth_as_often_as_they_say(folder: Path, dose: float, kind: str) -> None:
    path = folder / f"{dose:g}.npz"
    found = found_in(path, "pytorch", 150, kind)
    truth, mask = truth_on_canvas(path, found) or (None, None)
    fit = solve_gauge(found.obj, truth, mask)

    def shares(errors: ObjectErrors) -> dict[str, float]:
        return interval_scores(fit.obj, truth, errors, abs(fit.scale), mask)

    for name, share in shares(found.errors).items():
        low, high = (0.60, 0.76) if name.endswith("one_sigma") else (0.90, 0.98)
        assert low < share < high, name
    # Error bars that are a quarter too small or too large are noticed.
    for factor, too_large in ((0.75, False), (1.33, True)):
        for name, share in shares(found.errors.scaled(factor)).items():
            if name.endswith("one_sigma"):
                assert (share > 0.76) if too_large else (share < 0.60), name


@pytest.mark.parametrize("dose", DOSES)
def test_a_converged_refinement_stands_at_the_photon_limit(folder: Path, dose: float) -> None:
    path = folder / f"{dose:g}.npz"
    found = found_in(path, "pytorch", 150)
    truth, mask = truth_on_canvas(path, found) or (None, None)
    nrmse = complex_nrmse(solve_gauge(found.obj, truth, mask).obj, truth, mask)
    limit = limit_scores(found.in_scan(open_scan(path)), mask, nrmse, Progress())
    assert 0.95 < limit["error_over_photon_limit"] < 1.3
    # The error bars add up to the limit, without the rim, over which they are smoothed.
    inner = found.coverage > 0.3
    again = limit_scores(found.in_scan(open_scan(path)), inner, nrmse, Progress())
    assert found.errors.nrmse(found.obj, inner) == pytest.approx(again["photon_limit_nrmse"], rel=0.05)


@pytest.mark.parametrize("kind", ["fisher", "bootstrap"])
def test_both_backends_have_the_same_error_bars(folder: Path, kind: str) -> None:
    path = folder / "10000.npz"
    one, two = (found_in(path, backend, 30, kind) for backend in ("pytorch", "tensorflow"))
    for first, second in zip(one.errors, two.errors, strict=True):
        assert first.dtype == second.dtype == np.float32
        assert first.shape == one.obj.shape
        np.testing.assert_array_equal(np.isnan(first), np.isnan(second))
        scanned = one.scanned
        assert np.isfinite(first[scanned]).all()
        bar = SAME * (1 if kind == "fisher" else 10) * first[scanned].max()
        np.testing.assert_allclose(first[scanned], second[scanned], rtol=0, atol=bar)


def test_what_is_refined_beside_the_object_widens_the_error_bars_of_a_bootstrap(folder: Path) -> None:
    path = folder / "10000.npz"
    alone = found_in(path, "pytorch", 30, "bootstrap")
    beside = found_in(path, "pytorch", 30, "bootstrap", beside=("probe", "positions", "frames"))
    inner = alone.coverage > 0.3
    wider = np.median(beside.errors.phase_sigma_rad[inner]) / np.median(alone.errors.phase_sigma_rad[inner])
    assert 1.0 < wider < 3.0


def test_counts_are_drawn_around_the_measured_ones_and_stay_the_same(folder: Path) -> None:
    scan = open_scan(folder / "1e+06.npz")
    with PatternStore(scan, Progress()) as store:
        store.patterns[:, 3, 5] = NOT_MEASURED
        rows = np.arange(40)
        measured = store.amplitude(rows)
        one, two = (RedrawnStore(store, 4.0, seed) for seed in (0, 1))
        drawn = one.amplitude(rows)
        np.testing.assert_array_equal(drawn, one.amplitude(rows))
        assert (drawn != two.amplitude(rows)).mean() > 0.3
        assert one.n_px == 32
    kept = measured >= 0
    assert (drawn[~kept] == NOT_MEASURED).all()
    assert not kept[:, 3, 5].any()
    photons, counts = measured[kept].astype(float) ** 2, drawn[kept].astype(float) ** 2
    # A unit of counts is four photons.
    off = 4 * counts - 4 * photons
    np.testing.assert_allclose(4 * counts, np.rint(4 * counts), atol=0.01)
    assert abs(off.sum()) < 4 * np.sqrt(4 * photons.sum())
    assert (off**2).sum() == pytest.approx(4 * photons.sum(), rel=0.05)


def test_a_bootstrap_without_a_refinement_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model-path", "pretrained", "--test-data", str(folder / "1e+06.npz")]
    status = inference_main([*words, "--output-dir", str(folder / "no"), "--uncertainty", "bootstrap"])
    assert status == 2
    assert "bootstrap refines the object again" in capsys.readouterr().err
    assert not (folder / "no").exists()


def test_commands_write_draw_and_judge_error_bars(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = str(folder / "1e+06.npz"), folder / "out"
    words = ["--model-path", "pretrained", "--test-data", path, "--output-dir", str(out), "--uncertainty"]
    assert inference_main([*words, "--refine", "60", "--refine-tv", "0.001"]) == 0
    told = capsys.readouterr()
    assert str(out / "uncertainty.png") in told.out
    (line,) = (line for line in (told.out + told.err).splitlines() if "error bars (one sigma" in line)
    assert "what the smoothing moves is not in it" in line
    assert (out / "uncertainty.png").stat().st_size > 10_000
    stored = read_npz(out / "reconstruction.npz", ["amplitude_sigma", "phase_sigma_rad", "object"])
    found = read_reconstruction(out)
    for name in ("amplitude_sigma", "phase_sigma_rad"):
        assert stored[name].shape == stored["object"].shape
        np.testing.assert_array_equal(getattr(found.errors, name), stored[name])
    assert (
        evaluate_main(["--reconstruction", str(out), "--truth", path, "--output-dir", str(folder / "e")]) == 0
    )
    assert "truth_phase_within_one_sigma" in capsys.readouterr().out


def test_a_reconstruction_without_error_bars_has_none(folder: Path) -> None:
    path, out = str(folder / "1e+06.npz"), folder / "plain"
    words = ["--model-path", "pretrained", "--test-data", path, "--output-dir", str(out), "--quiet"]
    assert inference_main(words) == 0
    assert read_reconstruction(out).errors is None
    assert not (out / "uncertainty.png").exists()
