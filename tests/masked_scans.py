"""Scans with bad pixels and dark patterns, and what every backend has to make of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from file_makers import Instrument, cxi_tree, write_tree
from judges import SmallScan, small_scan
from numpy.typing import NDArray

from ptycho.config.config import ModelConfig, PyTorchExecutionConfig, TrainingConfig
from ptycho.data.npz import read_npz, write_npz
from ptycho.data.optics import FileOptions
from ptycho.data.reconstruction import Reconstruction
from ptycho.data.scaling import NOT_MEASURED
from ptycho.data.scan import Scan
from ptycho.data.selection import training_groups
from ptycho.evaluation.metrics import score
from ptycho.files.reader import open_scan
from ptycho.physics import diffracted_intensity, extract_patches
from ptycho.process.progress import Progress
from ptycho.run.engines import find_model, fitted_model
from ptycho.run.job import TrainingJob
from ptycho.run.outputs import truth_on_canvas
from ptycho.simulation.simulate import SimulationOptions, write_scan
from ptycho.solver.options import RefineOptions
from ptycho.solver.schedule import POISSON_FLOOR

CPU = PyTorchExecutionConfig(accelerator="cpu", logger_backend=None)
EVERYTHING = RefineOptions(
    14, probe=True, positions=True, frames=True, likelihood="poisson", start="flat", tv=1e-4
)
FLAT = RefineOptions(40, start="flat")


def gaps(n_px: int, share: float = 0.01, seed: int = 0) -> NDArray[np.bool_]:
    """Return a detector with a gap of four rows and of four columns beside the beam, and some dead pixels."""
    bad = np.random.default_rng(seed).random((n_px, n_px)) < share
    low = n_px // 2 + 3
    bad[low : low + 4], bad[:, low : low + 4] = True, True
    return bad


def masked_small_scan() -> SmallScan:
    """Return the small scan with a gap, with other bad pixels in every pattern, and with one bad pattern."""
    scan = small_scan(noisy=True)
    bad = np.random.default_rng(4).random(scan.amplitude.shape) < 0.2
    bad[:, 9:11], bad[3] = True, True
    return scan._replace(amplitude=np.where(bad, NOT_MEASURED, scan.amplitude))


def poisson_misfit(obj: NDArray[Any], scan: SmallScan) -> float:
    """Return a quarter of the negative Poisson log-likelihood of measured pixels, with the steps' floor."""
    patches = extract_patches(obj, scan.corners_yx, scan.probes.shape[-1])
    total = 0.0
    for expected, measured in zip(diffracted_intensity(patches, scan.probes), scan.amplitude, strict=True):
        counts, expected = measured[measured >= 0] ** 2, expected[measured >= 0]
        if len(counts):
            floor = POISSON_FLOOR * min(counts.mean(), 1.0)
            total += (expected - (counts + floor) * np.log(expected + floor)).sum()
    return float(total) / 4


def written(folder: Path, *, n_px: int = 64, points: int = 8, seed: int = 3) -> Path:
    """Write a scan with its truth and nothing wrong."""
    options = SimulationOptions(n_px=n_px, n_y=points, n_x=points, step_px=n_px / 13, photons=1e6, seed=seed)
    write_scan(folder / "whole.npz", options)
    return folder / "whole.npz"


def changed(whole: Path, name: str, **changes: Any) -> Path:
    """Write a copy of a scan with other arrays."""
    path = whole.with_name(name)
    write_npz(path, {**read_npz(whole), **changes})
    return path


def with_gaps(whole: Path, name: str, value: float, *, told: bool = True) -> Path:
    """Write a copy of a scan with a value in the gaps of the detector, on request without a mask."""
    patterns = read_npz(whole, ["diff3d"])["diff3d"].astype(np.float32)
    bad = gaps(patterns.shape[-1])
    patterns[:, bad] = value
    return changed(whole, name, diff3d=patterns, **({"bad_pixels": bad} if told else {}))


def as_cxi(whole: Path, name: str) -> Path:
    """Write the scan as a CXI file whose mask covers the gaps; these hold the largest number of the type."""
    arrays = read_npz(whole)
    frames = arrays["diff3d"].astype(np.uint32)
    bad = gaps(frames.shape[-1])
    frames[:, bad] = 2**32 - 1
    instrument = Instrument(n_px=frames.shape[-1], pixel_yx_m=(75e-6, 75e-6))
    positions = np.stack([arrays["xcoords"], arrays["ycoords"], 0 * arrays["xcoords"]], axis=1)
    tree = cxi_tree(instrument, frames, positions * instrument.object_pixel_yx_m[0])
    tree["entry_1/instrument_1/source_1/illumination"] = arrays["probeGuess"]
    tree["entry_1/instrument_1/detector_1/mask"] = bad.astype(np.uint32)
    return write_tree(whole.with_name(name), tree)


def in_frame_of(found: Reconstruction, scan: Scan, whole: Path) -> Reconstruction:
    """Move a reconstruction to where the positions of the file with the truth put it."""
    arrays = read_npz(whole, ["ycoords", "xcoords"])
    known = np.stack([arrays["ycoords"], arrays["xcoords"]], axis=1)
    return replace(found, origin_yx_px=found.origin_yx_px - (scan.positions_yx_px - known).mean(axis=0))


def reconstructed(engine: ModuleType, scan: Scan, model: Any = None, **options: Any) -> Reconstruction:
    """Reconstruct with the network that comes with the package, or from flat."""
    if model is None:
        path = find_model(Path("pretrained"), "tensorflow" if "tf" in engine.__name__ else "pytorch")
        model = fitted_model(engine, engine.load(path), scan, "test")
    return engine.reconstruct(model, scan, scan.usable, execution=CPU, progress=Progress(), **options)


def nrmse(found: Reconstruction, whole: Path) -> float:
    """Return the error of an object against the truth."""
    truth, mask = truth_on_canvas(whole, found) or (None, None)
    return float(score(found.obj, truth, mask)["complex_nrmse"])


def dark_scan(folder: Path, dark: list[int], *, bad: bool = False) -> Scan:
    """Return a scan in which some patterns take part although they are dark, or although no pixel is good."""
    whole = written(folder, n_px=32, points=8)
    patterns = read_npz(whole, ["diff3d"])["diff3d"].copy()
    mask = np.zeros(patterns.shape, dtype=bool)
    patterns[dark], mask[dark] = 0, bad
    path = changed(whole, f"dark_{bad}.npz", diff3d=patterns, bad_pixels=mask)
    scan = open_scan(path, options=FileOptions(keep_frames=True))
    assert len(scan.usable) == len(patterns)
    return scan


def dark_training(scan: Scan, folder: Path, loss: str, architecture: str) -> TrainingJob:
    """Return a training run in which whole batches are dark."""
    network = ModelConfig(N=32, architecture=architecture, n_filters_scale=1, unrolled_steps=3, gridsize=1)  # type: ignore[arg-type]
    settings: dict[str, Any] = {"torch_loss_mode": loss, "intensity_scale_trainable": False}
    config = TrainingConfig(network, nepochs=1, batch_size=1, n_groups=20, output_dir=folder, **settings)
    groups, validation = training_groups(scan, config, validate=True)
    return TrainingJob(config, CPU, scan, groups, validation)
