"""Facts about bad pixels and dark patterns with PyTorch: they take no part, and spoil nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from judges import (
    FLOAT64,
    SmallScan,
    as_array,
    assert_twin,
    gradient_mismatch,
    random_complex,
)
from masked_scans import (
    EVERYTHING,
    FLAT,
    as_cxi,
    dark_scan,
    dark_training,
    in_frame_of,
    masked_small_scan,
    nrmse,
    poisson_misfit,
    reconstructed,
    with_gaps,
    written,
)
from numpy.typing import NDArray

from ptycho import physics as reference
from ptycho.data.optics import FileOptions
from ptycho.files.reader import open_scan
from ptycho.networks.architectures import NOISE_FLOOR
from ptycho.solver.schedule import STEP_DAMPING
from ptycho_torch import engine, solver

Array = NDArray[Any]


def chunks(scan: SmallScan) -> list[solver.Chunk]:
    return [solver.Chunk(*map(torch.from_numpy, part)) for part in scan.chunks(9)]


def test_a_poisson_step_descends_on_the_likelihood_of_measured_pixels() -> None:
    scan = masked_small_scan()

    def gradient(measured: SmallScan) -> Callable[[Array], Array]:
        def found(obj: Array) -> Array:
            return as_array(
                sum(
                    solver.chunk_gradient(torch.from_numpy(obj), chunk, "poisson")
                    for chunk in chunks(measured)
                )
            )

        return found

    start = 1 + 0.1 * random_complex(np.random.default_rng(3), *scan.obj.shape)
    zeros = scan._replace(amplitude=np.maximum(scan.amplitude, 0))
    assert gradient_mismatch(lambda obj: poisson_misfit(obj, scan), gradient(scan), start) < 1e-5
    assert gradient_mismatch(lambda obj: poisson_misfit(obj, scan), gradient(zeros), start) > 1e-2


def test_the_noise_is_what_measured_pixels_leave_unexplained() -> None:
    scan = masked_small_scan()
    weight = reference.illumination(scan.probes, scan.corners_yx, scan.obj.shape)
    patches = reference.extract_patches(1.1 * scan.obj, scan.corners_yx, scan.probes.shape[-1])
    missed = (scan.amplitude - reference.diffracted_amplitude(patches, scan.probes))[scan.amplitude >= 0]
    expected = np.sqrt((missed**2).mean() / (weight + STEP_DAMPING * weight.max())) + NOISE_FLOOR
    found = solver.noise_level(torch.from_numpy(1.1 * scan.obj), chunks(scan), torch.from_numpy(weight))
    assert_twin(expected, found, FLOAT64)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("masked"))


def test_a_gap_in_the_detector_costs_little_and_what_stands_in_it_nothing(whole: Path) -> None:
    files = [whole, with_gaps(whole, "marked.npz", np.nan), with_gaps(whole, "other.npz", 2.0**32 - 1)]
    files.append(with_gaps(whole, "zeros.npz", 0.0, told=False))
    keep = FileOptions(keep_pixels=True)
    scans = (open_scan(path, options=keep) for path in files)
    best, marked, other, zeros = (reconstructed(engine, scan, refine=FLAT) for scan in scans)
    scan = open_scan(as_cxi(whole, "masked.cxi"))
    np.testing.assert_array_equal(scan.raw.bad_pixels, open_scan(files[1]).raw.bad_pixels)
    cxi = in_frame_of(reconstructed(engine, scan, refine=FLAT), scan, whole)
    assert nrmse(best, whole) < 0.03
    assert nrmse(cxi, whole) < 1.4 * nrmse(best, whole)
    assert nrmse(marked, whole) < 1.4 * nrmse(best, whole)
    assert nrmse(zeros, whole) > 5 * nrmse(best, whole)
    np.testing.assert_array_equal(marked.obj, other.obj)


@pytest.mark.slow
def test_the_network_that_comes_along_does_not_see_the_gap(whole: Path) -> None:
    files = (whole, with_gaps(whole, "marked.npz", np.nan))
    best, marked = (nrmse(reconstructed(engine, open_scan(path), fit_probe=True), whole) for path in files)
    assert best < 0.03
    assert marked < 1.4 * best


@pytest.mark.parametrize("bad", [False, True])
@pytest.mark.parametrize("likelihood", ["amplitude", "poisson"])
def test_a_dark_pattern_darkens_no_more_than_its_own_place(
    bad: bool, likelihood: str, tmp_path: Path
) -> None:
    scan = dark_scan(tmp_path, [20, 21, 27], bad=bad)
    refine = replace(EVERYTHING, likelihood=likelihood)
    found = reconstructed(engine, scan, refine=refine)
    for values in (found.obj, found.probe, found.coverage, found.positions_yx_px, found.misfit):
        assert np.isfinite(values).all()
    assert found.misfit[-1] < 0.05
    assert np.abs(np.abs(found.obj[found.scanned]).mean() - 0.9) < 0.2


@pytest.mark.parametrize("loss", ["amplitude", "mae", "poisson"])
def test_a_batch_of_dark_patterns_ends_no_training(loss: str, tmp_path: Path) -> None:
    dark = list(range(0, 64, 5))
    job = dark_training(dark_scan(tmp_path, dark), tmp_path / "run", loss, "cnn")
    assert np.isin(job.groups.indices, dark).any()
    result = engine.fit(job)
    assert np.isfinite(result.history["train_loss"] + result.history["val_loss"]).all()
