"""FedLoGe: a backbone trained against a fixed sparse simplex, with a global and a private head whose norms are realigned."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from rayfed import ANY, PARAMS, Method, MethodSettings, Part, Visit, Wire, keys, mean, model_of, sgd_visit, tree, visit
from rayfed.lazy import torch
from rayfed.methods._bases.simplex import sparse_simplex
from rayfed.task import needs_classes
from rayfed.training import clipped_apart
from rayfed.wire import tensor

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed import ClientContext, Fed, Task, Tree
    from rayfed.partition import Federation
    from rayfed.visits import Batch

AUXILIARY, OWN = "auxiliary head", "own head"  # the two heads, where they train beside the backbone


class FedLoGe(Method):
    """Xiao et al. 2024, "FedLoGe: Joint Local and Generic Federated Learning under Long-tailed Data" (ICLR 2024, 2401.08977), as in the
    authors' code.

    g: a fixed head, made once from a simplex of which a share `zeros` of the entries is 0, the others moved by Adam to equal norms and
    the largest least angle (SSE-C). Client k, z = f(x), on each batch:
        f <- SGD on CE(g z, y);   a <- SGD on CE(a z, y), l_k <- SGD on CE(l_k z, y), both with z held;
    it keeps l_k, sends the updates of f and a. Server: means weighted by examples. `local.clip` is of (f, a) and of l_k, each by itself.
    Realigned (GLA-FR): `global` scores f under rows a_c norm / |a_c|; client k is served f under rows a_c |l_k,c|. The code also tunes a
    at the clients, for 0 epochs in its published runs, which is left out.
    All three heads are without bias [ours]: the code's biases, which realigning leaves alone, would keep the long tail. Served scores may
    answer with any class, where the code rules out those that the client's test rows lack.
    A client that never took part, a held-out one too, has the first l: the run's initial last layer, as a begins.
    Down: f (P - C d - C floats), a (C d), and once g (C d), which is not counted. Up: updates of f and a, n_i. Kept at client k: l_k (C d).
    At the server: f and the realigned a as one model, a, g.
    """

    class Settings(MethodSettings):
        zeros: float = Field(0.6, ge=0, lt=1, description="Share of the fixed head's entries that are 0.")
        fixed_norm: float = Field(0.1, gt=0, description="Norm that the fixed head's rows are drawn to.")
        fixed_steps: int = Field(
            10_000, ge=0, description="Adam's steps that make the fixed head; 0: a simplex with zeros."
        )
        fixed_lr: float = Field(1e-4, gt=0, description="Adam's rate there.")
        norm: float = Field(1.7, gt=0, description="Norm of the realigned global head's rows; it decides no class.")

    wire: ClassVar[Wire] = Wire(
        down={
            "model": Part(ANY, note="f: all entries but the last layer's"),
            "auxiliary": Part(tensor("C", "d"), note="a"),
            "fixed": Part(tensor("C", "d"), note="g; sent once"),
        },
        up={"delta": Part(ANY, update=True, note="of f and a")},
        keep={"head": Part(tensor("C", "d"), private=True, note="l_k")},
        server={
            "model": Part(PARAMS, note="f and the realigned a"),
            "auxiliary": Part(tensor("C", "d"), note="a"),
            "fixed": Part(tensor("C", "d"), note="g"),
        },
    )

    def fits(self, federation: Federation) -> list[str]:
        return needs_classes(federation, "fedloge fixes the last layer's weights of classes")

    def splits_model(self) -> bool:
        return True

    def init(self, task: Task, key: int) -> Tree:
        s, first = self.settings, task.init_params(key)
        fixed = sparse_simplex(
            task,
            keys.key(key, 0, -1, "fixed head"),
            zeros=s.zeros,
            norm=s.fixed_norm,
            steps=s.fixed_steps,
            lr=s.fixed_lr,
        )
        a = task.classifier(first)["weight"]
        return {"model": self.realigned(task, first, a), "auxiliary": a, "fixed": fixed.to(a.dtype)}

    def own_init(self, task: Task, client: int, key: int) -> Tree:
        return {"head": task.classifier(task.initial)["weight"]}

    def realigned(self, task: Task, body: Tree, a: Tensor) -> Tree:
        """Return the global model: rows of `a` of one norm."""
        return under(task, body, a * (self.settings.norm / a.norm(dim=-1, keepdim=True).clamp(min=1e-12)))

    @visit
    def train(self, task: Task) -> Visit:
        def start(client: ClientContext) -> Tree:
            heads = {AUXILIARY: client.shared["auxiliary"], OWN: client.own["head"]}
            return {"model": {**client.shared["model"], **heads}, "fixed": client.shared["fixed"]}

        def objective(params: Tree, carry: Tree, batch: Batch, key: Any) -> Tensor:
            with task.training(batch, key):
                z = task.features(under(task, params, carry["fixed"]), batch["x"])
            held = z.detach()
            parts = ((z, carry["fixed"]), (held, params[AUXILIARY]), (held, params[OWN]))
            rows = [task.cross_entropy(h @ head.T, batch["y"], key) for h, head in parts]
            return torch.stack(rows).sum(0)  # of unlike parameters: each has its own loss's gradient

        def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
            before = {**client.shared["model"], AUXILIARY: client.shared["auxiliary"]}
            return {"delta": {n: carry["model"][n] - p for n, p in before.items()}}, {"head": carry["model"][OWN]}

        local, hook = clipped_apart(self.local, lambda n: n == OWN)
        made = sgd_visit(task.loss, local, start=start, objective=objective, end=end, hook=hook)
        return made._replace(
            local=lambda carry: personal(task, carry["model"], carry["model"][AUXILIARY], carry["model"][OWN])
        )

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        body = {n: p for n, p in state["model"].items() if n not in task.classifier_names}
        shared = {"model": body, "auxiliary": state["auxiliary"], "fixed": state["fixed"]}
        got = fed.ask(self.train, fed.sample(), shared=shared, fold=mean("delta"))
        if not got.ids:
            return state
        moved = tree.add({**body, AUXILIARY: state["auxiliary"]}, got.folded["delta"])
        a = moved.pop(AUXILIARY)
        return {"model": self.realigned(task, moved, a), "auxiliary": a, "fixed": state["fixed"]}

    def serve(self, state: Tree) -> Tree:
        return {"model": state["model"], "auxiliary": state["auxiliary"]}

    def view(self, task: Task) -> Visit:
        return model_of(lambda c: personal(task, c.shared["model"], c.shared["auxiliary"], c.own["head"]))

    def cost(self, part: str, sent: Tree) -> int:
        return 0 if part == "fixed" else super().cost(part, sent)


def under(task: Task, body: Tree, head: Tensor) -> Tree:
    """Return the model of a backbone's entries and a head (C, d) without bias."""
    made: dict[str, Any] = {}
    for n, like in task.params_like.items():
        last = n in task.classifier_names
        made[n] = (head if n.endswith("weight") else torch.zeros_like(like)) if last else body[n]
    return made


def personal(task: Task, body: Tree, a: Tensor, own: Tensor) -> Tree:
    """Return a client's model: rows of `a` times the norms of its own head's rows."""
    return under(task, body, a * own.norm(dim=-1, keepdim=True))
