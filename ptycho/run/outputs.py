"""What a run writes: pictures, the object, scores, curves, and the record that makes it repeatable."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import math
import platform
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho.data.npz import atomic_path, npz_headers, read_npz, write_npz
from ptycho.data.reconstruction import PlacedReconstruction, Reconstruction
from ptycho.data.scaling import ScaleRecord
from ptycho.errors import DataError
from ptycho.evaluation.background import save_background_png
from ptycho.evaluation.comparison import laid_on_canvas
from ptycho.evaluation.corrections import position_correction, save_position_correction_png
from ptycho.evaluation.figures import (
    save_comparison_png,
    save_loss_png,
    save_probe_png,
    save_reconstruction_pngs,
)
from ptycho.evaluation.gauge import solve_gauge
from ptycho.evaluation.metrics import score_aligned
from ptycho.evaluation.phase import PhaseView
from ptycho.evaluation.uncertainty import save_uncertainty_png
from ptycho.evaluation.verdict import Verdict
from ptycho.files.hdf5 import is_hdf5

logger = logging.getLogger(__name__)

PACKAGES = ("ptychopinn", "numpy", "scipy", "torch", "lightning", "tensordict", "tensorflow", "keras")
TRUTH_FLAG = "object_is_truth"
"""Key of a data file whose ``objectGuess`` is the known truth."""


def prepare_folder(folder: str | Path) -> Path:
    """Make an output folder with its parents; raise ``DataError`` where it cannot be made or written to."""
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataError(
            f"{folder}: the output folder cannot be written to (got {reason!r}, expected a writable folder). "
            "Pass another --output_dir."
        ) from error
    return folder


@contextmanager
def output_folder(folder: str | Path) -> Iterator[Path]:
    """Yield a folder from :func:`prepare_folder`; where the block fails and wrote nothing, what was made goes
    again."""
    made = [path for path in (Path(folder), *Path(folder).parents) if not path.exists()]
    try:
        yield prepare_folder(folder)
    except BaseException:
        with suppress(OSError):
            for path in made:
                path.rmdir()
        raise


def write_json(path: Path, content: Mapping[str, Any]) -> Path:
    """Write a JSON file that appears whole; numbers JSON does not know become null, other things text."""
    with atomic_path(path) as temporary:
        Path(temporary).write_text(
            json.dumps(_finite(content), indent=2, default=str) + "\n", encoding="utf-8"
        )
    return path


def write_columns(path: Path, header: str, columns: NDArray[Any]) -> Path:
    """Write comma-separated columns (rows, columns) under a header line; the file appears whole."""
    with atomic_path(path) as temporary:
        np.savetxt(temporary, columns, delimiter=",", header=header, comments="", fmt="%.6g")
    return path


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def write_run_record(folder: Path, config: Any, execution: Any, record: ScaleRecord) -> Path:
    """Write ``config.json``: settings, seed, versions and scale of a run."""
    content = {
        "config": asdict(config),
        "execution": asdict(execution),
        "scale_record": record.to_dict(),
        "seed": config.seed,
        "versions": _versions(),
    }
    return write_json(folder / "config.json", content)


def write_training_curves(folder: Path, history: Mapping[str, Sequence[float]]) -> list[Path]:
    """Write the losses of the epochs as ``loss.png`` and ``history.json``; nothing where no epoch ended."""
    curves = {name: list(values) for name, values in history.items() if len(values)}
    if not curves:
        return []
    return [save_loss_png(curves, folder / "loss.png"), write_json(folder / "history.json", curves)]


def truth_on_canvas(path: Path, found: Reconstruction) -> tuple[NDArray[Any], NDArray[np.bool_]] | None:
    """Return the known truth (H, W), 1 where it is not known, on the canvas of a reconstruction, and the mask
    (H, W) of the pixels to compare; None where the file holds no truth."""
    if is_hdf5(path) or TRUTH_FLAG not in npz_headers(path):
        return None
    arrays = read_npz(path, [TRUTH_FLAG, "objectGuess"])
    if not bool(arrays[TRUTH_FLAG]):
        return None
    stored = arrays["objectGuess"]
    return laid_on_canvas(found, stored, np.ones(stored.shape, bool))


def write_patch_stats(folder: Path, placed: PlacedReconstruction, limit: int | None) -> Path:
    """Write ``patch_stats.csv``: number, y and x [px] of the first ``limit`` patterns, and the mean and
    standard deviation of the amplitude and phase [rad] that the probe weights there."""
    from ptycho.physics import extract_patches

    found, plan, numbers = placed.found, placed.plan, placed.numbers[:limit]
    positions, corners = plan.positions_yx_px[:limit], plan.corners_yx[:limit]
    weight = (np.abs(found.probe) ** 2).sum(axis=0)
    weight = weight / weight.sum()
    rows = []
    for start in range(0, len(numbers), 256):
        part = slice(start, start + 256)
        patches = extract_patches(found.obj, corners[part], plan.patch_px)
        columns = [numbers[part], *positions[part].T]
        # The phase about its mean direction, which a wrap does not move.
        turn = np.angle((patches * weight).sum(axis=(1, 2)))[:, None, None]
        for values in (np.abs(patches), turn + np.angle(patches * np.exp(-1j * turn))):
            mean = (values * weight).sum(axis=(1, 2))
            columns += [mean, np.sqrt(((values - mean[:, None, None]) ** 2 * weight).sum(axis=(1, 2)))]
        rows.append(np.stack(columns, axis=1))
    header = "pattern,y_px,x_px,amplitude_mean,amplitude_std,phase_mean_rad,phase_std_rad"
    return write_columns(folder / "patch_stats.csv", header, np.concatenate(rows))


def _measurement(placed: PlacedReconstruction) -> dict[str, NDArray[Any]]:
    """Return what an evaluation has to know about the data file beside its name."""
    found = {"file_options": np.array(json.dumps(placed.scan.options.given(), default=str))}
    bad_pixels = placed.scan.raw.bad_pixels
    if bad_pixels is not None:
        found["bad_pixels"] = bad_pixels if bad_pixels.ndim == 2 else bad_pixels[placed.rows]
    return found


def _variation(found: Reconstruction) -> dict[str, NDArray[Any]]:
    """Return how the probe changes from pattern to pattern, where it does."""
    if found.variation is None:
        return {}
    return {"variable_modes": found.variation.modes, "probe_weights": found.variation.weights}


def scan_results(placed: PlacedReconstruction) -> list[dict[str, Any]]:
    """Return name, offset [px], intensity and misfit (eq. 7a) of every scan that was joined; none of one."""
    parts, fit = placed.scan.parts, placed.found.fit
    if parts is None:
        return []
    index, power = parts.index[placed.rows], (parts.gain / parts.gain[0]) ** 2
    found = []
    for number, name in enumerate(parts.names):
        own = index == number
        misfit = None
        if fit is not None and own.any():
            misfit = float(fit.misfit[own].sum() / max(fit.energy[own].sum(), 1e-30))
        found.append(
            {
                "file": name,
                "patterns": int(own.sum()),
                "offset_yx_px": parts.offsets_yx_px[number].tolist(),
                "intensity": float(power[number]),
                "misfit": misfit,
            }
        )
    return found


def _scans(placed: PlacedReconstruction) -> dict[str, NDArray[Any]]:
    """Return which scan each pattern was of, where several were joined."""
    parts = placed.scan.parts
    if parts is None:
        return {}
    return {
        "scan_index": parts.index[placed.rows],
        "scan_files": np.array(parts.names),
        "scan_first_pattern": parts.first_number,
        "scan_offsets_yx_px": parts.offsets_yx_px,
        "scan_gain": parts.gain,
    }


def write_reconstruction(
    folder: Path,
    placed: PlacedReconstruction,
    data_file: Path | None,
    view: PhaseView | None = None,
    *,
    verdict: Verdict | None = None,
) -> tuple[list[Path], dict[str, float]]:
    """Write pictures, ``reconstruction.npz``, and ``metrics.json`` with verdict and scores.

    Scores and ``comparison.png`` need a ``data_file`` that holds the truth. ``view`` says how the phase is
    shown. Return the files, the two pictures first, and the scores.
    """
    found, count = placed.found, len(placed.rows)
    lit = np.where(found.scanned, found.coverage, 0.0)
    files = [*save_reconstruction_pngs(found.obj, folder, coverage=lit, view=view)]
    write_npz(
        folder / "reconstruction.npz",
        {
            "object": found.obj,
            "coverage": found.coverage,
            "origin_yx_px": found.origin_yx_px,
            "probe": found.probe,
            "positions_yx_px": placed.positions_yx_px,
            "frame_gain": np.ones(count, np.float32) if found.frame_gain is None else found.frame_gain,
            "misfit": np.array(found.misfit),
            "pattern_index": placed.numbers,
            **({} if placed.background is None else {"background": placed.background}),
            "scale_record": np.array(json.dumps(placed.scan.record.to_dict())),
            **_measurement(placed),
            **_variation(found),
            **({} if found.errors is None else found.errors._asdict()),
            **_scans(placed),
        },
    )
    files += [folder / "reconstruction.npz", save_probe_png(found.probe, folder / "probe.png")]
    if placed.background is not None:
        files.append(save_background_png(placed.background, folder / "background.png"))
    if found.errors is not None:
        files.append(save_uncertainty_png(found, found.errors, folder / "uncertainty.png"))
    if (correction := position_correction(placed)) is not None:
        places, path = placed.positions_yx_px, folder / "position_correction.png"
        title = f"positions corrected by {correction.rms_px:.2g} px rms"
        files.append(save_position_correction_png(places, correction.moved_yx_px, path, title))
    unwrap = view is not None and view.unwrap
    scores, pictures = _scored(folder, found, data_file, unwrap=unwrap)
    worth = {**({} if verdict is None else verdict.to_dict()), **scores}
    if parts := scan_results(placed):
        worth["scans"] = parts
    if found.chosen is not None:
        worth["chosen"] = found.chosen
    metrics = [write_json(folder / "metrics.json", worth)] if worth else []
    return [*files, *pictures, *metrics], scores


def _scored(
    folder: Path, found: Reconstruction, data_file: Path | None, *, unwrap: bool
) -> tuple[dict[str, float], list[Path]]:
    """Score an object against the truth of its data file and write the comparison; nothing without one."""
    known = truth_on_canvas(Path(data_file), found) if data_file is not None else None
    if known is None:
        return {}, []
    truth, mask = known
    try:
        fit = solve_gauge(found.obj, truth, mask)
        scores = score_aligned(fit.obj, truth, mask)
    except DataError as error:
        # A field too small to score must not cost the reconstruction.
        logger.warning("no scores against the truth: %s", error)
        return {}, []
    path = folder / "comparison.png"
    picture = save_comparison_png(fit.obj, truth, path, scores=scores, mask=mask, unwrap=unwrap)
    return scores | fit.removed(), [picture]
