"""FedPuReL: gradients without what speaks against the start's predictions, then a private residual on the logits."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import rayfed
from rayfed import tree
from rayfed.engine.evaluation import Evaluation
from rayfed.methods.fedpurel import entropy, pull, purified, temperature
from rayfed.task import Task
from tests import toy
from tests.methods.conftest import Plain, Split

PLAIN = {"name": "fedpurel", "everyone_first": False}


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def entropies(z: np.ndarray) -> np.ndarray:
    p = softmax(z)
    return -(p * np.log(p)).sum(-1)


def random_logits(n: int, classes: int, seed: int, spread: float = 2.0) -> torch.Tensor:
    return torch.as_tensor(np.random.default_rng(seed).normal(size=(n, classes)) * spread)


def test_temperatures_give_the_wanted_entropy() -> None:
    z, other = random_logits(200, 7, 0), random_logits(200, 7, 1, 1.0)
    target = (entropy(z) + entropy(other)) / 2
    for logits in (z, other):
        tau = temperature(logits, target)
        inside = ((tau > 0.051) & (tau < 19.9)).numpy()
        assert inside.sum() > 190
        assert np.abs(entropies((logits / tau[:, None]).numpy()) - target.numpy())[inside].max() < 1e-3
    np.testing.assert_allclose(temperature(z, entropy(z)), 1.0, atol=1e-4)
    assert float(temperature(z, torch.full((200,), 9.0, dtype=z.dtype)).min()) > 19.9  # more than log C


@pytest.mark.parametrize("tempered", [True, False])
def test_the_pull_is_the_gradient_of_kl(tempered: bool) -> None:
    """Against autograd of KL(softmax(z / tau_z) || softmax(l / tau_l)) with the temperatures held."""
    z, tuned = random_logits(5, 4, 2), random_logits(5, 4, 3)
    target = (entropy(z) + entropy(tuned)) / 2
    taus = [temperature(t, target)[:, None] if tempered else torch.ones(5, 1) for t in (z, tuned)]
    live = tuned.clone().requires_grad_()
    kl = torch.nn.functional.kl_div(
        torch.log_softmax(live / taus[1], -1), torch.softmax(z / taus[0], -1), reduction="sum"
    )
    (want,) = torch.autograd.grad(kl, live)
    got = torch.func.grad(lambda t: pull(z, t, tempered).sum())(tuned)
    torch.testing.assert_close(got, want.to(got.dtype), rtol=1e-6, atol=1e-9)
    assert float(want.norm()) > 0.1


def test_equal_logits_pull_nowhere() -> None:
    for dtype in (torch.float32, torch.float64):
        z = random_logits(50, 10, 4).to(dtype)
        noisy = z + (torch.rand(50, 10) - 0.5).to(dtype) * torch.finfo(dtype).eps
        assert not torch.func.grad(lambda t, z=z: pull(z, t, True).sum())(noisy).any()
    g = {"a": torch.tensor([1.0, -2.0])}
    assert tree.same(purified(g, tree.zeros(g), 1.0, "per_tensor"), g)


def test_conflicts_are_projected_away_tensor_by_tensor() -> None:
    rng = np.random.default_rng(5)
    t, a = ({n: torch.as_tensor(rng.normal(size=s)) for n, s in (("x", (3, 4)), ("y", 6), ("z", 5))} for _ in range(2))
    a["x"], a["y"] = a["x"] - 2 * t["x"], a["y"] + 2 * t["y"]
    a["z"] = torch.zeros_like(a["z"])
    got = purified(t, a, 1.0, "per_tensor")
    inner = (t["x"] * a["x"]).sum()
    assert inner < 0 and (t["y"] * a["y"]).sum() > 0
    assert abs(float((got["x"] * a["x"]).sum())) < 1e-9
    torch.testing.assert_close(got["x"], t["x"] - inner / (a["x"] ** 2).sum() * a["x"])
    assert tree.same({n: got[n] for n in "yz"}, {n: t[n] for n in "yz"})
    assert tree.same(purified(t, a, 0.0, "per_tensor"), t)
    flat_t, flat_a = tree.flatten(t), tree.flatten(a)
    want = flat_t - min(0.0, float(flat_t @ flat_a)) / (flat_a @ flat_a) * flat_a
    torch.testing.assert_close(tree.flatten(purified(t, a, 1.0, "global")), want)


@pytest.mark.parametrize("within", ["constant", "linear"])
def test_without_strength_stage_one_is_fedavg(within: str) -> None:
    more = {"local": {"schedule": {"within": within}}}
    ours = toy.simulate({**PLAIN, "strength": 0.0}, **more)
    assert tree.same(ours.state["model"], toy.simulate("fedavg", **more).state["model"])
    assert not tree.same(ours.state["model"], toy.simulate(PLAIN, **more).state["model"])


@pytest.mark.parametrize("projection", ["per_tensor", "global"])
def test_two_rounds_by_numpy(plain: type[Plain], projection: str) -> None:
    """Softmax regression, KL, both stages, whole batches; the projection acts in round 2 (in round 1 from step 2 on)."""
    settings = {**PLAIN, "align": "kl", "projection": projection, "fusion": 0.7}
    done = toy.simulate(settings, **plain.WORK)
    fed, first = done.fed, plain.vector(done.initial["model"])
    classes = fed.task.classes
    cut = len(first) - classes
    pieces = [slice(0, cut), slice(cut, None)] if projection == "per_tensor" else [slice(None)]

    def back(d: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Gradient of a mean whose gradient in the logits is d (n, C) per example."""
        return np.concatenate([(d.T @ x).ravel(), d.sum(0)]) / len(x)

    def logits(p: np.ndarray, x: np.ndarray) -> np.ndarray:
        return x @ p[:-classes].reshape(classes, -1).T + p[-classes:]

    own: dict[int, np.ndarray] = {}
    g, conflicts = first, 0
    for draw in fed.drawn:
        trained, sizes = [], []
        for c in draw.ids:
            x, y = plain.data(fed, c)
            p = g
            for _ in range(plain.STEPS):
                t, a = plain.gradient(p, x, y), back(softmax(logits(p, x)) - softmax(logits(first, x)), x)
                step = t.copy()
                for s in pieces:
                    if t[s] @ a[s] < 0:
                        step[s] = t[s] - (t[s] @ a[s]) / (a[s] @ a[s]) * a[s]
                        conflicts += 1
                p = p - plain.LR * step
            trained.append(p)
            sizes.append(len(y))
        g = np.average(trained, 0, sizes)
        for c in draw.ids:
            x, y = plain.data(fed, c)
            p, hot = own.get(c, first), np.eye(classes)[y]
            for _ in range(plain.STEPS):
                alone, both = logits(p, x), logits(g, x) + logits(p, x)
                p = p - plain.LR * back(0.7 * (softmax(alone) - hot) + 0.3 * (softmax(both) - hot), x)
            own[c] = p
    assert conflicts > 10
    np.testing.assert_allclose(plain.vector(done.state["model"]), g, rtol=1e-7, atol=1e-9)
    assert {int(c) for c in done.clients()} == set(own)
    for who, kept in done.clients().items():
        np.testing.assert_allclose(plain.vector(kept["own"]), own[int(who)], rtol=1e-7, atol=1e-9)


def test_all_clients_take_part_at_first() -> None:
    done = toy.simulate("fedpurel")
    assert [len(d.ids) for d in done.fed.drawn] == [12, 7] and len(done.clients()) == 12
    assert [len(d.ids) for d in toy.simulate(PLAIN).fed.drawn] == [7, 7]


def test_what_is_served_is_the_sum_of_two_models_logits(split: Split) -> None:
    """Personal scores by NumPy; a private model whose logits are zero leaves the global one."""
    done = toy.simulate(PLAIN)
    fed, task = done.fed, done.fed.task
    c = int(next(iter(done.clients())))
    served = fed.dispatch.ask(Evaluation.SERVED, [c], shared=fed.method.serve(done.state), mine={}).gather("model")[c]
    rows = fed.federation.test[c]
    x, y = (torch.as_tensor(fed.federation.arrays[k][rows]) for k in ("x", "y"))
    both = task.apply(done.state["model"], x) + task.apply(done.clients()[str(c)]["own"], x)
    torch.testing.assert_close(fed.method.logits(task, served, x), both)
    row = next(r for r in done.scores()[1] if r["client"] == c)
    assert row["accuracy"] == pytest.approx(float((both.argmax(-1) == y).double().mean()))
    silent = {**served, "own": tree.zeros(served["own"])}
    torch.testing.assert_close(fed.method.logits(task, silent, x), task.apply(done.state["model"], x))


def test_from_python_and_after_fine_tuning(tmp_path: Path) -> None:
    """A run's personal model can be called; what it answers is what was scored; `own` is what fine-tuning trains."""
    ran = toy.run_folder(PLAIN, tmp_path, evaluate={"finetune_epochs": 3})
    loaded = rayfed.load(ran.folder.path)
    assert isinstance(loaded, rayfed.Run)
    model = loaded.model(client=0)
    split = toy.federation(toy.config(PLAIN))
    x, y = (split.arrays[k][split.test[0]] for k in ("x", "y"))
    row = next(r for r in ran.client_rows if r["client"] == 0 and r["round"] == 2)
    assert float((model(x).argmax(-1).numpy() == y).mean()) == pytest.approx(row["accuracy"])
    with pytest.raises(TypeError, match="no single module but a tree of shared, own"):
        model.module()
    last = ran.rows[-1]
    assert last["loss/local"] < last["loss/personal"]


OnBert = Callable[[dict[str, Any]], dict[str, Any]]


def test_adapters_are_purified_too(on_bert: OnBert) -> None:
    ours = toy.simulate({**PLAIN, "strength": 0.0}, **on_bert({}))
    assert tree.same(ours.state["model"], toy.simulate("fedavg", **on_bert({})).state["model"])
    assert not tree.same(ours.state["model"], toy.simulate(PLAIN, **on_bert({})).state["model"])


def test_dropout_acts_in_stage_two(on_bert: OnBert) -> None:
    """With `fusion: 1` what a client keeps does not depend on phi_g, so whatever moves it is stage 2's own."""
    spec = {**PLAIN, "fusion": 1.0}
    plain, dropped = (toy.simulate(spec, rounds=1, **on_bert({"adapter": {"dropout": p}})) for p in (0.0, 0.25))
    assert plain.clients().keys() == dropped.clients().keys()
    for c, kept in plain.clients().items():
        went = float(tree.norm(tree.sub(kept["own"], plain.initial_clients()[c]["own"])))
        assert went > 1e-3 and float(tree.norm(tree.sub(dropped.clients()[c]["own"], kept["own"]))) > 1e-3 * went


@pytest.mark.parametrize("dropout", [0.0, 0.25])
def test_only_what_trains_is_dropped(on_bert: OnBert, dropout: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every pass that is differentiated draws from the step's key; those of the start and of phi_g in stage 2 do not."""
    seen: list[tuple[bool, bool]] = []
    real = Task.apply

    def apply(self: Task, params: Any, x: Any) -> Any:
        seen.append((any(p.requires_grad for p in params.values()), self._during["step"] is not None))
        return real(self, params, x)

    monkeypatch.setattr(Task, "apply", apply)
    done = toy.simulate(PLAIN, executor="debug", rounds=1, **on_bert({"adapter": {"dropout": dropout}}))
    steps = 2 * len(done.fed.drawn[0].ids)
    assert seen.count((True, True)) == 3 * steps  # l for the loss, l for the pull; l(x; phi_i)
    assert seen.count((False, False)) == 2 * steps and len(seen) == 5 * steps  # z; l(x; phi_g)


def test_without_dropout_keys_change_no_bit(on_bert: OnBert, monkeypatch: pytest.MonkeyPatch) -> None:
    one = toy.simulate(PLAIN, **on_bert({}))
    monkeypatch.setattr(Task, "training", lambda self, batch, key: nullcontext())
    two = toy.simulate(PLAIN, **on_bert({}))
    assert tree.same(one.state, two.state) and tree.same(one.clients(), two.clients())
