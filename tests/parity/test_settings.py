"""Every field of every settings class: another valid value changes a run, or is refused by its name."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

WORKER = Path(__file__).with_name("settings_worker.py")
sys.path.insert(0, str(WORKER.parent))
worker = importlib.import_module("settings_worker")
beside, native = (importlib.import_module(f"settings_{name}") for name in ("beside", "native"))
KINDS = [("torch", kind) for kind in (*worker.WALKS, *beside.BESIDE)]
KINDS += [("torch", kind) for kind in native.NATIVE]
KINDS += [("tf", kind) for kind in (*worker.WALKS, "evaluation")]
"""Backend and run that are walked over."""
FEWEST = {"simulation": 20, "pretraining": 6, "evaluation": 70}
"""Values that a walk tries at least; 100 for the others."""
SECONDS = 900

pytestmark = pytest.mark.slow


def verdicts_of(backend: str, kind: str, folder: Path) -> dict[str, str]:
    """Return the verdicts of a walk in a process of its own."""
    words = [sys.executable, str(WORKER), backend, str(folder), kind]
    done = subprocess.run(words, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, str] = json.loads((folder / f"settings_{backend}.json").read_text(encoding="utf-8"))
    return found


def faults(verdicts: dict[str, str]) -> dict[str, str]:
    """Return what neither changed anything nor was refused as it should be."""
    return {name: said for name, said in verdicts.items() if not said.startswith(("changed", "refused"))}


@pytest.mark.parametrize(("backend", "kind"), KINDS)
def test_another_value_of_every_setting_changes_the_run_or_is_refused_by_its_name(
    backend: str, kind: str, tmp_path: Path
) -> None:
    verdicts = verdicts_of(backend, kind, tmp_path)
    assert faults(verdicts) == {}
    assert len(verdicts) > FEWEST.get(kind.partition(" ")[0], 100)


def test_the_walk_reports_planted_settings(tmp_path: Path) -> None:
    verdicts = verdicts_of("torch", worker.PLANTED, tmp_path)
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
