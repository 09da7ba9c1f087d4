"""DPC: two prompts, hard negatives, and what they reduce to."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from rayfed import tree
from rayfed.methods._bases.over_prompts import contrast, enlarged, hard_negatives
from rayfed.methods.dpc import recovered
from tests import toy

KEY = torch.tensor(5)

pytestmark = pytest.mark.usefixtures("on_bert")  # federations by hand start from a base, as runs do


def run(method: str = "dpc", rounds: int = 2, **settings: Any) -> toy.Result:
    return toy.simulate({"name": method, **settings}, rounds=rounds, **toy.TOWERS)


def test_by_hand() -> None:
    """Two pairs with features on the axes, s = 2: S = [[2, 0], [0, 2]], a row's loss is log(1 + e^-2) both ways; of one pair alone 0."""
    eye = torch.eye(2)
    wanted = torch.full((2,), math.log(1 + math.exp(-2)))
    torch.testing.assert_close(contrast(eye, eye, 2.0, torch.ones(2), True), wanted)
    # the texts turned round: S = [[0, 2], [2, 0]]
    torch.testing.assert_close(contrast(eye, eye.flip(0), 2.0, torch.ones(2), True), wanted + 2)
    alone = contrast(eye, eye.flip(0), 2.0, torch.tensor([1.0, 0.0]), True)
    assert float(alone[0]) == 0.0 and bool(alone.isfinite().all())


def test_negatives_are_unique_and_no_rows_own() -> None:
    """Of row 0's hardest 0, 1, 2 only 2 is left, so one more comes at random; row 1 gets what remains of 2, 3, 4; row 2 is padding."""
    y, there = torch.tensor([0, 1, 5]), torch.tensor([1.0, 1, 1, 1, 1, 1, 0])
    ranked = torch.tensor([[0, 1, 2], [2, 3, 4], [6, 6, 6]])
    chosen = hard_negatives(ranked, y, torch.tensor([1.0, 1, 0]), there, KEY)
    assert chosen.tolist() == [False, False, True, True, True, True, False] or chosen.tolist() == [
        False,
        False,
        True,
        True,
        True,
        False,
        False,
    ]
    only = hard_negatives(ranked[:1], y[:1], torch.ones(1), there, KEY)
    assert only.sum() == 2 and not only[0], "class 6 has no picture, and two are enough"
    carry = {"pool": torch.arange(7.0)[:, None, None].expand(7, 3, 1)}
    big = enlarged({"x": torch.zeros(1, 1), "y": y[:1], "w": torch.ones(1)}, carry, only, 4, KEY)
    assert big["w"].tolist() == [1, 1, 1, 0, 0] and big["y"][1:3].tolist() == only.nonzero()[:, 0].tolist()
    assert big["x"][1:, 0].tolist() == big["y"][1:].tolist(), "pictures of their own classes"


def test_a_step_on_the_mixture_moves_the_second_prompt_by_one_over_w_squared() -> None:
    p, own, w = {"t": torch.tensor([1.0])}, {"t": torch.tensor([3.0])}, 0.2
    m = {"t": w * own["t"] + (1 - w) * p["t"]}
    torch.testing.assert_close(recovered(m, p, w), own)
    slope = torch.func.grad(lambda m: (recovered(m, p, w)["t"] ** 2 / 2).sum())(m)  # in P' it is P' = 3
    after = recovered(tree.add(m, slope, -0.01), p, w)
    torch.testing.assert_close(own["t"] - after["t"], torch.tensor([0.01 / w**2 * 3.0]))


@pytest.fixture(scope="module")
def both(on_bert: Any) -> tuple[toy.Result, toy.Result]:
    """Stage 1 alone, and followed by a round of stage 2."""
    return run("fedavg", rounds=1), run(stage_rounds=1)


def test_stage_1_is_fedavg_and_new_classes_are_answered_as_before_to_the_bit(
    both: tuple[toy.Result, toy.Result],
) -> None:
    first, second = both
    assert tree.same(first.state, second.state)
    task, x = second.fed.task, torch.as_tensor(second.fed.federation.arrays["x"][:6])
    p, states = second.state["model"], [s for s in second.clients().values() if float(s["trained"])]
    assert len(states) == 2, "the clients of stage 2"
    for own in states:
        assert float(tree.norm(tree.sub(own["mixed"], p))) > 0
        served = second.fed.method.logits(task, {"base": own["mixed"], "new": p}, x)
        assert torch.equal(served[:, task.new], task.apply(p, x)[:, task.new])
        assert not torch.equal(served[:, task.base], task.apply(p, x)[:, task.base])
    row, _ = second.scores()
    assert second.rows[1]["bytes/up"] == 0 < second.rows[0]["bytes/up"], "P' stays where it is"
    assert 0 <= row["accuracy/global"] <= 1


def test_without_a_step_the_mixture_is_the_first_prompt(both: tuple[toy.Result, toy.Result]) -> None:
    p = both[0].state["model"]
    torch.testing.assert_close(recovered(p, p, 0.3)["context.tokens"], p["context.tokens"], rtol=1e-5, atol=1e-6)
    assert tree.same(recovered(p, p, 1.0), p), "w_b = 1: M is P'"
