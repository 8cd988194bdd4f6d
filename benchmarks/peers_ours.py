"""This toolkit's own curves in the comparison: refinement from flat, the network, and the network refined."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from peers_cases import Case

from ptycho.config.choices import PRETRAINED
from ptycho.config.config import ModelConfig, PyTorchExecutionConfig, TrainingConfig
from ptycho.data.reconstruction import Reconstruction
from ptycho.data.scan import Scan
from ptycho.data.selection import training_groups
from ptycho.process.progress import Phase, Progress
from ptycho.run.engines import find_model, fitted_model
from ptycho.run.job import TrainingJob
from ptycho.solver.options import RefineOptions
from ptycho_torch import engine
from ptycho_torch.config_bridge import from_core
from ptycho_torch.model import PtychoPINN_Lightning

STEPS = (2, 3, 5, 8, 12, 20, 30, 45, 70, 110, 170, 260, 400)
"""Steps of the refinements; each is run from its start, so that its time is that of a user."""
REFINE_STEPS = (5, 10, 20, 40, 80)
"""The same behind a network."""
TV = 0.01
"""Total variation per step where photons are few."""
EXECUTION = PyTorchExecutionConfig(logger_backend=None, enable_checkpointing=False, accelerator="cpu")


class Point(NamedTuple):
    """One reconstruction of a curve: steps, seconds of the reconstruction, and what was found."""

    steps: int
    seconds: float
    found: Reconstruction


class _Moments(Progress):
    """Keeps the moment at which every epoch ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def phase(self, name: str, total: int) -> Phase:
        moments = self

        class Noted(Phase):
            def update(self, done: int, **values: Any) -> None:
                if name == "training":
                    moments.ends.append(time.perf_counter())

        return Noted()


def untrained(scan: Scan, settings: ModelConfig) -> PtychoPINN_Lightning:
    """Return a network with its first weights; a refinement from flat takes nothing from it."""
    data, model, training = from_core(settings)
    network = PtychoPINN_Lightning(model, data, training)
    network.attach_scan(scan.probe, scan.record, refined=False)
    return network.eval()


def _refined(
    model: PtychoPINN_Lightning, scan: Scan, options: RefineOptions, steps: tuple[int, ...], seconds: float
) -> Iterator[Point]:
    """Reconstruct with more and more steps until one run takes the time given, or stops by itself."""
    members = np.arange(scan.n_patterns)
    for count in steps:
        refine = replace(options, steps=count)
        found = engine.reconstruct(
            model, scan, members, execution=EXECUTION, progress=Progress(), refine=refine
        )
        yield Point(len(found.misfit) - 1, found.seconds, found)
        if found.seconds > seconds or len(found.misfit) - 1 < count:
            return


def refinements(case: Case, scan: Scan, seconds: float) -> dict[str, list[Point]]:
    """Return the curves of the refinements from flat."""
    model = untrained(scan, ModelConfig(N=scan.n_px, architecture="unrolled"))
    options = RefineOptions(1, probe=case.probe_is_off, start="flat")
    list(_refined(model, scan, options, (1,), seconds))
    curves = {"refine from flat": list(_refined(model, scan, options, STEPS, seconds))}
    if case.dim:
        smooth = replace(options, likelihood="poisson", tv=TV)
        curves["refine from flat, Poisson and TV"] = list(_refined(model, scan, smooth, STEPS, seconds))
    return curves


def _job(scan: Scan, folder: Path, epochs: int, progress: Progress, *, probe: bool) -> TrainingJob:
    config = TrainingConfig(
        ModelConfig(N=scan.n_px, gridsize=1, architecture="unrolled"),
        nepochs=epochs,
        n_groups=scan.n_patterns,
        torch_loss_mode="amplitude",
        probe_trainable=probe,
        intensity_scale_trainable=False,
        output_dir=folder,
        backend="pytorch",
    )
    groups, _ = training_groups(scan, config, validate=False)
    return TrainingJob(config, EXECUTION, scan, groups, progress=progress)


def trained(case: Case, scan: Scan, seconds: float) -> tuple[PtychoPINN_Lightning, float]:
    """Train on the scan for about so many seconds; return the network and the time it took."""
    with tempfile.TemporaryDirectory() as folder:
        probe, moments = case.probe_is_off, _Moments()
        engine.fit(_job(scan, Path(folder), 3, moments, probe=probe))
        epoch = float(np.diff(moments.ends)[-1])
        result = engine.fit(_job(scan, Path(folder), max(1, int(seconds / epoch)), Progress(), probe=probe))
    return result.model, result.seconds


def pretrained(case: Case, scan: Scan) -> dict[str, list[Point]]:
    """Return the one point of the network that comes with the package, which never saw the scan."""
    model = fitted_model(engine, engine.load(find_model(Path(PRETRAINED))), scan, PRETRAINED)
    members = np.arange(scan.n_patterns)
    for _ in range(2):
        found = engine.reconstruct(
            model, scan, members, execution=EXECUTION, progress=Progress(), fit_probe=case.probe_is_off
        )
    return {"pretrained network": [Point(0, found.seconds, found)]}


def network_curves(
    case: Case, scan: Scan, model: PtychoPINN_Lightning, seconds: float, origin: str
) -> dict[str, list[Point]]:
    """Return the curve of a network whose object is refined; its first point is the network alone."""
    members = np.arange(scan.n_patterns)
    engine.reconstruct(model, scan, members, execution=EXECUTION, progress=Progress())
    alone = engine.reconstruct(model, scan, members, execution=EXECUTION, progress=Progress())
    options = RefineOptions(1, probe=case.probe_is_off)
    if case.dim:
        options = replace(options, likelihood="poisson", tv=TV)
    return {
        f"network, refined, {origin}": [
            Point(0, alone.seconds, alone),
            *_refined(model, scan, options, REFINE_STEPS, seconds),
        ]
    }
