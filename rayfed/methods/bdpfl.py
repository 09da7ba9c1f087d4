"""BDPFL: against backdoors, a private model learns beside the shared one from its answers and, less the deeper, from its heatmaps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from rayfed import PARAMS, SCALAR, Method, MethodSettings, Part, Wire, mean, model_of, sgd_visit, tree, visit
from rayfed.config.schema import Need
from rayfed.distill import ensemble
from rayfed.lazy import torch
from rayfed.task import needs_classes
from rayfed.training import clipped_apart

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed import ClientContext, Fed, Task, Tree, Visit
    from rayfed.config.schema import Config
    from rayfed.partition import Federation

OWN = "own "  # begins the names of the private model's parameters beside the shared one's


class BDPFL(Method):
    """Zhu, Zhang, Wu and Long 2025, "BDPFL: Backdoor Defense for Personalized Federated Learning via Explainable Distillation"
    (2503.06554), from its abstract and reports of it; its code is not public and its heatmap's formula was not readable.

    Client i: w_i <- w as received, and w_p kept from its last visit. On each batch both step by SGD on
        L(w_i) = CE(w_i) + lam KL(q(w_p) || q(w_i)) + mu sum_l beta_l D(M_l(w_i), M_l(w_p)),   beta_l = 1 / (1 + gamma l),
    and L(w_p) likewise with the two exchanged, the other model's side constant; q softmax of logits / tau, KL times tau^2; l = 1 .. L
    the blocks from shallow to deep, D the squared distance of maps of Euclidean norm 1. Sends w_i - w; server: FedAvg.
    Maps [inferred]: `attention` the sum over channels of squared answers F_l, without second-order gradients; `gradcam`
    ReLU(sum_c a_c F_lc), a_c the mean over places of d f_y / d F_lc, y the label. Answers without places (B, d) are squared one by one.
    Blocks: all modules behind which the network can be cut (`Task.cuts`).
    Served: w_p; who never trained, a held-out client too, is served w. Scope `global` is w's accuracy.
    With lam = mu = 0 w is FedAvg's to the bit, and w_p isolated local training.
    Down: w (P). Up: the update (P), n_i. Kept at client i: w_p (P), and whether it has one. At the server: w.
    """

    no_privacy = "trains two models against each other"
    no_buffers = "compares the layers of two models, each with statistics of its own"

    class Settings(MethodSettings):
        needs: ClassVar = {
            "tau": (Need("lam", (0.0,), but=True),),
            **dict.fromkeys(("gamma", "map"), (Need("mu", (0.0,), but=True),)),
        }

        lam: float = Field(1.0, ge=0, description="Weight of the divergence from the other model's answers.")
        mu: float = Field(1.0, ge=0, description="Weight of the distance of the blocks' maps.")
        gamma: float = Field(0.5, ge=0, description="How fast blocks count less with their depth; 0: equally.")
        tau: float = Field(1.0, gt=0, description="Temperature of the answers that are compared.")
        map: Literal["attention", "gradcam"] = Field(
            "attention", description="Maps of blocks: of squared answers, or of answers weighted by their gradients."
        )
        start: Literal["initial", "received"] = Field(
            "initial", description="First private model: the run's initial one, or the first that is received."
        )

    needs = frozenset({"classes"})
    wire: ClassVar[Wire] = Wire(
        down={"model": Part(PARAMS)},
        up={"delta": Part(PARAMS, update=True)},
        keep={"private": Part(PARAMS, private=True, note="w_p"), "visited": Part(SCALAR, private=True)},
        server={"model": Part(PARAMS)},
    )

    def fits(self, federation: Federation) -> list[str]:
        return needs_classes(federation, "bdpfl compares answers by class")

    def check(self, config: Config) -> list[str]:
        if not any(a.kind == "mixup" for a in config.local.augment):
            return []
        return ["local.augment: mixup found, bdpfl reads maps of images of one label; allowed: other augmentations"]

    def fits_model(self, task: Task) -> list[str]:
        if task.cuts or not self.settings.mu:
            return []
        return [f"method.mu: {self.settings.mu:g} found, task.model cannot be cut behind any layer; allowed: 0"]

    def own_init(self, task: Task, client: int, key: int) -> Tree:
        return {"private": task.initial, "visited": torch.zeros((), dtype=task.dtype)}

    @visit
    def train(self, task: Task) -> Visit:
        s = self.settings
        blocks = list(task.cuts) if s.mu else []
        local, apart = clipped_apart(self.local, lambda name: name.startswith(OWN))

        def start(client: ClientContext) -> Tree:
            own = client.own["private"]
            if s.start == "received":
                own = tree.where(client.own["visited"] > 0, own, client.shared["model"])
            return {"both": {**client.shared["model"], **{OWN + n: p for n, p in own.items()}}}

        def objective(both: Tree, carry: Tree, batch: Any, key: Tensor) -> Tensor:
            sides = [{n: p for n, p in both.items() if n in task.params_like}, _private(both)]
            seen = []
            for params in sides:
                with task.training(batch, key):
                    seen.append(task.watch(params, batch["x"], [*blocks, ""]))
            losses = [task.cross_entropy(side[""], batch["y"], key) for side in seen]
            loss = losses[0] + losses[1]
            if s.lam:
                for mine, other in (seen, seen[::-1]):
                    loss = loss + s.lam * ensemble.kl(other[""].detach(), mine[""], s.tau)
            for n, beta in zip(blocks, depth_weights(len(blocks), s.gamma), strict=True):
                maps = [
                    attention(side[n]) if s.map == "attention" else gradcam(task, params, n, side[n], batch["y"])
                    for params, side in zip(sides, seen, strict=True)
                ]
                for map_, other_map in (maps, maps[::-1]):
                    loss = loss + s.mu * beta * (map_ - other_map.detach()).square().sum(-1)
            return loss

        def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
            shared = {n: carry["both"][n] for n in task.params_like}
            own = {"private": _private(carry["both"]), "visited": torch.ones_like(client.own["visited"])}
            return {"delta": tree.sub(shared, client.shared["model"])}, own

        made = sgd_visit(task.loss, local, train="both", start=start, objective=objective, hook=apart, end=end)
        return made._replace(local=lambda carry: _private(carry["both"]))

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        got = fed.ask(self.train, fed.sample(), shared={"model": state["model"]}, fold=mean("delta"))
        return {"model": tree.add(state["model"], got.folded["delta"])}

    def view(self, task: Task) -> Visit:
        return model_of(lambda c: tree.where(c.own["visited"] > 0, c.own["private"], c.shared["model"]))


def _private(both: Tree) -> Tree:
    return {n.removeprefix(OWN): p for n, p in both.items() if n.startswith(OWN)}


def depth_weights(blocks: int, gamma: float) -> list[float]:
    """Return beta_l = 1 / (1 + gamma l) of blocks l = 1 .. L."""
    return [1 / (1 + gamma * block) for block in range(1, blocks + 1)]


def attention(answers: Tensor) -> Tensor:
    """Return the map (B, places) of a block's answers (B, C, H, W), (B, T, d) or (B, d): squares summed over channels, of norm 1."""
    square = answers.square()
    return unit(square.sum(1).flatten(1) if answers.dim() == 4 else square.sum(-1) if answers.dim() == 3 else square)


def gradcam(task: Task, params: Tree, block: str, answers: Tensor, y: Tensor) -> Tensor:
    """Return the map (B, places) of a block's answers as Grad-CAM has it (Selvaraju et al. 2017, 1610.02391), of norm 1: answers
    weighted by the mean over places of the gradient of the label's logit, where that is positive."""

    def logit(h: Tensor) -> Tensor:
        return task.resume(params, block, h).gather(1, y[:, None].long()).sum()

    slope = torch.func.grad(logit)(answers)
    if answers.dim() == 4:
        return unit((slope.mean((2, 3), keepdim=True) * answers).sum(1).relu().flatten(1))
    if answers.dim() == 3:
        return unit((slope.mean(1, keepdim=True) * answers).sum(-1).relu())
    return unit((slope * answers).relu())


def unit(m: Tensor) -> Tensor:
    """Return rows (B, places) divided by their Euclidean norm; rows of zeros stay."""
    square = m.square().sum(-1, keepdim=True)
    return m * torch.where(square > 0, square, 1.0).rsqrt()
