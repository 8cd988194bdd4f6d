"""What every command shares: one-line errors, exit statuses, spelling of flags, and live progress."""

from __future__ import annotations

import argparse
import difflib
import logging
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from ptycho.progress import Phase, Progress

EXIT_OK, EXIT_OUR_FAULT, EXIT_BAD_INPUT, EXIT_FAILED, EXIT_INTERRUPTED, EXIT_TERMINATED = 0, 1, 2, 3, 130, 143
PLAIN_INTERVAL_S = 30.0
"""Seconds between two lines of a long phase where the output is a file."""


class Parser(argparse.ArgumentParser):
    """A parser that reports bad flags in one line."""

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
    """Spell every flag with dashes; values stay as they are.

    Parameters
    ----------
    argv : sequence of str
        Arguments as typed.

    Returns
    -------
    list of str
        ``--train_data_file x`` becomes ``--train-data-file x``.
    """
    words = []
    for word in argv:
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            word = name.replace("_", "-") + equals + value
        words.append(word)
    return words


class _LivePhase(Phase):
    """One line that is redrawn in place on a terminal."""

    def __init__(self, name: str, total: int) -> None:
        from tqdm import tqdm

        layout = "{desc:<15}{bar:24} {n_fmt}/{total_fmt} [{elapsed}<{remaining}]{postfix}"
        # A terminal may report a size of nothing; tqdm would then draw nothing.
        size = shutil.get_terminal_size()
        self._bar = tqdm(
            total=total,
            desc=name,
            file=sys.stdout,
            bar_format=layout,
            ascii=" =",
            ncols=size.columns,
            nrows=size.lines,
        )

    def update(self, done: int, **values: Any) -> None:
        """Redraw the line."""
        if values:
            self._bar.set_postfix({key: _short(value) for key, value in values.items()}, refresh=False)
        self._bar.update(done - self._bar.n)

    def __exit__(self, *exc_info: object) -> None:
        """Leave the finished line standing."""
        self._bar.close()


class _PlainPhase(Phase):
    """One line at the end of a phase, and one now and then during a long one: for files and pipes."""

    def __init__(self, name: str, total: int) -> None:
        self.name, self.total = name, total
        self.start = self.shown = time.monotonic()
        self.done, self.values = 0, ""

    def update(self, done: int, **values: Any) -> None:
        """Keep the state; print it when the last line is old."""
        self.done = done
        self.values = "".join(f", {key} {_short(value)}" for key, value in values.items()) or self.values
        now = time.monotonic()
        if now - self.shown > PLAIN_INTERVAL_S and 0 < done < self.total:
            self.shown = now
            left = (now - self.start) / done * (self.total - done)
            print(f"{self.name}: {done}/{self.total}, about {left:.0f} s left{self.values}", flush=True)

    def __exit__(self, *exc_info: object) -> None:
        """Print how far the phase came, and how long it took."""
        took = time.monotonic() - self.start
        print(f"{self.name}: {self.done}/{self.total} in {took:.1f} s{self.values}", flush=True)


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
        del good
        print(text, flush=True)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def run_command(action: Callable[[], int | None], *, debug: bool) -> int:
    """Run a command's work and turn what goes wrong into one line and an exit status.

    Parameters
    ----------
    action : callable
        The work; it returns a status of its own, or None for 0.
    debug : bool
        Let the traceback through.

    Returns
    -------
    int
        0 done, 2 bad input, 3 a failed verdict with ``--strict``, 130 interrupted, 143 told to end, 1 our
        fault.
    """
    from ptycho.errors import MissingPackageError, PtychoError
    from ptycho.interrupts import Terminated, advice_of

    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # A console without UTF-8 shows '?' rather than ending the run.
            stream.reconfigure(errors="replace")
    logging.basicConfig(
        level=logging.DEBUG if debug else logging.WARNING, format="%(levelname)s: %(message)s"
    )
    for name in ("matplotlib", "PIL", "urllib3", "git", "fsspec"):
        logging.getLogger(name).setLevel(logging.WARNING)
    if not debug:
        warnings.simplefilter("ignore")
    try:
        status = action()
    except (PtychoError, MissingPackageError, OSError) as error:
        if debug:
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except (KeyboardInterrupt, Terminated) as stop:
        print(f"interrupted: {advice_of(stop)}", file=sys.stderr)
        return EXIT_TERMINATED if isinstance(stop, Terminated) else EXIT_INTERRUPTED
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
