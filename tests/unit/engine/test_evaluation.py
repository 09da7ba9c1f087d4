"""Scores, against ordinary torch."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rayfed import execute, report, tree
from rayfed.engine.evaluation import Evaluation, Evaluator, served_to_all
from rayfed.engine.failures import ClientFailed
from rayfed.execute.batches import scored_pieces
from rayfed.fold import mean
from rayfed.method import Method
from rayfed.storage import row_scores
from rayfed.storage.events import read_events
from rayfed.visits import model_of
from rayfed.wire import ANY, Part, Wire
from tests import toy
from tests.toy import Result, ToyFed


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


def assert_scores(got: dict[str, float], scope: str, want: dict[str, float]) -> None:
    for name, value in want.items():
        assert got[f"{name}/{scope}"] == pytest.approx(value, rel=1e-9, abs=1e-12), f"{name}/{scope}"


@pytest.mark.parametrize("executor", ["loop", "vmap"])
def test_scores_of_one_model_are_plain_torch(executor: str) -> None:
    done = toy.simulate(executor=executor, dtype="float64", resources={"cohort": 5})
    row, clients = done.scores()
    model, fed = done.state["model"], done.fed
    assert len(fed.federation.pooled_test) == 60
    assert_scores(row, "global", judged(model, fed.federation.pooled_test, fed))
    assert judged(model, fed.federation.pooled_test, fed) != judged(
        done.initial["model"], fed.federation.pooled_test, fed
    )
    for examples, suffix in ((False, ""), (True, "_ex")):
        assert_scores(row, f"personal{suffix}", mean_over(range(12), lambda c: model, fed, examples))
        assert_scores(row, f"unseen{suffix}", mean_over((12, 13), lambda c: model, fed, examples))
    assert [c["client"] for c in clients] == list(range(14)) and [c["unseen"] for c in clients] == [False] * 12 + [
        True
    ] * 2
    for c in clients:
        rows = fed.federation.test[c["client"]]
        assert c["test_examples"] == len(rows) and c["examples"] == len(fed.federation.train[c["client"]])
        for name, value in judged(model, rows, fed).items():
            assert c[name] == pytest.approx(value, rel=1e-9)


def test_the_pooled_test_set_in_several_pieces() -> None:
    """1101 examples in two pieces: no example is lost or counted twice."""
    done = toy.simulate(rounds=1, dtype="float64", task={"data": {"test": 1101}})
    pooled = done.fed.federation.pooled_test
    assert len(pooled) == 1101 and scored_pieces(pooled, done.fed.task).shape == (2, 551)
    assert_scores(done.scores()[0], "global", judged(done.state["model"], pooled, done.fed))


@pytest.mark.parametrize("executor", ["loop", "vmap", "debug"])
def test_how_pieces_are_dealt_to_calls_and_workers_changes_no_bit(
    executor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rayfed.execute.batches.MOST", 10)
    monkeypatch.setattr("rayfed.execute.batches.FEWEST", 10)
    found: list[Any] = []
    used: set[str] = set()
    plain = execute.execute_visit
    for calls, workers in ((64, 1), (64, 3), (3, 2), (1, 1)):
        monkeypatch.setattr("rayfed.engine.cohorts.SCORING_CALLS", calls)
        done = toy.simulate(rounds=1, executor=executor, pool=toy.SimPool(workers), resources={"cohort": 7})
        before = done.fed.pool.calls
        with monkeypatch.context() as patch:
            patch.setattr(execute, "execute_visit", lambda kind, *args: used.add(kind) or plain(kind, *args))
            scores = done.scores()
        found.append((scores, done.fed.pool.calls - before))
    assert used == {"debug" if executor == "debug" else "loop"}, "a piece by itself"
    assert [n for _, n in found] == [16, 16, 6, 2]  # six pieces of pooled rows, ten of clients' own
    assert all(scores == found[0][0] for scores, _ in found)


@pytest.mark.parametrize("method", ["fedavg", "local_only"])
def test_the_global_score_does_not_depend_on_the_measuring_batch(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither on how many rows one step of a client's visit measures, nor on how many there are in a piece of the pooled ones."""
    rows = []
    for size in (128, 32, 64, 256, 600, 2000):
        monkeypatch.setattr("rayfed.execute.batches.MEASURE_BATCH", size)
        monkeypatch.setattr("rayfed.execute.batches.FEWEST", size)
        monkeypatch.setattr("rayfed.execute.batches.MOST", size)
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

    assert_scores(row, "personal", mean_over(range(12), served, fed))
    assert_scores(row, "personal_ex", mean_over(range(12), served, fed, examples=True))
    assert_scores(row, "unseen", mean_over((12, 13), lambda c: start, fed))
    # without one global model: the mean of the served models' predictions, weighted by examples
    sizes = fed.federation.train.sizes()[:12]
    logp = torch.stack([plain(served(c), fed.federation.pooled_test, fed)[0] for c in range(12)])
    p = torch.einsum("c,cnk->nk", torch.as_tensor(sizes / sizes.sum()), logp.exp())
    y = torch.as_tensor(fed.federation.arrays["y"][fed.federation.pooled_test].astype(np.int64))
    want = {
        "loss": float(-p[torch.arange(len(y)), y].log().mean()),
        "accuracy": float((p.argmax(1) == y).double().mean()),
    }
    assert_scores(row, "global", want)


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
    assert_scores(row, "local", mean_over(ids, lambda c: trained[c], fed))
    assert set(fed.local_scores) == set(ids)


@pytest.mark.parametrize("lr", [None, 0.03])
def test_fine_tuned_scores_train_from_what_is_served(lr: float | None) -> None:
    """Full batches need no order: one step down the gradient, by hand; at the local rate, or at one of its own."""
    evaluate = {"every": 1, "finetune_epochs": 1, "finetune_lr": lr}
    done = toy.simulate(dtype="float64", rounds=1, local={"batch_size": 64}, evaluate=evaluate)
    row, _ = done.scores()
    fed, model = done.fed, done.state["model"]

    def tuned(c: int) -> tree.Tree:
        rows = fed.federation.train[c]
        x = torch.as_tensor(fed.federation.arrays["x"][rows]).double()
        y = torch.as_tensor(fed.federation.arrays["y"][rows].astype(np.int64))
        grads = torch.func.grad(lambda p: torch.nn.functional.cross_entropy(fed.task.apply(p, x), y))(model)
        return tree.add(model, grads, -(lr or 0.1))

    assert_scores(row, "local", mean_over(range(12), tuned, fed))


def test_a_sample_of_clients_is_scored() -> None:
    done = toy.simulate(rounds=1, evaluate={"every": 1, "clients": 5})
    ids = [c["client"] for c in done.scores()[1]]
    assert len(ids) == 5 and ids == sorted(set(ids))
    half: Result = toy.simulate(rounds=1, evaluate={"every": 1, "clients": 0.5})
    assert len(half.scores()[1]) == 7
    assert half.scores() == half.scores()


def asked(done: Result, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, int]]:
    """Score, and return what was asked of how many."""
    found: list[tuple[Any, int]] = []
    plain = done.fed.dispatch.ask

    def ask(visit: Any, clients: Sequence[int], **more: Any) -> Any:
        found.append((visit, len(clients)))
        return plain(visit, clients, **more)

    monkeypatch.setattr(done.fed.dispatch, "ask", ask)
    done.scores()
    return found


def test_nobody_is_asked_who_has_no_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    half = {"split": {"test": 0.05}}  # clients of less than ten rows have none of them for tests
    for method in ("fedavg", "local_only", {"name": "ifca", "clusters": 2}):
        done = toy.simulate(method, rounds=1, federation=half)
        with_rows = np.flatnonzero(done.fed.federation.test.sizes()).tolist()
        assert 0 < len(with_rows) < 14
        assert [c["client"] for c in done.scores()[1]] == with_rows
        counts = dict(asked(done, monkeypatch))
        assert counts.get(Evaluation.PERSONAL, len(with_rows)) == len(with_rows)
        assert counts.get(Evaluation.CLUSTER, 0) <= len(with_rows)
    nobody = toy.simulate("local_only", rounds=1, federation={"split": {"test": 0.0}})
    assert nobody.scores()[1] == [] and set(nobody.scores()[0]) == {"loss/global", "accuracy/global"}
    assert asked(nobody, monkeypatch) == [(Evaluation.ENSEMBLE, 12)], "the mixture is of all"


# -- one model for all -------------------------------------------------------------------------------------------------


class ReadsId(Method):
    """A FedAvg whose view reads one thing of its client."""

    def __init__(self, read: Any):
        self.read = read
        super().__init__(None, toy.config())

    def view(self, task: Any) -> Any:
        def choose(client: Any) -> Any:
            self.read(client)
            return client.shared["model"]

        return model_of(choose)


@pytest.mark.parametrize(
    "read",
    [
        lambda client: client.info.client,
        lambda client: client.info.rank + 1,
        lambda client: client.own["x"],
        lambda client: {**client.own},
        lambda client: client.own.get("x"),
        lambda client: "x" in client.own,
        lambda client: client.mine or None,
        lambda client: len(client.mine),
        lambda client: list(client.mine),
        lambda client: client.mine == {},
        lambda client: tree.map(torch.clone, client.own),
    ],
)
def test_a_view_that_reads_anything_of_its_client_is_asked_of_each(read: Any) -> None:
    task, shared = toy.make_fed(toy.config()).task, {"model": {"w": torch.ones(2)}}
    assert served_to_all(ReadsId(read), task, shared) is None
    served = served_to_all(ReadsId(lambda client: client.shared), task, shared)
    assert served is not None and tree.same(served, shared["model"])


def test_a_view_that_writes_into_what_it_is_sent_changes_no_server_state() -> None:
    task, shared = toy.make_fed(toy.config()).task, {"model": {"w": torch.ones(2)}}

    def written(client: Any) -> Any:
        client.shared["model"]["w"].mul_(0.5)
        return client.shared

    served = served_to_all(ReadsId(written), task, shared)
    assert served is not None and served["w"].tolist() == [0.5, 0.5] and shared["model"]["w"].tolist() == [1, 1]


def test_who_serves_one_model_to_all() -> None:
    """By what the view does, whatever the method is called."""

    def of(method: Any, **changes: Any) -> bool:
        fed = toy.make_fed(toy.config(method, **changes))
        state = fed.method.init(fed.task, 1)
        return served_to_all(fed.method, fed.task, fed.method.serve(state)) is not None

    assert all(map(of, ["fedavg", "fedprox", "scaffold", "fednova", "fedavgm"]))
    personal = [
        "local_only",
        {"name": "ifca", "clusters": 2},
        {"name": "disue", "clusters": 2},
        {"name": "fedavg_finetune", "finetune_epochs": 1},
        "fedpurel",
    ]
    assert not any(map(of, personal))


@pytest.mark.parametrize("executor", ["loop", "vmap"])
def test_one_pass_gives_what_asking_each_client_gives(executor: str, monkeypatch: pytest.MonkeyPatch) -> None:
    done = toy.simulate(executor=executor, dtype="float64", rounds=1, evaluate={"every": 1, "clients": 9})
    assert dict(asked(done, monkeypatch)) == {Evaluation.ROWS: 1}
    row, clients = done.scores()
    monkeypatch.setattr("rayfed.engine.evaluation.served_to_all", lambda *args: None)
    assert (Evaluation.PERSONAL, 9) in asked(done, monkeypatch)
    want, each = done.scores()
    assert row.keys() == want.keys() and all(row[n] == pytest.approx(want[n], rel=1e-12) for n in row)
    assert len(clients) == 9
    for got, one in zip(clients, each, strict=True):
        assert got == {n: pytest.approx(v, rel=1e-12) if isinstance(v, float) else v for n, v in one.items()}


# -- a sample ----------------------------------------------------------------------------------------------------------


def test_auto_scores_everybody_where_there_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    everybody = toy.simulate(rounds=1, evaluate={"every": 1, "clients": "all"})
    few = toy.simulate(rounds=1)
    assert few.fed.config.evaluate.clients == "auto" and few.scores() == everybody.scores()
    assert Evaluator(few.fed, few.fed.dispatch).sample() is None


def test_auto_scores_a_sample_of_many_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rayfed.engine.evaluation.MOST_CLIENTS", 5)
    ran = toy.run_folder("fedavg", tmp_path)
    drawn = {r: [c["client"] for c in ran.folder.clients(r)] for r in (1, 2)}
    for ids in drawn.values():
        assert len([c for c in ids if c < 12]) == 5 and [c for c in ids if c >= 12] == [12, 13], "held-out ones apart"
    assert drawn[1] != drawn[2], "by a key of the round"
    said = "scores of single clients are of a sample, 5 of 12 clients, drawn anew for each evaluation"
    assert [e["text"].startswith(said) for e in read_events(ran.folder.path) if e["kind"] == "sample"] == [True]
    summary = json.loads((ran.folder.path / "summary.json").read_text())
    assert sum(n.startswith(said) for n in summary["notes"]) == 1
    for clients, method in (("all", "fedavg"), (3, "fedavg")):
        done = toy.simulate(method, rounds=1, evaluate={"every": 1, "clients": clients})
        assert Evaluator(done.fed, done.fed.dispatch).sample() is None


# -- what cannot be scored ---------------------------------------------------------------------------------------------


def spoil(monkeypatch: pytest.MonkeyPatch, position: int, split: str = "pooled_test") -> None:
    """Make one row of every federation's pooled test set, or of another split, a NaN."""
    plain = toy.federation

    def spoilt(c: Any) -> Any:
        made = plain(c)
        rows = made.pooled_test if split == "pooled_test" else getattr(made, split).rows
        x = made.arrays["x"].copy()
        x[rows[position], 0] = np.nan
        return dataclasses.replace(made, arrays={**made.arrays, "x": x})

    monkeypatch.setattr(toy, "federation", spoilt)


@pytest.mark.parametrize("client_error", ["raise", "drop", "retry"])
@pytest.mark.parametrize("executor", ["loop", "vmap"])
def test_a_failing_piece_of_the_pooled_test_set_leaves_no_score_of_the_rest(
    monkeypatch: pytest.MonkeyPatch, client_error: str, executor: str
) -> None:
    """1100 examples in two pieces; the NaN is in the second."""
    spoil(monkeypatch, 600)
    changes: dict[str, Any] = {"task": {"data": {"test": 1100}}, "failures": {"client_error": client_error}}
    done = toy.simulate(rounds=1, executor=executor, **changes)
    evaluator = Evaluator(done.fed, done.fed.dispatch)
    row, clients = evaluator.evaluate(done.state, {}, {})
    assert row["accuracy/global"] is None and row["loss/global"] is None
    assert row["accuracy/personal"] is not None and len(clients) == 14
    (missing,) = evaluator.unscored
    assert missing.metrics == ["loss/global", "accuracy/global"] and "client" not in missing.reason
    assert missing.reason == (
        "loss/global and accuracy/global are null: rows 551 to 1100 of the pooled test set cannot be scored: NaN or infinity in part loss"
    )
    assert done.fed.meter["dropped"] == 0, "a piece is no client"
    evaluator.evaluate(done.state, {}, {})
    assert len(evaluator.unscored) == 1, "of the last evaluation only"


@pytest.mark.parametrize("client_error", ["raise", "drop"])
def test_a_mixture_that_cannot_predict_the_pooled_test_set(monkeypatch: pytest.MonkeyPatch, client_error: str) -> None:
    spoil(monkeypatch, 7)
    done = toy.simulate("local_only", rounds=1, failures={"client_error": client_error})
    evaluator = Evaluator(done.fed, done.fed.dispatch)
    row, _ = evaluator.evaluate(done.state, {}, {})
    assert row["accuracy/global"] is None and row["accuracy/personal"] is not None
    (missing,) = evaluator.unscored
    assert "12 of 12 served models cannot predict the pooled test set: NaN" in missing.reason


def test_means_over_clients_say_whom_they_leave_out(monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, 0, "test")
    done = toy.simulate(rounds=1, failures={"client_error": "drop"})
    owner = int(np.flatnonzero(done.fed.federation.test.sizes())[0])
    evaluator = Evaluator(done.fed, done.fed.dispatch)
    row, clients = evaluator.evaluate(done.state, {}, {})
    assert row["accuracy/personal"] is not None and owner not in [c["client"] for c in clients]
    assert len(clients) == 13, "only whose own rows cannot be scored"
    (missing,) = evaluator.unscored
    assert f"are means without 1 of 14 clients (client {owner}: NaN or infinity in part loss)" in missing.reason


def test_a_client_whose_rows_cannot_be_scored_ends_a_run_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, 0, "test")
    done = toy.simulate(rounds=1, failures={"client_error": "raise"})
    owner = int(np.flatnonzero(done.fed.federation.test.sizes())[0])
    with pytest.raises(ClientFailed, match="NaN or infinity in part loss") as failed:
        done.scores()
    assert failed.value.client == owner


def test_a_run_says_what_it_could_not_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, 0)
    ran = toy.run_folder("fedavg", tmp_path, stop_after=1)
    ran = toy.run_folder("fedavg", tmp_path, resume=True)
    path = ran.folder.path
    assert [r.get("accuracy/global") for r in ran.rows] == [None, None] and ran.rows[0]["accuracy/personal"] is not None
    events = [e for e in read_events(path) if e["kind"] == "not scored"]
    assert [(e["round"], e["metrics"]) for e in events] == [(r, ["loss/global", "accuracy/global"]) for r in (1, 2)]
    summary = json.loads((path / "summary.json").read_text())
    (note,) = [n for n in summary["notes"] if "are null" in n]
    assert note.startswith("2 rounds from 1 to 2: loss/global and accuracy/global are null: rows 1 to 60 of the pooled")
    assert (
        "accuracy/global" not in summary["metrics"]
        and "are null: rows 1 to 60" in report.write_report(path).read_text()
    )


def test_a_run_without_any_metric_says_so(tmp_path: Path) -> None:
    split = {"split": {"test": 0.0}, "holdout": {"kind": "none"}}
    ran = toy.run_folder("fedavg", tmp_path, federation=split, task={"data": {"test": 0}})
    path, said = ran.folder.path, "no metric: the data set has no test part and clients keep none for tests"
    assert [e["reason"].startswith(said) for e in read_events(path) if e["kind"] == "no metric"] == [True]
    summary = json.loads((path / "summary.json").read_text())
    assert any(n.startswith(said) for n in summary["notes"])
    page = report.write_report(path).read_text()
    assert page.count(said) == 2 and "No round has been evaluated yet" not in page


@pytest.mark.parametrize("method", ["fedavg", "local_only", "fedavg_finetune", "disue", "ifca"])
@pytest.mark.parametrize("executor", ["loop", "vmap"])
def test_scores_of_each_row_have_the_metrics_as_their_means(method: str, executor: str, tmp_path: Path) -> None:
    """Also of models that are trained for serving, with several batches per client and several pieces."""
    sizes = {"task": {"data": {"examples": 3000, "test": 700}}, "resources": {"cohort": 5}}
    ran = toy.run_folder(method, tmp_path, executor=executor, dtype="float64", evaluate={"rows": [2]}, **sizes)
    row, kept = ran.rows[1], row_scores.read(ran.folder.path, 2)
    assert row_scores.read(ran.folder.path, 1) == {}
    federation = toy.federation(toy.config(method, executor=executor, dtype="float64", evaluate={"rows": [2]}, **sizes))
    assert set(kept) == {"global", "personal", *(["cluster"] if "accuracy/cluster" in row else [])}
    assert (kept["global"]["rows"] == federation.pooled_test).all()
    people = range(federation.population)
    assert (kept["personal"]["rows"] == np.concatenate([federation.test[c] for c in people])).all()
    assert kept["personal"]["sizes"].tolist() == [len(federation.test[c]) for c in people]
    assert max(kept["personal"]["sizes"]) > 40
    for scope, found in kept.items():
        sizes_ = found["sizes"] if scope != "global" else np.array([700])
        weights = np.repeat(1 / np.maximum(sizes_, 1) / (sizes_ > 0).sum(), sizes_)
        for name in ("accuracy", "loss"):
            assert weights @ found[name] == pytest.approx(row[f"{name}/{scope}"], rel=1e-6)
    assert set(np.unique(kept["personal"]["accuracy"])) <= {0, 1}


def test_kept_scores_change_no_number() -> None:
    rows = []
    for kept in ([], [1, 2]):
        done = toy.simulate("fedavg_finetune", executor="vmap", evaluate={"rows": kept})
        rows.append(done.scores())
    assert rows[0] == rows[1]


class Pair(Method):
    """Holds two models, whose logits it adds."""

    wire = Wire(server={"model": Part(ANY)})

    def init(self, task: Any, key: int) -> tree.Tree:
        return {"model": {"a": task.fresh_params(key), "b": task.fresh_params(key + 1)}}

    def round(self, state: tree.Tree, fed: Any, task: Any) -> tree.Tree:
        return state

    def logits(self, task: Any, model: tree.Tree, x: torch.Tensor) -> torch.Tensor:
        return task.apply(model["a"], x) + task.apply(model["b"], x)


def test_one_model_that_is_no_networks_parameters_is_scored_by_logits(tmp_path: Path) -> None:
    (tmp_path / "pair.py").write_text(
        "from tests.unit.engine.test_evaluation import Pair as Base\n\n\nclass Pair(Base):\n    pass\n"
    )
    fed = toy.make_fed(toy.config(f"{tmp_path / 'pair.py'}:Pair", dtype="float64"))
    state = fed.method.init(fed.task, 3)
    row, _ = Evaluator(fed, fed.dispatch).evaluate(state, {}, {})
    rows = fed.federation.pooled_test
    batch = fed.task.batch({n: a[rows] for n, a in fed.federation.arrays.items()})
    logits = fed.method.logits(fed.task, state["model"], batch["x"])
    assert row["loss/global"] == pytest.approx(float(torch.nn.functional.cross_entropy(logits, batch["y"])))
