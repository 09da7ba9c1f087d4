"""Sentences on what takes long, and silence on what does not."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from rayfed.config import watchdog
from rayfed.config.watchdog import Watchdog, say_if_slow


def test_what_hangs_is_said_with_its_place_and_ever_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "PATIENCE_S", 0.02)
    said: list[tuple[float, str]] = []
    began, twice = time.monotonic(), threading.Event()

    def say(seconds: float, where: str) -> None:
        said.append((seconds, where))
        if len(said) == 2:
            twice.set()
        raise OSError("a sentence is worth no run")

    with Watchdog(lambda: began, say).watching():
        assert twice.wait(30)
    (first, where), (second, _), *_ = said
    assert second >= 2 * first >= 0.04 and Path(where.partition(",")[0]).name == Path(__file__).name


def test_what_goes_on_is_not_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "PATIENCE_S", 0.05)
    with Watchdog(time.monotonic, lambda seconds, where: pytest.fail("it is at work")).watching():
        time.sleep(0.2)


def test_before_a_run_it_goes_to_standard_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(watchdog, "PATIENCE_S", 0.05)
    with say_if_slow("the import of mine.py"):
        time.sleep(0.4)
    out, err = capsys.readouterr()
    assert not out and "rayfed: the import of mine.py has been at work for 0 s (" in err and "Ctrl-C ends it" in err
