"""Both backends are engines: what a run calls is there, with the arguments it passes."""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any

import pytest

from ptycho.run.engines import ENGINES, load_engine
from ptycho.run.job import Engine

CALLS = {
    name: member for name, member in vars(Engine).items() if inspect.isfunction(member) and name[0] != "_"
}


def faults(engine: Any) -> list[str]:
    """Return the calls of the protocol that an engine lacks, or whose positional arguments it cannot take."""
    found = []
    for name, call in CALLS.items():
        own = getattr(engine, name, None)
        kinds = inspect.Parameter
        asked = [
            p for p in list(inspect.signature(call).parameters.values())[1:] if p.kind != kinds.VAR_KEYWORD
        ]
        words = {p.name: None for p in asked if p.kind is kinds.KEYWORD_ONLY}
        try:
            inspect.signature(own).bind(*[None] * (len(asked) - len(words)), **words)
        except TypeError:
            found.append(name)
    return found


@pytest.mark.parametrize("backend", ENGINES)
def test_a_backend_offers_what_a_run_calls(backend: str) -> None:
    assert {"check_settings", "fit", "load", "reconstruct", "to_bundle"} <= CALLS.keys()
    assert faults(load_engine(backend)) == []


def test_a_missing_call_and_one_with_other_arguments_are_found() -> None:
    engine = load_engine("tensorflow")
    planted = {name: getattr(engine, name) for name in CALLS} | {"fit": lambda: None}
    del planted["load"]
    assert sorted(faults(SimpleNamespace(**planted))) == ["fit", "load"]
