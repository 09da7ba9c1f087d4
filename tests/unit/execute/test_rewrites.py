"""What a recording calls in the place of its kernels: the same bits, and nothing of anybody else's is written to."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rayfed import tree
from rayfed.config.schema import Local
from rayfed.execute.tuning import replay, rewrites
from rayfed.execute.tuning.replay import call
from rayfed.training import sgd_visit
from rayfed.visits import ClientContext
from tests.unit.execute.test_replay import calls, recordings

WIDE = 9000  # elements: more than rewrites.LARGE


@pytest.fixture(autouse=True)
def on():
    with replay.using("auto", []):
        yield


def writers(f: Callable[..., Any]) -> list[str]:
    """Names of the kernels that the recordings of f were given to write over an operand."""
    scopes = [r.play.__globals__ for r in recordings(f) if r.play]
    return sorted(str(k) for s in scopes for n, k in s.items() if n[0] == "f" and n[-1] == "o")


def written(f: Callable[..., Any]) -> int:
    """How many calls of f's recordings do write over an operand."""
    return sum(
        n.endswith("o") and n in r.play.__code__.co_names for r in recordings(f) if r.play for n in r.play.__globals__
    )


OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {},
    "decay": {"weight_decay": 0.1},
    "momentum": {"momentum": 0.9},
    "nesterov": {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
    "adam": {"name": "adam", "weight_decay": 0.1},
    "adamw": {"name": "adamw", "weight_decay": 0.1},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("clients", [0, 3])
def test_every_optimizers_update_in_place_has_the_functional_ones_bits(name: str, dtype: Any, clients: int) -> None:
    """Steps of a visit, of one client or of several under vmap; what the visit was given is as it was."""
    made = sgd_visit(loss, Local(optimizer={"lr": 0.1, **OPTIMIZERS[name]}))
    step = made.phases[0].step
    draw = torch.Generator().manual_seed(0)
    axis = (clients,) if clients else ()

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*axis, *shape, generator=draw, dtype=torch.float64).to(dtype)

    shared = {"w": normal(100, WIDE // 100), "b": normal(WIDE)}
    before = tree.map(torch.clone, shared)
    info = SimpleNamespace(lr=torch.tensor(0.1, dtype=dtype), ahead=torch.tensor(9))
    starts = [
        made.phases[0].enter(
            ClientContext(info, {}, {}, {}), {"model": tree.pick(shared, i)} if clients else {"model": shared}
        )
        for i in range(clients or 1)
    ]
    start = tree.stack(starts) if clients else starts[0]
    f = torch.vmap(step) if clients else step

    def run(invoke: Callable[..., Any]) -> list[Any]:
        carry, seen = start, []
        for t in range(8):
            batch = {"x": torch.sin(t + shared["b"]), "w": torch.ones(*axis, 1, dtype=dtype)}
            carry = invoke(carry, batch, torch.zeros(axis, dtype=torch.int64))
            seen.append(tree.map(torch.clone, carry))
        return seen

    plain = run(f)
    played = run(lambda *args: call(step, f, *args))
    assert all(r.plays for r in recordings(step)) and written(step)
    assert all(replay._same(a, b) for a, b in zip(plain, played, strict=True))
    assert replay._same(shared, before)


def loss(params: Any, batch: Any, key: Any) -> torch.Tensor:
    hidden = torch.tanh(params["w"].reshape(-1)) * batch["x"] + torch.relu(params["b"])
    return (hidden**2).mean()[None]


def test_what_two_names_share_is_written_over_once_both_are_read() -> None:
    """Of b_ih + b_hh, as in recurrent layers, the gradients are one tensor under two names."""

    def step(p: Any, x: torch.Tensor) -> Any:
        g = torch.func.grad(lambda p: ((p["a"] + p["b"]) * x).sin().sum())(p)
        return {n: torch.addcmul(p[n], g[n], x[0]) for n in p}

    p = {"a": torch.randn(WIDE), "b": torch.randn(WIDE)}
    x = torch.randn(WIDE)
    out, ran = calls(step, p, x)
    assert ran == 3 and all(replay._same(o, step(p, x)) for o in out)
    assert written(step)


def test_what_is_returned_or_seen_in_a_view_is_kept() -> None:
    def returned(x: torch.Tensor) -> Any:
        y = x * 2
        return y + x, y

    def viewed(x: torch.Tensor) -> Any:
        y = x * 2
        part = y[1:3]
        return y + x, part

    def read_again(x: torch.Tensor) -> Any:
        y = (x * 2).view(-1, 100)
        return y + y.reshape(100, -1).T.reshape(y.shape), y.sum()

    def turned(x: torch.Tensor) -> Any:
        y = (x * 2)[: 90 * 90].clone().view(90, 90)
        return y + y.T

    x = torch.randn(WIDE)
    for f in (returned, viewed, read_again, turned):
        before = x.clone()
        out, ran = calls(f, x)
        assert ran == 3 and not written(f), f.__name__
        assert all(replay._same(o, f(x)) for o in out) and torch.equal(x, before)


def test_arguments_and_constants_are_never_written_to() -> None:
    constant = torch.randn(WIDE)

    def f(x: torch.Tensor) -> torch.Tensor:
        return x.view(-1) + constant

    x, kept = torch.randn(WIDE), constant.clone()
    before = x.clone()
    _, ran = calls(f, x)
    assert ran == 3 and not writers(f) and torch.equal(x, before) and torch.equal(constant, kept)


@pytest.mark.parametrize("seed", range(60))
def test_any_programs_bits_are_the_plain_ones_and_its_inputs_stay(seed: int) -> None:
    """Random programs of elementwise kernels, views and reductions, in which names are read again or returned at random."""
    rng = random.Random(seed)
    plan = [(rng.random(), rng.random(), rng.random()) for _ in range(14)]
    kept = [rng.random() < 0.2 for _ in range(len(plan) + 2)]

    def f(a: torch.Tensor, b: torch.Tensor) -> Any:
        found = [a, b]
        for kind, first, second in plan:
            x, y = (found[int(p * len(found))] for p in (first, second))
            found.append(OPERATIONS[int(kind * len(OPERATIONS))](x, y))
        return tuple([x for x, keep in zip(found, kept, strict=True) if keep]), found[-1]

    draw = torch.Generator().manual_seed(seed)
    args = [torch.randn(96, 96, generator=draw) for _ in range(2)]
    before = [x.clone() for x in args]
    want = tree_clone(f(*args))
    out, _ = calls(f, *args)
    assert all(replay._same(o, want) for o in out)
    assert all(torch.equal(x, y) for x, y in zip(args, before, strict=True))


def tree_clone(x: Any) -> Any:
    return tuple(tree_clone(v) for v in x) if isinstance(x, tuple) else x.clone()


OPERATIONS: list[Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = [
    lambda x, y: x + y,
    lambda x, y: x - y,
    lambda x, y: x * y,
    lambda x, y: torch.addcmul(x, y, y[0, 0]),
    lambda x, y: x.relu(),
    lambda x, y: torch.where(x > y, x, y),
    lambda x, y: x.tanh(),
    lambda x, y: x.T,
    lambda x, y: x.flip(0),
    lambda x, y: (x.view(-1) if x.is_contiguous() else x.reshape(-1)).view(96, 96),
    lambda x, y: x + y[:1],
    lambda x, y: -x,
]


def test_programs_do_write_over_operands() -> None:
    """The random programs above would prove nothing if none of them did."""

    def f(a: torch.Tensor) -> torch.Tensor:
        return ((a * 2).relu() + a).tanh()

    calls(f, torch.randn(WIDE))
    assert written(f) == 3


POOLS = [([2, 2], [2, 2], [0, 0], [1, 1], False), ([3, 3], [2, 2], [1, 1], [1, 1], False), ([2, 2], [2, 2], [0, 0], [1, 1], True),
         ([3, 2], [1, 2], [1, 0], [2, 1], False)]  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("how", POOLS, ids=str)
def test_pooling_finds_the_same_values_in_the_same_places(how: Any, dtype: Any) -> None:
    """Ties, NaN and infinities too; layouts stay."""
    pool = torch.ops.aten.max_pool2d_with_indices.default
    draw = torch.Generator().manual_seed(1)
    for shape, special in itertools.product([(5, 16, 15, 15), (3, 8, 20, 28)], [None, float("nan"), float("-inf")]):
        x = torch.randint(-2, 3, shape, generator=draw).to(dtype)  # full of ties
        if special is not None:
            x[torch.rand(shape, generator=draw) < 0.3] = special
        quick = rewrites.kernel(pool, (x, *how))
        assert quick is rewrites._max_pool
        for a, b in zip(pool(x, *how), quick(x, *how), strict=True):
            assert a.stride() == b.stride() and a.dtype == b.dtype and torch.equal(a.nan_to_num(7), b.nan_to_num(7))
            assert torch.equal(a.isnan(), b.isnan())


def test_pooling_is_left_alone_where_it_is_fast_enough() -> None:
    pool = torch.ops.aten.max_pool2d_with_indices.default
    for x in (
        torch.ones(4, 3, 64, 64),
        torch.ones(1, 8, 4, 4),
        torch.ones(4, 16, 32, 32).to(memory_format=torch.channels_last),
    ):
        assert rewrites.kernel(pool, (x, *POOLS[0])) is rewrites.plain(pool)


@pytest.mark.parametrize("executor", [lambda f: f, lambda f: torch.vmap(f, in_dims=(None, 0))], ids=["one", "vmap"])
def test_a_pooling_network_is_played_with_the_same_bits(executor: Any) -> None:
    w = torch.randn(16, 1, 3, 3)

    def gradient(w: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        def f(w: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.max_pool2d(torch.nn.functional.conv2d(x, w, padding=1), 2).square().sum()

        return torch.func.grad(f)(w)

    f = executor(gradient)
    x = torch.randn(4, 8, 1, 12, 12) if executor(len) is not len else torch.randn(8, 1, 12, 12)
    out, ran = calls(f, w, x)
    assert ran == 3 and all(torch.equal(o, f(w, x)) for o in out)
    assert any(k is rewrites._max_pool for r in recordings(f) for k in r.play.__globals__.values())
