"""The table of lines of arXiv 2602.21361: a whole scan, one group of patterns alone, one pattern alone.

usage: python benchmarks/lines.py [--rows 33] [--probes disc curved FILE] [--ways whole group alone]
           [--averaged 4] [--train 0] [--epochs 12] [--iterations 100] [--seed 1]

Objects of random lines, a scan in steps of 10 px, patterns of 64 px with 1e9 photons. `whole` refines all
patterns of the scan as one object. `group` and `alone` move groups of 2 x 2 patterns, or single patterns,
apart until none touches: each is an object of its own, and the result is stitched from their middle 10 px.
Of single patterns there are five more rows. `flat` and `mean of twins` are made of the truth; the twin is
the object mirrored at the middle of the pattern, which a pattern of a symmetric probe does not tell from
it. `random starts` averages reconstructions that end in either. With `--train`, `unrolled` learns from
hidden pixels of as many patterns of another object, moved apart, and reconstructs those of the test.

`best of random starts` takes, pattern by pattern, the one whose own misfit is smallest.

PSNR has the peak 255, as there. A probe is `disc`, `curved`, a disc with a quadratic phase, which has no
twin, `uneven`, which is brighter here and there and hardly curved, as measured ones are, or an NPZ file with
`probeGuess`, whose phase is replaced by its quadratic fit.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import peers_ours as ours
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from skimage.draw import line
from skimage.metrics import structural_similarity

from ptycho import physics
from ptycho.config.config import ModelConfig
from ptycho.data.npz import read_npz, write_npz
from ptycho.data.optics import FileOptions
from ptycho.data.scan import PatternStore, Scan
from ptycho.files.reader import open_scan
from ptycho.geometry.canvas import plan_canvas
from ptycho.process.progress import Progress
from ptycho.solver.options import RefineOptions
from ptycho.solver.refinement import refine
from ptycho_torch import engine
from ptycho_torch.reconstruct import TorchBackend

N_PX, STEP_PX, GROUP_STEP_PX, SIDE_PX = 64, 10, 4, 392
PHOTONS, PEAK, TRIM_PX = 1e9, 255.0, 2
FIRST_PX = {1: 27, 2: 29}
"""Patterns along an axis of a group -> first pixel of the middle of the first group."""
CURVATURE = {"disc": 0.0, "curved": 1.0, "uneven": 0.15}
"""Probe -> its phase between the middle and the rim of the disc [half turns]."""


def lines(seed: int) -> NDArray[np.complex128]:
    """Return an object (392, 392): 400 random lines, smoothed by three Gaussians."""
    rng = np.random.default_rng(seed)
    image = np.zeros((2 * SIDE_PX, 2 * SIDE_PX))
    for ends in rng.integers(0, 2 * SIDE_PX, (400, 4)):
        image[line(*ends)] = 1.0
    image = sum(weight * gaussian_filter(image, sigma) for weight, sigma in ((1, 1), (2, 5), (5, 10)))
    return image[SIDE_PX // 2 : -SIDE_PX // 2, SIDE_PX // 2 : -SIDE_PX // 2].astype(np.complex128)


def probe_named(name: str) -> NDArray[np.complex128]:
    """Return a probe (64, 64) by its name or file."""
    r2 = ((np.mgrid[:N_PX, :N_PX] - (N_PX - 1) / 2) ** 2).sum(axis=0)
    disc = gaussian_filter((r2 < 11.0**2).astype(float), 1.0)
    if name in CURVATURE:
        rough = gaussian_filter(np.random.default_rng(5).normal(size=disc.shape), 2.5)
        lit = disc if name != "uneven" else disc * np.clip(1 + 0.5 * rough / rough.std(), 0.1, None)
        return lit * np.exp(1j * np.pi * CURVATURE[name] * r2 / 11.0**2)
    stored = read_npz(Path(name))["probeGuess"].reshape(-1, N_PX, N_PX)[0]
    phase, lit = np.unwrap(np.unwrap(np.angle(stored), axis=0), axis=1), np.abs(stored)
    a, b = np.polyfit(r2.ravel(), phase.ravel(), 1, w=lit.ravel())
    return gaussian_filter(lit, 0.5) * np.exp(1j * gaussian_filter(a * r2 + b, 0.5))


def corners_of(rows: int, side: int) -> NDArray[np.int64]:
    """Return first pixels (groups, side^2, 2) of the patterns of every group."""
    inner = np.stack(np.meshgrid(*[np.arange(side) * GROUP_STEP_PX] * 2, indexing="ij"), -1).reshape(-1, 2)
    outer = np.stack(np.meshgrid(*[np.arange(rows) * STEP_PX] * 2, indexing="ij"), -1).reshape(-1, 2)
    return outer[:, None] + inner


def write_scan(
    path: Path, obj: NDArray[Any], corners: NDArray[Any], probe: NDArray[Any], *, apart: bool, seed: int
) -> None:
    """Measure groups of patterns (G, K, 2) of an object; ``apart`` moves the groups until none touches."""
    flat = corners.reshape(-1, 2)
    intensity = np.concatenate(
        [
            physics.diffracted_intensity(physics.extract_patches(obj, rows, N_PX), probe[None, None])
            for rows in np.array_split(flat, max(1, len(flat) // 64))
        ]
    )
    dose = PHOTONS / intensity.sum(axis=(1, 2)).mean()
    counts = np.random.default_rng(seed).poisson(dose * intensity)
    side = int(np.ceil(len(corners) ** 0.5))
    moved = (N_PX + np.ptp(corners[0], axis=0).max()) * np.stack(
        np.divmod(np.arange(len(corners)), side), -1
    )[:, None]
    places = (corners - corners[:, :1] + moved).reshape(-1, 2) if apart else flat
    centres = places + (N_PX - 1) / 2
    write_npz(
        path,
        {
            "diff3d": np.sqrt(counts).astype(np.float32),
            "xcoords": centres[:, 1],
            "ycoords": centres[:, 0],
            "probeGuess": (np.sqrt(dose) * probe).astype(np.complex64),
            "nphotons": PHOTONS,
        },
    )


def opened(path: Path) -> Scan:
    """Return a scan; a few bright pixels of these patterns look hot, and are not."""
    return open_scan(path, options=FileOptions(keep_pixels=True))


def refined(path: Path, options: RefineOptions, start_seed: int | None = None) -> Any:
    """Refine the object of a scan from a flat one, or from a random one, with the probe of the file; return
    the object and the place of its first pixel."""
    scan, device = opened(path), torch.device("cpu")
    model = ours.untrained(scan, ModelConfig(N=N_PX, architecture="unrolled"))
    backend, indices = TorchBackend(model, device), np.arange(scan.n_patterns)
    plan = plan_canvas(scan.positions_yx_px, N_PX)
    obj = np.ones(plan.shape_yx, np.complex64)
    if start_seed is not None:
        rng = np.random.default_rng(start_seed)
        noise = [gaussian_filter(rng.normal(size=plan.shape_yx), 2.0) for _ in range(2)]
        obj += sum(factor * 0.3 * part / part.std() for factor, part in zip((1, 1j), noise, strict=True))
    with torch.inference_mode(), PatternStore(scan, Progress()) as store:
        chunks = backend.chunks(store, plan, indices, backend.tensor(scan.probe))
        # A flat object lets half of the counts of this one through, or less.
        through = np.sqrt(scan.record.mean_counts / (np.abs(scan.probe) ** 2).sum())
        start = backend.tensor((obj * through).astype(np.complex64))
        found = refine(backend.primitives, chunks, start, options)
        return backend.array(found.obj), plan.origin_yx_px


def middles(found: Any, path: Path, groups: int) -> NDArray[np.complex128]:
    """Return the middle 10 x 10 px of every group (G, 10, 10) of a scan that was moved apart, each with a
    mean phase of 0: no pattern tells it."""
    (obj, origin), arrays = found, read_npz(path)
    places = np.stack([arrays["ycoords"], arrays["xcoords"]], -1).reshape(groups, -1, 2).mean(axis=1)
    first = np.round(places - origin - (STEP_PX - 1) / 2).astype(int)
    parts = np.stack([obj[y : y + STEP_PX, x : x + STEP_PX] for y, x in first])
    return parts * np.exp(-1j * np.angle(parts.mean(axis=(1, 2), keepdims=True)))


def misfits(found: Any, path: Path) -> NDArray[np.float64]:
    """Return the amplitude misfit (J,) of every pattern of a scan of single patterns [counts]."""
    (obj, origin), arrays = found, read_npz(path)
    places = np.stack([arrays["ycoords"], arrays["xcoords"]], -1) - (N_PX - 1) / 2
    corners = np.round(places - origin).astype(int)
    patches = physics.extract_patches(obj.astype(np.complex128), corners, N_PX)
    # The object is in the scale of the probe that the scan was opened with.
    intensity = physics.diffracted_intensity(patches, opened(path).probe.astype(complex)[None])
    return ((np.sqrt(intensity) - arrays["diff3d"]) ** 2).sum(axis=(1, 2))


def best_of(starts: list[Any], path: Path, count: int) -> NDArray[np.complex128]:
    """Return the middles (J, 10, 10) of single patterns, each of the reconstruction that explains it best."""
    chosen = np.argmin([misfits(found, path) for found in starts], axis=0)
    parts = np.stack([middles(found, path, count) for found in starts])
    return parts[chosen, np.arange(count)]


def stitched(parts: NDArray[Any], rows: int) -> NDArray[Any]:
    """Return tiles (rows^2, 10, 10) side by side."""
    return parts.reshape(rows, rows, STEP_PX, STEP_PX).swapaxes(1, 2).reshape(rows * STEP_PX, -1)


def scores(found: NDArray[Any], truth: NDArray[Any]) -> tuple[float, float, float]:
    """Return PSNR of amplitude and phase [dB, peak 255] and SSIM of the amplitude."""
    cut = (slice(TRIM_PX, -TRIM_PX),) * 2
    found, truth = found[cut], truth[cut]
    amplitude, true = np.abs(found), np.abs(truth)
    amplitude = amplitude * true.mean() / amplitude.mean()
    phase = np.angle(found * np.exp(-1j * np.angle(found.mean())))
    plane = np.stack([np.ones(phase.shape), *np.mgrid[: phase.shape[0], : phase.shape[1]]], -1).reshape(-1, 3)
    phase = phase - (plane @ np.linalg.lstsq(plane, phase.ravel(), rcond=None)[0]).reshape(phase.shape)
    decibels = [
        20 * np.log10(PEAK / np.sqrt(np.mean(error**2)))
        for error in (amplitude - true, phase - np.angle(truth))
    ]
    return (*decibels, structural_similarity(amplitude, true, data_range=float(np.ptp(true))))


def trained(probe: NDArray[Any], folder: Path, options: argparse.Namespace, seed: int) -> Path:
    """Train ``unrolled`` by hidden pixels on patterns of another object, moved apart."""
    rng = np.random.default_rng(seed)
    corners = rng.integers(0, SIDE_PX - N_PX, (options.train, 1, 2))
    path = folder / "train.npz"
    write_scan(path, lines(seed), corners, probe, apart=True, seed=seed)
    words = ["--train_data_file", path, "--output_dir", folder / "run", "--gridsize", 1, "--disable_mlflow"]
    words += [
        "--max_epochs",
        options.epochs,
        "--no-probe-trainable",
        "--keep-pixels",
        "--n_images",
        options.train,
    ]
    subprocess.run([sys.executable, "-m", "ptycho_torch.train", *map(str, words)], check=True)
    return folder / "run" / "wts.h5.zip"


def networked(path: Path, model: Path) -> Any:
    """Reconstruct a scan with a trained network and the probe of the file."""
    scan = opened(path)
    found = engine.reconstruct(
        engine.load(model), scan, np.arange(scan.n_patterns), execution=ours.EXECUTION, progress=Progress(),
        fit_probe=False,
    )  # fmt: skip
    return found.obj, found.origin_yx_px


def rows_of(name: str, options: argparse.Namespace, folder: Path) -> dict[str, NDArray[Any]]:
    """Return the stitched result of every way with one probe, and the truth of each."""
    obj, probe, rows = lines(options.seed), probe_named(name), options.rows
    steps, path, found = RefineOptions(options.iterations, start="flat"), folder / "scan.npz", {}
    size = rows * STEP_PX

    def part(whole: NDArray[Any], side: int, origin: Any = (0, 0)) -> NDArray[Any]:
        first = np.round(FIRST_PX[side] - np.asarray(origin) - 0.0).astype(int)
        return whole[first[0] : first[0] + size, first[1] : first[1] + size]

    for side in (1, 2):
        truth, corners = part(obj, side), corners_of(rows, side)
        if "whole" in options.ways:
            write_scan(path, obj, corners, probe, apart=False, seed=2)
            whole, origin = refined(path, steps)
            found[f"whole scan, {side} x {side}"] = part(whole, side, origin), truth
        if ("group" if side == 2 else "alone") in options.ways:
            write_scan(path, obj, corners, probe, apart=True, seed=2)
            plain = refined(path, steps)
            parts = middles(plain, path, len(corners))
            found["one pattern alone" if side == 1 else "one group alone"] = stitched(parts, rows), truth
        if side == 2 or "alone" not in options.ways:
            continue
        found["flat"] = np.full(truth.shape, truth.mean()), truth
        tiles = truth.reshape(rows, STEP_PX, rows, STEP_PX).swapaxes(1, 2).reshape(-1, STEP_PX, STEP_PX)
        found["mean of twins"] = stitched((tiles + tiles[:, ::-1, ::-1].conj()) / 2, rows), truth
        starts = [refined(path, steps, seed) for seed in range(options.averaged)]
        if starts:
            mean = np.mean([middles(start, path, len(corners)) for start in starts], axis=0)
            found[f"mean of {len(starts)} random starts"] = stitched(mean, rows), truth
            best = best_of([plain, *starts], path, len(corners))
            found[f"best of {len(starts)} random starts and a flat one"] = stitched(best, rows), truth
        if options.train:
            network = networked(path, trained(probe, folder, options, 11))
            found["trained by hidden pixels"] = stitched(middles(network, path, len(corners)), rows), truth
    return found


def main() -> None:
    """Print one line for every probe and way."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("--seed", type=int, default=1, help="of the object")
    parser.add_argument("--rows", type=int, default=33, help="rows and columns of the scan")
    parser.add_argument("--probes", nargs="+", default=["disc"], help="disc, or an NPZ file")
    parser.add_argument(
        "--ways", nargs="+", choices=("whole", "group", "alone"), default=["whole", "group", "alone"]
    )
    parser.add_argument("--averaged", type=int, default=4, help="random starts")
    parser.add_argument("--train", type=int, default=0, help="patterns to train on, 0: no training")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--iterations", type=int, default=100)
    options = parser.parse_args()
    print("| probe | way | amplitude [dB] | phase [dB] | SSIM |\n|---|---|---|---|---|")
    for name in options.probes:
        with tempfile.TemporaryDirectory() as scratch:
            for way, (found, truth) in rows_of(name, options, Path(scratch)).items():
                amplitude, phase, similarity = scores(found, truth)
                print(
                    f"| {Path(name).stem} | {way} | {amplitude:.1f} | {phase:.1f} | {similarity:.3f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
