"""Neural collaborative filtering (He et al. 2017): a network scores a user's vector beside an item's."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from rayfed.models.factors import SPREAD


class NCF(nn.Module):
    """Score items (B, K) as (B, K): an MLP on [u, v_i]. `user` (u) belongs to one user; `items`, `body` and `head` to all."""

    def __init__(self, items: int, dim: int, hidden: Sequence[int]):
        super().__init__()
        self.items = nn.Embedding(items, dim)
        nn.init.normal_(self.items.weight, std=SPREAD)
        self.user = nn.Embedding(1, dim)
        nn.init.normal_(self.user.weight, std=SPREAD)
        sizes = [2 * dim, *hidden]
        self.body = nn.Sequential(*(m for a, b in pairwise(sizes) for m in (nn.Linear(a, b), nn.ReLU())))
        self.head = nn.Linear(sizes[-1], 1)

    def forward(self, items: Tensor) -> Tensor:
        v = self.items(items)
        return self.head(self.body(torch.cat([self.user.weight.expand(v.shape), v], -1))).squeeze(-1)


def build(classes: int, input_shape: tuple[int, ...], dim: int, hidden: Sequence[int]) -> nn.Module:
    return NCF(classes, dim, hidden)
