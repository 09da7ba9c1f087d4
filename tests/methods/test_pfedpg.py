"""pFedPG: generated prompts, and a server whose step brings them nearer to what the clients made of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from rayfed import tree
from rayfed.errors import ConfigError
from rayfed.methods.pfedpg import displacement, generated, prompt_name
from tests import toy
from tests.tiny import WHOLE, Watched, descend

OnBert = Callable[[dict[str, Any]], dict[str, Any]]
PROMPT = {"adapter": {"kind": "prompt", "tokens": 3}}


def parameters(n: int = 4, tokens: int = 3, d: int = 5, k: int = 2) -> Any:
    g = torch.Generator().manual_seed(0)
    shapes = {"base": (tokens, d), "q": (d, k), "k": (d, k), "v": (d, k), "o": (k, d)}
    made = {name: torch.randn(s, generator=g).double() for name, s in shapes.items()}
    return {"generator": made, "descriptors": torch.randn(n, tokens, d, generator=g).double()}


def test_by_hand() -> None:
    """One token of width one: the attention is 1, so P = 2 + 2 * 3 * 1/2 whatever descriptor, query and key are."""
    g = {n: torch.tensor([[v]]) for n, v in {"base": 2.0, "q": 7.0, "k": -3.0, "v": 3.0, "o": 0.5}.items()}
    assert float(generated(g, torch.tensor([[9.0]]))) == 5.0


def test_a_small_step_brings_prompts_nearer_and_no_displacement_moves_nothing() -> None:
    phi, at = parameters(), torch.tensor([0, 2])
    now = generated(phi["generator"], phi["descriptors"][at])
    adapted = now + 0.1 * torch.randn(now.shape, generator=torch.Generator().manual_seed(1)).double()
    slopes = torch.func.grad(lambda p: displacement(p, at, adapted))(phi)
    after = tree.add(phi, slopes, -1e-3)
    nearer = generated(after["generator"], after["descriptors"][at])
    assert float((nearer - adapted).norm()) < float((now - adapted).norm())
    assert not slopes["descriptors"][[1, 3]].any() and slopes["descriptors"][at].abs().min() > 0
    still = torch.func.grad(lambda p: displacement(p, at, now))(phi)
    assert all(not x.any() for x in tree.values(still))


def test_without_the_output_layer_it_is_the_sum_of_displacements() -> None:
    phi, at = parameters(), torch.tensor([0, 1, 3])
    phi["generator"]["o"] = torch.zeros_like(phi["generator"]["o"])
    moves = torch.randn(3, 3, 5, generator=torch.Generator().manual_seed(2)).double()
    prompts = generated(phi["generator"], phi["descriptors"][at])
    assert all(torch.equal(p, phi["generator"]["base"]) for p in prompts)
    slopes = torch.func.grad(lambda p: displacement(p, at, prompts + moves))(phi)
    torch.testing.assert_close(slopes["generator"]["base"], -moves.sum(0))


def test_a_client_starts_from_its_generated_prompt_and_its_own_head(on_bert: OnBert) -> None:
    """One round by torch's own autograd, and the server's step of Adam, whose first one is the rate in each entry."""
    changes = on_bert(toy.merge(WHOLE, PROMPT))
    done = toy.simulate("pfedpg", rounds=1, dtype="float64", kind=Watched, **changes)
    fed, task, first = done.fed, done.fed.task, done.initial
    name, ids = prompt_name(task), fed.drawn[0].ids
    prompts = generated(first["generator"], first["descriptors"][list(ids)])
    adapted = []
    for c, p in zip(ids, prompts, strict=True):
        head = {n: x for n, x in task.initial.items() if n != name}
        trained = descend(fed, c, {**head, name: p}, lambda n: True, 3, 0.5)
        adapted.append(trained[name])
        for n, x in done.clients()[str(c)]["head"].items():
            torch.testing.assert_close(x, trained[n], rtol=1e-8, atol=1e-10)
    phi = {k: first[k] for k in ("generator", "descriptors")}
    at = torch.tensor(ids)
    slopes = torch.func.grad(lambda p: displacement(p, at, torch.stack(adapted)))(phi)
    for x, g, start in zip(*(tree.values({k: t[k] for k in phi}) for t in (done.state, slopes, phi)), strict=True):
        moved = g.abs() > 1e-6
        torch.testing.assert_close((x - start)[moved], -1e-3 * g.sign()[moved], rtol=1e-2, atol=0)


def test_what_travels_is_a_prompt(on_bert: OnBert) -> None:
    done = toy.simulate("pfedpg", rounds=1, **on_bert(PROMPT))
    asked = len(done.fed.drawn[0].ids)
    assert done.rows[0]["bytes/down"] == done.rows[0]["bytes/up"] == asked * 4 * 3 * 16


def test_deep_prompts_are_refused(on_bert: OnBert) -> None:
    with pytest.raises(ConfigError, match=r"adapter.deep: true found, allowed with method.name: pfedpg: false"):
        toy.config("pfedpg", **on_bert({"adapter": {"kind": "vpt"}}))
    with pytest.raises(ConfigError, match=r"adapter.kind: lora found, method.name: pfedpg needs vpt or prompt"):
        toy.config("pfedpg", **on_bert({}))
