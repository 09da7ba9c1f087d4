"""Local optimizers against torch.optim."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from rayfed import optimizers, tree
from rayfed.config.schema import Optimizer
from rayfed.errors import ConfigError
from tests import toy

SHAPES = {"body.w": (4, 3), "head": {"b": (5,), "s": ()}}
STEPS = 25


def draw(seed: int) -> tree.Tree:
    g = torch.Generator().manual_seed(seed)
    return tree.map(
        lambda s: torch.randn(s, generator=g, dtype=torch.float64),
        {"body.w": SHAPES["body.w"], "head.b": SHAPES["head"]["b"], "head.s": SHAPES["head"]["s"]},
    )


def gradient(params: tree.Tree, t: int) -> tree.Tree:
    """Depends on where the parameters are, so that a wrong step goes on to other gradients; some entries are 0."""
    noise = draw(100 + t)
    return tree.map(lambda p, n: torch.where(n > 1.5, 0.0, torch.sin(3 * p) + 0.3 * n), params, noise)


CASES: dict[str, tuple[dict[str, Any], Any]] = {
    "sgd": ({"name": "sgd"}, lambda p: torch.optim.SGD(p, lr=0.05)),
    "decay": (
        {"name": "sgd", "weight_decay": 0.3},
        lambda p: torch.optim.SGD(p, lr=0.05, weight_decay=0.3),
    ),
    "momentum": ({"name": "sgd", "momentum": 0.9}, lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9)),
    "nesterov": (
        {"name": "sgd", "momentum": 0.8, "nesterov": True, "weight_decay": 0.1},
        lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.8, nesterov=True, weight_decay=0.1),
    ),
    "adam": ({"name": "adam"}, lambda p: torch.optim.Adam(p, lr=0.05)),
    "adam decay": (
        {"name": "adam", "weight_decay": 0.2, "betas": (0.7, 0.95), "eps": 1e-3},
        lambda p: torch.optim.Adam(p, lr=0.05, weight_decay=0.2, betas=(0.7, 0.95), eps=1e-3),
    ),
    "adamw": (
        {"name": "adamw", "weight_decay": 0.2, "eps": 1e-5},
        lambda p: torch.optim.AdamW(p, lr=0.05, weight_decay=0.2, eps=1e-5),
    ),
    # PyTorch's own default differs (0.01): what counts is that none is asked for
    "adamw without": ({"name": "adamw"}, lambda p: torch.optim.AdamW(p, lr=0.05, weight_decay=0.0)),
}


@pytest.mark.parametrize("case", CASES)
def test_as_torch_does(case: str) -> None:
    settings, reference = CASES[case]
    ours, opt = draw(0), optimizers.make(Optimizer(lr=0.05, **settings))
    state = opt.init(ours)
    theirs = {n: p.clone().requires_grad_() for n, p in draw(0).items()}
    ref = reference(list(theirs.values()))
    for t in range(STEPS):
        ours, state = opt.update(gradient(ours, t), state, ours, 0.05)
        for n, g in gradient(tree.detach(theirs), t).items():
            theirs[n].grad = g
        ref.step()
        gap = max(float((ours[n] - theirs[n].detach()).abs().max()) for n in ours)
        assert gap <= 1e-12, f"step {t}: {gap}"
    assert min(float((ours[n] - p).abs().max()) for n, p in draw(0).items()) > 1e-2  # they did move


@pytest.mark.parametrize("case", CASES)
def test_pure_and_vectorisable(case: str) -> None:
    """Arguments stay as they are, the state keeps its structure, and three clients at once are three alone."""
    opt = optimizers.make(Optimizer(**CASES[case][0]))
    params = [draw(i) for i in range(3)]
    grads = [[gradient(p, t) for p in params] for t in range(4)]
    before = copy.deepcopy((params, grads))
    lr = torch.tensor([0.1, 0.02, 0.5], dtype=torch.float64)

    def several(p: tree.Tree, gs: tree.Tree, rate: Any) -> tuple[tree.Tree, tree.Tree]:
        s = opt.init(p)
        shape = [path for path, _ in tree.leaves(s)]
        for t in range(4):
            p, s = opt.update(tree.pick(gs, t), s, p, rate)
            assert [path for path, _ in tree.leaves(s)] == shape
        return p, s

    by_client = [tree.stack([grads[t][i] for t in range(4)]) for i in range(3)]
    many = torch.vmap(several)(tree.stack(params), tree.stack(by_client), lr)
    for i in range(3):
        alone = several(params[i], by_client[i], lr[i])
        for a, b in zip(tree.values(alone[0]), tree.values(tree.pick(many[0], i)), strict=True):
            assert torch.allclose(a, b, rtol=0, atol=1e-14)
    assert all(tree.same(a, b) for a, b in zip(params, before[0], strict=True))
    assert all(tree.same(a, b) for x, y in zip(grads, before[1], strict=True) for a, b in zip(x, y, strict=True))


def test_states_hold_what_they_say() -> None:
    p = draw(0)
    assert optimizers.sgd().init(p) == {}
    assert tree.same(optimizers.sgd(0.5).init(p), {"velocity": tree.zeros(p)})
    assert list(optimizers.adam().init(p)) == ["m", "v", "t"]
    half = tree.map(lambda x: x.float(), p)
    assert all(x.dtype == torch.float32 for x in tree.values(optimizers.adam().init(half)))


# -- classes by their path ---------------------------------------------------------------------------------------------

BY_PATH: dict[str, tuple[dict[str, Any], Any]] = {
    "RMSprop": ({"alpha": 0.9, "momentum": 0.5}, lambda p: torch.optim.RMSprop(p, lr=0.05, alpha=0.9, momentum=0.5)),
    "Adagrad": ({}, lambda p: torch.optim.Adagrad(p, lr=0.05)),
    "NAdam": ({"momentum_decay": 0.01}, lambda p: torch.optim.NAdam(p, lr=0.05, momentum_decay=0.01)),
    "Adadelta": ({}, lambda p: torch.optim.Adadelta(p, lr=0.05)),
    "SGD": ({"momentum": 0.9}, lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9)),
}


@pytest.mark.parametrize("name", BY_PATH)
def test_a_class_by_its_path_is_itself(name: str) -> None:
    options, reference = BY_PATH[name]
    ours, opt = draw(0), optimizers.make(Optimizer(name=f"torch.optim.{name}", lr=0.05, options=options))
    state = opt.init(ours)
    theirs = {n: p.clone().requires_grad_() for n, p in draw(0).items()}
    ref = reference(list(theirs.values()))
    for t in range(STEPS):
        ours, state = opt.update(gradient(ours, t), state, ours, torch.tensor(0.05, dtype=torch.float64))
        for n, g in gradient(tree.detach(theirs), t).items():
            theirs[n].grad = g
        ref.step()
    assert max(float((ours[n] - theirs[n].detach()).abs().max()) for n in ours) <= 1e-12
    assert all(isinstance(x, torch.Tensor) for x in tree.values(state))


def test_our_adam_is_the_path_to_torchs() -> None:
    local = {"optimizer": {"name": "torch.optim.AdamW", "lr": 0.01, "options": {"weight_decay": 0.1}}}
    own = {"optimizer": {"name": "adamw", "lr": 0.01, "weight_decay": 0.1}}
    a, b = (toy.simulate(dtype="float64", local=x).state for x in (local, own))
    assert float(tree.norm(tree.sub(a, b))) < 1e-9


def test_it_runs_for_one_client_at_a_time_and_says_so() -> None:
    local = {"optimizer": {"name": "torch.optim.RMSprop", "lr": 0.01}}
    loop, debug = (toy.simulate("ifca", executor=e, local=local) for e in ("loop", "debug"))
    assert tree.same(loop.state, debug.state)
    for executor in ("vmap", "compiled"):
        with pytest.raises(ConfigError, match=rf"resources.executor: {executor} found, but .* one at a time"):
            toy.config(executor=executor, local=local)


@pytest.mark.parametrize(
    ("optimizer", "said"),
    [
        ({"name": "torch.optim.RMSprob"}, "is no optimizer class (did you mean 'RMSprop'?)"),
        ({"name": "nowhere.RMSprop"}, "'nowhere.RMSprop' cannot be imported"),
        ({"name": "torch.optim.LBFGS"}, "torch.optim.LBFGS with options {} raised TypeError"),
        ({"name": "torch.optim.RMSprop", "options": {"alfa": 0.5}}, "with options {'alfa': 0.5} raised TypeError"),
        ({"name": "torch.optim.RMSprop", "momentum": 0.5}, "local.optimizer.momentum: 0.5 found, but nothing reads it"),
        (
            {"options": {"alpha": 0.5}},
            "local.optimizer.options: {'alpha': 0.5} found, but nothing reads it with name: sgd",
        ),
    ],
)
def test_what_is_wrong_with_a_path_is_said(optimizer: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        toy.config(local={"optimizer": optimizer})
    assert any(said in p for p in caught.value.problems), caught.value.problems
