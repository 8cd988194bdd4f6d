"""The part of a probe that changes during a scan: its start, its steps, its gauge (eq. 26)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho.physics.variation import orthogonal_variation, without
from ptycho.solver.schedule import (
    VARIATION_MOMENTUM,
    VARIATION_MORE_MODES,
    VARIATION_RIDGE,
    VARIATION_SHARE,
    VARIATION_STEP,
)

SEED = 26
"""Of the coefficients that the first modes are found with; a scan gives the same result every time."""
TINY = 1e-30
"""Smallest number that is divided by."""


class VaryingProbe:
    """Variable modes (K, N, N) [sqrt(photons)] and coefficients (J, K) of J patterns in the order of the
    scan.

    The modes start dark, with coefficients that are part smooth and part random in time: the first gradient
    finds what changes with them, as the first step of a randomised principal component analysis does. Some
    more modes than asked for take part in ``search_steps``, so that the right ones are among them.
    """

    def __init__(self, n_patterns: int, count: int, n_px: int, search_steps: int) -> None:
        self.count, self._steps, self._search_steps = count, 0, search_steps
        count += VARIATION_MORE_MODES
        time = (np.arange(n_patterns) + 0.5) / n_patterns
        smooth = np.sqrt(2) * np.cos(np.pi * np.arange(1, count + 1) * time[:, None])
        drawn = np.random.default_rng(SEED).standard_normal((n_patterns, count))
        self.coefficients: NDArray[np.float64] = smooth + drawn
        self.modes: NDArray[np.complex128] = np.zeros((count, n_px, n_px), np.complex128)
        self._velocity = np.zeros_like(self.modes)

    def weights(self, power: float) -> NDArray[np.float64]:
        """Return the weights (J, 1 + K) of the mean probe, whose first mode has a ``power`` [photons], and of
        the variable modes in every pattern: those of a probe whose power stays."""
        own = (np.abs(self.modes) ** 2).sum(axis=(1, 2)) / max(power, TINY)
        length = np.sqrt(1 + self.coefficients**2 @ own)[:, None]
        return np.concatenate([np.ones_like(length), self.coefficients], axis=1) / length

    def step(
        self,
        gradient: NDArray[np.complexfloating],
        power: NDArray[np.floating],
        rows: NDArray[np.int64],
        normal: NDArray[np.float64],
        right: NDArray[np.float64],
    ) -> None:
        """Move the modes by their gradient and object power (K, N, N), and the coefficients of ``rows`` (B,)
        by their normal matrices (B, K, K) and right sides (B, K)."""
        if self._steps:
            mean = np.einsum("jkk->k", normal) / len(normal)
            ridged = normal + np.diag(VARIATION_RIDGE * mean + TINY)
            found = np.linalg.solve(ridged, right[:, :, None])[:, :, 0]
            self.coefficients[rows] += VARIATION_SHARE * found
        steepest = np.maximum(power.max(axis=(1, 2)), TINY)[:, None, None]
        self._velocity = VARIATION_MOMENTUM * self._velocity - VARIATION_STEP * gradient / steepest
        self.modes = self.modes + self._velocity
        self._steps += 1

    def moments(self) -> dict[str, NDArray[np.float64]]:
        """Return the sums over patterns that the gauge needs."""
        return {"sum": self.coefficients.sum(axis=0), "products": self.coefficients.T @ self.coefficients}

    def settle(self, sums: dict[str, Any], count: float, probe: NDArray[Any]) -> NDArray[np.complex128]:
        """Take the mean out of the coefficients, what is like the first mode of the mean ``probe`` (P, N, N)
        out of the modes, and make them orthogonal; return the change (N, N) of the mean probe that makes up
        for the former."""
        mean = np.asarray(sums["sum"], np.float64) / count
        moment = np.asarray(sums["products"], np.float64) / count - np.outer(mean, mean)
        offset = np.einsum("k,kyx->yx", mean, self.modes)
        first = probe[0] + offset
        modes, velocity = without(self.modes, first), without(self._velocity, first)
        of_modes, of_coefficients = orthogonal_variation(modes, moment)
        if self._steps > self._search_steps:
            of_modes, of_coefficients = of_modes[: self.count], of_coefficients[:, : self.count]
        self.coefficients = (self.coefficients - mean) @ of_coefficients
        self.modes, self._velocity = (np.einsum("kl,lyx->kyx", of_modes, part) for part in (modes, velocity))
        return offset

    def scale(self, factor: float) -> None:
        """Multiply the modes."""
        self.modes, self._velocity = self.modes * factor, self._velocity * factor
