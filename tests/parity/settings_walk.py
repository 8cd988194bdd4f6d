"""A walk over every field of the settings of one kind of run: what comes of another value?"""

from __future__ import annotations

import contextlib
import io
import re
import shutil
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from other_values import others
from watched import Kept, OtherResult, fingerprint, watched

from ptycho.config.effects import NEEDED, NEEDED_CHOICES
from ptycho.errors import PtychoError

Context = dict[str, Any]


@dataclass
class Circumstances:
    """What settings need beside them before their effect can be seen.

    Attributes
    ----------
    contexts : dict
        Setting -> other settings. Without them it must change something as well, or be refused.
    with_value : dict
        (Setting, value as text or None for any) -> what comes with the value and needs it.
    situations : dict
        Setting -> other settings, or another scan, without which no value of it could do anything.
    scans : dict
        Setting -> scan that shows its effect; counts as a situation.
    judged_by_file : tuple
        Settings that only the data file can refuse.
    spellings : dict
        Setting -> how messages may call it beside its name.
    """

    contexts: dict[str, Context] = field(default_factory=dict)
    with_value: dict[tuple[str, str | None], Context] = field(default_factory=dict)
    situations: dict[str, Context] = field(default_factory=dict)
    scans: dict[str, str] = field(default_factory=dict)
    judged_by_file: tuple[str, ...] = ()
    spellings: dict[str, list[str]] = field(default_factory=dict)


@dataclass
class Walk:
    """Runs of one kind, and what comes of every change.

    Attributes
    ----------
    name : {'torch', 'tf'}
        Backend.
    kind : str
        What is run, for the report.
    parts : dict of str to dataclass
        Settings of the plain run.
    run : callable
        Runs with such settings: parts, folder, scan, progress.
    folder : Path
        Where the runs are written, one at a time.
    paths : dict of str to object
        Other values of settings that no type tells, paths above all.
    scans : dict of str to Path
        Scans by kind; ``plain`` is one.
    circumstances : Circumstances
        What settings need beside them.
    left_out : dict of str to str
        Setting -> why the walk passes it over.
    """

    name: str
    kind: str
    parts: dict[str, Any]
    run: Callable[[dict[str, Any], Path, Path, Kept], Any]
    folder: Path
    paths: dict[str, Any]
    scans: dict[str, Path]
    circumstances: Circumstances
    left_out: dict[str, str] = field(default_factory=dict)
    verdicts: dict[str, str] = field(default_factory=dict)
    bases: dict[str, Any] = field(default_factory=dict)

    def owner(self, name: str) -> tuple[str, str]:
        """Return part and field of a name, which may say its part: ``part.field``."""
        part, dot, own = name.partition(".")
        if dot:
            return part, own
        return next(key for key, part in self.parts.items() if hasattr(part, name)), name

    def result(self, changes: Context, scan: Path, plain: Any = None) -> Any:
        """Run with changes; return what came of it, or the message that refused it.

        Where ``plain`` is the result of another run, a run ends as soon as it computes something else.
        """
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        progress, out = Kept(), self.folder / "out"
        told = contextlib.redirect_stderr(io.StringIO())
        with watched(self.name, plain) as seen, told, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                parts = dict(self.parts)
                for name, value in changes.items():
                    part, own = self.owner(name)
                    parts[part] = replace(parts[part], **{own: value})
                self.run(parts, out, scan, progress)
            except PtychoError as error:
                return f"{'late' if seen['opened'] or out.exists() else 'early'}: {error}"
            except OtherResult as error:
                return {str(error): seen[str(error)]}
            except Exception as error:
                return f"crash: {''.join(traceback.format_exception_only(error)).strip()}"
        return fingerprint(self.folder, progress, seen)

    def base(self, context: Context, scan: Path) -> Any:
        """Return the result without the change, run once for each context."""
        key = repr((sorted(context.items(), key=str), scan.name))
        if key not in self.bases:
            self.bases[key] = self.result(context, scan)
        return self.bases[key]

    def judge(self, where: str, value: Any, context: Context, scan: Path) -> str:
        """Return the verdict on one value of one setting, named ``part.field``."""
        _, name = self.owner(where)
        special = self.circumstances.with_value
        extra = special.get((name, str(value)), special.get((name, None), {}))
        extra = {key: value for key, value in extra.items() if self._is_known(key)}
        base = self.base(context, scan)
        with_value = self.result({**context, **extra, where: value}, scan, base)
        if isinstance(with_value, str):
            return self._refusal(name, with_value)
        if isinstance(base, str):
            needed = self._is_named(name, base)
            return f"{'changed' if needed else 'fault'}: without it {base[:200]}"
        computed = [key for key in ("losses", "fit", "judge") if with_value.get(key) != base.get(key)]
        if computed:
            return f"changed: {computed[0]}"
        keys = [key for key in {*with_value, *base} if with_value.get(key) != base.get(key)]
        return f"changed: {', '.join(sorted(keys)[:3])}" if keys else "no effect"

    def _is_named(self, name: str, text: str) -> bool:
        spelled = {name, name.replace("_", "-"), *self.circumstances.spellings.get(name, ())}
        return any(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text) for word in spelled)

    def _refusal(self, name: str, message: str) -> str:
        when, _, text = message.partition(": ")
        if when == "crash" or not self._is_named(name, text):
            return f"fault, {when}, or not by its name: {text[:200]}"
        if when == "late" and name not in self.circumstances.judged_by_file:
            return f"fault, refused after the scan was read: {text[:200]}"
        return f"refused: {text[:80]}"

    def walk(self) -> dict[str, str]:
        """Change every field of every part; return the verdict on each value."""
        plain = self.scans["plain"]
        again, first = self.result({}, plain), self.base({}, plain)
        self.verdicts[f"{self.kind}/the plain run"] = (
            "changed: nothing by itself"
            if again == first and not isinstance(first, str)
            else f"fault: it does not repeat itself {str(first)[:200]}"
        )
        for key, part in self.parts.items():
            for item in fields(part):
                if item.name not in self.left_out:
                    self._walk_field(key, part, item.name)
        stale = set(self.left_out) - {item.name for part in self.parts.values() for item in fields(part)}
        for name in stale:
            self.verdicts[f"{self.kind}/left out/{name}"] = "fault: there is no such setting"
        return self.verdicts

    def _walk_field(self, key: str, part: Any, name: str) -> None:
        where, plain = f"{self.kind}/{key}/{name}", self.scans["plain"]
        try:
            own = {path.removeprefix(f"{key}."): value for path, value in self.paths.items()}
            values = others(part, name, own)
        except LookupError as error:
            self.verdicts[where] = f"fault: {error}"
            return
        needs, context = self.circumstances, self._context(part, name)
        situation = context is not None and (name in needs.situations or name in needs.scans)
        scan = self.scans[needs.scans.get(name, "plain")]
        for value in values:
            alone = "" if situation else self.judge(f"{key}.{name}", value, {}, plain)
            if not situation:
                self.verdicts[f"{where}={value}"] = alone
            if context is None or alone.startswith("changed"):
                continue
            if alone.startswith("refused") and isinstance(self.base(context, scan), str):
                continue  # What it needs is refused as well.
            provoked = self.judge(f"{key}.{name}", value, context, scan)
            self.verdicts[f"{where}={value}, provoked"] = provoked

    def _context(self, part: Any, name: str) -> Context | None:
        """Return what the setting needs beside it; None where it stands alone."""
        context = self._needed(part, name)
        return None if context is None or not all(map(self._is_known, context)) else context

    def _is_known(self, name: str) -> bool:
        return any(hasattr(part, name) for part in self.parts.values())

    def _needed(self, part: Any, name: str) -> Context | None:
        needs = self.circumstances
        if name in needs.scans:
            return needs.situations.get(name, {})
        if name in needs.contexts or name in needs.situations:
            return needs.contexts.get(name, needs.situations.get(name))
        if name in NEEDED and hasattr(part, NEEDED[name]):
            return {NEEDED[name]: others(part, NEEDED[name], self.paths)[0]}
        if name in NEEDED_CHOICES and hasattr(part, NEEDED_CHOICES[name][0]):
            choice, values = NEEDED_CHOICES[name]
            return {choice: values[0]}
        return None
