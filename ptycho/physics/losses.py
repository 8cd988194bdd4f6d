"""What a training lowers: the terms of its loss and their weights, and the real-space terms in NumPy.

The terms on patterns belong to ``ptycho.physics``. Images are ``(..., H, W)``; the light that fell on them
weighs their pixels, ``(H, W)``, in any unit. Equation numbers follow ``specs/physics.md``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ptycho.config.config import TrainingConfig
from ptycho.errors import ConfigError

Image = NDArray[np.inexact[Any]]
Real = NDArray[np.floating[Any]]
Penalty = Literal["Total_Variation", "Mean_Deviation"]

UNIT_FLOOR = 1e-6
"""Added to the squared modulus before a phase is taken, so that a dark pixel has none."""


@dataclass(frozen=True)
class LossTerms:
    """The weights of a loss.

    Attributes
    ----------
    kind : {'amplitude', 'mae', 'poisson', 'supervised'}
        Main term; ``supervised`` compares patches with labels and nothing else.
    likelihood : float
        Weight of the main term; ``mae`` has its own weight instead.
    mae : float
        Weight of the mean absolute error of the amplitudes (eq. 7b).
    tv : float
        Weight of the total variation (eq. 7d).
    labels : float
        Weight of the difference from known patches (eq. 7e).
    amplitude_penalty, phase_penalty : tuple of (name, weight), or None
        Smoothness of the patches of ``cnn``, which only PyTorch settings can ask for.
    """

    kind: str = "amplitude"
    likelihood: float = 1.0
    mae: float = 0.0
    tv: float = 0.0
    labels: float = 0.0
    amplitude_penalty: tuple[Penalty, float] | None = None
    phase_penalty: tuple[Penalty, float] | None = None

    @property
    def supervised(self) -> bool:
        """True where labels replace the physics."""
        return self.kind == "supervised"

    @property
    def needs_labels(self) -> bool:
        """True where known patches take part."""
        return self.supervised or self.labels > 0


def loss_terms(config: TrainingConfig) -> LossTerms:
    """Return the loss that a configuration describes.

    Parameters
    ----------
    config : TrainingConfig
        ``torch_loss_mode``, the weights, and ``model.model_type``.

    Returns
    -------
    LossTerms
        Weights of the terms.

    Raises
    ------
    ConfigError
        If nothing in the loss compares with data.
    """
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
    """Return which loss decides the best epoch.

    Parameters
    ----------
    asked : str
        ``val_loss`` or ``train_loss``, with or without the kind of the loss and a line before it.
    kind : str
        ``LossTerms.kind`` of the training.

    Returns
    -------
    {'val_loss', 'train_loss'}
        Name in the history.

    Raises
    ------
    ConfigError
        If there is no such loss.
    """
    known = {f"{lead}{name}": name for name in ("val_loss", "train_loss") for lead in ("", f"{kind}_")}
    if asked not in known:
        raise ConfigError(
            f"training: checkpoint_monitor_metric is unknown (got {asked!r}, expected val_loss or "
            "train_loss). Choose one of them."
        )
    return known[asked]


def total_variation(image: Image, light: Real) -> Real:
    r"""Return the mean absolute difference of neighbouring pixels where both are lit.

    .. math:: T = \sum_r \sum_e m_e(r)\,|O(r + e) - O(r)| / \sum_r \sum_e m_e(r),
        \quad m_e(r) = \min(w(r), w(r + e))

    Parameters
    ----------
    image : real or complex array, shape (..., H, W)
        Object canvas or patches [transmission].
    light : real array, shape (H, W)
        Weight w of every pixel, >= 0.

    Returns
    -------
    real scalar
        In the unit of the image.

    References
    ----------
    specs/physics.md, eq. 7d.
    """
    count = int(np.prod(image.shape[:-2]))
    down, right = np.minimum(light[1:], light[:-1]), np.minimum(light[:, 1:], light[:, :-1])
    total = (down * abs(image[..., 1:, :] - image[..., :-1, :])).sum()
    total = total + (right * abs(image[..., 1:] - image[..., :-1])).sum()
    return total / (count * (down.sum() + right.sum()))


def label_error(patches: Image, labels: Image, light: Real) -> Real:
    r"""Return the mean absolute difference of patches from known ones, where they are lit.

    .. math:: E = \sum_j \sum_r w(r)\,|O_j(r) - T_j(r)| / \sum_j \sum_r w(r)

    Parameters
    ----------
    patches, labels : complex array, shape (J, N, N)
        Predicted and known patches [transmission].
    light : real array, shape (N, N)
        Weight w of every pixel, >= 0.

    Returns
    -------
    real scalar
        [transmission].

    References
    ----------
    specs/physics.md, eq. 7e.
    """
    return (light * abs(patches - labels)).sum() / (len(patches) * light.sum())


def supervised_loss(patches: Image, labels: Image, light: Real) -> Real:
    r"""Return the mean absolute differences of amplitude and of phase from labels, where the patches are lit.

    .. math:: S = \sum_j \sum_r w \left(\big||O_j| - |T_j|\big| + |u(O_j) - u(T_j)|\right)
        / \sum_j \sum_r w, \quad u(z) = z / \sqrt{|z|^2 + \epsilon_u}

    The phase is compared on the unit circle, so that a full turn does not count; a common phase does.

    Parameters
    ----------
    patches, labels : complex array, shape (J, N, N)
        Predicted and known patches [transmission].
    light : real array, shape (N, N)
        Weight w of every pixel, >= 0.

    Returns
    -------
    real scalar
        Dimensionless.

    References
    ----------
    specs/physics.md, eq. 7f.
    """

    def unit(values: Image) -> Image:
        return values / np.sqrt(abs(values) ** 2 + UNIT_FLOOR)

    difference = abs(abs(patches) - abs(labels)) + abs(unit(patches) - unit(labels))
    return (light * difference).sum() / (len(patches) * light.sum())
