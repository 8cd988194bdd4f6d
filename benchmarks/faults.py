"""Faults of measured data, planted one by one: what a reconstruction is worth with the checks and without.

usage: python benchmarks/faults.py [--seed 21] [--only WORD]

One scan of 100 patterns of 64 px, 1e6 photons each, reconstructed by the network that comes with the package.
`checks off` runs without the registry of checks; `as it is` is what a user gets; `with the flag` is the cure,
`not named` where no line of the program tells it. Errors are complex NRMSE against the simulated truth.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import h5py
import numpy as np

from ptycho.config.config import InferenceConfig, ModelConfig, PyTorchExecutionConfig
from ptycho.data.checks import registry
from ptycho.data.npz import write_npz
from ptycho.data.optics import HC_EV_M, NUMBERS
from ptycho.data.reconstruction import Reconstruction
from ptycho.errors import PtychoError
from ptycho.evaluation.metrics import score
from ptycho.process.progress import Progress
from ptycho.run.outputs import truth_on_canvas
from ptycho.run.pipeline import infer
from ptycho.simulation.simulate import SimulationOptions, simulate

Arrays = dict[str, Any]
N_PX, SIDE = 64, 10
ALL = SIDE**2
ENERGY_EV, DISTANCE_M, DETECTOR_PIXEL_M = 8800.0, 2.0, 75e-6
OBJECT_PIXEL_M = HC_EV_M / ENERGY_EV * DISTANCE_M / (N_PX * DETECTOR_PIXEL_M)
FOLLOWED = {"refine_frames": True, "refine_steps": 60, "refine_start": "flat"}
CPU = PyTorchExecutionConfig(accelerator="cpu")


@dataclass(frozen=True)
class Fault:
    """One fault: what it does to the arrays of a scan, and the flag that cures it.

    Attributes
    ----------
    name : str
        For the table.
    plant : callable
        Arrays of a scan -> those of the damaged one; the second argument draws random numbers.
    flag : dict
        Settings of an inference.
    """

    name: str
    plant: Callable[[Arrays, np.random.Generator], Arrays]
    flag: dict[str, Any] = field(default_factory=dict)


def counts(change: Callable[..., np.ndarray]) -> Callable[..., Arrays]:
    """Return a fault of the patterns alone."""
    return lambda scan, rng: {**scan, "diff3d": change(scan["diff3d"].astype(np.int64), rng)}


def placed(change: Callable[..., tuple[np.ndarray, np.ndarray]]) -> Callable[..., Arrays]:
    """Return a fault of the positions alone; the function takes x and y and returns them."""

    def plant(scan: Arrays, _: np.random.Generator) -> Arrays:
        x, y = change(scan["xcoords"], scan["ycoords"])
        return {**scan, "xcoords": x, "ycoords": y}

    return plant


def scaled(factor: float, about_middle: bool = False) -> Callable[..., Arrays]:
    """Return a fault: the positions have another unit or scale."""
    rest = (1 - factor) * about_middle
    return placed(lambda x, y: (factor * x + rest * x.mean(), factor * y + rest * y.mean()))


def gap(value: float, dtype: Any) -> Callable[..., Arrays]:
    """Return a fault: four rows and four columns hold a number that stands for no measurement."""
    lines = (np.arange(N_PX) >= 20) & (np.arange(N_PX) < 24)
    return counts(lambda d, _: np.where(lines[:, None] | lines, value, d).astype(dtype))


def hot_and_dead(d: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return patterns with two hot pixels and a dead one."""
    found = d.copy()
    found[:, 12, 40] += rng.poisson(3000, len(d))
    found[:, 50, 20] += rng.poisson(3000, len(d))
    found[:, 30, 36] = 0
    return found


def with_mask(scan: Arrays, rng: np.random.Generator) -> Arrays:
    """Return a scan whose mask marks the good pixels, and whose bad ones are dark."""
    bad = rng.random((N_PX, N_PX)) < 0.05
    return {**scan, "diff3d": np.where(bad, 0, scan["diff3d"]), "mask": ~bad}


def flat_fielded(d: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return counts over the response of each pixel."""
    return (d / rng.normal(1.0, 0.05, d.shape[1:])).astype(np.float32)


def struck(d: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return patterns with zingers in two of 10,000 values."""
    return np.where(rng.random(d.shape) < 2e-4, d + 50000, d)


def brighter(factor: np.ndarray) -> Callable[..., Arrays]:
    """Return a fault: the beam has another intensity in every pattern."""
    return counts(lambda d, rng: rng.poisson(d * factor[:, None, None]))


def unsteady(scan: Arrays, rng: np.random.Generator) -> Arrays:
    """Return a scan whose beam has another intensity in every pattern, by chance."""
    return brighter(rng.uniform(0.7, 1.3, ALL))(scan, rng)


def rowwise(rows: np.ndarray, change: Callable[[np.ndarray], np.ndarray]) -> Callable[..., Arrays]:
    """Return a fault of some patterns."""
    return counts(lambda d, _: np.where(np.isin(np.arange(len(d)), rows)[:, None, None], change(d), d))


def sparse(scan: Arrays, _: np.random.Generator) -> Arrays:
    """Return a scan whose neighbours share no light."""
    options = SimulationOptions(n_px=N_PX, n_y=6, n_x=6, step_px=34.0, photons=1e6, seed=int(scan["seed"]))
    return dict(simulate(options))


FAULTS = (
    Fault("none", lambda scan, _: scan),
    Fault("gap of 2^32 - 1", gap(2**32 - 1, np.uint32)),
    Fault("gap of 65535", gap(65535, np.uint16)),
    Fault("gap of -1", gap(-1, np.int32)),
    Fault("gap of NaN", gap(np.nan, np.float32)),
    Fault("two hot pixels, one dead", counts(hot_and_dead)),
    Fault("zingers", counts(struck)),
    Fault("saturated at a fifth of the brightest", counts(lambda d, _: np.minimum(d, d.max() // 5))),
    Fault("mask marks the good pixels", with_mask),
    Fault("every 7th pattern dark", rowwise(np.arange(0, ALL, 7), np.zeros_like)),
    Fault("one pattern of 100 saturated", rowwise(np.array([51]), lambda d: np.full_like(d, 60000))),
    Fault("half of the patterns repeat one", rowwise(np.arange(50, ALL), lambda d: d[50:51])),
    Fault("96 patterns, 100 positions", counts(lambda d, _: d[:96]), {"match_lengths": "head"}),
    Fault("beam 3 px beside the middle", counts(lambda d, _: np.roll(d, (3, -2), (1, 2)))),
    Fault("zero frequency in the corner", counts(lambda d, _: np.fft.ifftshift(d, axes=(1, 2)))),
    Fault("flat-fielded counts", counts(flat_fielded)),
    Fault(
        "amplitude in whole numbers",
        counts(lambda d, _: np.rint(8 * np.sqrt(d)).astype(np.uint16)),
        {"measurement_domain": "amplitude"},
    ),
    Fault("amplitude in floats", counts(lambda d, _: np.sqrt(d).astype(np.float32))),
    Fault("beam 30 % brighter from pattern 51 on", brighter(1 + 0.3 * (np.arange(ALL) > 50)), FOLLOWED),
    Fault("beam that falls by 30 %", brighter(np.linspace(1, 0.7, ALL)), FOLLOWED),
    Fault("every pattern of another dose, 30 %", unsteady, FOLLOWED),
    Fault("positions in metres", scaled(OBJECT_PIXEL_M)),
    Fault("positions in micrometres", scaled(OBJECT_PIXEL_M * 1e6)),
    Fault("positions stretched by 10 %", scaled(1.1, about_middle=True)),
    Fault("x and y exchanged", placed(lambda x, y: (y, x)), {"find_orientation": True}),
    Fault("x mirrored", placed(lambda x, y: (x.max() + x.min() - x, y)), {"find_orientation": True}),
    Fault("steps of 34 px, 29 px lit", sparse),
)


def write_cxi(
    scan: Arrays, path: Path, *, energy: float = ENERGY_EV, distance: float = DISTANCE_M,
    pixel: float = DETECTOR_PIXEL_M, position_unit_m: float = 1.0, mapped: int = ALL, written: int = ALL,
) -> None:  # fmt: skip
    """Write a CXI file without units; of its patterns so many are mapped, or written."""
    xyz_m = np.stack([scan["xcoords"], scan["ycoords"], 0 * scan["xcoords"]], axis=1) * OBJECT_PIXEL_M
    patterns, place = scan["diff3d"], "entry_1/data_1/data"
    with h5py.File(path, "w") as file:
        detector = file.create_group("entry_1/instrument_1/detector_1")
        file["entry_1/instrument_1/beam_1/incident_beam_energy"], detector["distance"] = energy, distance
        detector["x_pixel_size"] = detector["y_pixel_size"] = pixel
        file["entry_1/sample_1/geometry_1/translation"] = xyz_m / position_unit_m
        file["entry_1/instrument_1/source_1/illumination"] = scan["probeGuess"]
        if mapped == ALL:
            chunked = file.create_dataset(place, patterns.shape, patterns.dtype, chunks=(1, N_PX, N_PX))
            chunked[:written] = patterns[:written]
            return
        beside = path.with_suffix(".h5")
        with h5py.File(beside, "w") as source:
            source["frames"] = patterns[:mapped]
        layout = h5py.VirtualLayout(patterns.shape, patterns.dtype)
        layout[:mapped] = h5py.VirtualSource(beside.name, "frames", (mapped, N_PX, N_PX))
        file.create_virtual_dataset(place, layout)


FILES: dict[str, dict[str, Any]] = {
    "CXI: none": {},
    "CXI: energy in keV": {"energy": ENERGY_EV / 1e3},
    "CXI: distance in mm": {"distance": DISTANCE_M * 1e3},
    "CXI: detector pixel in um": {"pixel": DETECTOR_PIXEL_M * 1e6},
    "CXI: positions in um": {"position_unit_m": 1e-6},
    "CXI: 40 of 100 patterns unmapped": {"mapped": 60},
    "CXI: 40 of 100 chunks not written": {"written": 60},
}


@contextlib.contextmanager
def checks_off() -> Iterator[None]:
    """Run without the registry of checks."""
    with mock.patch.multiple(registry, PATTERN_CHECKS=(), SCAN_CHECKS=()):
        yield


def nrmse(found: Reconstruction, truth_file: Path, turned: bool) -> float:
    """Return the error against the truth of the scan without a fault; a turned scan has its middle there."""
    if turned:
        with np.load(truth_file) as arrays:
            shape = np.array(arrays["objectGuess"].shape)
        found = replace(found, origin_yx_px=(shape - found.obj.shape) / 2)
    truth, mask = truth_on_canvas(truth_file, found) or (found.obj, found.scanned)
    return score(found.obj, truth, mask)["complex_nrmse"]


def outcome(path: Path, folder: Path, **settings: Any) -> tuple[str, str]:
    """Return error and verdict of one reconstruction, and what checks and verdict say."""
    told = io.StringIO()
    logger = logging.getLogger(registry.__name__)
    logger.handlers, logger.propagate = [logging.StreamHandler(told)], False
    config = InferenceConfig(
        ModelConfig(), Path("pretrained"), path, output_dir=folder / "out", backend="pytorch", **settings
    )
    try:
        found = infer(config, CPU, progress=Progress())
        error = found.scores.get("complex_nrmse")
        if error is None:
            error = nrmse(found.reconstruction, folder / "truth.npz", "find_orientation" in settings)
    except PtychoError as error:
        return "refused", str(error).partition(": ")[2]
    except Exception as error:
        return f"crash ({type(error).__name__})", ""
    reasons = found.verdict.reasons
    lines = [line.partition(": ")[2] for line in told.getvalue().splitlines()]
    said = [f"{'warned' if line in reasons else 'repaired'}: {line}" for line in lines]
    said += [f"verdict: {line}" for line in reasons if line not in lines]
    return f"{error:.4f} {found.verdict.word}", "; ".join(said)


def cure_of(fault: dict[str, Any], told: str) -> tuple[dict[str, Any], str]:
    """Return the settings of a cure and their flag; a number of the instrument is the one that is named."""
    for setting, flag in NUMBERS.items():
        if number := re.search(rf"{flag} (\d[\d.]*(?:e[+-]?\d+)?)", told):
            return {setting: float(number[1])}, f"`{number[0].rstrip('.')}`"
    flag = f"--{next(iter(fault), '').replace('_', '-')}"
    return fault, f"`{flag}`" if flag in told else f"`{flag}` (not named)"


def row(name: str, path: Path, folder: Path, flag: dict[str, Any]) -> str:
    """Return one row of the table."""
    with checks_off(), np.errstate(all="ignore"):
        before, _ = outcome(path, folder)
    after, told = outcome(path, folder)
    settings, shown = cure_of(flag, told)
    cure = f"{shown}: {outcome(path, folder, **settings)[0]}" if settings else ""
    short = told if len(told) < 80 else f"{told[:77]}..."
    return f"| {name} | {before} | {after} | {short.replace('|', '/')} | {cure} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=21)
    parser.add_argument("--only", default="", help="rows whose name holds this word")
    options = parser.parse_args()
    logging.getLogger("ptycho").setLevel(logging.WARNING)
    shape = SimulationOptions(n_px=N_PX, n_y=SIDE, n_x=SIDE, step_px=6.0, photons=1e6, seed=options.seed)
    scan = dict(simulate(shape)) | {"seed": options.seed}
    start = {"xcoords_start", "ycoords_start"}
    print("| fault | checks off | as it is | what the program says | with the flag |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = folder / "scan.npz"
        write_npz(folder / "truth.npz", {key: scan[key] for key in ("objectGuess", "object_is_truth")})
        for fault in FAULTS:
            if options.only in fault.name:
                arrays = fault.plant(scan, np.random.default_rng(options.seed))
                write_npz(path, {key: value for key, value in arrays.items() if key not in start | {"seed"}})
                print(row(fault.name, path, folder, fault.flag), flush=True)
        for name, mistake in FILES.items():
            if options.only in name:
                write_cxi(scan, folder / "scan.cxi", **mistake)
                print(row(name, folder / "scan.cxi", folder, {}), flush=True)


if __name__ == "__main__":
    main()
