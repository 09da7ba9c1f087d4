"""FedIns: a pool of scales and shifts with keys; every input is answered by the mean of those whose keys are nearest to it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from rayfed import PARAMS, MethodSettings, Part, Visit, Wire, keys, mean, model_of, sgd_visit, tree, visit
from rayfed.lazy import F, torch
from rayfed.methods._bases.over_adapter import OverAdapter
from rayfed.task import needs_classes
from rayfed.wire import stack, tensor

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed import ClientContext, Fed, Task, Tree
    from rayfed.config.schema import Config
    from rayfed.partition import Federation

SPREAD = 0.02  # standard deviation of the pool's first scales, shifts and keys


class FedIns(OverAdapter):
    """Feng et al. 2023, "Towards Instance-adaptive Inference for Federated Learning" (ICCV 2023, 2308.06051), and the authors' code.

    A pool of `pool` entries, each with a scale and a shift at every place of the network and a head, and a key k_p (d). For one input x:
    q = features of the frozen network; chosen: the `chosen` entries with the largest cos(q, k_p); the network is run with the mean of
    their scales, shifts and heads, which gives the mean of their logits.
    Client: (1 - w) CE + w (1 - sum over the chosen of cos(q, k_p)), on pool and keys; sends their change. Which are chosen has no gradient.
    Server: the mean of pool and keys, place by place, equal weights [code]. Entries keep their places: clients' are never sorted.
    The code takes a step for every example by itself: `local.batch_size: 1` here. With one entry it is one scale and shift for all.
    The features are those before the network's last layer, the places those of `adapter: ssf` (ours); `local` scores the mean of the pool,
    which reads no input.
    Down: the pool (P entries), keys (P, d). Up: their change, n_i with `weight: examples`. Kept at clients: nothing.
    At the server: pool, keys.
    """

    kinds = ("ssf",)

    class Settings(MethodSettings):
        pool: int = Field(8, ge=1, description="Entries of the pool, P (code: 25).")
        chosen: int = Field(2, ge=1, description="Entries that answer an input (code: 3).")
        match: float = Field(0.1, ge=0, le=1, description="Weight w of the keys' part of the loss.")
        weight: Literal["examples", "one"] = Field(
            "one", description="Weights of the mean: by examples, or equal (code)."
        )

    wire: ClassVar[Wire] = Wire(
        down={"pool": Part(stack("P", PARAMS)), "keys": Part(tensor("P", "d"))},
        up={"delta": Part(stack("P", PARAMS), update=True), "keys_delta": Part(tensor("P", "d"), update=True)},
        server={"pool": Part(stack("P", PARAMS)), "keys": Part(tensor("P", "d"))},
    )
    universal: ClassVar[str | None] = None

    def check(self, config: Config) -> list[str]:
        out, s = super().check(config), self.settings
        if s.chosen > s.pool:
            out.append(f"method.chosen: {s.chosen} found, allowed: at most method.pool ({s.pool})")
        return out

    def fits(self, federation: Federation) -> list[str]:
        return needs_classes(federation, "fedins chooses by the features before the last layer")

    def splits_model(self) -> bool:
        return True

    def init(self, task: Task, key: int) -> Tree:
        p, rng = self.settings.pool, keys.numpy(keys.key(key, 0, -1, "pool"))

        def normal(*shape: int) -> Tensor:
            return torch.as_tensor(SPREAD * rng.normal(size=shape)).to(task.device, task.dtype)

        entries = [task.init_params(key)] + [task.fresh_params(keys.key(key, 0, -1, f"entry {i}")) for i in range(1, p)]
        pool = tree.stack(entries)
        pool = {n: x if n in task.head else x + normal(*x.shape) for n, x in pool.items()}
        return {"pool": pool, "keys": normal(p, task.feature_size)}

    @visit
    def train(self, task: Task) -> Visit:
        w = self.settings.match

        def start(client: ClientContext) -> Tree:
            return {"model": {k: client.shared[k] for k in ("pool", "keys")}}

        def objective(params: Tree, carry: Tree, batch: Any, key: Tensor) -> Tensor:
            cosine, share = self._chosen(task, params, batch["x"])
            with task.training(batch, key):
                logits = self._answers(task, params, share, batch["x"])
            entropy = task.cross_entropy(logits, batch["y"].long(), key)
            return (1 - w) * entropy + w * (1 - (cosine * (share > 0)).sum(-1))

        def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
            now = carry["model"]
            sent = {
                "delta": tree.sub(now["pool"], client.shared["pool"]),
                "keys_delta": now["keys"] - client.shared["keys"],
            }
            return sent, client.own

        made = sgd_visit(task.loss, self.local, start=start, objective=objective, end=end)
        return made._replace(local=lambda carry: tree.map(lambda p: p.mean(0), carry["model"]["pool"]))

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        folds = [mean(part, weight=self.settings.weight) for part in ("delta", "keys_delta")]
        got = fed.ask(self.train, fed.sample(), shared=state, fold=folds)
        if not got.ids:
            return state
        return {"pool": tree.add(state["pool"], got.folded["delta"]), "keys": state["keys"] + got.folded["keys_delta"]}

    def serve(self, state: Tree) -> Tree:
        return state

    def view(self, task: Task) -> Visit:
        return model_of(lambda client: {k: client.shared[k] for k in ("pool", "keys")})

    def logits(self, task: Task, model: Tree, x: Tensor) -> Tensor:
        return self._answers(task, model, self._chosen(task, model, x)[1], x)

    def _chosen(self, task: Task, model: Tree, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return cosines of inputs (B, ...) and keys, and the share of each entry in their answers, both (B, P)."""
        query = task.features(plain(task), x)
        cosine = F.normalize(query, dim=-1) @ F.normalize(model["keys"], dim=-1).T
        return cosine, shares(cosine, self.settings.chosen)

    def _answers(self, task: Task, model: Tree, share: Tensor, x: Tensor) -> Tensor:
        """Return logits (B, C) of inputs, each under its own mean of the pool."""

        def one(share: Tensor, x: Tensor) -> Tensor:
            params = tree.map(lambda p: torch.tensordot(share, p, dims=1), model["pool"])
            return task.apply(params, x[None])[0]

        return torch.func.vmap(one)(share, x)


def plain(task: Task) -> Tree:
    """Return the trained entries under which the network is the frozen one: scales 1, the rest 0."""
    return {n: torch.ones_like(p) if n.endswith(".scale") else p for n, p in task.params_like.items()}


def shares(cosine: Tensor, chosen: int) -> Tensor:
    """Return 1 / K at the K largest of each row (.., P), 0 elsewhere; without a gradient."""
    top = cosine.detach().topk(chosen, -1).indices
    return torch.zeros_like(cosine).scatter(-1, top, 1.0 / chosen)
