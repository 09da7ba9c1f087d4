"""Random entries that all clients share."""

from __future__ import annotations

import pytest
import torch

from tests.unit.transform.alone import made, there_and_back, vector


def test_clients_of_an_ask_send_the_same_entries_and_other_asks_others() -> None:
    t = made("randomk", fraction=0.1)
    places = [
        there_and_back(t, vector(), key=k, common=c)[1].nonzero()[:, 0].tolist() for k, c in ((1, 7), (2, 7), (1, 8))
    ]
    assert len(places[0]) == 100 and places[0] == places[1] != places[2]


def test_the_mean_over_draws_is_the_update() -> None:
    t, v = made("randomk", fraction=0.25), vector(8)
    mean = sum(there_and_back(t, v, common=c)[1] for c in range(4000)) / 4000
    assert float((mean - v).norm() / v.norm()) < 0.1


def test_as_they_are_entries_keep_their_size() -> None:
    v = vector()
    _, back, _ = there_and_back(made("randomk", fraction=0.3, unbiased=False), v)
    assert torch.equal(back[back != 0], v[back != 0])


def test_no_index_travels() -> None:
    assert made("randomk", fraction=0.01).size(1000, 32, ()) == (10, 32, 0)


@pytest.mark.parametrize("n", [1, 3])
def test_there_is_always_one(n: int) -> None:
    assert int((there_and_back(made("randomk", fraction=1e-6), vector(n))[1] != 0).sum()) == 1
