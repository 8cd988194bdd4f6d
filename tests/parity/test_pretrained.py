"""The network that comes with the package: the probe is fitted first, and both backends agree."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import pytest

from ptycho.simulation.simulate import SimulationOptions, write_scan

COMMANDS = {"pytorch": "ptycho_torch.inference", "tensorflow": "ptycho.inference"}
WRONG = SimulationOptions(n_y=12, n_x=12, step_px=5.0, photons=1e6, probe_error_waves=0.3, seed=3)
Run = Callable[..., CompletedProcess[str]]


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scan whose stored probe is off by defocus."""
    path = tmp_path_factory.mktemp("wrong") / "scan.npz"
    write_scan(path, WRONG)
    return path


def reconstructed(run: Run, backend: str, scan: Path, out: Path, *flags: str) -> tuple[Any, float, str]:
    """Return the object, its error, and what the command printed."""
    done = run(
        "-m",
        COMMANDS[backend],
        "--model_path",
        "pretrained",
        "--test_data",
        str(scan),
        "--output_dir",
        str(out),
        *flags,
    )
    assert done.returncode == 0, done.stderr
    with np.load(out / "reconstruction.npz") as found:
        obj = found["object"], found["coverage"]
    return obj, json.loads((out / "metrics.json").read_text())["complex_nrmse"], done.stdout


def test_a_wrong_probe_is_mended_before_the_network_sees_it(
    run_python: Run, scan: Path, tmp_path: Path
) -> None:
    objects = {}
    for backend in COMMANDS:
        objects[backend], error, told = reconstructed(
            run_python, backend, scan, tmp_path / backend, "--select", "off"
        )
        assert error < 0.03
        assert "fitting probe: 40/40" in told
        assert "refining" not in told
        assert told.count("params.cfg populated: N=64, ") == told.count("params.cfg populated") == 1
    _, kept, told = reconstructed(run_python, "pytorch", scan, tmp_path / "kept", "--no-fit-probe")
    assert kept > 0.05
    assert "fitting probe" not in told
    (torch_object, coverage), (tf_object, _) = objects["pytorch"], objects["tensorflow"]
    apart = np.abs(torch_object - tf_object) / np.abs(torch_object).max()
    # Forty joint steps and a network follow each other: towards the dark rim they amplify rounding, by how
    # much depends on the processor.
    assert np.sqrt((apart[coverage > 0.05] ** 2).mean()) < 1e-4
    assert apart[coverage > 1e-3].max() < 1e-2
