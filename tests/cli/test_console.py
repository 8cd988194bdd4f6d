"""The lines of a running command: every value can be read, and a phase that ends early gives its reason."""

from __future__ import annotations

import contextlib
import io
import re
from typing import Any

import pytest

from ptycho.cli.console import ConsoleProgress

COLUMNS = 80
LOSSES = {"train_loss": 0.0123456, "val_loss": 123456.7}
CASES: dict[str, tuple[str, int, int, dict[str, Any]]] = {
    "training": ("training", 7, 50, LOSSES),
    "small numbers": ("training", 123456, 654321, {"train_loss": 1.234567e-5, "val_loss": 1.234567e-5}),
    "six digits": ("training", 123456, 654321, {"train_loss": 123456, "val_loss": 654321}),
    "one value": ("refining", 20, 40, {"misfit": 0.0123456}),
    "long phase": ("simulating for step 12", 123456, 200000, LOSSES),
    "long name": ("reconstructing", 5, 60, {"unsupervised_validation_loss": 123456}),
    "many": ("training", 7, 50, {f"loss_of_part_{k}": 123456 for k in range(6)}),
    "braces": ("fit {probe}", 7, 50, {"a{0}": 1.5}),
}


class Terminal(io.StringIO):
    """A stream that passes for a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(COLUMNS))
    monkeypatch.setenv("LINES", "24")


def drawn(stream: io.StringIO, case: str, why: str = "") -> list[str]:
    """Run a phase; return every line that was drawn, the overwritten ones too."""
    name, done, total, values = CASES[case]
    with contextlib.redirect_stdout(stream), ConsoleProgress().phase(name, total) as phase:
        for step in (1, done):
            phase.update(step, **values)
        if why:
            phase.ended(why)
    return [line.rstrip() for line in re.split(r"[\r\n]+", stream.getvalue()) if line.strip()]


def expected_values(case: str) -> list[str]:
    values = CASES[case][3].items()
    return [
        f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}" for name, value in values
    ]


@pytest.mark.parametrize("case", [case for case in CASES if case != "many"])
def test_every_value_of_the_live_line_fits_eighty_columns(case: str) -> None:
    lines = drawn(Terminal(), case)
    name, done, total, _ = CASES[case]
    assert max(map(len, lines)) <= COLUMNS
    for value in expected_values(case):
        assert re.search(rf"{re.escape(value)}(,|$)", lines[-1]), lines[-1]
    assert f"{done}/{total}" in lines[-1]
    assert lines[-1].startswith(name[:8])


def test_the_bar_gives_way_to_the_values() -> None:
    wide, narrow = (drawn(Terminal(), case)[-1] for case in ("one value", "long phase"))
    assert re.match(r"refining +={12} +20/40 \[", wide)
    assert narrow.partition("/")[0].count("=") <= 1


def test_values_beyond_a_line_stand_below_it() -> None:
    lines = drawn(Terminal(), "many", "converged after 7")
    assert len([line for line in lines if len(line) > COLUMNS]) == 1
    assert lines[-2] == "training: " + ", ".join(expected_values("many"))
    assert lines[-1] == "training: converged after 7"


@pytest.mark.parametrize(
    "why", ["converged after 32", "stopped early after epoch 7: validation loss no longer falls"]
)
def test_a_phase_that_ends_early_gives_its_reason(why: str) -> None:
    live, plain = drawn(Terminal(), "training", why), drawn(io.StringIO(), "training", why)
    assert "7/50" in "".join(live[-2:])
    assert live[-1].endswith(why)
    assert max(map(len, live)) <= COLUMNS
    (line,) = plain
    assert line.startswith("training: 7/50 in ")
    assert line.endswith(f"train_loss 0.01235, val_loss 1.235e+05; {why}")
    assert why not in "".join(drawn(Terminal(), "training"))
