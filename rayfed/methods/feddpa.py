"""FedDPA: a private adapter in addition to the global one, mixed for every input by how similar it is to the client's data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from rayfed import PARAMS, SCALAR, MethodSettings, Need, Part, Phase, Visit, Wire, mean, sgd_visit, tree, visit
from rayfed.adapters import lora
from rayfed.lazy import F, torch
from rayfed.methods._bases.over_lora import OverLoRA
from rayfed.task import needs_classes
from rayfed.visits import epochs
from rayfed.wire import params_of

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed import ClientContext, Fed, Task, Tree
    from rayfed.config.schema import Config
    from rayfed.partition import Federation
    from rayfed.visits import Batch


class FedDPA(OverLoRA):
    """Yang et al. 2024, "Dual-Personalizing Adapter for Federated Foundation Models" (2403.19211), FedDPA-F and FedDPA-T.

    Each layer has a global pair g and a private pair l: W x + (1 - a) s B_g A_g x + a s B_l A_l x, which is one pair of twice
    the rank, B = [(1 - a) B_g, a B_l], A = [A_g; A_l]. g and the head train as in FedIT, without l. l trains with g held and
    a = 1/2, from the first A and B = 0:
      T: within the visit, after g, on the g just trained [ours: not the mean, nor g as received], and is kept;
      F: when all rounds of g are over: whenever a client's model is assembled, with the g of that round, `own_epochs` long.
    At test a(x) = most max(0, mean over the S instances of cos(f(x), f(x_s))), most 1/2 [code], f the last features of the model
    as it started, x_s drawn from the client's training data. The mean of cosines is one product with the mean of the unit
    features, so that is what is held. A client without an l has a = 0.
    Differences to the published code: in every round from the second on it trains l first, with g as received, and then g,
    where here T trains g first and l on the g just trained, from the first round on; its l starts afresh where a client was
    not picked in the round before, here it is kept; its f is the last layer's state at the prompt's last token with l alone in
    the layers; its S is 5, drawn anew for every input, and a negative mean makes a negative a.
    In T `local` scores the mixture at a = `most`, what an input most like the client's own is served; in F g alone.

    Down: A (r, n), B (m, r) of each layer, head. Up: their update, n_i with `weight: examples`. Kept at client i: in T l and
    whether it has trained; in F nothing. At the server: g and head, which are also the global model.
    """

    class Settings(MethodSettings):
        needs: ClassVar = {"own_epochs": (Need("mode", ("F",)),)}

        mode: Literal["F", "T"] = Field("T", description="Private adapter after all rounds (F), or in every visit (T).")
        weight: Literal["examples", "one"] = Field("one", description="Weights of g's mean: by examples, or equal.")
        own_epochs: int = Field(1, ge=1, description="F: epochs of the private adapter.")
        instances: int = Field(16, ge=1, description="S, training instances that an input is compared with.")
        most: float = Field(0.5, ge=0, le=1, description="Largest weight of the private adapter at test.")

    one_rank: ClassVar[str | None] = "global and private adapter stand side by side in every layer"
    wire: ClassVar[Wire] = Wire(
        down={"model": Part(PARAMS)},
        up={"delta": Part(PARAMS, update=True)},
        keep={
            "own": Part(params_of("lora_A", "lora_B"), private=True, note="l"),
            "trained": Part(SCALAR, private=True, note="1 once l has trained"),
        },
        server={"model": Part(PARAMS, note="g and the head")},
    )

    def __init__(self, settings: Any, config: Config):
        super().__init__(settings, config)
        if settings.mode == "F":
            self.wire = self.wire._replace(keep={})  # type: ignore[misc]

    def splits_model(self) -> bool:
        return True

    def fits(self, federation: Federation) -> list[str]:
        return needs_classes(federation, "feddpa mixes by the cosine of penultimate features")

    def own_init(self, task: Task, client: int, key: int) -> Tree:
        return {"own": factors(task.initial), "trained": torch.zeros((), dtype=task.dtype, device=task.device)}

    @visit
    def train(self, task: Task) -> Visit:
        common = sgd_visit(task.loss, self.local)
        if self.settings.mode == "F":
            return common
        private = self.private(task)

        def begin(client: ClientContext) -> Tree:
            return {"model": client.shared["model"], "own": client.own["own"]}

        def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
            sent = {"delta": tree.sub(carry["model"], client.shared["model"])}
            return sent, {"own": carry["own"], "trained": torch.ones_like(client.own["trained"])}

        def local(carry: Tree) -> Tree:
            return mixed(carry["model"], carry["own"], self.settings.most)

        return Visit(begin, [*common.phases, *private.phases], end, local=local)

    @visit
    def private(self, task: Task) -> Visit:
        """Train l, carry["own"], next to carry["model"]."""

        def objective(params: Tree, carry: Tree, batch: Batch, key: Tensor) -> Tensor:
            return task.loss(mixed(carry["model"], params, 0.5), batch, key)

        n = self.settings.own_epochs
        phases = [(epochs(n), lambda name: True)] if self.settings.mode == "F" else None
        return sgd_visit(task.loss, self.local, train="own", objective=objective, phases=phases)

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        fold = mean("delta", weight=self.settings.weight)
        got = fed.ask(self.train, fed.sample(), shared={"model": state["model"]}, fold=fold)
        return {"model": tree.add(state["model"], got.folded["delta"])}

    def view(self, task: Task) -> Visit:
        after, s = self.settings.mode == "F", self.settings

        def begin(client: ClientContext) -> Tree:
            return {"model": client.shared["model"], "own": factors(task.initial) if after else client.own["own"]}

        def enter(client: ClientContext, carry: Tree) -> Tree:
            zero = torch.zeros((), dtype=task.dtype, device=task.device)
            return {"model": carry["model"], "own": carry["own"], "sum": zero.repeat(task.feature_size), "n": zero}

        def step(carry: Tree, batch: Batch, key: Tensor) -> Tree:
            w = batch["w"] * (carry["n"] + batch["w"].cumsum(0) <= s.instances)
            unit = F.normalize(task.features(task.initial, batch["x"]), dim=-1)
            return {**carry, "sum": carry["sum"] + w @ unit, "n": carry["n"] + w.sum()}

        def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
            centre = carry["sum"] / carry["n"].clamp(min=1)
            trained = torch.ones_like(carry["n"]) if after else client.own["trained"]
            model = {"model": carry["model"], "own": carry["own"], "centre": centre, "trained": trained}
            return {"model": model}, client.own

        instances = Phase(epochs(1), step, enter, counts=False)
        return Visit(begin, [*(self.private(task).phases if after else ()), instances], end)

    def logits(self, task: Task, model: Tree, x: Tensor) -> Tensor:
        cos = F.normalize(task.features(task.initial, x), dim=-1) @ model["centre"]
        a = self.settings.most * cos.clamp(min=0) * model["trained"]

        def one(a: Tensor, x: Tensor) -> Tensor:
            return task.apply(mixed(model["model"], model["own"], a), x[None])[0]

        return torch.func.vmap(one)(a, x)


def factors(params: Tree) -> Tree:
    """Return the adapter's A and B of a trained tree."""
    return lora.select(params, lambda n: lora.is_a(n) or lora.is_b(n))


def mixed(g: Tree, l: Tree, a: Tensor | float) -> Tree:  # noqa: E741  (the paper's letter)
    """Return the trained tree whose layers add (1 - a) s B_g A_g + a s B_l A_l, (m, 2 r) times (2 r, n); the rest is g's."""
    out = dict(g)
    for n in lora.pairs(l):
        out[n.a] = torch.cat([g[n.a], l[n.a]])
        out[n.b] = torch.cat([(1 - a) * g[n.b], a * l[n.b]], 1)
    return out
