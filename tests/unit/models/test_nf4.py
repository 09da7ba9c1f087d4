"""Frozen layers in four bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from rayfed import partition
from rayfed import task as tasks
from rayfed.models import nf4
from rayfed.models.start import start_from
from tests import toy
from tests.configs import refusal
from tests.tiny import KINDS, changes


def test_by_hand() -> None:
    """A block of largest magnitude 2 has its levels doubled; between two the nearer one counts. 70 weights are two blocks."""
    w = torch.zeros(70)
    w[:4], w[69] = torch.tensor([2.0, -2.0, 0.17, 1.5]), 0.5
    codes, scale = nf4.quantised(w)
    assert codes.shape == (64,) and codes.dtype == torch.uint8 and scale.tolist() == [2.0, 0.5]
    found = nf4.restored(codes, scale, (70,), torch.float32)
    wanted = torch.tensor([2.0, -2.0, 2 * nf4.LEVELS[8], 2 * nf4.LEVELS[14]])
    torch.testing.assert_close(found[:4], wanted)
    assert not found[4:69].any() and found[69] == 0.5
    again = nf4.restored(*nf4.quantised(found), (70,), torch.float32)
    assert torch.equal(again, found), "what is in four bits stays as it is"


def test_a_layer_is_that_with_the_rounded_weights() -> None:
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(32, 16), nn.Linear(16, 8)).requires_grad_(False)
    plain = nn.Sequential(nn.Linear(32, 16), nn.Linear(16, 8)).requires_grad_(False)
    plain.load_state_dict(made.state_dict())
    w = made[0].weight.clone()
    assert nf4.install(made, lambda name: name == "1.weight") == 1
    plain[0].weight.copy_(made[0].weight)
    x = torch.rand(4, 32)
    assert torch.equal(made(x), plain(x))
    assert 0 < (made[0].weight - w).abs().max() <= 0.16 * w.abs().max(), (
        "half of the widest gap between levels, at most"
    )
    held = sum(b.numel() * b.element_size() for b in made[0].buffers())
    assert held == 32 * 16 // 2 + 32 * 16 // 64 * 4
    slope = torch.func.grad(lambda x: made(x).sum())(x)
    torch.testing.assert_close(slope, torch.func.grad(lambda x: plain(x).sum())(x))


def test_adapters_on_a_base_in_four_bits(spread_places: dict[str, Path]) -> None:
    """LoRA's gradients are those on the rounded base; several clients in one pass are what one by one gives."""

    def made(**more: Any) -> Any:
        c = toy.config(**toy.merge(changes(spread_places), {"task": {"model": {"head": "mean", **more}}}))
        f = partition.build(c)
        return tasks.of(f.task)(c, f, "cpu", start_from(c)), f

    (task, f), (plain, _) = made(base="nf4"), made()
    layers = [m for m in task._module.modules() if isinstance(m, nf4.NF4Linear)]
    assert len(layers) == 13, "six in each of two blocks, and the pooler; tables stay"
    assert task.params_like.keys() == plain.params_like.keys()
    for a, b in zip(task._module.modules(), plain._module.modules(), strict=True):
        if isinstance(a, nf4.NF4Linear):
            b.weight.data = a.weight.clone()
    batch = task.batch({n: x[:4] for n, x in f.arrays.items()})
    slopes = [torch.func.grad(lambda p, t=t: t.loss(p, batch).mean())(task.initial) for t in (task, plain)]
    for n, g in slopes[0].items():
        torch.testing.assert_close(g, slopes[1][n], rtol=1e-4, atol=1e-6)
    each = [task.fresh_params(k) for k in range(2)]
    stacked = {n: torch.stack([p[n] for p in each]) for n in each[0]}
    both = torch.func.vmap(lambda p: task.apply(p, batch["x"]))(stacked)
    torch.testing.assert_close(both, torch.stack([task.apply(p, batch["x"]) for p in each]), rtol=1e-4, atol=1e-5)


def test_refused(spread_places: dict[str, Path]) -> None:
    four = {"task": {"model": {"base": "nf4"}}}
    for method, more, said in (
        (
            "fedavg",
            {"adapter": KINDS["full"]},
            "task.model.base: nf4 found, of adapter.kind: full whole networks are kept",
        ),
        ("flora", {}, "task.model.base: nf4 found, method.name: flora works on frozen weights; allowed: float"),
        (
            "fedavg",
            {"task": {"model": {"base": "nf5"}}},
            "task.model.base: 'nf5' found (did you mean 'nf4'?), allowed: float, nf4",
        ),
    ):
        assert said in refusal(toy.config, method, **toy.merge(changes(spread_places), toy.merge(four, more)))
