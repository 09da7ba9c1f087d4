"""FedSA: anchors of the classes, owned by the server, supervise extractors and last layers of clients that share no weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from rayfed import CLASSES, MethodSettings, Part, Visit, Wire, keys, model_of, sgd_visit, total, visit
from rayfed.lazy import torch
from rayfed.methods._bases import prototypes
from rayfed.methods._bases.prototypes import OwnModel
from rayfed.wire import tensor

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed import ClientContext, Fed, Task, Tree
    from rayfed.visits import Batch

LEAST = 1e-12  # squared distances: at 0 a root has no gradient


class FedSA(OwnModel):
    """Zhou et al. 2025, "FedSA: A Unified Representation Learning via Semantic Anchors for Prototype-based Federated Learning" (AAAI
    2025, 2501.05496); not FedSA-LoRA.

    Anchors a_c, c = 1 .. C, begin as normal numbers through Linear - BN - ReLU - Linear - BN - ReLU, drawn once and never trained [code].
    Client i trains its own model (f_i, h_i), z = f_i(x), on
        CE(h_i(z), y) + lam |z - a_y|^2 / d + mu CE(-D, y) + nu mean_c CE(h_i(a_c), c),   D_c = |z - a_c| + delta_i [c = y];
    delta_i is the larger of two means over classes of the distance to the nearest other class: of the anchors, and of the client's own
    prototypes after its last round (0 before there are any, minus infinity with one class). It then sends P_i,c, the mean of f_i over
    its training rows of c, for each class that it has. Server: P_c <- mean over the clients that sent c, equal weights [code];
    a_c <- decay a_c + (1 - decay) P_c for these classes.
    P_i,c are taken after training in evaluation mode [ours], where the code adds features up as they come by in training.
    `predict: prototype` [code]: a client's answer is the class whose P_c is nearest to f_i(x), `head`: h_i's; `local` scores the
    head in either case.
    `lam`, `mu`, `nu` 0 with `head` is local training to the bit. Anchors are not negative, so features should not be held to other ranges.
    Down: a (C d floats). Up: of each class the client has P_i,c (d) and its label. Kept at client i: its model (P), its prototypes
    (C d) and rows (C). At the server: a, P. P goes down for prediction only, which is not counted.
    """

    class Settings(MethodSettings):
        lam: float = Field(1.0, ge=0, description="Weight of the distance to the anchor of a row's class.")
        mu: float = Field(1.0, ge=0, description="Weight of the contrast between anchors, with a margin.")
        nu: float = Field(1.0, ge=0, description="Weight of the last layer's loss on the anchors themselves.")
        decay: float = Field(
            0.9999, ge=0, le=1, description="What an anchor keeps of itself in a round; 1: it never moves."
        )
        weight: Literal["one", "examples"] = Field(
            "one", description="Weights of clients in a prototype: equal (code), or by their rows of the class."
        )
        predict: Literal["prototype", "head"] = Field(
            "prototype", description="What answers: the nearest global prototype, or the client's last layer."
        )

    wire: ClassVar[Wire] = Wire(
        down={"anchors": Part(tensor("C", "d"), note="a")},
        up={
            "prototypes": Part(tensor("C", "d"), note="times `counts`; 0 for a class that the client lacks"),
            "counts": Part(CLASSES, note="weights of the client's prototypes"),
        },
        keep={
            **OwnModel.wire.keep,
            "previous": Part(tensor("C", "d"), private=True, note="P_i of its last round"),
            "rows": Part(CLASSES, private=True, note="of each class then"),
        },
        server={
            "anchors": Part(tensor("C", "d"), note="a"),
            "prototypes": Part(tensor("C", "d"), note="P"),
            "known": Part(CLASSES, note="1 where there is a prototype"),
        },
    )

    needs = frozenset({"classes"})

    def init(self, task: Task, key: int) -> Tree:
        zeros = torch.zeros(task.classes, task.feature_size, dtype=task.dtype)
        drawn = anchors(task.classes, task.feature_size, keys.key(key, 0, -1, "anchors"))
        return {"anchors": drawn.to(task.dtype), "prototypes": zeros, "known": zeros[:, 0].clone()}

    def own_init(self, task: Task, client: int, key: int) -> Tree:
        zeros = torch.zeros(task.classes, task.feature_size, dtype=task.dtype)
        return {"model": task.initial, "previous": zeros, "rows": zeros[:, 0].clone()}

    @visit
    def train(self, task: Task) -> Visit:
        s = self.settings

        def start(client: ClientContext) -> Tree:
            a, own = client.shared["anchors"], client.own
            margin = torch.maximum(apart(a, torch.ones_like(own["rows"])), apart(own["previous"], own["rows"]))
            return {"model": own["model"], "anchors": a, "margin": margin}

        def objective(params: Tree, carry: Tree, batch: Batch, key: Any) -> Tensor:
            y, a, head = batch["y"], carry["anchors"], task.classifier(params)
            with task.training(batch, key):
                z = task.features(params, batch["x"])
            loss = task.cross_entropy(task.classify(head, z), y, key)
            if s.lam:
                loss = loss + s.lam * (z - a[y]).square().mean(-1)
            if s.mu:
                far = distances(z, a) + carry["margin"] * prototypes.one_hot(y, task.classes, z.dtype)
                loss = loss + s.mu * task.cross_entropy(-far, y)
            if s.nu:
                loss = (
                    loss
                    + s.nu
                    * task.cross_entropy(task.classify(head, a), torch.arange(task.classes, device=y.device)).mean()
                )
            return loss

        def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
            w, found = prototypes.weights(carry, s.weight), prototypes.means(carry)
            own = {"model": carry["inner"]["model"], "previous": found, "rows": carry["rows"]}
            return {"prototypes": found * w[:, None], "counts": w}, own

        objects = objective if s.lam or s.mu or s.nu else None
        made = sgd_visit(task.loss, self.local, start=start, objective=objects)
        after = prototypes.class_means(task, lambda carry: carry["model"])
        return Visit(made.begin, [*made.phases, after], end, local=lambda carry: carry["inner"]["model"])

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        keep, shared = self.settings.decay, {"anchors": state["anchors"]}
        got = fed.ask(self.train, fed.sample(), shared=shared, fold=(total("prototypes"), total("counts")))
        if not got.ids:
            return state
        counts = got.folded["counts"]
        found = prototypes.average(got.folded["prototypes"], counts, state["prototypes"])
        moved = keep * state["anchors"] + (1 - keep) * found
        return {
            "anchors": torch.where((counts > 0)[:, None], moved, state["anchors"]),
            "prototypes": found,
            "known": torch.maximum(state["known"], (counts > 0).to(counts.dtype)),
        }

    def serve(self, state: Tree) -> Tree:
        return {n: state[n] for n in ("prototypes", "known")} if self.settings.predict == "prototype" else {}

    def view(self, task: Task) -> Visit:
        if self.settings.predict == "head":
            return model_of(lambda client: client.own["model"])
        return model_of(lambda client: {"own": client.own["model"], **client.shared})

    def logits(self, task: Task, model: Tree, x: Tensor) -> Tensor:
        return prototypes.answer(task, model, x) if self.settings.predict == "prototype" else task.apply(model, x)


def anchors(classes: int, d: int, key: int) -> Tensor:
    """Return (C, d) first anchors, float64: normal numbers through two layers with batch normalisation over the classes and ReLU."""
    rng = keys.torch_generator(key)
    a = torch.randn(classes, d, generator=rng, dtype=torch.float64)
    for _ in range(2):
        w, b = ((2 * torch.rand(*shape, generator=rng, dtype=torch.float64) - 1) / d**0.5 for shape in ((d, d), (d,)))
        a = a @ w.T + b
        a = ((a - a.mean(0)) / (a.var(0, unbiased=False) + 1e-5).sqrt()).clamp(min=0)
    return a


def distances(z: Tensor, to: Tensor) -> Tensor:
    """Return Euclidean distances (B, C) of rows (B, d) to points (C, d); their gradient at 0 is 0."""
    return (z[:, None, :] - to).square().sum(-1).clamp(min=LEAST).sqrt()


def apart(points: Tensor, rows: Tensor) -> Tensor:
    """Return the mean distance of points (C, d) that have rows (C,) to the nearest other such point, 0-d; 0 where none has, minus
    infinity where one has."""
    there = rows > 0
    pairs = there[:, None] & there & ~torch.eye(len(points), dtype=torch.bool, device=points.device)
    least = torch.where(pairs, distances(points, points), torch.inf).amin(-1)
    n = there.sum()
    mean = torch.where(there & (n > 1), least, 0.0).sum() / n.clamp(min=1)
    return torch.where(n == 1, -torch.inf, mean)
