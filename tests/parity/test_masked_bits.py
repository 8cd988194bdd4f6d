"""What stands where nothing was measured changes no bit of a run: of its losses, its object, its verdict."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from masked_scans import gaps

from ptycho.config.config import InferenceConfig, ModelConfig, PyTorchExecutionConfig, TrainingConfig
from ptycho.data.npz import read_npz, write_npz
from ptycho.run import pipeline
from ptycho.simulation.simulate import SimulationOptions, simulate

pytestmark = pytest.mark.slow
BACKENDS = ("pytorch", "tensorflow")
CPU = PyTorchExecutionConfig(accelerator="cpu", logger_backend=None)
GARBAGE = {
    "the mask of the file": (np.nan, -1.0),
    "--mask": (65535.0, np.nan, -1.0),
    "--saturation": (65535.0, 1e9),
}
"""Where the mask comes from -> what stands under it; a saturated value is a large one."""
LIMIT = 40_000.0
NETWORKS = {
    "unrolled": ModelConfig(N=32, architecture="unrolled", unrolled_steps=2, unrolled_width=4),
    "cnn": ModelConfig(N=32, architecture="cnn", n_filters_scale=1, gridsize=2),
}


def scan_with(path: Path, garbage: float, place: str) -> dict[str, Any]:
    """Write a scan with garbage under its mask; return the settings that know of the mask."""
    arrays = simulate(SimulationOptions(n_px=32, n_y=6, n_x=6, step_px=3.0, photons=1e5, seed=3))
    patterns = arrays["diff3d"].astype(np.float32)
    assert patterns.max() < LIMIT
    bad = gaps(32) & (np.random.default_rng(2).random(patterns.shape) < 0.9)
    patterns[bad] = garbage
    own = {"bad_pixels": bad} if place == "the mask of the file" else {}
    write_npz(path, {**arrays, "diff3d": patterns, **own})
    np.save(path.with_name("bad.npy"), bad)
    mask = {"mask_file": path.with_name("bad.npy")} if place == "--mask" else {}
    return mask or ({"saturation": LIMIT} if place == "--saturation" else {})


def outcome(folder: Path) -> dict[str, Any]:
    """Return everything that a run found out."""
    stored = read_npz(folder / "reconstruction.npz")
    found = {key: stored[key] for key in stored if key not in ("file_options", "pattern_index")}
    for name in ("metrics.json", "history.json"):
        if (folder / name).is_file():
            found[name] = json.loads((folder / name).read_text(encoding="utf-8"))
    return found


def ran(folder: Path, garbage: float, place: str, backend: str, network: str) -> list[dict[str, Any]]:
    """Train, and reconstruct with what was trained and every refinement; return what both found out."""
    folder.mkdir()
    path = folder / "scan.npz"
    told = scan_with(path, garbage, place) | {"backend": backend, "measurement_domain": "counts"}
    trained = TrainingConfig(
        NETWORKS[network], train_data_file=path, output_dir=folder / "run", nepochs=1, n_groups=8,
        batch_size=4, torch_loss_mode="amplitude", intensity_scale_trainable=False, **told,
    )  # fmt: skip
    pipeline.train(trained, CPU)
    refined = InferenceConfig(
        ModelConfig(), folder / "run", path, output_dir=folder / "out", refine_steps=5, refine_probe=True,
        refine_positions=True, refine_frames=True, refine_likelihood="poisson", **told,
    )  # fmt: skip
    pipeline.infer(refined, CPU)
    return [outcome(folder / name) for name in ("run", "out")]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("place", "network"),
    [("the mask of the file", "cnn"), ("--mask", "unrolled"), ("--saturation", "unrolled")],
)
def test_no_bit_of_a_run_depends_on_what_stands_under_a_mask(
    place: str, network: str, backend: str, tmp_path: Path
) -> None:
    first, *others = (
        ran(tmp_path / str(number), garbage, place, backend, network)
        for number, garbage in enumerate(GARBAGE[place])
    )
    assert first[0]["history.json"]["train_loss"]
    assert "verdict" in first[1]["metrics.json"]
    assert first[1]["bad_pixels"].shape == (36, 32, 32)
    for other in others:
        for one, two in zip(first, other, strict=True):
            assert one.keys() == two.keys()
            for key, value in one.items():
                np.testing.assert_array_equal(two[key], value, err_msg=f"{place} {key}")
