"""FedPuReL: gradients purified by the start's own predictions, then a private residual on the logits."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from rayfed import PARAMS, Method, MethodSettings, Part, Wire, mean, optimizers, schedules, sgd_visit, tree, visit
from rayfed.lazy import torch
from rayfed.task import needs_classes
from rayfed.training import clipped, grad, mean_loss, work
from rayfed.visits import Phase, Visit, model_of

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed import ClientContext, Fed, Task, Tree
    from rayfed.partition import Federation
    from rayfed.visits import Batch

COLD, HOT, HALVINGS = 0.05, 20.0, 20  # the bisection's range of temperatures and its steps


class FedPuReL(Method):
    """Hou et al. 2026, FedPuReL (2605.02247, CVPR 2026).

    z(x): logits of the model the run starts from (`init.from`), which never changes: the zero-shot classifier, whose balance
    between classes is kept. l(x; phi): logits with the trained parameters phi (an adapter, or a whole model).
    Stage 1, each client of the round, phi <- phi_g, per batch: per example tau_z, tau_l such that softmax(z / tau_z) and
    softmax(l / tau_l) have the mean of their entropies at 1 (bisection on [0.05, 20]); g_a = gradient of the mean
    KL(softmax(z / tau_z) || softmax(l / tau_l)) with the temperatures held, g_t = gradient of the cross-entropy; per tensor:
        <g_t, g_a> < 0: g = g_t - strength <g_t, g_a> / ||g_a||^2 g_a, else g = g_t;   a step of the local optimizer along g.
    Server: phi_g <- mean of phi by examples.
    Stage 2, the same clients: phi_i trains with phi_g held on
        fusion CE(l(x; phi_i), y) + (1 - fusion) CE(l(x; phi_g) + l(x; phi_i), y), from its own last or the start's parameters.
    Served to client i is the sum of logits l(x; phi_g) + l(x; phi_i); the global model is phi_g.

    Down: phi_g (P), once for each stage. Up: its update (P), n_i. Kept at client i: phi_i (P). At the server: phi_g.
    In round 1 all clients take part, as in the authors' code (`everyone_first`). Their adapter variant is `align: kl` with
    `fusion: 0`: cross-entropy on z's probabilities has the gradient of KL.
    A client that was never asked is served l(x; phi_g) + l(x; start), its phi_i as it would first train it. Dropout inside
    adapters acts where phi or phi_i trains; z and, in stage 2, phi_g are passed without it.
    """

    no_privacy = "purifies its gradients by a formula of its own"

    class Settings(MethodSettings):
        align: Literal["tkl", "kl"] = Field("tkl", description="Temperatures of equal entropy, or both 1.")
        projection: Literal["per_tensor", "global"] = Field(
            "per_tensor", description="Conflicts judged for every tensor, or for all parameters as one vector."
        )
        strength: float = Field(1.0, ge=0, description="Share of the conflicting component taken out; 0 is FedAvg.")
        fusion: float = Field(0.9, ge=0, le=1, description="Weight of the private model's own loss in stage 2.")
        everyone_first: bool = Field(True, description="All clients take part in round 1.")

    wire: ClassVar[Wire] = Wire(
        down={"model": Part(PARAMS)},
        up={"delta": Part(PARAMS, update=True)},
        keep={"own": Part(PARAMS, private=True, note="phi_i")},
        server={"model": Part(PARAMS, note="phi_g")},
    )

    def fits(self, federation: Federation) -> list[str]:
        return needs_classes(federation, "fedpurel compares logits of classes")

    def own_init(self, task: Task, client: int, key: int) -> Tree:
        return {"own": task.initial}  # from phi_g, the sum of logits would count it twice

    @visit
    def train(self, task: Task) -> Visit:
        """Run stage 1."""
        s, opt, first = self.settings, optimizers.make(self.local.optimizer), task.initial

        def enter(client: ClientContext, carry: Tree) -> Tree:
            return {
                **carry,
                "opt": opt.init(carry["model"]),
                **schedules.start_rate(self.local, client.info.lr, client.info.ahead),
            }

        def align(params: Tree, batch: Batch, key: Tensor) -> Tensor:
            z = task.apply(first, batch["x"])
            with task.training(batch, key):
                tuned = task.apply(params, batch["x"])
            return pull(z, tuned, s.align == "tkl")

        def step(carry: Tree, batch: Batch, key: Tensor) -> Tree:
            here = carry["model"]
            (g_t, written), (g_a, _) = (
                grad(lambda p, of=of: mean_loss(of, p, batch, key))(here) for of in (task.loss, align)
            )
            g = purified(g_t, g_a, s.strength, s.projection)
            if self.local.clip is not None:
                g = clipped(g, self.local.clip)
            model, state = opt.update(g, carry["opt"], here, carry["lr"])
            model = {**model, **written}
            return {**carry, "model": model, "opt": state, **schedules.advance_rate(carry)}

        def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
            return {"delta": tree.sub(carry["model"], client.shared["model"])}, client.own

        return Visit(
            lambda client: {"model": client.shared["model"]},
            [Phase(work(self.local), step, enter, falls=self.local.schedule.within == "linear")],
            end,
            local=lambda carry: carry["model"],
        )

    @visit
    def personalise(self, task: Task) -> Visit:
        """Run stage 2."""
        a = self.settings.fusion

        def start(client: ClientContext) -> Tree:
            return {"own": client.own["own"], "model": client.shared["model"]}

        def objective(params: Tree, carry: Tree, batch: Batch, key: Tensor) -> Tensor:
            with task.training(batch, key):
                alone = task.apply(params, batch["x"])
            common = task.apply(carry["model"], batch["x"])
            of = [task.cross_entropy(logits, batch["y"], key) for logits in (alone, common + alone)]
            return a * of[0] + (1 - a) * of[1]

        def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
            return {}, {"own": carry["own"]}

        visit = sgd_visit(task.loss, self.local, train="own", start=start, objective=objective, end=end)
        return visit._replace(local=None)  # what is scored as locally trained is stage 1's

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        everyone = self.settings.everyone_first and fed.round == 1
        clients = fed.sample(fed.population if everyone else None)
        got = fed.ask(self.train, clients, shared={"model": state["model"]}, fold=mean("delta"))
        new = {"model": tree.add(state["model"], got.folded["delta"])}
        fed.ask(self.personalise, got.ids, shared={"model": new["model"]})
        return new

    def view(self, task: Task) -> Visit:
        return model_of(lambda client: {"shared": client.shared["model"], "own": client.own["own"]})

    def logits(self, task: Task, model: Tree, x: Tensor) -> Tensor:
        return task.apply(model["shared"], x) + task.apply(model["own"], x)


def entropy(logits: Tensor) -> Tensor:
    """Return the entropy of softmax(logits) (..., C), in nats, (...)."""
    log_p = torch.log_softmax(logits, -1)
    return -(log_p.exp() * log_p).sum(-1)


def temperature(logits: Tensor, target: Tensor) -> Tensor:
    """Return tau (...) with entropy(logits / tau) = target, (..., C) and (...); the closer end of the range where there is none."""
    low, high = torch.full_like(target, COLD), torch.full_like(target, HOT)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        below = entropy(logits / middle[..., None]) < target  # entropy grows with tau
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (low + high) / 2


def pull(z: Tensor, l: Tensor, tempered: bool) -> Tensor:  # noqa: E741  (the paper's letter)
    """Return (B,) numbers with KL's gradient in l, (softmax(l / tau_l) - softmax(z / tau_z)) / tau_l, the temperatures held.

    Written by its gradient, so that equal logits give zeros and not what rounding makes of them: a direction, once normed.
    """
    z, still = z.detach(), l.detach()
    tau_z = tau_l = torch.ones_like(z[..., 0])
    if tempered:
        target = (entropy(z) + entropy(still)) / 2
        tau_z, tau_l = temperature(torch.stack([z, still]), torch.stack([target, target]))
    apart = torch.softmax(still / tau_l[..., None], -1) - torch.softmax(z / tau_z[..., None], -1)
    noise = 1e3 * torch.finfo(z.dtype).eps
    apart = torch.where(apart.abs().amax(-1, keepdim=True) > noise, apart, torch.zeros_like(apart))
    return (apart * l / tau_l[..., None]).sum(-1)


def purified(g_t: Tree, g_a: Tree, strength: float, projection: str) -> Tree:
    """Return g_t without `strength` times its component against g_a, where the two conflict."""
    whole = (tree.dot(g_t, g_a), tree.dot(g_a, g_a)) if projection == "global" else None

    def one(t: Tensor, a: Tensor) -> Tensor:
        inner, square = whole or ((t * a).sum(), (a * a).sum())
        share = strength * inner / torch.where(square > 0, square, torch.ones_like(square))
        return torch.where(inner < 0, t - share * a, t)

    return tree.map(one, g_t, g_a)
