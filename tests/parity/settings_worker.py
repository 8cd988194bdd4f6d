"""Change every setting once and note what came of it: ``python settings_worker.py torch|tf``.

It reads lines ``{"folder": ..., "kind": ...}`` and answers each with ``WALKED`` when it has written
``settings_<backend>.json`` into the folder: what a run is, which setting, and the verdict. A verdict begins
with ``changed`` or ``refused``; every other one is a fault. One process walks over many kinds, because
importing a framework takes as long as a walk; two frameworks never share a process.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from file_makers import Instrument, cxi_tree, write_tree
from settings_walk import Circumstances, Walk
from watched import Kept

from ptycho.cli.flags import inference_parser, training_parser
from ptycho.config.config import InferenceConfig, ModelConfig, PyTorchExecutionConfig, TrainingConfig
from ptycho.data.npz import write_npz
from ptycho.errors import ConfigError
from ptycho.run import orientation_search, pipeline
from ptycho.simulation.simulate import SimulationOptions, simulate
from ptycho.solver import refinement, schedule

MASK = "mask.npy"
"""File of bad pixels beside the scans."""
BACKENDS = {"torch": "pytorch", "tf": "tensorflow"}
OPTICS = ("photon_energy_eV", "detector_distance_m", "detector_pixel_m", "object_pixel_m")
NEAR = ("propagation", "focus_distance_m", "fresnel_number")
JUDGED_BY_THE_FILE = (
    "N", "probe_key", "product_file", "flip_positions", "swap_positions", "export", "probe_window",
    *OPTICS, *NEAR,
)  # fmt: skip
"""Only the file can say whether they fit it."""
REFINED = {"refine_steps": 5}
WORKER, TWO_EPOCHS = {"num_workers": 1}, {"nepochs": 2}
TERMS = {"realspace_weight": 0.5}
PLATEAU = {"plateau_threshold": 0.9, "plateau_patience": 0}
PLATEAUED = {"scheduler": "Adaptive", "nepochs": 3, **PLATEAU}
CONTEXTS: dict[str, dict[str, Any]] = {
    "neighbor_pool_size": {"n_groups": 50, "enable_oversampling": True},
    "subsample_seed": {"n_subsample": 24},
    "seed": {"n_groups": 24},
    "realspace_weight": {"realspace_weight": 0.5, "tv_weight": 0.5},
    "gradient_clip_algorithm": {"gradient_clip_val": 1e-3},
    "lr_warmup_epochs": {"scheduler": "WarmupCosine", "nepochs": 3},
    "lr_min_ratio": {"scheduler": "Cosine", "nepochs": 3},
    **dict.fromkeys(("plateau_factor", "plateau_min_lr", "plateau_patience"), PLATEAUED),
    "plateau_threshold": {**PLATEAUED, "plateau_threshold": 0.0},
    **dict.fromkeys(("persistent_workers", "prefetch_factor"), WORKER),
    "optimizer": {"weight_decay": 0.1},
    "momentum": {"optimizer": "sgd", "nepochs": 2},
    **{
        f"refine_{name}": REFINED
        for name in ("probe", "positions", "affine", "frames", "likelihood", "tv", "start")
    },
    **{key: {"refine_steps": 8, "refine_probe": True} for key in ("probe_modes", "probe_variation")},
}
WITH_VALUE: dict[tuple[str, str | None], dict[str, Any]] = {
    ("scheduler", "Adaptive"): PLATEAU,
    ("scheduler", "ReduceLROnPlateau"): PLATEAU,
    ("propagation", "near"): {"fresnel_number": 0.15},  # another one than that of the scan
    ("uncertainty", "bootstrap"): REFINED,
    ("tv_weight", None): TERMS,
    ("realspace_mae_weight", None): TERMS,
}
SITUATIONS: dict[str, dict[str, Any]] = {
    "early_stop_patience": {"nepochs": 3, "learning_rate": 1e-14},  # more epochs than it waits
    "probe_window": {"detector_upsampling": 2},
    "enable_oversampling": {"n_groups": 50},  # more groups than patterns
    "scheduler": {"nepochs": 3},
    **dict.fromkeys(("checkpoint_mode", "checkpoint_save_top_k"), TWO_EPOCHS),
    # The object pixel is nearly that of a far field.
    "focus_distance_m": {"propagation": "near", "focus_distance_m": 3.5e-3},
    "fresnel_number": {"propagation": "near", "fresnel_number": 0.1},
    "export": {"object_pixel_m": 5e-8},  # sizes, which an NPZ file does not hold
}
SCANS = {
    "match_lengths": "uneven",
    "centre_patterns": "moved",
    "keep_frames": "dark",
    "keep_pixels": "hot",
    "keep_probe_power": "bright",
    "flip_positions": "metres",
    "swap_positions": "metres",
    "pattern_axis": "cube",
    **dict.fromkeys((*OPTICS, "focus_distance_m"), "metres"),
    **dict.fromkeys(("propagation", "fresnel_number"), "near"),
}
LEFT_OUT = {
    "model": "a section, whose fields are walked over themselves",
    "n_images": "an old name, which has tests of its own",
    "backend": "the process that runs this has one; the walk is done with each",
}


def write_scans(folder: Path) -> dict[str, Path]:
    """Write the small scan, and one for every effect that needs a special one."""
    options = SimulationOptions(n_px=32, n_y=6, n_x=6, step_px=3.0, photons=1e6, seed=3)
    plain = simulate(options)
    del plain["object_is_truth"]  # scores take longer than the run
    plain["other_probe"] = plain["probeGuess"] * np.exp(1j * np.linspace(0, 1, 32))
    made: dict[str, dict[str, Any]] = {"plain": plain, "other": simulate(replace(options, seed=4))}
    made["beside"] = {**plain, "xcoords": plain["xcoords"] + 2.5}
    made["uneven"] = {**plain, "diff3d": plain["diff3d"][:-1]}
    made["moved"] = {**plain, "diff3d": np.roll(plain["diff3d"], (5, 3), axis=(1, 2))}
    frames = plain["diff3d"].copy()
    frames[::9] = 0
    made["dark"] = {**plain, "diff3d": frames}
    frames = plain["diff3d"].astype(np.uint32)
    frames[:, 3, 4] += 5_000
    made["hot"] = {**plain, "diff3d": frames}
    made["bright"] = {**plain, "probeGuess": 3 * plain["probeGuess"]}
    made["near"] = simulate(replace(options, propagation="near", fresnel_number=0.1))
    del made["near"]["object_is_truth"]
    made["cube"] = simulate(replace(options, scan="spiral", n_positions=32))
    np.save(folder / MASK, np.indices((32, 32)).sum(axis=0) % 9 == 0)
    paths = {}
    for name, arrays in made.items():
        paths[name] = folder / f"{name}.npz"
        write_npz(paths[name], arrays)
    instrument = Instrument(n_px=32, pixel_yx_m=(75e-6, 75e-6))
    away_px = np.stack([plain["xcoords"], plain["ycoords"], 0 * plain["xcoords"]], axis=1)
    translation_m = away_px * np.array([*instrument.object_pixel_yx_m[::-1], 0.0])
    tree = cxi_tree(instrument, plain["diff3d"], translation_m)
    tree["entry_1/instrument_1/source_1/illumination"] = plain["probeGuess"].reshape(-1, 32, 32)
    paths["metres"] = write_tree(folder / "metres.cxi", tree)
    return paths


def flags_of(*parsers: Any) -> dict[str, list[str]]:
    """Return the flags of every setting."""
    found: dict[str, list[str]] = {}
    for parser in parsers:
        for action in parser._actions:
            found.setdefault(action.dest, []).extend(action.option_strings)
    return found


FLAGS = flags_of(training_parser("train"), inference_parser("inference"))
CNN = ModelConfig(N=32, n_filters_scale=1, architecture="cnn", gridsize=2)
UNROLLED = ModelConfig(N=32, architecture="unrolled", unrolled_steps=2, unrolled_width=4)
NETWORKS = {"unrolled": UNROLLED, "cnn": CNN}
SUPERVISED = replace(CNN, model_type="supervised")
CPU = PyTorchExecutionConfig(accelerator="cpu")
CIRCUMSTANCES = Circumstances(CONTEXTS, WITH_VALUE, SITUATIONS, SCANS, JUDGED_BY_THE_FILE, FLAGS)


def _placed(config: Any, folder: Path, name: str, scan: Path) -> Any:
    """Put the plain folder and the scan in, where the walk has not put others."""
    if config.output_dir == type(config).output_dir:
        config = replace(config, output_dir=folder)
    return config if getattr(config, name) is not None else replace(config, **{name: scan})


def trained(parts: dict[str, Any], folder: Path, scan: Path, progress: Kept) -> None:
    """Train with settings."""
    config = _placed(replace(parts["config"], model=parts["model"]), folder, "train_data_file", scan)
    pipeline.train(config, parts["execution"], progress=progress)


def inferred(parts: dict[str, Any], folder: Path, scan: Path, progress: Kept) -> None:
    """Reconstruct with settings."""
    config = _placed(replace(parts["config"], model=parts["model"]), folder, "test_data_file", scan)
    pipeline.infer(config, parts["execution"], progress=progress)


def training_settings(name: str, model: ModelConfig) -> TrainingConfig:
    """Return the settings of the plain training."""
    return TrainingConfig(
        model,
        nepochs=1,
        n_groups=8,
        seed=1,
        batch_size=4,
        neighbor_count=6,
        torch_loss_mode="amplitude",
        intensity_scale_trainable=False,
        backend=BACKENDS[name],
    )


def training(name: str, folder: Path, scans: dict[str, Path], architecture: str) -> Walk:
    """Return the walk over a training run."""
    model, run = NETWORKS.get(architecture, SUPERVISED), folder / "run"
    paths = dict.fromkeys(("train_data_file", "test_data_file", "product_file"), scans["other"])
    paths |= {"output_dir": run / "elsewhere", "mask_file": folder / MASK, "further_scans": (scans["other"],)}
    paths["init_weights"] = str(trained_model(name, folder / "begun", scans, model, seed=2))
    if architecture == "supervised":
        return _supervised(name, run, paths, scans)
    parts = {"config": training_settings(name, model), "model": model, "execution": CPU}
    kind = f"training {architecture}"
    return Walk(name, kind, parts, trained, run, paths, scans, CIRCUMSTANCES, LEFT_OUT)


def _supervised(name: str, run: Path, paths: dict[str, Any], scans: dict[str, Path]) -> Walk:
    """Return the walk over a training run on labels, which the scan in metres does not have."""
    special = {key: scan for key, scan in SCANS.items() if scan != "metres"}
    schedules = {key: value for key, value in WITH_VALUE.items() if key[0] == "scheduler"}
    needs = replace(CIRCUMSTANCES, scans=special, with_value=schedules)
    in_metres = (*OPTICS, "focus_distance_m")
    left_out = LEFT_OUT | dict.fromkeys(
        in_metres, "only looked at in a file in pixels; others walk over them"
    )
    unseen = "labels are compared with patches, not with patterns; the verdict alone looks at it"
    left_out |= dict.fromkeys(("propagation", "fresnel_number"), unseen)
    turned = "a scan whose positions are turned has no labels, which is refused"
    left_out |= dict.fromkeys(("flip_positions", "swap_positions"), turned)
    left_out["intensity_scale_trainable"] = "either value is a default, of the class or of the commands"
    parts = {"config": training_settings(name, SUPERVISED), "model": SUPERVISED, "execution": CPU}
    return Walk(name, "training supervised", parts, trained, run, paths, scans, needs, left_out)


def trained_model(name: str, path: Path, scans: dict[str, Path], model: ModelConfig, *, seed: int) -> Path:
    """Train a model on the plain scan; return its folder."""
    config = training_settings(name, model)
    pipeline.train(replace(config, seed=seed, output_dir=path, train_data_file=scans["plain"]), CPU)
    return path


def trained_models(name: str, folder: Path, scans: dict[str, Path], architecture: str) -> list[Path]:
    """Train two models on the plain scan; return their folders."""
    model = NETWORKS[architecture]
    return [trained_model(name, folder / f"model_{seed}", scans, model, seed=seed - 1) for seed in (1, 2)]


def inference(name: str, folder: Path, scans: dict[str, Path], architecture: str) -> Walk:
    """Return the walk over an inference, with a model of its own."""
    run, models = folder / "run", trained_models(name, folder, scans, architecture)
    paths = {"test_data_file": scans["other"], "product_file": scans["other"], "model_path": models[1]}
    paths |= {"output_dir": run / "elsewhere", "export": run / "product.h5", "mask_file": folder / MASK}
    paths["further_scans"] = (scans["beside"],)
    asked = InferenceConfig(ModelConfig(), models[0], None, backend=BACKENDS[name])
    parts = {"config": asked, "model": ModelConfig(), "execution": CPU}
    kind, left_out = f"inference {architecture}", dict(LEFT_OUT)
    if architecture == "unrolled":
        left_out["architecture"] = "the default says nothing, and the only other value is the model's own"
    # What cnn makes of patterns depends on no propagation; what is refined does.
    situations = {key: {**SITUATIONS.get(key, {}), **REFINED} for key in ("propagation", "fresnel_number")}
    contexts = {**CONTEXTS, "align_scans": {"further_scans": (scans["beside"],)}}
    needs = replace(CIRCUMSTANCES, contexts=contexts, situations=SITUATIONS | situations)
    return Walk(name, kind, parts, inferred, run, paths, scans, needs, left_out)


Maker = Callable[[str, Path, dict[str, Path]], Walk]
WALKS: dict[str, Maker] = {
    f"{make.__name__} {architecture}": partial(make, architecture=architecture)
    for make in (training, inference)
    for architecture in NETWORKS
}
WALKS["training supervised"] = partial(training, architecture="supervised")
"""What is run -> who makes the walk over its settings."""


@dataclass
class Planted:
    """Settings of which most are faulty."""

    used: float = 0.001
    refused: int = 1
    idle: int = 1
    late: int = 1
    unnamed: int = 1
    broken: int = 1
    unknown: bytes = b""


def _with_planted_faults(parts: dict[str, Any], folder: Path, scan: Path, progress: Kept) -> None:
    asked = parts["planted"]
    if asked.refused == 2:
        raise ConfigError("planted: refused is 2 (got 2, expected 1). Leave it out.")
    if asked.unnamed == 2:
        raise ConfigError("planted: something is wrong (got 2, expected 1).")
    if asked.broken == 2:
        raise ValueError("planted")
    parts = {**parts, "config": replace(parts["config"], learning_rate=asked.used)}
    trained(parts, folder, scan, progress)
    if asked.late == 2:
        raise ConfigError("planted: late is 2 (got 2, expected 1).")


def planted(name: str, folder: Path, scans: dict[str, Path]) -> Walk:
    """Return a walk that has something to find."""
    walk = training(name, folder, scans, "unrolled")
    walk.left_out = {item.name: "" for part in walk.parts.values() for item in fields(part)} | {"gone": ""}
    walk.parts["planted"], walk.run, walk.kind = Planted(), _with_planted_faults, PLANTED
    return walk


PLANTED = "planted"


WALKED = "walked"
"""Answer to a line."""


def walked(name: str, folder: Path, kind: str) -> None:
    """Walk over one kind of run and write the verdicts."""
    from settings_beside import BESIDE  # its walks take their scans and models from here

    scans, makers = write_scans(folder), WALKS | BESIDE | {PLANTED: planted}
    if name == "torch":
        from settings_native import NATIVE

        makers |= NATIVE
    verdicts = makers[kind](name, folder, scans).walk()
    (folder / f"settings_{name}.json").write_text(json.dumps(verdicts, indent=1), encoding="utf-8")


def main(name: str) -> None:
    """Walk as long as somebody asks for it."""
    # What these find has tests of its own; here it only has to be something.
    orientation_search.TRIAL = replace(orientation_search.TRIAL, steps=3)
    refinement.PROBE_REFINE_STEPS, schedule.REST_STEPS["positions"] = 5, 1
    if name == "torch":
        import torch

        torch.set_num_threads(1)
    else:
        import tensorflow as tf

        tf.config.run_functions_eagerly(True)
    for line in sys.stdin:
        asked = json.loads(line)
        walked(name, Path(asked["folder"]), asked["kind"])
        sys.stdout.write(f"{WALKED}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1])
