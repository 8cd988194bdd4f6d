"""Facts about bad pixels and dark patterns with PyTorch: they take no part, and spoil nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from masked_scans import (
    EVERYTHING,
    FLAT,
    dark_scan,
    dark_training,
    nrmse,
    reconstructed,
    with_gaps,
    written,
)

from ptycho.scan import open_scan
from ptycho_torch import engine


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("masked"))


def test_a_gap_in_the_detector_costs_little_and_what_stands_in_it_nothing(whole: Path) -> None:
    files = [whole, with_gaps(whole, "marked.npz", np.nan), with_gaps(whole, "other.npz", 2.0**32 - 1)]
    files.append(with_gaps(whole, "zeros.npz", 0.0, told=False))
    best, marked, other, zeros = (reconstructed(engine, open_scan(path), polish=FLAT) for path in files)
    assert nrmse(best, whole) < 0.03
    assert nrmse(marked, whole) < 1.4 * nrmse(best, whole)
    assert nrmse(zeros, whole) > 5 * nrmse(best, whole)
    np.testing.assert_array_equal(marked.obj, other.obj)


@pytest.mark.slow
def test_the_network_that_comes_along_does_not_see_the_gap(whole: Path) -> None:
    files = (whole, with_gaps(whole, "marked.npz", np.nan))
    best, marked = (nrmse(reconstructed(engine, open_scan(path), probe_first=True), whole) for path in files)
    assert best < 0.03
    assert marked < 1.4 * best


@pytest.mark.parametrize("bad", [False, True])
@pytest.mark.parametrize("likelihood", ["amplitude", "poisson"])
def test_a_dark_pattern_darkens_no_more_than_its_own_place(
    bad: bool, likelihood: str, tmp_path: Path
) -> None:
    scan = dark_scan(tmp_path, [20, 21, 27], bad=bad)
    polish = replace(EVERYTHING, likelihood=likelihood)
    found = reconstructed(engine, scan, polish=polish)
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
