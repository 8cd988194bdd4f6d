"""Reconstructions without a training run, and what they told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ptycho.config.config import PyTorchExecutionConfig
from ptycho.data import chunks
from ptycho.data.reconstruction import Reconstruction
from ptycho.data.scan import Scan
from ptycho.evaluation.metrics import score
from ptycho.process.progress import Phase, Progress
from ptycho.run.engines import find_model, fitted_model, load_engine
from ptycho.run.outputs import truth_on_canvas
from ptycho.solver.options import RefineOptions

CPU = PyTorchExecutionConfig(accelerator="cpu", logger_backend=None)


class Told(Progress):
    """Keeps phases and lines."""

    def __init__(self) -> None:
        self.phases: list[tuple[str, int]] = []
        self.lines: list[str] = []

    def phase(self, name: str, total: int) -> Phase:
        self.phases.append((name, total))
        return Phase()

    def note(self, text: str) -> None:
        self.lines.append(text)


def reconstructed(
    scan: Scan,
    backend: str,
    refine: RefineOptions | None = None,
    *,
    progress: Progress | None = None,
    **options: Any,
) -> Reconstruction:
    """Reconstruct all usable patterns with the network that comes with the package."""
    engine = load_engine(backend)
    model = fitted_model(engine, engine.load(find_model(Path("pretrained"), backend)), scan, "the network")
    progress = progress or Progress()
    return engine.reconstruct(
        model, scan, scan.usable, execution=CPU, progress=progress, refine=refine, **options
    )


def small_chunks(monkeypatch: pytest.MonkeyPatch, n_patterns: int, side_px: int) -> set[int]:
    """Let a scan be read anew in every pass, in chunks of 16 patterns of waves of so many pixels a side, and
    return where their sizes are noted."""
    monkeypatch.setattr(chunks, "KEPT_PIXELS", 2 * n_patterns * side_px**2)
    monkeypatch.setattr(chunks, "CHUNK_PIXELS", 16 * side_px**2)
    sizes, placed = set(), chunks.ScanChunks._placed

    def noted(self: Any, rows: Any, amplitude: Any) -> Any:
        sizes.add(len(rows))
        return placed(self, rows, amplitude)

    monkeypatch.setattr(chunks.ScanChunks, "_placed", noted)
    return sizes


def error(path: Path, found: Reconstruction) -> float:
    """Return the complex NRMSE of an object against the truth in a file."""
    truth, mask = truth_on_canvas(path, found) or (None, None)
    return score(found.obj, truth, mask)["complex_nrmse"]
