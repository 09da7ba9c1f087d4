"""Metrics of sets in a run: exact over any grouping, per client and pooled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score, root_mean_squared_error

from rayfed import report
from rayfed.engine.evaluation import Evaluation
from rayfed.engine.resident import Resident
from rayfed.storage.events import read_events
from tests import toy
from tests.toy import Result, SimPool

NONE = {"federation": {"groups": {"kind": "none"}}}
AUROC = {"evaluate": {"metrics": ["auroc"]}}
CLASSES = {"task": {"data": {"classes": 3}}, **NONE}


def predicted(done: Result, model: Any, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(targets, predictions) of a model on rows of the data, by the task's own functions."""
    fed = done.fed
    with torch.no_grad():
        batch = fed.task.batch({n: a[rows] for n, a in fed.federation.arrays.items()})
        return batch["y"].numpy(), fed.task.predict(model, batch).numpy()


def auroc(y: np.ndarray, p: np.ndarray) -> float | None:
    each = [roc_auc_score(y == c, p[:, c]) for c in range(p.shape[1]) if 0 < (y == c).sum() < len(y)]
    return float(np.mean(each)) if each else None


@pytest.mark.parametrize("executor", ["loop", "vmap"])
def test_of_one_model_they_are_scikit_learns(executor: str) -> None:
    done = toy.simulate(executor=executor, dtype="float64", **CLASSES, **AUROC)
    row, clients = done.scores()
    model, split = done.state["model"], done.fed.federation
    assert row["auroc/global"] == pytest.approx(auroc(*predicted(done, model, split.pooled_test)))
    people = range(split.population)
    each = {c: auroc(*predicted(done, model, split.test[c])) for c in range(split.clients) if len(split.test[c])}
    defined = [each[c] for c in people if each.get(c) is not None]
    assert len(defined) < len([c for c in people if c in each])  # some clients' test rows are of one class
    assert row["auroc/personal"] == pytest.approx(np.mean(defined))
    pooled = predicted(done, model, np.concatenate([split.test[c] for c in people]))
    assert row["auroc/personal_ex"] == pytest.approx(auroc(*pooled)) != row["auroc/personal"]
    assert {c["client"]: c["auroc"] for c in clients if c["client"] in each} == pytest.approx(each)


@pytest.mark.parametrize("method", ["local_only", "fedavg_finetune", "ifca"])
def test_workers_and_their_order_change_no_bit(method: str) -> None:
    rows = []
    for pool in (None, SimPool(workers=3, shuffle=1), SimPool(workers=2, shuffle=2)):
        done = toy.simulate(method, dtype="float64", pool=pool, resources={"cohort": 3}, **CLASSES, **AUROC)
        rows.append(done.scores())
    assert rows[0] == rows[1] == rows[2] and 0 <= rows[0][0]["auroc/personal"] <= 1


@pytest.mark.parametrize("cohort", [1, 5, 14])
def test_of_personal_models_each_row_is_scored_by_its_own_clients(cohort: int) -> None:
    """Whatever the clients were grouped in: what each is served is had one by one."""
    done = toy.simulate("local_only", dtype="float64", resources={"cohort": cohort}, **CLASSES, **AUROC)
    row, _ = done.scores()
    fed, split = done.fed, done.fed.federation
    asked = fed.dispatch.ask(Evaluation.SERVED, range(split.population), shared=fed.method.serve(done.state), mine={})
    models = asked.gather("model")
    found = {c: predicted(done, models[c], split.test[c]) for c in range(split.population) if len(split.test[c])}
    each = [v for y, p in found.values() if (v := auroc(y, p)) is not None]
    assert row["auroc/personal"] == pytest.approx(np.mean(each))
    y, p = (np.concatenate(a) for a in zip(*found.values(), strict=True))
    assert row["auroc/personal_ex"] == pytest.approx(auroc(y, p))


def test_asking_each_client_gives_what_one_pass_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    done = toy.simulate(executor="vmap", dtype="float64", **CLASSES, **AUROC)
    one = done.scores()
    monkeypatch.setattr("rayfed.engine.evaluation.served_to_all", lambda *args: None)
    assert done.scores()[0] == pytest.approx(one[0], rel=1e-12)


def test_metrics_of_sets_change_no_other_number() -> None:
    plain, more = (toy.simulate("ifca", executor="vmap", **CLASSES, **asked) for asked in ({}, AUROC))
    (a, rows_a), (b, rows_b) = plain.scores(), more.scores()
    assert {n: v for n, v in b.items() if not n.startswith("auroc/")} == a
    assert [{n: v for n, v in r.items() if n != "auroc"} for r in rows_b] == rows_a


def test_a_root_of_a_mean_is_no_mean_of_roots() -> None:
    data = {"task": {"data": "sklearn:diabetes"}, **NONE}
    done = toy.simulate("fedavg", dtype="float64", **data)
    row, clients = done.scores()
    split, model = done.fed.federation, done.state["model"]
    each = [root_mean_squared_error(*predicted(done, model, split.test[c])) for c in range(split.population)]
    assert row["rmse/personal"] == pytest.approx(np.mean(each))
    pooled = predicted(done, model, np.concatenate([split.test[c] for c in range(split.population)]))
    assert row["rmse/personal_ex"] == pytest.approx(root_mean_squared_error(*pooled)) != row["rmse/personal"]
    assert [c["rmse"] for c in clients[: split.population]] == pytest.approx(each)


def test_a_run_has_them_in_rows_report_and_events(tmp_path: Path) -> None:
    asked = {"evaluate": {"metrics": ["auroc", "per_class", "confusion"], "finetune_epochs": 1}}
    ran = toy.run_folder("fedavg", tmp_path, executor="vmap", **CLASSES, **asked)
    row = ran.rows[-1]
    for scope in ("global", "personal", "personal_ex", "unseen", "local", "local_ex"):
        assert row[f"auroc/{scope}"] is not None, scope
        assert 0 <= row[f"recall-0/{scope}"] <= 1 and f"confusion-0-2/{scope}" in row
    said = [e for e in read_events(ran.folder.path) if e["kind"] == "not scored"]
    assert any(
        "auroc/personal: mean without" in e["reason"] and "for which it is undefined" in e["reason"] for e in said
    )
    page = report.write_report(ran.folder.path).read_text()
    assert "auroc/personal" in page and "area under the ROC curve" in page and "share of 0 predicted as 2" in page
    assert {"auroc", "recall-0"} <= set(ran.folder.clients()[0])


def test_they_can_stop_a_run(tmp_path: Path) -> None:
    ran = toy.run_folder("fedavg", tmp_path, rounds=3, **CLASSES, **AUROC, stop={"metric": "auroc/global", "at": 0.0})
    assert ran.ending.round == 1


def test_a_task_without_them_has_no_column_of_them() -> None:
    c = toy.config()
    assert Resident(c, toy.federation(c), None, "cpu").task.row_measures == ("loss", "accuracy")
    done = toy.simulate("fedavg")
    assert not [n for n in done.scores()[0] if n.split("/")[0] not in ("loss", "accuracy")]
