"""Nothing reads the legacy dictionary: a training run and an inference run while every read of it raises."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

import pytest

from ptycho import params
from ptycho.cli import inference_command, train_command
from ptycho.errors import ConfigError


class _WriteOnly(dict[str, Any]):
    """A dictionary that takes values and gives none back."""

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise AssertionError("params.cfg was read")

    __getitem__ = get = __contains__ = __iter__ = keys = values = items = pop = copy = setdefault = _refuse


def run(backend: str, scan: Path, folder: Path) -> None:
    train = ["--train_data_file", scan, "--output_dir", folder / "run", "--max_epochs", 1, "--gridsize", 1]
    train += ["--unrolled_steps", 4, "--disable_mlflow", "--accelerator", "cpu"]
    assert train_command.main([str(word) for word in train], backend=backend) == 0
    infer = ["--model_path", folder / "run", "--test_data", scan, "--output_dir", folder / "found"]
    assert (
        inference_command.main([str(word) for word in [*infer, "--accelerator", "cpu"]], backend=backend) == 0
    )


@pytest.mark.parametrize("backend", ["pytorch", "tensorflow"])
def test_no_run_reads_the_legacy_dictionary_and_each_reports_once_that_it_filled_it(
    backend: str,
    small_scan: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cfg = _WriteOnly()
    monkeypatch.setattr(params, "cfg", cfg)
    run(backend, small_scan, tmp_path)
    told = [line for line in capsys.readouterr().out.splitlines() if "params.cfg populated" in line]
    assert told == [f"✓ params.cfg populated: N=32, gridsize=1, n_groups={groups}" for groups in (512, None)]
    assert dict.__getitem__(cfg, "gridsize") == 1
    assert dict.__getitem__(cfg, "N") == 32
    assert (tmp_path / "found" / "reconstructed_phase.png").stat().st_size > 1000


def test_the_judge_notices_a_read(small_scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(params, "cfg", _WriteOnly())
    reads = train_command.settle_domain

    def reading(values: dict[str, Any]) -> None:
        params.cfg["gridsize"]
        reads(values)

    monkeypatch.setattr(train_command, "settle_domain", reading)
    with pytest.raises((AssertionError, ConfigError)):
        run("pytorch", small_scan, tmp_path)
