"""An exported reconstruction, read back as one: from a product of Ptychodus or a CXI file.

Its object coordinates are metres over the object pixel. They are those of the data file up to a shift.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from ptycho.data.reconstruction import Reconstruction, StoredFacts
from ptycho.errors import DataError
from ptycho.files.hdf5 import find_dataset, opened
from ptycho.files.product import read_product
from ptycho.geometry.canvas import lay_on_canvas
from ptycho.physics import illumination, shift_field

LOSS_KEYS = ("loss_values", "entry_1/ptychodus/loss_values")
"""Where a product and a CXI file hold the misfit of a refinement."""


def read_answer(path: Path) -> Reconstruction:
    """Read an exported reconstruction, an HDF5 product or a CXI file with the names of Ptychodus.

    It has positions of its own; its coverage is the illumination of its probe. ``DataError`` where the file
    is damaged, or holds no object.
    """
    product = read_product(path)
    if product.obj is None:
        raise DataError(
            f"{path}: it holds no object (got an empty one, expected a reconstruction). Name the file that "
            "--export wrote."
        )
    pixel_yx_m, shape = np.array(product.optics.object_pixel_yx_m), product.obj.shape
    origin = np.array(product.centre_yx_m) / pixel_yx_m - (np.array(shape) - 1) / 2
    probe = product.probe if product.probe.ndim == 3 else product.probe[None]
    positions = product.positions_yx_m / pixel_yx_m
    n_px = probe.shape[-1]
    plan = lay_on_canvas(positions, n_px, shape_yx=shape, origin_yx_px=origin, reach_px=np.inf)
    light = illumination(shift_field(probe, plan.shifts_yx_px), plan.corners_yx, shape)
    with opened(path) as file:
        losses = find_dataset(file, list(LOSS_KEYS))
        misfit: npt.NDArray[np.float64] = np.zeros(0) if losses is None else np.atleast_1d(losses[()])
    return Reconstruction(
        obj=product.obj,
        coverage=(light / max(float(light.max()), 1e-30)).astype(np.float32),
        origin_yx_px=origin,
        probe=probe,
        indices=product.indexes,
        seconds=0.0,
        misfit=tuple(float(value) for value in misfit),
        positions_yx_px=positions,
        frame_gain=None if product.frame_gain is None else product.frame_gain.astype(np.float32),
        stored=StoredFacts(),
    )
