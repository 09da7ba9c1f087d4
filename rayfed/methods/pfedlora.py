"""pFedLoRA: models of several architectures stay with their clients, and a small common low-rank adapter carries what they learn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from rayfed import PARAMS, Method, MethodSettings, Part, Visit, Wire, keys, mean, model_of, sgd_visit, tree, visit
from rayfed.lazy import F, torch
from rayfed.task import needs_classes
from rayfed.training import work
from rayfed.wire import tensor

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed import ClientContext, Fed, Task, Tree
    from rayfed.partition import Federation
    from rayfed.visits import Batch

A, B = "adapter.A", "adapter.B"


class PFedLoRA(Method):
    """Yi et al. 2023, "pFedLoRA: Model-Heterogeneous Personalized Federated Learning with LoRA Tuning" (2310.13283), by the survey's
    definition of it; its code was not read.

    Client k has a model of its own architecture, features f_k (d numbers) and last layer W_k. All share a pair A (r, d), B (C, r),
    beside that layer: f -> W_k f + B A f. On each batch, one after the other:
        f_k, W_k: SGD on mu CE(W_k f) + (1 - mu) CE(W_k f + B A f), A and B held;
        A, B: SGD on CE(W_k f + B A f), the model held.
    Sends the change of A and B; server: their means, each by itself, weighted by n_k. Served is W_k + B A on f_k. `mu: 1` trains models as
    alone, to the bit.
    [ours] the place of the pair: the paper puts it beside a layer of equal size in all models, which here is the last one; A starts
    Normal(0, 1 / d), B at 0. There is no global model: `global` scores the mean of the served models' predictions. A client that never took
    part has the run's first model.
    Down: A, B ((d + C) r floats). Up: their change, n_k. Kept at client k: f_k, W_k. At the server: A, B.
    """

    class Settings(MethodSettings):
        rank: int = Field(4, ge=1, description="Rank r of the common adapter.")
        mu: float = Field(
            0.5, ge=0, le=1, description="Weight of the model's own answer in its loss; 1: it trains as alone."
        )
        weight: Literal["examples", "one"] = Field("examples", description="Weights of the mean.")

    wire: ClassVar[Wire] = Wire(
        down={"A": Part(tensor("r", "d")), "B": Part(tensor("C", "r"))},
        up={"A": Part(tensor("r", "d"), update=True), "B": Part(tensor("C", "r"), update=True)},
        keep={"model": Part(PARAMS, private=True)},
        server={"A": Part(tensor("r", "d")), "B": Part(tensor("C", "r"))},
    )
    universal: ClassVar[str | None] = None
    needs: ClassVar[frozenset[str]] = frozenset({"classes"})
    no_privacy = "takes two gradients of a batch"

    def fits(self, federation: Federation) -> list[str]:
        return needs_classes(federation, "pfedlora's adapter gives logits of classes")

    def splits_model(self) -> bool:
        return True

    def init(self, task: Task, key: int) -> Tree:
        d, r = task.of_family(0).feature_size, self.settings.rank
        a = keys.normal(torch.tensor(key), (r, d), task.dtype) / d**0.5
        return {"A": a.to(task.device), "B": torch.zeros(task.classes, r, dtype=task.dtype, device=task.device)}

    def own_init(self, task: Task, client: int, key: int) -> Tree:
        return {"model": task.initial}

    @visit
    def train(self, task: Task) -> Visit:
        mu = self.settings.mu

        def start(client: ClientContext) -> Tree:
            return {"model": {**client.own["model"], A: client.shared["A"], B: client.shared["B"]}}

        def losses(params: Tree, batch: Batch, key: Any) -> tuple[Tensor, Tensor]:
            model = {n: p for n, p in params.items() if n not in (A, B)}
            with task.training(batch, key):
                f = task.features(model, batch["x"])
            own = task.classify(task.classifier(model), f)
            both = own + F.linear(F.linear(f, params[A]), params[B])
            return task.cross_entropy(own, batch["y"], key), task.cross_entropy(both, batch["y"], key)

        def of_model(params: Tree, carry: Tree, batch: Batch, key: Any) -> Tensor:
            alone, adapted = losses(params, batch, key)
            return alone if mu == 1 else mu * alone + (1 - mu) * adapted

        def of_adapter(params: Tree, carry: Tree, batch: Batch, key: Any) -> Tensor:
            return losses(params, batch, key)[1]

        over = work(self.local)
        phases = [(over, lambda n: n not in (A, B))]
        first = sgd_visit(task.loss, self.local, start=start, objective=of_model, phases=phases)
        second = sgd_visit(task.loss, self.local, objective=of_adapter, phases=[(over, lambda n: n in (A, B))])
        (phase,), (then,) = first.phases, second.phases
        assert phase.enter is not None
        begin_steps = phase.enter

        def enter(client: ClientContext, carry: Tree) -> Tree:
            made = begin_steps(client, carry)
            return {**made, "of_adapter": made["opt"]}

        def step(carry: Tree, batch: Batch, key: Tensor) -> Tree:
            out = phase.step(carry, batch, key)
            moved = then.step({**carry, "model": out["model"], "opt": carry["of_adapter"]}, batch, key)
            return {**out, "model": moved["model"], "of_adapter": moved["opt"]}

        def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
            model = dict(carry["model"])
            a, b = model.pop(A), model.pop(B)
            return {"A": a - client.shared["A"], "B": b - client.shared["B"]}, {"model": model}

        def local(carry: Tree) -> Tree:
            return adapted(task, carry["model"], carry["model"][A], carry["model"][B])

        return first._replace(phases=[phase._replace(enter=enter, step=step)], end=end, local=local)

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        weight = self.settings.weight
        got = fed.ask(self.train, fed.sample(), shared=state, fold=(mean("A", weight), mean("B", weight)))
        return tree.add(state, {n: got.folded[n] for n in ("A", "B")}) if got.ids else state

    def serve(self, state: Tree) -> Tree:
        return state

    def view(self, task: Task) -> Visit:
        return model_of(lambda client: adapted(task, client.own["model"], client.shared["A"], client.shared["B"]))


def adapted(task: Task, model: Tree, a: Tensor, b: Tensor) -> Tree:
    """Return the model's parameters with B A (C, d) added to its last layer."""
    name = task.classifier_names[0]
    return {**{n: p for n, p in model.items() if n not in (A, B)}, name: model[name] + b @ a}
