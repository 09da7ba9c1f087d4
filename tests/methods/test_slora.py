"""SLoRA: sparse tuning of the base first, whose best factors LoRA starts from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rayfed import methods, tree
from rayfed.adapters import lora
from rayfed.errors import ConfigError
from rayfed.launch.preflight import load_request
from rayfed.methods.slora import SLoRA
from rayfed.visits import visit
from tests import toy
from tests.tiny import WHOLE

OnBert = Callable[[dict[str, Any]], dict[str, Any]]


def by_hand(on_bert: OnBert, settings: dict[str, Any], changes: dict[str, Any]) -> tuple[toy.ToyFed, Any, Any]:
    """(federation, the first state, the state after a round of stage 1)."""
    c = toy.config(
        {"name": "slora", "sparse_rounds": 1, **settings}, dtype="float64", executor="vmap", **on_bert(changes)
    )
    toy_fed = toy.make_fed(c)
    toy_fed.begin(1)
    first = toy_fed.method.init(toy_fed.task, 0)
    return toy_fed, first, toy_fed.method.round(first, toy_fed, toy_fed.task)


def test_stage_one_trains_the_masked_entries_alone(on_bert: OnBert) -> None:
    fed, first, after = by_hand(on_bert, {"density": 0.2}, {**WHOLE, "federation": {"per_round": 1}})
    task, places = fed.task, fed.method.places(fed.task)
    assert len(places) == 2 and all(len(set(at.tolist())) == 51 for at in places.values())  # 0.2 * 256
    rows = fed.federation.train[fed.drawn[0].ids[0]]
    x, y = (torch.as_tensor(fed.federation.arrays[k][rows]) for k in ("x", "y"))
    here = {**first["model"], **{n: task.frozen[n].clone() for n in places}}
    moving = [*places, *task.head]
    for _ in range(3):
        live = {n: p.clone().requires_grad_(n in moving) for n, p in here.items()}
        loss = torch.nn.functional.cross_entropy(task.apply(live, x), y)
        for n, g in zip(moving, torch.autograd.grad(loss, [live[n] for n in moving]), strict=True):
            mask = torch.ones_like(g)
            if n in places:
                mask = torch.zeros(g.numel(), dtype=g.dtype).index_fill(0, places[n], 1.0).reshape(g.shape)
            here[n] = here[n] - 0.5 * mask * g
    assert all((here[n] - task.frozen[n]).norm() > 1e-3 for n in places)
    torch.testing.assert_close(after["model"], here, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("density", [None, 1.0])
def test_the_factors_are_the_best_of_what_was_learnt(on_bert: OnBert, density: float | None) -> None:
    fed, _, after = by_hand(on_bert, {"density": density}, {})
    task = fed.task
    made = fed.method.factors(after, task)
    assert set(made) == set(task.params_like)  # the base is the first one again
    for n in lora.pairs(made):
        name, _ = lora.weight_of(task, n)
        learnt = (after["model"][name] - task.frozen[name]).numpy()
        u, s, v = np.linalg.svd(learnt)
        np.testing.assert_allclose(4 * (made[n.b] @ made[n.a]).numpy(), (u[:, :2] * s[:2]) @ v[:2], atol=1e-12)
        assert s[0] > 1e-3 and (density == 1.0 or (learnt != 0).sum() == 64)  # as many as A and B have


def test_bytes_of_both_stages(on_bert: OnBert) -> None:
    done = toy.simulate({"name": "slora", "sparse_rounds": 1}, executor="vmap", **on_bert({}))
    numbers = 2 * 64 + 16 * 3 + 3
    assert [r["bytes/down"] for r in done.rows] == [7 * 4 * numbers] * 2
    assert [r["bytes/up"] for r in done.rows] == [7 * (4 * numbers + 8)] * 2
    assert done.state["sparse"] == {} and set(done.state["model"]) == set(done.fed.task.params_like)


@pytest.mark.skipif("fedit" not in methods.names(), reason="compared with fedit, which is not there")
def test_without_stage_one_it_is_fedit(on_bert: OnBert) -> None:
    ours, plain = (
        toy.simulate(m, executor="vmap", **on_bert({})) for m in ({"name": "slora", "sparse_rounds": 0}, "fedit")
    )
    assert tree.same(ours.state["model"], plain.state["model"])


@pytest.mark.parametrize("executor", ["loop", "vmap"])
def test_both_stages_on_a_base_in_half_precision(on_bert: OnBert, executor: str) -> None:
    spec = {"name": "slora", "sparse_rounds": 1}
    half = toy.simulate(spec, executor=executor, dtype="bf16", **on_bert({}))
    assert {str(p.dtype) for p in half.fed.task.frozen.values()} == {"torch.bfloat16"}
    assert {str(p.dtype) for p in half.state["model"].values()} == {"torch.float32"}
    full = toy.simulate(spec, executor=executor, **on_bert({}))
    went = tree.sub(full.state["model"], full.initial["model"])
    far = tree.sub(full.state["model"], half.state["model"])
    assert float(tree.norm(far)) < 0.3 * float(tree.norm(went))


@pytest.mark.parametrize("lost", [1, 2])
def test_a_round_of_stage_one_that_nobody_answers_changes_nothing(
    on_bert: OnBert, monkeypatch: pytest.MonkeyPatch, lost: int
) -> None:
    real = SLoRA.warm

    def warm(self: SLoRA, task: Any) -> Any:
        inner = real.make(self, task)

        def begin(client: Any) -> Any:
            if int(client.info.round) <= lost:
                raise ValueError("no luck")
            return inner.begin(client)

        return inner._replace(begin=begin)

    monkeypatch.setattr(SLoRA, "warm", visit(warm))
    spec, more = {"name": "slora", "sparse_rounds": 2}, {"rounds": 3, "failures": {"client_error": "drop"}}
    c = toy.config(spec, **on_bert(more))
    fed = toy.make_fed(c)
    first = state = fed.method.init(fed.task, 0)
    for r in (1, 2):
        fed.begin(r)
        state = fed.method.round(state, fed, fed.task)
        assert fed.meter["dropped"] == (7 if r <= lost else 0)
        assert tree.same(state, first) == (r <= lost)
    fed.begin(3)
    last = fed.method.round(state, fed, fed.task)
    assert last["sparse"] == {} and all(torch.isfinite(p).all() for p in last["model"].values())


def test_stage_one_is_a_fifth_of_the_run(on_bert: OnBert) -> None:
    for rounds, want in ((20, 4), (5, 1), (2, 1)):
        c = toy.config("slora", rounds=rounds, **on_bert({}))
        method = methods.get("slora")
        made = method(method.Settings(**c.method.options), c)
        assert isinstance(made, SLoRA) and made.sparse_rounds == want


def test_a_longer_run_does_not_go_back_to_stage_one(on_bert: OnBert, tmp_path: Path) -> None:
    toy.run_folder("slora", tmp_path, executor="vmap", rounds=10, stop_after=3, **on_bert({}))
    rest = toy.run_folder("slora", tmp_path, executor="vmap", rounds=20, stop_after=4, resume=True, **on_bert({}))
    assert rest.ending.round == 4 and not any(n.endswith("base_layer.weight") for n in rest.state["model"])


def test_a_stage_as_long_as_the_run_is_refused(on_bert: OnBert) -> None:
    raw = toy.config(**on_bert({})).to_dict()
    for given, found in (({"sparse_rounds": 2}, 2), ({"sparse_rounds": 5}, 5)):
        with pytest.raises(ConfigError, match=rf"method.sparse_rounds: {found} found, allowed: less than rounds \(2\)"):
            load_request({**raw, "method": {"name": "slora", **given}})
