"""Pixels that add what falls on K x K parts of each: every part sees a mode of the probe of its own (eq. 5b).

Symbols: K >= 1, parts of a pixel along each axis; M, 1 to K, patterns that a patch is as wide as, which is
M N px; ``turns``, complex (K, M, N), phase factors along one axis of the patch, by part, None for K = 1.
"""

from __future__ import annotations

import numpy as np

from ptycho.physics.propagation import Complex


def part_turns(n_px: int, upsampling: int, windows: int = 1) -> Complex:
    r"""Return the phase factors of the parts of a pixel along one axis, complex128 (K, M, N) (eq. 5b).

    .. math:: t_{u}(r) = e^{-2\pi i u r / N}, \quad u = (n - (K - 1)/2)/K, \quad n = 0 \dots K - 1

    The patch is ``windows`` patterns of ``n_px`` wide, pixel r = m N + i of it is entry (m, i).
    """
    parts = (np.arange(upsampling) - (upsampling - 1) / 2) / upsampling
    places = np.arange(windows * n_px).reshape(windows, n_px) / n_px
    return np.exp(-2j * np.pi * np.multiply.outer(parts, places))


def turns_of(n_px: int, upsampling: int, patch_px: int) -> Complex | None:
    """Return the phase factors (K, M, N) for patterns of ``n_px`` and patches of ``patch_px``, a whole
    multiple of it; None for K = 1."""
    return None if upsampling == 1 else part_turns(n_px, upsampling, patch_px // n_px)


def _ramps(turns: Complex) -> Complex:
    """Return the factors of all parts on a patch, (K, K, M N, M N)."""
    along = turns.reshape(len(turns), -1)
    return along[:, None, :, None] * along[:, None, :] / len(turns)


def part_modes(modes: Complex, turns: Complex | None) -> Complex:
    r"""Return modes (..., P, M N, M N) as those of all parts, (..., P K^2, M N, M N), mode by mode.

    .. math:: P_{p,u} = t_u P_p / K

    Their far fields add up to what the pixels count, and their power is that of the modes. Turns are in the
    frame of the patch: the modes are at their sub-pixel places already.
    """
    if turns is None:
        return modes
    found = modes[..., None, None, :, :] * _ramps(turns).astype(modes.dtype)
    return found.reshape(*modes.shape[:-3], -1, *modes.shape[-2:])


def part_modes_adjoint(parted: Complex, turns: Complex | None) -> Complex:
    r"""Return waves (..., P, M N, M N) of the modes from those of all parts, (..., P K^2, M N, M N).

    .. math:: \psi_p = \sum_u t_u^* \psi_{p,u} / K
    """
    if turns is None:
        return parted
    count = len(turns)
    apart = parted.reshape(*parted.shape[:-3], -1, count, count, *parted.shape[-2:])
    return (apart * _ramps(turns).conj().astype(parted.dtype)).sum(axis=(-4, -3))
