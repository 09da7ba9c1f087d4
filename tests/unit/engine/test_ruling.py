"""Rules of aggregation in a run: each gives what it gives on the updates themselves, wherever these are."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from rayfed import aggregate, methods, tree
from rayfed.aggregate import Evidence
from rayfed.engine.ruling import Ruling
from rayfed.errors import ConfigError, FailsAgain
from rayfed.fold import mean, total
from rayfed.methods._bases.over_adapter import OverAdapter
from rayfed.methods._bases.over_lora import OverLoRA
from tests import toy
from tests.conformance import checks
from tests.conformance.checks import Case
from tests.conformance.test_conformance import VARIANTS
from tests.toy import SimPool
from tests.unit.aggregate.test_aggregate import RULES

WIDE = {"task": {"model": {"name": "mlp", "hidden": [400]}}}  # 5,204 parameters: updates stay where they were made
CLIENTS = (0, 1, 2, 3, 5, 7, 8, 11)


def asked(kind: str | None = None, pool: Any = None, fold: Any = None, **changes: Any) -> Any:
    """One ask of FedAvg's clients under a rule: the federation, and its replies."""
    rule = {"aggregate": {"kind": kind, **RULES[kind]}} if kind else {}
    c = toy.config("fedavg", executor="vmap", resources={"cohort": 3}, **{**rule, **changes})
    fed = toy.make_fed(c, pool)
    fed.begin(2)
    state = fed.method.init(fed.task, 7)
    got = fed.ask(fed.method.train, CLIENTS, shared=state, fold=fold or mean("delta"), keep="delta")
    return fed, got


def rows_of(got: Any) -> np.ndarray:
    return np.concatenate([x.flatten(1).double().numpy() for x in tree.values(got.stacked("delta"))], 1)


def by_hand(kind: str, rows: np.ndarray, examples: np.ndarray, sizes: list[int]) -> np.ndarray:
    """The rule on the updates (n, P) themselves."""
    rule: Any = aggregate.of(toy.config(aggregate={"kind": kind, **RULES[kind]}))
    n, w = len(rows), examples / examples.sum()
    if rule.needs == ("fold",):
        return w @ (rows * rule.scale(torch.as_tensor(np.linalg.norm(rows, axis=1))).numpy()[:, None])
    if rule.by_tensor:
        cuts = np.split(rows, np.cumsum(sizes)[:-1], axis=1)
        return np.concatenate([rule.weigh(Evidence(x @ x.T, w, np.arange(n), 2)) @ x for x in cuts])
    c = rule.weigh(Evidence(rows @ rows.T, w, np.arange(n), 2)) if "gram" in rule.needs else np.ones(n)
    return rule.combine(torch.as_tensor(rows[c != 0])).numpy() if "rows" in rule.needs else c @ rows


@pytest.mark.parametrize("kind", sorted(RULES))
@pytest.mark.parametrize("wide", [False, True])
def test_a_run_gives_what_the_rule_gives_on_the_updates(kind: str, wide: bool) -> None:
    more = WIDE if wide else {}
    _, plain = asked(None, **more)
    _, got = asked(kind, SimPool(3, 1), **more)
    rows, sizes = rows_of(plain), [x[0].numel() for x in tree.values(plain.stacked("delta"))]
    wanted = by_hand(kind, rows, plain.examples.numpy(), sizes)
    ours = tree.flatten(got.folded["delta"]).double().numpy()
    assert np.linalg.norm(ours - wanted) <= 2e-5 * np.linalg.norm(wanted)
    assert got.weight["delta"] == float(plain.examples.sum())
    _, again = asked(kind, SimPool(1, 4), **more)
    assert tree.same(again.folded["delta"], got.folded["delta"]), "the same bits on other workers, in another order"


@pytest.mark.parametrize("kind", ["krum", "median", "bulyan", "principal"])
def test_each_group_of_a_fold_is_ruled_by_itself(kind: str) -> None:
    """IFCA's fold by cluster: what a cluster gets is what the rule makes of its own members' updates."""
    c = toy.config(
        {"name": "ifca", "clusters": 2},
        executor="vmap",
        resources={"cohort": 3},
        aggregate={"kind": kind, **RULES[kind]},
    )
    fed = toy.make_fed(c, SimPool(2, 1))
    fed.begin(2)
    seen: list[Any] = []
    real = fed.ask
    fed.ask = lambda *a, **k: seen.append(real(*a, **{**k, "keep": ("delta", "cluster")})) or seen[-1]  # type: ignore[method-assign]
    fed.method.round(fed.method.init(fed.task, 7), fed, fed.task)
    got = seen[-1]
    rows, cluster = rows_of(got), got.stacked("cluster").numpy()
    sizes = [x[0].numel() for x in tree.values(got.stacked("delta"))]
    least = aggregate.of(c).least  # type: ignore[union-attr]
    groups = {k: np.flatnonzero(cluster == k) for k in np.unique(cluster)}
    assert set(got.folded["delta"]) == {k for k, at in groups.items() if len(at) >= least}
    for k, made in got.folded["delta"].items():
        wanted = by_hand(kind, rows[groups[k]], np.ones(len(groups[k])), sizes)
        assert np.allclose(tree.flatten(made).double().numpy(), wanted, rtol=1e-4, atol=1e-6)


def test_too_few_replies_are_no_update_and_are_counted() -> None:
    fed, _ = asked("bulyan")
    few = fed.ask(fed.method.train, CLIENTS[:3], shared=fed.method.init(fed.task, 7), fold=mean("delta"))
    assert few.ids and not tree.values(few.folded["delta"])[0].any() and few.weight["delta"] == 0.0
    nobody = fed.ask(fed.method.train, (), shared=fed.method.init(fed.task, 7), fold=mean("delta"))
    assert not tree.values(nobody.folded["delta"])[0].any()
    assert fed.dispatch.ruling.row()["aggregate/skipped"] == 1.0


@pytest.mark.parametrize("kind", ["krum", "flag", "geometric_median"])
def test_a_reply_beyond_all_numbers_gets_no_weight(kind: str) -> None:
    scale = [{"kind": "scale", "clients": [5], "factor": 1e30}]
    fed, got = asked(kind, attacks=scale)
    assert tree.finite(got.folded["delta"])
    assert fed.dispatch.ruling.row() == {"aggregate/skipped": 0.0, "aggregate/attackers": 0.0}


def test_what_attackers_get_is_noted() -> None:
    fed, _ = asked("geometric_median", attacks=[{"kind": "noise", "clients": [5, 0], "size": 1e-8}])
    assert 0.05 < fed.dispatch.ruling.row()["aggregate/attackers"] < 1


def test_running_statistics_have_a_mean_where_coefficients_have_another_sum() -> None:
    """Flag's coefficients of opposite updates sum to little; a running variance moves by the mean of its changes all the same."""
    updates = {
        "w": torch.tensor([[1.0, 0.0], [-1.0, 0.1], [3.0, 0.0]]),
        "variance": torch.tensor([[1.0], [2.0], [6.0]]),
    }

    def linear(part: str, weights: torch.Tensor, names: tuple[str, ...] = ()) -> list[Any]:
        return [{n: row.to(torch.float32) @ updates[n] for n in names or updates} for row in weights]

    unfolded: Any = SimpleNamespace(linear=linear, gram=lambda part: updates["w"] @ updates["w"].T)
    c = toy.config(aggregate="flag")
    ruling = Ruling(c, methods.get("fedavg")(None, c), aggregate.of(c), ("variance",))  # type: ignore[arg-type]
    groups, ids = [np.arange(3)], np.arange(3)
    (made,) = ruling._rule(["delta"], groups, np.ones(3), ids, unfolded, lambda part: None)["delta"]
    assert made["variance"].item() == pytest.approx(3.0)


def test_clients_tell_their_number_of_rows_once() -> None:
    """Where the rule reads it and a part beside the ruled one is folded by it, too."""
    c = toy.config("scaffold", aggregate="geometric_median")
    fed = toy.make_fed(c)
    fed.begin(1)
    state = fed.method.init(fed.task, 7)
    sent = {"model": state["model"], "c": state["c"]}
    up = []
    for other in ("one", "examples"):
        before = fed.meter["bytes/up"]
        fed.ask(fed.method.train, CLIENTS, shared=sent, fold=(mean("delta"), mean("dc", weight=other)))
        up.append(fed.meter["bytes/up"] - before)
    assert up == [len(CLIENTS) * (2 * 4 * 212 + 8)] * 2


def test_each_part_has_a_memory_of_its_own() -> None:
    c = toy.config(aggregate="foolsgold")
    ruling = Ruling(c, methods.get("fedavg")(None, c), aggregate.of(c), ())  # type: ignore[arg-type]
    for part, size in (("a", 2), ("b", 3), ("a", 2)):
        unfolded: Any = SimpleNamespace(stacked=lambda part, names, size=size: {"w": torch.ones(1, size)})
        gram = ruling._remember([part], np.array([4]), unfolded)
    assert gram.tolist() == [[8.0]]  # of twice (1, 1)


def test_only_means_of_updates_are_ruled() -> None:
    fed, _ = asked("median")
    ruling = fed.dispatch.ruling
    assert ruling.takes((mean("delta"), total("delta"), mean("tau"))) == (mean("delta"),)
    with pytest.raises(FailsAgain, match="fixed denominator"):
        ruling.takes((mean("delta", denominator=3.0),))


CASES = {
    "krum": Case("fedavg", {"aggregate": {"kind": "krum", "f": 1}, "attacks": [{"kind": "sign", "clients": 2}]}),
    "trimmed_mean": Case({"name": "ifca", "clusters": 2}, {"aggregate": {"kind": "trimmed_mean", "f": 1}}),
    "norm_bound": Case("scaffold", {"aggregate": {"kind": "norm_bound", "norm": 0.5}}),
    "foolsgold": Case("fedavg", {"aggregate": "foolsgold", "attacks": [{"kind": "sign", "clients": 2}]}),
}  # fmt: skip


@pytest.mark.parametrize(
    "check",
    [
        checks.two_rounds_run, checks.loop_is_vmap, checks.resumes, checks.order_and_workers_change_nothing,
        checks.lost_calls_change_nothing, checks.empty_rounds_pass, checks.payload_is_the_wires,
    ],
    ids=lambda c: c.__name__,
)  # fmt: skip
@pytest.mark.parametrize("case", sorted(CASES))
def test_conformance_under_a_rule(case: str, check: Any, tmp_path: Any) -> None:
    check(CASES[case], tmp_path)


def test_an_update_of_which_no_mean_is_taken_ends_the_run() -> None:
    """The check before the start goes by `no_rule`; a method that lacks it fails in its first round."""
    fed, _ = asked("median")
    with pytest.raises(FailsAgain, match="visit 'train' sends 'delta' and the method takes no mean of it"):
        fed.ask(fed.method.train, CLIENTS, shared=fed.method.init(fed.task, 7))
    with pytest.raises(FailsAgain, match="takes no mean of it"):
        fed.ask(fed.method.train, CLIENTS, shared=fed.method.init(fed.task, 7), fold=total("delta"))


@pytest.mark.parametrize("name", [n for n in methods.names() if not issubclass(methods.get(n), OverLoRA)])
def test_a_rule_acts_or_is_refused_whatever_the_method(name: str, on_bert: Any) -> None:
    """Never is a rule left out silently: with one, a run gives another state than without, or the config is refused.

    Of methods that begin with a round apart, the second round shows it.
    """
    row = VARIANTS.get(name, [{}])[0]
    settings, changes = row if isinstance(row, tuple) else (row, {})
    changes = on_bert(changes) if issubclass(methods.get(name), OverAdapter) else changes

    def after(kind: str, rounds: int) -> tree.Tree:
        more = toy.merge(changes, {"aggregate": kind})
        return toy.simulate({"name": name, **settings}, executor="vmap", rounds=rounds, **more).state

    try:
        after("median", 1)
    except ConfigError as error:
        assert "aggregate.kind: median found" in str(error), error
        return
    assert any(not tree.same(after("mean", r), after("median", r)) for r in (1, 2)), (
        "the median gives what the mean gives"
    )


def test_transforms_act_on_what_attackers_send() -> None:
    """A scaled update is cut to the clip's norm as everyone's is."""
    scale = [{"kind": "scale", "clients": [5], "factor": 1000.0}]
    _, got = asked(None, attacks=scale, transforms=[{"kind": "clip", "norm": 0.1}])
    assert np.linalg.norm(rows_of(got), axis=1).max() <= 0.1 * (1 + 1e-5)
