"""Domains: how points travel through a searcher, and how PBT stays inside."""

from __future__ import annotations

from tests.unit.tune_spaces.tools import space_of
from tune_spaces.sweep.domains import PLAIN, clip_point, pack_domain, unpack_point


def test_packing_for_a_searcher() -> None:
    categories = pack_domain({"grid_search": [{"kind": "none"}, {"kind": "rotation", "count": 2}, 3]}).categories
    assert all(isinstance(c, PLAIN) for c in categories)
    assert [unpack_point({"a": c})["a"] for c in categories] == [
        {"kind": "none"},
        {"kind": "rotation", "count": 2},
        3,
    ]


def test_pbt_stays_in_the_domain() -> None:
    space = space_of("local_work:continuous")
    assert clip_point({"local.optimizer.lr": 7.0}, space.swept) == {"local.optimizer.lr": 1.0}
    assert clip_point({"local.optimizer.lr": 1e-9}, space.swept) == {"local.optimizer.lr": 1e-3}
    assert clip_point({"local.optimizer.lr": 0.2}, space.swept) == {"local.optimizer.lr": 0.2}
