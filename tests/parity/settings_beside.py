"""Walks over the settings beside training and inference: simulation, pre-training, evaluation."""

from __future__ import annotations

import importlib
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from settings_walk import Circumstances, Walk
from settings_worker import (
    BACKENDS,
    CPU,
    JUDGED_BY_THE_FILE,
    MASK,
    SCANS,
    SITUATIONS,
    WITH_VALUE,
    Maker,
    flags_of,
    trained_models,
)
from watched import Kept

from ptycho.cli.evaluate_command import build_parser as evaluation_parser
from ptycho.config.config import InferenceConfig, ModelConfig
from ptycho.data.npz import read_npz, write_npz
from ptycho.data.optics import FileOptions
from ptycho.networks.bundle import write_bundle
from ptycho.run import pipeline
from ptycho.run.evaluate import Request, evaluate
from ptycho.simulation.curriculum import PretrainOptions
from ptycho.simulation.objects import SCENES
from ptycho.simulation.simulate import SimulationOptions, write_scan
from ptycho.solver.options import RefineOptions

SMALL = SimulationOptions(n_px=32, n_y=4, n_x=4, step_px=3.0)
SIMULATIONS: dict[str, dict[str, Any]] = {
    "raster": {},
    "spiral": {"scan": "spiral"},
    "picture": {"picture": "", "phase_picture": ""},
}
"""What is simulated -> what differs from the small raster."""


def _simulated(parts: dict[str, Any], folder: Path, scan: Path, progress: Kept) -> None:
    folder.mkdir()
    write_scan(folder / "scan.npz", parts["options"])


def _picture(path: Path, seed: int) -> str:
    from matplotlib.image import imsave

    imsave(path, np.random.default_rng(seed).random((90, 90)), cmap="gray")
    return str(path)


def simulation(name: str, folder: Path, scans: dict[str, Path], case: str) -> Walk:
    """Return the walk over a simulation."""
    shown = {key: _picture(folder / f"{key}.png", 1) for key in ("picture", "phase_picture")}
    others = {key: _picture(folder / f"other_{key}.png", 2) for key in shown}
    changes = {key: shown.get(key) or value for key, value in SIMULATIONS[case].items()}
    scene = next(key for key in SCENES if key != SMALL.scene)
    paths: dict[str, Any] = {**others, "scene": scene}
    contexts = {
        "phase_picture": {"picture": shown["picture"]},
        "n_positions": {"scan": "spiral"},
        "mode_decay": {"n_modes": 2},
        "propagation": {},
        "fresnel_number": {"propagation": "near", "fresnel_number": 0.1},
    }
    with_value = {("propagation", "near"): {"fresnel_number": 0.1}}
    needs = Circumstances(contexts, with_value)
    parts, run = {"options": replace(SMALL, **changes)}, folder / "run"
    return Walk(name, f"simulation {case}", parts, _simulated, run, paths, scans, needs)


def _pretrained(parts: dict[str, Any], folder: Path, scan: Path, progress: Kept) -> None:
    pretraining = importlib.import_module("ptycho_torch.pretraining")
    bundle = pretraining.pretrain(parts["options"], progress)
    folder.mkdir()
    write_bundle(folder / "wts.h5.zip", bundle)


def pretraining(name: str, folder: Path, scans: dict[str, Path]) -> Walk:
    """Return the walk over a pre-training."""
    parts = {"options": PretrainOptions(scans=1, iterations=1, batch_size=1, width=4)}
    return Walk(name, "pretraining", parts, _pretrained, folder / "run", {}, scans, Circumstances())


def evaluation(name: str, folder: Path, scans: dict[str, Path]) -> Walk:
    """Return the walk over an evaluation by patterns and half scans."""
    models = trained_models(name, folder, scans, "unrolled")
    plain = read_npz(scans["plain"])
    truth, short = folder / "truth.npz", folder / "short.npz"
    write_npz(truth, {**plain, "object_is_truth": np.array(True)})
    count = len(plain["diff3d"])
    write_npz(
        short, {key: value[:-1] if value.shape[:1] == (count,) else value for key, value in plain.items()}
    )
    made: dict[str, Path] = {"plain": models[0]}
    for kind in {*SCANS.values()}:
        made[kind] = folder / f"made_{kind}"
        asked = InferenceConfig(ModelConfig(), models[0], short if kind == "uneven" else scans[kind])
        pipeline.infer(replace(asked, backend=BACKENDS[name], output_dir=made[kind]), CPU)

    def run(parts: dict[str, Any], out: Path, scan: Path, progress: Kept) -> None:
        sections = {key: parts[key] for key in ("execution", "refine", "options")}
        request = replace(parts["request"], **sections)
        named = {"test_data": request.test_data or scan}
        if request.reconstruction == Path():
            named["reconstruction"] = made[scan.stem]
        evaluate(replace(request, **named), out, progress)

    request = Request(Path(), model_path=models[0], backend=BACKENDS[name], execution=CPU)
    parts = {
        "request": request,
        "execution": CPU,
        "refine": RefineOptions(5),
        "options": FileOptions(),
    }
    paths = {
        "reconstruction": models[1],
        "reference": models[1],
        "truth": truth,
        "test_data": scans["other"],
        "domain": "amplitude",
        "model_path": models[1],
        "product_file": scans["other"],
        "mask_file": folder / MASK,
    }
    left_out = dict.fromkeys(("execution", "refine", "options"), "a section, walked over itself")
    left_out["further_scans"] = "an object of one scan has none; tests of several scans look at it"
    left_out["backend"] = "the process that runs this has one; the walk is done with each"
    without_probe = {"unusual_probe": plain["probeGuess"], **plain}
    del without_probe["probeGuess"]
    scans = {**scans, "keyed": folder / "keyed.npz"}
    write_npz(scans["keyed"], without_probe)
    made["keyed"] = made["plain"]
    needs = Circumstances(
        scans={**SCANS, "probe_key": "keyed"},  # only such a file has to be read with it
        situations=SITUATIONS,
        with_value=WITH_VALUE,
        judged_by_file=(*JUDGED_BY_THE_FILE, "pattern_axis"),
        spellings=flags_of(evaluation_parser()),
    )
    return Walk(name, "evaluation", parts, run, folder / "run", paths, scans, needs, left_out)


BESIDE: dict[str, Maker] = {
    **{f"simulation {case}": partial(simulation, case=case) for case in SIMULATIONS},
    "pretraining": pretraining,
    "evaluation": evaluation,
}
"""What is run -> who makes the walk over its settings."""
