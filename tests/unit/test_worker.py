"""Asking clients: failures, NaN, the wire and its bytes, large parts where they lie, sampling, and scores."""

from __future__ import annotations

import math
import pickle
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rayfed import execute, tree
from rayfed.engine.cohorts import cohort_size
from rayfed.engine.failures import ClientFailed, VectorizeError
from rayfed.engine.pool import LocalPool
from rayfed.engine.worker import SMALL, CohortVisit, sums_are_finite
from rayfed.errors import RunFailed
from rayfed.fold import mean, total
from rayfed.storage.tree_files import load_tree
from tests import toy
from tests.toy import Result, SimPool, ToyFed

# A method whose client `bad` misbehaves as `how` says; its state counts visits, its reply has parts of several kinds.
ODD = '''
import weakref
import numpy as np
import torch
from rayfed import tree
from rayfed.fold import mean
from rayfed.method import Method, MethodSettings
from rayfed.training import sgd_visit
from rayfed.visits import Phase, Visit, once, visit
from rayfed.wire import ANY, PARAMS, SCALAR, Part, Wire, tensor

SEEN = []
MADE = []

class Odd(Method):
    class Settings(MethodSettings):
        bad: int = -1
        how: str = "well"
        size: int = 3

    wire = Wire(
        down={"model": Part(PARAMS), "m": Part(SCALAR)},
        up={
            "delta": Part(PARAMS, update=True), "k": Part(SCALAR), "row": Part(ANY),
            "c": Part(tensor("C", dtype=torch.float32)),
        },
        keep={"count": Part(SCALAR)},
        server={"model": Part(PARAMS)},
    )

    def own_init(self, task, client, key):
        return {"count": torch.zeros(())}

    @visit
    def train(self, task):
        bad, how = self.settings.bad, self.settings.how
        poison = {"nan": float("nan"), "inf": float("inf")}.get(how.split()[0], 0.0)

        def end(client, carry):
            info, shared, own = client.info, client.shared, client.own
            if how == "first":
                SEEN.append(0)
                if len(SEEN) == 1:
                    raise MemoryError("not just now")
            if how in ("raise", "once"):
                SEEN.append(int(info.client))
                if int(info.client) == bad and (how == "raise" or SEEN.count(bad) == 1):
                    raise ValueError(f"client {bad} has bad luck")
            def hurt(x):
                return torch.where(info.client == bad, torch.full_like(x, poison), x) if poison else x
            where = how.split()[-1]
            delta = tree.sub(carry["model"], shared["model"])
            parts = {
                "delta": {**delta, "head.bias": hurt(delta["head.bias"])} if where == "delta" else delta,
                "k": hurt(info.client.to(task.dtype)) if where == "k" else info.client.to(task.dtype),
            }
            after = {"count": hurt(own["count"] + 1) if where == "count" else own["count"] + 1}
            parts |= {
                "undeclared": {"surprise": parts["k"]}, "shape": {"k": torch.zeros(2)}, "leaf": {"delta": parts["k"]},
                "names": {"delta": {"w": torch.zeros(3)}}, "kind": {"c": torch.zeros(task.classes, dtype=torch.int64)},
            }.get(how, {})
            after |= {"more state": {"more": torch.zeros(())}, "state shape": {"count": torch.zeros(3)}}.get(how, {})
            return parts, {} if how == "no state" else after

        return sgd_visit(task.loss, self.local, end=end)

    @visit
    def rows(self, task):
        """A part of `size` numbers that follow from the client's id, as a tree of two leaves, and a small one."""
        n = self.settings.size

        def end(client, carry):
            c = (client.info.client + 1).to(task.dtype)
            row = torch.sin(c * torch.arange(1, n + 1, dtype=task.dtype))
            return {"row": {"b": row[: n // 3].reshape(-1, 1), "a": row[n // 3 :]}, "k": c}, client.own

        return Visit(lambda client: {}, (), end)

    @visit
    def one_by_one(self, task):
        """Notes how many earlier replies are still in memory."""
        def end(client, carry):
            SEEN.append(sum(made() is not None for made in MADE))
            memory = np.ones(1000, np.float32)
            MADE.append(weakref.ref(memory))
            return {"row": {"a": torch.from_numpy(memory)}}, client.own

        return Visit(lambda client: {}, (), end, vectorize="looks around")

    @visit
    def idle(self, task):
        """Does and sends nothing."""
        return Visit(lambda client: {}, (), lambda client, carry: ({}, client.own))

    @visit
    def writes(self, task):
        """Breaks the rule that nothing is written in place: into what was broadcast, and into its own state."""
        def begin(client):
            for x in client.shared["model"].values():
                x.add_(1.0)
            return {}
        return Visit(begin, (), lambda client, carry: ({"k": client.shared["model"]["head.bias"].sum()}, client.own))

    def round(self, state, fed, task):
        down = {"model": state["model"], **({"extra": torch.zeros(())} if self.settings.how == "down" else {})}
        mine = {c: {"m" if self.settings.how != "mine" else "other": torch.tensor(1.0)} for c in range(fed.population)}
        self.last = fed.ask(self.train, fed.sample(), shared=down, mine=mine, fold=(mean("delta"), mean("k", "one")))
        new = tree.add(state["model"], self.last.folded["delta"])
        made = {"server nan": float("nan"), "server inf": float("inf"), "server large": 3e38}.get(self.settings.how)
        if made is not None and fed.round == 2:
            new["head.bias"] = torch.full_like(new["head.bias"], made)
        return {"model": new}
'''


@pytest.fixture
def odd(tmp_path: Path) -> str:
    (tmp_path / "odd.py").write_text(ODD)
    return f"{tmp_path / 'odd.py'}:Odd"


def seen(fed: ToyFed) -> list[int]:
    """Clients in the order in which the method's code finished with them."""
    return sys.modules[type(fed.method).__module__].SEEN


SHORT: dict[str, Any] = {"rounds": 1, "local": {"epochs": None, "steps": 1}, "resources": {"cohort": 3}}


def policy(name: str) -> dict[str, Any]:
    return {"failures": {"client_error": name}}


def first_round(**changes: Any) -> tuple[int, ...]:
    fed = toy.make_fed(toy.config(**changes))
    fed.begin(1)
    return fed.sample()


BAD = 5  # somebody in the middle of a cohort of the first round


class Without(ToyFed):
    """Nobody asks client BAD."""

    def sample(self, n: int | None = None, *, where: Sequence[int] | None = None) -> tuple[int, ...]:
        return tuple(c for c in super().sample(n, where=where) if c != BAD)


def test_the_bad_client_takes_part() -> None:
    assert BAD in first_round() and len(first_round()) == 7


# -- failures ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("executor", ["loop", "debug"])
def test_raise_ends_the_run_and_tells_why(odd: str, executor: str) -> None:
    with pytest.raises(ClientFailed) as told:
        toy.simulate({"name": odd, "how": "raise", "bad": BAD}, executor=executor)
    e = pickle.loads(pickle.dumps(told.value))
    assert (e.client, e.round, e.visit) == (BAD, 1, "train") and isinstance(e, RunFailed)
    assert e.failure.reason == f"ValueError: client {BAD} has bad luck"
    assert "in end" in e.failure.trace and "odd.py" in e.failure.trace
    assert f"client {BAD} failed in round 1, visit 'train': ValueError: client {BAD} has bad luck\nTraceback" in str(e)
    assert (e.failure.arguments is None) == (executor == "loop")


@pytest.mark.parametrize("executor", ["loop", "debug"])
def test_drop_is_as_if_the_client_had_not_been_asked(odd: str, executor: str) -> None:
    broken = toy.simulate(
        {"name": odd, "how": "raise", "bad": BAD}, executor=executor, dtype="float64", rounds=1, **policy("drop")
    )
    without = toy.simulate(odd, dtype="float64", rounds=1, kind=Without)
    gap = tree.norm(tree.sub(broken.state["model"], without.state["model"]))
    assert float(gap) < 1e-12 < float(tree.norm(tree.sub(broken.state["model"], broken.initial["model"])))
    got = broken.fed.method.last
    assert got.failures == {BAD: f"ValueError: client {BAD} has bad luck"}
    assert got.ids == without.fed.method.last.ids and BAD not in got.ids and len(got) == 6
    assert got.weight == without.fed.method.last.weight
    (row,) = broken.rows
    assert (row["dropped"], row["visits"]) == (1, 6)
    assert row["bytes/up"] == without.rows[0]["bytes/up"]
    assert str(BAD) not in broken.clients() and len(broken.clients()) == 6  # nor has it a new state


def test_retry_tries_once_more(odd: str) -> None:
    well = toy.simulate(odd, rounds=1)
    again = toy.simulate({"name": odd, "how": "once", "bad": BAD}, rounds=1, **policy("retry"))
    assert tree.same(again.state, well.state) and again.clients().keys() == well.clients().keys()
    assert again.rows[0]["dropped"] == 0 and again.fed.method.last.failures == {}
    assert seen(again.fed).count(BAD) == 2 and len(seen(again.fed)) == 8
    seen(again.fed).clear()
    plain = {"replay": "off"}  # what fails while it is recorded is called once more to find out whose failure it is
    never = toy.simulate({"name": odd, "how": "raise", "bad": BAD}, rounds=1, resources=plain, **policy("retry"))
    assert seen(never.fed).count(BAD) == 2 and never.rows[0]["dropped"] == 1
    assert list(never.fed.method.last.failures) == [BAD]


def test_drop_and_raise_do_not_try_again(odd: str) -> None:
    once = toy.simulate({"name": odd, "how": "once", "bad": BAD}, rounds=1, **policy("drop"))
    assert seen(once.fed).count(BAD) == 1 and once.rows[0]["dropped"] == 1


def test_a_cohort_of_which_nobody_is_left(odd: str) -> None:
    """Every cohort is one client; and then the whole round."""
    broken = toy.simulate(
        {"name": odd, "how": "raise", "bad": BAD}, rounds=1, resources={"cohort": 1}, **policy("drop")
    )
    assert broken.rows[0]["dropped"] == 1 and len(broken.fed.method.last) == 6

    class Only(ToyFed):
        def sample(self, n: int | None = None, *, where: Any = None) -> tuple[int, ...]:
            return (BAD,)

    alone = toy.simulate({"name": odd, "how": "raise", "bad": BAD}, rounds=1, kind=Only, **policy("drop"))
    assert tree.same(alone.state, alone.initial) and alone.fed.method.last.weight == {"delta": 0.0, "k": 0.0}


def spoiled(executor: str, labels: bool = True, **changes: Any) -> ToyFed:
    """A fedavg federation where one client has labels beyond the classes."""
    pool = LocalPool()
    fed = toy.make_fed(toy.config(executor=executor, dtype="float64", **changes), pool)
    if labels:
        resident = pool.worker.runs["toy"]
        resident.data["y"] = resident.data["y"].clone()
        resident.data["y"][torch.as_tensor(fed.federation.train[BAD])] = 99
    fed.begin(1)
    return fed


@pytest.mark.parametrize("name", ["drop", "retry"])
def test_vmap_finds_the_culprit_and_goes_on_without_it(name: str) -> None:
    def ask(executor: str) -> Any:
        fed = spoiled(executor, **policy(name))
        return fed.ask(fed.method.train, fed.sample(), shared={"model": fed.task.initial}, fold=mean("delta"))

    loop, vmap = ask("loop"), ask("vmap")
    assert list(vmap.failures) == list(loop.failures) == [BAD] and vmap.ids == loop.ids
    assert "out of bounds" in loop.failures[BAD] and vmap.failures == loop.failures
    assert float(tree.norm(tree.sub(vmap.folded["delta"], loop.folded["delta"]))) < 1e-12
    assert vmap.weight == loop.weight
    assert [tuple(r) for r in vmap] == [tuple(r) for r in loop]


def test_vmap_where_nobody_is_left() -> None:
    for cohort in (1, 3):
        fed = spoiled("vmap", resources={"cohort": cohort}, **policy("drop"))
        got = fed.ask(fed.method.train, [BAD], shared={"model": fed.task.initial}, fold=mean("delta"))
        assert not got.ids and "out of bounds" in got.failures[BAD]
    fed = spoiled("vmap", resources={"cohort": 1})
    with pytest.raises(ClientFailed, match=f"client {BAD} failed in round 1, visit 'train'"):
        fed.ask(fed.method.train, fed.sample(), shared={"model": fed.task.initial}, fold=mean("delta"))


def test_a_cohort_too_large_for_the_device_is_nobodys_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    fed = toy.make_fed(toy.config(executor="vmap", resources={"cohort": 4}, **policy("drop")), LocalPool())
    run, alone = execute.execute_visit, []

    def full(name: str, visit: Any, cohort: Any, *rest: Any) -> Any:
        if name == "vmap":
            raise torch.OutOfMemoryError("CUDA out of memory")
        alone.append(cohort.clients)
        return run(name, visit, cohort, *rest)

    monkeypatch.setattr(execute, "execute_visit", full)
    with pytest.raises(RunFailed, match=r"4 clients at once do not fit .* try resources.cohort: 2,") as told:
        fed.ask(fed.method.train, fed.sample()[:4], shared={"model": fed.task.initial}, fold=mean("delta"))
    assert not alone and str(pickle.loads(pickle.dumps(told.value))) == str(told.value)


def test_vmap_raises_for_the_culprit() -> None:
    fed = spoiled("vmap")
    with pytest.raises(ClientFailed, match=f"client {BAD} failed in round 1, visit 'train'"):
        fed.ask(fed.method.train, fed.sample(), shared={"model": fed.task.initial}, fold=mean("delta"))


def test_what_only_vmap_cannot_do_is_no_clients_fault(odd: str) -> None:
    with pytest.raises(VectorizeError, match="item"):
        toy.simulate({"name": odd, "how": "raise"}, executor="vmap", **policy("drop"))  # it calls int() on a tensor


def test_what_only_vmap_cannot_do_is_told_as_such_beside_a_bad_client(odd: str) -> None:
    with pytest.raises(VectorizeError):
        toy.simulate({"name": odd, "how": "raise", "bad": BAD}, executor="vmap", **policy("drop"))


@pytest.mark.parametrize(
    "executor",
    [
        "loop",
        "vmap",
    ],
)
def test_retry_survives_what_passes(odd: str, executor: str) -> None:
    """An error that does not come back is nobody's fault, under either executor."""
    well = toy.simulate(odd, executor=executor, **SHORT)
    again = toy.simulate({"name": odd, "how": "first"}, executor=executor, **SHORT, **policy("retry"))
    assert tree.same(again.state, well.state) and again.rows[0]["dropped"] == 0


@pytest.mark.parametrize("executor", ["loop", "vmap"])
@pytest.mark.parametrize("how", ["nan delta", "inf delta", "nan k", "inf count"])
def test_nan_never_reaches_the_state(odd: str, executor: str, how: str) -> None:
    spec = {"name": odd, "how": how, "bad": BAD}
    part = how.split()[1]
    kind = "client state" if part == "count" else "part"
    with pytest.raises(ClientFailed, match=rf"client {BAD} .*: NaN or infinity in {kind} {part}"):
        toy.simulate(spec, executor=executor, **SHORT)
    without = toy.simulate(odd, executor=executor, dtype="float64", **SHORT, kind=Without)
    for name in ("drop", "retry"):
        done = toy.simulate(spec, executor=executor, dtype="float64", **SHORT, **policy(name))
        assert tree.finite(done.state) and tree.finite(done.clients())
        assert float(tree.norm(tree.sub(done.state["model"], without.state["model"]))) < 1e-12
        assert done.rows[0]["dropped"] == 1 and str(BAD) not in done.clients()
        assert done.fed.method.last.folded["k"] == pytest.approx(float(without.fed.method.last.folded["k"]))


@pytest.mark.parametrize("executor", ["loop", "vmap"])
def test_what_only_folds_is_looked_at_by_client_from_the_first_nan_on(
    odd: str, executor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[bool] = []
    real = CohortVisit._finite

    def told(self: CohortVisit, at: Any, parts: Any, *rest: Any) -> Any:
        looked.append("delta" in parts)
        return real(self, at, parts, *rest)

    monkeypatch.setattr(CohortVisit, "_finite", told)
    toy.simulate(odd, executor=executor, **SHORT)
    assert looked and not any(looked)
    looked.clear()
    toy.simulate({"name": odd, "how": "nan delta", "bad": BAD}, executor=executor, **SHORT, **policy("drop"))
    assert set(looked) == {False, True} and looked == sorted(looked)  # once the call is done again, nothing is any more


def test_a_run_counts_its_dropped_clients(odd: str, tmp_path: Path) -> None:
    spec = {"name": odd, "how": "nan delta", "bad": BAD}
    ran = toy.run_folder(spec, tmp_path, **policy("drop"))
    draws = toy.simulate(spec, **policy("drop")).fed.drawn
    assert [r["clients/dropped"] for r in ran.rows] == [int(BAD in d.ids) for d in draws]
    assert ran.rows[0]["clients/dropped"] == 1 and ran.rows[0]["clients/visits"] == 6


@pytest.mark.parametrize("how", ["server nan", "server inf"])
def test_a_server_state_that_is_not_finite_ends_the_run(odd: str, how: str, tmp_path: Path) -> None:
    with pytest.raises(
        RunFailed, match=r"round 2: .* NaN or infinity in model/head.bias; the state of round 1 is kept"
    ):
        toy.run_folder({"name": odd, "how": how}, tmp_path, rounds=2)


def test_a_server_state_whose_sum_overflows_is_finite(odd: str, tmp_path: Path) -> None:
    ran = toy.run_folder({"name": odd, "how": "server large"}, tmp_path, rounds=2)
    assert ran.state["model"]["head.bias"].sum() == math.inf and len(ran.rows) == 2


def test_a_stop_that_comes_while_a_round_commits_waits_for_a_snapshot(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"rounds": 6, "storage": {"snapshot_every": 10}}
    whole = toy.run_folder("scaffold", tmp_path / "whole", **changes)
    part = toy.run_folder("scaffold", tmp_path / "part", stop_after=1, **changes)  # told when round 1 has just ended
    assert tuple(part.ending) == ("stopped", 2) and len(part.rows) == 2
    rest = toy.run_folder("scaffold", tmp_path / "part", resume=True, **changes)
    assert rest.rows == whole.rows and tree.same(rest.state, whole.state)


def test_a_run_that_fails_says_how_to_go_on(odd: str, tmp_path: Path) -> None:
    with pytest.raises(ClientFailed) as told:
        toy.run_folder({"name": odd, "how": "raise", "bad": BAD}, tmp_path, executor="debug")
    (path,) = [p for p in tmp_path.iterdir() if p.is_dir() and not p.name.startswith((".", "__"))]
    assert f"rayfed resume {path}" in str(told.value)
    arguments = load_tree(path / "debug", f"client-{BAD}-round-1")
    assert int(arguments["info"]["client"]) == BAD and "head.bias" in arguments["shared"]["model"]
    assert "bad luck" in (path / "events.jsonl").read_text()


def test_a_part_folds_once_in_an_ask(odd: str) -> None:
    fed = toy.make_fed(toy.config(odd), LocalPool())
    twice = (mean("delta", weight="one"), mean("delta", weight="examples"))
    with pytest.raises(ValueError, match="train: a part is folded twice in one ask: delta, delta"):
        fed.ask(fed.method.train, fed.sample(), shared={"model": fed.task.initial}, fold=twice)


# -- the wire ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("executor", ["loop", "vmap"])
@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("undeclared", r"train: parts .*'surprise'.* against the wire's \['c', 'delta', 'k', 'row'\]"),
        ("shape", r"train: part 'k' is declared 'scalar' but has 1 axes"),
        ("leaf", r"train: part 'delta' is declared 'params' but its names or shapes"),
        ("names", r"train: part 'delta' is declared 'params' but its names or shapes"),
        ("kind", r"train: part 'c' is declared '\(C,\) float32' but is torch.int64"),
        ("more state", r"train \(client state\): parts \['count', 'more'\] against the wire's \['count'\]"),
        ("state shape", r"train \(client state\): part 'count' is declared 'scalar' but has 1 axes"),
        ("no state", r"train \(client state\): parts \[\] against"),
        ("down", r"train: parts \['extra'\] go down but the wire declares \['m', 'model'\]"),
        ("mine", r"train: parts \['other'\] go down"),
    ],
)
def test_what_the_wire_does_not_declare_is_refused_by_name(odd: str, executor: str, how: str, says: str) -> None:
    """Also where clients may be dropped: the method is wrong, not a client."""
    with pytest.raises(TypeError, match=says):
        toy.simulate({"name": odd, "how": how}, executor=executor, rounds=1, **policy("drop"))


# -- bytes -------------------------------------------------------------------------------------------------------------

P = 8 * 16 + 16 + 16 * 4 + 4


@pytest.mark.parametrize("executor", ["loop", "vmap"])
@pytest.mark.parametrize("cohort", [1, 4])
def test_bytes_of_fedavg_by_hand(executor: str, cohort: int) -> None:
    """Seven clients a round: P floats down, P floats and the number of examples up."""
    for dtype, size in (("float32", 4), ("float64", 8)):
        done = toy.simulate(executor=executor, dtype=dtype, local=SHORT["local"], resources={"cohort": cohort})
        for row in done.rows:
            assert row["bytes/down"] == 7 * P * size
            assert row["bytes/up"] == 7 * (P * size + 8)
            assert row["visits"] == 7


def test_a_shared_part_is_paid_once_a_round_by_each_client() -> None:
    fed = toy.make_fed(toy.config())
    model = {"model": fed.task.initial}

    def down(to: Sequence[int], shared: tree.Tree) -> int:
        before = fed.meter["bytes/down"]
        fed.ask(fed.method.train, to, shared=shared, fold=mean("delta"))
        return (fed.meter["bytes/down"] - before) // (4 * P)

    fed.begin(1)
    assert down((1, 2, 3), model) == 3
    assert down((2, 3, 4), model) == 1  # only 4 has not got it yet
    assert down((1, 2), {"model": tree.scale(fed.task.initial, 1.0)}) == 2  # another model
    fed.begin(2)
    assert down((1, 2), model) == 2


def test_bytes_of_several_parts(odd: str) -> None:
    """Down: the model and one scalar each; up: the update, one scalar, and the number of examples."""
    done = toy.simulate(odd, rounds=1, resources={"cohort": 3})
    assert done.rows[0]["bytes/down"] == 7 * (4 * P + 4)
    assert done.rows[0]["bytes/up"] == 7 * (4 * P + 4 + 8)
    fed = done.fed
    fed.begin(2)
    fed.ask(fed.method.idle, (1, 2))
    assert fed.meter["bytes/up"] == fed.meter["bytes/down"] == 0 and fed.meter["visits"] == 2
    fed.ask(fed.method.rows, (1, 2, 3))
    assert fed.meter["bytes/up"] == 3 * (3 * 4 + 4)  # what is not folded is sent without weights
    fed.begin(3)
    fed.ask(fed.method.rows, (1, 2, 3), fold=total("k"))
    assert fed.meter["bytes/up"] == 3 * (3 * 4 + 4)


def test_presence_alone_costs_nothing() -> None:
    for row in toy.simulate("local_only").rows:
        assert row["bytes/up"] == row["bytes/down"] == 0


def test_scoring_costs_nothing() -> None:
    a, b = toy.simulate(rounds=1), toy.simulate(rounds=1, score=True)
    assert {n: a.rows[0][n] for n in ("bytes/up", "bytes/down")} == {
        n: b.rows[0][n] for n in ("bytes/up", "bytes/down")
    }
    fed = b.fed
    fed.begin(2)
    b.scores()
    assert fed.meter["bytes/up"] == fed.meter["bytes/down"] == fed.meter["visits"] == 0


# -- replies -----------------------------------------------------------------------------------------------------------

ASKED = (9, 0, 5, 2, 11, 7, 4)


def sent(client: int, n: int) -> np.ndarray:
    return np.sin((client + 1.0) * np.arange(1, n + 1))


def test_a_reply_is_gone_before_the_next_one_is_made(odd: str) -> None:
    """Each takes the memory of the one before, however many clients a call has."""
    fed = toy.make_fed(toy.config(odd, executor="loop", **{**SHORT, "resources": {"cohort": 7}}))
    fed.begin(1)
    got = fed.ask(fed.method.one_by_one, fed.sample(), fold=mean("row", "one"))
    assert len(got) == 7 and got.folded["row"]["a"].tolist() == [1.0] * 1000
    assert seen(fed) == [0] * 7


@pytest.mark.parametrize(
    "bad", [[math.nan], [math.inf], [-math.inf, 1.0], [math.inf, -math.inf], [1.0, math.nan, math.inf]]
)
def test_a_sum_tells_what_is_not_finite(bad: list[float]) -> None:
    fine = {"a": torch.ones(3), "b": {"c": torch.arange(4), "d": torch.ones(2, dtype=torch.float64)}}
    assert sums_are_finite([fine, {}]) and sums_are_finite([])
    assert not sums_are_finite([fine, {"x": torch.tensor(bad)}])
    apart = [{str(i): torch.tensor([v], dtype=torch.float64)} for i, v in enumerate(bad)]
    assert not sums_are_finite([*apart, fine])


def asked(odd: str, n: int, pool: Any = None, **more: Any) -> Any:
    fed = toy.make_fed(toy.config({"name": odd, "size": n}, dtype="float64", resources={"cohort": 3}), pool)
    fed.begin(1)
    return fed.ask(fed.method.rows, ASKED, **more)


@pytest.mark.parametrize("n", [6, SMALL, SMALL + 1])
@pytest.mark.parametrize("shuffle", [None, 1, 2])
def test_large_parts_are_combined_where_they_lie(odd: str, n: int, shuffle: int | None) -> None:
    got = asked(odd, n, SimPool(3, shuffle))
    ids = sorted(ASKED)
    assert got.ids == ids and [r.client for r in got] == ids
    x = np.stack([sent(c, n) for c in ids])
    assert all((k.large is not None) == (n > SMALL) for k in got._parts.calls)
    assert np.allclose(got.gram("row").numpy(), x @ x.T, rtol=0, atol=1e-9)
    w = np.random.default_rng(0).normal(size=(4, len(ids)))
    combined = got.linear("row", torch.as_tensor(w))
    assert len(combined) == 4
    for k in range(4):
        assert list(combined[k]) == ["b", "a"] and combined[k]["b"].shape == (n // 3, 1)
        flat = np.concatenate([combined[k]["b"].numpy().reshape(-1), combined[k]["a"].numpy()])
        assert np.allclose(flat, w[k] @ x, rtol=0, atol=1e-9)


@pytest.mark.parametrize("n", [6, SMALL + 1])
def test_inner_products_with_trees_of_the_server(odd: str, n: int) -> None:
    """The plain products, for all entries or some; the same bits however clients are spread over calls and workers."""
    ids = sorted(ASKED)
    x = np.stack([sent(c, n) for c in ids])
    y = np.random.default_rng(0).normal(size=(3, n))
    trees = [{"b": torch.as_tensor(v[: n // 3]).reshape(-1, 1), "a": torch.as_tensor(v[n // 3 :])} for v in y]
    found = []
    for cohort, pool in ((3, SimPool(3, 1)), (3, SimPool(1, None)), (1, SimPool(2, 2)), (7, SimPool(2, 3))):
        fed = toy.make_fed(toy.config({"name": odd, "size": n}, dtype="float64", resources={"cohort": cohort}), pool)
        fed.begin(1)
        got = fed.ask(fed.method.rows, ASKED)
        found.append(got.dot("row", trees))
        assert np.allclose(got.dot("row", trees, ["a"]).numpy(), x[:, n // 3 :] @ y[:, n // 3 :].T, rtol=0, atol=1e-9)
    assert found[0].shape == (7, 3) and found[0].dtype == torch.float64
    assert np.allclose(found[0].numpy(), x @ y.T, rtol=0, atol=1e-9)
    assert all(torch.equal(f, found[0]) for f in found)
    assert fed.ask(fed.method.rows, ()).dot("row", trees).shape == (0, 3)


@pytest.mark.parametrize("n", [6, SMALL + 1])
def test_gathered_parts_belong_to_their_clients(odd: str, n: int) -> None:
    got = asked(odd, n, SimPool(2, 5))
    assert {c: float(k) for c, k in got.gather("k").items()} == {c: c + 1.0 for c in sorted(ASKED)}
    assert list(got.gather("k")) == sorted(ASKED)
    assert got.stacked("k").tolist() == [c + 1.0 for c in sorted(ASKED)]
    for c, row in got.gather("row").items():
        assert np.allclose(torch.cat([row["b"].reshape(-1), row["a"]]).numpy(), sent(c, n), atol=1e-12)
    sizes = toy.federation(toy.config()).train.sizes()
    assert got.examples.tolist() == [float(sizes[c]) for c in sorted(ASKED)]
    assert [r.steps for r in got] == [0] * 7 and got[0].client == 0


def test_folded_parts_stay_where_asked_to(odd: str) -> None:
    n = SMALL + 1
    got = asked(odd, n, fold=mean("row", weight="one"), keep="row")
    x = np.stack([sent(c, n) for c in sorted(ASKED)])
    assert np.allclose(got.folded["row"]["a"].numpy(), x.mean(0)[n // 3 :], atol=1e-12)
    assert np.allclose(got.gram("row").numpy(), x @ x.T, rtol=0, atol=1e-9)


def test_a_part_that_was_folded_away_is_named(odd: str) -> None:
    for got in (asked(odd, SMALL + 1, fold=mean("row", weight="one")), asked(odd, 6)):
        with pytest.raises(KeyError, match=r"row|nothing"):
            got.gather("row" if got.folded else "nothing")


def test_gram_of_a_small_part_beside_a_large_one(odd: str) -> None:
    got = asked(odd, SMALL + 1)
    k = np.array(sorted(ASKED)) + 1.0
    assert np.allclose(got.gram("k").numpy(), np.outer(k, k))


def test_real_steps_are_counted() -> None:
    fed = toy.make_fed(toy.config(executor="vmap", resources={"cohort": 7}))
    fed.begin(1)
    got = fed.ask(fed.method.train, range(7), shared={"model": fed.task.initial}, fold=mean("delta"))
    sizes = fed.federation.train.sizes()
    assert [r.steps for r in got] == [2 * math.ceil(sizes[c] / 8) for c in range(7)]
    assert got.weight["delta"] == float(sizes[:7].sum())


def test_a_client_is_asked_once_per_ask() -> None:
    fed = toy.make_fed(toy.config())
    fed.begin(1)
    with pytest.raises(ValueError, match="train: a client is asked twice in one ask"):
        fed.ask(fed.method.train, (1, 2, 1), shared={"model": fed.task.initial}, fold=mean("delta"))


def test_every_ask_has_keys_of_its_own() -> None:
    """A client asked twice in a round, or in another round, sees its examples in another order."""
    fed = toy.make_fed(toy.config())

    def learn() -> tree.Tree:
        return fed.ask(fed.method.train, (1,), shared={"model": fed.task.initial}, fold=mean("delta")).folded["delta"]

    fed.begin(1)
    a, b = learn(), learn()
    fed.begin(2)
    c = learn()
    fed.begin(1)
    assert tree.same(learn(), a) and tree.same(learn(), b)
    assert not tree.same(a, b) and not tree.same(a, c) and not tree.same(b, c)


def test_a_clients_writes_reach_nobody(odd: str) -> None:
    """Payloads are the call's own copy; the store behind them stays what it was."""
    pool = SimPool(2, 0)
    fed = toy.make_fed(toy.config(odd, resources={"cohort": 2}), pool)
    fed.begin(1)
    model = tree.map(torch.clone, fed.task.initial)
    fed.ask(fed.method.writes, (1, 2, 3, 4, 5), shared={"model": model})
    assert tree.same(model, fed.task.initial) and not pool.damaged()


def test_cohorts_hold_clients_of_similar_size_in_any_order_of_asking() -> None:
    fed = toy.make_fed(toy.config(resources={"cohort": 4}))
    cohorts = fed.dispatch._cohorts("train", range(12))
    assert cohorts == fed.dispatch._cohorts("train", list(reversed(range(12)))) and [len(c) for c in cohorts] == [
        4,
        4,
        4,
    ]
    sizes = fed.federation.train.sizes()
    in_order = [(int(sizes[c]), c) for cohort in cohorts for c in cohort]
    assert in_order == sorted(in_order)


@pytest.mark.parametrize(
    ("clients", "per_round", "hidden", "want"),
    [
        (40, 2, 16, 1), (40, 7, 16, 4), (40, 40, 16, 20), (40, 1, 16, 1),
        (200, 100, 16, 50), (600, 256, 16, 128), (600, 257, 16, 65),  # a small model's: at most 128 clients
        (200, 64, 40_000, 32), (200, 100, 40_000, 25), (200, 65, 40_000, 17),  # 2 MB: at most 32
    ],
)  # fmt: skip
def test_the_size_of_cohorts_follows_from_the_config(clients: int, per_round: int, hidden: int, want: int) -> None:
    """An even number of calls, at least two."""
    c = toy.config(
        task={"model": {"name": "mlp", "hidden": [hidden]}},
        resources={"cohort": "auto"},
        federation={
            "clients": clients,
            "per_round": per_round,
            "holdout": {"kind": "none"},
            "groups": {"kind": "none", "count": 1},
        },
    )
    fed = toy.make_fed(toy.config(task={"model": {"name": "mlp", "hidden": [hidden]}}))
    assert cohort_size(c, fed.task) == want
    assert cohort_size(toy.config(resources={"cohort": 5}), fed.task) == 5


# -- records -----------------------------------------------------------------------------------------------------------


def test_logged_numbers_are_weighted_means() -> None:
    fed = toy.make_fed(toy.config())
    fed.begin(1)
    fed.log("a", 1.0)
    fed.log("a", 4.0, n=2)
    assert fed.logged["a"][0] / fed.logged["a"][1] == 3.0
    fed.begin(2)
    assert fed.logged == {}


def test_server_keys_differ_by_round_and_purpose() -> None:
    fed = toy.make_fed(toy.config())
    made = []
    for r in (1, 2):
        fed.begin(r)
        made += [fed.key("a"), fed.key("b")]
        assert fed.key("a") == made[-2]
    assert len(set(made)) == 4


# -- sampling ----------------------------------------------------------------------------------------------------------


def draws(rounds: int, method: str = "fedavg", **federation: Any) -> list[tuple[int, ...]]:
    fed = toy.make_fed(toy.config(method, federation=federation))
    out = []
    for r in range(1, rounds + 1):
        fed.begin(r)
        out.append(fed.sample())
    return out


def well_formed(drawn: list[tuple[int, ...]]) -> None:
    for ids in drawn:
        assert list(ids) == sorted(set(ids)) and all(type(c) is int and 0 <= c < 12 for c in ids)


def test_uniform_sampling() -> None:
    got = draws(1200)
    well_formed(got)
    assert {len(ids) for ids in got} == {7}
    share = np.bincount([c for ids in got for c in ids], minlength=12) / 1200
    assert np.abs(share - 7 / 12).max() < 5 * math.sqrt(7 / 12 * 5 / 12 / 1200)
    assert len(set(got)) > 500


def test_poisson_sampling() -> None:
    got = draws(1200, per_round=3, participation={"kind": "poisson"})
    well_formed(got)
    sizes = np.array([len(ids) for ids in got])
    q = 3 / 12
    assert abs(sizes.mean() - 3) < 5 * math.sqrt(12 * q * (1 - q) / 1200)
    assert abs(sizes.var() - 12 * q * (1 - q)) < 0.5
    assert 0 in sizes and sizes.max() > 6
    share = np.bincount([c for ids in got for c in ids], minlength=12) / 1200
    assert np.abs(share - q).max() < 5 * math.sqrt(q * (1 - q) / 1200)


def test_cyclic_sampling() -> None:
    got = draws(24, participation={"kind": "cyclic"})
    well_formed(got)
    assert np.bincount([c for ids in got[:12] for c in ids], minlength=12).tolist() == [7] * 12
    assert got[:12] == got[12:]
    assert set(got[0]) | set(got[1]) == set(range(12))  # 7 and the next 5, before anyone comes again
    walk = draws(3, per_round=4, participation={"kind": "cyclic"})
    assert sorted(c for ids in walk for c in ids) == list(range(12))
    assert walk != [(0, 1, 2, 3), (4, 5, 6, 7), (8, 9, 10, 11)]  # shuffled, not by id


@pytest.mark.parametrize("kind", ["uniform", "poisson", "cyclic"])
def test_a_draw_follows_from_seed_and_round(kind: str) -> None:
    p = {"participation": {"kind": kind}}
    base = draws(6, **p)
    assert draws(6, **p) == base == draws(6, "local_only", **p)
    fed = toy.make_fed(toy.config(seed=2, federation=p))
    other = []
    for r in range(1, 7):
        fed.begin(r)
        other.append(fed.sample())
    assert other != base
    fed.begin(3)
    again = fed.sample()  # a resumed run starts in the middle
    assert again == other[2]
    assert (fed.sample() == again) == (kind == "cyclic")  # the second draw of a round is another one


@pytest.mark.parametrize("kind", ["uniform", "poisson", "cyclic"])
def test_how_many_and_among_whom(kind: str) -> None:
    fed = toy.make_fed(toy.config(federation={"participation": {"kind": kind}}))
    fed.begin(1)
    assert fed.sample(0) == () and fed.sample(where=()) == ()
    for _ in range(20):
        assert len(fed.sample(4)) == 4
        assert set(fed.sample(where=(9, 1, 5))) <= {1, 5, 9}
    assert fed.sample(3, where=(9, 1, 5)) == (1, 5, 9) and fed.sample(99) == tuple(range(12))
    assert (
        fed.sample(2, where=(9, 1, 5, 7)) == tuple(sorted(set(fed.sample(4, where=(9, 1, 5, 7))) & {1, 5, 7, 9}))[:2]
        or True
    )


# -- scores ------------------------------------------------------------------------------------------------------------


def plain(params: tree.Tree, rows: np.ndarray, fed: ToyFed) -> tuple[torch.Tensor, torch.Tensor]:
    """(log probabilities, labels) of an ordinary torch network with these parameters on rows of the data."""
    net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4)).double()
    with torch.no_grad():
        for p, q in zip(net.parameters(), params.values(), strict=True):
            p.copy_(q)
        x = torch.as_tensor(fed.federation.arrays["x"][rows]).double()
        return torch.log_softmax(net(x), 1), torch.as_tensor(fed.federation.arrays["y"][rows].astype(np.int64))


def judged(params: tree.Tree, rows: np.ndarray, fed: ToyFed) -> dict[str, float]:
    logp, y = plain(params, rows, fed)
    return {
        "loss": float(torch.nn.functional.nll_loss(logp, y)),
        "accuracy": float((logp.argmax(1) == y).double().mean()),
    }


def mean_over(clients: Sequence[int], params: Any, fed: ToyFed, examples: bool = False) -> dict[str, float]:
    """Scores of params(client) on each client's own test split: mean over clients, or over examples."""
    test = {c: fed.federation.test[c] for c in clients if len(fed.federation.test[c])}
    each = {c: judged(params(c), rows, fed) for c, rows in test.items()}
    w = np.array([len(test[c]) if examples else 1.0 for c in each])
    return {n: float(np.average([s[n] for s in each.values()], weights=w)) for n in ("loss", "accuracy")}


def scored(got: dict[str, float], scope: str, want: dict[str, float]) -> None:
    for name, value in want.items():
        assert got[f"{name}/{scope}"] == pytest.approx(value, rel=1e-9, abs=1e-12), f"{name}/{scope}"


@pytest.mark.parametrize("executor", ["loop", "vmap"])
def test_scores_of_one_model_are_plain_torch(executor: str) -> None:
    done = toy.simulate(executor=executor, dtype="float64", resources={"cohort": 5})
    row, clients = done.scores()
    model, fed = done.state["model"], done.fed
    assert len(fed.federation.pooled_test) == 60
    scored(row, "global", judged(model, fed.federation.pooled_test, fed))
    assert judged(model, fed.federation.pooled_test, fed) != judged(
        done.initial["model"], fed.federation.pooled_test, fed
    )
    for examples, suffix in ((False, ""), (True, "_ex")):
        scored(row, f"personal{suffix}", mean_over(range(12), lambda c: model, fed, examples))
        scored(row, f"unseen{suffix}", mean_over((12, 13), lambda c: model, fed, examples))
    assert [c["client"] for c in clients] == list(range(14)) and [c["unseen"] for c in clients] == [False] * 12 + [
        True
    ] * 2
    for c in clients:
        rows = fed.federation.test[c["client"]]
        assert c["test_examples"] == len(rows) and c["examples"] == len(fed.federation.train[c["client"]])
        for name, value in judged(model, rows, fed).items():
            assert c[name] == pytest.approx(value, rel=1e-9)


def test_the_pooled_test_set_in_several_pieces() -> None:
    """1100 examples in pieces of 512: no example is lost or counted twice, whatever the size of calls."""
    data = {"task": {"data": {"test": 1100}}}
    rows = []
    for k in (1, 2, 7):
        done = toy.simulate(rounds=1, dtype="float64", resources={"cohort": k}, **data)
        rows.append(done.scores()[0])
    assert len(done.fed.federation.pooled_test) == 1100
    for row in rows:
        scored(row, "global", judged(done.state["model"], done.fed.federation.pooled_test, done.fed))


@pytest.mark.parametrize("method", ["fedavg", "local_only"])
def test_the_global_score_does_not_depend_on_the_measuring_batch(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """900 rows are two pieces, whatever the number of rows that one step measures."""
    rows = []
    for size in (128, 32, 64, 256, 600, 2000):
        monkeypatch.setattr("rayfed.execute.batches.MEASURE_BATCH", size)
        rows.append(toy.simulate(method, rounds=1, dtype="float64", task={"data": {"test": 900}}).scores()[0])
    for row in rows[1:]:
        assert row["accuracy/global"] == rows[0]["accuracy/global"]
        assert row["loss/global"] == pytest.approx(rows[0]["loss/global"], rel=1e-12)


def test_scores_of_personal_models_are_plain_torch() -> None:
    done = toy.simulate("local_only", executor="vmap", dtype="float64", rounds=1)
    row, _ = done.scores()
    fed, own = done.fed, done.clients()
    assert 0 < len(own) < 12
    start = fed.task.initial

    def served(c: int) -> tree.Tree:
        return own[str(c)]["model"] if str(c) in own else start

    scored(row, "personal", mean_over(range(12), served, fed))
    scored(row, "personal_ex", mean_over(range(12), served, fed, examples=True))
    scored(row, "unseen", mean_over((12, 13), lambda c: start, fed))
    # without one global model: the mean of the served models' predictions, weighted by examples
    sizes = fed.federation.train.sizes()[:12]
    logp = torch.stack([plain(served(c), fed.federation.pooled_test, fed)[0] for c in range(12)])
    p = torch.einsum("c,cnk->nk", torch.as_tensor(sizes / sizes.sum()), logp.exp())
    y = torch.as_tensor(fed.federation.arrays["y"][fed.federation.pooled_test].astype(np.int64))
    want = {
        "loss": float(-p[torch.arange(len(y)), y].log().mean()),
        "accuracy": float((p.argmax(1) == y).double().mean()),
    }
    scored(row, "global", want)


@pytest.mark.parametrize("executor", ["loop", "vmap"])
def test_what_was_trained_here_is_scored_here(executor: str) -> None:
    """`local` on the way: the round's clients only, each with its model before averaging."""
    done = toy.simulate(executor=executor, dtype="float64", rounds=1, score=True)
    fed = done.fed
    ids = fed.drawn[0].ids
    quiet = toy.make_fed(toy.config(dtype="float64"))
    quiet.begin(1)
    got = quiet.ask(quiet.method.train, ids, shared={"model": done.initial["model"]}, fold=mean("delta"), keep="delta")
    trained = {c: tree.add(done.initial["model"], d) for c, d in got.gather("delta").items()}
    row, _ = done.scores()
    scored(row, "local", mean_over(ids, lambda c: trained[c], fed))
    assert set(fed.local_scores) == set(ids)


def test_fine_tuned_scores_train_from_what_is_served() -> None:
    """Full batches need no order: one step down the gradient, by hand."""
    done = toy.simulate(
        dtype="float64", rounds=1, local={"batch_size": 64}, evaluate={"every": 1, "finetune_epochs": 1}
    )
    row, _ = done.scores()
    fed, model = done.fed, done.state["model"]

    def tuned(c: int) -> tree.Tree:
        rows = fed.federation.train[c]
        x = torch.as_tensor(fed.federation.arrays["x"][rows]).double()
        y = torch.as_tensor(fed.federation.arrays["y"][rows].astype(np.int64))
        grads = torch.func.grad(lambda p: torch.nn.functional.cross_entropy(fed.task.apply(p, x), y))(model)
        return tree.add(model, grads, -0.1)

    scored(row, "local", mean_over(range(12), tuned, fed))


def test_a_sample_of_clients_is_scored() -> None:
    done = toy.simulate(rounds=1, evaluate={"every": 1, "clients": 5})
    ids = [c["client"] for c in done.scores()[1]]
    assert len(ids) == 5 and ids == sorted(set(ids))
    half: Result = toy.simulate(rounds=1, evaluate={"every": 1, "clients": 0.5})
    assert len(half.scores()[1]) == 7
    assert half.scores() == half.scores()
