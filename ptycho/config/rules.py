"""The rules of single settings, as types: a field of a settings class says its range where it stands."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Real as Number
from pathlib import Path, PurePath
from types import UnionType
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints

Rule = tuple[str, Callable[[Any], bool]]


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_real(value: Any) -> bool:
    return isinstance(value, Number) and not isinstance(value, bool) and math.isfinite(value)


COUNT: Rule = ("an integer >= 1", lambda v: _is_int(v) and v >= 1)
NOT_NEGATIVE: Rule = ("a finite number >= 0", lambda v: _is_real(v) and v >= 0)
BOOL: Rule = ("True or False", lambda v: isinstance(v, bool))
PATH: Rule = ("a path", lambda v: isinstance(v, str | PurePath))

Count = Annotated[int, COUNT]
CountOrZero = Annotated[int, ("an integer >= 0", lambda v: _is_int(v) and v >= 0)]
Seed = Annotated[int, ("an integer >= 0 and < 2**63", lambda v: _is_int(v) and 0 <= v < 2**63)]
PowerOfTwo = Annotated[
    int, ("a power of two: 1, 2, 4, 8, ...", lambda v: _is_int(v) and v >= 1 and v & (v - 1) == 0)
]
Upsampling = Annotated[int, ("an integer from 1 to 16", lambda v: _is_int(v) and 1 <= v <= 16)]
Positive = Annotated[float, ("a finite number > 0", lambda v: _is_real(v) and v > 0)]
NotNegative = Annotated[float, NOT_NEGATIVE]
Fraction = Annotated[float, ("a number from 0 to 1", lambda v: _is_real(v) and 0 <= v <= 1)]
BelowOne = Annotated[float, ("a number >= 0 and < 1", lambda v: _is_real(v) and 0 <= v < 1)]
WidthOfFour = Annotated[
    int, ("an integer >= 4 divisible by 4", lambda v: _is_int(v) and v >= 4 and v % 4 == 0)
]
CountOrAuto = Annotated[
    int | Literal["auto"], ("an integer >= 1 or 'auto'", lambda v: v == "auto" or COUNT[1](v))
]
Odd = Annotated[int, ("an odd integer >= 1", lambda v: _is_int(v) and v >= 1 and v % 2 == 1)]
Real = Annotated[float, ("a finite number", _is_real)]
Axis = Annotated[int, ("0, 1 or 2", lambda v: _is_int(v) and 0 <= v <= 2)]
Word = Annotated[str, ("a word", lambda v: isinstance(v, str) and bool(v))]
Indices = Annotated[
    list[int],
    (
        "a list of integers >= 0",
        lambda v: isinstance(v, list | tuple) and all(_is_int(item) and item >= 0 for item in v),
    ),
]
Paths = Annotated[
    tuple[Path, ...],
    (
        "a list of paths",
        lambda v: isinstance(v, list | tuple) and all(isinstance(item, str | PurePath) for item in v),
    ),
]
BoolOrWarn = Annotated[
    bool | Literal["warn"], ("True, False or 'warn'", lambda v: isinstance(v, bool) or v == "warn")
]


def rule_of(hint: Any) -> Rule | None:
    """Return the rule that a type says: that of an annotation, a choice, a switch, a path; or None."""
    if get_origin(hint) is Annotated:
        return hint.__metadata__[0]
    if get_origin(hint) is Literal:
        values = get_args(hint)
        return f"one of {', '.join(values)}", lambda v: v in values
    if get_origin(hint) in (Union, UnionType):
        inner = [kind for kind in get_args(hint) if kind is not type(None)]
        rule = rule_of(inner[0]) if len(inner) == 1 else None
        return rule and (f"{rule[0]}, or None", lambda v: v is None or rule[1](v))
    return {bool: BOOL, Path: PATH}.get(hint)


def rules_of(settings: type) -> dict[str, Rule]:
    """Return the rule of every field of a settings class that has one."""
    hints = get_type_hints(settings, include_extras=True)
    found = {name: rule_of(hint) for name, hint in hints.items() if get_origin(hint) is not ClassVar}
    return {name: rule for name, rule in found.items() if rule is not None}
