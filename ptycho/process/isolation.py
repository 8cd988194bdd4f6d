"""A run leaves its process as it found it: random states, environment, warnings, logs, signals, folder."""

from __future__ import annotations

import logging
import os
import random
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

SIGNALS = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGHUP", "SIGCONT")
    if hasattr(signal, name)
)
"""Signals whose handlers a training loop may replace."""


def _restored_environment(kept: dict[str, str]) -> None:
    for name in os.environ.keys() - kept.keys():
        del os.environ[name]
    for name, value in kept.items():
        if os.environ.get(name) != value:
            os.environ[name] = value


def _logger_state(logger: logging.Logger) -> Callable[[], None]:
    """Return what puts a logger back as it is now."""
    level, disabled, propagate = logger.level, logger.disabled, logger.propagate
    handlers = [(handler, handler.level) for handler in logger.handlers]
    filters = list(logger.filters)

    def put_back() -> None:
        if logger.level != level:
            logger.setLevel(level)
        logger.disabled, logger.propagate = disabled, propagate
        logger.handlers[:] = [handler for handler, _ in handlers]
        for handler, own in handlers:
            handler.setLevel(own)
        logger.filters[:] = filters

    return put_back


def _kept_logs(stack: ExitStack) -> None:
    stack.callback(logging.disable, logging.root.manager.disable)
    known = _loggers()
    for logger in (logging.root, *known.values()):
        stack.callback(_logger_state(logger))
    stack.callback(_forget_levels_but_of, set(known))


def _loggers() -> dict[str, logging.Logger]:
    found = logging.root.manager.loggerDict
    return {name: item for name, item in list(found.items()) if isinstance(item, logging.Logger)}


def _forget_levels_but_of(known: set[str]) -> None:
    """Let loggers that a run made follow those above them, as they would for anybody who asks for them."""
    for name, logger in _loggers().items():
        if name not in known:
            logger.setLevel(logging.NOTSET)
            logger.disabled = False


def _kept_signals(stack: ExitStack) -> None:
    if threading.current_thread() is not threading.main_thread():
        return
    for number in SIGNALS:
        kept: Any = signal.getsignal(number)
        if kept is not None:
            stack.callback(signal.signal, number, kept)


@contextmanager
def untouched_process() -> Iterator[None]:
    """Put everything that belongs to the host program back at the end, also after an error.

    That is: random states of ``random`` and NumPy, NumPy's error handling, environment, warning filters,
    loggers, signal handlers (in the main thread) and current directory. ``params.cfg`` is meant to be filled
    and stays so. What a framework keeps, its home puts back.
    """
    with ExitStack() as stack:
        _kept_signals(stack)
        with suppress(OSError):
            stack.callback(os.chdir, Path.cwd())
        stack.callback(_restored_environment, dict(os.environ))
        _kept_logs(stack)
        stack.callback(random.setstate, random.getstate())
        # The global generator of NumPy belongs to the host; nothing in here draws from it.
        stack.callback(np.random.set_state, np.random.get_state())  # noqa: NPY002
        stack.callback(lambda kept: np.seterr(**kept), np.geterr())
        stack.enter_context(warnings.catch_warnings())
        yield
