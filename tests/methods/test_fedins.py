"""FedIns: inputs pick from a pool by keys."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from rayfed import tree
from rayfed.errors import ConfigError
from rayfed.methods.fedins import plain, shares
from tests import toy
from tests.tiny import WHOLE, descend

OnBert = Callable[[dict[str, Any]], dict[str, Any]]
SSF = {"adapter": {"kind": "ssf"}}


def made(on_bert: OnBert, **settings: Any) -> Any:
    """A method, its task, a state and some inputs."""
    fed = toy.make_fed(toy.config({"name": "fedins", **settings}, dtype="float64", **on_bert(SSF)))
    state = fed.method.init(fed.task, 3)
    state["keys"] = torch.randn(state["keys"].shape, generator=torch.Generator().manual_seed(0)).double()
    return fed.method, fed.task, state, torch.as_tensor(fed.federation.arrays["x"][:6])


def test_shares_by_hand() -> None:
    assert shares(torch.tensor([[0.1, 0.9, 0.5]]), 2).tolist() == [[0.0, 0.5, 0.5]]


def test_a_pool_of_one_is_one_scale_and_shift_for_all(on_bert: OnBert) -> None:
    """The keys' part of the loss has no gradient there: the mean of what (1 - w) of plain training makes."""
    one = {"name": "fedins", "pool": 1, "chosen": 1, "weight": "examples"}
    done = toy.simulate(one, rounds=1, dtype="float64", **on_bert(toy.merge(WHOLE, SSF)))
    fed, start = done.fed, {n: p[0] for n, p in done.initial["pool"].items()}
    n = {c: len(fed.federation.train[c]) for c in fed.drawn[0].ids}
    trained = {c: descend(fed, c, start, lambda n: True, 3, 0.5 * 0.9) for c in n}
    want = {k: sum(n[c] * trained[c][k] for c in n) / sum(n.values()) for k in start}
    torch.testing.assert_close({k: p[0] for k, p in done.state["pool"].items()}, want, rtol=1e-7, atol=1e-9)


def test_each_input_has_its_own_mean_of_the_pool(on_bert: OnBert) -> None:
    """By hand, input by input; a batch of many answers as batches of one."""
    method, task, state, x = made(on_bert, pool=4, chosen=2)
    query = task.features(plain(task), x)
    state["keys"] = (query - query.mean(0))[:4]  # features are much alike: so they tell inputs apart
    got = method.logits(task, state, x)
    seen = set()
    for i in range(len(x)):
        cosine = torch.nn.functional.cosine_similarity(query[i], state["keys"])
        best = cosine.argsort(descending=True)[:2].tolist()
        seen.add(tuple(sorted(best)))
        mean = {n: p[best].mean(0) for n, p in state["pool"].items()}
        want = task.apply(mean, x[i : i + 1])
        torch.testing.assert_close(got[i : i + 1], want, rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(method.logits(task, state, x[i : i + 1]), want, rtol=1e-9, atol=1e-10)
    assert len(seen) > 1  # they do not all pick the same


def test_places_in_the_pool_do_not_matter(on_bert: OnBert) -> None:
    method, task, state, x = made(on_bert, pool=4, chosen=2)
    order = torch.tensor([2, 0, 3, 1])
    other = tree.map(lambda p: p[order], state)
    torch.testing.assert_close(method.logits(task, other, x), method.logits(task, state, x), rtol=1e-10, atol=1e-12)


def test_all_of_the_pool_reads_no_key(on_bert: OnBert) -> None:
    method, task, state, x = made(on_bert, pool=3, chosen=3)
    other = {**state, "keys": torch.randn(state["keys"].shape).double()}
    torch.testing.assert_close(method.logits(task, other, x), method.logits(task, state, x), rtol=1e-12, atol=1e-13)


def test_the_query_is_the_frozen_network(on_bert: OnBert) -> None:
    _, task, _, x = made(on_bert)
    identity = {
        n: torch.ones_like(p) if n.endswith(".scale") else torch.zeros_like(p) for n, p in task.params_like.items()
    }
    assert torch.equal(task.features(plain(task), x), task.features(identity, x))
    assert task.features(identity, x).abs().sum() > 0


def test_more_chosen_than_there_are_is_refused(on_bert: OnBert) -> None:
    with pytest.raises(ConfigError, match=r"method.chosen: 9 found, allowed: at most method.pool \(8\)"):
        toy.config({"name": "fedins", "chosen": 9}, **on_bert(SSF))
