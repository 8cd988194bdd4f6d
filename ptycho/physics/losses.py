"""What a training run lowers: the terms of its loss and their weights, and the real-space terms in NumPy.

The terms on patterns belong to ``ptycho.physics.misfit``. Images are ``(..., H, W)``; the light that fell on
them weighs their pixels, ``(H, W)`` >= 0, in any unit. Equation numbers follow ``specs/physics.md``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ptycho.config.choices import HIDDEN
from ptycho.config.config import TrainingConfig
from ptycho.errors import ConfigError

Image = NDArray[np.inexact[Any]]
Real = NDArray[np.floating[Any]]
Penalty = Literal["Total_Variation", "Mean_Deviation"]

UNIT_FLOOR = 1e-6
"""Added to the squared modulus before a phase is taken, so that a dark pixel has none."""


@dataclass(frozen=True)
class LossTerms:
    """The weights of a loss."""

    # main term: amplitude, mae, poisson; hidden: poisson of pixels that the network is not shown (eq. 29);
    # supervised: patches are compared with labels only
    kind: str = "amplitude"
    likelihood: float = 1.0  # main term; for mae it is 0, the weight is the next one
    mae: float = 0.0  # mean absolute error of the amplitudes (eq. 7b)
    tv: float = 0.0  # total variation (eq. 7d)
    labels: float = 0.0  # difference from known patches (eq. 7e)
    # smoothness of the patches of ``cnn``, which only PyTorch settings can ask for
    amplitude_penalty: tuple[Penalty, float] | None = None
    phase_penalty: tuple[Penalty, float] | None = None

    @property
    def supervised(self) -> bool:
        """True where labels replace the physics."""
        return self.kind == "supervised"

    @property
    def hidden(self) -> bool:
        """True where pixels that the network is not shown judge it."""
        return self.kind == HIDDEN

    @property
    def needs_labels(self) -> bool:
        """True where known patches take part."""
        return self.supervised or self.labels > 0


def loss_terms(config: TrainingConfig) -> LossTerms:
    """Return the loss that a configuration describes; ``ConfigError`` where nothing compares with data."""
    if config.model.model_type == "supervised":
        return LossTerms("supervised")
    likelihood, mae = config.nll_weight, config.mae_weight
    if config.torch_loss_mode == "mae":
        likelihood, mae = 0.0, mae or 1.0
    labels = config.realspace_weight * config.realspace_mae_weight
    if likelihood + mae + labels == 0:
        raise ConfigError(
            "training: no term of the loss compares with data (got nll_weight=0 and mae_weight=0, expected "
            "one of them > 0). Set nll_weight to 1."
        )
    return LossTerms(
        config.torch_loss_mode, likelihood, mae, config.realspace_weight * config.tv_weight, labels
    )


def monitored_loss(asked: str, kind: str) -> str:
    """Return which loss decides the best epoch, ``val_loss`` or ``train_loss``; ``ConfigError`` if unknown.

    ``asked`` may carry the kind of the loss and a line before the name.
    """
    known = {f"{lead}{name}": name for name in ("val_loss", "train_loss") for lead in ("", f"{kind}_")}
    if asked not in known:
        raise ConfigError(
            f"training: checkpoint_monitor_metric is unknown (got {asked!r}, expected val_loss or "
            "train_loss). Choose one of them."
        )
    return known[asked]


def total_variation(image: Image, illumination: Real) -> Real:
    r"""Return the mean absolute difference of neighbouring pixels where both are lit (eq. 7d).

    .. math:: T = \sum_r \sum_e m_e(r)\,|O(r + e) - O(r)| / \sum_r \sum_e m_e(r),
        \quad m_e(r) = \min(w(r), w(r + e))

    Real or complex images; the illumination w of every pixel, (H, W). The result has the unit of the images.
    """
    count = int(np.prod(image.shape[:-2]))
    down, right = (
        np.minimum(illumination[1:], illumination[:-1]),
        np.minimum(illumination[:, 1:], illumination[:, :-1]),
    )
    total = (down * abs(image[..., 1:, :] - image[..., :-1, :])).sum()
    total = total + (right * abs(image[..., 1:] - image[..., :-1])).sum()
    return total / (count * (down.sum() + right.sum()))


def label_error(patches: Image, labels: Image, illumination: Real) -> Real:
    r"""Return the mean absolute difference of patches from known ones, where they are lit (eq. 7e).

    .. math:: E = \sum_j \sum_r w(r)\,|O_j(r) - T_j(r)| / \sum_j \sum_r w(r)

    Complex patches and labels (J, N, N) [transmission]; the illumination w of every pixel, (N, N).
    """
    return (illumination * abs(patches - labels)).sum() / (len(patches) * illumination.sum())


def supervised_loss(patches: Image, labels: Image, illumination: Real) -> Real:
    r"""Return the mean absolute differences of amplitude and of phase from labels (eq. 7f).

    .. math:: S = \sum_j \sum_r w \left(\big||O_j| - |T_j|\big| + |u(O_j) - u(T_j)|\right)
        / \sum_j \sum_r w, \quad u(z) = z / \sqrt{|z|^2 + \epsilon_u}

    The phase is compared on the unit circle, so that a full turn does not count; a common phase does.
    Arguments as in :func:`label_error`; no unit.
    """

    def unit(values: Image) -> Image:
        return values / np.sqrt(abs(values) ** 2 + UNIT_FLOOR)

    difference = abs(abs(patches) - abs(labels)) + abs(unit(patches) - unit(labels))
    return (illumination * difference).sum() / (len(patches) * illumination.sum())
