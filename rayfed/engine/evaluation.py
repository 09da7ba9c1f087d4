"""Evaluation as visits: what is scored is written for one client and runs where training runs, vectorised alike.

`local` is also scored inside training visits: see `with_local_score`.
"""

from __future__ import annotations

from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Any

from rayfed import tree
from rayfed.lazy import torch
from rayfed.training import sgd_visit
from rayfed.visits import ClientContext, Phase, Visit, accumulate, epochs, measure, once, whole

if TYPE_CHECKING:
    from rayfed.method import Method
    from rayfed.task import Task
    from rayfed.tree import Tree


LOCAL_SCORES = "scores of the local model"  # the part that a training visit sends beside its method's


class Evaluation(Enum):
    """What the engine itself asks clients for, where a method asks for its visits by name."""

    GLOBAL = "global"  # scores of the one model on the pooled test set; piece i of it is "client" i
    PERSONAL = "personal"  # scores of what each client is served, on its own test split
    CLUSTER = "cluster"  # scores of the expert of each client's cluster, on its own test split
    LOCAL = "local"  # scores of what each client is served, fine-tuned on its train split
    ENSEMBLE = "ensemble"  # the served models' predictions on the pooled test set
    SERVED = "served"  # the served model itself, for use from Python

    def __str__(self) -> str:
        return f"evaluation {self.value}"

    @property
    def of_the_server(self) -> bool:
        """Whether it scores models of the server as they are, in no client's LoRA rank."""
        return self in (Evaluation.GLOBAL, Evaluation.CLUSTER)


def build(evaluation: Evaluation, method: Method, task: Task, pieces: int) -> Visit:
    """The visit of an evaluation; `pieces`: into how many pieces the pooled test set is cut."""
    if evaluation is Evaluation.GLOBAL:
        return _measure(task, "pooled", lambda client: client.shared["model"])
    if evaluation is Evaluation.CLUSTER:
        return _measure(task, "test", lambda client: tree.pick(client.shared["experts"], client.mine["expert"]))
    view, seen = method.view(task), task.read_by(partial(method.logits, task))
    if evaluation is Evaluation.PERSONAL:
        return scored(view, seen, lambda client, carry: view.end(client, carry)[0]["model"])
    if evaluation is Evaluation.SERVED:
        return Visit(
            view.begin,
            view.phases,
            lambda client, carry: (
                {"model": view.end(client, carry)[0]["model"], "rank": client.info.rank},
                client.own,
            ),
            view.vectorize,
        )
    if evaluation is Evaluation.LOCAL:
        tuned = _finetuned(view, method, seen)
        return scored(tuned, seen, lambda client, carry: carry["model"])
    return _predictions(view, seen, pieces)


def zero(task: Task) -> Tree:
    """Sums of one scoring, before the first batch."""
    return {n: torch.zeros((), dtype=task.dtype, device=task.device) for n in task.measures}


def _measure(task: Task, split: str, model: Any) -> Visit:
    return measure(task.metrics, lambda client: zero(task), over=once(split), reduce="sum", model=model)


def scored(inner: Visit, task: Task, model: Any) -> Visit:
    """`inner`, then its `model(client, carry)` on the client's test split; sends only the scores."""

    def enter(client: ClientContext, carry: Tree) -> Tree:
        return {
            "model": model(client, carry),
            "sum": zero(task),
            "n": torch.zeros((), dtype=task.dtype, device=task.device),
        }

    def step(carry: Tree, batch: Any, key: Any) -> Tree:
        return {"model": carry["model"], **accumulate(carry, task.metrics(carry["model"], batch), batch["w"])}

    def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
        return {**carry["sum"], "n": carry["n"]}, client.own

    return Visit(inner.begin, [*inner.phases, Phase(once("test"), step, enter, counts=False)], end, inner.vectorize)


def with_local_score(inner: Visit, task: Task) -> Visit:
    """A training visit that also sends LOCAL_SCORES: the scores of its locally trained model on the client's test split."""
    trained = inner.local
    assert trained is not None

    def enter(client: ClientContext, carry: Tree) -> Tree:
        return {"inner": carry, "sum": zero(task), "n": torch.zeros((), dtype=task.dtype, device=task.device)}

    def step(carry: Tree, batch: Any, key: Any) -> Tree:
        return {
            "inner": carry["inner"],
            **accumulate(carry, task.metrics(trained(carry["inner"]), batch), batch["w"]),
        }

    def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
        parts, own = inner.end(client, carry["inner"])
        return {**parts, LOCAL_SCORES: {**carry["sum"], "n": carry["n"]}}, own

    return Visit(inner.begin, [*inner.phases, Phase(once("test"), step, enter, counts=False)], end, inner.vectorize)


def _finetuned(view: Visit, method: Method, task: Task) -> Visit:
    n = method.config.evaluate.finetune_epochs
    tune = sgd_visit(
        task.loss, method.local, phases=[(epochs(n), lambda name: name in task.params_like or name == "own")]
    )
    first = tune.phases[0]
    inner_enter = first.enter
    assert inner_enter is not None

    def enter(client: ClientContext, carry: Tree) -> Tree:
        served = view.end(client, carry)[0]["model"]
        return inner_enter(client, {"model": served})

    return Visit(view.begin, [*view.phases, first._replace(enter=enter)], tune.end, view.vectorize)


def _predictions(view: Visit, task: Task, pieces: int) -> Visit:
    """Probabilities of the served model on every pooled test example, piece by piece: part `p` = {"0": (b, C), ...}."""

    def enter(client: ClientContext, carry: Tree) -> Tree:
        return {"model": view.end(client, carry)[0]["model"], "p": {}}

    def step(carry: Tree, batch: Any, key: Any) -> Tree:
        return {"model": carry["model"], "p": {**carry["p"], str(len(carry["p"])): task.predict(carry["model"], batch)}}

    def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
        return {"p": carry["p"]}, client.own

    phases = [Phase(whole(f"pooled {i}"), step, enter if i == 0 else None, counts=False) for i in range(pieces)]
    return Visit(view.begin, [*view.phases, *phases], end, view.vectorize)
