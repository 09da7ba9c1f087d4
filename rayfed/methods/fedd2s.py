"""FedD2S: clients and heads at the server teach one another at a depth that falls from the last block to the first."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from rayfed import ANY, PARAMS, Method, MethodSettings, Part, Phase, Visit, Wire, keys, model_of, sgd_visit, tree, visit
from rayfed.distill import ensemble
from rayfed.lazy import F, torch
from rayfed.task import needs_classes
from rayfed.visits import steps
from rayfed.wire import tensor

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed import ClientContext, Fed, Replies, Task, Tree
    from rayfed.partition import Federation
    from rayfed.visits import Batch

AUX = "auxiliary."  # begins the names of an auxiliary classifier's entries


class FedD2S(Method):
    """FedD2S 2024, "Personalized Data-Free Federated Knowledge Distillation" (2402.10846); no public code. A reconstruction from
    the abstract: forms marked [inferred] are not the paper's text.

    Client k has its own model, z_l(x) the answer of its block l = 1 .. L (`Task.cuts`), the server a head g_l for each block, begun as the
    layers behind it. Round t = 0, 1, .. federates block l = max(`least`, L - floor(`drop` t)) [inferred]:
        each client sends z_l(x), y and p = softmax(f(x) / tau) of `samples` batches of its rows;
        g_l: `server_steps` of SGD on CE(g_l(z), y) + beta tau^2 KL(p || softmax(g_l(z) / tau)) [inferred];
        each client gets back q = softmax(g_l(z) / tau) of its rows, and trains on CE(f(x), y) of all its rows plus
            alpha tau^2 KL(q || softmax(a_l(z_l(x)) / tau)) on those [inferred], a_L the layers behind block L, its own, and below that
            an auxiliary linear classifier of its own, begun at 0 [inferred]: no weights travel.
    From l = 0 on nothing travels and every client trains alone. "Data-free" means without public data: features and labels of private
    rows are sent. With families every family has heads of its own. `alpha: 0` is local training to the bit.
    There is no global model: `global` scores the mean of the served models' predictions. A client that never took part, a
    held-out one too, has the run's first model.
    Down: q (S C floats, S rows), their numbers. Up: z (S d_l), y, p (S C), their numbers. Kept at client k: its model, its auxiliary
    classifiers (C d_l each). At the server: the heads.
    """

    class Settings(MethodSettings):
        drop: float = Field(
            0.2, ge=0, description="Blocks that leave federation in a round, the deepest first; 0: none."
        )
        least: int = Field(0, ge=0, description="Block that stays in federation to the end; 0: none.")
        samples: int = Field(2, ge=1, description="Batches of rows that a client sends in a round.")
        alpha: float = Field(1.0, ge=0, description="Weight of the soft labels at clients; 0: local training.")
        beta: float = Field(1.0, ge=0, description="Weight of the clients' soft answers at the server.")
        tau: float = Field(2.0, gt=0, description="Temperature.")
        server_steps: int = Field(20, ge=0, description="Steps of a head in a round.")
        server_batch: int = Field(64, ge=1, description="Rows in such a step.")
        server_lr: float = Field(0.1, gt=0, description="SGD's rate of the heads.")

    wire: ClassVar[Wire] = Wire(
        down={"rows": Part(tensor("S", dtype="int64")), "soft": Part(tensor("S", "C"), note="q of each")},
        up={
            "rows": Part(tensor("S", dtype="int64"), note="numbers of the rows that follow, -1 on padding"),
            "z": Part(ANY, note="what block l answers"),
            "y": Part(tensor("S", dtype="int64"), note="labels"),
            "p": Part(tensor("S", "C"), note="the client's own soft answers"),
        },
        keep={"model": Part(PARAMS, private=True), "auxiliary": Part(ANY, private=True, note="a_l by block")},
        server={"heads": Part(ANY, note="g_l by family and block")},
    )
    universal: ClassVar[str | None] = None
    needs = frozenset({"classes"})
    reads_rows = True
    no_privacy = "sends features and labels of single rows"

    def fits(self, federation: Federation) -> list[str]:
        return needs_classes(federation, "fedd2s's heads give logits of classes")

    def fits_model(self, task: Task) -> list[str]:
        blocks = len(task.cuts)
        if not blocks:
            return [
                f"task.model: {task.config.task.model.name} has no place to be cut in two, which method.name: fedd2s does"
            ]
        if self.settings.least > blocks:
            return [f"method.least: {self.settings.least} found, allowed: 0 to {blocks}, the blocks of task.model"]
        return []

    def depth(self, blocks: int, round: int) -> int:
        """Return which of a model's blocks, from 1, is federated in a round, from 1; 0 is none."""
        if not self.settings.alpha:
            return 0
        return max(self.settings.least, blocks - math.floor(self.settings.drop * (round - 1) + 1e-9))

    def init(self, task: Task, key: int) -> Tree:
        heads = {}
        for name, of in task.by_family().items():
            first = of.init_params(key)
            heads[name] = {str(i): {n: first[n] for n in behind} for i, behind in enumerate(of.cuts.values(), 1)}
        return {"heads": heads}

    def own_init(self, task: Task, client: int, key: int) -> Tree:
        return {"model": task.initial, "auxiliary": {str(i): auxiliary(task, i) for i in range(1, len(task.cuts))}}

    @visit
    def upload(self, task: Task, depth: int) -> Visit:
        name, b, s = list(task.cuts)[depth - 1], self.local.batch_size, self.settings

        def enter(client: ClientContext, carry: Tree) -> Tree:
            like: Any = {"dtype": task.dtype, "device": task.device}
            whole: Any = {"dtype": torch.int64, "device": task.device}
            n = s.samples * b
            return {
                **carry,
                "at": torch.zeros((), **whole),
                "rows": torch.full((n,), -1, **whole),
                "z": torch.zeros(n, *shape(task, name), **like),
                "y": torch.zeros(n, **whole),
                "p": torch.zeros(n, task.classes, **like),
            }

        def step(carry: Tree, batch: Batch, key: Tensor) -> Tree:
            seen = task.watch(carry["model"], batch["x"], [name, ""])
            made = {
                "rows": torch.where(batch["w"] > 0, batch["row"], -1),
                "z": seen[name].to(task.dtype),
                "y": batch["y"],
                "p": torch.softmax(seen[""] / s.tau, -1),
            }
            place = carry["at"] + torch.arange(len(batch["w"]), device=task.device)
            put = {n: carry[n].index_copy(0, place, x) for n, x in made.items()}
            return {**carry, **put, "at": carry["at"] + b}

        def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
            return {n: carry[n] for n in ("rows", "z", "y", "p")}, client.own

        return Visit(
            lambda client: {"model": client.own["model"]}, [Phase(steps(s.samples), step, enter, counts=False)], end
        )

    @visit
    def train(self, task: Task, depth: int) -> Visit:
        s, own = self.settings, str(depth) if 0 < depth < len(task.cuts) else ""

        def start(client: ClientContext) -> Tree:
            extra = {AUX + n: p for n, p in client.own["auxiliary"][own].items()} if own else {}
            return {"model": {**client.own["model"], **extra}, **(client.mine if depth else {})}

        def objective(params: Tree, carry: Tree, batch: Batch, key: Any) -> Tensor:
            model, extra = split(params)
            loss = task.loss(model, batch, key)
            hit = carry["rows"] == batch["row"][:, None]  # (B, S); who was not sent has no hit
            q = hit.to(loss.dtype) @ carry["soft"] / hit.sum(-1, keepdim=True).clamp(min=1)
            return loss + s.alpha * hit.any(-1).to(loss.dtype) * soft_loss(
                task, model, extra, batch["x"], q, depth, s.tau
            )

        def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
            model, extra = split(carry["model"])
            kept = {**client.own["auxiliary"], **({own: extra} if own else {})}
            return {}, {"model": model, "auxiliary": kept}

        made = sgd_visit(task.loss, self.local, start=start, objective=objective if depth else None, end=end)
        return made._replace(local=lambda carry: split(carry["model"])[0])

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        sampled, heads = fed.sample(), dict(state["heads"])
        for number, (name, of) in enumerate(task.by_family().items()):
            clients = [c for c in sampled if task.family is None or task.family[c] == number]
            depth, mine = self.depth(len(of.cuts), fed.round), {}
            if depth and clients:
                got = fed.ask(self.upload.with_(depth=depth), clients)
                if got.ids:
                    head = self._taught(of, heads[name][str(depth)], got, depth, fed.key(f"head of {name}"))
                    heads[name] = {**heads[name], str(depth): head}
                    mine, clients = self._soft(of, head, got, depth), got.ids
            if clients and (mine or not depth):
                fed.ask(self.train.with_(depth=depth), clients, mine=mine)
        return {"heads": heads}

    def _taught(self, task: Task, head: Tree, got: Replies, depth: int, key: int) -> Tree:
        """Return a head after SGD on all that clients sent."""
        s, name = self.settings, list(task.cuts)[depth - 1]
        z, y, p, rows = (got.stacked(n).flatten(0, 1) for n in ("z", "y", "p", "rows"))
        z, y, p = z[rows >= 0], y[rows >= 0], p[rows >= 0]

        def loss(g: Tree, at: Tensor) -> Tensor:
            f = task.resume(g, name, z[at])
            apart = ensemble.kl(torch.log(p[at].clamp(min=1e-30)) * s.tau, f, s.tau)
            return (F.cross_entropy(f, y[at], reduction="none") + s.beta * apart).mean()

        rng, left = keys.torch_generator(key), torch.zeros(0, dtype=torch.int64)
        for _ in range(s.server_steps if len(z) else 0):
            left = left if len(left) else torch.randperm(len(z), generator=rng)
            at, left = left[: s.server_batch], left[s.server_batch :]
            head = tree.add(head, torch.func.grad(loss)(head, at), -s.server_lr)
        return head

    def _soft(self, task: Task, head: Tree, got: Replies, depth: int) -> dict[int, Tree]:
        """Return client -> the numbers of its rows and the head's soft labels of them."""
        name, out = list(task.cuts)[depth - 1], {}
        with torch.no_grad():
            for client, z in got.gather("z").items():
                out[client] = torch.softmax(task.resume(head, name, z) / self.settings.tau, -1)
        rows = got.gather("rows")
        return {c: {"rows": rows[c], "soft": q} for c, q in out.items()}

    def serve(self, state: Tree) -> Tree:
        return {}

    def view(self, task: Task) -> Visit:
        return model_of(lambda client: client.own["model"])


def shape(task: Task, name: str) -> tuple[int, ...]:
    """Return the shape of what a layer answers for one row."""
    kind = torch.int32 if task.kind == "text" else task.dtype
    with torch.no_grad():
        x = torch.zeros(1, *task.input_shape, dtype=kind, device=task.device)
        return tuple(task.watch(task.initial, x, [name])[name].shape[1:])


def auxiliary(task: Task, depth: int) -> Tree:
    """Return a linear classifier on what block `depth`, from 1, answers, at 0."""
    d = math.prod(shape(task, list(task.cuts)[depth - 1]))
    like: Any = {"dtype": task.dtype, "device": task.device}
    return {"weight": torch.zeros(task.classes, d, **like), "bias": torch.zeros(task.classes, **like)}


def split(params: Tree) -> tuple[Tree, Tree]:
    """Return a model's entries and an auxiliary classifier's."""
    model = {n: p for n, p in params.items() if not n.startswith(AUX)}
    return model, {n.removeprefix(AUX): p for n, p in params.items() if n.startswith(AUX)}


def soft_loss(task: Task, model: Tree, extra: Tree, x: Tensor, q: Tensor, depth: int, tau: float) -> Tensor:
    """Return tau^2 KL(q || softmax(a(z) / tau)) of each row, (B,): z the answer of block `depth`, a the classifier `extra` on it, or
    where that is empty all of the model's layers behind it; q (B, C)."""
    if extra:
        name = list(task.cuts)[depth - 1]
        z = task.watch(model, x, [name])[name]
        f = F.linear(z.flatten(1), extra["weight"], extra["bias"])
    else:
        f = task.apply(model, x)
    return ensemble.kl(torch.log(q.clamp(min=1e-30)) * tau, f, tau)
