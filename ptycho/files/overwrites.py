"""What a run would write, compared with what it reads: an output never replaces an input."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ptycho.config.choices import BUNDLE_NAME
from ptycho.config.config import InferenceConfig, TrainingConfig
from ptycho.data.npz import no_such_file
from ptycho.errors import ConfigError
from ptycho.files.hdf5 import is_hdf5
from ptycho.files.product import sibling_product

RECORD = "config.json"
RECONSTRUCTION_FILES = (
    RECORD,
    "metrics.json",
    "reconstruction.npz",
    "reconstructed_amplitude.png",
    "reconstructed_phase.png",
    "probe.png",
    "comparison.png",
    "patch_stats.csv",
)
"""What a training run and an inference write to their output folder."""
TRAINING_FILES = (*RECONSTRUCTION_FILES, BUNDLE_NAME, "loss.png", "history.json", "metrics.csv")
EVALUATION_FILES = (
    *(f"metrics.{kind}" for kind in ("json", "csv", "md")),
    *(f"residuals.{kind}" for kind in ("csv", "png")),
    *(f"comparison_{name}.png" for name in ("truth", "reference", "half_scans")),
    *(f"frc_{name}.{kind}" for name in ("truth", "reference", "half_scans") for kind in ("csv", "png")),
)
"""What an evaluation writes to its output folder."""
TRACES = ("checkpoints", BUNDLE_NAME)
"""What only a training run leaves in its folder."""
_MOST_FILES = 10_000

Inputs = Mapping[str, Path | None]


def _linked(path: Path) -> Iterator[Path]:
    """Yield the files beside an HDF5 file that its links and virtual datasets read from."""
    import h5py

    names: set[str] = set()

    def look(group: Any) -> None:
        for name in group:
            link = group.get(name, getlink=True)
            if isinstance(link, h5py.ExternalLink):
                names.add(link.filename)
            elif isinstance(link, h5py.HardLink):
                item = group[name]
                if isinstance(item, h5py.Group):
                    look(item)
                elif isinstance(item, h5py.Dataset) and item.is_virtual:
                    names.update(source.file_name for source in item.virtual_sources())

    # A damaged file is refused by whoever reads it.
    with suppress(OSError, RuntimeError, KeyError, RecursionError), h5py.File(path, "r") as file:
        look(file)
    yield from (path.parent / name for name in names - {"."})


def _read_with(path: Path) -> Iterator[Path]:
    """Yield a file and every file that is read with it."""
    todo, seen = [path], set()
    while todo and len(seen) < _MOST_FILES:
        item = todo.pop()
        if item in seen or not item.is_file():
            continue
        seen.add(item)
        yield item
        if is_hdf5(item):
            with suppress(ImportError):
                todo += _linked(item)
    product = sibling_product(path)
    if product is not None:
        yield product


def check_outputs(inputs: Inputs, outputs: Iterable[tuple[str, Path]]) -> None:
    """Raise ``ConfigError`` where a run would replace a file it reads, by whatever name or link.

    ``inputs``: flag -> file to read; ``outputs``: flag that names it, or its folder, and file to write.
    """
    there = [(flag, path) for flag, path in outputs if path.exists()]
    if not there:
        return
    for source, path in inputs.items():
        for read in _read_with(Path(path)) if path is not None else ():
            for flag, target in there:
                if target.samefile(read):
                    raise ConfigError(
                        f"{flag}: it would replace a file that this run reads (got {target}, which is "
                        f"{source} {read}, expected another place). Choose another {flag}."
                    )


def check_there(*paths: Path | None) -> None:
    """Raise ``DataError`` on the first input that does not exist; None is a file that nobody named."""
    for path in paths:
        if path is not None and not Path(path).exists():
            raise no_such_file(Path(path))


def _in_folder(folder: Path, names: Iterable[str]) -> list[tuple[str, Path]]:
    return [("--output_dir", Path(folder) / name) for name in names]


def _settings_in(folder: Path) -> Mapping[str, Any] | None:
    """Return the settings of the run in a folder; None where there is no record of one."""
    try:
        content = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        return dict(content["config"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def holds_training(folder: Path) -> bool:
    """Return whether a folder, perhaps absent, is that of a training run.

    Its ``config.json`` says so; without one, a model or checkpoints that lie there.
    """
    settings = _settings_in(folder)
    if settings is None:
        return any((folder / name).exists() for name in TRACES)
    return "nepochs" in settings


def _refuse_run(folder: Path, what: str) -> None:
    raise ConfigError(
        f"--output_dir: this is the folder of {what}, whose files would be replaced (got {folder}, expected "
        "another folder). Choose another --output_dir."
    )


def numbered(flag: str, paths: Iterable[Path]) -> dict[str, Path]:
    """Return further files of a flag, which the first file has taken, by their place."""
    return {f"{flag} {place}": path for place, path in enumerate(paths, 2)}


def check_training(config: TrainingConfig, also_read: Inputs | None = None) -> None:
    """Refuse a training run that would replace what it reads; one may follow another in the same folder.

    ``also_read``: further files by their flag. Raises ``ConfigError``.
    """
    inputs = {
        "--train_data_file": config.train_data_file,
        **numbered("--train_data_file", config.further_scans),
        "--test_data_file": config.test_data_file,
        "--product": config.product_file,
        "--mask": config.mask_file,
        "--init-weights": None if config.init_weights is None else Path(config.init_weights),
        **(also_read or {}),
    }
    check_outputs(inputs, _in_folder(config.output_dir, TRAINING_FILES))


def check_inference(config: InferenceConfig, also_read: Inputs | None = None) -> None:
    """Refuse an inference that would replace what it reads, or the files of a training run.

    Arguments and error as :func:`check_training`.
    """
    check_there(config.test_data_file, *config.further_scans, config.product_file, config.mask_file)
    folder, model = Path(config.output_dir), Path(config.model_path)
    inputs = {
        "--test_data": config.test_data_file,
        **numbered("--test_data", config.further_scans),
        "--model_path": model if model.is_file() else None,
        "--product": config.product_file,
        "--mask": config.mask_file,
        **(also_read or {}),
    }
    outputs = _in_folder(folder, RECONSTRUCTION_FILES)
    if config.export is not None:
        outputs.append(("--export", Path(config.export)))
    check_outputs(inputs, outputs)
    if holds_training(folder):
        _refuse_run(folder, "a training run")


def check_evaluation(inputs: Inputs, folder: Path) -> None:
    """Refuse an evaluation that would replace what it reads, or the files of a run; as the others."""
    check_outputs(inputs, _in_folder(folder, EVALUATION_FILES))
    if holds_training(folder) or _settings_in(folder) is not None:
        _refuse_run(folder, "a run")
    check_there(*(path for flag, path in inputs.items() if flag != "--model-path"))
