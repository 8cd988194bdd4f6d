"""Facts about the pre-training and about the network that comes with the package."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from ptycho.cli import inference_command
from ptycho.config.config import ModelConfig, PyTorchExecutionConfig
from ptycho.data.reconstruction import Reconstruction
from ptycho.errors import BundleError, ConfigError
from ptycho.evaluation.gauge import fit_gauge
from ptycho.evaluation.metrics import score
from ptycho.files.reader import open_scan
from ptycho.networks.architectures import LEARNED_STEPS, architecture_table, check_weights, initial_weights
from ptycho.networks.bundle import Bundle, read_bundle, write_bundle
from ptycho.process.progress import Progress
from ptycho.run.engines import PRETRAINED_FILE, find_model
from ptycho.run.outputs import truth_on_canvas
from ptycho.simulation.curriculum import PretrainOptions, draw_scan
from ptycho.simulation.objects import SCENES
from ptycho.simulation.probes import PROBES
from ptycho.simulation.simulate import SimulationOptions, scan_positions, simulate, write_scan
from ptycho_torch import engine, pretrain, pretraining
from ptycho_torch.generators import UnrolledGenerator

CPU = PyTorchExecutionConfig(accelerator="cpu", logger_backend=None)
SHORT = PretrainOptions(scans=8, iterations=160, width=4, batch_size=2, learning_rate=5e-3)
TINY = PretrainOptions(scans=1, iterations=2, width=4, batch_size=1)
LIMIT_BYTES = 8 * 2**20
UNSEEN = {"scene": "siemens_star", "n_y": 13, "n_x": 12, "step_px": 5.0, "defocus_waves": 1.3, "seed": 11}
"""A scene that the curriculum leaves out."""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Keep small tensors on one core."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    """Run a short pre-training."""
    return pretraining.pretrain(SHORT)


def example_of(generator: UnrolledGenerator, index: int, scan: pretraining.KnownScan) -> torch.Tensor:
    """Return an example behind plain steps from the true object with a blur."""
    with torch.no_grad():
        return pretraining.example(generator, index, scan, pretraining.plain_iterates(generator, scan, 3.0))


def model_of(bundle: Bundle) -> UnrolledGenerator:
    generator = UnrolledGenerator(bundle.model, 0)
    generator.import_weights(bundle.weights, "test")
    return generator


def plain(bundle: Bundle, likelihood: str) -> Bundle:
    """Return the same network before training: as many plain steps."""
    model = dataclasses.replace(bundle.model, unrolled_likelihood=likelihood)
    return dataclasses.replace(bundle, model=model, weights=initial_weights(architecture_table(model), 0))


def reconstruction_of(bundle: Bundle, path: Path) -> Reconstruction:
    scan = open_scan(path)
    return engine.reconstruct(
        engine.from_bundle(bundle), scan, np.arange(scan.n_patterns), execution=CPU, progress=Progress()
    )


def error_of(bundle: Bundle, path: Path) -> float:
    found = reconstruction_of(bundle, path)
    truth, mask = truth_on_canvas(path, found)
    return score(found.obj, truth, mask)["complex_nrmse"]


def test_the_curriculum_leaves_out_what_judges_it_and_covers_the_rest() -> None:
    drawn = [draw_scan(0, index) for index in range(300)]
    judges = {"siemens_star", "collage", "lens", "texture"}
    assert {options.scene for options in drawn} == SCENES.keys() - judges
    assert {options.probe for options in drawn} == {"disc", "zone-plate"}
    assert {options.n_px for options in drawn} == {16, 24, 32, 48, 64, 96}
    assert {options.scan for options in drawn} == {"raster", "spiral"}
    assert {options.n_modes for options in drawn} == {1, 2}
    density = [options.photons / options.step_px**2 for options in drawn]
    assert min(density) < 20 < 1e7 < max(density)
    steps = [options.step_px / options.probe_diameter_px for options in drawn]
    assert min(steps) < 0.1 < 0.4 < max(steps)
    phases = [options.phase_range_rad for options in drawn]
    assert min(phases) < 0.4 < 5 < max(phases)
    assert max(options.probe_diameter_px / options.n_px for options in drawn) > 0.65
    assert len({options.seed for options in drawn}) == 300
    assert draw_scan(0, 7) == draw_scan(0, 7) != draw_scan(1, 7)


def test_every_canvas_of_the_curriculum_holds_a_crop_and_its_probe_can_be_made() -> None:
    for index in range(300):
        options = draw_scan(3, index)
        _, _, shape = scan_positions(options, np.random.default_rng(0))
        assert min(shape) >= pretraining.CROP_PX, f"scan {index} has only {shape} px"
        PROBES[options.probe](options.n_px, options.probe_diameter_px, defocus_waves=options.defocus_waves)


@pytest.mark.parametrize(
    ("field", "value"), [("scans", 0), ("iterations", 0), ("width", 0), ("learning_rate", 0.0), ("seed", -1)]
)
def test_an_option_out_of_range_is_named(field: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"pre-training: {field}.*got {value}"):
        PretrainOptions(**{field: value})


def test_a_known_scan_fits_its_own_object() -> None:
    scan = pretraining.known_scan(simulate(dataclasses.replace(draw_scan(0, 3), photons=1e9)))
    step = pretraining.preconditioned_step(scan.truth, [scan.chunk], scan.weight, "poisson")
    moved = pretraining.preconditioned_step(scan.truth.roll(1, 0), [scan.chunk], scan.weight, "poisson")
    assert step[scan.scanned].abs().mean() < 0.02 * moved[scan.scanned].abs().mean()
    assert all(size % 8 == 0 for size in scan.truth.shape)


def test_an_example_holds_the_truth_in_the_phase_of_the_object(bundle: Bundle) -> None:
    scan = pretraining.known_scan(simulate(draw_scan(0, 5)))
    # A common phase of the object is nobody's error.
    turned = scan._replace(truth=scan.truth * np.exp(0.7j))
    generator = model_of(bundle)
    with torch.no_grad():
        iterates = pretraining.plain_iterates(generator, scan, 3.0)
        found, same = (pretraining.example(generator, 1, known, iterates) for known in (scan, turned))
    assert found.shape == (pretraining.CHANNELS + 6, *scan.weight.shape)
    assert torch.allclose(found, same, atol=1e-4)
    parts = found[6:10].permute(1, 2, 0).contiguous().reshape(*scan.weight.shape, 2, 2)
    base, truth = torch.view_as_complex(parts).unbind(-1)
    turn = torch.vdot(scan.truth[scan.scanned], base[scan.scanned])
    # What it should have answered is the truth but for errors that are slower than it can see.
    slow = truth - scan.truth * turn / turn.abs()
    assert slow.abs().max() > 1e-4
    assert max(slow.diff(dim=axis).abs().max() for axis in (0, 1)) < 0.15 * slow.abs().max()
    rest = (base - truth)[scan.scanned].abs().mean()
    assert rest < (base - truth + slow)[scan.scanned].abs().mean()


def test_a_later_step_sees_what_the_earlier_correction_leaves(bundle: Bundle) -> None:
    scan, trained = pretraining.known_scan(simulate(draw_scan(0, 5))), model_of(bundle)
    silent = model_of(bundle)
    with torch.no_grad():
        silent.convolutions["unet0_out"].weight.zero_()
        silent.convolutions["unet0_out"].bias.zero_()
    first = [example_of(generator, 0, scan) for generator in (trained, silent)]
    second = [example_of(generator, 1, scan) for generator in (trained, silent)]
    assert torch.equal(*first)
    assert (second[0] - second[1])[:2].abs().max() > 1e-4


def test_the_loss_is_0_for_the_truth_1_for_nothing_and_2_for_the_opposite() -> None:
    generator = UnrolledGenerator(ModelConfig(architecture="unrolled", unrolled_likelihood="poisson"), 0)
    scan = pretraining.known_scan(simulate(dataclasses.replace(draw_scan(0, 5), photons=1e4)))
    batch = example_of(generator, 0, scan)[None]
    base, truth, gain = batch[:, 6:8], batch[:, 8:10], batch[:, 11:].clamp(min=1e-9)
    losses = [
        float(pretraining.relative_error(lambda _, share=share: share * (truth - base) / gain, batch))
        for share in (1.0, 0.0, -1.0)
    ]
    assert losses == pytest.approx([0.01, 1.0, 2.0], abs=0.02)


def test_a_short_recipe_trains_every_step_and_helps_unseen_scans(bundle: Bundle) -> None:
    start = initial_weights(architecture_table(bundle.model), SHORT.seed)
    for index in range(LEARNED_STEPS):
        name = f"unet{index}_out/kernel"
        assert np.abs(bundle.weights[name] - start[name]).max() > 1e-3, f"{name} was not trained"
    assert bundle.weights["step_momentum"].tolist() == pytest.approx([0.8, 0.0])
    generator = model_of(bundle)
    errors = []
    for index in range(1000, 1004):
        scan = pretraining.known_scan(simulate(dataclasses.replace(draw_scan(9, index), photons=2e3)))
        batch = example_of(generator, 0, scan)[None]
        with torch.no_grad():
            errors.append(float(pretraining.relative_error(lambda x: generator.correction(x, 0), batch)))
    assert np.mean(errors) < 0.97


def test_the_same_options_train_the_same_network() -> None:
    first, second, other = (
        pretraining.pretrain(options).weights for options in (TINY, TINY, dataclasses.replace(TINY, seed=1))
    )
    assert all(np.array_equal(first[name], second[name]) for name in first)
    assert not np.array_equal(first["unet1_out/kernel"], other["unet1_out/kernel"])


def test_everything_is_made_on_the_device_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, made = [], pretraining.known_scan

    def noted(arrays: dict[str, np.ndarray], device: str) -> pretraining.KnownScan:
        asked.append(device)
        return made(arrays)

    monkeypatch.setattr(pretraining, "known_scan", noted)
    monkeypatch.setattr(pretraining, "resolve_accelerator", lambda word: f"{word}:0")
    with pytest.raises(RuntimeError, match="device"):
        pretraining.pretrain(TINY, accelerator="no_such")
    pretraining.pretrain(TINY)
    assert {*asked} == {"cpu:0"}


def test_the_command_writes_a_bundle_that_every_backend_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--scans", "2", "--iterations", "2", "--width", "4", "--batch_size", "1", "--quiet"]
    assert pretrain.main(["--output_dir", str(tmp_path / "run"), *flags]) == 0
    found = read_bundle(tmp_path / "run")
    assert (found.model.unrolled_likelihood, found.model.unrolled_width) == ("poisson", 4)
    assert capsys.readouterr().out == ""


def test_a_bad_number_ends_the_command_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pretrain.main(["--output-dir", str(tmp_path / "run"), "--scans", "0"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_scans_are_simulated_in_their_order_however_many_run_ahead() -> None:
    drawn = [SimulationOptions(n_px=32, n_y=2, n_x=2, photons=1e3, seed=seed) for seed in range(40)]
    made = list(pretraining.simulated(drawn))
    assert len(made) == len(drawn)
    for options, arrays in zip(drawn, made, strict=True):
        assert np.array_equal(arrays["diff3d"], simulate(options)["diff3d"])


def test_every_level_of_the_shipped_network_takes_part() -> None:
    # A rate that is too high drives whole levels to where their activation is 0, and no gradient comes back.
    generator = model_of(read_bundle(find_model(Path("pretrained"))))
    batch = example_of(generator, 0, pretraining.known_scan(simulate(draw_scan(0, 5))))[None]
    alive: dict[str, float] = {}
    for name, layer in generator.convolutions.items():
        layer.register_forward_hook(
            lambda _, __, answer, name=name: alive.update({name: float((answer > -6).float().mean())})
        )
    with torch.no_grad():
        for index in range(LEARNED_STEPS):
            generator.correction(batch[:, :6], index)
    assert len(alive) == 11 * LEARNED_STEPS
    assert min(alive.values()) > 0.5, alive


@pytest.mark.parametrize(("photons", "bar"), [(2e3, 0.65), (1e4, 0.75), (1e6, 1.0)])
def test_the_shipped_network_beats_plain_steps_on_an_unseen_scan(
    tmp_path: Path, photons: float, bar: float
) -> None:
    write_scan(tmp_path / "scan.npz", SimulationOptions(photons=photons, **UNSEEN))
    shipped = read_bundle(find_model(Path("pretrained")))
    best = min(error_of(plain(shipped, kind), tmp_path / "scan.npz") for kind in ("amplitude", "poisson"))
    assert error_of(shipped, tmp_path / "scan.npz") < bar * best


@pytest.mark.parametrize("photons", [3e2, 2e3])
def test_the_shipped_network_adds_nothing_to_an_empty_object(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, photons: float
) -> None:
    monkeypatch.setitem(SCENES, "empty", lambda shape, _: np.zeros((2, *shape)))
    path = tmp_path / "scan.npz"
    write_scan(path, SimulationOptions(photons=photons, **{**UNSEEN, "scene": "empty"}))
    shipped = read_bundle(find_model(Path("pretrained")))
    made, smooth = {}, {}
    for name, bundle in {"network": shipped, "plain": plain(shipped, "poisson")}.items():
        found = reconstruction_of(bundle, path)
        lit = found.coverage > 0.3
        apart = found.obj / found.obj[lit].mean() - 1
        made[name] = np.abs(apart[lit]).std()
        # What would be taken for a feature: noise averages out.
        smooth[name] = np.abs(gaussian_filter(apart, 3.0)[lit]).max()
    assert made["network"] < 0.5 * made["plain"]
    assert smooth["network"] < 1.1 * smooth["plain"]


@pytest.mark.parametrize("photons", [3e2, 2e3])
def test_a_line_that_is_missing_from_a_grating_stays_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, photons: float
) -> None:
    period, half = 10, 5

    def grating(shape: tuple[int, int], _: np.random.Generator) -> np.ndarray:
        lines = (np.arange(shape[1]) // half % 2).astype(float)
        gone = shape[1] // 2 // period * period
        lines[gone : gone + period] = 0.0
        return np.stack([0.5 * lines, lines])[:, None].repeat(shape[0], axis=1)

    monkeypatch.setitem(SCENES, "grating", grating)
    path = tmp_path / "scan.npz"
    write_scan(path, SimulationOptions(photons=photons, **{**UNSEEN, "scene": "grating"}))
    found = reconstruction_of(read_bundle(find_model(Path("pretrained"))), path)
    truth, mask = truth_on_canvas(path, found)
    aligned = fit_gauge(found.obj, truth, mask)
    profile, true = (np.abs(np.where(mask, obj, 0).sum(0) / mask.sum(0).clip(1)) for obj in (aligned, truth))
    middle = int(np.median(np.nonzero(mask.any(0))[0]))
    inside = slice(middle - 3 * period, middle + 3 * period)
    # Away from the edges, whose sharpness few photons do not carry, every line is there, and no other.
    line, gap = (np.abs(true[inside] - value) < 0.01 for value in (true[inside].min(), true[inside].max()))
    contrast = true[inside].max() - true[inside].min()
    assert line.sum() > 2 * half
    assert np.abs(profile[inside] - true[inside])[line].max() < 0.4 * contrast
    missing = np.flatnonzero(gap)[np.abs(np.flatnonzero(gap) - 3 * period) < period]
    assert missing.size >= half
    assert (true[inside] - profile[inside])[missing].max() < 0.3 * contrast


def test_the_shipped_network_is_small_and_fits_the_table() -> None:
    assert PRETRAINED_FILE.stat().st_size < LIMIT_BYTES
    shipped = read_bundle(PRETRAINED_FILE)
    check_weights(shipped.weights, architecture_table(shipped.model), "shipped")
    other = architecture_table(dataclasses.replace(shipped.model, unrolled_width=16))
    with pytest.raises(BundleError, match="do not fit the architecture"):
        check_weights(shipped.weights, other, "shipped")


def test_a_bundle_of_another_table_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shipped = read_bundle(PRETRAINED_FILE)
    wider = dataclasses.replace(shipped, model=dataclasses.replace(shipped.model, unrolled_width=32))
    write_bundle(tmp_path / "other.h5.zip", wider)
    write_scan(tmp_path / "scan.npz", SimulationOptions(n_y=3, n_x=3))
    flags = ["--model_path", str(tmp_path / "other.h5.zip"), "--output_dir", str(tmp_path / "out")]
    status = inference_command.main([*flags, "--test_data", str(tmp_path / "scan.npz")], backend="pytorch")
    told = capsys.readouterr().err
    assert status == 2
    assert told.count("\n") == 1
    assert "do not fit the architecture" in told


def test_the_name_pretrained_reconstructs_patterns_of_any_size(tmp_path: Path) -> None:
    write_scan(tmp_path / "scan.npz", SimulationOptions(n_y=4, n_x=4))
    write_scan(tmp_path / "small.npz", SimulationOptions(n_px=32, n_y=4, n_x=4))
    command = ["--model_path", "pretrained", "--accelerator", "cpu", "--quiet"]
    done = [
        inference_command.main(
            [*command, "--test_data", str(tmp_path / name), "--output_dir", str(tmp_path / "out")],
            backend="pytorch",
        )
        for name in ("scan.npz", "small.npz")
    ]
    assert done == [0, 0]
    assert (tmp_path / "out" / "reconstructed_phase.png").is_file()


def test_a_network_with_a_probe_of_its_own_refuses_another_size_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shipped = read_bundle(PRETRAINED_FILE)
    write_bundle(tmp_path / "own.h5.zip", dataclasses.replace(shipped, probe=shipped.probe + 1))
    write_scan(tmp_path / "small.npz", SimulationOptions(n_px=32, n_y=4, n_x=4))
    flags = ["--model_path", str(tmp_path / "own.h5.zip"), "--output_dir", str(tmp_path / "out")]
    status = inference_command.main([*flags, "--test_data", str(tmp_path / "small.npz")], backend="pytorch")
    told = capsys.readouterr().err
    assert status == 2
    assert told.count("\n") == 1
    assert "got N=32, expected N=64" in told


def test_a_folder_named_pretrained_wins_over_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_model(Path("pretrained")) == PRETRAINED_FILE
    (tmp_path / "pretrained").mkdir()
    (tmp_path / "pretrained" / "wts.h5.zip").write_bytes(b"")
    assert find_model(Path("pretrained")) == Path("pretrained/wts.h5.zip")
