"""Models on disk: bundles that every backend reads, written during a training run and read to go on."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho.config.choices import LAST_CHECKPOINT
from ptycho.data.npz import atomic_path, read_npz, write_npz
from ptycho.errors import BundleError
from ptycho.networks.bundle import Bundle, read_bundle, write_bundle
from ptycho.networks.schedule import best_names
from ptycho.process.interrupts import held_back
from ptycho.tf.model import PtychoPINN

LAST_NAME = LAST_CHECKPOINT["tensorflow"]
STATE_SUFFIX = ".state.npz"
"""Beside the last bundle: what the optimiser remembers, so that a run goes on as if never stopped."""
PROGRESS_KEY, DIGEST_KEY = "progress", "bundle_sha256"
State = tuple[dict[str, Any], dict[str, NDArray[Any]]]
"""Plain numbers of a training run, and the arrays of its optimiser."""


def fill(model: PtychoPINN, bundle: Bundle) -> None:
    """Give a model the weights, probe and scale of a bundle of any backend; ``BundleError`` if a weight is
    missing, unknown, or of another shape."""
    model.take(bundle)
    model.log_gain.assign(bundle.log_gain)


def from_bundle(bundle: Bundle) -> PtychoPINN:
    """Build a model from a bundle of any backend, ready to reconstruct; ``BundleError`` as :func:`fill`."""
    model = PtychoPINN(bundle.model)
    fill(model, bundle)
    return model


def load_bundle(path: Path) -> Bundle:
    """Read a bundle; ``BundleError`` if it is damaged, does not fit this version, or is a file that only
    PyTorch reads."""
    if path.suffix in (".ckpt", ".pt"):
        raise BundleError(
            f"{path}: this is a checkpoint of the PyTorch backend (got {path.suffix}, expected a bundle "
            "such as wts.h5.zip). Pass --backend pytorch, or the wts.h5.zip of that training."
        )
    return read_bundle(path)


def load(path: Path) -> PtychoPINN:
    """Load a trained model from a bundle of any backend; ``BundleError`` as :func:`load_bundle`."""
    return from_bundle(load_bundle(path))


@dataclass
class Checkpoints:
    """The checkpoints of one training run; each file appears whole or not at all."""

    folder: Path  # ``checkpoints`` in the output directory
    keep: int = 1  # how many of the best epochs are kept; 0 keeps none
    mode: str = "min"  # or ``max``
    kept: list[tuple[float, Path]] = field(default_factory=list)  # values and files, the best first

    def save(self, model: PtychoPINN, epoch: int, value: float, state: State) -> None:
        """Write an epoch (from 0) and the state to go on from it as the last, and keep it where the monitored
        ``value`` is one of the best."""
        self.folder.mkdir(parents=True, exist_ok=True)
        bundle = model.to_bundle()
        with held_back():
            last = write_bundle(self.folder / LAST_NAME, bundle)
            (progress, optimizer), digest = state, np.array(_digest(last))
            text = np.array(json.dumps(progress))
            write_npz(_state_path(last), {PROGRESS_KEY: text, **optimizer, DIGEST_KEY: digest})
        order = -1 if self.mode == "max" else 1
        full = len(self.kept) >= self.keep
        if not self.keep or not np.isfinite(value) or (full and order * value >= order * self.kept[-1][0]):
            return
        path = self.folder / best_names("tensorflow", epoch + 1)[self.keep > 1]
        with atomic_path(path) as temporary:
            Path(temporary).write_bytes(last.read_bytes())
        dropped = self.kept[self.keep - 1 :]
        self.kept = sorted([*self.kept[: self.keep - 1], (value, path)], key=lambda pair: order * pair[0])
        for _, old in dropped:
            if old != path:
                old.unlink(missing_ok=True)

    def files(self) -> list[Path]:
        """Return the files that are there, the best first."""
        found = [path for _, path in self.kept[:1]] + [self.folder / LAST_NAME]
        return [path for path in found if path.is_file()]


def best_files(checkpoint: Path, number: int | None) -> list[Path]:
    """Return the files beside the last checkpoint that may hold the best epoch, ``number`` from 1; none for
    None."""
    names = () if number is None else best_names("tensorflow", number)
    return [path for path in map(checkpoint.with_name, names) if path.is_file()]


def _state_path(bundle: Path) -> Path:
    return bundle.with_name(bundle.name.removesuffix(".h5.zip") + STATE_SUFFIX)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_state(bundle: Path) -> State | None:
    """Return the state beside a bundle; None where there is none, or one of another epoch."""
    path = _state_path(bundle)
    if not path.is_file():
        return None
    state = read_npz(path)
    if str(state.pop(DIGEST_KEY)) != _digest(bundle):
        return None
    return json.loads(str(state.pop(PROGRESS_KEY))), state
