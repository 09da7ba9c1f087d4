"""Low-rank adapters at the server: the pairs (B, A) of a trained tree, their products, and a product's best pair again.

Names are PEFT's: `...lora_A.default.weight` is A (r, n), `...lora_B.default.weight` is B (m, r), and a layer's forward is
W x + (alpha / r) B A x. All of it is for linear layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NamedTuple

from rayfed import tree
from rayfed.adapters import ranks
from rayfed.adapters.ranks import is_a as is_a
from rayfed.adapters.ranks import is_b as is_b
from rayfed.lazy import torch
from rayfed.training import sgd_visit
from rayfed.visits import ClientContext, Visit

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed.config.schema import Config, Local
    from rayfed.fed import Replies
    from rayfed.task import Task
    from rayfed.tree import Tree

Pair = tuple["Tensor", "Tensor"]  # (B, A)


class Names(NamedTuple):
    """Names of one layer's factors in the trained tree."""

    b: str
    a: str


def pairs(names: Iterable[str]) -> list[Names]:
    """Return the names of every adapted layer's factors, in the order of `names`."""
    return [Names(n.replace("lora_A", "lora_B"), n) for n in names if is_a(n)]


def scale(config: Config) -> float:
    """Return what a layer multiplies B A by: alpha / r, or alpha / sqrt(r) with `rslora`; alpha is 2 r if not set, r the largest rank.

    It is so for every client's product at the server: B is in these units there (see `rayfed.adapters.ranks`).
    """
    c = config.adapter
    assert c.kind == "lora"
    return c.scale(c.largest)


def weight_of(task: Task, n: Names) -> tuple[str, bool]:
    """Return the name of the layer's frozen weight W (m, n), and whether it is stored as its transpose (GPT-2's layers)."""
    layer = n.a.partition(".lora_A.")[0]
    return f"{layer}.base_layer.weight", bool(task.layer(layer).fan_in_fan_out)


def split_trained(task: Task, model: Tree) -> tuple[Tree, Tree]:
    """Split a tree that has both into (trained parameters, frozen weights that moved)."""
    return select(model, lambda n: n in task.params_like), select(model, lambda n: n not in task.params_like)


def move_weights(task: Task, weights: Tree, changes: dict[Names, Tensor]) -> Tree:
    """Return frozen weights by name after W <- W + (alpha / r) change, (m, n) for each layer; those that `weights` lacks are the base's.

    They are in the training type: in bfloat16 a round's change may be less than a rounding, and lost.
    """
    out, s = {}, scale(task.config)
    for n, change in changes.items():
        name, transposed = weight_of(task, n)
        w = weights.get(name, task.frozen[name])
        out[name] = (w.to(change.dtype) + s * (change.T if transposed else change)).to(task.dtype)
    return out


def select(params: Tree, keep: Callable[[str], bool]) -> Tree:
    """Return the entries of a flat tree whose names `keep` takes."""
    return {n: p for n, p in params.items() if keep(n)}


def train_selected(
    task: Task,
    local: Local,
    moves: Callable[[str], bool],
    start: Callable[[ClientContext], Tree] | None = None,
) -> Visit:
    """Train locally the parameters that `moves` takes; only those have gradients, and only their update is sent.

    start: the whole model (default shared["model"]). Sends {"delta": trained - where it started}.
    """

    def begin(client: ClientContext) -> Tree:
        whole = start(client) if start else client.shared["model"]
        moving = select(whole, moves)
        return {"model": moving, "first": moving, "still": select(whole, lambda n: not moves(n))}

    def objective(params: Tree, carry: Tree, batch: Tree, key: Tensor) -> Tensor:
        return task.loss({**carry["still"], **params}, batch, key)

    def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
        return {"delta": tree.sub(carry["model"], carry["first"])}, client.own

    visit = sgd_visit(task.loss, local, start=begin, objective=objective, end=end)
    return visit._replace(local=lambda carry: {**carry["still"], **carry["model"]})


# -- products, in float64 ----------------------------------------------------------------------------------------------


def products(before: Tree, got: Replies, weight: str, part: str = "delta") -> dict[Names, Pair]:
    """Return each layer's D* = sum_i p_i B_i A_i as a pair B (m, K r), A (K r, n): the clients' factors side by side, B_i times p_i.

    The replies' `part` holds the changes from `before` and must have been kept; weight: "examples" or "one". A client of a
    smaller rank started from `before` cut to it, and its B_i carries its own alpha / r_i over the largest rank's: D* times
    `scale` is the mean of what the clients add to W.
    """
    names = pairs(before)
    moved = got.stacked(part, [n for pair in names for n in pair])
    w = got.examples if weight == "examples" else torch.ones_like(got.examples)
    p = (w / w.sum()).to(tree.values(moved)[0].device)
    out = {}
    held = got.ranks.to(p.device)
    for n in names:
        b, a = ((ranks.cut({x: before[x].expand_as(moved[x])}, held)[x] + moved[x]).to(torch.float64) for x in n)
        b = (b * p[:, None, None]).transpose(0, 1)
        out[n] = b.reshape(len(b), -1), a.reshape(-1, a.shape[2])
    return out


def best_pair(b: Tensor, a: Tensor, old: Tensor) -> Pair:
    """Return the pair of rank r whose product is closest to B A in the Frobenius norm (Eckart and Young 1936): B <- U S, A <- V^T.

    B (m, R), A (R, n); old (r, n): the A that was there, whose type is returned. B A itself is never formed. Each direction's
    sign makes the entry of V of largest size positive. Directions that B A lacks, to the type's precision, keep their row of
    `old`, with zeros in B.
    """
    r = len(old)
    q, x = torch.linalg.qr(b)
    p, y = torch.linalg.qr(a.T)
    u, s, v = torch.linalg.svd(x @ y.T, full_matrices=False)
    # What the clients' own rounding makes is no stronger in a wider layer; what this decomposition makes is float64's.
    noise = max(16 * torch.finfo(old.dtype).eps, max(len(b), a.shape[1]) * torch.finfo(s.dtype).eps)
    there = int((s[:r] > s[0] * noise).sum())
    left, right = q @ (u * s)[:, :there], v[:there] @ p.T
    at = right.abs().argmax(1, keepdim=True)
    sign = torch.where(right.gather(1, at) < 0, -1.0, 1.0).to(right.dtype)
    left = torch.cat([left * sign.T, left.new_zeros(len(left), r - there)], 1)
    return left.to(old.dtype), torch.cat([(right * sign).to(old.dtype), old[there:]])


def gap(exact: dict[Names, Pair], params: Tree) -> float:
    """Return ||D* - B A||_F / ||D*||_F with the entries of all layers side by side, B A of `params`; 0 where D* is zero."""
    apart = norm = 0.0
    for n, (b, a) in exact.items():
        ours = params[n.b].to(b.dtype), params[n.a].to(a.dtype)
        norm += float(_square(b, a))
        apart += float(_square(torch.cat([b, -ours[0]], 1), torch.cat([a, ours[1]])))
    return (max(apart, 0.0) / norm) ** 0.5 if norm else 0.0


def norm(b: Tensor, a: Tensor) -> Tensor:
    """Return ||B A||_F without forming B A, 0-d."""
    return _square(b, a).clamp(min=0).sqrt()


def _square(b: Tensor, a: Tensor) -> Tensor:
    """Return ||B A||_F^2 without forming B A, 0-d."""
    return ((b.T @ b) * (a @ a.T)).sum()
