"""FedBip and FedBip-L: weights and updates against NumPy, and what they must reduce to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rayfed import tree
from rayfed.errors import ConfigError
from rayfed.methods import get
from rayfed.methods._bases.task_vectors import cosines, divisors, product_gram, shares
from rayfed.methods.fedbip_l import block, module
from tests import toy
from tests.conformance.checks import Case, loop_is_vmap, payload_is_the_wires
from tests.tiny import Watched

OnBert = Callable[[dict[str, Any]], dict[str, Any]]
EVERYONE = {"federation": {"per_round": None}}


def settings(**changes: Any) -> Any:
    return get("fedbip").Settings(**changes)


def vectors(seed: int, n: int = 5, size: int = 7) -> torch.Tensor:
    return torch.as_tensor(np.random.default_rng(seed).normal(size=(n, size)))


@pytest.mark.parametrize(
    "changes", [{}, {"negative": "raw"}, {"temperature": 0.2}, {"neighbours": 2}, {"weights": "uniform"}]
)
def test_rows_sum_to_one(changes: dict[str, Any]) -> None:
    x = vectors(0)
    p = shares(cosines(x @ x.T), settings(**changes))
    torch.testing.assert_close(p.sum(1), torch.ones(5, dtype=torch.float64))
    if changes.get("negative") != "raw":
        assert bool((p.diagonal()[:, None] >= p).all()) and bool((p >= 0).all())


def test_weights_by_hand() -> None:
    """Three vectors at 0, 60 and 180 degrees: cosines 1/2, -1, -1/2."""
    s = cosines((x := torch.tensor([[2.0, 0.0], [0.5, 3**0.5 / 2], [-3.0, 0.0]], dtype=torch.float64)) @ x.T)
    want = {
        "clamp": [[2 / 3, 1 / 3, 0], [1 / 3, 2 / 3, 0], [0, 0, 1]],
        "raw": [[2, 1, -2], [0.5, 1, -0.5], [2, 1, -2]],
    }
    for kind, rows in want.items():
        np.testing.assert_allclose(shares(s, settings(negative=kind)), rows, atol=1e-12)
    soft = np.exp(np.array([[1, 0.5, 0], [0.5, 1, 0], [0, 0, 1]]) / 0.5)
    np.testing.assert_allclose(shares(s, settings(temperature=0.5)), soft / soft.sum(1, keepdims=True), atol=1e-12)
    np.testing.assert_allclose(
        shares(s, settings(neighbours=1, negative="raw", temperature=0.5)), np.eye(3), atol=1e-12
    )


def test_the_length_of_a_task_vector_does_not_change_weights() -> None:
    x = vectors(1)
    y = x * torch.tensor([1.0, 7, 0.1, 1, 30])[:, None]
    torch.testing.assert_close(shares(cosines(x @ x.T), settings()), shares(cosines(y @ y.T), settings()))


def test_orthogonal_and_empty_task_vectors_stay_alone() -> None:
    eye = torch.eye(4, dtype=torch.float64)
    assert torch.equal(shares(cosines(eye * 3), settings()), eye)
    none = torch.zeros(4, 4, dtype=torch.float64)
    assert torch.equal(shares(cosines(none), settings()), eye)
    cancelled = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)
    assert torch.equal(shares(cancelled, settings(negative="raw")), torch.eye(2, dtype=torch.float64))


@pytest.mark.parametrize("negative", ["clamp", "raw"])
def test_rounds_in_numpy(plain: Any, negative: str) -> None:
    """Partial participation; every client from its own model, absent ones untouched."""
    done = toy.simulate({"name": "fedbip", "negative": negative}, rounds=3, **plain.WORK)
    models = {c: plain.vector(done.initial["first"]) for c in range(12)}
    for draw in done.fed.drawn:
        ids = list(draw.ids)
        tau = np.stack([plain.descend(models[c], *plain.data(done.fed, c)) - models[c] for c in ids])
        unit = tau / np.linalg.norm(tau, axis=1, keepdims=True)
        s = unit @ unit.T
        s = np.maximum(s, 0) if negative == "clamp" else s
        p = s / s.sum(1, keepdims=True)
        for i, c in enumerate(ids):
            models[c] = models[c] + p[i] @ tau
    for c, mine in enumerate(tree.unstack(done.state["models"])):
        np.testing.assert_allclose(plain.vector(mine), models[c], atol=1e-10)
    took = {c for d in done.fed.drawn for c in d.ids}
    assert done.state["seen"].tolist() == [c in took for c in range(12)]


def test_uniform_weights_from_a_common_start_are_unweighted_fedavg() -> None:
    one = toy.simulate({"name": "fedbip", "weights": "uniform"}, dtype="float64", rounds=2, kind=Watched, **EVERYONE)
    models = tree.unstack(one.state["models"])
    assert all(tree.same(m, models[0]) for m in models)
    want = one.initial["first"]
    for got in one.fed.got:
        want = tree.add(want, tree.map(lambda x: x.mean(0), got.stacked("delta")))
    torch.testing.assert_close(models[0], want, rtol=0, atol=1e-14)


def test_equal_task_vectors_are_fedavg(split: Any) -> None:
    """Clients with the same data on whole batches: similarity 1 everywhere, and the mean is what each learned."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(16, 8)), rng.integers(0, 2, 16)
    split([x] * 4, [y] * 4)
    changes: dict[str, Any] = {
        "federation": {"clients": 4, "per_round": None, "holdout": {"kind": "none"}, "groups": {"kind": "none", "count": 1}},
        "local": {"batch_size": 64}, "dtype": "float64",
    }  # fmt: skip
    mine, average = (toy.simulate(m, rounds=2, **changes) for m in ("fedbip", "fedavg"))
    for model in tree.unstack(mine.state["models"]):
        torch.testing.assert_close(model, average.state["model"], rtol=0, atol=1e-12)


@pytest.mark.parametrize("negative", ["clamp", "raw"])
def test_opposite_task_vectors_are_local_training(quadratics: Any, negative: str) -> None:
    """Parabolas around 1 and -1: cosine -1, so each trains alone, x <- x* + (x - x*) (1 - lr f'')^K. Raw rows sum to 0."""
    done = toy.simulate({"name": "fedbip", "negative": negative}, rounds=3, **quadratics())
    x = done.state["models"]["head.weight"].reshape(-1).tolist()
    assert x == pytest.approx([1 - 0.8**60, 0.98**60 - 1], abs=1e-12)


def test_one_layer_group_is_fedbip_and_more_are_not() -> None:
    whole, one = (toy.simulate(m, dtype="float64") for m in ("fedbip", {"name": "fedbip_l", "layers": "one"}))
    assert tree.same(whole.state, one.state) and whole.rows == one.rows
    layers = toy.simulate("fedbip_l", dtype="float64", rounds=1, kind=Watched)
    tau = layers.fed.got[0].stacked("delta")
    ids = layers.fed.got[0].ids
    for names in (["body.0.weight", "body.0.bias"], ["head.weight", "head.bias"]):
        x = torch.cat([tau[n].reshape(len(ids), -1) for n in names], 1)
        unit = x / x.norm(dim=1, keepdim=True)
        s = (unit @ unit.T).clamp(min=0)
        want = (s / s.sum(1, keepdim=True)) @ x
        moved = [tree.sub(tree.pick(layers.state["models"], c), layers.initial["first"]) for c in ids]
        found = torch.stack([torch.cat([m[n].reshape(-1) for n in names]) for m in moved])
        torch.testing.assert_close(found, want, rtol=0, atol=1e-12)


def test_layers_by_name() -> None:
    lora = "base.encoder.layer.3.attention.self.query.lora_A.default.weight"
    assert block(lora) == "base.encoder.layer.3" and module(lora) == "base.encoder.layer.3.attention.self.query"
    assert module(lora.replace("lora_A", "lora_B")) == module(lora)
    assert block("head.weight") == block("head.bias") == module("head.bias") == "head"
    assert block("embed.position.lora_A.default.weight") == "embed.position"


def test_products_compare_what_b_a_changed_by() -> None:
    from rayfed.adapters import lora

    n = lora.Names("x.lora_B.weight", "x.lora_A.weight")
    rng = np.random.default_rng(0)
    before = {n.b: torch.as_tensor(rng.normal(size=(3, 4, 2))), n.a: torch.as_tensor(rng.normal(size=(3, 2, 5)))}
    tau = {k: torch.as_tensor(rng.normal(size=v.shape)) for k, v in before.items()}
    change = (before[n.b] + tau[n.b]) @ (before[n.a] + tau[n.a]) - before[n.b] @ before[n.a]
    flat = change.reshape(3, -1)
    torch.testing.assert_close(product_gram(before, tau, n), flat @ flat.T)


def test_products_need_lora(on_bert: OnBert) -> None:
    spec = {"name": "fedbip", "similarity": "product"}
    with pytest.raises(ConfigError, match=r"method.similarity: product found, adapter.kind: none"):
        toy.config(spec)
    vector, product = (toy.simulate({**spec, "similarity": k}, **on_bert({})) for k in ("vectors", "product"))
    assert not tree.same(vector.state, product.state) and tree.finite(product.state)


@pytest.mark.parametrize("newcomers", ["mean", "first"])
def test_what_is_served(plain: Any, newcomers: str) -> None:
    done = toy.simulate({"name": "fedbip", "newcomers": newcomers}, rounds=1, **plain.WORK)
    models = [plain.vector(m) for m in tree.unstack(done.state["models"])]
    seen = set(done.fed.drawn[0].ids)
    mean = np.mean([models[c] for c in seen], axis=0)
    assert len(seen) == 7 and abs(mean - np.mean(models, axis=0)).max() > 1e-3  # five still hold the first model
    new = mean if newcomers == "mean" else plain.vector(done.initial["first"])
    rows = done.scores()[1]
    assert len(rows) == 14
    for r in rows:
        mine = models[r["client"]] if r["client"] in seen else new
        assert r["loss"] == pytest.approx(plain.loss(mine, *plain.data(done.fed, r["client"], "test")), abs=1e-12)


def test_before_anybody_took_part_the_first_model_is_served() -> None:
    state = toy.simulate("fedbip", rounds=1).initial
    served = toy.make_fed(toy.config("fedbip")).method.serve(state)
    assert tree.same(served, {"newcomer": state["first"]})


def test_the_least_row_sum_is_that_of_the_layer_that_has_it() -> None:
    """Two layers, raw cosines: the smallest of all sums that divide, by size."""
    spec = {"name": "fedbip_l", "negative": "raw"}
    done = toy.simulate(spec, dtype="float64", rounds=1, kind=Watched)
    tau = done.fed.got[0].stacked("delta")  # type: ignore[attr-defined]
    sums = []
    for layer in ("body.0", "head"):
        x = torch.cat([tau[f"{layer}.{n}"].reshape(7, -1) for n in ("weight", "bias")], 1).numpy()
        unit = x / np.linalg.norm(x, axis=1, keepdims=True)
        sums.append(abs((unit @ unit.T).sum(1)).min())
    assert abs(sums[0] - sums[1]) > 0.01
    assert done.rows[0]["similarity/least_sum"] == pytest.approx(min(sums), abs=1e-9)
    soft = toy.simulate({**spec, "temperature": 0.5}, rounds=1)
    assert "similarity/least_sum" not in soft.rows[0] and "similarity/models_across" in soft.rows[0]


def test_divisors_by_hand() -> None:
    """Vectors at 0, 60 and 180 degrees: rows (1, 1/2, -1), (1/2, 1, -1/2), (-1, -1/2, 1)."""
    s = cosines((x := torch.tensor([[2.0, 0.0], [0.5, 3**0.5 / 2], [-3.0, 0.0]], dtype=torch.float64)) @ x.T)
    for changes, want in (
        ({}, [1.5, 1.5, 1.0]),
        ({"negative": "raw"}, [0.5, 1.0, -0.5]),
        ({"negative": "raw", "neighbours": 2}, [1.5, 1.5, 0.5]),
        ({"temperature": 0.5}, []),
        ({"weights": "uniform"}, []),
    ):
        np.testing.assert_allclose(divisors(s, settings(**changes)), want, atol=1e-12)


def test_conflicting_groups_are_separated_by_task_vectors_and_not_by_weights(split: Any) -> None:
    rng = np.random.default_rng(0)
    xs = [rng.normal(size=(40, 8)) for _ in range(6)]
    group = [0, 1, 0, 1, 0, 1]
    split(xs, [(x[:, 0] > 0).astype(int) ^ g for x, g in zip(xs, group)], group=group)
    everyone = {"clients": 6, "per_round": None, "holdout": {"kind": "none"}}
    done = toy.simulate("fedbip", rounds=3, executor="vmap", federation=everyone)
    first, last = done.rows[0], done.rows[-1]
    assert last["similarity/task_vectors_within"] > 0.3 > 0 > last["similarity/task_vectors_across"]
    assert first["similarity/models_across"] == pytest.approx(1.0, abs=1e-6)
    assert last["similarity/models_across"] > 0.5


@pytest.mark.parametrize("check", [loop_is_vmap, payload_is_the_wires], ids=lambda c: c.__name__)
@pytest.mark.parametrize("name", ["fedbip", "fedbip_l"])
def test_with_adapters(on_bert: OnBert, name: str, check: Any, tmp_path: Path) -> None:
    check(Case({"name": name}, on_bert({})), tmp_path)
