"""Families of models: who has which, what is refused, and that a family's clients train as they would alone."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch

from rayfed import methods, tree
from rayfed.config.load import merge
from rayfed.config.schema import Config
from rayfed.engine.families import alike, joined
from rayfed.errors import ConfigError, FailsAgain
from rayfed.launch import family_check, model_check
from rayfed.models import families
from tests import toy

TWO = {
    "small": {"name": "mlp", "hidden": [16], "share": 0.5},
    "large": {"name": "mlp", "hidden": [32, 16], "share": 0.5},
}
LAST = {"a": {"name": "mlp", "hidden": [8], "share": 0.5}, "b": {"name": "mlp", "hidden": [9], "share": 0.5}}


def changed(model: Any) -> dict[str, Any]:
    return {"task": {"model": model}}


def refused(model: Any, method: Any = "local_only", **changes: Any) -> list[str]:
    with pytest.raises(ConfigError) as found:
        toy.config(method, **merge(changed(model), changes))
    return found.value.problems


def test_counts_are_exact_on_both_sides_and_follow_from_the_seed() -> None:
    c = toy.config("local_only", **changed({n: {**f, "share": s} for (n, f), s in zip(TWO.items(), (0.25, 0.75))}))
    found = families.drawn(c, 12, 14)
    assert found is not None
    assert np.bincount(found[:12]).tolist() == [3, 9] and len(found) == 14
    assert found.tolist() == families.drawn(c, 12, 14).tolist()
    assert families.drawn(toy.config("local_only"), 12, 14) is None


def test_a_config_reads_back_and_merges_as_one_section() -> None:
    c = toy.config("local_only", **changed(TWO))
    assert c.to_dict()["task"]["model"] == TWO and Config.from_dict(c.to_dict()) == c
    assert [(n, one.task.model.options) for n, one in families.configs(c).items()] == [
        ("small", {"hidden": [16]}), ("large", {"hidden": [32, 16]})
    ]  # fmt: skip
    one, other = {"name": "mlp", "hidden": [4]}, {"x": {"name": "linear", "share": 1.0}}
    assert merge(TWO, one) == one and merge(one, TWO) == TWO and merge(TWO, other) == other
    assert merge(TWO, {"small": {"share": 0.25}})["small"] == {"name": "mlp", "hidden": [16], "share": 0.25}


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (merge(TWO, {"large": {"share": 0.4}}), "task.model: the families' shares sum to 0.9 (small 0.5, large 0.4), they must sum to 1"),
        ({"small": {**TWO["small"], "share": 0.9}}, "task.model: one family found (small), allowed: two or more, or the model itself"),
        ({**TWO, "large": {"name": "mlpp", "share": 0.5}}, "task.model.large: 'mlpp' is unknown (did you mean 'mlp'?); known: "),
        ({**TWO, "large": {"name": "mlp"}}, "task.model.large.share: missing"),
        (merge(TWO, {"large": {"width": 3}}), "task.model.large.width: unknown option of mlp"),
        ({**TWO, "large": {"name": "hf:somewhere", "share": 0.5}}, "task.model.large: hf:somewhere found, which clients have alone"),
    ],
)  # fmt: skip
def test_wrong_families_are_refused_by_name(model: Any, says: str) -> None:
    found = refused(model)
    assert any(says in p for p in found), found


def test_a_share_of_nobody_is_refused() -> None:
    few = {n: {**f, "share": s} for (n, f), s in zip(TWO.items(), (0.99, 0.01))}
    assert any("task.model.large.share: 0.01 found, which comes to none of the 12 clients" in p for p in refused(few))


@pytest.mark.parametrize(
    ("method", "model", "says"),
    [
        ("fedavg", TWO, "its part 'model', params, is not the same in all: body.0.weight is 16x8 in small and 32x8 in large"),
        ("fedper", TWO, "its part 'model', params but head"),
        ("fedrod", TWO, "its part 'model'"),
        ("fedproto", LAST, "its clients send features, which are of other sizes in the families of task.model (8 in a, 9 in b numbers)"),
        ("lg_fedavg", LAST, "head.weight is 4x8 in a and 4x9 in b"),
    ],
)  # fmt: skip
def test_a_method_that_cannot_have_them_is_refused_with_names(method: str, model: Any, says: str) -> None:
    c = toy.config(method, **changed(model))
    asked = model_check.question(c, toy.federation(c))
    assert asked is not None
    (found,) = model_check.check_models({"": asked})[""]
    assert says in found and found.startswith(f"method.name: {method} found, "), found
    # ... and of one architecture under two names it is not, but for the one model for all
    equal = {"a": {**TWO["small"]}, "b": {**TWO["small"]}}
    again = model_check.question(toy.config(method, **changed(equal)), toy.federation(c))
    assert again is not None
    left = model_check.check_models({"": again})[""]
    assert not left or "its one global model" in left[0]


def test_the_servers_task_has_what_is_common_and_no_network() -> None:
    fed = toy.make_fed(toy.config("fedgh", **changed(TWO)))
    task, x = fed.task, torch.zeros(2, 8)
    assert set(task.params_like) == {"head.weight", "head.bias"} == set(task.initial) == alike(task.families)
    assert tree.same(task.initial, {n: task.families["small"].initial[n] for n in task.params_like})
    with pytest.raises(FailsAgain, match=re.escape("families (small, large), and no one network")):
        task.apply(task.initial, x)
    for c in range(14):
        assert task.of_client(c) is task.families[["small", "large"][task.family[c]]]
    assert joined(task.families, task.family).head == ("head.weight", "head.bias")
    assert not family_check.problems(methods.of(fed.config), task.families)


def test_clients_train_as_in_a_run_of_their_family_alone() -> None:
    """To the bit, whatever else is in the round: local training, cohorts of one."""
    done = toy.simulate("local_only", resources={"cohort": 1}, **changed(TWO))
    for number, (name, f) in enumerate(TWO.items()):
        alone = {n: v for n, v in f.items() if n != "share"}
        other = toy.simulate("local_only", resources={"cohort": 1}, **changed(alone)).clients()
        theirs = [c for c in done.clients() if done.fed.task.family[int(c)] == number]
        assert theirs and all(tree.same(done.clients()[c], other[c]) for c in theirs), name


def test_scores_are_also_by_family() -> None:
    done = toy.simulate("local_only", **changed(TWO))
    row, clients = done.scores()
    for name in TWO:
        own = [c["accuracy"] for c in clients if c["family"] == name and not c["unseen"] and c["test_examples"]]
        assert row[f"accuracy/family-{name}"] == pytest.approx(sum(own) / len(own))
    assert "accuracy/global" in row and "accuracy/unseen" in row


def test_simulated_time_and_bytes_are_each_clients_own() -> None:
    work = {"devices": {"profile": "lognormal", "sigma": 0.5, "bandwidth": 1000.0}}
    fed = toy.make_fed(toy.config("fedproto", **changed(TWO), **work))
    plain = toy.make_fed(toy.config("fedproto", **work))
    both, small = fed.durations(), plain.durations()
    first = fed.task.family[:12] == 0
    assert (both[first] == small[first]).all() and (both[~first] > small[~first]).all()
