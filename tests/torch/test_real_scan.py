"""A measured scan, a Siemens star of 30 spokes, through both commands as it is."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ptycho.data.npz import read_npz

Command = Callable[..., Any]
SPOKES = 30
RINGS_PX = (100.0, 120.0, 140.0, 160.0)
SPOKE_SHARE = 0.5
"""Share of the angular variation of the phase that the 30-fold harmonic must hold; 0.8 after two epochs."""
SPOKE_PHASE_RAD = 0.3
"""Amplitude of that harmonic; about 0.6 rad after two epochs."""


@pytest.fixture(scope="module")
def star_scan() -> Path:
    """Return the measured scan, or skip where it is not beside the checkout."""
    beside = Path(__file__).resolve().parents[3] / "shared" / "data"
    path = Path(os.environ.get("PTYCHO_SHARED_DATA", beside)) / "aps_siemens_star.npz"
    if not path.is_file():
        pytest.skip(f"the measured scan is not there ({path}); set PTYCHO_SHARED_DATA to its folder")
    return path


def spoke_contrast(
    phase_rad: NDArray[Any], centre_yx_px: tuple[float, float], spokes: int = SPOKES
) -> tuple[float, float]:
    """Return share and amplitude [rad] of one angular harmonic of the phase on rings around a centre."""
    from scipy.ndimage import map_coordinates

    angle = 2 * np.pi * np.arange(720) / 720
    points = np.array(
        [[y + r * np.sin(angle), x + r * np.cos(angle)] for (y, x) in [centre_yx_px] for r in RINGS_PX]
    )
    rings = np.stack([map_coordinates(phase_rad, ring, order=1) for ring in points])
    power = (np.abs(np.fft.rfft(rings, axis=1) / 720) ** 2).mean(axis=0)
    return float(power[spokes] / power[1:100].sum()), float(2 * np.sqrt(power[spokes]))


def best_contrast(phase_rad: NDArray[Any]) -> tuple[float, float]:
    """Return the contrast around the best centre near the middle; where the star is, only the data know."""
    height, width = phase_rad.shape
    centres = [(y, x) for y in range(height // 2 - 32, height // 2 + 33, 4)
               for x in range(width // 2 - 32, width // 2 + 33, 4)]  # fmt: skip
    return max(spoke_contrast(phase_rad, centre) for centre in centres)


def test_the_judge_of_spokes_knows_a_star_from_noise_and_from_another_star() -> None:
    y, x = np.mgrid[:400, :420]
    angle = np.arctan2(y - 212, x - 204)
    for spokes, good in ((30, True), (29, False), (31, False)):
        share, amplitude = best_contrast(0.5 * np.sin(spokes * angle))
        assert (share > SPOKE_SHARE and amplitude > SPOKE_PHASE_RAD) == good
    noise = np.random.default_rng(0).normal(0, 0.5, (400, 420))
    assert best_contrast(noise)[0] < 0.1
    assert best_contrast(0.1 * np.sin(30 * angle))[1] < SPOKE_PHASE_RAD


@pytest.mark.slow
@pytest.mark.pictures
def test_two_epochs_show_the_star_as_measured(
    star_scan: Path, train_command: Command, infer_command: Command, tmp_path: Path
) -> None:
    flags = ("--max_epochs", 2, "--n_images", 96, "--unrolled_steps", 12)
    done = train_command(star_scan, tmp_path / "run", *flags)
    assert (done.code, done.err) == (0, "")
    assert "scale: counts (integer dtype uint16); 4.612e+05 photons per pattern" in done.out
    done = infer_command(tmp_path / "run", star_scan, tmp_path / "out")
    assert (done.code, done.err) == (0, "")
    for folder in (tmp_path / "run", tmp_path / "out"):
        for name in ("reconstructed_amplitude.png", "reconstructed_phase.png"):
            assert (folder / name).stat().st_size > 1000
        stored = read_npz(folder / "reconstruction.npz", ["object", "coverage"])
        obj, scanned = stored["object"], stored["coverage"] > 0.05
        phase = np.angle(obj * np.exp(-1j * np.angle(obj[scanned].mean())))
        share, amplitude = best_contrast(phase)
        assert share > SPOKE_SHARE
        assert amplitude > SPOKE_PHASE_RAD
        # The star is a phase object; the amplitude is nearly flat.
        assert np.abs(obj[scanned]).std() < 0.5 * np.abs(obj[scanned]).mean()
