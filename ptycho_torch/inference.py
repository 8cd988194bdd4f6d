"""Reconstruct with PyTorch: ``python -m ptycho_torch.inference``, and the calls of older programs.

Importing this module loads no framework.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ptycho.errors import DataError

if TYPE_CHECKING:
    from ptycho.config.config import PyTorchExecutionConfig
    from ptycho.process.progress import Progress


def save_individual_reconstructions(
    amplitude: NDArray[np.floating], phase: NDArray[np.floating], output_dir: str | Path
) -> tuple[Path, Path]:
    """Write amplitude and phase [rad] of a transmission, shape (H, W), as ``reconstructed_amplitude.png`` and
    ``reconstructed_phase.png`` at 150 dpi; return both paths. The folder is made where it is absent."""
    from ptycho.evaluation.figures import save_individual_images

    return save_individual_images(np.asarray(amplitude), np.asarray(phase), output_dir)


def load_and_predict(
    run_id: str,
    ptycho_files_dir: str | Path,
    relative_mlflow_path: str | Path = "mlruns",
    config_override_path: str | Path | None = None,
    file_index: int = 0,
    save_dir: str | Path = "inference/output",
    plot_name: str = "Test",
    *,
    settings: Mapping[str, Any] | None = None,
    execution: PyTorchExecutionConfig | None = None,
    progress: Progress | None = None,
) -> list[Path]:
    """Reconstruct a scan with the model that an MLflow run logged; return the files written, pictures first.

    ``relative_mlflow_path`` is the folder of the local MLflow store; ``MLFLOW_TRACKING_URI`` wins over it.
    The scan is the file of ``ptycho_files_dir`` with this index in alphabetical order. ``settings`` are
    inference settings by name, which win over those of the YAML file ``config_override_path``. Everything is
    written to the folder ``plot_name`` in ``save_dir``. ``PtychoError`` if the run, the file or a setting is
    wrong.
    """
    from dataclasses import fields

    from ptycho.config import config as core
    from ptycho.config.choices import PRETRAINED
    from ptycho.files.overwrites import check_inference
    from ptycho.run.engines import require_backend
    from ptycho.run.mlflow_store import fetch_checkpoint
    from ptycho.run.pipeline import check_inference_settings, infer

    require_backend("pytorch")
    files = sorted(Path(ptycho_files_dir).glob("*.npz"))
    if not 0 <= file_index < len(files):
        raise DataError(
            f"{ptycho_files_dir}: there is no file number {file_index} (found {len(files)} NPZ files, "
            f"expected an index from 0 to {len(files) - 1}). Pass another --file_index or folder."
        )
    with tempfile.TemporaryDirectory(prefix="ptychopinn-") as scratch:
        chosen = {
            "model_path": PRETRAINED,
            "test_data_file": files[file_index],
            "output_dir": Path(save_dir) / plot_name,
            "backend": "pytorch",
        }
        given = None if config_override_path is None else core.load_yaml_config(config_override_path)
        asked = {**(settings or {}), **chosen}
        merged = core.merge_settings(core.default_settings(core.InferenceConfig), given, asked)
        config = core.build_config(core.InferenceConfig, merged)
        # A model stands in while the settings are looked at; the store is asked last.
        check_inference_settings(config, execution or core.PyTorchExecutionConfig())
        check_inference(config, {"--config": None if given is None else Path(str(config_override_path))})
        known = {item.name for item in fields(core.ModelConfig)}
        stated = {*core.flat_settings(given or {}), *asked} & known
        config.model_path = fetch_checkpoint(run_id, Path(relative_mlflow_path), Path(scratch))
        return infer(config, execution, progress=progress, stated=stated).files


def cli_main(argv: Sequence[str] | None = None) -> int:
    """Run the inference command with this backend, by default with the arguments of the process; return its
    exit status."""
    from ptycho.cli import inference_command

    return inference_command.main(
        argv, backend="pytorch", prog="python -m ptycho_torch.inference", device="cpu"
    )


if __name__ == "__main__":
    sys.exit(cli_main())
