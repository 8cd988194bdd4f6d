"""Learning-rate schedules by the names that clients use, and the rule that ends a training."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ptycho.config.choices import BEST_CHECKPOINT, Scheduler, allowed
from ptycho.config.config import ModelConfig
from ptycho.errors import ConfigError

EXPONENTIAL_DECAY = 0.95
"""Factor of the Exponential schedule for every epoch."""
WARMUP_START = 0.1
"""Share of the learning rate that a warm-up begins with."""
SMALLEST_CHANGE = 1e-8
"""A learning rate is not lowered by less than this."""
BEST_LOST = "the weights of its best epoch, {}, are not beside it; the best is looked for among those to come"
"""What a training says that goes on from a checkpoint alone."""
SCHEDULERS: tuple[str, ...] = allowed(Scheduler)


def base_rate(learning_rate: float, model: ModelConfig) -> float:
    """Return the rate that training starts from, for a network of this width.

    The first steps of Adam move all weights of a layer by the full rate and largely in one direction, so the
    output moves with the width of the layer. ``cnn`` at the full rate saturates in its first epoch and stays
    flat; the rate therefore falls with the factor on its filters.

    Parameters
    ----------
    learning_rate : float
        Rate as asked for.
    model : ModelConfig
        ``architecture`` and ``n_filters_scale``.

    Returns
    -------
    float
        The rate asked for, divided by the factor on the filters for ``cnn``.
    """
    return learning_rate / model.n_filters_scale if model.architecture == "cnn" else learning_rate


def rate_factor(
    name: str,
    epoch: int,
    *,
    epochs: int,
    warmup_epochs: int = 0,
    min_ratio: float = 0.1,
    last_stage: tuple[int, float] | None = None,
) -> float:
    """Return the learning rate of an epoch relative to the first setting.

    Parameters
    ----------
    name : str
        One of ``SCHEDULERS``; those that watch the loss stay at 1, see :class:`Plateau`.
    epoch : int
        Epoch, from 0.
    epochs : int
        Epochs of the training.
    warmup_epochs : int
        Epochs of rising rate before ``Cosine`` and ``WarmupCosine``.
    min_ratio : float
        Where the cosine ends.
    last_stage : tuple of int and float, optional
        First epoch and factor of the last stage of ``MultiStage``.

    Returns
    -------
    float
        Factor in (0, 1].

    Raises
    ------
    ConfigError
        If the schedule is unknown.
    """
    if name in ("Default", "ReduceLROnPlateau", "Adaptive"):
        return 1.0
    if name == "Exponential":
        return EXPONENTIAL_DECAY**epoch
    if name == "MultiStage":
        return last_stage[1] if last_stage is not None and epoch >= last_stage[0] else 1.0
    if name in ("Cosine", "WarmupCosine"):
        warmup = min(warmup_epochs, max(epochs - 1, 0))
        if epoch < warmup:
            return WARMUP_START + (1 - WARMUP_START) * epoch / warmup
        turn = math.pi * min(1.0, (epoch - warmup) / max(epochs - warmup, 1))
        return min_ratio + (1 - min_ratio) * 0.5 * (1 + math.cos(turn))
    raise ConfigError(
        f"training: unknown scheduler (got {name!r}, expected one of {', '.join(SCHEDULERS)}). Choose one."
    )


@dataclass
class Plateau:
    """Lowers the learning rate when the loss no longer falls.

    Attributes
    ----------
    factor : float
        Factor on the rate.
    patience : int
        Epochs without gain that are forgiven.
    min_rate : float
        Lowest rate.
    threshold : float
        Smallest gain that counts, relative to the best loss.
    best : float
        Best loss so far.
    waited : int
        Epochs without gain.
    """

    factor: float
    patience: int
    min_rate: float
    threshold: float
    best: float = math.inf
    waited: int = 0

    def lowered(self, loss: float, rate: float) -> float:
        """Take the loss of an epoch and return the learning rate of the next.

        Parameters
        ----------
        loss : float
            Loss of the epoch.
        rate : float
            Learning rate of the epoch.

        Returns
        -------
        float
            The same rate, or a lower one.
        """
        if loss < self.best * (1.0 - self.threshold):
            self.best, self.waited = loss, 0
            return rate
        self.waited += 1
        if self.waited <= self.patience:
            return rate
        self.waited = 0
        lower = max(rate * self.factor, self.min_rate)
        return lower if rate - lower > SMALLEST_CHANGE else rate


@dataclass
class Patience:
    """Ends a training when what it is judged by no longer improves.

    Attributes
    ----------
    limit : int
        Epochs without gain until the end.
    mode : {'min', 'max'}
        Which end is good.
    best : float or None
        Best value so far.
    waited : int
        Epochs without gain.
    best_epoch : int or None
        Epoch of the best value, from 1.
    """

    limit: int
    mode: str = "min"
    best: float | None = None
    waited: int = 0
    best_epoch: int | None = None

    def improves(self, value: float, epoch: int | None = None) -> bool:
        """Take the value of an epoch and say whether it is the best so far.

        Parameters
        ----------
        value : float
            What the training is judged by.
        epoch : int, optional
            Epoch, from 1.

        Returns
        -------
        bool
            False for a value that is not a number.
        """
        better = self.best is None or (value > self.best if self.mode == "max" else value < self.best)
        if better and not math.isnan(value):
            self.best, self.waited, self.best_epoch = value, 0, epoch
            return True
        self.waited += 1
        return False

    @property
    def exhausted(self) -> bool:
        """True when the training should end."""
        return self.waited >= self.limit


def best_names(backend: str, number: int) -> tuple[str, str]:
    """Return what the checkpoint of the best epoch may be called.

    Parameters
    ----------
    backend : {'pytorch', 'tensorflow'}
        Who wrote it.
    number : int
        The epoch, from 1.

    Returns
    -------
    tuple of str
        Its name where one epoch is kept, and where several are.
    """
    name = BEST_CHECKPOINT[backend]
    return name, f"{number - 1:03d}-{name}"


@dataclass(frozen=True)
class TrainedEpoch:
    """Which epoch of a training the weights of a model are from.

    Attributes
    ----------
    number : int
        Epoch, from 1.
    monitor : str
        The loss that decides which epoch is best: ``val_loss`` or ``train_loss``.
    loss : float
        Its value in this epoch.
    """

    number: int
    monitor: str
    loss: float

    def best_of(self, trained: int) -> str:
        """Return the line that a training reports.

        Parameters
        ----------
        trained : int
            Epochs in all.

        Returns
        -------
        str
            One line.
        """
        best = f"the best by {self.monitor} ({self.loss:.4g})"
        return f"model: epoch {self.number} of {trained}, {best}"

    def found_in(self, path: object) -> str:
        """Return the line that a reconstruction reports.

        Parameters
        ----------
        path : path-like
            File the model was read from.

        Returns
        -------
        str
            One line.
        """
        return f"model: {path}, epoch {self.number} of its training ({self.monitor} {self.loss:.4g})"


def early_end(epoch: int, monitor: str, mode: str) -> str:
    """Say why a training ended before its last epoch.

    Parameters
    ----------
    epoch : int
        Epochs that were trained.
    monitor : {'val_loss', 'train_loss'}
        What the training is judged by.
    mode : {'min', 'max'}
        Which end is good.

    Returns
    -------
    str
        A few words.
    """
    loss = {"val_loss": "validation loss", "train_loss": "training loss"}[monitor]
    return f"stopped early after epoch {epoch}: {loss} no longer {'rises' if mode == 'max' else 'falls'}"
