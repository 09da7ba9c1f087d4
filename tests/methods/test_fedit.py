"""FedIT is FedAvg of the factors, and says how far that is from the mean of the products."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from rayfed import methods, tree
from rayfed.adapters import lora
from rayfed.errors import ConfigError
from rayfed.launch.preflight import load_request
from tests import toy
from tests.tiny import WHOLE, Watched, descend

OnBert = Callable[[dict[str, Any]], dict[str, Any]]
GAP = {"name": "fedit", "gap": True}


def dense(params: Any, n: lora.Names) -> np.ndarray:
    return params[n.b].double().numpy() @ params[n.a].double().numpy()


@pytest.mark.skipif("fedavg" not in methods.names(), reason="compared with fedavg, which is not there")
def test_it_is_fedavg_on_the_adapter_to_the_bit(on_bert: OnBert) -> None:
    more = {"executor": "vmap", **on_bert({})}
    plain = toy.simulate("fedavg", **more)
    for method in ("fedit", GAP):
        ours = toy.simulate(method, **more)
        assert tree.same(ours.state, plain.state)
        assert [r["bytes/up"] for r in ours.rows] == [r["bytes/up"] for r in plain.rows]


def test_one_client_is_its_own_training(on_bert: OnBert) -> None:
    more = on_bert({**WHOLE, "federation": {"per_round": 1}})
    done = toy.simulate(GAP, rounds=1, dtype="float64", **more)
    (client,) = done.fed.drawn[0].ids
    want = descend(done.fed, client, done.initial["model"], lambda n: True, 3, 0.5)
    went = float(tree.norm(tree.sub(want, done.initial["model"])))
    assert went > 0.01 and float(tree.norm(tree.sub(done.state["model"], want))) < 1e-9 * went
    assert done.rows[0]["lora/gap"] < 1e-7


def test_the_gap_is_that_of_dense_products(on_bert: OnBert) -> None:
    done = toy.simulate(GAP, rounds=2, dtype="float64", kind=Watched, **on_bert({}))
    first = toy.simulate(GAP, rounds=1, dtype="float64", **on_bert({})).state["model"]
    got = done.fed.got[-1]
    p = got.examples.numpy() / got.examples.numpy().sum()
    off = all_of_it = 0.0
    for n in lora.pairs(first):
        each = [dense(tree.add(first, d), n) for d in tree.unstack(got.stacked("delta"))]
        exact = sum(w * m for w, m in zip(p, each, strict=True))
        off += ((exact - dense(done.state["model"], n)) ** 2).sum()
        all_of_it += (exact**2).sum()
    assert len(lora.pairs(first)) == 2 and off > 0
    assert done.rows[1]["lora/gap"] == pytest.approx((off / all_of_it) ** 0.5, rel=1e-6)


def test_it_needs_lora(on_bert: OnBert) -> None:
    raw = toy.config(**on_bert({})).to_dict()
    for kind in ("bias", "full"):
        with pytest.raises(ConfigError, match=f"adapter.kind: {kind} found, method.name: fedit needs lora"):
            load_request({**raw, "method": {"name": "fedit"}, "adapter": {"kind": kind}})
