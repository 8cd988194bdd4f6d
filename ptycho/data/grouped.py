"""The arrays of grouped patterns that older programs read, under their names and axes."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho.data.raw import RawData
from ptycho.data.scaling import make_scale_record, measured_amplitude
from ptycho.geometry.grouping import Groups, located, object_patches
from ptycho.physics import filled_amplitude


class GroupedData(UserDict[str, Any]):
    """Grouped arrays of ``raw`` by name; the large ones are made when first asked for, then kept."""

    def __init__(self, fields: dict[str, Any], raw: RawData | None = None) -> None:
        super().__init__(fields)
        self.raw = raw

    def __getitem__(self, key: str) -> Any:
        value = self.data[key]
        if callable(value):
            value = self.data[key] = value()
        return value


def grouped_fields(raw: RawData, groups: Groups) -> dict[str, Any]:
    """Gather the arrays of :meth:`ptycho.raw_data.RawData.generate_grouped_data`, large ones as functions."""
    indices = groups.indices
    starts_yx_px = np.stack([raw.ycoords_start, raw.xcoords_start], axis=1)
    start = located(starts_yx_px, indices)

    def gathered(stack: NDArray[Any]) -> NDArray[Any]:
        return np.moveaxis(stack[indices], 1, -1)

    def amplitude() -> NDArray[np.float32]:
        record = make_scale_record(raw)
        values = measured_amplitude(raw.diff3d[indices], record, raw.bad_pixels_of(indices))
        values = filled_amplitude(values) * np.float32(record.input_scale)
        return np.ascontiguousarray(np.moveaxis(values, 1, -1))

    def labels() -> NDArray[np.complex64] | None:
        if raw.Y is not None:
            return gathered(raw.Y).astype(np.complex64)
        if raw.objectGuess is None:
            return None
        positions = raw.positions_yx_px[indices.reshape(-1)]
        patches = object_patches(raw.objectGuess, positions, raw.N, raw.source)
        return np.moveaxis(patches.reshape(*indices.shape, raw.N, raw.N), 1, -1)

    fields: dict[str, Any | Callable[[], Any]] = {
        "diffraction": lambda: gathered(raw.diff3d),
        "X_full": amplitude,
        "Y": labels,
        "nn_indices": indices,
        "sample_indices": indices[:, 0],
        "objectGuess": raw.objectGuess,
    }
    for prefix, part in (("coords_", groups), ("coords_start_", start)):
        offsets = _xy_channels(part.offsets_yx_px)
        centres = _xy_channels(part.centres_yx_px[:, None])
        fields |= {
            f"{prefix}offsets": centres,
            f"{prefix}relative": -offsets,
            f"{prefix}nn": centres + offsets,
        }
    return fields


def _xy_channels(values_yx: NDArray[np.float64]) -> NDArray[np.float64]:
    """(B, C, 2) in (y, x) order to (B, 1, 2, C) in (x, y) order, the layout of old callers."""
    return np.ascontiguousarray(values_yx[..., ::-1].transpose(0, 2, 1)[:, None])
