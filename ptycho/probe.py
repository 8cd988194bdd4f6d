"""The probe that an older program sets for the whole process; it lies in ``params.cfg['probe']``."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ptycho import params
from ptycho.data.canonical import canonical_probe
from ptycho.data.prepare import ProbeMask
from ptycho.errors import DataError

__all__ = ["get_probe", "probe_window", "set_probe_guess"]


def set_probe_guess(X_train: Any = None, probe_guess: ArrayLike | None = None) -> NDArray[np.complex64]:
    """Set the probe modes of the process; Ptychodus calls this before it groups the patterns.

    They are (N, N), (N, N, 1) or (P, N, N) in any unit and weight overlapping patches; they come back as
    stored, (P, N, N). ``X_train`` is not used: no probe is estimated from patterns. Raise ``DataError`` where
    there is no probe, or it is not square, not finite, or all zero.
    """
    del X_train
    if probe_guess is None:
        raise DataError(
            "set_probe_guess: there is no probe (got None, expected a complex array of shape (P, N, N)). "
            "Pass probe_guess."
        )
    values = np.asarray(probe_guess)
    side = values.shape[-2] if values.ndim >= 2 else 0
    modes = canonical_probe(values, side, "set_probe_guess")
    params.set("probe", modes)
    return modes


def get_probe() -> NDArray[np.complex64]:
    """Return the probe modes (P, N, N), ``KeyError`` where none was set; scripts written for older versions
    call this."""
    probe: NDArray[np.complex64] = params.get("probe")
    return probe


def probe_window(n_px: int) -> NDArray[np.complex64] | None:
    """Return the probe (P, N, N) that patches of N px are weighted with, within the mask of the settings. It
    is None where no probe was set, or one of another size. The other modules of this kind call it:
    ``ptycho.tf_helper`` and ``ptycho.model_manager``."""
    probe = params.get("probe", None)
    if probe is None or np.shape(probe)[-1] != n_px:
        return None
    if not params.get("probe.mask", False):
        return np.asarray(probe)
    mask = ProbeMask(params.get("probe_mask_diameter", None), params.get("probe_mask_sigma", 1.0))
    return np.asarray(probe * mask.values(n_px))
