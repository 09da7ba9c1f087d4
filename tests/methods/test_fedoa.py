"""FedOA: the global half is FedAvg's to the bit, the personal half against torch's autograd, features and their gradients."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from rayfed import tree
from rayfed.engine.evaluation import Evaluation
from rayfed.errors import ConfigError
from rayfed.launch.federations import Federations
from rayfed.methods.fedoa import GAPS
from tests import toy
from tests.conformance.checks import Case, loop_is_vmap, payload_is_the_wires

OnBert = Callable[[dict[str, Any]], dict[str, Any]]
WHOLE: dict[str, Any] = {"executor": "vmap", "dtype": "float64", "local": {"batch_size": 64}}


def forward(p: dict[str, torch.Tensor], x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(features, logits) of the toy's network, layer by layer."""
    h = torch.relu(x @ p["body.0.weight"].T + p["body.0.bias"])
    return h, h @ p["head.weight"].T + p["head.bias"]


def descend(
    fed: Any, client: int, params: tree.Tree, reference: tree.Tree | None, lam: float, kind: str, steps: int = 2
) -> tree.Tree:
    """Whole-batch steps on cross-entropy + lam norm, or + lam / 2 of another gap, by torch's own autograd."""
    rows = fed.federation.train[client]
    x, y = torch.as_tensor(fed.federation.arrays["x"][rows]).double(), torch.as_tensor(fed.federation.arrays["y"][rows])
    here = {n: p.clone().requires_grad_() for n, p in params.items()}
    for _ in range(steps):
        h, logits = forward(here, x)
        loss = F.cross_entropy(logits, y)
        if reference is not None:
            other = forward(reference, x)[0]
            if kind == "norm":
                loss = loss + lam * (h - other).norm() if bool((h != other).any()) else loss
            elif kind == "squared":
                loss = loss + lam / 2 * ((h - other) ** 2).sum(1).mean() / h.shape[1]
            elif kind == "cosine":
                loss = loss + lam / 2 * (1 - (h * other).sum(1) / h.norm(dim=1) / other.norm(dim=1)).mean()
            elif kind == "class_means":
                n = len(y)
                for c in y.unique():
                    apart = (h - other)[y == c].mean(0)
                    loss = loss + lam / 2 * int((y == c).sum()) / n * (apart**2).mean()
            else:
                loss = loss + lam / 2 * sum(((here[k] - reference[k]) ** 2).sum() for k in here)
        for p, g in zip(here.values(), torch.autograd.grad(loss, list(here.values())), strict=True):
            p.data -= 0.1 * g
    return {n: p.detach() for n, p in here.items()}


@pytest.mark.parametrize("lam", [0.0, 3.0])
@pytest.mark.parametrize("executor", ["loop", "vmap"])
def test_the_global_half_is_fedavg_to_the_bit(lam: float, executor: str) -> None:
    average = toy.simulate("fedavg", executor=executor)
    for more in ({}, {"personal_first": False, "pooled": True, "gap": "squared", "personal_from": 1}):
        mine = toy.simulate({"name": "fedoa", "lam": lam, "weight": "examples", **more}, executor=executor)
        assert tree.same(mine.state["model"], average.state["model"])
        for a, b in zip(mine.rows, average.rows, strict=True):
            assert {k: a[k] for k in ("bytes/up", "bytes/down", "visits")} == {
                k: b[k] for k in ("bytes/up", "bytes/down", "visits")
            }


def test_the_global_half_is_fedit_to_the_bit(on_bert: OnBert) -> None:
    mine, it = (toy.simulate(m, **on_bert({})) for m in ({"name": "fedoa", "lam": 1.0, "weight": "examples"}, "fedit"))
    assert tree.same(mine.state["model"], it.state["model"])


@pytest.mark.parametrize("kind", ["norm", "squared", "cosine", "class_means", "weights"])
@pytest.mark.parametrize("first", [True, False])
def test_rounds_by_autograd(kind: str, first: bool) -> None:
    """Partial participation: a personal model starts as the first global model its client received and is kept."""
    method = {
        "name": "fedoa", "gap": kind, "lam": 2.0, "personal_first": first, "start": "received", "personal_from": 1,
        "weight": "examples",
    }  # fmt: skip
    done = toy.simulate(method, rounds=3, **WHOLE)
    fed, phi, theta = done.fed, done.initial["model"], {}
    for draw in fed.drawn:
        trained = {c: descend(fed, c, phi, None, 0, "") for c in draw.ids}
        for c in draw.ids:
            theta[c] = descend(fed, c, theta.get(c, phi), phi if first else trained[c], 2.0, kind)
        n = {c: len(fed.federation.train[c]) for c in draw.ids}
        phi = {k: sum(n[c] * trained[c][k] for c in draw.ids) / sum(n.values()) for k in phi}
    torch.testing.assert_close(done.state["model"], phi, rtol=0, atol=1e-11)
    assert {int(c) for c in done.clients()} == set(theta)
    for c, kept in done.clients().items():
        torch.testing.assert_close(kept["personal"], theta[int(c)], rtol=0, atol=1e-10)


def test_by_default_it_is_the_published_method() -> None:
    """By autograd: equal weights; no personal model in round 1; from round 2 on from the run's first model, towards phi as
    received, by half the norm of the whole batch's difference."""
    done = toy.simulate("fedoa", rounds=3, **toy.merge(WHOLE, {"federation": {"per_round": 4}}))
    fed, first, theta = done.fed, done.initial["model"], {}
    phi = first
    for r, draw in enumerate(fed.drawn, 1):
        for c in draw.ids if r > 1 else ():
            theta[c] = descend(fed, c, theta.get(c, first), phi, 0.5, "norm")
        trained = [descend(fed, c, phi, None, 0, "") for c in draw.ids]
        phi = {k: sum(t[k] for t in trained) / len(trained) for k in phi}
    torch.testing.assert_close(done.state["model"], phi, rtol=0, atol=1e-11)
    once = {c for d in fed.drawn for c in d.ids} - set(theta)
    assert once, "nobody took part in round 1 alone"
    for c, kept in done.clients().items():
        assert kept["visited"] == (int(c) in theta)
        torch.testing.assert_close(kept["personal"], theta.get(int(c), first), rtol=0, atol=1e-10)


@pytest.mark.parametrize("gap", ["norm", "squared", "weights"])
def test_lam_zero_is_training_alone(gap: str) -> None:
    """From the initial model a personal model then depends on no other client, though the rounds' global models do."""
    method = {"name": "fedoa", "lam": 0.0, "gap": gap, "personal_from": 1}
    done = toy.simulate(method, rounds=3, **WHOLE)
    for c, kept in done.clients().items():
        steps = 2 * sum(int(c) in d.ids for d in done.fed.drawn)
        alone = descend(done.fed, int(c), done.initial["model"], None, 0, "", steps)
        torch.testing.assert_close(kept["personal"], alone, rtol=0, atol=1e-11)
    assert max(sum(int(c) in d.ids for d in done.fed.drawn) for c in done.clients()) > 1


@pytest.mark.parametrize("kind", sorted(GAPS))
def test_gaps_and_their_gradients(kind: str) -> None:
    """Zero with zero gradient at the reference; none to the reference anywhere; positive elsewhere."""
    rng = np.random.default_rng(0)
    h, other = (torch.as_tensor(rng.normal(size=(6, 5))).requires_grad_() for _ in range(2))
    batch = {"y": torch.tensor([0, 1, 1, 2, 2, 0]), "w": torch.tensor([1.0, 1, 1, 1, 0, 0]), "classes": 3}
    away = (GAPS[kind](h, other, batch) * batch["w"]).sum()
    away.backward()
    assert float(away.detach()) > 0 and h.grad is not None and bool(h.grad.any()) and other.grad is None
    assert not h.grad[4:].any()  # padding
    same = h.detach().clone().requires_grad_()
    here = (GAPS[kind](same, h.detach(), batch) * batch["w"]).sum()
    here.backward()
    assert float(here.detach()) == pytest.approx(0, abs=1e-15)
    torch.testing.assert_close(same.grad, torch.zeros_like(same), rtol=0, atol=1e-15)


def test_features_count_per_entry() -> None:
    """By hand: (3^2 + 4^2) / 2 and (1 - cos 90 degrees); twice the width with the same entries is the same."""
    h, other = torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 4.0]])
    assert GAPS["squared"](h, other, {}).tolist() == [12.5]
    assert GAPS["cosine"](h, other, {}).tolist() == [1.0]
    assert GAPS["squared"](h.repeat(1, 2), other.repeat(1, 2), {}).tolist() == [12.5]


def test_the_norm_is_of_the_whole_batch() -> None:
    """By hand: H = (3, 0; 0, 0) and H' = (0, 0; 0, 4) are 5 apart, not 3 + 4 and not 3.5, with gradient (0.6, 0; 0, -0.8); a row
    that pads does not count."""
    h = torch.tensor([[3.0, 0.0], [0.0, 0.0], [9.0, 9.0]], requires_grad=True)
    other, w = torch.tensor([[0.0, 0.0], [0.0, 4.0], [0.0, 0.0]]), torch.tensor([1.0, 1.0, 0.0])
    found = GAPS["norm"](h, other, {"w": w})
    assert found.tolist() == [5.0] * 3
    ((found * w).sum() / w.sum()).backward()
    torch.testing.assert_close(h.grad, torch.tensor([[0.6, 0.0], [0.0, -0.8], [0.0, 0.0]]))


def test_what_is_served() -> None:
    done = toy.simulate({"name": "fedoa", "personal_from": 1}, rounds=2, **WHOLE)
    fed, kept = done.fed, done.clients()
    everyone = list(range(14))
    served = fed.dispatch.ask(Evaluation.SERVED, everyone, shared=fed.method.serve(done.state), mine={}).gather("model")
    assert 0 < len(kept) < 14
    for c in everyone:
        want = kept[str(c)]["personal"] if str(c) in kept else done.state["model"]
        assert tree.same({n: served[c][n] for n in want}, want)


def test_personal_epochs_are_the_personal_models_alone() -> None:
    method = {"name": "fedoa", "lam": 0.0, "personal_epochs": 5, "personal_from": 1}
    done = toy.simulate(method, rounds=1, **WHOLE)
    for c, kept in done.clients().items():
        want = descend(done.fed, int(c), done.initial["model"], None, 0, "", 5)
        torch.testing.assert_close(kept["personal"], want, rtol=0, atol=1e-11)


def test_pooled_accuracy() -> None:
    done = toy.simulate({"name": "fedoa", "pooled": True}, rounds=2, **WHOLE)
    fed = done.fed
    rows = fed.federation.pooled_test
    x, y = torch.as_tensor(fed.federation.arrays["x"][rows]).double(), torch.as_tensor(fed.federation.arrays["y"][rows])
    right = [
        float((forward(done.clients()[str(c)]["personal"], x)[1].argmax(1) == y).double().mean())
        for c in fed.drawn[-1].ids
    ]
    assert done.rows[-1]["accuracy/pooled"] == pytest.approx(np.mean(right))
    plain = toy.simulate("fedoa", rounds=2, **WHOLE)
    assert "accuracy/pooled" not in plain.rows[-1]
    assert tree.same(plain.state, done.state) and tree.same(plain.clients(), done.clients())


def test_clients_of_two_ranks(on_bert: OnBert) -> None:
    """Features do not depend on the adapter's structure: a client of rank 2 and one of rank 8 both follow the global one."""
    changes = on_bert({"adapter": {"rank": {2: 0.5, 8: 0.5}}, "federation": {"per_round": None}})
    done = toy.simulate({"name": "fedoa", "lam": 1.0}, **changes)
    held = {
        int((kept["personal"][n].abs().sum(1) > 0).sum())
        for kept in done.clients().values()
        for n in kept["personal"]
        if "lora_A" in n
    }
    assert held == {2, 8} and all(tree.finite(k) for k in done.clients().values())


def test_texts_are_compared_by_their_last_token(on_bert: OnBert) -> None:
    """The last layer's state at the last token, as transformers gives it to each text alone; with `pool: head` the classifier's
    input. On other data there is no token to read."""
    from transformers import AutoModel

    fed = toy.make_fed(toy.config("fedoa", **on_bert({})))
    x = torch.as_tensor(fed.federation.arrays["x"][:8])
    plain = AutoModel.from_pretrained(fed.config.task.model.name.removeprefix("hf:")).eval()
    found = fed.task.last_token(fed.task.initial, x)
    for h, row in zip(found, x.long(), strict=True):
        with torch.no_grad():
            states = plain(input_ids=row[row >= 0][None]).last_hidden_state
        torch.testing.assert_close(h, states[0, -1], rtol=1e-5, atol=1e-5)
    runs = [toy.simulate({"name": "fedoa", "lam": 5.0, "pool": p}, **on_bert({})) for p in (None, "last", "head")]
    assert tree.same(runs[0].clients(), runs[1].clients()) and not tree.same(runs[0].clients(), runs[2].clients())
    with pytest.raises(ConfigError, match=r"method.pool: last found, .* allowed here: head"):
        Federations().of(toy.config({"name": "fedoa", "pool": "last"}))


@pytest.mark.parametrize("check", [loop_is_vmap, payload_is_the_wires], ids=lambda c: c.__name__)
def test_with_adapters(on_bert: OnBert, check: Any, tmp_path: Path) -> None:
    check(Case({"name": "fedoa"}, on_bert({})), tmp_path)
