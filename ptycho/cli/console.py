"""What every command shares: one-line errors, exit statuses, spelling of flags, and live progress."""

from __future__ import annotations

import argparse
import difflib
import logging
import re
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

from ptycho.errors import MissingPackageError, PtychoError
from ptycho.process.interrupts import NOTHING_LEFT, Terminated, advice_of
from ptycho.process.progress import Phase, Progress

if TYPE_CHECKING:
    from ptycho.run.pipeline import InferenceOutcome

EXIT_OK, EXIT_OUR_FAULT, EXIT_BAD_INPUT, EXIT_FAILED, EXIT_INTERRUPTED, EXIT_TERMINATED = 0, 1, 2, 3, 130, 143
PLAIN_INTERVAL_S = 30.0
"""Seconds between two lines of a long phase where the output is a file."""
Typed = dict[str, tuple[tuple[str, ...], str]]
"""Setting -> names of its flag, the one that was typed first, and the value."""
ALSO_CALLED = {
    "accum_steps": "accumulate_grad_batches",
    "accelerator": "device",
    "domain": "measurement_domain",
    "refine": "refine_steps",
    "diameter_px": "probe_diameter_px",
}
"""Setting in a message -> name under which a parser keeps it."""


class Parser(argparse.ArgumentParser):
    """A parser that reports bad flags in one line; a flag that is not given leaves no trace."""

    def __init__(self, prog: str, description: str, epilog: str | None = None) -> None:
        super().__init__(
            prog=prog,
            description=description,
            epilog=epilog,
            argument_default=argparse.SUPPRESS,
            allow_abbrev=False,
        )

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        """Refuse an empty word, which a variable that is not set leaves behind."""
        if not arg_string.strip():
            raise argparse.ArgumentError(action, f"got {arg_string!r}, expected a value")
        return super()._get_value(action, arg_string)  # type: ignore[misc]

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Return the parsed values; an unknown flag is answered with the closest known one."""
        values, rest = self.parse_known_args(args, namespace)
        if rest:
            known = sorted(self._option_string_actions)
            close = difflib.get_close_matches(rest[0].partition("=")[0], known, n=1)
            mend = f"Did you mean {close[0]}?" if close else "See --help."
            self.error(f"unknown argument (got {rest[0]!r}, expected a flag of {self.prog}). {mend}")
        return values

    def error(self, message: str) -> NoReturn:
        """Print one line and leave with the status for bad input."""
        mend = "" if message.endswith((".", "?")) else ". See --help."
        self.exit(EXIT_BAD_INPUT, f"error: {message}{mend}\n")


def with_dashes(argv: Sequence[str]) -> list[str]:
    """Spell every flag with dashes; values stay as they are: ``--train_data_file a_b`` becomes
    ``--train-data-file a_b``."""
    words = []
    for word in argv:
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            word = name.replace("_", "-") + equals + value
        words.append(word)
    return words


def typed_flags(parser: argparse.ArgumentParser, words: Sequence[str]) -> Typed:
    """Return which flags were typed, by setting, for messages that speak of settings; ``words`` spell flags
    with dashes."""
    found: Typed = {}
    for number, word in enumerate(words):
        name, equals, value = word.partition("=")
        action = parser._option_string_actions.get(name)
        if action is not None:
            # The latter of two flags for the same thing wins, as it does in the parser.
            others = tuple(other for other in action.option_strings if other != name)
            found[action.dest] = (
                (name, *others),
                value if equals else "".join(words[number + 1 : number + 2]),
            )
    for setting, dest in ALSO_CALLED.items():
        if dest in found:
            found.setdefault(setting, found[dest])
    return found


def with_flags(text: str, typed: Typed) -> str:
    """Add the typed flags to a message of one line that names only their settings or files."""
    for dest, (names, _) in typed.items():
        # A message may take the name of a setting for that of its flag.
        if f"--{dest}".replace("_", "-") not in names:
            text = re.sub(rf"--{dest}(?![\w-])", names[0], text)
    spelled = text.replace("_", "-")
    unnamed = {
        dest: (names[0], value)
        for dest, (names, value) in typed.items()
        if not any(re.search(rf"{re.escape(name)}(?![\w-])", spelled) for name in names)
    }
    places = [(re.search(rf"(?<![\w-]){dest}(?![\w-])", text), name) for dest, (name, _) in unnamed.items()]
    said = sorted((place.start(), name) for place, name in places if place)
    flags = [name for _, name in said] or [
        name for name, value in unnamed.values() if _holds_path(text, value)
    ]
    if not flags:
        return text
    return f"{text} The flag{' is' if len(flags) == 1 else 's are'} {', '.join(flags)}."


def _holds_path(text: str, value: str) -> bool:
    """Tell whether a line names this path, and not only one below it."""
    return text.startswith(f"{value}: ") or (
        "/" in value and re.search(rf"(?<![\w/]){re.escape(value)}(?![/.-]?\w)", text) is not None
    )


NAME_WIDTH, BAR_WIDTH = 15, 24
TIMES = ((" [{elapsed}<{remaining}]", 18), (" [{elapsed}]", 10), ("", 0))
"""What a live line tells about time, in the layout of tqdm, and the most columns it takes."""


def live_layout(name: str, count: str, values: str, columns: int) -> str | None:
    """Return the ``bar_format`` of tqdm in which the values can be read: bar and times give way to them, then
    the name; None where they do not fit into ``columns``."""
    name, room = name.ljust(NAME_WIDTH), columns - 1 - len(count) - len(values)
    for times, width in TIMES:
        bar = min(BAR_WIDTH, room - len(name) - 1 - width)
        if bar >= 1:
            return f"{_literal(name)}{{bar:{bar}}} {_literal(count)}{times}{_literal(values)}"
    return _literal(f"{name[: room - 1].rstrip()} {count}{values}") if room >= 1 else None


def _literal(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


class _LivePhase(Phase):
    """One line that is redrawn in place on a terminal."""

    def __init__(self, name: str, total: int) -> None:
        from tqdm import tqdm

        self.name, self.total, self.values, self.reason, self.cut = name, total, "", "", False
        # A terminal may report a size of nothing; tqdm would then draw nothing.
        size = shutil.get_terminal_size()
        self._bar = tqdm(
            total=total,
            file=sys.stdout,
            bar_format=live_layout(name, f"0/{total}", "", size.columns),
            ascii=" =",
            ncols=size.columns,
            nrows=size.lines,
        )

    def _lay_out(self, done: int, values: str) -> bool:
        """Choose the layout of the line; False where the values do not fit."""
        count = f"{done}/{self.total}"
        layout = live_layout(self.name, count, values, self._bar.ncols)
        self._bar.bar_format = layout or live_layout(self.name, count, "", self._bar.ncols)
        return layout is not None

    def update(self, done: int, **values: Any) -> None:
        """Redraw the line."""
        if values:
            self.values = "".join(f", {key}={_short(value)}" for key, value in values.items())
        self.cut = not self._lay_out(done, self.values)
        self._bar.update(done - self._bar.n)

    def ended(self, why: str) -> None:
        """Keep the reason for the end of the line."""
        self.reason = why

    def __exit__(self, *exc_info: object) -> None:
        """Leave the finished line standing; what it has no room for stands below."""
        reason = self.reason and f", {self.reason}"
        whole = not self.cut and self._lay_out(self._bar.n, self.values + reason)
        if not whole:
            self._lay_out(self._bar.n, self.values)
        self._bar.close()
        below = [self.values.removeprefix(", ")] * self.cut + [self.reason] * (not whole)
        for text in filter(None, below):
            print(f"{self.name}: {text}", flush=True)


class _PlainPhase(Phase):
    """One line at the end of a phase, and one now and then during a long one: for files and pipes."""

    def __init__(self, name: str, total: int) -> None:
        self.name, self.total = name, total
        self.start = self.shown = time.monotonic()
        self.done, self.values, self.reason = 0, "", ""

    def update(self, done: int, **values: Any) -> None:
        """Keep the state; print it when the last line is old."""
        self.done = done
        self.values = "".join(f", {key} {_short(value)}" for key, value in values.items()) or self.values
        now = time.monotonic()
        if now - self.shown > PLAIN_INTERVAL_S and 0 < done < self.total:
            self.shown = now
            left = (now - self.start) / done * (self.total - done)
            print(f"{self.name}: {done}/{self.total}, about {left:.0f} s left{self.values}", flush=True)

    def ended(self, why: str) -> None:
        """Keep the reason for the end of the line."""
        self.reason = f"; {why}"

    def __exit__(self, *exc_info: object) -> None:
        """Print how far the phase came, how long it took, and why it ended early."""
        took = time.monotonic() - self.start
        text = f"{self.name}: {self.done}/{self.total} in {took:.1f} s{self.values}{self.reason}"
        print(text, flush=True)


class ConsoleProgress(Progress):
    """Progress on standard output: live on a terminal, a few plain lines in a file."""

    def phase(self, name: str, total: int) -> Phase:
        """Open a phase."""
        return _LivePhase(name, total) if sys.stdout.isatty() else _PlainPhase(name, total)

    def note(self, text: str) -> None:
        """Print one line."""
        print(text, flush=True)

    def conclude(self, text: str, *, good: bool) -> None:
        """Print one line."""
        self.note(text)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def run_main(
    parser: argparse.ArgumentParser,
    work: Callable[[dict[str, Any]], int | None],
    argv: Sequence[str] | None = None,
) -> int:
    """Parse the arguments, by default those of the process, and do a command's work with their values. Return
    the exit status: 0 done, 2 bad input, 3 a failed verdict with ``--strict``, 130 interrupted, 143 told to
    end, 1 our fault."""
    words = with_dashes(sys.argv[1:] if argv is None else argv)
    values = vars(parser.parse_args(words))
    debug = values.pop("debug", False)
    return run_command(lambda: work(values), debug=debug, typed=typed_flags(parser, words))


def run_command(action: Callable[[], int | None], *, debug: bool, typed: Typed | None = None) -> int:
    """Do a command's work, turn what goes wrong into one line, and return the status as :func:`run_main`.
    Logs, warning filters and all else of the process are as before at the end: a command may be called from
    Python. Messages about settings name their ``typed`` flags."""
    try:
        from ptycho.process.isolation import untouched_process

        with untouched_process(), _every_character_shown():
            _set_up_messages(debug=debug)
            return _status_of(action, debug=debug, typed=typed or {})
    except KeyboardInterrupt:
        # It came before the work or after it.
        return _interrupted(NOTHING_LEFT)


@contextmanager
def _every_character_shown() -> Iterator[None]:
    """Let a console without UTF-8 show '?' rather than end the run."""
    kept = [(stream, stream.errors) for stream in (sys.stdout, sys.stderr) if hasattr(stream, "reconfigure")]
    for stream, _ in kept:
        stream.reconfigure(errors="replace")
    try:
        yield
    finally:
        for stream, errors in kept:
            stream.reconfigure(errors=errors)


def _set_up_messages(*, debug: bool) -> None:
    logging.basicConfig(
        level=logging.DEBUG if debug else logging.WARNING, format="%(levelname)s: %(message)s"
    )
    for name in ("matplotlib", "PIL", "urllib3", "git", "fsspec"):
        logging.getLogger(name).setLevel(logging.WARNING)
    if not debug:
        warnings.simplefilter("ignore")


def _interrupted(advice: str) -> int:
    print(f"interrupted: {advice}", file=sys.stderr)
    # Python remembers an interruption that passed through code from a text, as named tuples are made of, and
    # would die of SIGINT at its end; the next such code makes it forget.
    eval("None")
    return EXIT_INTERRUPTED


def _status_of(action: Callable[[], int | None], *, debug: bool, typed: Typed) -> int:
    """Do the work; print what goes wrong in one line."""
    try:
        status = action()
    except (PtychoError, MissingPackageError, OSError) as error:
        if debug:
            raise
        print(f"error: {with_flags(' '.join(str(error).split()), typed)}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except (KeyboardInterrupt, Terminated) as stop:
        status = _interrupted(advice_of(stop))
        return EXIT_TERMINATED if isinstance(stop, Terminated) else status
    except Exception as error:
        if debug:
            raise
        print(
            f"internal error: {type(error).__name__}: {' '.join(str(error).split())}. Run again with "
            "--debug and report it.",
            file=sys.stderr,
        )
        return EXIT_OUR_FAULT
    return status or EXIT_OK


def report(outcome: InferenceOutcome, *, quiet: bool, strict: bool) -> int:
    """Print the scores and the paths that were written, the two pictures last, unless ``quiet``. Return the
    status, which is 3 for a failed verdict where ``strict`` makes it count."""
    status = EXIT_FAILED if strict and outcome.verdict.word == "failed" else EXIT_OK
    if quiet:
        return status
    found = outcome.reconstruction
    height, width = found.obj.shape
    print(f"reconstructed {len(found.indices)} patterns to {height} x {width} px in {found.seconds:.1f} s")
    if outcome.scores:
        shown = ("complex_nrmse", "phase_psnr_db", "amplitude_ssim", "phase_ssim")
        print("against the known truth: " + ", ".join(f"{name} {outcome.scores[name]:.4g}" for name in shown))
    run_id = getattr(getattr(outcome, "result", None), "run_id", None)
    if run_id is not None:
        print(f"MLflow run {run_id}")
    for path in [*outcome.files[2:], *outcome.files[:2]]:
        print(path)
    return status
