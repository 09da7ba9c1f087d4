"""FedALT: every client goes on with its own adapter beside the frozen mean of the others', and mixes the two for each input."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from rayfed import ANY, SCALAR, MethodSettings, Part, Visit, Wire, mean, model_of, sgd_visit, total, tree, visit
from rayfed.adapters import lora
from rayfed.lazy import torch
from rayfed.methods._bases.over_lora import FACTORS, OverLoRA, factors
from rayfed.wire import params_of

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed import ClientContext, Fed, Task, Tree


class FedALT(OverLoRA):
    """Bian et al. 2026, "FedALT: Federated Fine-Tuning through Adaptive Local Training with Rest-of-World LoRA" (AAAI 2026, 2503.11880),
    and the authors' code.

    Layer at client i: W h + a_1(h) s B_i A_i h + a_2(h) s B_R A_R h, (a_1, a_2) = softmax(G_i h), G_i (2, n), for each token by itself:
    its own pair, and the rest of the world's. Both stand side by side as one pair of twice the rank.
    Client i: A_i, B_i, G_i <- local training from its own last values, with A_R, B_R held; sends the change of A_i and B_i.
    Server: A_R = mean over j != i of A_j, B_R of B_j, each by itself; it keeps the sum of all, from which client i's own is taken away.
    Ours: the mean is over the clients that have ever been asked, with their last pairs (the paper asks all in every round); G starts at 0,
    so that both weigh 1/2; the head, which language models lack, is averaged, weighted by examples; a client that never took part is
    served the mean of all pairs with weight 1; `local` scores both pairs at 1/2.
    Down: A_R (r, n), B_R (m, r) of each layer, head. Up: the change of A_i and B_i, of the head, n_i. Kept at client i: A_i, B_i, G_i.
    At the server: the sums of A and B over its clients, their number, head.
    """

    one_rank = "the own and the others' adapter stand side by side in every layer"

    class Settings(MethodSettings):
        mixer: Literal["input", "half"] = Field(
            "input", description="Weights of the two pairs: learned, for each input; or one half each (ablation)."
        )
        weight: Literal["examples", "one"] = Field("examples", description="Weights of the head's mean.")

    wire: ClassVar[Wire] = Wire(
        down={
            "head": Part(params_of("head")),
            "sum": Part(FACTORS, note="over all clients; a deployment sends the mean of the others', as large"),
            "count": Part(SCALAR, note="how many clients are in the sum; nothing in a deployment"),
        },
        up={
            "delta": Part(FACTORS, update=True, note="change of the own pair; the first time the pair itself"),
            "first": Part(SCALAR, note="1 the first time; nothing in a deployment"),
            "head_delta": Part(params_of("head"), update=True),
        },
        keep={
            "own": Part(FACTORS, note="A_i, B_i"),
            "gate": Part(ANY, private=True, note="G_i, (2, n) of each layer"),
            "trained": Part(SCALAR, private=True, note="1 once it has trained"),
        },
        server={
            "head": Part(params_of("head")),
            "sum": Part(FACTORS, note="of the clients' last pairs"),
            "count": Part(SCALAR, note="how many clients are in the sum"),
        },
    )
    universal: ClassVar[str | None] = None

    def init(self, task: Task, key: int) -> Tree:
        first = task.init_params(key)
        return {
            "head": {n: first[n] for n in task.head},
            "sum": tree.zeros(factors(task.params_like)),
            "count": torch.zeros((), dtype=task.dtype, device=task.device),
        }

    def own_init(self, task: Task, client: int, key: int) -> Tree:
        pairs = lora.pairs(task.params_like)
        gate = {n.a: torch.zeros_like(task.params_like[n.a][:1]).repeat(2, 1) for n in pairs}
        zero = torch.zeros((), dtype=task.dtype, device=task.device)
        return {"own": factors(task.initial), "gate": gate, "trained": zero}

    @visit
    def train(self, task: Task) -> Visit:
        learned = self.settings.mixer == "input"
        mixture = task.read_by(lambda model, x: self.logits(task, model, x))

        def start(client: ClientContext) -> Tree:
            params = {"own": client.own["own"], "head": client.shared["head"]}
            if learned:
                params["gate"] = client.own["gate"]
            return {"model": params, "rest": rest_of_world(client)}

        def objective(params: Tree, carry: Tree, batch: Any, key: Tensor) -> Tensor:
            model = {**params, "rest": carry["rest"], "trained": torch.ones_like(batch["w"][0])}
            return mixture.loss(model, batch, key)

        def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
            now, was = carry["model"], client.own["trained"]
            sent = {
                "delta": tree.sub(now["own"], tree.scale(client.own["own"], was)),
                "first": 1 - was,
                "head_delta": tree.sub(now["head"], client.shared["head"]),
            }
            kept = {"own": now["own"], "gate": now.get("gate", client.own["gate"])}
            return sent, {**kept, "trained": torch.ones_like(was)}

        made = sgd_visit(task.loss, self.local, start=start, objective=objective, end=end)

        def local(carry: Tree) -> Tree:  # a network's parameters read no input: G = 0
            return {**joined(carry["model"]["own"], carry["rest"], 0.5), **carry["model"]["head"]}

        return made._replace(local=local)

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        folds = [total("delta"), total("first"), mean("head_delta", weight=self.settings.weight)]
        got = fed.ask(self.train, fed.sample(), shared=state, fold=folds)
        return {
            "head": tree.add(state["head"], got.folded["head_delta"]),
            "sum": tree.add(state["sum"], got.folded["delta"]),
            "count": state["count"] + got.folded["first"],
        }

    def cost(self, part: str, sent: Tree) -> int:
        return 0 if part in ("count", "first") else super().cost(part, sent)

    def serve(self, state: Tree) -> Tree:
        return state

    def view(self, task: Task) -> Visit:
        learned = self.settings.mixer == "input"

        def model(client: ClientContext) -> Tree:
            own = {k: client.own[k] for k in (("own", "gate", "trained") if learned else ("own", "trained"))}
            return {**own, "rest": rest_of_world(client), "head": client.shared["head"]}

        return model_of(model)

    def logits(self, task: Task, model: Tree, x: Tensor) -> Tensor:
        params, hooks = {**joined(model["own"], model["rest"], 1.0), **model["head"]}, []
        for n in lora.pairs(model["own"]):
            gate = model["gate"][n.a] if "gate" in model else None
            layer = task.layer(n.a.removesuffix(".weight"))
            hooks.append(layer.register_forward_hook(mixing(gate, model["trained"])))
        try:
            return task.apply(params, x)
        finally:
            for h in hooks:
                h.remove()


def joined(own: Tree, rest: Tree, share: float) -> Tree:
    """Return two pairs of each layer side by side, A (2 r, n) and B (m, 2 r) times `share`."""
    return {n: torch.cat([p, rest[n]]) if lora.is_a(n) else share * torch.cat([p, rest[n]], 1) for n, p in own.items()}


def rest_of_world(client: ClientContext) -> Tree:
    """Return the mean of the pairs of all clients but this one; zeros where there is none."""
    was = client.own["trained"]
    others = client.shared["count"] - was
    rest = tree.sub(client.shared["sum"], tree.scale(client.own["own"], was))
    return tree.where(others > 0, tree.scale(rest, 1 / others.clamp(min=1)), tree.zeros(rest))


def mixing(gate: Tensor | None, trained: Tensor) -> Any:
    """Return a forward hook on A (2 r, n), [own; rest], that weighs the two halves of its output by softmax(G h), G (2, n); by one half
    each without G, and by (0, 1) where the client has not trained."""

    def hook(module: Any, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        r = out.shape[-1] // 2
        own = torch.full_like(out[..., :1], 0.5) if gate is None else own_weight(gate, args[0]).to(out.dtype)
        own = own * trained.to(out.dtype)
        return torch.cat([out[..., :r] * own, out[..., r:] * (1 - own)], -1)

    return hook


def own_weight(gate: Tensor, h: Tensor) -> Tensor:
    """Return a_1, the first entry of softmax(G h) for inputs h (.., n) of a layer, (.., 1)."""
    return torch.softmax(h.to(gate.dtype) @ gate.T, -1)[..., :1]
