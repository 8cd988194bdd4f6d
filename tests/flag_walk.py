"""A stage on which commands run up to the reading of the first file, and the walk over their flags."""

from __future__ import annotations

import argparse
import ast
import contextlib
import functools
import importlib
import io
import json
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np

from ptycho.process.isolation import untouched_process

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("ptycho", "ptycho_torch", "datasets")
NUMBERS = ("3", "2", "4", "0.5", "0.25", "7", "16", "48", "1", "1e5", "0")
MADE_UP = "no-such-word"
MISSING = "@missing/no-such-file"
Flags = dict[str, str | None]
"""Flag -> its value; None where it takes none."""


class _Reading(BaseException):
    """A command is about to read or write its first file."""


class _Parsing(BaseException):
    """A command has built its parser."""


@dataclass(frozen=True)
class EntryPoint:
    """A way into the program.

    Attributes
    ----------
    name : str
        Command or module.
    main : callable
        Takes the arguments, returns the status.
    parser : argparse.ArgumentParser
        The one that ``main`` builds.
    parser_file : str
        Where it is constructed.
    first : bool
        Whether no entry_point before it has the same flags; the others are walked until a use takes the flag.
    """

    name: str
    main: Callable[[Sequence[str]], int]
    parser: argparse.ArgumentParser
    parser_file: str
    first: bool = True

    def flags(self) -> list[argparse.Action]:
        """Return everything that a user may type with dashes."""
        found = [action for action in self.parser._actions if action.option_strings]
        return [action for action in found if not isinstance(action, argparse._HelpAction)]

    def names(self) -> set[str]:
        """Return the first name of every flag."""
        return {action.option_strings[0] for action in self.flags()}


def _parser_of(main: Callable[[Sequence[str]], int]) -> tuple[argparse.ArgumentParser, str]:
    """Return the parser that a command builds, and the file in which it does."""
    made: list[str] = []
    init = argparse.ArgumentParser.__init__

    def noted(self: Any, *words: Any, **options: Any) -> None:
        caller = sys._getframe(1)
        # A class of parsers calls it on behalf of who makes one.
        made.append((caller.f_back if caller.f_code.co_name == "__init__" else caller).f_code.co_filename)
        init(self, *words, **options)

    def stop(self: Any, *_: Any, **__: Any) -> None:
        raise _Parsing(self)

    with (
        mock.patch("argparse.ArgumentParser.__init__", noted),
        mock.patch("argparse.ArgumentParser.parse_known_args", stop),
    ):
        try:
            main([])
        except _Parsing as seen:
            return seen.args[0], str(Path(made[-1]).relative_to(ROOT))
    raise AssertionError("no parser was built")


@functools.cache
def entry_points() -> tuple[EntryPoint, ...]:
    """Return every console script and every module that can be run."""
    scripts = re.findall(r'"(ptycho_\w+)=([\w.]+):(\w+)"', (ROOT / "setup.py").read_text(encoding="utf-8"))
    found = [*scripts]
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            ran = re.search(
                r"^if __name__ == \"__main__\":\n((?: +.*\n|\n)+)", path.read_text(encoding="utf-8"), re.M
            )
            called = ran and re.search(r"(?:sys\.exit|SystemExit)\((\w+)\(\)\)", ran[1])
            if called:
                module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
                found.append((f"python -m {module}", module, called[1]))
    made: list[EntryPoint] = []
    for item in found:
        entry_point = _entry_point(*item)
        made.append(replace(entry_point, first=all(entry_point.names() != other.names() for other in made)))
    return tuple(made)


def _entry_point(name: str, module: str, function: str) -> EntryPoint:
    try:
        home = importlib.import_module(module)
    except ModuleNotFoundError:
        spec = importlib.util.spec_from_file_location(module, ROOT / f"{module.replace('.', '/')}.py")
        home = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(home)
    main = getattr(home, function, None)
    if main is None:  # imported below the test for __main__
        main = importlib.import_module("ptycho.cli.simulate_command").main
    return EntryPoint(name, main, *_parser_of(main))


def constructed_in() -> set[str]:
    """Return the files that construct a parser."""
    found = set()
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                called = node.func if isinstance(node, ast.Call) else None
                name = getattr(called, "attr", getattr(called, "id", ""))
                if name in ("Parser", "ArgumentParser"):
                    found.add(str(path.relative_to(ROOT)))
    return found


def plain(value: Any) -> Any:
    """Return settings as plain values; objects that hold none are told apart by their type alone."""
    if is_dataclass(value) and not isinstance(value, type):
        return {item.name: plain(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in (sorted(value, key=str) if isinstance(value, set) else value)]
    if isinstance(value, Path):
        return str(value)
    return value if isinstance(value, str | int | float | bool | None) else type(value).__name__


@dataclass
class Outcome:
    """What a command did before it would have read or written a file.

    Attributes
    ----------
    status : int
        Exit status.
    settings : list
        What was handed to the library.
    process : list
        Status, kind of progress, warning filter, whether something was printed.
    err : str
        Standard error.
    read : bool
        Whether a file of the user was about to be read or a folder to be made.
    """

    status: int
    settings: list[Any] = field(default_factory=list)
    process: list[Any] = field(default_factory=list)
    err: str = ""
    read: bool = False

    @property
    def accepted(self) -> bool:
        """Whether the command came to its work."""
        return bool(self.settings) and self.status in (0, 3)


class Stage(contextlib.ExitStack):
    """Replaces reading and writing; commands run for real up to there.

    Parameters
    ----------
    folder : Path
        Holds the files that flags may name.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.calls: list[Any] = []
        self.process: list[Any] = []
        self.read = False
        self.cache: dict[Any, Any] = {}
        _fill(folder)
        self._reached("ptycho.run.pipeline", "train", _outcome)
        self._reached("ptycho.run.pipeline", "infer", _outcome)
        self._reached(
            "ptycho.run.evaluate",
            "evaluate",
            lambda: SimpleNamespace(scores={"a": 1.0}, files=[], verdict=None),
        )
        self._reached("ptycho.simulation.simulate", "write_scan", _arrays)
        limit = SimpleNamespace(line=lambda: "photon limit")
        self._reached("ptycho.simulation.limit", "simulated_limit", lambda: limit, real=False)
        self._reached("ptycho.cli.simulate_command", "write_preview", lambda: None, real=False)
        self._reached("ptycho_torch.pretraining", "pretrain", lambda: None, real=False)
        self._reached("ptycho.networks.bundle", "write_bundle", lambda: folder / "bundle", real=False)
        self._reached("ptycho_torch.inference", "load_and_predict", lambda: [folder / "metrics.json"])
        self._reached("ptycho.run.outputs", "prepare_folder", lambda: folder, real=False)
        for name in (
            "ptycho.run.pipeline.output_folder",
            "ptycho.run.pipeline.open_scan",
            "ptycho.run.evaluate.read_reconstruction",
            "ptycho.simulation.simulate._draw_counts",
            "ptycho.run.mlflow_store.fetch_checkpoint",
        ):
            self._patch(name, self._stop)
        self._patch("ptycho.files.reader.pattern_size", self._peek)
        for backend in ("ptycho_torch.engine", "ptycho.tf.engine"):
            home = importlib.import_module(backend)
            self._patch(f"{backend}.load", functools.cache(home.load))
        # Once for all commands: it looks at a thousand loggers.
        self.enter_context(untouched_process())
        self._patch("ptycho.process.isolation.untouched_process", contextlib.nullcontext)

    def _patch(self, name: str, value: Any) -> None:
        module = importlib.import_module(name.rpartition(".")[0])
        self.enter_context(mock.patch.object(module, name.rpartition(".")[2], value))

    def _stop(self, *_: Any, **__: Any) -> None:
        self.read = True
        raise _Reading

    def _peek(self, *_: Any, **__: Any) -> int:
        self.read = True
        return 32

    def _reached(self, module: str, name: str, fake: Callable[[], Any], *, real: bool = True) -> None:
        function = getattr(importlib.import_module(module), name)

        def noted(*words: Any, **options: Any) -> Any:
            shown = [item for item in (*words, options.get("progress")) if hasattr(item, "note")]
            given = [item for item in words if not hasattr(item, "note")]
            called = [name, plain(given), plain({k: v for k, v in options.items() if k != "progress"})]
            if real:
                with contextlib.suppress(_Reading):
                    function(*words, **options)
            self.calls.append(called)
            self.process += [type(item).__name__ for item in shown]
            self.process.append(
                [item.__name__ if isinstance(item, type) else item for item in warnings.filters[0]]
            )
            return fake()

        self._patch(f"{module}.{name}", noted)

    def run(self, entry_point: EntryPoint, words: Sequence[str]) -> Outcome:
        """Run a command up to its first file."""
        key = (entry_point.name, *words)
        if key not in self.cache:
            self.cache[key] = self._run(entry_point, words)
        return self.cache[key]

    def _run(self, entry_point: EntryPoint, words: Sequence[str]) -> Outcome:
        self.calls, self.process, self.read = [], [], False
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
            try:
                status = entry_point.main(list(words))
            except SystemExit as stop:
                status = stop.code
            except _Reading:
                status = -1
        process = [status, *self.process, bool(out.getvalue())]
        return Outcome(status, self.calls, process, err.getvalue(), self.read)

    def words(self, flags: Flags) -> list[str]:
        """Spell flags; files, several with a space between, are named by their place on this stage."""
        found = []
        for name, value in flags.items():
            if value is not None and " @" in value:
                found += [name, *map(self.place, value.split())]
            else:
                found += [name] if value is None else [f"{name}={self.place(value)}"]
        return found

    def place(self, value: str) -> str:
        """Return a value, a file of this stage by its path."""
        return str(self.folder / value[1:]) if value.startswith("@") else value


def _outcome() -> Any:
    found = SimpleNamespace(obj=np.ones((2, 2)), indices=[0], seconds=0.0)
    verdict = SimpleNamespace(word="failed")
    return SimpleNamespace(reconstruction=found, scores={}, files=[], verdict=verdict)


def _arrays() -> dict[str, Any]:
    return {"diff3d": np.ones((2, 4, 4), dtype=int), "objectGuess": np.ones((4, 4))}


FILES = (
    "scan.npz",
    "scan2.npz",
    "folder/train_data.npz",
    "folder2/a.npz",
    "folder2/b.npz",
    "other.ckpt",
    "product.h5",
    "picture.png",
    "picture2.png",
    "recon.npz",
    "recon2.npz",
)
PATHS = (
    *(f"@{name}" for name in FILES),
    "@settings.yaml",
    "@settings.json",
    "@folder",
    "@folder2",
    "@new",
    "@new.h5",
    "@new.npz",
    "@new.png",
    "pretrained",
    "@cnn.h5.zip",
    "@store",
)
BASES: tuple[Flags, ...] = (
    {"--train-data-file": "@scan.npz", "--output-dir": "@out"},
    {"--train-data-file": "@scan.npz", "--output-dir": "@out", "--architecture": "cnn"},
    {"--ptycho-dir": "@folder", "--output-dir": "@out"},
    {"--model-path": "pretrained", "--test-data": "@scan.npz", "--output-dir": "@out"},
    {"--model-path": "@cnn.h5.zip", "--test-data": "@scan.npz", "--output-dir": "@out"},
    {"--model-path": "pretrained", "--test-data": "@scan.npz @scan2.npz", "--output-dir": "@out"},
    {"--run-id": "run", "--infer-dir": "@folder2", "--output-dir": "@out"},
    {"--reconstruction": "@recon.npz", "--truth": "@scan.npz", "--output-dir": "@out"},
    {"--reconstruction": "@recon.npz", "--test-data": "@scan.npz", "--output-dir": "@out"},
    {
        "--reconstruction": "@recon.npz",
        "--test-data": "@scan.npz",
        "--model-path": "pretrained",
        "--output-dir": "@out",
    },
    {"--output": "@out/scan.npz"},
    {"--output-dir": "@out"},
)
"""What a command needs at the least, in its different uses."""


def _fill(folder: Path) -> None:
    from matplotlib.image import imsave

    from ptycho.networks.bundle import write_bundle

    for name in FILES:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"nobody may read this " + name.encode())
    for seed, name in enumerate(("picture.png", "picture2.png")):
        imsave(folder / name, np.random.default_rng(seed).random((90, 90)))
    (folder / "store").mkdir()
    (folder / "settings.yaml").write_text("seed: 7\n", encoding="utf-8")
    (folder / "settings.json").write_text(json.dumps({"training_config": {"epochs": 3}}), encoding="utf-8")
    (folder / "metrics.json").write_text(json.dumps({"verdict": "failed"}), encoding="utf-8")
    engine = importlib.import_module("ptycho_torch.engine")
    from ptycho_torch.config_params import DataConfig, InferenceConfig, TrainingConfig
    from ptycho_torch.config_params import ModelConfig as TorchModel
    from ptycho_torch.model import PtychoPINN_Lightning

    settings = (
        TorchModel(architecture="cnn", n_filters_scale=1),
        DataConfig(N=32, grid_size=(1, 1), C=1),
        TrainingConfig(),
        InferenceConfig(),
    )
    write_bundle(folder / "cnn.h5.zip", engine.to_bundle(PtychoPINN_Lightning(*settings)))


def refusal_faults(action: argparse.Action, found: Outcome) -> list[str]:
    """Return what is wrong with a refusal: it has to be one line that names the flag, before any file."""
    lines = found.err.splitlines()
    faults = []
    if found.status != 2 or len(lines) != 1:
        faults.append(f"status {found.status}, {len(lines)} lines")
    if found.read:
        faults.append("only after a file was read")
    text = found.err.replace("_", "-")
    if not any(
        re.search(rf"{re.escape(name.replace('_', '-'))}(?![\w-])", text) for name in action.option_strings
    ):
        faults.append("does not name the flag")
    if not found.err.rstrip().endswith((".", "?")):
        faults.append("no sentence at the end")
    return [f"{'; '.join(faults)}: {found.err.strip()[-300:]}"] if faults else []


@dataclass
class Walked:
    """What became of a flag, and words with which it changed the settings."""

    faults: list[str] = field(default_factory=list)
    process_only: bool = False
    flags: Flags = field(default_factory=dict)

    @property
    def refused(self) -> bool:
        """Whether no use takes the flag."""
        return not (self.faults or self.process_only or self.flags)


def bases_of(stage: Stage, entry_point: EntryPoint) -> list[Flags]:
    """Return the uses of a command."""
    known = {name for action in entry_point.flags() for name in action.option_strings}
    fitting = [base for base in BASES if base.keys() <= known]
    return [base for base in fitting if stage.run(entry_point, stage.words(base)).accepted]


def values_of(stage: Stage, entry_point: EntryPoint, action: argparse.Action) -> list[str | None]:
    """Return words that may be valid values of a flag, derived from the parser and from its own refusal."""
    if action.nargs == 0:
        return [None]
    if action.choices:
        return [str(item) for item in action.choices]
    words = list(NUMBERS) + list(PATHS) + ["3x4", "true", "false"]
    taken = [word for word in words if _taken(stage, action, word)]
    if action.type is None:
        name = action.option_strings[0]
        said = [
            stage.run(entry_point, stage.words({**base, name: MADE_UP})).err
            for base in bases_of(stage, entry_point)
        ]
        told = re.findall(r"expected (?:one of )?([\w, -]+?)\)?[.)]", " ".join(said))
        taken = [
            *(word for text in told for word in re.split(r", | or ", text)),
            "word",
            "@picture.png",
            "@picture2.png",
            *taken[:2],
        ]
    return ([None] if action.nargs == "?" else []) + taken


def _taken(stage: Stage, action: argparse.Action, word: str) -> bool:
    is_path = action.type is Path
    if is_path != (word in PATHS):
        return False
    if action.type is None or is_path:
        return True
    try:
        action.type(word)
    except (ValueError, argparse.ArgumentTypeError):
        return False
    return True


ADVICE = re.compile(
    r"(?:(?:or )?(?:[Pp]ass|[Ss]et|[Gg]ive|needs|without)|or) (?:another )?"
    r"(--)?([a-zA-Z][\w-]+)(?: to)?(?:[ =](\w+(?:\.\w+)?))?"
)
"""What a refusal proposes: dashes or none, a flag or a setting, and perhaps a value."""


def advised(entry_point: EntryPoint, text: str, flags: Flags) -> Iterator[tuple[str, str | None]]:
    """Yield the flags that a refusal proposes, with the value it proposes."""
    by_name = {name: action for action in entry_point.flags() for name in action.option_strings}
    by_dest = {action.dest: action for action in reversed(entry_point.flags())}
    for dashes, word, value in ADVICE.findall(text):
        name = f"--{word.replace('_', '-')}"
        action = by_name.get(name) if dashes else by_dest.get(word.replace("-", "_"), by_name.get(name))
        if action is None or action.option_strings[0] in flags:
            continue
        yield action.option_strings[0], value if dashes and action.nargs != 0 and value else ""


def attempt(stage: Stage, entry_point: EntryPoint, flags: Flags, depth: int = 0) -> tuple[Outcome, Flags]:
    """Run a command; where it is refused, follow the advice of the refusal."""
    found = stage.run(entry_point, stage.words(flags))
    if found.accepted or found.status != 2 or depth == 3:
        return found, flags
    for name, value in advised(entry_point, found.err, flags):
        action = next(item for item in entry_point.flags() if item.option_strings[0] == name)
        for word in [value] if value else values_of(stage, entry_point, action)[:6]:
            again, used = attempt(stage, entry_point, {**flags, name: word}, depth + 1)
            if again.accepted:
                return again, used
    return found, flags


def walk(stage: Stage, entry_point: EntryPoint, action: argparse.Action) -> Walked:
    """Give other valid values to a flag in every use of its command."""
    bases = bases_of(stage, entry_point)
    found = Walked([] if bases else [f"no use of {entry_point.name} is known; add one to BASES"])
    for base in bases:
        if entry_point.first or not found.flags:
            _walk_use(stage, entry_point, action, base, found)
    return found


def _walk_use(
    stage: Stage, entry_point: EntryPoint, action: argparse.Action, base: Flags, found: Walked
) -> None:
    silent, refused = False, False
    for before in (base, *_opposites(stage, entry_point, action, base)):
        for value in values_of(stage, entry_point, action):
            flags = {**before, action.option_strings[0]: value}
            done, used = attempt(stage, entry_point, flags)
            if not done.accepted:
                refused = True
                found.faults += refusal_faults(action, done)
                continue
            plainly = stage.run(entry_point, stage.words(without(used, action.option_strings[0], base)))
            if done.settings != plainly.settings:
                found.flags = found.flags or used
                return
            if done.process != plainly.process:
                found.process_only = True
                return
            silent = True
    if silent and not refused:
        found.faults.append(f"changes nothing in {base}")


def without(used: Flags, name: str, base: Flags | None = None) -> Flags:
    """Return flags without one of them, or with the value that the use gives it."""
    kept = {key: value for key, value in used.items() if key != name}
    return {**kept, name: base[name]} if base and name in base else kept


def _opposites(
    stage: Stage, entry_point: EntryPoint, action: argparse.Action, base: Flags
) -> Iterator[Flags]:
    """Yield uses with a flag of the same setting that says the opposite, where a flag says the default."""
    for other in entry_point.flags():
        if other.dest == action.dest and other is not action:
            yield from (
                {**base, other.option_strings[0]: value} for value in values_of(stage, entry_point, other)[:2]
            )


def idle_pairs(stage: Stage, entry_point: EntryPoint) -> list[tuple[str, str, str]]:
    """Give every two flags together; return which changes nothing beside which, and bad refusals."""
    walked = [(action, walk(stage, entry_point, action).flags) for action in entry_point.flags()]
    given = [(action, flags) for action, flags in walked if flags]
    found = []
    for one, flags in given:
        for other, beside in given:
            name, both = one.option_strings[0], {**beside, **flags}
            if one.dest == other.dest or name in beside or any(both[key] != beside[key] for key in beside):
                continue
            done, plainly = (
                stage.run(entry_point, stage.words(both)),
                stage.run(entry_point, stage.words(without(both, name))),
            )
            if not done.accepted:
                faults = [refusal_faults(action, done) for action in (one, other)]
                found += [(name, other.option_strings[0], faults[0][0])] if all(faults) else []
            elif (done.settings, done.process) == (plainly.settings, plainly.process):
                found.append((name, other.option_strings[0], "changes nothing"))
    return found


WRONG = {int: ("-3", "abc", "1.5", "nan"), float: ("-3", "abc", "nan", "inf"), Path: (MISSING,)}
"""Type of a flag -> words that are no values of it."""


def wrong_values(action: argparse.Action) -> list[str]:
    """Return words that a flag has to refuse, unless it takes any."""
    if action.nargs == 0:
        return []
    too_large = [str(2**63)] if "seed" in action.dest else []
    return ["", *WRONG.get(action.type, (MADE_UP,)), *too_large]


def wrong_taken(
    stage: Stage, entry_point: EntryPoint, action: argparse.Action
) -> tuple[list[str], list[str]]:
    """Give wrong values to a flag; return those it takes, and what is wrong with the refusals."""
    found = walk(stage, entry_point, action)
    bases = bases_of(stage, entry_point)
    flags = found.flags or {**(bases[0] if bases else {}), action.option_strings[0]: None}
    taken, faults = [], []
    for value in wrong_values(action):
        done = stage.run(entry_point, stage.words({**flags, action.option_strings[0]: value}))
        if done.accepted:
            taken.append(value)
        else:
            faults += refusal_faults(action, done)
    return taken, faults
