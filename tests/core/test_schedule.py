"""Facts about learning rates and the end of training: closed forms, and the answers of ``torch.optim``."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ptycho.errors import ConfigError
from ptycho.networks.schedule import SCHEDULERS, Patience, Plateau, rate_factor

LOSSES = [1.0, 0.9, 0.9, 0.9, 0.9, 0.95, 0.8, 0.8, 0.81, 0.82, 0.83, 0.8, 0.7, 0.7, 0.7, 0.7, 0.7, 0.7]


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_schedule_stays_within_zero_and_one(name: str) -> None:
    factors = [rate_factor(name, k, epochs=20, warmup_epochs=3, last_stage=(15, 0.1)) for k in range(25)]
    assert min(factors) > 0
    assert max(factors) <= 1


def test_exponential_loses_a_twentieth_an_epoch() -> None:
    assert rate_factor("Exponential", 7, epochs=20) == pytest.approx(0.95**7)


def test_cosine_rises_falls_and_ends_at_its_ratio() -> None:
    factors = [rate_factor("WarmupCosine", k, epochs=21, warmup_epochs=1, min_ratio=0.2) for k in range(22)]
    assert factors[0] == 0.1
    assert factors[1] == 1.0
    assert factors[11] == pytest.approx(0.6)
    assert factors[21] == pytest.approx(0.2)
    assert factors[6] == pytest.approx(0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi / 4)))


def test_multi_stage_drops_at_its_last_stage_only() -> None:
    factors = [rate_factor("MultiStage", k, epochs=9, last_stage=(3, 0.5)) for k in (0, 2, 3, 8)]
    assert factors == [1, 1, 0.5, 0.5]
    assert rate_factor("MultiStage", 8, epochs=9) == 1.0


def test_an_unknown_schedule_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"got 'Linear', expected one of Default, Exponential"):
        rate_factor("Linear", 0, epochs=1)


@pytest.mark.parametrize(("patience", "threshold", "floor"), [(0, 0.0, 0.0), (2, 0.0, 2e-4), (1, 0.05, 0.0)])
def test_the_plateau_lowers_the_rate_when_torch_does(patience: int, threshold: float, floor: float) -> None:
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1e-3)
    judge = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=0.5, patience=patience, min_lr=floor, threshold=threshold
    )
    plateau, rate = Plateau(0.5, patience, floor, threshold), 1e-3
    rates, expected, impatient = [], [], []
    hasty, hasty_rate = Plateau(0.5, patience + 1, floor, threshold), 1e-3
    for loss in LOSSES:
        judge.step(loss)
        rate, hasty_rate = plateau.lowered(loss, rate), hasty.lowered(loss, hasty_rate)
        rates.append(rate)
        impatient.append(hasty_rate)
        expected.append(optimizer.param_groups[0]["lr"])
    np.testing.assert_allclose(rates, expected, rtol=1e-12)
    assert not np.allclose(impatient, expected)


def test_patience_ends_after_as_many_epochs_without_gain() -> None:
    patience, ended = Patience(3), []
    for loss in LOSSES:
        patience.improves(loss)
        ended.append(patience.exhausted)
    assert ended.index(True) == 4
    assert patience.best == 0.7


def test_patience_can_ask_for_the_largest() -> None:
    patience = Patience(2, "max")
    assert [patience.improves(value) for value in (0.1, 0.3, 0.2, math.nan)] == [True, True, False, False]
    assert patience.exhausted
