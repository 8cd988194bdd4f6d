"""What a run stores, tells and opens, in a form that two runs can be compared by."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ptycho.data.npz import atomic_path, read_npz
from ptycho.evaluation import figures
from ptycho.networks.bundle import read_bundle
from ptycho.process.progress import Phase, Progress
from ptycho.run import evaluate, pipeline

RECORDS = ("config.json", "hparams.yaml", "metrics.csv", "metrics.json")
"""Files that merely record settings, or times."""
NETWORKS = {
    "torch": ("ptycho_torch.model", "PtychoPINN_Lightning", "_mixed_loss"),
    "tf": ("ptycho.tf.model", "PtychoPINN", "loss"),
}
"""Backend -> the method that computes the loss of a batch."""
RECORDED = {"_metadata", "file_options", "scale_record", "simulation"}
"""Arrays that record settings."""


class _Kept(Phase):
    def __init__(self, said: list[str], name: str, total: int) -> None:
        self.said, self.name = said, name
        said.append(f"{name} of {total}")

    def update(self, done: int, **values: Any) -> None:
        """Keep how far it came."""
        self.said.append(f"{self.name} {done}")


class Kept(Progress):
    """Keeps what a run tells, times left out."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def phase(self, name: str, total: int) -> Phase:
        """Open a phase."""
        return _Kept(self.said, name, total)

    def note(self, text: str) -> None:
        """Keep a line."""
        self.said.append(text)


def _drawn(figure: Any, path: Path) -> Path:
    """Write what a picture shows, not its pixels, which take longer than the run itself."""
    shown: list[str] = []
    for axes in figure.axes:
        shown += [axes.get_title(), *(text.get_text() for text in axes.texts)]
        shown += [f"{_digest(image.get_array())} {image.get_clim()}" for image in axes.images]
        shown += [_digest(line.get_xydata()) for line in axes.lines]
        shown += [_digest(marks.get_offsets()) for marks in axes.collections]
    with atomic_path(path) as temporary:
        Path(temporary).write_text("\n".join(shown), encoding="utf-8")
    return Path(path)


class OtherResult(Exception):
    """A loss, a network or an object is another one already; what comes after it need not be computed."""


@contextlib.contextmanager
def watched(backend: str, plain: Any = None) -> Iterator[dict[str, Any]]:
    """Note what Lightning's trainer and loaders are given, what is computed, and whether a scan was opened.

    A run ends with :class:`OtherResult` where a loss, its network or its object is not that of ``plain``.
    """
    seen: dict[str, Any] = {"opened": False, "losses": []}
    engine = importlib.import_module({"torch": "ptycho_torch.engine", "tf": "ptycho.tf.engine"}[backend])

    def noting_result(called: Any, name: str) -> Any:
        def noted(*words: Any, **more: Any) -> Any:
            result = called(*words, **more)
            # What is judged is the object that is stored; there may be others before it.
            bundle = None if name == "judge" else engine.to_bundle(result.model)
            seen[name] = _digest(words[0].found.obj if bundle is None else _weights(bundle))
            if isinstance(plain, dict) and plain.get(name) != seen[name]:
                raise OtherResult(name)
            return result

        return noted

    def noting_loss(called: Any) -> Any:
        def noted(*words: Any, **more: Any) -> Any:
            loss = called(*words, **more)
            place = len(seen["losses"])
            seen["losses"].append(float(loss))
            if isinstance(plain, dict) and plain["losses"][place : place + 1] != seen["losses"][place:]:
                raise OtherResult("losses")
            return loss

        return noted

    def noting_opened(called: Any) -> Any:
        def opened(*words: Any, **more: Any) -> Any:
            seen["opened"] = True
            return called(*words, **more)

        return opened

    def noting_words(called: Any, name: str) -> Any:
        def noted(*words: Any, **more: Any) -> Any:
            plain = {key: value for key, value in more.items() if _is_plain(value)}
            seen[name] = repr(sorted(plain.items()))
            return called(*words, **more)

        return noted

    replaced = [(owner, "open_scan", noting_opened(owner.open_scan)) for owner in (pipeline, evaluate)]
    replaced += [(figures, "save_figure", _drawn)]
    computing = ((engine, "fit"), (pipeline, "judge"))
    replaced += [(owner, name, noting_result(getattr(owner, name), name)) for owner, name in computing]
    place, network, loss = NETWORKS[backend]
    owner = getattr(importlib.import_module(place), network)
    replaced.append((owner, loss, noting_loss(getattr(owner, loss))))
    if backend == "torch":
        trainer, data = (importlib.import_module(f"ptycho_torch.{part}") for part in ("trainer", "data"))
        for owner, name in ((trainer.L, "Trainer"), (data, "DataLoader")):
            replaced.append((owner, name, noting_words(getattr(owner, name), name)))
    with contextlib.ExitStack() as stack:
        for owner, name, new in replaced:
            stack.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, new)
        yield seen


def _weights(bundle: Any) -> bytes:
    weights = b"".join(bundle.weights[key].tobytes() for key in sorted(bundle.weights))
    return weights + bundle.probe.tobytes() + repr(bundle.log_gain).encode()


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str)


def _digest(content: Any) -> str:
    kept = content if isinstance(content, bytes) else np.ascontiguousarray(content).tobytes()
    return hashlib.sha256(kept).hexdigest()[:16]


def fingerprint(folder: Path, progress: Kept, seen: dict[str, Any]) -> dict[str, str]:
    """Return what a run stored and told, by name; settings that are merely recorded do not count."""
    found = {"told": repr([line for line in progress.said if not line.startswith("✓")])}
    found |= {key: value for key, value in seen.items() if key != "opened"}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_dir() or path.name in RECORDS:
            continue
        found[f"file {path.parent.name}/{path.name.partition('tfevents')[0]}"] = "there"
        if path.name == "last.state.npz":
            found["best score"] = repr(json.loads(str(read_npz(path)["progress"]))["Patience"]["best"])
        elif path.suffix == ".npz":
            arrays = read_npz(path)
            found |= {f"{name}/{key}": _digest(arrays[key]) for key in arrays.keys() - RECORDED}
        elif path.name.endswith(".h5.zip"):
            bundle = read_bundle(path)
            found[f"{name}/weights"] = _digest(_weights(bundle))
        elif path.suffix in (".png", ".csv", ".cxi", ".md") or path.name == "history.json":
            found[name] = _digest(path.read_bytes())
        elif path.name == "last.ckpt":
            found["best score"] = _best_scores(path)
    return found


def _best_scores(path: Path) -> str:
    import torch

    callbacks = torch.load(path, weights_only=True)["callbacks"]
    return repr([(state.get("monitor"), state.get("best_model_score")) for state in callbacks.values()])
