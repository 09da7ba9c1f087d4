"""CELLM (FLASC): the largest entries travel both ways, the server's vector stays whole."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from rayfed import tree
from rayfed.errors import ConfigError
from rayfed.methods.cellm import count, top
from tests import toy
from tests.methods.conftest import Plain
from tests.tiny import Watched

OnBert = Callable[[dict[str, Any]], dict[str, Any]]
D = 212  # the toy's parameters
DENSE = {"name": "cellm", "down": 1.0, "up": 1.0}


def by_numpy(v: np.ndarray, share: float) -> np.ndarray:
    """0/1 mask of the floor(share D) largest entries, written apart from the method's."""
    k = max(1, math.floor(share * len(v) + 1e-9))
    mask = np.zeros(len(v))
    mask[np.lexsort((np.arange(len(v)), -np.abs(v)))[:k]] = 1
    return mask


@pytest.mark.parametrize(("share", "ones"), [(1.0, 100), (0.29, 29), (0.255, 25), (0.001, 1)])
def test_masks_have_as_many_ones_as_the_share_says(share: float, ones: int) -> None:
    v = torch.as_tensor(np.random.default_rng(0).normal(size=100))
    x = {"a": v[:60].reshape(6, 10), "b": v[60:]}
    mask = tree.flatten(top(x, share, "global"))
    assert int(mask.sum()) == ones == count(100, share)
    np.testing.assert_array_equal(mask.numpy(), by_numpy(v.numpy(), share).astype(bool))
    once = tree.map(lambda p, m: p * m, x, top(x, share, "global"))
    assert tree.same(top(once, share, "global"), top(x, share, "global"))
    apart = top(x, share, "tensor")
    assert [int(m.sum()) for m in apart.values()] == [count(60, share), count(40, share)]


def test_equal_entries_keep_their_order() -> None:
    assert top({"a": torch.ones(7)}, 0.5, "global")["a"].tolist() == [True] * 3 + [False] * 4


def test_dense_it_is_adamw_on_the_mean(on_bert: OnBert) -> None:
    """Shares of 1: the clients' updates are FedAvg's, their equal mean goes through torch's own AdamW."""
    done = toy.simulate({**DENSE, "server_lr": 0.02}, dtype="float64", kind=Watched, **on_bert({}))
    fed: Any = done.fed
    whole = {n: p.clone().requires_grad_() for n, p in done.initial["whole"].items()}
    opt = torch.optim.AdamW(whole.values(), lr=0.02, weight_decay=0.01)
    plain: Any = toy.simulate("fedavg", rounds=1, dtype="float64", kind=Watched, **on_bert({})).fed
    assert tree.same(fed.got[0].stacked("delta"), plain.got[0].stacked("delta"))
    for got in fed.got:
        for n, u in got.stacked("delta").items():
            whole[n].grad = -u.sum(0) / len(u)
        opt.step()
    torch.testing.assert_close(done.state["whole"], {n: p.detach() for n, p in whole.items()}, rtol=1e-10, atol=1e-12)
    assert tree.same(done.state["model"], done.state["whole"])


def test_one_round_by_numpy(plain: type[Plain]) -> None:
    """Softmax regression: masked start, dense gradient steps, masked update, equal mean, one AdamW step."""
    settings = {"name": "cellm", "down": 0.3, "up": 0.2, "server_lr": 0.01}
    done = toy.simulate(settings, rounds=1, **plain.WORK)
    p = plain.vector(done.initial["whole"])
    start = p * by_numpy(p, 0.3)
    updates = []
    for c in done.fed.drawn[0].ids:
        u = plain.descend(start, *plain.data(done.fed, c)) - start
        assert (u != 0).sum() > 0.9 * len(u)  # all entries train
        updates.append(u * by_numpy(u, 0.2))
    g = -np.mean(updates, 0)
    want = p * (1 - 0.01 * 0.01) - 0.01 * g / (np.abs(g) + 1e-8)
    np.testing.assert_allclose(plain.vector(done.state["whole"]), want, rtol=1e-7, atol=1e-10)
    np.testing.assert_allclose(plain.vector(done.state["model"]), want * by_numpy(want, 0.3), rtol=1e-7, atol=1e-10)
    alone = (np.sum([u != 0 for u in updates], 0) == 0) & (by_numpy(p, 0.3) == 0)
    assert alone.any()  # neither sent nor answered: only weight decay moves them
    np.testing.assert_allclose(plain.vector(done.state["whole"])[alone], p[alone] * (1 - 1e-4), rtol=1e-12)


@pytest.mark.parametrize("settings", [{}, {"client_freeze": True}, {"ranking": "tensor"}, {"tiers": 2}, {"decay": 0.5}])
def test_what_travels_is_sparse_and_counted(settings: dict[str, Any]) -> None:
    sent: list[Any] = []

    class Spy(Watched):
        def ask(self, visit: Any, to: Any, **more: Any) -> Any:
            sent.append((more["shared"], out := super().ask(visit, to, **more)))
            return out

    done = toy.simulate({"name": "cellm", "down": 0.25, "up": 0.1, **settings}, kind=Spy)
    for r, row in enumerate(done.rows, 1):
        down = up = 0
        asks = [(s, g) for i, (s, g) in enumerate(sent) if i // (len(sent) // 2) == r - 1]
        for i, (shared, got) in enumerate(asks):
            factor = settings.get("decay", 1.0) ** (r - 1) / 4 ** (len(asks) - 1 - i)
            flat = tree.flatten(shared["model"]).numpy()
            u = np.stack([tree.flatten(got.gather("delta")[c]).numpy() for c in got.ids])
            limit = [math.floor(factor * share * D) for share in (0.25, 0.1)]
            most = (u != 0).sum(1).max()  # `tensor` rounds each of the 4 down
            assert (flat != 0).sum() <= limit[0] and max(0, limit[1] - 4) < most <= limit[1]
            if "client_freeze" in settings:
                assert not (u[:, flat == 0] != 0).any()
                ones = int(sum(m.sum() for m in shared["mask"].values()))
                down += len(u) * (4 * (flat != 0).sum() + min(27, 4 * ones))
            else:
                down += len(u) * ((flat != 0).sum() * 4 + min(27, 4 * (flat != 0).sum()))
            up += sum(4 * n + min(27, 4 * n) for n in (u != 0).sum(1))
        assert row["bytes/down"] == down and row["bytes/up"] == up


def test_dense_bytes_have_no_index() -> None:
    dense, fedavg = toy.simulate(DENSE).rows, toy.simulate("fedavg").rows
    assert [r["bytes/down"] for r in dense] == [r["bytes/down"] for r in fedavg] == [7 * 4 * D] * 2
    assert [r["bytes/up"] for r in dense] == [7 * 4 * D] * 2  # without n_i: all weigh the same
    (row, _) = toy.simulate({"name": "cellm", "down": 0.25, "up": 0.02}).rows
    assert (row["sparse/down_values"], row["sparse/down_bitmap"], row["sparse/down_positions"]) == (212, 239, 424)
    assert (row["sparse/up_values"], row["sparse/up_bitmap"], row["sparse/up_positions"]) == (16, 43, 32)


def test_a_frozen_mask_comes_from_the_round_that_was_dense() -> None:
    first = toy.simulate({"name": "cellm", "server_freeze": True}, rounds=1)
    after = toy.simulate({"name": "cellm", "server_freeze": True}, rounds=3)
    assert all(bool(m.all()) for m in first.initial["mask"].values())
    assert first.rows[0]["bytes/down"] == 7 * (4 * int((tree.flatten(first.initial["whole"]) != 0).sum()))
    assert tree.same(after.state["mask"], top(first.state["whole"], 0.25, "global"))
    moving = toy.simulate({"name": "cellm", "server_lr": 0.1}, rounds=3).state
    assert tree.same(moving["mask"], top(moving["whole"], 0.25, "global"))
    assert not tree.same(moving["mask"], top(first.initial["whole"], 0.25, "global"))


def test_what_a_frozen_mask_sends_is_logged() -> None:
    """All 212 numbers in round 1, then a quarter, whatever the decay; upwards it is a tenth, and less each round."""
    spec = {"name": "cellm", "server_freeze": True, "up": 0.1, "decay": 0.5}
    rows = toy.simulate(spec, rounds=3).rows
    assert [r["sparse/down_values"] for r in rows] == [4 * D, 4 * 53, 4 * 53]
    assert [r["sparse/down_bitmap"] for r in rows] == [4 * D + 27, 4 * 53 + 27, 4 * 53 + 27]
    assert [r["sparse/down_positions"] for r in rows] == [8 * D, 8 * 53, 8 * 53]
    assert [r["sparse/up_values"] for r in rows] == [4 * 21, 4 * 10, 4 * 5]


def test_one_frozen_mask_is_not_for_tiers() -> None:
    with pytest.raises(ConfigError, match=r"method.server_freeze: true found with method.tiers: 2"):
        toy.config({"name": "cellm", "server_freeze": True, "tiers": 2})


def test_what_is_scored() -> None:
    for masked in (True, False):
        state = toy.simulate({"name": "cellm", "eval_masked": masked}).state
        want = tree.map(lambda p, m: p * m, state["whole"], state["mask"]) if masked else state["whole"]
        torch.testing.assert_close(state["model"], want, rtol=0, atol=0)


def test_the_lowest_tier_is_sent_least() -> None:
    """Three tiers, shares 1/16, 1/4 and 1 of everything: the highest is dense."""
    down: list[int] = []

    class Spy(toy.ToyFed):
        def ask(self, visit: Any, to: Any, **more: Any) -> Any:
            assert len({c % 3 for c in to}) <= 1
            down.append(int((tree.flatten(more["shared"]["model"]) != 0).sum()))
            return super().ask(visit, to, **more)

    toy.simulate({**DENSE, "tiers": 3}, rounds=1, kind=Spy)
    assert down[:2] == [D // 16, D // 4] and down[2] > D // 2
