"""HDF5 training data of Ptychodus 1.7: patterns, positions in object pixels, probe and object in one file."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ptycho.data.optics import Optics
from ptycho.data.raw import RawData
from ptycho.errors import ConfigError
from ptycho.files.arrays import read_array
from ptycho.files.assemble import make_raw_data
from ptycho.files.formats import Request, Source
from ptycho.files.frames import Window, read_stack
from ptycho.files.hdf5 import find_dataset, require_dataset
from ptycho.files.numbers import read_number
from ptycho.files.product import WRITE_AGAIN, first_layer, incoherent_modes
from ptycho.files.ptychodus import NAME, PLACES, bad_pixels, pattern_dataset, refuse_settings, unread

if TYPE_CHECKING:
    import h5py


class PtychodusTraining:
    """Training data, whose positions cannot be turned: they are in object pixels already."""

    name = NAME

    def recognises(self, source: Source) -> bool:
        """Tell whether a file holds patterns and positions in pixels."""
        return not isinstance(source, dict) and all(
            find_dataset(source, [key]) is not None for key in ("patterns", "probe_position_x_px")
        )

    def read(self, source: h5py.File, request: Request) -> Callable[[], RawData]:
        """Read everything that the file holds."""
        refuse_settings(request)
        file, options = source, request.options
        if options.flip_positions or options.swap_positions or options.product_file:
            raise ConfigError(
                f"{file.filename}: --product, --flip-positions and --swap-positions do not apply (got a file "
                "with positions in object pixels, expected positions in metres). Leave them out."
            )
        dataset = pattern_dataset(file)
        positions = _positions_yx_px(file, len(dataset))
        probe, obj = (
            read_array(require_dataset(file, [key], f"the {key}", WRITE_AGAIN), "iufc", "numbers", True)
            for key in ("probe", "object")
        )
        optics = _optics(file).overridden(options)
        bad = bad_pixels(file, dataset.shape)
        patterns = read_stack(dataset, Window(0, 0, dataset.shape[-1]))
        unused = unread(file, dataset, "probe", "object")
        probe, obj = incoherent_modes(probe, file.filename), first_layer(obj, file.filename)
        if optics.object_pixel_yx_m is not None and obj is not None:
            optics = optics.centred((0.0, 0.0), obj.shape)
        return partial(
            make_raw_data, patterns, positions, probe, optics.completed(patterns.shape[-1]),
            source=file.filename, file_format="ptychodus training data", obj=obj, bad_pixels=bad,
            unused=unused, places={**PLACES, "probe": "probe is used"},
        )  # fmt: skip

    def pattern_size(self, source: h5py.File, request: Request) -> int:
        """Return the last side of the patterns [px]."""
        return int(pattern_dataset(source).shape[-1])


def _positions_yx_px(file: h5py.File, count: int) -> NDArray[np.float64]:
    columns = []
    for axis in "yx":
        item = require_dataset(file, [f"probe_position_{axis}_px"], f"the {axis} positions", WRITE_AGAIN)
        columns.append(read_array(item, "iuf", f"({count},) numbers", item.shape == (count,)))
    return np.stack(columns, axis=1).astype(np.float64)


def _optics(file: h5py.File) -> Optics:
    keys = ("photon_energy_eV", "detector_object_distance_m", "object_pixel_height_m", "object_pixel_width_m")
    found = [find_dataset(file, [key]) for key in keys]
    numbers = [None if dataset is None else read_number(dataset) for dataset in found]
    energy, distance, *sides = (value if value is not None and value > 0 else None for value in numbers)
    return Optics(energy, distance, None, None if None in sides else tuple(sides))
