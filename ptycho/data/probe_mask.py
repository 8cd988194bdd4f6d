"""The soft disc that a probe is multiplied with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ptycho.config.config import ModelConfig


@dataclass(frozen=True)
class ProbeMask:
    """A soft disc that the probe is multiplied with."""

    diameter_px: float | None = None  # at half height; by default half the pattern size
    sigma_px: float = 1.0  # softness of the edge

    def values(self, n_px: int) -> NDArray[np.float32]:
        """Return the mask (N, N), 0 to 1, centred on the patch."""
        radius = (self.diameter_px if self.diameter_px is not None else n_px / 2) / 2
        axis = np.arange(n_px) - (n_px - 1) / 2
        beyond = np.hypot(axis[:, None], axis) - radius
        if self.sigma_px == 0:
            return (beyond < 0).astype(np.float32)
        return (0.5 * (1.0 - np.tanh(beyond / self.sigma_px))).astype(np.float32)


def mask_of(model: ModelConfig) -> ProbeMask | None:
    """Return the probe mask that a configuration asks for."""
    return ProbeMask(model.probe_mask_diameter, model.probe_mask_sigma) if model.probe_mask else None


def masked(probe: NDArray[np.complex64], model: ModelConfig) -> NDArray[np.complex64]:
    """Return a probe (P, N, N) within the mask that a configuration asks for; itself where there is none."""
    mask = mask_of(model)
    return probe if mask is None else probe * mask.values(probe.shape[-1])
