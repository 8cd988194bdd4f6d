"""Judge a reconstruction: against a truth, against another one, against its own patterns, or by two half scans."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho.config.config import PyTorchExecutionConfig
from ptycho.errors import DataError
from ptycho.job import SCANNED_SHARE, Reconstruction
from ptycho.metrics import FRC, fit_gauge, fourier_ring_correlation, gauge_fit_region, score
from ptycho.npz import npz_headers, read_npz
from ptycho.outputs import prepare_folder, truth_on_canvas, write_json
from ptycho.progress import Progress
from ptycho.scan import Scan, open_scan

REQUIRED = ("object", "coverage", "origin_yx_px", "probe", "pattern_index")
CHUNK = 64
"""Patterns compared at a time."""


@dataclass
class Evaluation:
    """What was found out about a reconstruction.

    Attributes
    ----------
    scores : dict of str to float
        Numbers by name; which ones depends on what it was compared with.
    files : list of Path
        Everything written.
    """

    scores: dict[str, float] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)


def read_reconstruction(path: str | Path) -> Reconstruction:
    """Read a ``reconstruction.npz``.

    Parameters
    ----------
    path : path-like
        The file, or the folder that holds it.

    Returns
    -------
    Reconstruction
        Object and its place.

    Raises
    ------
    DataError
        If the file is missing, damaged, or holds something else.
    """
    path = Path(path)
    path = path / "reconstruction.npz" if path.is_dir() else path
    missing = [key for key in REQUIRED if key not in npz_headers(path)]
    if missing:
        raise DataError(
            f"{path}: not a reconstruction (key {missing[0]!r} is missing, expected {', '.join(REQUIRED)}). "
            "Name a reconstruction.npz that an inference wrote."
        )
    found = read_npz(path, REQUIRED)
    return Reconstruction(
        found["object"], found["coverage"], found["origin_yx_px"], found["probe"], found["pattern_index"], 0.0
    )


def on_canvas_of(other: Reconstruction, found: Reconstruction) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Lay another reconstruction on the canvas of the first, to whole pixels.

    Parameters
    ----------
    other, found : Reconstruction
        The two; a fraction of a pixel between them is left to the gauge fit.

    Returns
    -------
    obj, mask : complex array and bool array, shape (H, W)
        The other object (1 where it has none), and the pixels both have scanned.
    """
    offset = np.round(found.origin_yx_px - other.origin_yx_px).astype(int)
    height, width = found.obj.shape
    rows, columns = np.arange(height) + offset[0], np.arange(width) + offset[1]
    inside = np.ix_((rows >= 0) & (rows < other.obj.shape[0]), (columns >= 0) & (columns < other.obj.shape[1]))
    obj = np.ones((height, width), dtype=np.complex128)
    seen = np.zeros((height, width), dtype=bool)
    source = np.ix_(rows[inside[0][:, 0]], columns[inside[1][0]])
    obj[inside], seen[inside] = other.obj[source], other.scanned[source]
    return obj, seen & found.scanned


def pattern_residuals(found: Reconstruction, scan: Scan) -> NDArray[np.float64]:
    """Return how badly each pattern is explained: its amplitude misfit relative to its energy (eq. 7a).

    Parameters
    ----------
    found : Reconstruction
        Object, probe and place.
    scan : Scan
        Measured patterns.

    Returns
    -------
    float64 array, shape (J,)
        One number for each pattern that took part; about a quarter of the lit pixels over the counts is noise.
    """
    from ptycho.physics import diffracted_amplitude, extract_patches, shift_field
    from ptycho.scaling import measured_amplitude

    corners_px = scan.positions_yx_px[found.members] - (scan.n_px - 1) / 2 - found.origin_yx_px
    corners = np.floor(corners_px + 0.5).astype(np.int64)
    parts = []
    for start in range(0, len(corners), CHUNK):
        part = slice(start, start + CHUNK)
        patches = extract_patches(found.obj, corners[part], scan.n_px)
        probes = shift_field(found.probe, corners_px[part] - corners[part])
        predicted = diffracted_amplitude(patches, probes)
        measured = measured_amplitude(scan.raw.diff3d[found.members[part]], scan.record)
        energy = (measured.astype(np.float64) ** 2).sum(axis=(1, 2))
        parts.append(((predicted - measured) ** 2).sum(axis=(1, 2)) / np.maximum(energy, 1e-12))
    return np.concatenate(parts)


def correlate(a: NDArray[Any], b: NDArray[Any], mask: NDArray[np.bool_]) -> FRC:
    """Return the Fourier ring correlation of two objects inside the largest scanned box.

    Parameters
    ----------
    a, b : complex array, shape (H, W)
        Objects in one gauge.
    mask : bool array, shape (H, W)
        Scanned pixels.

    Returns
    -------
    FRC
        Correlation by frequency [cycles / px] with the half-bit curve.
    """
    rows, columns = gauge_fit_region(mask)
    return fourier_ring_correlation(a[rows, columns], b[rows, columns])


def split_halves(
    model_path: Path, scan: Scan, backend: str, execution: PyTorchExecutionConfig, progress: Progress, seed: int
) -> tuple[Reconstruction, Reconstruction]:
    """Reconstruct a scan twice, each time from a random half of its patterns.

    Parameters
    ----------
    model_path : Path
        Trained model.
    scan : Scan
        All patterns.
    backend : {'pytorch', 'tensorflow'}
        Engine that reconstructs.
    execution : PyTorchExecutionConfig
        Accelerator.
    progress : Progress
        Told what goes on.
    seed : int
        Seed of the split.

    Returns
    -------
    tuple of Reconstruction
        The two halves.
    """
    pipeline = importlib.import_module("ptycho.pipeline")
    engine = pipeline.load_engine(backend)
    model = engine.load(pipeline.find_model(model_path, backend))
    order = np.random.default_rng(seed).permutation(scan.n_patterns)
    middle = len(order) // 2
    first, second = np.sort(order[:middle]), np.sort(order[middle:])
    one, two = (
        engine.reconstruct(model, scan, members, execution=execution, progress=progress) for members in (first, second)
    )
    return one, two


def evaluate(
    reconstruction: Path,
    output_dir: Path,
    *,
    truth: Path | None = None,
    reference: Path | None = None,
    test_data: Path | None = None,
    model_path: Path | None = None,
    backend: str = "pytorch",
    execution: PyTorchExecutionConfig | None = None,
    domain: Any = None,
    seed: int = 42,
    progress: Progress | None = None,
) -> Evaluation:
    """Judge a reconstruction in every way the given files allow.

    Parameters
    ----------
    reconstruction : Path
        ``reconstruction.npz`` or its folder.
    output_dir : Path
        Where ``metrics.json``, ``metrics.csv`` and the pictures go.
    truth : Path, optional
        Data file whose ``objectGuess`` is the known truth.
    reference : Path, optional
        Another reconstruction to compare with.
    test_data : Path, optional
        Data file it was made from: gives the misfit of every pattern.
    model_path : Path, optional
        Trained model: with ``test_data``, two half scans give a resolution without any truth.
    backend : {'pytorch', 'tensorflow'}
        Engine for the half scans.
    execution : PyTorchExecutionConfig, optional
        Accelerator.
    domain : {'counts', 'amplitude'}, optional
        What the patterns hold.
    seed : int
        Seed of the split.
    progress : Progress, optional
        Told what goes on.

    Returns
    -------
    Evaluation
        Scores and files.

    Raises
    ------
    DataError
        If a file does not fit, or there is nothing to compare with.
    """
    progress, execution = progress or Progress(), execution or PyTorchExecutionConfig(logger_backend=None)
    found = read_reconstruction(reconstruction)
    if truth is None and reference is None and test_data is None:
        raise DataError(
            f"{reconstruction}: nothing to compare with (got neither --truth, --reference nor --test_data, expected at "
            "least one). Name one."
        )
    folder = prepare_folder(output_dir)
    result = Evaluation()
    if truth is not None:
        known = truth_on_canvas(truth, found)
        if known is None:
            raise DataError(
                f"{truth}: the file does not hold a known truth (expected objectGuess with object_is_truth). "
                "Pass --reference with another reconstruction instead."
            )
        _compare(result, folder, found, *known, "truth")
    if reference is not None:
        _compare(result, folder, found, *on_canvas_of(read_reconstruction(reference), found), "reference")
    if test_data is not None:
        scan = open_scan(test_data, domain=domain)
        _judge_patterns(result, folder, found, scan)
        if model_path is not None:
            one, two = split_halves(model_path, scan, backend, execution, progress, seed)
            _judge_halves(result, folder, one, two)
    result.files.insert(0, write_json(folder / "metrics.json", result.scores))
    result.files.insert(1, _write_table(folder / "metrics.csv", result.scores))
    return result


def _compare(
    result: Evaluation, folder: Path, found: Reconstruction, truth: NDArray[Any], mask: NDArray[np.bool_], name: str
) -> None:
    from ptycho.charts import save_frc_png
    from ptycho.figures import save_comparison_png

    aligned = fit_gauge(found.obj, truth, mask)
    scores = score(found.obj, truth, mask)
    result.scores.update({f"{name}_{key}": value for key, value in scores.items()})
    result.files.append(save_comparison_png(aligned, truth, folder / f"comparison_{name}.png", scores=scores, mask=mask))
    result.files.append(save_frc_png(correlate(aligned, truth, mask), folder / f"frc_{name}.png", f"against the {name}"))


def _judge_patterns(result: Evaluation, folder: Path, found: Reconstruction, scan: Scan) -> None:
    from ptycho.charts import save_residual_map_png

    misfit = pattern_residuals(found, scan)
    worst = int(found.members[int(np.argmax(misfit))])
    result.scores.update(
        residual_mean=float(misfit.mean()), residual_median=float(np.median(misfit)), residual_max=float(misfit.max()),
        residual_worst_pattern=float(worst),
    )
    positions = scan.positions_yx_px[found.members]
    result.files.append(save_residual_map_png(positions, misfit, folder / "residuals.png"))


def _judge_halves(result: Evaluation, folder: Path, one: Reconstruction, two: Reconstruction) -> None:
    from ptycho.charts import save_frc_png

    other, mask = on_canvas_of(two, one)
    # Half a scan leaves holes at the rim; only what both halves saw well is compared.
    mask &= one.coverage >= 2 * SCANNED_SHARE
    curve = correlate(fit_gauge(one.obj, other, mask), other, mask)
    resolution = curve.resolution_px
    result.scores["half_scan_resolution_px"] = 2.0 if resolution is None else resolution
    result.files.append(save_frc_png(curve, folder / "frc_half_scans.png", "two half scans"))


def _write_table(path: Path, scores: dict[str, float]) -> Path:
    from ptycho.npz import atomic_path

    with atomic_path(path) as temporary:
        lines = ["metric,value", *(f"{name},{value:.6g}" for name, value in scores.items())]
        Path(temporary).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
