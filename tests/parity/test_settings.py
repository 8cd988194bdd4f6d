"""Every field of every settings class: another valid value changes a run, or is refused by its name."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

WORKER = Path(__file__).with_name("settings_worker.py")
sys.path.insert(0, str(WORKER.parent))
worker = importlib.import_module("settings_worker")
beside, native = (importlib.import_module(f"settings_{name}") for name in ("beside", "native"))
KINDS = {
    "torch": (*worker.WALKS, *beside.BESIDE, *native.NATIVE),
    "tf": tuple(worker.WALKS),
}
"""Backend -> runs that are walked over; what simulates, pre-trains and evaluates is shared."""
FEWEST = {"simulation": 20, "pretraining": 6, "evaluation": 70}
"""Values that a walk tries at least; 100 for the others."""
SECONDS = 900

pytestmark = pytest.mark.slow


class Walker:
    """A process of one backend, which walks over one kind of run after the other."""

    def __init__(self, backend: str, log: Path) -> None:
        self.backend, self.log = backend, log
        words = [sys.executable, str(WORKER), backend]
        with log.open("w", encoding="utf-8") as errors:
            self.process = subprocess.Popen(
                words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
            )

    def verdicts(self, kind: str, folder: Path) -> dict[str, str]:
        """Return the verdicts of a walk."""
        streams = self.process.stdin, self.process.stdout
        assert streams[0] is not None
        assert streams[1] is not None
        late = threading.Timer(SECONDS, self.process.kill)
        late.start()
        try:
            streams[0].write(json.dumps({"folder": str(folder), "kind": kind}) + "\n")
            streams[0].flush()
            answered = any(line.rstrip("\n") == worker.WALKED for line in streams[1])
        finally:
            late.cancel()
        if not answered:
            self.process.wait(timeout=SECONDS)
        assert answered, self.log.read_text(encoding="utf-8")[-3000:]
        found = (folder / f"settings_{self.backend}.json").read_text(encoding="utf-8")
        verdicts: dict[str, str] = json.loads(found)
        return verdicts

    def end(self) -> None:
        """End the process and close its pipes."""
        _, _ = self.process.communicate(timeout=SECONDS)


@pytest.fixture(scope="session")
def walker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Walker]]:
    """Return the process of a backend, started when it is first asked for."""
    folder, running = tmp_path_factory.mktemp("walkers"), {}

    def of(backend: str) -> Walker:
        if backend in running and running[backend].process.poll() is not None:
            running.pop(backend).end()  # It broke, and said so in its test.
        if backend not in running:
            running[backend] = Walker(backend, folder / f"{backend}.txt")
        return running[backend]

    yield of
    for process in running.values():
        process.end()


def faults(verdicts: dict[str, str]) -> dict[str, str]:
    """Return what neither changed anything nor was refused as it should be."""
    return {name: said for name, said in verdicts.items() if not said.startswith(("changed", "refused"))}


@pytest.mark.parametrize(
    ("backend", "kind"), [(backend, kind) for backend, kinds in KINDS.items() for kind in kinds]
)
def test_another_value_of_every_setting_changes_the_run_or_is_refused_by_its_name(
    backend: str, kind: str, walker: Callable[[str], Walker], tmp_path: Path
) -> None:
    verdicts = walker(backend).verdicts(kind, tmp_path)
    assert faults(verdicts) == {}
    assert len(verdicts) > FEWEST.get(kind.partition(" ")[0], 100)


def test_the_walk_reports_planted_settings(walker: Callable[[str], Walker], tmp_path: Path) -> None:
    verdicts = walker("torch").verdicts(worker.PLANTED, tmp_path)
    found = {name.rpartition("/")[2].partition("=")[0]: said for name, said in verdicts.items()}
    assert found.pop("used").startswith("changed")
    assert found.pop("refused").startswith("refused")
    assert found.pop("the plain run").startswith("changed")
    assert found == {
        "idle": "no effect",
        "late": "fault, refused after the scan was read: planted: late is 2 (got 2, expected 1).",
        "unnamed": "fault, early, or not by its name: planted: something is wrong (got 2, expected 1).",
        "broken": "fault, crash, or not by its name: ValueError: planted",
        "unknown": "fault: Planted.unknown: no other valid value is known; give it a rule or a word",
        "gone": "fault: there is no such setting",
    }
