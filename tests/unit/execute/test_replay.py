"""Recordings of pieces: the same bits as without, or none."""

from __future__ import annotations

import ast
import gc
import importlib
import json
import re
import textwrap
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from rayfed import execute, tree
from rayfed.engine.resident import Resident
from rayfed.execute.tuning import replay
from rayfed.execute.tuning.replay import call
from rayfed.visits import Phase, Visit, steps
from tests import toy


@pytest.fixture
def notes() -> Iterator[list[str]]:
    """What is noted during the test; the process has not looked yet whether recordings work."""
    replay.unusable.cache_clear()
    replay.recorder.cache_clear()
    found: list[str] = []
    with replay.using("auto", found):
        yield found
    replay.unusable.cache_clear()
    replay.recorder.cache_clear()


def recordings(piece: Any) -> list[replay.Recording]:
    return list(replay._pieces[piece].recordings.values())


def calls(f: Callable[..., Any], *args: Any, n: int = 5) -> tuple[list[Any], int]:
    """What n calls give, and how often f itself ran in them."""
    ran = 0

    def counted(*a: Any) -> Any:
        nonlocal ran
        ran += 1
        return f(*a)

    return [call(f, counted, *args) for _ in range(n)], ran


def fresh(f: Callable[..., Any]) -> Callable[..., Any]:
    """The same as a separate piece."""
    return lambda *args: f(*args)


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


def test_each_shape_stride_and_type_has_its_own_recording():
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

    monkeypatch.setattr(replay.Tape, "note", full)
    f = torch.vmap(step)
    assert calls(f, *params())[1] == 6  # five calls, and one that was tried twice


def test_the_second_try_does_not_hold_what_the_first_one_made(monkeypatch):
    made: list[Any] = []
    held: list[bool] = []
    real, notes = replay.Tape.note, iter(range(100))

    def full(self: Any, *about: Any) -> Any:
        if next(notes) == 1:
            raise torch.OutOfMemoryError("no memory")
        return real(self, *about)

    def f(x: torch.Tensor) -> torch.Tensor:
        held.append(any(ref() is not None for ref in made))
        between = x * 2
        made.append(weakref.ref(between))
        return between + 1

    monkeypatch.setattr(replay.Tape, "note", full)
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
def test_decided_is_what_is_played_or_never_will_be(f):
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
    before = len(replay._pieces)
    del f
    gc.collect()
    assert len(replay._pieces) < before


def test_a_piece_that_raises_is_reported_and_recorded_later():
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


def test_a_visit_that_says_it_reads_values_is_not_recorded():
    c = toy.config()
    res = Resident(c, toy.federation(c), None, "cpu")

    def step(carry: Any, batch: Any, key: Any) -> Any:
        return {"n": carry["n"] + (2.0 if carry["n"].numpy() >= 3 else 1.0)}  # no kernel shows this read

    visit = Visit(
        lambda client: {"n": torch.zeros(())},
        [Phase(steps(8), step)],
        lambda client, carry: ({"n": carry["n"]}, client.own),
        "looks at values",
    )
    drawn = res.sampler.cohort(visit, [0], dispatch=0, round=1, rounds=1, lr=0.1)
    for name in ("loop", "debug"):
        ((_, parts, _, _),) = execute.execute_visit(name, visit, drawn, {}, {}, {}, res.data)
        assert float(parts["n"]) == 13  # 1, 2, 3, 5, 7, ...


# -- what goes wrong with the recorder is not the client's failure ----------------------------------------------------------


def no_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    importlib.import_module("torch._dynamo")  # which needs it as well, and is imported by the first gradient
    monkeypatch.delattr("torch.utils._python_dispatch.TorchDispatchMode")


def no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """The name that kernels have for what they call."""

    def missing(self: Any, *about: Any) -> None:
        raise AttributeError("'OpOverload' object has no attribute '_op'")

    monkeypatch.setattr(replay.Tape, "_add", missing)


def no_function(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(self: Any, out: Any) -> None:
        raise SyntaxError("invalid syntax")

    monkeypatch.setattr(replay.Tape, "function", missing)


def no_places(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(x: Any) -> None:
        raise RuntimeError("no storage")

    monkeypatch.setattr(replay, "_place", missing)


BROKEN = [no_mode, no_kernel, no_function, no_places]


@pytest.mark.parametrize("break_it", BROKEN)
@pytest.mark.parametrize("executor", ["vmap", "loop"])
def test_a_broken_recorder_is_no_clients_failure(
    break_it: Any, executor: str, notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with replay.using("off", []):
        plain = toy.simulate("scaffold", executor=executor)
    break_it(monkeypatch)
    broken = toy.simulate("scaffold", executor=executor)
    assert tree.same(plain.state, broken.state) and tree.same(plain.clients(), broken.clients())


@pytest.mark.parametrize("break_it", BROKEN)
def test_a_process_whose_recorder_is_broken_notes_it_once(
    break_it: Any, notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    break_it(monkeypatch)
    for f in (fresh(constant), fresh(several)):
        assert calls(f, torch.tensor([3.0, -1.0]))[1] == 5
    (note,) = notes
    assert "off in this process" in note and any(e in note for e in ("ImportError", "_op", "SyntaxError", "storage"))


def test_a_process_whose_recordings_are_wrong_plays_none(notes: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A recording that gives wrong bits, where comparing does not see it: the known function does."""
    monkeypatch.setattr(replay, "_same", lambda a, b: True)
    real = replay.Tape.function

    def half(self: Any, out: Any) -> Any:
        play = real(self, out)
        return play and (lambda inputs: tree.map(lambda x: x / 2, play(inputs)))

    monkeypatch.setattr(replay.Tape, "function", half)
    got, ran = calls(fresh(times_one), torch.ones(2))
    assert ran == 5 and got[-1].tolist() == [3, 3]
    assert notes == [
        "recordings are off in this process, all pieces run plainly: a known function gave [[5.0, 10.0], [0.0, 0.0]]"
    ]


def test_recordings_that_are_never_played_make_a_process_plain(
    notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay, "_same", lambda a, b: False)
    f = fresh(times_one)
    assert calls(f, torch.ones(2))[1] == 5 and not recordings(f)
    assert "could not be recorded" in notes[0]


@pytest.mark.parametrize("break_it", [b for b in BROKEN if b is not no_places])
def test_an_error_of_the_recorder_switches_one_recording_off(
    break_it: Any, notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a process where recordings work otherwise; a piece is called once more for it at most."""
    assert not replay.unusable()
    replay.recorder.cache_clear()
    f, x = fresh(times_one), torch.tensor([1.0, 2.0])
    call(f, f, x)
    with monkeypatch.context() as broken:
        break_it(broken)
        out, ran = calls(f, x, n=1)
    assert torch.equal(out[0], 3 * x) and ran <= 2 and [r.off for r in recordings(f)] == [True]
    assert len(notes) == 1 and "could not be recorded" in notes[0] and f.__qualname__ in notes[0]
    assert calls(f, x)[1] == 5
    assert calls(f, torch.ones(7))[1] == 3, "another shape is recorded"


def test_an_error_of_the_recorder_is_not_raised_among_the_pieces_own_code(
    notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which might catch it and go another way."""

    def piece(x: torch.Tensor) -> torch.Tensor:
        try:
            return x * 2
        except AttributeError:
            return x * 7

    assert not replay.unusable()
    call(piece, piece, torch.ones(1))
    no_kernel(monkeypatch)
    out, ran = calls(piece, torch.ones(1), n=1)
    assert out[0].tolist() == [2] and ran == 1 and "_op" in notes[0]


def test_an_error_while_playing_switches_the_recording_off(notes: list[str]) -> None:
    x = torch.tensor([1.0, 2.0])
    for before in (2, 5, replay.FIRST_CHECK + 2):  # compared, played, checked
        f = fresh(times_one)
        calls(f, x, n=before)
        (recording,) = recordings(f)

        def fails(inputs: Any, before: int = before) -> Any:
            raise RuntimeError(f"no such kernel {before}")

        recording.play = fails
        out, ran = calls(f, x, n=3)
        assert ran == 3 and all(torch.equal(o, 3 * x) for o in out) and recording.off
        assert f"no such kernel {before}" in notes[-1]
    assert len(notes) == 3


def test_what_the_client_raises_is_its_own_whenever_it_comes(notes: list[str]) -> None:
    """At a plain call, while recorded, while compared, while played, at a check: the client's error, and no note."""
    fails = [False]

    def piece(x: torch.Tensor) -> torch.Tensor:
        if fails[0]:
            raise ValueError("bad data")
        return torch.index_select(x, 0, (x[:1] * 0).long()) + x.take((x[:1]).long())

    x, bad = torch.tensor([1.0, 2.0]), torch.tensor([7.0, 2.0])  # there is no element 7
    for before in (0, 1, 2, 3, 10):
        f = fresh(piece)
        calls(f, x, n=before)
        with pytest.raises(IndexError):
            call(f, f, bad)
        assert torch.equal(call(f, f, x), torch.tensor([3.0]))
    fails[0] = True
    for before in (0, 1, 2):
        f = fresh(piece)
        fails[0] = False
        calls(f, x, n=before)
        fails[0] = True
        with pytest.raises(ValueError, match="bad data") as error:
            call(f, f, x)
        assert error.value.__context__ is None
    assert not notes


def test_arguments_that_cannot_be_distinguished_run_plainly(notes: list[str]) -> None:
    got = [call(f, f, torch.ones(1), [1, 2]) for f in [lambda x, y: x + len(y)] for _ in range(5)]
    assert [float(x) for x in got] == [3] * 5 and len(notes) == 1 and "unhashable" in notes[0]


def test_off_is_off(notes: list[str]) -> None:
    f = fresh(times_one)
    with replay.using("off", notes):
        assert calls(f, torch.ones(2), n=9)[1] == 9
    assert f not in replay._pieces and replay._enabled and not notes
    assert calls(f, torch.ones(2))[1] == 3
    with replay.using("off", notes):
        assert calls(f, torch.ones(2))[1] == 5


# -- checks ------------------------------------------------------------------------------------------------------------------


def test_a_number_that_changes_after_the_third_call_is_noticed(notes: list[str]) -> None:
    rate = [1.0]

    def piece(x: torch.Tensor) -> torch.Tensor:
        return x * rate[0]

    x = torch.ones(1)
    calls(piece, x, n=10)
    calls(piece, torch.ones(2), n=10)
    rate[0] = 5.0
    got, ran = calls(piece, x, n=100)
    assert got[-1].tolist() == [5.0] and ran > 40
    changed = [float(o) for o in got].index(5.0)
    assert changed == replay.FIRST_CHECK - 8, "the check's own result is the plain one"
    assert all(float(o) == 5.0 for o in got[changed:])
    (note,) = notes
    assert "test_a_number_that_changes" in note and "after 64 played calls" in note
    assert calls(piece, torch.ones(2), n=3)[1] == 3 and not recordings(piece), "nor is any other shape played"


def test_checks_become_rare_and_never_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "FIRST_CHECK", 4)
    monkeypatch.setattr(replay, "CHECK_EVERY", 100)
    f, x = fresh(times_one), torch.ones(1)
    plain = [n for n in range(-2, 500) if calls(f, x, n=1)[1]]  # the played calls from 1 on
    assert plain == [-2, -1, 0, 4, 16, 64, 164, 264, 364, 464]


def test_a_check_that_does_not_fit_into_memory_changes_nothing(
    notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    f, x = fresh(times_one), torch.ones(1)
    calls(f, x, n=replay.FIRST_CHECK + 2)
    (recording,) = recordings(f)
    play = recording.play

    def full(inputs: Any) -> Any:
        raise torch.OutOfMemoryError("no memory")

    recording.play = full
    assert calls(f, x, n=1)[1] == 1
    recording.play = play
    assert calls(f, x, n=5)[1] == 0 and not notes


def test_a_kernel_without_the_private_name_is_played_by_its_public_one(notes: list[str]) -> None:
    """`OpOverload._op` saves a frame of Python and nothing else."""

    class Public:
        def __init__(self, kernel: Any):
            self.kernel, self._schema = kernel, kernel._schema

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return self.kernel(*args, **kwargs)

    x = torch.tensor([1.0, 2.0])
    tape = replay.Tape([x])
    out = torch.ops.aten.mul.Tensor(x, x)
    tape.note(Public(torch.ops.aten.mul.Tensor), (x, x), {}, out)
    play = tape.function(out)
    assert play is not None and play([x + 1]).tolist() == [4, 9]


# -- in a run ----------------------------------------------------------------------------------------------------------------


def reasons(path: Path) -> list[str]:
    """Reasons of the run's events about recordings."""
    events = [json.loads(line) for line in (path / "events.jsonl").read_text().splitlines()]
    return [e["reason"] for e in events if e["kind"] == "replay"]


@pytest.mark.parametrize("executor", ["auto", "vmap", "loop"])
def test_a_run_says_once_that_its_recorder_is_broken(
    executor: str, notes: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_mode(monkeypatch)
    for number in ("first", "second"):  # each run of the process says so
        ran = toy.run_folder("fedavg", tmp_path / number, executor=executor)
        assert ran.ending.status == "done"
        (reason,) = reasons(ran.folder.path)
        assert "recordings are off in this process" in reason and "TorchDispatchMode" in reason
        assert reason in json.loads((ran.folder.path / "summary.json").read_text())["notes"]


@pytest.mark.parametrize("executor", ["vmap", "loop"])
def test_a_run_without_replay_records_nothing(executor: str, notes: list[str], tmp_path: Path) -> None:
    gc.collect()
    before = replay.count_recordings()
    runs = [
        toy.run_folder("scaffold", tmp_path / how, executor=executor, resources={"replay": how})
        for how in ("off", "auto")
    ]
    kept = [yaml.safe_load((r.folder.path / "config.yaml").read_text())["resources"]["replay"] for r in runs]
    assert kept == ["off", "auto"] and not any(reasons(r.folder.path) for r in runs)
    assert tree.same(runs[0].state, runs[1].state) and runs[0].rows == runs[1].rows
    gc.collect()
    assert replay.count_recordings() >= before
    seen: list[Any] = []
    call_of = replay.Piece.find
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(replay.Piece, "find", lambda *a: seen.append(a) or call_of(*a))
        toy.simulate("scaffold", executor=executor, resources={"replay": "off"})
        assert not seen
        toy.simulate("scaffold", executor=executor)
        assert seen


DRIFTING = """
    from rayfed.methods.fedavg import FedAvg
    from rayfed.training import sgd_visit
    from rayfed.visits import visit

    class Drifting(FedAvg):
        \"\"\"FedAvg that clips by a number which the server program changes: against the rules, and unseen by a recording.\"\"\"
        bound = 1.0

        @visit
        def train(self, task):
            def hook(gradient, carry):
                return {n: g.clamp(-Drifting.bound, Drifting.bound) for n, g in gradient.items()}
            return sgd_visit(task.loss, self.local, hook=hook)

        def round(self, state, fed, task):
            Drifting.bound = 0.01 if fed.round > 1 else 1.0
            return super().round(state, fed, task)
"""


def test_a_run_says_that_a_number_changed_under_a_recording(notes: list[str], tmp_path: Path) -> None:
    file = tmp_path / "drifting.py"
    file.write_text(textwrap.dedent(DRIFTING))
    ran = toy.run_folder(f"{file}:Drifting", tmp_path / "o", rounds=3)
    (reason,) = reasons(ran.folder.path)
    assert "_step.<locals>.step runs plainly from here on: after 64 played calls" in reason
    assert reason in json.loads((ran.folder.path / "summary.json").read_text())["notes"]


# -- where torch's private names stand ---------------------------------------------------------------------------------------


def private_names(source: str) -> list[str]:
    """Names of torch's that begin with an underscore: imported, or reached from `torch`; and those of its kernels."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute):
            names = [ast.unparse(node)]
            found += [node.attr] if node.attr in ("_op", "_schema", "_dynamo") else []
        else:
            continue
        found += [n for n in names if re.fullmatch(r"torch[\w.]*\._[\w.]*", n)]
    return found


def test_private_names_of_torch_stand_in_tuning_alone() -> None:
    assert private_names(
        "import torch._C\nfrom torch.utils._x import Y\ntorch.nn._reduce(f._op)\nfrom torch import nn"
    ) == [
        "torch._C",
        "torch.utils._x.Y",
        "torch.nn._reduce",
        "_op",
    ]
    root = Path(__file__).parents[3]
    files = [f for folder in ("rayfed", "actors", "tune_spaces") for f in (root / folder).rglob("*.py")]
    where = {str(f.relative_to(root).parent) for f in files if private_names(f.read_text())}
    assert where == {"rayfed/execute/tuning"}
