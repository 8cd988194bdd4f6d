"""The difference map, in both backends: it finds what a refinement misses where few numbers are measured."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from judges import assert_twin
from numpy.typing import NDArray
from runs import Told, error, reconstructed

from ptycho import physics
from ptycho.data.npz import write_npz
from ptycho.data.scan import PatternStore, Scan
from ptycho.files.reader import open_scan
from ptycho.geometry.canvas import plan_canvas
from ptycho.process.progress import Progress
from ptycho.run import reconstruction
from ptycho.solver import difference_map as module
from ptycho.solver.difference_map import difference_map
from ptycho.solver.options import RefineOptions

N_PX, GRID, STEP = 32, 6, 16
BACKENDS = ["pytorch", "tensorflow"]
NOISELESS = 1e12
ALIKE = 1e-4
"""Two frameworks in single precision after five steps."""


def smooth(rng: np.random.Generator, side: int, sigma_px: float) -> NDArray[np.float64]:
    from scipy.ndimage import gaussian_filter

    values = gaussian_filter(rng.normal(size=(side, side)), sigma_px, mode="wrap")
    return (values - values.min()) / np.ptp(values)


def hard_scan(path: Path, *, seed: int = 0, photons: float = 0.0, step: int = STEP) -> Path:
    """Write a scan whose probe fills the window and whose patterns overlap by half: 1.5 numbers for each that
    is sought."""
    rng = np.random.default_rng(seed)
    side = (GRID - 1) * step + N_PX
    obj = (0.3 + 0.7 * smooth(rng, side, 1.2)) * np.exp(4j * smooth(rng, side, 1.2))
    wave = np.exp(9j * smooth(rng, N_PX, 2.0)) * np.sqrt(photons or NOISELESS) / N_PX
    places = np.stack(np.meshgrid(*[np.arange(GRID) * step] * 2, indexing="ij"), -1).reshape(-1, 2)
    counts = physics.diffracted_intensity(physics.extract_patches(obj, places, N_PX), wave[None, None])
    counts = rng.poisson(counts) if photons else counts
    arrays: dict[str, Any] = {
        "diff3d": np.sqrt(counts).astype(np.float32),
        "ycoords": places[:, 0] + (N_PX - 1) / 2,
        "xcoords": places[:, 1] + (N_PX - 1) / 2,
        "probeGuess": wave.astype(np.complex64),
        "objectGuess": obj.astype(np.complex64),
        "object_is_truth": np.array(True),
        "nphotons": photons or NOISELESS,
    }
    write_npz(path, arrays)
    return path


@pytest.fixture(scope="module")
def noiseless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hard_scan(tmp_path_factory.mktemp("hard") / "hard.npz")


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_wrong_minimum_is_noticed_and_left(
    backend: str, noiseless: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAP_ROUND", (60, 60))
    progress = Told()
    found = reconstructed(open_scan(noiseless), backend, RefineOptions(40, start="flat"), progress=progress)
    assert progress.phases[1:4] == [("refining", 40), ("difference map", 60), ("refining", 20)]
    assert found.misfit[39] ** 0.5 > 2e-3
    assert found.misfit[-1] ** 0.5 < 1e-6
    assert error(noiseless, found) < 1e-4
    assert any(note.startswith("difference map: root of the misfit 0.00") for note in progress.lines)


def test_what_left_a_wrong_minimum_is_not_averaged_with_a_network(
    noiseless: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAP_ROUND", (60, 60))
    how = RefineOptions(40, start="flat", likelihood="poisson")
    chosen = reconstruction.Selection(refine=how, refined_share=0.5, record={"object": "both"})
    found = reconstructed(open_scan(noiseless), "pytorch", select=lambda *_: chosen)
    assert found.chosen == {"object": "both"}
    assert error(noiseless, found) < 1e-4


def mapped_five_times(scan: Scan, chunks_of: type, primitives: Any, tensor: Any) -> NDArray[np.complex64]:
    plan = plan_canvas(scan.positions_yx_px, scan.n_px)
    with PatternStore(scan, Progress()) as store:
        chunks = chunks_of(store, plan, np.arange(scan.n_patterns), tensor(scan.probe))
        flat = tensor(np.ones(plan.shape_yx, np.complex64))
        return np.asarray(difference_map(primitives, chunks, flat, 5))


def test_both_backends_map_alike(noiseless: Path) -> None:
    import torch

    from ptycho.tf import data as tf_data
    from ptycho.tf import solver as tf_solver
    from ptycho.tf.runtime import tf
    from ptycho_torch import data as torch_data
    from ptycho_torch import solver as torch_solver

    scan = open_scan(noiseless)
    first = mapped_five_times(scan, torch_data.ScanChunks, torch_solver.PRIMITIVES, torch.from_numpy)
    second = mapped_five_times(scan, tf_data.ScanChunks, tf_solver.PRIMITIVES, tf.constant)
    assert_twin(first, second, ALIKE)
    assert np.abs(first - 1).max() > 0.1


def test_who_asks_gets_it_in_noise_too_and_never_a_worse_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, progress = hard_scan(tmp_path / "noisy.npz", photons=3e7), Told()
    with monkeypatch.context() as context:
        context.setattr(reconstruction, "tells_few", lambda *_: False)
        plain = reconstructed(open_scan(path), "pytorch", RefineOptions(30, start="flat"), progress=progress)
    assert [name for name, _ in progress.phases] == ["reading", "refining"]
    asked = reconstructed(
        open_scan(path), "pytorch", RefineOptions(30, start="difference-map"), progress=progress
    )
    assert ("difference map", 200) in progress.phases
    assert asked.misfit[-1] <= plain.misfit[-2]
    assert error(path, asked) < 1.05 * error(path, plain)


def test_a_scan_of_many_numbers_is_not_looked_at_again(tmp_path: Path) -> None:
    path, progress = hard_scan(tmp_path / "dense.npz", step=6), Told()
    reconstructed(open_scan(path), "pytorch", RefineOptions(5, start="flat"), progress=progress)
    assert [name for name, _ in progress.phases] == ["reading", "refining"]


def test_the_command_says_what_the_map_found(
    noiseless: Path, tmp_path: Path, infer_command: Callable[..., Any]
) -> None:
    done = infer_command(Path("pretrained"), noiseless, tmp_path, "--refine", 20, "--start", "difference-map")
    assert done.code == 0, done.err
    assert "difference map: root of the misfit" in done.out
