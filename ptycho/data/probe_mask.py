"""The soft disc that a probe is multiplied with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ptycho.config.config import ModelConfig


@dataclass(frozen=True)
class ProbeMask:
    """A soft disc that the probe is multiplied with.

    Attributes
    ----------
    diameter_px : float or None
        Diameter at half height; half the pattern size by default [px].
    sigma_px : float
        Softness of the edge [px].
    """

    diameter_px: float | None = None
    sigma_px: float = 1.0

    def values(self, n_px: int) -> NDArray[np.float32]:
        """Return the mask, centred on the patch.

        Parameters
        ----------
        n_px : int
            Pattern size N [px].

        Returns
        -------
        float32 array, shape (N, N)
            Between 0 and 1.
        """
        radius = (self.diameter_px if self.diameter_px is not None else n_px / 2) / 2
        axis = np.arange(n_px) - (n_px - 1) / 2
        beyond = np.hypot(axis[:, None], axis) - radius
        if self.sigma_px == 0:
            return (beyond < 0).astype(np.float32)
        return (0.5 * (1.0 - np.tanh(beyond / self.sigma_px))).astype(np.float32)


def mask_of(model: ModelConfig) -> ProbeMask | None:
    """Return the probe mask that a configuration asks for.

    Parameters
    ----------
    model : ModelConfig
        ``probe_mask`` and its two numbers.

    Returns
    -------
    ProbeMask or None
        None where no mask is asked for.
    """
    return ProbeMask(model.probe_mask_diameter, model.probe_mask_sigma) if model.probe_mask else None


def masked(probe: NDArray[np.complex64], model: ModelConfig) -> NDArray[np.complex64]:
    """Return a probe within the mask that a configuration asks for.

    Parameters
    ----------
    probe : complex array, shape (P, N, N)
        Probe modes [sqrt(photons)].
    model : ModelConfig
        ``probe_mask`` and its two numbers.

    Returns
    -------
    complex array, shape (P, N, N)
        The probe itself where no mask is asked for.
    """
    mask = mask_of(model)
    return probe if mask is None else probe * mask.values(probe.shape[-1])
