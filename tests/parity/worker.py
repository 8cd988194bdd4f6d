"""Compute the same things with one backend: ``python worker.py torch|tf folder [masked|other]``.

The folder holds ``scan.npz``, ``masked.npz``, ``dark.npz`` and a bundle of every architecture. Written
into it are ``<backend>.npz``, with ``masked`` what becomes of bad pixels, or with ``other`` the object that
the bundle of the other backend gives. Two frameworks never share a process.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from judges import as_array, small_scan

from ptycho import physics as reference
from ptycho.config.config import ModelConfig, PyTorchExecutionConfig, TrainingConfig
from ptycho.data.scaling import NOT_MEASURED
from ptycho.data.scan import Scan
from ptycho.data.selection import training_groups
from ptycho.evaluation.metrics import score
from ptycho.files.reader import open_scan
from ptycho.networks.bundle import read_bundle, write_bundle
from ptycho.physics.detector import Detector
from ptycho.physics.pixel_parts import part_turns
from ptycho.physics.propagation import near_field_transfer
from ptycho.process.progress import Progress
from ptycho.run.job import TrainingJob
from ptycho.run.outputs import truth_on_canvas
from ptycho.solver.options import RefineOptions

Array = NDArray[Any]
ARCHITECTURES = ("cnn", "unrolled", "unrolled_poisson")
LOSSES = ("amplitude_loss", "mean_absolute_loss", "poisson_loss")
PACKAGES = {"torch": "ptycho_torch", "tf": "ptycho.tf"}
MODELS = {
    "unrolled": ModelConfig(N=32, architecture="unrolled", unrolled_steps=6, unrolled_width=6),
    "unrolled_poisson": ModelConfig(
        N=32, architecture="unrolled", unrolled_steps=6, unrolled_width=6, unrolled_likelihood="poisson"
    ),
    "cnn": ModelConfig(N=32, architecture="cnn", n_filters_scale=1, gridsize=2),
}
BUNDLED = Path(__file__).resolve().parents[2] / "datasets" / "demo_64.npz"
BUNDLED_MODEL = ModelConfig(N=64, architecture="unrolled", unrolled_steps=12, unrolled_width=8)
CPU = PyTorchExecutionConfig(accelerator="cpu", logger_backend=None)
ALL: dict[str, Any] = {"n_groups": 100}
FEW: dict[str, Any] = {"n_groups": 24, "batch_size": 8}
TRAININGS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "unrolled": ("unrolled", ALL, {}),
    "unrolled_refined": ("unrolled", {**ALL, "probe_trainable": True}, {}),
    "unrolled_poisson_clipped": (
        "unrolled",
        {**ALL, "torch_loss_mode": "poisson", "gradient_clip_val": 1e-3, "scheduler": "Exponential"},
        {},
    ),
    "cnn": ("cnn", {**FEW, "intensity_scale_trainable": True}, {}),
    "cnn_accumulated": (
        "cnn",
        {**FEW, "batch_size": 4, "optimizer": "adamw", "weight_decay": 0.1, "torch_loss_mode": "mae"},
        {"accum_steps": 2},
    ),
    "cnn_sgd": ("cnn", {**FEW, "optimizer": "sgd", "weight_decay": 0.01}, {}),
}
BUNDLED_TRAINING: dict[str, Any] = {"n_groups": 1000, "probe_trainable": True}
"""Name -> architecture, settings, execution settings."""
EPOCHS, QUALITY_EPOCHS = 3, 2
REFINE = {
    "all": RefineOptions(12, probe=True, positions=True, frames=True, start="flat"),
    "poisson": RefineOptions(6, likelihood="poisson", tv=1e-3),
}
"""Name -> what a reconstruction is refined with."""


class Backend:
    """One backend under the names that both share."""

    def __init__(self, name: str) -> None:
        self.name = name
        names = ("physics", "engine", "solver", "generators", "data")
        modules = [importlib.import_module(f"{PACKAGES[name]}.{part}") for part in names]
        self.physics, self.engine, self.solver, self.generators, self.data = modules
        self.framework: Any = importlib.import_module("torch" if name == "torch" else "tensorflow")
        if name == "torch":
            self.framework.set_num_threads(1)

    def tensor(self, array: Array) -> Any:
        """Return an array as a tensor."""
        return self.framework.from_numpy(array) if self.name == "torch" else self.framework.constant(array)

    def gradients(self, generator: Any, loss: Callable[[], Any]) -> tuple[float, dict[str, Array]]:
        """Return a loss, and its gradient by table name in table layout."""
        if self.name == "tf":
            with self.framework.GradientTape() as tape:
                value = loss()
            found = tape.gradient(value, generator.weights)
            return float(value), {name: as_array(slope) for name, slope in found.items()}
        value = loss()
        value.backward()
        found = {name: as_array(vector.grad) for name, vector in generator.vectors.items()}
        for name, layer in generator.convolutions.items():
            found[f"{name}/kernel"] = as_array(layer.weight.grad.permute(2, 3, 1, 0))
            found[f"{name}/bias"] = as_array(layer.bias.grad)
        return float(value.detach()), found


def physics_answers(backend: Backend, *, masked: bool = False) -> dict[str, Array]:
    """Return the answer of every function of the physics in single precision, on request with bad pixels."""
    rng = np.random.default_rng(5)
    scan = small_scan(np.complex64)
    n_px = scan.amplitude.shape[-1]
    waves = rng.standard_normal((2, *scan.probes.shape))
    wave = (waves[0] + 1j * waves[1]).astype(np.complex64)
    amplitude = scan.amplitude.copy()
    if masked:
        amplitude[rng.random(amplitude.shape) < 0.2] = NOT_MEASURED
    # Not near the solution: there the residual is a small difference of large waves, mostly rounding.
    other = (scan.obj[::-1] + 0.1).astype(np.complex64)
    arguments: dict[str, Any] = {
        "n_px": n_px,
        "sigma_px": 0.7,
        "shape_yx": scan.obj.shape,
        "obj": other,
        "corners_yx": scan.corners_yx,
        "probes": scan.probes,
        "amplitude": amplitude,
        "predicted": scan.amplitude[::-1].copy(),
        "patches": wave[:, 0].copy(),
        "exit_wave": wave,
        "field": wave,
        "residual": wave,
        "intensity": scan.amplitude[::-1] ** 2,
        "shifts_yx_px": rng.uniform(-1, 1, (len(wave), 2)).astype(np.float32),
        "axis": 1,
        "strains": True,
        "waves": wave[::-1].copy(),
        "fitting": wave,
        "probe": wave[0],
        "modes": wave[1:3, 0].copy(),
        "weights": rng.uniform(-1, 1, (len(wave), 3)).astype(np.float32),
        "windows": 1,
        "turns": part_turns(n_px, 2).astype(np.complex64),
        "parted": np.repeat(wave, 4, axis=1),
        "likelihood": "amplitude",
        "detector": Detector(None, backend.tensor(rng.uniform(0, 4, (n_px, n_px)).astype(np.float32))),
    }
    near = near_field_transfer(n_px, 0.13, rng.uniform(-1, 1, (len(wave), 2))).astype(np.complex64)
    found = {}
    for name, function in inspect.getmembers(reference, inspect.isfunction):
        if name == "centring_phase" or not function.__module__.startswith(reference.__name__):
            continue
        own = arguments | {"transfer": near if name.startswith("near_field") else None}
        chosen = {key: own[key] for key in inspect.signature(function).parameters}
        if masked and "amplitude" not in chosen:
            continue
        tensors = {key: backend.tensor(v) if isinstance(v, np.ndarray) else v for key, v in chosen.items()}
        answer = getattr(backend.physics, name)(**tensors)
        several = answer if isinstance(answer, tuple) else (answer,)
        found |= {f"physics/{name}/{k}": as_array(part) for k, part in enumerate(several)}
    return found


def network_answers(backend: Backend, folder: Path) -> dict[str, Array]:
    """Return losses and gradients of both networks in double precision, for every loss."""
    found: dict[str, Array] = {}
    scan = small_scan(np.complex128, noisy=True)
    corners, probes, amplitude = map(backend.tensor, scan.chunks()[0])
    chunk = backend.solver.Chunk(corners, probes, amplitude)
    patterns = np.random.default_rng(6).random((3, 4, 32, 32))
    wide = backend.tensor(np.random.default_rng(7).standard_normal((1, 32, 32)) * (1 + 0j))
    measured = backend.tensor(5 * patterns.reshape(12, 32, 32))
    for architecture in ARCHITECTURES:
        bundle = read_bundle(folder / f"{architecture}.h5.zip")
        for name in LOSSES:
            generator = backend.generators.build_generator(bundle.model, 0)
            generator.import_weights(bundle.weights, "test")
            if backend.name == "torch":
                generator = generator.double()
            judge = getattr(backend.physics, name)

            def loss(generator: Any = generator, judge: Any = judge, kind: str = architecture) -> Any:
                if kind == "cnn":
                    patches = backend.framework.reshape(generator(backend.tensor(patterns)), (12, 32, 32))
                    return judge(backend.physics.diffracted_amplitude(patches, wide), measured)
                light = backend.solver.scan_illumination([chunk], scan.obj.shape)
                patches = backend.physics.extract_patches(generator([chunk], light), corners, 16)
                return judge(backend.physics.diffracted_amplitude(patches, probes), amplitude)

            value, slopes = backend.gradients(generator, loss)
            found[f"loss/{architecture}/{name}"] = np.array(value)
            found |= {f"gradient/{architecture}/{name}/{key}": slope for key, slope in slopes.items()}
    return found


def reconstructed(backend: Backend, bundle: Path, scan: Scan, **options: Any) -> Any:
    """Return the reconstruction of a scan with a bundle."""
    model = backend.engine.from_bundle(read_bundle(bundle))
    members = np.arange(scan.n_patterns)
    return backend.engine.reconstruct(model, scan, members, execution=CPU, progress=Progress(), **options)


def trained(
    backend: Backend, scan: Scan, folder: Path, name: str, epochs: int
) -> tuple[Any, dict[str, list[float]]]:
    """Train as ``TRAININGS`` says; return the model and its losses."""
    architecture, settings, execution = TRAININGS.get(name, ("", BUNDLED_TRAINING, {}))
    chosen = {"torch_loss_mode": "amplitude", "intensity_scale_trainable": False, **settings}
    config = TrainingConfig(
        MODELS.get(architecture, BUNDLED_MODEL),
        nepochs=epochs,
        neighbor_count=6,
        output_dir=folder / f"{backend.name}_{name}",
        **chosen,
    )
    groups, validation = training_groups(scan, config, validate=True)
    job = TrainingJob(config, dataclasses.replace(CPU, **execution), scan, groups, validation)
    result = backend.engine.fit(job)
    return result.model, result.history


def refined(backend: Backend, folder: Path, scan: Scan, prefix: str) -> dict[str, Array]:
    """Return what the refinements of ``REFINE`` find."""
    answers: dict[str, Array] = {}
    for name, refine in REFINE.items():
        found = reconstructed(backend, folder / "unrolled.h5.zip", scan, refine=refine)
        answers |= {f"{prefix}/{name}/object": found.obj, f"{prefix}/{name}/probe": found.probe}
        answers[f"{prefix}/{name}/misfit"] = np.array(found.misfit)
        if found.positions_yx_px is not None:
            answers[f"{prefix}/{name}/moves"] = found.positions_yx_px - scan.positions_yx_px
    return answers


def masked_stage(backend: Backend, folder: Path) -> None:
    """What becomes of a scan with bad pixels, different ones in every pattern."""
    scan = open_scan(folder / "masked.npz")
    answers = physics_answers(backend, masked=True) | refined(backend, folder, scan, "refine")
    for architecture in ARCHITECTURES:
        found = reconstructed(backend, folder / f"{architecture}.h5.zip", scan, fit_scale=True)
        answers[f"object/{architecture}"], answers["coverage"] = found.obj, found.coverage
    # Plain descent for cnn: a step of Adam is as long where the sign of a gradient is rounding.
    for name in ("unrolled_refined", "unrolled_poisson_clipped", "cnn_sgd"):
        _, history = trained(backend, scan, folder / "masked", name, EPOCHS)
        answers |= {f"history/{name}/{key}": np.array(values) for key, values in history.items()}
    np.savez(folder / f"{backend.name}_masked.npz", **answers)


def first_stage(backend: Backend, folder: Path) -> None:
    """Everything that one backend does alone."""
    scan = open_scan(folder / "scan.npz")
    answers = physics_answers(backend) | network_answers(backend, folder)
    for architecture in ARCHITECTURES:
        for options in ({}, {"fit_scale": True, "patch_weighting": "uniform"}):
            found = reconstructed(backend, folder / f"{architecture}.h5.zip", scan, **options)
            answers[f"object/{architecture}/{len(options)}"] = found.obj
            answers[f"coverage/{architecture}/{len(options)}"] = found.coverage
    answers |= refined(backend, folder, scan, "refine")
    answers["dark"] = reconstructed(backend, folder / "unrolled.h5.zip", open_scan(folder / "dark.npz")).obj
    for name in TRAININGS:
        model, history = trained(backend, scan, folder, name, EPOCHS)
        answers |= {f"history/{name}/{key}": np.array(values) for key, values in history.items()}
    scan = open_scan(BUNDLED)
    model, _ = trained(backend, scan, folder, "bundled", QUALITY_EPOCHS)
    bundle = write_bundle(folder / f"trained_{backend.name}.h5.zip", backend.engine.to_bundle(model))
    found = reconstructed(backend, bundle, scan)
    truth, mask = truth_on_canvas(BUNDLED, found) or (None, None)
    answers |= {f"quality/{key}": np.array(value) for key, value in score(found.obj, truth, mask).items()}
    answers["own"] = found.obj
    np.savez(folder / f"{backend.name}.npz", **answers)


def main(name: str, folder: Path, stage: str = "alone") -> None:
    """Run one stage."""
    backend = Backend(name)
    if stage != "other":
        {"alone": first_stage, "masked": masked_stage}[stage](backend, folder)
        return
    other = {"torch": "tf", "tf": "torch"}[name]
    found = reconstructed(backend, folder / f"trained_{other}.h5.zip", open_scan(BUNDLED))
    np.savez(folder / f"{name}_other.npz", object=found.obj, coverage=found.coverage)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])
