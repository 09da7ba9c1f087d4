"""Franca: self-distillation without labels, whose heads see nested parts of the features, with balanced assignments to prototypes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from rayfed import ANY, PARAMS, Method, MethodSettings, Part, Visit, Wire, keys, mean, models, sgd_visit, tree, visit
from rayfed.distill import generator as gen
from rayfed.lazy import F, torch

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed import ClientContext, Fed, Task, Tree
    from rayfed.config.schema import Config
    from rayfed.visits import Batch

FIRST_TEMPERATURE = 0.04  # of the teacher, in round 1
CHANCE, RATIO = 0.5, (0.1, 0.65)  # that a large crop loses patches, and which share of them


class Franca(Method):
    """Venkataramanan et al. 2025, "Franca: Nested Matryoshka Clustering for Scalable Visual Representation Learning" (2507.14137),
    equations as in the authors' code; the paper is not federated.

    z = f(x), (D,): for each l of `levels` a head of its own maps the first D / l entries of z (`projection: linear`: a learned map of z to
    D / l) by three layers to length 1 and gives cosines with K / l prototypes. On large crops v and small ones, student (f, heads), teacher
    its running average, q_v = Sinkhorn(teacher's cosines of v / T_t): three times prototypes, then rows, are scaled to equal sums, so that
    the batch uses all prototypes alike. Image loss: -sum_k q_vk log softmax_k(student's cosines of u / T), mean over pairs of a large v
    and another crop u, summed over levels. Patch loss (`patches`, iBOT): the student does not see some patches of large crops; the same
    at these, with heads of their own, divided by their number in the image. KoLeo: -log of the distance to the nearest other row of the
    batch, of f's answers of length 1. T_t rises from 0.04 to `teacher_temperature` in `warm_rounds`.
    One client is the paper's algorithm. With several [ours] clients send the updates of student and teacher, and the server adds their
    means weighted by examples; `teacher: server` keeps the teacher as it was sent, and the server moves it by 1 - momentum after each
    round. Sinkhorn sees a client's batch alone, which under label skew uses its prototypes too evenly. `levels: [1]` is an ordinary head.
    [ours]: the mean of patches stands for the class token, which vit-tiny lacks; what is not seen is 0; the momentum stays; prototypes
    move from the first step; masked patches are the farthest from a block's centre, in an image whose edges meet (the code's inverse
    block mask, shifted cyclically).
    A rule of aggregation (`aggregate`) acts on both networks; heads are averaged.
    Down: student, teacher (2 P) and their heads. Up: the updates of these. Kept at clients: nothing. At the server: all four; the
    teacher's network is what is served and saved.
    """

    needs: ClassVar = frozenset({"views"})
    no_buffers = "the teacher is a running average of weights"
    no_privacy = "assignments to prototypes are balanced over a whole batch"

    class Settings(MethodSettings):
        levels: tuple[int, ...] = Field(
            (1, 2, 4), min_length=1, description="A head for the first 1/l of the features, for each l."
        )
        projection: Literal["slice", "linear"] = Field(
            "slice", description="The first entries (text), or a learned map of all (code)."
        )
        prototypes: int = Field(
            64, ge=2, description="K, of the head on all features; at most a batch's rows make sense."
        )
        hidden: int = Field(128, ge=1, description="Width of a head's two hidden layers.")
        bottleneck: int = Field(32, ge=1, description="Size of what is compared with prototypes.")
        temperature: float = Field(0.1, gt=0, description="T, of the student.")
        teacher_temperature: float = Field(0.07, gt=0, description="T_t from `warm_rounds` on.")
        warm_rounds: int = Field(10, ge=1, description="Rounds in which T_t rises to its last value.")
        momentum: float = Field(
            0.99, ge=0, le=1, description="What the teacher keeps of itself in each step; 1: it stays."
        )
        teacher: Literal["clients", "server"] = Field(
            "clients", description="Who moves the teacher: clients step by step, or the server."
        )
        koleo: float = Field(0.1, ge=0, description="Weight of spreading the batch's features.")
        patches: float = Field(0.0, ge=0, description="Weight of the patch loss; above 0 for task.model: vit-tiny.")

    wire: ClassVar[Wire] = Wire(
        down={
            "model": Part(PARAMS, note="the teacher"), "model_heads": Part(ANY, note="the teacher's heads"),
            "student": Part(PARAMS), "heads": Part(ANY),
        },
        up={
            "delta": Part(PARAMS, update=True, robust=True, note="of the student"),
            "heads": Part(ANY, update=True, note="their update"),
            "model": Part(PARAMS, update=True, robust=True, note="update of the teacher"),
            "model_heads": Part(ANY, update=True, note="update of its heads"),
        },
        server={
            "model": Part(PARAMS, note="the teacher, which is served"), "model_heads": Part(ANY, note="its heads"),
            "student": Part(PARAMS), "heads": Part(ANY),
        },
    )  # fmt: skip

    def check(self, config: Config) -> list[str]:
        s, found = self.settings, []
        found += [f"method.levels: {v} found, allowed: whole numbers >= 1" for v in s.levels if v < 1]
        found += [
            f"method.levels: {v} found with {s.prototypes} prototypes, allowed: at most {s.prototypes // 2}, two for each level"
            for v in s.levels
            if v > s.prototypes // 2
        ]
        if s.patches and config.task.model.name != "vit-tiny":
            found.append(
                f"method.patches: {s.patches} found, task.model: {config.task.model.name} has no patches; allowed: 0, or vit-tiny"
            )
        return found

    def fits_model(self, task: Task) -> list[str]:
        wide = [v for v in self.settings.levels if v > task.feature_size]
        return [
            f"method.levels: {v} found, the network has {task.feature_size} features; allowed: at most as many"
            for v in wide
        ]

    def init(self, task: Task, key: int) -> Tree:
        model, heads = task.init_params(key), {}
        for kind in ("image", "patch") if self.settings.patches else ("image",):
            for level in self.settings.levels:
                heads[f"{kind}-{level}"] = self._head(task, keys.key(key, 0, level, kind), level)
        return {"model": model, "model_heads": heads, "student": model, "heads": heads}

    def _head(self, task: Task, key: int, level: int) -> Tree:
        s, d = self.settings, task.feature_size
        made = gen.init(key, d // level, 0, (s.bottleneck,), (s.hidden, s.hidden), task.dtype)
        rng = keys.torch_generator(keys.key(key, 0, -1, "prototypes"))
        last = torch.randn(s.prototypes // level, s.bottleneck, generator=rng, dtype=torch.float64).to(task.dtype)
        first = gen.init(keys.key(key, 0, -1, "projection"), d, 0, (d // level,), (), task.dtype)["0"]
        return {**made, "last": {"w": last}, **({"project": first} if s.projection == "linear" else {})}

    @visit
    def train(self, task: Task) -> Visit:
        s = self.settings
        rises = max(1, s.warm_rounds - 1)

        def start(client: ClientContext) -> Tree:
            sent, done = client.shared, (client.info.round - 1).to(task.dtype)
            rate = FIRST_TEMPERATURE + (s.teacher_temperature - FIRST_TEMPERATURE) * (done / rises).clamp(max=1)
            return {
                "both": {"model": sent["student"], "heads": sent["heads"]},
                "teacher": {"model": sent["model"], "heads": sent["model_heads"]},
                "temperature": rate,
            }

        plain = sgd_visit(task.loss, self.local, train="both", start=start, objective=self._objective(task))
        (phase,) = plain.phases

        def step(carry: Tree, batch: Batch, key: Tensor) -> Tree:
            after = phase.step(carry, batch, key)
            moved = tree.map(lambda t, p: s.momentum * t + (1 - s.momentum) * p, carry["teacher"], after["both"])
            return {**after, "teacher": moved}

        def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
            sent = client.shared
            out = {
                "delta": tree.sub(carry["both"]["model"], sent["student"]),
                "heads": tree.sub(carry["both"]["heads"], sent["heads"]),
            }
            if s.teacher == "clients":
                out["model"] = tree.sub(carry["teacher"]["model"], sent["model"])
                out["model_heads"] = tree.sub(carry["teacher"]["heads"], sent["model_heads"])
            return out, client.own

        steps = phase._replace(step=step) if s.teacher == "clients" else phase
        return Visit(plain.begin, [steps], end, local=lambda carry: carry["both"]["model"])

    def _objective(self, task: Task) -> Any:
        s = self.settings

        def objective(params: Tree, carry: Tree, batch: Batch, key: Any) -> Tensor:
            large, small = task.views(batch["x"], key)  # type: ignore[attr-defined]
            teacher, w, warm = carry["teacher"], batch["w"].to(task.dtype), carry["temperature"]
            hidden = [
                self._hidden(task, len(w), keys.fold(key, 100 + i)) if s.patches else None for i in range(len(large))
            ]
            told = [self._seen(task, teacher["model"], x, None) for x in large]
            views = zip([*large, *small], [*hidden, *[None] * len(small)], strict=True)
            got = [
                self._seen(task, params["model"], x, m, (batch, keys.fold(key, 200 + i)))
                for i, (x, m) in enumerate(views)
            ]
            total = torch.zeros_like(w)
            for level in s.levels:
                mine, its = (p["heads"][f"image-{level}"] for p in (params, teacher))
                logits = [torch.log_softmax(answer(mine, z) / s.temperature, -1) for z, _ in got]
                targets = [sinkhorn(answer(its, z), w, warm) for z, _ in told]
                pairs = [(q, p) for v, q in enumerate(targets) for u, p in enumerate(logits) if u != v]
                total = total - sum((q * p).sum(-1) for q, p in pairs) / len(pairs)
                for v, m in enumerate(hidden):
                    if m is not None:
                        total = total + s.patches / len(large) * self._patch_loss(
                            params, teacher, level, got[v][1], told[v][1], m, w, warm
                        )
            for z, _ in got[: len(large)] if s.koleo else ():
                total = total + s.koleo * koleo(z, w)
            return total

        return objective

    def _patch_loss(
        self,
        params: Tree,
        teacher: Tree,
        level: int,
        mine: Tensor,
        its: Tensor,
        hidden: Tensor,
        w: Tensor,
        temperature: Tensor,
    ) -> Tensor:
        """Return the loss of each row's patches that the student did not see, (B,); mine, its: what it and the teacher make of all (B, T,
        D)."""
        b, t, d = mine.shape
        name, there = f"patch-{level}", (hidden * w[:, None]).reshape(-1)
        q = sinkhorn(answer(teacher["heads"][name], its.reshape(b * t, d)), there, temperature)
        p = torch.log_softmax(answer(params["heads"][name], mine.reshape(b * t, d)) / self.settings.temperature, -1)
        return -((q * p).sum(-1) * there).reshape(b, t).sum(1) / hidden.sum(1).clamp(min=1)

    def _hidden(self, task: Task, rows: int, key: Tensor) -> Tensor:
        """Return which patches of each row the student does not see, (B, T) 0 or 1."""
        (high, wide), patch = task.input_shape[1:], patch_of(task)
        each = keys.fold(key, torch.arange(rows, device=key.device))
        return torch.vmap(lambda k: cyclic_mask(k, high // patch, wide // patch))(each).to(task.dtype)

    def _seen(
        self, task: Task, model: Tree, x: Tensor, hidden: Tensor | None, step: tuple[Batch, Tensor] | None = None
    ) -> tuple[Tensor, Any]:
        """Return features (B, D) of crops, and with `patches` those of each patch (B, T, D); hidden: patches that are 0, or None; step: the
        student's batch and key, who is in train mode (vit-tiny, of patches, is the same in both)."""
        if not self.settings.patches:
            return (task.apply(model, x) if step is None else task.seen(model, x, *step)), None  # type: ignore[attr-defined]
        if hidden is not None:
            patch, (high, wide) = patch_of(task), x.shape[-2:]
            shown = (1 - hidden).reshape(len(x), 1, high // patch, wide // patch)
            x = x * shown.repeat_interleave(patch, 2).repeat_interleave(patch, 3)
        seen = task.watch(model, x, ["norm", ""])
        return seen[""], seen["norm"]

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        s = self.settings
        parts = ("delta", "heads", *(("model", "model_heads") if s.teacher == "clients" else ()))
        got = fed.ask(self.train, fed.sample(), shared=state, fold=tuple(map(mean, parts)))
        if not got.ids:
            return state
        student, heads = tree.add(state["student"], got.folded["delta"]), tree.add(state["heads"], got.folded["heads"])
        if s.teacher == "clients":
            model, its = (tree.add(state[n], got.folded[n]) for n in ("model", "model_heads"))
        else:
            model, its = (
                tree.map(lambda t, p: s.momentum * t + (1 - s.momentum) * p, state[n], new)
                for n, new in (("model", student), ("model_heads", heads))
            )
        return {"model": model, "model_heads": its, "student": student, "heads": heads}


def patch_of(task: Task) -> int:
    """Return the side of a patch of vit-tiny."""
    return int({**models.KNOWN["vit-tiny"][1], **task.config.task.model.options}["patch"])


def answer(head: Tree, z: Tensor) -> Tensor:
    """Return a head's cosines with its prototypes, (n, K), of features (n, D): of its first entries, or of a learned map of all."""
    h = (
        F.linear(z, head["project"]["w"], head["project"]["b"])
        if "project" in head
        else z[:, : head["0"]["w"].shape[1]]
    )
    for i in ("0", "1"):
        h = F.gelu(F.linear(h, head[i]["w"], head[i]["b"]))
    h = F.linear(h, head["2"]["w"], head["2"]["b"])
    return F.normalize(h, dim=-1, eps=1e-6) @ F.normalize(head["last"]["w"], dim=-1, eps=1e-6).T


def sinkhorn(t: Tensor, w: Tensor, temperature: Any, iterations: int = 3) -> Tensor:
    """Return assignments (n, K) of cosines t (n, K): rows of weight 1 are distributions, prototypes have nearly equal sums; w: (n,) 1 or
    0."""
    n, k = w.sum().clamp(min=1), t.shape[1]
    q = torch.exp((t - t.amax()) / temperature) * w[:, None]
    for _ in range(iterations):
        q = q / q.sum(0, keepdim=True).clamp(min=1e-30) / k
        q = q / q.sum(1, keepdim=True).clamp(min=1e-30) / n
    return q * n


def koleo(z: Tensor, w: Tensor) -> Tensor:
    """Return -log of each row's distance to the nearest other one, (n,), of features (n, D) scaled to length 1, distances counted as
    sqrt(d^2 + 0.0001); 0 without another row."""
    z = F.normalize(z, dim=1, eps=1e-6)
    apart = torch.eye(len(z), dtype=z.dtype, device=z.device) + (1 - w)[None]
    cosines = (z @ z.T).detach() - 4 * apart
    near, at = cosines.amax(1), cosines.argmax(1)
    found = -0.5 * torch.log((z - z[at]).square().sum(1) + 1e-4)
    return torch.where((near > -2) & (w > 0), found, torch.zeros_like(found))


def cyclic_mask(key: Tensor, high: int, wide: int) -> Tensor:
    """Return which of high x wide patches are hidden, (T,) bool: with a chance of one half a share of 0.1 to 0.65 of them, the farthest
    from a block's centre, in an image whose edges meet."""
    u = keys.uniform(key, (5,), torch.float32)
    many = high * wide
    n = torch.floor((RATIO[0] + (RATIO[1] - RATIO[0]) * u[0]) * many).clamp(min=1) * (u[1] < CHANCE)
    rows, columns = torch.arange(many, device=key.device) // wide, torch.arange(many, device=key.device) % wide
    stretch = torch.exp((2 * u[2] - 1) * math.log(2.0))
    from_row = ((rows - torch.floor(u[3] * high) + high // 2) % high - high // 2).abs() * stretch
    from_column = ((columns - torch.floor(u[4] * wide) + wide // 2) % wide - wide // 2).abs() / stretch
    place = torch.argsort(torch.argsort(-torch.maximum(from_row, from_column), stable=True), stable=True)
    return place < n
