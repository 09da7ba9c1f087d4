"""FedDAT: a private and a shared adapter teach each other; only the shared one is averaged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from rayfed import SCALAR, MethodSettings, Part, Phase, Visit, Wire, mean, model_of, optimizers, schedules, tree, visit
from rayfed.lazy import torch
from rayfed.methods._bases.over_adapter import OverAdapter
from rayfed.task import needs_classes
from rayfed.training import clipped, work
from rayfed.wire import params_but, params_of

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed import ClientContext, Fed, Task, Tree
    from rayfed.partition import Federation

ADAPTER, HEAD = params_but("head"), params_of("head")


class FedDAT(OverAdapter):
    """Chen et al. 2024, "FedDAT: An Approach for Foundation Model Finetuning in Multi-Modal Heterogeneous Federated Learning" (AAAI 2024,
    2308.12305), and the authors' code.

    Every layer has bottlenecks A(h) = U relu(D h + d) + u: a shared one A_s, a private one A_c, and A_f, the shared one as received, held.
    Alone: h + A_s(h). Both: h + A_c(h) / 2 + A_f(h) / 2, which is one bottleneck of twice the size.
    Client i, on each batch, two steps of the optimizer, z_all = logits of both (held):
      z_1 = logits of A_s alone; (CE(z_1) + KL_T(z_all || z_1)) / 2 moves A_s and the head;
      z_0 = logits of both, with the head just moved; (CE(z_0) + KL_T(z_1 || z_0)) / 2, z_1 held as it was, moves A_c and the head.
    KL_T(t || s) = T^2 sum softmax(t / T) (log softmax(t / T) - log softmax(s / T)). Sends the change of A_s.
    Server: A_s <- mean over clients, equal weights [code].
    What is served is both, A_c with the A_f of the client's last round [code]; `serve` has the others.
    Ours: the bottleneck stands behind each block (`adapter: bottleneck`); classes for the paper's answers; a client that never took part is
    served A_s with the run's first head. Two steps a batch: baselines at the same epochs take half as many.
    Down: A_s. Up: its change, n_i with `weight: examples`. Kept at client i: A_c, A_f, head. At the server: A_s.
    """

    kinds = ("bottleneck",)

    class Settings(MethodSettings):
        temperature: float = Field(3.0, gt=0, description="T of both distillations.")
        distill: float = Field(1.0, ge=0, description="Weight of both KL terms; 0: without teachers.")
        serve: Literal["both", "own", "shared"] = Field(
            "both",
            description="What a client is served: both adapters, its own, or the newest shared one, with its head.",
        )
        weight: Literal["examples", "one"] = Field(
            "one", description="Weights of the mean: by examples, or equal (code)."
        )

    wire: ClassVar[Wire] = Wire(
        down={"shared": Part(ADAPTER, note="A_s")},
        up={"delta": Part(ADAPTER, update=True)},
        keep={
            "own": Part(ADAPTER, private=True, note="A_c"),
            "held": Part(ADAPTER, private=True, note="A_f"),
            "head": Part(HEAD, private=True),
            "trained": Part(SCALAR, private=True, note="1 once it has trained"),
        },
        server={"shared": Part(ADAPTER, note="A_s")},
    )
    universal: ClassVar[str | None] = None
    no_buffers = "two steps on one batch would write them twice"
    no_privacy = "trains two adapters in each step by formulas of its own"

    def fits(self, federation: Federation) -> list[str]:
        return needs_classes(federation, "feddat compares the logits of classes")

    def init(self, task: Task, key: int) -> Tree:
        return {"shared": ADAPTER.select(task.init_params(key), task)}

    def own_init(self, task: Task, client: int, key: int) -> Tree:
        first = ADAPTER.select(task.initial, task)
        zero = torch.zeros((), dtype=task.dtype, device=task.device)
        return {"own": first, "held": first, "head": HEAD.select(task.initial, task), "trained": zero}

    @visit
    def train(self, task: Task) -> Visit:
        opt, falls = optimizers.make(self.local.optimizer), self.local.schedule.within == "linear"

        def begin(client: ClientContext) -> Tree:
            own = {k: client.own[k] for k in ("own", "head")}
            return {**own, "model": client.shared["shared"], "held": client.shared["shared"]}

        def enter(client: ClientContext, carry: Tree) -> Tree:
            # One optimizer for all, whose state belongs to each tensor: the head's takes two steps a batch.
            states = {f"opt_{k}": opt.init(carry[k]) for k in ("model", "own", "head")}
            return {**carry, **states, **schedules.start_rate(self.local, client.info.lr, client.info.ahead)}

        def step(carry: Tree, batch: Any, key: Tensor) -> Tree:
            z_all = task.apply({**both(carry["own"], carry["held"]), **carry["head"]}, batch["x"])

            def alone(params: Tree) -> tuple[Tensor, Tensor]:
                return self._taught(task, {**params["model"], **params["head"]}, z_all, batch, key)

            def together(params: Tree) -> tuple[Tensor, Tensor]:
                return self._taught(task, {**both(params["own"], carry["held"]), **params["head"]}, z_1, batch, key)

            carry, z_1 = _stepped(opt, carry, "model", alone, self.local.clip)
            carry, _ = _stepped(opt, carry, "own", together, self.local.clip)
            return {**carry, **schedules.advance_rate(carry)}

        def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
            kept = {k: carry[k] for k in ("own", "held", "head")}
            sent = {"delta": tree.sub(carry["model"], client.shared["shared"])}
            return sent, {**kept, "trained": torch.ones_like(client.own["trained"])}

        def local(carry: Tree) -> Tree:
            return {**both(carry["own"], carry["held"]), **carry["head"]}

        return Visit(begin, [Phase(work(self.local), step, enter, falls=falls)], end, local=local)

    def _taught(self, task: Task, params: Tree, teacher: Tensor, batch: Any, key: Tensor) -> tuple[Tensor, Tensor]:
        """Return (half of cross-entropy and distance from the teacher's logits (B, C), its mean over the real rows; logits)."""
        with task.training(batch, key):
            z = task.apply(params, batch["x"])
        s, w = self.settings, batch["w"]
        entropy = task.cross_entropy(z, batch["y"].long(), key)
        rows = (entropy + s.distill * divergence(teacher.detach(), z, s.temperature)) / 2
        return (rows * w).sum() / w.sum().clamp(min=1), z.detach()

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        fold = mean("delta", weight=self.settings.weight)
        got = fed.ask(self.train, fed.sample(), shared=state, fold=fold)
        return {"shared": tree.add(state["shared"], got.folded["delta"])}

    def serve(self, state: Tree) -> Tree:
        return state

    def view(self, task: Task) -> Visit:
        serve = self.settings.serve

        def model(client: ClientContext) -> Tree:
            newest, own, trained = client.shared["shared"], client.own, client.own["trained"] > 0
            pair = {"both": (own["own"], own["held"]), "own": (own["own"],) * 2, "shared": (newest,) * 2}[serve]
            return {**both(*(tree.where(trained, a, newest) for a in pair)), **own["head"]}

        return model_of(model)


def _stepped(opt: Any, carry: Tree, which: str, loss: Any, clip: float | None) -> tuple[Tree, Tensor]:
    """Return a carry after one step of the optimizer for carry[which] and the head, and the logits before it; clip: of both together."""
    params = {k: carry[k] for k in (which, "head")}
    slopes, z = torch.func.grad(loss, has_aux=True)(params)
    if clip is not None:
        slopes = clipped(slopes, clip)
    out = dict(carry)
    for k, p in params.items():
        out[k], out[f"opt_{k}"] = opt.update(slopes[k], carry[f"opt_{k}"], p, carry["lr"])
    return out, z


def both(a: Tree, b: Tree) -> Tree:
    """Return the bottlenecks of twice the size that give A(h) / 2 + B(h) / 2, of those of two trees."""
    out = {}
    for n, p in a.items():
        down, bias = ".down." in n, n.endswith(".bias")
        out[n] = torch.cat([p, b[n]]) if down else (p + b[n]) / 2 if bias else torch.cat([p / 2, b[n] / 2], 1)
    return out


def divergence(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    """Return T^2 KL(softmax(teacher / T) || softmax(student / T)) of logits (B, C), (B,)."""
    t, s = (torch.log_softmax(z / temperature, -1) for z in (teacher, student))
    return temperature**2 * (t.exp() * (t - s)).sum(-1)
