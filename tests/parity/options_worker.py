"""Compute what every option changes with one backend: ``python options_worker.py torch|tf folder``.

Written into the folder is ``options_<backend>.npz``. Two frameworks never share a process.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from judges import as_array
from worker import CPU, Backend

from ptycho.config.config import ModelConfig, TrainingConfig
from ptycho.data.feed import GroupSource, TileSource, scan_labels
from ptycho.data.prepare import mask_of
from ptycho.data.scan import PatternStore, Scan
from ptycho.data.selection import training_groups
from ptycho.errors import DataError
from ptycho.files.reader import open_scan
from ptycho.geometry.grouping import covering_groups
from ptycho.networks.architectures import CORRECTION_FACTOR, architecture_table, initial_weights
from ptycho.networks.bundle import Bundle
from ptycho.physics.losses import loss_terms
from ptycho.process.progress import Progress
from ptycho.run.job import TrainingJob

Answers = dict[str, NDArray[Any]]
PLAIN: dict[str, Any] = {"N": 32, "n_filters_scale": 1, "architecture": "cnn"}
SWITCHES = ("cbam_encoder", "cbam_bottleneck", "cbam_decoder", "eca_encoder", "eca_decoder")
NETWORK: dict[str, dict[str, Any]] = {
    "plain": {},
    **{name: {name: True} for name in SWITCHES},
    "spatial_decoder": {"spatial_decoder": True},
    "decoder_spatial_kernel": {"spatial_decoder": True, "decoder_spatial_kernel": 3},
    "probe_big": {"probe_big": False},
    "pad_object": {"pad_object": False},
    "n_filters_scale": {"n_filters_scale": 2},
    **{f"amp_activation={name}": {"amp_activation": name} for name in ("swish", "softplus", "relu")},
}
"""Name -> what differs from the plain network."""

UNROLLED: dict[str, Any] = {"N": 32, "architecture": "unrolled", "unrolled_steps": 4, "unrolled_width": 4}
GROUPED = {**PLAIN, "gridsize": 2}
LABELLED = {"realspace_weight": 0.5, "realspace_mae_weight": 0.5}
SMOOTH = {"realspace_weight": 0.5, "tv_weight": 0.5}
LOSSES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "cnn": (GROUPED, {}),
    "cnn/torch_loss_mode=poisson": (GROUPED, {"torch_loss_mode": "poisson"}),
    "cnn/torch_loss_mode=mae": (GROUPED, {"torch_loss_mode": "mae"}),
    "cnn/nll_weight": (GROUPED, {"nll_weight": 0.5}),
    "cnn/mae_weight": (GROUPED, {"mae_weight": 0.5}),
    "cnn/tv_weight": (GROUPED, SMOOTH),
    "cnn/realspace_mae_weight": (GROUPED, LABELLED),
    "cnn/object_big": ({**GROUPED, "object_big": False}, {}),
    "cnn/gaussian_smoothing_sigma": ({**GROUPED, "gaussian_smoothing_sigma": 0.8}, {}),
    "cnn/probe_mask": ({**GROUPED, "probe_mask": True, "probe_mask_diameter": 12.0}, {}),
    "cnn/supervised": ({**GROUPED, "model_type": "supervised"}, {}),
    "unrolled": (UNROLLED, {}),
    "unrolled/mae_weight": (UNROLLED, {"mae_weight": 0.5}),
    "unrolled/tv_weight": (UNROLLED, SMOOTH),
    "unrolled/realspace_mae_weight": (UNROLLED, LABELLED),
    "unrolled/probe_mask": ({**UNROLLED, "probe_mask": True, "probe_mask_diameter": 12.0}, {}),
}
"""Name -> network, settings of the training."""
TRAININGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "cnn": (PLAIN, {}),
    "supervised": ({**PLAIN, "model_type": "supervised"}, {}),
    "labels": (PLAIN, {**LABELLED, **SMOOTH}),
    "unrolled": (UNROLLED, {}),
    "hidden": (UNROLLED, {"torch_loss_mode": "hidden"}),
    "gain": (UNROLLED, {"intensity_scale_trainable": True}),
    "probe": ({**UNROLLED, "probe_mask": True, "probe_mask_sigma": 0.0}, {"probe_trainable": True}),
}
EPOCHS = 2


def every_weight(model: ModelConfig) -> dict[str, NDArray[np.float32]]:
    """Return weights of which every one matters; those that two networks share are the same."""
    weights = initial_weights(architecture_table(model), 4)
    for name, start in weights.items():
        rng = np.random.default_rng(len(name) + start.size)
        gate = any(part in name for part in ("eca", "cbam", "spatial"))
        spread = 0.3 if gate else 0.02 if start.ndim == 1 else 0.0
        weights[name] = (start + spread * rng.standard_normal(start.shape)).astype(np.float32)
        if name.endswith("cbam_reduce/bias"):
            weights[name] += 2.0  # no unit of the narrow perceptron may be dead
    return weights


def network_options(backend: Backend) -> Answers:
    """Return patches and gradients of ``cnn`` with one option changed at a time, in double precision."""
    found: Answers = {}
    rng = np.random.default_rng(6)
    patterns = backend.tensor(rng.random((3, 1, 32, 32)))
    target = backend.tensor(np.exp(1j * rng.random((3, 1, 32, 32))))
    for name, options in NETWORK.items():
        model = ModelConfig(**(PLAIN | options))
        generator = backend.generators.build_generator(model, 0)
        generator.import_weights(every_weight(model), "test")
        if backend.name == "torch":
            generator = generator.double()

        def loss(generator: Any = generator) -> Any:
            total = backend.framework.abs(generator(patterns) - target) ** 2
            return total.sum() if backend.name == "torch" else backend.framework.reduce_sum(total)

        found[f"patches/{name}"] = as_array(generator(patterns))
        _, slopes = backend.gradients(generator, loss)
        found |= {f"slope/{name}/{key}": slope for key, slope in slopes.items()}
    return found


def settings(model: dict[str, Any], changes: dict[str, Any], folder: Path) -> TrainingConfig:
    """Return the settings of a short training."""
    chosen = {"torch_loss_mode": "amplitude", "intensity_scale_trainable": False, **changes}
    return TrainingConfig(
        ModelConfig(**model), nepochs=EPOCHS, batch_size=16, n_groups=64, neighbor_count=6, output_dir=folder,
        **chosen,
    )  # fmt: skip


def batch_loss(backend: Backend, scan: Scan, config: TrainingConfig) -> float:
    """Return the loss of one batch of a scan, with weights that all matter."""
    model = config.model
    bundle = Bundle("numpy", model, every_weight(model), scan.probe, 0.05, False, scan.record)
    built = backend.engine.from_bundle(bundle)
    built.terms = loss_terms(config)
    labels = scan_labels(scan) if built.terms.needs_labels else None
    with PatternStore(scan, Progress()) as store:
        if model.architecture == "unrolled":
            held_out = np.arange(7, 60, 9)
            batch = TileSource(store, scan, np.arange(scan.n_patterns), held_out=held_out, labels=labels)[20]
        else:
            groups = covering_groups(scan.positions_yx_px, gridsize=model.gridsize)
            batch = GroupSource(store, scan, groups, merge=model.object_big, labels=labels)[[3, 40, 21]]
    tensors = {name: backend.tensor(value) for name, value in batch.items()}
    return float(as_array(built.loss(tensors)))


def losses(backend: Backend, folder: Path) -> Answers:
    """Return the loss of one batch with one option changed at a time."""
    found: Answers = {}
    for name, (model, changes) in LOSSES.items():
        config = settings(model, changes, folder)
        scan = open_scan(folder / "scan.npz", mask=mask_of(config.model))
        found[f"loss/{name}"] = np.array(batch_loss(backend, scan, config))
    return found


def trainings(backend: Backend, folder: Path) -> Answers:
    """Train shortly with some options; note losses, gain and probe, and what is said without labels."""
    found: Answers = {}
    for name, (model, changes) in TRAININGS.items():
        config = settings(model, changes, folder / f"{backend.name}_{name}")
        scan = open_scan(folder / "scan.npz", mask=mask_of(config.model))
        job = TrainingJob(config, CPU, scan, *training_groups(scan, config, validate=True))
        result = backend.engine.fit(job)
        bundle = backend.engine.to_bundle(result.model)
        found |= {f"history/{name}/{key}": np.array(values) for key, values in result.history.items()}
        found |= {f"gain/{name}": np.array(bundle.log_gain), f"probe/{name}": bundle.probe}
        found[f"factor/{name}"] = bundle.weights.get(CORRECTION_FACTOR, np.ones(2, np.float32))
        if name == "supervised":
            scan.raw.objectGuess = None
            try:
                backend.engine.fit(dataclasses.replace(job, progress=Unused()))
            except DataError as error:
                found["refused"] = np.array(str(error))
    return found


class Unused(Progress):
    """Fails where anything is begun."""

    def phase(self, name: str, total: int) -> Any:
        """Refuse."""
        raise AssertionError(f"{name} has begun")


def main(name: str, folder: Path) -> None:
    """Compute everything."""
    backend = Backend(name)
    answers = network_options(backend) | losses(backend, folder) | trainings(backend, folder)
    np.savez(folder / f"options_{name}.npz", **answers)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
