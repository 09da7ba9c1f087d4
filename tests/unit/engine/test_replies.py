"""Unfolded parts: at the server, or computed with where they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from rayfed import tree
from rayfed.engine.worker import SMALL
from rayfed.fold import mean
from tests import toy
from tests.toy import SimPool
from tests.unit.engine.asks import ASKED, asked, sent


@pytest.mark.parametrize("n", [6, SMALL, SMALL + 1])
@pytest.mark.parametrize("shuffle", [None, 1, 2])
def test_large_parts_are_combined_where_they_are(odd: str, n: int, shuffle: int | None) -> None:
    got = asked(odd, n, SimPool(3, shuffle))
    ids = sorted(ASKED)
    assert got.ids == ids and [r.client for r in got] == ids
    x = np.stack([sent(c, n) for c in ids])
    assert all((k.large is not None) == (n > SMALL) for k in got._parts.calls)
    assert np.allclose(got.gram("row").numpy(), x @ x.T, rtol=0, atol=1e-9)
    w = np.random.default_rng(0).normal(size=(4, len(ids)))
    combined = got.linear("row", torch.as_tensor(w))
    assert len(combined) == 4
    for k in range(4):
        assert list(combined[k]) == ["b", "a"] and combined[k]["b"].shape == (n // 3, 1)
        flat = np.concatenate([combined[k]["b"].numpy().reshape(-1), combined[k]["a"].numpy()])
        assert np.allclose(flat, w[k] @ x, rtol=0, atol=1e-9)


@pytest.mark.parametrize("n", [6, SMALL + 1])
def test_inner_products_with_trees_of_the_server(odd: str, n: int) -> None:
    """The plain products, for all entries or some; the same bits however clients are spread over calls and workers."""
    ids = sorted(ASKED)
    x = np.stack([sent(c, n) for c in ids])
    y = np.random.default_rng(0).normal(size=(3, n))
    trees = [{"b": torch.as_tensor(v[: n // 3]).reshape(-1, 1), "a": torch.as_tensor(v[n // 3 :])} for v in y]
    found = []
    for cohort, pool in ((3, SimPool(3, 1)), (3, SimPool(1, None)), (1, SimPool(2, 2)), (7, SimPool(2, 3))):
        fed = toy.make_fed(toy.config({"name": odd, "size": n}, dtype="float64", resources={"cohort": cohort}), pool)
        fed.begin(1)
        got = fed.ask(fed.method.rows, ASKED)
        found.append(got.dot("row", trees))
        assert np.allclose(got.dot("row", trees, ["a"]).numpy(), x[:, n // 3 :] @ y[:, n // 3 :].T, rtol=0, atol=1e-9)
    assert found[0].shape == (7, 3) and found[0].dtype == torch.float64
    assert np.allclose(found[0].numpy(), x @ y.T, rtol=0, atol=1e-9)
    assert all(torch.equal(f, found[0]) for f in found)
    assert fed.ask(fed.method.rows, ()).dot("row", trees).shape == (0, 3)


@pytest.mark.parametrize("n", [6, SMALL + 1])
def test_gathered_parts_belong_to_their_clients(odd: str, n: int) -> None:
    got = asked(odd, n, SimPool(2, 5))
    assert {c: float(k) for c, k in got.gather("k").items()} == {c: c + 1.0 for c in sorted(ASKED)}
    assert list(got.gather("k")) == sorted(ASKED)
    assert got.stacked("k").tolist() == [c + 1.0 for c in sorted(ASKED)]
    for c, row in got.gather("row").items():
        assert np.allclose(torch.cat([row["b"].reshape(-1), row["a"]]).numpy(), sent(c, n), atol=1e-12)
    sizes = toy.federation(toy.config()).train.sizes()
    assert got.examples.tolist() == [float(sizes[c]) for c in sorted(ASKED)]
    assert [r.steps for r in got] == [0] * 7 and got[0].client == 0


def test_folded_parts_stay_where_asked_to(odd: str) -> None:
    n = SMALL + 1
    got = asked(odd, n, fold=mean("row", weight="one"), keep="row")
    x = np.stack([sent(c, n) for c in sorted(ASKED)])
    assert np.allclose(got.folded["row"]["a"].numpy(), x.mean(0)[n // 3 :], atol=1e-12)
    assert np.allclose(got.gram("row").numpy(), x @ x.T, rtol=0, atol=1e-9)


def test_a_part_that_was_folded_away_is_named(odd: str) -> None:
    for got in (asked(odd, SMALL + 1, fold=mean("row", weight="one")), asked(odd, 6)):
        with pytest.raises(KeyError, match=r"row|nothing"):
            got.gather("row" if got.folded else "nothing")


def test_gram_of_a_small_part_and_a_large_one(odd: str) -> None:
    got = asked(odd, SMALL + 1)
    k = np.array(sorted(ASKED)) + 1.0
    assert np.allclose(got.gram("k").numpy(), np.outer(k, k))


def test_inner_products_leave_out_statistics_and_counters(nets: Any) -> None:
    """A counter moves by whole steps: with it every pair of updates would look alike."""
    fed = toy.make_fed(toy.config("fedavg", dtype="float64", **nets("batchnorm")))
    fed.begin(1)
    shared = fed.method.init(fed.task, 7)
    got = fed.ask(fed.method.train, fed.sample(), shared=shared, keep="delta")
    updates = tree.unstack(got.stacked("delta"))
    flat = torch.stack([torch.cat([x.reshape(-1) for n, x in d.items() if n not in fed.task.buffers]) for d in updates])
    assert torch.allclose(got.gram("delta"), flat @ flat.T, rtol=1e-9)
    assert torch.allclose(got.dot("delta", updates[:2]), flat @ flat[:2].T, rtol=1e-9)
