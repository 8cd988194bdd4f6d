"""Scans of very few or very small patterns: both backends reconstruct them, or refuse them in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ptycho.config.config import ModelConfig, PyTorchExecutionConfig, TrainingConfig
from ptycho.data.scaling import make_scale_record, scaled_probe
from ptycho.data.scan import Scan
from ptycho.data.selection import training_groups
from ptycho.process.progress import Progress
from ptycho.raw_data import RawData
from ptycho.run.engines import find_model, fitted_model, load_engine
from ptycho.run.job import TrainingJob
from ptycho.simulation.simulate import SimulationOptions, simulate
from ptycho.solver.options import RefineOptions

BACKENDS = ("pytorch", "tensorflow")
LAYOUTS = {"row": lambda count: (1, count), "column": lambda count: (count, 1)}
"""Layout -> rows and columns; a square is a grid."""
CPU = PyTorchExecutionConfig(accelerator="cpu", logger_backend=None, enable_checkpointing=False)
MODELS = {
    "unrolled": {"unrolled_steps": 4, "unrolled_width": 4},
    "cnn": {"n_filters_scale": 1},
}


def few(shape: tuple[int, int], n_px: int) -> Scan:
    """Simulate a scan of so many rows and columns, as an engine takes it."""
    options = SimulationOptions(
        n_px=n_px, n_y=shape[0], n_x=shape[1], step_px=2.0, probe="disc", defocus_waves=0.3, seed=3
    )
    arrays = simulate(options)
    raw = RawData(
        arrays["xcoords"],
        arrays["ycoords"],
        None,
        None,
        arrays["diff3d"],
        arrays["probeGuess"],
        None,
        pattern_axis=0,
    )
    record = make_scale_record(raw)
    return Scan(raw, record, scaled_probe(raw, record), raw.positions_yx_px, "few")


def shapes(count: int) -> list[tuple[int, int]]:
    """Return the layouts of a number of patterns: a row, a column, and a square where it is one."""
    side = round(count**0.5)
    square = [(side, side)] if side * side == count and side > 1 else []
    return [*(layout(count) for layout in LAYOUTS.values()), *square]


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("n_px", [16, 17, 24])
def test_one_to_nine_patterns_are_reconstructed(backend: str, n_px: int) -> None:
    engine = load_engine(backend)
    stored = engine.load(find_model(Path("pretrained"), backend))
    for count in range(1, 10) if n_px == 17 else (1, 2, 7):
        for shape in shapes(count) if count in (2, 4) else shapes(count)[:1]:
            scan = few(shape, n_px)
            model = fitted_model(engine, stored, scan, "pretrained")
            for refine in (None, RefineOptions(3, start="flat", probe=True, positions=True, frames=True)):
                found = engine.reconstruct(
                    model,
                    scan,
                    np.arange(count),
                    execution=CPU,
                    progress=Progress(),
                    refine=refine,
                    fit_probe=refine is None and count in (1, 5),
                )
                assert np.isfinite(found.obj).all(), (shape, refine)
                assert found.obj[found.coverage > 0.5].std() > 0, (shape, refine)


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("architecture", sorted(MODELS))
@pytest.mark.parametrize("count", [1, 2, 7])
def test_a_few_patterns_can_be_trained_on(
    backend: str, architecture: str, count: int, tmp_path: Path
) -> None:
    scan = few((1, count), 16)
    options: dict[str, Any] = MODELS[architecture]
    model = ModelConfig(N=16, gridsize=1, architecture=architecture, **options)
    config = TrainingConfig(
        model, output_dir=tmp_path, nepochs=1, batch_size=4, probe_trainable=True, torch_loss_mode="amplitude"
    )
    engine = load_engine(backend)
    groups, validation = training_groups(scan, config, validate=True)
    result = engine.fit(TrainingJob(config, CPU, scan, groups, validation))
    found = engine.reconstruct(
        result.model, scan, np.arange(count), execution=CPU, progress=Progress(), patch_weighting="probe"
    )
    assert np.isfinite(result.history["train_loss"]).all()
    assert np.isfinite(found.obj).all()
