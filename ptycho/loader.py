"""Grouped patterns in the container that older programs read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ptycho.errors import ConfigError

__all__ = ["CentredOffsets", "PtychoDataContainer", "load"]


class CentredOffsets(np.ndarray[Any, np.dtype[np.float64]]):
    """Group means that remember which point the middle of the canvas stands for.

    Ptychodus passes ``global_offsets`` of a container on to :func:`ptycho.tf_helper.reassemble_position` and
    shows the result around the centre of its own object. This array carries that centre from one call to the
    other; apart from it, it is a plain array.

    Attributes
    ----------
    centre_yx_px : tuple of float, or None
        Middle of the object that the positions belong to, ((H - 1) / 2, (W - 1) / 2) [object pixels].
    """

    centre_yx_px: tuple[float, float] | None

    def __array_finalize__(self, source: Any) -> None:
        self.centre_yx_px = getattr(source, "centre_yx_px", None)

    @classmethod
    def around(cls, offsets: NDArray[Any], shape_yx: tuple[int, ...] | None) -> CentredOffsets:
        """Mark offsets with the middle of an object; :func:`load` calls this.

        Parameters
        ----------
        offsets : array, shape (B, 1, 2, 1)
            Group means, (x, y) along axis 2 [object pixels].
        shape_yx : tuple of int, optional
            Shape (H, W) of the object [pixels].

        Returns
        -------
        CentredOffsets
            The same numbers in float64.
        """
        found = np.asarray(offsets, dtype=np.float64).view(cls)
        if shape_yx is not None:
            found.centre_yx_px = ((shape_yx[0] - 1) / 2, (shape_yx[1] - 1) / 2)
        return found


class PtychoDataContainer:
    """Grouped patterns under the names that Ptychodus and older scripts read.

    Parameters
    ----------
    dataset : mapping
        From :meth:`ptycho.raw_data.RawData.generate_grouped_data`.
    probe : complex array, shape (N, N) or (P, N, N), optional
        Probe of the scan.
    """

    def __init__(self, dataset: Mapping[str, Any], probe: ArrayLike | None) -> None:
        self.dataset = dataset
        self.probe = None if probe is None else np.asarray(probe)
        shape = None if dataset["objectGuess"] is None else np.shape(dataset["objectGuess"])[-2:]
        self.global_offsets = CentredOffsets.around(dataset["coords_offsets"], shape)

    @property
    def X(self) -> NDArray[np.float32]:
        """Normalised amplitude, shape (B, N, N, C); made when first asked for."""
        values: NDArray[np.float32] = self.dataset["X_full"]
        return values

    @property
    def Y(self) -> NDArray[np.complex64] | None:
        """Known object patches, shape (B, N, N, C), or None."""
        values: NDArray[np.complex64] | None = self.dataset["Y"]
        return values

    @property
    def Y_I(self) -> NDArray[np.float32] | None:
        """Amplitude of the known patches, shape (B, N, N, C), or None."""
        return None if self.Y is None else np.abs(self.Y)

    @property
    def Y_phi(self) -> NDArray[np.float32] | None:
        """Phase of the known patches, shape (B, N, N, C) [rad], or None."""
        return None if self.Y is None else np.angle(self.Y)

    @property
    def YY_full(self) -> NDArray[Any] | None:
        """Object that the positions belong to, shape (H, W), or None."""
        values: NDArray[Any] | None = self.dataset["objectGuess"]
        return values

    @property
    def local_offsets(self) -> NDArray[np.float64]:
        """Group mean minus position, (x, y) along axis 2, shape (B, 1, 2, C) [object pixels]."""
        values: NDArray[np.float64] = self.dataset["coords_relative"]
        return values

    @property
    def coords_true(self) -> NDArray[np.float64]:
        """The same as ``local_offsets``."""
        return self.local_offsets

    @property
    def coords_nominal(self) -> NDArray[np.float64]:
        """``local_offsets`` of the nominal positions, shape (B, 1, 2, C) [object pixels]."""
        values: NDArray[np.float64] = self.dataset["coords_start_relative"]
        return values

    @property
    def nn_indices(self) -> NDArray[np.int64]:
        """Patterns of every group, shape (B, C)."""
        values: NDArray[np.int64] = self.dataset["nn_indices"]
        return values

    def __len__(self) -> int:
        return len(self.nn_indices)


def load(
    cb: Callable[[], Mapping[str, Any]],
    probeGuess: ArrayLike | None,
    which: str | None = None,
    create_split: bool = False,
) -> PtychoDataContainer:
    """Wrap grouped patterns in a container; Ptychodus calls this before it predicts.

    Parameters
    ----------
    cb : callable
        Returns what :meth:`ptycho.raw_data.RawData.generate_grouped_data` made.
    probeGuess : complex array, shape (N, N) or (P, N, N)
        Probe of the scan.
    which : str, optional
        Accepted for older callers and not used: it names a part of a split.
    create_split : bool
        Must be False: a scan is split before it is grouped.

    Returns
    -------
    PtychoDataContainer
        Patterns and offsets.

    Raises
    ------
    ConfigError
        If a split is asked for.
    """
    del which
    if create_split:
        raise ConfigError(
            "loader: groups are not split (got create_split=True, expected False). Split the scan with "
            "RawData.subset, then group each part."
        )
    return PtychoDataContainer(cb(), probeGuess)
