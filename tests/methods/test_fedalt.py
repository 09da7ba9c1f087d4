"""FedALT: a client's own adapter beside the mean of the others', mixed by a gate that reads each layer's input."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from rayfed import tree
from rayfed.adapters import lora
from rayfed.engine.evaluation import Evaluation
from rayfed.methods.fedalt import mixing, own_weight
from tests import toy
from tests.tiny import WHOLE

OnBert = Callable[[dict[str, Any]], dict[str, Any]]
TWO = {"federation": {"clients": 2, "per_round": 2, "holdout": {"kind": "none"}}}


def served(done: Any, clients: list[int]) -> Any:
    shared = done.fed.method.serve(done.state)
    return done.fed.dispatch.ask(Evaluation.SERVED, clients, shared=shared, mine={}).gather("model")


def test_with_two_clients_the_rest_of_the_world_is_the_other(on_bert: OnBert) -> None:
    done = toy.simulate("fedalt", dtype="float64", **on_bert(TWO))
    kept, models = done.clients(), served(done, [0, 1])
    for i, j in ((0, 1), (1, 0)):
        torch.testing.assert_close(models[i]["rest"], kept[str(j)]["own"], rtol=1e-12, atol=1e-14)
        assert tree.same(models[i]["own"], kept[str(i)]["own"])
    assert float(tree.norm(tree.sub(kept["0"]["own"], kept["1"]["own"]))) > 1e-3


def test_the_rest_is_the_mean_of_all_others(on_bert: OnBert) -> None:
    done = toy.simulate("fedalt", rounds=3, dtype="float64", **on_bert({}))
    kept = {int(c): s["own"] for c, s in done.clients().items()}
    assert int(done.state["count"]) == len(kept) > 3
    new = next(c for c in range(6) if c not in kept) if len(kept) < 6 else None
    for c in kept:
        want = tree.map(lambda *x: sum(x) / len(x), *(o for j, o in kept.items() if j != c))
        torch.testing.assert_close(served(done, [c])[c]["rest"], want, rtol=1e-10, atol=1e-13)
    if new is not None:
        everyone = tree.map(lambda *x: sum(x) / len(x), *kept.values())
        torch.testing.assert_close(served(done, [new])[new]["rest"], everyone, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("trained", [True, False])
def test_logits_are_those_of_the_mixture(on_bert: OnBert, trained: bool) -> None:
    """With G = 0 both pairs weigh 1/2 (0 and 1 before a client has trained): put into the frozen weights by hand."""
    fed = toy.make_fed(toy.config("fedalt", dtype="float64", **on_bert({})))
    task, g = fed.task, torch.Generator().manual_seed(0)
    one, two = ({n: torch.randn(p.shape, generator=g).double() for n, p in task.params_like.items()} for _ in range(2))
    own, rest = (lora.select(t, lambda n: n not in task.head) for t in (one, two))
    head = {n: one[n] for n in task.head}
    gate = {n.a: torch.zeros(2, 16).double() for n in lora.pairs(own)}
    model = {"own": own, "rest": rest, "head": head, "gate": gate, "trained": torch.tensor(float(trained)).double()}
    merged = {**head, **{n: torch.zeros_like(p) for n, p in own.items()}}
    a = 0.5 if trained else 0.0
    for n in lora.pairs(own):
        name, _ = lora.weight_of(task, n)
        merged[name] = task.frozen[name] + 4.0 * (a * own[n.b] @ own[n.a] + (1 - a) * rest[n.b] @ rest[n.a])
    x = torch.as_tensor(fed.federation.arrays["x"][:4])
    torch.testing.assert_close(fed.method.logits(task, model, x), task.apply(merged, x), rtol=1e-9, atol=1e-9)


def test_the_gate_by_hand() -> None:
    """G = [[ln 3, 0], [0, 0]], h = (1, 5): softmax (ln 3, 0) = (3/4, 1/4); halves (2, 4) and (8, 12) become (1.5, 3) and (2, 3)."""
    gate = torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0]])
    h = torch.tensor([[1.0, 5.0]])
    assert own_weight(gate, h).tolist() == [[pytest.approx(0.75)]]
    out = mixing(gate, torch.tensor(1.0))(None, (h,), torch.tensor([[2.0, 4.0, 8.0, 12.0]]))
    torch.testing.assert_close(out, torch.tensor([[1.5, 3.0, 2.0, 3.0]]))


def test_a_client_trains_its_own_pair_gate_and_head_with_the_rest_held(on_bert: OnBert) -> None:
    """Round 2 of two clients by torch's own autograd; the gate moves, the rest does not."""
    before = toy.simulate("fedalt", rounds=1, dtype="float64", **on_bert(toy.merge(WHOLE, TWO)))
    done = toy.simulate("fedalt", rounds=2, dtype="float64", **on_bert(toy.merge(WHOLE, TWO)))
    fed, task = done.fed, done.fed.task
    kept = before.clients()
    model = served(before, [0])[0]
    params = {k: {n: p.clone() for n, p in model[k].items()} for k in ("own", "gate", "head")}
    rows = fed.federation.train[0]
    x, y = (torch.as_tensor(fed.federation.arrays[k][rows]) for k in ("x", "y"))
    for _ in range(3):
        leaves = [(k, n) for k, t in params.items() for n in t]
        here = {k: {n: p.clone().requires_grad_() for n, p in t.items()} for k, t in params.items()}
        whole = {**here, "rest": kept["1"]["own"], "trained": torch.ones(()).double()}
        loss = torch.nn.functional.cross_entropy(fed.method.logits(task, whole, x), y)
        slopes = torch.autograd.grad(loss, [here[k][n] for k, n in leaves])
        for (k, n), g in zip(leaves, slopes, strict=True):
            params[k][n] = (here[k][n] - 0.5 * g).detach()
    after = done.clients()["0"]
    for k in ("own", "gate"):
        torch.testing.assert_close(after[k], params[k], rtol=1e-8, atol=1e-10)
    assert any(bool(g.abs().max() > 1e-5) for g in after["gate"].values())


def test_what_travels_is_a_pair_and_the_head(on_bert: OnBert) -> None:
    ours, plain = (toy.simulate(m, rounds=1, **on_bert({})).rows[0] for m in ("fedalt", "fedit"))
    assert [ours[f"bytes/{way}"] for way in ("up", "down")] == [plain[f"bytes/{way}"] for way in ("up", "down")]
