"""The classes that Ptychodus 1.7 drives a training run and a reconstruction with.

They hold what the client hands over and pass it on to ``ptycho_torch.train`` and ``ptycho_torch.engine``.
Importing this module needs Lightning and neither MLflow nor a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from numpy.typing import ArrayLike

from ptycho.config.config import InferenceConfig as CoreInferenceConfig
from ptycho.data.prepare import mask_of, prepare_scan
from ptycho.data.raw import RawData
from ptycho.data.scan import Scan
from ptycho.errors import ConfigError
from ptycho.evaluation.verdict import announce, judge
from ptycho.files.reader import pattern_size
from ptycho.process.interrupts import ending_on_sigterm
from ptycho.process.progress import LoggedProgress
from ptycho.run.client import client_options
from ptycho.run.engines import check_size
from ptycho.run.pipeline import populate_legacy
from ptycho_torch import engine
from ptycho_torch.api.settings import TRAINED, ConfigManager, adopt_data, execution_of, write_settings
from ptycho_torch.config_bridge import to_model_config
from ptycho_torch.config_params import DataConfig, InferenceConfig, ModelConfig, TrainingConfig
from ptycho_torch.effects import check_inference
from ptycho_torch.model import PtychoPINN_Lightning, read_settings
from ptycho_torch.train import scans_in, train_folder

__all__ = [
    "ConfigManager",
    "DataloaderFormats",
    "InferenceEngine",
    "Orchestration",
    "PtychoDataLoader",
    "PtychoModel",
    "Trainer",
]


class Orchestration(str, Enum):
    """Who keeps the loss curves of a training run. Scripts name it; Ptychodus 1.7 passes the plain word."""

    LIGHTNING = "lightning"
    MLFLOW = "mlflow"


class DataloaderFormats(str, Enum):
    """How data reach the training. Ptychodus 1.7 asks for ``'lightning_only_module'``; all mean the same."""

    LIGHTNING_ONLY = "lightning_only_module"
    LIGHTNING = "lightning_module"
    TENSORDICT = "tensordict"
    NUMPY = "numpy"


@dataclass(eq=False)
class PtychoModel:
    """A network, once there is one, and its settings of ``ptycho_torch.config_params``.

    Ptychodus 1.7 gets it from :meth:`_new_model` to train, and builds it from the settings of a checkpoint to
    reconstruct; then it sets ``model``, which after a training run is the trained network.
    """

    model_config: ModelConfig | None = None
    data_config: DataConfig | None = None
    training_config: TrainingConfig | None = None
    inference_config: InferenceConfig | None = None
    model: PtychoPINN_Lightning | None = None

    @classmethod
    def _new_model(cls, model: type[PtychoPINN_Lightning], config_manager: ConfigManager) -> PtychoModel:
        """Build an untrained network in ``.model`` with the class ``model``; Ptychodus 1.7 calls it for the
        names of the losses, ``model.loss_name`` and ``model.val_loss_name``. ``ConfigError`` where a setting
        does not fit."""
        configs = {name: getattr(config_manager, name) for name in TRAINED}
        return cls(**configs, model=model(**configs))

    @classmethod
    def _load(cls, path: str | Path) -> PtychoModel:
        """Load a checkpoint or a bundle of any backend; scripts call it."""
        model = engine.load(Path(path))
        return cls(**{name: getattr(model, name) for name in TRAINED}, model=model)

    @staticmethod
    def _extract_configs_from_checkpoint(
        path: str | Path,
    ) -> tuple[DataConfig, ModelConfig, TrainingConfig, InferenceConfig]:
        """Return data, model, training and inference settings of a ``.ckpt`` file, wherever it was copied to;
        Ptychodus 1.7 calls it first in its reconstruction process. ``BundleError`` if it is damaged or
        foreign."""
        return read_settings(Path(path))


class PtychoDataLoader:
    """The data of a training run or of a reconstruction.

    Ptychodus 1.7 builds it on its folder of exported files to train, and gets it from :meth:`from_np` to
    reconstruct. ``output_dir`` is then the new folder of the run, not made yet.

    The folder ``data_dir`` holds ``train_data.npz`` and perhaps ``test_data.npz``, which then validates the
    run; where the settings disagree with the data, the data count. The run gets a new folder
    ``run_<date>_<time>`` in ``output_dir``. ``DataError`` or ``ConfigError`` if the folder does not say what
    to train on, the file breaks the data contract, or settings disagree.
    """

    def __init__(
        self,
        data_dir: str | Path,
        config_manager: ConfigManager,
        data_format: DataloaderFormats = DataloaderFormats.LIGHTNING_ONLY,
        output_dir: str | Path = "training_outputs",
    ) -> None:
        self.data_format = DataloaderFormats(data_format)
        self.config_manager, self.data_dir = config_manager, Path(data_dir)
        train_file, _ = scans_in(self.data_dir)
        adopt_data(config_manager, pattern_size(train_file), train_file.name)
        self.output_dir: Path | None = _run_folder(Path(output_dir))
        self.scan: Scan | None = None

    @classmethod
    def from_np(
        cls,
        diff_patterns: ArrayLike,
        probe: ArrayLike,
        positions: ArrayLike,
        config_manager: ConfigManager,
        *,
        bad_pixels: ArrayLike | None = None,
        background: ArrayLike | None = None,
    ) -> PtychoDataLoader:
        """Hold all patterns of a scan in memory as ``.scan``; Ptychodus 1.7 calls it to reconstruct.

        Parameters
        ----------
        diff_patterns : array, shape (M, N, N)
            Counts of any integer type, or amplitudes.
        probe : complex array, shape (P, N, N) or (N, N)
            Incoherent probe modes in any scale.
        positions : float array, shape (M, 2)
            Patch centres **(y, x)** [object px]; bounds do not apply.
        config_manager : ConfigManager
            Settings of the trained model; ``DataError`` if the arrays do not fit it, or each other.
        bad_pixels : array, shape (N, N) or (M, N, N), optional
            Nonzero where nothing was measured: it takes no part. Ptychodus 1.7 fills it in and does not say.
        background : array, shape (N, N), or a number, optional
            Counts >= 0 of every pattern and pixel that no light explains; the patterns still hold them.
        """
        made = cls.__new__(cls)
        made.data_format, made.config_manager = DataloaderFormats.NUMPY, config_manager
        made.data_dir = made.output_dir = None
        y, x = np.asarray(positions, dtype=np.float64).reshape(-1, 2).T
        given = (x, y, None, None, np.asarray(diff_patterns), probe, None)
        known = {"bad_pixels": bad_pixels, "background": background}
        raw = RawData(*given, **known, pattern_axis=0, source="scan")
        model = to_model_config(config_manager.data_config, config_manager.model_config)
        made.scan = prepare_scan(raw, mask=mask_of(model))
        check_size(made.scan, model.N, "the trained model")
        return made

    def __len__(self) -> int:
        return 0 if self.scan is None else self.scan.n_patterns


def _run_folder(parent: Path) -> Path:
    """Return a folder name that is not taken."""
    stamp = datetime.now().strftime("%Y%m%d_%H%M%S")
    names = (f"run_{stamp}{suffix}" for suffix in ("", *(f"_{number}" for number in range(1, 1000))))
    return next(parent / name for name in names if not (parent / name).exists())


class Trainer:
    """A training run, ready to start. Ptychodus 1.7 gets it from :meth:`_from_lightning`."""

    def __init__(
        self, model: PtychoModel, dataloader: PtychoDataLoader, config_manager: ConfigManager
    ) -> None:
        self.model, self.dataloader, self.config_manager = model, dataloader, config_manager
        # Ptychodus looks for Lightning's trainer here, which is made later, and appends its own callback.
        self._trainer = SimpleNamespace(callbacks=[])

    @classmethod
    def _from_lightning(
        cls,
        model: PtychoModel,
        dataloader: PtychoDataLoader,
        orchestration: Orchestration | str,
        config_manager: ConfigManager,
    ) -> Trainer:
        """Make a training run ready; Ptychodus 1.7 calls it."""
        Orchestration(orchestration)
        return cls(model, dataloader, config_manager)

    def train(
        self, orchestration: Orchestration | str = "lightning", experiment_name: str = ""
    ) -> Sequence[Path]:
        """Train, reconstruct the training scan, write model, curves and pictures, and return the files.

        Ptychodus 1.7 calls it. One device in this process is used, whatever strategy is asked for: the
        callback that collects the client's losses cannot go to another one. ``orchestration`` says who keeps
        the loss curves, ``'lightning'`` or ``'mlflow'``; ``experiment_name`` is not used.
        """
        del experiment_name
        manager, folder = self.config_manager, self.dataloader.output_dir
        if self.dataloader.data_dir is None or folder is None:
            raise ConfigError(
                "training: the loader holds a scan in memory (got one of from_np, expected one of a folder). "
                "Write train_data.npz and name its folder."
            )
        outcome = train_folder(
            self.dataloader.data_dir,
            existing_config=manager.to_tuple(),
            output_dir=folder,
            execution_config=execution_of(manager.training_config, Orchestration(orchestration).value),
            progress=LoggedProgress(),
            callbacks=self._trainer.callbacks,
        )
        write_settings(manager, folder / "configs")
        self.model.model = outcome.result.model
        return outcome.files


class InferenceEngine:
    """Reconstructs with the trained network in ``ptycho_model.model``; of the settings
    ``inference_config.patch_weighting`` and ``varpro_scaling`` count. Ptychodus 1.7 builds it in its
    reconstruction process."""

    def __init__(self, config_manager: ConfigManager, ptycho_model: PtychoModel) -> None:
        self.config_manager, self.ptycho_model = config_manager, ptycho_model

    @ending_on_sigterm()
    def predict_and_stitch(self, dataloader: PtychoDataLoader) -> torch.Tensor:
        """Reconstruct the object of a scan that :meth:`PtychoDataLoader.from_np` holds, from all of its
        patterns; ``DataError`` if they are fewer than a group.

        Ptychodus 1.7 calls it, and takes the middle of the result for the middle of its own object: the
        transmission as a complex64 tensor (H, W) on the CPU, 1 where no light fell, whose index ``((H-1)/2,
        (W-1)/2)`` lies in the middle of the bounding box of all positions. What beside the network takes
        part says ``ptycho.run.client``.
        """
        network, scan = self.ptycho_model.model, dataloader.scan
        if network is None or scan is None:
            missing = "trained network" if network is None else "scan"
            raise ConfigError(
                f"reconstruction: there is no {missing} (got None, expected one). Load a checkpoint, and "
                "hand the patterns over with PtychoDataLoader.from_np."
            )
        settings, progress = self.config_manager.inference_config, LoggedProgress()
        check_inference(settings, network.core_config.architecture, self.config_manager.datagen_config)
        execution = execution_of(self.config_manager.training_config)
        if settings.batch_size != InferenceConfig.batch_size:
            execution.inference_batch_size = settings.batch_size
        populate_legacy(CoreInferenceConfig(network.core_config, Path(), Path(), backend="pytorch"), progress)
        positions = scan.positions_yx_px
        middle = (positions.min(axis=0) + positions.max(axis=0)) / 2
        found = engine.reconstruct(
            network,
            scan,
            scan.usable,
            execution=execution,
            progress=progress,
            patch_weighting=settings.patch_weighting,
            fit_scale=settings.varpro_scaling,
            centre_yx_px=tuple(middle.tolist()),
            **client_options(network.core_config),
        )
        announce(judge(found.in_scan(scan)), progress)
        return torch.from_numpy(found.obj)
