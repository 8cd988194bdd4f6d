"""Pixels that add what falls on K x K parts of each: every part sees a mode of the probe of its own (eq. 5b).

Symbols: K >= 1, parts of a pixel along each axis; ``turns``, complex (K, N), phase factors along one axis of
the patch, by part, None for K = 1.
"""

from __future__ import annotations

import numpy as np

from ptycho.physics.propagation import Complex


def part_turns(n_px: int, upsampling: int) -> Complex:
    r"""Return the phase factors of the parts of a pixel along one axis, complex128 (K, N) (eq. 5b).

    .. math:: t_{u}(r) = e^{-2\pi i u r / N}, \quad u = (n - (K - 1)/2)/K, \quad n = 0 \dots K - 1
    """
    parts = (np.arange(upsampling) - (upsampling - 1) / 2) / upsampling
    return np.exp(-2j * np.pi * np.multiply.outer(parts, np.arange(n_px) / n_px))


def part_modes(modes: Complex, turns: Complex | None) -> Complex:
    r"""Return modes (..., P, N, N) as those of all parts of a pixel, (..., P K^2, N, N), mode by mode.

    .. math:: P_{p,u} = t_u P_p / K

    Their far fields add up to what the pixels count, and their power is that of the modes. Turns are in the
    frame of the patch: the modes are at their sub-pixel places already.
    """
    if turns is None:
        return modes
    ramps = (turns[:, None, :, None] * turns[:, None, :] / len(turns)).astype(modes.dtype)
    found = modes[..., None, None, :, :] * ramps
    return found.reshape(*modes.shape[:-3], -1, *modes.shape[-2:])


def part_modes_adjoint(parted: Complex, turns: Complex | None) -> Complex:
    r"""Return waves (..., P, N, N) of the modes from those of all parts of a pixel, (..., P K^2, N, N).

    .. math:: \psi_p = \sum_u t_u^* \psi_{p,u} / K
    """
    if turns is None:
        return parted
    count = len(turns)
    ramps = (turns[:, None, :, None] * turns[:, None, :] / count).conj().astype(parted.dtype)
    apart = parted.reshape(*parted.shape[:-3], -1, count, count, *parted.shape[-2:])
    return (apart * ramps).sum(axis=(-4, -3))
