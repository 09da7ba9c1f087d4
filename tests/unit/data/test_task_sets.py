"""Constructed sets of tasks: domains, sites with positive weights, questions and passages; a domain that is held out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from rayfed.engine.resident import Resident
from rayfed.errors import ConfigError
from tests import toy
from tests.unit.data.sets import load, refused


def test_domains_see_the_same_classes_turned_and_moved() -> None:
    d = load("synthetic:domains", 1, examples=400, test=100, features=6, domains=3, classes=4, noise=0, shift=1.0)
    assert (
        d.train.domain is not None
        and d.train.x.shape == (400, 6)
        and set(d.train.domain) == {f"domain {k}" for k in range(3)}
    )
    centres = {
        k: np.stack([np.unique(d.train.x[(d.train.domain == k) & (d.train.y == c)], axis=0)[0] for c in range(4)])
        for k in np.unique(d.train.domain)
    }
    gaps = [np.linalg.norm(c[:, None] - c[None], axis=-1) for c in centres.values()]  # turns and moves keep distances
    assert np.allclose(gaps[0], gaps[1], atol=1e-4) and not np.allclose(*list(centres.values())[:2], atol=0.1)
    still = load("synthetic:domains", 1, examples=400, test=100, noise=0, shift=0)
    assert len(np.unique(still.train.x.round(4), axis=0)) == 5


def test_sites_are_unequal_and_weigh_their_rows_with_a_label() -> None:
    d = load("synthetic:sites", 1, examples=1000, test=100, size=8)
    assert d.train.client is not None and d.form == "labels" and d.train.x.shape == (1250, 1, 8, 8)
    many = {str(s): int((d.train.client == s).sum()) for s in np.unique(d.train.client)}
    assert many == {"small": 50, "medium": 100, "large": 250, "largest": 600, "shifted": 250}
    for s in many:
        mine = d.train.client == s
        has = d.train.y[mine].sum(0)
        assert np.allclose(d.train.columns["positive"][mine], (many[s] - has) / has, rtol=1e-5)
    assert d.train.x[d.train.client == "shifted"].mean() > d.train.x[d.train.client == "large"].mean() + 0.02


def test_positive_weights_are_of_training_alone() -> None:
    changes: Any = {
        "task": {"data": {"name": "synthetic:sites", "examples": 300, "test": 50, "size": 6}, "kind": "multilabel"},
        "federation": {
            "clients": 5, "per_round": None, "partition": {"kind": "natural"}, "groups": {"kind": "none"}, "holdout": {"kind": "none"},
        },
    }  # fmt: skip
    c = toy.config(dtype="float64", **changes)
    t = Resident(c, toy.federation(c), None, "cpu").task
    batch = t.batch({n: a[:7] for n, a in toy.federation(c).arrays.items()})
    logits, y, w = t.apply(t.initial, batch["x"]), batch["y"], batch["positive"]
    nll = -(y * torch.log(torch.sigmoid(logits)) + (1 - y) * torch.log(1 - torch.sigmoid(logits)))
    torch.testing.assert_close(t.metrics(t.initial, batch)["loss"], nll.mean(1))
    torch.testing.assert_close(t.loss(t.initial, batch, torch.tensor(3)), (torch.where(y > 0, w, 1.0) * nll).mean(1))
    assert not torch.allclose(t.loss(t.initial, batch), t.loss(t.initial, batch, torch.tensor(3)))


def test_questions_and_passages_share_ideas_but_no_word() -> None:
    d = load("synthetic:pairs", 1, topics=3, examples=200, test=30, words=20, length=6, common=0.5)
    q, p = d.train.x[:, 0], d.train.x[:, 1]
    assert (q[:, 3:] == -1).all() and (q[:, :3] % 2 == 0).all() and (p % 2 == 1).all()
    assert all(set(a[:3] // 2) <= set(b // 2) and len(set(b)) == 6 for a, b in zip(q, p, strict=True))
    topic = p // 2 // 20  # 0 is common to all
    assert ((topic == 0).sum(1) == 3).all() and (topic.max(1) == 1 + d.train.y).all()
    assert "task.data.length: 9 found" in refused("synthetic:pairs", length=9, words=8)


def test_clients_of_a_domain_are_held_out() -> None:
    changes: Any = {
        "task": {"data": {"name": "synthetic:domains", "examples": 400, "test": 100}},
        "federation": {
            "clients": 4, "per_round": None, "partition": {"kind": "natural"}, "groups": {"kind": "none"},
            "holdout": {"kind": "clients", "fraction": 0.25, "domain": "domain 1"}, "public": {"rows": 30, "domain": "domain 1"},
        },
    }  # fmt: skip
    f = toy.federation(toy.config(**changes))
    assert (
        f.population == 3
        and f.names[3] == "domain 1"
        and {f.names[c] for c in range(3)} == {"domain 0", "domain 2", "domain 3"}
    )
    assert len(f.public) == 30 and len(f.train[3]) == 70 and len(f.test[3]) == 25
    for change, says in (
        ({"holdout": {"domain": "domain 9"}}, "federation.holdout.domain: 'domain 9' found"),
        ({"holdout": {"fraction": 0.5}}, "has 1 of domain domain 1"),
        ({"partition": {"kind": "iid"}}, "under iid a client is of no domain; allowed: partition natural"),
    ):
        with pytest.raises(ConfigError, match=says):
            toy.federation(toy.config(**toy.merge(changes, {"federation": change})))
