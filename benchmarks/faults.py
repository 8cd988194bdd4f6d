"""Faults of measured data, planted one by one: what a reconstruction is worth with the checks and without.

usage: python benchmarks/faults.py [--seed 21] [--only WORD]

One scan of 100 patterns of 64 px, 1e6 photons each, reconstructed by the network that comes with the package.
`checks off` runs without the registry of checks; `as it is` is what a user gets; `with the flag` follows the
line that the program prints. Errors are complex NRMSE against the truth of the simulation.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import h5py
import numpy as np

from ptycho.checks import registry
from ptycho.config.config import InferenceConfig, ModelConfig, PyTorchExecutionConfig
from ptycho.errors import PtychoError
from ptycho.files.optics import HC_EV_M
from ptycho.npz import write_npz
from ptycho.pipeline import infer
from ptycho.progress import Progress
from ptycho.simulate import SimulationOptions, simulate

Arrays = dict[str, Any]
N_PX, SIDE = 64, 10
ALL = SIDE**2
ENERGY_EV, DISTANCE_M, DETECTOR_PIXEL_M = 8800.0, 2.0, 75e-6
OBJECT_PIXEL_M = HC_EV_M / ENERGY_EV * DISTANCE_M / (N_PX * DETECTOR_PIXEL_M)
FOLLOWED = {"refine_frames": True, "refine_steps": 60, "refine_start": "flat"}
CPU = PyTorchExecutionConfig(accelerator="cpu")


@dataclass(frozen=True)
class Fault:
    """One fault: what it does to the arrays of a scan, and the flag that the program names.

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


def placed(
    change: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]],
) -> Callable[..., Arrays]:
    """Return a fault of the positions alone; the function takes x and y and returns them."""

    def plant(scan: Arrays, _: np.random.Generator) -> Arrays:
        x, y = change(scan["xcoords"], scan["ycoords"])
        return {**scan, "xcoords": x, "ycoords": y}

    return plant


def scaled(factor: float) -> Callable[..., Arrays]:
    """Return a fault: the positions are in another unit."""
    return placed(lambda x, y: (factor * x, factor * y))


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
    Fault("beam 30 % brighter from pattern 51 on", brighter(1 + 0.3 * (np.arange(ALL) > 50)), FOLLOWED),
    Fault("beam that falls by 30 %", brighter(np.linspace(1, 0.7, ALL)), FOLLOWED),
    Fault("every pattern of another dose, 30 %", unsteady, FOLLOWED),
    Fault("positions in metres", scaled(OBJECT_PIXEL_M)),
    Fault("positions in micrometres", scaled(OBJECT_PIXEL_M * 1e6)),
    Fault("positions stretched by 10 %", scaled(1.1)),
    Fault("x and y exchanged", placed(lambda x, y: (y, x)), {"find_orientation": True}),
    Fault("x mirrored", placed(lambda x, y: (x.max() + x.min() - x, y)), {"find_orientation": True}),
    Fault("steps of 34 px, 29 px lit", sparse),
)


def cxi_energy_in_keV(scan: Arrays, path: Path) -> None:
    """Write a CXI file whose photon energy is in keV and does not say so."""
    _write_cxi(scan, path, energy=ENERGY_EV / 1e3)


def cxi_with_holes(scan: Arrays, path: Path) -> None:
    """Write a CXI file whose virtual dataset maps 60 of 100 patterns."""
    _write_cxi(scan, path, mapped=60)


def _write_cxi(scan: Arrays, path: Path, energy: float = ENERGY_EV, mapped: int | None = None) -> None:
    positions = np.stack([scan["xcoords"], scan["ycoords"], 0 * scan["xcoords"]], axis=1) * OBJECT_PIXEL_M
    with h5py.File(path, "w") as file:
        instrument = file.create_group("entry_1/instrument_1")
        detector = instrument.create_group("detector_1")
        detector["distance"], instrument["beam_1/incident_beam_energy"] = DISTANCE_M, energy
        detector["x_pixel_size"] = detector["y_pixel_size"] = DETECTOR_PIXEL_M
        file["entry_1/sample_1/geometry_1/translation"] = positions
        file["entry_1/instrument_1/source_1/illumination"] = scan["probeGuess"]
        if mapped is None:
            file["entry_1/data_1/data"] = scan["diff3d"]
            return
        with h5py.File(path.with_suffix(".h5"), "w") as source:
            source["frames"] = scan["diff3d"][:mapped]
        layout = h5py.VirtualLayout(scan["diff3d"].shape, scan["diff3d"].dtype)
        layout[:mapped] = h5py.VirtualSource(path.with_suffix(".h5").name, "frames", (mapped, N_PX, N_PX))
        file.create_virtual_dataset("entry_1/data_1/data", layout)


FILES = (("CXI: energy in keV", cxi_energy_in_keV), ("CXI: 40 of 100 patterns unmapped", cxi_with_holes))


@contextlib.contextmanager
def checks_off() -> Iterator[None]:
    """Run without the registry of checks."""
    with mock.patch.multiple(registry, PATTERN_CHECKS=(), SCAN_CHECKS=()):
        yield


def outcome(path: Path, folder: Path, **settings: Any) -> tuple[str, str, str]:
    """Return error, verdict and what was found of one reconstruction, by the checks or else the verdict."""
    told = io.StringIO()
    handler = logging.StreamHandler(told)
    logger = logging.getLogger(registry.__name__)
    logger.handlers, logger.propagate = [handler], False
    config = InferenceConfig(
        ModelConfig(), Path("pretrained"), path, output_dir=folder / "out", backend="pytorch", **settings
    )
    try:
        found = infer(config, CPU, progress=Progress())
    except PtychoError as error:
        return "–", "refused", str(error).partition(": ")[2]
    except Exception as error:
        return "–", f"crash ({type(error).__name__})", ""
    error = found.scores.get("complex_nrmse")
    lines = [line.partition(": ")[2] for line in told.getvalue().splitlines()]
    told = "; ".join(lines or found.verdict.reasons)
    return "–" if error is None else f"{error:.4f}", found.verdict.word, told


def row(name: str, path: Path, folder: Path, flag: dict[str, Any]) -> str:
    """Return one row of the table."""
    with checks_off(), np.errstate(all="ignore"):
        before = outcome(path, folder)
    after = outcome(path, folder)
    told = after[2] if len(after[2]) < 80 else after[2][:77] + "..."
    cells = [name, f"{before[0]} {before[1]}", f"{after[0]} {after[1]}", told.replace("|", "/")]
    if flag:
        cured = outcome(path, folder, **flag)
        cells.append(f"`{', '.join(flag)}`: {cured[0]} {cured[1]}")
    else:
        cells.append("")
    return f"| {' | '.join(cells)} |"


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
        for fault in FAULTS:
            if options.only in fault.name:
                arrays = fault.plant(scan, np.random.default_rng(options.seed))
                write_npz(path, {key: value for key, value in arrays.items() if key not in start | {"seed"}})
                print(row(fault.name, path, folder, fault.flag), flush=True)
        for name, write in FILES:
            if options.only in name:
                write(scan, folder / "scan.cxi")
                print(row(name, folder / "scan.cxi", folder, {}), flush=True)


if __name__ == "__main__":
    main()
