"""SFPrompt: the body left out and passed, the hardest rows kept, and what crosses."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from rayfed import cut, tree
from rayfed.errors import ConfigError
from rayfed.methods.sfprompt import el2n, short_path, threshold, tuned
from rayfed.training import gradient
from tests import toy

OnBert = Callable[[dict[str, Any]], dict[str, Any]]
SPLIT: dict[str, Any] = {"task": {"split": {"after": ["embeddings", "layer.0"]}}}
PROMPT = toy.merge(SPLIT, {"adapter": {"kind": "prompt", "tokens": 3}})
WORK = {"local": {"epochs": 1, "steps": None, "batch_size": 8}}


def test_scores_by_hand() -> None:
    """softmax (0.7, 0.2, 0.1): label 0 gives sqrt(0.09 + 0.04 + 0.01), label 2 sqrt(0.49 + 0.04 + 0.81)."""
    z = torch.log(torch.tensor([[0.7, 0.2, 0.1], [0.7, 0.2, 0.1], [1.0, 1e-30, 1e-30]]))
    found = el2n(z, torch.tensor([0, 2, 1]))
    torch.testing.assert_close(found, torch.tensor([0.14, 1.34, 2.0]).sqrt())


@pytest.mark.parametrize("keep", [0.5, 0.34, 1.0, 1e-3])
def test_so_many_are_kept(keep: float) -> None:
    scores = torch.tensor([0.3, 1.1, 0.0, 0.7, 0.2, -1.0, -1.0])
    least = threshold(scores, torch.tensor(5.0), keep)
    assert int((scores[:5] > least).sum()) == max(1, math.ceil(keep * 5 - 1e-6))


@pytest.fixture(scope="module")
def runs(on_bert: OnBert) -> dict[str, Any]:
    def run(changes: Any = PROMPT, **settings: Any) -> Any:
        return toy.simulate(
            {"name": "sfprompt", **settings}, rounds=1, dtype="float64", **on_bert(toy.merge(changes, WORK))
        )

    bare = toy.merge(SPLIT, {"adapter": {"kind": "head"}})
    return {"half": run(), "plain": run(keep=1.0, local_epochs=0), "bare": run(bare, keep=1.0, local_epochs=0)}


def sizes(done: Any) -> list[int]:
    return [len(done.fed.federation.train[c]) for c in done.fed.drawn[0].ids]


def test_head_and_body_never_move_and_tail_and_prompt_do(runs: dict[str, Any]) -> None:
    for done in runs.values():
        moved = {n for n, p in done.state["model"].items() if not torch.equal(p, done.initial["model"][n])}
        assert not any("bert.encoder" in n or "bert.embeddings" in n for n in done.state["model"])
        assert any("pooler" in n for n in moved) and any("classifier" in n for n in moved)
    assert any("prompt" in n for n in runs["half"].state["model"])


def test_four_messages_of_each_kept_row_by_hand(runs: dict[str, Any]) -> None:
    """(T + P) d = (8 + 3) 16 float64 numbers; kept are ceil(n / 2) of each client's n rows."""
    one = (8 + 3) * 16 * 8
    for name, rows in (
        ("plain", sum(sizes(runs["plain"]))),
        ("half", sum(math.ceil(n / 2) for n in sizes(runs["half"]))),
    ):
        row = runs[name].rows[0]
        assert row["bytes/cut/up"] == row["bytes/cut/down"] == 2 * rows * one, name
    assert runs["half"].rows[0]["sfprompt/kept"] == pytest.approx(
        sum(math.ceil(n / 2) for n in sizes(runs["half"])) / sum(sizes(runs["half"]))
    )


def test_without_a_prompt_no_gradient_crosses(runs: dict[str, Any]) -> None:
    rows, one = sum(sizes(runs["bare"])), 8 * 16 * 8
    assert runs["bare"].rows[0]["bytes/cut/up"] == runs["bare"].rows[0]["bytes/cut/down"] == rows * one


def test_the_split_networks_gradient_is_the_whole_ones(runs: dict[str, Any]) -> None:
    task, params = runs["half"].fed.task, runs["half"].initial["model"]
    rows = runs["half"].fed.federation.train[0][:5]
    batch = task.batch({n: a[rows] for n, a in runs["half"].fed.federation.arrays.items()})
    whole = gradient(task.loss, params, batch, torch.tensor(1))
    with task.crossing(cut.Crossings(torch.tensor(0))):
        split = gradient(task.loss, params, batch, torch.tensor(1))
    assert tree.same(whole, split) and params.keys() == tuned(task, task.params_like).keys()
    apart = short_path(task, params, batch["x"]) - task.apply(params, batch["x"])
    assert float(apart.abs().max()) > 1e-3  # the body is left out


def test_what_it_needs_is_said(on_bert: OnBert) -> None:
    with pytest.raises(ConfigError, match=r"task.split.after: nothing found, method.name: sfprompt needs two"):
        toy.config("sfprompt", **on_bert({"adapter": {"kind": "head"}}))
    with pytest.raises(
        ConfigError, match=r"adapter.kind: lora found, method.name: sfprompt needs vpt or prompt or head"
    ):
        toy.config("sfprompt", **on_bert(SPLIT))
