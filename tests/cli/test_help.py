"""The help of the commands: quick, without a framework, and also where Lightning is missing."""

from __future__ import annotations

import resource
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

Python = Callable[..., CompletedProcess[str]]

HELP_SECONDS = 0.3
"""Processor time of a help: what a user waits on an idle machine, whatever else runs here."""
ENTRY_POINTS = ("ptycho_torch.train", "ptycho_torch.inference")
TRAIN_FLAGS = """
--train-data-file --test-data-file --output-dir --max-epochs --n-images --gridsize --batch-size
--device --disable-mlflow --ptycho-dir --config --accelerator --deterministic --num-workers
--learning-rate --scheduler --accumulate-grad-batches --logger --enable-checkpointing
--disable-checkpointing --checkpoint-save-top-k --checkpoint-monitor --checkpoint-mode
--early-stop-patience --torch-loss-mode --profile --scale-contract-version --measurement-domain
--probe-mask --probe-mask-sigma --probe-mask-diameter --log-patch-stats --patch-stats-limit
--quiet --debug --resume --architecture
"""
INFERENCE_FLAGS = """
--model-path --test-data --output-dir --n-images --device --quiet --accelerator --num-workers
--inference-batch-size --patch-weighting --varpro-scaling --probe-mask --scale-contract-version
--measurement-domain --log-patch-stats --patch-stats-limit --run-id --infer-dir --file-index
--config
"""
FLAGS = {"ptycho_torch.train": TRAIN_FLAGS, "ptycho_torch.inference": INFERENCE_FLAGS}


def _processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.parametrize("entry_point", ENTRY_POINTS)
def test_help_names_every_flag_and_is_quick(entry_point: str, run_python: Python) -> None:
    spent = []
    for _ in range(3):
        before = _processor_seconds()
        done = run_python("-m", entry_point, "--help")
        spent.append(_processor_seconds() - before)
    assert (done.returncode, done.stderr) == (0, "")
    assert [flag for flag in FLAGS[entry_point].split() if flag not in done.stdout] == []
    assert min(spent) < HELP_SECONDS, f"{spent} s"


@pytest.mark.parametrize("name", ["train_command", "inference_command"])
def test_help_loads_neither_numpy_nor_a_framework(name: str, run_python: Python) -> None:
    code = (
        f"import sys\nfrom ptycho.cli.{name} import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "heavy = {'numpy', 'torch', 'lightning', 'tensorflow', 'keras', 'mlflow', 'matplotlib', 'yaml'}\n"
        "print('loaded:', sorted(heavy & set(sys.modules)))"
    )
    assert run_python("-c", code).stdout.splitlines()[-1] == "loaded: []"


@pytest.mark.parametrize("entry_point", ENTRY_POINTS)
def test_help_works_without_lightning(entry_point: str, without_lightning: Path, run_python: Python) -> None:
    done = run_python("-m", entry_point, "--help", hidden=without_lightning)
    assert (done.returncode, done.stderr) == (0, "")
    assert "--output-dir" in done.stdout


@pytest.mark.parametrize("entry_point", ENTRY_POINTS)
def test_no_flags_at_all_is_one_line_that_shows_both_usages(entry_point: str, run_python: Python) -> None:
    done = run_python("-m", entry_point)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: --")
    both = (
        ("--train_data_file", "--ptycho_dir")
        if entry_point.endswith("train")
        else ("--model_path", "--run_id")
    )
    assert all(flag in line for flag in both)
