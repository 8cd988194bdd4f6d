"""Data sets and groups, as older programs ask for them; ``ptycho.workflows.components`` exports the calls."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ptycho import loader
from ptycho.config.config import InferenceConfig, TrainingConfig
from ptycho.data.optics import Orientation, turned_data
from ptycho.raw_data import RawData


def load_data(
    file_path: str | Path,
    n_images: int | None = None,
    n_subsample: int | None = None,
    flip_x: bool = False,
    flip_y: bool = False,
    swap_xy: bool = False,
    coord_scale: float = 1.0,
    subsample_seed: int | None = None,
) -> RawData:
    """Read a data set, or some of its patterns; scripts written for older versions call this. ``n_images``
    takes so many from the start, ``n_subsample`` at random instead, in their order, reproducibly with
    ``subsample_seed``. The positions are changed as by :func:`with_moved_positions`."""
    raw = RawData.from_file(file_path)
    if n_subsample is not None and n_subsample < raw.n_patterns:
        rng = np.random.default_rng(subsample_seed)
        raw = raw.subset(np.sort(rng.choice(raw.n_patterns, n_subsample, replace=False)))
    elif n_subsample is None and n_images is not None and n_images < raw.n_patterns:
        raw = raw.subset(np.arange(n_images))
    return with_moved_positions(raw, (flip_x, flip_y), swap_xy=swap_xy, coord_scale=coord_scale)


def with_moved_positions(
    raw: RawData, flip_xy: tuple[bool, bool], *, swap_xy: bool = False, coord_scale: float = 1.0
) -> RawData:
    """Return a data set with other positions; ``ptycho.workflows.components`` calls this. x and y are
    exchanged, then their signs turned and both scaled; ``objectGuess``, which no longer fits, is left out.
    Where nothing is asked for it is the data set itself."""
    flip = "".join(axis for axis, turned in zip("xy", flip_xy, strict=True) if turned)
    return turned_data(raw, Orientation(flip, swap_xy), coord_scale)


def create_ptycho_data_container(
    data: RawData | loader.PtychoDataContainer, config: TrainingConfig | InferenceConfig
) -> loader.PtychoDataContainer:
    """Group a scan as the settings say; scripts written for older versions call this. ``model``, ``n_groups``
    (at most one for each scan point), ``neighbor_count`` and ``seed`` are used; a container is returned as it
    is."""
    if isinstance(data, loader.PtychoDataContainer):
        return data
    wanted = data.n_patterns if config.n_groups is None else config.n_groups
    dataset = data.generate_grouped_data(
        config.model.N,
        K=config.neighbor_count,
        gridsize=config.model.gridsize,
        seed=config.seed,
        nsamples=wanted if config.enable_oversampling else min(wanted, data.n_patterns),
        enable_oversampling=config.enable_oversampling,
        neighbor_pool_size=config.neighbor_pool_size,
    )
    return loader.load(lambda: dataset, data.probeGuess)
