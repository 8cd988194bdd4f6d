"""SIGTERM ends a run as an exception does: scratch files, worker processes and open files go with it.

An interruption carries what is true at its moment, and waits where files belong together.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class Terminated(BaseException):
    """The process was told to end; no ordinary handler catches it, and Lightning makes no exit of it."""

    def __init__(self) -> None:
        super().__init__("the run was told to end (SIGTERM). Its last checkpoint stays.")


NOTHING_LEFT = "no file was left half-written"
"""What is true of an interruption that nobody advises on."""


@contextmanager
def advising(advice: Callable[[], str]) -> Iterator[None]:
    """Let an interruption carry a line on what the run left and how to continue, for the command to print; an
    inner block wins."""
    try:
        yield
    except (KeyboardInterrupt, Terminated) as stop:
        if not hasattr(stop, "advice"):
            stop.advice = advice()  # type: ignore[union-attr]
        raise


def advice_of(stop: BaseException) -> str:
    """Return the line that an interruption carries."""
    return str(getattr(stop, "advice", NOTHING_LEFT))


Handlers = dict[signal.Signals, Any]


def _former_handlers() -> Handlers | None:
    """Return who hears SIGINT and SIGTERM; None where that cannot be changed: outside the main thread, which
    hears no signals, and where a handler is not of Python."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    main = threading.current_thread() is threading.main_thread()
    return kept if main and None not in kept.values() else None


def _set_handlers(handlers: Handlers) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)


@contextmanager
def held_back() -> Iterator[None]:
    """Let SIGINT and SIGTERM wait for the end of the block: files that belong together are written together.
    The handler of before then hears the first. Outside the main thread nothing changes."""
    kept = _former_handlers()
    if kept is None:
        yield
        return
    came: list[int] = []
    _set_handlers(dict.fromkeys(kept, lambda heard, frame: came.append(heard)))
    try:
        yield
    finally:
        _set_handlers(kept)
        for number in came[:1]:
            signal.raise_signal(number)


_STEPS: list[Callable[[], None]] = []


def step() -> None:
    """Hear what came since the last step in a block of :func:`heard_at_steps`; elsewhere nothing happens."""
    if _STEPS and threading.current_thread() is threading.main_thread():
        _STEPS[-1]()


@contextmanager
def heard_at_steps() -> Iterator[None]:
    """Let SIGINT and SIGTERM wait for the next :func:`step` in the block, or for its end; a second one is
    heard at once. A framework which the exception of a handler meets within an operation may print it, forget
    it, and go on. Outside the main thread nothing changes."""
    kept = _former_handlers()
    if kept is None:
        yield
        return
    came: list[int] = []

    def hear(number: int, frame: FrameType | None) -> None:
        came.append(number)
        if len(came) > 1:
            pass_on()

    def pass_on() -> None:
        numbers = came.copy()
        came.clear()
        for number in numbers[:1]:
            _set_handlers(kept)
            signal.raise_signal(number)
            _set_handlers(dict.fromkeys(kept, hear))

    _set_handlers(dict.fromkeys(kept, hear))
    _STEPS.append(pass_on)
    try:
        yield
    finally:
        _STEPS.remove(pass_on)
        _set_handlers(kept)
        for number in came[:1]:
            signal.raise_signal(number)


@contextmanager
def ending_on_sigterm() -> Iterator[None]:
    """Raise :class:`Terminated` in the main thread when SIGTERM comes; a second one kills. Without it SIGTERM
    kills at once and leaves the scratch directory behind. A handler that the host program has set stays in
    force, and outside the main thread nothing changes. Processes forked in here die of SIGTERM as usual."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    owner = os.getpid()
    told: list[int] = []

    def end(number: int, frame: FrameType | None) -> None:
        if told or os.getpid() != owner:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.raise_signal(signal.SIGTERM)
        told.append(number)
        raise Terminated

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
