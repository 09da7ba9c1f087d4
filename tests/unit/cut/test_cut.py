"""Cuts: the split network is the whole one, what crosses is counted, and what transforms do to it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rayfed import cut, keys, tree
from rayfed.errors import ConfigError
from rayfed.training import gradient
from tests import toy
from tests.configs import refusal

NONE: dict[str, Any] = {
    "groups": {"kind": "none", "count": 1},
    "clients": 4,
    "per_round": 2,
    "holdout": {"kind": "none"},
}
IMAGES: dict[str, Any] = {"data": {"name": "synthetic:images", "examples": 64, "classes": 4, "size": 8, "test": 16}}
VIT = {**IMAGES, "model": {"name": "vit-tiny", "dim": 8, "depth": 3, "heads": 2, "patch": 4}}
MLP = {"model": {"name": "mlp", "hidden": [6, 5]}}
MODELS = {  # model, its two cuts
    "mlp": (MLP, ["body.1", "body"]),
    "cnn": ({**IMAGES, "model": "cnn"}, ["conv1", "fc"]),
    "vit": (VIT, ["blocks.0", "blocks.1"]),
}


def task_of(task: dict[str, Any], **split: Any) -> Any:
    made = {**task, "split": split} if split else task
    return toy.make_fed(toy.config("fedavg", dtype="float64", task=made, federation=NONE)).task


def batch_of(task: Any, rows: int = 5) -> dict[str, Any]:
    x = keys.uniform(torch.tensor(3), (rows, *task.input_shape), task.dtype)
    w = torch.ones(rows, dtype=task.dtype)
    w[-1] = 0
    return {"x": x, "y": torch.arange(rows) % task.classes, "w": w}


def transform(kind: str, **options: Any) -> Any:
    made = cut.REGISTRY.get(kind)
    return made(made.Settings.model_validate(options), 0)


def at(client: int = 0, sends: bool = True, rows: int = 4) -> cut.At:
    return cut.At(torch.tensor(5), torch.tensor(client), torch.ones(rows, dtype=torch.float64), sends)


@pytest.mark.parametrize("name", MODELS)
def test_messages_across_two_cuts_give_the_whole_networks_gradient(name: str) -> None:
    """Three parts on two sides that know nothing of one another but what crosses."""
    model, (first, second) = MODELS[name]
    task = task_of(model)
    batch, params = batch_of(task), task.initial
    x, key = batch["x"], torch.tensor(7)
    whole = gradient(task.loss, params, batch, key)

    def middle(p: Any, h: Any) -> Any:
        seen: list[Any] = []
        hook = task.layer(second).register_forward_hook(lambda m, args, out: seen.append(out))
        task.resume(p, first, h)
        hook.remove()
        return seen[0]

    def last(p: Any, h: Any) -> Any:
        each = task.cross_entropy(task.resume(p, second, h), batch["y"], key)
        return (each * batch["w"]).sum() / batch["w"].sum()

    h1, of_client = torch.func.vjp(lambda p: task.watch(p, x, [first])[first], params)
    h2, of_server = torch.func.vjp(middle, params, h1.detach())
    _, of_tail = torch.func.vjp(last, params, h2.detach())
    g_tail, g2 = of_tail(torch.ones((), dtype=task.dtype))
    g_server, g1 = of_server(g2)
    (g_client,) = of_client(g1)
    for n, g in whole.items():
        torch.testing.assert_close(g_tail[n] + g_server[n] + g_client[n], g, rtol=1e-6, atol=1e-9)
    assert sum(float(g[n].abs().sum()) > 0 for g in (g_tail, g_server, g_client) for n in whole) == len(whole)


@pytest.fixture(scope="module")
def runs() -> dict[str, Any]:
    changes = {"federation": NONE, "local": {"epochs": 1, "batch_size": 8}, "rounds": 1}
    plain = toy.simulate("fedavg", **changes, task=MLP)
    one = toy.simulate("fedavg", **changes, task={**MLP, "split": {"after": ["body.1"]}})
    two = toy.simulate("fedavg", **changes, executor="vmap", task={**MLP, "split": {"after": ["body.1", "body"]}})
    return {"plain": plain, "one": one, "two": two}


def test_where_nothing_acts_a_run_is_the_whole_networks(runs: dict[str, Any]) -> None:
    assert tree.same(runs["plain"].state, runs["one"].state)
    for a, b in zip(tree.values(runs["plain"].state), tree.values(runs["two"].state), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_what_crosses_is_counted_by_hand(runs: dict[str, Any]) -> None:
    """One cut of 6 numbers: activations up, gradients down, of every real row once; two: 5 numbers the other way round beside them."""
    ids = runs["one"].fed.drawn[0].ids
    rows = sum(len(runs["one"].fed.federation.train[c]) for c in ids)
    plain, one, two = (runs[n].rows[0] for n in ("plain", "one", "two"))
    assert "bytes/cut/up" not in plain
    assert one["bytes/cut/up"] == one["bytes/cut/down"] == rows * 6 * 4
    assert two["bytes/cut/up"] == two["bytes/cut/down"] == rows * (6 + 5) * 4
    for way in ("up", "down"):
        assert one[f"bytes/{way}"] - plain[f"bytes/{way}"] == one[f"bytes/cut/{way}"]


def test_no_gradient_crosses_where_nothing_before_the_cut_is_trained() -> None:
    task = task_of(MLP, after=["body.1", "body"])
    batch, head = batch_of(task), {n: task.initial[n] for n in task.head}
    crossings = cut.Crossings(torch.tensor(0))
    with task.crossing(crossings):
        gradient(lambda p, b, k: task.loss({**task.initial, **p}, b, k), head, batch, torch.tensor(1))
    assert crossings.rows(2).tolist() == [[4, 0], [4, 0]]
    assert task.cut.traffic(crossings.rows(2)) == (4 * 6 * 8, 4 * 5 * 8)


@pytest.mark.parametrize(
    "given",
    [
        {"kind": "quantise", "bits": 4},
        {"kind": "noise", "std": 0.3},
        {"kind": "sketch", "rows": 3, "width": 0.5},
        {"kind": "rotate", "dims": 2},
    ],
    ids=lambda g: g["kind"],
)
def test_transforms_act_alike_for_many_clients_at_once(given: dict[str, Any]) -> None:
    split = {"after": ["body.1", "body"], "transforms": [given]}
    changes: dict[str, Any] = {
        "task": {**MLP, "split": split},
        "federation": NONE,
        "local": {"epochs": 1, "batch_size": 16},
    }
    loop, vmap = (toy.simulate("fedavg", executor=e, dtype="float64", rounds=1, **changes) for e in ("loop", "vmap"))
    plain = toy.simulate("fedavg", dtype="float64", rounds=1, **{**changes, "task": MLP})
    for a, b in zip(tree.values(loop.state), tree.values(vmap.state), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)
    assert not tree.same(loop.state, plain.state)
    assert loop.rows[0]["bytes/cut/up"] == vmap.rows[0]["bytes/cut/up"] > 0


def test_quantised_by_hand() -> None:
    """Three bits are the levels -3 to 3 of the largest: s = 1.5 / 3, (1.5, -0.6, 0.2) becomes (1.5, -0.5, 0)."""
    q, v = transform("quantise", bits=3), torch.tensor([[1.5, -0.6, 0.2]], dtype=torch.float64)
    torch.testing.assert_close(q(v, at()), torch.tensor([[1.5, -0.5, 0.0]], dtype=torch.float64))
    g = torch.func.grad(lambda h: (q(h, at()) * v).sum())(torch.ones_like(v))
    torch.testing.assert_close(g, torch.tensor([[1.5, -0.5, 0.0]], dtype=torch.float64))  # the gradient, rounded alike
    assert q.size(cut.Message(4, 6, 32)) == cut.Message(4, 6, 3, 128) and q.size(cut.Message(4, 6, 32)).bytes == 25


def test_a_sketch_as_wide_as_the_vector_loses_nothing_and_rows_are_linear_and_unbiased() -> None:
    u = keys.normal(torch.tensor(1), (2, 12), torch.float64)
    assert torch.equal(transform("sketch", rows=1, width=1.0)(u, at()), u)
    s = transform("sketch", rows=2, width=0.3)
    torch.testing.assert_close(s.rows(2 * u[0] + u[1]), 2 * s.rows(u[0]) + s.rows(u[1]))
    assert s.size(cut.Message(3, 12, 32)) == cut.Message(3, 8, 32)
    many = transform("sketch", rows=1, width=0.5)
    mean = torch.stack([cut.REGISTRY.get("sketch")(many.settings, seed).rows(u)[0] for seed in range(400)]).mean(0)
    assert float((mean - u).abs().max()) < 0.35  # deviation of a mean of 400 is 0.05 times a neighbour's size


def test_rotations_are_orthogonal_and_leave_the_rest_alone() -> None:
    r, h = transform("rotate", dims=2), keys.normal(torch.tensor(2), (4, 3, 7), torch.float64)
    q = r.matrix(h, at())
    torch.testing.assert_close(q @ q.T, torch.eye(7, dtype=torch.float64), rtol=0, atol=1e-12)
    vectors = torch.linalg.eigh(h.reshape(-1, 7).T @ h.reshape(-1, 7)).eigenvectors
    torch.testing.assert_close(vectors[:, :5].T @ q, vectors[:, :5].T, rtol=0, atol=1e-10)
    torch.testing.assert_close(r(h, at()).norm(dim=-1), h.norm(dim=-1))
    assert not torch.allclose(q, r.matrix(h, at(client=1))) and torch.equal(r(h, at(sends=False)), h)


def test_noise_is_on_what_the_client_sends_alone() -> None:
    n, h = transform("noise", std=0.5), torch.zeros(4, 50, dtype=torch.float64)
    out, back = torch.func.vjp(lambda x: n(x, at()), h)
    assert 0.3 < float(out.std()) < 0.7 and torch.equal(back(torch.ones_like(h))[0], torch.ones_like(h))
    out, back = torch.func.vjp(lambda x: n(x, at(sends=False)), h)
    assert torch.equal(out, h) and 0.3 < float(back(h)[0].std()) < 0.7


def test_cuts_that_cannot_be_are_named() -> None:
    with pytest.raises(
        ConfigError, match=r"task.split.after: 'body.9' found.*has no such layer; there are: body, body.0"
    ):
        task_of(MLP, after=["body.9"])
    (wrong,) = cut.misplaced(task_of(MLP, after=["body", "body.1"]))
    assert "in the order body.1, body" in wrong
    (wrong,) = cut.misplaced(task_of(VIT, after=["blocks.0.out"]))
    assert "'blocks.0.out' found, from whose answer alone the rest" in wrong and "blocks.0" in wrong
    assert cut.misplaced(task_of(VIT, after=["blocks.0", "blocks.1"])) == []
    split = {"after": ["body"], "transforms": [{"kind": "quantize"}, {"kind": "noise", "std": -1}]}
    said = refusal(toy.config, "fedavg", task={**MLP, "split": split})
    assert "task.split.transforms.0.kind: 'quantize' found (did you mean 'quantise'?)" in said
    assert "task.split.transforms.1.std: -1" in said
