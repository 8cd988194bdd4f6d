"""The cnn bundle of version 0.1.0: names, shapes and settings as that version wrote them, drawn weights.

A trained cnn is 2 MB even with the fewest filters. What a later version has to understand is the manifest,
the names, the shapes, and what the network makes of the numbers; any numbers will do for that.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

MANIFEST, TABLE, PROBE = "manifest.json", "weights.json", "probe.npy"
"""In the folder of the data: manifest of the bundle, name -> shape of its arrays, its probe."""


def drawn(name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return the numbers of a weight: mixed whole numbers, which no generator of NumPy can change."""
    mixed = np.arange(int(np.prod(shape)), dtype=np.uint64) + np.uint64(zlib.crc32(name.encode()) << 20)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    between = (mixed >> np.uint64(11)) / 2.0**52 - 1
    fan_in = int(np.prod(shape[:-1]))
    return (between * (np.sqrt(6 / fan_in) if len(shape) > 1 else 0.1)).reshape(shape).astype(np.float32)


def write_cnn_bundle(data: Path, path: Path) -> Path:
    """Write the bundle that the folder of the data describes, with nothing of the toolkit."""
    manifest: dict[str, Any] = json.loads((data / MANIFEST).read_text(encoding="utf-8"))
    table = json.loads((data / TABLE).read_text(encoding="utf-8"))
    arrays: dict[str, NDArray[Any]] = {name: drawn(name, tuple(shape)) for name, shape in table.items()}
    arrays |= dict.fromkeys(("probe", "probe_start"), np.load(data / PROBE))
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    manifest["sha256"] = hashlib.sha256(stream.getvalue()).hexdigest()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("manifest.json", json.dumps(manifest))
        archive.writestr("weights.npz", stream.getvalue())
    return path
