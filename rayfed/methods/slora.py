"""SLoRA: a few rounds of sparse tuning of the base give the factors that LoRA then starts from."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from rayfed import ANY, PARAMS, MethodSettings, Part, Wire, keys, mean, sgd_visit, tree, visit
from rayfed.adapters import lora, ranks
from rayfed.lazy import torch
from rayfed.methods._bases.over_lora import OverLoRA
from rayfed.wire import params_of

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed import ClientContext, Fed, Task, Tree, Visit
    from rayfed.config.schema import Config


class SLoRA(OverLoRA):
    """Babakniya et al. 2023, "SLoRA: Federated Parameter Efficient Fine-Tuning of Language Models" (2308.06522).

    Stage 1, `sparse_rounds` rounds (20 % of all): in each adapted layer a random set M of W's entries, drawn from the seed and
    common to all, is trained together with the head; v_i <- local training of W0 + v on M, the server takes v <- sum_i p_i v_i.
    Between: v as a matrix, over alpha / r, is U S V^T; B <- U_r S_r, A <- V_r^T, and W is W0 again.
    Stage 2: A, B and head by the mean of each, p_i = n_i / n (FedIT). With `sparse_rounds: 0` all of it is stage 2.
    Down and up: in stage 1 v (|M| numbers of each adapted layer) and the head, in stage 2 A (r, n), B (m, r) and the head;
    n_i. Kept at clients: nothing. At the server: v while it is trained, A, B, head.
    Unequal ranks: stage 1 is the same for all, and a client's first rows of A and columns of B are v's best pair of its rank.
    """

    reads_base = True

    class Settings(MethodSettings):
        sparse_rounds: int | None = Field(
            None, ge=0, description="Rounds of stage 1; default: 20 % of all, at least 1; 0 is FedIT."
        )
        density: float | None = Field(
            None,
            gt=0,
            le=1,
            description="Share of a layer's entries trained in stage 1; default: as many as A and B have.",
        )

    wire: ClassVar[Wire] = Wire(
        down={
            "model": Part(PARAMS),
            "head": Part(params_of("head")),
            "sparse": Part(ANY, note="v, (|M|,) of each adapted layer"),
        },
        up={
            "delta": Part(PARAMS, update=True, robust=True),
            "head_delta": Part(params_of("head"), update=True, robust=True),
            "sparse_delta": Part(ANY, update=True, robust=True, note="of v"),
        },
        server={
            "model": Part(ANY, note="params, in stage 1 also W of each adapted layer"),
            "sparse": Part(ANY, note="v in stage 1, nothing later"),
        },
    )

    def check(self, config: Config) -> list[str]:
        n = self.sparse_rounds
        late = f"method.sparse_rounds: {n} found, allowed: less than rounds ({config.rounds}), so that stage 2 has some"
        out = super().check(config) + ([late] if n >= config.rounds else [])
        if n and config.init.from_ and ranks.unequal(config):
            out.append("init.from: an adapter to start stage 1 from needs one adapter.rank for all clients")
        return out

    def reads_rounds(self) -> str | None:
        return "method.sparse_rounds: null" if self.settings.sparse_rounds is None else None

    @property
    def sparse_rounds(self) -> int:
        """Return the number of rounds of stage 1."""
        n = self.settings.sparse_rounds
        return max(1, round(self.config.rounds / 5)) if n is None else n

    def init(self, task: Task, key: int) -> Tree:
        made = self.places(task) if self.sparse_rounds else {}
        zeros = {n: torch.zeros(len(at), dtype=task.dtype, device=task.device) for n, at in made.items()}
        return {"model": task.initial, "sparse": zeros}  # stage 1 has the same A and B at the clients

    def places(self, task: Task) -> dict[str, Tensor]:
        """Return M: name of each adapted layer's weight -> positions in it as one row, (|M|,), ascending."""
        out = {}
        for n in lora.pairs(task.params_like):
            name, _ = lora.weight_of(task, n)
            size, factors = task.frozen[name].numel(), task.params_like[n.a].numel() + task.params_like[n.b].numel()
            d = self.settings.density
            count = min(size, factors) if d is None else max(1, round(d * size))
            rng = keys.numpy(keys.key(task.config.seed, 0, -1, f"sparse {name}"))
            at = sorted(rng.choice(size, count, replace=False).tolist())
            out[name] = torch.as_tensor(at, device=task.device)
        return out

    @visit
    def warm(self, task: Task) -> Visit:
        """Run stage 1."""
        places, still = self.places(task), lora.select(task.initial, lambda n: n not in task.head)

        def start(client: ClientContext) -> Tree:
            return {"model": {**client.shared["sparse"], **client.shared["head"]}}

        def loss(params: Tree, batch: Tree, key: Tensor) -> Tensor:
            return task.loss(whole(params), batch, key)

        def whole(params: Tree) -> Tree:
            head = {n: params[n] for n in task.head}
            return {**still, **head, **{n: add_at(task.frozen[n], at, params[n]) for n, at in places.items()}}

        def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
            now = carry["model"]
            sparse = {n: now[n] - v for n, v in client.shared["sparse"].items()}
            head = {n: now[n] - p for n, p in client.shared["head"].items()}
            return {"sparse_delta": sparse, "head_delta": head}, client.own

        visit = sgd_visit(loss, self.local, start=start, end=end)
        return visit._replace(local=lambda carry: whole(carry["model"]))

    @visit
    def train(self, task: Task) -> Visit:
        """Run stage 2."""
        return sgd_visit(task.loss, self.local)

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        if fed.round > self.sparse_rounds or not state["sparse"]:  # a resumed run that became longer does not go back
            model = self.factors(state, task) if state["sparse"] else state["model"]
            got = fed.ask(self.train, fed.sample(), shared={"model": model}, fold=mean("delta"))
            return {"model": tree.add(model, got.folded["delta"]), "sparse": {}}
        head = {n: state["model"][n] for n in task.head}
        folds = [mean("sparse_delta"), mean("head_delta")]
        got = fed.ask(self.warm, fed.sample(), shared={"sparse": state["sparse"], "head": head}, fold=folds)
        if not got.ids:
            return state
        sparse = tree.add(state["sparse"], got.folded["sparse_delta"])
        weights = {n: add_at(task.frozen[n], at, sparse[n]) for n, at in self.places(task).items()}
        model = {**state["model"], **tree.add(head, got.folded["head_delta"]), **weights}
        return {"model": model, "sparse": sparse}

    def factors(self, state: Tree, task: Task) -> Tree:
        """Return the trained parameters that stage 2 starts from; (alpha / r) B A is v's best approximation of rank r."""
        params, places, s = (
            dict(lora.split_trained(task, state["model"])[0]),
            self.places(task),
            lora.scale(task.config),
        )
        for n in lora.pairs(params):
            name, transposed = lora.weight_of(task, n)
            v = add_at(torch.zeros_like(task.frozen[name]), places[name], state["sparse"][name]).to(torch.float64) / s
            b, a = params[n.b].to(v.dtype), params[n.a].to(v.dtype)
            v = (v.T if transposed else v) + b @ a  # `init.from` may have a B
            one = torch.eye(v.shape[1], dtype=v.dtype, device=v.device)
            params[n.b], params[n.a] = lora.best_pair(v, one, params[n.a])
        return params


def add_at(w: Tensor, at: Tensor, values: Tensor) -> Tensor:
    """Return W with `values` (|M|,) added at the positions `at` of its entries as one row."""
    return w + torch.zeros_like(w, dtype=values.dtype).reshape(-1).scatter(0, at, values).reshape(w.shape)
