"""Attacks on updates in a run: attackers send what the attack makes of their honest updates, the others what they always send."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rayfed import attack, keys, tree
from rayfed.engine.attackers import Attackers
from rayfed.wire import PARAMS, Part, Wire
from tests import toy
from tests.conformance import checks
from tests.conformance.checks import Case
from tests.toy import SimPool
from tests.unit.attack.test_attack import KINDS
from tests.unit.engine.test_ruling import CLIENTS, WIDE, asked

THEIRS = [2, 7, 11]
ON_UPDATES = sorted(k for k in KINDS if k not in ("label_flip", "trigger", "corrupt"))


def rows_of(got: Any) -> dict[int, dict[str, torch.Tensor]]:
    return got.gather("delta")


@pytest.mark.parametrize("kind", ON_UPDATES)
@pytest.mark.parametrize("wide", [False, True])
def test_attackers_send_what_the_attack_makes_of_their_updates(kind: str, wide: bool) -> None:
    more, spec = (WIDE if wide else {}), {"kind": kind, "clients": THEIRS}
    _, honest = asked(None, **more)
    fed, got = asked(None, SimPool(3, 2), attacks=[spec], **more)
    made = attack.of(fed.config)[0]
    before, after = rows_of(honest), rows_of(got)
    together = {n: torch.stack([before[c][n] for c in THEIRS]) for n in before[2]}
    for c in CLIENTS:
        if c not in THEIRS:
            assert tree.same(after[c], before[c])
        elif made.place == "craft":
            wanted = tree.map(lambda x: made.craft(x.flatten(1), len(CLIENTS)).reshape(x.shape[1:]), together)
            assert all(torch.allclose(after[c][n], x, atol=1e-6) for n, x in wanted.items())
        else:
            dispatch = 0 if made.lasting else (fed.round << 20) + 1
            key = torch.tensor(keys.key(fed.config.seed, dispatch, c, "attack 0 on delta"))
            assert tree.same(after[c], made.change(before[c], key))


def test_colluders_train_once_more_without_a_trace() -> None:
    """Client states, visits, bytes and what is scored are those of one visit each."""
    spec = [{"kind": "inner_product", "clients": THEIRS}]
    honest, attacked = (toy.simulate("scaffold", executor="vmap", attacks=a, rounds=1) for a in ([], spec))
    assert (
        honest.rows[0]["visits"] == attacked.rows[0]["visits"]
        and honest.rows[0]["bytes/up"] == attacked.rows[0]["bytes/up"]
    )
    assert tree.same(honest.clients(), attacked.clients())  # c_i follow from the honest training
    assert not tree.same(honest.state, attacked.state)


def test_attacks_follow_each_other() -> None:
    """A sign flip and a scaling by the same clients multiply."""
    both = [{"kind": "sign", "clients": THEIRS}, {"kind": "scale", "clients": THEIRS, "factor": 4.0}]
    before, after = (rows_of(asked(None, attacks=a)[1]) for a in ([], both))
    assert tree.same(after[7], tree.scale(before[7], -4.0)) and tree.same(after[0], before[0])


def test_running_statistics_are_sent_as_they_are() -> None:
    config: Any = toy.config(attacks=[{"kind": "sign", "clients": [1]}])
    method: Any = SimpleNamespace(wire=Wire(up={"delta": Part(PARAMS, update=True), "n": Part(PARAMS)}))
    made = Attackers.of(config, method, SimpleNamespace(buffers=("mean", "count")))  # type: ignore[arg-type]
    assert made is not None
    parts = {
        "delta": {"w": torch.ones(2, 3), "mean": torch.ones(2, 3), "count": torch.ones(2, dtype=torch.int64)},
        "n": {"w": torch.ones(2)},
    }
    sent = made.attack(parts, [0, 1], 5, {})
    assert sent["delta"]["w"].tolist() == [[1, 1, 1], [-1, -1, -1]] and sent["delta"]["mean"] is parts["delta"]["mean"]
    assert sent["n"] is parts["n"] and parts["delta"]["w"].tolist() == [[1] * 3] * 2


def test_colluders_who_have_agreed_on_nothing_send_what_is_theirs() -> None:
    """All of them have failed when they were asked first."""
    config: Any = toy.config(attacks=[{"kind": "inner_product", "clients": [1]}])
    method: Any = SimpleNamespace(wire=Wire(up={"delta": Part(PARAMS, update=True)}))
    made = Attackers.of(config, method, SimpleNamespace(buffers=()))  # type: ignore[arg-type]
    parts = {"delta": {"w": torch.ones(2, 3)}}
    assert made is not None and tree.same(made.attack(parts, [0, 1], 5, {}), parts)


def test_noise_is_drawn_where_the_updates_are() -> None:
    config: Any = toy.config(attacks=[{"kind": "noise", "clients": [1]}])
    method: Any = SimpleNamespace(wire=Wire(up={"delta": Part(PARAMS, update=True)}))
    made = Attackers.of(config, method, SimpleNamespace(buffers=()))  # type: ignore[arg-type]
    assert made is not None
    sent = made.attack({"delta": {"w": torch.ones(2, 3, device="meta")}}, [0, 1], 5, {})
    assert sent["delta"]["w"].is_meta


def test_success_of_a_backdoor_is_scored_on_honest_clients() -> None:
    """A model that always says the target has success 1; the scope is of marked rows of the other classes only."""
    spec = [{"kind": "trigger", "clients": 2, "target": 1}]
    done = toy.simulate("fedavg", executor="vmap", attacks=spec)
    row, _ = done.scores()
    assert 0 <= row["accuracy/backdoor"] <= 1 and row["loss/backdoor"] > 0
    always = tree.map(torch.zeros_like, done.state["model"])
    last = [n for n, x in always.items() if x.shape == (4,)][-1]
    always[last] = torch.tensor([0.0, 9.0, 0.0, 0.0])
    row, _ = done._replace(state={"model": always}).scores()
    assert row["accuracy/backdoor"] == row["accuracy/backdoor_ex"] == 1.0
    assert "accuracy/backdoor" not in toy.simulate("fedavg").scores()[0]


def test_a_backdoor_is_learned_and_bounded() -> None:
    """With three of twelve attackers who scale their update the mark works; with bounded norms it works less."""
    spec = [{"kind": "trigger", "clients": 3, "target": 1, "size": 3}, {"kind": "scale", "clients": 3, "factor": 5.0}]
    more = {"rounds": 8, "federation": {"per_round": None, "groups": {"kind": "none", "count": 1}}, "attacks": spec}
    free, bounded = (
        toy.simulate("fedavg", executor="vmap", aggregate=a, **more).scores()[0]["accuracy/backdoor"]
        for a in ({"kind": "mean"}, {"kind": "norm_bound", "norm": 0.3})
    )
    assert free > 0.8 and bounded < free - 0.2


CASE = Case(
    "fedavg",
    {
        "attacks": [
            {"kind": "trigger", "clients": 3, "target": 1}, {"kind": "little_is_enough", "clients": 3},
            {"kind": "noise", "clients": 1, "size": 0.01, "add": True},
        ]
    },
)  # fmt: skip


@pytest.mark.parametrize(
    "check",
    [
        checks.two_rounds_run, checks.loop_is_vmap, checks.resumes, checks.order_and_workers_change_nothing,
        checks.lost_calls_change_nothing, checks.again_is_the_same, checks.payload_is_the_wires,
    ],
    ids=lambda c: c.__name__,
)  # fmt: skip
def test_conformance_under_attack(check: Any, tmp_path: Any) -> None:
    check(CASE, tmp_path)
