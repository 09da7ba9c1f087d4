"""MAO: negatives by names, labels that are made up, and averages over rounds."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from rayfed import tree
from rayfed.methods.mao import density, similar_classes
from tests import toy
from tests.configs import refusal

PUBLIC = {"federation": {"public": {"rows": 10, "classes": "new"}}}
BARE = {"text_reg": 0.0, "image_reg": 0.0, "logit_reg": 0.0}

pytestmark = pytest.mark.usefixtures("on_bert")  # federations by hand start from a base, as runs do


def run(method: str = "mao", rounds: int = 1, **settings: Any) -> toy.Result:
    return toy.simulate({"name": method, **settings}, rounds=rounds, **toy.merge(toy.TOWERS, PUBLIC))


def test_by_hand() -> None:
    """Weights of three rounds with their peak in the second, deviation 1: e^-1/2, 1, e^-1/2."""
    assert [density(t, 3, 2 / 3, 1.0) for t in (1, 2, 3)] == pytest.approx([math.exp(-0.5), 1, math.exp(-0.5)])
    names = torch.nn.functional.normalize(torch.tensor([[1.0, 0], [1, 0.1], [0, 1], [0.2, 1]]), dim=-1)
    assert similar_classes(names, torch.tensor([0, 1, 3]), 2).tolist() == [[0, 1], [1, 0], [3, 1], [3, 1]]


def test_without_negatives_against_all_classes_it_is_cross_entropy_to_the_bit() -> None:
    plain, ours = run("fedavg"), run(k=1, candidates="all", base_rounds=1, **BARE)
    assert tree.same(ours.state["theta"], plain.state["model"])
    assert tree.same(ours.state["model"]["base"], plain.state["model"]), "the first round alone has all of the weight"
    other = run(k=2, base_rounds=1, **BARE)
    assert not tree.same(other.state["theta"], plain.state["model"])


@pytest.fixture(scope="module")
def three(on_bert: Any) -> toy.Result:
    """Two rounds of step A and one of step B."""
    return run(rounds=3, base_rounds=2, new_rounds=1, k=2, peak=0.5)


def test_step_b_reads_no_label_and_leaves_base_prompts_alone(three: toy.Result) -> None:
    federation = three.fed.federation
    assert (federation.arrays["y"][federation.public] == -1).all()
    first = run(rounds=2, base_rounds=2, new_rounds=1, k=2, peak=0.5)
    assert tree.same(first.state["model"]["base"], three.state["model"]["base"])
    assert tree.same(first.state["model"]["base"], first.state["model"]["new"])
    assert not tree.same(three.state["model"]["base"], three.state["model"]["new"])
    task, x = three.fed.task, torch.as_tensor(federation.arrays["x"][:5])
    both = three.state["model"]
    served = three.fed.method.logits(task, both, x)
    assert torch.equal(served[:, task.base], task.apply(both["base"], x)[:, task.base])
    assert torch.equal(served[:, task.new], task.apply(both["new"], x)[:, task.new])


def test_the_averages_weights_sum_to_one(three: toy.Result) -> None:
    one = run(rounds=1, base_rounds=2, new_rounds=1, k=2, peak=0.5).state["theta"]
    two = run(rounds=2, base_rounds=2, new_rounds=1, k=2, peak=0.5).state
    a, b = (density(t, 2, 0.5, 1.0) for t in (1, 2))
    wanted = tree.map(lambda x, y: (a * x + b * y) / (a + b), one, two["theta"])
    for n, x in two["model"]["base"].items():
        torch.testing.assert_close(x, wanted[n])


def test_weights_too_small_for_numbers_leave_prompts_finite() -> None:
    """The first of 100 rounds weighs e^-2775: it stands alone until another comes."""
    one = run(k=1, candidates="all", base_rounds=100, new_rounds=0, **BARE)
    assert tree.same(one.state["model"]["base"], one.state["theta"])


def test_regularisers_are_zero_where_features_are_the_frozen_ones(three: toy.Result) -> None:
    task, method = three.fed.task, three.fed.method
    batch = task.batch({n: a[:4] for n, a in three.fed.federation.arrays.items()})
    v0, t0 = task.image_features(task.plain, batch["x"]), task.anchors[task.base]
    zero = method._regularised(task, torch.zeros(4), v0, t0, task.base, batch, None)
    assert not zero.any()
    other = method._regularised(task, torch.zeros(4), -v0, t0, task.base, batch, None)
    assert bool((other > 1).all())


def test_refused() -> None:
    said = refusal(toy.config, "mao", **toy.TOWERS)
    assert (
        "federation.public: rows: 0, classes: any, labels: false found, method.new_rounds: 5 learns from unlabelled"
        in said
    )
    assert "adapter.kind: none found, method.name: mao needs prompts" in refusal(toy.config, "mao")
