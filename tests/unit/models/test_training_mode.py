"""Dropout inside adapters: its masks are a function of the key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from rayfed import keys, tree
from rayfed.adapters import ranks
from rayfed.launch.preflight import load_request
from rayfed.models.training_mode import TrainingForward, TrainingStep
from rayfed.visits import Visit
from tests import toy
from tests.tiny import Watched, on_bert  # noqa: F401
from tests.unit.adapters.unequal import MIXED, OnBert, mixed


def test_masks_are_a_function_of_the_key() -> None:
    p, x = 0.3, torch.ones(40, 500, dtype=torch.float64)
    key = torch.tensor(keys.key(0, 1, 2, "order 0"))

    def twice(k: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Two layers of one forward pass."""
        with TrainingForward(TrainingStep(k)):
            return F.dropout(x, p), F.dropout(x, p)

    y, other = twice(key)
    off = int((y == 0).sum())
    assert abs(off - p * x.numel()) < 4.5 * (x.numel() * p * (1 - p)) ** 0.5  # 1 in 150 000
    assert set(y.unique().tolist()) == {0.0, 1 / (1 - p)}
    columns = (y == 0).double().mean(0)
    assert columns.std() == pytest.approx((p * (1 - p) / 40) ** 0.5, rel=0.15)  # neither rows nor columns go together
    assert torch.equal(twice(key)[0], y) and not torch.equal(other, y)
    at_steps = torch.vmap(keys.fold, (None, 0))(key, torch.arange(3))
    at_once = torch.vmap(lambda k: twice(k)[0], randomness="different")(at_steps)
    alone = [twice(k)[0] for k in at_steps]
    assert all(torch.equal(a, b) for a, b in zip(at_once, alone, strict=True))
    agree = float(((alone[0] == 0) == (alone[1] == 0)).double().mean())
    assert agree == pytest.approx(p**2 + (1 - p) ** 2, abs=0.02)  # as independent masks do


@pytest.mark.parametrize("rank", [2, MIXED], ids=["equal", "unequal"])
def test_dropout_is_the_same_under_both_executors(on_bert: OnBert, rank: Any) -> None:  # noqa: F811
    with_it = mixed(on_bert, rank=rank, adapter={"dropout": 0.5})
    loop, vmap = (toy.simulate(executor=e, dtype="float64", **with_it) for e in ("loop", "vmap"))
    without = toy.simulate(executor="vmap", dtype="float64", **mixed(on_bert, rank=rank))
    went = float(tree.norm(tree.sub(loop.state["model"], loop.initial["model"])))
    assert went > 1e-3 and float(tree.norm(tree.sub(loop.state["model"], vmap.state["model"]))) <= 1e-9 * went
    assert float(tree.norm(tree.sub(loop.state["model"], without.state["model"]))) > 1e-3 * went
    assert tree.same(toy.simulate(executor="loop", dtype="float64", **with_it).state, loop.state)


def test_dropout_acts_in_training_steps_only_and_differs_by_client_and_step(on_bert: OnBert) -> None:  # noqa: F811
    fed = toy.make_fed(toy.config(dtype="float64", **mixed(on_bert, rank=2, adapter={"dropout": 0.5})))
    task = fed.task
    params = {n: torch.ones_like(p) * 0.1 if ranks.is_b(n) else p for n, p in task.fresh_params(0).items()}
    batch = {k: torch.as_tensor(fed.federation.arrays[k][:6]) for k in ("x", "y")}
    plain = task.metrics(params, batch)["loss"]
    torch.testing.assert_close(task.loss(params, batch), plain)
    found = [
        task.loss(params, batch, keys.fold(torch.tensor(keys.key(1, 1, client, "order 0")), step))
        for client in (0, 1) for step in (0, 1)
    ]  # fmt: skip
    assert all(not torch.allclose(x, plain) for x in found)
    assert all(not torch.allclose(x, y) for i, x in enumerate(found) for y in found[:i])
    torch.testing.assert_close(task.metrics(params, batch)["loss"], plain)  # nothing is left behind


def test_dropout_resumes_to_the_bit(on_bert: OnBert, tmp_path: Path) -> None:  # noqa: F811
    changes = mixed(on_bert, 8.0, adapter={"dropout": 0.3})
    whole = toy.run_folder("hetlora", tmp_path / "a", executor="vmap", **changes)
    toy.run_folder("hetlora", tmp_path / "b", executor="vmap", stop_after=1, **changes)
    again = toy.run_folder("hetlora", tmp_path / "b", executor="vmap", resume=True, **changes)
    assert tree.same(again.state, whole.state) and again.rows == whole.rows
    assert tree.same(again.clients, whole.clients) and again.client_rows == whole.client_rows
    assert load_request(whole.folder.path / "config.yaml").adapter.dropout == 0.3  # type: ignore[union-attr]


def test_a_plain_visit_sees_its_clients_rank(on_bert: OnBert) -> None:  # noqa: F811
    c = toy.config(**mixed(on_bert))
    fed = toy.make_fed(c)
    worker = fed.pool.worker.runs["toy"]  # type: ignore[attr-defined]
    made = worker.sampler.cohort(
        Visit(lambda *a: {}, (), lambda *a: ({}, {})), range(4), dispatch=1, round=1, rounds=1, lr=0.1
    )
    assert made.info.rank.tolist() == fed.task.ranks[:4].tolist()


def test_a_rate_that_falls_does_so_at_every_rank(on_bert: OnBert) -> None:  # noqa: F811
    fed = toy.make_fed(toy.config("fedit", **mixed(on_bert, local={"schedule": {"within": "linear"}})))
    visit = fed.method.train(fed.task)
    for kept in (visit, ranks.at_rank(visit, fed.task, False)):
        assert [p.falls for p in kept.phases] == [True]
