"""Facts about the modules that Ptychodus and older scripts call: probe, loader, tf_helper, models.

The calls that Ptychodus makes are made here in its order, on small scans; ``tests/compat`` runs the client.
"""

from __future__ import annotations

import itertools
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ptycho import loader, model_manager, params, probe, tf_helper
from ptycho.config.config import (
    InferenceConfig,
    ModelConfig,
    PyTorchExecutionConfig,
    TrainingConfig,
    update_legacy_dict,
)
from ptycho.data.prepare import prepare_scan
from ptycho.errors import BundleError, ConfigError, DataError
from ptycho.networks.architectures import architecture_table, initial_weights
from ptycho.networks.bundle import Bundle, read_bundle, write_bundle
from ptycho.process.progress import Progress
from ptycho.raw_data import RawData
from ptycho.run.client import REFINE_VARIABLE
from ptycho.run.selection import selected
from ptycho.simulation.simulate import SimulationOptions, simulate
from ptycho.tf import engine
from ptycho.workflows import components

N_PX = 32
MODULES = (
    "loader",
    "probe",
    "tf_helper",
    "model_manager",
    "workflows.components",
    "workflows.training",
)
pytestmark = pytest.mark.slow
SAME_NUMBERS = 2e-4
"""Relative: two orders of summation in float32, and a shift by a float64 or a float32 phase."""
INTERPOLATED = 0.03
"""Relative: the middle of a group lies between pixels, where the object has sharp edges."""
CENTRED_PX = 0.05
"""A blob is found this well where its patches are exact; what is left is the interpolation at the rim."""


def small_arrays(**options: Any) -> dict[str, NDArray[Any]]:
    """Simulate 7 x 7 patterns with a step of 3 px."""
    usual = {"n_px": N_PX, "n_y": 7, "n_x": 7, "step_px": 3.0, "seed": 3}
    return simulate(SimulationOptions(**{**usual, **options}))


def as_raw(arrays: dict[str, NDArray[Any]], **changed: Any) -> RawData:
    """Build a data set as Ptychodus does for a reconstruction."""
    keys = ("xcoords", "ycoords", "diff3d", "probeGuess", "objectGuess")
    count = len(arrays["xcoords"])
    return RawData.from_coords_without_pc(
        scan_index=np.zeros(count, int), **{**{key: arrays[key] for key in keys}, **changed}
    )


@pytest.fixture(scope="module")
def arrays() -> dict[str, NDArray[Any]]:
    return small_arrays()


@pytest.fixture
def raw(arrays: dict[str, NDArray[Any]]) -> RawData:
    return as_raw(arrays)


@pytest.fixture(autouse=True)
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_manager, "_current", model_manager._Current())


def config(**options: Any) -> TrainingConfig:
    """Settings as Ptychodus makes them: no files, no output folder, N filled in later."""
    model = {key: options.pop(key) for key in list(options) if hasattr(ModelConfig, key)}
    return TrainingConfig(
        ModelConfig(**{"N": N_PX, "n_filters_scale": 1, **model}),
        train_data_file=Path(),
        output_dir=Path(),
        **{"nepochs": 1, **options},
    )


def untrained(raw: RawData, *, gridsize: int = 1, **model: Any) -> Bundle:
    """A bundle with initial weights, louder heads, and a gain that shows where it is forgotten."""
    settings = ModelConfig(N=raw.N, gridsize=gridsize, n_filters_scale=1, **model)
    scan = prepare_scan(raw)
    weights = initial_weights(architecture_table(settings), 1)
    weights |= {name: 10 * values for name, values in weights.items() if "_inner/" in name}
    return Bundle("tensorflow", settings, weights, scan.probe, log_gain=0.3, scale_record=scan.record)


def as_ptychodus_reconstructs(raw: RawData, folder: Path, *, gridsize: int = 1) -> NDArray[Any]:
    """Make the calls of the client's child process, in its order."""
    settings = InferenceConfig(
        ModelConfig(N=raw.N, gridsize=gridsize), model_path=Path(), test_data_file=Path(), output_dir=Path()
    )
    update_legacy_dict(params.cfg, settings)
    network, _ = components.load_inference_bundle(folder)
    probe.set_probe_guess(None, raw.probeGuess)
    dataset = raw.generate_grouped_data(raw.N, K=7, nsamples=1, gridsize=gridsize)
    container = loader.load(lambda: dataset, raw.probeGuess, which=None, create_split=False)
    scale = params.get("intensity_scale")
    patches = network.predict([container.X * scale, container.local_offsets])
    assert patches.shape == (raw.n_patterns, raw.N, raw.N, 1)
    assert patches.dtype == np.complex64
    return np.squeeze(tf_helper.reassemble_position(patches, container.global_offsets, M=20))


# --- the modules ---


def test_importing_them_loads_no_framework(run_python: Callable[..., CompletedProcess[str]]) -> None:
    names = ", ".join(f"ptycho.{name}" for name in MODULES)
    found = "'tensorflow' in sys.modules or 'torch' in sys.modules"
    done = run_python("-c", f"import sys, {names}; sys.exit({found})")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# --- probe ---


def test_a_probe_of_any_rank_is_kept_as_modes(arrays: dict[str, NDArray[Any]]) -> None:
    stack = np.stack([arrays["probeGuess"]] * 2) * np.array([1, 0.5j])[:, None, None]
    for given, kept in ((stack, stack), (stack[0], stack[:1]), (stack[0][..., None], stack[:1])):
        probe.set_probe_guess(None, given)
        np.testing.assert_array_equal(probe.get_probe(), kept.astype(np.complex64))
        np.testing.assert_array_equal(params.get("probe"), probe.get_probe())


def test_no_probe_and_a_bad_probe_are_refused() -> None:
    with pytest.raises(KeyError, match="'probe' is not set"):
        probe.get_probe()
    for bad in (None, np.zeros((8, 8)), np.ones((8, 9)), np.ones(8)):
        with pytest.raises(DataError, match="set_probe_guess: "):
            probe.set_probe_guess(None, bad)


def test_the_window_follows_the_mask_and_the_size(arrays: dict[str, NDArray[Any]]) -> None:
    probe.set_probe_guess(None, arrays["probeGuess"])
    assert probe.probe_window(N_PX + 2) is None
    params.cfg.update({"probe.mask": False})
    plain = probe.probe_window(N_PX)
    params.cfg.update({"probe.mask": True, "probe_mask_diameter": 6.0})
    masked = probe.probe_window(N_PX)
    assert plain is not None
    assert masked is not None
    rim = (0, N_PX // 2, N_PX // 2 + 8)
    assert abs(masked[rim]) < 1e-3 * abs(plain[rim])


# --- loader ---


def test_a_container_holds_what_was_grouped(raw: RawData) -> None:
    dataset = raw.generate_grouped_data(N_PX, K=7, nsamples=1, gridsize=2, seed=0)
    container = loader.load(lambda: dataset, raw.probeGuess, which=None, create_split=False)
    count = raw.n_patterns
    assert len(container) == count
    assert container.X.shape == (count, N_PX, N_PX, 4)
    assert container.global_offsets.shape == (count, 1, 2, 1)
    assert container.global_offsets.dtype == np.float64
    rows = container.nn_indices
    whole = container.global_offsets - container.local_offsets
    np.testing.assert_allclose(whole[:, 0, 0], raw.xcoords[rows])
    np.testing.assert_allclose(whole[:, 0, 1], raw.ycoords[rows])
    np.testing.assert_allclose(container.Y, container.Y_I * np.exp(1j * container.Y_phi), rtol=1e-5)


def test_offsets_remember_the_middle_of_the_object(raw: RawData, arrays: dict[str, NDArray[Any]]) -> None:
    dataset = raw.generate_grouped_data(N_PX, gridsize=1)
    offsets = loader.load(lambda: dataset, raw.probeGuess).global_offsets
    height, width = arrays["objectGuess"].shape
    assert offsets.centre_yx_px == ((height - 1) / 2, (width - 1) / 2)
    assert offsets[3:5].centre_yx_px == offsets.centre_yx_px
    blind = as_raw(arrays, objectGuess=None).generate_grouped_data(N_PX, gridsize=1)
    assert loader.load(lambda: blind, None).global_offsets.centre_yx_px is None


def test_a_split_is_refused(raw: RawData) -> None:
    with pytest.raises(ConfigError, match="groups are not split"):
        loader.load(lambda: ({}, 0.5), raw.probeGuess, which="train", create_split=True)


# --- tf_helper ---


def blob(y_px: NDArray[Any], x_px: NDArray[Any], at_yx_px: tuple[float, float]) -> NDArray[Any]:
    """A Gaussian feature on an empty object."""
    distance = (y_px - at_yx_px[0]) ** 2 + (x_px - at_yx_px[1]) ** 2
    return 1 + np.exp(-distance / (2 * 2.0**2)) * np.exp(0.7j)


def blob_patches(positions_yx_px: NDArray[Any], at_yx_px: tuple[float, float]) -> NDArray[Any]:
    axis = np.arange(N_PX) - (N_PX - 1) / 2
    y, x = (positions_yx_px[:, k, None] + axis for k in (0, 1))
    return blob(y[:, :, None], x[:, None, :], at_yx_px).astype(np.complex64)[..., None]


def centroid_yx_px(obj: NDArray[Any]) -> NDArray[Any]:
    """Middle of a blob relative to the middle of the array."""
    weight = np.clip(abs(np.squeeze(obj) - 1) - 0.1, 0, None)
    axes = [np.arange(size) - (size - 1) / 2 for size in weight.shape]
    return np.array([(weight.sum(axis=1 - k) * axes[k]).sum() / weight.sum() for k in (0, 1)])


def skewed_positions(seed: int, *, lattice: bool) -> NDArray[Any]:
    """Positions whose mean lies far from the middle of their bounding box."""
    rng = np.random.default_rng(seed)
    points = np.concatenate([rng.uniform(16, 32, (60, 2)), rng.uniform(16, 70, (30, 2))])
    return np.round(points) if lattice else points


@pytest.mark.parametrize("lattice", [True, False])
@pytest.mark.parametrize("shape_yx", [(90, 96), (91, 97), (92, 91)])
@pytest.mark.parametrize("with_probe", [True, False])
def test_a_feature_lies_where_the_object_has_it(
    arrays: dict[str, NDArray[Any]], shape_yx: tuple[int, int], lattice: bool, with_probe: bool
) -> None:
    positions = skewed_positions(4, lattice=lattice)
    assert abs(positions.mean(axis=0) - (positions.min(axis=0) + positions.max(axis=0)) / 2).min() > 5
    at = (28.3, 25.6)
    if with_probe:
        probe.set_probe_guess(None, arrays["probeGuess"])
    dataset = {"objectGuess": np.ones(shape_yx), "nn_indices": np.arange(len(positions))[:, None]}
    offsets = loader.ScanOffsets.of(positions[:, None, ::-1, None], dataset)
    found = tf_helper.reassemble_position(blob_patches(positions, at), offsets, M=20)
    assert found.ndim == 3
    assert found.dtype == np.complex64
    expected = np.array(at) - (np.array(shape_yx) - 1) / 2
    np.testing.assert_allclose(centroid_yx_px(found), expected, atol=CENTRED_PX)


def test_plain_offsets_are_centred_on_their_middle() -> None:
    positions = skewed_positions(5, lattice=False)
    at = (24.0, 29.5)
    found = tf_helper.reassemble_position(blob_patches(positions, at), positions[:, None, ::-1, None], M=20)
    middle = (positions.min(axis=0) + positions.max(axis=0)) / 2
    np.testing.assert_allclose(centroid_yx_px(found), at - middle, atol=CENTRED_PX)


def test_without_a_probe_the_middle_of_m_pixels_counts() -> None:
    offsets = np.array([[10.0, 4.0], [-10.0, -4.0]])[:, None, :, None]
    patches = np.full((2, N_PX, N_PX, 1), 3 + 0j)
    patches[:, 6:-6, 6:-6] = 2
    found = tf_helper.reassemble_position(patches, offsets, M=20)
    assert found.shape == (28, 40, 1)
    np.testing.assert_allclose(found[8:, 20:], 2)
    np.testing.assert_allclose(found[:8, 20:], 1)


def test_pixels_without_light_do_not_count(arrays: dict[str, NDArray[Any]]) -> None:
    probe.set_probe_guess(None, np.where(abs(arrays["probeGuess"]) > 1, arrays["probeGuess"], 0))
    dark = abs(probe.get_probe()[0]) == 0
    positions = np.round(skewed_positions(6, lattice=True))
    patches = np.where(dark[None, :, :, None], 50.0, 0.5 + 0.5j) * np.ones((len(positions), 1, 1, 1))
    found = tf_helper.reassemble_position(patches, positions[:, None, ::-1, None], M=20)
    lit = abs(found - 1) > 1e-4
    assert lit.mean() > 0.3
    np.testing.assert_allclose(found[lit], 0.5 + 0.5j, rtol=1e-3)


def test_shapes_that_do_not_belong_together_are_refused() -> None:
    patches, offsets = np.ones((3, 8, 8, 1), complex), np.zeros((3, 1, 2, 1))
    cut = ((patches[..., 0], offsets), (patches[:, :7], offsets), (patches, offsets[:2]))
    for bad in cut:
        with pytest.raises(DataError, match="do not belong together"):
            tf_helper.reassemble_position(*bad)


# --- models ---


def check_against_inference(
    found: NDArray[Any],
    raw: RawData,
    bundle: Bundle,
    *,
    lit_share: float,
    tolerance: float,
    **options: Any,
) -> None:
    """Compare what the calls of Ptychodus give with our own inference, where light falls."""
    scan = prepare_scan(raw)
    own = engine.reconstruct(
        engine.from_bundle(bundle),
        scan,
        np.arange(scan.n_patterns),
        execution=PyTorchExecutionConfig(accelerator="cpu"),
        progress=Progress(),
        **options,
    )
    assert np.ptp(abs(own.obj[own.coverage > lit_share])) > 0.1, "a flat object says nothing about places"
    centre = (np.array(raw.objectGuess.shape) - 1) / 2
    corner = own.origin_yx_px - (centre - (np.array(found.shape) - 1) / 2)
    np.testing.assert_allclose(corner, np.round(corner), atol=1e-6)
    y, x = np.round(corner).astype(int)
    rows, columns = np.nonzero(own.coverage > lit_share)
    expected = own.obj[rows, columns]
    np.testing.assert_allclose(found[rows + y, columns + x], expected, atol=tolerance * abs(expected).max())


@pytest.mark.parametrize("switch", ["on", "off"])
def test_the_calls_of_ptychodus_give_the_object_of_our_own_inference(
    raw: RawData, tmp_path: Path, switch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is refined, or the network's alone."""
    bundle = untrained(raw)
    write_bundle(tmp_path / "wts.h5.zip", bundle)
    monkeypatch.setenv(REFINE_VARIABLE, switch)
    found = as_ptychodus_reconstructs(raw, tmp_path)
    options = {"select": selected} if switch == "on" else {}
    check_against_inference(found, raw, bundle, lit_share=0.05, tolerance=SAME_NUMBERS, **options)


def test_groups_are_refined_as_single_patterns_are(raw: RawData, tmp_path: Path) -> None:
    bundle = untrained(raw, gridsize=2)
    write_bundle(tmp_path / "wts.h5.zip", bundle)
    found = as_ptychodus_reconstructs(raw, tmp_path, gridsize=2)
    check_against_inference(found, raw, bundle, lit_share=0.3, tolerance=INTERPOLATED, select=selected)


@pytest.mark.parametrize(("gridsize", "tolerance"), [(1, SAME_NUMBERS), (2, INTERPOLATED)])
def test_a_network_for_whole_scans_needs_no_groups(
    raw: RawData, tmp_path: Path, gridsize: int, tolerance: float
) -> None:
    bundle = untrained(raw, gridsize=2, architecture="unrolled", unrolled_steps=12, unrolled_width=4)
    write_bundle(tmp_path / "wts.h5.zip", bundle)
    found = as_ptychodus_reconstructs(raw, tmp_path, gridsize=gridsize)
    check_against_inference(found, raw, bundle, lit_share=0.3, tolerance=tolerance, select=selected)


@pytest.mark.parametrize("gridsize", [2, 3])
def test_the_patches_of_a_group_are_merged_around_its_middle(
    raw: RawData, gridsize: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The network is replaced by one that knows the truth, so that only the places are judged."""
    bundle = untrained(raw, gridsize=gridsize)
    network = model_manager.DiffractionToObject(bundle)
    dataset = raw.generate_grouped_data(N_PX, K=9, nsamples=1, gridsize=gridsize, seed=1)
    container = loader.load(lambda: dataset, raw.probeGuess)
    middle = (np.array(raw.objectGuess.shape) - 1) / 2
    at = (middle[0] + 1.5, middle[1] - 2.25)
    members = raw.positions_yx_px[container.nn_indices]
    own = blob_patches(members.reshape(-1, 2), at).reshape(*members.shape[:2], N_PX, N_PX)
    rest = iter(own)

    def answer(amplitude: NDArray[Any]) -> NDArray[Any]:
        """Hand the patches out in the order of the groups, however many are asked for at a time."""
        return np.stack(list(itertools.islice(rest, len(amplitude))))

    monkeypatch.setattr(network._model, "network_patches", answer)
    monkeypatch.setenv(REFINE_VARIABLE, "off")
    # The verdict reconstructs in groups of its own.
    monkeypatch.setattr(network, "_reconstructed", lambda *_: None)
    patches = network.predict([container.X * network.intensity_scale, container.local_offsets])
    expected = blob_patches(container.global_offsets[:, 0, ::-1, 0], at) * np.exp(0.3)
    inner = (slice(None), slice(8, -8), slice(8, -8))
    np.testing.assert_allclose(patches[inner], expected[inner], atol=0.02)
    probe.set_probe_guess(None, raw.probeGuess)
    found = tf_helper.reassemble_position(patches / np.exp(np.float32(0.3)), container.global_offsets, M=20)
    np.testing.assert_allclose(centroid_yx_px(found), at - middle, atol=2 * CENTRED_PX)


def test_groups_that_do_not_fit_the_model_are_refused(raw: RawData, tmp_path: Path) -> None:
    write_bundle(tmp_path / "wts.h5.zip", untrained(raw, gridsize=2))
    told = r"trained on patterns of 32 px with gridsize 2 \(got shape \(49, 32, 32, 1\)"
    with pytest.raises(DataError, match=told):
        as_ptychodus_reconstructs(raw, tmp_path)
    network, _ = components.load_inference_bundle(tmp_path)
    groups = np.ones((3, N_PX, N_PX, 4))
    for offsets in ([], [np.zeros((3, 1, 2, 3))], [np.zeros((2, 1, 2, 4))]):
        with pytest.raises(DataError, match="the offsets do not fit"):
            network.predict([groups, *offsets])


def test_a_network_for_whole_scans_must_know_the_scan(raw: RawData, tmp_path: Path) -> None:
    write_bundle(tmp_path / "wts.h5.zip", untrained(raw, architecture="unrolled", unrolled_steps=3))
    network, _ = components.load_inference_bundle(tmp_path)
    dataset = raw.generate_grouped_data(N_PX, gridsize=1)
    container = loader.load(lambda: dataset, raw.probeGuess)
    for inputs in (
        container.X,
        [container.X, np.asarray(container.local_offsets)],
        [container.X[:5], container.local_offsets[:5]],
    ):
        with pytest.raises(DataError, match="reconstructs a whole scan at once"):
            network.predict(inputs)


def test_models_are_saved_and_loaded_by_name(raw: RawData, tmp_path: Path) -> None:
    first = model_manager.DiffractionToObject(untrained(raw))
    models = {"diffraction_to_obj": first}
    path = model_manager.ModelManager.save_multiple_models(models, tmp_path / "m.h5", {}, 1.0)
    assert path == tmp_path / "m.h5.zip"
    loaded = model_manager.ModelManager.load_multiple_models(tmp_path / "m.h5")
    assert set(loaded) == {"autoencoder", "diffraction_to_obj"}
    patterns = np.ones((2, N_PX, N_PX, 1))
    np.testing.assert_array_equal(loaded["autoencoder"].predict(patterns), first.predict(patterns))
    with pytest.raises(KeyError, match="no model of this name"):
        model_manager.ModelManager.load_multiple_models(tmp_path / "m.h5", ["encoder"])
    with pytest.raises(BundleError, match="no model to save"):
        model_manager.ModelManager.save_multiple_models({}, tmp_path / "m.h5")


# --- loading ---


def unpacked(source: Path, folder: Path) -> Path:
    folder.mkdir(parents=True)
    with zipfile.ZipFile(source) as archive:
        for name in archive.namelist():
            (folder / name).write_bytes(archive.read(name))
    return folder


@pytest.fixture
def packed(raw: RawData, tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "source" / "wts.h5.zip", untrained(raw, gridsize=2))


def layouts(packed: Path, folder: Path) -> dict[str, Path]:
    """The four ways in which a model reaches the client's child process."""
    outer = folder / "outer"
    outer.mkdir(parents=True)
    shutil.copy(packed, outer / "wts.h5.zip")
    (outer / "loss.png").write_bytes(b"beside it")
    deep = folder / "deep" / "run"
    deep.mkdir(parents=True)
    shutil.copy(packed, deep / "wts.h5.zip")
    unpacked(packed, folder / "deep_root" / "wts")
    return {
        "folder": packed.parent,
        "content": unpacked(packed, folder / "root"),
        "outer": outer,
        "below": deep.parent,
        "content below": folder / "deep_root",
    }


def test_every_layout_of_a_saved_model_loads(packed: Path, tmp_path: Path, raw: RawData) -> None:
    for name, folder in layouts(packed, tmp_path / "layouts").items():
        params.cfg.pop("intensity_scale", None)
        params.cfg["gridsize"] = 1
        with pytest.raises(KeyError, match="'intensity_scale' is not set"):
            params.get("intensity_scale")
        network, settings = components.load_inference_bundle(folder)
        assert network.bundle.weights.keys() == read_bundle(packed).weights.keys(), name
        assert params.get("intensity_scale") == prepare_scan(raw).record.intensity_scale
        assert (params.get("N"), params.get("gridsize"), settings["gridsize"]) == (N_PX, 2, 2), name


def test_a_folder_without_a_model_says_what_it_holds(tmp_path: Path, packed: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no trained model in this folder \(got nothing"):
        components.load_inference_bundle(tmp_path / "empty")
    with pytest.raises(ValueError, match=r"no such folder \(got nothing"):
        components.load_inference_bundle(tmp_path / "absent")
    with pytest.raises(ValueError, match=r"no such folder \(got a file"):
        components.load_inference_bundle(packed)
    twice = tmp_path / "twice"
    for name in "ab":
        (twice / name).mkdir(parents=True)
        shutil.copy(packed, twice / name)
    with pytest.raises(BundleError, match="which model is meant is not clear"):
        components.load_inference_bundle(twice)


def test_a_bundle_of_pickles_is_refused_and_never_opened(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open/manifest.dill").write_bytes(b"\x80\x04N.")
    (tmp_path / "shut").mkdir()
    with zipfile.ZipFile(tmp_path / "shut/wts.h5.zip", "w") as archive:
        archive.writestr("manifest.dill", b"\x80\x04N.")
    for name in ("open", "shut"):
        with pytest.raises(BundleError, match=r"pickled Python objects.*\(got manifest.dill") as caught:
            components.load_inference_bundle(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_a_cut_bundle_is_refused(packed: Path) -> None:
    packed.write_bytes(packed.read_bytes()[:-200])
    before = dict(params.cfg)
    with pytest.raises(BundleError, match="damaged"):
        components.load_inference_bundle(packed.parent)
    assert dict(params.cfg) == before


# --- training ---


def test_ptychodus_trains_saves_and_leaves_nothing_else(
    arrays: dict[str, NDArray[Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    as_raw(arrays).to_file(tmp_path / "in/train_data.npz")
    as_raw(small_arrays(seed=4)).to_file(tmp_path / "in/test_data.npz")
    test = RawData.from_file(tmp_path / "in/test_data.npz")
    train = RawData.from_file(tmp_path / "in/train_data.npz")
    settings = config(nphotons=0.0, batch_size=3, nepochs=2, N=0)
    before = asdict(settings)
    settings.model.N = train.diff3d.shape[-1]
    amplitude, phase, results = components.run_cdi_example(train, test, settings)
    assert amplitude is phase is None
    assert {key for key in before if before[key] != asdict(settings)[key]} == {"model"}
    (scratch,) = (tmp_path / "in").glob("ptychopinn-training-*")
    assert (scratch / "checkpoints/best-checkpoint.h5.zip").is_file()
    history = results["history"]
    assert len(history["train_loss"]) == len(history["val_loss"]) == 2
    np.testing.assert_array_equal(probe.get_probe(), train.probe_modes)
    model_manager.save(tmp_path / "out")
    components.save_outputs(amplitude, phase, results, str(tmp_path / "out"))
    left = {name: sorted(path.name for path in (tmp_path / name).iterdir()) for name in ("in", "out", "cwd")}
    assert left == {
        "in": ["test_data.npz", "train_data.npz"],
        "out": ["history.json", "loss.png", "wts.h5.zip"],
        "cwd": [],
    }
    saved = read_bundle(tmp_path / "out/wts.h5.zip")
    trained = results["model_instance"].generator.export_weights()
    assert all((saved.weights[name] == trained[name]).all() for name in trained)
    start = initial_weights(architecture_table(saved.model), 42)
    assert any((saved.weights[name] != start[name]).any() for name in start)


def test_groups_are_one_for_each_point_unless_a_number_is_given() -> None:
    many = as_raw(small_arrays(n_px=16, n_y=23, n_x=23, step_px=1.5, defocus_waves=0.2))
    for asked, used in (({}, 529), ({"n_groups": 512}, 529), ({"n_groups": 40}, 40)):
        *_, results = components.run_cdi_example(many, None, config(N=16, batch_size=256, **asked))
        assert len(results["train_container"]) == used
        members = 529 if used == 529 else 40
        assert len(np.unique(results["train_container"].nn_indices)) == members


def test_a_supervised_training_needs_an_object(raw: RawData, arrays: dict[str, NDArray[Any]]) -> None:
    *_, results = components.run_cdi_example(raw, raw, config(model_type="supervised", nepochs=20))
    losses = results["history"]["train_loss"]
    assert losses[-1] < losses[0]
    with pytest.raises(DataError, match="no labels to compare with"):
        components.run_cdi_example(as_raw(arrays, objectGuess=None), raw, config(model_type="supervised"))


def test_settings_that_the_window_hides_do_not_stop_a_supervised_training(
    raw: RawData, caplog: pytest.LogCaptureFixture
) -> None:
    hidden = {
        "mae_weight": 0.5,
        "nll_weight": 0.0,
        "realspace_mae_weight": 0.5,
        "positions_provided": False,
        "gaussian_smoothing_sigma": 0.7,
    }
    settings = config(model_type="supervised", **hidden)
    update_legacy_dict(params.cfg, settings)
    before = asdict(settings)
    components.run_cdi_example(raw, None, settings)
    assert f"has no effect: {', '.join(sorted(hidden))}" in caplog.text
    assert asdict(settings) == before


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "uint32", "int64"])
def test_counts_of_any_integer_type_are_counts(arrays: dict[str, NDArray[Any]], dtype: str) -> None:
    counts = arrays["diff3d"] // (1 + arrays["diff3d"].max() // 250)
    given = as_raw(arrays, diff3d=counts.astype(dtype))
    reference = as_raw(arrays, diff3d=np.sqrt(counts.astype(np.float64)))
    groups = [raw.generate_grouped_data(N_PX, gridsize=1) for raw in (given, reference)]
    amplitudes = [loader.load(lambda dataset=dataset: dataset, None).X for dataset in groups]
    np.testing.assert_allclose(*amplitudes, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"nepochs": 0}, "nepochs is 0"),
        ({"nphotons": -1.0}, "nphotons is -1.0"),
        ({"amp_activation": "tanh"}, "amp_activation is 'tanh'"),
        ({"nll_weight": 0.0}, "no term of the loss compares with data"),
        ({"realspace_mae_weight": 0.5}, "realspace_weight is 0"),
        ({"N": 64}, r"got N=32, expected N=64"),
    ],
)
def test_bad_settings_are_refused_in_one_line_before_anything_is_written(
    raw: RawData, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    raw.to_file(tmp_path / "train_data.npz")
    train = RawData.from_file(tmp_path / "train_data.npz")
    with pytest.raises(ValueError, match=message) as caught:
        components.run_cdi_example(train, train, config(**options))
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["train_data.npz"]


def test_what_the_window_sends_and_nothing_reads_is_named_and_left_out(
    raw: RawData, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ptychodus sends 0.0 and more for the scale of the probe, whatever is trained."""
    seen: list[Any] = []

    def fit(job: Any) -> None:
        seen.append(job.config)
        raise KeyboardInterrupt

    monkeypatch.setattr("ptycho.tf.engine.fit", fit)
    raw.to_file(tmp_path / "train_data.npz")
    train = RawData.from_file(tmp_path / "train_data.npz")
    with pytest.raises(KeyboardInterrupt):
        components.run_cdi_example(train, train, config(probe_scale=0.0, positions_provided=False))
    assert "left out, since it has no effect: positions_provided, probe_scale" in caplog.text
    assert (seen[0].model.probe_scale, seen[0].positions_provided) == (4.0, True)


def test_a_folder_that_cannot_be_written_to_moves_the_checkpoints(
    raw: RawData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw.to_file(tmp_path / "data/train_data.npz")
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    made = components.train_cdi_model.__globals__["tempfile"].mkdtemp

    def refuse(*args: Any, dir: Path | None = None, **options: Any) -> str:  # noqa: A002
        if dir is not None:
            raise PermissionError(13, "Permission denied", str(dir))
        return made(*args, **options)

    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    train = RawData.from_file(tmp_path / "data/train_data.npz")
    components.train_cdi_model(train, None, config())
    (kept,) = (tmp_path / "scratch").glob("ptychopinn-training-*/checkpoints/last.h5.zip")
    assert read_bundle(kept).model.N == N_PX


def test_an_output_folder_of_the_settings_keeps_the_checkpoints(raw: RawData, tmp_path: Path) -> None:
    settings = config()
    settings.output_dir = tmp_path / "run"
    components.run_cdi_example(raw, None, settings)
    model_manager.save(tmp_path / "saved")
    assert (tmp_path / "run/checkpoints/last.h5.zip").is_file()


def test_nothing_is_saved_before_a_training(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="this process has no trained model"):
        model_manager.save(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_training_can_stitch_the_scan_that_judges_it(raw: RawData, tmp_path: Path) -> None:
    amplitude, phase, results = components.run_cdi_example(raw, raw, config(), do_stitching=True)
    obj = results["reconstructed_obj"]
    assert amplitude is not None
    assert phase is not None
    np.testing.assert_allclose(amplitude * np.exp(1j * phase), obj, atol=1e-5)
    turned, *_ = components.reassemble_cdi_image(raw, config(), transpose=True)
    np.testing.assert_allclose(turned, amplitude.T, atol=1e-5)
    mirrored, *_ = components.reassemble_cdi_image(raw, config(), flip_x=True)
    assert mirrored.shape == amplitude.shape
    assert abs(mirrored - amplitude).max() > 1e-3
    files = components.save_outputs(amplitude[..., None], phase[..., None], {}, tmp_path)
    assert [path.name for path in files] == ["reconstructed_amplitude.png", "reconstructed_phase.png"]


def test_the_other_backend_trains_through_the_same_call(
    raw: RawData, tmp_path: Path, require: Callable[[str], None]
) -> None:
    require("torch")
    settings = config(backend="pytorch")
    *_, results = components.run_cdi_example_with_backend(raw, None, settings)
    assert results["backend"] == "pytorch"
    model_manager.save(tmp_path)
    network, _ = components.load_inference_bundle_with_backend(tmp_path, settings)
    assert network.bundle.backend == "pytorch"
    assert as_ptychodus_reconstructs(raw, tmp_path).ndim == 2


# --- data ---


def test_data_are_read_in_part_and_with_other_axes(raw: RawData, tmp_path: Path) -> None:
    raw.to_file(tmp_path / "scan.npz")
    path = tmp_path / "scan.npz"
    np.testing.assert_array_equal(components.load_data(path, n_images=5).xcoords, raw.xcoords[:5])
    drawn = [components.load_data(path, n_subsample=6, subsample_seed=seed).xcoords for seed in (1, 1, 2)]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert (drawn[0] != drawn[2]).any()
    moved = components.load_data(path, flip_x=True, swap_xy=True, coord_scale=2.0)
    np.testing.assert_array_equal(moved.xcoords, -2 * raw.ycoords)
    np.testing.assert_array_equal(moved.ycoords, 2 * raw.xcoords)
    assert moved.objectGuess is None
    assert components.load_data(path).objectGuess is not None


def test_a_container_follows_the_settings(raw: RawData) -> None:
    made = components.create_ptycho_data_container(raw, config(gridsize=2, n_groups=11))
    assert made.X.shape == (11, N_PX, N_PX, 4)
    assert components.create_ptycho_data_container(made, config()) is made
    assert len(components.create_ptycho_data_container(raw, config(gridsize=2))) <= raw.n_patterns
