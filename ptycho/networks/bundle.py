"""Model bundles: one ZIP file with settings, scale and weights that every backend writes and loads.

Members: ``manifest.json`` (settings, scale record, SHA-256 of the weights) and ``weights.npz`` (plain arrays
by table name, and the probe). Nothing is unpickled and nothing is extracted to disk.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho.config.choices import BUNDLE_NAME
from ptycho.config.config import ModelConfig
from ptycho.config.settings import build_config
from ptycho.data.npz import atomic_path
from ptycho.data.scaling import ScaleRecord
from ptycho.errors import BundleError, PtychoError
from ptycho.networks.architectures import architecture_table, check_weights, completed
from ptycho.networks.schedule import TrainedEpoch

FORMAT_VERSION = 1
MANIFEST, WEIGHTS, PROBE, PROBE_START = "manifest.json", "weights.npz", "probe", "probe_start"


@dataclass
class Bundle:
    """A trained model without any framework."""

    backend: str  # that trained it; any backend loads it
    model: ModelConfig
    weights: dict[str, NDArray[np.float32]]  # by table name, see ptycho.networks.architectures
    probe: NDArray[np.complex64]  # (P, N, N), of the training scan [sqrt(photons)]
    log_gain: float = 0.0  # logarithm of the trained factor between predicted and measured amplitude
    probe_refined: bool = False  # training changed the probe
    scale_record: ScaleRecord | None = None  # of the training scan
    where: str = "bundle"  # file it came from, for messages
    probe_start: NDArray[np.complex64] | None = None  # (P, N, N), before training [sqrt(photons)]
    trained_epoch: TrainedEpoch | None = None  # epoch that the weights are from


def write_bundle(path: str | Path, bundle: Bundle) -> Path:
    """Write a bundle, usually ``<run>/wts.h5.zip``; it appears whole or not at all."""
    stream = io.BytesIO()
    probes = {PROBE: bundle.probe}
    if bundle.probe_refined and bundle.probe_start is not None:
        probes[PROBE_START] = bundle.probe_start
    np.savez(stream, allow_pickle=False, **bundle.weights, **probes)
    payload = stream.getvalue()
    manifest = {
        "format_version": FORMAT_VERSION,
        "backend": bundle.backend,
        "model": asdict(bundle.model),
        "log_gain": bundle.log_gain,
        "probe_refined": bundle.probe_refined,
        "scale_record": bundle.scale_record.to_dict() if bundle.scale_record else None,
        "trained_epoch": asdict(bundle.trained_epoch) if bundle.trained_epoch else None,
        "sha256": hashlib.sha256(payload).hexdigest(),
    }
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        archive.writestr(MANIFEST, json.dumps(manifest, indent=2))
        archive.writestr(WEIGHTS, payload)
    return Path(path)


def read_bundle(path: str | Path) -> Bundle:
    """Read a bundle, packed or as a folder, or that of a run's folder, and check it whole. Raise
    ``BundleError`` where a member is missing or damaged, the version is another one, or a weight does not fit
    the architecture table."""
    path = Path(path)
    if path.is_dir() and (path / BUNDLE_NAME).is_file():
        path = path / BUNDLE_NAME
    try:
        text, payload = _members(path)
        manifest = json.loads(text)
        if manifest["sha256"] != hashlib.sha256(payload).hexdigest():
            raise BundleError(
                f"{path}: the weights were changed or cut (got another SHA-256 than the manifest says, "
                "expected the same). Copy the file again."
            )
        with np.load(io.BytesIO(payload), allow_pickle=False) as archive:
            weights = {name: archive[name] for name in archive.files}
        return _assembled(path, manifest, weights)
    except PtychoError:
        raise
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        reason = " ".join(str(error).split())[:160]
        raise BundleError(
            f"{path}: not a model bundle of this toolkit, or damaged (got {type(error).__name__}: {reason}; "
            f"expected {MANIFEST} and {WEIGHTS}). Choose another file, or train again."
        ) from error


def _members(path: Path) -> tuple[bytes, bytes]:
    if path.is_dir():
        return (path / MANIFEST).read_bytes(), (path / WEIGHTS).read_bytes()
    with zipfile.ZipFile(path) as archive:
        return archive.read(MANIFEST), archive.read(WEIGHTS)


def _assembled(path: Path, manifest: dict[str, Any], weights: dict[str, NDArray[Any]]) -> Bundle:
    if manifest["format_version"] != FORMAT_VERSION:
        raise BundleError(
            f"{path}: another bundle format (got version {manifest['format_version']}, expected "
            f"{FORMAT_VERSION}). Install the version that wrote it, or train again."
        )
    model = build_config(ModelConfig, manifest["model"])
    probe, start = weights.pop(PROBE), weights.pop(PROBE_START, None)
    table = architecture_table(model)
    weights = completed(weights, table)
    check_weights(weights, table, str(path))
    record, epoch = manifest["scale_record"], manifest.get("trained_epoch")
    return Bundle(
        backend=str(manifest["backend"]),
        model=model,
        weights=weights,
        probe=probe,
        log_gain=float(manifest["log_gain"]),
        probe_refined=bool(manifest["probe_refined"]),
        scale_record=ScaleRecord.from_dict(record) if record else None,
        where=str(path),
        probe_start=start,
        trained_epoch=TrainedEpoch(**epoch) if epoch else None,
    )
