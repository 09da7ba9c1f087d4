"""Train mode: dropout and normalisation as plain PyTorch has them, with masks that are a function of the key."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rayfed import keys, tree
from rayfed.adapters import ranks
from rayfed.launch.preflight import load_request
from rayfed.models.training_mode import PURPOSE, TrainingForward, TrainingStep
from rayfed.training import grad, mean_loss
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


# -- own networks ------------------------------------------------------------------------------------------------------

KINDS = ["batchnorm", "dropout", "encoder", "noisy", "counting", "instances"]


@pytest.mark.parametrize("name", KINDS)
def test_loop_is_vmap_and_the_same_keys_give_the_same_bits(nets: Any, name: str) -> None:
    runs = {
        e: toy.simulate("fedavg", executor=e, dtype="float64", rounds=3, **nets(name))
        for e in ("loop", "vmap", "debug")
    }
    for e in ("vmap", "debug"):
        for (path, a), (_, b) in zip(tree.leaves(runs["loop"].state), tree.leaves(runs[e].state), strict=True):
            assert torch.allclose(a, b, rtol=1e-9, atol=1e-12), (e, path)
    again = toy.simulate("fedavg", executor="vmap", dtype="float64", rounds=3, **nets(name))
    assert tree.same(again.state, runs["vmap"].state)


@pytest.mark.parametrize("name", ["dropout", "batchnorm"])
def test_actors_order_and_resume_change_nothing(nets: Any, name: str, tmp_path: Path) -> None:
    straight = toy.simulate("fedavg", executor="vmap", **nets(name))
    spread = toy.simulate("fedavg", executor="vmap", pool=toy.SimPool(3, 0, kill_at=(1,)), order=3, **nets(name))
    assert tree.same(straight.state, spread.state)
    whole = toy.run_folder("fedavg", tmp_path / "whole", rounds=3, executor="vmap", **nets(name))
    toy.run_folder("fedavg", tmp_path / "cut", rounds=3, executor="vmap", stop_after=1, **nets(name))
    resumed = toy.run_folder("fedavg", tmp_path / "cut", rounds=3, executor="vmap", resume=True, **nets(name))
    assert tree.same(whole.state, resumed.state) and whole.rows == resumed.rows


def test_dropout_acts_in_training_alone(nets: Any) -> None:
    states = {p: toy.simulate("fedavg", **nets("dropout", p=p)).state["model"] for p in (0.0, 0.5, 0.95)}
    assert not tree.same(states[0.0], states[0.5]) and not tree.same(states[0.5], states[0.95])
    fed = toy.make_fed(toy.config("fedavg", **nets("dropout")))
    task, x = fed.task, torch.randn(5, 8)
    params, w = task.initial, torch.ones(5)
    assert torch.equal(task.apply(params, x), task.apply(params, x))
    batch = {"x": x, "y": torch.zeros(5, dtype=torch.int64), "w": w}
    one, same, other = (task.loss(params, batch, torch.tensor(k)) for k in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert not torch.equal(one, task.loss(params, batch))
    share = torch.cat([_dropped_share(nets, k) for k in range(40)]).mean()
    assert abs(float(share) - 0.5) < 0.05


def _dropped_share(nets: Any, key: int) -> torch.Tensor:
    with TrainingForward(TrainingStep(torch.tensor(key))):
        return (F.dropout(torch.ones(50), 0.5) == 0).float()


def plain_fedavg(model: nn.Module, fed: Any, rounds: int) -> dict[str, torch.Tensor]:
    """FedAvg in plain PyTorch, in train mode, on the very batches of the federation; buffers are averaged like parameters,
    of counters the largest is taken."""
    c, sampler = fed.config, fed.pool.worker.runs["toy"].sampler
    visit = fed.pool.worker.runs["toy"].visit("train", False)
    state = {n: x.detach().clone().double() for n, x in model.state_dict().items()}
    for r in range(1, rounds + 1):
        fed.begin(r)
        ids = fed.sample()
        total, weight = {n: torch.zeros_like(x) for n, x in state.items()}, 0.0
        largest: dict[str, torch.Tensor] = {}
        for i in ids:
            one = copy.deepcopy(model)
            one.load_state_dict({n: x.to(one.state_dict()[n].dtype) for n, x in state.items()})
            one.train()
            opt = torch.optim.SGD(one.parameters(), lr=c.local.optimizer.lr)
            cohort = sampler.cohort(
                visit, [i], dispatch=(r << 20) + 1, round=r, rounds=c.rounds, lr=c.local.optimizer.lr
            )
            rows, mask = cohort.phases[0].rows[0, :, 0], cohort.phases[0].w[0, :, 0]
            for at, w in zip(rows, mask, strict=True):
                real = at[w > 0]
                x = torch.as_tensor(fed.federation.arrays["x"])[real].double()
                y = torch.as_tensor(fed.federation.arrays["y"])[real]
                if len(real) == 1 and x.dim() == 2:
                    raise AssertionError("a batch of one row: PyTorch's BatchNorm1d has no word for it")
                opt.zero_grad()
                F.cross_entropy(one(x), y).backward()
                opt.step()
            n = float(len(fed.federation.train[i]))
            for name, x in one.state_dict().items():
                total[name] += n * x.double()
                if not x.is_floating_point():
                    largest[name] = torch.maximum(x.double(), largest.get(name, x.double()))
            weight += n
        state = {n: x / weight for n, x in total.items()} | largest
    return state


@pytest.mark.parametrize("executor", ["loop", "vmap"])
@pytest.mark.parametrize("momentum", [0.1, 0.3])
def test_a_residual_network_with_batchnorm_is_plain_pytorchs(nets: Any, executor: str, momentum: float) -> None:
    changes = toy.merge(
        nets("resnet", momentum=momentum),
        {
            "task": {"data": "digits"},
            "federation": {
                "clients": 6,
                "per_round": 4,
                "groups": {"kind": "rotation", "count": 2},
                "partition": {"kind": "iid"},
            },
            "local": {"epochs": 1, "batch_size": 32},
        },
    )
    c = toy.config("fedavg", executor=executor, dtype="float64", rounds=2, **changes)
    fed = toy.make_fed(c)
    model = fed.task.module().double()
    with torch.no_grad():
        for n, p in model.named_parameters():
            p.copy_(fed.task.initial[n])
    want = plain_fedavg(model.requires_grad_(True), fed, 2)
    got = toy.simulate("fedavg", executor=executor, dtype="float64", rounds=2, **changes).state["model"]
    assert set(got) == set(want)
    for n in want:
        assert torch.allclose(got[n], want[n], rtol=1e-6, atol=1e-9), n
    assert float(got["1.num_batches_tracked"]) > 0 and not torch.equal(got["1.running_var"], torch.ones(4).double())


def test_padding_rows_move_no_statistics(nets: Any) -> None:
    task = toy.make_fed(toy.config("fedavg", dtype="float64", **nets("batchnorm"))).task
    x, y = torch.randn(6, 8).double(), torch.zeros(6, dtype=torch.int64)

    def after(batch: Any) -> Any:
        return grad(lambda p: mean_loss(task.loss, p, batch, torch.tensor(1)))(task.initial)

    few = after({"x": x[:4], "y": y[:4], "w": torch.ones(4).double()})
    padded = after({"x": x, "y": y, "w": torch.tensor([1.0, 1, 1, 1, 0, 0]).double()})
    assert all(_close(a, b) for a, b in zip(few, padded, strict=True))
    alone = after({"x": x, "y": y, "w": torch.tensor([1.0, 0, 0, 0, 0, 0]).double()})
    assert torch.equal(alone[1]["1.running_mean"], task.initial["1.running_mean"]) and tree.finite(alone[0])


def _close(a: Any, b: Any) -> bool:
    return all(torch.allclose(x, y, rtol=1e-9, atol=1e-12) for x, y in zip(tree.values(a), tree.values(b), strict=True))


def test_keys_are_apart_from_the_methods_own() -> None:
    step = TrainingStep(torch.tensor(7))
    first, second = step.next_key(), step.next_key()
    assert (
        len({int(first), int(second), 7, int(keys.fold(torch.tensor(7), 0)), int(keys.fold(torch.tensor(7), PURPOSE))})
        == 5
    )
    assert np.isfinite(int(first))
