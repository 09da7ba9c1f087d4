"""Recommendation from implicit feedback: rank the item that a user took next among items that it never met."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from rayfed import keys
from rayfed.lazy import F, torch
from rayfed.metrics import MEASURES, Measure
from rayfed.task import TaskKind, TaskSettings

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed.config.schema import Config
    from rayfed.partition import Federation
    from rayfed.tree import Tree

PURPOSE = 991  # of the key's draw that is for negatives, apart from dropout's


class Ranking(TaskKind):
    """Learn which items a user takes: one user is one client, and each of its rows an item that it took.

    Batches have y (B,), the item, and `user` (B,), the client. A model scores items: `apply(params, items (B, K))` gives (B, K). loss: of
    a row the mean binary cross-entropy of its item (1) and of `sample` items drawn in every step from those that the user never took (0).
    A row is judged by the rank of its item among the `negatives` ones that were drawn for its user once, by the seed, none of which it took
    in training, validation or test; ties count against it, so that a model that scores all alike ranks last (leave-one-out, He et al. 2017,
    1708.05031; the ties as in PFedRec's code). hr@k: 1 where the rank is at most k; ndcg@k: log 2 / log(1 + rank) there.
    """

    class Settings(TaskSettings):
        k: list[int] = Field([10], min_length=1, description="Lengths of the lists of which hr@k and ndcg@k are.")
        negatives: int | Literal["all"] = Field(
            99,
            description="Items that a row's item is ranked among, the same in every round; all: every item that the user never took.",
        )
        sample: int = Field(
            4, ge=1, description="Items that were not taken, drawn for each taken one in a training step."
        )

    reads: ClassVar[tuple[str, ...]] = ("items",)
    columns: ClassVar[tuple[str, ...]] = ("user",)
    offers: ClassVar[frozenset[str]] = frozenset({"items"})
    models: ClassVar[tuple[str, ...]] = ("factors", "ncf")
    pooled: ClassVar[bool] = False
    measures: tuple[Measure, ...] = (
        MEASURES["loss"]._replace(text="binary cross-entropy of the item and of sampled others"),
    )

    def __init__(self, config: Config, federation: Federation, device: str = "cpu", start: Any = None):
        super().__init__(config, federation, device, start)
        if hasattr(federation, "arrays"):  # a network alone is tried without data
            self._remember(federation)

    @classmethod
    def measured(cls, settings: Any) -> tuple[Measure, ...]:
        """Return the loss, and hr and ndcg of each k."""
        of = settings.negatives if settings.negatives == "all" else f"{settings.negatives} other"
        return cls.measures + tuple(
            m
            for k in settings.k
            for m in (
                Measure(
                    f"hr@{k}", "higher", "fraction", f"share of items that rank among the first {k} with {of} items"
                ),
                Measure(
                    f"ndcg@{k}",
                    "higher",
                    "fraction",
                    f"log 2 / log(1 + rank) of items that rank among the first {k}, else 0",
                ),
            )
        )

    @classmethod
    def problems(cls, config: Config, federation: Federation) -> list[str]:
        """Return why this data cannot be ranked as asked."""
        s = cls.Settings(**config.task.kind.options)
        if wrong := [k for k in s.k if k < 1]:
            return [f"task.kind.k: {wrong[0]} found, allowed: whole numbers >= 1"]
        taken = np.bincount(_pairs(federation)[0], minlength=federation.clients)
        least = federation.classes - int(taken.max(initial=0))
        if least < s.sample:
            return [
                f"task.kind.sample: {s.sample} found, some user never took only {least} items; allowed: at most that"
            ]
        if s.negatives != "all" and not s.sample <= s.negatives <= least:
            user = federation.names[int(taken.argmax())]
            return [
                f"task.kind.negatives: {s.negatives} found, but user {user} never took only {least} of {federation.classes} items; "
                f"allowed: {s.sample} (sample) to {least}, all"
            ]
        return []

    def loss(self, params: Tree, batch: Any, key: Any = None) -> Tensor:
        """Return the loss of each row, (B,); with a training step's key, of negatives drawn from it."""
        items = self.items(batch, key)
        with self.training(batch, key):
            return _loss(self.apply(params, items))

    def items(self, batch: Any, key: Any = None) -> Tensor:
        """Return the items that a row's loss is of, its own first, (B, 1 + sample); with a step's key, others are drawn from it."""
        y, user = batch["y"].long(), batch["user"].long()
        others = self._fixed[user][:, : self.settings.sample] if key is None else self.negatives(user, key)
        return torch.cat([y[:, None], others], 1)

    def negatives(self, user: Tensor, key: Tensor) -> Tensor:
        """Return `sample` items for each row that its user never took, (B, sample), drawn evenly from a step's key."""
        u = keys.uniform(keys.fold(key, PURPOSE), (len(user), self.settings.sample), torch.float64)
        free = self._free[user][:, None]
        return self._unseen(user, torch.minimum((u * free).long(), free - 1))

    def predict(self, params: Tree, batch: Any) -> Tensor:
        """Return the scores (B, K) of each row's item and of those that it is ranked among; of `all`, `sample` ones for the loss stand
        between them, and those that its user took have minus infinity."""
        y, user = batch["y"].long(), batch["user"].long()
        if self.settings.negatives != "all":
            return self.apply(params, torch.cat([y[:, None], self._fixed[user]], 1))
        few = torch.cat([y[:, None], self._fixed[user]], 1)
        every = torch.arange(self.classes, device=y.device).expand(len(y), -1)
        scores = self.apply(params, torch.cat([few, every], 1)).split([few.shape[1], self.classes], 1)
        return torch.cat([scores[0], scores[1].masked_fill(self._taken[user], -math.inf)], 1)

    def judge_mean(self, p: Tensor, batch: Any) -> dict[str, Tensor]:
        """Return loss, hr@k and ndcg@k of each row, (B,), of `predict`'s scores."""
        rank = self._rank(p)
        out = {"loss": _loss(p[:, : 1 + self.settings.sample])}
        gain = math.log(2) / torch.log1p(rank.to(p.dtype))
        for k in self.settings.k:
            hit = (rank <= k).to(p.dtype)
            out |= {f"hr@{k}": hit, f"ndcg@{k}": hit * gain}
        return out

    def score(self, params: Tree, batch: Any) -> dict[str, Tensor]:
        """Return `metrics`, and `rank` (B,), from 1."""
        p = self.predict(params, batch)
        return {**self.judge_mean(p, batch), "rank": self._rank(p)}

    def _rank(self, p: Tensor) -> Tensor:
        """Return the rank (B,), from 1, of each row's item by `predict`'s scores; of equal ones it is the last."""
        first = 1 + self.settings.sample if self.settings.negatives == "all" else 1
        return 1 + (p[:, first:] >= p[:, :1]).sum(1)

    # -- what a user took ----------------------------------------------------------------------------------------------

    def _remember(self, federation: Federation) -> None:
        """Keep what each user took, as tables of tensors; made here, since what a transform makes does not outlive it.

        _shift: s_j - j of each user's items s in order, (N, L), padded with I; _free: how many items it never took, (N,): the r-th of these
        is r plus how many of the row's numbers are at most r. _fixed: those that its rows are ranked among, (N, negatives), none twice.
        """
        user, item = _pairs(federation)
        n, taken = federation.clients, np.bincount(user, minlength=federation.clients)
        first = np.cumsum(taken) - taken
        place = np.arange(len(user)) - first[user]
        shift = np.full((n, max(1, int(taken.max(initial=0)))), self.classes, np.int64)
        shift[user, place] = item - place
        free, every = self.classes - taken, self.settings.negatives == "all"
        fixed = np.zeros((n, self.settings.sample if every else self.settings.negatives), np.int64)
        for u, many in enumerate(free.tolist()):
            rng = keys.numpy(keys.key(self.config.seed, 0, u, "items to rank among"))
            r = rng.choice(many, min(fixed.shape[1], many), replace=False)
            fixed[u, : len(r)] = r + (shift[u] <= r[:, None]).sum(1)
        self._shift, self._free, self._fixed = (torch.as_tensor(a, device=self.device) for a in (shift, free, fixed))
        if every:
            met = np.zeros((n, self.classes), bool)
            met[user, item] = True
            self._taken = torch.as_tensor(met, device=self.device)

    def _unseen(self, user: Tensor, r: Tensor) -> Tensor:
        """Return the r-th item (B, S) that each row's user never took."""
        return r + (self._shift[user][:, None, :] <= r[:, :, None]).sum(-1)


def _pairs(federation: Federation) -> tuple[np.ndarray, np.ndarray]:
    """Return (user, item) of everything that the clients took, each once, by user and item."""
    user, item = (np.asarray(federation.arrays[n]) for n in ("user", "y"))
    found = np.unique(np.stack([user[user >= 0], item[user >= 0]]).astype(np.int64), axis=1)
    return found[0], found[1]


def _loss(logits: Tensor) -> Tensor:
    """Return mean binary cross-entropy (B,) of scores (B, 1 + n), of which the first is of an item that was taken."""
    target = torch.zeros_like(logits)
    target = torch.cat([target[:, :1] + 1, target[:, 1:]], 1)
    return F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean(1)
