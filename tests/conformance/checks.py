"""What every method must pass (DESIGN §6.2), each check a function of a `Case`.

Your own method is checked by one row:

    @pytest.mark.parametrize("check", CHECKS, ids=lambda c: c.__name__)
    def test_mine(check, tmp_path):
        check(Case({"name": "path/to/file.py:Mine", "rank": 4}), tmp_path)
"""

from __future__ import annotations

import gc
import json
import math
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from rayfed import keys, methods, schedules, tree
from rayfed import task as tasks
from rayfed.engine import scoring
from rayfed.engine.messages import VisitCall
from rayfed.execute.tuning import compiler, replay
from rayfed.launch import metric_names
from rayfed.metrics import SCOPES, meaning
from rayfed.storage.tree_files import load_tree, save_tree
from rayfed.wire import PARAMS, Part
from tests import toy
from tests.interpreted import Interpreted
from tests.toy import Result, SimPool, Spec, ToyFed

SCORED = ("global", "personal", "unseen")  # scopes that every method has


class Case(NamedTuple):
    """A method (name, or name and settings) under a config (changes to the toy's)."""

    method: Spec
    changes: dict[str, Any] = {}  # noqa: RUF012  (a NamedTuple's default, never written to)

    @property
    def name(self) -> str:
        return self.method if isinstance(self.method, str) else self.method["name"]


# -- running, once per case --------------------------------------------------------------------------------------------

_known: dict[str, Any] = {}


def once(case: Case, what: str, make: Callable[[], Any]) -> Any:
    """`make()`, kept for the other checks of this case."""
    key = json.dumps([case.method, case.changes, what], sort_keys=True)
    if key not in _known:
        _known[key] = make()
    return _known[key]


def simulated(case: Case, executor: str, dtype: str = "float32") -> Result:
    """Two rounds by hand on one worker."""
    return once(
        case, f"{executor} {dtype}", lambda: toy.simulate(case.method, executor=executor, dtype=dtype, **case.changes)
    )


def scored(case: Case, executor: str, dtype: str = "float32") -> tuple[dict[str, float], list[dict[str, Any]]]:
    """What the engine measures after these rounds. Once: a second evaluation in a round has other keys."""
    return once(case, f"scores {executor} {dtype}", lambda: simulated(case, executor, dtype).scores())


def whole_run(case: Case, where: Path) -> toy.Ran:
    """Two rounds by the engine, into a folder."""
    return once(case, "whole run", lambda: toy.run_folder(case.method, where, executor="vmap", **case.changes))


def same_numbers(a: Result, b: Result, what: str) -> None:
    """Server state, client states and rows agree to the bit."""
    assert tree.same(a.state, b.state), f"{what}: the server state differs in {differing(a.state, b.state)}"
    assert a.clients().keys() == b.clients().keys(), f"{what}: other clients have a state"
    assert tree.same(a.clients(), b.clients()), f"{what}: client states differ in {differing(a.clients(), b.clients())}"
    rows = [[{k: v for k, v in row.items() if not k.startswith("ray/")} for row in r.rows] for r in (a, b)]
    assert rows[0] == rows[1], f"{what}: the rows differ"


def differing(a: tree.Tree, b: tree.Tree) -> list[str]:
    one, two = ({"/".join(p): x for p, x in tree.leaves(t)} for t in (a, b))
    return [n for n in one if n not in two or not tree.same(one[n], two[n])] + [n for n in two if n not in one]


# -- the checks --------------------------------------------------------------------------------------------------------


def two_rounds_run(case: Case, tmp_path: Path) -> None:
    """The engine runs two rounds into a folder; what DESIGN promises of every method is measured and finite."""
    ran = whole_run(case, tmp_path)
    assert ran.ending.status == "done"
    assert [r["round"] for r in ran.rows] == [1, 2]
    c = toy.config(case.method, **case.changes)
    federation, method = toy.federation(c), methods.of(c)
    pooled = method.universal or tasks.of(federation.task).pooled  # one user's taste is not everybody's
    for row in ran.rows:
        for name in [m.name for m in scoring.measures(c, federation, [])]:
            for scope in SCORED if pooled else SCORED[1:]:
                value = row.get(f"{name}/{scope}")
                assert value is not None and math.isfinite(value), f"{name}/{scope} is {value} in round {row['round']}"
        assert all(math.isfinite(v) for v in row.values() if v is not None), row
        assert 0 <= row.get("accuracy/global", 0.0) <= 1 and row["clients/dropped"] == 0
    known = metric_names.known(method, federation)
    measured = {n for row in ran.rows for n, v in row.items() if v is not None} - {"round"}
    scores = {n for n in known if n.partition("/")[2].removesuffix("_ex") in SCOPES}
    assert measured <= {*known} and scores <= measured, "what rows can have is known before the start"
    assert [r["client"] for r in ran.client_rows] == list(range(c.federation.clients))
    assert json.loads((ran.folder.path / "summary.json").read_text())["status"] == "done"


def loop_is_vmap(case: Case, tmp_path: Path) -> None:
    """Float64 to 1e-9 of the update's norm, float32 to 1e-4. A visit that says why it cannot be vectorised is looped in both."""
    for dtype, tolerance in (("float64", 1e-9), ("float32", 1e-4)):
        loop, vmap = simulated(case, "loop", dtype), simulated(case, "vmap", dtype)
        close(loop.state, vmap.state, loop.initial, tolerance, dtype)
        close(loop.clients(), vmap.clients(), loop.initial_clients(), tolerance, f"{dtype}, client states:")
        assert [r["visits"] for r in loop.rows] == [r["visits"] for r in vmap.rows]
        assert [r["bytes/up"] for r in loop.rows] == [r["bytes/up"] for r in vmap.rows]
    scores = [scored(case, e, "float64") for e in ("loop", "vmap")]
    assert scores[0][0] == pytest.approx(scores[1][0], rel=1e-7)
    assert [r["cluster"] for r in scores[0][1]] == [r["cluster"] for r in scores[1][1]]


def compiled_is_vmap(case: Case, tmp_path: Path) -> None:
    """Float64 to 1e-9 of the update's norm, with steps' programs run as the Python they are; machine code: test_compiled.py."""

    def make() -> tuple[Result, list[str]]:
        notes: list[str] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(compiler, "load", Interpreted)
            patch.setattr(replay, "note_down", notes.append)
            return toy.simulate(case.method, executor="compiled", dtype="float64", **case.changes), notes

    compiled, notes = once(case, "compiled", make)
    vmap = simulated(case, "vmap", "float64")
    close(vmap.state, compiled.state, vmap.initial, 1e-9, "float64")
    close(vmap.clients(), compiled.clients(), vmap.initial_clients(), 1e-9, "float64, client states:")
    wrong = [n for n in notes if "other numbers" in n or "could not be run" in n]
    assert not wrong, wrong


def close(a: tree.Tree, b: tree.Tree, initial: tree.Tree, tolerance: float, what: str) -> None:
    """Each part of a and b within `tolerance` times the norm of how far the part went from `initial`.

    A part (or a piece of it) that was not there at first is judged by how far all others went; integers are equal.
    """

    def floats(t: tree.Tree) -> dict[str, torch.Tensor]:
        return {"/".join(p): x.double() for p, x in tree.leaves(t) if x.is_floating_point()}

    whole = [{"/".join(p): x for p, x in tree.leaves(t)} for t in (a, b)]
    assert whole[0].keys() == whole[1].keys(), f"{what} other parts"
    for n, x in whole[0].items():
        assert x.shape == whole[1][n].shape and x.dtype == whole[1][n].dtype, f"{what} {n} has another shape or type"
        if not x.is_floating_point():
            assert torch.equal(x, whole[1][n]), f"{what} {n} differs"
    at_first = {n: x for n, x in floats(initial).items() if n in floats(a)}
    went = {n: float((floats(a)[n] - x).norm()) for n, x in at_first.items()}
    everything = math.hypot(*went.values()) if went else 1.0
    for part in a:
        mine = floats({part: a[part]})
        if not mine:
            continue
        gap = math.hypot(*(float((x - floats(b)[n]).norm()) for n, x in mine.items()))
        update = math.hypot(*(went[n] for n in mine)) if all(n in went for n in mine) else everything
        assert gap <= tolerance * update, f"{what} {part} is {gap:.2e} apart after an update of norm {update:.2e}"


def debug_is_loop(case: Case, tmp_path: Path) -> None:
    """To the bit."""
    debug = toy.simulate(case.method, executor="debug", **case.changes)
    same_numbers(simulated(case, "loop"), debug, "debug against loop")


def resumes(case: Case, tmp_path: Path) -> None:
    """Stopped after round 1 and resumed from disk by another process's worth of objects: the same bits."""
    whole = whole_run(case, tmp_path / "whole")
    part = toy.run_folder(case.method, tmp_path / "part", executor="vmap", stop_after=1, **case.changes)
    assert (part.ending.status, part.ending.round) == ("stopped", 1)
    again = toy.run_folder(case.method, tmp_path / "part", executor="vmap", resume=True, **case.changes)
    assert again.ending == whole.ending
    assert tree.same(again.state, whole.state), f"server state: {differing(again.state, whole.state)}"
    assert tree.same(again.clients, whole.clients), f"client states: {differing(again.clients, whole.clients)}"
    assert again.rows == whole.rows
    assert again.client_rows == whole.client_rows


def order_and_workers_change_nothing(case: Case, tmp_path: Path) -> None:
    """In which order clients are named, answers arrive, and over how many workers they are spread: the same bits."""
    plain = simulated(case, "vmap")
    pool = SimPool(3, 1)  # one worker, in order: `again_is_the_same`
    other = toy.simulate(case.method, executor="vmap", pool=pool, order=1, **case.changes)
    same_numbers(plain, other, "three workers, in another order")
    assert not pool.damaged(), "a payload was written to in place"
    assert scored(case, "vmap") == other.scores()


def lost_calls_change_nothing(case: Case, tmp_path: Path) -> None:
    """Every call's answer is lost once and computed again by another worker: the same bits."""
    pool = SimPool(2, 3, kill_at=range(0, 10_000, 2))
    other = toy.simulate(case.method, executor="vmap", pool=pool, **case.changes)
    assert pool.restarts * 2 == pool.calls > 0
    same_numbers(simulated(case, "vmap"), other, "every call repeated")


def again_is_the_same(case: Case, tmp_path: Path) -> None:
    """A second run in this process, with the global generators elsewhere: the same bits."""

    class Noisy(ToyFed):
        def begin(self, round: int, score_local: bool = False) -> None:
            torch.rand(3), np.random.rand(2), random.random()
            super().begin(round, score_local)

    torch.manual_seed(99)
    same_numbers(
        simulated(case, "vmap"), toy.simulate(case.method, executor="vmap", kind=Noisy, **case.changes), "second run"
    )


def scoring_changes_nothing(case: Case, tmp_path: Path) -> None:
    """Whether rounds are evaluated, and locally trained models scored in passing, moves no state."""
    evaluated = toy.simulate(case.method, executor="vmap", score=True, **case.changes)
    same_numbers(simulated(case, "vmap"), evaluated, "with evaluation")


def sampling_is_the_engines(case: Case, tmp_path: Path) -> None:
    """Who is asked depends on the config and the round only, not on the method or on what else was drawn."""
    got = simulated(case, "vmap").fed.drawn
    assert got, "the method never sampled"
    plain = toy.make_fed(toy.config("fedavg", **case.changes))
    for r in sorted({d.round for d in got}):
        plain.begin(r)
        for d in (d for d in got if d.round == r):
            plain.key("something"), plain.log("something", 1.0), torch.rand(3)
            assert plain.sample(d.n, where=d.where) == d.ids, f"round {r}"


def states_survive_the_disk(case: Case, tmp_path: Path) -> None:
    """Server state and client states are saved and read back with the same bits, names and order of names."""
    done = simulated(case, "vmap")
    for name, state in {"server": done.state, **{f"client-{c}": s for c, s in done.clients().items()}}.items():
        save_tree(tmp_path, name, tree.to_numpy(state))
        back = tree.from_numpy(load_tree(tmp_path, name))
        assert tree.same(back, state), name
        assert [p for p, _ in tree.leaves(back)] == [p for p, _ in tree.leaves(state)], name


def empty_rounds_pass(case: Case, tmp_path: Path) -> None:
    """No client in both rounds; none in round 1 and a single client in round 2."""

    class Nobody(ToyFed):
        def sample(self, n: int | None = None, *, where: Any = None) -> tuple[int, ...]:
            return super().sample(n, where=where)[:0]

    class Few(ToyFed):
        def sample(self, n: int | None = None, *, where: Any = None) -> tuple[int, ...]:
            return super().sample(n, where=where)[: self.round - 1]

    nobody = toy.simulate(case.method, executor="vmap", kind=Nobody, **case.changes)
    assert nobody.clients() == {} and tree.finite(nobody.state)
    assert "loss/personal" in nobody.scores()[0]
    one = toy.simulate(case.method, executor="vmap", kind=Few, **case.changes)
    assert tree.finite(one.state) and [r["visits"] > 0 for r in one.rows] == [False, True]
    pooled = one.fed.method.universal or one.fed.task.pooled
    assert ("loss/global" if pooled else "loss/personal") in one.scores()[0]


def later_rounds_add_nothing(case: Case, tmp_path: Path) -> None:
    """With the same clients in every round, later rounds begin no recording and leave no tensor alive.

    Later: once the server state has kept its shapes for four rounds. Some methods treat their first round apart, some alternate
    between two kinds of round, and clusters that split change shapes.
    """

    class SameClients(ToyFed):
        def key(self, purpose: str) -> int:  # in the same roles, too
            return keys.key(self.config.seed, 1 << 20, -1, purpose)

        def sample(self, n: int | None = None, *, where: Any = None) -> tuple[int, ...]:
            now, self.round = self.round, 1
            try:
                return super().sample(n, where=where)
            finally:
                self.round = now

    c = toy.config(case.method, executor="vmap", rounds=21, **case.changes)  # the last round may be apart, too
    fed = toy.make_fed(c, kind=SameClients)
    state = fed.method.init(fed.task, keys.key(c.seed, 0, -1, "init"))
    shapes, after = {}, {}
    gc.collect()
    gc.freeze()  # what is there already need not be gone through again
    try:
        for r in range(1, 21):
            fed.begin(r)
            state = fed.method.round(state, fed, fed.task)
            fed.dispatch.commit()
            fed.begin(r + 1)  # what this round's asks held is gone
            shapes[r], after[r] = [(p, x.shape) for p, x in tree.leaves(state)], alive(state)
            if r >= 6 and shapes[r] == shapes[r - 4]:  # clusters that split have new shapes
                break
    finally:
        gc.unfreeze()
    assert after[r] == after[r - 2], f"(recordings, tensors besides the server state, bytes) after each round: {after}"


def alive(state: tree.Tree) -> tuple[int, int, int]:
    """Recordings begun in this process, and the tensors alive besides the server state: their number and bytes."""
    gc.collect()
    known = {id(x) for x in tree.values(state)}
    tensors = [x for x in gc.get_objects() if issubclass(type(x), torch.Tensor) and id(x) not in known]
    return replay.count_recordings(), len(tensors), sum(x.untyped_storage().nbytes() for x in tensors)


# -- payloads ----------------------------------------------------------------------------------------------------------


class Recorder(SimPool):
    """Writes down the shapes of what travels: {"down" | "up" | "keep": {part: different shapes}}."""

    def __init__(self) -> None:
        super().__init__(1, None)
        self.seen: dict[str, dict[str, Any]] = {"down": {}, "up": {}, "keep": {}}

    def _one(self, job: Any, dead: int | None = None) -> Any:
        out = super()._one(job)
        call = job.request
        if isinstance(call, VisitCall) and isinstance(call.visit, str):
            k = len(out.result.clients)
            self._note("down", {n: self.get(h) for n, h in zip(call.shared, job.handles)}, 0)
            self._note("down", call.mine, 1)
            for part, folded in out.result.folded.items():
                for p in folded.values():
                    self._note("up", {part: p["total"]}, 0, typed=False)
            self._note("up", out.result.small, 1, k)
            if out.large is not None:
                self._note("up", self.get(out.large), 1, k)
            if out.states is not None:
                self._note("keep", of_method(self.get(out.states)), 1, k)
        return out

    def _note(self, where: str, parts: tree.Tree, lead: int, k: int | None = None, typed: bool = True) -> None:
        for name, part in parts.items():
            assert k is None or all(len(x) == k for x in tree.values(part)), f"{name}: not one row per client"
            shapes = tree._walk(lambda x: Shaped(tuple(x.shape[lead:]), str(x.dtype) if typed else ""), part)
            found = self.seen[where].setdefault(name, [])
            found += [shapes] if shapes not in found else []


class Shaped(NamedTuple):
    """A leaf's shape without the client axis, and its NumPy type ("" once it is folded)."""

    shape: tuple[int, ...]
    dtype: str


def of_method(state: tree.Tree) -> tree.Tree:
    """What the method keeps of a client's state: all of it, or its part where transforms keep something too."""
    return state["method"] if set(state) == {"method", "chain"} else state


def misfit(part: Part, shapes: Any, task: Any) -> str | None:
    """What is wrong with a part's shapes against its declaration; written apart from the engine's own check."""
    like = str(part.shape)
    params = {n: tuple(p.shape) for n, p in task.params_like.items()}
    if like == "any":
        return None
    if like in ("params", "own params"):
        return None if {n: s.shape for n, s in shapes.items()} == params else f"{shapes} are not the model's"
    if like.startswith(("params of ", "params but ")):
        words = like.removeprefix("params of ").removeprefix("params but ").split(", ")
        known = {
            "head": lambda: task.head or task.classifier_names,
            "norm": lambda: task.norms,
            "buffers": lambda: task.buffers,
        }
        groups = {g: known[g]() for g in known.keys() & set(words)}
        named = {n for n in params if set(words) & {*n.split("."), *(g for g, held in groups.items() if n in held)}}
        wanted = {n: s for n, s in params.items() if (n in named) == like.startswith("params of ")}
        return None if {n: s.shape for n, s in shapes.items()} == wanted else f"{shapes} are not {like}"
    if re.fullmatch(r"[A-Z] x params", like):  # stacked, or several trees by name
        if all(isinstance(t, dict) for t in shapes.values()):
            return next((m for t in shapes.values() if (m := misfit(Part(PARAMS), t, task))), None)
        stacked = {n: s.shape[1:] for n, s in shapes.items()} == params and len(
            {s.shape[0] for s in shapes.values()}
        ) == 1
        return None if stacked else f"{shapes} are not models"
    if like == "scalar":
        return None if shapes.shape == () else f"{shapes} is no scalar"
    found = re.fullmatch(r"\(([^)]*)\)\s*(\w*)", like)
    assert found, f"the declaration {like!r} says nothing that can be checked"
    axes = [a.strip() for a in found[1].split(",") if a.strip()]
    known = {"C": task.classes, "N": task.population}
    if len(axes) != len(shapes.shape):
        return f"{shapes} has other axes than {like}"
    for a, size in zip(axes, shapes.shape):
        want = int(a) if a.isdigit() else known.get(a, size)
        if want != size:
            return f"axis {a} is {size}, not {want}"
    return None if not found[2] or found[2] in (shapes.dtype, "") else f"is {shapes.dtype}, not {found[2]}"


def recorded(case: Case) -> tuple[Recorder, Result]:
    def make() -> tuple[Recorder, Result]:
        pool = Recorder()
        return pool, toy.simulate(case.method, executor="vmap", pool=pool, **case.changes)

    return once(case, "recorded", make)


def payload_is_the_wires(case: Case, tmp_path: Path) -> None:
    """All that travels or is kept is declared and has the declared shape; the server state has all declared parts."""
    pool, done = recorded(case)
    wire, task = done.fed.method.wire, done.fed.task
    for where in ("down", "up", "keep"):
        declared = getattr(wire, where)
        for name, found in pool.seen[where].items():
            assert name in declared, f"{where}: part {name!r} is not declared"
            for shapes in found:
                problem = misfit(declared[name], shapes, task)
                assert problem is None, f"{where}: part {name!r}: {problem}"
    assert set(done.state) == set(wire.server) == set(done.initial)
    for name, part in wire.server.items():
        shapes = tree.map(lambda x: Shaped(tuple(x.shape), str(x.dtype).removeprefix("torch.")), done.state[name])
        problem = misfit(part, shapes, task)
        assert problem is None, f"server: part {name!r}: {problem}"
    if done.clients():
        assert all(set(of_method(s)) == set(wire.keep) for s in done.clients().values())


def every_part_is_seen(cases: list[Case]) -> None:
    """Over all variants of one method, every part that one of them declares travels or is kept at least once."""
    found = [recorded(c) for c in cases]
    for where in ("down", "up", "keep"):
        seen = {part for pool, _ in found for part in pool.seen[where]}
        declared = {part for _, done in found for part in getattr(done.fed.method.wire, where)}
        assert seen == declared, f"{where}: declared {sorted(declared)}, seen {sorted(seen)}"


def private_parts_stay(case: Case, tmp_path: Path) -> None:
    """No part marked private is declared to travel, or is seen on its way to the server, at any depth."""
    pool, done = recorded(case)
    wire = done.fed.method.wire
    for where in ("down", "up", "server"):
        assert not [n for n, p in getattr(wire, where).items() if p.private], f"{where}: declares private parts"
    names = {n for n, p in wire.keep.items() if p.private}
    sent = {k for name, found in pool.seen["up"].items() for t in found for p, _ in tree.leaves(t) for k in (name, *p)}
    assert not sent & names, f"up: {sorted(sent & names)} are private to clients"


def logged_names_have_a_meaning(case: Case, tmp_path: Path) -> None:
    """`Method.logs` has a sentence and a unit for every name in the method's rows."""
    done = simulated(case, "vmap")
    own = {name for row in done.rows for name in row} - done.fed.meter.keys()
    strange = sorted(name for name in own if meaning(name, done.fed.method.logs) is None)
    assert not strange, f"logged without a meaning in Method.logs: {', '.join(strange)}"


def reading_rounds_is_said(case: Case, tmp_path: Path) -> None:
    """The first two rounds are the same in a run of two and of twenty, unless the schedule or `reads_rounds` says otherwise."""
    short = simulated(case, "vmap")
    c = short.fed.config
    if not (schedules.reads_rounds(c.local) or short.fed.method.reads_rounds()):
        long = toy.simulate(case.method, executor="vmap", rounds=20, until=2, **case.changes)
        same_numbers(short, long, "in a run of twenty rounds")


CHECKS: list[Callable[[Case, Path], None]] = [
    two_rounds_run,
    loop_is_vmap,
    compiled_is_vmap,
    debug_is_loop,
    resumes,
    order_and_workers_change_nothing,
    lost_calls_change_nothing,
    payload_is_the_wires,
    private_parts_stay,
    states_survive_the_disk,
    sampling_is_the_engines,
    again_is_the_same,
    scoring_changes_nothing,
    empty_rounds_pass,
    later_rounds_add_nothing,
    logged_names_have_a_meaning,
    reading_rounds_is_said,
]
