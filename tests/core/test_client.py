"""Facts about what a client gets beside the network."""

from __future__ import annotations

import pytest

from ptycho.config.config import ModelConfig
from ptycho.errors import ConfigError
from ptycho.run.client import CLIENT_STEPS, REFINE_VARIABLE, client_options
from ptycho.solver.options import RefineOptions


@pytest.mark.parametrize("value", [None, "", "on", " ON "])
def test_the_object_of_single_patterns_is_refined(value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(REFINE_VARIABLE, raising=False)
    if value is not None:
        monkeypatch.setenv(REFINE_VARIABLE, value)
    assert client_options(ModelConfig(architecture="cnn")) == {"refine": RefineOptions(CLIENT_STEPS)}


@pytest.mark.parametrize("value", ["off", "Off"])
def test_the_environment_keeps_a_client_to_the_network(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(REFINE_VARIABLE, value)
    assert client_options(ModelConfig(architecture="cnn")) == {}


@pytest.mark.parametrize(
    "model", [ModelConfig(architecture="unrolled"), ModelConfig(gaussian_smoothing_sigma=0.7)]
)
def test_a_network_that_refines_itself_or_smooths_exit_waves_is_left_alone(
    model: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(REFINE_VARIABLE, raising=False)
    assert client_options(model) == {}


def test_another_word_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(REFINE_VARIABLE, "no")
    with pytest.raises(ConfigError, match=r"PTYCHO_REFINE is no choice \(got 'no', expected on or off\)"):
        client_options(ModelConfig(architecture="unrolled"))
