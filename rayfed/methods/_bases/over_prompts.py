"""What methods about prompts of two towers share: one model for base classes and one for new ones, and batches with hard negatives."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from rayfed import Phase, keys, tree
from rayfed.lazy import torch
from rayfed.methods._bases.over_adapter import OverAdapter
from rayfed.visits import whole

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed import ClientContext, Tree
    from rayfed.visits import Batch

LEAST = 2  # negatives of a row; where fewer are hard, some are drawn at random


class OverPrompts(OverAdapter):
    """Base: what is served may be {"base": tree, "new": tree}, which answer for the classes that clients have and for those they lack."""

    kinds = ("prompts",)
    needs: ClassVar[frozenset[str]] = frozenset({"towers"})

    def logits(self, task: Any, model: Tree, x: Tensor) -> Tensor:
        if "base" not in model:
            return task.apply(model, x)
        base: Tensor = task.apply(model["base"], x)
        if not len(task.new):
            return base
        new = torch.zeros(task.classes, dtype=torch.bool, device=base.device).index_fill(0, task.new, True)
        return torch.where(new, task.apply(model["new"], x), base)


def pool_phase(task: Any, size: int) -> Phase:
    """Return a phase that puts into the carry `pool` (C, size, *input_shape), pictures of each class drawn with replacement from the
    client's training rows, and `there` (C,), whether it has any."""

    def enter(client: ClientContext, carry: Tree) -> Tree:
        like = {"dtype": task.dtype, "device": task.device}
        room = torch.zeros(task.classes, size, *task.input_shape, **like)
        return {**carry, "pool": room, "there": torch.zeros(task.classes, **like)}

    def step(carry: Tree, batch: Batch, key: Tensor) -> Tree:
        x, classes = batch["x"], torch.arange(task.classes, device=task.device)
        mine = (batch["y"][None] == classes[:, None]) & (batch["w"] > 0)[None]
        chance = keys.uniform(key, (task.classes, size, len(x)), task.dtype)
        at = torch.where(mine[:, None], chance, torch.full_like(chance, -1.0)).argmax(-1)
        drawn = x.index_select(0, at.reshape(-1)).reshape(task.classes, size, *x.shape[1:])
        return {**carry, "pool": drawn.to(task.dtype), "there": mine.any(1).to(task.dtype)}

    return Phase(whole(), step, enter, counts=False)


def hard_negatives(ranked: Tensor, y: Tensor, w: Tensor, there: Tensor, key: Tensor) -> Tensor:
    """Return which classes become negatives of a batch, (C,) bool.

    Row by row those of ranked (B, K), its hardest classes, that are no row's own, are no negative yet and have a picture (there (C,));
    where fewer than `LEAST` are left, others at random up to that many. y, w: labels and weights (B,).
    """
    classes, has = torch.arange(len(there), device=there.device), there > 0
    real = w > 0
    used = ((y[:, None] == classes[None]) & real[:, None]).any(0)
    chosen = torch.zeros_like(used)
    for b in range(len(ranked)):
        open_to = has & ~used & real[b]
        hard = (ranked[b][:, None] == classes[None]).any(0) & open_to
        free = open_to & ~hard
        chance = keys.uniform(keys.fold(key, b), (len(there),), there.dtype)
        chance = torch.where(free, chance, torch.full_like(chance, -1.0))
        place = (chance[:, None] < chance[None]).sum(1)  # how many come before each class
        taken = hard | (free & (place < LEAST - hard.sum()))
        used, chosen = used | taken, chosen | taken
    return chosen


def enlarged(batch: Batch, carry: Tree, chosen: Tensor, most: int, key: Tensor) -> Batch:
    """Return the batch with a random picture of each chosen class behind it; most: negatives that there can be, the rest is padding."""
    pool, count = carry["pool"], len(chosen)
    order = (chosen * 2 * count - torch.arange(count, device=chosen.device)).topk(min(most, count)).indices
    which = (keys.uniform(key, (len(order),)) * pool.shape[1]).long()
    x = pool.flatten(0, 1).index_select(0, order * pool.shape[1] + which)
    w = chosen.index_select(0, order).to(batch["w"].dtype)
    return {
        "x": torch.cat([batch["x"], x]), "y": torch.cat([batch["y"].long(), order]), "w": torch.cat([batch["w"], w])
    }  # fmt: skip


def contrast(images: Tensor, texts: Tensor, scale: Any, w: Tensor, symmetric: bool) -> Tensor:
    """Return -log softmax of each picture's own text among the texts of the batch, (N,); symmetric: and of each text's picture, their mean.

    images, texts: (N, d) of length 1; w: 0 on padding, which is no candidate. Two rows of one class are each other's negatives.
    """
    s = scale * (images @ texts.T)
    counts = torch.eye(len(s), dtype=torch.bool, device=s.device) | (w > 0)[None]

    def one(s: Tensor) -> Tensor:
        return torch.logsumexp(s.masked_fill(~counts, -torch.inf), 1) - s.diagonal()

    return (one(s) + one(s.T)) / 2 if symmetric else one(s)


def mixed(a: Tree, b: Tree, share: float) -> Tree:
    """Return share * a + (1 - share) * b."""
    return tree.map(lambda x, y: share * x + (1 - share) * y, a, b)
