"""Facts about what a client gets beside the network."""

from __future__ import annotations

import pytest

from ptycho.config.config import ModelConfig
from ptycho.errors import ConfigError
from ptycho.run.client import REFINE_VARIABLE, client_options
from ptycho.run.selection import selected


@pytest.mark.parametrize("value", [None, "", "on", " ON "])
@pytest.mark.parametrize("architecture", ["cnn", "unrolled"])
def test_hidden_pixels_choose_for_a_client(
    architecture: str, value: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(REFINE_VARIABLE, raising=False)
    if value is not None:
        monkeypatch.setenv(REFINE_VARIABLE, value)
    assert client_options(ModelConfig(architecture=architecture)) == {"select": selected}


@pytest.mark.parametrize("value", ["off", "Off"])
def test_the_environment_keeps_a_client_to_the_network(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(REFINE_VARIABLE, value)
    assert client_options(ModelConfig(architecture="cnn")) == {}


def test_a_network_that_smooths_exit_waves_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(REFINE_VARIABLE, raising=False)
    assert client_options(ModelConfig(gaussian_smoothing_sigma=0.7)) == {}


def test_another_word_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(REFINE_VARIABLE, "no")
    with pytest.raises(ConfigError, match=r"PTYCHO_REFINE is no choice \(got 'no', expected on or off\)"):
        client_options(ModelConfig(architecture="unrolled"))
