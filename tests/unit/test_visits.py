"""The visits of a method: how they are registered, what `ask` takes, and visits with arguments under each executor."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch

from rayfed import execute, methods, tree, visits
from rayfed.execute.batches import BatchSampler
from rayfed.methods.fedavg import FedAvg
from rayfed.visits import BoundVisit, Phase, Visit, VisitMethod, model_of, once, visit
from rayfed.wire import ANY, SCALAR, Part
from tests import toy
from tests.toy import SimPool


class Counting(FedAvg):
    """FedAvg that can also ask how often its clients have a class, times a factor."""

    wire = FedAvg.wire._replace(up={**FedAvg.wire.up, "n": Part(SCALAR), "x": Part(ANY)})

    @visit
    def count(self, task: Any, k: int, factor: Any = 1) -> Visit:
        """How many examples of class k."""

        def step(carry: Any, batch: Any, key: Any) -> Any:
            return {"n": carry["n"] + ((batch["y"] == k) * batch["w"]).sum() * factor}

        def end(client: Any, carry: Any) -> Any:
            return {"n": carry["n"]}, client.own

        return Visit(lambda client: {"n": torch.zeros((), dtype=task.dtype)}, [Phase(once(), step, counts=False)], end)

    @visit
    def typed(self, task: Any, x: Any = 0) -> Visit:
        """The argument as a tensor of its type."""
        return Visit(lambda client: {}, (), lambda client, carry: ({"x": torch.tensor(x)}, client.own))

    @visit
    def plain(self, task: Any) -> Visit:
        return model_of(lambda client: client.shared["model"])._replace(vectorize="it is slow on purpose")

    def undecorated(self, task: Any) -> Visit:
        return model_of(lambda client: client.shared["model"])


class Redefined(Counting):
    """Takes a visit over without the decorator."""

    def train(self, task: Any) -> Visit:  # type: ignore[override]
        return super().train(task)


class Overriding(Counting):
    """Asks for what it overrides."""

    @visit
    def train(self, task: Any) -> Visit:
        return super().train(task)

    def parent(self) -> Any:
        return super().train


@visit
def outside(self: Any, task: Any) -> Visit:
    return model_of(lambda client: client.shared["model"])


def fed_of(monkeypatch: pytest.MonkeyPatch, cls: type = Counting, pool: Any = None, **more: Any) -> Any:
    """A federation of this file's method, which is found as if it were an installed one."""
    monkeypatch.setattr("rayfed.methods.get", lambda name: cls)
    fed = toy.make_fed(toy.config("fedavg", **more), pool)
    fed.begin(1)
    return fed


def test_visits_are_found_by_their_decorator() -> None:
    found = visits.visits_of(Counting)
    assert set(found) == {"train", "count", "typed", "plain"} and all(
        isinstance(v, VisitMethod) for v in found.values()
    )
    assert found["count"].__doc__ == "How many examples of class k." and found["train"] is FedAvg.train
    assert set(visits.visits_of(Redefined)) == {"count", "typed", "plain"}


def test_a_visit_is_its_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    fed = fed_of(monkeypatch)
    asked = fed.method.count.with_(k=2)
    assert isinstance(asked, BoundVisit) and asked.call == ("count", (("k", 2),))
    assert asked == fed.method.count.with_(k=2) != fed.method.count.with_(k=3)
    assert asked.with_(factor=2).call == ("count", (("factor", 2), ("k", 2)))
    assert isinstance(asked(fed.task), Visit) and fed.method.train.call == ("train", ())


@pytest.mark.parametrize("executor", ["loop", "vmap", "debug"])
def test_visits_take_arguments(monkeypatch: pytest.MonkeyPatch, executor: str) -> None:
    """Also between processes, where they travel with the call; several rounds, so that recordings are replayed."""
    fed = fed_of(monkeypatch, pool=SimPool(2), executor=executor)
    ids = list(range(fed.population))
    for _ in range(5):
        for k in range(4):
            got = fed.ask(fed.method.count.with_(k=k, factor=3), ids).stacked("n")
            assert got.tolist() == [3.0 * n for n in fed.federation.class_counts[ids, k]]


def test_equal_arguments_of_other_types_are_other_visits(monkeypatch: pytest.MonkeyPatch) -> None:
    """1, 1.0 and True are equal and hash alike."""
    fed = fed_of(monkeypatch)
    got = [fed.ask(fed.method.typed.with_(x=x), [0]).stacked("x").dtype for x in (1, 1.0, True)]
    assert got == [torch.int64, torch.float32, torch.bool]


def test_arguments_that_change_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    fed = fed_of(monkeypatch)
    for k in range(200):
        assert int(fed.ask(fed.method.typed.with_(x=k), [0]).stacked("x")) == k
    (worker,) = [fed.pool.worker]
    assert len(worker.runs["toy"]._visits) <= 64


@pytest.mark.parametrize(
    "value", [torch.ones(2), np.float64(1.0), [1, 2], {"a": 1}, (1, [2]), print], ids=lambda v: type(v).__name__
)
def test_arguments_are_plain(monkeypatch: pytest.MonkeyPatch, value: Any) -> None:
    fed = fed_of(monkeypatch)
    says = (
        rf"^Counting\.typed: argument x is a {type(value).__name__}; allowed: numbers, words, None and tuples of them"
    )
    with pytest.raises(TypeError, match=says):
        fed.method.typed.with_(x=value)
    for fine in (None, True, 3, 0.5, "word", (1, ("a", None))):
        assert pickle.loads(pickle.dumps(fed.method.typed.with_(x=fine).arguments)) == (("x", fine),)


def test_arguments_are_those_of_the_visit(monkeypatch: pytest.MonkeyPatch) -> None:
    fed = fed_of(monkeypatch)
    with pytest.raises(
        TypeError, match=r"^Counting\.count: missing a required argument: 'k'; arguments are given by `\.with_"
    ):
        fed.ask(fed.method.count, [0])
    with pytest.raises(TypeError, match=r"^Counting\.count: got an unexpected keyword argument 'c'"):
        fed.ask(fed.method.count.with_(k=1, c=2), [0])


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        (lambda method, task: lambda task: None, r"function .*<lambda>"),
        (lambda method, task: method.undecorated, r"method Counting\.undecorated"),
        (lambda method, task: outside, "function outside"),
        (lambda method, task: method.train(task), "Visit"),
        (lambda method, task: "train", "'train'"),
        (lambda method, task: None, "NoneType"),
    ],
    ids=["lambda", "undecorated", "outside", "made", "word", "none"],
)
def test_what_is_no_visit_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, asked: Any, found: str) -> None:
    fed = fed_of(monkeypatch)
    says = rf"^ask: {found}.* found; what is asked for is a method of Counting decorated with @visit$"
    with pytest.raises(TypeError, match=says):
        fed.ask(asked(fed.method, fed.task), [0])


def test_a_visit_of_another_class_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also the one that a subclass overrides: a worker would run the subclass's."""
    fed = fed_of(monkeypatch, Overriding)
    with pytest.raises(TypeError, match=r"^ask: FedAvg\.train found, which is not Overriding\.train"):
        fed.ask(fed.method.parent(), [0])
    redefined = Redefined(fed.method.settings, fed.method.config)
    with pytest.raises(
        TypeError, match=r"^ask: method Redefined\.train found; what is asked for is a method of Redefined"
    ):
        visits.require_visit(redefined.train, redefined)


class Forgot(FedAvg):
    """Asks for visits and for what is none."""

    def helper(self, task: Any) -> Visit:
        return model_of(lambda client: client.shared["model"])

    def score(self, task: Any, k: int) -> Visit:
        return model_of(lambda client: client.shared["model"])

    def unused(self, task: Any) -> Visit:
        return model_of(lambda client: client.shared["model"])

    def round(self, state: Any, fed: Any, task: Any) -> Any:
        fed.ask(self.train, [0])
        fed.ask(self.score.with_(k=3), [0])  # type: ignore[attr-defined]
        return fed.ask(self.helper, [0])


def test_functions_that_lack_the_decorator_are_found() -> None:
    assert visits.undecorated(Counting) == visits.undecorated(Overriding) == visits.undecorated(FedAvg) == {}
    assert visits.undecorated(Redefined) == {"train": "it stands in the place of FedAvg.train, which is one"}
    assert visits.undecorated(Forgot) == {"helper": "`ask` is given it", "score": "`ask` is given it"}
    assert not [n for n in methods.ready() if visits.undecorated(methods.get(n))]


def test_which_visits_cannot_be_vectorised(monkeypatch: pytest.MonkeyPatch) -> None:
    """Visits with arguments that have no default are not made before they are asked for."""
    fed = fed_of(monkeypatch)
    assert visits.refusals(fed.method, fed.task) == {"plain": "it is slow on purpose"}


# -- measuring ---------------------------------------------------------------------------------------------------------


def pieces(name: str, made: Visit, clients: Any, shared: Any, federation: Any, data: Any) -> Any:
    """(parts, steps) of all clients, executed by hand."""
    sampler = BatchSampler(federation, seed=1, batch_size=8, device="cpu", dtype=torch.float64)
    cohort = sampler.cohort(made, tuple(clients), dispatch=1, round=1, rounds=1, lr=0.1)
    got = [(parts, steps) for _, parts, _, steps in execute.execute_visit(name, made, cohort, shared, {}, {}, data)]
    return tree.map(lambda *xs: torch.cat(xs), *[p for p, _ in got]), torch.cat([s for _, s in got])


@pytest.mark.parametrize("name", ["loop", "vmap"])
@pytest.mark.parametrize("reduce", ["mean", "sum"])
def test_measure_sums_or_averages_rows(name: str, reduce: str) -> None:
    made = visits.measure(
        lambda model, batch: {"x": batch["x"] * model["s"], "first": {"y": batch["y"].double()}},
        lambda client: {"x": torch.zeros(8).double(), "first": {"y": torch.zeros(()).double()}},
        over=visits.epochs(1),
        reduce=reduce,
    )
    federation = toy.federation(toy.config())
    x, y = np.array(federation.arrays["x"], np.float64), np.array(federation.arrays["y"])
    given = {"x": torch.tensor(x), "y": torch.tensor(y)}
    parts, steps = pieces(name, made, range(6), {"s": torch.tensor(2.0).double()}, federation, given)
    f = np.mean if reduce == "mean" else np.sum
    for i in range(6):
        rows = federation.train[i]
        assert np.allclose(parts["x"][i].numpy(), 2 * f(x[rows], axis=0), atol=1e-12)
        assert float(parts["first"]["y"][i]) == pytest.approx(float(f(y[rows])))
        assert float(parts["n"][i]) == len(rows)
    assert steps.tolist() == [0] * 6  # measuring is not training


def test_average_of_nothing_is_zero() -> None:
    assert visits.average({"sum": {"x": torch.zeros(2)}, "n": torch.zeros(())})["x"].tolist() == [0.0, 0.0]
