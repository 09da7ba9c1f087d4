"""FedMerge: G against autograd, both steps against NumPy, one model is FedProx, equal models never separate."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rayfed import tree
from rayfed.methods.fedmerge import column_shares, logit_step, merge, slopes
from tests import toy
from tests.conformance.checks import Case, loop_is_vmap, payload_is_the_wires
from tests.tiny import Watched

HEAD = ("head.weight", "head.bias")


def random(*shape: int) -> torch.Tensor:
    return torch.as_tensor(np.random.default_rng(len(shape)).normal(size=shape))


def test_g_is_the_derivative_of_the_merged_model_along_the_clients_update() -> None:
    logits, models, g = random(4, 3), random(3, 11, 1)[..., 0], random(4, 11, 1, 1)[..., 0, 0]
    logits.requires_grad_()
    merged = torch.softmax(logits, 1) @ models
    (want,) = torch.autograd.grad((merged * g).sum(), logits)
    found = slopes(torch.softmax(logits, 1).detach(), g @ (models - models[0]).T)
    torch.testing.assert_close(found, want, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.sum(1), torch.zeros(4, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("step", ["round", "client"])
def test_the_largest_logit_step_is_eta(step: str) -> None:
    g = random(4, 3)
    g[2] = 0
    moved = logit_step(g, 0.25, step)
    assert float(moved.abs().max()) == pytest.approx(0.25)
    rows = moved.abs().amax(1)
    assert rows[2] == 0 and (rows[[0, 1, 3]] == pytest.approx([0.25] * 3)) == (step == "client")
    torch.testing.assert_close(moved / g.where(g != 0, 1) > 0, g != 0)  # in the direction of g
    assert torch.equal(logit_step(torch.zeros(4, 3), 0.25, step), torch.zeros(4, 3))


def test_columns_of_the_models_weights_sum_to_one() -> None:
    w = torch.softmax(random(4, 3), 1)
    v = column_shares(w, torch.tensor([3.0, 5.0, 1.0, 9.0], dtype=torch.float64))
    torch.testing.assert_close(v.sum(0), torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(v[:, 0] / v[0, 0], (w[:, 0] * torch.tensor([3.0, 5, 1, 9])) / (w[0, 0] * 3))


@pytest.mark.parametrize("mu", [0.0, 0.25])
def test_one_model_is_fedprox_with_twice_mu(mu: float) -> None:
    one = toy.simulate({"name": "fedmerge", "models": 1, "mu": mu}, dtype="float64", executor="vmap", rounds=3)
    prox = toy.simulate({"name": "fedprox", "mu": 2 * mu}, dtype="float64", executor="vmap", rounds=3)
    torch.testing.assert_close(tree.pick(one.state["experts"], 0), prox.state["model"], rtol=0, atol=1e-13)
    assert torch.equal(one.state["logits"], torch.zeros(12, 1, dtype=torch.float64))


def test_equal_models_stay_equal_and_weights_stay_uniform() -> None:
    fed = toy.make_fed(toy.config({"name": "fedmerge", "inner": "all"}, dtype="float64"))
    start = fed.task.initial
    state = {"experts": tree.stack([start] * 3), "logits": torch.zeros(12, 3, dtype=torch.float64)}
    state["seen"] = torch.zeros(12, dtype=torch.bool)
    for r in (1, 2):
        fed.begin(r)
        state = fed.method.round(state, fed, fed.task)
    assert torch.equal(state["logits"], torch.zeros(12, 3, dtype=torch.float64))
    a, b, c = tree.unstack(state["experts"])
    assert not tree.same(a, start)
    assert tree.same(a, b) and tree.same(b, c)


def test_without_updates_nothing_changes() -> None:
    """A rate so small that no parameter moves by a bit."""
    done = toy.simulate("fedmerge", dtype="float64", local={"optimizer": {"lr": 1e-30}}, kind=Watched)
    assert not any(x.any() for got in done.fed.got for x in tree.values(got.stacked("delta")))
    assert tree.same({**done.state, "seen": done.initial["seen"]}, done.initial)


@pytest.mark.parametrize("inner", ["head", "all"])
@pytest.mark.parametrize("step", ["round", "client"])
def test_rounds_in_numpy(plain: Any, inner: str, step: str) -> None:
    """Partial participation: merged models, descent with the proximal pull, W before Theta, absent rows untouched."""
    method = {"name": "fedmerge", "models": 3, "eta_w": 0.3, "mu": 0.2, "inner": inner, "step": step, "server_lr": 0.5}
    changes = toy.merge(plain.WORK, {"task": {"model": {"name": "mlp", "hidden": [4]}}, "local": {"epochs": 1}})
    done = toy.simulate(method, rounds=3, kind=Watched, **changes)
    names = list(done.fed.task.params_like)
    flat = lambda t, pick=tuple(names): np.concatenate([t[n].numpy().reshape(-1) for n in pick])  # noqa: E731
    models = [flat(e) for e in tree.unstack(done.initial["experts"])]
    at = np.concatenate([np.full(p.numel(), n in HEAD) for n, p in done.fed.task.params_like.items()])
    inside = at if inner == "head" else np.ones_like(at)
    logits = np.zeros((12, 3))
    for draw, got in zip(done.fed.drawn, done.fed.got, strict=True):
        ids = list(draw.ids)
        w = np.exp(logits[ids]) / np.exp(logits[ids]).sum(1, keepdims=True)
        u = np.stack([flat(d) for d in tree.unstack(got.stacked("delta"))])
        merged = w @ np.stack(models)
        r = np.array([len(done.fed.federation.train[c]) for c in ids], float)
        r /= r.sum()
        g = np.zeros_like(w)
        for i in range(len(ids)):
            for j in range(3):
                g[i, j] = w[i, j] * ((models[j] - merged[i]) * -u[i])[inside].sum()
        g /= np.abs(g).sum()
        move = r[:, None] * g
        top = np.abs(move).max(1, keepdims=True) if step == "client" else np.abs(move).max()
        logits[ids] -= 0.3 * move / top
        now = np.exp(logits[ids]) / np.exp(logits[ids]).sum(1, keepdims=True)
        v = now * r[:, None]
        v /= v.sum(0)
        models = [m + 0.5 * v[:, j] @ u for j, m in enumerate(models)]
    np.testing.assert_allclose(done.state["logits"].numpy(), logits, atol=1e-9)
    took = {c for d in done.fed.drawn for c in d.ids}
    assert done.state["seen"].tolist() == [c in took for c in range(12)]
    for mine, want in zip(tree.unstack(done.state["experts"]), models, strict=True):
        np.testing.assert_allclose(flat(mine), want, atol=1e-10)


def test_a_client_trains_from_its_mixture_with_the_pull(plain: Any) -> None:
    """One softmax round: u_i is three steps from sum_j w_ij Theta_j with gradient + 2 mu (theta - theta_i)."""
    done = toy.simulate({"name": "fedmerge", "mu": 0.3}, rounds=1, kind=Watched, **plain.WORK)
    start = np.mean([plain.vector(e) for e in tree.unstack(done.initial["experts"])], axis=0)
    for c, delta in done.fed.got[0].gather("delta").items():
        theta, (x, y) = start, plain.data(done.fed, c)
        for _ in range(plain.STEPS):
            theta = theta - plain.LR * (plain.gradient(theta, x, y) + 0.6 * (theta - start))
        np.testing.assert_allclose(plain.vector(delta), theta - start, atol=1e-12)


def test_one_model_goes_down_whatever_there_are() -> None:
    average = toy.simulate("fedavg", rounds=1).rows[0]
    for j in (1, 4):
        row = toy.simulate({"name": "fedmerge", "models": j}, rounds=1).rows[0]
        assert row["bytes/down"] == average["bytes/down"]
        assert row["bytes/up"] == average["bytes/up"]  # an update and n_i


def test_planted_groups_prefer_different_models(split: Any) -> None:
    """Opposite labels on like inputs: one linear model cannot serve both."""
    rng = np.random.default_rng(0)
    xs = [rng.normal(size=(48, 8)) for _ in range(8)]
    group = [0, 1, 1, 0, 1, 0, 0, 1]
    split(xs, [(x[:, 0] > 0).astype(int) ^ g for x, g in zip(xs, group)], group=group)
    everyone = {"clients": 8, "per_round": None, "holdout": {"kind": "none"}}
    method = {"name": "fedmerge", "models": 2, "eta_w": 0.5}
    done = toy.simulate(method, rounds=8, executor="vmap", federation=everyone, task={"model": "linear"})
    score = done.scores()[0]
    assert score["clusters/ari"] == 1.0 and score["accuracy/personal"] > 0.85
    assert done.rows[-1]["weights/cosine_within"] > 0.95 > done.rows[-1]["weights/cosine_across"] + 0.2
    alone = toy.simulate("fedavg", rounds=8, executor="vmap", federation=everyone, task={"model": "linear"})
    assert score["accuracy/personal"] > alone.scores()[0]["accuracy/personal"] + 0.2


@pytest.mark.parametrize("newcomers", ["uniform", "least_loss"])
def test_newcomers(plain: Any, newcomers: str) -> None:
    done = toy.simulate({"name": "fedmerge", "newcomers": newcomers}, rounds=2, **plain.WORK)
    models = [plain.vector(e) for e in tree.unstack(done.state["experts"])]
    unseen = [r for r in done.scores()[1] if r["unseen"]]
    assert len(unseen) == 2
    for row in unseen:
        train, test = (plain.data(done.fed, row["client"], s) for s in ("train", "test"))
        best = min(models, key=lambda m: plain.loss(m, *train))
        served = best if newcomers == "least_loss" else np.mean(models, axis=0)
        assert row["loss"] == pytest.approx(plain.loss(served, *test), abs=1e-12)
    known = [r for r in done.scores()[1] if not r["unseen"] and done.state["seen"][r["client"]]]
    assert len(known) > 6
    for row in known:
        w = torch.softmax(done.state["logits"][row["client"]], 0).numpy()
        want = plain.loss(w @ np.stack(models), *plain.data(done.fed, row["client"], "test"))
        assert row["loss"] == pytest.approx(want, abs=1e-12)


def test_merge_is_the_weighted_sum() -> None:
    models = {"a": random(3, 2, 2), "b": random(3, 1)}
    w = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    got = merge(w, models)
    np.testing.assert_allclose(got["a"], np.einsum("j,jab->ab", w, models["a"]))
    assert got["b"].shape == (1,)


@pytest.mark.parametrize("check", [loop_is_vmap, payload_is_the_wires], ids=lambda c: c.__name__)
def test_with_adapters(on_bert: Callable[[dict[str, Any]], dict[str, Any]], check: Any, tmp_path: Path) -> None:
    check(Case({"name": "fedmerge", "models": 2}, on_bert({})), tmp_path)
