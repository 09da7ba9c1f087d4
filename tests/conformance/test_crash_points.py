"""Deaths of process and machine, and faults of the disk, at every disk operation of a run: a resume gives the uninterrupted run's bits.

The run has four rounds and snapshots after the second and the fourth, of which one is kept. What is done behind the rounds is done at
once in one case, in another at the latest, when it is waited for. Where a resume goes on from is held to the snapshot that lasted; rows,
client rows, states and exported models to the uninterrupted run's. Methods with state of their clients (by their wire: `keep`,
or `mine`) are tried one by one, in `slow` at every operation.
"""

from __future__ import annotations

import errno
import hashlib
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from rayfed import methods, tree
from rayfed.errors import RayfedError
from rayfed.method import Method
from rayfed.methods._bases.over_adapter import OverAdapter
from rayfed.methods._bases.over_lora import OverLoRA
from rayfed.storage.owner import Owner
from rayfed.storage.run_folder import RunFolder
from tests import disk, toy
from tests.conformance.checks import Case
from tests.conformance.test_conformance import cases, fit  # noqa: F401
from tests.disk import ORDERS, Disk, Failing, State, read_in, states, write_out

SHORT = {"storage": {"snapshot_every": 2, "keep": 1}, "evaluate": {"every": 2}}
LIVE = ("events.jsonl", "state.json", "lock.json")  # times of the clock, numbers of processes
FAULTS = (errno.ENOSPC, errno.EIO)
SAMPLE = 12  # operations that are tried of methods whose clients keep nothing


def stateful(name: str) -> bool:
    """Whether clients of a method keep something, or are served something of their own."""
    method = methods.get(name)
    return bool(method.wire.keep) or method.mine is not Method.mine


STATEFUL = [n for n in methods.names() if stateful(n)]
OTHERS = [n for n in methods.names() if not stateful(n)]


def play(case: Case, where: Path, **how: Any) -> toy.Ran:
    return toy.run_folder(case.method, where, executor="vmap", rounds=4, **how, **toy.merge(case.changes, SHORT))


def visible(where: Path) -> Path | None:
    """The run folder under `where`, if there is one."""
    return next((p for p in where.iterdir() if not p.name.startswith(".")), None)


def exported(folder: RunFolder) -> disk.Content:
    """The exported models; a model card names its run, which has a folder of its own."""
    files = read_in(folder.path / "model")
    return {n: x.replace(folder.path.name.encode(), b"RUN") if n.endswith("README.md") else x for n, x in files.items()}


class Whole(NamedTuple):
    """The uninterrupted run: its numbers, its exported models, its disk operations (each mark is the round of the snapshot that
    lasts), how many of them made the folder, and the order of what is done behind the rounds."""

    ran: toy.Ran
    model: disk.Content
    ops: list[disk.Op]
    made: int
    order: str


def record(case: Case, where: Path, order: str) -> Whole:
    """Run a case to its end on a disk that writes its operations down; checks that they account for the folder."""
    where.mkdir()
    with Disk(where) as seen:
        ran = play(case, where, lasting=seen.mark, behind=ORDERS[order]())
    model = disk.Model()
    for op in seen.ops:
        model.apply(op)
    by_ops, found = model.content(), read_in(where)
    unseen = [p for p in found if found[p] != by_ops.get(p, ...) and "/model/" not in p]
    assert not unseen and by_ops.keys() <= found.keys(), f"written past the disk: {unseen}"
    made = next(i for i, op in enumerate(seen.ops) if op.path.startswith(ran.folder.path.name))
    return Whole(ran, exported(ran.folder), seen.ops, made, order)


def go_on(case: Case, where: Path, whole: Whole, least: int, known: set[str] | None = None) -> bool:
    """Resume what a death left under `where`, or start anew if there is no run; the numbers are the uninterrupted run's.

    least: the last round whose snapshot lasted before; known: what earlier resumes began with; False if this one would
    begin with the same.
    """
    path = visible(where)
    if path is not None:
        folder = RunFolder.open(path, owner=Owner.me())
        first, _ = folder.rewind()
        folder.close()
        assert first >= least, f"the snapshot of round {least} lasted, the resume goes on from round {first}"
        files = {p: data for p, data in read_in(path).items() if p not in LIVE}
        begins = hashlib.sha256(repr(sorted(files.items())).encode()).hexdigest()
        if known is not None and begins in known:
            return False
        known is None or known.add(begins)
    again = play(case, where, resume=path is not None, behind=ORDERS[whole.order]())
    assert again.ending == whole.ran.ending
    for what in ("rows", "client_rows"):
        assert getattr(again, what) == getattr(whole.ran, what), what
    assert tree.same(again.state, whole.ran.state) and tree.same(again.clients, whole.ran.clients)
    assert exported(again.folder) == whole.model
    return True


def after_death(case: Case, whole: Whole, dead: State, where: Path, known: set[str] | None = None) -> bool:
    """`go_on` with the folder of a state."""
    write_out(dead.content, where)
    try:
        assert dead.n <= whole.made or visible(where), "the run folder is gone"
        return go_on(case, where, whole, dead.mark, known)
    except (Exception, AssertionError) as error:
        op = whole.ops[dead.n] if dead.n < len(whole.ops) else "the end"
        raise AssertionError(f"{case.name}, {dead.view!r} before operation {dead.n} ({op}): {error}") from error
    finally:
        shutil.rmtree(where)


def with_fault(case: Case, whole: Whole, code: int, n: int, where: Path) -> bool:
    """Run with a fault at operation n: the end of the run or a sentence, then a resume. False if there was no such operation."""
    where.mkdir()
    failed = None
    with Failing(where, n, code) as bad:
        try:
            play(case, where, lasting=bad.mark, behind=ORDERS[whole.order]())
        except RayfedError as error:
            failed = error
    least = max((op.at for op in bad.ops if op.kind == "mark"), default=0)
    try:
        if failed is not None:
            assert bad.failed and disk.os.strerror(code) in str(failed) and "Traceback" not in str(failed), failed
        go_on(case, where, whole, least)
    except (Exception, AssertionError) as error:
        raise AssertionError(f"{case.name}, {errno.errorcode[code]} in {bad.failed[:1]}: {error}") from error
    finally:
        shutil.rmtree(where)
    return bool(bad.failed)


def distinct(found: Iterable[State]) -> list[State]:
    """States of different contents, each with the highest mark that it must stand for."""
    out: dict[str, State] = {}
    for s in found:
        key = hashlib.sha256(repr(sorted(s.content.items())).encode()).hexdigest()
        out[key] = max(s, out.get(key, s), key=lambda s: s.mark)
    return list(out.values())


ADAPTED = [n for n in STATEFUL if issubclass(methods.get(n), OverLoRA | OverAdapter)]  # take three times as long
OFTEN = {*[n for n in STATEFUL if n not in ADAPTED][::3], ADAPTED[0]}


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in OFTEN else [pytest.mark.slow]) for n in STATEFUL])
def test_some_points(name: str, fit: Callable[[Case], Case], tmp_path: Path) -> None:  # noqa: F811
    """A death in each view and each fault, at operations drawn by the method's name; a process that is really killed."""
    case = fit(cases(name)[0])
    draw = random.Random(name)
    whole = record(case, tmp_path / "whole", draw.choice([*ORDERS]))
    found = list(states(whole.ops))
    for view in ("torn", "power", "power, some"):
        after_death(
            case, whole, draw.choice([s for s in found if s.view == view and s.n > whole.made]), tmp_path / "dead"
        )
    assert with_fault(case, whole, draw.choice(FAULTS), draw.randrange(1, len(whole.ops) // 2), tmp_path / "fault")
    (tmp_path / "killed").mkdir()
    n, mark = draw.randrange(whole.made + 1, len(whole.ops) * 2 // 3), tmp_path / "mark"
    mark.write_text("0")
    how = {"lasting": lambda r: mark.write_text(str(r)), "behind": ORDERS[whole.order]()}
    assert disk.killed(tmp_path / "killed", n, draw.random() < 0.5, partial(play, case, tmp_path / "killed", **how))
    go_on(case, tmp_path / "killed", whole, int(mark.read_text()))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", [*STATEFUL, *OTHERS])
def test_all_deaths(name: str, order: str, fit: Callable[[Case], Case], tmp_path: Path) -> None:  # noqa: F811
    """Before every operation, in each view; some of them where clients keep nothing. With `-s`, says how many."""
    case = fit(cases(name)[0])
    whole, known = record(case, tmp_path / "whole", order), set[str]()
    found = list(states(whole.ops))
    found = found if name in STATEFUL else random.Random(name).sample(found, SAMPLE)
    deaths = distinct(found)
    resumed = sum(after_death(case, whole, dead, tmp_path / "dead", known) for dead in deaths)
    print(f"\n| {name}, {order} | {len(whole.ops)} | {len(found)} | {len(deaths)} | {resumed} |")


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", [*STATEFUL, *OTHERS])
def test_all_faults(name: str, order: str, fit: Callable[[Case], Case], tmp_path: Path) -> None:  # noqa: F811
    """At every operation; some of them where clients keep nothing. With `-s`, says how many."""
    case = fit(cases(name)[0])
    whole, found = record(case, tmp_path / "whole", order), Counter[int]()
    for n in range(1, 10_000) if name in STATEFUL else random.Random(name).sample(range(1, 50), SAMPLE // 2):
        code = FAULTS[(n + len(name)) % 2]  # over methods, whose operations are nearly the same, both at each of them
        if not with_fault(case, whole, code, n, tmp_path / "fault"):
            break
        found[code] += 1
    print(f"\n| {name}, {order} | {found[errno.ENOSPC]} | {found[errno.EIO]} |")


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("order", ORDERS)
def test_all_deaths_of_a_resume(order: str, tmp_path: Path) -> None:
    """A death at every operation of a resume, which itself follows a death."""
    case = Case("scaffold")
    whole = record(case, tmp_path / "whole", order)
    after_two = [s for s in states(whole.ops) if s.mark == 2 and s.view == "kill"]
    write_out(after_two[len(after_two) // 2].content, tmp_path / "resumed")
    write_out(after_two[len(after_two) // 2].content, tmp_path / "start")
    with Disk(tmp_path / "resumed") as seen:
        seen.mark(2)
        play(case, tmp_path / "resumed", resume=True, lasting=seen.mark, behind=ORDERS[order]())
    again, known = whole._replace(ops=seen.ops, made=0), set[str]()
    found = [s for s in states(seen.ops, tmp_path / "start") if s.mark]
    deaths = distinct(found)
    resumed = sum(after_death(case, again, dead, tmp_path / "dead", known) for dead in deaths)
    print(f"\n| a resume of scaffold, {order} | {len(seen.ops)} | {len(found)} | {len(deaths)} | {resumed} |")
    assert resumed > 3
