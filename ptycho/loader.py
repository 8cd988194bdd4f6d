"""Grouped patterns in the container that older programs read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ptycho.errors import ConfigError
from ptycho.raw_data import RawData

__all__ = ["PtychoDataContainer", "ScanOffsets", "load"]


class ScanOffsets(np.ndarray[Any, np.dtype[np.float64]]):
    """Offsets of groups that remember the scan they belong to; apart from that, a plain array.

    Ptychodus passes nothing but offsets from its call of :func:`load` to the calls after it, which have to
    know more: :func:`ptycho.tf_helper.reassemble_position` the point that the middle of the canvas stands
    for, and a network for whole scans the scan.
    """

    centre_yx_px: tuple[float, float] | None  # middle ((H - 1) / 2, (W - 1) / 2) of the object they belong to
    scan: RawData | None
    indices: NDArray[np.int64] | None  # (B, C), its patterns in every group

    def __array_finalize__(self, source: Any) -> None:
        for name in ("centre_yx_px", "scan", "indices"):
            setattr(self, name, getattr(source, name, None))

    @classmethod
    def of(cls, offsets: NDArray[Any], dataset: Mapping[str, Any]) -> ScanOffsets:
        """Mark offsets (B, 1, 2, 1) or (B, 1, 2, C), (x, y) along axis 2 [object pixels], with the groups
        they come from."""
        found = np.asarray(offsets, dtype=np.float64).view(cls)
        if dataset["objectGuess"] is not None:
            height, width = np.shape(dataset["objectGuess"])[-2:]
            found.centre_yx_px = ((height - 1) / 2, (width - 1) / 2)
        found.scan, found.indices = getattr(dataset, "raw", None), dataset["nn_indices"]
        return found


def _entry(key: str, text: str) -> Any:
    return property(lambda container: container.dataset[key], doc=text)


class PtychoDataContainer:
    """Grouped patterns, with a probe (N, N) or (P, N, N), under the names that Ptychodus and scripts read."""

    def __init__(self, dataset: Mapping[str, Any], probe: ArrayLike | None) -> None:
        self.dataset = dataset
        self.probe = None if probe is None else np.asarray(probe)

    X = _entry("X_full", "Normalised amplitude, shape (B, N, N, C); made when first asked for.")
    Y = _entry("Y", "Known object patches, shape (B, N, N, C), or None.")
    YY_full = _entry("objectGuess", "Object that the positions belong to, shape (H, W), or None.")
    nn_indices = _entry("nn_indices", "Patterns of every group, shape (B, C).")
    coords_nominal = _entry(
        "coords_start_relative",
        "``local_offsets`` of the nominal positions, shape (B, 1, 2, C) [object pixels].",
    )

    @property
    def Y_I(self) -> NDArray[np.float32] | None:
        """Amplitude of the known patches, shape (B, N, N, C), or None."""
        return None if self.Y is None else np.abs(self.Y)

    @property
    def Y_phi(self) -> NDArray[np.float32] | None:
        """Phase of the known patches, shape (B, N, N, C) [rad], or None."""
        return None if self.Y is None else np.angle(self.Y)

    @property
    def global_offsets(self) -> ScanOffsets:
        """Group means, (x, y) along axis 2, shape (B, 1, 2, 1) [object pixels]."""
        return ScanOffsets.of(self.dataset["coords_offsets"], self.dataset)

    @property
    def local_offsets(self) -> ScanOffsets:
        """Group mean minus position, (x, y) along axis 2, shape (B, 1, 2, C) [object pixels]."""
        return ScanOffsets.of(self.dataset["coords_relative"], self.dataset)

    coords_true = local_offsets

    def __len__(self) -> int:
        return len(self.nn_indices)


def load(
    cb: Callable[[], Mapping[str, Any]],
    probeGuess: ArrayLike | None,
    which: str | None = None,
    create_split: bool = False,
) -> PtychoDataContainer:
    """Wrap what ``cb`` returns, the groups of ``generate_grouped_data``; Ptychodus calls this before it
    predicts. ``which`` names a part of a split and is not used; ``create_split`` is a ``ConfigError``, since
    a scan is split before it is grouped."""
    del which
    if create_split:
        raise ConfigError(
            "loader: groups are not split (got create_split=True, expected False). Split the scan with "
            "RawData.subset, then group each part."
        )
    return PtychoDataContainer(cb(), probeGuess)
