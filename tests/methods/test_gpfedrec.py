"""GPFedRec: the graph and a round by hand; equal users without a pull make it an average; the user's part stays."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rayfed import tree
from tests import toy

NCF = {**toy.TASTES, "task": {**toy.TASTES["task"], "model": {"name": "ncf", "dim": 4, "hidden": [6]}}}
SPEC = {"name": "gpfedrec", "item_rate": 0.5}


@pytest.mark.parametrize(
    ("settings", "want"),
    [
        ({}, [[1 / 2, 1 / 2, 0], [1 / 2, 1 / 2, 0], [0, 0, 1]]),
        ({"neighbours": 1}, [[1, 0, 0], [0, 1, 0], [0, 0, 1]]),
        ({"threshold": 9.0}, [[1, 0, 0], [0, 1, 0], [0, 0, 1]]),  # nobody is near: its own
        ({"graph": "unlike"}, [[0, 0, 1], [0, 0, 1], [1 / 2, 1 / 2, 0]]),
    ],
)
def test_who_is_joined(settings: Any, want: Any) -> None:
    fed = toy.make_fed(toy.config({**SPEC, **settings}, dtype="float64", **toy.TASTES))
    s = torch.tensor([[1.0, 0.8, 0.1], [0.8, 1.0, 0.1], [0.1, 0.1, 1.0]], dtype=torch.float64)
    assert fed.method.joined(s).tolist() == want  # type: ignore[attr-defined]


@pytest.mark.parametrize("changes", [toy.TASTES, NCF], ids=["factors", "ncf"])
def test_a_round_by_hand(changes: Any) -> None:
    done = toy.simulate(SPEC, dtype="float64", rounds=1, **changes)
    first = done.initial["items"]["items.weight"]
    kept = done.clients()
    ids = sorted(kept, key=int)
    tables = torch.stack([kept[c]["items"]["items.weight"] for c in ids])
    flat = tables.flatten(1)
    cosine = flat @ flat.T / (flat.norm(dim=1)[:, None] * flat.norm(dim=1))
    near = (cosine > cosine.mean(1, keepdim=True)).double()
    moved = torch.einsum("uw,wid->uid", near / near.sum(1, keepdim=True), tables)
    torch.testing.assert_close(done.state["items"]["items.weight"], moved.mean(0))
    assert not torch.equal(moved[0], tables.mean(0)) and not torch.equal(tables[0], first)
    for c, table in zip(ids, moved, strict=True):
        torch.testing.assert_close(kept[c]["anchor"]["items.weight"], table)


def test_with_everybody_joined_it_is_the_plain_mean() -> None:
    """Threshold 0 joins all users of positive cosine, which tables of one start all have: V'_u is the mean for everybody."""
    done = toy.simulate({**SPEC, "threshold": 0.0, "reg": 0.0}, dtype="float64", rounds=1, **toy.TASTES)
    tables = torch.stack([c["items"]["items.weight"] for c in done.clients().values()])
    torch.testing.assert_close(done.state["items"]["items.weight"], tables.mean(0))
    anchors = [c["anchor"]["items.weight"] for c in done.clients().values()]
    assert all(torch.allclose(a, tables.mean(0)) for a in anchors)


def test_the_pull_to_the_graphs_table() -> None:
    """A strong pull keeps the tables where they were; the first anchor is the first table."""
    free, held = (toy.simulate({**SPEC, "reg": r}, dtype="float64", rounds=1, **toy.TASTES) for r in (0.0, 20.0))
    far = [
        max(float(tree.norm(tree.sub(c["items"], d.initial["items"]))) for c in d.clients().values())
        for d in (free, held)
    ]
    assert 0 < far[1] < far[0]


def test_only_tables_travel() -> None:
    done = toy.simulate(SPEC, rounds=1, **NCF)
    wire, task = done.fed.method.wire, done.fed.task
    assert {*wire.down, *wire.up} == {"items", "anchor", "delta"}
    for part in (*wire.down.values(), *wire.up.values()):
        assert list(part.shape.select(task.params_like, task)) == ["items.weight"]  # type: ignore[attr-defined]
    assert wire.keep["user"].private and len(wire.keep["user"].shape.select(task.params_like, task)) == 5  # type: ignore[attr-defined]


def test_who_is_served_what() -> None:
    done = {v: toy.simulate({**SPEC, "view": v}, dtype="float64", **toy.TASTES) for v in ("own", "graph", "shared")}
    losses = {v: d.scores()[0]["loss/personal"] for v, d in done.items()}
    assert len(set(losses.values())) == 3 and tree.same(done["own"].state, done["shared"].state)
