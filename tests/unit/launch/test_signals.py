"""Signals during runs: the first asks to stop, a second one ends at once."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from rayfed.errors import Interrupted, RunFailed
from rayfed.launch.signals import stop_on_signals, stopped_error


class Running:
    """Counts how often it was asked to stop."""

    asked = 0

    def stop(self) -> None:
        self.asked += 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_the_second_ends(number: int) -> None:
    running, before = Running(), signal.getsignal(number)
    with stop_on_signals(running) as received:
        os.kill(os.getpid(), number)
    assert (running.asked, received) == (1, [number]) and signal.getsignal(number) is before
    error = stopped_error(received, Path("runs/x"))
    assert isinstance(error, Interrupted) and error.exit_code == 128 + number and "rayfed resume runs/x" in str(error)
    with pytest.raises(Interrupted, match="at once") as ended, stop_on_signals(running):
        try:
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), number)
        except Exception:  # what catches the errors of clients
            pytest.fail("a second signal is not an error of a client")
    assert ended.value.exit_code == 128 + number and signal.getsignal(number) is before


def test_a_second_signal_within_native_code_ends_at_once_too() -> None:
    """Ray's `wait` turns what a signal handler raises into a SystemError caused by it."""
    with pytest.raises(Interrupted, match="at once"), stop_on_signals(Running()):
        try:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        except BaseException as e:
            raise SystemError("returned a result with an exception set") from e
    with pytest.raises(SystemError), stop_on_signals(Running()):
        raise SystemError("of another kind")


def test_what_is_waited_for_is_said(capfd: pytest.CaptureFixture[str]) -> None:
    with stop_on_signals(Running(), lambda: "round 3 of 9"):
        os.kill(os.getpid(), signal.SIGINT)
    assert capfd.readouterr().err == "rayfed: stopping; waiting for round 3 of 9. Once more: end at once\n"


def test_what_is_done_is_not_stopped(capfd: pytest.CaptureFixture[str]) -> None:
    """The first signal only says so, and the report is written; a second one leaves that out."""
    running = Running()
    with stop_on_signals(running) as received:
        received.done = Path("runs/x")
        os.kill(os.getpid(), signal.SIGINT)
    assert running.asked == 0 and "runs/x is done; its report is being written" in capfd.readouterr().err
    says = "runs/x is done, without a report. Write it with: rayfed report runs/x"
    with pytest.raises(Interrupted, match=says) as ended, stop_on_signals(running) as received:
        received.done = Path("runs/x")
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
    assert ended.value.exit_code == 143


def test_a_stop_without_a_signal_is_a_failure() -> None:
    assert isinstance(stopped_error([], Path("x")), RunFailed)


def test_other_threads_leave_signals_alone() -> None:
    found: list[Any] = []

    def work() -> None:
        with stop_on_signals(Running()) as received:
            found.append((signal.getsignal(signal.SIGINT), received))

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [(before, [])]
