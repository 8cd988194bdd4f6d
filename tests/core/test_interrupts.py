"""SIGTERM: sent for real, to a process that waits or to this one."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from ptycho.process.interrupts import Terminated, ending_on_sigterm, heard_at_steps, held_back, step

BOTH = pytest.mark.parametrize(
    ("number", "stop"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)]
)

WAITING = """
import signal, sys, time
from ptycho.process.interrupts import ending_on_sigterm
with ending_on_sigterm():
    try:
        print("ready", flush=True)
        time.sleep(60)
    finally:
        print("cleaned", flush=True)
        {after}
"""


def _told_to_end(after: str, times: int) -> tuple[int, str, str]:
    """Start a process that waits, send it SIGTERM as often as asked; return status and streams."""
    process = subprocess.Popen(
        [sys.executable, "-c", WAITING.format(after=after)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for awaited in ("ready", "cleaned")[:times]:
        assert process.stdout.readline().strip() == awaited
        process.terminate()
    out, err = process.communicate(timeout=30)
    return process.returncode, out, err


def test_sigterm_unwinds_a_run() -> None:
    code, out, err = _told_to_end("", times=1)
    assert (code, out.split()) == (1, ["cleaned"])
    assert "Terminated: the run was told to end (SIGTERM)." in err


def test_a_second_sigterm_kills() -> None:
    code, out, _ = _told_to_end("time.sleep(60)", times=2)
    assert (code, out) == (-signal.SIGTERM, "")


def test_the_default_comes_back_and_the_block_can_be_used_again() -> None:
    for _ in range(2):
        with pytest.raises(Terminated), ending_on_sigterm():
            signal.raise_signal(signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_handler_of_the_host_stays_in_force() -> None:
    heard: list[int] = []
    former = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        with ending_on_sigterm():
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, former)
    assert heard == [signal.SIGTERM]


def test_a_block_inside_another_leaves_the_signal_to_the_outer_one() -> None:
    with ending_on_sigterm():
        outer = signal.getsignal(signal.SIGTERM)
        with ending_on_sigterm():
            assert signal.getsignal(signal.SIGTERM) is outer
        assert signal.getsignal(signal.SIGTERM) is outer


@pytest.fixture
def heard() -> Iterator[None]:
    """Take SIGINT as an interruption also where the shell that started the tests ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heard")
@BOTH
def test_what_comes_in_a_block_that_holds_back_is_heard_at_its_end(
    number: signal.Signals, stop: type[BaseException]
) -> None:
    done: list[str] = []
    handlers = [signal.getsignal(item) for item in (signal.SIGINT, signal.SIGTERM)]

    def told_twice() -> None:
        with held_back():
            signal.raise_signal(number)
            signal.raise_signal(number)
            done.append("both files")

    with pytest.raises(stop), ending_on_sigterm():
        told_twice()
    assert done == ["both files"]
    assert [signal.getsignal(item) for item in (signal.SIGINT, signal.SIGTERM)] == handlers
    with held_back():
        done.append("nothing came")
    thread = threading.Thread(target=held_back().__enter__)
    thread.start()
    thread.join()
    assert [signal.getsignal(item) for item in (signal.SIGINT, signal.SIGTERM)] == handlers


@pytest.mark.usefixtures("heard")
@BOTH
def test_what_comes_within_an_operation_is_heard_at_the_next_step_or_the_end_of_the_block(
    number: signal.Signals, stop: type[BaseException]
) -> None:
    handlers = [signal.getsignal(item) for item in (signal.SIGINT, signal.SIGTERM)]
    done: list[str] = []

    def told(*, steps: bool) -> None:
        with heard_at_steps():
            step()
            signal.raise_signal(number)
            done.append("operation")
            if steps:
                step()
                done.append("step")

    for steps in (True, False):
        with pytest.raises(stop), ending_on_sigterm():
            told(steps=steps)
        assert [signal.getsignal(item) for item in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert done == ["operation"] * 2
    step()


@pytest.mark.usefixtures("heard")
def test_a_second_interruption_is_heard_at_once() -> None:
    done: list[str] = []

    def told_twice() -> None:
        with heard_at_steps():
            signal.raise_signal(signal.SIGINT)
            done.append("one")
            signal.raise_signal(signal.SIGINT)
            done.append("two")

    with pytest.raises(KeyboardInterrupt):
        told_twice()
    assert done == ["one"]


@pytest.mark.usefixtures("heard")
def test_a_handler_that_raises_nothing_hears_every_signal_of_the_block() -> None:
    heard: list[int] = []
    signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
    with heard_at_steps():
        for _ in range(2):
            signal.raise_signal(signal.SIGINT)
            assert len(heard) in (0, 1)
            step()
    assert heard == [signal.SIGINT] * 2


def test_it_can_be_used_outside_the_main_thread() -> None:
    done: list[str] = []

    def work() -> None:
        with ending_on_sigterm(), heard_at_steps():
            step()
            done.append("worked")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == ["worked"]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
