"""Evaluate a reconstruction: by a truth, by another one, by its own patterns, or by two half scans."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ptycho.config.choices import MeasurementDomain, allowed
from ptycho.config.config import PyTorchExecutionConfig, validate_execution_config
from ptycho.config.effects import refuse_changed
from ptycho.data.joined import join_scans
from ptycho.data.npz import atomic_path
from ptycho.data.optics import OF_NEAR_FIELD, FileOptions
from ptycho.data.reconstruction import ProbeVariation, Reconstruction
from ptycho.data.scan import Scan
from ptycho.errors import ConfigError, DataError
from ptycho.evaluation.comparison import (
    correlate,
    on_canvas_of,
    read_reconstruction,
    reconstruction_file,
    stored_domain,
    stored_fit,
)
from ptycho.evaluation.figures import save_comparison_png, save_frc_png, save_residual_map_png
from ptycho.evaluation.gauge import solve_gauge
from ptycho.evaluation.limit import limit_scores
from ptycho.evaluation.metrics import score_aligned
from ptycho.evaluation.uncertainty import interval_scores
from ptycho.evaluation.verdict import Verdict, announce, judge
from ptycho.files.overwrites import check_evaluation, numbered
from ptycho.files.reader import open_scan
from ptycho.physics.information import ObjectErrors
from ptycho.process.isolation import untouched_process
from ptycho.process.progress import Progress
from ptycho.run.engines import choose_device, find_model, fitted_model, load_engine, require_backend
from ptycho.run.outputs import output_folder, truth_on_canvas, write_columns, write_json
from ptycho.solver.options import RefineOptions

HALF_COVERAGE = 0.5
"""Factor on the coverage of a half scan before it counts as scanned: it has holes at the rim."""


@dataclass
class Evaluation:
    """What was found out about a reconstruction."""

    scores: dict[str, float] = field(default_factory=dict)  # which ones depends on what it was compared with
    files: list[Path] = field(default_factory=list)  # everything written
    verdict: Verdict | None = None  # by its own patterns; None without them


@dataclass(frozen=True)
class Reference:
    """What a reconstruction is compared with, on its canvas."""

    name: str  # in the names of scores and files
    obj: NDArray[Any]  # (H, W) [transmission]
    mask: NDArray[np.bool_]  # (H, W), pixels to compare
    known: bool = False  # it is the truth


@dataclass(frozen=True)
class Request:
    """A reconstruction and everything it is compared with."""

    reconstruction: Path  # reconstruction.npz or its folder
    truth: Path | None = None  # data file whose objectGuess is the known truth
    reference: Path | None = None  # another reconstruction
    test_data: Path | None = None  # data file it was made from: gives the misfit of every pattern
    further_scans: tuple[Path, ...] = ()  # beside test_data, where it was made of several, in their order
    model_path: Path | None = None  # with test_data, two half scans give a resolution without any truth
    backend: str = "pytorch"  # engine of the half scans
    execution: PyTorchExecutionConfig = field(  # accelerator of the half scans
        default_factory=lambda: PyTorchExecutionConfig(logger_backend=None)
    )
    refine: RefineOptions | None = None  # how the half scans are refined by the forward model
    seed: int = 42  # of the split
    domain: Literal["counts", "amplitude"] | None = None  # None = as when the reconstruction was made
    probe_key: str | None = None  # of test_data, as the two below
    pattern_axis: int | None = None
    options: FileOptions = field(default_factory=FileOptions)


@untouched_process()
def evaluate(request: Request, output_dir: Path, progress: Progress | None = None) -> Evaluation:
    """Evaluate a reconstruction in every way the given files allow. Scores, curves and pictures go to
    ``output_dir``. Raise ``PtychoError`` where a file does not fit, or there is nothing to compare with."""
    progress = progress or Progress()
    _check_request(request)
    check_evaluation(_files_read(request), output_dir)
    if request.model_path is not None:
        choose_device(load_engine(request.backend), request.execution, progress)
        find_model(request.model_path, request.backend)
    found = read_reconstruction(request.reconstruction)
    references = _references(found, request.truth, request.reference)
    if request.domain is not None and found.stored is not None:
        found = replace(found, stored=replace(found.stored, record=None))
    scan = None if request.test_data is None else _scan_of(found, request.test_data, request)
    result = Evaluation()
    with output_folder(output_dir) as folder:
        halves = None
        if scan is not None and request.model_path is not None:
            known = scan.with_background(found.background)
            halves = split_halves(request.model_path, known, request, progress, found=found)
        for reference in references:
            name = reference.name
            names, title = ("reconstruction", name), f"against the {name}"
            errors = found.errors if reference.known else None
            scores = _compare(result, folder, found.obj, reference, names, title, errors)
            if reference.known and scan is not None:
                scores |= limit_scores(found.in_scan(scan), reference.mask, scores["complex_nrmse"], progress)
            result.scores.update({f"{name}_{key}": value for key, value in scores.items()})
        if scan is not None:
            _score_patterns(result, folder, found, scan, progress)
        if halves is not None:
            _compare_halves(result, folder, *halves)
        worth = {} if result.verdict is None else result.verdict.to_dict()
        metrics = write_json(folder / "metrics.json", {**worth, **result.scores})
        result.files[:0] = [metrics, *_write_tables(folder, result.scores)]
    if result.verdict is not None:
        announce(result.verdict, progress)
    return result


def _scan_of(found: Reconstruction, path: Path, request: Request) -> Scan:
    """Open the data files of a reconstruction and see that its patterns are there."""
    options, paths = _options(found, request.options), (path, *request.further_scans)
    joined = None if found.stored is None else found.stored.joined
    if len(paths) != (1 if joined is None else len(joined.names)):
        made = "one scan" if joined is None else f"{len(joined.names)} scans: {', '.join(joined.names)}"
        raise DataError(
            f"{path}: the object was made of other files (got {len(paths)} --test-data, expected {made}). "
            "Name them all, in this order."
        )
    scans = [
        open_scan(
            item,
            # Scans that were joined may differ in what they hold; all of them say the same of it.
            domain=request.domain or (stored_domain(request.reconstruction) if joined is None else None),
            probe_key=request.probe_key,
            pattern_axis=request.pattern_axis,
            options=options if item == path else replace(options, product_file=None),
        )
        for item in paths
    ]
    scan = scans[0] if joined is None else join_scans(scans, joined.offsets_yx_px, joined.gain)
    found.in_scan(scan)
    if options.probe_window is not None and scan.patch_px != found.probe.shape[-1]:
        raise ConfigError(
            f"{path}: the probe was found in another window (got --probe-window {options.probe_window}, "
            f"{scan.patch_px} px, expected {found.probe.shape[-1]} px). Leave out --probe-window."
        )
    return scan


def split_halves(
    model_path: Path, scan: Scan, request: Request, progress: Progress, *, found: Reconstruction
) -> tuple[Reconstruction, Reconstruction]:
    """Reconstruct a scan from each random half of its patterns. The probe of the whole, ``found``, stays.
    Raise ``PtychoError`` where there is no model, or it does not fit the patterns."""
    engine = load_engine(request.backend)
    model = engine.load(find_model(model_path, request.backend))
    model = fitted_model(engine, model, scan, f"the model {model_path}")
    needed = engine.core_config(model).gridsize ** 2
    if len(scan.usable) // 2 < needed:
        raise DataError(
            f"{scan.name}: too few patterns for two halves (got {len(scan.usable)}, expected at least "
            f"{2 * needed}). Leave --model-path out."
        )
    variation = _variation_in(found, scan)
    order = np.random.default_rng(request.seed).permutation(scan.usable)
    middle = len(order) // 2
    one, two = (
        engine.reconstruct(
            model,
            scan,
            np.sort(half),
            execution=request.execution,
            progress=progress,
            refine=request.refine,
            given_probe=found.probe,
            given_variation=None if variation is None else variation.of(np.sort(half)),
        )
        for half in (order[:middle], order[middle:])
    )
    return one, two


def _variation_in(found: Reconstruction, scan: Scan) -> ProbeVariation | None:
    """Return how the probe varies over a whole scan; it is the mean one where the reconstruction took no part
    of the patterns."""
    if found.variation is None:
        return None
    weights = np.zeros((scan.n_patterns, 1 + len(found.variation.modes)), np.float32)
    weights[:, 0] = 1
    weights[found.in_scan(scan).rows] = found.variation.weights
    return ProbeVariation(found.variation.modes, weights)


def _options(found: Reconstruction, asked: FileOptions) -> FileOptions:
    """Return what the user says about the data file, and for the rest what the run was told."""
    told = dict(found.stored.options) if found.stored is not None else {}
    for name in ("product_file", "mask_file"):
        # A mask that is gone is in the file of the reconstruction as well.
        path = told.pop(name, None)
        if path is not None and Path(path).is_file():
            told[name] = Path(path)
    given = asked.given()
    if given.get("propagation") == "far" or given.keys() & set(OF_NEAR_FIELD):
        # What the run was told of its near field does not go with another one.
        told = {name: value for name, value in told.items() if name not in OF_NEAR_FIELD}
    return FileOptions(**{**told, **given})


def _check_request(request: Request) -> None:
    """Refuse a request that compares nothing, or that would leave out what was asked for."""
    validate_execution_config(request.execution)
    if request.truth is None and request.reference is None and request.test_data is None:
        raise ConfigError(
            f"{request.reconstruction}: nothing to compare with (got neither --truth, --reference nor "
            "--test-data, expected at least one). Name one."
        )
    if request.model_path is not None and request.test_data is None:
        raise ConfigError(
            f"{request.model_path}: a model needs patterns to split in halves (got no --test-data, expected "
            "a file). Pass --test-data."
        )
    if request.refine is not None and request.refine.steps < 1:
        raise ConfigError(
            f"half scans: --refine is out of range (got {request.refine.steps}, expected >= 1). "
            "Pass --refine 50."
        )
    if request.refine is not None and request.model_path is None:
        raise ConfigError(
            f"half scans: --refine needs them (got {request.refine.steps} steps, no --model-path, expected "
            "a trained model). Pass --model-path."
        )
    others = [item.name for item in fields(request.execution) if item.name != "accelerator"]
    why = "has no effect"
    refuse_changed(request.execution, others, "evaluation", why, "")
    if request.model_path is None:
        where, action = "evaluation without half scans", " or pass --model-path"
        refuse_changed(request, ("backend", "seed"), where, why, action)
        refuse_changed(request.execution, ("accelerator",), where, why, action)
    if request.test_data is None:
        where, action = "evaluation without patterns", " or pass --test-data"
        names = ("further_scans", "domain", "probe_key", "pattern_axis")
        refuse_changed(request, names, where, why, action)
        refuse_changed(request.options, FileOptions.names(), where, why, action)
    # The probe of the reconstruction counts, and its power with it.
    refuse_changed(request.options, ("keep_probe_power",), "evaluation", why, "")
    _check_choices(request)


def _check_choices(request: Request) -> None:
    """Refuse values that no choice knows."""
    refused = {
        "domain": (request.domain in (None, *allowed(MeasurementDomain)), "counts or amplitude"),
        "pattern_axis": (request.pattern_axis in (None, 0, 1, 2), "0, 1 or 2"),
        "seed": (isinstance(request.seed, int) and 0 <= request.seed < 2**63, "an integer >= 0 and < 2**63"),
    }
    for name, (fine, expected) in refused.items():
        if not fine:
            value = getattr(request, name)
            raise ConfigError(
                f"evaluation: {name} is out of range (got {value!r}, expected {expected}). Correct it."
            )
    require_backend(request.backend)


def _files_read(request: Request) -> dict[str, Path | None]:
    """Return the files of a request by the flag that names them."""
    reference = request.reference
    return {
        "--reconstruction": reconstruction_file(request.reconstruction),
        "--reference": None if reference is None else reconstruction_file(reference),
        "--truth": request.truth,
        "--test-data": request.test_data,
        **numbered("--test-data", request.further_scans),
        "--model-path": request.model_path,
        "--product": request.options.product_file,
        "--mask": request.options.mask_file,
    }


def _references(found: Reconstruction, truth: Path | None, reference: Path | None) -> list[Reference]:
    """Read what the reconstruction is compared with, on its canvas."""
    references = []
    if truth is not None:
        known = truth_on_canvas(truth, found)
        if known is None:
            raise DataError(
                f"{truth}: the file does not hold a known truth (expected objectGuess with object_is_truth). "
                "Pass --reference with another reconstruction instead."
            )
        references.append((truth, Reference("truth", *known, known=True)))
    if reference is not None:
        known = on_canvas_of(read_reconstruction(reference), found)
        references.append((reference, Reference("reference", *known)))
    for path, other in references:
        if not other.mask.any():
            raise DataError(
                f"{path}: it does not overlap the reconstruction (got 0 shared pixels, expected > 0). "
                "Name one of the same field."
            )
    return [other for _, other in references]


def _compare(
    result: Evaluation,
    folder: Path,
    obj: NDArray[Any],
    other: Reference,
    names: tuple[str, str],
    title: str,
    errors: ObjectErrors | None = None,
) -> dict[str, float]:
    """Score an object, and its error bars, against a reference; write the pictures, and the correlation as
    picture and numbers."""
    fit = solve_gauge(obj, other.obj, other.mask)
    scores = score_aligned(fit.obj, other.obj, other.mask, known_truth=other.known)
    picture = folder / f"comparison_{other.name}.png"
    result.files.append(save_comparison_png(fit.obj, other.obj, picture, scores, other.mask, names))
    curve = correlate(fit.obj, other.obj, other.mask, known_truth=other.known)
    columns = np.stack([curve.frequency_cycles_per_px, curve.correlation, curve.half_bit], axis=1)
    header = "frequency_cycles_per_px,correlation,half_bit"
    result.files.append(save_frc_png(curve, folder / f"frc_{other.name}.png", title))
    result.files.append(write_columns(folder / f"frc_{other.name}.csv", header, columns))
    if errors is not None:
        scores |= interval_scores(fit.obj, other.obj, errors, abs(fit.scale), other.mask)
    return {**scores, **fit.removed()}


def _score_patterns(
    result: Evaluation, folder: Path, found: Reconstruction, scan: Scan, progress: Progress
) -> None:
    """Score every pattern by how well the reconstruction explains it; write the map over the scan."""
    placed = found.in_scan(scan)
    fit, numbers, positions = stored_fit(placed, progress), placed.numbers, placed.positions_yx_px
    placed = replace(placed, found=replace(found, fit=fit))
    result.verdict, misfit = judge(placed), fit.residuals
    result.scores.update(
        residual_mean=float(misfit.mean()),
        residual_median=float(np.median(misfit)),
        residual_max=float(misfit.max()),
        residual_worst_pattern=float(numbers[int(np.argmax(misfit))]),
    )
    result.files.append(save_residual_map_png(positions, misfit, folder / "residuals.png"))
    columns = np.stack([numbers, positions[:, 0], positions[:, 1], misfit], axis=1)
    result.files.append(write_columns(folder / "residuals.csv", "pattern,y_px,x_px,misfit", columns))


def _compare_halves(result: Evaluation, folder: Path, one: Reconstruction, two: Reconstruction) -> None:
    """Score two half scans against each other: the resolution both of them reach."""
    one, two = (replace(half, coverage=HALF_COVERAGE * half.coverage) for half in (one, two))
    other = Reference("half_scans", *on_canvas_of(two, one))
    scores = _compare(result, folder, one.obj, other, ("first half", "second half"), "two half scans")
    result.scores["half_scan_resolution_px"] = scores["frc_resolution_px"]
    result.scores["half_scan_complex_nrmse"] = scores["complex_nrmse"]


def _write_tables(folder: Path, scores: dict[str, float]) -> list[Path]:
    """Write the scores as comma-separated values and as a table for a report."""
    csv = "".join(f"{name},{value:.8g}\n" for name, value in scores.items())
    report = "".join(f"| {name} | {value:.6g} |\n" for name, value in scores.items())
    tables = {"metrics.csv": "metric,value\n" + csv, "metrics.md": "| metric | value |\n|---|---|\n" + report}
    for name, text in tables.items():
        with atomic_path(folder / name) as temporary:
            Path(temporary).write_text(text, encoding="utf-8")
    return [folder / name for name in tables]
