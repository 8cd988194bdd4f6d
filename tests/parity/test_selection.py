"""What hidden pixels choose: never much worse than the best, whatever dose, probe and network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ptycho.config.config import ModelConfig
from ptycho.data.hidden import UNSEEN
from ptycho.data.npz import read_npz
from ptycho.data.reconstruction import Reconstruction
from ptycho.data.scan import Scan
from ptycho.files.reader import open_scan
from ptycho.networks.architectures import CORRECTION_FACTOR
from ptycho.run import selection
from ptycho.run.engines import find_model, fitted_model, load_engine
from ptycho.run.network_object import averaged
from ptycho.run.selection import selected
from ptycho.simulation.simulate import SimulationOptions, write_scan
from ptycho.solver.options import RefineOptions
from tests.runs import CPU, Told, error, reconstructed

BACKENDS = ("pytorch", "tensorflow")
MADE = {"n_px": 32, "n_y": 9, "n_x": 9, "step_px": 4.0, "probe": "disc"}
SCANS = {
    "dim": SimulationOptions(**{**MADE, "probe": "zone-plate"}, photons=2e3, seed=3, scene="dead_leaves"),
    "bright": SimulationOptions(**MADE, photons=1e6, seed=4, scene="dead_leaves"),
    "wrong probe": SimulationOptions(**MADE, photons=1e5, seed=5, scene="collage", probe_error_waves=0.25),
}
ALLOWED = 1.03
"""Error relative to the best of the ways to choose from."""


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("scans")
    for name, options in SCANS.items():
        write_scan(folder / f"{name}.npz", options)
    return {name: folder / f"{name}.npz" for name in SCANS}


@pytest.fixture(scope="module")
def chosen(scans: dict[str, Path]) -> dict[tuple[str, str], tuple[Reconstruction, str]]:
    """Return what was reconstructed, and what was told of the choice."""
    found = {}
    for name, path in scans.items():
        for backend in BACKENDS:
            told = Told()
            result = reconstructed(open_scan(path), backend, select=selected, progress=told)
            (line,) = [text for text in told.lines if text.startswith("chosen by hidden pixels: ")]
            found[name, backend] = result, line
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", SCANS)
def test_both_backends_choose_the_same(name: str, chosen: dict[Any, Any]) -> None:
    (first, one), (second, other) = (chosen[name, backend] for backend in BACKENDS)
    assert one.split(" (")[0].split(",")[0] == other.split(" (")[0].split(",")[0]
    assert len(first.misfit) == pytest.approx(len(second.misfit), abs=3)
    assert np.abs(first.obj - second.obj).max() < 0.02


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", SCANS)
def test_the_choice_is_hardly_worse_than_the_best(
    name: str, backend: str, chosen: dict[Any, Any], scans: dict[str, Path]
) -> None:
    path, fit = scans[name], name == "wrong probe"
    scan, plain = open_scan(path), {"start": "flat", "likelihood": "poisson"}
    ways: list[RefineOptions | None] = [None, RefineOptions(60, start="flat"), RefineOptions(60, **plain)]
    ways += [RefineOptions(60, tv=tv, **plain) for tv in (0.002, 0.005, 0.01, 0.02)]
    errors = [error(path, reconstructed(scan, backend, how, fit_probe=fit)) for how in ways]
    assert error(path, chosen[name, backend][0]) < ALLOWED * min(errors)


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", SCANS)
def test_what_was_chosen_is_recorded(name: str, backend: str, chosen: dict[Any, Any]) -> None:
    found, line = chosen[name, backend]
    record = found.chosen
    assert record["object"] in line
    assert record["probe"] == ("fitted" if "; a fitted probe, " in line else "as stored")
    assert (record["iterations"] > 0) == bool(found.misfit)
    assert (f"{record['iterations']} iterations, {record['likelihood']}" in line) or not record["iterations"]
    assert record["hidden_deviance"] > 0


@pytest.mark.slow
def test_a_right_probe_stays_and_a_wrong_one_is_fitted(
    chosen: dict[Any, Any], scans: dict[str, Path]
) -> None:
    for backend in BACKENDS:
        for name in ("dim", "bright"):
            assert "; the scan's own probe, a fitted one is " in chosen[name, backend][1]
        assert "; a fitted probe, " in chosen["wrong probe", backend][1]
    # What is decided without asking makes the probe of the dim scan worse, and with it the object.
    asked = error(scans["dim"], chosen["dim", "pytorch"][0])
    assert asked < 0.9 * error(scans["dim"], reconstructed(open_scan(scans["dim"]), "pytorch"))


def pretrained(backend: str, scan: Scan) -> Any:
    engine = load_engine(backend)
    return fitted_model(engine, engine.load(find_model(Path("pretrained"), backend)), scan, "the network")


def spoiled(change: Callable[[Any], Any], scan: Scan) -> Any:
    """Return the pre-trained network with other weights."""
    model = pretrained("pytorch", scan)
    for weight in model.generator.parameters():
        weight.data = change(weight.data)
    return model


@pytest.mark.parametrize("backend", BACKENDS)
def test_corrections_that_are_too_large_are_made_smaller(backend: str, scans: dict[str, Path]) -> None:
    scan, engine = open_scan(scans["dim"]), load_engine(backend)
    found, factors = {}, {"own": 1.0, "twice": 2.0}
    for name, factor in factors.items():
        model = pretrained(backend, scan)
        weights = model.generator.export_weights()
        weights[CORRECTION_FACTOR] = factor * weights[CORRECTION_FACTOR]
        model.generator.import_weights(weights, name)
        found[name] = engine.reconstruct(
            model, scan, scan.usable, execution=CPU, progress=Told(), select=selected, fit_probe=False
        )
    assert found["own"].chosen["correction_factor"] == 1.0
    assert found["twice"].chosen["correction_factor"] == pytest.approx(0.5, abs=0.15)
    assert found["twice"].chosen["object"].startswith("the network")
    assert found["twice"].chosen["refined_share"] < 0.5
    left = engine.reconstruct(model, scan, scan.usable, execution=CPU, progress=Told(), fit_probe=False)
    own, twice, as_it_is = (error(scans["dim"], item) for item in (found["own"], found["twice"], left))
    assert twice < 1.05 * own < 0.9 * as_it_is


@pytest.mark.parametrize("factor", [3.0, float("nan")], ids=["wrong", "no numbers"])
def test_a_spoiled_network_gives_way_to_plain_iterations(factor: float, scans: dict[str, Path]) -> None:
    scan, told = open_scan(scans["bright"]), Told()
    model = spoiled(lambda weight: factor * weight, scan)
    found = load_engine("pytorch").reconstruct(
        model, scan, scan.usable, execution=CPU, progress=told, select=selected
    )
    (line,) = [text for text in told.lines if text.startswith("chosen by hidden pixels: ")]
    assert found.chosen["object"] == "plain iterations" or found.chosen["correction_factor"] == 0, line
    plain = RefineOptions(60, start="flat", likelihood="poisson")
    best = error(scans["bright"], reconstructed(scan, "pytorch", plain, fit_probe=False))
    assert error(scans["bright"], found) < ALLOWED * best


@pytest.mark.parametrize(("pixels", "patterns", "count"), [(40, 36, 40), (1, 25, 25), (1, 100, 81)])
def test_a_part_of_a_large_scan_chooses_and_never_a_handful(
    pixels: int, patterns: int, count: int, scans: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    counts, made = [], selection.HiddenScan

    def noted(backend: Any, store: Any, scan: Any, indices: Any, seed: int) -> Any:
        counts.append(len(indices))
        return made(backend, store, scan, indices, seed)

    monkeypatch.setattr(selection, "HiddenScan", noted)
    monkeypatch.setattr(selection, "SELECTION_PIXELS", pixels * 32**2)
    monkeypatch.setattr(selection, "SELECTION_PATTERNS", patterns)
    scan = open_scan(scans["bright"])
    found = reconstructed(scan, "pytorch", select=selected, fit_probe=False)
    assert counts == [count]
    assert len(found.indices) == 81


def test_a_single_photon_in_each_pattern_is_no_trouble(scans: dict[str, Path], tmp_path: Path) -> None:
    arrays = read_npz(scans["dim"])
    dark = np.zeros_like(arrays["diff3d"])
    place = np.random.default_rng(1).integers(32, size=(2, len(dark)))
    dark[np.arange(len(dark)), place[0], place[1]] = 1
    np.savez(tmp_path / "dark.npz", **{**arrays, "diff3d": dark})
    told = Told()
    found = reconstructed(open_scan(tmp_path / "dark.npz"), "pytorch", select=selected, progress=told)
    assert np.isfinite(found.obj).all()
    assert any(text.startswith("chosen by hidden pixels: ") for text in told.lines)


def test_a_fit_of_the_probe_that_is_asked_for_is_not_chosen(scans: dict[str, Path]) -> None:
    told = Told()
    found = reconstructed(open_scan(scans["dim"]), "pytorch", select=selected, progress=told, fit_probe=True)
    # This scan's own probe is better.
    assert found.chosen["probe"] == "fitted"
    (line,) = [text for text in told.lines if text.startswith("chosen by hidden pixels: ")]
    assert "probe" not in line
    assert "probe: the scan's own, fitted to it first, as asked for" in told.lines


def test_a_network_is_judged_by_what_its_training_did_not_see(
    scans: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    judged, made = [], selection.HiddenScan.deviance

    def noted(hidden: Any, obj: Any, judges: tuple[int, ...], among: Any) -> Any:
        judged.append({*judges})
        return made(hidden, obj, judges, among)

    monkeypatch.setattr(selection.HiddenScan, "deviance", noted)
    for name in ("bright", "dim"):
        scan = open_scan(scans[name])
        model = pretrained("pytorch", open_scan(scans["bright"]))
        model.attach_scan(scan.probe, open_scan(scans["bright"]).record, refined=False)
        judged.clear()
        load_engine("pytorch").reconstruct(
            model, scan, scan.usable, execution=CPU, progress=Told(), select=selected
        )
        # Which other scans a network has seen, nobody knows.
        assert judged
        assert all(sets == {UNSEEN} for sets in judged)
    judged.clear()
    reconstructed(scan, "pytorch", select=selected, fit_probe=False)
    assert judged
    assert all(sets == {0, UNSEEN} for sets in judged)


@pytest.mark.parametrize(
    ("deviances", "expected"),
    [
        ({0.0: 1.0, 0.5: 1.6, 1.0: 2.0}, 0.0),  # no least value between: the better end
        ({0.0: 2.0, 0.5: 1.0, 1.0: 2.0}, 0.5),
        ({0.0: 3.0, 0.5: 1.5, 1.0: 2.0, 0.62: 1.4}, 0.62),
        ({0.0: 2.9, 0.5: 2.0, 1.0: 1.0}, 1.0),  # nor here
        ({0.0: 4.0, 0.5: 2.5, 1.0: 1.9, 1.08: 2.1}, 1.0),
        ({0.0: np.nan, 0.5: np.nan, 1.0: np.nan}, 1.0),
    ],
)
def test_the_factor_is_the_one_that_hidden_pixels_prefer(
    deviances: dict[float, float], expected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selection, "averaged", lambda backend, rim, obj, share, light: obj)
    monkeypatch.setattr(selection, "plain_iterates", lambda *_: None)
    trials = object.__new__(selection._Trials)
    trials.rim = None
    trials.hidden = SimpleNamespace(
        backend=SimpleNamespace(whole_canvas=True),
        # Photons of different patterns differ a little.
        deviance=lambda obj, *_: deviances[obj] * (1 + 0.01 * np.arange(4)),
    )
    trials.chunks, trials.light = None, None
    trials.judges = (0, UNSEEN), None
    trials.network, trials.on_trial = lambda *_, factor, **__: factor, lambda: None
    assert trials.of_network(fitted=False).factor == pytest.approx(expected)


@pytest.mark.parametrize(
    ("errors", "expected"),
    [
        ({0.001: 2.7, 0.002: -0.7, 0.004: -9.0}, 0.0),  # likely, and not certain
        ({0.001: 7.0, 0.002: 6.0, 0.004: -9.0, 0.008: -20.0}, 0.001),
        ({0.001: 7.0, 0.002: 9.0, 0.004: 7.0, 0.008: -20.0}, 0.002),
        ({0.001: 5.0, 0.002: 9.0, 0.004: 8.0, 0.008: -20.0}, 0.00246),  # between two of them
        ({0.001: -3.0}, 0.0),
    ],
)
def test_total_variation_has_to_be_better_for_certain(errors: dict[float, float], expected: float) -> None:
    trials = object.__new__(selection._Trials)
    noise = np.tile([0.5, -0.5], 18)
    # Gains of so many standard errors of their sum.
    steps = {**dict.fromkeys(selection.STRENGTHS, -30.0), **errors}
    missed = {tv: 1.0 - count * noise.std(ddof=1) / 6 + noise for tv, count in steps.items()}
    missed[0.0] = np.ones(36)

    def refined(begin: selection.Trial) -> selection.Trial:
        return begin._replace(missed=missed[begin.refine.tv])

    trials.refined = refined
    begin = selection.Trial("plain iterations", selection.PLAIN, None, missed[0.0])
    assert trials._smoothed(begin, begin).refine.tv == pytest.approx(expected, abs=2e-5)


def test_no_strength_is_chosen_that_lies_beyond_those_that_were_tried() -> None:
    """A stronger smoothing may explain more, and not for certain: patterns differ in it."""
    trials, noise = object.__new__(selection._Trials), np.tile([0.5, -0.5], 18)
    gains = {0.001: 2.0, 0.002: 4.4, 0.004: 8.99}
    missed = {tv: np.ones(36) for tv in selection.STRENGTHS}
    for tv, gain in gains.items():
        spread = 3.0 if tv == 0.004 else 1.0
        missed[tv] = 1.0 - gain * noise.std(ddof=1) / 6 + spread * noise
    begin = selection.Trial("plain iterations", selection.PLAIN, None, missed[0.0])
    wide, narrow = (begin._replace(missed=missed[tv]) for tv in (0.004, 0.002))
    assert wide.deviance < narrow.deviance
    assert narrow.beats(begin, selection.CLEARLY)
    assert not wide.beats(begin, selection.CLEARLY)
    trials.refined = lambda begin: begin._replace(missed=missed[begin.refine.tv])
    assert trials._smoothed(begin, begin).refine.tv == 0.002


@pytest.mark.parametrize(
    ("of_network", "of_both", "of_refined", "doubt", "expected"),
    [
        (2.0, 1.25, 2.0, 2.0, 0.33),  # level: half each, but for the doubt
        (2.0, 1.25, 2.0, 1.0, 0.5),
        (1.0, 1.5, 3.0, 2.0, 0.0),  # iterations only add noise
        (3.0, 1.5, 1.0, 2.0, 1.0),
        (401.0, 101.0, 1.0, 2.0, 1.0),
        (1.36, 1.01, 1.16, 2.0, 0.43),  # least at 0.6
        (np.nan, np.nan, 1.0, 2.0, None),
    ],
)
def test_the_weight_is_where_hidden_pixels_are_explained_best(
    of_network: float,
    of_both: float,
    of_refined: float,
    doubt: float,
    expected: float | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(selection, "averaged", lambda backend, refined, network, share, light: share)
    told = {0.0: of_network, 0.5: of_both}
    trials = object.__new__(selection._Trials)
    trials.hidden = SimpleNamespace(
        backend=None, deviance=lambda obj, *_: np.full(4, told.get(obj, of_both) / 4)
    )
    trials.judges, trials.light, trials.on_trial = ((0, UNSEEN), None), None, lambda: None
    network = selection.Trial("the network", None, None, np.zeros(4), 1.2)
    refined = selection.Trial("plain iterations", selection.PLAIN, None, np.full(4, of_refined / 4), 1, 1.0)
    both, alone = trials.averaged(refined, network, doubt)
    assert (alone.name, alone.refine, alone.refined_share) == ("the network", None, 0.0)
    if expected is None:
        # An object without numbers loses.
        assert refined.beats(both, selection.CLEARLY)
        return
    assert both.refined_share == expected
    if 0 < expected < 1:
        assert (both.name, both.factor) == ("the network and plain iterations", 1.2)
        assert both.refine == selection.PLAIN


@pytest.mark.parametrize(("spread", "expected"), [(0.0, 1.0), (0.1, 0.64), (0.6, 0.0)])
def test_a_refinement_has_to_be_better_for_more_than_chance(
    spread: float, expected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selection, "averaged", lambda backend, refined, network, share, light: share)
    noise = spread * np.array([1.0, -1.0, 1.0, -1.0])
    told = {0.0: np.full(4, 0.5), 0.5: np.full(4, 0.45) + noise / 2, 1.0: np.full(4, 0.42) + noise}
    trials = object.__new__(selection._Trials)
    trials.hidden = SimpleNamespace(backend=None, deviance=lambda obj, *_: told.get(obj, told[0.5]))
    trials.judges, trials.light, trials.on_trial = ((0, UNSEEN), None), None, lambda: None
    network = selection.Trial("the network", None, None, told[0.0])
    refined = selection.Trial("plain iterations", selection.PLAIN, None, told[1.0], 1, 1.0)
    assert trials.averaged(refined, network, 2.0)[0].refined_share == expected
    # A network that has seen all pixels of its training has no such advantage.
    assert trials.averaged(refined, network, 1.0)[0].refined_share == 1.0


def test_patterns_at_the_rim_of_a_scan_do_not_judge(scans: dict[str, Path]) -> None:
    scan, asked, made = open_scan(scans["bright"]), [], selection.HiddenScan.well_covered

    def noted(hidden: Any) -> Any:
        asked.append(made(hidden))
        return asked[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selection.HiddenScan, "well_covered", noted)
        reconstructed(scan, "pytorch", select=selected, fit_probe=False)
    (inside,) = asked
    inside = inside.reshape(9, 9)
    assert inside[2:-2, 2:-2].all()
    rim = np.ones((9, 9), bool)
    rim[1:-1, 1:-1] = False
    assert inside[rim].mean() < 0.2


@pytest.mark.slow
def test_the_dark_around_a_scan_does_not_decide(tmp_path: Path) -> None:
    """A wide body under a disc: iterations explain the rim better, and all the rest worse."""
    wide = SimulationOptions(
        n_px=64, n_y=10, n_x=10, step_px=4.0, probe="disc", photons=3e4, scene="lens", seed=948
    )
    path = tmp_path / "scan.npz"
    write_scan(path, wide)
    scan = open_scan(path)
    alone = error(path, reconstructed(scan, "pytorch", fit_probe=False))
    assert error(path, reconstructed(scan, "pytorch", select=selected, fit_probe=False)) < ALLOWED * alone


def test_a_mean_of_two_objects_turns_one_to_the_other_and_leaves_the_dark_to_iterations() -> None:
    rng = np.random.default_rng(5)
    light = np.zeros((12, 16))
    light[2:9, 3:13] = rng.uniform(0.1, 1.0, (7, 10))
    light[5, 5], light[0, 0] = 1.0, 0.04
    refined = np.exp(1j * rng.uniform(-0.4, 0.4, light.shape))
    error = 0.1 * (rng.normal(size=light.shape) + 1j * rng.normal(size=light.shape))
    # Errors that turn the whole object would be turned back.
    error -= refined * (light * refined.conj() * error).sum() / (light * np.abs(refined) ** 2).sum()
    network = np.exp(1.1j) * (refined + error)
    backend = SimpleNamespace(array=np.asarray, tensor=np.asarray)
    found = averaged(backend, refined, network, 0.3, light)
    expected = np.where(light >= 0.05, refined + 0.7 * error, refined)
    assert np.abs(found - expected).max() < 2e-6


@pytest.mark.slow
def test_the_mean_is_nearer_to_the_truth_than_what_it_is_made_of(tmp_path: Path) -> None:
    """A narrow beam and a power law: neither the network nor iterations see it all."""
    narrow = {"n_px": 64, "n_y": 10, "n_x": 10, "step_px": 4.0, "probe_diameter_px": 14.0}
    options = SimulationOptions(**narrow, defocus_waves=0.5, photons=1e5, scene="power_law", seed=42)
    write_scan(tmp_path / "scan.npz", options)
    scan, path, told = open_scan(tmp_path / "scan.npz"), tmp_path / "scan.npz", Told()
    how: dict[str, Any] = {"fit_probe": False, "uncertainty": "fisher", "progress": told}
    found = reconstructed(scan, "pytorch", select=selected, **how)
    assert any("what the network adds or smooths is not in it" in line for line in told.lines)
    assert 0.1 < found.chosen["refined_share"] < 0.9
    record = found.chosen
    alone = RefineOptions(
        record["iterations"],
        likelihood=record["likelihood"],
        tv=record["total_variation"],
        start="flat" if "plain iterations" in record["object"] else "network",
    )
    parts = [error(path, reconstructed(scan, "pytorch", way, fit_probe=False)) for way in (None, alone)]
    assert error(path, found) < 0.985 * min(parts)


def test_the_line_counts_from_what_it_is_compared_with() -> None:
    better, worse = (
        selection.Trial(name, None, None, np.full(2, value)) for name, value in (("a", 0.5), ("b", 1.0))
    )
    assert selection._line(better, worse) == "a, which explains unseen photons 50 % better than b"
    told = "b; a explains unseen photons 50 % better, which is not enough"
    assert selection._line(worse, better) == told


def test_nothing_is_chosen_where_exit_waves_are_smoothed() -> None:
    assert selection.selection(ModelConfig()) is selected
    assert selection.selection(ModelConfig(gaussian_smoothing_sigma=1.0)) is None


def test_what_is_asked_for_is_done_without_a_choice(scans: dict[str, Path]) -> None:
    told, how = Told(), RefineOptions(3, start="flat")
    found = reconstructed(open_scan(scans["dim"]), "pytorch", how, select=selected, progress=told)
    assert found.chosen is None
    assert len(found.misfit) == 4
    assert not any(text.startswith("chosen") for text in told.lines)
