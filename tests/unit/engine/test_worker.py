"""A cohort's visit: clients that fail alone or in a vmap, NaN, the wire, and what a call leaves in memory."""

from __future__ import annotations

import math
import pickle
import re
from typing import Any

import pytest
import torch

from rayfed import execute, tree
from rayfed.engine.failures import ClientFailed, VectorizeError
from rayfed.engine.pool import LocalPool
from rayfed.engine.worker import CohortVisit, sums_are_finite
from rayfed.errors import RunFailed
from rayfed.fold import mean
from tests import toy
from tests.toy import SimPool, ToyFed
from tests.unit.engine.asks import BAD, SHORT, Without, policy, seen


def first_round(**changes: Any) -> tuple[int, ...]:
    fed = toy.make_fed(toy.config(**changes))
    fed.begin(1)
    return fed.sample()


def test_the_bad_client_takes_part() -> None:
    assert BAD in first_round() and len(first_round()) == 7


# -- failures ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("executor", ["loop", "debug"])
def test_raise_ends_the_run_and_says_why(odd: str, executor: str) -> None:
    with pytest.raises(ClientFailed) as raised:
        toy.simulate({"name": odd, "how": "raise", "bad": BAD}, executor=executor)
    e = pickle.loads(pickle.dumps(raised.value))
    assert (e.client, e.round, e.visit) == (BAD, 1, "train") and isinstance(e, RunFailed)
    assert re.fullmatch(rf"ValueError: client {BAD} has bad luck \(.*odd\.py, line \d+\)", e.failure.reason)
    assert "in end" in e.failure.trace and "odd.py" in e.failure.trace
    assert f"client {BAD} failed in round 1, visit 'train': {e.failure.reason}\nTraceback" in str(e)
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
    assert list(got.failures) == [BAD] and got.failures[BAD].startswith(f"ValueError: client {BAD} has bad luck (")
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


@pytest.mark.parametrize(("how", "named"), [("exit", "SystemExit: 0"), ("ctrl-c", "KeyboardInterrupt")])
@pytest.mark.parametrize("executor", ["loop", "debug"])
def test_an_exit_of_a_clients_code_is_its_failure(odd: str, how: str, named: str, executor: str) -> None:
    spec = {"name": odd, "how": how, "bad": BAD}
    with pytest.raises(ClientFailed, match=rf"client {BAD} failed .*: {named} \(.*odd\.py, line \d+\)"):
        toy.simulate(spec, executor=executor, rounds=1)
    dropped = toy.simulate(spec, executor=executor, rounds=1, **policy("drop"))
    assert dropped.rows[0]["dropped"] == 1


def test_a_client_that_hangs_is_ended(odd: str) -> None:
    """The others have their replies; a second attempt would hang too."""
    failures = {"client_error": "retry", "client_timeout_s": 1.5}
    ran = toy.simulate({"name": odd, "how": "hang", "bad": BAD}, rounds=1, failures=failures)
    got = ran.fed.method.last
    assert list(got.failures) == [BAD] and len(got.ids) == 6
    assert re.match(
        r"still at work after 1\.5 s at .*odd\.py, line \d+ \(failures\.client_timeout_s\)", got.failures[BAD]
    )


def test_a_cohort_that_hangs_at_once_is_ended_as_one(odd: str) -> None:
    """It may take as many times the limit as it has clients, and none of them is then tried alone."""
    failures = {"client_error": "raise", "client_timeout_s": 0.1}
    with pytest.raises(ClientFailed, match=r"still at work after 0\.2 s at .*odd\.py") as raised:
        toy.simulate({"name": odd, "how": "slow"}, executor="vmap", rounds=1, failures=failures)
    assert not raised.value.certain


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
    with pytest.raises(RunFailed, match=r"4 clients at once do not fit .* try resources.cohort: 2,") as raised:
        fed.ask(fed.method.train, fed.sample()[:4], shared={"model": fed.task.initial}, fold=mean("delta"))
    assert not alone and str(pickle.loads(pickle.dumps(raised.value))) == str(raised.value)


def test_vmap_raises_for_the_culprit() -> None:
    fed = spoiled("vmap")
    with pytest.raises(ClientFailed, match=f"client {BAD} failed in round 1, visit 'train'"):
        fed.ask(fed.method.train, fed.sample(), shared={"model": fed.task.initial}, fold=mean("delta"))


def test_what_only_vmap_cannot_do_is_no_clients_fault(odd: str) -> None:
    with pytest.raises(VectorizeError, match="item"):
        toy.simulate({"name": odd, "how": "raise"}, executor="vmap", **policy("drop"))  # it calls int() on a tensor


def test_what_vmap_cannot_run_is_named_as_such_despite_a_bad_client(odd: str) -> None:
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


# -- what is not finite ------------------------------------------------------------------------------------------------


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
def test_what_only_folds_is_checked_by_client_from_the_first_nan_on(
    odd: str, executor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[bool] = []
    real = CohortVisit._finite_positions

    def recording(self: CohortVisit, at: Any, parts: Any, *rest: Any) -> Any:
        checked.append("delta" in parts)
        return real(self, at, parts, *rest)

    monkeypatch.setattr(CohortVisit, "_finite_positions", recording)
    toy.simulate(odd, executor=executor, **SHORT)
    assert checked and not any(checked)
    checked.clear()
    toy.simulate({"name": odd, "how": "nan delta", "bad": BAD}, executor=executor, **SHORT, **policy("drop"))
    assert set(checked) == {False, True} and checked == sorted(
        checked
    )  # once the call is done again, nothing is any more


@pytest.mark.parametrize(
    "bad", [[math.nan], [math.inf], [-math.inf, 1.0], [math.inf, -math.inf], [1.0, math.nan, math.inf]]
)
def test_a_sum_shows_what_is_not_finite(bad: list[float]) -> None:
    fine = {"a": torch.ones(3), "b": {"c": torch.arange(4), "d": torch.ones(2, dtype=torch.float64)}}
    assert sums_are_finite([fine, {}]) and sums_are_finite([])
    assert not sums_are_finite([fine, {"x": torch.tensor(bad)}])
    apart = [{str(i): torch.tensor([v], dtype=torch.float64)} for i, v in enumerate(bad)]
    assert not sums_are_finite([*apart, fine])


# -- the wire and memory -----------------------------------------------------------------------------------------------


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


def test_a_reply_is_gone_before_the_next_one_is_made(odd: str) -> None:
    """Each takes the memory of the one before, however many clients a call has."""
    fed = toy.make_fed(toy.config(odd, executor="loop", **{**SHORT, "resources": {"cohort": 7}}))
    fed.begin(1)
    got = fed.ask(fed.method.one_by_one, fed.sample(), fold=mean("row", "one"))
    assert len(got) == 7 and got.folded["row"]["a"].tolist() == [1.0] * 1000
    assert seen(fed) == [0] * 7


def test_a_clients_writes_reach_nobody(odd: str) -> None:
    """Payloads are the call's own copy; the store behind them stays what it was."""
    pool = SimPool(2, 0)
    fed = toy.make_fed(toy.config(odd, resources={"cohort": 2}), pool)
    fed.begin(1)
    model = tree.map(torch.clone, fed.task.initial)
    fed.ask(fed.method.writes, (1, 2, 3, 4, 5), shared={"model": model})
    assert tree.same(model, fed.task.initial) and not pool.damaged()


def test_real_steps_are_counted() -> None:
    fed = toy.make_fed(toy.config(executor="vmap", resources={"cohort": 7}))
    fed.begin(1)
    got = fed.ask(fed.method.train, range(7), shared={"model": fed.task.initial}, fold=mean("delta"))
    sizes = fed.federation.train.sizes()
    assert [r.steps for r in got] == [2 * math.ceil(sizes[c] / 8) for c in range(7)]
    assert got.weight["delta"] == float(sizes[:7].sum())
