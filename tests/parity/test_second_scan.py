"""A model trained on one scan reconstructs others: with their own beam, and with their own transmission.

Every case goes through the command and through the calls that Ptychodus makes, with both backends.
"""

from __future__ import annotations

import importlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from ptycho import loader, params, probe, tf_helper
from ptycho.config.config import (
    InferenceConfig,
    ModelConfig,
    PyTorchExecutionConfig,
    TrainingConfig,
    update_legacy_dict,
)
from ptycho.data.npz import read_npz, write_npz
from ptycho.data.probe_choice import probe_overlap, probe_power
from ptycho.evaluation.gauge import solve_gauge
from ptycho.files.reader import open_scan
from ptycho.networks.bundle import read_bundle
from ptycho.raw_data import RawData
from ptycho.run.pipeline import train
from ptycho.simulation.simulate import SimulationOptions, expected_counts, simulate
from ptycho.workflows import components

pytestmark = pytest.mark.slow

TRAINED = SimulationOptions(n_px=32, n_y=8, n_x=8, step_px=3.0, photons=1e6, probe_error_waves=0.15, seed=3)
BEAM = replace(TRAINED, seed=5, probe_error_waves=0.0)
SECOND = {
    "defocus": replace(BEAM, defocus_waves=0.6),
    "aperture": replace(BEAM, probe_diameter_px=19.0),
    "dose": replace(TRAINED, seed=7, photons=1e5),
    "sample": replace(TRAINED, seed=9),
}
"""What differs -> the scan; the last two have the probe guess of the training, the last a darker object."""
DARKER = 0.65
"""Factor on the transmission of the darker object."""
COMMANDS = {"pytorch": "ptycho_torch.inference", "tensorflow": "ptycho.inference"}
ENGINES = {"pytorch": "ptycho_torch.engine", "tensorflow": "ptycho.tf.engine"}
ERROR = {"defocus": 0.03, "aperture": 0.03, "dose": 0.06, "sample": 0.05}
"""Largest complex NRMSE; the beam of the training gives 0.3 and more on the first two."""
TRANSMISSION = 0.03
"""Relative error of the mean modulus."""
RIM_PX = 12
"""Border of an object that sees little light."""


class Second(NamedTuple):
    """A second scan: its file, true object and true probe."""

    path: Path
    truth: NDArray[np.complex64]
    probe: NDArray[np.complex64]


def write(path: Path, options: SimulationOptions, darker: float = 1.0) -> Second:
    """Write a scan with its truth; counts are drawn again where the object is made darker."""
    arrays = simulate(options)
    modes = np.atleast_3d(arrays.get("probe_true", arrays["probeGuess"]).T).T
    if darker != 1.0:
        arrays["objectGuess"] = arrays["objectGuess"] * np.float32(darker)
        positions = np.stack([arrays["ycoords"], arrays["xcoords"]], axis=1)
        expected = expected_counts(arrays["objectGuess"], modes, positions)
        arrays["diff3d"] = np.random.default_rng(1).poisson(expected).astype(np.uint32)
    write_npz(path, arrays)
    return Second(path, arrays["objectGuess"], modes)


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Second]:
    folder = tmp_path_factory.mktemp("scans")
    found = {
        name: write(folder / f"{name}.npz", options, DARKER if name == "sample" else 1.0)
        for name, options in SECOND.items()
    }
    return found | {"trained": write(folder / "trained.npz", TRAINED)}


@pytest.fixture(scope="module", params=tuple(COMMANDS))
def run(
    request: pytest.FixtureRequest, scans: dict[str, Second], tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    """Train one epoch; return the backend and the folder."""
    folder = tmp_path_factory.mktemp(request.param)
    config = TrainingConfig(
        ModelConfig(N=32, gridsize=1, architecture="unrolled", unrolled_steps=16, unrolled_width=4),
        train_data_file=scans["trained"].path,
        output_dir=folder,
        nepochs=1,
        probe_trainable=True,
        backend=request.param,
    )
    train(config, PyTorchExecutionConfig(accelerator="cpu", logger_backend=None))
    return request.param, folder


def infer(
    run: tuple[str, Path], scan: Path, out: Path, capsys: pytest.CaptureFixture[str], *flags: str
) -> tuple[dict[str, NDArray[Any]], dict[str, float], str]:
    """Run the command in this process; return what it stored, its scores and what it printed."""
    backend, folder = run
    command = importlib.import_module(COMMANDS[backend]).cli_main
    files = ("--model_path", str(folder), "--test_data", str(scan), "--output_dir", str(out))
    capsys.readouterr()
    assert command([*files, "--device", "cpu", *flags]) == 0
    printed = capsys.readouterr().out
    scores = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    return read_npz(out / "reconstruction.npz"), scores, printed


def through_the_torch_plugin(folder: Path, scan: Second) -> NDArray[np.complex64]:
    """Make the calls of the client's reconstruction process for PyTorch."""
    from ptycho_torch.api.base_api import ConfigManager, InferenceEngine, PtychoDataLoader, PtychoModel
    from ptycho_torch.lightning_utils import find_best_checkpoint
    from ptycho_torch.model import PtychoPINN_Lightning

    checkpoint = find_best_checkpoint(folder)
    data, model, training, inference = PtychoModel._extract_configs_from_checkpoint(checkpoint)
    manager = ConfigManager(
        data_config=data, model_config=model, training_config=training, inference_config=inference
    )
    network = PtychoModel(model, data, training, inference)
    network.model = PtychoPINN_Lightning.load_from_checkpoint(checkpoint, map_location="cpu")
    raw = RawData.from_file(scan.path)
    held = PtychoDataLoader.from_np(raw.diff3d, raw.probe_modes, raw.positions_yx_px, manager)
    return InferenceEngine(manager, network).predict_and_stitch(held).numpy()


def through_the_tensorflow_plugin(folder: Path, scan: Second) -> NDArray[np.complex64]:
    """Make the calls of the client's reconstruction process for TensorFlow."""
    arrays = read_npz(scan.path)
    raw = RawData.from_coords_without_pc(
        arrays["xcoords"], arrays["ycoords"], arrays["diff3d"], arrays["probeGuess"],
        np.zeros(len(arrays["xcoords"]), int), arrays["objectGuess"],
    )  # fmt: skip
    settings = InferenceConfig(ModelConfig(N=raw.N, gridsize=1), Path(), Path(), output_dir=Path())
    update_legacy_dict(params.cfg, settings)
    network, _ = components.load_inference_bundle(folder)
    probe.set_probe_guess(None, raw.probeGuess)
    dataset = raw.generate_grouped_data(raw.N, K=7, nsamples=1, gridsize=1)
    container = loader.load(lambda: dataset, raw.probeGuess, which=None, create_split=False)
    patches = network.predict([container.X * params.get("intensity_scale"), container.local_offsets])
    return tf_helper.reassemble_position(patches, container.global_offsets, M=20)[..., 0]


PLUGINS = {"pytorch": through_the_torch_plugin, "tensorflow": through_the_tensorflow_plugin}


def middle(picture: NDArray[Any], shape_yx: tuple[int, int]) -> NDArray[Any]:
    """Return the middle of a picture."""
    low = [(size - wanted) // 2 for size, wanted in zip(picture.shape, shape_yx, strict=True)]
    return picture[low[0] : low[0] + shape_yx[0], low[1] : low[1] + shape_yx[1]]


@pytest.mark.parametrize("name", SECOND)
def test_the_command_reconstructs_another_scan_with_its_own_beam(
    run: tuple[str, Path],
    scans: dict[str, Second],
    name: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stored, scores, printed = infer(run, scans[name].path, tmp_path, capsys)
    (line,) = [text for text in printed.splitlines() if text.startswith("probe:")]
    assert ("the scan's own," if name in ("defocus", "aperture") else "the training's,") in line
    # Where the probe of the file is right, hidden pixels keep it from a fit.
    assert "fitted to " not in line
    assert scores["complex_nrmse"] < ERROR[name], line
    assert scores["gauge_scale"] == pytest.approx(1, rel=TRANSMISSION)
    assert probe_overlap(stored["probe"], scans[name].probe) > 0.98
    assert probe_power(stored["probe"]) == pytest.approx(SECOND[name].photons, rel=1e-3)


@pytest.mark.parametrize("name", SECOND)
def test_so_do_the_calls_of_ptychodus(
    run: tuple[str, Path], scans: dict[str, Second], name: str, caplog: pytest.LogCaptureFixture
) -> None:
    backend, folder = run
    with caplog.at_level("INFO"):
        found = PLUGINS[backend](folder, scans[name])
    assert [record for record in caplog.records if record.getMessage().startswith("probe: ")]
    shape = tuple(min(sizes) - 2 * RIM_PX for sizes in zip(found.shape, scans[name].truth.shape, strict=True))
    inner, truth = middle(found, shape), middle(scans[name].truth, shape)
    fit = solve_gauge(inner, truth)
    error = np.linalg.norm(fit.obj - truth) / np.linalg.norm(truth)
    assert error < ERROR[name]
    assert abs(fit.scale) == pytest.approx(1, rel=TRANSMISSION)


def test_the_training_scan_keeps_the_probe_that_the_training_found(
    run: tuple[str, Path], scans: dict[str, Second], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored, _, printed = infer(run, scans["trained"].path, tmp_path, capsys)
    bundle = read_bundle(run[1] / "wts.h5.zip")
    assert "probe: the training's, refined there (the model was trained on this scan)" in printed
    np.testing.assert_allclose(stored["probe"], bundle.probe, rtol=1e-5, atol=1e-5)
    start = open_scan(scans["trained"].path).probe
    np.testing.assert_array_equal(bundle.probe_start, start)
    assert probe_overlap(bundle.probe, bundle.probe_start) < 0.998


def test_a_checkpoint_of_each_backend_holds_the_probe_of_the_start(
    run: tuple[str, Path], scans: dict[str, Second]
) -> None:
    backend, folder = run
    engine = importlib.import_module(ENGINES[backend])
    suffix = ".ckpt" if backend == "pytorch" else ".h5.zip"
    model = engine.load(folder / "checkpoints" / f"last{suffix}")
    np.testing.assert_array_equal(model.trained_probe.start, open_scan(scans["trained"].path).probe)


def test_a_file_without_the_probe_of_the_start_still_loads(run: tuple[str, Path], tmp_path: Path) -> None:
    backend, folder = run
    if backend == "pytorch":
        import torch

        from ptycho_torch import engine

        path = folder / "checkpoints" / "last.ckpt"
        content = torch.load(path, weights_only=True)
        del content["probe_start"]
        torch.save(content, tmp_path / "old.ckpt")
        model = engine.load(tmp_path / "old.ckpt")
    else:
        from ptycho.networks.bundle import write_bundle
        from ptycho.tf import engine

        old = replace(read_bundle(folder / "wts.h5.zip"), probe_start=None)
        model = engine.load(write_bundle(tmp_path / "old.h5.zip", old))
    assert model.trained_probe.start is None
    assert model.trained_probe.refined


def test_a_thick_sample_keeps_its_transmission_on_request(
    run: tuple[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The probe of the file is that of the empty beam; a tenth of it comes through the sample."""
    thick = write(tmp_path / "thick.npz", replace(BEAM, seed=11), 0.35)
    stored, scores, printed = infer(run, thick.path, tmp_path / "kept", capsys, "--keep-probe-power")
    assert "probe kept" in printed
    assert probe_power(stored["probe"]) == pytest.approx(BEAM.photons, rel=1e-3)
    assert scores["gauge_scale"] == pytest.approx(1, rel=TRANSMISSION)
    scaled, too_bright, printed = infer(run, thick.path, tmp_path / "scaled", capsys)
    assert "the absolute transmission is unknown" in printed
    assert probe_power(scaled["probe"]) < 0.3 * BEAM.photons
    assert too_bright["gauge_scale"] < 0.5
