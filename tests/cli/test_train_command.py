"""The training command: every flag, what is printed when, what is written, and the calls from Python."""

from __future__ import annotations

import contextlib
import io
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ptycho import params
from ptycho.cli.console import ConsoleProgress, with_dashes
from ptycho.cli.flags import training_parser
from ptycho.cli.train_command import execution_settings, training_settings
from ptycho.data.npz import read_npz
from ptycho.run.mlflow_store import default_logger

Command = Callable[..., Any]
PHASES = ("grouping", "reading", "training", "reconstructing", "writing")
VALUES = {
    "--train_data_file": "scan.npz",
    "--test_data_file": "test.npz",
    "--output_dir": "out",
    "--config": "settings.yaml",
    "--ptycho_dir": "folder",
    "--resume": "last.ckpt",
    "--max_epochs": "7",
    "--n_images": "33",
    "--gridsize": "3",
    "--batch_size": "8",
    "--device": "cpu",
    "--disable_mlflow": None,
    "--accelerator": "auto",
    "--deterministic": None,
    "--no_deterministic": None,
    "--num_workers": "2",
    "--learning_rate": "0.01",
    "--scheduler": "Exponential",
    "--accumulate_grad_batches": "2",
    "--logger": "csv",
    "--enable_checkpointing": None,
    "--disable_checkpointing": None,
    "--checkpoint_save_top_k": "2",
    "--checkpoint_monitor": "train_loss",
    "--checkpoint_mode": "max",
    "--early_stop_patience": "9",
    "--torch_loss_mode": "mae",
    "--init_weights": "some_run",
    "--profile": "ci",
    "--scale_contract_version": "legacy_v1",
    "--measurement_domain": "amplitude",
    "--probe_mask": None,
    "--no_probe_mask": None,
    "--probe_mask_sigma": "2.5",
    "--probe_mask_diameter": "20.5",
    "--log_patch_stats": None,
    "--patch_stats_limit": "5",
    "--quiet": None,
    "--debug": None,
    "--architecture": "cnn",
}
"""Every flag with a value that is not its default."""


def _parsed(*words: str) -> dict[str, Any]:
    return vars(training_parser("train").parse_args(with_dashes(words)))


@pytest.mark.parametrize(("flag", "value"), VALUES.items())
def test_a_flag_reads_the_same_with_dashes_underscores_and_an_equals_sign(
    flag: str, value: str | None
) -> None:
    given = () if value is None else (value,)
    parsed = _parsed(flag, *given)
    assert len(parsed) == 1
    assert parsed == _parsed(flag.replace("_", "-"), *given)
    if value is not None:
        assert parsed == _parsed(f"{flag}={value}")
        assert str(next(iter(parsed.values()))) == value


def test_values_with_underscores_stay_as_they_are() -> None:
    assert with_dashes(["--output_dir", "my_run", "--config=a_b.yaml"]) == [
        "--output-dir",
        "my_run",
        "--config=a_b.yaml",
    ]


def test_defaults_of_the_command(small_scan: Path) -> None:
    values = _parsed("--train_data_file", str(small_scan), "--output_dir", "out")
    execution = execution_settings(values, training=True)
    config = training_settings(values, None, "pytorch")
    assert (config.nepochs, config.n_groups, config.model.gridsize, config.batch_size) == (12, 512, 2, 4)
    assert (config.model.architecture, config.model.N, config.backend) == ("unrolled", 32, "pytorch")
    assert (config.torch_loss_mode, config.learning_rate, config.seed) == ("hidden", 2e-4, 42)
    assert execution.logger_backend == default_logger()
    assert (execution.accelerator, execution.num_workers, execution.deterministic) == ("auto", 0, True)
    assert (execution.checkpoint_save_top_k, execution.early_stop_patience) == (1, 100)


def test_every_flag_arrives_in_the_settings(small_scan: Path, tmp_path: Path) -> None:
    left_out = {
        "--config", "--ptycho_dir", "--resume", "--disable_mlflow", "--no_deterministic", "--no_probe_mask",
        "--enable_checkpointing", "--profile", "--test_data_file", "--train_data_file", "--quiet", "--debug",
        "--accelerator",
    }  # fmt: skip
    words = [word for flag, value in VALUES.items() if flag not in left_out for word in (flag, value) if word]
    values = _parsed("--train_data_file", str(small_scan), "--test-data-file", str(small_scan), *words)
    execution = execution_settings(values, training=True)
    config = training_settings(values, None, "pytorch")
    assert (config.nepochs, config.n_groups, config.batch_size, config.scheduler) == (7, 33, 8, "Exponential")
    assert (config.torch_loss_mode, config.measurement_domain) == ("mae", "amplitude")
    assert config.init_weights == "some_run"
    assert (config.log_patch_stats, config.patch_stats_limit) == (True, 5)
    model = config.model
    assert (model.gridsize, model.architecture, model.probe_mask) == (3, "cnn", True)
    assert (model.probe_mask_sigma, model.probe_mask_diameter) == (2.5, 20.5)
    assert (execution.logger_backend, execution.num_workers, execution.accum_steps) == ("csv", 2, 2)
    assert (execution.accelerator, config.learning_rate) == ("cpu", 0.01)
    assert not execution.enable_checkpointing
    assert (execution.checkpoint_save_top_k, execution.checkpoint_mode) == (2, "max")
    assert (execution.checkpoint_monitor_metric, execution.early_stop_patience) == ("train_loss", 9)


def test_flags_win_over_the_settings_file_which_wins_over_defaults(small_scan: Path, tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text("nepochs: 5\nmodel:\n  gridsize: 3\nbatch_size: 32\n", encoding="utf-8")
    values = _parsed("--train_data_file", str(small_scan), "--output_dir", "out", "--batch_size", "16")
    config = training_settings(values, path, "pytorch")
    assert (config.nepochs, config.model.gridsize, config.batch_size, config.n_groups) == (5, 3, 16, 512)


@pytest.mark.parametrize(
    ("flags", "logger"),
    [
        (("--disable_mlflow",), None),
        (("--logger", "none"), None),
        (("--logger", "csv", "--disable_mlflow"), "csv"),
        (("--logger", "tensorboard"), "tensorboard"),
        (("--logger", "mlflow"), "mlflow"),
    ],
)
def test_the_logger_is_the_one_that_was_asked_for(flags: tuple[str, ...], logger: str | None) -> None:
    assert execution_settings(_parsed(*flags), training=True).logger_backend == logger


def test_params_cfg_is_filled_and_said_before_anything_else(
    demo_run: tuple[Path, Any], small_scan: Path, train_command: Command, monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:  # fmt: skip
    assert demo_run[1].out.splitlines()[0] == "✓ params.cfg populated: N=64, gridsize=1, n_groups=128"
    seen: list[tuple[Any, ...]] = []

    def fit(job: Any) -> None:
        seen.append(tuple(params.cfg[name] for name in ("N", "gridsize", "n_groups", "nepochs")))
        raise RuntimeError("planted")

    monkeypatch.setattr("ptycho_torch.engine.fit", fit)
    done = train_command(small_scan, tmp_path / "out", "--gridsize", 2, "--n_images", 20, "--max_epochs", 6)
    assert done.out.splitlines()[0] == "✓ params.cfg populated: N=32, gridsize=2, n_groups=20"
    assert seen == [(32, 2, 20, 6)]


def test_a_training_leaves_model_pictures_object_scores_and_its_record(demo_run: tuple[Path, Any]) -> None:
    folder, done = demo_run
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert files == {
        "checkpoints/best-checkpoint.ckpt", "checkpoints/last.ckpt", "comparison.png", "config.json",
        "history.json", "loss.png", "metrics.json", "probe.png", "reconstructed_amplitude.png",
        "reconstructed_phase.png", "reconstruction.npz", "wts.h5.zip",
    }  # fmt: skip
    assert done.out.splitlines()[-2:] == [
        str(folder / "reconstructed_amplitude.png"),
        str(folder / "reconstructed_phase.png"),
    ]
    record = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert record["seed"] == 42
    assert {"python", "numpy", "torch", "lightning"} <= set(record["versions"])
    assert record["scale_record"]["domain"] == "counts"
    assert record["config"]["model"]["architecture"] == "unrolled"
    history = json.loads((folder / "history.json").read_text(encoding="utf-8"))
    assert len(history["train_loss"]) == len(history["val_loss"]) == 3
    assert read_npz(folder / "reconstruction.npz", ["object"])["object"].dtype.name == "complex64"


def phases_in(text: str) -> list[str]:
    """Return the phases of an output in the order of their first lines."""
    names = [line.partition(":")[0].strip() for line in text.splitlines()]
    return list(dict.fromkeys(name for name in names if name in PHASES))


def test_a_file_gets_one_plain_line_for_each_phase(demo_run: tuple[Path, Any]) -> None:
    _, done = demo_run
    assert phases_in(done.out) == list(PHASES)
    assert "\r" not in done.out
    assert "\x1b" not in done.out
    assert done.err == ""
    # A phase that lasts says now and then how long it will take: the slower the machine, the more often.
    lines = [line for line in done.out.splitlines() if ", about " not in line]
    assert len(lines) <= 30
    assert sum(line.startswith("training:") for line in lines) == 1
    assert phases_in(done.out.replace("training:", "drilling:")) != list(PHASES)


def test_quiet_prints_nothing(small_scan: Path, train_command: Command, tmp_path: Path) -> None:
    done = train_command(small_scan, tmp_path / "out", "--quiet")
    assert done == (0, "", "")
    assert (tmp_path / "out" / "reconstructed_phase.png").is_file()


def _on_a_terminal(action: Callable[[], None]) -> str:
    """Run with standard output on a pseudo-terminal; return what arrived there."""
    ours, theirs = os.openpty()
    received: list[bytes] = []

    def read() -> None:
        # The terminal ends with an error instead of an end of file.
        with contextlib.suppress(OSError):
            while block := os.read(ours, 65536):
                received.append(block)

    reader = threading.Thread(target=read)
    reader.start()
    with open(theirs, "w", encoding="utf-8") as terminal, contextlib.redirect_stdout(terminal):
        action()
    reader.join()
    os.close(ours)
    return b"".join(received).decode()


def _three_steps() -> None:
    with ConsoleProgress().phase("training", 3) as phase:
        for step in range(3):
            phase.update(step + 1, loss=0.5 / (step + 1))


def test_a_terminal_gets_a_live_line_and_a_file_one_line() -> None:
    shown = _on_a_terminal(_three_steps)
    assert shown.count("\rtraining") >= 2
    assert "3/3" in shown
    assert "loss=0.1667" in shown
    with contextlib.redirect_stdout(io.StringIO()) as stream:
        _three_steps()
    (line,) = stream.getvalue().splitlines()
    assert line.startswith("training: 3/3 in 0.0 s, loss 0.1667")


def test_a_long_phase_in_a_file_tells_how_long_it_will_take(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 10.0, 40.0, 50.0, 80.0, 90.0])
    monkeypatch.setattr("ptycho.cli.console.time.monotonic", lambda: next(clock))
    with contextlib.redirect_stdout(io.StringIO()) as stream, ConsoleProgress().phase("training", 8) as phase:
        for done in (1, 4, 5, 8):
            phase.update(done)
    assert stream.getvalue().splitlines() == ["training: 4/8, about 40 s left", "training: 8/8 in 90.0 s"]


def test_many_flags_work_together_in_a_real_run(
    small_scan: Path, train_command: Command, tmp_path: Path
) -> None:
    folder = tmp_path / "a" / "b"
    done = train_command(
        small_scan, folder, "--test-data-file", small_scan, "--n-images", 40, "--batch-size", 16,
        "--max-epochs", 2, "--architecture", "cnn", "--gridsize", 2, "--scheduler", "WarmupCosine",
        "--learning-rate", 0.002, "--logger", "csv", "--checkpoint-save-top-k", 2, "--early-stop-patience", 5,
        "--torch-loss-mode", "poisson",
        "--accumulate-grad-batches", 2, "--probe-mask", "--probe-mask-sigma", 2, "--probe-mask-diameter", 28,
        "--log-patch-stats", "--patch-stats-limit", 6, "--no-deterministic", "--measurement-domain", "counts",
        "--scale-contract-version", "ci_intensity_v2", "--gradient-clip-val", 1.0,
    )  # fmt: skip
    assert done.code == 0, done.err
    assert (folder / "lightning_logs" / "version_0" / "metrics.csv").is_file()
    assert len(list((folder / "checkpoints").glob("*best-checkpoint.ckpt"))) == 2
    assert len((folder / "patch_stats.csv").read_text(encoding="utf-8").splitlines()) == 1 + 6
    record = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert record["config"]["scheduler"] == "WarmupCosine"
    assert record["execution"]["accum_steps"] == 2


def test_no_checkpoints_are_written_where_none_are_wanted(
    small_scan: Path, train_command: Command, infer_command: Command, tmp_path: Path
) -> None:
    assert train_command(small_scan, tmp_path / "run", "--disable_checkpointing").code == 0
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert infer_command(tmp_path / "run", small_scan, tmp_path / "pictures").code == 0


def test_the_legacy_form_trains_on_a_folder_with_json_settings(
    small_scan: Path, run_command: Command, require: Callable[[str], None], tmp_path: Path
) -> None:
    require("torch")
    settings = {
        "data_config": {"N": 64, "grid_size": [2, 2], "C": 4},
        "model_config": {"architecture": "cnn", "amp_activation": "sigmoid"},
        "training_config": {"epochs": 2, "batch_size": 16, "device": "cpu", "learning_rate": 5e-4},
    }
    (tmp_path / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
    done = run_command(
        "train", "--ptycho_dir", small_scan.parent, "--config", tmp_path / "settings.json", "--output_dir",
        tmp_path / "out", "--disable_mlflow",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert done.out.startswith("✓ params.cfg populated: N=32, gridsize=2, n_groups=")
    record = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))["config"]
    assert (record["nepochs"], record["batch_size"], record["learning_rate"]) == (2, 16, 5e-4)
    assert (record["model"]["architecture"], record["model"]["gridsize"]) == ("cnn", 2)
    assert (tmp_path / "out" / "checkpoints" / "last.ckpt").is_file()


def test_a_folder_with_two_scans_must_say_which_one(
    small_scan: Path, run_command: Command, require: Callable[[str], None], tmp_path: Path
) -> None:
    require("torch")
    for name in ("a.npz", "b.npz"):
        (tmp_path / name).write_bytes(small_scan.read_bytes())
    done = run_command("train", "--ptycho_dir", tmp_path, "--output_dir", tmp_path / "out")
    assert done.code == 2
    assert "found a.npz, b.npz, expected train_data.npz" in done.err


def test_main_from_python_without_mlflow(
    small_scan: Path, require: Callable[[str], None], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    require("torch")
    from ptycho_torch.config_params import DataConfig, ModelConfig, TrainingConfig
    from ptycho_torch.train import main

    settings = (
        DataConfig(grid_size=(1, 1)),
        ModelConfig(architecture="unrolled", unrolled_steps=4),
        TrainingConfig(epochs=1, device="cpu", output_dir=str(tmp_path / "out")),
    )
    outcome = main(str(small_scan.parent), existing_config=settings, disable_mlflow=True)
    assert outcome.result.run_id is None
    assert not (tmp_path / "out" / "mlruns").exists()
    assert outcome.files[0] == tmp_path / "out" / "reconstructed_amplitude.png"
    assert capfd.readouterr() == ("", "")


def test_settings_given_twice_are_refused(require: Callable[[str], None], tmp_path: Path) -> None:
    require("torch")
    from ptycho_torch.train import main

    with pytest.raises(ValueError, match="settings are given twice"):
        main(tmp_path, config_path=tmp_path / "a.json", existing_config=(None, None, None))
