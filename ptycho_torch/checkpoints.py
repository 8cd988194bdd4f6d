"""Lightning checkpoints as files: read without unpickling, refused where a training run cannot go on from
one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ptycho.errors import BundleError
from ptycho.run.job import check_left
from ptycho_torch.model import CONFIG_TYPES, PtychoPINN_Lightning, restore


def damaged(path: Path, error: Exception) -> BundleError:
    """Return the error for a file that is no checkpoint, or was cut or changed; ``error`` is what reading it
    raised."""
    # What PyTorch says after its first sentence is advice to load the file unsafely.
    reason = " ".join(str(error).split()).split(". ")[0][:160]
    return BundleError(
        f"{path}: not a checkpoint of this toolkit, or damaged (got {type(error).__name__}: {reason}; "
        "expected the file a training wrote). Choose another file, or train again."
    )


def read_settings(path: Path) -> tuple[Any, Any, Any, Any]:
    """Return new data, model, training and inference settings that a checkpoint was trained with;
    ``BundleError`` if it is damaged, no checkpoint of this toolkit, or of another version."""
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)["hyper_parameters"]
        plain = {name: stored[name] for name in CONFIG_TYPES}
    except Exception as error:
        raise damaged(path, error) from error
    return tuple(restore(name, value) for name, value in plain.items())


def check_resume(path: Path, model: PtychoPINN_Lightning, n_epochs: int) -> None:
    """Refuse a checkpoint before anything of it is taken over: ``BundleError`` if it is damaged or holds
    another network than ``model``, ``ConfigError`` if it has all of the ``n_epochs`` already."""
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        found = {name: tuple(value.shape) for name, value in content["state_dict"].items() if name != "probe"}
        trained = int(content["epoch"]) + 1
    except Exception as error:
        raise damaged(path, error) from error
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items() if name != "probe"}
    other = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
    if other:
        name = other[0]
        raise BundleError(
            f"{path}: the checkpoint holds another network (got {name} with shape {found.get(name)}, "
            f"expected {expected.get(name)}). Pass the settings of the training that wrote it."
        )
    check_left(path, trained, n_epochs)
