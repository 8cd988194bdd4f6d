"""Learning-rate schedules by the names that clients use, and the rule that ends a training run."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ptycho.config.architectures import architecture_of
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
"""What a training run says that goes on from a checkpoint alone."""
SCHEDULERS: tuple[str, ...] = allowed(Scheduler)


def base_rate(learning_rate: float, model: ModelConfig) -> float:
    """Return the rate that training starts from; for ``cnn`` the one asked for over the factor on its
    filters.

    The first steps of Adam move all weights of a layer by the full rate and largely in one direction, so the
    output moves with the width of the layer: ``cnn`` at the full rate saturates in its first epoch and stays
    flat.
    """
    return learning_rate / model.n_filters_scale if architecture_of(model).rate_by_width else learning_rate


def rate_factor(
    name: str,
    epoch: int,
    *,
    epochs: int,
    warmup_epochs: int = 0,
    min_ratio: float = 0.1,
    last_stage: tuple[int, float] | None = None,
) -> float:
    """Return the learning rate of an epoch, from 0, relative to the first setting, in (0, 1].

    Schedules that watch the loss stay at 1, see :class:`Plateau`. The cosines rise for ``warmup_epochs`` and
    end at ``min_ratio``; ``last_stage`` of ``MultiStage`` is its first epoch and factor. Raise
    ``ConfigError`` for an unknown name.
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
    """Lowers the learning rate when the loss no longer falls."""

    factor: float  # on the rate
    patience: int  # epochs without gain that are forgiven
    min_rate: float
    threshold: float  # smallest gain that counts, relative to the best loss
    best: float = math.inf  # loss so far
    waited: int = 0  # epochs without gain

    def lowered(self, loss: float, rate: float) -> float:
        """Take the loss and the learning rate of an epoch and return the rate of the next, the same or a
        lower one."""
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
    """Ends a training run when its monitored value no longer improves."""

    limit: int  # epochs without gain until the end
    mode: str = "min"  # or max: which end is good
    best: float | None = None  # value so far
    waited: int = 0  # epochs without gain
    best_epoch: int | None = None  # epoch of the best value, from 1

    def improves(self, value: float, epoch: int | None = None) -> bool:
        """Take the value of an epoch, from 1, and say whether it is the best so far; NaN never is."""
        better = self.best is None or (value > self.best if self.mode == "max" else value < self.best)
        if better and not math.isnan(value):
            self.best, self.waited, self.best_epoch = value, 0, epoch
            return True
        self.waited += 1
        return False

    @property
    def exhausted(self) -> bool:
        """True when the training run should end."""
        return self.waited >= self.limit


def best_names(backend: str, number: int) -> tuple[str, str]:
    """Return what the checkpoint of the best epoch, from 1, is called where one epoch is kept, and where
    several are."""
    name = BEST_CHECKPOINT[backend]
    return name, f"{number - 1:03d}-{name}"


@dataclass(frozen=True)
class TrainedEpoch:
    """Which epoch of a training run the weights of a model are from."""

    number: int  # from 1; 0 is the network that the training began with, where none was better
    monitor: str  # the loss that decides which epoch is best: val_loss or train_loss
    loss: float  # its value in this epoch

    def best_of(self, trained: int) -> str:
        """Return the line that a training run of so many epochs reports."""
        best = f"the best by {self.monitor} ({self.loss:.4g})"
        return f"model: epoch {self.number} of {trained}, {best}"

    def found_in(self, path: object) -> str:
        """Return the line that a reconstruction reports, with the file the model was read from."""
        return f"model: {path}, epoch {self.number} of its training ({self.monitor} {self.loss:.4g})"


def early_end(epoch: int, monitor: str, mode: str) -> str:
    """Say in a few words why a training run ended before its last epoch."""
    loss = {"val_loss": "validation loss", "train_loss": "training loss"}[monitor]
    return f"stopped early after epoch {epoch}: {loss} no longer {'rises' if mode == 'max' else 'falls'}"
