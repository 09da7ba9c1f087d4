"""What the pool on Ray does with every call and keeps cheap."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from actors import pool as ray_pool


def test_a_small_payload_stays_with_its_calls_and_a_large_one_goes_to_the_store(monkeypatch):
    stored: list[Any] = []
    monkeypatch.setattr(ray_pool.ray, "put", lambda value: stored.append(value) or "ref")
    small, large = (
        {"w": np.zeros(n, np.float32)} for n in (ray_pool.INLINE_BYTES // 4, ray_pool.INLINE_BYTES // 4 + 1)
    )
    pool: Any = object.__new__(ray_pool.RayPool)
    assert pool.put(small) is small and pool.get(small) is small
    assert pool.put(large) == "ref" and stored == [large]


def test_an_actors_call_is_named_once_and_again_for_its_successor():
    made: list[tuple[str, str]] = []

    def actor(name: str) -> Any:
        def options(num_returns: int, name: str, who: str = name) -> tuple[str, str]:
            made.append((who, name))
            return who, name

        return SimpleNamespace(execute_job=SimpleNamespace(options=options))

    pool: Any = object.__new__(ray_pool.RayPool)
    pool._named, pool.actors = {}, [actor("a"), actor("b")]
    assert [pool._named_call(i, "train") for i in (0, 0, 1, 1)] == [("a", "train")] * 2 + [("b", "train")] * 2
    assert pool._named_call(0, "score") == ("a", "score")
    pool.actors[0] = actor("c")
    assert pool._named_call(0, "train") == ("c", "train")
    assert made == [("a", "train"), ("b", "train"), ("a", "score"), ("c", "train")]
