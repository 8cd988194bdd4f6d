"""A scan with a probe wider than its patterns, made in plain NumPy from nothing of the package."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

N, WIDE = 32, 64
"""Sides of the patterns and of the window that the probe fits [px]."""


def textures(shape: tuple[int, int], rng: np.random.Generator) -> NDArray[np.complex128]:
    """An object with features of every size, amplitude 0.5 to 1, phase within 1 rad."""
    waves = np.hypot(*np.meshgrid(np.fft.fftfreq(shape[0]), np.fft.fftfreq(shape[1]), indexing="ij"))
    filters = np.exp(-((waves / 0.18) ** 2)) / (waves + 0.03)
    fields = [np.fft.ifft2(np.fft.fft2(rng.standard_normal(shape)) * filters).real for _ in range(2)]
    amplitude, phase = (np.tanh(field / (1.5 * field.std())) for field in fields)
    return (0.75 + 0.25 * amplitude) * np.exp(1j * phase)


def wide_probe(photons: float) -> NDArray[np.complex128]:
    """A defocused spot behind a weak diffuser, more than a tenth of its power outside the middle N pixels.

    Without the diffuser its far field would fade to rounding, and two backends would differ by it.
    """
    axis = np.arange(WIDE) - (WIDE - 1) / 2
    squared = axis[:, None] ** 2 + axis**2
    probe = np.exp(-squared / (2 * 13.0**2)) * np.exp(0.012j * squared)
    probe *= np.exp(-((np.sqrt(squared) / 30) ** 12))
    rng = np.random.default_rng(2)
    probe *= 1 + 0.15 * (rng.standard_normal((2, WIDE, WIDE)) * [[[1]], [[1j]]]).sum(axis=0)
    return probe * np.sqrt(photons / (np.abs(probe) ** 2).sum())


def outside(probe: NDArray[np.complexfloating]) -> float:
    """Share of the power of a probe outside its middle N x N pixels."""
    power, middle = np.abs(probe).astype(float) ** 2, slice((WIDE - N) // 2, (WIDE + N) // 2)
    power = power / power.sum()
    power[middle, middle] = 0
    return float(power.sum())


def counted(wave: NDArray[np.complex128]) -> NDArray[np.float64]:
    """Counts of pixels of N x N: the far field of the whole window, 2 x 2 of its pixels added.

    The pixels of the window lie a quarter of a detector pixel beside the middle, on either side.
    """
    half = np.exp(1j * np.pi * np.arange(WIDE) / WIDE)
    field = np.fft.fftshift(np.fft.fft2(wave * half[:, None] * half)) / WIDE
    return (np.abs(field) ** 2).reshape(N, 2, N, 2).sum(axis=(1, 3))


def write_wide_scan(path: Path, *, grid: int = 9, step_px: int = 5, photons: float = 1e8) -> Path:
    """Write a scan of rounded counts, its wide probe, and the true object; patches lie on whole pixels."""
    rng = np.random.default_rng(11)
    rows, columns = np.divmod(np.arange(grid * grid), grid)
    corners = step_px * np.stack([rows, columns], 1) + rng.integers(0, 3, (grid * grid, 2)) + 2
    side = int(corners.max()) + WIDE + 2
    obj, probe = textures((side, side), rng), wide_probe(photons)
    counts = np.stack([counted(probe * obj[y : y + WIDE, x : x + WIDE]) for y, x in corners])
    centres = corners + (WIDE - 1) / 2
    np.savez(
        path,
        diff3d=np.rint(counts).astype(np.uint32),
        ycoords=centres[:, 0],
        xcoords=centres[:, 1],
        probeGuess=probe.astype(np.complex64),
        objectGuess=obj.astype(np.complex64),
        object_is_truth=np.array(True),
        detector_upsampling=np.array(2),
    )
    return path
