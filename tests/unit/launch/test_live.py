"""What is shown while something runs: phases, lines elsewhere than on a terminal, a bar on one, a widget in a notebook."""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest

from rayfed.config import phases
from rayfed.launch import live
from rayfed.launch.live import Lines, Progress, keep_showing, shown

Out = pytest.CaptureFixture[str]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A clock that stands until it is set."""
    made = types.SimpleNamespace(now=100.0)
    monkeypatch.setattr(live.time, "monotonic", lambda: made.now)
    monkeypatch.setattr(live.time, "sleep", lambda s: setattr(made, "now", made.now + s))
    return made


def test_a_line_at_the_start_then_about_every_ten_seconds(capsys: Out, clock: Any) -> None:
    """None twice, and always the last one of a run."""
    with Progress() as progress:
        phases.begin("reading digits")
        phases.begin("splitting digits over 20 clients")
        for second in range(1, 26):
            clock.now = 100.0 + second
            progress.update({"round": second, "rounds": 26})
            progress.update({"round": second, "rounds": 26})
        for _ in range(2):
            progress.update({"round": 26, "rounds": 26, "status": "done"})
    assert capsys.readouterr().out.splitlines() == [
        "starting: reading digits",
        "round 10/26",
        "round 20/26",
        "round 26/26",
    ]
    with Progress(quiet=True) as progress:
        phases.begin("reading digits")
        progress.update({"round": 1, "status": "done"})
    assert capsys.readouterr().out == ""


def test_a_job_of_a_cluster_has_a_line_a_second(capsys: Out, clock: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYFED_RUN_ID", "j")
    with Progress() as progress:
        for second in range(3):
            clock.now = 100.0 + second
            progress.update({"round": second + 1, "rounds": 9})
    assert capsys.readouterr().out.splitlines() == ["round 1/9", "round 2/9", "round 3/9"]


def test_a_study_says_what_is_left_of_all(capsys: Out, clock: Any) -> None:
    state = {"arm": "a", "seed": 0, "runs": 3, "run_number": 1, "rounds": 4, "to_come": ["a", "a"], "status": "running"}
    with Progress() as progress:
        progress.left.clock = lambda: clock.now
        progress.update({**state, "round": 0, "status": "starting", "phase": "trying executors"})
        clock.now = 120.0
        progress.update({**state, "round": 2, "eta_s": 20.0})
        progress.update({**state, "round": 4, "eta_s": 0.0, "status": "done"})
    first, second, last = capsys.readouterr().out.splitlines()
    assert first == "[1/3] a seed 0  starting: trying executors"
    assert second == "[1/3] a seed 0  round 2/4  2 min left in all"  # 20 s, and two runs of 40
    assert last.startswith("[1/3] a seed 0  round 4/4")


def test_a_terminal_has_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    console = Console(
        force_terminal=True,
        width=100,
        record=True,
        file=types.SimpleNamespace(write=lambda t: None, flush=lambda: None),
    )  # type: ignore[arg-type]
    monkeypatch.setattr("rich.live.get_console", lambda: console)
    monkeypatch.setattr(live, "_view", live.Terminal)
    state = {"arm": "a", "seed": 0, "runs": 2, "run_number": 1, "rounds": 4, "to_come": ["b"]}
    with Progress() as progress:
        phases.begin("reading digits")
        progress.update({**state, "round": 4, "status": "done"})
        assert progress.view.bar.tasks[0].percentage == 50  # type: ignore[union-attr]
    said = console.export_text()
    assert "[1/2] a seed 0  round 4/4" in said and "50%" in said


def test_a_notebook_has_a_widget(monkeypatch: pytest.MonkeyPatch, capsys: Out) -> None:
    monkeypatch.setattr(live, "in_notebook", lambda: True)
    with shown(None) as update:
        assert update is not None
        update({"round": 1, "rounds": 4})
    assert "25%" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert isinstance(live._view(), Lines)


def test_python_shows_nothing_where_nobody_looks(capsys: Out) -> None:
    with shown(None) as update:
        assert update is None
    with shown(True) as update:
        assert update is not None
        update({"round": 1, "rounds": 4})
    assert capsys.readouterr().out == "round 1/4\n"


def test_a_listener_that_fails_ends_nothing() -> None:
    heard: list[str] = []

    def fail(what: str) -> None:
        raise ValueError(what)

    with phases.listening(fail), phases.listening(heard.append):
        phases.begin("a")
    phases.begin("b")
    assert heard == ["a"]


def test_what_is_watched_is_printed_where_it_changes(capsys: Out, clock: Any) -> None:
    texts = iter([("a", True), ("a", True), ("b", True), *[("c", True)] * 6, ("d", False)])
    keep_showing(lambda: next(texts))
    assert capsys.readouterr().out.splitlines() == ["a", "c", "d"]


def test_a_status_that_says_less_than_the_phase_does_not_hide_it(capsys: Out, clock: Any) -> None:
    with Progress() as progress:
        phases.begin("placing actors")
        clock.now = 120.0
        progress.update({"round": 0, "status": "starting"})
        progress.update({"round": 0, "status": "starting", "phase": "trying executors"})
    assert capsys.readouterr().out.splitlines() == ["starting: placing actors", "starting: trying executors"]
