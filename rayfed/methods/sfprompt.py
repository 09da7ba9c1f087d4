"""SFPrompt: clients tune a prompt and a tail of a network whose body is a server's, first without it, then the hardest rows with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from rayfed import ANY, MethodSettings, Part, Phase, Visit, Wire, keys, mean, sgd_visit, tree, visit
from rayfed.lazy import torch
from rayfed.methods._bases.over_adapter import OverAdapter
from rayfed.task import needs_classes
from rayfed.training import work
from rayfed.visits import whole
from rayfed.wire import SCALAR, Anything

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed import ClientContext, Fed, Task, Tree
    from rayfed.config.schema import Config
    from rayfed.partition import Federation
    from rayfed.visits import Batch


@dataclass(frozen=True)
class Tuned(Anything):
    """Describe what is trained: a prompt, and all that is behind the second cut."""

    def zeros(self, task: Task) -> Tree | Tensor:
        return tree.zeros(tuned(task, task.params_like))


class SFPrompt(OverAdapter):
    """SFPrompt 2024, "Split Federated Prompt Fine-Tuning" (2407.17533); no public code by its authors. From its abstract and summaries of
    others: forms marked [inferred] are not the paper's text.

    `task.split` cuts the network in three: a head W_h at the client, frozen; a body at the server, frozen; a tail W_t at the client, all of
    it trained, with a soft prompt p before the head (`adapter: {kind: vpt, deep: false}` or `prompt`; `head`: no prompt).
    Client k in each round, from (W_t, p):
        1. `local_epochs` of SGD on CE(W_t(W_h([p; x])), y), the body left out: nothing crosses. Rate: `local_lr`, or the round's.
        2. Scores its rows on this path, EL2N(x) = ||softmax(z(x)) - onehot(y)||_2, and keeps the ceil(`keep` n) largest ones; of those
           that are a thousandth apart, any.
        3. Trains (W_t, p) on those through head, body and tail, `local.epochs`: activations and gradients cross both cuts.
    Server: the mean of (W_t, p) by n_k [inferred], or by the rows kept (`weight: kept`). Served: the whole path.
    Kept rows stay in their batches, of which one without any changes nothing (ours). `keep: 1, local_epochs: 0` is split prompt tuning.
    The labels stay at the client. Large scores are those of wrong labels, too.
    Down: W_t, p. Up: their change; over the cuts 4 x rows kept x (T + P) d numbers for each of `local.epochs`.
    Kept at clients: nothing. At the server: W_t, p, the body.
    """

    class Settings(MethodSettings):
        keep: float = Field(
            0.5,
            gt=0,
            le=1,
            description="Share of its rows, those with the largest scores, that a client trains through the body.",
        )
        local_epochs: int = Field(2, ge=0, description="Epochs without the body, before.")
        local_lr: float | None = Field(None, gt=0, description="Rate of these epochs; null: the round's.")
        weight: Literal["examples", "kept"] = Field(
            "examples", description="Weights of the mean: all rows, or those kept."
        )

    wire: ClassVar[Wire] = Wire(
        down={"model": Part(ANY, note="prompt and tail")},
        up={
            "delta": Part(Tuned(), update=True, note="of prompt and tail"),
            "kept": Part(SCALAR, note="rows that went through the body, once each"),
            "hits": Part(SCALAR, note="accuracy on its rows without the body"),
        },
        server={"model": Part(ANY, note="prompt and tail")},
    )
    logs: ClassVar = {
        "sfprompt/kept": ("share of the clients' rows that went through the body", "fraction"),
        "sfprompt/local_path": ("accuracy of head and tail without the body on the clients' training rows", "fraction"),
    }
    needs = frozenset({"classes"})
    reads_rows = True
    kinds = ("vpt", "prompt", "head")
    no_buffers = "it trains frozen layers, whose statistics belong to the path through the body"
    no_privacy = "chooses rows by scores of all of them"

    def check(self, config: Config) -> list[str]:
        out, kind, split = super().check(config), config.adapter.kind, config.task.split
        if kind == "vpt" and config.adapter.deep:  # type: ignore[union-attr]
            out.append(
                "adapter.deep: true found, allowed with method.name: sfprompt: false; it has one prompt, before the head"
            )
        if split is None or len(split.after) != 2:
            found = "nothing" if split is None else f"{len(split.after)} layer"
            out.append(
                f"task.split.after: {found} found, method.name: sfprompt needs two: the head's last layer and the body's"
            )
        return out

    def fits(self, federation: Federation) -> list[str]:
        return needs_classes(federation, "sfprompt scores rows by their label's probability")

    def fits_model(self, task: Task) -> list[str]:
        if task.cut is None:
            return []
        with torch.no_grad():
            first, second = task.watch(task.initial, task.blank(1), task.cut.names).values()
        if first.shape != second.shape:
            return [
                f"task.split.after: shapes {tuple(first.shape[1:])} and {tuple(second.shape[1:])} found, method.name: sfprompt leaves out "
                "what is between, so they must be equal"
            ]
        return []

    def init(self, task: Task, key: int) -> Tree:
        return {"model": tuned(task, task.init_params(key))}

    @visit
    def train(self, task: Task) -> Visit:
        s = self.settings

        def start(client: ClientContext) -> Tree:
            zero = torch.zeros((), dtype=task.dtype, device=task.device)
            scorer = {"scorer": client.shared["model"]} if s.keep < 1 else {}
            return {"model": client.shared["model"], "least": zero - 1, "kept": zero, "hits": zero, **scorer}

        def enter(client: ClientContext, carry: Tree) -> Tree:
            return {**carry, "scorer": carry["model"]} if s.keep < 1 else carry

        def score(carry: Tree, batch: Batch, key: Tensor) -> Tree:
            z, w = short_path(task, carry["model"], batch["x"]), batch["w"]
            n, found = w.sum(), torch.where(w > 0, ranked(el2n(z, batch["y"]), batch["row"]), -1.0)
            hits = ((z.argmax(-1) == batch["y"]) * w).sum() / n.clamp(min=1)
            return {**carry, "least": threshold(found, n, s.keep), "hits": hits}

        def hardest(params: Tree, carry: Tree, batch: Batch, key: Any) -> Tensor:
            return task.loss(params, batch, key)

        before = self.local.model_copy(
            update={"epochs": s.local_epochs or None, "steps": None, "clip": self.local.clip}
        )
        local = sgd_visit(lambda p, b, k: short_loss(task, p, b, k), before, start=start, lr=s.local_lr)
        split = sgd_visit(task.loss, self.local, start=start, objective=hardest, phases=[(work(self.local), None)])
        (last,) = split.phases

        def on_kept(carry: Tree, batch: Batch, key: Tensor) -> Tree:
            w = batch["w"]
            if s.keep < 1:
                z = short_path(task, carry["scorer"], batch["x"])
                found = ranked(el2n(z, batch["y"]), batch["row"])
                w = w * (found > carry["least"]).to(w.dtype)
            after = last.step(carry, {**batch, "w": w}, key)
            made = tree.where(w.sum() > 0, after, carry)
            return {**made, "kept": carry["kept"] + (w > 0).sum().to(task.dtype)}

        def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
            delta = tree.sub(carry["model"], client.shared["model"])
            passes = 1 if self.local.steps else self.local.epochs or 1
            return {"delta": delta, "kept": carry["kept"] / passes, "hits": carry["hits"]}, client.own

        phases = [
            *(local.phases if s.local_epochs else ()),
            Phase(whole(), score, enter, counts=False),
            last._replace(step=on_kept),
        ]
        return Visit(local.begin, phases, end, local=split.local)

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        weight = "examples" if self.settings.weight == "examples" else "kept"
        got = fed.ask(self.train, fed.sample(), shared=state, fold=mean("delta", weight=weight), keep=())
        if not got.ids:
            return state
        kept, hits = got.gather("kept"), got.gather("hits")
        examples = {r.client: r.examples for r in got}
        fed.log("sfprompt/kept", sum(float(k) for k in kept.values()) / max(1, sum(examples.values())))
        for client, share in hits.items():
            fed.log("sfprompt/local_path", float(share), examples[client])
        return {"model": tree.add(state["model"], got.folded["delta"])}


def tuned(task: Task, params: Tree) -> Tree:
    """Return what is trained: the entries of `params`, and the frozen parameters of the tail as the network has them."""
    assert task.cut is not None
    frozen = {n: p.to(task.dtype) for n, p in task.frozen.items() if n in task.cut.behind}
    return {**params, **frozen}


def short_path(task: Task, params: Tree, x: Tensor) -> Tensor:
    """Return logits (B, C) of head and tail without the body between them; nothing crosses a cut."""
    assert task.cut is not None
    first, second = task.cut.names
    with task.crossing(None):
        return task.resume(params, second, task.watch(params, x, [first])[first])


def short_loss(task: Task, params: Tree, batch: Batch, key: Any) -> Tensor:
    """Return cross-entropy (B,) on the path without the body."""
    with task.training(batch, key):
        z = short_path(task, params, batch["x"])
    return task.cross_entropy(z, batch["y"], key)


def el2n(logits: Tensor, y: Tensor) -> Tensor:
    """Return ||softmax(logits) - onehot(y)||_2 of each row, (B,), from 0 to sqrt(2)."""
    p = torch.softmax(logits, -1)
    own = p.gather(-1, y[:, None])[:, 0]
    return ((p * p).sum(-1) - own * own + (1 - own) ** 2).clamp(min=0).sqrt()


def ranked(scores: Tensor, rows: Tensor) -> Tensor:
    """Return scores (B,) that are never equal: with a thousandth at most of each row's number (B,) int64, hashed, added."""
    hashed = keys.fold(torch.zeros_like(rows), rows) & 0xFFFFFF
    return scores + hashed.to(scores.dtype) * (1e-3 / 0x1000000)


def threshold(scores: Tensor, n: Tensor, keep: float) -> Tensor:
    """Return a number that ceil(keep n) of n scores are above, 0-d; scores (m,), -1 on padding; all are where `keep` is 1.

    It is halfway between two scores, so that scores of other batches, which differ in their last bits, fall on the same side.
    """
    k = torch.ceil(keep * n - 1e-6).to(torch.int64).clamp(min=1)
    ordered = torch.cat([scores.sort(descending=True).values, scores.new_full((1,), -1.0)])
    pair = ordered.gather(0, torch.stack([k - 1, k]))
    return torch.where(k >= n, pair[0] * 0 - 2, pair.mean())
