"""Recordings of pieces: the same bits as without, or none."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch

from rayfed import execute
from rayfed.engine.resident import Resident
from rayfed.execute.tuning import replay
from rayfed.execute.tuning.replay import call
from rayfed.visit import Phase, Visit, steps
from tests import toy


def recordings(piece: Any) -> list[replay.Recording]:
    return list(replay._made[piece].values())


def calls(f: Callable[..., Any], *args: Any, n: int = 5) -> tuple[list[Any], int]:
    """What n calls give, and how often f itself ran in them."""
    ran = 0

    def counted(*a: Any) -> Any:
        nonlocal ran
        ran += 1
        return f(*a)

    return [call(f, counted, *args) for _ in range(n)], ran


def step(params: dict[str, torch.Tensor], x: torch.Tensor) -> dict[str, torch.Tensor]:
    def loss(p: dict[str, torch.Tensor]) -> torch.Tensor:
        return (torch.nn.functional.layer_norm(torch.relu(x @ p["w"] + p["b"]), (3,)) ** 2).sum()

    grads = torch.func.grad(loss)(params)
    return {n: p - 0.1 * grads[n] for n, p in params.items()}


def params(k: int = 4) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    g = torch.Generator().manual_seed(k)
    return {"w": torch.randn(k, 5, 3, generator=g), "b": torch.randn(k, 3, generator=g)}, torch.randn(
        k, 7, 5, generator=g
    )


def test_from_the_fourth_call_on_it_is_played_with_the_same_bits():
    f = torch.vmap(step)
    out, ran = calls(f, *params())
    assert ran == 3
    for got in out:
        assert all(torch.equal(got[n], out[0][n]) for n in out[0])


def test_what_is_played_follows_its_arguments():
    f = torch.vmap(step)
    p, x = params()
    calls(f, p, x)
    for factor in (0.5, -3.0, float("nan")):
        other = {n: v * factor for n, v in p.items()}
        got, plain = call(f, pytest.fail, other, x), f(other, x)
        assert replay._same(got, plain)


def test_each_shape_stride_and_type_has_a_recording_of_its_own():
    f = torch.vmap(step)
    for k in (2, 3):
        assert calls(f, *params(k))[1] == 3
    p, x = params(3)
    turned = {**p, "w": p["w"].mT.contiguous().mT}
    double = {n: v.double() for n, v in p.items()}
    for args in ((turned, x), (double, x.double())):
        got, ran = calls(f, *args)
        assert ran == 3
        assert replay._same(got[-1], f(*args))
    assert len(recordings(f)) == 4


def kernels(f: Callable[..., Any], *args: Any) -> list[str]:
    """Names of the kernels that a played call makes."""
    return _names(lambda: call(f, pytest.fail, *args))


def _plain(f: Callable[..., Any], *args: Any) -> list[str]:
    return _names(lambda: f(*args))


def _names(f: Callable[[], Any]) -> list[str]:
    from torch.utils._python_dispatch import TorchDispatchMode

    class Names(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.names: list[str] = []

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.names.append(str(func))
            return func(*args, **(kwargs or {}))

    with Names() as seen:
        f()
    return seen.names


def only_its_shape(x: torch.Tensor) -> torch.Tensor:
    loss = (x.exp() ** 2).sum(1)
    return torch.ones_like(loss)[:, None] + torch.zeros_like(x.sin()) + x.cos().new_zeros(x.shape) + x


def test_what_is_made_for_its_shape_alone_is_not_made():
    x = torch.randn(3, 5)
    out, ran = calls(only_its_shape, x)
    assert ran == 3 and torch.equal(out[-1], 1 + x)
    assert kernels(only_its_shape, x).count("aten.add.Tensor") == 3
    assert not {"aten.exp.default", "aten.pow.Tensor_Scalar", "aten.sin.default", "aten.cos.default"} & set(
        kernels(only_its_shape, x)
    )


def test_a_large_one_is_made_all_the_same(monkeypatch):
    """No memory is kept for a stand-in of any size."""
    monkeypatch.setattr(replay, "SMALL", 10)
    x = torch.randn(4, 6)
    out, ran = calls(only_its_shape, x)
    assert ran == 3 and torch.equal(out[-1], 1 + x) and "aten.sin.default" in kernels(only_its_shape, x)


by = torch.ops.aten.mul.Scalar  # what vmap makes of a linear layer


def times_one(x: torch.Tensor) -> torch.Tensor:
    return by(x, 1) + by(x * 2, 1)


def times_one_and_written(x: torch.Tensor) -> torch.Tensor:
    y = by(x, 1)
    return y.add_(1)


def times_a_true_one(x: torch.Tensor) -> torch.Tensor:
    return by(x, 1.0)


def test_an_argument_times_one_is_the_argument():
    x = torch.randn(3, 5)
    out, ran = calls(times_one, x)
    assert ran == 3 and torch.equal(out[-1], x + x * 2)
    assert kernels(times_one, x).count("aten.mul.Scalar") == 1, "that of x * 2, which is the call's own"
    assert _plain(times_one, x).count("aten.mul.Scalar") == 2


@pytest.mark.parametrize(
    "x", [torch.arange(4), torch.randn(4).half(), torch.randn(1).expand(4), torch.tensor([True, False])]
)
@pytest.mark.parametrize("f", [times_one, times_a_true_one, times_one_and_written])
def test_times_one_keeps_its_type_its_layout_and_its_argument(f, x):
    """An integer times 1.0 is another type, an expanded one times 1 other strides, and what is written to is not the argument."""
    before, ran = x.clone(), 0

    def counted(x: torch.Tensor) -> torch.Tensor:
        nonlocal ran
        ran += 1
        return f(x)

    want = f(x)
    for _ in range(5):
        got = call(counted, counted, x)
        assert got.dtype == want.dtype and got.stride() == want.stride() and torch.equal(got, want)
        assert torch.equal(x, before)
    assert ran == 3 or f is times_one_and_written


def constant(x: torch.Tensor) -> torch.Tensor:
    return x + torch.tensor([1.0, 2.0])


def several(x: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    top, at = x.topk(1)
    return top, {"at": at, "same": x, "view": x[0], "buffer": BUFFER}


def in_place(x: torch.Tensor) -> torch.Tensor:
    y = x * 2
    y.add_(x)
    y.unsqueeze(0).mul_(3.0)
    y[0] = 5.0
    return y


BUFFER = torch.arange(3.0)


@pytest.mark.parametrize("f", [constant, several, in_place])
def test_it_records(f):
    x = torch.tensor([3.0, -1.0])
    _, ran = calls(f, x)
    assert ran == 3
    for y in (x, torch.tensor([-3.0, 7.0])):
        assert replay._same(call(f, pytest.fail, y), f(y))


def asks(x: torch.Tensor) -> torch.Tensor:
    return x * 2 if x.sum() > 0 else x


def draws(x: torch.Tensor) -> torch.Tensor:
    return x + torch.rand(2)


def writes_its_argument(x: torch.Tensor) -> torch.Tensor:
    return x.mul_(2.0)


STATE = torch.zeros(2)


def writes_a_constant(x: torch.Tensor) -> torch.Tensor:
    STATE.add_(1.0)
    return x + STATE


@pytest.mark.parametrize("f", [asks, draws, writes_its_argument, writes_a_constant])
def test_what_is_not_the_same_kernels_in_every_call_is_never_played(f):
    got, ran = calls(f, torch.tensor([1.0, 2.0]), n=6)
    assert ran == 6
    assert [r.off for r in recordings(f)] == [True]
    if f is writes_its_argument:
        assert torch.equal(got[-1], torch.tensor([64.0, 128.0]))


def test_what_python_changes_between_calls_is_seen():
    count = [0]

    def counts(x: torch.Tensor) -> torch.Tensor:
        count[0] += 1
        return x * count[0]

    got, ran = calls(counts, torch.ones(1), n=6)
    assert ran == 6
    assert [float(x) for x in got] == [1, 2, 3, 4, 5, 6]


def test_large_work_is_not_recorded(monkeypatch):
    monkeypatch.setattr(replay, "LIMIT", 1000)
    f = torch.vmap(step)
    assert calls(f, *params())[1] == 5


def test_a_recording_leaves_nothing_alive(monkeypatch):
    """Without the collector's help: a large one would cost the process as much as it noted."""
    seen: list[weakref.ref[torch.Tensor]] = []

    def f(x: torch.Tensor) -> torch.Tensor:
        between = x * 2
        seen.append(weakref.ref(between))
        return between + 1

    trims: list[bool] = []
    monkeypatch.setattr(replay.process, "release_memory", lambda: trims.append(seen[-1]() is None))
    gc.disable()
    try:
        calls(f, torch.ones(4), n=4)
    finally:
        gc.enable()
    assert len(seen) == 3 and all(ref() is None for ref in seen) and not trims
    monkeypatch.setattr(replay, "LARGE", 8)
    calls(lambda x: f(x), torch.ones(4), n=4)
    assert trims == [True]  # and by then there is something to give back


def test_memory_that_does_not_suffice_for_a_recording_is_no_failure(monkeypatch):
    def full(self: Any, *about: Any) -> None:
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(replay._Tape, "note", full)
    f = torch.vmap(step)
    assert calls(f, *params())[1] == 6  # five calls, and one that was tried twice


def test_the_second_try_does_not_hold_what_the_first_one_made(monkeypatch):
    made: list[Any] = []
    held: list[bool] = []
    real, notes = replay._Tape.note, iter(range(100))

    def full(self: Any, *about: Any) -> Any:
        if next(notes) == 1:
            raise torch.OutOfMemoryError("no memory")
        return real(self, *about)

    def f(x: torch.Tensor) -> torch.Tensor:
        held.append(any(ref() is not None for ref in made))
        between = x * 2
        made.append(weakref.ref(between))
        return between + 1

    monkeypatch.setattr(replay._Tape, "note", full)
    gc.disable()
    try:
        calls(f, torch.ones(4), n=2)
    finally:
        gc.enable()
    assert held == [False, False, False]


def test_arguments_that_were_one_and_the_same_need_not_stay_so():
    def f(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return a - b

    x, y = torch.tensor([1.0, 2.0]), torch.tensor([5.0, 5.0])
    calls(f, x, x)
    assert call(f, f, x, y).tolist() == [-4, -3]
    assert call(f, pytest.fail, y, y.view(2)).tolist() == [0, 0]


def test_conjugates_are_not_recorded():
    def f(x: torch.Tensor) -> torch.Tensor:
        return (x.conj() * x).real

    x = torch.tensor([1 + 2j, 3j])
    got, ran = calls(f, x)
    assert ran == 5
    assert got[-1].tolist() == [5, 9]


@pytest.mark.parametrize("f", [constant, asks])
def test_settled_is_what_is_played_or_never_will_be(f):
    def piece(x: torch.Tensor) -> torch.Tensor:
        return f(x)

    assert replay.is_decided(piece)
    seen = [call(piece, piece, torch.tensor([1.0, 2.0])) is None or replay.is_decided(piece) for _ in range(4)]
    assert seen == ([False, False, True, True] if f is constant else [False, True, True, True])


def test_recordings_are_bounded_and_end_with_their_piece(monkeypatch):
    monkeypatch.setattr(replay, "MAX_RECORDINGS", 3)
    f = torch.vmap(step)
    for k in range(1, 6):
        calls(f, *params(k), n=4)
    assert len(recordings(f)) == 3
    before = len(replay._made)
    del f
    gc.collect()
    assert len(replay._made) < before


def test_a_piece_that_raises_is_told_and_recorded_later():
    fails = [True]

    def f(x: torch.Tensor) -> torch.Tensor:
        if fails[0]:
            raise ValueError("no")
        return x + 1

    for _ in range(2):
        with pytest.raises(ValueError, match="no"):
            call(f, f, torch.ones(2))
    fails[0] = False
    _, ran = calls(f, torch.ones(2))
    assert ran == 2


def test_a_visit_that_says_it_looks_at_values_is_not_recorded():
    c = toy.config()
    res = Resident(c, toy.federation(c), None, "cpu")

    def step(carry: Any, batch: Any, key: Any) -> Any:
        return {"n": carry["n"] + (2.0 if carry["n"].numpy() >= 3 else 1.0)}  # no kernel tells of this look

    visit = Visit(
        lambda info, shared, mine, own: {"n": torch.zeros(())},
        [Phase(steps(8), step)],
        lambda info, carry, shared, mine, own: ({"n": carry["n"]}, own),
        "looks at values",
    )
    drawn = res.sampler.cohort(visit, [0], dispatch=0, round=1, rounds=1, lr=0.1)
    for name in ("loop", "debug"):
        ((_, parts, _, _),) = execute.execute_visit(name, visit, drawn, {}, {}, {}, res.data)
        assert float(parts["n"]) == 13  # 1, 2, 3, 5, 7, ...
