"""Canaries: one direction for the whole run, or nothing."""

from __future__ import annotations

import torch

from rayfed import tree
from rayfed.attack import canary
from tests import toy
from tests.unit.attack.attacks import UPDATE, make


def test_a_canary_sends_its_direction_or_nothing() -> None:
    sent = [make("canary", norm=20.0).change(UPDATE, torch.tensor(k)) for k in range(1, 41)]
    norms = [round(float(tree.norm(s)), 4) for s in sent]
    assert set(norms) == {0.0, 20.0} and 10 <= norms.count(0.0) <= 30
    there = [s for s, n in zip(sent, norms, strict=True) if n]
    assert not tree.same(there[0], there[1])
    for k in range(1, 41):
        assert bool(canary.is_in(torch.tensor(k))) == (norms[k - 1] > 0)
        assert abs(float(tree.norm(canary.direction(UPDATE, torch.tensor(k)))) - 1) < 1e-6


def test_it_is_the_same_in_every_round() -> None:
    """All clients but one are canaries under a clip: two rounds move the model twice as far along each of their directions."""
    attacks = [{"kind": "canary", "clients": list(range(11))}]
    still = {"federation": {"per_round": None}, "local": {"optimizer": {"lr": 1e-30}}, "dtype": "float64"}
    done = [
        toy.simulate(rounds=2, until=r, attacks=attacks, transforms=[{"kind": "clip", "norm": 0.5}], **still)
        for r in (1, 2)
    ]
    first = done[0].initial["model"]
    once, twice = (tree.flatten(tree.sub(d.state["model"], first)) for d in done)
    assert float(once.norm()) > 0 and torch.allclose(twice, 2 * once, atol=1e-12)
