"""Kinds of task: multilabel and regress against plain torch, the registry, and what a kind must be told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import rayfed
from rayfed import task as kinds
from rayfed.engine.resident import Resident
from rayfed.launch import preflight
from rayfed.task import Task, TaskKind
from tests import toy
from tests.configs import problems

LABELS = {"task": {"data": {"name": "synthetic:multilabel", "examples": 200, "test": 40, "labels": 3, "features": 5}}}
NUMBERS = {"task": {"data": "sklearn:diabetes"}}
NONE = {"federation": {"groups": {"kind": "none"}}}


def resident(dtype: str = "float64", **changes: Any) -> Resident:
    c = toy.config(dtype=dtype, **{**NONE, **changes})
    return Resident(c, toy.federation(c), None, "cpu")


def batch_of(res: Resident, rows: slice = slice(0, 9)) -> Any:
    return res.task.batch({n: a[rows] for n, a in res.data.items()})


def test_the_folder_is_the_registry() -> None:
    assert kinds.ready()[0] == "classify" and {"multilabel", "regress", "instruct"} <= set(kinds.ready())
    for name in kinds.ready():
        cls = kinds.get(name)
        assert (
            issubclass(cls, Task)
            and cls.offers <= kinds.OFFERS.keys()
            and (cls is Task or cls.__module__.endswith(name))
        )
        assert cls.measured(cls.Settings()) and all(m.better in ("higher", "lower") and m.text for m in cls.measures)
    assert kinds.of("image") is kinds.of("classify") is Task
    assert len(kinds.names()) == len(kinds.ready()) + 1


def test_auto_goes_by_what_the_data_holds() -> None:
    assert type(resident(**LABELS).task).__name__ == "Multilabel"
    assert type(resident(**NUMBERS).task).__name__ == "Regress"
    assert type(resident().task) is Task


def test_multilabel_is_plain_torch() -> None:
    res = resident(**LABELS)
    t, batch = res.task, batch_of(res)
    assert t.classes == 3 and batch["y"].shape == (9, 3) and batch["y"].dtype == torch.float64
    logits = t.apply(t.initial, batch["x"])
    nll = F.binary_cross_entropy_with_logits(logits, batch["y"], reduction="none")
    assert torch.allclose(t.loss(t.initial, batch), nll.mean(1))
    right = (logits > 0) == (batch["y"] > 0)
    m = t.metrics(t.initial, batch)
    assert torch.allclose(m["loss"], nll.mean(1)) and torch.allclose(m["accuracy"], right.double().mean(1))
    assert m["exact"].tolist() == right.all(1).double().tolist() and set(m["exact"].tolist()) <= {0, 1}
    scored = t.score(t.initial, batch)
    assert torch.allclose(scored["prediction"], torch.sigmoid(logits)) and torch.equal(scored["loss"], m["loss"])
    judged = t.judge_mean(t.predict(t.initial, batch), batch)
    assert all(torch.allclose(judged[n], m[n], atol=1e-6) for n in m)


def test_labels_that_are_not_known_have_no_part_in_it() -> None:
    res = resident(**LABELS)
    t, batch = res.task, batch_of(res)
    mask = (torch.arange(27).reshape(9, 3) % 4 > 0).double()
    mask[4] = 0
    hidden = {**batch, "mask": mask, "y": torch.where(mask > 0, batch["y"], 1 - batch["y"])}
    for of in (t.metrics, t.score):
        plain, other = (of(t.initial, b) for b in ({**batch, "mask": mask}, hidden))
        assert all(torch.equal(plain[n], other[n]) for n in plain)
    loss = t.loss(t.initial, hidden)
    nll = F.binary_cross_entropy_with_logits(t.apply(t.initial, batch["x"]), batch["y"], reduction="none")
    assert loss[0] == pytest.approx(float((nll[0] * mask[0]).sum() / mask[0].sum())) and loss[4] == 0


@pytest.mark.parametrize("kind", ["squared", "absolute", "huber"])
def test_regress_is_plain_torch_in_the_targets_unit(kind: str) -> None:
    res = resident(task={**NUMBERS["task"], "kind": {"name": "regress", "loss": kind}})
    t, batch, f = res.task, batch_of(res), toy.federation(res.config)
    y = np.concatenate([f.arrays["y"][f.train.rows], f.arrays["y"][f.val.rows], f.arrays["y"][f.test.rows]]).astype(
        float
    )
    assert (
        t.targets is not None
        and t.targets.mean == pytest.approx([y.mean()])
        and t.targets.deviation == pytest.approx([y.std()])
    )
    raw = t._forward(t.initial, batch["x"], None)[:, 0]
    p = raw * y.std() + y.mean()
    assert torch.allclose(t.predict(t.initial, batch), p) and t.predict(t.initial, batch).shape == batch["y"].shape
    r = raw - (batch["y"] - y.mean()) / y.std()
    want = {"squared": r**2 / 2, "absolute": r.abs(), "huber": torch.where(r.abs() < 1, r**2 / 2, r.abs() - 0.5)}[kind]
    assert torch.allclose(t.loss(t.initial, batch), want)
    m = t.metrics(t.initial, batch)
    assert torch.allclose(m["loss"], want) and torch.allclose(m["mae"], (p - batch["y"]).abs())


def test_several_numbers_each_have_their_own_scale() -> None:
    res = resident(
        task={"data": "sklearn:linnerud"}, federation={"groups": {"kind": "none"}, "clients": 3, "per_round": None}
    )
    t, batch = res.task, batch_of(res, slice(0, 5))
    assert t.classes == 3 and t.predict(t.initial, batch).shape == (5, 3) == batch["y"].shape
    assert len(set(t._deviation.tolist())) == 3  # type: ignore[attr-defined]
    assert t.loss(t.initial, batch).shape == t.metrics(t.initial, batch)["mae"].shape == (5,)


@pytest.mark.parametrize("changes", [LABELS, NUMBERS], ids=["labels", "numbers"])
def test_training_lowers_the_loss(changes: Any) -> None:
    done = toy.simulate("fedavg", executor="vmap", rounds=8, score=False, **NONE, **changes)
    first, last = (done._replace(state=s).scores()[0] for s in (done.initial, done.state))
    assert last["loss/global"] < first["loss/global"]
    better = "auroc/global" if changes is LABELS else "rmse/global"
    assert (last[better] - first[better]) * (1 if changes is LABELS else -1) > 0


@pytest.mark.parametrize(
    ("sets", "says"),
    [
        (["task.kind=regres"], "task.kind: 'regres' is unknown (did you mean 'regress'?); known: classify, "),
        (
            ["task.kind={name: regress, loss: cubed}"],
            "task.kind.loss: 'cubed' found (did you mean 'huber'?), allowed: 'squared', 'absolute' or 'huber'",
        ),
        (["task.kind={name: classify, depth: 3}"], "task.kind.depth: unknown key"),
        (["task.kind={name: auto, loss: huber}"], "task.kind.loss: belongs to a kind; name it"),
        (["task.kind=nowhere.py:Mine"], "task.kind: file 'nowhere.py' does not exist"),
        (["evaluate.metrics=[aurok]"], "evaluate.metrics: 'aurok' is unknown (did you mean 'auroc'?); known: auroc, "),
        (["evaluate.metrics=[nowhere.py:mine]"], "evaluate.metrics: file 'nowhere.py' does not exist"),
    ],
)
def test_what_names_nothing_is_refused(sets: list[str], says: str) -> None:
    assert any(p.startswith(says) for p in problems(*sets)), problems(*sets)


def test_an_override_of_the_kind_keeps_the_rest_of_the_task() -> None:
    base = {"task": {"data": "sklearn:diabetes", "model": "mlp", "kind": "auto"}, "method": "fedavg"}
    config = preflight.load_request(base, ["task.kind=regress"])
    assert config.to_dict()["task"]["data"] == {"name": "sklearn:diabetes"}  # type: ignore[union-attr]
    assert config.to_dict()["task"]["kind"] == {"name": "regress"}  # type: ignore[union-attr]


def test_a_kind_that_lacks_what_it_needs_says_so() -> None:
    class Bare(TaskKind):
        """Nothing."""

    res = resident(**NUMBERS)
    bare = Bare(res.config.model_copy(), toy.federation(res.config))
    with pytest.raises(TypeError, match=r"Bare defines no loss\(params, batch, key\)"):
        bare.loss(bare.initial, batch_of(res))
    with pytest.raises(TypeError, match=r"Bare defines no judge_mean\(p, batch\)"):
        bare.metrics(bare.initial, batch_of(res))


def test_a_runs_models_answer_in_the_targets_unit(tmp_path: Path) -> None:
    ran = toy.run_folder("local_only", tmp_path / "a", rounds=1, **NONE, **NUMBERS)
    one = toy.run_folder("fedavg", tmp_path / "b", rounds=1, **NONE, **NUMBERS)
    res = resident("float32", **NUMBERS)
    x = res.data["x"][:7]
    model = rayfed.load(one.folder.path).model()
    assert torch.allclose(model(x), res.task.apply(one.state["model"], x)) and float(model(x).mean()) > 50
    assert float(rayfed.load(ran.folder.path).model(client=2)(x).mean()) > 50
