"""Facts about the refinement that a configuration asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ptycho.config.config import InferenceConfig, ModelConfig
from ptycho.errors import ConfigError
from ptycho.run.pipeline import refinement
from ptycho.solver.options import RefineOptions


def configuration(sigma_px: float = 0.0, **settings: Any) -> InferenceConfig:
    model = ModelConfig(gaussian_smoothing_sigma=sigma_px)
    return InferenceConfig(model, Path("run"), Path("scan.npz"), **settings)


def test_no_steps_ask_for_nothing() -> None:
    assert refinement(configuration()) is None


def test_every_setting_reaches_the_refinement() -> None:
    settings = {
        "probe": True,
        "positions": True,
        "frames": True,
        "likelihood": "poisson",
        "tv": 0.01,
        "start": "flat",
    }
    found = refinement(
        configuration(**{f"refine_{name}": value for name, value in settings.items()}, refine_steps=7)
    )
    assert found == RefineOptions(7, **settings)
    assert found != RefineOptions(7)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"refine_steps": -1}, r"a number is out of range \(got --refine -1"),
        ({"refine_steps": 5, "refine_tv": 1.0}, r"--refine-tv 1.0, expected"),
        ({"refine_positions": True}, r"--refine-positions needs steps \(got --refine 0"),
        ({"refine_start": "flat"}, r"--init flat needs steps"),
        ({"refine_steps": 5, "sigma_px": 0.8}, r"smooths no exit wave \(got .* 0.8 px, expected 0\)"),
    ],
)
def test_what_cannot_be_refined_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        refinement(configuration(**settings))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 2.5}, r"a number is out of range \(got --refine 2.5"),
        ({"steps": 5, "tv": float("nan")}, r"--refine-tv nan"),
        ({"steps": 5, "likelihood": "poison"}, r"refine_likelihood is 'poison', expected one of amplitude"),
        (
            {"steps": 5, "start": "cold"},
            r"refine_start is 'cold', expected one of network, flat, difference-map",
        ),
        ({"steps": 5, "probe": "no"}, r"refine_probe is 'no', expected True or False"),
        ({"steps": 0, "frames": True}, r"--refine-frames needs steps"),
        ({"steps": 0, "probe_modes": 2}, r"--probe-modes needs steps"),
        ({"steps": 5, "probe_modes": 2}, r"--probe-modes needs a probe that is refined"),
        ({"steps": 5, "probe_variation": 1}, r"--probe-variation needs a probe that is refined"),
        ({"steps": 5, "probe": True, "probe_variation": -1}, r"probe_variation is -1, expected an integer"),
    ],
)
def test_options_are_refused_where_they_are_made(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RefineOptions(**values)


def test_no_iterations_of_nothing_else_are_an_option() -> None:
    assert RefineOptions(0).subset_counts(8) == []
