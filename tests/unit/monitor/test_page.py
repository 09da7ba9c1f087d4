"""The live page in a real browser."""

from __future__ import annotations

import os
import shutil
import threading
import urllib.parse
from pathlib import Path

import pytest

from rayfed.monitor import Server
from tests.browser import CHROMIUM, browser
from tests.unit.monitor.runs import HARMFUL, listed

WIDER = "document.documentElement.scrollWidth - innerWidth"
INK = "getComputedStyle(document.body).backgroundColor"
PARTS = """[plots.length, document.querySelectorAll('.uplot canvas').length,
[...document.querySelectorAll('h2')].slice(1).map(h => h.innerText)]"""
POINTER = """(() => { const over = document.querySelector('.grids .u-over'), b = over.getBoundingClientRect();
const legend = over.closest('.uplot').querySelector('.u-legend');
for (const [kind, x] of [['mouseenter', 1], ['mousemove', 1]])
  over.dispatchEvent(new MouseEvent(kind, {clientX: b.left + x, clientY: b.top + 5, bubbles: true}));
const first = legend.innerText; over.dispatchEvent(new MouseEvent('mouseleave')); return [first, legend.innerText]; })()"""
TOGGLE = """(() => { const heads = () => [...document.querySelectorAll('.grids .u-legend')][0].querySelectorAll('.u-series');
heads()[1].querySelector('th').click(); redraw();
return [...heads()].map(s => s.classList.contains('u-off')); })()"""
SMOOTH = """(() => { const i = document.querySelector('#smooth'); i.value = 0.5; i.dispatchEvent(new Event('change'));
return [plots[0].series.length, plots[0].series.filter(s => s.class === 'raw').length]; })()"""
TAB = "new Promise(done => {{ view.tab = '{}'; refresh().then(() => done({})); }})"
FILTER = """new Promise(done => { const i = document.querySelector('#filter'); i.value = 'ifca'; i.dispatchEvent(new Event('input'));
setTimeout(() => done(document.querySelectorAll('.run').length), 1500); })"""


@pytest.mark.skipif(not CHROMIUM, reason="Chromium is not installed (apt-get install chromium)")
def test_a_browser_shows_it(server: Server, runs: Path, tmp_path: Path) -> None:
    run = listed(runs)["done"]["id"]
    address = f"{server.url}#{urllib.parse.quote(run, safe='')}"
    with browser() as b:
        text, states, title, wide = b.evaluate(
            server.url,
            "document.body.innerText",
            "[...document.querySelectorAll('.state')].map(s => s.textContent)",
            "document.title",
            WIDER,
            picture=tmp_path / "list.png",
        )
        assert sorted(states) == sorted(r["status"] for r in listed(runs).values()) and "unreadable" in states
        assert HARMFUL in text and title == "rayfed monitor", "names are text"
        assert wide <= 0 and (tmp_path / "list.png").stat().st_size > 10_000
        for width in (1280, 400):
            (drawn, canvases, heads), wide, (first, rest), light, switched, smooth, *others = b.evaluate(
                address,
                PARTS,
                WIDER,
                POINTER,
                INK,
                TOGGLE,
                SMOOTH,
                *(TAB.format(name, f"[{PARTS}, {WIDER}]") for name in ("Clients", "Log", "Settings")),
                width=width,
            )
            assert heads == ["Scores", "Clusters", "Cost"] and drawn == canvases >= 8 and wide <= 0
            assert first.startswith("round1") and rest.startswith("round4") and "personal" in rest
            assert switched[1] and not any(switched[2:]), "a line that is switched off stays so"
            assert smooth[0] == 1 + 2 * smooth[1] and smooth[1] >= 2
            assert [p[2] for p, _ in others] == [["Clients"], ["Actors", "Events"], ["Settings"]]
            assert others[0][0][0] >= 2 and all(w <= 0 for _, w in others)
        assert b.evaluate(address, INK, dark=True) != [light], "dark follows the system"
        torn, problems, clients = b.evaluate(
            f"{server.url}#torn",
            "document.body.innerText",
            "document.querySelectorAll('.problem').length",
            TAB.format("Clients", "document.querySelector('.problem').innerText"),
        )
        assert (
            "cannot be read" in torn
            and problems >= 1
            and "cannot be read" in clients
            and "SCORES" not in torn
            and "accuracy" in torn
        )
        gone = b.evaluate(f"{server.url}#nothing", "document.body.innerText")[0]
        assert "There is no such run" in gone
        assert b.evaluate(server.url, FILTER) == [1]


@pytest.mark.skipif(not CHROMIUM, reason="Chromium is not installed (apt-get install chromium)")
def test_the_page_follows_a_run(runs: Path, tmp_path: Path) -> None:
    """New rounds appear by themselves, and the page says when the server has gone."""
    shutil.copytree(runs / listed(runs)["done"]["id"], tmp_path / "live")
    board = Server(tmp_path, 0)
    thread = threading.Thread(target=board.serve_forever)
    thread.start()
    renamed = threading.Timer(2.0, lambda: os.rename(tmp_path / "live", tmp_path / "renamed"))
    follow = """new Promise(done => { const t = setInterval(() => { document.dispatchEvent(new Event('visibilitychange'));
    if (document.body.innerText.includes('renamed')) { clearInterval(t); done('seen'); } }, 300); })"""
    with browser() as b:
        renamed.start()
        assert b.evaluate(board.url, follow) == ["seen"]
    board.close()
    thread.join()


@pytest.mark.skipif(not CHROMIUM, reason="Chromium is not installed (apt-get install chromium)")
def test_a_sweeps_runs_are_shown_when_asked_for(sweep: Path) -> None:
    board = Server(sweep, 0)
    thread = threading.Thread(target=board.serve_forever)
    thread.start()
    seen = "[...document.querySelectorAll('.run')].filter(r => r.checkVisibility()).map(r => r.querySelector('b').innerText)"
    again = "document.querySelector('.sweep summary').click(), new Promise(done => setTimeout(() => refresh().then(done), 100))"
    with browser() as b:
        before, said, _, after, _, shut = b.evaluate(
            board.url, seen, "document.querySelector('.sweep summary').innerText", again, seen, again, seen
        )
    board.close()
    thread.join()
    assert sorted(before) == ["alone", "s"] == sorted(shut)
    assert "1 of 3 trials" in said and "50.0 %" in said and "interrupted" in said and "2 runs" in said
    assert sorted(after) == ["alone", "s", "trials/00000/seed-1", "trials/00001/seed-1"], (
        "open also when it looks again"
    )
