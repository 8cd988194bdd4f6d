"""Every check stays silent where nothing is wrong."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from ptycho.data.prepare import prepare_scan
from ptycho.files.reader import open_scan
from ptycho.raw_data import RawData


def test_no_check_says_a_word_about_random_simulated_scans(
    honest_scans: list[RawData], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        for raw in honest_scans:
            scan = prepare_scan(raw, name=raw.source)
            assert scan.findings == (), raw.source
            assert scan.usable.size == raw.n_patterns
            assert scan.raw.bad_pixels is None
            np.testing.assert_array_equal(scan.raw.diff3d, raw.diff3d)
    assert caplog.text == ""


def test_no_check_says_a_word_about_the_scan_that_comes_with_the_project(demo_scan: Path) -> None:
    scan = open_scan(demo_scan)
    assert scan.findings == ()
    assert scan.usable.size == scan.n_patterns
