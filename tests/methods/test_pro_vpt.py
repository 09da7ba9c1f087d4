"""PRO-VPT: scores, moves and the policy, and what it reduces to without a move."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rayfed import tree
from rayfed.config.schema import TINY_PAIR
from rayfed.methods.pro_vpt import (
    answer,
    candidate,
    learned,
    moved,
    names,
    network,
    nothing_yet,
    objective,
    rewarded,
    situation,
)
from tests import toy
from tests.configs import refusal
from tests.tiny import make_vit

pytestmark = pytest.mark.usefixtures("on_bert")  # federations by hand start from a base, as runs do
VIT: dict[str, Any] = {
    "task": {
        "data": {"name": "synthetic:images", "classes": 4, "examples": 48, "test": 8, "size": 8},
        "model": {"name": f"hf:{Path(TINY_PAIR).with_name('tiny-vit-digits')}"},
    },
    "adapter": {"kind": "vpt", "tokens": 2},
    "federation": {"clients": 3, "per_round": 2, "partition": {"kind": "iid"}, "groups": {"kind": "none"}},
    "local": {"epochs": None, "steps": 1, "batch_size": 4, "optimizer": {"lr": 0.02}},
}


def run(method: str = "pro_vpt", rounds: int = 1, **settings: Any) -> toy.Result:
    return toy.simulate({"name": method, **settings}, rounds=rounds, dtype="float64", **VIT)


def test_by_hand() -> None:
    """The largest score is the second block's first; it leaves, a thousandth of itself, for the first block's end."""
    scores = [torch.tensor([0.1, -0.2]), torch.tensor([0.3, 0.3]), torch.zeros(0)]
    assert candidate(scores) == (1, 0, pytest.approx(0.3))
    model = {"a": torch.tensor([[1.0], [2]]), "b": torch.tensor([[3.0], [4]]), "c": torch.zeros(0, 1)}
    after = moved(model, "b", 0, "a")
    assert [after[n].flatten().tolist() for n in "abc"] == [[1, 2, pytest.approx(0.003)], [4], []]
    assert moved(model, "b", 0, "b") is model, "no scaling without a move"
    seen = situation(scores, 1)
    sums = torch.tensor([-0.1, 0.6, 0.0], dtype=torch.float64)
    wanted = (sums - sums.mean()) / sums.std(correction=0)
    torch.testing.assert_close(seen[:3], wanted, rtol=1e-5, atol=1e-6)
    assert seen[3:].tolist() == [2 / 3, 1 / 3, 0, 0, 1, 0]


def test_rewards() -> None:
    """L fell from 1 to 0.7 where 0.1 was predicted: 0.2. A win, since 0.7 + 0.1 <= 1; with 0.95 afterwards it is a loss."""
    last = {**nothing_yet(2), "pending": torch.tensor([1.0, 1.0, 0.1, 1.0, 0.0], dtype=torch.float64)}
    bandit = {"wins": torch.zeros(2, 2, dtype=torch.float64)}
    assert rewarded(bandit, last, 0.7)[0]["wins"].tolist() == [[0, 1], [0, 0]]
    assert rewarded(bandit, last, 0.95)[0]["wins"].tolist() == [[0, 0], [0, 1]]
    policy, after = rewarded({"actor": {}}, last, 0.7)
    assert after["rewards"].tolist() == [pytest.approx(0.2)] and not after["pending"].any()
    assert rewarded(policy, after, 0.5)[1] is after, "a reward is given once"


def test_the_policy_learns_from_two_rewards() -> None:
    """The move that gave more becomes more likely in its situation; with old and new alike the loss is that by hand."""
    import numpy as np

    rng = np.random.default_rng(0)
    nets = {"actor": network(6, 2, rng), "critic": network(6, 1, rng)}
    states = torch.eye(6, dtype=torch.float64)[:2]
    likely = torch.log_softmax(answer(nets["actor"], states), -1)
    old = {
        "states": states, "done": torch.tensor([0.0, 1.0], dtype=torch.float64),
        "likely": torch.stack([likely[0, 0], likely[1, 1]]), "rewards": torch.tensor([2.0, -1.0], dtype=torch.float64),
    }  # fmt: skip
    value = answer(nets["critic"], states)[:, 0]
    returns = torch.tensor([1.0, -1.0], dtype=torch.float64) / 2**0.5
    entropy = -(likely.exp() * likely).sum(-1).mean()
    by_hand = -(returns - value).mean() + 0.5 * (value - returns).square().mean() - 0.01 * entropy
    torch.testing.assert_close(objective(nets, old, returns, returns - value), by_hand)
    from rayfed import optimizers

    adam = {f"adam_{n}": optimizers.adam().init(p) for n, p in nets.items()}
    after = torch.log_softmax(answer(learned({**nets, **adam}, old)["actor"], states), -1)
    assert after[0, 0] > likely[0, 0] and after[1, 1] < likely[1, 1]


def test_without_a_move_it_is_vpt_deep_to_the_bit() -> None:
    plain, ours = run("fedavg", 2), run(rounds=2, warmup=2)
    assert tree.same(plain.state["model"], ours.state["model"])


@pytest.fixture(scope="module")
def three(on_bert: Any) -> toy.Result:
    return run(rounds=3, policy="random", warmup=0, scores="removal")


def test_the_number_of_prompts_stays(three: toy.Result) -> None:
    task, model = three.fed.task, three.state["model"]
    counts = [len(model[n]) for n in names(task)]
    assert sum(counts) == 8 and counts != [2, 2, 2, 2], "a prompt has moved"
    assert [r["prompts/moved"] for r in three.rows].count(1.0) >= 1 and three.rows[-1]["prompts/most"] == max(counts)
    assert {n: p.shape for n, p in model.items() if n not in names(task)} == {
        n: p.shape for n, p in task.params_like.items() if n not in names(task)
    }
    row, _ = three.scores()
    assert 0 <= row["accuracy/global"] <= 1, "blocks of any number are scored"


@pytest.mark.parametrize("how", ["gate", "removal"])
def test_scores_are_what_a_gate_or_a_missing_prompt_changes(how: str, on_bert: Any, tmp_path: Path) -> None:
    """By hand on a client's rows; the gate by a finite difference, on a network whose normalisation has a large epsilon."""
    make_vit(tmp_path, layer_norm_eps=0.1)
    one = toy.merge(VIT, {"task": {"model": {"name": f"hf:{tmp_path}"}}})
    fed = toy.make_fed(toy.config({"name": "pro_vpt", "scores": how}, dtype="float64", **one))
    task, model = fed.task, fed.task.initial
    fed.begin(1, False)
    got = fed.ask(fed.method.score, [0], shared={"model": model})
    found = got.gather("scores")[0]
    batch = task.batch({n: a[fed.federation.train[0]] for n, a in fed.federation.arrays.items()})

    def loss(params: Any) -> float:
        return float(task.loss(params, batch).mean())

    for n in names(task):
        if how == "gate":  # transformers' softmax is in float32, so no smaller a step
            more, less = ({**model, n: torch.cat([g * model[n][:1], model[n][1:]])} for g in (1.02, 0.98))
            wanted = (loss(more) - loss(less)) / 0.04
        else:
            wanted = loss(model) - loss({**model, n: model[n][1:]})
        assert abs(wanted) > 1e-5 and float(found[n][0]) == pytest.approx(wanted, rel=1e-2, abs=2e-6)
    assert float(got.gather("loss")[0]) == pytest.approx(loss(model))


def test_refused() -> None:
    shallow = toy.merge(VIT, {"adapter": {"deep": False}})
    assert "adapter.deep: false found, allowed with method.name: pro_vpt: true" in refusal(
        toy.config, "pro_vpt", **shallow
    )
