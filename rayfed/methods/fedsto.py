"""FedSTO: labels at the server alone; clients learn from their own teacher, first the backbone, then everything, kept orthogonal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from rayfed import (
    ANY,
    PARAMS,
    Method,
    MethodSettings,
    Part,
    Visit,
    Wire,
    keys,
    mean,
    optimizers,
    params_of,
    sgd_visit,
    tree,
    visit,
)
from rayfed.lazy import torch
from rayfed.training import clipped, gradient, work

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed import ClientContext, Fed, Task, Tree
    from rayfed.partition import Federation

ITERATIONS = 2  # of the power method (SRIP)


class FedSTO(Method):
    """Kim et al. 2023, "Navigating Data Heterogeneity in Federated Learning: A Semi-Supervised Federated Object Detection" (NeurIPS
    2023, 2310.17097).

    The server has labelled rows (`federation.public`), clients have none: their labels are never read. Before round 1 the server
    trains `warmup` passes. Round r: client i starts student and teacher at W as received; in each step the teacher, as the student's
    moving average W_T <- ema W_T + (1 - ema) W, answers for rows as they are, and the student learns these answers for its own view of
    them (`local.augment`, without kinds that move pixels): hard labels where the teacher is sure by `high`, between `low` and `high` a
    detector's objectness alone (`Task.taught`). In the first `selective` rounds only the backbone moves and is sent, all entries but
    those that `rest` names; later all, with lam R in clients' and server's loss. Server: the mean of what is sent by examples, then
    `server_epochs` passes over its rows, all entries moving.
    R = sum over weights of `rest` as matrices (out x others) of s(W^T W - I) + s(W W^T - I), s the spectral norm by two steps of the
    power method (SRIP). With `selective: 0` and `lam: 0` it is semi-supervised FedAvg with a server's step.
    Down: the model (P floats). Up: the backbone's update, later all (P). Kept at clients: nothing, teachers begin anew. At the server: W.
    """

    no_buffers = "a teacher and a student would write running statistics of different rows"
    no_privacy = "learns answers of a teacher that has seen the client's own rows, without labels"
    no_rule = "a backbone is averaged first, and everything later"
    needs = frozenset({"public labels"})

    class Settings(MethodSettings):
        warmup: int = Field(10, ge=0, description="Passes of the server over its rows before round 1 (paper: 50).")
        selective: int = Field(10, ge=0, description="Rounds in which only the backbone moves at clients (paper: 100).")
        server_epochs: int = Field(1, ge=0, description="Passes of the server over its rows in a round.")
        ema: float = Field(0.99, ge=0, le=1, description="Weight of the teacher's own past in a step (paper: 0.999).")
        low: float = Field(0.3, ge=0, description="Score from which a teacher's answer counts at all (paper: 0.1).")
        high: float = Field(0.7, ge=0, description="Score from which it is a label (paper: 0.6); above 1: never.")
        lam: float = Field(1e-4, ge=0, description="Weight of R.")
        rest: tuple[str, ...] = Field(
            ("neck", "head"),
            min_length=1,
            description="Words in the names of what is not the backbone; head: the classifier.",
        )

    wire: ClassVar[Wire] = Wire(
        down={"model": Part(PARAMS)},
        up={"delta": Part(ANY, update=True, note="the backbone's entries, later all")},
        server={"model": Part(PARAMS)},
    )

    def fits(self, federation: Federation) -> list[str]:
        from rayfed.task import of

        if of(federation.task).offers & {"classes", "boxes"}:
            return []
        return [
            f"method.name: fedsto found, task.kind: {federation.task} has no answers that teach; allowed: classify, detect"
        ]

    def fits_model(self, task: Task) -> list[str]:
        rest = self._rest(task)
        if rest and len(rest) < len(task.params_like):
            return []
        has = "nothing" if not rest else "everything"
        return [
            f"method.rest: {[*self.settings.rest]} found, which names {has} of task.model; allowed: words of some of its names"
        ]

    def _rest(self, task: Task) -> frozenset[str]:
        """Return the names of what is not the backbone."""
        return frozenset(params_of(*self.settings.rest).select(task.params_like, task))

    @visit
    def train(self, task: Task, full: bool = True) -> Visit:
        s, rest = self.settings, self._rest(task)
        moves = None if full else (lambda name: name not in rest)

        def start(client: ClientContext) -> Tree:
            return {"model": client.shared["model"], "teacher": client.shared["model"]}

        def formula(params: Tree, carry: Tree, batch: Any, key: Tensor) -> tuple[Tree, Tree]:
            # Of the step before: the student begins as its teacher.
            teacher = tree.add(tree.scale(carry["teacher"], s.ema), params, 1 - s.ema)
            said = task.apply(teacher, batch["x"])

            def loss(p: Tree, b: Any, k: Any) -> Tensor:
                with task.training(b, k):
                    answer = task.apply(p, b["x"])
                found = task.taught(answer, said, s.low, s.high)
                return found + s.lam * away_from_orthogonal(p, rest) if full and s.lam else found

            return gradient(loss, params, batch, key), {"teacher": teacher}

        def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
            change = tree.sub(carry["model"], client.shared["model"])
            return {"delta": {n: x for n, x in change.items() if full or n not in rest}}, client.own

        return sgd_visit(task.loss, self.local, start=start, grad=formula, end=end, phases=[(work(self.local), moves)])

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        s, model, full = self.settings, state["model"], fed.round > self.settings.selective
        if fed.round == 1 and s.warmup:
            model = self._supervised(model, fed, task, s.warmup, False)
        train = self.train.with_(full=full)
        got = fed.ask(train, fed.sample(), shared={"model": model}, fold=mean("delta", weight="examples"))
        if not got.ids:
            return {"model": model}
        model = {**model, **tree.add({n: model[n] for n in got.folded["delta"]}, got.folded["delta"])}
        return {"model": self._supervised({n: model[n] for n in task.params_like}, fed, task, s.server_epochs, full)}

    def _supervised(self, model: Tree, fed: Fed, task: Task, epochs: int, full: bool) -> Tree:
        """Return a model after passes over the server's rows, in the batches, with the optimizer and at the rate of local training."""
        s, rows, o = self.settings, fed.public(), self.local.optimizer
        opt, rest = optimizers.make(o), self._rest(task)
        state = opt.init(model)

        def loss(p: Tree, b: Any, k: Any) -> Tensor:
            found = task.loss(p, b, k)
            return found + s.lam * away_from_orthogonal(p, rest) if full and s.lam else found

        for epoch in range(epochs):
            rng = keys.numpy(fed.key(f"server rows {epoch}"))
            order = torch.as_tensor(rng.permutation(len(rows["w"])), device=rows["w"].device)
            for step, at in enumerate(order.split(self.local.batch_size)):
                key = torch.tensor(fed.key(f"server step {epoch} {step}"), device=at.device)
                slope = gradient(loss, model, {n: x[at] for n, x in rows.items()}, key)
                slope = slope if self.local.clip is None else clipped(slope, self.local.clip)
                model, state = opt.update(slope, state, model, o.lr)
        return model


def spectral_norm(m: Tensor) -> Tensor:
    """Return the spectral norm of a symmetric matrix (n, n), 0-d, by `ITERATIONS` steps of the power method from a fixed start."""
    v = keys.normal(torch.tensor(1, device=m.device), (len(m),), m.dtype)
    for _ in range(ITERATIONS):
        v = m @ v
        v = v / (v.square().sum() + 1e-24).sqrt()
    return ((m @ v).square().sum() + 1e-24).sqrt()


def away_from_orthogonal(params: Tree, names: frozenset[str]) -> Tensor:
    """Return R of the weights among these entries, 0-d: those of more than one axis, and of convolutions with more than one input."""
    weights = [params[n].flatten(1) for n in sorted(names) if params[n].dim() > 1]
    found = next(iter(params.values())).new_zeros(())
    for w in (w for w in weights if w.shape[1] > 1):
        for m in (w.T @ w, w @ w.T):
            found = found + spectral_norm(m - torch.eye(len(m), dtype=m.dtype, device=m.device))
    return found
