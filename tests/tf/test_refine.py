"""Facts about the joint refinement in TensorFlow that PyTorch states in tests/torch/test_refine.py."""

from __future__ import annotations

import numpy as np
import pytest

from ptycho.data import chunks as data
from ptycho.data.prepare import prepare_scan
from ptycho.data.scan import PatternStore
from ptycho.geometry.canvas import CANVAS_MULTIPLE_PX, plan_canvas
from ptycho.process.progress import Progress
from ptycho.raw_data import RawData
from ptycho.simulation.simulate import SimulationOptions, simulate
from ptycho.solver.options import RefineOptions
from ptycho.tf.data import ScanChunks
from ptycho.tf.runtime import tf
from ptycho.tf.solver import refine

KEYS = ("xcoords", "ycoords", "diff3d", "probeGuess", "scan_index", "objectGuess")
SAME_PX = 2e-4
"""Single precision over a dozen steps."""


@pytest.mark.parametrize("patterns_per_chunk", [1, 4])
def test_positions_do_not_depend_on_how_the_scan_is_cut(
    patterns_per_chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays = simulate(SimulationOptions(n_px=32, n_y=7, n_x=7, step_px=3.0, seed=4))
    # The lower rows lie behind an absorber: chunks there have small normal matrices of their own.
    dim = (arrays["ycoords"] > np.median(arrays["ycoords"]))[:, None, None]
    errors = np.random.default_rng(0).uniform(-0.5, 0.5, (2, len(arrays["xcoords"])))
    wrong = arrays | {
        "diff3d": np.where(dim, arrays["diff3d"] // 400, arrays["diff3d"]),
        "ycoords": arrays["ycoords"] + errors[0],
        "xcoords": arrays["xcoords"] + errors[1],
    }
    scan = prepare_scan(RawData.from_coords_without_pc(**{key: wrong[key] for key in KEYS}))
    plan = plan_canvas(scan.positions_yx_px, scan.n_px, multiple_px=CANVAS_MULTIPLE_PX)
    found = []
    for pixels in (2**20, patterns_per_chunk * 32**2):
        monkeypatch.setattr(data, "KEPT_PIXELS", 0)
        monkeypatch.setattr(data, "CHUNK_PIXELS", pixels)
        with PatternStore(scan, Progress()) as store:
            chunks = ScanChunks(store, plan, np.arange(scan.n_patterns), tf.constant(scan.probe))
            refine(chunks, tf.ones(plan.shape_yx, tf.complex64), RefineOptions(12, positions=True))
            found.append(chunks.shifts.numpy().copy())
    assert np.abs(found[0] - plan.shifts_yx_px).max() > 0.1
    np.testing.assert_allclose(found[1], found[0], atol=SAME_PX)
