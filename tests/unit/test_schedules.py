"""Learning rates over rounds against torch.optim.lr_scheduler, and within a visit."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from rayfed import execute, schedules, tree
from rayfed.config.schema import Local, Optimizer, Schedule
from rayfed.errors import ConfigError
from rayfed.execute.batches import BatchSampler
from rayfed.training import sgd_visit
from tests import toy

# -- learning rates over rounds ----------------------------------------------------------------------------------------


def rates(rounds: int, lr: float = 0.2, **schedule: Any) -> list[float]:
    local = Local(optimizer=Optimizer(lr=lr), schedule=Schedule(**schedule))
    return [schedules.round_rate(local, r, rounds) for r in range(1, rounds + 1)]


def theirs(rounds: int, make: Any, lr: float = 0.2) -> list[float]:
    opt = torch.optim.SGD([torch.zeros(1)], lr=lr)
    schedule = make(opt)
    out = []
    for _ in range(rounds):
        out.append(opt.param_groups[0]["lr"])
        opt.step()
        schedule.step()
    return out


S = torch.optim.lr_scheduler
SCHEDULES: dict[str, tuple[dict[str, Any], Any]] = {
    "linear": ({"kind": "linear"}, lambda o: S.LinearLR(o, 1.0, 0.0, 15)),
    "exponential": ({"kind": "exponential", "gamma": 0.9}, lambda o: S.ExponentialLR(o, 0.9)),
    "step": ({"kind": "step", "gamma": 0.5, "every": 4}, lambda o: S.StepLR(o, 4, 0.5)),
    "cosine": ({"kind": "cosine"}, lambda o: S.CosineAnnealingLR(o, T_max=15)),
    "constant": ({"kind": "constant"}, lambda o: S.ConstantLR(o, factor=1.0)),
}


@pytest.mark.parametrize("kind", SCHEDULES)
def test_schedules_are_torchs(kind: str) -> None:
    settings, reference = SCHEDULES[kind]
    assert rates(15, **settings) == pytest.approx(theirs(15, reference), rel=1e-12)


@pytest.mark.parametrize("kind", SCHEDULES)
def test_warmup_rises_in_equal_steps_and_then_starts_the_schedule(kind: str) -> None:
    settings, _ = SCHEDULES[kind]
    got = rates(19, warmup=4, **settings)
    assert got[:5] == pytest.approx([0.2 * i / 5 for i in (1, 2, 3, 4, 5)], rel=1e-12)
    assert got[4:] == pytest.approx(rates(15, **settings), rel=1e-12)
    warm = theirs(5, lambda o: S.LinearLR(o, start_factor=1 / 5, total_iters=4))
    assert got[:5] == pytest.approx(warm, rel=1e-12)


def test_by_hand() -> None:
    assert rates(3, lr=0.1, kind="constant") == [0.1] * 3
    assert rates(4, lr=1.0, kind="exponential", gamma=0.5) == [1.0, 0.5, 0.25, 0.125]
    assert rates(5, lr=1.0, kind="step", gamma=0.1, every=2) == pytest.approx([1, 1, 0.1, 0.1, 0.01])
    assert rates(4, lr=2.0, kind="cosine") == pytest.approx([2.0, 1 + math.sqrt(0.5), 1.0, 1 - math.sqrt(0.5)])
    assert rates(1, kind="cosine") == [0.2]
    assert rates(2, lr=1.0, warmup=5, kind="cosine") == pytest.approx([1 / 6, 2 / 6])  # warm-up outlives the run


def test_a_round_trains_at_its_rate() -> None:
    """With one SGD step per visit the update is lr times the gradient, so a halved rate halves it."""
    local = {"epochs": None, "steps": 1, "optimizer": {"name": "sgd", "lr": 0.25}}
    plain = toy.simulate(rounds=1, local=local)
    warm = toy.simulate(rounds=1, local={**local, "schedule": {"kind": "constant", "warmup": 1}})
    first, half = (tree.sub(r.state["model"], r.initial["model"]) for r in (plain, warm))
    assert float(tree.norm(first)) > 0.01
    assert float(tree.norm(tree.sub(first, tree.scale(half, 2.0)))) <= 1e-6 * float(tree.norm(first))


# -- learning rates within a visit -------------------------------------------------------------------------------------


@pytest.mark.parametrize("executor", ["loop", "vmap", "debug"])
@pytest.mark.parametrize("work", [{"epochs": 2, "steps": None}, {"epochs": None, "steps": 5}])
def test_the_rate_falls_to_zero_within_a_visit(executor: str, work: dict[str, Any]) -> None:
    """d = w - 1 shrinks by 1 - lr (T - t) / T in step t of T, each client's own T; sum_lr adds the rates up."""
    local = Local(**work, optimizer=Optimizer(lr=0.25), schedule=Schedule(within="linear"))

    def loss(p: Any, batch: Any, key: Any) -> Any:
        return (p["w"] - 1) ** 2 / 2 * torch.ones_like(batch["w"])

    def end(client: Any, carry: Any) -> Any:
        return {"w": carry["model"]["w"], "sum": client.info.sum_lr, "steps": client.info.steps}, client.own

    fed = toy.federation(toy.config())
    sampler = BatchSampler(fed, seed=1, batch_size=8, device="cpu", dtype=torch.float64)
    visit = sgd_visit(loss, local, end=end)
    cohort = sampler.cohort(visit, range(6), dispatch=1, round=1, rounds=1, lr=0.25)
    shared = {"model": {"w": torch.zeros((), dtype=torch.float64)}}
    data = {n: torch.tensor(a) for n, a in fed.arrays.items()}
    pieces = [parts for _, parts, _, _ in execute.execute_visit(executor, visit, cohort, shared, {}, {}, data)]
    got = {n: torch.cat([p[n] for p in pieces]).tolist() for n in ("w", "sum", "steps")}
    sizes = [len(fed.train[i]) for i in range(6)]
    steps = [local.steps or 2 * math.ceil(n / 8) for n in sizes]
    assert len(set(sizes)) > 2 and got["steps"] == steps
    for w, total, t in zip(got["w"], got["sum"], steps, strict=True):
        rates = [0.25 * (t - i) / t for i in range(t)]
        assert 1 - w == pytest.approx(math.prod(1 - r for r in rates), rel=1e-12)
        assert total == pytest.approx(sum(rates), rel=1e-6)


def test_what_divides_by_the_rates_knows_of_it() -> None:
    falls = {"local": {"schedule": {"within": "linear"}}, "federation": {"per_round": 1}}
    done = toy.simulate("scaffold", rounds=1, dtype="float64", **falls)
    ((client, state),) = done.clients().items()
    c = toy.config("scaffold", **falls)
    lr, examples = c.local.optimizer.lr, len(toy.federation(c).train[int(client)])
    t = (c.local.epochs or 1) * math.ceil(examples / c.local.batch_size)
    went = tree.sub(done.initial["model"], done.state["model"])
    assert float(tree.norm(went)) > 0.01 and t > 1
    for a, b in zip(tree.values(went), tree.values(state["c_i"]), strict=True):
        torch.testing.assert_close(a, b * lr * (t + 1) / 2)
    with pytest.raises(ConfigError, match=r"local.schedule.within: fednova's norm .* allowed: constant"):
        toy.simulate("fednova", **falls)
