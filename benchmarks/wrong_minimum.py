"""How often a refinement ends in a wrong minimum, and what the difference map then makes of it.

usage: python benchmarks/wrong_minimum.py [--scans 20] [--size 64] [--grid 9] [--photons 0 1e8 1e6]
           [--probes window speckle curved soft]

Scans of few measured numbers: the probe fills the window, patterns overlap by half, amplitude and phase of
the object are pictures that come with scikit-image. Each scan draws its pictures and one of the probes: a
window with a random smooth phase and speckle, which fill the window, a curved and a soft spot, which leave
its corners dark. 0 photons means no noise at all.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import peers_ours as ours
from numpy.typing import NDArray
from peers import judge

from ptycho import physics
from ptycho.config.config import ModelConfig
from ptycho.files.reader import open_scan
from ptycho.process.progress import Progress
from ptycho.solver.options import RefineOptions
from ptycho_torch import engine

PICTURES = ("camera", "moon", "coins", "brick", "grass", "gravel", "cell", "page", "clock", "text")
PROBES = ("window", "speckle", "curved", "soft")
STEPS = 100
NOISELESS_PHOTONS = 1e12


def picture(name: str, side_px: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return a square cut of a picture, values in [0, 1], turned at random."""
    from scipy.ndimage import zoom
    from skimage import data

    image = np.asarray(getattr(data, name)(), float)
    image = image.mean(axis=-1) if image.ndim == 3 else image
    image = zoom(image, max(1.0, (side_px + 8) / min(image.shape)), order=1)
    row, column = (int(rng.integers(0, size - side_px + 1)) for size in image.shape)
    cut = image[row : row + side_px, column : column + side_px]
    return np.rot90((cut - cut.min()) / np.ptp(cut), int(rng.integers(4)))


def probe(kind: str, n_px: int, rng: np.random.Generator) -> NDArray[np.complex128]:
    """Return a probe (N, N) that fills the window, of power 1."""
    from scipy.ndimage import gaussian_filter

    def smooth(sigma_px: float) -> NDArray[np.float64]:
        return gaussian_filter(rng.normal(size=(n_px, n_px)), sigma_px)

    radius = np.hypot(*(np.mgrid[:n_px, :n_px] - (n_px - 1) / 2))
    if kind == "window":
        field = np.exp(15j * smooth(4.0))
    elif kind == "speckle":
        field = (smooth(2.0) + 1j * smooth(2.0)) * np.exp(-((radius / (0.42 * n_px)) ** 6))
    elif kind == "curved":
        field = np.exp(-((radius / (0.42 * n_px)) ** 6) + 0.5j * np.pi * radius**2 / n_px)
    else:
        field = np.exp(-((radius / (0.36 * n_px)) ** 2) + 0.3j * np.pi * radius**2 / n_px)
    return field / np.sqrt((np.abs(field) ** 2).sum())


def write_scan(path: Path, seed: int, n_px: int, grid: int, photons: float, kind: str) -> None:
    """Write a scan with a kind of probe."""
    rng = np.random.default_rng(seed)
    step = n_px // 2
    side = (grid - 1) * step + n_px
    absorbing, thick = rng.choice(PICTURES, 2, replace=False)
    thickness = picture(thick, side, rng) - 0.5
    obj = (0.4 + 0.6 * picture(absorbing, side, rng)) * np.exp(3j * thickness)
    places = np.stack(np.meshgrid(*[np.arange(grid) * step] * 2, indexing="ij"), -1).reshape(-1, 2)
    dose = photons or NOISELESS_PHOTONS
    wave = np.sqrt(dose) * probe(kind, n_px, rng)
    counts = physics.diffracted_intensity(physics.extract_patches(obj, places, n_px), wave[None, None])
    counts = rng.poisson(counts) if photons else counts
    centres = places + (n_px - 1) / 2
    np.savez(
        path,
        diff3d=np.sqrt(counts).astype(np.float32),
        xcoords=centres[:, 1],
        ycoords=centres[:, 0],
        probeGuess=wave.astype(np.complex64),
        objectGuess=obj.astype(np.complex64),
        object_is_truth=np.array(True),
        nphotons=dose,
    )


def main() -> None:
    """Print one line for every scan, and how many ended well."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--scans", type=int, default=20)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--grid", type=int, default=9)
    parser.add_argument("--photons", type=float, nargs="+", default=[0.0])
    parser.add_argument("--probes", nargs="+", default=list(PROBES), choices=PROBES)
    parser.add_argument("--start", default="flat", help="flat: tried where needed; or difference-map")
    asked = parser.parse_args()
    for photons in asked.photons:
        print(f"photons {photons:g}: probe, root misfit and NRMSE after {STEPS} iterations, and in the end")
        good = 0
        for seed in range(asked.scans):
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "scan.npz"
                kind = asked.probes[seed % len(asked.probes)]
                write_scan(path, seed, asked.size, asked.grid, photons, kind)
                scan = open_scan(path)
                model = ours.untrained(scan, ModelConfig(N=scan.n_px, architecture="unrolled"))
                found = engine.reconstruct(
                    model, scan, np.arange(scan.n_patterns), execution=ours.EXECUTION,
                    progress=Progress(), refine=RefineOptions(STEPS, start=asked.start),
                )  # fmt: skip
                first = found.misfit[min(STEPS, len(found.misfit)) - 1]
                nrmse = judge(path, found, found.obj)
            root = np.sqrt([first, found.misfit[-1]])
            good += root[1] < 1e-4
            print(
                f"{seed:3d} {kind:8s} {root[0]:.2e} {root[1]:.2e} {nrmse:.4f} {found.seconds:.1f} s",
                flush=True,
            )
        print(f"{good} of {asked.scans} below 1e-4")


if __name__ == "__main__":
    main()
