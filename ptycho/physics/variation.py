"""A probe that changes from pattern to pattern by a few modes, and how patterns tell of it (eq. 26).

Symbols: V_k, complex (K, N, N), the variable ``modes`` [sqrt(photons)]; w_jk, real (J, 1 + K), the
``weights`` of the mean probe and of them in pattern j. They change the first of the incoherent modes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ptycho.physics.detector import FAR_FIELD, Detector
from ptycho.physics.filling import measured
from ptycho.physics.forward import exit_waves
from ptycho.physics.motion import object_slope, root_residual
from ptycho.physics.pixel_parts import part_modes
from ptycho.physics.propagation import Complex, Real, propagate, shift_field


def varied_probes(probe: Complex, modes: Complex, weights: Real) -> Complex:
    r"""Return the probe of every pattern, shape (J, P, N, N), from the mean one ``probe`` (P, N, N).

    .. math:: P_{j,0} = w_{j0} P_0 + \sum_k w_{jk} V_k, \quad P_{j,p} = P_p
    """
    basis = np.concatenate([probe[:1], modes])
    first = np.einsum("jk,kyx->jyx", weights, basis).astype(probe.dtype)
    rest = np.broadcast_to(probe[1:], (len(first), *probe[1:].shape))
    return np.concatenate([first[:, None], rest], axis=1)


def variation_gradient(
    patches: Complex, residual: Complex, shifts_yx_px: Real, weights: Real
) -> tuple[Complex, Real]:
    r"""Return the gradient by the variable modes and the object power that bounds its curvature, both
    (K, N, N); ``residual`` is (J, P, N, N), of exit waves.

    .. math:: h_k = \sum_j w_{jk} h_{j,0}, \quad \sum_j w_{jk}^2 |O_j|^2
    """
    own = shift_field(patches.conj()[:, None] * residual[:, :1], -shifts_yx_px)[:, 0]
    power = patches.real**2 + patches.imag**2
    gradient = np.einsum("jk,jyx->kyx", weights[:, 1:], own)
    return gradient.astype(patches.dtype), np.einsum("jk,jyx->kyx", weights[:, 1:] ** 2, power)


def variation_equations(
    patches: Complex,
    probes: Complex,
    amplitude: Real,
    modes: Complex,
    shifts_yx_px: Real,
    detector: Detector = FAR_FIELD,
) -> tuple[Real, Real]:
    r"""Return normal matrices (J, K, K) and right sides (J, K) of the change of every pattern's weights
    of the variable modes.

    .. math:: V_{j,k} = \Re\left(\Psi_{j,0}^* \mathcal{D}_j[V_k(r - \delta_j)\,O_j]\right) / \tilde A_j, \quad
        N_{kl} = \sum m V_k V_l, \quad R_k = \sum e V_k

    :math:`\tilde A` and e are those of :func:`ptycho.physics.root_residual`; :math:`N^{-1} R` is the
    Gauss-Newton step. Where pixels add parts, the products are added over those of mode 0 (eq. 5b).
    """
    field = propagate(exit_waves(patches, probes), detector)
    root, missed = root_residual(detector.counted((field.real**2 + field.imag**2).sum(axis=1)), amplitude)
    changes = part_modes(shift_field(modes, shifts_yx_px), detector.part_turns)
    moved = propagate(exit_waves(patches, changes), detector)
    moved = moved.reshape(len(patches), len(modes), -1, *moved.shape[-2:])
    first = field[:, None, : moved.shape[2]]
    along = (first.real * moved.real + first.imag * moved.imag).sum(axis=2) / root[:, None]
    basis = np.where(measured(amplitude)[:, None], along, 0).reshape(*along.shape[:2], -1)
    right = (basis * missed.reshape(len(missed), 1, -1)).sum(axis=2)
    return basis @ basis.transpose(0, 2, 1), right


MORE_MODE_POWER = 0.1
"""Power of an incoherent mode that is added, relative to the first one."""


def probe_of_modes(probe: Complex, count: int) -> Complex:
    r"""Return a probe (M, N, N) as ``count`` incoherent modes of the same total power.

    Of more modes than that, the strongest are kept. To fewer, the slopes of the first one are added, made
    orthogonal to all before:

    .. math:: \partial_x P_0, \partial_y P_0, \partial_x^2 P_0, \partial_x\partial_y P_0, \dots

    They are what a mean over small shifts mixes into a pattern: a stage that moves during the exposure, a
    vibration.
    """
    n_px, power = probe.shape[-1], (np.abs(probe) ** 2).sum(axis=(1, 2))
    if len(probe) >= count:
        found = probe[np.sort(np.argsort(-power, kind="stable")[:count])]
    else:
        basis, _ = np.linalg.qr(probe.reshape(len(probe), -1).T.astype(np.complex128))
        slopes, more = [probe[0].astype(np.complex128)], []
        while len(more) < count - len(probe):
            # The slopes of one order from those of the order before, each product of axes once.
            slopes = [object_slope(one, 1) for one in slopes] + [object_slope(slopes[-1], 0)]
            for slope in slopes:
                left = slope.ravel() - basis @ (basis.conj().T @ slope.ravel())
                left = left / max(float(np.linalg.norm(left)), 1e-30)
                basis = np.column_stack([basis, left])
                more.append(left.reshape(n_px, n_px))
        added = np.sqrt(MORE_MODE_POWER * power[0]) * np.stack(more[: count - len(probe)])
        found = np.concatenate([probe, added])
    factor = np.sqrt(power.sum() / max(float((np.abs(found) ** 2).sum()), 1e-30))
    return (factor * found).astype(probe.dtype)


def without(modes: Complex, other: Complex) -> Complex:
    """Return modes (K, N, N) without their component along another one (N, N)."""
    along = np.einsum("kyx,yx->k", modes, other.conj()) / max(float((np.abs(other) ** 2).sum()), 1e-30)
    return modes - along[:, None, None] * other


def orthogonal_variation(
    modes: Complex, moment: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    r"""Return the matrices (K, K) that make variable modes orthogonal, strongest first, and coefficients
    orthonormal over the patterns: :math:`V' = A V, c' = c B` with :math:`B A = 1`.

    ``moment`` is the mean of :math:`c_{jk} c_{jl}` over the patterns, (K, K); c has mean 0. The power of
    :math:`V'_k` is then that of its share in the mean pattern. Modes are those of the singular value
    decomposition of c V, found from matrices of K x K.
    """
    count = len(modes)
    floor = 1e-9 * max(float(np.trace(moment)) / count, 1e-30)
    lower = np.linalg.cholesky(moment + floor * np.eye(count))
    flat = modes.reshape(count, -1)
    gram = (flat.astype(np.complex128) @ flat.conj().T).real
    power, turn = np.linalg.eigh(lower.T @ gram @ lower)
    turn = turn[:, np.argsort(-power)]
    return turn.T @ lower.T, np.linalg.inv(lower).T @ turn
