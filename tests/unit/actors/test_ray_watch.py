"""The watch over Ray's processes: who takes no connection for a while is gone."""

from __future__ import annotations

import socket
import time

import pytest

from actors import ray_watch
from actors.ray_watch import RayWatch, answers, parse_place


def test_who_stops_listening_is_named_after_the_patience_and_who_listens_again_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, seen = [0.0], []
    monkeypatch.setattr(ray_watch.time, "monotonic", lambda: clock[0])
    there = {("h", 1): [True, False, True, False, False, False], ("n", 2): [True] * 9}
    monkeypatch.setattr(ray_watch, "answers", lambda place: there[place].pop(0))
    watch = object.__new__(RayWatch)
    watch.lost, watch._places, watch._patience, watch._every = (
        None,
        {"the head": ("h", 1), "the node": ("n", 2)},
        5.0,
        1.0,
    )
    watch._at_loss = seen.append

    class Over:
        def wait(self, seconds: float) -> bool:
            clock[0] += 3
            return False

    watch._over = Over()  # type: ignore[assignment]
    watch._watch()
    assert watch.lost == "the head at h:1 is gone" and seen == [watch.lost]
    assert there["h", 1] == [], "a single failure is forgotten; two more looks pass before the third is enough"


def test_a_socket_that_closes() -> None:
    found: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as head:
        place = head.getsockname()
        watch = RayWatch({"the head": place}, found.append, patience=0.0, every=0.01)
        assert answers(place) and watch.look() is None
    end = time.monotonic() + 30
    while not found and time.monotonic() < end:
        time.sleep(0.01)
    assert found == [watch.lost] and watch.look() == watch.lost and f"{place[0]}:{place[1]} is gone" in found[0]


def test_nothing_is_said_after_the_end() -> None:
    found: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as head:
        watch = RayWatch({"the head": head.getsockname()}, found.append, patience=0.0, every=0.05)
        watch.stop()
    time.sleep(0.2)
    assert not found and watch.lost is None


def test_rays_own_patience_is_taken_where_the_user_has_set_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ray_watch.RECONNECT, "90")
    watch = RayWatch({})
    watch.stop()
    assert watch._patience == 90


def test_places() -> None:
    assert parse_place("10.0.0.1:6379") == ("10.0.0.1", 6379) and parse_place("[::1]:80") == ("::1", 80)
