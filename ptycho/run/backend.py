"""What the steps of a run need of a backend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ptycho.config.config import ModelConfig
from ptycho.data.chunks import ScanChunks
from ptycho.data.probe_choice import TrainedProbe
from ptycho.data.scan import PatternStore
from ptycho.geometry.canvas import CanvasPlan
from ptycho.solver.primitives import Primitives

Array = Any


class Backend(Protocol):
    """What one backend computes of a reconstruction, with one model on one device; arrays are its own."""

    primitives: Primitives
    chunks: Callable[[PatternStore, CanvasPlan, NDArray[np.int64], Array], ScanChunks]
    core_config: ModelConfig
    trained_probe: TrainedProbe
    whole_canvas: bool  # the network sees a whole canvas, not a group of patterns
    generator: Any  # the network itself

    def tensor(self, values: NDArray[Any]) -> Array:
        """Return values as an array of the backend."""

    def array(self, tensor: Array) -> NDArray[Any]:
        """Return an array of the backend as NumPy values."""

    def illumination(self, chunks: ScanChunks) -> Array:
        """Return the photons per canvas pixel (H, W) (eq. 8)."""

    def predicted(self, obj: Array, chunk: Any, sigma_px: float) -> Array:
        """Return the expected amplitude (J, N, N) of a chunk [sqrt(photons)] (eq. 6, 15)."""

    def patch_sums(
        self,
        amplitude: NDArray[np.float32],
        input_scale: float,
        window: NDArray[np.complex64],
        corners_yx: NDArray[np.int64],
        shifts_yx_px: NDArray[np.float64],
        shape_yx: tuple[int, int],
    ) -> tuple[Array, Array]:
        """Return weighted sum and weight (H, W) of the patches that a network makes of groups (eq. 12).

        The first patch of each group of ``amplitude`` (B, C, N, N) counts, at its corner and its shift (B, 2)
        [px], weighted with the power of ``window`` (P, N, N).
        """

    def quotient(self, total: Array, weight: Array) -> Array:
        """Return total / weight (H, W), and 1 where hardly any weight is."""

    def gain(self) -> float:
        """Return the factor on amplitudes that the model learned."""
